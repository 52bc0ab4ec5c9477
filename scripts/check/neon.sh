#!/usr/bin/env bash
# Compiles the runtime's kernels for 64-bit ARM, and holds those of NEON, without and with dot products, against the
# portable ones under an emulator. No ARM machine is needed:
#
#   apt-get install g++-aarch64-linux-gnu qemu-user && scripts/check/neon.sh
#
# CXX and RUN name another compiler or emulator (CXX=g++ RUN= holds this machine's own kernels against the same). With
# MAIN=FILE OUT=FILE another program is compiled with the kernels, and not run (scripts/check/neon_counts.py).
set -euo pipefail

tree=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
compiler=${CXX:-aarch64-linux-gnu-g++}

sources=()
for story in core/isa core/thread_pool runtime/panels runtime/matmul runtime/prefetch \
    runtime/matmul_{portable,avx2,avx_vnni,avx512,neon,neon_dotprod} \
    runtime/attention runtime/recurrence runtime/vectors weights/quant runtime/step; do
  sources+=("$tree/native/$story.cpp")
done
# As CMakeLists.txt compiles the kernels.
options=(-O3 -std=c++20 -ffp-contract=off -fno-tree-reassoc -fno-tree-vrp -fno-tree-slp-vectorize
    --param=sccvn-max-alias-queries-per-access=20 -fno-schedule-insns)
"$compiler" "${options[@]}" -I "$tree/native" -static -pthread -Wall -Wextra \
    "${MAIN:-$tree/native/check/isa.cpp}" "${sources[@]}" -o "${OUT:-$scratch/check}"
[ -z "${OUT-}" ] || exit 0
if [ -n "${RUN+given}" ]; then
  $RUN "$scratch/check"
else
  for processor in cortex-a72 cortex-a76; do qemu-aarch64 -cpu $processor "$scratch/check"; done
fi
