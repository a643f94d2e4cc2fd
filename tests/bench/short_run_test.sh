#!/usr/bin/env bash
# A benchmark runs to its end, checks its results, and prints the lines that scripts read.
# Usage: short_run_test.sh BINARY PATTERN ARGUMENT...   PATTERN: extended regular expression of its last line
set -euo pipefail
binary=$1
pattern=$2
shift 2
json=$(mktemp)
trap 'rm -f "$json"' EXIT
"$binary" --benchmark_min_time=0.001 --json="$json" "$@" >out.txt || { cat out.txt; echo "$binary failed"; exit 1; }
cat out.txt
tail -n 1 out.txt | grep -qE "^$pattern\$" || { echo "the last line is not of the form $pattern"; exit 1; }
grep -q '"benchmarks"' "$json" || { echo "no results in the JSON file"; exit 1; }
if grep -q '"error_occurred": true' "$json"; then exit 1; fi
