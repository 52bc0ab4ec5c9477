// One call reads tokens: a token of one text, one token of each of several texts, or a chunk of a prompt. All
// workers go through the same phases. In each, a worker does its own share of the work, a few pieces at a time, and then
// what others have not begun of theirs; no result depends on which worker did what. A phase is over when its pieces are
// done, so that a worker which the system has put to sleep delays its last few pieces alone.
#include "runtime/step.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <new>
#include <span>
#include <thread>
#include <vector>

#include "core/api.hpp"
#include "runtime/attention.hpp"
#include "core/isa.hpp"
#include "runtime/prefetch.hpp"
#include "runtime/scratch.hpp"
#include "core/thread_pool.hpp"
#include "runtime/vectors.hpp"

CUTAWAY_API int32_t cutaway_unpack(int32_t type, const uint8_t* in, int64_t values, float* out, int32_t threads);

namespace cutaway {
namespace {

// Tokens of one sequence that look together, over all of its pages, or over one (page >= 0).
struct Piece {
    int sequence, first, last, page;
};

// An expert that some tokens chose: their vectors are at [first, first + count) of all that are chosen.
struct Busy {
    int expert;
    int64_t first, count;
};

// The room of an expert's vectors among those of all, as vectors of its own.
Vectors part(const Vectors& all, const Busy& by) {
    const int64_t groups = all.width / kGroup;
    const int64_t at = by.first * all.width;
    const bool with_bf16 = all.rounded != nullptr;
    return {all.x + at,
            with_bf16 ? all.rounded + at : nullptr,
            with_bf16 ? all.bf16 + at : nullptr,
            all.q + at,
            all.scale + by.first * groups,
            all.shift + by.first * groups,
            all.lacks + by.first * groups * kLacks,
            all.width,
            by.count};
}

// How far the workers are with one phase.
struct Phase {
    alignas(64) std::atomic<int64_t> done{0};
    std::atomic<bool> over{false};
};

// How much of a share is taken: pieces from its front, by its own worker, and in the upper half those from its
// back, by others, so that what the worker has asked the memory for stays its own.
struct Share {
    alignas(64) std::atomic<uint64_t> taken{0};

    // Some of the pieces [first, last) to [begin, end); false when none are left.
    bool take(int64_t first, int64_t last, bool own, int64_t& begin, int64_t& end) {
        uint64_t before = taken.load(std::memory_order_relaxed);
        for (;;) {
            const auto front = static_cast<int64_t>(before & 0xffffffffu), back = static_cast<int64_t>(before >> 32);
            const int64_t left = last - first - front - back;
            if (left <= 0) return false;
            const int64_t some = (left + 3) / 4;
            const auto after = before + (static_cast<uint64_t>(some) << (own ? 0 : 32));
            if (!taken.compare_exchange_weak(before, after, std::memory_order_relaxed)) continue;
            begin = own ? first + front : last - back - some;
            end = begin + some;
            return true;
        }
    }
};

// A matrix, where its rows go among those of all that read the same vectors, and which change of an adapter is its.
struct Product {
    const Matrix* matrix;
    int64_t at;
    Change LayerAdapter::*change;
};

// Tokens [first, last) that are read with one adapter.
struct Run {
    const LayerAdapter* layers;
    int first, last;
};

// The rows of several matrices that read the same vectors: panels, those of one matrix behind those of the one before.
class Rows {
  public:
    Rows(std::initializer_list<Product> products, const Vectors& in, int tokens, float* out, int64_t stride)
        : count_(products.size()), in_(in), tokens_(tokens), out_(out), stride_(stride) {
        std::copy(products.begin(), products.end(), products_);
        for (const Product& each : products) panels_ += each.matrix->panel_count();
    }

    int64_t panels() const { return panels_; }
    const Vectors& in() const { return in_; }

    void multiply(int64_t begin, int64_t end, Path* path) const {
        each(begin, end, [&](const Product& of, int first, int last) {
            cutaway::multiply(*of.matrix, in_, tokens_, first, last, out_ + of.at + first * kPanel, stride_, path);
        });
    }

    // What multiply reads.
    void add_to(Path& path, int64_t begin, int64_t end) const {
        each(begin, end, [&](const Product& of, int first, int last) {
            const int64_t bytes = panel_bytes(of.matrix->type, of.matrix->columns);
            path.add(of.matrix->panels + first * bytes, (last - first) * bytes);
        });
    }

    // Where a token's rows of a panel go.
    float* out_of(const Product& of, int token, int panel) const { return out_ + token * stride_ + of.at + panel * kPanel; }
    int64_t stride() const { return stride_; }

    // What [begin, end) is of each matrix.
    template <class F>
    void each(int64_t begin, int64_t end, const F& what) const {
        for (const Product& of : std::span(products_, count_)) {
            const int64_t own = of.matrix->panel_count();
            const int64_t first = std::clamp<int64_t>(begin, 0, own), last = std::clamp<int64_t>(end, 0, own);
            if (first < last) what(of, static_cast<int>(first), static_cast<int>(last));
            begin -= own;
            end -= own;
        }
    }

  private:
    Product products_[8]{};
    const size_t count_;
    const Vectors& in_;
    const int tokens_;
    float* const out_;
    const int64_t stride_;
    int64_t panels_ = 0;
};

// Observed and edited values of a forward pass, by layer and value; of one value in their order. Most have none.
template <class T>
class ByValue {
  public:
    ByValue(const T* all, int count, int layers) {
        if (count == 0) return;
        first_.assign(static_cast<size_t>(layers) * kWhats + 1, 0);
        for (const T& one : std::span(all, static_cast<size_t>(count))) {
            if (one.layer < layers) sorted_.push_back(&one);
        }
        std::stable_sort(sorted_.begin(), sorted_.end(), [](const T* a, const T* b) { return place(*a) < place(*b); });
        for (const T* one : sorted_) ++first_[place(*one) + 1];
        for (size_t i = 1; i < first_.size(); ++i) first_[i] += first_[i - 1];
    }
    bool empty() const { return first_.empty(); }
    std::span<const T* const> of(What what, int layer) const {
        if (first_.empty() || what < 0) return {};
        const size_t at = static_cast<size_t>(layer) * kWhats + static_cast<size_t>(what);
        return std::span(sorted_).subspan(first_[at], first_[at + 1] - first_[at]);
    }

  private:
    static size_t place(const T& of) { return static_cast<size_t>(of.layer) * kWhats + static_cast<size_t>(of.what); }
    std::vector<const T*> sorted_;
    std::vector<size_t> first_;
};

class Step {
    // A thread that walks through the phases, and where it is.
    struct Worker {
        int index, count;
        Path* path;
        size_t phase = 0, stage = 0;
    };

  public:
    Step(const Model& model, const Reading& reading, const Observation& seen, int threads)
        : model_(model), reading_(reading), edits_(seen.edits, seen.edit_count, model.layer_count),
          values_(seen.values, seen.value_count, model.layer_count), tokens_(reading.starts[reading.sequences]),
          most_shares_(std::clamp(threads, 1, kShares)) {
        measure();
        allocate();
        cut();
    }

    void work(int index, int workers) {
        static thread_local Path path;
        // With more vectors panels are read several times over.
        const bool once = tokens_ <= kFew && workers <= most_shares_ && prefetch() > kEightBits;
        Worker worker{index, workers, once ? &path : nullptr};
        if (once) foresee(worker);
        each(worker, tokens_, tokens_at_once(worker), [&](int64_t token) { begin(token); });
        if (model_.per_layer.projection.rows > 0) embed_layers(worker);
        for (int i = 0; i < model_.layer_count; ++i) layer(model_.layers[i], i, worker);
        head(worker);
    }

  private:
    // Pieces [begin, end) of `count`, the share of one worker.
    struct Part {
        int64_t begin, end;
    };
    static Part part_of(int share, int shares, int64_t count) {
        return {count * share / shares, count * (share + 1) / shares};
    }
    static Part part_of(const Worker& worker, int64_t count) { return part_of(worker.index, worker.count, count); }

    // Calls what(begin, end, own) for parts of [0, count), whole pieces of `piece`, and then(), once; returns when all is
    // done. `own`: whether a part belongs to the worker's own share.
    template <class F, class G>
    void share_out(Worker& worker, int64_t count, int64_t piece, const F& what, const G& then) {
        const size_t at = worker.phase++;
        if (count == 0) return;
        Phase& phase = phases_[at];
        const int64_t pieces = (count + piece - 1) / piece;
        const int shares = std::min(worker.count, most_shares_);
        for (int i = 0; i < shares && !phase.over.load(std::memory_order_acquire); ++i) {
            const int share = (worker.index + i) % shares;
            const Part part = part_of(share, shares, pieces);
            int64_t begin = 0, end = 0, done = 0;
            while (shares_[at * most_shares_ + share].take(part.begin, part.end, i == 0, begin, end)) {
                what(begin * piece, std::min(count, end * piece), i == 0);
                done += end - begin;
            }
            if (done == 0 || phase.done.fetch_add(done, std::memory_order_acq_rel) + done < pieces) continue;
            then();
            phase.over.store(true, std::memory_order_release);
        }
        for (int spins = 0; !phase.over.load(std::memory_order_acquire); ++spins) {
            if (worker.path != nullptr && worker.path->some()) continue;
            if (spins < kSpins) relax();
            else std::this_thread::yield();
        }
    }

    // Calls what(i) for 0 <= i < count, at least `piece` of them to a worker at a time, and then(), once.
    template <class F, class G>
    void each(Worker& worker, int64_t count, int64_t piece, const F& what, const G& then) {
        const auto all = [&](int64_t begin, int64_t end, bool) {
            for (int64_t i = begin; i < end; ++i) what(i);
        };
        share_out(worker, count, piece, all, then);
    }
    template <class F>
    void each(Worker& worker, int64_t count, int64_t piece, const F& what) {
        each(worker, count, piece, what, [] {});
    }

    // Does a phase, and then after(token) for each token: by all workers; a single token's by the worker that ends the
    // phase.
    template <class F, class G>
    void and_tokens(Worker& worker, const F& phase, const G& after) {
        if (tokens_ == 1) return phase([&] { after(0); });
        phase([] {});
        each(worker, tokens_, tokens_at_once(worker), after);
    }

    // The stages of a worker's path are the phases that read matrices or the state, in their order.
    void foresee(const Worker& worker) {
        Path& path = *worker.path;
        path.clear();
        const auto add = [&](const Rows& rows) {
            const Part part = part_of(worker, rows.panels());
            path.add_stage();
            rows.add_to(path, part.begin, part.end);
        };
        if (model_.per_layer.projection.rows > 0) add(per_layer_rows());
        for (int i = 0; i < model_.layer_count; ++i) {
            const Layer& layer = model_.layers[i];
            if (layer.attends()) {
                const Latent& latent = layer.latent;
                add(head_rows(layer));
                if (latent.query.rows > 0) add(latent_rows(layer));
                if (latent.size > 0) add_heads(worker, latent.key_up, layer.heads);
                path.add_stage();
                const Part looks = part_of(worker, looks_of(layer));
                for (int64_t i = looks.begin; i < looks.end; ++i) add_state(path, layer, i);
                if (latent.size > 0) add_heads(worker, latent.value_up, layer.heads);
            }
            if (layer.recurrence.kind != kNoRecurrence) {
                add(recurrent_rows(layer.recurrence));
                for (int i = 0; i < 2 && layer.recurrence.gate_up.rows > 0; ++i) add(lifted_rows(layer.recurrence, i));
                add(recurrent_out_rows(layer));
            }
            if (layer.attends()) add(out_rows(layer));
            if (layer.up.rows > 0) {
                path.add_stage();
                const Part hidden = part_of(worker, groups_of(layer.up));
                for (int64_t group = hidden.begin; group < hidden.end; ++group) {
                    for (const Matrix* each : {&layer.gate, &layer.up}) add_neurons(path, *each, group);
                }
                add(down_rows(layer));
            }
            if (layer.per_layer.gate.rows == 0) continue;
            add(gate_rows(layer));
            add(own_rows(layer));
        }
        path.add_stage();
        const Part panels = part_of(worker, model_.head.panel_count());
        const int64_t bytes = panel_bytes(model_.head.type, model_.head.columns);
        path.add(model_.head.panels + panels.begin * bytes, (panels.end - panels.begin) * bytes);
    }

    // A stage of a matrix of each head, stored side by side.
    static void add_heads(const Worker& worker, const Matrix& first, int heads) {
        const int64_t bytes = panel_bytes(first.type, first.columns);
        const Part part = part_of(worker, static_cast<int64_t>(heads) * first.panel_count());
        worker.path->add_stage();
        worker.path->add(first.panels + part.begin * bytes, (part.end - part.begin) * bytes);
    }

    // The next stage of the worker's path begins.
    static void arrive(Worker& worker) {
        if (worker.path != nullptr) worker.path->begin(worker.stage++);
    }

    // A phase of products.
    template <class G>
    void multiply(Worker& worker, const Rows& rows, const G& then) {
        arrive(worker);
        const auto some = [&](int64_t begin, int64_t end, bool own) {
            rows.multiply(begin, end, own ? worker.path : nullptr);
        };
        share_out(worker, rows.panels(), 1, some, then);
    }

