// Softmax attention over pages of the state (FlashAttention's running softmax, 2205.14135; its split over the
// state for decoding, FlashDecoding). A page is one piece of work whose result does not depend on who does it, and
// pages are merged in their order: the same bits for every number of threads and every chunking of the text.
// The definition (cutaway/attention) is the judge, in tests/test_runtime.py.
#include "attention.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "half.hpp"
#include "isa.hpp"

#if defined(CUTAWAY_X86)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace cutaway {
namespace {

struct Functions {
    decltype(&cutaway::attend_page) attend_page;
    decltype(&cutaway::score_page) score_page;
    decltype(&cutaway::merge) merge;
};

#define CUTAWAY_STORY "attention.inc"
#include "each_isa.inc"

}  // namespace

void attend_page(const PageOf& page, const Look* rows, int count, float softcap, float* mixed, Gathered* gathered) {
    chosen().attend_page(page, rows, count, softcap, mixed, gathered);
}

void score_page(const PageOf& page, const Look& row, float softcap, float* scores) {
    chosen().score_page(page, row, softcap, scores);
}

void merge(float* into, Gathered& in, const float* more, const Gathered& seen, int size) {
    chosen().merge(into, in, more, seen, size);
}

void store_key(uint16_t* keys, int key_size, int slot, const float* key) {
    uint16_t* at = keys + static_cast<int64_t>(slot / 16 * 16) * key_size + slot % 16;
    for (int d = 0; d < key_size; ++d) at[16 * d] = float_to_half(key[d]);
}

void store_value(uint16_t* values, int value_stride, int value_size, int slot, const float* value) {
    uint16_t* at = values + static_cast<int64_t>(slot) * value_stride;
    for (int d = 0; d < value_size; ++d) at[d] = float_to_half(value[d]);
}

}  // namespace cutaway
