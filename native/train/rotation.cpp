// RoPE: rotates queries or keys in one pass over memory, and their gradients back. The reference is
// cutaway/position/rope.py, in tests/test_native_elementwise.py.
#include "train/rotation.hpp"

#include <algorithm>
#include <cstring>

#include "core/api.hpp"
#include "core/half.hpp"
#include "core/isa.hpp"
#include "core/thread_pool.hpp"

#if defined(CUTAWAY_X86)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace cutaway {
namespace {

struct Functions {
    void (*rotate)(const Rotated& of, int64_t token);
};

#define CUTAWAY_KERNELS "train/rotation.inc"
#include "core/each_isa.inc"

}  // namespace
}  // namespace cutaway

CUTAWAY_API void cutaway_rotate(const cutaway::Rotated* of, int32_t threads, cutaway::Parallel parallel) {
    using namespace cutaway;
    split(of->tokens, 16, Threads{threads, parallel}, [&](int64_t first, int64_t last) {
        for (int64_t token = first; token < last; ++token) chosen().rotate(*of, token);
    });
}