    Rows head_rows(const Layer& layer) const {
        return {{{&layer.query, 0, &LayerAdapter::query},
                 {&layer.key, key_at(layer), &LayerAdapter::key},
                 {&layer.value, value_at(layer), &LayerAdapter::value},
                 {&layer.output_gate, gate_at(layer), nullptr},
                 {&layer.latent.index.key, index_at(layer), nullptr},
                 {&layer.latent.index.weight, index_weight_at(layer), nullptr},
                 {layer.latent.query.rows > 0 ? &kNone : &layer.latent.index.query, index_query_at(layer), nullptr}},
                in_, tokens_, heads_out_, heads_stride_};
    }
    Rows latent_rows(const Layer& layer) const {
        return {{{&layer.latent.query, latent_at(layer), nullptr},
                 {&layer.latent.index.query, index_query_at(layer), nullptr}},
                asked_, tokens_, heads_out_, heads_stride_};
    }
    Rows recurrent_rows(const Recurrence& of) const {
        const Places at = places(of);
        return {{{&of.query, at.query, nullptr},
                 {&of.key, at.key, nullptr},
                 {&of.value, at.value, nullptr},
                 {&of.gate, at.gate, nullptr},
                 {&of.step, at.step, nullptr},
                 {&of.beta, at.beta, nullptr}},
                in_, tokens_, projected_, projected_stride_};
    }
    // The second matrix of a recurrence's gate (0), or of its steps (1).
    Rows lifted_rows(const Recurrence& of, int which) const {
        const Places at = places(of);
        return {{{which == 0 ? &of.gate_up : &of.step_up, which == 0 ? at.gate_up : at.step_up, nullptr}},
                narrow_[which], tokens_, projected_, projected_stride_};
    }
    Rows recurrent_out_rows(const Layer& layer) const {
        float* out = layer.attends() ? beside_ : out_;
        return {{{&layer.recurrence.out, 0, nullptr}}, recurrent_, tokens_, out, width_stride_};
    }
    Rows out_rows(const Layer& layer) const {
        return {{{&layer.out, 0, &LayerAdapter::out}}, mixed_, tokens_, out_, width_stride_};
    }
    Rows down_rows(const Layer& layer) const {
        return {{{&layer.down, 0, &LayerAdapter::down}}, hidden_, tokens_, out_, width_stride_};
    }

    Rows per_layer_rows() const { return {{{&model_.per_layer.projection, 0, nullptr}}, in_, tokens_, own_, own_stride_}; }
    Rows gate_rows(const Layer& layer) const {
        return {{{&layer.per_layer.gate, 0, nullptr}}, in_, tokens_, gates_, gates_stride_};
    }
    Rows own_rows(const Layer& layer) const {
        return {{{&layer.per_layer.out, 0, nullptr}}, gated_, tokens_, out_, width_stride_};
    }

    // A phase of products, and what adapters change of them.
    template <class G>
    void multiply_adapted(Worker& worker, const Rows& rows, int layer, Matrix LayerAdapter::*a, const G& then) {
        if (runs_.empty()) return multiply(worker, rows, then);
        multiply(worker, rows, [] {});
        reduce(worker, layer, a, rows.in());
        const auto some = [&](int64_t begin, int64_t end, bool) {
            rows.each(begin, end, [&](const Product& of, int first, int last) {
                for (const Run& run : of.change == nullptr ? std::span<const Run>() : std::span(runs_)) {
                    change(run.layers[layer].*of.change, run, first, last, rows.out_of(of, run.first, first), rows.stride());
                }
            });
        };
        share_out(worker, rows.panels(), 1, some, then);
    }

    // A phase: A x of a layer's matrices that read the same vectors, for every run. A piece is a panel and some tokens.
    void reduce(Worker& worker, int layer, Matrix LayerAdapter::*a, const Vectors& in) {
        const auto tiles = [](const Run& run) { return rounded(run.last - run.first, kTileTokens) / kTileTokens; };
        int64_t pieces = 0;
        for (const Run& run : runs_) pieces += tiles(run) * (run.layers[layer].*a).panel_count();
        const auto one = [&](int64_t piece) {
            for (const Run& run : runs_) {
                const Matrix& by = run.layers[layer].*a;
                const int64_t own = tiles(run) * by.panel_count();
                if (piece >= own) {
                    piece -= own;
                    continue;
                }
                const auto panel = static_cast<int>(piece / tiles(run));
                const int first = run.first + static_cast<int>(piece % tiles(run)) * kTileTokens;
                const Run tile = {run.layers, first, std::min(run.last, first + kTileTokens)};
                cutaway::multiply(by, floats(in.x + first * in.width, in.width, tile), tile.last - first, panel, panel + 1,
                                  reduced_ + first * reduced_stride_ + panel * kPanel, reduced_stride_);
                return;
            }
        };
        each(worker, pieces, 1, one);
    }

    // The vectors of a run, which only matrices of floats read.
    static Vectors floats(float* x, int64_t width, const Run& run) {
        return {x, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, width, run.last - run.first};
    }

    // y = factor (y + B (A x)) for the rows of the panels [first, last) of a run's tokens, which are stored from `out` on.
    void change(const Change& by, const Run& run, int first, int last, float* out, int64_t stride) const {
        const int64_t rows = (last - first) * kPanel, count = run.last - run.first;
        if (by.b.rows > 0) {
            static thread_local std::vector<float> room;
            room.resize(static_cast<size_t>(count * rows));
            const Vectors in = floats(reduced_ + run.first * reduced_stride_ + by.at, reduced_stride_, run);
            cutaway::multiply(by.b, in, static_cast<int>(count), first, last, room.data(), rows);
            for (int64_t i = 0; i < count; ++i) {
                for (int64_t row = 0; row < rows; ++row) out[i * stride + row] += room[static_cast<size_t>(i * rows + row)];
            }
        }
        for (int64_t i = 0; by.factor != nullptr && i < count; ++i) {
            for (int64_t row = 0; row < rows; ++row) out[i * stride + row] *= by.factor[first * kPanel + row];
        }
    }

    // Where keys and values are, after a token's queries.
    static int64_t key_at(const Layer& layer) { return rounded(layer.query.rows, kPanel); }
    static int64_t value_at(const Layer& layer) { return key_at(layer) + rounded(layer.key.rows, kPanel); }
    static int64_t gate_at(const Layer& layer) { return value_at(layer) + rounded(layer.value_rows(), kPanel); }
    // Where queries are that come out of a latent, after that and the row of the cache.
    static int64_t latent_at(const Layer& layer) { return value_at(layer); }
    // Where the key, the heads' weights and the queries of an indexer are, after those.
    static int64_t index_at(const Layer& layer) { return latent_at(layer) + rounded(layer.latent.query.rows, kPanel); }
    static int64_t index_weight_at(const Layer& layer) { return index_at(layer) + rounded(layer.latent.index.key.rows, kPanel); }
    static int64_t index_query_at(const Layer& layer) {
        return index_weight_at(layer) + rounded(layer.latent.index.weight.rows, kPanel);
    }

    // Where the rows of a recurrence's matrices are in a token's, and where they end.
    struct Places {
        int64_t query, key, value, gate, step, beta, gate_up, step_up, end;
    };
    static Places places(const Recurrence& of) {
        int64_t at[9] = {};
        const Matrix* all[] = {&of.query, &of.key, &of.value, &of.gate, &of.step, &of.beta, &of.gate_up, &of.step_up};
        for (int i = 0; i < 8; ++i) at[i + 1] = at[i] + rounded(all[i]->rows, kPanel);
        return {at[0], at[1], at[2], at[3], at[4], at[5], at[6], at[7], at[8]};
    }

    // Groups of 32 neurons.
    static int64_t groups_of(const Matrix& matrix) { return rounded(matrix.rows, kGroup) / kGroup; }

    // How many pieces of work attention is.
    int64_t looks_of(const Layer& layer) const { return static_cast<int64_t>(pieces_.size()) * layer.groups; }

    // How many tokens of a long prompt one piece of work takes: up to 16, whose scales share a cache line.
    int64_t tokens_at_once(const Worker& worker) const { return std::clamp<int64_t>(tokens_ / (4 * worker.count), 1, 16); }

    static void relax() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("yield");
#endif
    }

    void measure() {
        with_bf16_ = model_.head.type == kBF16;
        for (int i = 0; i < model_.layer_count; ++i) {
            const Layer& layer = model_.layers[i];
            heads_stride_ = std::max(heads_stride_, gate_at(layer) + rounded(layer.output_gate.rows, kPanel));
            const Latent& latent = layer.latent;
            if (latent.size > 0) {
                heads_stride_ = std::max(heads_stride_, index_query_at(layer) + rounded(latent.index.query.rows, kPanel));
                chooses_ |= latent.index.chooses();
                for (const Matrix* each : {&latent.index.query, &latent.index.key, &latent.index.weight}) {
                    with_bf16_ |= each->type == kBF16;
                }
                asked_width_ = std::max<int64_t>(asked_width_, latent.query.columns);
                latent_width_ = std::max<int64_t>({latent_width_, latent.key_up.columns, latent.value_up.columns});
                latent_heads_ = std::max(latent_heads_, layer.heads);
                absorbed_stride_ = std::max(absorbed_stride_, static_cast<int64_t>(layer.heads) * layer.key_size);
                lifted_stride_ = std::max(lifted_stride_, layer.heads * rounded(latent.value_size, kPanel));
                for (const Matrix* each : {&latent.query, &latent.key_up, &latent.value_up}) with_bf16_ |= each->type == kBF16;
            }
            const Recurrence& recurrence = layer.recurrence;
            if (recurrence.kind != kNoRecurrence) {
                projected_stride_ = std::max(projected_stride_, places(recurrence).end);
                recurrent_width_ = std::max<int64_t>(recurrent_width_, recurrence.out.columns);
                if (recurrence.gate_up.rows > 0) {
                    narrow_width_ = std::max<int64_t>({narrow_width_, recurrence.gate_up.columns, recurrence.step_up.columns});
                }
                beside_stride_ = layer.attends() ? rounded(model_.width, kPanel) : beside_stride_;
                for (const Matrix* each : {&recurrence.query, &recurrence.key, &recurrence.value, &recurrence.gate,
                                           &recurrence.step, &recurrence.beta, &recurrence.out, &recurrence.gate_up,
                                           &recurrence.step_up}) {
                    with_bf16_ |= each->type == kBF16;
                }
            }
            if (layer.differential()) sides_stride_ = std::max(sides_stride_, static_cast<int64_t>(layer.heads) * layer.value_size);
            gates_stride_ = std::max(gates_stride_, rounded(layer.per_layer.gate.rows, kPanel));
            for (const Matrix* each : {&layer.per_layer.gate, &layer.per_layer.out}) with_bf16_ |= each->type == kBF16;
            mixed_width_ = std::max<int64_t>(mixed_width_, layer.out.columns);
            hidden_width_ = std::max<int64_t>(hidden_width_, layer.down.columns);
            value_stride_ = std::max(value_stride_, layer.value_stride());
            heads_ = std::max(heads_, layer.heads);
            for (const Matrix* each :
                 {&layer.query, &layer.key, &layer.value, &layer.out, &layer.gate, &layer.up, &layer.down, &layer.output_gate}) {
                with_bf16_ |= each->type == kBF16;
            }
            const Mixture& mixture = layer.mixture;
            if (mixture.experts == nullptr) continue;
            top_k_ = std::max<int64_t>(top_k_, mixture.top_k);
            routed_stride_ = std::max(routed_stride_, rounded(mixture.router.rows, kPanel) + kPanel);
            inside_width_ = std::max<int64_t>(inside_width_, mixture.experts[0].down.columns);
            for (int e = 0; e < mixture.count; ++e) {
                const Expert& expert = mixture.experts[e];
                for (const Matrix* each : {&expert.gate, &expert.up, &expert.down}) with_bf16_ |= each->type == kBF16;
            }
        }
        for (int i = 0; i < model_.rotation_count; ++i) {
            rotation_at_.push_back(rotation_stride_);
            rotation_stride_ += 2 * model_.rotations[i].pairs;
        }
        width_stride_ = rounded(model_.width, kPanel);
        own_stride_ = rounded(model_.per_layer.projection.rows, kPanel);
        with_bf16_ |= own_stride_ > 0 && model_.per_layer.projection.type == kBF16;
        for (int s = 0; reading_.adapters != nullptr && s < reading_.sequences; ++s) {
            const LayerAdapter* layers = reading_.adapters[s];
            const int first = reading_.starts[s], last = reading_.starts[s + 1];
            if (layers == nullptr) continue;
            if (!runs_.empty() && runs_.back().layers == layers && runs_.back().last == first) {
                runs_.back().last = last;
                continue;
            }
            runs_.push_back({layers, first, last});
            for (int i = 0; i < model_.layer_count; ++i) {
                for (const Matrix* a : {&layers[i].heads_in, &layers[i].out_in, &layers[i].mlp_in, &layers[i].down_in}) {
                    reduced_stride_ = std::max(reduced_stride_, rounded(a->rows, kPanel));
                }
            }
        }
    }

