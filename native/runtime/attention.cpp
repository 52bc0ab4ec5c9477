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
    void (*store_key)(uint16_t* keys, int key_size, int slot, const float* key);
    void (*store_value)(uint16_t* values, int value_stride, int value_size, int slot, const float* value);
};

// Numbers that share a scale as whole ones: `give(i, q)` for each, and the scale as a half.
template <class F>
uint16_t shared_scale(int32_t cache, const float* x, int count, const F& give) {
    float most = 0.0f;  // the number of the largest magnitude
    for (int i = 0; i < count; ++i) {
        if (std::fabs(x[i]) > std::fabs(most)) most = x[i];
    }
    const float least = cache == kBytes ? -127.0f : -8.0f;
    const float wanted = cache == kBytes ? std::fabs(most) / 127.0f : most / least;
    const uint16_t scale = float_to_half(std::clamp(wanted, -65504.0f, 65504.0f));
    const float given = half_to_float(scale), inverse = given == 0.0f ? 0.0f : 1.0f / given;
    const float highest = cache == kBytes ? 127.0f : 7.0f;
    for (int i = 0; i < kShared; ++i) {
        const float q = i < count ? std::nearbyint(x[i] * inverse) : 0.0f;
        give(i, static_cast<int>(std::clamp(q, least, highest)));
    }
    return scale;
}

// Where number i of a group goes: `at(i)` is its byte among bytes, and `at(i % 16)` among nibbles.
template <class F>
uint16_t put(int32_t cache, const float* x, int count, const F& at) {
    return shared_scale(cache, x, count, [&](int i, int q) {
        if (cache == kBytes) {
            *at(i) = static_cast<uint8_t>(static_cast<int8_t>(q));
        } else if (i < kShared / 2) {
            *at(i) = static_cast<uint8_t>(q + 8);
        } else {
            *at(i - kShared / 2) |= static_cast<uint8_t>((q + 8) << 4);
        }
    });
}

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

void store_key(const PageOf& page, int slot, const float* key) {
    if (page.cache == kHalves) return chosen().store_key(page.keys, page.key_size, slot, key);
    if (page.cache == kFloats) {
        float* at = reinterpret_cast<float*>(page.keys) + static_cast<int64_t>(slot / 16 * 16) * page.key_size + slot % 16;
        for (int d = 0; d < page.key_size; ++d) at[16 * d] = key[d];
        return;
    }
    const int groups = PageOf::filled(page.key_size) / kShared, bytes = page.cache == kBytes ? kShared : kShared / 2;
    uint16_t* scales = page.scales(page.keys, page.key_size);
    for (int g = 0; g < groups; ++g) {
        const int64_t group = static_cast<int64_t>(slot / 16) * groups + g;
        uint8_t* numbers = reinterpret_cast<uint8_t*>(page.keys) + 16 * group * bytes + slot % 16;
        const int count = std::min(kShared, page.key_size - kShared * g);
        scales[16 * group + slot % 16] =
            put(page.cache, key + kShared * g, count, [&](int i) { return numbers + 16 * i; });
    }
}

void store_value(const PageOf& page, int value_size, int slot, const float* value) {
    if (page.cache == kHalves) return chosen().store_value(page.values, page.value_stride, value_size, slot, value);
    if (page.cache == kFloats) {
        std::copy_n(value, value_size, reinterpret_cast<float*>(page.values) + static_cast<int64_t>(slot) * page.value_stride);
        return;
    }
    const int groups = PageOf::filled(page.value_stride) / kShared, bytes = page.cache == kBytes ? kShared : kShared / 2;
    uint16_t* scales = page.scales(page.values, page.value_stride);
    for (int g = 0; g < groups; ++g) {
        const int64_t group = static_cast<int64_t>(slot) * groups + g;
        uint8_t* numbers = reinterpret_cast<uint8_t*>(page.values) + group * bytes;
        const int count = std::clamp(value_size - kShared * g, 0, kShared);
        scales[group] = put(page.cache, value + kShared * g, count, [&](int i) { return numbers + i; });
    }
}

}  // namespace cutaway
