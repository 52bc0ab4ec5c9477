// float32 to packed weights by search: each block gets the scale (and the least value) with which rounding
// costs least, sum of w (x - packed x)^2. cutaway/weights/quant_search.py states the search and gives the same bits:
// sums run over a block in its order, in float32, and nothing may be fused (-ffp-contract=off).
//
// Sixteen blocks are searched at once, one a lane. Each type is one plain body, compiled once for each
// instruction set.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/api.hpp"
#include "core/half.hpp"
#include "core/isa.hpp"
#include "core/thread_pool.hpp"

namespace cutaway {
namespace {

constexpr int kLanes = 16;
constexpr float kSilent = 1e-30f;  // a scale no larger is nothing: its inverse would not be a number
constexpr int kRounds = 2;         // how often a super-block's own scales are solved for anew

using Lane = float[kLanes];  // one number of each of sixteen blocks
using Values = const Lane*;  // the numbers of blocks in their order

#define EACH_LANE CUTAWAY_LANES for (int l = 0; l < kLanes; ++l)

CUTAWAY_INLINE float inverse(float scale) { return std::fabs(scale) > kSilent ? 1.0f / scale : 0.0f; }

CUTAWAY_INLINE float halved(float value) { return half_to_float(float_to_half(value)); }

// To the nearest whole number from low to high, halves to even: adding 1.5 * 2^23 leaves no bits below one.
CUTAWAY_INLINE float code(float value, float low, float high) {
    value = value < low ? low : value;
    value = value > high ? high : value;
    return (value + 12582912.0f) - 12582912.0f;
}

// The symmetric types: x is about scale * q. `tries` are what the value of largest size is divided by.
struct Four {
    static constexpr float low = -8, high = 7;
    static constexpr float tries[] = {-8,   -9,  -8.75, -8.5, -8.25, -7.75, -7.5, -7.25, -7, -6.75,
                                      -6.5, 8.25, 8,     7.75, 7.5,   7.25,  7,    6.75,  6.5, 6.25, 6};
};
struct Five {
    static constexpr float low = -16, high = 15;
    static constexpr float tries[] = {-16, -17, -16.5, -15.5, -15, -14.5, -14, -13.5,
                                      16,  15.5, 15,   14.5,  14,  13.5,  13};
};
struct Six {
    static constexpr float low = -32, high = 31;
    static constexpr float tries[] = {-32,  -33, -32.5, -31.5, -31, -30.5, -30, -29.5, -29,
                                      32,  31.5, 31,    30.5,  30,  29.5,  29,  28.5,  28};
};
struct Eight {
    static constexpr float low = -127, high = 127;
    static constexpr float tries[] = {127, 128, 127.5, 126.5, 126, 125.5, 125, 124.5, 124};
};

// The scale for each lane's `count` values.
template <class Codes, bool kHalves>
CUTAWAY_INLINE void symmetric(Values x, Values w, int count, Lane& best) {
    Lane most = {}, size = {}, least;
    EACH_LANE {
        best[l] = 0;
        least[l] = INFINITY;
    }
    for (int i = 0; i < count; ++i) {
        EACH_LANE {
            const bool more = std::fabs(x[i][l]) > size[l];
            most[l] = more ? x[i][l] : most[l];
            size[l] = more ? std::fabs(x[i][l]) : size[l];
        }
    }
    for (const float divisor : Codes::tries) {
        Lane scale, inverted, xq = {}, qq = {}, error = {};
        EACH_LANE inverted[l] = inverse(most[l] / divisor);
        for (int i = 0; i < count; ++i) {
            EACH_LANE {
                const float q = code(x[i][l] * inverted[l], Codes::low, Codes::high);
                xq[l] += w[i][l] * x[i][l] * q;
                qq[l] += w[i][l] * q * q;
            }
        }
        EACH_LANE scale[l] = qq[l] > 0 ? xq[l] / qq[l] : 0;
        if (kHalves) {
            for (float& each : scale) each = halved(each);
        }
        EACH_LANE inverted[l] = inverse(scale[l]);
        for (int i = 0; i < count; ++i) {
            EACH_LANE {
                const float off = x[i][l] - scale[l] * code(x[i][l] * inverted[l], Codes::low, Codes::high);
                error[l] += w[i][l] * off * off;
            }
        }
        EACH_LANE {
            best[l] = error[l] < least[l] ? scale[l] : best[l];
            least[l] = error[l] < least[l] ? error[l] : least[l];
        }
    }
}

constexpr float kSpans[] = {15, 12, 12.5, 13, 13.5, 14, 14.5, 15, 15.5, 16};
constexpr int kSpanCount = sizeof kSpans / sizeof kSpans[0];

// The sums that the best scale and least value follow from, once the whole numbers are chosen.
struct Sums {
    Lane w = {}, x = {}, q = {}, xq = {}, qq = {};
};

// Solves for scale and least; where `kBelow`, the least value may not be above zero.
template <bool kBelow>
CUTAWAY_INLINE void solve(const Sums& sum, Lane& scale, Lane& low) {
    EACH_LANE {
        const float whole = sum.w[l] * sum.qq[l] - sum.q[l] * sum.q[l];
        const float fitted = (sum.w[l] * sum.xq[l] - sum.x[l] * sum.q[l]) / whole;
        const float start = (sum.qq[l] * sum.x[l] - sum.q[l] * sum.xq[l]) / whole;
        const bool above = kBelow && start > 0;
        const float through = sum.qq[l] > 0 ? sum.xq[l] / sum.qq[l] : 0;
        const float found = above ? through : fitted;
        const bool sound = whole > 0 && found > 0;
        scale[l] = sound ? found : scale[l];
        low[l] = sound ? (above ? 0 : start) : low[l];
    }
}

CUTAWAY_INLINE void cost(Values x, Values w, int count, const Lane& scale, const Lane& low, Lane& error) {
    Lane inverted;
    EACH_LANE {
        inverted[l] = inverse(scale[l]);
        error[l] = 0;
    }
    for (int i = 0; i < count; ++i) {
        EACH_LANE {
            const float q = code((x[i][l] - low[l]) * inverted[l], 0, 15);
            const float off = x[i][l] - (scale[l] * q + low[l]);
            error[l] += w[i][l] * off * off;
        }
    }
}

// x is about scale * q + low with q from 0 to 15, for 32 values a lane.
template <bool kBelow, bool kHalves>
CUTAWAY_INLINE void affine(Values x, Values w, Lane& best_scale, Lane& best_low) {
    Lane from, to, least;
    EACH_LANE {
        from[l] = kBelow ? 0 : x[0][l];
        to[l] = x[0][l];
        least[l] = INFINITY;
        best_scale[l] = best_low[l] = 0;
    }
    for (int i = 0; i < 32; ++i) {
        EACH_LANE {
            from[l] = x[i][l] < from[l] ? x[i][l] : from[l];
            to[l] = x[i][l] > to[l] ? x[i][l] : to[l];
        }
    }
    for (int n = 0; n < kSpanCount; ++n) {
        const float span = kSpans[n];
        Lane scale, low, error;
        EACH_LANE {
            scale[l] = (to[l] - from[l]) / span;
            low[l] = (from[l] + to[l]) * 0.5f - scale[l] * 7.5f;
            low[l] = kBelow && low[l] > 0 ? 0 : low[l];
        }
        // The first is the plain rounding from the least to the largest value, left as it is.
        for (int turn = 0; turn < (n == 0 ? 0 : 2); ++turn) {
            Lane inverted;
            Sums sum;
            EACH_LANE inverted[l] = inverse(scale[l]);
            for (int i = 0; i < 32; ++i) {
                EACH_LANE {
                    const float q = code((x[i][l] - low[l]) * inverted[l], 0, 15);
                    const float wx = w[i][l] * x[i][l], wq = w[i][l] * q;
                    sum.w[l] += w[i][l];
                    sum.x[l] += wx;
                    sum.q[l] += wq;
                    sum.xq[l] += wx * q;
                    sum.qq[l] += wq * q;
                }
            }
            solve<kBelow>(sum, scale, low);
        }
        if (kHalves) {
            for (float& each : scale) each = halved(each);
            for (float& each : low) each = halved(each) + 0.0f;  // never the other zero
        }
        cost(x, w, 32, scale, low, error);
        EACH_LANE {
            const bool better = error[l] < least[l];
            best_scale[l] = better ? scale[l] : best_scale[l];
            best_low[l] = better ? low[l] : best_low[l];
            least[l] = better ? error[l] : least[l];
        }
    }
}

CUTAWAY_INLINE void store_half(uint8_t* to, float value) {
    const uint16_t bits = float_to_half(value);
    std::memcpy(to, &bits, 2);
}

// A block's numbers in one lane.
struct Column {
    Values x;
    int lane;
    float operator[](int i) const { return x[i][lane]; }
};

CUTAWAY_INLINE int whole(float value, float scale, float low, float high) {
    return static_cast<int>(code(value * inverse(scale), low, high));
}

struct Q4_0 {
    static constexpr int block = 32, bytes = 18;
    Lane scale;
    CUTAWAY_INLINE void fit(Values x, Values w) { symmetric<Four, true>(x, w, block, scale); }
    CUTAWAY_INLINE void write(Column x, uint8_t* out) const {
        const float d = scale[x.lane];
        store_half(out, d);
        for (int i = 0; i < 16; ++i) {
            const int low = whole(x[i], d, -8, 7) + 8, high = whole(x[16 + i], d, -8, 7) + 8;
            out[2 + i] = static_cast<uint8_t>(low | high << 4);
        }
    }
};

struct Q5_0 {
    static constexpr int block = 32, bytes = 22;
    Lane scale;
    CUTAWAY_INLINE void fit(Values x, Values w) { symmetric<Five, true>(x, w, block, scale); }
    CUTAWAY_INLINE void write(Column x, uint8_t* out) const {
        const float d = scale[x.lane];
        uint32_t fifth = 0;
        for (int i = 0; i < 16; ++i) {
            const unsigned low = static_cast<unsigned>(whole(x[i], d, -16, 15) + 16);
            const unsigned high = static_cast<unsigned>(whole(x[16 + i], d, -16, 15) + 16);
            out[6 + i] = static_cast<uint8_t>((low & 15) | (high & 15) << 4);
            fifth |= (low >> 4) << i | (high >> 4) << (16 + i);
        }
        store_half(out, d);
        std::memcpy(out + 2, &fifth, 4);
    }
};

struct Q8_0 {
    static constexpr int block = 32, bytes = 34;
    Lane scale;
    CUTAWAY_INLINE void fit(Values x, Values w) { symmetric<Eight, true>(x, w, block, scale); }
    CUTAWAY_INLINE void write(Column x, uint8_t* out) const {
        const float d = scale[x.lane];
        store_half(out, d);
        for (int i = 0; i < block; ++i) out[2 + i] = static_cast<uint8_t>(whole(x[i], d, -127, 127));
    }
};

struct Q4_1 {
    static constexpr int block = 32, bytes = 20;
    Lane scale, low;
    CUTAWAY_INLINE void fit(Values x, Values w) { affine<false, true>(x, w, scale, low); }
    CUTAWAY_INLINE void write(Column x, uint8_t* out) const {
        const float d = scale[x.lane], m = low[x.lane];
        store_half(out, d);
        store_half(out + 2, m);
        for (int i = 0; i < 16; ++i) {
            const int first = whole(x[i] - m, d, 0, 15), second = whole(x[16 + i] - m, d, 0, 15);
            out[4 + i] = static_cast<uint8_t>(first | second << 4);
        }
    }
};

// Super-blocks: groups have whole scales s (and minima t) in units of the block's own halves.
struct Q4_K {
    static constexpr int block = 256, bytes = 144, groups = 8, size = 32;
    Lane scale, least, s[groups], t[groups];

