// Matrix times vectors, the weights in panels of sixteen rows at their own size, the vectors as 8-bit numbers.
#pragma once

#include <cstdint>

#include "runtime/prefetch.hpp"

namespace cutaway {

inline constexpr int kPanel = 16;  // rows whose weights are stored together
inline constexpr int kGroup = 32;  // numbers of a vector that share a scale

// GGML's numbers of the types that run.
enum Type : int32_t {
    kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ5_0 = 6, kQ5_1 = 7, kQ8_0 = 8,
    kQ2_K = 10, kQ3_K = 11, kQ4_K = 12, kQ5_K = 13, kQ6_K = 14, kIQ4_NL = 20, kIQ4_XS = 23, kBF16 = 30, kMXFP4 = 39,
};

// y = W x + bias, W [rows columns]. cutaway/native/packed_product.py mirrors this.
struct Matrix {
    const uint8_t* panels;  // as cutaway_pack laid them
    const float* bias;      // [rows], or null
    int32_t type;
    int32_t rows;
    int32_t columns;
    int32_t spare;

    int panel_count() const { return (rows + kPanel - 1) / kPanel; }
    bool reads_floats() const { return type == kF32 || type == kF16; }
    bool reads_eight_bits() const { return !reads_floats() && type != kBF16; }
};

inline constexpr int kLacks = 4;

// Vectors that a product reads: as floats, as bfloat16 (in floats and by itself), and as q * scale by groups of 32, padded
// with zeros to whole groups. The numbers of a group are stored side by side for all vectors, since a panel meets several at
// once.
struct Vectors {
    float* x;        // [n width]
    float* rounded;  // [n width]: x as bfloat16, or null where no matrix reads it
    uint16_t* bf16;  // [n width]: the same
    int8_t* q;       // [n width]
    float* scale;    // [width/32 n]
    float* shift;    // [width/32 n]: scale times the sum of the group's q
    int32_t* lacks;  // [width/32 kLacks n]: -8 times the sum of the group's q, -128 times it; of each half two shorts: -32 times
                     // the sum of bytes 0 and 1 of each four (the lower), and of bytes 2 and 3
    int64_t width;   // a multiple of 32
    int64_t count;   // n
};

// Bytes of one panel of a type; 0 for a type that does not run.
int64_t panel_bytes(int32_t type, int64_t columns);

// One row of a matrix, [columns], out of its panels.
void unpack_row(const Matrix& matrix, int64_t row, float* out);

// W x_t without the bias, for the rows of the panels [first, last): those of x_t from out[t * stride] on (whole panels:
// out has room). `path` is the worker's where the panels are what comes next on it.
void multiply(const Matrix& matrix, const Vectors& in, int tokens, int first, int last, float* out, int64_t stride,
              Path* path = nullptr);

}  // namespace cutaway
