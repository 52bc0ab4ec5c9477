// Word vectors learned by prediction: skip-gram, CBOW (1301.3781, 1310.4546) and fastText's subwords
// (1607.04606), with negative sampling or hierarchical softmax. cutaway/embedding/word2vec.py states the
// equations and makes the same draws.
//
// Every objective is one step: m inputs meet n outputs, E = rate (label - sigmoid(X Y')), X += E Y, Y += E' X.
// Skip-gram's m inputs are a window's words, which share one draw of negatives, so that the step is three small
// matrix products on rows that stay in the first cache (1604.04661).
//
// Threads write to the tables without locks (Hogwild, 1106.5730): an update may be lost where two touch the same
// row at once, and results with several threads differ from run to run. One thread always gives the same.
#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <vector>

#include "core/aligned.hpp"
#include "core/api.hpp"
#include "embedding/corpus.hpp"
#include "core/isa.hpp"
#include "core/lanes.hpp"
#include "core/thread_pool.hpp"
#include "core/random.hpp"

namespace cutaway {

enum class Kind : int64_t { skipgram = 0, cbow = 1, subword = 2 };

// What is learned and how; cutaway/native/embedding.py fills it, field by field.
struct Task {
    float* input;         // [rows stride]
    float* output;        // [rows stride]
    int64_t stride;       // floats in a row: the dimension, padded with zeros to a multiple of 16
    Kind kind;
    int64_t window;
    int64_t negative;     // 0: hierarchical softmax
    int64_t vocabulary;
    const float* keep;    // [v] chance that a word is kept (subsampling)
    const float* chance;  // [v] alias table of the noise: the chance to stay at a cell,
    const int32_t* other; // [v] and where to go otherwise
    const int64_t* path_ends;    // [v] where a word's way through the Huffman tree ends in:
    const int32_t* path_nodes;   // the inner nodes passed,
    const float* path_labels;    // and 1 for a turn to the left
    const int64_t* piece_ends;   // [v] where a word's subwords end in:
    const int32_t* piece_rows;   // the rows of the input table that make it
    int64_t longest_path;
    int64_t words;        // of all epochs together: the learning rate falls over them
    float rate, least_rate;
    uint64_t seed;
};

namespace {

constexpr int64_t kSentence = 1000;  // words; a longer line is cut, as in the authors' program

// What one worker needs for a step: copies of the m inputs and n outputs, their scores, and where they go.
struct Scratch {
    float *x, *y, *e, *gradient;
    std::vector<float*> x_rows, y_rows;
    std::vector<float> labels, weights;
    std::vector<int32_t> sentence;
    std::vector<uint32_t> drawn;

    Scratch(const Task& task, int64_t inputs, int64_t outputs)
        : x_rows(static_cast<size_t>(inputs)), y_rows(static_cast<size_t>(outputs)),
          labels(static_cast<size_t>(outputs)), weights(static_cast<size_t>(outputs)) {
        const int64_t rows = inputs + outputs + 1, scores = (inputs * outputs + 31) / 16 * 16;
        const auto bytes = static_cast<size_t>(rows * task.stride + scores) * sizeof(float);
        memory_.reset(static_cast<float*>(aligned_take(64, (bytes + 63) / 64 * 64)));
        if (!memory_) throw std::bad_alloc();
        std::fill_n(memory_.get(), bytes / sizeof(float), 0.0f);
        x = memory_.get();
        y = x + inputs * task.stride;
        gradient = y + outputs * task.stride;
        e = gradient + task.stride;
        sentence.reserve(kSentence);
    }

