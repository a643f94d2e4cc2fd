# shellcheck shell=bash
# Sourced by ./wave: measures this machine and draws what was measured.

report_usage() {
  cat <<'USAGE'
Usage: ./wave report [OPTIONS] [FOLDER]

Runs the benchmarks of decode steps, sealing, appending and exact attention into JSON files in FOLDER
(wave_report), and draws plots of them: time.svg and error.svg. About ten minutes; nothing else should run.

  --quick        small contexts and few runs, about two minutes: whether it works, not how fast
  --open=SHARE   of the tokens whose super-clusters are opened, for ranking in two levels (0.5)
  --plots        only draw again what FOLDER has
USAGE
}

# A benchmark's JSON to FOLDER/FILE.json and what it prints to FILE.txt. Goes on after a failure: what has been measured
# is worth a plot.
run_report_bench() {
  local file=$1 binary=$2
  shift 2
  say "report: $file ($(basename "$binary") $*)"
  if ! "$binary" --json="$folder/$file.json" "$@" >"$folder/$file.txt" 2>&1; then
    rm -f "$folder/$file.json"
    say "report: $file failed: $(tail -n 1 "$folder/$file.txt")"
    failed=1
  fi
}

# Those of the contexts that fit into memory: a token of the layer is 4 KiB, and half as much again for indexes, for
# segments that are being built, and for the stream that is read beside it.
contexts_that_fit() {
  awk -v contexts="$1" '
    $1 == "MemAvailable:" { available = $2 }
    END {
      n = split(contexts, tokens, ",")
      for (i = 1; i <= n; i++) if (tokens[i] * 10 <= available) { printf "%s%s", separator, tokens[i]; separator = "," }
    }' /proc/meminfo
}

# report ARGUMENT...; CALLER_FOLDER: what FOLDER is relative to.
report() {
  local quick="" plots="" open=0.5 folder="" failed="" contexts fitting batch budgets error_tokens bin heads kind name
  while [[ $# -gt 0 ]]; do
    case $1 in
      --quick) quick=1 ;;
      --plots) plots=1 ;;
      --open=*) open=${1#*=} ;;
      -h | --help) report_usage; return 0 ;;
      -*) report_usage >&2; die "report: unknown option '$1'" ;;
      *) [[ -z $folder ]] || die "report: takes one folder"; folder=$1 ;;
    esac
    shift
  done
  folder=${folder:-wave_report}
  [[ $folder == /* ]] || folder=$CALLER_FOLDER/$folder
  install_packages plot
  if [[ -n $plots ]]; then
    tools/plot_report.sh "$folder"
    return
  fi

  setup
  mkdir -p "$folder" || die "report: cannot write to $folder"
  rm -f "$folder"/{decode,error_*,build,append,attend}.{json,txt}
  say "report: building the benchmarks"
  run_bazel build //bench:{append,attend,build,decode}_bench >&2
  bin=$(/usr/bin/bazel info bazel-bin 2>/dev/null)/bench

  contexts=1024,2048,4096,8192,16384,32768,65536,131072,262144,524288,1048576
  batch=8x32768,1x262144
  error_tokens=131072
  heads=(sharp mid flat)
  budgets=0.002/0.02,0.005/0.05,0.01/0.1,0.03/0.2,0.05/0.25,0.1/0.3
  if [[ -n $quick ]]; then
    contexts=1024,2048,4096,8192,16384,32768,65536
    batch=4x8192,1x32768
    error_tokens=16384
  fi
  fitting=$(contexts_that_fit "$contexts")
  [[ $fitting == "$contexts" ]] || say "report: memory is enough only for contexts of up to ${fitting##*,} tokens"

  run_report_bench decode "$bin/decode_bench" --tokens="$fitting" --batch="$batch" --open="$open"
  for kind in "${heads[@]}"; do
    run_report_bench "error_$kind" "$bin/decode_bench" --tokens="$error_tokens" --heads="$kind" \
      --budgets="$budgets" --benchmark_filter=wave
  done
  if [[ -n $quick ]]; then
    run_report_bench build "$bin/build_bench" --tokens=16384 --benchmark_filter='layer|BM_SealSegment'
    run_report_bench append "$bin/append_bench" --rows=512,2048
    run_report_bench attend "$bin/attend_bench" --benchmark_filter='StreamRead'
  else
    run_report_bench build "$bin/build_bench"
    run_report_bench append "$bin/append_bench" --threads=1
    run_report_bench attend "$bin/attend_bench" --tokens=131072 --head_dims=128 --groups=1,4,8 \
      --benchmark_filter='StreamRead|^Dense/'
  fi

  # What scripts read, in one place.
  for name in append attend build decode; do
    # Some have none in the quick form.
    grep -hE '^[a-z_]+ [a-z_]+=' "$folder/$name.txt" || true
  done | tee "$folder/summary.txt"
  tools/plot_report.sh "$folder"
  [[ -z $failed ]] || die "report: not all benchmarks ran; their output is in $folder"
}