    CUTAWAY_INLINE void fit(Values x, Values w) {
        Lane d[groups], m[groups], error;
        EACH_LANE scale[l] = least[l] = 0;
        for (int g = 0; g < groups; ++g) {
            affine<true, false>(x + size * g, w + size * g, d[g], m[g]);
            EACH_LANE {
                scale[l] = d[g][l] > scale[l] ? d[g][l] : scale[l];
                least[l] = -m[g][l] > least[l] ? -m[g][l] : least[l];
            }
        }
        for (int l = 0; l < kLanes; ++l) {
            scale[l] = halved(scale[l] / 63);
            least[l] = halved(least[l] / 63);
        }
        for (int g = 0; g < groups; ++g) {
            EACH_LANE {
                s[g][l] = code(d[g][l] * inverse(scale[l]), 0, 63);
                t[g][l] = code(-m[g][l] * inverse(least[l]), 0, 63);
            }
        }
        settle(x, w, error);
        for (int round = 0; round < kRounds; ++round) {
            Q4_K other = *this;
            Lane found;
            other.refit(x, w);
            other.settle(x, w, found);
            take(other, found, error);
        }
    }

    CUTAWAY_INLINE void take(const Q4_K& other, const Lane& found, Lane& error) {
        EACH_LANE {
            const bool better = found[l] < error[l];
            scale[l] = better ? other.scale[l] : scale[l];
            least[l] = better ? other.least[l] : least[l];
            for (int g = 0; g < groups; ++g) {
                s[g][l] = better ? other.s[g][l] : s[g][l];
                t[g][l] = better ? other.t[g][l] : t[g][l];
            }
            error[l] = better ? found[l] : error[l];
        }
    }

