// Softmax attention over a KV cache in pages of 128 positions, keys and values as halves.
#pragma once

#include <cstdint>

namespace cutaway {

inline constexpr int kPage = 128;    // positions of a page, and of one piece of work

// A head's view of a page: its query, which positions [first, last) of the page it sees, and what a position of distance
// takes from a score (ALiBi, 2108.12409); the query itself is at `at` of the page.
struct Look {
    const float* query;
    int first, last;
    float alibi = 0.0f;
    int at = 0;
};

// What rows gathered from some pages: values weighted by e^(score - highest), and the sum of the weights.
struct Gathered {
    float highest, weight;
};

// Keys of one group in a page: blocks of 16 positions, in each of them key_size times sixteen halves. Values: one
// row of `value_stride` halves (a multiple of 16) a position.
struct PageOf {
    const uint16_t* keys;
    const uint16_t* values;
    int key_size, value_stride;
};

// Rows of one group over one page. softcap 0: none. mixed [rows value_stride] and gathered [rows] are written.
void attend_page(const PageOf& page, const Look* rows, int count, float softcap, float* mixed, Gathered* gathered);

// Scores of one row over a page, capped and lowered by their distance, into scores [kPage]; those of positions it does not see are not written.
void score_page(const PageOf& page, const Look& row, float softcap, float* scores);

// into += more, both unnormalised: pages are added in their order, whichever threads did them.
void merge(float* into, Gathered& in, const float* more, const Gathered& seen, int size);

// Stores a key or value where attend_page reads it.
void store_key(uint16_t* keys, int key_size, int slot, const float* key);
void store_value(uint16_t* values, int value_stride, int value_size, int slot, const float* value);

}  // namespace cutaway
