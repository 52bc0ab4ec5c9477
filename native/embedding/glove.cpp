// GloVe (Pennington, Socher and Manning, EMNLP 2014): how often words meet is counted, and vectors are fitted to
// the counts' logarithms by AdaGrad. cutaway/embedding/glove.py states the equations.
//
// Counts are kept once for two words, in a hash table a worker, which Python empties to a file when it has grown
// large. Fitting is Hogwild over the counts in the order given (native/core/lanes.hpp).
#include <algorithm>
#include <atomic>
#include <cmath>
#include <new>
#include <vector>

#include "core/api.hpp"
#include "embedding/corpus.hpp"
#include "core/isa.hpp"
#include "core/lanes.hpp"
#include "core/thread_pool.hpp"

namespace cutaway {

// Pairs of words, the smaller number first, to the weight with which they met.
class Pairs {
  public:
    Pairs() : keys_(1 << 16, kEmpty), weights_(1 << 16) {}

    void add(uint32_t one, uint32_t other, double weight) {
        const uint64_t key = (static_cast<uint64_t>(std::min(one, other)) << 32) | std::max(one, other);
        const size_t at = slot(key);
        if (keys_[at] == kEmpty) {
            keys_[at] = key;
            if (++size_ * 2 > keys_.size()) return grow(key, weight);
        }
        weights_[at] += weight;
    }

    // Both words stand in each other's window, so a word beside itself counts from both sides.
    void meet(uint32_t one, uint32_t other, double weight) {
        add(one, other, one == other ? 2 * weight : weight);
    }

    int64_t size() const { return static_cast<int64_t>(size_); }

    // Writes all, sorted by key, and forgets them.
    void take(uint64_t* keys, double* weights) {
        std::vector<std::pair<uint64_t, double>> all;
        all.reserve(size_);
        for (size_t i = 0; i < keys_.size(); ++i) {
            if (keys_[i] != kEmpty) all.emplace_back(keys_[i], weights_[i]);
        }
        std::sort(all.begin(), all.end());
        for (size_t i = 0; i < all.size(); ++i) {
            keys[i] = all[i].first;
            weights[i] = all[i].second;
        }
        *this = Pairs();
    }

  private:
    static constexpr uint64_t kEmpty = ~uint64_t{0};  // no word has this number

    size_t slot(uint64_t key) const {
        const size_t mask = keys_.size() - 1;
        size_t at = (key * 0x9e3779b97f4a7c15u) >> 20 & mask;
        while (keys_[at] != kEmpty && keys_[at] != key) at = (at + 1) & mask;
        return at;
    }

    void grow(uint64_t key, double weight) {
        std::vector<uint64_t> keys(keys_.size() * 2, kEmpty);
        std::vector<double> weights(weights_.size() * 2);
        keys_.swap(keys);
        weights_.swap(weights);
        for (size_t i = 0; i < keys.size(); ++i) {
            if (keys[i] == kEmpty) continue;
            const size_t at = slot(keys[i]);
            keys_[at] = keys[i];
            weights_[at] = weights[i];
        }
        weights_[slot(key)] += weight;
    }