    // Each group's s and t become the best of themselves and their neighbours; the sum of errors.
    CUTAWAY_INLINE void settle(Values x, Values w, Lane& error) {
        EACH_LANE error[l] = 0;
        for (int g = 0; g < groups; ++g) {
            Lane best, best_s, best_t;
            EACH_LANE {
                best[l] = INFINITY;
                best_s[l] = s[g][l];
                best_t[l] = t[g][l];
            }
            for (int step = 0; step < 9; ++step) {
                const float ds = static_cast<float>(step / 3 - 1), dt = static_cast<float>(step % 3 - 1);
                Lane now_s, now_t, d, low, found;
                EACH_LANE {
                    now_s[l] = code(s[g][l] + ds, 0, 63);
                    now_t[l] = code(t[g][l] + dt, 0, 63);
                    d[l] = scale[l] * now_s[l];
                    low[l] = -(least[l] * now_t[l]);
                }
                cost(x + size * g, w + size * g, size, d, low, found);
                EACH_LANE {
                    const bool better = found[l] < best[l];
                    best_s[l] = better ? now_s[l] : best_s[l];
                    best_t[l] = better ? now_t[l] : best_t[l];
                    best[l] = better ? found[l] : best[l];
                }
            }
            EACH_LANE {
                s[g][l] = best_s[l];
                t[g][l] = best_t[l];
                error[l] += best[l];
            }
        }
    }

