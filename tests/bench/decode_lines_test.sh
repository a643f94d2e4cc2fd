#!/usr/bin/env bash
# Beside its last line, decode_bench says what several sequences cost, from where on zones are faster, and how times
# grow, with ranking in two levels and flat.
# Usage: decode_lines_test.sh BINARY
set -euo pipefail
binary=$1
n='[0-9]+[.][0-9]+'

"$binary" --benchmark_min_time=0.001 --json=steps.json --tokens=1024,32768,40960 --batch=2x1024,1x2048 --open=0.5 \
  --budgets=0.01/0.1 --heads=flat,mid --dtype=fp16 --group=2 >out.txt || { cat out.txt; exit 1; }
cat out.txt
expect() { grep -cxE "$2" out.txt | grep -qx "$1" || { echo "there are not $1 lines of the form: $2"; exit 1; }; }

per_kib="dense_ns_per_kib=$n wave_ns_per_kib=$n wave_ns_per_kib_read=$n"
expect 1 "batch sequences=2 tokens=1024 dense_ms=$n wave_ms=$n $per_kib rel_err_mean=$n bytes_ratio=$n"
expect 1 "batch sequences=1 tokens=2048 dense_ms=$n wave_ms=$n $per_kib rel_err_mean=$n bytes_ratio=$n"
exponents="stream_exponent=-?$n dense_exponent=-?$n exponent=-?$n"
expect 1 "scaling $exponents rel_err_mean=$n tokens_min=32768 tokens_max=40960"
expect 1 "scaling_flat exponent=-?$n rel_err_mean=$n tokens_min=32768 tokens_max=40960"
expect 3 "decode_flat tokens=[0-9]+ wave_ms=$n ratio=$n rel_err_mean=$n bytes_ratio=$n"
expect 3 "decode tokens=[0-9]+ stream_ms=$n dense_ms=$n wave_ms=$n ratio=$n rel_err_mean=$n bytes_ratio=$n"
tail -n 1 out.txt | grep -q '^decode tokens=40960 '

# The JSON says what it is of.
for text in '"name": "wave_flat/tokens:32768/real_time"' '"name": "dense/sequences:2/tokens:1024/real_time"' \
  '"name": "wave/retrieval:0.01/sketch:0.1/tokens:32768/real_time"' '"cpu_model": "' \
  '"layer": "16 query heads, 8 kv heads (flat, mid), head_dim 128, fp16"'; do
  grep -qF "$text" steps.json || { echo "the JSON lacks $text"; exit 1; }
done

# What is no batch is refused.
for batch in 8 8x 0x4096 8x4096x1 8x1000; do
  if "$binary" --batch="$batch" >out.txt 2>&1; then echo "--batch=$batch was taken"; exit 1; fi
done
