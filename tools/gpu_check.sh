#!/usr/bin/env bash
# Checks wavekv on a machine with an NVIDIA GPU that has neither Bazel nor Debian's packages.
#
#   tools/gpu_check.sh [FOLDER]           where wavekv is built: makes FOLDER (gpu_check), to be copied as it is
#   OUT=RESULTS FOLDER/gpu_check.sh --run   on the machine with the GPU: tests, compute-sanitizer, benchmarks, PyTorch
#
# The second needs bash, coreutils, gzip and a driver, and is done within 9 minutes. docs/gpu_check.md says what it writes.
set -euo pipefail
export LC_ALL=C

say() { printf 'gpu_check: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# ---- Building

readonly ALL_GPU_TESTS=//tests/cuda:all_gpu_tests
readonly MOST_BYTES=$((64 << 20))

# tagged_gpu EXPRESSION: the targets of a query that carry the tag.
tagged_gpu() {
  "$bazel" query --noshow_progress --ui_event_filters=-info,-warning "attr(tags, \"[\\[ ]gpu[],]\", $1)"
}

# carry KIND TARGET: copies a built binary and the libraries that are not glibc's.
carry() {
  local kind=$1 path=${2#//} name library file
  name=${2#*:}
  [[ ! -e $folder/$name ]] || die "two targets are called $name"
  strip -o "$folder/$name" "$bin/${path/://}"
  checked+=("$folder/$name")
  printf '%s %s\n' "$kind" "$name" >>"$folder/contents.txt"
  while read -r library _ file _; do
    case $library in
      linux-vdso* | /lib64/ld-linux* | libc.so* | libm.so* | libdl.so* | librt.so* | libpthread.so*) continue ;;
    esac
    [[ $file == /* ]] || die "$name needs $library, which is not there"
    cp -L --no-preserve=mode "$file" "$folder/lib/$library"
  done < <(ldd "$bin/${path/://}")
}

build() {
  [[ $# -le 1 && ${1:-} != -* ]] || die "usage: tools/gpu_check.sh [FOLDER]; --run on the machine with the GPU"
  local caller=$PWD folder=${1:-gpu_check} bazel=${BAZEL:-/usr/bin/bazel} bin covered target
  local tests=("$ALL_GPU_TESTS") benches=() tagged checked=()
  cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."
  [[ $# -eq 0 || $folder == /* ]] || folder=$caller/$folder
  [[ ! -e $folder || -e $folder/contents.txt ]] || die "$folder exists and was not made by gpu_check.sh"
  ./wave setup

  # One binary has all tests of operations; others with the tag come by themselves.
  covered=$("$bazel" query --noshow_progress --ui_event_filters=-info,-warning "labels(deps, $ALL_GPU_TESTS)")
  tagged=$(tagged_gpu 'tests(//tests/...)')
  for target in $tagged; do
    grep -qxF "${target}_cases" <<<"$covered" || tests+=("$target")
  done
  tagged=$(tagged_gpu 'kind(cc_binary, //bench/...)')
  mapfile -t benches <<<"$tagged"
  say "building ${tests[*]} ${benches[*]}"
  "$bazel" build --config=portable --compilation_mode=opt --ui_event_filters=-info --noshow_progress --show_result=0 \
    "${tests[@]}" "${benches[@]}"
  bin=$("$bazel" info --config=portable --compilation_mode=opt bazel-bin 2>/dev/null)

  rm -rf "$folder"
  mkdir -p "$folder/lib"
  for target in "${tests[@]}"; do carry test "$target"; done
  for target in "${benches[@]}"; do carry bench "$target"; done
  printf 'commit %s\n' "$(git describe --always --dirty 2>/dev/null || echo unknown)" >>"$folder/contents.txt"
  cp tools/gpu_check.sh tools/torch_attention.py "$folder/"

  local glibc bytes
  glibc=$(find "$folder" -type f \( ! -name '*.*' -o -name '*.so*' \) -exec objdump -T {} + |
    grep -oE 'GLIBC_[0-9.]+' | sort -uV | tail -n 1)
  # Each has the code of all kernels for all architectures.
  gzip -9 "${checked[@]}"
  bytes=$(du -sb "$folder" | cut -f1)
  [[ $bytes -lt $MOST_BYTES ]] || die "$folder has $((bytes >> 20)) MiB, more than $((MOST_BYTES >> 20))"
  say "$folder: $((bytes >> 10)) KiB, needs ${glibc/_/ } or newer; on the machine with the GPU: OUT=RESULTS" \
    "${folder##*/}/gpu_check.sh --run"
}

# ---- Running. Only bash, coreutils and gzip from here on.

# Seconds: of each part, and of all. What a command leaves unused the next of its part has.
readonly TEST_SECONDS=120 SANITIZER_SECONDS=40 BENCH_SECONDS=130 TORCH_SECONDS=90 ALL_SECONDS=520
# A sanitizer is some 30 times slower: the quickest tests that need so long together without it.
readonly SANITIZED_MS=1500
readonly LOG_BYTES=$((2 << 20))

rows=()
failures=0

# row NAME PASSED FAILED SKIPPED SECONDS NOTE
row() {
  rows+=("$(printf '%-34s %7s %7s %7s %8s  %.90s' "$1" "$2" "$3" "$4" "$5" "$6")")
  [[ $3 == 0 ]] || failures=$((failures + 1))
}

# limited SECONDS LOG COMMAND...: output goes to the end of LOG, the first LOG_BYTES of it. 124: it took too long.
limited() {
  local limit=$1 log=$2 left=$((ALL_SECONDS - SECONDS)) status=0
  shift 2
  [[ $limit -le $left ]] || limit=$left
  if [[ $limit -le 0 ]]; then
    echo "no time left for: $*" >>"$log"
    return 124
  fi
  printf '\n$ %s\n' "$*" >>"$log"
  # The reader goes on reading, so that a long output does not end the program.
  { timeout -k 3 "$limit" "$@" 2>&1 </dev/null || status=$?; echo "$status" >"$out/.status"; } |
    { head -c "$LOG_BYTES"; cat >/dev/null; } >>"$log"
  status=$(<"$out/.status")
  rm -f "$out/.status"
  [[ $status != 137 ]] || status=124
  return "$status"
}

# Reads a GoogleTest log: result[CASE] becomes ok, failed or skipped, milliseconds[CASE] how long it took, no_device why
# cases were skipped, running the case that had no end.
read_gtest_log() {
  local line name
  running=""
  while IFS= read -r line; do
    case $line in
      '[ RUN      ] '*) running=${line:13} ;;
      '[       OK ] '*' ms)' | '[  FAILED  ] '*' ms)' | '[  SKIPPED ] '*' ms)')
        name=${line:13}
        name=${name%% (*}
        name=${name%%, where*}
        case $line in
          *' OK ] '*) result[$name]=ok ;;
          *FAILED*) result[$name]=failed ;;
          *) result[$name]=skipped ;;
        esac
        line=${line##*\(}
        milliseconds[$name]=${line% ms)}
        running="" ;;
      *CUDA:*) [[ -n $no_device ]] || no_device=${line#*: } ;;
    esac
  done <"$1"
}

