// Sums of products of matrices of floats by AMX, which multiplies pairs of bfloat16 at sixteen times the speed at which
// AVX-512 multiplies floats. Each float is split into two of bfloat16, x = high + low, to 2^-17 of it, and
//
//     x w = high high' + high low' + low high'      summed in floats; low low' is below 2^-17 of |x| |w|
//
// Depth is cut into blocks of 32 numbers, these into segments. All workers lay out a segment of A as tiles; then each takes
// panels of columns, lays one out, which stays in its second cache, and multiplies all rows by it: their sums stay in
// registers for as long as the segment is. A row's sums do not depend on other rows, nor on the thread.
// The reference is torch's product, in tests/test_native_product.py.
#include "train/product.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/api.hpp"
#include "core/isa.hpp"
#include "core/thread_pool.hpp"

#if defined(CUTAWAY_TILES)
#include <immintrin.h>

namespace cutaway {
namespace {

#define CUTAWAY_AMX \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")))
#define AMX CUTAWAY_AMX static inline __attribute__((always_inline))

constexpr int64_t kSide = 16, kDepth = 32;        // of a tile: rows or columns, and numbers of depth
constexpr int64_t kTile = kSide * kDepth;         // numbers of bfloat16
constexpr int64_t kPair = 2 * kSide;              // rows or columns of a quad of tiles
constexpr int64_t kBlocks = 25;                   // of a segment at most
constexpr int64_t kRowsBytes = 8 << 20;           // of rows that are laid out at once
constexpr int64_t kPanelBytes = 1 << 20;          // of a worker's panel: half a second cache
constexpr int64_t kLeast = 4;                     // pairs of columns for which a worker more pays

int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// A block of depth: of which product, from where on, and how many numbers.
struct Block {
    const Factors* of;
    int64_t first, count;
};

// The blocks of all products, a segment's at a time.
class Segments {
  public:
    explicit Segments(const Sum& sum) : of_(sum.of), last_(sum.of + sum.count) {
        int64_t blocks = 0;
        for (const Factors* each = of_; each != last_; ++each) blocks += rounded_up(each->depth, kDepth) / kDepth;
        size_ = longest(blocks);
    }
    // Blocks of a segment, at most: all have as many, but for the last.
    static int64_t longest(int64_t blocks) {
        const int64_t segments = std::max<int64_t>(1, (blocks + kBlocks - 1) / kBlocks);
        return (blocks + segments - 1) / segments;
    }
    int64_t size() const { return size_; }
    // Fills the next segment; returns its blocks, 0 behind the last.
    int64_t next(Block* to) {
        int64_t count = 0;
        for (; count < size_ && of_ != last_; at_ += kDepth) {
            if (at_ >= of_->depth) {
                ++of_;
                at_ = -kDepth;
                continue;
            }
            to[count++] = {of_, at_, std::min(kDepth, of_->depth - at_)};
        }
        return count;
    }

