// Matrix times vectors with AVX-VNNI.
#include "runtime/matmul_kernels.hpp"

#if defined(CUTAWAY_X86) && defined(CUTAWAY_AVX_VNNI)

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
#include "core/for_avx_vnni.inc"

}  // namespace

const Kernels& avx_vnni_kernels() { return avx_vnni::table; }

}  // namespace cutaway
#endif
