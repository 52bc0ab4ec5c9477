// What is done to vectors between two matrix products: norms, rounding, activations.
#pragma once

#include <cmath>
#include <cstdint>

#include "runtime/matmul.hpp"

namespace cutaway {

// Computed in double and rounded once: the same float from every C library, and from numpy.
inline float exp_of(float x) { return static_cast<float>(std::exp(static_cast<double>(x))); }
inline float softcapped(float x, float cap) {
    return cap * static_cast<float>(std::tanh(static_cast<double>(x / cap)));
}

enum ActivationKind : int32_t {
    kSilu = 0, kGeluTanh = 1, kGelu = 2, kRelu = 3, kReluSquared = 4, kGeluSigmoid = 5, kXielu = 6,
    kSigmoid = 7,
};

// An MLP's activation. Where there is a limit, it bounds the gate from above and `up` on both sides, and 1 is added to `up`.
struct Activation {
    const float* xielu;  // its strength above 0 and below, its derivative at 0, the largest x of its exponential; null elsewhere
    int32_t kind;
    float limit;
};

// A norm; without one, a vector passes unchanged.
enum NormKind : int32_t { kNoNorm = 0, kRootMeanSquare = 1, kLayerNorm = 2 };
struct Norm {
    const float* weight;  // ones where nothing is learned
    const float* bias;    // or null
    int32_t kind;
    float eps;
};

// y = w x / sqrt(mean(x^2) + eps); x and y may be the same.
void rms_norm(const float* x, const float* weight, int64_t size, float eps, float* y);

// y = w (x - mean(x)) / sqrt(var(x) + eps) + bias, without it where it is null; x and y may be the same.
void layer_norm(const float* x, const float* weight, const float* bias, int64_t size, float eps, float* y);

// y = norm(x), or x where there is none; both may be the same. `at`: where its weights begin.
void norm(const Norm& by, const float* x, int64_t size, float* y, int64_t at = 0);

// Numbers of vectors from `token` on, those of each `stride` after the previous.
struct Numbers {
    const float* x;
    int64_t stride, token, count;
};

// Groups [first, last) of some vectors: x, the numbers of the first of them and on, to all that is rounded.
void quantize(const Numbers& from, int64_t first, int64_t last, const Vectors& to);

inline void quantize_vector(const Vectors& of, int64_t token) {
    quantize({of.x + token * of.width, of.width, token, 1}, 0, of.width / kGroup, of);
}

// y = act(y) up, or act(y) where up is null.
void activate(const Activation& by, float* y, const float* up, int64_t size);

// Rotates the pairs (x[i], x[pairs + i]) by angles with these cosines and sines.
void rotate(float* x, int pairs, const float* cosine, const float* sine);

}  // namespace cutaway
