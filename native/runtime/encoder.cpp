// An encoder's forward pass: texts of any lengths are one list of tokens, so that no padding is computed. Matrices read all
// tokens together, attention reads each text by itself, with the decoder's kernels on keys and values of floats. A phase is
// cut into pieces that any thread may do; no result depends on which did, or on the texts beside one.
// The reference implementation is cutaway/runtime/encoder_reference.py.
#include "runtime/encoder.hpp"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <new>
#include <vector>

#include "core/api.hpp"
#include "core/thread_pool.hpp"
#include "runtime/attention.hpp"
#include "runtime/scratch.hpp"

CUTAWAY_API int32_t cutaway_unpack(int32_t type, const uint8_t* in, int64_t values, float* out, int32_t threads);

namespace cutaway {
namespace {

constexpr int kTile = 128;       // tokens that a piece of a product reads: with their panels they stay in a core's second cache
constexpr int kPanelsAtOnce = 8;
constexpr int kTokensAtOnce = 16;  // whose scales share a line of the cache
constexpr int kQueries = 32;       // rows over a page of keys at once

// A matrix, and where its outputs begin in a token's row.
struct Placed {
    const Matrix* matrix;
    int64_t at;
};

// Vectors from `token` on, of the same memory.
Vectors from(const Vectors& all, int64_t token) {
    Vectors part = all;
    part.x += token * all.width;
    if (all.rounded != nullptr) {
        part.rounded += token * all.width;
        part.bf16 += token * all.width;
    }
    part.q += token * all.width;
    part.scale += token;
    part.shift += token;
    part.lacks += token;
    return part;
}

void add_bias(const Matrix& by, float* x) {
    for (int i = 0; by.bias != nullptr && i < by.rows; ++i) x[i] += by.bias[i];
}

class Pass {
  public:
    Pass(const Encoder& model, const Texts& texts, int threads)
        : model_(model), texts_(texts), tokens_(texts.starts[texts.count]), threads_(threads) {
        measure();
        take();
    }

    void run() {
        tokens([&](int64_t token) { embed(token); });
        if (model_.projection.rows > 0) {
            multiply({{&model_.projection, 0}}, in_, x_, width_stride_);
            tokens([&](int64_t token) { add_bias(model_.projection, x_ + token * width_stride_); });
        }
        for (int i = 0; i < model_.layer_count; ++i) layer(model_.layers[i]);
        tokens([&](int64_t token) {
            norm(model_.norm, x_ + token * width_stride_, model_.width, texts_.out + token * model_.width);
        });
    }

  private:
    // What one head of queries of a text does: tokens [first, last).
    struct Piece {
        int text, first, last;
    };

    static int64_t key_at(const EncoderLayer& layer) { return rounded(layer.query.rows, kPanel); }
    static int64_t value_at(const EncoderLayer& layer) { return key_at(layer) + rounded(layer.key.rows, kPanel); }

    void measure() {
        longest_ = 0;
        text_of_.resize(static_cast<size_t>(tokens_));
        for (int t = 0; t < texts_.count; ++t) {
            const int first = texts_.starts[t], last = texts_.starts[t + 1];
            std::fill(text_of_.begin() + first, text_of_.begin() + last, t);
            longest_ = std::max(longest_, last - first);
            places_.push_back(places_total_);
            places_total_ += rounded(last - first, kPanel);
            for (int token = first; token < last; token += kQueries) pieces_.push_back({t, token, std::min(last, token + kQueries)});
        }
        width_stride_ = rounded(model_.width, kPanel);
        in_width_ = std::max(model_.width, model_.projection.columns);
        with_bf16_ = model_.projection.type == kBF16;
        for (int i = 0; i < model_.layer_count; ++i) {
            const EncoderLayer& layer = model_.layers[i];
            heads_stride_ = std::max(heads_stride_, value_at(layer) + rounded(layer.value.rows, kPanel));
            mixed_width_ = std::max(mixed_width_, layer.out.columns);
            hidden_width_ = std::max(hidden_width_, layer.down.columns);
            keys_size_ = std::max<int64_t>(keys_size_, static_cast<int64_t>(layer.groups) * layer.key_size);
            values_size_ = std::max<int64_t>(values_size_, static_cast<int64_t>(layer.groups) * layer.value_stride());
            for (const Matrix* each : {&layer.query, &layer.key, &layer.value, &layer.out, &layer.gate, &layer.up, &layer.down}) {
                with_bf16_ |= each->type == kBF16;
            }
        }
        for (int i = 0; i < model_.rotation_count; ++i) {
            rotation_at_.push_back(rotation_stride_);
            rotation_stride_ += 2 * model_.rotations[i].pairs;
        }
    }

