// Packed weights to float32, for every GGML type that Cutaway reads. cutaway/quantization/formats.py states each
// block's layout and computes the same bits: the order of operations here is the reference's, and nothing may be
// fused (-ffp-contract=off). Each type is one plain body, compiled once for each instruction set.
#include <bit>
#include <cstring>

#include "core/api.hpp"
#include "core/half.hpp"
#include "core/isa.hpp"
#include "core/levels.hpp"
#include "core/thread_pool.hpp"

namespace cutaway {
namespace {

using Bytes = const uint8_t* __restrict;
using Floats = float* __restrict;

// A number at any address: blocks have odd sizes, and files are mapped where they lie.
template <class T>
CUTAWAY_INLINE T load(Bytes in) {
    T value;
    std::memcpy(&value, in, sizeof value);
    return value;
}

CUTAWAY_INLINE float half(Bytes in) { return half_to_float(load<uint16_t>(in)); }

CUTAWAY_INLINE float number(int value) { return static_cast<float>(value); }

struct F32 {
    static constexpr int block = 32, bytes = 128;
    static CUTAWAY_INLINE void unpack(Bytes in, Floats out) { std::memcpy(out, in, bytes); }
};

struct F16 {
    static constexpr int block = 32, bytes = 64;
    static CUTAWAY_INLINE void unpack(Bytes in, Floats out) {
        CUTAWAY_LANES for (int i = 0; i < block; ++i) out[i] = half(in + 2 * i);
    }
};

struct BF16 {
    static constexpr int block = 32, bytes = 64;
    static CUTAWAY_INLINE void unpack(Bytes in, Floats out) {
        CUTAWAY_LANES for (int i = 0; i < block; ++i) {
            out[i] = std::bit_cast<float>(static_cast<uint32_t>(load<uint16_t>(in + 2 * i)) << 16);
        }
    }
};

struct Q4_0 {
    static constexpr int block = 32, bytes = 18;
    static CUTAWAY_INLINE void unpack(Bytes in, Floats out) {
        const float scale = half(in);
        CUTAWAY_LANES for (int i = 0; i < 16; ++i) out[i] = scale * number((in[2 + i] & 15) - 8);
        CUTAWAY_LANES for (int i = 0; i < 16; ++i) out[16 + i] = scale * number((in[2 + i] >> 4) - 8);
    }
};

struct Q4_1 {
    static constexpr int block = 32, bytes = 20;
    static CUTAWAY_INLINE void unpack(Bytes in, Floats out) {
        const float scale = half(in), least = half(in + 2);
        CUTAWAY_LANES for (int i = 0; i < 16; ++i) out[i] = scale * number(in[4 + i] & 15) + least;
        CUTAWAY_LANES for (int i = 0; i < 16; ++i) out[16 + i] = scale * number(in[4 + i] >> 4) + least;
    }
};

// The fifth bits of 32 values: bit i of a 32-bit word belongs at bit 4 of value i.
CUTAWAY_INLINE int fifth(uint32_t bits, int i) { return static_cast<int>(((bits >> i) & 1) << 4); }

struct Q5_0 {
    static constexpr int block = 32, bytes = 22;
    static CUTAWAY_INLINE void unpack(Bytes in, Floats out) {
        const float scale = half(in);
        const uint32_t low = load<uint32_t>(in + 2), high = low >> 16;
        CUTAWAY_LANES for (int i = 0; i < 16; ++i) {
            out[i] = scale * number(((in[6 + i] & 15) | fifth(low, i)) - 16);
        }
        CUTAWAY_LANES for (int i = 0; i < 16; ++i) {
            out[16 + i] = scale * number(((in[6 + i] >> 4) | fifth(high, i)) - 16);
        }
    }
};

struct Q5_1 {
    static constexpr int block = 32, bytes = 24;
    static CUTAWAY_INLINE void unpack(Bytes in, Floats out) {
        const float scale = half(in), least = half(in + 2);
        const uint32_t low = load<uint32_t>(in + 4), high = low >> 16;
        CUTAWAY_LANES for (int i = 0; i < 16; ++i) {
            out[i] = scale * number((in[8 + i] & 15) | fifth(low, i)) + least;
        }
        CUTAWAY_LANES for (int i = 0; i < 16; ++i) {
            out[16 + i] = scale * number((in[8 + i] >> 4) | fifth(high, i)) + least;
        }
    }
};

struct Q8_0 {
    static constexpr int block = 32, bytes = 34;
    static CUTAWAY_INLINE void unpack(Bytes in, Floats out) {
        const float scale = half(in);
        CUTAWAY_LANES for (int i = 0; i < block; ++i) out[i] = scale * number(static_cast<int8_t>(in[2 + i]));
    }
};

CUTAWAY_INLINE void looked_up(const int8_t* table, float scale, Bytes nibbles, Floats out) {
    CUTAWAY_LANES for (int i = 0; i < 16; ++i) out[i] = scale * number(table[nibbles[i] & 15]);
    CUTAWAY_LANES for (int i = 0; i < 16; ++i) out[16 + i] = scale * number(table[nibbles[i] >> 4]);
}

struct IQ4_NL {
    static constexpr int block = 32, bytes = 18;
    static CUTAWAY_INLINE void unpack(Bytes in, Floats out) { looked_up(kLevels, half(in), in + 2, out); }
};

struct IQ4_XS {
    static constexpr int block = 256, bytes = 136;
    static CUTAWAY_INLINE void unpack(Bytes in, Floats out) {
        const float scale = half(in);
        for (int group = 0; group < 8; ++group) {
            const int low = (in[4 + group / 2] >> (4 * (group % 2))) & 15;
            const int high = (in[2 + group / 4] >> (2 * (group % 4))) & 3;
            looked_up(kLevels, scale * number((low | (high << 4)) - 32), in + 8 + 16 * group, out + 32 * group);
        }
    }
};

struct MXFP4 {
    static constexpr int block = 32, bytes = 17;
    static CUTAWAY_INLINE void unpack(Bytes in, Floats out) {
        const uint32_t e = in[0];
        const uint32_t scale = e < 2 ? 0x00200000u << e : (e - 1) << 23;  // 2^(e - 128)
        looked_up(kTwiceE2M1, std::bit_cast<float>(scale), in + 1, out);
    }
};

struct Q2_K {
    static constexpr int block = 256, bytes = 84;
    static CUTAWAY_INLINE void unpack(Bytes in, Floats out) {
        const float scale = half(in + 80), least = half(in + 82);
        for (int group = 0; group < 16; ++group) {
            const Bytes quants = in + 16 + 32 * (group / 8) + 16 * (group % 2);
            const int shift = 2 * (group / 2 % 4);
            const float d = scale * number(in[group] & 15), m = least * number(in[group] >> 4);
            const Floats to = out + 16 * group;
            CUTAWAY_LANES for (int i = 0; i < 16; ++i) to[i] = d * number((quants[i] >> shift) & 3) - m;
        }
    }
};

struct Q3_K {
    static constexpr int block = 256, bytes = 110;
    static CUTAWAY_INLINE void unpack(Bytes in, Floats out) {
        const Bytes scales = in + 96;
        const float scale = half(in + 108);
        for (int group = 0; group < 16; ++group) {
            const int low = (scales[group % 8] >> (4 * (group / 8))) & 15;
            const int high = (scales[8 + group % 4] >> (2 * (group / 4))) & 3;
            const float d = scale * number((low | (high << 4)) - 32);
            const Bytes quants = in + 32 + 32 * (group / 8) + 16 * (group % 2);
            const Bytes mask = in + 16 * (group % 2);
            const int shift = 2 * (group / 2 % 4), bit = group / 2;
            const Floats to = out + 16 * group;
            CUTAWAY_LANES for (int i = 0; i < 16; ++i) {
                to[i] = d * number(((quants[i] >> shift) & 3) - 4 + 4 * ((mask[i] >> bit) & 1));
            }
        }
    }
};

// Eight 6-bit scales and eight 6-bit minima in twelve bytes, as Q4_K and Q5_K keep them.
struct Scales {
    uint8_t scale[8], least[8];