    // The block's own two scales, solved for with s, t and the whole numbers as they are.
    CUTAWAY_INLINE void refit(Values x, Values w) {
        Lane aa = {}, ab = {}, bb = {}, xa = {}, xb = {};
        for (int g = 0; g < groups; ++g) {
            Lane inverted, low;
            EACH_LANE {
                inverted[l] = inverse(scale[l] * s[g][l]);
                low[l] = -(least[l] * t[g][l]);
            }
            for (int i = size * g; i < size * (g + 1); ++i) {
                EACH_LANE {
                    const float a = s[g][l] * code((x[i][l] - low[l]) * inverted[l], 0, 15), b = -t[g][l];
                    const float wa = w[i][l] * a, wb = w[i][l] * b;
                    aa[l] += wa * a;
                    ab[l] += wa * b;
                    bb[l] += wb * b;
                    xa[l] += wa * x[i][l];
                    xb[l] += wb * x[i][l];
                }
            }
        }
        for (int l = 0; l < kLanes; ++l) {
            const float determinant = aa[l] * bb[l] - ab[l] * ab[l];
            const float d = (xa[l] * bb[l] - xb[l] * ab[l]) / determinant;
            const float m = (xb[l] * aa[l] - xa[l] * ab[l]) / determinant;
            const bool sound = determinant > 0 && d > 0 && m >= 0;
            scale[l] = sound ? halved(d) : scale[l];
            least[l] = sound ? halved(m) : least[l];
        }
    }