    void take() {
        x_ = scratch_.take<float>(tokens_ * width_stride_);
        out_ = scratch_.take<float>(tokens_ * width_stride_);
        heads_out_ = scratch_.take<float>(tokens_ * heads_stride_);
        keys_ = scratch_.take<float>(places_total_ * keys_size_);
        values_ = scratch_.take<float>(places_total_ * values_size_);
        in_ = scratch_.vectors(tokens_, in_width_, with_bf16_);
        mixed_ = scratch_.vectors(tokens_, mixed_width_, with_bf16_);
        hidden_ = scratch_.vectors(tokens_, hidden_width_, with_bf16_);
        rotations_ = scratch_.take<float>(longest_ * rotation_stride_);
        split(longest_, kTokensAtOnce, threads_, [&](int64_t first, int64_t last) {
            for (int64_t at = first; at < last; ++at) turn(at);
        });
    }

    // The cosines and sines of a position.
    void turn(int64_t at) {
        for (int i = 0; i < model_.rotation_count; ++i) {
            const Rotation& by = model_.rotations[i];
            float* cosines = rotations_ + at * rotation_stride_ + rotation_at_[static_cast<size_t>(i)];
            for (int pair = 0; pair < by.pairs; ++pair) {
                const double angle = static_cast<double>(at) * by.radians[pair];
                cosines[pair] = static_cast<float>(std::cos(angle) * by.magnitude);
                cosines[by.pairs + pair] = static_cast<float>(std::sin(angle) * by.magnitude);
            }
        }
    }

    // A phase: each token by itself.
    template <class F>
    void tokens(const F& each) {
        split(tokens_, kTokensAtOnce, threads_, [&](int64_t first, int64_t last) {
            for (int64_t token = first; token < last; ++token) each(token);
        });
    }

    // A phase: some matrices that read the same vectors, without their biases.
    void multiply(std::initializer_list<Placed> matrices, const Vectors& in, float* out, int64_t stride) {
        const int64_t tiles = rounded(tokens_, kTile) / kTile;
        int64_t pieces = 0;
        for (const Placed& each : matrices) pieces += tiles * strips(*each.matrix);
        split(pieces, 1, threads_, [&](int64_t piece, int64_t) {
            const Placed* of = matrices.begin();
            for (; piece >= tiles * strips(*of->matrix); ++of) piece -= tiles * strips(*of->matrix);
            const int64_t token = piece / strips(*of->matrix) * kTile;
            const int first = static_cast<int>(piece % strips(*of->matrix)) * kPanelsAtOnce;
            const int last = std::min(first + kPanelsAtOnce, of->matrix->panel_count());
            const int count = static_cast<int>(std::min<int64_t>(kTile, tokens_ - token));
            cutaway::multiply(*of->matrix, from(in, token), count, first, last,
                              out + token * stride + of->at + first * kPanel, stride);
        });
    }

    static int64_t strips(const Matrix& matrix) { return (matrix.panel_count() + kPanelsAtOnce - 1) / kPanelsAtOnce; }

    static void round(const Vectors& to, int64_t token, std::initializer_list<const Matrix*> readers) {
        for (const Matrix* each : readers) {
            if (each->rows > 0 && !each->reads_floats()) return quantize_vector(to, token);
        }
    }