  private:
    struct Free {
        void operator()(float* p) const { aligned_free(p); }
    };
    std::unique_ptr<float, Free> memory_;
};

// e[i, j] = x_i . y_j for a tile of MI inputs and NJ outputs.
template <int W, int MI, int NJ>
CUTAWAY_INLINE void dot_tile(const float* x, const float* y, int64_t stride, float* e, int64_t n) {
    using L = Lanes<W>;
    typename L::V sums[MI][NJ] = {};
    for (int64_t d = 0; d < stride; d += W) {
        typename L::V right[NJ];
        _Pragma("GCC unroll 4") for (int j = 0; j < NJ; ++j) right[j] = L::load(y + j * stride + d);
        _Pragma("GCC unroll 4") for (int i = 0; i < MI; ++i) {
            const auto left = L::load(x + i * stride + d);
            _Pragma("GCC unroll 4") for (int j = 0; j < NJ; ++j) sums[i][j] += left * right[j];
        }
    }
    for (int i = 0; i < MI; ++i) {
        for (int j = 0; j < NJ; ++j) e[i * n + j] = L::sum(sums[i][j]);
    }
}

template <int W, int MI>
CUTAWAY_INLINE void dot_rows(const float* x, const float* y, int64_t n, int64_t stride, float* e) {
    int64_t j = 0;
    for (; j + 3 <= n; j += 3) dot_tile<W, MI, 3>(x, y + j * stride, stride, e + j, n);
    if (n - j == 2) dot_tile<W, MI, 2>(x, y + j * stride, stride, e + j, n);
    if (n - j == 1) dot_tile<W, MI, 1>(x, y + j * stride, stride, e + j, n);
}

template <int W>
CUTAWAY_INLINE void dots(const float* x, int64_t m, const float* y, int64_t n, int64_t stride, float* e) {
    int64_t i = 0;
    for (; i + 3 <= m; i += 3) dot_rows<W, 3>(x + i * stride, y, n, stride, e + i * n);
    if (m - i == 2) dot_rows<W, 2>(x + i * stride, y, n, stride, e + i * n);
    if (m - i == 1) dot_rows<W, 1>(x + i * stride, y, n, stride, e + i * n);
}

// to[i] += sum over k < K of e[i down + k across] from[k], on two vectors of each row at a time.
template <int W, int K>
CUTAWAY_INLINE void combine_some(float* const* to, int64_t count, const float* from, const float* e, int64_t down,
                                 int64_t across, int64_t stride) {
    using L = Lanes<W>;
    for (int64_t d = 0; d < stride; d += 2 * W) {
        typename L::V low[K], high[K];
        _Pragma("GCC unroll 6") for (int k = 0; k < K; ++k) {
            low[k] = L::load(from + k * stride + d);
            high[k] = L::load(from + k * stride + d + W);
        }
        for (int64_t i = 0; i < count; ++i) {
            auto a = L::load(to[i] + d), b = L::load(to[i] + d + W);
            _Pragma("GCC unroll 6") for (int k = 0; k < K; ++k) {
                const float weight = e[i * down + k * across];
                a += weight * low[k];
                b += weight * high[k];
            }
            L::store(to[i] + d, a);
            L::store(to[i] + d + W, b);
        }
    }
}

template <int W>
CUTAWAY_INLINE void combine(float* const* to, int64_t count, const float* from, int64_t inner, const float* e,
                            int64_t down, int64_t across, int64_t stride) {
    int64_t k = 0;
    for (; k + 6 <= inner; k += 6) combine_some<W, 6>(to, count, from + k * stride, e + k * across, down, across, stride);
    from += k * stride;
    e += k * across;
    switch (inner - k) {
        case 5: combine_some<W, 5>(to, count, from, e, down, across, stride); break;
        case 4: combine_some<W, 4>(to, count, from, e, down, across, stride); break;
        case 3: combine_some<W, 3>(to, count, from, e, down, across, stride); break;
        case 2: combine_some<W, 2>(to, count, from, e, down, across, stride); break;
        case 1: combine_some<W, 1>(to, count, from, e, down, across, stride); break;
        default: break;
    }
}

template <int W>
CUTAWAY_INLINE void copy(float* to, const float* from, int64_t stride) {
    for (int64_t d = 0; d < stride; d += W) Lanes<W>::store(to + d, Lanes<W>::load(from + d));
}

// One step on the m inputs in s.x and the n output rows; the inputs' change is added to the rows s.x_rows.
template <int W>
CUTAWAY_INLINE void step(const Task& task, Scratch& s, int64_t m, int64_t n, float rate) {
    const int64_t stride = task.stride;
    for (int64_t j = 0; j < n; ++j) {
        copy<W>(s.y + j * stride, s.y_rows[static_cast<size_t>(j)], stride);
    }
    dots<W>(s.x, m, s.y, n, stride, s.e);
    for (int64_t i = 0; i < m * n; i += W) Lanes<W>::store(s.e + i, Lanes<W>::sigmoid(Lanes<W>::load(s.e + i)));
    for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) {
            s.e[i * n + j] =
                rate * s.weights[static_cast<size_t>(j)] * (s.labels[static_cast<size_t>(j)] - s.e[i * n + j]);
        }
    }
    combine<W>(s.y_rows.data(), n, s.x, m, s.e, 1, n, stride);
    combine<W>(s.x_rows.data(), m, s.y, n, s.e, n, 1, stride);
}

