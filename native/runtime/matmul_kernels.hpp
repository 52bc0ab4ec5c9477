// What the instruction sets give matmul.cpp: each compiles matmul.inc in a file of its own, since compilers take as long for
// one of them as for a dozen other files.
#pragma once

#include "core/isa.hpp"
#include "runtime/matmul.hpp"

namespace cutaway {

// `near`: how many bytes ahead of what it reads a product asks the memory for; 0: it does not.
using Product = void (*)(const uint8_t* panel, int64_t columns, const Vectors& in, int token, float* out,
                         int64_t stride, int64_t near);

inline constexpr int kMostVectors = 8;  // of any instruction set
inline constexpr int kMostByPairs = 2;  // vectors with which two panels are read side by side
inline constexpr int kMany = 16;        // vectors for which a panel is unpacked in memory; a tile's
inline constexpr int kMostTiled = 256;  // that a call takes whose sums are tiles

// Returns for how many of the vectors.
using ManyProducts = int (*)(const uint8_t* panel, int64_t columns, const Vectors& in, int token, int count, float* out,
                             int64_t stride, int64_t near);

// Products with many vectors of so many panels at once, whose rows go behind each other; `tiles`: by AMX's.
struct Many {
    ManyProducts products = nullptr;
    int panels = 1;
    bool tiles = false;
};

// A type's products of one panel with 1, 2, ... `most` vectors at once, of two panels with 1 and 2, and with many vectors,
// where those have a way of their own.
struct Kernel {
    Product of[kMostVectors];
    Product by_pairs[kMostByPairs];
    int most;
    Many many;
};

struct Kernels {
    Kernel f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs, mxfp4;
};

const Kernels& portable_kernels();
#if defined(CUTAWAY_X86)
const Kernels& avx2_kernels();
#if defined(CUTAWAY_AVX_VNNI)
const Kernels& avx_vnni_kernels();
#endif
const Kernels& avx512_kernels();
const Kernel& avx512_bf16_kernel();
// A type's products with many vectors by tiles, or of bytes where weights have a scale for each 32; none of other types.
Many tiled_products(int32_t type);
Many grouped_products(int32_t type);
#elif defined(__aarch64__)
const Kernels& neon_kernels();
const Kernels& neon_dotprod_kernels();
#endif

}  // namespace cutaway