    void allocate() {
        const int64_t phases = kPhases * model_.layer_count + kOtherPhases;
        phases_ = scratch_.take<Phase>(phases);
        shares_ = scratch_.take<Share>(phases * most_shares_);
        x_ = scratch_.take<float>(tokens_ * width_stride_);
        in_ = scratch_.vectors(tokens_, model_.width, with_bf16_);
        mixed_ = scratch_.vectors(tokens_, mixed_width_, with_bf16_);
        hidden_ = scratch_.vectors(tokens_, hidden_width_, with_bf16_);
        out_ = scratch_.take<float>(tokens_ * width_stride_);
        heads_out_ = scratch_.take<float>(tokens_ * heads_stride_);
        rotations_ = scratch_.take<float>(tokens_ * rotation_stride_);
        reduced_ = scratch_.take<float>(tokens_ * reduced_stride_);
        if (latent_heads_ > 0) {
            asked_ = scratch_.vectors(tokens_, asked_width_, with_bf16_);
            by_head_ = scratch_.vectors(latent_heads_ * tokens_, latent_width_, with_bf16_);
            absorbed_ = scratch_.take<float>(tokens_ * absorbed_stride_);
            lifted_ = scratch_.take<float>(tokens_ * lifted_stride_);
        }
        if (sides_stride_ > 0) sides_ = scratch_.take<float>(tokens_ * sides_stride_);
        if (own_stride_ > 0) {
            own_ = scratch_.take<float>(tokens_ * own_stride_);
            gates_ = scratch_.take<float>(tokens_ * gates_stride_);
            gated_ = scratch_.vectors(tokens_, model_.per_layer.size, with_bf16_);
        }
        if (projected_stride_ > 0) {
            projected_ = scratch_.take<float>(tokens_ * projected_stride_);
            recurrent_ = scratch_.vectors(tokens_, recurrent_width_, with_bf16_);
            beside_ = scratch_.take<float>(tokens_ * beside_stride_);
            for (Vectors& each : narrow_) {
                if (narrow_width_ > 0) each = scratch_.vectors(tokens_, narrow_width_, with_bf16_);
            }
        }
        if (top_k_ > 0) {
            const int64_t chosen = tokens_ * top_k_;
            routed_ = scratch_.take<float>(tokens_ * routed_stride_);
            read_ = scratch_.vectors(chosen, model_.width, with_bf16_);
            inside_ = scratch_.vectors(chosen, inside_width_, with_bf16_);
            expert_out_ = scratch_.take<float>(chosen * width_stride_);
            slots_.resize(static_cast<size_t>(chosen));
            asked_by_.resize(static_cast<size_t>(chosen));
            weights_.resize(static_cast<size_t>(chosen));
            busy_count_.resize(static_cast<size_t>(model_.layer_count));
        }
        last_ = scratch_.vectors(head_parts() * reading_.logits_count, model_.width, with_bf16_);
        if (some_return()) inputs_ = scratch_.take<float>(tokens_ * width_stride_);
        if (reading_.after != nullptr) kept_ = scratch_.take<float>(reading_.logits_count * width_stride_);
    }

    // One new token of a long text is shared out by pages; several are shared out by themselves.
    void cut() {
        sequence_of_.resize(static_cast<size_t>(tokens_));
        slot_of_.assign(static_cast<size_t>(tokens_), -1);
        int64_t slots = 0;
        for (int s = 0; s < reading_.sequences; ++s) {
            const int first = reading_.starts[s], last = reading_.starts[s + 1];
            std::fill(sequence_of_.begin() + first, sequence_of_.begin() + last, s);
            if (last - first == 1) {
                const int pages = reading_.positions[s] / kPage + 1;
                slot_of_[static_cast<size_t>(first)] = slots;
                for (int page = 0; page < pages; ++page) pieces_.push_back({s, first, last, page});
                slots += pages;
                continue;
            }
            for (int token = first; token < last; token += kTileTokens) {
                pieces_.push_back({s, token, std::min(last, token + kTileTokens), -1});
            }
        }
        if (chooses_) {
            int most = 0;
            for (int token = 0; token < tokens_; ++token) most = std::max(most, position(token) / kPage + 1);
            chosen_stride_ = 2 * most;
            chosen_ = scratch_.take<uint64_t>(tokens_ * chosen_stride_);
            index_scores_ = scratch_.take<float>(slots * kPage);
        }
        partial_ = scratch_.take<float>(slots * heads_ * value_stride_);
        partial_seen_ = scratch_.take<Gathered>(slots * heads_);
    }

    bool some_return() const {
        for (int i = 0; !edits_.empty() && i < model_.layer_count; ++i) {
            const auto edits = edits_.of(kOut, i);
            if (std::any_of(edits.begin(), edits.end(), [](const Edit* by) { return by->how == kReturn; })) return true;
        }
        return false;
    }

    int position(int64_t token) const {
        const int s = sequence_of_[static_cast<size_t>(token)];
        return reading_.positions[s] + static_cast<int>(token) - reading_.starts[s];
    }

    // The embedding of a token, the cosines and sines of its position, and the input of the first layer.
    void begin(int64_t token) {
        float* x = x_ + token * width_stride_;
        const int64_t id = reading_.ids[token];
        if (model_.embedding == nullptr) {
            unpack_row(model_.head, id, x);
        } else {
            cutaway_unpack(model_.embedding_type, model_.embedding + id * model_.embedding_row, model_.width, x, 1);
        }
        if (model_.embedding_scale != 1.0f) {
            for (int i = 0; i < model_.width; ++i) x[i] *= model_.embedding_scale;
        }
        if (model_.positions != nullptr) {
            const float* own = model_.positions + static_cast<int64_t>(position(token)) * model_.width;
            for (int i = 0; i < model_.width; ++i) x[i] += own[i];
        }
        norm(model_.embedding_norm, x, model_.width, x);
        for (int t = 0; t < model_.rotation_count; ++t) {
            const Rotation& rotation = model_.rotations[t];
            const bool longer = rotation.longer != nullptr && reading_.longer != nullptr &&
                                reading_.longer[sequence_of_[static_cast<size_t>(token)]] != 0;
            const double* radians = longer ? rotation.longer : rotation.radians;
            float* cosines = rotations_ + token * rotation_stride_ + rotation_at_[static_cast<size_t>(t)];
            for (int i = 0; i < rotation.pairs; ++i) {
                const double angle = position(token) * radians[i];
                cosines[i] = static_cast<float>(std::cos(angle) * rotation.magnitude);
                cosines[rotation.pairs + i] = static_cast<float>(std::sin(angle) * rotation.magnitude);
            }
        }
        see(kEmbed, 0, token, x, model_.width);
        keep_input(token, 0);
        if (model_.per_layer.projection.rows > 0) read(token, {});
        else if (model_.layer_count > 0) read(token, model_.layers[0].attention_norm, kAttentionNorm, 0);
    }

    // The embeddings that each block has of the tokens.
    void embed_layers(Worker& worker) {
        const auto project = [&](const auto& then) { multiply(worker, per_layer_rows(), then); };
        and_tokens(worker, project, [&](int64_t token) {
            static thread_local std::vector<float> room;
            const PerLayer& of = model_.per_layer;
            const int64_t count = of.projection.rows;
            room.resize(static_cast<size_t>(count));
            cutaway_unpack(of.type, of.table + reading_.ids[token] * of.row, count, room.data(), 1);
            float* own = own_ + token * own_stride_;
            for (int64_t i = 0; i < count; ++i) own[i] *= of.projection_scale;
            for (int64_t i = 0; i < count; i += of.size) norm(of.norm, own + i, of.size, own + i);
            for (int64_t i = 0; i < count; ++i) own[i] = (own[i] + room[static_cast<size_t>(i)] * of.table_scale) * of.scale;
            if (model_.layer_count > 0) read(token, model_.layers[0].attention_norm, kAttentionNorm, 0);
        });
    }

    // Adds a block's own embedding of each token, then calls after(token).
    template <class G>
    void add_own(const Layer& layer, int index, Worker& worker, const G& after) {
        const PerLayerInput& of = layer.per_layer;
        const int64_t size = model_.per_layer.size;
        const auto gate = [&](const auto& then) { multiply(worker, gate_rows(layer), then); };
        and_tokens(worker, gate, [&](int64_t token) {
            float* gates = gates_ + token * gates_stride_;
            const float* own = own_ + token * own_stride_ + index * size;
            float* to = gated_.x + token * gated_.width;
            activate({nullptr, layer.activation.kind, 0.0f}, gates, nullptr, rounded(size, kPanel));
            for (int64_t i = 0; i < size; ++i) to[i] = gates[i] * own[i];
            quantize({to, gated_.width, token, 1}, 0, gated_.width / kGroup, gated_);
        });
        const auto add = [&](const auto& then) { multiply(worker, own_rows(layer), then); };
        and_tokens(worker, add, [&](int64_t token) {
            float *out = out_ + token * width_stride_, *x = x_ + token * width_stride_;
            norm(of.norm, out, model_.width, out);
            for (int i = 0; i < model_.width; ++i) x[i] += out[i];
            after(token);
        });
    }

    // The residual stream, normed, for the next matrices: a value of a layer, where it has a name.
    void read(int64_t token, const Norm& by, What what = kUnnamed, int layer = 0) {
        norm(by, x_ + token * width_stride_, model_.width, in_.x + token * in_.width);
        see(what, layer, token, in_.x + token * in_.width, model_.width);
        quantize_vector(in_, token);
    }

    // What a matrix gives a token, with its bias, which is a value of a layer; multiplied.
    void finish_output(const Matrix& by, float scale, float* out, What what, int layer, int64_t token) const {
        for (int i = 0; by.bias != nullptr && i < model_.width; ++i) out[i] += by.bias[i];
        see(what, layer, token, out, model_.width);
        for (int i = 0; scale != 1.0f && i < model_.width; ++i) out[i] *= scale;
    }

    // What a layer's mixers give a token.
    void finish_mixed(const Layer& layer, int index, int64_t token) const {
        float* out = out_ + token * width_stride_;
        if (layer.attends()) finish_output(layer.out, layer.output, out, kMixedOut, index, token);
        if (layer.recurrence.kind == kNoRecurrence) return;
        float* more = (layer.attends() ? beside_ : out_) + token * width_stride_;
        const What what = layer.attends() ? kBesideOut : kMixedOut;
        finish_output(layer.recurrence.out, layer.recurrent_output, more, what, index, token);
        for (int i = 0; layer.attends() && i < model_.width; ++i) out[i] += more[i];
    }

    // The output of the mixers or of the MLP is added to the residual stream.
    void add_output(const Layer& layer, int64_t token, const Norm& post_norm, What what, int index) {
        float* out = out_ + token * width_stride_;
        float* x = x_ + token * width_stride_;
        norm(post_norm, out, model_.width, out);
        see(what, index, token, out, model_.width);
        for (int i = 0; layer.residual != 1.0f && i < model_.width; ++i) out[i] *= layer.residual;
        for (int i = 0; i < model_.width; ++i) x[i] += out[i];
    }

    // The pieces of attention, and then after(token).
    template <class G>
    void look_and(const Layer& layer, Worker& worker, const G& after) {
        const auto look = [&](const auto& then) {
            arrive(worker);
            const auto some = [&](int64_t begin, int64_t end, bool own) {
                for (int64_t i = begin; i < end; ++i) {
                    if (own && worker.path != nullptr) pass_state(*worker.path, layer, i);
                    attend(layer, pieces_[static_cast<size_t>(i / layer.groups)], static_cast<int>(i % layer.groups));
                }
            };
            share_out(worker, looks_of(layer), 1, some, then);
        };
        and_tokens(worker, look, [&](int64_t token) {
            if (slot_of_[static_cast<size_t>(token)] >= 0) gather(layer, token);
            after(token);
        });
    }

    // Latent attention of all heads, ready for the output's matrix.
    void attend_latents(const Layer& layer, int index, Worker& worker) {
        const Latent& of = layer.latent;
        const auto project = [&](const auto& then) { multiply(worker, head_rows(layer), then); };
        and_tokens(worker, project, [&](int64_t token) {
            store_latent(layer, index, token);
            if (of.query.rows > 0) ask_for_queries(layer, token);
            else cut_queries(layer, index, token, 0);
        });
        const auto query = [&](const auto& then) { multiply(worker, latent_rows(layer), then); };
        if (of.query.rows > 0) {
            and_tokens(worker, query, [&](int64_t token) { cut_queries(layer, index, token, latent_at(layer)); });
        }
        if (of.index.chooses()) choose_positions(layer, worker);
        multiply_heads(worker, layer.heads, of.key_up, absorbed_, layer.key_size, absorbed_stride_, [] {});
        look_and(layer, worker, [&](int64_t token) {
            rewrite(layer, index, token);
            for (int head = 0; head < layer.heads; ++head) quantize_vector(vectors_of(of.value_up, head), token);
        });
        const int64_t stride = rounded(of.value_size, kPanel), groups = rounded(layer.out.columns, kGroup) / kGroup;
        const auto lift = [&](const auto& then) {
            multiply_heads(worker, layer.heads, of.value_up, lifted_, stride, lifted_stride_, then);
        };
        and_tokens(worker, lift, [&](int64_t token) {
            float* mixed = mixed_.x + token * mixed_.width;
            for (int head = 0; head < layer.heads; ++head) {
                std::copy_n(lifted_ + token * lifted_stride_ + head * stride, of.value_size, mixed + head * of.value_size);
            }
            see(kMixed, index, token, mixed, layer.out.columns);
            quantize({mixed, mixed_.width, token, 1}, 0, groups, mixed_);
        });
        watch(layer, index, worker);
    }

    // The vectors of a head that its matrix reads, a row each token.
    Vectors vectors_of(const Matrix& by, int head) const {
        const int64_t width = rounded(by.columns, kGroup);
        Vectors all = by_head_;
        all.width = width;
        return part(all, {head, static_cast<int64_t>(head) * tokens_, tokens_});
    }