CUTAWAY_INLINE void fetch(const float* row, int64_t stride) {
    for (int64_t d = 0; d < stride; d += 16) __builtin_prefetch(row + d, 1);
}

// A worker's way through its pieces.
struct Worker {
    const Task& task;
    Scratch& s;
    Random random;
    int64_t first = 0, last = 0;  // the window drawn for the next word

    float* input(int64_t row) const { return task.input + row * task.stride; }
    float* output(int64_t row) const { return task.output + row * task.stride; }

    uint32_t noise() {
        const uint64_t drawn = random.next();
        const uint32_t cell = Random::below(drawn, static_cast<uint64_t>(task.vocabulary));
        return Random::unit(drawn) < task.chance[cell] ? cell : static_cast<uint32_t>(task.other[cell]);
    }

    // The window of the word at `at`, and for negatives `sets` draws of them; their rows start to come from memory.
    CUTAWAY_INLINE void draw(int64_t at) {
        const auto length = static_cast<int64_t>(s.sentence.size());
        const auto reach = 1 + static_cast<int64_t>(Random::below(random.next(), static_cast<uint64_t>(task.window)));
        first = std::max<int64_t>(0, at - reach);
        last = std::min(length, at + reach + 1);
        const int64_t sets = task.kind == Kind::subword ? last - first - 1 : 1;
        s.drawn.resize(static_cast<size_t>(sets * task.negative));
        for (uint32_t& word : s.drawn) {
            word = noise();
            fetch(output(word), task.stride);
        }
    }

    // The outputs that predict the word `target`: itself and its negatives, or its way through the tree.
    CUTAWAY_INLINE int64_t outputs(int64_t target, const uint32_t* negatives) {
        if (task.negative == 0) return path(target);
        s.y_rows[0] = output(target);
        s.labels[0] = s.weights[0] = 1;
        for (int64_t j = 0; j < task.negative; ++j) {
            const auto to = static_cast<size_t>(j + 1);
            s.y_rows[to] = output(negatives[j]);
            s.labels[to] = 0;
            s.weights[to] = negatives[j] == target ? 0.0f : 1.0f;  // the word itself is no noise
        }
        return task.negative + 1;
    }

    int64_t path(int64_t target) {
        const int64_t begin = target == 0 ? 0 : task.path_ends[target - 1];
        const int64_t n = task.path_ends[target] - begin;
        for (int64_t j = 0; j < n; ++j) {
            const auto to = static_cast<size_t>(j);
            s.y_rows[to] = output(task.path_nodes[begin + j]);
            s.labels[to] = task.path_labels[begin + j];
            s.weights[to] = 1;
        }
        return n;
    }

    // Each word of the window predicts the one in the middle.
    template <int W>
    CUTAWAY_INLINE void skipgram(int64_t at, int64_t from, int64_t to, const uint32_t* negatives, float rate) {
        int64_t m = 0;
        for (int64_t i = from; i < to; ++i) {
            if (i == at) continue;
            float* row = input(s.sentence[static_cast<size_t>(i)]);
            copy<W>(s.x + m * task.stride, row, task.stride);
            s.x_rows[static_cast<size_t>(m++)] = row;
        }
        step<W>(task, s, m, outputs(s.sentence[static_cast<size_t>(at)], negatives), rate);
    }

