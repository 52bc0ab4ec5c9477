// AMX in C++, in place of the compiler's intrinsics: a sanitizer sees what this reads and writes, and not what an
// instruction does. A sanitized build includes it before every source (CMakeLists.txt).
#pragma once

#if defined(__x86_64__) && __has_include(<amxint8intrin.h>)
#include <immintrin.h>

#include <bit>
#include <cstdint>
#include <cstring>

namespace cutaway::check {

// The eight tiles of a thread and their sizes. Sums of bfloat16 differ from the processor's by their rounding.
struct Tiles {
    uint8_t bytes[8][16][64];
    uint16_t wide[8];  // bytes of a row
    uint8_t rows[8];

    void configure(const void* from) {
        const auto* config = static_cast<const uint8_t*>(from);
        std::memcpy(wide, config + 16, sizeof wide);
        std::memcpy(rows, config + 48, sizeof rows);
        std::memset(bytes, 0, sizeof bytes);
    }
    void release() { *this = {}; }
    void zero(int tile) { std::memset(bytes[tile], 0, sizeof bytes[tile]); }
    void read(int tile, const void* from, int64_t stride) {
        for (int r = 0; r < rows[tile]; ++r) {
            std::memcpy(bytes[tile][r], static_cast<const uint8_t*>(from) + r * stride, wide[tile]);
        }
    }
    void write(int tile, void* to, int64_t stride) const {
        for (int r = 0; r < rows[tile]; ++r) {
            std::memcpy(static_cast<uint8_t*>(to) + r * stride, bytes[tile][r], wide[tile]);
        }
    }
    // to += a b, b's rows holding `count` numbers of a column side by side.
    template <class Sum, class Number, class Product>
    void multiply(int to, int a, int b, const Product& product) {
        constexpr int count = 4 / sizeof(Number);
        for (int m = 0; m < rows[to]; ++m) {
            for (int n = 0; n < wide[to] / 4; ++n) {
                Sum sum;
                std::memcpy(&sum, bytes[to][m] + 4 * n, sizeof sum);
                for (int k = 0; k < wide[a] / 4; ++k) {
                    Number x[count], y[count];
                    std::memcpy(x, bytes[a][m] + 4 * k, sizeof x);
                    std::memcpy(y, bytes[b][k] + 4 * n, sizeof y);
                    for (int i = 0; i < count; ++i) sum += product(x[i], y[i]);
                }
                std::memcpy(bytes[to][m] + 4 * n, &sum, sizeof sum);
            }
        }
    }
    void multiply_bytes(int to, int a, int b) {
        multiply<int32_t, int8_t>(to, a, b, [](int32_t x, int32_t y) { return x * y; });
    }
    void multiply_bf16(int to, int a, int b) {
        const auto wider = [](uint32_t x) { return std::bit_cast<float>(x << 16); };
        multiply<float, uint16_t>(to, a, b, [&](uint16_t x, uint16_t y) { return wider(x) * wider(y); });
    }
};

inline thread_local Tiles tiles;

}  // namespace cutaway::check

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbssd
#undef _tile_dpbf16ps
#define _tile_loadconfig(from) cutaway::check::tiles.configure(from)
#define _tile_release() cutaway::check::tiles.release()
#define _tile_loadd(tile, from, stride) cutaway::check::tiles.read(tile, from, stride)
#define _tile_stored(tile, to, stride) cutaway::check::tiles.write(tile, to, stride)
#define _tile_zero(tile) cutaway::check::tiles.zero(tile)
#define _tile_dpbssd(to, a, b) cutaway::check::tiles.multiply_bytes(to, a, b)
#define _tile_dpbf16ps(to, a, b) cutaway::check::tiles.multiply_bf16(to, a, b)
#endif
