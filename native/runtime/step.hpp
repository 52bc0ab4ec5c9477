// A model as one step reads it. cutaway/native/structures.py mirrors these structures, field by field.
#pragma once

#include <cstdint>

#include "runtime/matmul.hpp"
#include "runtime/recurrence.hpp"
#include "runtime/vectors.hpp"

namespace cutaway {

// Rotary positions: pair i of a head rotates by position * radians[i].
struct Rotation {
    const double* radians;  // [pairs]
    const double* longer;   // [pairs]: of a text that is longer than the model's first ones (LongRoPE), or null
    double magnitude;
    int32_t pairs;
    int32_t interleaved;
};

// Rotates the pairs of a head by angles with these cosines, and the sines behind them; `halves`: half-split, whatever the
// model's pairs are.
inline void rotate(const Rotation& by, float* x, const float* cosine, bool halves = false) {
    const float* sine = cosine + by.pairs;
    if (halves || by.interleaved == 0) return rotate(x, by.pairs, cosine, sine);
    for (int i = 0; i < by.pairs; ++i) {
        const float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cosine[i] - b * sine[i];
        x[2 * i + 1] = b * cosine[i] + a * sine[i];
    }
}

// One MLP of a mixture of experts; gate.panels is null where it has no gate.
struct Expert {
    Matrix gate, up, down;
};

// How a layer's experts are scored, chosen and weighed (cutaway/layers/config.py's Router); router and shared_gate read
// floats.
struct Mixture {
    Matrix router, shared_gate;  // without rows where there is none
    const Expert* experts;       // [count], or null
    const float* choice_bias;    // [count], or null
    int32_t count, top_k;
    int32_t normalised;  // whether the weights of a token's experts sum to 1
    int32_t sigmoid, groups, top_groups, group_of_two;
    float scale;
};

// Which vectors a norm of queries and keys takes: each head, all heads as one, each head with weights of its own.
enum Over : int32_t { kHead = 0, kWidth = 1, kEach = 2 };

// DeepSeek sparse attention's indexer (cutaway/attention/dsa.py): `heads` heads of `size` numbers over one key choose the
// top_k positions that latent attention reads. Queries come out of the queries' latent, where there is one.
struct Indexer {
    Matrix query, key, weight;  // without rows: all positions are read
    Norm norm;                  // of the key
    int64_t page_offset;        // halves from a page's beginning to the layer's keys
    int32_t heads, size, top_k;
    float scale, weight_scale;  // multiply queries, and the heads' weights
    int32_t spare;

    bool chooses() const { return key.rows > 0; }
};

// Multi-head latent attention, absorbed (cutaway/attention/mla.py): the cache has a row a token for all heads, the latent
// and behind it the rotated part, each filled up to whole sixteens with zeros; a head's query moves to the latents by
// key_up, and what it gathers of them becomes its value by value_up. Layer.query gives queries or the latent that they
// come out of, Layer.key the row, Layer.key_norm is the latent's; Layer.key_size is the row's numbers, Layer.value_size
// the latent's, and Layer.groups are heads that one piece of work does.
struct Latent {
    Indexer index;
    Matrix query;    // out of the queries' latent; without rows where Layer.query gives them
    Matrix key_up;   // the first head's [latent key_size], the other heads' behind it
    Matrix value_up; // the first head's [value_size latent], the other heads' behind it
    Norm query_norm;
    int32_t size, rope, key_size, value_size;  // of the latent (0: other attention), the rotated part, a head's parts
};

// What a block adds of the embeddings that each block has of a token (cutaway/layers/per_layer.py), at its end: without
// rows, or gate reads the residual stream as it is, and its activation times the embedding goes through out and norm.
struct PerLayerInput {
    Matrix gate, out;
    Norm norm;
};

// Where those embeddings come from: a row of the table for all blocks, and what projection gives of the token's embedding,
// normed block by block. Without rows where there are none.
struct PerLayer {
    Matrix projection;
    const uint8_t* table;  // rows as they are in the file
    Norm norm;
    int64_t row;  // bytes
    int32_t type, size;  // of the table; numbers a block
    float table_scale, projection_scale, scale;  // of the row, of what projection gives, of their sum
    int32_t spare;
};

// What the MLP reads: the stream after attention; the block's x, through attention's norm, or through its own.
enum MlpInput : int32_t { kInTurn = 0, kSharedNorm = 1, kOwnNorm = 2 };

// With experts, gate, up and down are those of the shared expert, or have no rows.
struct Layer {
    // gate.panels is null where the MLP has no gate; key and value have no rows where another layer's are read, value has
    // none where it is the key.
    Matrix query, key, value, out, gate, up, down;
    Matrix output_gate;  // without rows, or of a gate of what the heads give
    Norm attention_norm, attention_post_norm, mlp_norm, mlp_post_norm, query_norm, key_norm, value_norm;
    Mixture mixture;
    Recurrence recurrence;  // alone where query has no rows, else beside attention
    Latent latent;
    PerLayerInput per_layer;
    Norm difference_norm;  // of differential attention: of each difference
    Activation activation;
    const float* sinks;   // [heads]: scores that take attention and give nothing, or null
    const float* alibi;  // [heads]: what a position of distance takes from a score, or null
    int64_t page_offset;  // halves from a page's beginning to this layer's keys
    double sharpness;     // queries are multiplied by 1 + sharpness ln(1 + position / sharp_from); 0: they are not
    int32_t heads, groups, key_size, value_size;
    int32_t window;    // how many positions a query sees, 0 for all
    int32_t rotation;  // index into Model.rotations, -1 for none
    int32_t sharp_from, norm_over;
    int32_t norm_after;  // whether queries and keys are rotated first
    int32_t value_of_key, parallel;
    float scale, softcap;
    float clip;         // bounds queries, keys and values; 0: it does not
    float residual;     // multiplies what both halves add
    float block_scale;  // multiplies the block's output
    float input, output, recurrent_output;  // multiply what attention reads and gives, and what the recurrence gives
    float gate_scale, out_scale;            // of the MLP
    int32_t cache;                          // what its keys and values are kept as
    // Differential attention (cutaway/attention/differential.py): the second half's outputs times `lambda` are taken from
    // the first half's, and what is left of them, normed, is multiplied by `kept`. value_size is that of two values.
    float lambda, kept;
    int32_t spare;

