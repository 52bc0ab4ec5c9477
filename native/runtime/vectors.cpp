// Norms, rounding and activations between two matrix products; the reference implementation is
// cutaway/runtime/matmul.py and arithmetic.py.
#include "runtime/vectors.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/half.hpp"
#include "core/isa.hpp"

#if defined(CUTAWAY_X86)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace cutaway {
namespace {

struct Functions {
    decltype(&cutaway::rms_norm) rms_norm;
    decltype(&cutaway::layer_norm) layer_norm;
    decltype(&cutaway::quantize) quantize;
    decltype(&cutaway::activate) activate;
    decltype(&cutaway::rotate) rotate;
};

#define CUTAWAY_KERNELS "runtime/vectors.inc"
#include "core/each_isa.inc"

}  // namespace

void rms_norm(const float* x, const float* weight, int64_t size, float eps, float* y) {
    chosen().rms_norm(x, weight, size, eps, y);
}

void layer_norm(const float* x, const float* weight, const float* bias, int64_t size, float eps, float* y) {
    chosen().layer_norm(x, weight, bias, size, eps, y);
}

void norm(const Norm& by, const float* x, int64_t size, float* y, int64_t at) {
    switch (by.kind) {
        case kRootMeanSquare: return rms_norm(x, by.weight + at, size, by.eps, y);
        case kLayerNorm:
            return layer_norm(x, by.weight + at, by.bias == nullptr ? nullptr : by.bias + at, size, by.eps, y);
        default:
            if (y != x) std::copy_n(x, size, y);
    }
}

void quantize(const Numbers& from, int64_t first, int64_t last, const Vectors& to) {
    chosen().quantize(from, first, last, to);
}

void activate(const Activation& by, float* y, const float* up, int64_t size) {
    chosen().activate(by, y, up, size);
}

void rotate(float* x, int pairs, const float* cosine, const float* sine) { chosen().rotate(x, pairs, cosine, sine); }

}  // namespace cutaway
