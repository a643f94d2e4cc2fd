#!/usr/bin/env bash
# `gpu_check.sh --run` must not lose a failure, however a program ends: stand-ins play the programs of its folder.
set -euo pipefail

folder=$TEST_TMPDIR/gpu_check
mkdir -p "$folder" "$TEST_TMPDIR/bin"
cp tools/gpu_check.sh "$folder/"
export OUT=$TEST_TMPDIR/results PATH=$TEST_TMPDIR/bin:$PATH
failed=0

# program PATH: makes a stand-in of the shell text on standard input.
program() {
  { echo '#!/usr/bin/env bash'; cat; } >"$1"
  chmod +x "$1"
}

# expect CLAIM EXIT_CODE PATTERN...: a run ends so, and its summary has a line that matches each extended regular
# expression, single spaces for any number.
expect() {
  local claim=$1 want=$2 code=0 summary pattern
  shift 2
  summary=$("$folder/gpu_check.sh" --run 2>/dev/null | sed 's/  */ /g'; exit "${PIPESTATUS[0]}") || code=$?
  for pattern in "$@"; do
    grep -qE -- "$pattern" <<<"$summary" || { printf 'FAILED: %s: no line "%s"\n' "$claim" "$pattern"; failed=1; }
  done
  [[ $code == "$want" ]] || { printf 'FAILED: %s: expected exit code %s, got %s\n' "$claim" "$want" "$code"; failed=1; }
  [[ $failed == 0 ]] || printf '%s\n' "$summary"
}

printf 'test ops_test\nbench ops_bench\ncommit 1234567\n' >"$folder/contents.txt"
program "$TEST_TMPDIR/bin/nvidia-smi" <<<'echo "NVIDIA X, 580.1, 1000 MiB"'
program "$TEST_TMPDIR/bin/python3" <<<'echo "skipped: no torch" >&2; exit 3'