    template <int W>
    CUTAWAY_INLINE void add_to(float* to, const float* from, float weight) {
        using L = Lanes<W>;
        for (int64_t d = 0; d < task.stride; d += W) L::store(to + d, L::load(to + d) + weight * L::load(from + d));
    }

    CUTAWAY_INLINE void clear(float* row) { std::memset(row, 0, static_cast<size_t>(task.stride) * sizeof(float)); }

    // The window's mean predicts the word in the middle; each word gets an equal part of the gradient (2012.15332).
    template <int W>
    CUTAWAY_INLINE void cbow(int64_t at, int64_t from, int64_t to, const uint32_t* negatives, float rate) {
        const float part = 1.0f / static_cast<float>(to - from - 1);
        clear(s.x);
        clear(s.gradient);
        for (int64_t i = from; i < to; ++i) {
            if (i != at) add_to<W>(s.x, input(s.sentence[static_cast<size_t>(i)]), part);
        }
        s.x_rows[0] = s.gradient;
        step<W>(task, s, 1, outputs(s.sentence[static_cast<size_t>(at)], negatives), rate);
        for (int64_t i = from; i < to; ++i) {
            if (i != at) add_to<W>(input(s.sentence[static_cast<size_t>(i)]), s.gradient, part);
        }
    }

    // The sum of a word's subwords predicts each word of its window; each subword takes an equal part of the step.
    template <int W>
    CUTAWAY_INLINE void subword(int64_t at, int64_t from, int64_t to, const uint32_t* negatives, float rate) {
        const int64_t word = s.sentence[static_cast<size_t>(at)];
        const int64_t begin = word == 0 ? 0 : task.piece_ends[word - 1], end = task.piece_ends[word];
        clear(s.x);
        clear(s.gradient);
        for (int64_t i = begin; i < end; ++i) add_to<W>(s.x, input(task.piece_rows[i]), 1.0f);
        s.x_rows[0] = s.gradient;
        for (int64_t i = from; i < to; ++i) {
            if (i == at) continue;
            step<W>(task, s, 1, outputs(s.sentence[static_cast<size_t>(i)], negatives), rate);
            negatives += task.negative;
        }
        const float part = 1.0f / static_cast<float>(end - begin);
        for (int64_t i = begin; i < end; ++i) add_to<W>(input(task.piece_rows[i]), s.gradient, part);
    }

    // Draws are one word ahead of the steps, so that rows are on their way while the last step is computed.
    template <int W>
    CUTAWAY_INLINE void learn(float rate) {
        const auto length = static_cast<int64_t>(s.sentence.size());
        if (length < 2) return;
        std::vector<uint32_t> negatives;
        draw(0);
        for (int64_t at = 0; at < length; ++at) {
            const int64_t from = first, to = last;
            negatives.swap(s.drawn);
            if (at + 1 < length) draw(at + 1);
            if (at + 2 < length) fetch(output(s.sentence[static_cast<size_t>(at + 2)]), task.stride);
            if (at + task.window + 1 < length) {
                fetch(input(s.sentence[static_cast<size_t>(at + task.window + 1)]), task.stride);
            }
            if (task.kind == Kind::skipgram) skipgram<W>(at, from, to, negatives.data(), rate);
            if (task.kind == Kind::cbow) cbow<W>(at, from, to, negatives.data(), rate);
            if (task.kind == Kind::subword) subword<W>(at, from, to, negatives.data(), rate);
        }
    }
};

using Learn = void (*)(Worker&, float);

