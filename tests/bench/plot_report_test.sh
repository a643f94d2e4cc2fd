#!/usr/bin/env bash
# What `./wave report` measured becomes plots; a file of a failed or interrupted run does not hinder the others.
# Usage: plot_report_test.sh SCRIPT
set -euo pipefail
script=$PWD/$1
if ! command -v gnuplot >/dev/null || ! command -v jq >/dev/null; then
  echo "skipped: needs gnuplot and jq, which only ./wave report installs"
  exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

if "$script" "$folder" >out.txt 2>&1; then echo "an empty folder was drawn"; exit 1; fi

# benchmarks NAME MS ERROR...
json() {
  local separator=""
  printf '{"context": {"date": "2026-01-02T03:04:05", "num_cpus": 2, "cpu_model": "A \\"CPU\\"", "threads": "2",'
  printf ' "layer": "4 query heads (mid), head_dim 128"}, "benchmarks": ['
  while [[ $# -gt 0 ]]; do
    printf '%s{"name": "%s/real_time", "run_type": "iteration", "real_time": %s, "time_unit": "ms",' "$separator" "$1" "$2"
    printf ' "rel_err_mean": %s, "bytes_ratio": 0.05}' "$3"
    separator=", "
    shift 3
  done
  printf ']}\n'
}
json stream/tokens:32768 1 0 stream/tokens:131072 4 0 dense/tokens:32768 2 0 dense/tokens:131072 8 0 \
  wave/tokens:32768 1 .02 wave/tokens:131072 2 .02 wave_flat/tokens:32768 1 .02 wave_flat/tokens:131072 3 .02 \
  dense/sequences:2/tokens:32768 5 0 >"$folder/decode.json"
"$script" "$folder"
# From 32K to 128K twice the time: the exponent is one half.
for text in "zones, ranked in two levels" "zones, every cluster ranked" "exact attention" "128K" ">0.50<" \
  "head_dim 128" "2026-01-02" "tokens" "ms"; do
  grep -qF -- "$text" "$folder/time.svg" || { echo "time.svg lacks $text"; exit 1; }
done
[[ ! -e $folder/error.svg ]]

json wave/tokens:4096 1 .02 wave/retrieval:0.01/sketch:0.1/tokens:4096 1 .03 >"$folder/error_mid.json"
json wave/tokens:4096 1 .03 wave/retrieval:0.01/sketch:0.1/tokens:4096 1 .04 >"$folder/error_flat.json"
"$script" "$folder"
for text in "mid heads" "flat heads" "default" ">1/10<" "context of 4096 tokens"; do
  grep -qF -- "$text" "$folder/error.svg" || { echo "error.svg lacks $text"; exit 1; }
done
if grep -q "sharp heads" "$folder/error.svg"; then echo "error.svg has a kind of heads that was not measured"; exit 1; fi
