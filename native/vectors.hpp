// What is done to vectors between two matrix products: norms, rounding, activations.
#pragma once

#include <cstdint>

#include "matmul.hpp"

namespace cutaway {

enum Activation : int32_t { kSilu = 0, kGeluTanh = 1, kGelu = 2, kRelu = 3 };

// y = w x / sqrt(mean(x^2) + eps); x and y may be the same.
void rms_norm(const float* x, const float* weight, int64_t size, float eps, float* y);

// Groups [first, last) of vector `token`: x, the numbers of the first of them and on, to all that is rounded.
void quantise(const float* x, int64_t first, int64_t last, const Vectors& to, int64_t token);

// y = act(y) up, or act(y) where up is null.
void activate(int32_t activation, float* y, const float* up, int64_t size);

}  // namespace cutaway
