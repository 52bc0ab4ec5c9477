// Merges several short pieces at once: while one waits for memory, others work. A piece that was not seen before is a
// walk through a table of pairs that no cache holds, where each step gives the address of the next.
//
// A step of a lane looks up the two pairs that its last merge made, merges the lowest of all, and has the memory
// fetched that its next step reads. Only a lane's end is a branch on the text. Pairs of bytes have a table of their own.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/isa.hpp"
#include "tokenizer/vocabulary.hpp"

#if defined(CUTAWAY_X86)
#include <immintrin.h>
#endif

namespace cutaway {

class Together {
  public:
    static constexpr size_t kLanes = 32;
    static constexpr size_t kLongest = 15;  // bytes of a piece

    struct alignas(64) Lane {
        std::array<uint32_t, 48> symbols;  // from kFirst on, with borders on both sides
        std::array<uint32_t, 48> pairs;    // the number of each symbol's pair with the next, times 16
        const uint8_t* text;  // 16 bytes may be read
        uint32_t count;       // bytes, and then symbols
        uint32_t place;  // of the last merge
        uint32_t lowest;  // pair, and its place
        Vocabulary::Pair left, right;  // what it made

        const uint32_t* first() const { return symbols.data() + kFirst; }
    };

    explicit Together(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {}

    // Merges the pieces of the lanes: text and count are given.
    void merge(Lane* lanes, size_t count) const {
#if defined(CUTAWAY_X86)
        if (isa() >= Isa::avx512) return merge_avx512(lanes, count);
        if (isa() >= Isa::avx2) return merge_bits(lanes, count);
#endif
        merge_all(lanes, count);
    }

  private:
    static constexpr size_t kFirst = 16;  // where a vector register's worth begins
    static constexpr uint32_t kNoPair = kNoNumber << 4;

    const Vocabulary& vocabulary_;

#if defined(CUTAWAY_X86)
    // A step in three passes over the lanes, so that what one stores is there when it is loaded as a vector.
    CUTAWAY_AVX512 void merge_avx512(Lane* lanes, size_t count) const {
        std::array<uint8_t, kLanes> at_work;
        size_t left = 0;
        for (size_t i = 0; i < count; ++i) {
            begin_avx512(lanes[i]);
            at_work[left] = static_cast<uint8_t>(i);
            left += lowest_avx512(lanes[i]);
        }
        while (left > 0) {
            for (size_t i = 0; i < left; ++i) merge_lowest_avx512(lanes[at_work[i]]);
            for (size_t i = 0; i < left; ++i) {
                Lane& lane = lanes[at_work[i]];
                lane.pairs[kFirst + lane.place - 1] = vocabulary_.number_avx512(lane.left) << 4;
                lane.pairs[kFirst + lane.place] = vocabulary_.number_avx512(lane.right) << 4;
            }
            size_t kept = 0;
            for (size_t i = 0; i < left; ++i) {
                at_work[kept] = at_work[i];
                kept += lowest_avx512(lanes[at_work[i]]);
            }
            left = kept;
        }
    }
    CUTAWAY_BITS void merge_bits(Lane* lanes, size_t count) const { merge_all(lanes, count); }
#endif

    CUTAWAY_INLINE void merge_all(Lane* lanes, size_t count) const {
        std::array<uint8_t, kLanes> at_work;
        size_t left = 0;
        for (size_t i = 0; i < count; ++i) {
            begin(lanes[i]);
            at_work[left] = static_cast<uint8_t>(i);
            left += advance(lanes[i]);
        }
        while (left > 0) {
            size_t kept = 0;
            for (size_t i = 0; i < left; ++i) {
                Lane& lane = lanes[at_work[i]];
                at_work[kept] = at_work[i];
                lane.pairs[kFirst + lane.place - 1] = vocabulary_.number(lane.left) << 4;
                lane.pairs[kFirst + lane.place] = vocabulary_.number(lane.right) << 4;
                kept += advance(lane);
            }
            left = kept;
        }
    }

    CUTAWAY_INLINE void begin(Lane& lane) const {
        lane.symbols.fill(kBorder);
        lane.pairs.fill(kNoPair);
        const uint32_t* symbols = vocabulary_.header().byte_symbols;
        for (uint32_t i = 0; i < lane.count; ++i) lane.symbols[kFirst + i] = symbols[lane.text[i]];
        for (uint32_t i = 0; i + 1 < lane.count; ++i) {
            lane.pairs[kFirst + i] = std::min(vocabulary_.byte_pair(lane.text[i], lane.text[i + 1]), kNoNumber) << 4;
        }
    }

    // Merges the lowest pair; false when there is none.
    CUTAWAY_INLINE bool advance(Lane& lane) const {
        uint32_t lowest = kNone;
        for (uint32_t i = 0; i < 16; ++i) lowest = std::min(lowest, lane.pairs[kFirst + i] | i);
        if (lowest >= kNoPair) return false;
        const size_t at = kFirst + (lowest & 15);
        lane.symbols[at] = vocabulary_.made(lowest >> 4);
        close(lane.symbols, at + 1);
        close(lane.pairs, at);
        ask(lane, at);
        return true;
    }

    // Notes where the last merge was, and prefetches the pairs that it made.
    CUTAWAY_INLINE void ask(Lane& lane, size_t at) const {
        lane.place = static_cast<uint32_t>(at - kFirst);
        --lane.count;
        lane.left = vocabulary_.pair_of(lane.symbols[at - 1], lane.symbols[at]);
        lane.right = vocabulary_.pair_of(lane.symbols[at], lane.symbols[at + 1]);
        vocabulary_.ask(lane.left);
        vocabulary_.ask(lane.right);
    }

    // Takes out one value; what is behind moves up.
    static CUTAWAY_INLINE void close(std::array<uint32_t, 48>& values, size_t place) {
        uint32_t behind[15];
        std::memcpy(behind, values.data() + place + 1, sizeof behind);
        std::memcpy(values.data() + place, behind, sizeof behind);
    }

#if defined(CUTAWAY_X86)
    CUTAWAY_AVX512 CUTAWAY_INLINE void begin_avx512(Lane& lane) const {
        const __m128i text = _mm_loadu_si128(reinterpret_cast<const __m128i*>(lane.text));
        const __m512i here = _mm512_cvtepu8_epi32(text), next = _mm512_cvtepu8_epi32(_mm_bsrli_si128(text, 1));
        const auto all = static_cast<__mmask16>((1u << lane.count) - 1);
        const __m512i border = _mm512_set1_epi32(static_cast<int>(kBorder));
        const __m512i symbols =
            _mm512_mask_i32gather_epi32(border, all, here, vocabulary_.header().byte_symbols, 4);
        const __m512i none = _mm512_set1_epi32(static_cast<int>(kNoNumber));
        const __m512i two = _mm512_or_si512(_mm512_slli_epi32(here, 8), next);
        const __m512i pairs = _mm512_mask_i32gather_epi32(none, all >> 1, two, vocabulary_.byte_pairs(), 4);
        _mm512_store_si512(lane.symbols.data() + kFirst, symbols);
        _mm512_store_si512(lane.pairs.data() + kFirst, _mm512_slli_epi32(_mm512_min_epu32(pairs, none), 4));
        lane.symbols[kFirst - 1] = lane.symbols[kFirst + 16] = kBorder;
    }

    // Finds the lowest pair; false when there is none.
    CUTAWAY_AVX512 CUTAWAY_INLINE bool lowest_avx512(Lane& lane) const {
        const auto* pairs = reinterpret_cast<const __m256i*>(lane.pairs.data() + kFirst);
        const __m256i low = _mm256_or_si256(_mm256_load_si256(pairs), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        const __m256i high = _mm256_or_si256(_mm256_load_si256(pairs + 1), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15));
        const __m256i four = _mm256_min_epu32(low, high);
        __m128i one = _mm_min_epu32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
        one = _mm_min_epu32(one, _mm_shuffle_epi32(one, 0x4E));
        one = _mm_min_epu32(one, _mm_shuffle_epi32(one, 0xB1));
        lane.lowest = static_cast<uint32_t>(_mm_cvtsi128_si32(one));
        return lane.lowest < kNoPair;
    }

    CUTAWAY_AVX512 CUTAWAY_INLINE void merge_lowest_avx512(Lane& lane) const {
        const uint32_t place = lane.lowest & 15;
        uint32_t* symbols = lane.symbols.data() + kFirst;
        uint32_t* pairs = lane.pairs.data() + kFirst;
        // The last entry is the border, which pairs with nothing.
        _mm512_store_si512(pairs, _mm512_permutexvar_epi32(without(place), _mm512_load_si512(pairs)));
        _mm512_store_si512(symbols, _mm512_permutexvar_epi32(without(place + 1), _mm512_load_si512(symbols)));
        symbols[place] = vocabulary_.made(lane.lowest >> 4);
        ask(lane, kFirst + place);
    }

    // The places of a register without one, and the last one twice.
    static CUTAWAY_AVX512 CUTAWAY_INLINE __m512i without(uint32_t place) {
        static constexpr auto kWithout = [] {
            std::array<std::array<uint32_t, 16>, 16> out{};
            for (uint32_t one = 0; one < 16; ++one) {
                for (uint32_t i = 0; i < 16; ++i) out[one][i] = std::min(i + (i >= one), 15u);
            }
            return out;
        }();
        return _mm512_loadu_si512(kWithout[place].data());
    }
#endif
};

}  // namespace cutaway
