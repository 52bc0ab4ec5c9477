// Matrix times vectors with AVX2.
#include "runtime/matmul_kernels.hpp"

#if defined(CUTAWAY_X86)

#include <bit>
#include <cstring>
#include <utility>

#include "core/half.hpp"
#include "core/intrinsics.hpp"
#include "core/levels.hpp"
#include "runtime/vectors.hpp"

namespace cutaway {
namespace {

#define CUTAWAY_KERNELS "runtime/matmul.inc"
#include "core/for_avx2.inc"

}  // namespace

const Kernels& avx2_kernels() { return avx2::table; }

}  // namespace cutaway
#endif