    CUTAWAY_INLINE explicit Scales(Bytes in) {
        for (int i = 0; i < 4; ++i) {
            scale[i] = in[i] & 63;
            least[i] = in[4 + i] & 63;
            scale[4 + i] = static_cast<uint8_t>((in[8 + i] & 15) | ((in[i] >> 2) & 48));
            least[4 + i] = static_cast<uint8_t>((in[8 + i] >> 4) | ((in[4 + i] >> 2) & 48));
        }
    }
};

struct Q4_K {
    static constexpr int block = 256, bytes = 144;
    static CUTAWAY_INLINE void unpack(Bytes in, Floats out) {
        const float scale = half(in), least = half(in + 2);
        const Scales of(in + 4);
        for (int group = 0; group < 8; ++group) {
            const Bytes quants = in + 16 + 32 * (group / 2);
            const int shift = 4 * (group % 2);
            const float d = scale * number(of.scale[group]), m = least * number(of.least[group]);
            const Floats to = out + 32 * group;
            CUTAWAY_LANES for (int i = 0; i < 32; ++i) to[i] = d * number((quants[i] >> shift) & 15) - m;
        }
    }
};

struct Q5_K {
    static constexpr int block = 256, bytes = 176;
    static CUTAWAY_INLINE void unpack(Bytes in, Floats out) {
        const float scale = half(in), least = half(in + 2);
        const Scales of(in + 4);
        const Bytes high = in + 16;
        for (int group = 0; group < 8; ++group) {
            const Bytes quants = in + 48 + 32 * (group / 2);
            const int shift = 4 * (group % 2);
            const float d = scale * number(of.scale[group]), m = least * number(of.least[group]);
            const Floats to = out + 32 * group;
            CUTAWAY_LANES for (int i = 0; i < 32; ++i) {
                to[i] = d * number(((quants[i] >> shift) & 15) | (((high[i] >> group) & 1) << 4)) - m;
            }
        }
    }
};

struct Q6_K {
    static constexpr int block = 256, bytes = 210;
    static CUTAWAY_INLINE void unpack(Bytes in, Floats out) {
        const float scale = half(in + 208);
        for (int group = 0; group < 16; ++group) {
            const int part = group / 2 % 4, side = 16 * (group % 2);
            const Bytes low = in + 64 * (group / 8) + 32 * (part % 2) + side;
            const Bytes high = in + 128 + 32 * (group / 8) + side;
            const int low_shift = 4 * (part / 2), high_shift = 2 * part;
            const float d = scale * number(static_cast<int8_t>(in[192 + group]));
            const Floats to = out + 16 * group;
            CUTAWAY_LANES for (int i = 0; i < 16; ++i) {
                const int quant = ((low[i] >> low_shift) & 15) | (((high[i] >> high_shift) & 3) << 4);
                to[i] = d * number(quant - 32);
            }
        }
    }
};

template <class T>
CUTAWAY_INLINE void unpack_body(Bytes in, int64_t count, Floats out) {
    for (int64_t i = 0; i < count; ++i) T::unpack(in + i * T::bytes, out + i * T::block);
}

template <class T>
void unpack_base(Bytes in, int64_t count, Floats out) {
    unpack_body<T>(in, count, out);
}

#if defined(CUTAWAY_X86)
template <class T>
CUTAWAY_AVX2 void unpack_avx2(Bytes in, int64_t count, Floats out) {
    unpack_body<T>(in, count, out);
}

template <class T>
CUTAWAY_AVX512 void unpack_avx512(Bytes in, int64_t count, Floats out) {
    unpack_body<T>(in, count, out);
}
#endif

using Unpack = void (*)(Bytes, int64_t, Floats);

template <class T>
Unpack path() {
#if defined(CUTAWAY_X86)
    if (isa() >= Isa::avx512) return unpack_avx512<T>;
    if (isa() >= Isa::avx2) return unpack_avx2<T>;
#endif
    return unpack_base<T>;
}

constexpr int64_t kPiece = 16384;  // values a worker takes at a time: 64 KiB of output

// The float types have blocks of one value: what is left after whole blocks of 32 goes through a padded one.
template <class T>
void unpack_rest(Bytes in, int64_t values, Floats out) {
    constexpr int size = T::bytes / T::block;
    uint8_t padded[T::bytes] = {};
    float result[T::block];
    std::memcpy(padded, in, static_cast<size_t>(values * size));
    unpack_base<T>(padded, 1, result);
    std::memcpy(out, result, static_cast<size_t>(values) * sizeof(float));
}

template <class T>
void unpack_all(Bytes in, int64_t values, Floats out, int threads) {
    const Unpack unpack = path<T>();
    split(values / T::block, kPiece / T::block, threads, [&](int64_t begin, int64_t end) {
        unpack(in + begin * T::bytes, end - begin, out + begin * T::block);
    });
    const int64_t rest = values % T::block, done = values - rest;
    if (rest != 0) unpack_rest<T>(in + done / T::block * T::bytes, rest, out + done);
}

}  // namespace
}  // namespace cutaway

