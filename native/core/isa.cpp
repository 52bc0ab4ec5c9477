// Instruction sets by cpuid and xgetbv. The compiler's own __builtin_cpu_supports is not used: under zig it
// answers no to everything, because zig leaves out the run-time support that fills its table.
#include "core/isa.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "core/api.hpp"

#if defined(CUTAWAY_X86)
#include <cpuid.h>
#include <immintrin.h>
#if defined(CUTAWAY_TILES)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace cutaway {
namespace {

#if defined(CUTAWAY_X86)
uint64_t saved_registers() {
    uint32_t low = 0;
    uint32_t high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<uint64_t>(high) << 32) | low;
}

bool has(uint32_t word, uint32_t bits) { return (word & bits) == bits; }

bool has_vnni() {
    uint32_t a = 0, b = 0, c = 0, d = 0;
    constexpr uint32_t vnni = 1u << 11;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && has(c, vnni);
}

bool has_bf16_products() {
    uint32_t a = 0, b = 0, c = 0, d = 0;
    constexpr uint32_t bf16 = 1u << 5;
    return has_vnni() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && has(a, bf16);
}

bool has_avx_vnni() {
#if defined(CUTAWAY_AVX_VNNI)
    uint32_t a = 0, b = 0, c = 0, d = 0;
    constexpr uint32_t vnni = 1u << 4;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && has(a, vnni);
#else
    return false;
#endif
}

// Tiles are a process's own to ask for, since they make what the system saves of a thread larger by 8 KB.
bool has_tiles(uint64_t saved) {
#if defined(CUTAWAY_TILES)
    uint32_t a = 0, b = 0, c = 0, d = 0;
    constexpr uint32_t tile = 1u << 24, int8 = 1u << 25;
    constexpr uint64_t state = 3u << 17;
    constexpr long ask = 0x1023, data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return (saved & state) == state && __get_cpuid_count(7, 0, &a, &b, &c, &d) && has(d, tile | int8) &&
           syscall(SYS_arch_prctl, ask, data) == 0;
#else
    (void)saved;
    return false;
#endif
}

#if defined(CUTAWAY_TILES)
bool has_bf16_tiles() {
    uint32_t a = 0, b = 0, c = 0, d = 0;
    constexpr uint32_t bf16 = 1u << 22;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && has(d, bf16);
}
#endif

constexpr int kChains = 10, kRounds = 200;  // as many sums as hide an instruction's latency

CUTAWAY_AVX512 float floats() {
    __m512 sum[kChains] = {};
    __m512 ones = _mm512_set1_ps(1.0f);
    __asm__ volatile("" : "+v"(ones));
    for (int i = 0; i < kRounds; ++i) {
        for (int t = 0; t < kChains; ++t) sum[t] = _mm512_fmadd_ps(ones, ones, sum[t]);
    }
    for (int t = 1; t < kChains; ++t) sum[0] = _mm512_add_ps(sum[0], sum[t]);
    return _mm512_cvtss_f32(sum[0]);
}

CUTAWAY_BF16 float pairs_of_bf16() {
    __m512 sum[kChains] = {};
    __m512i ones = _mm512_set1_epi16(0x3f80);
    __asm__ volatile("" : "+v"(ones));
    const auto pairs = (__m512bh)ones;
    for (int i = 0; i < kRounds; ++i) {
        for (int t = 0; t < kChains; ++t) sum[t] = _mm512_dpbf16_ps(sum[t], pairs, pairs);
    }
    for (int t = 1; t < kChains; ++t) sum[0] = _mm512_add_ps(sum[0], sum[t]);
    return _mm512_cvtss_f32(sum[0]);
}

int64_t nanoseconds(float (*of)()) {
    const auto begin = std::chrono::steady_clock::now();
    volatile float used = of();
    (void)used;
    return std::chrono::nanoseconds(std::chrono::steady_clock::now() - begin).count();
}

// Whether a product of pairs of bfloat16 takes no longer than the two products of floats that do the same: measured here,
// in less than a twentieth of a millisecond. (On a Zen 4 it pays; Intel's take two cycles and more, in which they multiply
// four times as many floats.)
bool bf16_pays() {
    int64_t alone = INT64_MAX, paired = INT64_MAX;
    for (int turn = 0; turn < 9; ++turn) {
        alone = std::min(alone, nanoseconds(floats));
        paired = std::min(paired, nanoseconds(pairs_of_bf16));
    }
    return paired <= 2 * alone;
}

Isa detect() {
    uint32_t a = 0, b = 0, c = 0, d = 0;
    constexpr uint32_t osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29, fma = 1u << 12;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, osxsave | avx | f16c | fma)) return Isa::portable;
    constexpr uint64_t ymm = 0x06, zmm = 0xe6;
    const uint64_t saved = saved_registers();
    if ((saved & ymm) != ymm || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return Isa::portable;
    constexpr uint32_t avx2 = 1u << 5 | 1u << 3 | 1u << 8;  // with BMI 1 and 2, which came together
    constexpr uint32_t avx512 = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);  // F DQ BW VL
    if (!has(b, avx2)) return Isa::portable;
    if (!has(b, avx512) || (saved & zmm) != zmm) return has_avx_vnni() ? Isa::avx_vnni : Isa::avx2;
    if (!has_bf16_products()) return Isa::avx512;
    return has_tiles(saved) ? Isa::amx : Isa::avx512_bf16;
}

bool detect_dot_products() { return best_isa() >= Isa::avx512 && has_vnni(); }
#elif defined(__aarch64__)
Isa detect() { return Isa::neon; }  // part of the base architecture
bool has_avx_vnni() { return false; }
bool detect_dot_products() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & (1u << 20)) != 0;  // HWCAP_ASIMDDP
#else
    return true;  // every processor of Apple's that runs this
#endif
}
#else
Isa detect() { return Isa::portable; }
bool has_avx_vnni() { return false; }
bool detect_dot_products() { return false; }
#endif

// The best of all sets that the processor has.
Isa highest() {
    static const Isa found = detect();
    return found;
}

std::atomic<int32_t> in_use{-1};

}  // namespace

Isa best_isa() {
#if defined(CUTAWAY_X86)
    static const Isa best = highest() == Isa::avx512_bf16 && !bf16_pays() ? Isa::avx512 : highest();
#else
    static const Isa best = highest();
#endif
    return best;
}

bool multiplies_bf16_tiles() {
#if defined(CUTAWAY_TILES)
    static const bool there = has_bf16_tiles();
    return isa() == Isa::amx && there;
#else
    return false;
#endif
}

bool has_dot_products() {
    static const bool there = detect_dot_products();
    return there;
}

Isa isa() {
    const int32_t asked = in_use.load(std::memory_order_relaxed);
    return asked < 0 ? best_isa() : static_cast<Isa>(asked);
}

}  // namespace cutaway

CUTAWAY_API int32_t cutaway_abi() { return cutaway::kAbi; }

CUTAWAY_API int32_t cutaway_isa_best() { return static_cast<int32_t>(cutaway::best_isa()); }

// Uses a set from now on; returns 0, or -1 when this processor does not have it.
CUTAWAY_API int32_t cutaway_isa_use(int32_t level) {
    using cutaway::Isa;
    const Isa highest = cutaway::highest(), asked = static_cast<Isa>(level);
    const bool lower = asked >= Isa::avx2 && asked <= highest;
    if (asked != Isa::portable && asked != highest && !lower) return -1;
    if (asked == Isa::avx_vnni && !cutaway::has_avx_vnni()) return -1;
    cutaway::in_use.store(level, std::memory_order_relaxed);
    return 0;
}