    // A phase: the matrix of each head, stored side by side, times that head's vectors.
    template <class G>
    void multiply_heads(Worker& worker, int heads, const Matrix& first, float* out, int64_t head_stride, int64_t stride,
                        const G& then) {
        arrive(worker);
        const int64_t panels = first.panel_count(), bytes = panels * panel_bytes(first.type, first.columns);
        const auto some = [&](int64_t begin, int64_t end, bool own) {
            while (begin < end) {
                const int64_t head = begin / panels, last = std::min(end, (head + 1) * panels);
                Matrix matrix = first;
                matrix.panels += head * bytes;
                const auto from = static_cast<int>(begin - head * panels), to = static_cast<int>(last - head * panels);
                cutaway::multiply(matrix, vectors_of(first, static_cast<int>(head)), tokens_, from, to,
                                  out + head * head_stride + from * kPanel, stride, own ? worker.path : nullptr);
                begin = last;
            }
        };
        share_out(worker, heads * panels, 1, some, then);
    }

    // A token's row of the cache: the normed latent, and the rotated part.
    void store_latent(const Layer& layer, int index, int64_t token) {
        static thread_local std::vector<float> room;
        const Latent& of = layer.latent;
        float* from = heads_out_ + token * heads_stride_ + key_at(layer);
        norm(layer.key_norm, from, of.size, from);
        rotate(layer, token, from + of.size);
        see(kLatent, index, token, from, of.size + of.rope);
        room.assign(static_cast<size_t>(layer.key_size), 0.0f);
        std::copy_n(from, of.size, room.data());
        std::copy_n(from + of.size, of.rope, room.data() + layer.value_stride());
        const int at = position(token);
        const PageOf page = page_of(layer, sequence_of_[static_cast<size_t>(token)], at / kPage, 0);
        store_value(page, layer.key_size, at % kPage, room.data());
        if (of.index.chooses()) store_index(layer, token);
    }

    // A token's key of the indexer, normed and rotated half-split, in the cache; and its queries and weights, scaled.
    void store_index(const Layer& layer, int64_t token) {
        const Indexer& of = layer.latent.index;
        float* all = heads_out_ + token * heads_stride_;
        float* key = all + index_at(layer);
        norm(of.norm, key, of.size, key);
        rotate(layer, token, key, true);
        const int at = position(token);
        store_key(index_page(layer, sequence_of_[static_cast<size_t>(token)], at / kPage), at % kPage, key);
        float* weights = all + index_weight_at(layer);
        for (int head = 0; head < of.heads; ++head) weights[head] *= of.weight_scale;
    }

    // The keys of a layer's indexer in a page.
    PageOf index_page(const Layer& layer, int sequence, int page) const {
        const Indexer& of = layer.latent.index;
        uint16_t* at = reading_.pages[sequence][page] + of.page_offset;
        return {at, at, of.size, 0, layer.cache};
    }

    // A phase: which positions each token reads. A token alone is shared out by pages.
    void choose_positions(const Layer& layer, Worker& worker) {
        const Indexer& of = layer.latent.index;
        const auto fit = [&](const auto& then) {
            const auto some = [&](int64_t begin, int64_t end, bool) {
                for (int64_t i = begin; i < end; ++i) score_piece(layer, pieces_[static_cast<size_t>(i)]);
            };
            share_out(worker, static_cast<int64_t>(pieces_.size()), 1, some, then);
        };
        and_tokens(worker, fit, [&](int64_t token) {
            const int64_t slot = slot_of_[static_cast<size_t>(token)];
            if (slot >= 0) choose_best(of, token, index_scores_ + slot * kPage);
        });
    }

    void score_piece(const Layer& layer, const Piece& piece) {
        static thread_local std::vector<float> room;
        const Indexer& of = layer.latent.index;
        if (piece.page >= 0) {
            const int64_t slot = slot_of_[static_cast<size_t>(piece.first)] + piece.page;
            if (position(piece.first) >= of.top_k) score_index(layer, piece, piece.first, piece.page, index_scores_ + slot * kPage);
            return;
        }
        for (int token = piece.first; token < piece.last; ++token) {
            const int pages = position(token) / kPage + 1;
            room.resize(static_cast<size_t>(pages) * kPage);
            for (int page = 0; page < pages && position(token) >= of.top_k; ++page) {
                score_index(layer, piece, token, page, room.data() + page * kPage);
            }
            choose_best(of, token, room.data());
        }
    }

    // The indexer's scores of a page's positions for a token: heads are added in their order.
    void score_index(const Layer& layer, const Piece& piece, int token, int page, float* scores) const {
        const Indexer& of = layer.latent.index;
        const float* all = heads_out_ + token * heads_stride_;
        const float *weights = all + index_weight_at(layer), *queries = all + index_query_at(layer);
        const int count = std::min(position(token) + 1 - page * kPage, kPage);
        const PageOf keys = index_page(layer, piece.sequence, page);
        float fits[kPage];
        std::fill_n(scores, count, 0.0f);
        for (int head = 0; head < of.heads; ++head) {
            score_page(keys, {queries + head * of.size, 0, count}, 0.0f, fits);
            for (int s = 0; s < count; ++s) scores[s] += weights[head] * std::max(0.0f, fits[s]);
        }
        for (int s = 0; s < count; ++s) {
            if (std::isnan(scores[s])) scores[s] = -INFINITY;
        }
    }

    // Sets the bits of the top_k positions of a token's highest scores; of equal ones the earliest. `scores` are read where
    // there are more positions than that.
    void choose_best(const Indexer& of, int64_t token, const float* scores) {
        static thread_local std::vector<float> sorted;
        uint64_t* bits = chosen_ + token * chosen_stride_;
        const int count = position(token) + 1;
        std::fill_n(bits, chosen_stride_, 0);
        const auto set = [&](int s) { bits[s / 64] |= 1ull << s % 64; };
        if (count <= of.top_k) {
            for (int s = 0; s < count; ++s) set(s);
            return;
        }
        sorted.assign(scores, scores + count);
        std::nth_element(sorted.begin(), sorted.begin() + of.top_k - 1, sorted.end(), std::greater<>());
        const float least = sorted[static_cast<size_t>(of.top_k - 1)];
        auto left = of.top_k - std::count_if(scores, scores + count, [&](float score) { return score > least; });
        for (int s = 0; s < count; ++s) {
            if (scores[s] > least || (scores[s] == least && left-- > 0)) set(s);
        }
    }

    // The latent that a token's queries come out of, normed, for their matrix.
    void ask_for_queries(const Layer& layer, int64_t token) {
        const Latent& of = layer.latent;
        const float* from = heads_out_ + token * heads_stride_;
        float* to = asked_.x + token * asked_.width;
        norm(of.query_norm, from, of.query.columns, to);
        quantize({to, asked_.width, token, 1}, 0, rounded(of.query.columns, kGroup) / kGroup, asked_);
    }

    // Each head's query, scaled: what key_up reads, and the rotated part behind what that gives.
    void cut_queries(const Layer& layer, int index, int64_t token, int64_t at) {
        const Latent& of = layer.latent;
        float* query = heads_out_ + token * heads_stride_ + at;
        const int64_t size = of.key_size + of.rope;
        for (int head = 0; head < layer.heads; ++head) rotate(layer, token, query + head * size + of.key_size);
        see(kQuery, index, token, query, layer.heads * size);
        for (int head = 0; head < layer.heads; ++head, query += size) {
            for (int i = 0; i < size; ++i) query[i] *= layer.scale;
            const Vectors own = vectors_of(of.key_up, head);
            std::copy_n(query, of.key_size, own.x + token * own.width);
            quantize_vector(own, token);
            float* rotated = absorbed_ + token * absorbed_stride_ + head * layer.key_size + layer.value_stride();
            std::copy_n(query + of.key_size, of.rope, rotated);
        }
        const Indexer& by = of.index;
        float* own = heads_out_ + token * heads_stride_ + index_query_at(layer);
        for (int head = 0; by.chooses() && head < by.heads; ++head, own += by.size) {
            rotate(layer, token, own, true);
            for (int i = 0; i < by.size; ++i) own[i] *= by.scale;
        }
    }

    // The heads' outputs, ready for the output matrix.
    void attend(const Layer& layer, int index, Worker& worker) {
        if (layer.latent.size > 0) return attend_latents(layer, index, worker);
        const auto query_key_value = [&](const auto& then) {
            multiply_adapted(worker, head_rows(layer), index, &LayerAdapter::heads_in, then);
        };
        and_tokens(worker, query_key_value, [&](int64_t token) {
            finish_and_store(layer, index, token);
            float* all = heads_out_ + token * heads_stride_;
            for (int i = 0; i < layer.query.rows; ++i) all[i] *= layer.scale;
        });
        const int64_t mixed_groups = rounded(layer.out.columns, kGroup) / kGroup;
        look_and(layer, worker, [&](int64_t token) {
            rewrite(layer, index, token);
            if (layer.differential()) subtract(layer, token);
            see(kMixed, index, token, mixed_.x + token * mixed_.width, layer.out.columns);
            if (layer.output_gate.rows > 0) gate_output(layer, index, token);
            quantize({mixed_.x + token * mixed_.width, mixed_.width, token, 1}, 0, mixed_groups, mixed_);
        });
        watch(layer, index, worker);
    }

    void layer(const Layer& layer, int index, Worker& worker) {
        const bool more = index + 1 < model_.layer_count;
        const auto finish = [&](int64_t token) {
            float* x = x_ + token * width_stride_;
            for (int i = 0; layer.block_scale != 1.0f && i < model_.width; ++i) x[i] *= layer.block_scale;
            see(kOut, index, token, x, model_.width);
            if (more) keep_input(token, index + 1);
            if (kept_ != nullptr) keep_stream(token, index);
            if (!more) show_normed(token, index);
            if (more) read(token, model_.layers[index + 1].attention_norm, kAttentionNorm, index + 1);
        };
        const auto halfway = [&](int64_t token) {
            if (layer.parallel == kOwnNorm) read(token, layer.mlp_norm, kMlpNorm, index);
            finish_mixed(layer, index, token);
            add_output(layer, token, layer.attention_post_norm, kAttentionPostNorm, index);
            see(kMiddle, index, token, x_ + token * width_stride_, model_.width);
            if (!layer.has_mlp()) return finish(token);
            if (layer.parallel == kInTurn) read(token, layer.mlp_norm, kMlpNorm, index);
        };
        const auto multiply_out = [&](const auto& then) {
            multiply_adapted(worker, out_rows(layer), index, &LayerAdapter::out_in, then);
        };
        const auto multiply_recurrent = [&](const auto& then) { multiply(worker, recurrent_out_rows(layer), then); };
        if (layer.attends()) attend(layer, index, worker);
        if (layer.recurrence.kind != kNoRecurrence) {
            recur(layer.recurrence, layer.attends() ? -1 : index, worker);
            if (layer.attends()) multiply_recurrent([] {});
            else and_tokens(worker, multiply_recurrent, halfway);
        }
        if (layer.attends()) and_tokens(worker, multiply_out, halfway);
        if (!layer.has_mlp()) return;
        const auto after = [&](int64_t token) {
            if (layer.mixture.experts != nullptr) gather_experts(layer, index, token);
            finish_output(layer.down, layer.out_scale, out_ + token * width_stride_, kDown, index, token);
            if (layer.mixture.experts != nullptr) see(kMixtureOut, index, token, out_ + token * width_stride_, model_.width);
            add_output(layer, token, layer.mlp_post_norm, kMlpPostNorm, index);
            if (layer.per_layer.gate.rows > 0) read(token, {});
            else finish(token);
        };
        if (layer.mixture.experts != nullptr) mix(layer, index, worker);
        if (layer.up.rows > 0) pass_mlp(layer, index, worker, after);
        else each(worker, tokens_, tokens_at_once(worker), after);
        if (layer.per_layer.gate.rows > 0) add_own(layer, index, worker, finish);
    }

    // The MLP that all tokens pass, and then after(token).
    template <class G>
    void pass_mlp(const Layer& layer, int index, Worker& worker, const G& after) {
        const Expert own_mlp = {layer.gate, layer.up, layer.down};
        if (!runs_.empty()) reduce(worker, index, &LayerAdapter::mlp_in, in_);
        arrive(worker);
        const auto hide_some = [&](int64_t begin, int64_t end, bool own) {
            for (int64_t group = begin; group < end; ++group) {
                hide(own_mlp, layer, in_, tokens_, hidden_, group, own ? worker.path : nullptr, index, [](const float*) {});
            }
        };
        share_out(worker, groups_of(layer.up), 1, hide_some, [] {});
        if (hidden_whole(index)) {
            each(worker, tokens_, tokens_at_once(worker), [&](int64_t token) {
                see(kHidden, index, token, hidden_.x + token * hidden_.width, layer.up.rows);
                const int64_t groups = rounded(layer.down.columns, kGroup) / kGroup;
                quantize({hidden_.x + token * hidden_.width, hidden_.width, token, 1}, 0, groups, hidden_);
            });
        }
        const auto multiply_down = [&](const auto& then) {
            multiply_adapted(worker, down_rows(layer), index, &LayerAdapter::down_in, then);
        };
        and_tokens(worker, multiply_down, after);
    }

    // Differential attention: the first half of the heads' outputs less the second's, normed.
    void subtract(const Layer& layer, int64_t token) const {
        const int64_t count = static_cast<int64_t>(layer.heads) / 2 * layer.value_size;
        const float *one = sides_ + token * sides_stride_, *two = one + count;
        float* mixed = mixed_.x + token * mixed_.width;
        for (int64_t i = 0; i < count; ++i) mixed[i] = one[i] - layer.lambda * two[i];
        for (int64_t i = 0; i < count; i += layer.value_size) norm(layer.difference_norm, mixed + i, layer.value_size, mixed + i);
        for (int64_t i = 0; i < count; ++i) mixed[i] *= layer.kept;
    }