CUTAWAY_HOGWILD void learn_base(Worker& worker, float rate) { worker.learn<4>(rate); }
#if defined(CUTAWAY_X86)
CUTAWAY_HOGWILD CUTAWAY_AVX2 void learn_avx2(Worker& worker, float rate) { worker.learn<8>(rate); }
CUTAWAY_HOGWILD CUTAWAY_AVX512 void learn_avx512(Worker& worker, float rate) { worker.learn<8>(rate); }
#endif

Learn path() {
#if defined(CUTAWAY_X86)
    if (isa() >= Isa::avx512) return learn_avx512;
    if (isa() >= Isa::avx2) return learn_avx2;
#endif
    return learn_base;
}

// Where a reader is between a sentence's words, and the words of the vocabulary it passed.
struct Sentences {
    const Task& task;
    const Dictionary& words;
    Reader reader;
    int64_t held = -1;  // a word that was read and begins the next sentence
    Found found = Found::word;

    // The next line's words that are known and kept; false when the piece is over.
    bool next(std::vector<int32_t>& sentence, Random& random, int64_t& passed) {
        sentence.clear();
        bool any = false;
        while (static_cast<int64_t>(sentence.size()) < kSentence) {
            if (held < 0) {
                found = reader.next();
                if (found != Found::word) return any;
                held = words.find(reader.word());
                if (reader.new_line() && any) return true;
                any = true;
                if (held < 0) continue;
            }
            any = true;
            ++passed;
            const float keep = task.keep[held];
            if (keep >= 1 || Random::unit(random.next()) < keep) sentence.push_back(static_cast<int32_t>(held));
            held = -1;
        }
        return true;
    }
};

uint64_t seed_of(uint64_t seed, int64_t epoch, int64_t piece) {
    Random random(seed ^ (static_cast<uint64_t>(epoch) << 40) ^ static_cast<uint64_t>(piece));
    return random.next();
}

Found train_piece(const Task& task, const Dictionary& words, Scratch& scratch, Learn learn, int32_t file,
                  int64_t epoch, int64_t piece, std::atomic<int64_t>& done, int64_t& where) {
    Worker worker{task, scratch, Random(seed_of(task.seed, epoch, piece))};
    Sentences sentences{task, words, Reader(file, piece)};
    int64_t passed = 0;
    while (sentences.next(scratch.sentence, worker.random, passed)) {
        const int64_t before = done.fetch_add(passed, std::memory_order_relaxed);
        passed = 0;
        const float left = 1.0f - static_cast<float>(static_cast<double>(before) / static_cast<double>(task.words));
        learn(worker, std::max(task.least_rate, task.rate * left));
    }
    done.fetch_add(passed, std::memory_order_relaxed);
    where = sentences.reader.where();
    return sentences.found;
}

}  // namespace
}  // namespace cutaway

using namespace cutaway;

// Learns from the pieces [first, last) of an epoch; `done` counts words of the vocabulary over all calls. 0, or
// the Found that stopped it, `where` in the file; -1 when memory is short.
CUTAWAY_API int32_t cutaway_word2vec(const Task* task, const Dictionary* words, int32_t file, int64_t epoch,
                                     int64_t first, int64_t last, int32_t threads, int64_t* done, int64_t* where) {
    const Learn learn = path();
    std::atomic<int64_t> next{first}, count{*done}, place{0};
    std::atomic<int32_t> status{0};
    const int64_t inputs = task->kind == Kind::skipgram ? 2 * task->window : 1;
    const int64_t outputs = task->negative > 0 ? task->negative + 1 : std::max<int64_t>(1, task->longest_path);
    run(threads, [&](int, int) {
        try {
            Scratch scratch(*task, inputs, outputs);
            for (int64_t i = next.fetch_add(1); i < last && status == 0; i = next.fetch_add(1)) {
                int64_t at = 0;
                const Found found = train_piece(*task, *words, scratch, learn, file, epoch, i, count, at);
                if (found == Found::end) continue;
                place = at;
                status = static_cast<int32_t>(found);
            }
        } catch (const std::bad_alloc&) {
            status = -1;
        }
    });
    *done = count;
    *where = place;
    return status;
}
