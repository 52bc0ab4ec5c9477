// Matrix times vectors with NEON's dot products.
#include "runtime/matmul_kernels.hpp"

#if defined(__aarch64__)

#include <bit>
#include <cstring>
#include <utility>

#include "core/half.hpp"
#include "core/intrinsics.hpp"
#include "core/levels.hpp"
#include "runtime/vectors.hpp"

namespace cutaway {
namespace {

#define CUTAWAY_KERNELS "runtime/matmul_neon.inc"
#include "core/for_neon_dotprod.inc"

}  // namespace

const Kernels& neon_dotprod_kernels() { return neon_dotprod::table; }

}  // namespace cutaway
#endif