    // What the heads give, times a gate that reads the layer's input.
    void gate_output(const Layer& layer, int index, int64_t token) const {
        float* gate = heads_out_ + token * heads_stride_ + gate_at(layer);
        finish_some(layer.output_gate, gate, 0, layer.output_gate.rows, layer.input, 1.0f);
        float* mixed = mixed_.x + token * mixed_.width;
        activate({nullptr, kSigmoid, 0.0f}, gate, nullptr, rounded(layer.output_gate.rows, kPanel));
        see(kGate, index, token, gate, layer.output_gate.rows);
        for (int64_t i = 0; i < layer.output_gate.rows; ++i) mixed[i] *= gate[i];
        see(kOutInput, index, token, mixed, layer.output_gate.rows);
    }

    // A recurrent layer, up to what its last matrix reads: its matrices, then token after token of each sequence, a group of
    // heads or some channels at a time. `index` is the layer whose values these are, -1 beside attention.
    void recur(const Recurrence& of, int index, Worker& worker) {
        multiply(worker, recurrent_rows(of), [] {});
        if (of.gate_up.rows > 0) {
            each(worker, tokens_, tokens_at_once(worker), [&](int64_t token) { narrow(of, token); });
            for (int i = 0; i < 2; ++i) multiply(worker, lifted_rows(of, i), [] {});
        }
        const int64_t groups = of.kind == kShortConv ? rounded(of.value.rows, kChannels) / kChannels : of.groups;
        const bool shown = index >= 0 && of.kind != kShortConv && !values_.of(kState, index).empty();
        each(worker, reading_.sequences * groups, 1, [&](int64_t i) {
            const int64_t s = i / groups, group = i % groups;
            for (int token = reading_.starts[s]; token < reading_.starts[s + 1]; ++token) {
                float* state = reading_.states[s] + of.state_at;
                if (of.kind == kShortConv) pass_channels(of, index, token, group * kChannels, state);
                else pass_group(of, index, token, group, state);
                if (shown) show_state(of, index, token, group, state);
            }
        });
        const int64_t last = rounded(of.out.columns, kGroup) / kGroup;
        each(worker, tokens_, tokens_at_once(worker), [&](int64_t token) {
            float* z = recurrent_.x + token * recurrent_.width;
            if (index >= 0) see(kOutInput, index, token, z, of.out.columns);
            quantize({z, recurrent_.width, token, 1}, 0, last, recurrent_);
        });
    }

    // What the second matrices of gate and steps read.
    void narrow(const Recurrence& of, int64_t token) {
        const Places at = places(of);
        const Matrix* const first[] = {&of.gate, &of.step};
        const int64_t from[] = {at.gate, at.step};
        for (int i = 0; i < 2; ++i) {
            float* to = narrow_[i].x + token * narrow_[i].width;
            std::copy_n(projected_ + token * projected_stride_ + from[i], first[i]->rows, to);
            finish_some(*first[i], to, 0, first[i]->rows, of.input, 1.0f);
            quantize({to, narrow_[i].width, token, 1}, 0, rounded(first[i]->rows, kGroup) / kGroup, narrow_[i]);
        }
    }

    // One token's channels of a gated short convolution.
    void pass_channels(const Recurrence& of, int index, int64_t token, int64_t first, float* state) const {
        const int64_t count = std::min(kChannels, of.value.rows - first);
        float* rows = projected_ + token * projected_stride_;
        const Places at = places(of);
        float* const parts[] = {rows + at.query + first, rows + at.key + first, rows + at.value + first};
        const Matrix* const by[] = {&of.query, &of.key, &of.value};
        for (int i = 0; i < 3; ++i) finish_some(*by[i], parts[i], first, count, of.input, 1.0f);
        for (int64_t i = 0; i < count; ++i) parts[1][i] *= parts[2][i];
        float* z = recurrent_.x + token * recurrent_.width + first;
        convolve(parts[1], count, of.conv_size, of.conv + first * of.conv_size,
                 of.conv_bias == nullptr ? nullptr : of.conv_bias + first, false, state + first * (of.conv_size - 1), z);
        if (index >= 0) see(kMixed, index, token, z, of.out.columns, first, count);
        for (int64_t i = 0; i < count; ++i) z[i] *= parts[0][i];
    }