  private:
    const Factors *of_, *last_;
    int64_t at_ = 0, size_;
};

struct Split {
    __m256i high, low;
};

AMX Split split_of(__m512 x) {
    const __m256i high = (__m256i)_mm512_cvtneps_pbh(x);
    const __m512 rest = _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
    return {high, (__m256i)_mm512_cvtneps_pbh(rest)};
}

AMX __mmask16 first_of(int64_t count) {
    return static_cast<__mmask16>(count >= kSide ? 0xffff : count <= 0 ? 0 : (1 << count) - 1);
}

// Thirty-two numbers side by side, of which there are `count`.
struct Wide {
    __m512i high, low;
};
AMX Wide wide(const float* x, int64_t count) {
    const Split a = split_of(_mm512_maskz_loadu_ps(first_of(count), x));
    const Split b = split_of(_mm512_maskz_loadu_ps(first_of(count - kSide), x + kSide));
    return {_mm512_inserti64x4(_mm512_castsi256_si512(a.high), b.high, 1),
            _mm512_inserti64x4(_mm512_castsi256_si512(a.low), b.low, 1)};
}

// Prefetches sixteen vectors that the next tile reads at the same depth: each line of the first is in memory alone.
AMX void ask_next(const float* from, int64_t vector) {
    for (int64_t i = 0; i < kSide; ++i) {
        const float* next = from + (kSide + i) * vector;
        __builtin_prefetch(next, 0, 2);
        __builtin_prefetch(next + kSide, 0, 2);
    }
}

// A tile of A, high and low: 16 rows, of which there are `rows`.
CUTAWAY_AMX static void lay_rows(const Block& block, int64_t row, int64_t rows, uint16_t* to) {
    const float* from = block.of->a + row * block.of->a_row + block.first;
    ask_next(from, block.of->a_row);
    for (int64_t r = 0; r < kSide; ++r, to += kDepth) {
        const Wide x = r < rows ? wide(from + r * block.of->a_row, block.count) : Wide{};
        _mm512_store_si512(to, x.high);
        _mm512_store_si512(to + kTile, x.low);
    }
}

// Lines and columns of words change places.
AMX void transpose(__m512i (&x)[kSide]) {
    __m512i y[kSide];
    for (int i = 0; i < 16; i += 4) {
        const __m512i a = _mm512_unpacklo_epi32(x[i], x[i + 1]), b = _mm512_unpackhi_epi32(x[i], x[i + 1]);
        const __m512i c = _mm512_unpacklo_epi32(x[i + 2], x[i + 3]), d = _mm512_unpackhi_epi32(x[i + 2], x[i + 3]);
        y[i] = _mm512_unpacklo_epi64(a, c);
        y[i + 1] = _mm512_unpackhi_epi64(a, c);
        y[i + 2] = _mm512_unpacklo_epi64(b, d);
        y[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    for (int i = 0; i < 4; ++i) {
        const __m512i a = _mm512_shuffle_i32x4(y[i], y[i + 4], 0x88), b = _mm512_shuffle_i32x4(y[i], y[i + 4], 0xdd);
        const __m512i c = _mm512_shuffle_i32x4(y[i + 8], y[i + 12], 0x88);
        const __m512i d = _mm512_shuffle_i32x4(y[i + 8], y[i + 12], 0xdd);
        x[i] = _mm512_shuffle_i32x4(a, c, 0x88);
        x[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
        x[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
        x[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
}

AMX __m512i pairs(__m256i even, __m256i odd) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
}

// A tile of B, high and low: 16 columns, of which there are `columns`; pairs of depth side by side.
CUTAWAY_AMX static void lay_columns(const Block& block, int64_t column, int64_t columns, uint16_t* to) {
    const Factors& of = *block.of;
    const float* from = of.b + block.first * of.b_row + column * of.b_column;
    if (of.b_row == 1) {
        ask_next(from, of.b_column);
        __m512i high[kSide], low[kSide];
        for (int64_t c = 0; c < kSide; ++c) {
            const Wide x = c < columns ? wide(from + c * of.b_column, block.count) : Wide{};
            high[c] = x.high;
            low[c] = x.low;
        }
        transpose(high);
        transpose(low);
        for (int64_t i = 0; i < kSide; ++i) {
            _mm512_store_si512(to + i * kDepth, high[i]);
            _mm512_store_si512(to + kTile + i * kDepth, low[i]);
        }
        return;
    }
    const __mmask16 there = first_of(columns);
    for (int64_t d = 0; d < kDepth; d += 2, to += kDepth) {
        const float* row = from + d * of.b_row;
        __builtin_prefetch(row + kSide, 0, 2);
        __builtin_prefetch(row + of.b_row + kSide, 0, 2);
        const Split a = split_of(_mm512_maskz_loadu_ps(d < block.count ? there : 0, row));
        const Split b = split_of(_mm512_maskz_loadu_ps(d + 1 < block.count ? there : 0, row + of.b_row));
        _mm512_store_si512(to, pairs(a.high, b.high));
        _mm512_store_si512(to + kTile, pairs(a.low, b.low));
    }
}

AMX void configure() {
    alignas(64) uint8_t config[64] = {1};
    for (int tile = 0; tile < 8; ++tile) {
        config[16 + 2 * tile] = 64;
        config[48 + tile] = 16;
    }
    _tile_loadconfig(config);
}

// Two by two tiles of sums in tiles 0 to 3: rows a and a', columns b and b'. A block of a row's tile is high and low.
AMX void add_blocks(const uint16_t* a, const uint16_t* b, int64_t blocks) {
    const uint16_t *a2 = a + blocks * 2 * kTile, *b2 = b + blocks * 2 * kTile;
    for (int64_t i = 0; i < blocks; ++i, a += 2 * kTile, a2 += 2 * kTile, b += 2 * kTile, b2 += 2 * kTile) {
        _tile_loadd(4, a + kTile, 64);
        _tile_loadd(6, b, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b2, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a2 + kTile, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(4, a, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a2, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(6, b + kTile, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, b2 + kTile, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
}

// Adds a segment to [32 32] of out, or makes it of the segment alone.
AMX void quad(const uint16_t* a, const uint16_t* b, int64_t blocks, float* out, int64_t stride, bool adds) {
    const int64_t bytes = stride * 4;
    if (adds) {
        _tile_loadd(0, out, bytes);
        _tile_loadd(1, out + kSide, bytes);
        _tile_loadd(2, out + kSide * stride, bytes);
        _tile_loadd(3, out + kSide * stride + kSide, bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    add_blocks(a, b, blocks);
    _tile_stored(0, out, bytes);
    _tile_stored(1, out + kSide, bytes);
    _tile_stored(2, out + kSide * stride, bytes);
    _tile_stored(3, out + kSide * stride + kSide, bytes);
}

struct Range {
    int64_t first, last;
    int64_t size() const { return last - first; }
};

// The i-th of `parts` parts of `pairs` pairs of tiles, which differ by a pair at most, in rows or columns.
Range part_of(int64_t pairs, int64_t parts, int64_t i) { return {pairs * i / parts * kPair, pairs * (i + 1) / parts * kPair}; }

int64_t pairs_in(int64_t n) { return (n + kPair - 1) / kPair; }

int64_t pair_bytes(int64_t blocks) { return 4 * blocks * kTile * static_cast<int64_t>(sizeof(uint16_t)); }

// How a segment is cut: rows that are laid out at once, panels of columns, and parts of the rows for which a panel is laid
// out again, so that there is work for all workers.
struct Cut {
    int64_t rows, panels, parts;

    Cut(int64_t of_rows, int64_t columns, int64_t blocks, int64_t workers) {
        const int64_t pairs = std::max<int64_t>(1, pairs_in(columns)), down = std::max<int64_t>(1, pairs_in(of_rows));
        const int64_t most = std::max<int64_t>(1, kRowsBytes / pair_bytes(blocks)), slabs = (down + most - 1) / most;
        rows = (down + slabs - 1) / slabs * kPair;
        panels = (pairs + widest(blocks) - 1) / widest(blocks);
        if (panels < 4 * workers) panels = rounded_up(panels, std::min(workers, std::max<int64_t>(1, pairs / kLeast)));
        panels = std::min(panels, pairs);
        parts = std::min(pairs_in(rows), (workers + panels - 1) / panels);
    }
    // Pairs of columns in a panel, at most.
    static int64_t widest(int64_t blocks) { return std::max<int64_t>(1, kPanelBytes / pair_bytes(blocks)); }
    int64_t pairs_of_panel(int64_t columns) const { return (pairs_in(columns) + panels - 1) / panels; }
};

// Lays out a panel's columns. Numbers that are neighbours in memory are read one after another.
CUTAWAY_AMX static void lay_panel(const Sum& sum, const Range& columns, const Block* blocks, int64_t count, uint16_t* to) {
    const int64_t tiles = columns.size() / kSide, tile = count * 2 * kTile;
    const auto lay = [&](int64_t t, int64_t i) {
        const int64_t column = columns.first + t * kSide;
        lay_columns(blocks[i], column, sum.columns - column, to + t * tile + i * 2 * kTile);
    };
    if (blocks->of->b_row == 1) {
        for (int64_t t = 0; t < tiles; ++t) {
            for (int64_t i = 0; i < count; ++i) lay(t, i);
        }
    } else {
        for (int64_t i = 0; i < count; ++i) {
            for (int64_t t = 0; t < tiles; ++t) lay(t, i);
        }
    }
}

// Rows and columns are laid out from the first of each range on.
CUTAWAY_AMX static void multiply(const Sum& sum, const Range& of_rows, const Range& of_columns, const uint16_t* rows,
                                 const uint16_t* columns, int64_t blocks, bool adds) {
    alignas(64) float edge[kPair * kPair];
    const int64_t pair = 4 * blocks * kTile;
    configure();
    for (int64_t row = of_rows.first; row < of_rows.last; row += kPair, rows += pair) {
        const int64_t high = std::min(kPair, sum.rows - row);
        const uint16_t* b = columns;
        for (int64_t column = of_columns.first; column < of_columns.last; column += kPair, b += pair) {
            const int64_t wide = std::min(kPair, sum.columns - column);
            float* out = sum.out + row * sum.out_row + column;
            if (wide == kPair && high == kPair) {
                quad(rows, b, blocks, out, sum.out_row, adds);
                continue;
            }
            for (int64_t r = 0; adds && r < high; ++r) std::memcpy(edge + r * kPair, out + r * sum.out_row, wide * 4);
            quad(rows, b, blocks, edge, kPair, adds);
            for (int64_t r = 0; r < high; ++r) std::memcpy(out + r * sum.out_row, edge + r * kPair, wide * 4);
        }
    }
    _tile_release();
}

// Rows from `top` on are laid out, and multiplied by all columns.
void multiply_slab(const Sum& sum, const Cut& cut, int64_t top, const Block* blocks, int64_t count, bool adds, Threads by) {
    auto* const rows = reinterpret_cast<uint16_t*>(sum.scratch);
    auto* const panels = rows + cut.rows / kPair * 4 * count * kTile;
    const int64_t pairs = pairs_in(std::min(cut.rows, sum.rows - top)), tile = count * 2 * kTile;
    split(2 * pairs, 8, by, [&](int64_t first, int64_t last) {
        for (int64_t t = first; t < last; ++t) {
            const int64_t row = top + t * kSide;
            for (int64_t i = 0; i < count; ++i) lay_rows(blocks[i], row, sum.rows - row, rows + t * tile + i * 2 * kTile);
        }
    });
    std::atomic<int64_t> worker{0}, next{0};
    const int64_t items = cut.panels * cut.parts;
    by.count = static_cast<int32_t>(std::min<int64_t>(by.count, items));
    run(by, [&](int, int) {
        uint16_t* const panel = panels + worker.fetch_add(1) * cut.pairs_of_panel(sum.columns) * 4 * count * kTile;
        for (int64_t i = next.fetch_add(1); i < items; i = next.fetch_add(1)) {
            const Range columns = part_of(pairs_in(sum.columns), cut.panels, i / cut.parts);
            const Range part = part_of(pairs, cut.parts, i % cut.parts);
            lay_panel(sum, columns, blocks, count, panel);
            multiply(sum, {top + part.first, top + part.last}, columns, rows + part.first / kSide * tile, panel, count, adds);
        }
    });
}

void multiply(const Sum& sum, Threads by) {
    Block blocks[kBlocks];
    Segments segments(sum);
    const Cut cut(sum.rows, sum.columns, segments.size(), std::max(by.count, 1));
    bool adds = sum.adds != 0;
    for (int64_t count = segments.next(blocks); count > 0; count = segments.next(blocks), adds = true) {
        for (int64_t top = 0; top < sum.rows; top += cut.rows) multiply_slab(sum, cut, top, blocks, count, adds, by);
    }
}

}  // namespace
}  // namespace cutaway
#endif

// Bytes of scratch for a sum of such a size, whose products have `blocks` blocks of 32 numbers of depth; 0 where this
// processor has no such tiles.
CUTAWAY_API int64_t cutaway_sum_of_products_scratch(int64_t rows, int64_t columns, int64_t blocks, int32_t threads) {
    using namespace cutaway;
#if defined(CUTAWAY_TILES)
    if (!multiplies_bf16_tiles()) return 0;
    const int64_t of = Segments::longest(std::max<int64_t>(blocks, 1));
    threads = std::max(threads, 1);
    const Cut cut(rows, columns, of, threads);
    return (cut.rows / kPair + threads * cut.pairs_of_panel(columns)) * pair_bytes(of);
#else
    (void)rows, (void)columns, (void)blocks, (void)threads;
    return 0;
#endif
}

CUTAWAY_API void cutaway_sum_of_products(const cutaway::Sum* sum, int32_t threads, cutaway::Parallel parallel) {
#if defined(CUTAWAY_TILES)
    cutaway::multiply(*sum, {threads, parallel});
#else
    (void)sum, (void)threads, (void)parallel;
#endif
}