    bool attends() const { return query.rows > 0; }
    bool differential() const { return difference_norm.kind != kNoNorm; }
    bool has_mlp() const { return up.rows > 0 || mixture.experts != nullptr; }
    int value_stride() const { return (value_size + 15) / 16 * 16; }
    int value_rows() const { return value_of_key != 0 ? key.rows : value.rows; }
};

struct Model {
    const Layer* layers;
    const Rotation* rotations;
    const uint8_t* embedding;  // rows as they are in the file; null where they are the head's
    const float* positions;  // [context width], added to embeddings, or null
    Norm embedding_norm, norm;
    Matrix head;
    PerLayer per_layer;
    int64_t embedding_row;  // bytes
    int64_t state_size;     // floats of a text's state of recurrent layers
    int32_t embedding_type;
    int32_t layer_count, rotation_count, width, vocab;
    float embedding_scale, logit_scale, softcap;
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

// What a forward pass can write out of a layer, for each of its tokens; kEmbed is the input of layer 0.
enum What : int32_t {
    kUnnamed = -1, kEmbed, kMiddle, kOut, kQuery, kKey, kValue, kMixed, kAttentionNorm, kMlpNorm, kQueryUnrotated, kKeyUnrotated,
    kMixedOut, kHidden, kDown, kMixtureOut, kAttentionPostNorm,
    kMlpPostNorm, kFinalNorm, kExpertIndices, kExpertWeights, kState, kOutInput, kGate, kLatent, kExpertHidden, kSharedGate,
    kBesideOut, kPattern, kWhats
};

// A value that is written out: a row for each token.
struct Value {
    float* out;
    int32_t what, layer;
};

// What becomes of x, the units that an edit changes.
enum How : int32_t {
    kMove,      // factor x + strength v
    kAlong,     // x + strength (x . read) v
    kExchange,  // x + strength (y - x), and y + strength (x - y): y are as many units from `other` on
    kReturn     // x + strength (y - x): x is the stream after a layer, y the stream before it
};

// A change of a value of a layer, for tokens [first, last) and units [first_unit, last_unit) of its row. Of kPattern
// units are heads, and the keys [first_key, last_key) of each change, whose number is then that of `vector` a head.
struct Edit {
    const float* vector;  // v [last_unit - first_unit], or null: nothing is added
    const float* read;    // [last_unit - first_unit], of kAlong; of kPattern 0 for keys that stay, or null: all change
    int64_t stride;       // floats from a token's v to the next one's; 0: they have one in common
    float strength, factor;
    int32_t how, what, layer, first, last, first_unit, last_unit, other;
    int32_t first_key, last_key;
    int32_t renormalises;  // of kPattern: whether a head's weights sum to what they did before
    int32_t spare;
};

// What a forward pass writes out and changes; the edits in the order in which they are made.
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
    const int32_t* longer;           // [sequences]: whether the text rotates by longer radians; null: none does
    float* const* states;            // [sequences]: each the state of its recurrent layers, or null where there are none
    const LayerAdapter* const* adapters;  // [sequences]: each its adapter's layers, or null; null where none has one
    const int32_t* logits_at;        // [logits_count]: the tokens whose logits are asked for
    const int32_t* after;            // [logits_count]: the layer after which the head reads them; null: all the last
    float* logits;                   // [logits_count vocab]
    const int32_t* watched;          // [watched_count 3]: a token and a layer, and of its attention the weights (0), scores (1)
                                     // or, in the first head's place, 1 for each position that an indexer chose (2)
    float* const* patterns;          // [watched_count]: each [heads position + 1]
    int32_t sequences, logits_count, watched_count, spare;
};

}  // namespace cutaway
