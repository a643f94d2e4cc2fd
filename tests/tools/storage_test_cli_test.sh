#!/bin/sh
# wavekv-storage-test from the outside: what it counts, and how it ends.
set -u
tool=$1
failed=0

# expect CODE TEXT ARGUMENTS...: the exit code, and a text in what was printed.
expect() {
  code=$1 text=$2
  shift 2
  output=$("$tool" "$@" 2>&1)
  got=$?
  if [ "$got" != "$code" ] || ! printf '%s' "$output" | grep -qF -- "$text"; then
    printf 'FAILED: %s: expected exit code %s and "%s", got %s and:\n%s\n' "$*" "$code" "$text" "$got" "$output"
    failed=1
  fi
}

# case_of NAME GIVEN LENGTH: a case that is right with length 30.
case_of() {
  cat <<EOF
cases {
  name: "$1"
  description: "Tokens are counted."
  given { $2 }
  steps {
    append { tokens: 30 k { gaussian { seed: 1 } } v { gaussian { seed: 2 } } }
    expect { metric: "sequence_length" equal_to: $3 }
  }
}
EOF
}

folder=$(mktemp -d)
case_of Right "" 30 >"$folder/right"
case_of Wrong "" 31 >"$folder/wrong"
case_of OnGpu "device: CUDA" 30 >"$folder/gpu"
case_of OnGpuWithTiers 'device: CUDA tiers { directory: "/tmp" cache_bytes: 8388608 }' 30 >"$folder/tiers"
expect 0 '1 passed, 0 failed' "$folder/right"
expect 1 'FAILED sequence_length: expected 31, got 30' "$folder/wrong"
expect 1 '1 passed, 1 failed' "$folder/wrong" "$folder/right"
expect 2 'no case has "None" in its name' --filter None "$folder/right"
expect 1 'FAILED: UNIMPLEMENTED: tiers.directory' "$folder/tiers"

# Without a GPU its case has neither passed nor failed.
output=$("$tool" "$folder/gpu" "$folder/right" 2>&1)
got=$?
case "$got:$output" in
  0:*'SKIPPED: CUDA: '*'1 passed, 0 failed, 1 skipped') ;;
  0:*'2 passed, 0 failed') ;;
  *)
    printf 'FAILED: a case for a GPU: exit code %s and\n%s\n' "$got" "$output"
    failed=1 ;;
esac
rm -r "$folder"
exit $failed