# The names of a binary's cases for CUDA devices.
list_cases() {
  local line suite=""
  while IFS= read -r line; do
    line=${line%%#*}
    line=${line%"${line##*[! ]}"}
    case $line in
      '  '*) printf '%s%s\n' "$suite" "${line:2}" ;;
      *.) suite=$line ;;
    esac
  done < <(timeout 20 "$1" --gtest_list_tests --gtest_filter='*Cuda*' 2>/dev/null)
}

run_tests() {
  local binary=$1 log=$out/tests.txt start=$SECONDS part=$out/.part status=0 note="" case_name cases left
  local -A result=() milliseconds=()
  local no_device="" running="" passed=0 failed=0 skipped=0 alone=0
  mapfile -t cases < <(list_cases "$here/$binary")
  : >"$part"
  limited $((TEST_SECONDS - tests_spent)) "$part" "$here/$binary" --gtest_filter='*Cuda*' || status=$?
  read_gtest_log "$part"
  cat "$part" >>"$log"
  [[ $status != 124 ]] || note="out of time in ${running:-its end}"
  [[ $status == 0 || $status == 1 || $status == 124 ]] || note="died in ${running:-its end}"

  # A kernel's error stays with its process, so a case that did not pass gets one of its own.
  for case_name in "${cases[@]}"; do
    case ${result[$case_name]:-none} in ok | skipped) continue ;; esac
    : >"$part"
    left=$((TEST_SECONDS - tests_spent - (SECONDS - start)))
    limited $((left < 20 ? left : 20)) "$part" "$here/$binary" --gtest_filter="$case_name" || true
    read_gtest_log "$part"
    cat "$part" >>"$log"
    alone=$((alone + 1))
  done
  rm -f "$part"
  local failed_names=()
  for case_name in "${cases[@]}"; do
    case ${result[$case_name]:-none} in
      ok) passed=$((passed + 1)); printf '%s %s %s\n' "${milliseconds[$case_name]}" "$binary" "$case_name" >>"$quick" ;;
      skipped) skipped=$((skipped + 1)) ;;
      *) failed=$((failed + 1)); failed_names+=("$case_name") ;;
    esac
  done
  tests_spent=$((tests_spent + SECONDS - start))
  [[ ${#cases[@]} -gt 0 ]] || { failed=1; note="it lists no case"; }
  # All cases passed, but not the binary.
  [[ $failed != 0 || $status == 0 || $alone != 0 ]] || failed=1
  [[ $passed != 0 || $failed != 0 || $skipped == 0 ]] || note="no device: $no_device"
  [[ $alone == 0 ]] || note="${note:+$note; }$alone ran again alone"
  row "test $binary" "$passed" "$failed" "$skipped" "$((SECONDS - start))" "$note"
  for case_name in "${failed_names[@]}"; do rows+=("    FAILED $case_name"); done
}

find_sanitizer() {
  local path
  for path in "$(command -v compute-sanitizer || true)" /usr/local/cuda/bin/compute-sanitizer \
    /usr/local/cuda*/bin/compute-sanitizer /opt/nvidia/*/compute-sanitizer; do
    [[ ! -x $path ]] || { echo "$path"; return; }
  done
}

# The quickest cases of each binary, as a filter: "BINARY FILTER" lines.
quick_filters() {
  local ms binary name total=0 binaries=()
  local -A filters=()
  while read -r ms binary name; do
    total=$((total + ms + 1))
    [[ $total -le $SANITIZED_MS ]] || break
    [[ -n ${filters[$binary]:-} ]] || binaries+=("$binary")
    filters[$binary]+=${filters[$binary]:+:}$name
  done < <(sort -n "$quick")
  for binary in "${binaries[@]}"; do printf '%s %s\n' "$binary" "${filters[$binary]}"; done
}

run_sanitizer() {
  local tool=$1 start=$SECONDS log=$out/sanitizers.txt part=$out/.part status sanitizer binary filter line note=""
  local passed=0 failed=0 findings=0 summary unusable="" no_device="" running=""
  sanitizer=$(find_sanitizer)
  if [[ ! -s $quick ]]; then row "sanitizer $tool" 0 0 1 0 "no device: no test ran on one"; return; fi
  if [[ -z $sanitizer ]]; then row "sanitizer $tool" 0 0 1 0 "skipped: compute-sanitizer is not here"; return; fi
  while read -r binary filter; do
    local -A result=() milliseconds=()
    : >"$part"
    status=0
    limited $((SANITIZER_SECONDS - (SECONDS - start))) "$part" "$sanitizer" --tool "$tool" --error-exitcode 99 \
      --print-limit 20 "$here/$binary" --gtest_filter="$filter" || status=$?
    read_gtest_log "$part"
    summary=""
    while IFS= read -r line; do
      case $line in
        '========= '*SUMMARY:*) summary=$line ;;
        '========= '*'not supported'* | '========= Internal Sanitizer Error'*)
          unusable=${line#========= } ;;
        '========= COMPUTE-SANITIZER' | '========= ' | '========= Warning'*) ;;
        '========= '[A-Z]*) findings=$((findings + 1)) ;;
      esac
    done <"$part"
    cat "$part" >>"$log"
    for line in "${result[@]}"; do [[ $line != ok ]] || passed=$((passed + 1)); done
    if [[ $status == 99 ]]; then
      failed=$((failed + 1))
      note="$binary: ${summary#=========*SUMMARY: }"
    elif [[ $status == 124 ]]; then
      note="out of time after $passed cases"
    elif [[ $status != 0 ]]; then
      failed=$((failed + 1))
      note="$binary: exit code $status"
    else
      note=${summary#=========*SUMMARY: }
    fi
  done < <(quick_filters)
  rm -f "$part"
  # Without a summary, what was found until then.
  [[ $failed != 0 || $findings == 0 ]] || { failed=1; note="$findings findings${note:+, $note}"; }
  if [[ $passed == 0 && -n $unusable ]]; then
    row "sanitizer $tool" 0 0 1 "$((SECONDS - start))" "skipped: $unusable"
  else
    row "sanitizer $tool" "$passed" "$failed" 0 "$((SECONDS - start))" "$note"
  fi
}

# Millionths of a number in JSON.
micro() {
  local number
  printf -v number '%.6f' "$1"
  number=${number/./}
  printf '%s' "$((10#$number))"
}

figures=()  # NAME MICRO_US GB_PER_S PERCENT_OF_COPY

run_bench() {
  local binary=$1 start=$SECONDS log=$out/bench.txt json part=$out/.part status=0 line value note=""
  local passed=0 failed=0 name="" us=0 rate=0 share=""
  json=$out/${binary%_bench}.json
  : >"$part"
  rm -f "$json"
  limited $((BENCH_SECONDS - bench_spent)) "$part" "$here/$binary" --json="$json" || status=$?
  cat "$part" >>"$log"
  bench_spent=$((bench_spent + SECONDS - start))
  while IFS= read -r line; do
    case $line in 'no device: '*) note=$line ;; esac
  done < <(head -n 100 "$part")
  rm -f "$part"
  if [[ -n $note ]]; then
    rm -f "$json"
    row "bench $binary" 0 0 1 "$((SECONDS - start))" "$note"
    return
  fi
  [[ -e $json ]] || : >"$json"
  while IFS= read -r line; do
    value=${line#*: }
    value=${value%,}
    case $line in
      *'"name": '*) name=${value//\"/}; us=0 rate=0 share="" ;;
      *'"error_occurred": true'*) failed=$((failed + 1)); name="" ;;
      *'"real_time": '*) [[ -z $name ]] || us=$(micro "$value") ;;
      *'"copy_share": '*) share=$(($(micro "$value") / 10000)) ;;
      *'"bytes_per_second": '*) printf -v rate '%.0f' "$value" ;;
      '    }'*)
        if [[ -n $name && $us != 0 ]]; then
          passed=$((passed + 1))
          name=${name%/manual_time}
          figures+=("${name%/iterations:*} $us $((rate / 1000000000)) ${share:--}")
        fi
        name="" ;;
    esac
  done <"$json"
  [[ $status != 124 ]] || note="out of time"
  [[ $status == 0 || $failed != 0 ]] || { failed=1; note=${note:-exit code $status}; }
  [[ $passed != 0 || $failed != 0 ]] || { failed=1; note="no result"; }
  row "bench $binary" "$passed" "$failed" 0 "$((SECONDS - start))" "$note"
}

declare -A torch_us=() torch_backend=()

run_torch() {
  local start=$SECONDS json=$out/torch.jsonl part=$out/.part status=0 line name us note="" passed=0
  if ! command -v python3 >/dev/null; then row torch 0 0 1 0 "skipped: python3 is not here"; return; fi
  : >"$part"
  : >"$json"
  limited "$TORCH_SECONDS" "$part" python3 "$here/torch_attention.py" --json "$json" \
    --seconds $((TORCH_SECONDS - 15)) || status=$?
  while IFS= read -r line; do
    case $line in skipped:*) note=$line ;; esac
  done < <(head -n 100 "$part")
  cat "$part" >>"$out/bench.txt"
  rm -f "$part"
  while IFS= read -r line; do
    [[ $line =~ \"name\":\ \"([^\"]+)\",\ \"backend\":\ \"([^\"]+)\",\ \"us\":\ ([0-9.e+-]+) ]] || continue
    name=${BASH_REMATCH[1]}
    us=$(micro "${BASH_REMATCH[3]}")
    passed=$((passed + 1))
    if [[ -z ${torch_us[$name]:-} || $us -lt ${torch_us[$name]} ]]; then
      torch_us[$name]=$us
      torch_backend[$name]=${BASH_REMATCH[2]}
    fi
  done <"$json"
  if [[ $status == 3 ]]; then
    rm -f "$json"
    row torch 0 0 1 "$((SECONDS - start))" "${note:-skipped}"
  elif [[ $status == 124 ]]; then
    row torch "$passed" 0 0 "$((SECONDS - start))" "out of time: what was measured until then"
  elif [[ $status != 0 ]]; then
    row torch "$passed" 1 0 "$((SECONDS - start))" "exit code $status, see bench.txt"
  else
    row torch "$passed" 0 0 "$((SECONDS - start))" ""
  fi
}

# 12345 with 2 digits: 123.45.
decimal() { printf '%d.%0*d' "$(($1 / 10 ** $2))" "$2" "$(($1 % 10 ** $2))"; }

print_figures() {
  local figure name us rate share torch ratio
  [[ ${#figures[@]} -gt 0 ]] || return 0
  printf '\n%-46s %11s %7s %8s  %s\n' benchmark us GB/s 'of copy' 'PyTorch best us, and its ratio to ours'
  for figure in "${figures[@]}"; do
    read -r name us rate share <<<"$figure"
    torch=""
    if [[ -n ${torch_us[$name]:-} ]]; then
      ratio=$((torch_us[$name] * 100 / us))
      torch="$(decimal $((torch_us[$name] / 10000)) 2) ($(decimal $ratio 2)x, ${torch_backend[$name]})"
    fi
    [[ $share == - ]] || share=$share%
    printf '%-46s %11s %7s %8s  %s\n' "$name" "$(decimal $((us / 10000)) 2)" "$rate" "$share" "$torch"
  done
}

print_summary() {
  local kind name device
  while read -r kind name; do [[ $kind != commit ]] || printf 'wavekv %s' "$name"; done <"$here/contents.txt"
  device=$(timeout 10 nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null |
    head -n 1) || true
  printf ', %s, %s\n\n' "${device:-no answer from nvidia-smi}" "$(date -u '+%Y-%m-%d %H:%M UTC')"
  printf '%-34s %7s %7s %7s %8s  %s\n' step passed failed skipped seconds ''
  printf '%s\n' "${rows[@]}"
  print_figures
  printf '\n%d steps failed, %d s; full results: %s\n' "$failures" "$SECONDS" "$out"
}

run() {
  local kind name tool tests_spent=0 bench_spent=0 quick
  [[ $# -eq 0 ]] || die "usage: OUT=RESULTS gpu_check.sh --run"
  here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
  [[ -e $here/contents.txt ]] || die "--run belongs to a folder that tools/gpu_check.sh made"
  out=${OUT:-$here/results}
  mkdir -p "$out"
  out=$(readlink -f -- "$out")
  # Beside lib/, where they look for their libraries.
  while read -r kind name; do
    [[ -e $here/$name.gz ]] || continue
    gzip -dc "$here/$name.gz" >"$here/$name"
    chmod +x "$here/$name"
  done <"$here/contents.txt"
  rm -f "$out"/{tests,sanitizers,bench,summary}.txt "$out/torch.jsonl"
  quick=$out/.quick  # "MILLISECONDS BINARY CASE" of all cases that passed
  : >"$quick"
  while read -r kind name; do
    [[ $kind != test ]] || { say "$name"; run_tests "$name"; }
  done <"$here/contents.txt"
  for tool in memcheck racecheck initcheck synccheck; do
    say "$tool"
    run_sanitizer "$tool"
  done
  while read -r kind name; do
    [[ $kind != bench ]] || { say "$name"; run_bench "$name"; }
  done <"$here/contents.txt"
  say "PyTorch"
  run_torch
  rm -f "$quick"
  print_summary | tee "$out/summary.txt"
  [[ $failures == 0 ]]
}

if [[ ${1:-} == --run ]]; then
  shift
  run "$@"
else
  build "$@"
fi
