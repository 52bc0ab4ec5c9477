// Rotary position embedding in halves.
#pragma once

#include <cstdint>

namespace cutaway {

// Vectors of `heads` heads of so many tokens, with strides in numbers; the first 2 `half` of a vector's `size` numbers
// rotate by each token's angles, or `back`. `half` is a multiple of 16. cutaway/native/train.py mirrors this.
struct Rotated {
    const float *from, *cos, *sin;
    float* to;
    int64_t tokens, heads, size, half, from_token, from_head, to_token, to_head;
    int32_t back, spare;
};

}  // namespace cutaway
