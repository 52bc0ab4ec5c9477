// Which instruction set this process uses: found once from the processor, lowered by cutaway_isa_use.
#pragma once

#include <bit>
#include <cstdint>

namespace cutaway {

// Sixteen bytes, a panel's rows' or any: lanes_*.inc make lanes of them.
typedef uint8_t RowBytes __attribute__((vector_size(16)));

// Ordered within one architecture. avx512 means F, BW, DQ and VL, avx512_bf16 VNNI and products of bfloat16 too, amx tiles
// of bytes besides; avx2 means AVX2, FMA, F16C and BMI 1 and 2, avx_vnni the sums of four products of bytes too, which not every
// processor with avx512 has in AVX2's registers.
enum class Isa : int32_t { portable = 0, neon = 1, avx2 = 2, avx_vnni = 3, avx512 = 4, avx512_bf16 = 5, amx = 6 };

// The best set that the processor has and the operating system saves. Where a product of pairs of bfloat16 takes longer than
// the products of floats in its place (measured once a process), avx512 is better than avx512_bf16.
Isa best_isa();

// The set in use: best_isa(), unless a lower one was asked for.
Isa isa();

// Whether the processor multiplies and sums four bytes a lane in one instruction: AVX-512 VNNI, NEON dotprod.
bool has_dot_products();

// Whether the set in use has tiles of bfloat16 too.
bool multiplies_bf16_tiles();

}  // namespace cutaway

#if defined(__x86_64__)
#define CUTAWAY_X86 1
#if defined(__linux__) && (__has_include(<amxint8intrin.h>) || __has_include(<amxintrin.h>))
#define CUTAWAY_TILES 1  // AMX: the compiler knows it, and the system can be asked for it
#endif
// A kernel is one always-inlined body; these instantiate it for one instruction set each.
#define CUTAWAY_AVX2 __attribute__((target("avx2,fma,f16c")))
#if __has_include(<avxvnniintrin.h>)
#define CUTAWAY_AVX_VNNI __attribute__((target("avx2,fma,f16c,avxvnni")))  // the compiler knows it
#endif
// For code that counts and shifts bits: everything that it calls is instantiated with it.
#define CUTAWAY_BITS __attribute__((target("avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt"), flatten))
#if defined(__clang__)
#define CUTAWAY_AVX512 \
    __attribute__((target("avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl"), min_vector_width(512)))
#else
#define CUTAWAY_AVX512 \
    __attribute__((target("avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#endif
#endif

#if defined(CUTAWAY_X86)
#if defined(__clang__)
#define CUTAWAY_BF16 \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16"), \
                   min_vector_width(512)))
#else
#define CUTAWAY_BF16 \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16," \
                          "prefer-vector-width=512")))
#endif
#if defined(__clang__)
#define CUTAWAY_VNNI \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"), min_vector_width(512)))
#else
#define CUTAWAY_VNNI \
    __attribute__(( \
        target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,prefer-vector-width=512")))
#endif
#elif defined(__aarch64__)
#if defined(__clang__)
#define CUTAWAY_DOTPROD __attribute__((target("dotprod")))
#else
#define CUTAWAY_DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#endif

// Before a short loop over what is in registers. With a sanitizer's checks unrolled they take minutes to compile.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CUTAWAY_UNROLL_8
#else
#define CUTAWAY_UNROLL_8 _Pragma("GCC unroll 8")
#endif
#define CUTAWAY_UNROLL CUTAWAY_UNROLL_8

// Before a loop whose body is long enough: unrolled it would be more code, and not sooner done.
#if defined(__clang__)
#define CUTAWAY_ROLLED _Pragma("clang loop unroll(disable)")
#else
#define CUTAWAY_ROLLED _Pragma("GCC unroll 1")
#endif

// Before a short loop whose iterations are lanes: left alone, a compiler unrolls it first and then packs
// badly.
#if defined(__clang__)
#define CUTAWAY_LANES _Pragma("clang loop vectorize(enable) interleave(disable)")
#else
#define CUTAWAY_LANES _Pragma("GCC unroll 1")
#endif

#define CUTAWAY_INLINE inline __attribute__((always_inline))