// Unpacks `values` numbers of the GGML type with this id; the caller has checked both sizes. -1: no such
// type.
CUTAWAY_API int32_t cutaway_unpack(int32_t type, const uint8_t* in, int64_t values, float* out,
                                   int32_t threads) {
    using namespace cutaway;
    switch (type) {
        case 0: unpack_all<F32>(in, values, out, threads); return 0;
        case 1: unpack_all<F16>(in, values, out, threads); return 0;
        case 2: unpack_all<Q4_0>(in, values, out, threads); return 0;
        case 3: unpack_all<Q4_1>(in, values, out, threads); return 0;
        case 6: unpack_all<Q5_0>(in, values, out, threads); return 0;
        case 7: unpack_all<Q5_1>(in, values, out, threads); return 0;
        case 8: unpack_all<Q8_0>(in, values, out, threads); return 0;
        case 10: unpack_all<Q2_K>(in, values, out, threads); return 0;
        case 11: unpack_all<Q3_K>(in, values, out, threads); return 0;
        case 12: unpack_all<Q4_K>(in, values, out, threads); return 0;
        case 13: unpack_all<Q5_K>(in, values, out, threads); return 0;
        case 14: unpack_all<Q6_K>(in, values, out, threads); return 0;
        case 20: unpack_all<IQ4_NL>(in, values, out, threads); return 0;
        case 23: unpack_all<IQ4_XS>(in, values, out, threads); return 0;
        case 39: unpack_all<MXFP4>(in, values, out, threads); return 0;
        case 30: unpack_all<BF16>(in, values, out, threads); return 0;
        default: return -1;
    }
}
