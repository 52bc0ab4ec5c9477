#!/usr/bin/env bash
# Fuzzes the scanners and the encoder under AddressSanitizer and UndefinedBehaviorSanitizer.
#
#   scripts/fuzz_tokenizer.sh [SECONDS]      60 without an argument
#
# Needs clang with libFuzzer (CXX names it).
set -euo pipefail

tree=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${CXX:-clang++}" -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -pthread \
    -I"$tree/native" "$tree"/native/fuzz/encode.cpp \
    "$tree"/native/{tokenizer/{bpe,vocabulary,scan,unicode},core/{isa,thread_pool}}.cpp -o "$scratch/fuzz"
mkdir "$scratch/corpus"
printf "Don't stop: 12345  \n\n  été 中国 'S \xe4\xb8" > "$scratch/corpus/seed"
"$scratch/fuzz" -max_total_time="${1:-60}" -max_len=4096 -print_final_stats=1 "$scratch/corpus"
