// binary16 and bfloat16 to binary32 and back, without hardware.
#pragma once

#include <bit>
#include <cstdint>

namespace cutaway {

// Without a float32 subnormal, whose handling the caller's thread may have changed; without a branch, which
// would keep the loops around it from becoming lanes.
inline __attribute__((always_inline)) float half_to_float(uint16_t bits) {
    const uint32_t sign = (bits & 0x8000u) << 16;
    const uint32_t exponent = bits & 0x7c00u;
    const uint32_t fraction = bits & 0x03ffu;
    // Infinities and NaN, whose exponent is the largest, stay what they are.
    const uint32_t rebias = (exponent == 0x7c00u ? 224u : 112u) << 23;
    const uint32_t normal = ((exponent | fraction) << 13) + rebias;
    const float smallest = static_cast<float>(static_cast<int32_t>(fraction)) * 0x1p-24f;
    const uint32_t mask = 0u - static_cast<uint32_t>(exponent == 0);
    return std::bit_cast<float>(sign | (std::bit_cast<uint32_t>(smallest) & mask) | (normal & ~mask));
}

// To the nearest, halves to even; what is too large becomes infinite.
inline uint16_t float_to_half(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (size >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
    if (size < 0x38800000u) {  // a half's subnormal: adding 0.5 aligns its last bit with the float's
        const float moved = std::bit_cast<float>(size) + 0.5f;
        return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(moved) - 0x3f000000u));
    }
    const uint32_t rounded = size + 0xfffu + ((size >> 13) & 1) - (112u << 23);
    return static_cast<uint16_t>(sign | (rounded >> 13));
}

// bfloat16 is the upper half of a float; floats are themselves, for what is written once for both.
inline __attribute__((always_inline)) float as_float(float x) { return x; }
inline __attribute__((always_inline)) float as_float(uint16_t x) {
    return std::bit_cast<float>(static_cast<uint32_t>(x) << 16);
}

// To the nearest, halves to even; what is no number stays none.
template <typename T>
inline __attribute__((always_inline)) T rounded(float x) {
    if constexpr (sizeof(T) == sizeof(float)) {
        return x;
    } else {
        const uint32_t bits = std::bit_cast<uint32_t>(x);
        const uint32_t nearest = bits + 0x7fff + ((bits >> 16) & 1), quiet = bits | 0x400000;
        return static_cast<T>((x == x ? nearest : quiet) >> 16);
    }
}

}  // namespace cutaway
