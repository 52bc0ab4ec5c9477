// Sums of products of matrices of floats by AMX.
#pragma once

#include <cstdint>

namespace cutaway {

// A B, A [rows depth] with numbers of a row side by side, B [depth columns] by any strides of which one is 1.
struct Factors {
    const float* a;
    const float* b;
    int64_t a_row, b_row, b_column;  // strides
    int64_t depth;
};

// out [rows columns] = the sum of `count` products, added to what is there where it `adds`. cutaway/native/train.py
// mirrors this.
struct Sum {
    const Factors* of;
    float* out;
    uint8_t* scratch;  // 64-byte aligned
    int64_t count, rows, columns, out_row;
    int32_t adds, spare;
};

}  // namespace cutaway
