// Matrix times vectors on any processor.
#include "runtime/matmul_kernels.hpp"

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
#include "core/for_portable.inc"

}  // namespace

const Kernels& portable_kernels() { return portable::table; }

}  // namespace cutaway