    std::vector<uint64_t> keys_;
    std::vector<double> weights_;
    size_t size_ = 0;
};

struct Cooccurrences {
    std::vector<Pairs> workers;
    int64_t window;
};

namespace {

// A word meets those up to a window before it in its line, with weight 1 / distance.
Found meet(Pairs& pairs, const Dictionary& words, Reader& reader, int64_t window) {
    std::vector<int64_t> line;
    Found found = reader.next();
    for (; found == Found::word; found = reader.next()) {
        if (reader.new_line()) line.clear();
        const int64_t word = words.find(reader.word());
        if (word < 0) continue;
        const auto length = static_cast<int64_t>(line.size());
        for (int64_t distance = 1; distance <= std::min(window, length); ++distance) {
            const auto other = static_cast<uint32_t>(line[static_cast<size_t>(length - distance)]);
            pairs.meet(static_cast<uint32_t>(word), other, 1.0 / static_cast<double>(distance));
        }
        line.push_back(word);
        if (length > 4 * window + 4096) line.erase(line.begin(), line.end() - window);
    }
    return found;
}

// The tables of both sides: vectors and, behind them, the sums of squared gradients; biases likewise.
struct Fit {
    float *vectors, *contexts, *vector_squares, *context_squares;  // [v stride]
    float *bias, *context_bias, *bias_squares, *context_bias_squares;  // [v]
    int64_t stride;
    float rate, most;
};

// One count seen from one side: J = f(x) (w . c + b + d - log x)^2 / 2, a step of AdaGrad on w, c, b and d.
template <int W>
CUTAWAY_INLINE void fit_one(const Fit& f, int64_t word, int64_t context, float logarithm, float weight) {
    using L = Lanes<W>;
    float *w = f.vectors + word * f.stride, *c = f.contexts + context * f.stride;
    float *ws = f.vector_squares + word * f.stride, *cs = f.context_squares + context * f.stride;
    typename L::V sum{};
    for (int64_t d = 0; d < f.stride; d += W) sum += L::load(w + d) * L::load(c + d);
    const float error = L::sum(sum) + f.bias[word] + f.context_bias[context] - logarithm;
    const float gradient = weight * error;
    for (int64_t d = 0; d < f.stride; d += W) {
        const auto left = L::load(w + d), right = L::load(c + d);
        const auto left_square = L::load(ws + d), right_square = L::load(cs + d);
        const auto left_gradient = gradient * right, right_gradient = gradient * left;
        L::store(w + d, left - f.rate * left_gradient / L::root(left_square));
        L::store(c + d, right - f.rate * right_gradient / L::root(right_square));
        L::store(ws + d, left_square + left_gradient * left_gradient);
        L::store(cs + d, right_square + right_gradient * right_gradient);
    }
    f.bias[word] -= f.rate * gradient / std::sqrt(f.bias_squares[word]);
    f.context_bias[context] -= f.rate * gradient / std::sqrt(f.context_bias_squares[context]);
    f.bias_squares[word] += gradient * gradient;
    f.context_bias_squares[context] += gradient * gradient;
}

template <int W>
CUTAWAY_INLINE void fit_some(const Fit& f, const int32_t* pairs, const float* counts, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
        const int64_t a = pairs[2 * i], b = pairs[2 * i + 1];
        const float weight = counts[i] < f.most ? std::pow(counts[i] / f.most, 0.75f) : 1.0f;
        fit_one<W>(f, a, b, std::log(counts[i]), weight);
        if (a != b) fit_one<W>(f, b, a, std::log(counts[i]), weight);
    }
}

using FitSome = void (*)(const Fit&, const int32_t*, const float*, int64_t, int64_t);

CUTAWAY_HOGWILD void fit_base(const Fit& f, const int32_t* pairs, const float* counts, int64_t begin, int64_t end) {
    fit_some<4>(f, pairs, counts, begin, end);
}
#if defined(CUTAWAY_X86)
CUTAWAY_HOGWILD CUTAWAY_AVX2 void fit_avx2(const Fit& f, const int32_t* pairs, const float* counts, int64_t begin,
                                           int64_t end) {
    fit_some<8>(f, pairs, counts, begin, end);
}
#endif

FitSome path() {
#if defined(CUTAWAY_X86)
    if (isa() >= Isa::avx2) return fit_avx2;
#endif
    return fit_base;
}

}  // namespace
}  // namespace cutaway

using namespace cutaway;

CUTAWAY_API Cooccurrences* cutaway_cooccurrence_new(int64_t window, int32_t threads) {
    try {
        return new Cooccurrences{std::vector<Pairs>(static_cast<size_t>(threads)), window};
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

CUTAWAY_API void cutaway_cooccurrence_free(Cooccurrences* meetings) { delete meetings; }

// Counts in the pieces [first, last). 0, or the Found that stopped it, `where` in the file; -1 when memory is short.
CUTAWAY_API int32_t cutaway_cooccurrence_add(Cooccurrences* meetings, const Dictionary* words, int32_t file, int64_t first,
                                         int64_t last, int64_t* where) {
    std::atomic<int64_t> next{first}, place{0};
    std::atomic<int32_t> status{0};
    run(static_cast<int>(meetings->workers.size()), [&](int worker, int) {
        try {
            for (int64_t i = next.fetch_add(1); i < last && status == 0; i = next.fetch_add(1)) {
                Reader reader(file, i);
                const Found found = meet(meetings->workers[static_cast<size_t>(worker)], *words, reader, meetings->window);
                if (found == Found::end) continue;
                place = reader.where();
                status = static_cast<int32_t>(found);
            }
        } catch (const std::bad_alloc&) {
            status = -1;
        }
    });
    *where = place;
    return status;
}

// How many pairs a worker holds.
CUTAWAY_API int64_t cutaway_cooccurrence_size(const Cooccurrences* meetings, int32_t worker) {
    return meetings->workers[static_cast<size_t>(worker)].size();
}

// A worker's pairs, sorted, which it then forgets. -1 when memory is short.
CUTAWAY_API int32_t cutaway_cooccurrence_take(Cooccurrences* meetings, int32_t worker, uint64_t* keys, double* weights) {
    try {
        meetings->workers[static_cast<size_t>(worker)].take(keys, weights);
        return 0;
    } catch (const std::bad_alloc&) {
        return -1;
    }
}

// One pass over `count` pairs [n 2] and how often each met, in this order.
CUTAWAY_API void cutaway_glove(const Fit* fit, const int32_t* pairs, const float* counts, int64_t count,
                               int32_t threads) {
    const FitSome some = path();
    split(count, 1 << 12, threads, [&](int64_t begin, int64_t end) { some(*fit, pairs, counts, begin, end); });
}
