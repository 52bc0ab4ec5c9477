// Vectors of W floats by the compiler's own vector types, so that one body serves every instruction set; files
// that use them are compiled with products and sums fused where the processor can (CMakeLists.txt).
#pragma once

#include <cstdint>

#include "core/isa.hpp"

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are arguments of functions that are always inlined

// Threads that write to shared tables without locks (Hogwild, 1106.5730): an update may be lost, on purpose.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define CUTAWAY_HOGWILD __attribute__((no_sanitize("thread")))
#endif
#elif defined(__SANITIZE_THREAD__)
#define CUTAWAY_HOGWILD __attribute__((no_sanitize("thread")))
#endif
#if !defined(CUTAWAY_HOGWILD)
#define CUTAWAY_HOGWILD
#endif

namespace cutaway {

template <int W>
struct Lanes {
    typedef float V __attribute__((vector_size(4 * W)));
    typedef int32_t I __attribute__((vector_size(4 * W)));

    static CUTAWAY_INLINE V load(const float* p) {
        V v;
        __builtin_memcpy(&v, p, sizeof v);
        return v;
    }
    static CUTAWAY_INLINE void store(float* p, V v) { __builtin_memcpy(p, &v, sizeof v); }
    static CUTAWAY_INLINE V all(float x) { return x - V{}; }

    static CUTAWAY_INLINE float sum(V v) {
        float lanes[W];
        store(lanes, v);
        for (int half = W / 2; half > 0; half /= 2) {
            CUTAWAY_LANES for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
        }
        return lanes[0];
    }

    static CUTAWAY_INLINE V root(V v) {
        float lanes[W];
        store(lanes, v);
        CUTAWAY_LANES for (int i = 0; i < W; ++i) lanes[i] = __builtin_sqrtf(lanes[i]);
        return load(lanes);
    }

    // 1 / (1 + exp(-x)). exp by 2^n times a polynomial (Cephes), within 2 units in the last place.
    static CUTAWAY_INLINE V sigmoid(V x) {
        V t = -x;
        t = t > 80.0f ? all(80.0f) : t;
        t = t < -80.0f ? all(-80.0f) : t;
        const V shift = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
        const V rounded = t * 1.44269504088896341f + shift;
        const V n = rounded - shift;
        const V r = t - n * 0.693359375f - n * -2.12194440e-4f;
        V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
        p = p * r + 8.3334519073e-3f;
        p = p * r + 4.1665795894e-2f;
        p = p * r + 1.6666665459e-1f;
        p = p * r + 5.0000001201e-1f;
        p = p * r * r + r + 1.0f;
        I bits, power;
        __builtin_memcpy(&bits, &rounded, sizeof bits);
        power = ((bits - 0x4b400000) + 127) << 23;
        V scale;
        __builtin_memcpy(&scale, &power, sizeof scale);
        return 1.0f / (1.0f + p * scale);
    }
};

}  // namespace cutaway
