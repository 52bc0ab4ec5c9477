// Matrix times vectors with AVX-512, its bfloat16, and AMX.
#include "runtime/matmul_kernels.hpp"

#if defined(CUTAWAY_X86)

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "core/half.hpp"
#include "core/intrinsics.hpp"
#include "core/levels.hpp"
#include "runtime/vectors.hpp"

namespace cutaway {
namespace {

#define CUTAWAY_KERNELS "runtime/matmul_avx512.inc"
#include "core/for_avx512.inc"

namespace avx512 {
#include "runtime/matmul_bf16.inc"
#if defined(CUTAWAY_TILES)
#include "runtime/matmul_amx.inc"
#endif
}  // namespace avx512

}  // namespace

const Kernels& avx512_kernels() { return avx512::table; }
const Kernel& avx512_bf16_kernel() { return avx512::bf16; }
Many grouped_products(int32_t type) { return avx512::grouped(type); }
Many tiled_products([[maybe_unused]] int32_t type) {
#if defined(CUTAWAY_TILES)
    return avx512::tiled(type);
#else
    return {};
#endif
}

}  // namespace cutaway
#endif
