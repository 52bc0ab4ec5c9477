// silu(gate) * up and its gradients, each in one pass over memory. The reference is torch's own operations, in
// tests/test_native_elementwise.py.
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

constexpr int64_t kPiece = 1 << 14;

struct Gated {
    const float *gate, *up, *grad_out;
    float *out, *grad_gate, *grad_up;
};

struct Functions {
    void (*swiglu)(const Gated& of, int64_t first, int64_t last);
    void (*backward)(const Gated& of, int64_t first, int64_t last);
};

#define CUTAWAY_KERNELS "train/swiglu.inc"
#include "core/each_isa.inc"

}  // namespace
}  // namespace cutaway

// Fills out [count].
CUTAWAY_API void cutaway_swiglu(const float* gate, const float* up, int64_t count, float* out, int32_t threads,
                                cutaway::Parallel parallel) {
    using namespace cutaway;
    const Gated of = {gate, up, nullptr, out, nullptr, nullptr};
    split(count, kPiece, Threads{threads, parallel}, [&](int64_t first, int64_t last) { chosen().swiglu(of, first, last); });
}

// Fills grad_gate and grad_up [count].
CUTAWAY_API void cutaway_swiglu_backward(const float* gate, const float* up, const float* grad_out, int64_t count,
                                         float* grad_gate, float* grad_up, int32_t threads, cutaway::Parallel parallel) {
    using namespace cutaway;
    const Gated of = {gate, up, grad_out, nullptr, grad_gate, grad_up};
    split(count, kPiece, Threads{threads, parallel}, [&](int64_t first, int64_t last) { chosen().backward(of, first, last); });
}