    void embed(int64_t token) {
        const int width = model_.embedding_width, text = text_of_[static_cast<size_t>(token)];
        const bool projects = model_.projection.rows > 0;
        float* x = projects ? in_.x + token * in_.width : x_ + token * width_stride_;
        const int64_t id = texts_.ids[token];
        cutaway_unpack(model_.embedding_type, model_.embedding + id * model_.embedding_row, width, x, 1);
        if (texts_.kept != nullptr) {
            const float kept = id == model_.mask ? 0.0f : texts_.kept[text];
            for (int i = 0; i < width; ++i) x[i] *= kept;
        }
        for (int i = 0; model_.embedding_scale != 1.0f && i < width; ++i) x[i] *= model_.embedding_scale;
        if (model_.positions != nullptr) {
            const float* own = model_.positions + (token - texts_.starts[text]) * width;
            for (int i = 0; i < width; ++i) x[i] += own[i];
        }
        if (model_.segments != nullptr) {
            const float* own = model_.segments + (texts_.segments == nullptr ? 0 : int64_t{texts_.segments[token]} * width);
            for (int i = 0; i < width; ++i) x[i] += own[i];
        }
        norm(model_.embedding_norm, x, width, x);
        if (projects) round(in_, token, {&model_.projection});
    }

    void layer(const EncoderLayer& layer) {
        tokens([&](int64_t token) {
            norm(layer.attention_norm, x_ + token * width_stride_, model_.width, in_.x + token * in_.width);
            round(in_, token, {&layer.query, &layer.key, &layer.value});
        });
        multiply({{&layer.query, 0}, {&layer.key, key_at(layer)}, {&layer.value, value_at(layer)}}, in_, heads_out_, heads_stride_);
        tokens([&](int64_t token) { store(layer, token); });
        split(static_cast<int64_t>(pieces_.size()) * layer.groups, 1, threads_, [&](int64_t i, int64_t) {
            attend(layer, pieces_[static_cast<size_t>(i / layer.groups)], static_cast<int>(i % layer.groups));
        });
        if (!layer.out.reads_floats()) tokens([&](int64_t token) { quantize_vector(mixed_, token); });
        multiply({{&layer.out, 0}}, mixed_, out_, width_stride_);
        tokens([&](int64_t token) {
            add(layer.out, layer.attention_post_norm, layer.attention_sum_norm, token);
            norm(layer.mlp_norm, x_ + token * width_stride_, model_.width, in_.x + token * in_.width);
            round(in_, token, {&layer.gate, &layer.up});
        });
        hide(layer);
        multiply({{&layer.down, 0}}, hidden_, out_, width_stride_);
        tokens([&](int64_t token) { add(layer.down, layer.mlp_post_norm, layer.mlp_sum_norm, token); });
    }

    // What a matrix gave is added to the residual stream.
    void add(const Matrix& by, const Norm& post, const Norm& of_sum, int64_t token) {
        float *out = out_ + token * width_stride_, *x = x_ + token * width_stride_;
        add_bias(by, out);
        norm(post, out, model_.width, out);
        for (int i = 0; i < model_.width; ++i) x[i] += out[i];
        norm(of_sum, x, model_.width, x);
    }

    // A token's queries, scaled; and its keys and values where attention reads them.
    void store(const EncoderLayer& layer, int64_t token) {
        float *query = heads_out_ + token * heads_stride_, *key = query + key_at(layer), *value = query + value_at(layer);
        add_bias(layer.query, query);
        add_bias(layer.key, key);
        add_bias(layer.value, value);
        const int text = text_of_[static_cast<size_t>(token)];
        const int64_t at = token - texts_.starts[text];
        finish(layer, layer.query_norm, layer.heads, at, query);
        finish(layer, layer.key_norm, layer.groups, at, key);
        for (int i = 0; i < layer.query.rows; ++i) query[i] *= layer.scale;
        for (int group = 0; group < layer.groups; ++group) {
            const PageOf page = page_of(layer, text, group, static_cast<int>(at / kPage));
            store_key(page, static_cast<int>(at % kPage), key + group * layer.key_size);
            store_value(page, layer.value_size, static_cast<int>(at % kPage), value + group * layer.value_size);
        }
    }

