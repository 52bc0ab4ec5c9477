// The steps of recurrent layers, token by token: the same bits however a text is cut. The reference implementation is
// cutaway/runtime/recurrence.py.
#include "runtime/recurrence.hpp"

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
    decltype(&cutaway::change_state) change_state;
    decltype(&cutaway::unit) unit;
    decltype(&cutaway::convolve) convolve;
};

#define CUTAWAY_KERNELS "runtime/recurrence.inc"
#include "core/each_isa.inc"

}  // namespace

void change_state(float* S, int64_t rows, int64_t stride, const float* decay, int64_t each, bool delta, const float* key,
                  float strength, const float* value, const float* query, float* z) {
    chosen().change_state(S, rows, stride, decay, each, delta, key, strength, value, query, z);
}

void unit(float* x, int64_t size) { chosen().unit(x, size); }

void convolve(const float* x, int64_t channels, int64_t taps, const float* weights, const float* bias, bool silu,
              float* tail, float* y) {
    chosen().convolve(x, channels, taps, weights, bias, silu, tail, y);
}

}  // namespace cutaway
