// Softmax attention over pages of the state (FlashAttention's running softmax, 2205.14135; its split over the
// state for decoding, FlashDecoding). A page is one piece of work whose result does not depend on the thread, and
// pages are merged in their order: the same bits for every number of threads and every chunking of the text.
// The reference implementation is cutaway/runtime/attention.py.
#include "runtime/attention.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/half.hpp"
#include "core/isa.hpp"
#include "runtime/vectors.hpp"

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
    decltype(&cutaway::store_key) store_key;
    decltype(&cutaway::store_value) store_value;
};

#define CUTAWAY_KERNELS "runtime/attention.inc"
#include "core/each_isa.inc"

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
    chosen().store_key(keys, key_size, slot, key);
}

void store_value(uint16_t* values, int value_stride, int value_size, int slot, const float* value) {
    chosen().store_value(values, value_stride, value_size, slot, value);
}

}  // namespace cutaway
