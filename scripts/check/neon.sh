#!/usr/bin/env bash
# Compiles the runtime's kernels for 64-bit ARM, and holds those of NEON with dot products against the portable ones
# under an emulator. No ARM machine is needed:
#
#   apt-get install g++-aarch64-linux-gnu qemu-user && scripts/check/neon.sh
#
# CXX and RUN name another compiler or emulator (CXX=g++ RUN= holds this machine's own kernels against the same).
set -euo pipefail

tree=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
compiler=${CXX:-aarch64-linux-gnu-g++}
run=${RUN-qemu-aarch64}

sources=()
for story in core/isa core/thread_pool runtime/panels runtime/matmul runtime/matmul_{portable,avx2,avx_vnni,avx512,neon} \
    runtime/attention runtime/recurrence runtime/vectors weights/quant runtime/step; do
  sources+=("$tree/native/$story.cpp")
done
"$compiler" -O2 -std=c++20 -I "$tree/native" -ffp-contract=off -fno-tree-reassoc -static -pthread -Wall -Wextra \
    "$tree/native/check/isa.cpp" "${sources[@]}" -o "$scratch/check"
$run "$scratch/check"
