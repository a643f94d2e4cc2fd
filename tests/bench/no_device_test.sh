#!/usr/bin/env bash
# Without a GPU a benchmark that is asked for one says so in one line and fails; with one it runs.
# Usage: no_device_test.sh BINARY ARGUMENT...
set -euo pipefail
code=0
"$@" --device=cuda --benchmark_filter=none >out.txt 2>err.txt || code=$?
case $code in
  0) ;;
  1)
    cat err.txt
    [[ ! -s out.txt ]] || { cat out.txt; echo "it measures something all the same"; exit 1; }
    grep -qE '^(UNAVAILABLE|UNIMPLEMENTED): CUDA: ' err.txt || { echo "it does not say that there is no GPU"; exit 1; }
    [[ $(wc -l <err.txt) == 1 ]] || { echo "more than one line"; exit 1; } ;;
  *) cat out.txt err.txt; echo "exit code $code"; exit 1 ;;
esac
code=0
"$@" --device=tpu >out.txt 2>&1 || code=$?
[[ $code == 2 ]] || { cat out.txt; echo "--device=tpu: exit code $code"; exit 1; }
