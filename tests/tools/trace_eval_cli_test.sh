#!/bin/sh
# wavekv-trace-eval from the outside: exit codes, and which stream says what.
set -u
tool=$1
corpus=tests/fuzz/corpus
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

expect 0 'overall, 4 samples' "$corpus/valid_f16.safetensors"
expect 0 'overall, 8 samples' "$corpus/valid_f16.safetensors" "$corpus/valid_bf16.safetensors"
expect 0 'overall, 2 samples' "$corpus/valid_f16.safetensors" --query-type niah
expect 0 '"overall"' --json "$corpus/valid_unaligned.safetensors"
expect 0 '--query-type' --help
expect 1 'cannot write /no/folder/accesses' "$corpus/valid_f16.safetensors" --accesses /no/folder/accesses
expect 1 'cannot open: No such file' missing.safetensors
expect 1 'regular file' /dev/null
expect 1 "bad_position_too_large.safetensors: tensor 'positions': expected positions in [0, 4), got 4" \
  "$corpus/bad_position_too_large.safetensors"
expect 1 "tensor 'layer0.kvhead0.k': expected finite numbers" "$corpus/bad_nan.safetensors"
expect 1 "no query is of type 'vt'; types recorded: decode, niah" "$corpus/valid_f16.safetensors" --query-type vt
expect 1 'no head matches --layers and --heads' "$corpus/valid_f16.safetensors" --layers 1-9
expect 2 'expected at least one trace file'
expect 2 "--device: expected cpu or cuda, got 'tpu'" "$corpus/valid_f16.safetensors" --device tpu
expect 0 'overall, 4 samples' "$corpus/valid_f16.safetensors" --device cpu
expect 2 '--scale: expected a factor > 0' "$corpus/valid_f16.safetensors" --scale -1

# Every query of every head has its line.
accesses=$(mktemp)
expect 0 'overall, 4 samples' "$corpus/valid_f16.safetensors" --accesses "$accesses"
if [ "$(head -n 1 "$accesses")" != 'wavekv-accesses 1' ] || [ "$(grep -c '^query ' "$accesses")" != 2 ]; then
  echo "FAILED: --accesses wrote"
  cat "$accesses"
  failed=1
fi
rm -f "$accesses"

# Without a GPU one line says so; with one it is used.
output=$("$tool" "$corpus/valid_f16.safetensors" --device cuda 2>&1)
got=$?
case "$got:$output" in
  0:*'overall, 4 samples'*) ;;
  1:'wavekv-trace-eval: CUDA: '*) [ "$(printf '%s\n' "$output" | wc -l)" = 1 ] || got=many ;;
  *) got=many ;;
esac
if [ "$got" = many ]; then
  printf 'FAILED: --device cuda: %s\n' "$output"
  failed=1
fi

# Results alone on standard output: with a bad second file there are none.
if [ -n "$("$tool" "$corpus/valid_f16.safetensors" "$corpus/bad_cut_off.safetensors" 2>/dev/null)" ]; then
  echo 'FAILED: printed results next to a bad file'
  failed=1
fi
exit $failed
