// SplitMix64: small, fast, and two lines in Python, so that the reference draws the same numbers.
#pragma once

#include <cstdint>

namespace cutaway {

class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}

    uint64_t next() {
        uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }

    // 0 .. count-1, from the upper 32 bits.
    static uint32_t below(uint64_t drawn, uint64_t count) { return static_cast<uint32_t>((drawn >> 32) * count >> 32); }

    // In [0, 1), from the lower 24 bits.
    static float unit(uint64_t drawn) { return static_cast<float>(drawn & 0xffffff) * 0x1p-24f; }

  private:
    uint64_t state_;
};

}  // namespace cutaway