    CUTAWAY_INLINE void write(Column x, uint8_t* out) const {
        const int lane = x.lane;
        std::memset(out, 0, bytes);
        store_half(out, scale[lane]);
        store_half(out + 2, least[lane]);
        for (int g = 0; g < groups; ++g) {
            const unsigned a = static_cast<unsigned>(s[g][lane]), b = static_cast<unsigned>(t[g][lane]);
            uint8_t* six = out + 4 + g % 4;
            if (g < 4) {
                six[0] |= static_cast<uint8_t>(a);
                six[4] |= static_cast<uint8_t>(b);
            } else {
                six[0] |= static_cast<uint8_t>((a >> 4) << 6);
                six[4] |= static_cast<uint8_t>((b >> 4) << 6);
                six[8] |= static_cast<uint8_t>((a & 15) | (b & 15) << 4);
            }
            const float d = scale[lane] * s[g][lane], low = -(least[lane] * t[g][lane]);
            for (int i = 0; i < size; ++i) {
                const int q = whole(x[size * g + i] - low, d, 0, 15);
                out[16 + 32 * (g / 2) + i] |= static_cast<uint8_t>(q << (4 * (g % 2)));
            }
        }
    }
};

struct Q6_K {
    static constexpr int block = 256, bytes = 210, groups = 16, size = 16;
    Lane scale, s[groups];

    CUTAWAY_INLINE void fit(Values x, Values w) {
        Lane d[groups], most = {}, error;
        for (int g = 0; g < groups; ++g) {
            symmetric<Six, false>(x + size * g, w + size * g, size, d[g]);
            EACH_LANE most[l] = std::fabs(d[g][l]) > std::fabs(most[l]) ? d[g][l] : most[l];
        }
        for (int l = 0; l < kLanes; ++l) scale[l] = halved(most[l] / -128);
        for (int g = 0; g < groups; ++g) {
            EACH_LANE s[g][l] = code(d[g][l] * inverse(scale[l]), -128, 127);
        }
        settle(x, w, error);
        for (int round = 0; round < kRounds; ++round) {
            Q6_K other = *this;
            Lane found;
            other.refit(x, w);
            other.settle(x, w, found);
            EACH_LANE {
                const bool better = found[l] < error[l];
                scale[l] = better ? other.scale[l] : scale[l];
                for (int g = 0; g < groups; ++g) s[g][l] = better ? other.s[g][l] : s[g][l];
                error[l] = better ? found[l] : error[l];
            }
        }
    }

    CUTAWAY_INLINE void settle(Values x, Values w, Lane& error) {
        EACH_LANE error[l] = 0;
        for (int g = 0; g < groups; ++g) {
            Lane best, best_s;
            EACH_LANE {
                best[l] = INFINITY;
                best_s[l] = s[g][l];
            }
            for (int step = -1; step < 2; ++step) {
                Lane now, d, inverted, found = {};
                EACH_LANE {
                    now[l] = code(s[g][l] + static_cast<float>(step), -128, 127);
                    d[l] = scale[l] * now[l];
                    inverted[l] = inverse(d[l]);
                }
                for (int i = size * g; i < size * (g + 1); ++i) {
                    EACH_LANE {
                        const float off = x[i][l] - d[l] * code(x[i][l] * inverted[l], -32, 31);
                        found[l] += w[i][l] * off * off;
                    }
                }
                EACH_LANE {
                    const bool better = found[l] < best[l];
                    best_s[l] = better ? now[l] : best_s[l];
                    best[l] = better ? found[l] : best[l];
                }
            }
            EACH_LANE {
                s[g][l] = best_s[l];
                error[l] += best[l];
            }
        }
    }

    CUTAWAY_INLINE void refit(Values x, Values w) {
        Lane aa = {}, xa = {};
        for (int g = 0; g < groups; ++g) {
            Lane inverted;
            EACH_LANE inverted[l] = inverse(scale[l] * s[g][l]);
            for (int i = size * g; i < size * (g + 1); ++i) {
                EACH_LANE {
                    const float a = s[g][l] * code(x[i][l] * inverted[l], -32, 31);
                    const float wa = w[i][l] * a;
                    aa[l] += wa * a;
                    xa[l] += wa * x[i][l];
                }
            }
        }
        for (int l = 0; l < kLanes; ++l) scale[l] = aa[l] > 0 ? halved(xa[l] / aa[l]) : scale[l];
    }

