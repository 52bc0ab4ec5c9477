// A model as one step reads it. cutaway/native/runtime.py mirrors these structures, field by field.
#pragma once

#include <cstdint>

#include "runtime/matmul.hpp"

namespace cutaway {

// Rotary positions: pair i of a head rotates by position * radians[i].
struct Rotation {
    const double* radians;  // [pairs]
    double magnitude;
    int32_t pairs;
    int32_t interleaved;
};

// One MLP of a mixture of experts; gate.panels is null where it has no gate.
struct Expert {
    Matrix gate, up, down;
};

// Norms are root-mean-square norms: their weights, or null where there is none. With experts, gate, up and down are
// those of the shared expert, or have no rows; router and shared_gate read floats.
struct Layer {
    Matrix query, key, value, out, gate, up, down;  // gate.panels is null where the MLP has no gate
    Matrix router, shared_gate;                     // without rows where there is none
    const float *attention_norm, *attention_post_norm, *mlp_norm, *mlp_post_norm, *query_norm, *key_norm;
    const Expert* experts;  // [expert_count], or null
    int64_t page_offset;  // halves from a page's beginning to this layer's keys
    int32_t heads, groups, key_size, value_size;
    int32_t window;  // how many positions a query sees, 0 for all
    int32_t rotation;    // index into Model.rotations, -1 for none
    int32_t activation;
    float eps, qk_eps, scale, softcap;
    int32_t expert_count, top_k;
    int32_t normalised;  // whether the weights of a token's experts sum to 1
    int32_t spare;

    int value_stride() const { return (value_size + 15) / 16 * 16; }
};

struct Model {
    const Layer* layers;
    const Rotation* rotations;
    const uint8_t* embedding;  // rows as they are in the file; null where they are the head's
    const float* norm;
    Matrix head;
    int64_t embedding_row;  // bytes
    int32_t embedding_type;
    int32_t layer_count, rotation_count, width, vocab;
    float embedding_scale, eps, softcap;
};

// What an adapter does to a matrix: y = factor (W x + B (A x)), in floats; the adapter's scale is in B.
struct Change {
    Matrix b;             // [rows rank]; without rows where nothing is added
    const float* factor;  // [rows], filled up to whole panels, or null
    int64_t at;           // where its A x begins in that of its input
};

// An adapter's part of a layer: the A of matrices that read the same vectors one below the other, each filled up to
// whole panels, and the changes.
struct LayerAdapter {
    Matrix heads_in, out_in, mlp_in, down_in;
    Change query, key, value, out, gate, up, down;
};

// What a reading can write out of a layer, for each of its tokens; kEmbed is the input of layer 0.
enum What : int32_t { kEmbed, kMiddle, kOut, kQuery, kKey, kValue, kMixed };

// A value that is written out: a row for each token.
struct Value {
    float* out;
    int32_t what, layer;
};

// A change of the residual stream after a layer, for tokens [first, last): x + strength v, or, where it projects,
// x - strength (x . v) v.
struct Edit {
    const float* vector;  // [width]
    float strength;
    int32_t projects, layer, first, last, spare;
};

// What a reading writes out and changes; the edits in the order in which they are made.
struct Observation {
    const Value* values;  // [value_count]
    const Edit* edits;    // [edit_count]
    int32_t value_count, edit_count;
};

// What is read in one call: for each sequence its new tokens, one after another, and its pages.
struct Reading {
    const int32_t* ids;              // [tokens]
    const int32_t* starts;           // [sequences + 1]: where each sequence's tokens begin among them
    const int32_t* positions;        // [sequences]: the position of its first new token
    uint16_t* const* const* pages;   // [sequences]: each its pages, enough for its new tokens
    const LayerAdapter* const* adapters;  // [sequences]: each its adapter's layers, or null; null where none has one
    const int32_t* logits_at;        // [logits_count]: the tokens whose logits are asked for
    const int32_t* after;            // [logits_count]: the layer after which the head reads them; null: all the last
    float* logits;                   // [logits_count vocab]
    const int32_t* watched;          // [watched_count 2]: a token and a layer, whose attention is asked for
    float* const* patterns;          // [watched_count]: each [heads position + 1], weights that sum to 1
    int32_t sequences, logits_count, watched_count, spare;
};

}  // namespace cutaway
