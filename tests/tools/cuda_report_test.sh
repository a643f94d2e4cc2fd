#!/usr/bin/env bash
# The table behind `./wave cuda-report` must not lose a spill.
set -euo pipefail

reporter=$PWD/tools/cuda_report.awk
failed=0

# expect CLAIM EXIT_CODE INPUT LINE...: the report is exactly these lines, however they are aligned.
expect() {
  local claim=$1 want_code=$2 input=$3 got want code=0
  shift 3
  got=$(awk -f "$reporter" <<<"$input" | sed 's/  */ /g'; exit "${PIPESTATUS[0]}") || code=$?
  want=$(printf '%s\n' "$@")
  if [[ $got != "$want" || $code != "$want_code" ]]; then
    printf 'FAILED: %s\n--- expected, with exit code %s\n%s\n--- got, with %s\n%s\n' "$claim" "$want_code" "$want" \
      "$code" "$got"
    failed=1
  fi
}

# kernel NAME STACK STORES LOADS USED: what ptxas 13 says of a kernel.
kernel() {
  printf "ptxas info    : Compiling entry function '%s' for 'sm_90'\n" "$1"
  printf "ptxas info    : Function properties for %s\n" "$1"
  printf "    %s bytes stack frame, %s bytes spill stores, %s bytes spill loads\n" "$2" "$3" "$4"
  printf "ptxas info    : %s\n" "$5"
  printf "ptxas info    : Compile time = 4.550 ms\n"
}

readonly HEADER='operation kernel registers spill stores spill loads shared bytes stack'
readonly SPACE='wavekv::gpu::(anonymous namespace)::'

expect "registers and static shared memory are read" 0 \
  "operation merge"$'\n'"ptxas info    : 0 bytes gmem"$'\n'"$(
    kernel "${SPACE}Merge(wavekv::Task const*, long)" 0 0 0 'Used 40 registers, used 1 barriers, 400 bytes smem'
  )" \
  "$HEADER" 'merge Merge 40 0 0 400 0' '1 kernels for sm_90, 0 with spills'

expect "template arguments are kept, scopes and parameters are not" 0 \
  "operation attend"$'\n'"$(
    kernel "void ${SPACE}Rows<64, (wavekv::DType)1, std::pair<int, float> >(float (*)(int), wavekv::Task<int>)" \
      0 0 0 'Used 32 registers, used 0 barriers'
  )" \
  "$HEADER" 'attend Rows<64, (DType)1, pair<int, float> > 32 0 0 0 0' '1 kernels for sm_90, 0 with spills'

expect "a spill fails, even of loads alone" 1 \
  "operation a"$'\n'"$(
    kernel 'A(int)' 8 0 4 'Used 255 registers, used 0 barriers, 8 bytes cumulative stack size'
    kernel 'B(int)' 0 0 0 'Used 16 registers, used 0 barriers'
  )" \
  "$HEADER" 'a A 255 0 4 0 8 spills' 'a B 16 0 0 0 0' '2 kernels for sm_90, 1 with spills'

expect "a stack frame without spills is marked" 0 \
  "operation a"$'\n'"$(kernel 'A(int)' 40 0 0 'Used 19 registers, used 0 barriers, 40 bytes cumulative stack size')" \
  "$HEADER" 'a A 19 0 0 0 40 *' '1 kernels for sm_90, 0 with spills, 1 with a stack frame alone (*)'

expect "a function that was not inlined has its own row, and its spills fail" 1 \
  "operation a"$'\n'"$(
    kernel 'A(int)' 0 0 0 'Used 19 registers, used 0 barriers'
    echo "ptxas info    : Function properties for float ${SPACE}Help<3>(int)"
    echo '    16 bytes stack frame, 12 bytes spill stores, 12 bytes spill loads'
  )" \
  "$HEADER" 'a A 19 0 0 0 0' 'a Help<3> - 12 12 - 16 spills' '1 kernels for sm_90, 1 with spills'

expect "equal names of two operations are two kernels" 0 \
  "operation a"$'\n'"$(kernel 'Sum(int)' 0 0 0 'Used 10 registers')"$'\n'"operation b"$'\n'"$(
    kernel 'Sum(int)' 0 0 0 'Used 12 registers'
  )" \
  "$HEADER" 'a Sum 10 0 0 0 0' 'b Sum 12 0 0 0 0' '2 kernels for sm_90, 0 with spills'

expect "a file without kernels has no row" 0 \
  "operation table"$'\n'"ptxas info    : 0 bytes gmem" '0 kernels, 0 with spills'
exit $failed
