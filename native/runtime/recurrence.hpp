// What a recurrent layer does between its matrices: a short convolution, and a state that each token changes.
#pragma once

#include <cstdint>

#include "runtime/matmul.hpp"
#include "runtime/vectors.hpp"

namespace cutaway {

enum RecurrenceKind : int32_t { kNoRecurrence = 0, kShortConv = 1, kGatedDelta = 2, kMamba2 = 3, kKda = 4 };

// A mixer whose state is as large however long the text is (cutaway/attention/short_conv.py, gated_delta.py, mamba2.py,
// kda.py). Heads of a group share a query and a key. Where gate and step have a second matrix, the first gives what it reads.
struct Recurrence {
    Matrix query, key, value, gate, step, beta, out, gate_up, step_up;  // without rows where there is none
    const float* conv;       // [channels conv_size], in the order of the mixer's parts
    const float* conv_bias;  // [channels], or null
    const float* rate;       // [heads]: exp(A_log)
    const float* step_bias;  // [heads], or of each channel of a key
    const float* skip;       // [heads]: what a token adds of its own value (D), or null
    Norm norm;               // of each head, or of each group where there is a skip
    int64_t state_at;        // floats from the beginning of a text's state to this layer's
    int32_t kind, heads, groups, key_size, value_size, conv_size;
    int32_t norm_first;  // whether the norm is before the gate
    float least;         // bounds steps from below; 0: it does not
    float input;         // multiplies what all matrices read
    float multipliers[5];  // of gate, value, key, query and step as they are projected
    float spare;

    int64_t stride() const { return (value_size + 15) / 16 * 16; }  // of a row of a head's state
    int64_t values() const { return static_cast<int64_t>(heads) * value_size; }
    int64_t keys() const { return static_cast<int64_t>(groups) * key_size; }
    bool delta() const { return kind == kGatedDelta || kind == kKda; }
    int64_t channels() const { return kind == kShortConv ? value.rows : 2 * keys() + values(); }
};

// A head's state S [rows stride] after one more token: S = decay S + key (value - (delta) key' S)'; z = query' S, all of
// `stride` numbers; key is multiplied by `strength` where it is written. decay[i * each] is that of row i: of all rows with
// `each` 0.
void change_state(float* S, int64_t rows, int64_t stride, const float* decay, int64_t each, bool delta, const float* key,
                  float strength, const float* value, const float* query, float* z);

// x / sqrt(sum(x^2) + 1e-6)
void unit(float* x, int64_t size);

// y[c] = act(bias[c] + sum of x's last `taps` numbers of channel c, weighted), act silu or nothing; `tail` [channels taps - 1]
// holds those before x, and moves on. bias may be null.
void convolve(const float* x, int64_t channels, int64_t taps, const float* weights, const float* bias, bool silu, float* tail,
              float* y);

}  // namespace cutaway