    // One token's heads of a group of a linear recurrence (Mamba 2; the gated delta rule, whose states decay as a whole, or
    // row by row where gate and steps have second matrices: Kimi Delta Attention).
    void pass_group(const Recurrence& of, int index, int64_t token, int64_t group, float* state) const {
        static thread_local std::vector<float> room;
        const bool delta = of.delta(), by_row = of.kind == kKda;
        const int64_t heads = of.heads / of.groups, size = of.value_size, stride = of.stride(), keys = of.key_size;
        const int64_t wide = heads * size, first = group * heads;
        room.assign(static_cast<size_t>(rounded(2 * keys, kPanel) + 2 * rounded(wide, kPanel) + 2 * stride + keys), 0.0f);
        float *query = room.data(), *key = query + keys, *value = query + rounded(2 * keys, kPanel);
        float *gate = value + rounded(wide, kPanel), *own = gate + rounded(wide, kPanel), *read_out = own + stride;
        float* decays = read_out + stride;
        float* rows = projected_ + token * projected_stride_;
        const Places at = places(of);
        const float* by = of.multipliers;
        float* const tail = state;
        // The parts of the convolution stand in each mechanism's own order.
        const int64_t query_from = delta ? 0 : of.values() + of.keys(), key_from = delta ? of.keys() : of.values();
        const int64_t value_from = delta ? 2 * of.keys() : 0;
        const auto convolved = [&](const Matrix& matrix, int64_t place, int64_t from, int64_t begin, int64_t count, float times,
                                   float* out) {
            finish_some(matrix, rows + place + begin, begin, count, of.input, times);
            const int64_t channel = from + begin;
            convolve(rows + place + begin, count, of.conv_size, of.conv + channel * of.conv_size,
                     of.conv_bias == nullptr ? nullptr : of.conv_bias + channel, true, tail + channel * (of.conv_size - 1), out);
        };
        convolved(of.query, at.query, query_from, group * keys, keys, by[3], query);
        convolved(of.key, at.key, key_from, group * keys, keys, by[2], key);
        convolved(of.value, at.value, value_from, first * size, wide, by[1], value);
        if (delta) {
            unit(query, keys);
            unit(key, keys);
            const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(keys)));
            for (int64_t i = 0; i < keys; ++i) query[i] *= scale;
        }
        float* const gates = rows + (by_row ? at.gate_up : at.gate) + first * size;
        if (!by_row) finish_some(of.gate, gates, first * size, wide, of.input, by[0]);
        std::copy_n(gates, wide, gate);
        activate({nullptr, by_row ? kSigmoid : kSilu, 0.0f}, gate, nullptr, rounded(wide, kPanel));
        if (!by_row) finish_some(of.step, rows + at.step + first, first, heads, of.input, by[4]);
        if (delta) finish_some(of.beta, rows + at.beta + first, first, heads, of.input, 1.0f);
        float* z = recurrent_.x + token * recurrent_.width + first * size;
        float* S = state + rounded(of.channels() * (of.conv_size - 1), kPanel) + first * keys * stride;
        for (int64_t h = 0; h < heads; ++h, S += keys * stride) {
            const int64_t head = first + h, some = by_row ? keys : 1;
            const float* const steps = rows + (by_row ? at.step_up : at.step) + head * some;
            float step = 0.0f;
            for (int64_t i = 0; i < some; ++i) {
                step = stepped(steps[i] + of.step_bias[head * some + i], of.least);
                decays[i] = exp_of(-step * of.rate[head]);
            }
            const float strength = delta ? 1.0f / (1.0f + exp_of(-rows[at.beta + first + h])) : 1.0f;
            for (int64_t i = 0; i < size; ++i) own[i] = delta ? value[h * size + i] : step * value[h * size + i];
            change_state(S, keys, stride, decays, by_row ? 1 : 0, delta, key, strength, own, query, read_out);
            for (int64_t i = 0; i < size; ++i) {
                const float skip = of.skip == nullptr ? 0.0f : of.skip[first + h] * value[h * size + i];
                z[h * size + i] = of.skip == nullptr ? read_out[i] : read_out[i] + skip;
            }
        }
        if (index >= 0) see(kMixed, index, token, z, of.out.columns, first * size, wide);
        for (int64_t h = 0; delta && h < heads; ++h) norm(of.norm, z + h * size, size, z + h * size);
        if (!delta && of.norm_first != 0) norm(of.norm, z, wide, z, first * size);
        for (int64_t i = 0; i < wide; ++i) z[i] *= gate[i];
        if (!delta && of.norm_first == 0) norm(of.norm, z, wide, z, first * size);
    }

    // softplus(x), at least `least`.
    static float stepped(float x, float least) {
        const float step = x > 20.0f ? x : static_cast<float>(std::log1p(std::exp(static_cast<double>(x))));
        return std::max(step, least);
    }

    // Some rows' products: x, its first row `first`, multiplied, with their bias, multiplied again.
    static void finish_some(const Matrix& by, float* x, int64_t first, int64_t count, float input, float times) {
        for (int64_t i = 0; input != 1.0f && i < count; ++i) x[i] *= input;
        for (int64_t i = 0; by.bias != nullptr && i < count; ++i) x[i] += by.bias[first + i];
        for (int64_t i = 0; times != 1.0f && i < count; ++i) x[i] *= times;
    }

    // The part of the state that a piece of attention reads.
    template <class F>
    void each_state(const Layer& layer, int64_t i, const F& what) const {
        const Piece& piece = pieces_[static_cast<size_t>(i / layer.groups)];
        if (piece.page < 0 || layer.latent.index.chooses()) return;  // what is chosen is not foreseen
        const int group = static_cast<int>(i % layer.groups);
        const Look seen = look(layer, piece.first, 0, piece.page);
        if (seen.first >= seen.last) return;
        const PageOf page = page_of(layer, piece.sequence, piece.page, group);
        const int first = seen.first / 16 * 16, positions = (seen.last + 15) / 16 * 16 - first;
        const auto part = [&](uint16_t* from, int size) {
            const int64_t halves = PageOf::halves(layer.cache, size) / kPage;  // of a position, with its scales
            what(from + first * halves, 2 * positions * halves);
        };
        if (page.latent == 0) part(page.keys, layer.key_size);
        part(page.values, page.value_stride);
    }
    void add_state(Path& path, const Layer& layer, int64_t i) const {
        each_state(layer, i, [&](const uint16_t* from, int64_t bytes) { path.add(from, bytes); });
    }
    void pass_state(Path& path, const Layer& layer, int64_t i) const {
        each_state(layer, i, [&](const uint16_t*, int64_t bytes) { path.pass(bytes); });
    }

    static void add_neurons(Path& path, const Matrix& matrix, int64_t group) {
        const int64_t bytes = panel_bytes(matrix.type, matrix.columns);
        const int64_t first = 2 * group, last = std::min<int64_t>(first + 2, matrix.panel_count());
        if (matrix.panels != nullptr) path.add(matrix.panels + first * bytes, (last - first) * bytes);
    }

    // A token's queries, keys and values: biases, bounds, norms and RoPE; keys and values are stored in the KV cache.
    void finish_and_store(const Layer& layer, int index, int64_t token) {
        float* all = heads_out_ + token * heads_stride_;
        const int at = position(token);
        finish_rows(layer.query, all, layer.input, layer.clip);
        finish_heads(layer, token, all, layer.heads, layer.query_norm, kQueryUnrotated, index);
        if (layer.sharpness != 0.0) {
            const auto factor = static_cast<float>(1.0 + layer.sharpness * std::log1p(static_cast<double>(at / layer.sharp_from)));
            for (int i = 0; i < layer.query.rows; ++i) all[i] *= factor;
        }
        see(kQuery, index, token, all, layer.query.rows);
        if (layer.key.rows == 0) return;
        float *keys = all + key_at(layer), *values = all + value_at(layer);
        finish_rows(layer.key, keys, layer.input, layer.clip);
        if (layer.value_of_key != 0) std::copy_n(keys, layer.key.rows, values);
        else finish_rows(layer.value, values, layer.input, layer.clip);
        finish_heads(layer, token, keys, layer.groups, layer.key_norm, kKeyUnrotated, index);
        see(kKey, index, token, keys, layer.key.rows);
        const int size = layer.differential() ? layer.value_size / 2 : layer.value_size;
        for (int group = 0; group < layer.groups; ++group) norm(layer.value_norm, values + group * size, size, values + group * size);
        see(kValue, index, token, values, layer.value_rows());
        for (int group = 0; group < layer.groups; ++group) {
            const PageOf page = page_of(layer, sequence_of_[static_cast<size_t>(token)], at / kPage, group);
            store_key(page, at % kPage, keys + group * layer.key_size);
            if (!layer.differential()) store_value(page, size, at % kPage, values + group * size);
        }
        if (layer.differential()) store_pairs(layer, token, values);
    }

    // Differential attention's values are two side by side: the first half's and the second's.
    void store_pairs(const Layer& layer, int64_t token, const float* values) const {
        static thread_local std::vector<float> pair;
        const int at = position(token), pairs = layer.groups / 2, size = layer.value_size / 2;
        pair.resize(static_cast<size_t>(layer.value_size));
        for (int i = 0; i < pairs; ++i) {
            std::copy_n(values + i * size, size, pair.data());
            std::copy_n(values + (i + pairs) * size, size, pair.data() + size);
            const PageOf page = page_of(layer, sequence_of_[static_cast<size_t>(token)], at / kPage, i);
            store_value(page, layer.value_size, at % kPage, pair.data());
        }
    }

    // What all rows of a matrix give, within their bounds.
    static void finish_rows(const Matrix& by, float* x, float input, float clip) {
        finish_some(by, x, 0, by.rows, input, 1.0f);
        for (int i = 0; clip != 0.0f && i < by.rows; ++i) x[i] = std::min(std::max(x[i], -clip), clip);
    }

    // The norms of queries or keys, and RoPE; before it they are a value of the layer.
    void finish_heads(const Layer& layer, int64_t token, float* x, int heads, const Norm& by, What what, int index) const {
        const int64_t size = layer.key_size;
        const bool after = layer.norm_after != 0;
        const auto normed = [&] {
            if (layer.norm_over == kWidth) return norm(by, x, heads * size, x);
            for (int head = 0; head < heads; ++head) {
                norm(by, x + head * size, size, x + head * size, layer.norm_over == kEach ? head * size : 0);
            }
        };
        if (!after) normed();
        see(what, index, token, x, heads * size);
        for (int head = 0; head < heads; ++head) rotate(layer, token, x + head * size);
        if (after) normed();
    }

    // `halves`: the leading dimensions half-split, whatever the model's pairs are.
    void rotate(const Layer& layer, int64_t token, float* x, bool halves = false) const {
        if (layer.rotation < 0) return;
        const Rotation& rotation = model_.rotations[layer.rotation];
        const float* cosine = rotations_ + token * rotation_stride_ + rotation_at_[static_cast<size_t>(layer.rotation)];
        cutaway::rotate(rotation, x, cosine, halves);
    }

    PageOf page_of(const Layer& layer, int sequence, int page, int group) const {
        const int64_t keys = PageOf::halves(layer.cache, layer.key_size);
        const int64_t values = PageOf::halves(layer.cache, layer.value_stride());
        uint16_t* at = reading_.pages[sequence][page] + layer.page_offset;
        if (layer.latent.size > 0) return {at, at, layer.key_size, layer.key_size, layer.cache, layer.value_stride()};
        const int pair = layer.differential() ? group % (layer.groups / 2) : group;
        return {at + group * keys, at + layer.groups * keys + pair * values, layer.key_size, layer.value_stride(),
                layer.cache};
    }

    // Heads of one group for some tokens: over one page into its own place, or over all pages to the end.
    void attend(const Layer& layer, const Piece& piece, int group) {
        const int heads = layer.heads / layer.groups, stride = layer.value_stride();
        if (piece.page >= 0) {
            Look looks[kRows];
            for (int done = 0; done < heads;) {
                const int count = std::min(kRows, heads - done);
                for (int r = 0; r < count; ++r) looks[r] = look(layer, piece.first, group * heads + done + r, piece.page);
                const int64_t at = (slot_of_[static_cast<size_t>(piece.first)] + piece.page) * heads_ + group * heads + done;
                attend_to(layer, piece, group, piece.page, looks, count, partial_ + at * stride, partial_seen_ + at);
                done += count;
            }
            return;
        }
        const int rows = (piece.last - piece.first) * heads;
        for (int done = 0; done < rows; done += kRows) {
            attend_all(layer, piece, group, done, std::min(kRows, rows - done));
        }
    }

    void attend_all(const Layer& layer, const Piece& piece, int group, int first_row, int count) {
        const int heads = layer.heads / layer.groups, stride = layer.value_stride();
        static thread_local std::vector<float> room;
        room.assign(static_cast<size_t>(2 * kRows * stride), 0.0f);
        float *sum = room.data(), *more = sum + kRows * stride;
        Look looks[kRows];
        Gathered in[kRows], seen[kRows];
        for (Gathered& each : in) each = {-INFINITY, 0.0f};
        const int last_token = piece.first + (first_row + count - 1) / heads;
        for (int page = 0; page <= position(last_token) / kPage; ++page) {
            for (int r = 0; r < count; ++r) {
                const int row = first_row + r;
                looks[r] = look(layer, piece.first + row / heads, group * heads + row % heads, page);
            }
            if (!attend_to(layer, piece, group, page, looks, count, more, seen)) continue;
            for (int r = 0; r < count; ++r) merge(sum + r * stride, in[r], more + r * stride, seen[r], stride);
        }
        for (int r = 0; r < count; ++r) {
            const int row = first_row + r;
            keep(layer, piece.first + row / heads, group * heads + row % heads, sum + r * stride, in[r]);
        }
    }

    // Which positions of a page a head of a token sees.
    Look look(const Layer& layer, int token, int head, int page) const {
        const int at = position(token), begin = page * kPage;
        const int first = layer.window > 0 ? std::max(0, at + 1 - layer.window) : 0;
        const float* queries = layer.latent.size > 0 ? absorbed_ + token * absorbed_stride_ : heads_out_ + token * heads_stride_;
        Look seen = {queries + head * layer.key_size, std::clamp(first - begin, 0, kPage),
                     std::clamp(at + 1 - begin, 0, kPage), layer.alibi == nullptr ? 0.0f : layer.alibi[head], at - begin};
        if (!layer.latent.index.chooses()) return seen;
        const uint64_t* bits = seen.chosen = chosen_ + token * chosen_stride_ + 2 * page;
        seen.first = bits[0] != 0 ? std::countr_zero(bits[0]) : bits[1] != 0 ? 64 + std::countr_zero(bits[1]) : 0;
        seen.last = bits[1] != 0 ? kPage - std::countl_zero(bits[1]) : bits[0] != 0 ? 64 - std::countl_zero(bits[0]) : 0;
        return seen;
    }

    bool attend_to(const Layer& layer, const Piece& piece, int group, int page, const Look* looks, int count,
                   float* mixed, Gathered* seen) const {
        bool any = false;
        for (int r = 0; r < count; ++r) {
            any |= looks[r].first < looks[r].last;
            seen[r] = {-INFINITY, 0.0f};
        }
        if (!any) return false;
        attend_page(page_of(layer, piece.sequence, page, group), looks, count, layer.softcap, mixed, seen);
        return true;
    }

    // Merges what the pages gave a token that was shared out by pages.
    void gather(const Layer& layer, int64_t token) {
        const int stride = layer.value_stride();
        static thread_local std::vector<float> room;
        for (int head = 0; head < layer.heads; ++head) {
            const int64_t first = slot_of_[static_cast<size_t>(token)] * heads_ + head;
            if (position(token) < kPage) {
                keep(layer, token, head, partial_ + first * stride, partial_seen_[first]);
                continue;
            }
            room.assign(static_cast<size_t>(stride), 0.0f);
            Gathered in = {-INFINITY, 0.0f};
            for (int page = 0; page <= position(token) / kPage; ++page) {
                const int64_t at = (slot_of_[static_cast<size_t>(token)] + page) * heads_ + head;
                merge(room.data(), in, partial_ + at * stride, partial_seen_[at], stride);
            }
            keep(layer, token, head, room.data(), in);
        }
    }

    // Where what a head gathers for a token goes.
    float* gathered_at(const Layer& layer, int64_t token, int head) const {
        if (layer.differential()) return sides_ + token * sides_stride_ + head * layer.value_size;
        if (layer.latent.size == 0) return mixed_.x + token * mixed_.width + head * layer.value_size;
        const Vectors own = vectors_of(layer.latent.value_up, head);
        return own.x + token * own.width;
    }

    // What a head gives, of all that it gathered; a sink takes its part of the weight.
    void keep(const Layer& layer, int64_t token, int head, const float* sum, const Gathered& in) {
        float* to = gathered_at(layer, token, head);
        if (layer.sinks == nullptr) {
            for (int i = 0; i < layer.value_size; ++i) to[i] = sum[i] / in.weight;
            return;
        }
        const float sink = layer.sinks[head], highest = std::max(in.highest, sink);
        const float kept = exp_of(in.highest - highest), weight = in.weight * kept + exp_of(sink - highest);
        for (int i = 0; i < layer.value_size; ++i) to[i] = sum[i] * kept / weight;
    }

    // A token's row of a value of `count` numbers, or `part` of them from `first` on: changed by the edits of it, then written
    // out where it is asked for.
    void see(What what, int layer, int64_t token, float* row, int64_t count, int64_t first = 0,
             int64_t part = std::numeric_limits<int64_t>::max()) const {
        part = std::min(part, count - first);
        for (const Edit* by : edits_.of(what, layer)) {
            if (by->first <= token && token < by->last) edit(*by, token, row, first, part);
        }
        show(what, layer, token, row, count, first, part);
    }

    void show(What what, int layer, int64_t token, const float* row, int64_t count, int64_t first, int64_t part) const {
        for (const Value* value : values_.of(what, layer)) std::copy_n(row, part, value->out + token * count + first);
    }

    // The last norm's output of a token; the head norms those that it reads itself.
    void show_normed(int64_t token, int layer) const {
        if (values_.of(kFinalNorm, layer).empty()) return;
        static thread_local std::vector<float> room;
        room.resize(static_cast<size_t>(model_.width));
        norm(model_.norm, x_ + token * width_stride_, model_.width, room.data());
        show(kFinalNorm, layer, token, room.data(), model_.width, 0, model_.width);
    }

    // The states of a group's heads after a token.
    void show_state(const Recurrence& of, int layer, int64_t token, int64_t group, const float* state) const {
        const int64_t heads = of.heads / of.groups, rows = heads * of.key_size, first = group * rows;
        const float* S = state + rounded(of.channels() * (of.conv_size - 1), kPanel) + first * of.stride();
        const int64_t count = static_cast<int64_t>(of.heads) * of.key_size * of.value_size;
        for (int64_t row = 0; row < rows; ++row, S += of.stride()) {
            show(kState, layer, token, S, count, (first + row) * of.value_size, of.value_size);
        }
    }

    // Changes some units of a token's row, of which `row` has `count` from `begin` on: all of them, but for kMove.
    void edit(const Edit& by, int64_t token, float* row, int64_t begin, int64_t count) const {
        const int64_t first = std::max<int64_t>(by.first_unit, begin), last = std::min<int64_t>(by.last_unit, begin + count);
        float* x = row - begin;
        if (by.how == kExchange) return exchange(x + first, x + by.other, last - first, by.strength);
        if (by.how == kReturn) return give_back(by, token, x);
        float scale = by.strength;
        if (by.how == kAlong) {
            double product = 0.0;
            for (int64_t i = first; i < last; ++i) product += static_cast<double>(x[i]) * by.read[i - by.first_unit];
            scale = static_cast<float>(by.strength * product);
        }
        for (int64_t i = first; by.factor != 1.0f && i < last; ++i) x[i] = by.factor == 0.0f ? 0.0f : by.factor * x[i];
        if (by.vector == nullptr) return;
        const float* vector = by.vector + (token - by.first) * by.stride;
        for (int64_t i = first; i < last; ++i) x[i] += scale * vector[i - by.first_unit];
    }

    static void exchange(float* x, float* y, int64_t count, float strength) {
        for (int64_t i = 0; i < count; ++i) {
            const float a = x[i], b = y[i];
            x[i] = moved(a, b, strength);
            y[i] = moved(b, a, strength);
        }
    }
    static float moved(float x, float to, float strength) { return strength == 1.0f ? to : x + strength * (to - x); }

    // The residual stream before a layer, where an edit will need it behind the layer.
    void keep_input(int64_t token, int layer) {
        if (inputs_ == nullptr) return;
        for (const Edit* by : edits_.of(kOut, layer)) {
            if (by->how != kReturn || token < by->first || token >= by->last) continue;
            std::copy_n(x_ + token * width_stride_, model_.width, input_of(token));
        }
    }
    float* input_of(int64_t token) const { return inputs_ + token * width_stride_; }
    void give_back(const Edit& by, int64_t token, float* x) const {
        const float* came = input_of(token);
        for (int i = 0; i < model_.width; ++i) x[i] = moved(x[i], came[i], by.strength);
    }

    // The residual stream after a layer, where the head is to read it (the logit lens).
    void keep_stream(int64_t token, int layer) {
        for (int i = 0; i < reading_.logits_count; ++i) {
            if (reading_.logits_at[i] != token || reading_.after[i] != layer) continue;
            std::copy_n(x_ + token * width_stride_, model_.width, kept_ + i * width_stride_);
        }
    }

    // How the heads of the watched tokens attended, written out; a token that is not watched costs nothing.
    void watch(const Layer& layer, int index, Worker& worker) {
        const auto here = [&](int i) { return reading_.watched[3 * i + 1] == index; };
        int any = 0;
        for (int i = 0; i < reading_.watched_count; ++i) any += here(i);
        if (any == 0) return;
        each(worker, static_cast<int64_t>(reading_.watched_count) * layer.heads, 1, [&](int64_t i) {
            const int watched = static_cast<int>(i / layer.heads), head = static_cast<int>(i % layer.heads);
            if (!here(watched)) return;
            const int token = reading_.watched[3 * watched];
            const int32_t which = reading_.watched[3 * watched + 2];
            if (which == 2 && head == 0) write_chosen(layer, token, reading_.patterns[watched]);
            if (which == 1) write_scores(layer, token, head, reading_.patterns[watched]);
            if (which == 0) write_pattern(layer, index, token, head, reading_.patterns[watched]);
        });
    }

    // The scores of all positions up to a token's, those outside of its window too.
    void write_scores(const Layer& layer, int token, int head, float* scores) {
        const int length = position(token) + 1, group = head / (layer.heads / layer.groups);
        for (int page = 0; page <= (length - 1) / kPage; ++page) {
            Look seen = look(layer, token, head, page);
            seen.first = 0;
            seen.last = std::min(length - page * kPage, kPage);
            const PageOf own = page_of(layer, sequence_of_[static_cast<size_t>(token)], page, group);
            score_page(own, seen, layer.softcap, scores + static_cast<int64_t>(head) * length + page * kPage);
        }
    }

    // 1 for each position up to a token's that its indexer chose.
    void write_chosen(const Layer& layer, int token, float* chosen) const {
        const int length = position(token) + 1;
        for (int s = 0; s < length; ++s) {
            chosen[s] = !layer.latent.index.chooses() || is_set(chosen_ + token * chosen_stride_, s) ? 1.0f : 0.0f;
        }
    }

    void write_pattern(const Layer& layer, int index, int token, int head, float* patterns) const {
        static thread_local Patterns edited;
        const int64_t length = position(token) + 1;
        float* to = patterns + head * length;
        if (!edit_patterns(layer, index, token, edited) || edited.reached[static_cast<size_t>(head)] == 0) {
            return weigh(layer, token, head, to);
        }
        std::copy_n(edited.weights.data() + head * length, length, to);
    }

    // A token's attention weights [heads length], of the heads that edits reach.
    struct Patterns {
        std::vector<float> weights;
        std::vector<char> reached;
    };

    // The weights as edits of the layer leave them; false where none is of this token.
    bool edit_patterns(const Layer& layer, int index, int64_t token, Patterns& to) const {
        const auto edits = edits_.of(kPattern, index);
        const auto here = [&](const Edit* by) { return by->first <= token && token < by->last; };
        if (std::none_of(edits.begin(), edits.end(), here)) return false;
        const int64_t length = position(token) + 1;
        to.reached.assign(static_cast<size_t>(layer.heads), 0);
        for (const Edit* by : edits) {
            if (!here(by)) continue;
            std::fill_n(to.reached.begin() + by->first_unit, by->last_unit - by->first_unit, 1);
            if (by->how == kExchange) std::fill_n(to.reached.begin() + by->other, by->last_unit - by->first_unit, 1);
        }
        to.weights.resize(static_cast<size_t>(layer.heads * length));
        for (int head = 0; head < layer.heads; ++head) {
            if (to.reached[static_cast<size_t>(head)] != 0) weigh(layer, token, head, to.weights.data() + head * length);
        }
        for (const Edit* by : edits) {
            if (here(by)) edit_pattern(*by, token, to.weights.data(), length);
        }
        return true;
    }

    // Changes weights [heads length] of a token.
    static void edit_pattern(const Edit& by, int64_t token, float* weights, int64_t length) {
        const int64_t keys = by.last_key - by.first_key, last = std::min<int64_t>(by.last_key, length);
        const auto stays = [&](int64_t s) { return by.read != nullptr && by.read[s - by.first_key] == 0.0f; };
        for (int64_t head = by.first_unit; head < by.last_unit; ++head) {
            float *own = weights + head * length, *other = weights + (by.other + head - by.first_unit) * length;
            const bool two = by.how == kExchange;
            const float before = total(own, length), beside = two ? total(other, length) : 0.0f;
            const float* vector = by.vector == nullptr ? nullptr : by.vector + (token - by.first) * by.stride;
            if (vector != nullptr) vector += (head - by.first_unit) * keys;
            for (int64_t s = by.first_key; s < last; ++s) {
                if (stays(s)) continue;
                if (two) {
                    exchange(own + s, other + s, 1, by.strength);
                    continue;
                }
                own[s] = by.factor == 0.0f ? 0.0f : by.factor * own[s];
                if (vector != nullptr) own[s] += by.strength * vector[s - by.first_key];
            }
            if (by.renormalises == 0) continue;
            renormalise(own, length, before);
            if (two) renormalise(other, length, beside);
        }
    }

    static float total(const float* x, int64_t count) {
        float sum = 0.0f;
        for (int64_t i = 0; i < count; ++i) sum += x[i];
        return sum;
    }
    static void renormalise(float* x, int64_t count, float to) {
        const float now = total(x, count);
        if (now == 0.0f || now == to) return;
        const float by = to / now;
        for (int64_t i = 0; i < count; ++i) x[i] *= by;
    }

    // Outputs of heads whose attention weights are edited: values are summed again, page after page.
    void rewrite(const Layer& layer, int index, int64_t token) const {
        static thread_local Patterns edited;
        static thread_local std::vector<float> room;
        if (edits_.empty() || !edit_patterns(layer, index, token, edited)) return;
        const int64_t length = position(token) + 1, stride = layer.value_stride();
        for (int head = 0; head < layer.heads; ++head) {
            if (edited.reached[static_cast<size_t>(head)] == 0) continue;
            const int group = head / (layer.heads / layer.groups);
            room.assign(static_cast<size_t>(2 * stride), 0.0f);
            float *sum = room.data(), *more = sum + stride;
            for (int page = 0; page * kPage < length; ++page) {
                const auto count = static_cast<int>(std::min<int64_t>(kPage, length - page * kPage));
                const float* weights = edited.weights.data() + head * length + page * kPage;
                mix_page(page_of(layer, sequence_of_[static_cast<size_t>(token)], page, group), count, weights, more);
                for (int64_t i = 0; i < stride; ++i) sum[i] += more[i];
            }
            std::copy_n(sum, layer.value_size, gathered_at(layer, token, head));
        }
    }

    // A head's attention weights [position + 1] of a token.
    void weigh(const Layer& layer, int64_t at, int head, float* weights) const {
        const auto token = static_cast<int>(at);
        const int length = position(token) + 1, group = head / (layer.heads / layer.groups);
        const bool chosen = layer.latent.index.chooses();
        std::fill_n(weights, length, chosen ? -INFINITY : 0.0f);
        const int first = layer.window > 0 ? std::max(0, length - layer.window) : 0;
        for (int page = first / kPage; page <= (length - 1) / kPage; ++page) {
            const PageOf own = page_of(layer, sequence_of_[static_cast<size_t>(token)], page, group);
            const Look seen = look(layer, token, head, page);
            score_page(own, seen, layer.softcap, weights + page * kPage);
            for (int s = seen.first; chosen && s < seen.last; ++s) {
                if (!is_set(seen.chosen, s)) weights[page * kPage + s] = -INFINITY;
            }
        }
        float highest = *std::max_element(weights + first, weights + length), total = 0.0f;
        if (layer.sinks != nullptr) {
            highest = std::max(highest, layer.sinks[head]);
            total = exp_of(layer.sinks[head] - highest);
        }
        for (int s = first; s < length; ++s) total += weights[s] = exp_of(weights[s] - highest);
        for (int s = first; s < length; ++s) weights[s] /= total;
    }

    // Whether an edit of a layer's neurons reaches from some to others: then they are seen when all are there.
    bool hidden_whole(int layer) const {
        const auto edits = edits_.of(kHidden, layer);
        return std::any_of(edits.begin(), edits.end(), [](const Edit* by) { return by->how != kMove; });
    }

    // 32 neurons of an MLP, for all vectors that it reads, rounded for its last matrix. They are stored side by side
    // until then: rows as long as all neurons would map to a few sets of the cache.
    // `adapted` is the layer whose adapters apply, -1 for none; then(the activations) before they are rounded.
    template <class G>
    void hide(const Expert& mlp, const Layer& layer, const Vectors& in, int64_t count, const Vectors& out,
              int64_t group, Path* path, int adapted, const G& then) const {
        static thread_local std::vector<float> room;
        room.resize(static_cast<size_t>(2 * count * kGroup));
        const bool gated = mlp.gate.panels != nullptr;
        float *inside = room.data(), *beside = inside + count * kGroup;
        const auto neurons_of = [&](const Matrix& matrix, float* to, Change LayerAdapter::*by) {
            neurons(matrix, in, count, group, to, path, adapted, by);
        };
        neurons_of(gated ? mlp.gate : mlp.up, inside, gated ? &LayerAdapter::gate : &LayerAdapter::up);
        if (gated) neurons_of(mlp.up, beside, &LayerAdapter::up);
        for (int64_t i = 0; layer.gate_scale != 1.0f && i < count * kGroup; ++i) inside[i] *= layer.gate_scale;
        activate(layer.activation, inside, gated ? beside : nullptr, count * kGroup);
        then(inside);
        const bool whole = adapted >= 0 && hidden_whole(adapted);
        for (int64_t i = 0; adapted >= 0 && !whole && i < count; ++i) {
            see(kHidden, adapted, i, inside + i * kGroup, mlp.up.rows, group * kGroup, kGroup);
        }
        if (!mlp.down.reads_floats() && !whole) quantize({inside, kGroup, 0, count}, group, group + 1, out);
        if (!mlp.down.reads_floats() && !whole && (adapted < 0 || runs_.empty())) return;
        for (int64_t i = 0; i < count; ++i) {
            std::copy_n(inside + i * kGroup, kGroup, out.x + i * out.width + group * kGroup);
        }
    }

    // out [count 32]: 32 rows of a matrix and their biases; zeros past the last row.
    void neurons(const Matrix& matrix, const Vectors& in, int64_t count, int64_t group, float* out, Path* path,
                 int adapted, Change LayerAdapter::*by) const {
        const int first = static_cast<int>(2 * group), last = std::min(first + 2, matrix.panel_count());
        if (last < first + 2) std::fill_n(out, count * kGroup, 0.0f);
        cutaway::multiply(matrix, in, static_cast<int>(count), first, last, out, kGroup, path);
        for (const Run& run : adapted < 0 ? std::span<const Run>() : std::span(runs_)) {
            change(run.layers[adapted].*by, run, first, last, out + run.first * kGroup, kGroup);
        }
        const int64_t rows = std::min<int64_t>(kGroup, matrix.rows - group * kGroup);
        for (int64_t i = 0; matrix.bias != nullptr && i < count; ++i) {
            for (int64_t j = 0; j < rows; ++j) out[i * kGroup + j] += matrix.bias[group * kGroup + j];
        }
    }

    // The outputs of each token's experts. The tokens of one expert are multiplied together; a product of a vector is the
    // same beside any others.
    void mix(const Layer& layer, int index, Worker& worker) {
        const Mixture& of = layer.mixture;
        const Rows routers({{&of.router, 0, nullptr}, {&of.shared_gate, rounded(of.router.rows, kPanel), nullptr}}, in_, tokens_,
                           routed_, routed_stride_);
        const auto some = [&](int64_t begin, int64_t end, bool) { routers.multiply(begin, end, nullptr); };
        share_out(worker, routers.panels(), 1, some, [&] { route(of, index); });
        const int64_t busy = busy_count_[static_cast<size_t>(index)];
        if (tokens_ > 1) {
            each(worker, busy, 1, [&](int64_t i) { fetch(busy_[static_cast<size_t>(i)], of.top_k); });
        }
        const Expert& one = of.experts[0];
        const int64_t groups = rounded(one.up.rows, kGroup) / kGroup, panels = one.down.panel_count();
        const int64_t chunk = tokens_ > 8 ? 1 : std::max<int64_t>(1, busy * groups / (4 * worker.count));
        each(worker, busy * groups, chunk, [&](int64_t i) {
            const Busy& by = busy_[static_cast<size_t>(i / groups)];
            const Vectors in = tokens_ > 1 ? part(read_, by) : in_;
            hide(of.experts[by.expert], layer, in, by.count, part(inside_, by), i % groups, nullptr, -1, [&](const float* x) {
                show_expert(layer, index, by, i % groups, x);
            });
        });
        const int64_t piece = std::clamp<int64_t>(busy * panels / (4 * worker.count), 1, tokens_ > 8 ? 4 : panels);
        const int64_t pieces = (panels + piece - 1) / piece;
        each(worker, busy * pieces, 1, [&](int64_t i) {
            const Busy& by = busy_[static_cast<size_t>(i / pieces)];
            const int64_t first = i % pieces * piece, last = std::min(panels, first + piece);
            const Matrix& down = of.experts[by.expert].down;
            float* out = expert_out_ + by.first * width_stride_ + first * kPanel;
            cutaway::multiply(down, part(inside_, by), static_cast<int>(by.count), static_cast<int>(first),
                              static_cast<int>(last), out, width_stride_);
            const int64_t rows = std::min<int64_t>(last * kPanel, down.rows) - first * kPanel;
            for (int64_t t = 0; down.bias != nullptr && t < by.count; ++t) {
                for (int64_t row = 0; row < rows; ++row) out[t * width_stride_ + row] += down.bias[first * kPanel + row];
            }
        });
    }

    // Some neurons of an expert, of each of its tokens: a token's row has those of its experts, the likeliest first.
    void show_expert(const Layer& layer, int index, const Busy& by, int64_t group, const float* x) const {
        if (values_.of(kExpertHidden, index).empty()) return;
        const int64_t top_k = layer.mixture.top_k, size = layer.mixture.experts[0].up.rows;
        const int64_t first = group * kGroup, count = std::min<int64_t>(kGroup, size - first);
        for (int64_t i = 0; i < by.count; ++i) {
            const int64_t of = asked_by_[static_cast<size_t>(by.first + i)];
            show(kExpertHidden, index, of / top_k, x + i * kGroup, top_k * size, of % top_k * size + first, count);
        }
    }

    // The experts of every token, their weights, and where its vectors are: those of one expert side by side.
    void route(const Mixture& of, int index) {
        const int64_t top_k = of.top_k, experts = of.count;
        std::vector<int64_t> counts(static_cast<size_t>(experts));
        for (int64_t token = 0; token < tokens_; ++token) {
            const auto at = static_cast<size_t>(token * top_k);
            choose(of, routed_ + token * routed_stride_, &slots_[at], &weights_[at]);
            if (!values_.of(kExpertIndices, index).empty()) {
                const std::vector<float> chosen(&slots_[at], &slots_[at] + top_k);
                show(kExpertIndices, index, token, chosen.data(), top_k, 0, top_k);
            }
            see(kExpertWeights, index, token, &weights_[at], top_k);
            for (int64_t i = 0; i < top_k; ++i) ++counts[static_cast<size_t>(slots_[static_cast<size_t>(token * top_k + i)])];
        }
        busy_.clear();
        std::vector<int64_t> next(static_cast<size_t>(experts));
        int64_t taken = 0;
        for (int64_t e = 0; e < experts; ++e) {
            const int64_t count = counts[static_cast<size_t>(e)];
            next[static_cast<size_t>(e)] = taken;
            if (count > 0) busy_.push_back({static_cast<int>(e), taken, count});
            taken += count;
        }
        busy_count_[static_cast<size_t>(index)] = static_cast<int64_t>(busy_.size());
        for (int64_t i = 0; i < tokens_ * top_k; ++i) {
            int64_t& slot = slots_[static_cast<size_t>(i)];
            slot = next[static_cast<size_t>(slot)]++;
            asked_by_[static_cast<size_t>(slot)] = i;
        }
    }

    // The top_k experts of the largest merit, the first of equals first, and their weights; logits become scores.
    static void choose(const Mixture& of, float* scores, int64_t* chosen, float* weights) {
        static thread_local std::vector<float> merit;
        const int64_t experts = of.count;
        for (int64_t e = 0; of.router.bias != nullptr && e < experts; ++e) scores[e] += of.router.bias[e];
        if (of.sigmoid != 0) {
            for (int64_t e = 0; e < experts; ++e) scores[e] = 1.0f / (1.0f + exp_of(-scores[e]));
        } else {
            const float highest = *std::max_element(scores, scores + experts);
            float total = 0.0f;
            for (int64_t e = 0; e < experts; ++e) total += scores[e] = exp_of(scores[e] - highest);
            for (int64_t e = 0; e < experts; ++e) scores[e] /= total;
        }
        merit.assign(scores, scores + experts);
        for (int64_t e = 0; of.choice_bias != nullptr && e < experts; ++e) merit[static_cast<size_t>(e)] += of.choice_bias[e];
        if (of.groups > 1) close_groups(of, merit);
        float kept = 0.0f;
        for (int64_t i = 0; i < of.top_k; ++i) {
            const int64_t best = std::max_element(merit.begin(), merit.end()) - merit.begin();
            chosen[i] = best;
            kept += weights[i] = scores[best];
            merit[static_cast<size_t>(best)] = -INFINITY;
        }
        for (int64_t i = 0; of.normalised != 0 && i < of.top_k; ++i) weights[i] /= kept;
        for (int64_t i = 0; of.scale != 1.0f && i < of.top_k; ++i) weights[i] *= of.scale;
    }

    // Experts outside the best groups are not chosen: a group counts for its best expert, or for its best two.
    static void close_groups(const Mixture& of, std::vector<float>& merit) {
        const auto size = static_cast<size_t>(of.count / of.groups), groups = static_cast<size_t>(of.groups);
        std::vector<float> best(groups);
        for (size_t g = 0; g < groups; ++g) {
            float first = -INFINITY, second = -INFINITY;
            for (size_t e = g * size; e < (g + 1) * size; ++e) {
                if (merit[e] > first) {
                    second = first;
                    first = merit[e];
                } else if (merit[e] > second) {
                    second = merit[e];
                }
            }
            best[g] = of.group_of_two != 0 ? first + second : first;
        }
        std::vector<bool> open(groups);
        for (int i = 0; i < of.top_groups; ++i) {
            const auto at = static_cast<size_t>(std::max_element(best.begin(), best.end()) - best.begin());
            open[at] = true;
            best[at] = -INFINITY;
        }
        for (size_t e = 0; e < merit.size(); ++e) {
            if (!open[e / size]) merit[e] = -INFINITY;
        }
    }

    // The inputs of an expert: its tokens' vectors.
    void fetch(const Busy& by, int64_t top_k) {
        const Vectors own = part(read_, by);
        for (int64_t i = 0; i < by.count; ++i) {
            const int64_t token = asked_by_[static_cast<size_t>(by.first + i)] / top_k;
            std::copy_n(in_.x + token * in_.width, in_.width, own.x + i * own.width);
            quantize_vector(own, i);
        }
    }

    // The weighted sum of a token's experts' outputs, and the shared expert's output times its gate.
    void gather_experts(const Layer& layer, int index, int64_t token) {
        float* out = out_ + token * width_stride_;
        float gate = layer.up.rows > 0 ? 1.0f : 0.0f;
        const Mixture& of = layer.mixture;
        if (of.shared_gate.rows > 0) {
            float* logit = routed_ + token * routed_stride_ + rounded(of.router.rows, kPanel);
            see(kSharedGate, index, token, logit, 1);
            gate = 1.0f / (1.0f + exp_of(-*logit));
        }
        for (int i = 0; i < model_.width; ++i) out[i] = gate == 0.0f ? 0.0f : out[i] * gate;
        for (int64_t i = token * of.top_k; i < (token + 1) * of.top_k; ++i) {
            const float* one = expert_out_ + slots_[static_cast<size_t>(i)] * width_stride_;
            const float weight = weights_[static_cast<size_t>(i)];
            for (int j = 0; j < model_.width; ++j) out[j] += weight * one[j];
        }
    }

    // No later layer evens out rounding at the head: the rounding error of a vector is rounded too and read as a second
    // vector.
    void head(Worker& worker) {
        const int parts = head_parts();
        each(worker, reading_.logits_count, 1, [&](int64_t i) {
            const float* x = kept_ == nullptr ? x_ + reading_.logits_at[i] * width_stride_ : kept_ + i * width_stride_;
            float* normed = last_.x + parts * i * last_.width;
            norm(model_.norm, x, model_.width, normed);
            for (int at = 0; model_.logit_scale != 1.0f && at < model_.width; ++at) normed[at] *= model_.logit_scale;
            quantize_vector(last_, parts * i);
            if (parts == 1) return;
            const int8_t* q = last_.q + parts * i * last_.width;
            for (int64_t at = 0; at < last_.width; ++at) {
                const float scale = last_.scale[at / kGroup * last_.count + parts * i];
                normed[last_.width + at] = normed[at] - static_cast<float>(q[at]) * scale;
            }
            quantize_vector(last_, parts * i + 1);
        });
        arrive(worker);
        const int64_t piece = reading_.logits_count > 8 ? 4 : 16;
        const auto some = [&](int64_t begin, int64_t end, bool own) {
            for (int64_t i = begin; i < end; i += piece) {
                score(static_cast<int>(i), static_cast<int>(std::min(end, i + piece)), own ? worker.path : nullptr);
            }
        };
        share_out(worker, reading_.logits_count > 0 ? model_.head.panel_count() : 0, 1, some, [] {});
    }

    int head_parts() const { return model_.head.reads_eight_bits() ? 2 : 1; }

    // The logits of the rows of some of the head's panels.
    void score(int first, int last, Path* path) {
        static thread_local std::vector<float> room;
        const int parts = head_parts(), vectors = parts * reading_.logits_count;
        const int64_t stride = (last - first) * kPanel, begin = first * kPanel;
        const int64_t rows = std::min(stride, model_.vocab - begin);
        room.resize(static_cast<size_t>(vectors * stride));
        cutaway::multiply(model_.head, last_, vectors, first, last, room.data(), stride, path);
        for (int64_t i = 0; i < reading_.logits_count; ++i) {
            const float* from = room.data() + parts * i * stride;
            const float* more = from + stride;
            float* to = reading_.logits + i * model_.vocab + begin;
            for (int64_t row = 0; row < rows; ++row) to[row] = parts == 1 ? from[row] : from[row] + more[row];
            for (int64_t row = 0; model_.head.bias != nullptr && row < rows; ++row) to[row] += model_.head.bias[begin + row];
            for (int64_t row = 0; model_.softcap != 0.0f && row < rows; ++row) {
                to[row] = softcapped(to[row], model_.softcap);
            }
        }
    }

    static constexpr int kShares = 16;  // with more workers, some have a share in common
    static constexpr int kFew = 8;      // vectors that meet a panel at once, or nearly
    static constexpr int kSpins = 500;  // some microseconds: then a core that others want is given away
    static constexpr int64_t kChannels = 64;  // of a short convolution, a piece of work
    inline static const Matrix kNone{};
    static constexpr int kPhases = 34, kOtherPhases = 6;  // calls of each(): of a layer, and before and after them
    static constexpr int kTileTokens = 32;
    static constexpr int kRows = 32;  // rows over a page at once

    const Model& model_;
    const Reading& reading_;
    const ByValue<Edit> edits_;
    const ByValue<Value> values_;
    const int tokens_;
    Scratch scratch_;
    const int most_shares_;  // of a phase
    Phase* phases_ = nullptr;
    Share* shares_ = nullptr;  // [phases most_shares_]

    int64_t heads_stride_ = 0, mixed_width_ = 0, hidden_width_ = 0, width_stride_ = 0, rotation_stride_ = 0;
    int value_stride_ = 0, heads_ = 0;
    bool with_bf16_ = false;  // whether some matrix reads its vectors as bfloat16
    std::vector<int64_t> rotation_at_, slot_of_;
    std::vector<int> sequence_of_;
    std::vector<Piece> pieces_;
    float *x_ = nullptr, *out_ = nullptr, *heads_out_ = nullptr, *rotations_ = nullptr;
    float *partial_ = nullptr, *kept_ = nullptr, *inputs_ = nullptr;
    std::vector<Run> runs_;
    int64_t projected_stride_ = 0, recurrent_width_ = 0, beside_stride_ = 0;  // of recurrent layers
    float *projected_ = nullptr, *beside_ = nullptr;
    Vectors recurrent_{};
    int64_t narrow_width_ = 0;
    Vectors narrow_[2];  // what the second matrices of gate and steps read
    int64_t sides_stride_ = 0;
    float* sides_ = nullptr;                       // of differential attention: what each head gathered
    int64_t own_stride_ = 0, gates_stride_ = 0;    // of the embeddings that each block has
    float *own_ = nullptr, *gates_ = nullptr;
    Vectors gated_{};
    int64_t asked_width_ = 0, latent_width_ = 0, absorbed_stride_ = 0, lifted_stride_ = 0;  // of latent attention
    int latent_heads_ = 0;
    float *absorbed_ = nullptr, *lifted_ = nullptr;  // [tokens heads row], [tokens heads value]
    bool chooses_ = false;
    int64_t chosen_stride_ = 0;
    uint64_t* chosen_ = nullptr;     // [tokens chosen_stride_]: a bit for each position that a token reads
    float* index_scores_ = nullptr;  // of tokens that are shared out by pages
    Vectors asked_{}, by_head_{};                    // what a head's matrices read: head after head, a row each token
    int64_t reduced_stride_ = 0;
    float* reduced_ = nullptr;  // [tokens reduced_stride_]: A x
    Gathered* partial_seen_ = nullptr;
    int64_t top_k_ = 0, routed_stride_ = 0, inside_width_ = 0;  // of layers with experts
    std::vector<int64_t> slots_, asked_by_;  // where the vector of each token's experts is; and which of those that is
    std::vector<float> weights_;
    std::vector<Busy> busy_;
    std::vector<int64_t> busy_count_;  // of each layer: a late worker still reads one that others are done with
    Vectors read_{}, inside_{};
    float *routed_ = nullptr, *expert_out_ = nullptr;
    Vectors in_{}, mixed_{}, hidden_{}, last_{};
};

}  // namespace
}  // namespace cutaway

