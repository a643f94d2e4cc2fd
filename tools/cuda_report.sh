# shellcheck shell=bash
# Sourced by ./wave: the registers, spills and memory of every kernel, as ptxas counts them.

# cuda_report OPERATION...: all without one. ARCH: for which architecture (90). Fails if a kernel spills.
cuda_report() {
  local arch=${ARCH:-90} available operation target bin file targets=()
  arch=${arch#sm_}
  [[ $arch =~ ^[0-9]+[af]?$ ]] || die "cuda-report: ARCH takes a number such as 90, not '$arch'"
  # The rule exists only where there is a toolkit.
  available=$(/usr/bin/bazel query --noshow_progress --ui_event_filters=-info,-warning \
    'kind(_nvcc_objects, //cuda/...)') || die "cuda-report: the BUILD files do not load"
  if [[ -z $available ]]; then
    say "no CUDA toolkit was found (CUDA_HOME, /usr/local/cuda): nothing to report"
    return 0
  fi
  for operation in "$@"; do
    target=//cuda:${operation}_nvcc
    grep -qxF "$target" <<<"$available" ||
      die "cuda-report: no operation is called '$operation'; there are:" \
        "$(sed 's|.*:||; s|_nvcc$||' <<<"$available" | tr '\n' ' ')"
    targets+=("$target")
  done
  [[ $# -gt 0 ]] || mapfile -t targets <<<"$available"
  run_bazel build --output_groups=cuda_report --define=CUDA_REPORT_ARCH="$arch" "${targets[@]}" >&2
  bin=$(/usr/bin/bazel info bazel-bin 2>/dev/null)
  for target in "${targets[@]#//}"; do
    for file in "$bin/${target%%:*}/_nvcc/${target#*:}"/*.ptxas.txt; do
      operation=${file##*/}
      printf 'operation %s\n' "${operation%.ptxas.txt}"
      c++filt <"$file"
    done
  done | awk -f tools/cuda_report.awk
}
