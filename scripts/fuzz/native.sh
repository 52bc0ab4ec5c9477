#!/usr/bin/env bash
# Fuzzes a part of the native core that reads untrusted bytes, under AddressSanitizer and UndefinedBehaviorSanitizer.
#
#   scripts/fuzz/native.sh TARGET [SECONDS]      60 seconds without a number
#
# Targets, each a file of native/fuzz: encode (scanners and encoder), words (word counter and BPE trainer), corpus (the
# reader and dictionary of word2vec's texts), unpack (the blocks of quantised tensors). Needs clang with libFuzzer (CXX
# names it). CORPUS names a folder that keeps what reached new code from one run to the next.
set -euo pipefail

tree=$(cd "$(dirname "$0")/../.." && pwd)
declare -A parts=(
    [encode]="tokenizer/bpe tokenizer/vocabulary tokenizer/scan tokenizer/unicode"
    [words]="tokenizer/word_counter tokenizer/bpe_train tokenizer/scan tokenizer/unicode"
    [corpus]="embedding/corpus"
    [unpack]="weights/quant"
)
target=${1:-}
if [ -z "${parts[${target:-none}]:-}" ]; then
    echo "give a target: ${!parts[*]}" >&2
    exit 2
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
sources=("$tree/native/fuzz/$target.cpp")
for part in ${parts[$target]} core/isa core/thread_pool; do sources+=("$tree/native/$part.cpp"); done
"${CXX:-clang++}" -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -pthread \
    -I"$tree/native" "${sources[@]}" -o "$scratch/fuzz"
corpus=${CORPUS:-$scratch/corpus}
mkdir -p "$corpus"
printf "Don't stop: 12345  \n\n  été 中国 'S \xe4\xb8" > "$corpus/seed"
"$scratch/fuzz" -max_total_time="${2:-60}" -max_len=4096 -timeout=10 -print_final_stats=1 "$corpus"