// Reads, and writes the logits of logits_at and what is observed; the caller has checked every array. -1: there is no
// memory for it.
CUTAWAY_API int32_t cutaway_observe(const cutaway::Model* model, const cutaway::Reading* reading,
                                    const cutaway::Observation* seen, int32_t threads) {
    try {
        cutaway::Step step(*model, *reading, *seen, threads);
        cutaway::run(threads, [&](int index, int workers) { step.work(index, workers); });
        return 0;
    } catch (const std::bad_alloc&) {
        return -1;
    }
}

CUTAWAY_API int32_t cutaway_read(const cutaway::Model* model, const cutaway::Reading* reading, int32_t threads) {
    const cutaway::Observation none{};
    return cutaway_observe(model, reading, &none, threads);
}

// The sizes of the structures, so that cutaway/native/structures.py can check that it mirrors them.
CUTAWAY_API void cutaway_runtime_sizes(int64_t* out) {
    using namespace cutaway;
    out[0] = sizeof(Matrix);
    out[1] = sizeof(Rotation);
    out[2] = sizeof(Layer);
    out[3] = sizeof(Model);
    out[4] = sizeof(Reading);
    out[5] = sizeof(Expert);
    out[6] = sizeof(LayerAdapter);
}
CUTAWAY_API void cutaway_observation_sizes(int64_t* out) {
    using namespace cutaway;
    out[0] = sizeof(Value);
    out[1] = sizeof(Edit);
    out[2] = sizeof(Observation);
}
