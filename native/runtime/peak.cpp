// The processor's peak of 8-bit multiply-adds, with which `cutaway bench` compares prefill.
#include <cstdint>
#include <cstring>

#include "core/api.hpp"
#include "core/half.hpp"
#include "core/isa.hpp"
#include "runtime/matmul.hpp"

#if defined(CUTAWAY_X86)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace cutaway {
namespace {

#define CUTAWAY_MULTIPLIES_BYTES
#define CUTAWAY_KERNELS "runtime/peak.inc"
#include "core/each_isa.inc"

#if defined(CUTAWAY_TILES)
// Whole tiles of AMX: 16 vectors times 16 rows over 64 columns.
__attribute__((target("amx-tile,amx-int8"))) int64_t tiles(const uint8_t* bytes, int64_t rounds, int32_t* out) {
    alignas(64) uint8_t config[64] = {1};
    for (int i = 0; i < 6; ++i) {
        config[16 + 2 * i] = 64;
        config[48 + i] = 16;
    }
    _tile_loadconfig(config);
    _tile_loadd(4, bytes, 64);
    _tile_loadd(5, bytes, 64);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t i = 0; i < rounds; ++i) {
        _tile_dpbssd(0, 4, 5);
        _tile_dpbssd(1, 4, 5);
        _tile_dpbssd(2, 4, 5);
        _tile_dpbssd(3, 4, 5);
    }
    _tile_stored(0, out, 64);
    _tile_stored(1, out, 64);
    _tile_stored(2, out, 64);
    _tile_stored(3, out, 64);
    _tile_release();
    return rounds * 4 * 16 * 16 * 64;
}
#endif

}  // namespace
}  // namespace cutaway

// Makes products of ones on the calling thread, and says how many.
CUTAWAY_API int64_t cutaway_products(int64_t rounds) {
    using namespace cutaway;
    alignas(64) uint8_t bytes[1024];
    alignas(64) int32_t out[256];
    std::memset(bytes, 1, sizeof bytes);
#if defined(CUTAWAY_TILES)
    const int64_t made = isa() == Isa::amx ? tiles(bytes, rounds, out) : chosen()(bytes, rounds, out);
#else
    const int64_t made = chosen()(bytes, rounds, out);
#endif
    volatile int32_t used = out[0];
    return made + 0 * used;
}