    // The norms of queries or keys, and RoPE.
    void finish(const EncoderLayer& layer, const Norm& by, int heads, int64_t position, float* x) const {
        const int64_t size = layer.key_size;
        if (layer.norm_over == kWidth) norm(by, x, heads * size, x);
        for (int head = 0; head < heads; ++head, x += size) {
            if (layer.norm_over != kWidth) norm(by, x, size, x, layer.norm_over == kEach ? head * size : 0);
            if (layer.rotation < 0) continue;
            const float* cosines = rotations_ + position * rotation_stride_ + rotation_at_[static_cast<size_t>(layer.rotation)];
            rotate(model_.rotations[layer.rotation], x, cosines);
        }
    }

    // 128 positions of a text's keys and values in a group of heads. A text has as many positions as it fills sixteens.
    PageOf page_of(const EncoderLayer& layer, int text, int group, int page) const {
        const int64_t first = places_[static_cast<size_t>(text)];
        const int64_t places = rounded(texts_.starts[text + 1] - texts_.starts[text], kPanel), at = int64_t{page} * kPage;
        float* keys = keys_ + first * keys_size_ + (group * places + at) * layer.key_size;
        float* values = values_ + first * values_size_ + (group * places + at) * layer.value_stride();
        return {reinterpret_cast<uint16_t*>(keys), reinterpret_cast<uint16_t*>(values), layer.key_size, layer.value_stride(), kFloats};
    }

    // The heads of a group for some tokens of a text, over all that each sees.
    void attend(const EncoderLayer& layer, const Piece& piece, int group) {
        const int heads = layer.heads / layer.groups, rows = (piece.last - piece.first) * heads;
        for (int done = 0; done < rows; done += kQueries) {
            attend_rows(layer, piece, group, done, std::min(kQueries, rows - done));
        }
    }

    void attend_rows(const EncoderLayer& layer, const Piece& piece, int group, int first_row, int count) {
        const int heads = layer.heads / layer.groups, stride = layer.value_stride();
        const int length = texts_.starts[piece.text + 1] - texts_.starts[piece.text];
        static thread_local std::vector<float> room;
        room.assign(static_cast<size_t>(2 * kQueries * stride), 0.0f);
        float *sum = room.data(), *more = sum + kQueries * stride;
        Look looks[kQueries];
        Gathered in[kQueries], seen[kQueries];
        for (Gathered& each : in) each = {-INFINITY, 0.0f};
        for (int page = 0; page * kPage < length; ++page) {
            bool any = false;
            for (int r = 0; r < count; ++r) {
                const int row = first_row + r;
                looks[r] = look(layer, piece, piece.first + row / heads, group * heads + row % heads, page, length);
                any |= looks[r].first < looks[r].last;
            }
            if (!any) continue;
            attend_page(page_of(layer, piece.text, group, page), looks, count, layer.softcap, more, seen);
            for (int r = 0; r < count; ++r) merge(sum + r * stride, in[r], more + r * stride, seen[r], stride);
        }
        for (int r = 0; r < count; ++r) {
            const int row = first_row + r, head = group * heads + row % heads;
            float* to = mixed_.x + (piece.first + row / heads) * mixed_.width + head * layer.value_size;
            for (int i = 0; i < layer.value_size; ++i) to[i] = sum[r * stride + i] / in[r].weight;
        }
    }

    // Which positions of a page a head of a token sees.
    Look look(const EncoderLayer& layer, const Piece& piece, int token, int head, int page, int length) const {
        const int at = token - texts_.starts[piece.text], begin = page * kPage;
        const int first = layer.reach < 0 ? 0 : std::max(0, at - layer.reach);
        const int last = layer.reach < 0 ? length : std::min<int64_t>(length, int64_t{at} + layer.reach + 1);
        Look seen = {heads_out_ + token * heads_stride_ + head * layer.key_size, std::clamp(first - begin, 0, kPage),
                     std::clamp(last - begin, 0, kPage)};
        if (layer.relative == nullptr) return seen;
        const int64_t distances = 2 * int64_t{model_.context} - 1;
        seen.relative = layer.relative + head * distances + (model_.context - 1) + (begin - at);
        return seen;
    }

