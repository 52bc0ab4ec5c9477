// A frozen RMSNorm and the gradient of what it reads, each in one pass over memory: a row stays in the first cache. The
// reference is torch's own operations, in tests/test_native_elementwise.py.
#include <cmath>
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

constexpr int64_t kRows = 16;  // that a worker takes at once

// cutaway/native/train.py mirrors this. Rows of `width` numbers, a multiple of sixteen.
struct Normed {
    const float *x, *weight;  // weight: [width], or null
    const float* grad_out;    // of what the norm gives; null in the forward pass
    float* inverse;           // [rows]: 1 / sqrt(mean(x^2) + eps), which the forward pass fills
    float* out;               // what the norm gives, or the gradient of x
    int64_t rows, width;
    float eps;
    int32_t spare;
};

struct Functions {
    void (*normed)(const Normed& of, int64_t first, int64_t last);
    void (*backward)(const Normed& of, int64_t first, int64_t last);
};

#define CUTAWAY_KERNELS "train/norm.inc"
#include "core/each_isa.inc"

}  // namespace
}  // namespace cutaway

// Fills inverse and out.
CUTAWAY_API void cutaway_rms_norm(const void* given, int32_t threads, cutaway::Parallel parallel) {
    using namespace cutaway;
    const auto& of = *static_cast<const Normed*>(given);
    split(of.rows, kRows, Threads{threads, parallel}, [&](int64_t first, int64_t last) { chosen().normed(of, first, last); });
}

// Fills out with the gradient of x.
CUTAWAY_API void cutaway_rms_norm_backward(const void* given, int32_t threads, cutaway::Parallel parallel) {
    using namespace cutaway;
    const auto& of = *static_cast<const Normed*>(given);
    split(of.rows, kRows, Threads{threads, parallel}, [&](int64_t first, int64_t last) { chosen().backward(of, first, last); });
}
