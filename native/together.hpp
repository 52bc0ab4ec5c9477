// Merging several short pieces at once, so that the memory of one is waited for while others are at work: first sight
// of a piece is a walk through a table of pairs that no cache holds, where each step tells the address of the next.
//
// Each round, every lane looks up the two pairs that its last merge made and chooses the lowest of all; then every lane
// merges it. Either half has the memory fetched that the other one reads. Pairs of bytes have a table of their own.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "isa.hpp"
#include "vocabulary.hpp"

namespace cutaway {

class Together {
  public:
    static constexpr size_t kLanes = 16;
    static constexpr size_t kLongest = 15;  // bytes of a piece

    struct Lane {
        const uint8_t* text;
        uint32_t count;  // bytes, and then symbols
        uint32_t place;   // of the last merge
        uint32_t lowest;  // number and place of the next one, times 16 and plus
        std::array<uint32_t, 32> symbols;
        std::array<uint32_t, 32> pairs;  // the number of each symbol's pair with the next, times 16
    };

    explicit Together(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {}

    // Merges the pieces of the lanes: text and count are given.
    void merge(Lane* lanes, size_t count) const {
#if defined(CUTAWAY_X86)
        if (isa() >= Isa::avx2) return merge_bits(lanes, count);
#endif
        merge_all(lanes, count);
    }

  private:
    static constexpr uint32_t kNoPair = kNone - 15;

    const Vocabulary& vocabulary_;

#if defined(CUTAWAY_X86)
    CUTAWAY_BITS void merge_bits(Lane* lanes, size_t count) const { merge_all(lanes, count); }
#endif

    CUTAWAY_INLINE void merge_all(Lane* lanes, size_t count) const {
        std::array<uint8_t, kLanes> at_work;
        for (size_t i = 0; i < count; ++i) {
            begin(lanes[i]);
            at_work[i] = static_cast<uint8_t>(i);
        }
        for (size_t left = count; left > 0;) {
            size_t kept = 0;
            for (size_t i = 0; i < left; ++i) {
                const uint8_t lane = at_work[i];
                at_work[kept] = lane;
                kept += choose(lanes[lane]);
            }
            left = kept;
            for (size_t i = 0; i < left; ++i) merge(lanes[at_work[i]]);
        }
    }

    CUTAWAY_INLINE void begin(Lane& lane) const {
        lane.pairs.fill(kNoPair);
        const uint32_t* symbols = vocabulary_.header().byte_symbols;
        for (uint32_t i = 0; i < lane.count; ++i) lane.symbols[i] = symbols[lane.text[i]];
        for (uint32_t i = 0; i + 1 < lane.count; ++i) {
            lane.pairs[i] = scaled(vocabulary_.byte_pair(lane.text[i], lane.text[i + 1]));
        }
        lane.place = kNone;
    }

    static uint32_t scaled(uint32_t pair) { return pair == kNone ? kNoPair : pair * 16; }

    // Looks up the pairs that the last merge made, and chooses the next one; false when there is none.
    CUTAWAY_INLINE bool choose(Lane& lane) const {
        if (const uint32_t place = lane.place; place != kNone) {
            if (place > 0) lane.pairs[place - 1] = between(lane, place - 1);
            if (place + 1 < lane.count) lane.pairs[place] = between(lane, place);
        }
        uint32_t lowest = kNone;
        for (uint32_t i = 0; i < 16; ++i) lowest = std::min(lowest, lane.pairs[i] | i);
        lane.lowest = lowest;
        if (lowest >= kNoPair) return false;
        vocabulary_.ask_made(lowest / 16);
        return true;
    }

    CUTAWAY_INLINE void merge(Lane& lane) const {
        const uint32_t place = lane.place = lane.lowest & 15;
        lane.symbols[place] = vocabulary_.made(lane.lowest / 16);
        close(lane.symbols, place + 1);
        close(lane.pairs, place);
        --lane.count;
        if (place > 0) vocabulary_.ask_pair(lane.symbols[place - 1], lane.symbols[place]);
        if (place + 1 < lane.count) vocabulary_.ask_pair(lane.symbols[place], lane.symbols[place + 1]);
    }

    CUTAWAY_INLINE uint32_t between(const Lane& lane, uint32_t place) const {
        return scaled(vocabulary_.pair(lane.symbols[place], lane.symbols[place + 1]));
    }

    // Takes out one value; what is behind moves up.
    static CUTAWAY_INLINE void close(std::array<uint32_t, 32>& values, uint32_t place) {
        uint32_t behind[16];
        std::memcpy(behind, values.data() + place + 1, sizeof behind);
        std::memcpy(values.data() + place, behind, sizeof behind);
    }
};

}  // namespace cutaway
