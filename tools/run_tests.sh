# shellcheck shell=bash
# Sourced by ./wave: runs the tests in one or several configurations and counts their cases.

# ThreadSanitizer of g++ 12 cannot map its shadow memory under stronger address randomisation than Debian's.
tsan_flags() {
  local bits
  bits=$(cat /proc/sys/vm/mmap_rnd_bits 2>/dev/null || echo 28)
  if [[ $bits -gt 28 ]] && setarch -R true 2>/dev/null; then
    echo "--run_under=setarch -R"
  fi
}

# Prints a test log without the cases that passed, at most 200 lines of it.
print_log() {
  printf '\n---- %s\n' "$1"
  awk '
    /^\[ RUN      \] / { held = $0; holding = 1; next }
    /^\[       OK \] |^\[  SKIPPED \] / { holding = 0; next }
    /^\[  FAILED  \] / && holding { print held; holding = 0 }
    /^exec \$\{PAGER|^Executing tests from|^-----------|^\[-----|^\[=====/ && !holding { next }
    holding { held = held "\n" $0; next }
    { print }
    END { if (holding) print held }' "$1" | awk '
    NR <= 200 { print }
    END { if (NR > 200) print "... " NR - 200 " more lines in the log" }'
}

# test_configuration NAME FILTER TARGET...: runs one configuration, adds a row to $rows and its failures to $failures.
test_configuration() {
  local name=$1 filter=$2
  shift 2
  local flags=(--keep_going --test_output=summary --build_event_json_file="$scratch/events.json")
  # A test without threads has no races.
  local tags=concurrency,storage
  [[ $name != tsan ]] || tags=concurrency
  [[ $name == opt ]] || flags+=(--config="$name" --build_tests_only --test_tag_filters="$tags")
  [[ -z $filter ]] || flags+=(--test_filter="$filter")
  # No test without a GPU runs the kernels, and each architecture takes nvcc minutes: one shows that they compile.
  [[ -n ${WAVEKV_CUDA_ARCHS:-} ]] || flags+=(--repo_env=WAVEKV_CUDA_ARCHS=90)
  local extra
  [[ $name != tsan ]] || { extra=$(tsan_flags); [[ -z $extra ]] || flags+=("$extra"); }

  say "testing: $name"
  : >"$scratch/events.json"
  local start=$SECONDS status=0
  run_bazel test "${flags[@]}" -- "$@" >"$scratch/out" || status=$?
  # 3: some test failed. 4: no test carries the tags.
  case $status in
    0 | 1 | 3 | 4) ;;
    8) die "interrupted" ;;
  esac

  local counts
  counts=$({ grep -E '^\{"id":\{"(testResult|targetCompleted)"' "$scratch/events.json" || true; } |
    awk -f tools/count_tests.awk)
  local log
  awk -F'\t' '$1 == "log" { print $2 }' <<<"$counts" | while read -r log; do
    print_log "$log" >&2
  done
  awk -F'\t' -v name="$name" '$1 == "case" { printf "FAILED  %-4s  %s  %s\n", name, $2, $3 }' \
    <<<"$counts" >>"$failures"

  local passed failed skipped
  read -r passed failed skipped <<<"$(awk -F'\t' '$1 == "total" { print $2, $3, $4 }' <<<"$counts")"
  # Whatever else Bazel could not do (a BUILD file that does not load, a full disk) is one failure.
  if [[ $status != [034] && $failed == 0 ]]; then
    failed=1
    printf 'FAILED  %-4s  bazel ended with exit code %s\n' "$name" "$status" >>"$failures"
  fi
  printf '%s %s %s %s %s\n' "$name" "$passed" "$failed" "$skipped" "$((SECONDS - start))" >>"$rows"
}

# run_tests ONLY FILTER TARGET...: ONLY is one configuration, or empty for all. Ends with the total;
# fails if a test did, or if there was none.
run_tests() {
  local only=$1 filter=$2
  shift 2
  [[ $# -gt 0 ]] || set -- //...
  scratch=$(mktemp -d "${TMPDIR:-/tmp}/wave-test.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  rows=$scratch/rows
  failures=$scratch/failures
  : >"$failures"

  local name
  for name in opt asan tsan; do
    [[ -n $only && $only != "$name" ]] || test_configuration "$name" "$filter" "$@"
  done

  echo
  grep -qvE '^[a-z]+ 0 0 0 ' "$rows" || say "no test matches"
  if [[ -s $failures ]]; then
    cat "$failures"
    echo
  fi
  awk '
    BEGIN { printf "%-14s %8s %8s %8s %8s\n", "configuration", "passed", "failed", "skipped", "seconds" }
    { printf "%-14s %8d %8d %8d %8d\n", $1, $2, $3, $4, $5; passed += $2; failed += $3; skipped += $4 }
    END {
      printf "\n%d passed, %d failed, %d skipped\n", passed, failed, skipped
      exit failed > 0 || passed + skipped == 0
    }' "$rows"
}