# A machine without a GPU.
gtest() {
  cat <<'SH'
if [[ $1 == --gtest_list_tests ]]; then
  printf 'Gpus/Suite.\n  Adds/Cuda  # GetParam() = 4-byte object <01-00 00-00>\n  Subtracts/Cuda  # GetParam() = 1\n'
  exit
fi
filter=${1#--gtest_filter=}
run() { printf '[ RUN      ] %s\n' "$1"; }
ends() { printf '[ %8s ] %s (%s ms)\n' "$1" "$2" "$3"; }
SH
  cat
}
gtest <<'SH' | program "$folder/ops_test"
for name in Adds Subtracts; do
  run "Gpus/Suite.$name/Cuda"
  printf 'gpu_fixture.h:35: Skipped\nUNAVAILABLE: CUDA: cudaGetDeviceCount: no driver\n'
  ends ' SKIPPED' "Gpus/Suite.$name/Cuda" 0
done
SH
program "$folder/ops_bench" <<<'echo "no device: CUDA: none"'
gzip "$folder/ops_bench"  # as it is carried
expect "without a device every step is skipped, visibly" 0 \
  '^test ops_test 0 0 2 [0-9]+ no device: CUDA: cudaGetDeviceCount: no driver$' \
  '^sanitizer racecheck 0 0 1 0 no device' '^bench ops_bench 0 0 1 [0-9]+ no device: CUDA: none$' \
  '^torch 0 0 1 [0-9]+ skipped: no torch$' '^wavekv 1234567, NVIDIA X' '^0 steps failed'

rm "$folder/ops_bench.gz"

# A machine on which all is well.
gtest <<'SH' | program "$folder/ops_test"
for name in Adds Subtracts; do
  run "Gpus/Suite.$name/Cuda"
  ends '      OK' "Gpus/Suite.$name/Cuda" 12
done
SH
program "$TEST_TMPDIR/bin/compute-sanitizer" <<'SH'
echo '========= COMPUTE-SANITIZER'
[[ " $* " == *" --gtest_filter=Gpus/Suite.Adds/Cuda:Gpus/Suite.Subtracts/Cuda "* ]] || exit 1
printf '[       OK ] Gpus/Suite.Adds/Cuda (120 ms)\n[       OK ] Gpus/Suite.Subtracts/Cuda (120 ms)\n'
echo '========= ERROR SUMMARY: 0 errors'
SH
bench_json() {
  cat <<'JSON'
{
  "context": { "device": "NVIDIA X"
  },
  "benchmarks": [
    {
      "name": "copy/iterations:1/manual_time",
      "real_time": 5.0000000000000000e+02,
      "bytes_per_second": 4.2949672960000000e+12,
      "copy_share": 1.0000000000000000e+00
    },
    {
      "name": "attend_dense/batch:8/tokens:8192/iterations:1/manual_time",
      "real_time": 8.0250000000000000e+01,
      "bytes_per_second": 3.3450000000000000e+12,
      "copy_share": 7.7800000000000002e-01
    }
  ]
}
JSON
}
bench_json >"$folder/good.json"
program "$folder/ops_bench" <<SH
cp "$folder/good.json" "\${1#--json=}"
SH
program "$TEST_TMPDIR/bin/python3" <<'SH'
while [[ $# -gt 0 ]]; do [[ $1 != --json ]] || json=$2; shift; done
cat >"$json" <<'JSON'
{"name": "attend_dense/batch:8/tokens:8192", "backend": "cudnn/rows", "us": 120.375, "bytes": 1}
{"name": "attend_dense/batch:8/tokens:8192", "backend": "flash/heads", "us": 160.5, "bytes": 1}
{"name": "attend_dense/batch:8/tokens:8192", "backend": "math/heads", "error": "refused"}
JSON
SH
expect "results are counted and compared" 0 \
  '^test ops_test 2 0 0 ' '^sanitizer memcheck 2 0 0 ' '^sanitizer synccheck 2 0 0 ' '^bench ops_bench 2 0 0 ' \
  '^torch 2 0 0 ' '^copy 500.00 4294 100%' \
  '^attend_dense/batch:8/tokens:8192 80.25 3345 77% 120.37 \(1.50x, cudnn/rows\)$' '^0 steps failed'

# A kernel that ends the process: what follows it runs by itself.
gtest <<'SH' | program "$folder/ops_test"
if [[ $filter == Gpus/Suite.Subtracts/Cuda ]]; then
  run "$filter"
  ends '      OK' "$filter" 3
else
  run Gpus/Suite.Adds/Cuda
  exit 134
fi
SH
expect "a crash is one failure, and the cases after it still run" 1 \
  '^test ops_test 1 1 0 [0-9]+ died in Gpus/Suite.Adds/Cuda; 2 ran again alone$' 'FAILED Gpus/Suite.Adds/Cuda'

gtest <<'SH' | program "$folder/ops_test"
run Gpus/Suite.Adds/Cuda
ends '      OK' Gpus/Suite.Adds/Cuda 3
run Gpus/Suite.Subtracts/Cuda
ends ' FAILED ' 'Gpus/Suite.Subtracts/Cuda, where GetParam() = 4-byte object <01-00 00-00>' 3
printf '[  FAILED  ] 1 test, listed below:\n[  FAILED  ] Gpus/Suite.Subtracts/Cuda, where GetParam() = 1\n'
exit 1
SH
program "$TEST_TMPDIR/bin/compute-sanitizer" <<'SH'
[[ $2 != initcheck ]] || { echo '========= Device not supported.'; exit 1; }
printf '[       OK ] Gpus/Suite.Adds/Cuda (120 ms)\n========= Invalid __global__ write of size 4 bytes\n'
[[ $2 != racecheck ]] || { echo '========= ERROR SUMMARY: 3 errors'; exit 99; }
SH
sed 's/"real_time": 8.*/"error_occurred": true, "error_message": "wrong",/' "$folder/good.json" >"$folder/bad.json"
program "$folder/ops_bench" <<SH
cp "$folder/bad.json" "\${1#--json=}"
exit 1
SH
program "$TEST_TMPDIR/bin/python3" <<<'exit 1'
expect "whatever fails is a failure" 1 \
  '^test ops_test 1 1 0 [0-9]+ 1 ran again alone$' 'FAILED Gpus/Suite.Subtracts/Cuda' \
  '^sanitizer memcheck 1 1 0 [0-9]+ 1 findings$' '^sanitizer racecheck 1 1 0 [0-9]+ ops_test: 3 errors$' \
  '^bench ops_bench 1 1 0 ' '^torch 0 1 0 ' \
  '^sanitizer initcheck 0 0 1 [0-9]+ skipped: Device not supported.$' '^6 steps failed'
exit $failed
