// Softmax attention over a KV cache in pages of 128 positions: keys and values as halves, as bytes or as four bits.
#pragma once

#include <cstdint>

namespace cutaway {

inline constexpr int kPage = 128;    // positions of a page, and of one piece of work
inline constexpr int kShared = 32;   // numbers of a key or value that share a scale, where they are not halves

// What a KV cache holds. cutaway/runtime/cache_formats.py has the same. Floats are an encoder's, which keeps nothing
// between calls.
enum Cache : int32_t { kHalves = 0, kBytes = 1, kNibbles = 2, kFloats = 3 };

// A head's view of a page: its query, which positions [first, last) of the page it sees, and what a position of distance
// takes from a score (ALiBi, 2108.12409); the query itself is at `at` of the page. Of `chosen` [2] it sees those positions
// alone whose bits are set (DeepSeek sparse attention, 2512.02556).
struct Look {
    const float* query;
    int first, last;
    float alibi = 0.0f;
    int at = 0;
    const uint64_t* chosen = nullptr;
    const float* relative = nullptr;  // what is added to the score of each position of the page, or null
};
inline bool is_set(const uint64_t* bits, int position) { return (bits[position / 64] >> position % 64 & 1) != 0; }

// What rows gathered from some pages: values weighted by e^(score - highest), and the sum of the weights.
struct Gathered {
    float highest, weight;
};

// Keys of one group in a page: blocks of 16 positions, in each of them key_size times sixteen numbers. Values: one
// row of `value_stride` numbers (a multiple of 16) a position. Numbers that are no halves are filled up to whole groups of
// 32, and followed by a scale a group, a half: of keys sixteen positions side by side, of values group by group. Of four
// bits, byte j of a group has number j in its lower half and j + 16 in its upper one, raised by eight.
struct PageOf {
    uint16_t* keys;
    uint16_t* values;
    int key_size, value_stride;
    int32_t cache = kHalves;
    // Latent attention: values hold the keys too, and the first `latent` numbers of each are what is mixed; 0: others.
    int latent = 0;

    int mixed() const { return latent > 0 ? latent : value_stride; }  // numbers of a row that is gathered

    static int filled(int size) { return (size + kShared - 1) / kShared * kShared; }
    // Halves that the keys or values of a page take, with their scales.
    static int64_t halves(int32_t cache, int size) {
        if (cache == kHalves) return static_cast<int64_t>(kPage) * size;
        return static_cast<int64_t>(kPage) * (filled(size) / (cache == kBytes ? 2 : 4) + filled(size) / kShared);
    }
    uint16_t* scales(uint16_t* of, int size) const {
        return of + static_cast<int64_t>(kPage) * filled(size) / (cache == kBytes ? 2 : 4);
    }
};

// Rows of one group over one page. softcap 0: none. mixed [rows page.mixed()] and gathered [rows] are written.
void attend_page(const PageOf& page, const Look* rows, int count, float softcap, float* mixed, Gathered* gathered);

// Scores of one row over a page, capped and lowered by their distance, into scores [kPage]; those of positions it does not see are not written.
void score_page(const PageOf& page, const Look& row, float softcap, float* scores);

// mixed [page.mixed()]: the values of the first `count` positions of a page, weighted, in their order.
void mix_page(const PageOf& page, int count, const float* weights, float* mixed);

// into += more, both unnormalised: pages are added in their order, whichever threads did them.
void merge(float* into, Gathered& in, const float* more, const Gathered& seen, int size);

// Stores a key or value of a page's position where attend_page reads it.
void store_key(const PageOf& page, int slot, const float* key);
void store_value(const PageOf& page, int value_size, int slot, const float* value);

}  // namespace cutaway
