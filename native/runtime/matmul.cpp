// Matrix times vectors on weights that stay packed. Sixteen rows are stored together (panels.cpp), so that one
// instruction feeds sixteen sums and nothing is added across lanes; vectors are 8-bit numbers by groups of 32, or
// bfloat16 where the weights are.
// cutaway/runtime/matmul.py computes the same.
#include "runtime/matmul.hpp"

#include <algorithm>

#include "core/api.hpp"
#include "core/isa.hpp"
#include "core/thread_pool.hpp"
#include "runtime/matmul_kernels.hpp"
#include "runtime/vectors.hpp"

namespace cutaway {
namespace {

const Kernels& chosen() {
#if defined(CUTAWAY_X86)
    if (isa() >= Isa::avx512 && has_dot_products()) return avx512_kernels();
#if defined(CUTAWAY_AVX_VNNI)
    if (isa() == Isa::avx_vnni) return avx_vnni_kernels();
#endif
    if (isa() >= Isa::avx2) return avx2_kernels();
#elif defined(__aarch64__)
    if (isa() == Isa::neon) return has_dot_products() ? neon_dotprod_kernels() : neon_kernels();
#endif
    return portable_kernels();
}

const Kernel& bf16_kernel() {
#if defined(CUTAWAY_X86)
    if (isa() == Isa::avx512_bf16) return avx512_bf16_kernel();
#endif
    return chosen().bf16;
}

const Kernel& kernel(int32_t type) {
    const Kernels& kernels = chosen();
    switch (type) {
        case kF16: return kernels.f16;
        case kBF16: return bf16_kernel();
        case kQ4_0: return kernels.q4_0;
        case kQ4_1: return kernels.q4_1;
        case kQ5_0: return kernels.q5_0;
        case kQ5_1: return kernels.q5_1;
        case kQ8_0: return kernels.q8_0;
        case kQ2_K: return kernels.q2_k;
        case kQ3_K: return kernels.q3_k;
        case kQ4_K: return kernels.q4_k;
        case kQ5_K: return kernels.q5_k;
        case kQ6_K: return kernels.q6_k;
        case kIQ4_NL: return kernels.iq4_nl;
        case kIQ4_XS: return kernels.iq4_xs;
        case kMXFP4: return kernels.mxfp4;
        default: return kernels.f32;
    }
}

// A type's products with many vectors, where it has some of their own.
Many many_products([[maybe_unused]] int32_t type, const Kernel& of) {
#if defined(CUTAWAY_X86)
    if (isa() == Isa::amx) {
        if (const Many tiles = tiled_products(type); tiles.products != nullptr) return tiles;
    }
    if (isa() >= Isa::avx512 && has_dot_products()) {
        if (const Many groups = grouped_products(type); groups.products != nullptr) return groups;
    }
#endif
    return of.many;
}

// The fewest vectors that are multiplied so. NEON has so few registers that four already gain by it.
int fewest_many() {
#if defined(__aarch64__)
    if (isa() == Isa::neon) return has_dot_products() ? 4 : 2;
#endif
    return kMany;
}

// How many bytes ahead of what it reads a product asks the memory for, a line for each that it reads; 0: for none.
int64_t near_ahead(const Matrix& matrix) {
    const int32_t far = prefetch();
    if (far != kEightBits) return far;
    if (!matrix.reads_eight_bits()) return 0;
    return matrix.type == kQ8_0 ? 1024 : 2304;
}

constexpr int64_t kNear = 192 << 10;  // bytes of vectors that stay in a core's second cache beside a panel
constexpr int64_t kNearTiles = 1 << 20;  // the same, of processors with AMX

}  // namespace

void multiply(const Matrix& matrix, const Vectors& in, int tokens, int first, int last, float* out, int64_t stride,
              Path* path) {
    const Kernel& of = kernel(matrix.type);
    const int64_t bytes = panel_bytes(matrix.type, matrix.columns);
    const int64_t near = near_ahead(matrix);
    if (tokens <= kMostByPairs && of.by_pairs[tokens - 1] != nullptr) {
        for (; first + 1 < last; first += 2, out += 2 * kPanel) {
            if (path != nullptr) path->read(2 * bytes, bytes);
            of.by_pairs[tokens - 1](matrix.panels + first * bytes, matrix.columns, in, 0, out, stride, near);
        }
    }
    const int64_t token_bytes = in.width * (matrix.reads_eight_bits() ? 1 : 4);
    const Many many = many_products(matrix.type, of);
    const int unit = many.tiles ? kMany : of.most;
    const int fit = static_cast<int>(std::max<int64_t>(1, (many.tiles ? kNearTiles : kNear) / token_bytes / unit)) * unit;
    const int at_once = many.tiles ? std::min(fit, kMostTiled) : fit;
    for (int begin = 0; begin < tokens; begin += at_once) {
        const int end = std::min(tokens, begin + at_once);
        const bool enough = many.products != nullptr && (end - begin >= fewest_many() || of.of[0] == nullptr);
        for (int panel = first, panels = 1; panel < last; panel += panels) {
            panels = enough && panel + many.panels <= last ? many.panels : 1;
            const uint8_t* from = matrix.panels + panel * bytes;
            if (path != nullptr) path->read(panels * bytes, 0);
            int64_t ahead = near;  // a panel that is read a second time is in the cache
            float* rows = out + (panel - first) * kPanel;
            int token = begin;
            if (enough && panels == many.panels) {
                token += many.products(from, matrix.columns, in, begin, end - begin, rows + begin * stride, stride, near);
            }
            while (token < end) {
                const int count = std::min(of.most, end - token);
                of.of[count - 1](from, matrix.columns, in, token, rows + token * stride, stride, ahead);
                ahead = 0;
                token += count;
            }
        }
    }
}

}  // namespace cutaway

// out[t rows'] = W x_t for vectors float32 [tokens columns], rows' being the rows filled up to whole panels: what a
// step does with one matrix. Vectors are given as `Vectors` of their own memory.
CUTAWAY_API void cutaway_multiply(const cutaway::Matrix* matrix, const cutaway::Vectors* in, int32_t tokens, float* out,
                                  int32_t threads, cutaway::Parallel parallel) {
    using namespace cutaway;
    const Threads by{threads, parallel};
    split(tokens, 32, by, [&](int64_t first, int64_t last) {
        quantize({in->x + first * in->width, in->width, first, last - first}, 0, in->width / kGroup, *in);
    });
    const int64_t stride = matrix->panel_count() * kPanel;
    split(matrix->panel_count(), 4, by, [&](int64_t first, int64_t last) {
        multiply(*matrix, *in, tokens, static_cast<int>(first), static_cast<int>(last), out + first * kPanel, stride);
    });
}