    CUTAWAY_INLINE void write(Column x, uint8_t* out) const {
        std::memset(out, 0, bytes);
        store_half(out + 208, scale[x.lane]);
        for (int g = 0; g < groups; ++g) {
            out[192 + g] = static_cast<uint8_t>(static_cast<int>(s[g][x.lane]));
            const float d = scale[x.lane] * s[g][x.lane];
            const int part = g / 2 % 4, side = 16 * (g % 2);
            uint8_t* low = out + 64 * (g / 8) + 32 * (part % 2) + side;
            uint8_t* high = out + 128 + 32 * (g / 8) + side;
            for (int i = 0; i < size; ++i) {
                const unsigned q = static_cast<unsigned>(whole(x[size * g + i], d, -32, 31) + 32);
                low[i] |= static_cast<uint8_t>((q & 15) << (4 * (part / 2)));
                high[i] |= static_cast<uint8_t>((q >> 4) << (2 * part));
            }
        }
    }
};

// What is packed: a matrix whose rows are whole blocks, and how much each column's error counts (or null).
struct Matrix {
    const float* in;
    const float* importance;
    int64_t blocks;  // of the whole matrix
    int64_t columns;
    uint8_t* out;
};

// Blocks [begin, begin + kLanes) of the matrix; lanes past its end are zeros.
template <class T>
CUTAWAY_INLINE void fit_body(const Matrix& job, int64_t begin) {
    alignas(64) Lane x[T::block], w[T::block];
    const int count = static_cast<int>(std::min<int64_t>(kLanes, job.blocks - begin));
    for (int l = 0; l < kLanes; ++l) {
        const int64_t at = (begin + l) * T::block;
        for (int i = 0; i < T::block; ++i) {
            x[i][l] = l < count ? job.in[at + i] : 0.0f;
            w[i][l] = l < count && job.importance != nullptr ? job.importance[at % job.columns + i] : 1.0f;
        }
    }
    T fitted;
    fitted.fit(x, w);
    for (int l = 0; l < count; ++l) fitted.write(Column{x, l}, job.out + (begin + l) * T::bytes);
}

template <class T>
void fit_base(const Matrix& job, int64_t begin) {
    fit_body<T>(job, begin);
}

#if defined(CUTAWAY_X86)
template <class T>
CUTAWAY_AVX2 void fit_avx2(const Matrix& job, int64_t begin) {
    fit_body<T>(job, begin);
}

template <class T>
CUTAWAY_AVX512 void fit_avx512(const Matrix& job, int64_t begin) {
    fit_body<T>(job, begin);
}
#endif

using Fit = void (*)(const Matrix&, int64_t);

template <class T>
Fit path() {
#if defined(CUTAWAY_X86)
    if (isa() >= Isa::avx512) return fit_avx512<T>;
    if (isa() == Isa::avx2) return fit_avx2<T>;
#endif
    return fit_base<T>;
}

template <class T>
void fit_all(Matrix job, int64_t values, int threads) {
    const Fit fit = path<T>();
    job.blocks = values / T::block;
    split((job.blocks + kLanes - 1) / kLanes, 4, threads, [&](int64_t begin, int64_t end) {
        for (int64_t group = begin; group < end; ++group) fit(job, group * kLanes);
    });
}

}  // namespace
}  // namespace cutaway

// Packs `values` finite numbers, rows of `columns`, as the GGML type with this id; `importance` has one
// number above zero a column, or is null. The caller has checked all sizes. -1: no such type.
CUTAWAY_API int32_t cutaway_quant_search(int32_t type, const float* in, int64_t values, int64_t columns,
                                const float* importance, uint8_t* out, int32_t threads) {
    using namespace cutaway;
    const Matrix job{in, importance, 0, columns, out};
    switch (type) {
        case 2: fit_all<Q4_0>(job, values, threads); return 0;
        case 3: fit_all<Q4_1>(job, values, threads); return 0;
        case 6: fit_all<Q5_0>(job, values, threads); return 0;
        case 8: fit_all<Q8_0>(job, values, threads); return 0;
        case 12: fit_all<Q4_K>(job, values, threads); return 0;
        case 14: fit_all<Q6_K>(job, values, threads); return 0;
        default: return -1;
    }
}
