// An encoder as one forward pass reads it. cutaway/native/encoder.py mirrors these structures, field by field.
#pragma once

#include <cstdint>

#include "runtime/matmul.hpp"
#include "runtime/step.hpp"
#include "runtime/vectors.hpp"

namespace cutaway {

// x = attention_sum_norm(x + attention_post_norm(attention(attention_norm(x)))), and the same with the MLP: a norm that is
// not there passes its vector. gate has no panels where the MLP has no gate.
struct EncoderLayer {
    Matrix query, key, value, out, gate, up, down;
    Norm attention_norm, attention_post_norm, attention_sum_norm, mlp_norm, mlp_post_norm, mlp_sum_norm;
    Norm query_norm, key_norm;
    Activation activation;
    const float* relative;  // [heads 2 context - 1]: what a score gains by the key's distance, the farthest before it first
    int32_t heads, groups, key_size, value_size;
    int32_t reach;     // how many tokens to either side are seen, -1 for all
    int32_t rotation;  // index into Encoder.rotations, -1 for none
    int32_t norm_over;
    float scale, softcap;
    int32_t spare;

    int value_stride() const { return (value_size + kPanel - 1) / kPanel * kPanel; }
};

struct Encoder {
    const EncoderLayer* layers;  // in the order in which they run
    const Rotation* rotations;
    const uint8_t* embedding;  // rows as they are in the file
    const float* positions;    // [context embedding_width], added to embeddings, or null
    const float* segments;     // [segments embedding_width], or null
    Norm embedding_norm, norm;
    Matrix projection;  // from embeddings to `width`; without rows where they are as wide
    int64_t embedding_row;  // bytes
    int32_t embedding_type, layer_count, rotation_count, embedding_width, width, context;
    int32_t mask;  // the id whose embedding is zeros, -1 for none
    float embedding_scale;
};

// Texts, one after another: without padding.
struct Texts {
    const int32_t* ids;       // [tokens]
    const int32_t* segments;  // [tokens], or null: the first
    const int32_t* starts;    // [texts + 1]
    const float* kept;        // [texts]: multiplies embeddings where some are masked, or null
    float* out;               // [tokens width]
    int32_t count, spare;
};

}  // namespace cutaway