    // A phase: the neurons of the MLP, 32 at a time, rounded for its last matrix.
    void hide(const EncoderLayer& layer) {
        const int64_t groups = rounded(layer.up.rows, kGroup) / kGroup, tiles = rounded(tokens_, kTile) / kTile;
        split(groups * tiles, 1, threads_, [&](int64_t piece, int64_t) {
            static thread_local std::vector<float> room;
            room.resize(2 * kTile * kGroup);
            const int64_t token = piece / groups * kTile, group = piece % groups;
            const int count = static_cast<int>(std::min<int64_t>(kTile, tokens_ - token));
            float *inside = room.data(), *beside = inside + kTile * kGroup;
            const bool gated = layer.gate.rows > 0;
            neurons(gated ? layer.gate : layer.up, token, count, group, inside);
            if (gated) neurons(layer.up, token, count, group, beside);
            activate(layer.activation, inside, gated ? beside : nullptr, count * kGroup);
            if (!layer.down.reads_floats()) return quantize({inside, kGroup, token, count}, group, group + 1, hidden_);
            for (int i = 0; i < count; ++i) {
                std::copy_n(inside + i * kGroup, kGroup, hidden_.x + (token + i) * hidden_.width + group * kGroup);
            }
        });
    }

    // out [count 32]: 32 rows of a matrix and their biases; zeros past the last row.
    void neurons(const Matrix& matrix, int64_t token, int count, int64_t group, float* out) const {
        const int first = static_cast<int>(2 * group), last = std::min(first + 2, matrix.panel_count());
        if (last < first + 2) std::fill_n(out, count * kGroup, 0.0f);
        cutaway::multiply(matrix, from(in_, token), count, first, last, out, kGroup);
        const int64_t rows = std::min<int64_t>(kGroup, matrix.rows - group * kGroup);
        for (int i = 0; matrix.bias != nullptr && i < count; ++i) {
            for (int64_t j = 0; j < rows; ++j) out[i * kGroup + j] += matrix.bias[group * kGroup + j];
        }
    }

    const Encoder& model_;
    const Texts& texts_;
    const int64_t tokens_;
    const int threads_;
    Scratch scratch_;
    int longest_ = 0, in_width_ = 0, mixed_width_ = 0, hidden_width_ = 0;
    int64_t width_stride_ = 0, heads_stride_ = 0, rotation_stride_ = 0, keys_size_ = 0, values_size_ = 0, places_total_ = 0;
    bool with_bf16_ = false;
    std::vector<int> text_of_;
    std::vector<int64_t> places_, rotation_at_;  // of each text, where its positions begin; of each rotation, where its cosines do
    std::vector<Piece> pieces_;
    float *x_ = nullptr, *out_ = nullptr, *heads_out_ = nullptr, *keys_ = nullptr, *values_ = nullptr, *rotations_ = nullptr;
    Vectors in_{}, mixed_{}, hidden_{};
};

}  // namespace
}  // namespace cutaway

// The vectors of all tokens; the caller has checked every array. -1: there is no memory for it.
CUTAWAY_API int32_t cutaway_encode(const cutaway::Encoder* model, const cutaway::Texts* texts, int32_t threads) {
    try {
        cutaway::Pass(*model, *texts, threads).run();
        return 0;
    } catch (const std::bad_alloc&) {
        return -1;
    }
}

// The sizes of the structures, so that cutaway/native/encoder.py can check that it mirrors them.
CUTAWAY_API void cutaway_encoder_sizes(int64_t* out) {
    using namespace cutaway;
    out[0] = sizeof(EncoderLayer);
    out[1] = sizeof(Encoder);
    out[2] = sizeof(Texts);
}
