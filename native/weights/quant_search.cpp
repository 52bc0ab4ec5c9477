// float32 to packed weights by search: each block gets the scale (and the least value) with which rounding
// costs least, sum of w (x - packed x)^2. cutaway/quantization/search.py states the search and gives the same bits:
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
#include "core/levels.hpp"
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

// The symmetric types: x is about scale * q, where q is the nearest of `nearest`. `tries` are what the value
// of largest size is divided by.
template <int kLow, int kHigh>
struct Whole {
    static CUTAWAY_INLINE float nearest(float value) { return code(value, kLow, kHigh); }
    static CUTAWAY_INLINE unsigned index(float q) { return static_cast<unsigned>(static_cast<int>(q) - kLow); }
};
struct Three : Whole<-4, 3> {
    static constexpr float tries[] = {-4,    -4.75, -4.5, -4.25, -3.75, -3.5, -3.25, -3,   -2.75, -2.5, 4,
                                      3.75,  3.5,   3.25, 3,     2.75,  2.5,  2.25,  2};
};
struct Four : Whole<-8, 7> {
    static constexpr float tries[] = {-8,   -9,  -8.75, -8.5, -8.25, -7.75, -7.5, -7.25, -7, -6.75,
                                      -6.5, 8.25, 8,     7.75, 7.5,   7.25,  7,    6.75,  6.5, 6.25, 6};
};
struct Five : Whole<-16, 15> {
    static constexpr float tries[] = {-16, -17, -16.5, -15.5, -15, -14.5, -14, -13.5,
                                      16,  15.5, 15,   14.5,  14,  13.5,  13};
};
struct Six : Whole<-32, 31> {
    static constexpr float tries[] = {-32,  -33, -32.5, -31.5, -31, -30.5, -30, -29.5, -29,
                                      32,  31.5, 31,    30.5,  30,  29.5,  29,  28.5,  28};
};
struct Eight : Whole<-127, 127> {
    static constexpr float tries[] = {127, 128, 127.5, 126.5, 126, 125.5, 125, 124.5, 124};
};

// IQ4's sixteen levels, closer together near zero. A value half way between two goes to the lower.
struct Levels {
    static constexpr float tries[] = {-127, -135, -131, -123, -119, -115, -111, -107, -103, -99, 121,
                                      117,  113,  109,  105,  101,  97,   93,   89};
    static CUTAWAY_INLINE float nearest(float value) {
        float level = kLevels[0];
        for (int k = 1; k < 16; ++k) {
            level = value > 0.5f * static_cast<float>(kLevels[k - 1] + kLevels[k]) ? kLevels[k] : level;
        }
        return level;
    }
    static CUTAWAY_INLINE unsigned index(float q) {
        unsigned at = 0;
        for (int k = 1; k < 16; ++k) at += q >= static_cast<float>(kLevels[k]) ? 1 : 0;
        return at;
    }
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
                const float q = Codes::nearest(x[i][l] * inverted[l]);
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
                const float off = x[i][l] - scale[l] * Codes::nearest(x[i][l] * inverted[l]);
                error[l] += w[i][l] * off * off;
            }
        }
        EACH_LANE {
            best[l] = error[l] < least[l] ? scale[l] : best[l];
            least[l] = error[l] < least[l] ? error[l] : least[l];
        }
    }
}

// The types with a least value: q from 0 to `high`. The range of values is divided by `count` numbers from
// `first` on, `step` apart.
struct To3 {
    static constexpr float high = 3, first = 1.5f, step = 0.25f;
    static constexpr int count = 9;
};
struct To15 {
    static constexpr float high = 15, first = 12, step = 0.5f;
    static constexpr int count = 9;
};
struct To31 {
    static constexpr float high = 31, first = 27, step = 0.5f;
    static constexpr int count = 11;
};

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

template <class Range>
CUTAWAY_INLINE void cost(Values x, Values w, int count, const Lane& scale, const Lane& low, Lane& error) {
    Lane inverted;
    EACH_LANE {
        inverted[l] = inverse(scale[l]);
        error[l] = 0;
    }
    for (int i = 0; i < count; ++i) {
        EACH_LANE {
            const float q = code((x[i][l] - low[l]) * inverted[l], 0, Range::high);
            const float off = x[i][l] - (scale[l] * q + low[l]);
            error[l] += w[i][l] * off * off;
        }
    }
}

// x is about scale * q + low with q from 0 to Range::high, for `count` values a lane.
template <class Range, bool kBelow, bool kHalves>
CUTAWAY_INLINE void affine(Values x, Values w, int count, Lane& best_scale, Lane& best_low) {
    Lane from, to, least;
    EACH_LANE {
        from[l] = kBelow ? 0 : x[0][l];
        to[l] = x[0][l];
        least[l] = INFINITY;
        best_scale[l] = best_low[l] = 0;
    }
    for (int i = 0; i < count; ++i) {
        EACH_LANE {
            from[l] = x[i][l] < from[l] ? x[i][l] : from[l];
            to[l] = x[i][l] > to[l] ? x[i][l] : to[l];
        }
    }
    // The first try is the plain rounding from the least to the largest value, left as it is; in the others
    // the values begin with the whole numbers, share their middle, or end with them.
    for (int n = -1; n < 3 * Range::count; ++n) {
        const float span = n < 0 ? Range::high : Range::first + Range::step * static_cast<float>(n / 3);
        const float align = n < 0 ? 0 : 0.5f * static_cast<float>(n % 3);
        Lane scale, low, error;
        EACH_LANE {
            scale[l] = (to[l] - from[l]) / span;
            low[l] = from[l] + align * ((to[l] - from[l]) - scale[l] * Range::high);
            low[l] = kBelow && low[l] > 0 ? 0 : low[l];
        }
        for (int turn = 0; turn < (n < 0 ? 0 : 2); ++turn) {
            Lane inverted;
            Sums sum;
            EACH_LANE inverted[l] = inverse(scale[l]);
            for (int i = 0; i < count; ++i) {
                EACH_LANE {
                    const float q = code((x[i][l] - low[l]) * inverted[l], 0, Range::high);
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
        cost<Range>(x, w, count, scale, low, error);
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

template <class Codes>
CUTAWAY_INLINE unsigned index(float value, float scale) {
    return Codes::index(Codes::nearest(value * inverse(scale)));
}

template <class Range>
CUTAWAY_INLINE unsigned index(float value, float scale, float low) {
    return static_cast<unsigned>(static_cast<int>(code((value - low) * inverse(scale), 0, Range::high)));
}

// Blocks of 32 with one scale, the indices as nibbles.
template <class Codes>
struct Nibbles {
    static constexpr int block = 32, bytes = 18;
    Lane scale;
    CUTAWAY_INLINE void fit(Values x, Values w) { symmetric<Codes, true>(x, w, block, scale); }
    CUTAWAY_INLINE void write(Column x, uint8_t* out) const {
        const float d = scale[x.lane];
        store_half(out, d);
        for (int i = 0; i < 16; ++i) {
            out[2 + i] = static_cast<uint8_t>(index<Codes>(x[i], d) | index<Codes>(x[16 + i], d) << 4);
        }
    }
};
using Q4_0 = Nibbles<Four>;
using IQ4_NL = Nibbles<Levels>;

struct Q5_0 {
    static constexpr int block = 32, bytes = 22;
    Lane scale;
    CUTAWAY_INLINE void fit(Values x, Values w) { symmetric<Five, true>(x, w, block, scale); }
    CUTAWAY_INLINE void write(Column x, uint8_t* out) const {
        const float d = scale[x.lane];
        uint32_t fifth = 0;
        for (int i = 0; i < 16; ++i) {
            const unsigned low = index<Five>(x[i], d), high = index<Five>(x[16 + i], d);
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
        for (int i = 0; i < block; ++i) {
            out[2 + i] = static_cast<uint8_t>(static_cast<int>(Eight::nearest(x[i] * inverse(d))));
        }
    }
};

struct Q4_1 {
    static constexpr int block = 32, bytes = 20;
    Lane scale, low;
    CUTAWAY_INLINE void fit(Values x, Values w) { affine<To15, false, true>(x, w, block, scale, low); }
    CUTAWAY_INLINE void write(Column x, uint8_t* out) const {
        const float d = scale[x.lane], m = low[x.lane];
        store_half(out, d);
        store_half(out + 2, m);
        for (int i = 0; i < 16; ++i) {
            out[4 + i] = static_cast<uint8_t>(index<To15>(x[i], d, m) | index<To15>(x[16 + i], d, m) << 4);
        }
    }
};

struct Q5_1 {
    static constexpr int block = 32, bytes = 24;
    Lane scale, low;
    CUTAWAY_INLINE void fit(Values x, Values w) { affine<To31, false, true>(x, w, block, scale, low); }
    CUTAWAY_INLINE void write(Column x, uint8_t* out) const {
        const float d = scale[x.lane], m = low[x.lane];
        uint32_t fifth = 0;
        for (int i = 0; i < 16; ++i) {
            const unsigned first = index<To31>(x[i], d, m), second = index<To31>(x[16 + i], d, m);
            out[8 + i] = static_cast<uint8_t>((first & 15) | (second & 15) << 4);
            fifth |= (first >> 4) << i | (second >> 4) << (16 + i);
        }
        store_half(out, d);
        store_half(out + 2, m);
        std::memcpy(out + 4, &fifth, 4);
    }
};

// Super-blocks of 256: groups have whole scales s and minima t, from 0 to kMost, in units of two halves.
template <class Range, int kGroups, int kMost>
struct AffineGroups {
    static constexpr int block = 256, groups = kGroups, size = block / kGroups;
    Lane scale, least, s[groups], t[groups];

    CUTAWAY_INLINE void fit(Values x, Values w) {
        Lane d[groups], m[groups], error;
        EACH_LANE scale[l] = least[l] = 0;
        for (int g = 0; g < groups; ++g) {
            affine<Range, true, false>(x + size * g, w + size * g, size, d[g], m[g]);
            EACH_LANE {
                scale[l] = d[g][l] > scale[l] ? d[g][l] : scale[l];
                least[l] = -m[g][l] > least[l] ? -m[g][l] : least[l];
            }
        }
        for (int l = 0; l < kLanes; ++l) {
            scale[l] = halved(scale[l] / kMost);
            least[l] = halved(least[l] / kMost);
        }
        for (int g = 0; g < groups; ++g) {
            EACH_LANE {
                s[g][l] = code(d[g][l] * inverse(scale[l]), 0, kMost);
                t[g][l] = code(-m[g][l] * inverse(least[l]), 0, kMost);
            }
        }
        settle(x, w, error);
        for (int round = 0; round < kRounds; ++round) {
            AffineGroups other = *this;
            Lane found;
            other.refit(x, w);
            other.settle(x, w, found);
            take(other, found, error);
        }
    }

    CUTAWAY_INLINE void take(const AffineGroups& other, const Lane& found, Lane& error) {
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
                    now_s[l] = code(s[g][l] + ds, 0, kMost);
                    now_t[l] = code(t[g][l] + dt, 0, kMost);
                    d[l] = scale[l] * now_s[l];
                    low[l] = -(least[l] * now_t[l]);
                }
                cost<Range>(x + size * g, w + size * g, size, d, low, found);
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
                    const float q = code((x[i][l] - low[l]) * inverted[l], 0, Range::high);
                    const float a = s[g][l] * q, b = -t[g][l];
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

    CUTAWAY_INLINE unsigned at(Column x, int i) const {
        const int g = i / size;
        return index<Range>(x[i], scale[x.lane] * s[g][x.lane], -(least[x.lane] * t[g][x.lane]));
    }
};

// Eight scales and eight minima of six bits in twelve bytes, as quant.py's `six_bits` reads them.
template <class Groups>
CUTAWAY_INLINE void store_six_bits(const Groups& fitted, int lane, uint8_t* out) {
    for (int g = 0; g < 8; ++g) {
        const unsigned a = static_cast<unsigned>(fitted.s[g][lane]), b = static_cast<unsigned>(fitted.t[g][lane]);
        uint8_t* six = out + g % 4;
        if (g < 4) {
            six[0] |= static_cast<uint8_t>(a);
            six[4] |= static_cast<uint8_t>(b);
        } else {
            six[0] |= static_cast<uint8_t>((a >> 4) << 6);
            six[4] |= static_cast<uint8_t>((b >> 4) << 6);
            six[8] |= static_cast<uint8_t>((a & 15) | (b & 15) << 4);
        }
    }
}

struct Q2_K : AffineGroups<To3, 16, 15> {
    static constexpr int bytes = 84;
    CUTAWAY_INLINE void write(Column x, uint8_t* out) const {
        std::memset(out, 0, bytes);
        for (int g = 0; g < groups; ++g) {
            const int a = static_cast<int>(s[g][x.lane]), b = static_cast<int>(t[g][x.lane]);
            out[g] = static_cast<uint8_t>(a | b << 4);
        }
        for (int i = 0; i < block; ++i) {
            out[16 + 32 * (i / 128) + i % 32] |= static_cast<uint8_t>(at(x, i) << (2 * (i % 128 / 32)));
        }
        store_half(out + 80, scale[x.lane]);
        store_half(out + 82, least[x.lane]);
    }
};

struct Q4_K : AffineGroups<To15, 8, 63> {
    static constexpr int bytes = 144;
    CUTAWAY_INLINE void write(Column x, uint8_t* out) const {
        std::memset(out, 0, bytes);
        store_half(out, scale[x.lane]);
        store_half(out + 2, least[x.lane]);
        store_six_bits(*this, x.lane, out + 4);
        for (int i = 0; i < block; ++i) {
            out[16 + 32 * (i / 64) + i % 32] |= static_cast<uint8_t>(at(x, i) << (4 * (i % 64 / 32)));
        }
    }
};

struct Q5_K : AffineGroups<To31, 8, 63> {
    static constexpr int bytes = 176;
    CUTAWAY_INLINE void write(Column x, uint8_t* out) const {
        std::memset(out, 0, bytes);
        store_half(out, scale[x.lane]);
        store_half(out + 2, least[x.lane]);
        store_six_bits(*this, x.lane, out + 4);
        for (int i = 0; i < block; ++i) {
            const unsigned q = at(x, i);
            out[16 + i % 32] |= static_cast<uint8_t>((q >> 4) << (i / 32));
            out[48 + 32 * (i / 64) + i % 32] |= static_cast<uint8_t>((q & 15) << (4 * (i % 64 / 32)));
        }
    }
};

// Super-blocks of 256: groups have a whole scale s, from kLow to -kLow - 1, in units of one half.
template <class Codes, int kGroups, int kLow>
struct SymmetricGroups {
    static constexpr int block = 256, groups = kGroups, size = block / kGroups;
    Lane scale, s[groups];

    CUTAWAY_INLINE void fit(Values x, Values w) {
        Lane d[groups], most = {}, error;
        for (int g = 0; g < groups; ++g) {
            symmetric<Codes, false>(x + size * g, w + size * g, size, d[g]);
            EACH_LANE most[l] = std::fabs(d[g][l]) > std::fabs(most[l]) ? d[g][l] : most[l];
        }
        for (int l = 0; l < kLanes; ++l) scale[l] = halved(most[l] / kLow);
        for (int g = 0; g < groups; ++g) {
            EACH_LANE s[g][l] = code(d[g][l] * inverse(scale[l]), kLow, -kLow - 1);
        }
        settle(x, w, error);
        for (int round = 0; round < kRounds; ++round) {
            SymmetricGroups other = *this;
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
                    now[l] = code(s[g][l] + static_cast<float>(step), kLow, -kLow - 1);
                    d[l] = scale[l] * now[l];
                    inverted[l] = inverse(d[l]);
                }
                for (int i = size * g; i < size * (g + 1); ++i) {
                    EACH_LANE {
                        const float off = x[i][l] - d[l] * Codes::nearest(x[i][l] * inverted[l]);
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
                    const float a = s[g][l] * Codes::nearest(x[i][l] * inverted[l]);
                    const float wa = w[i][l] * a;
                    aa[l] += wa * a;
                    xa[l] += wa * x[i][l];
                }
            }
        }
        for (int l = 0; l < kLanes; ++l) scale[l] = aa[l] > 0 ? halved(xa[l] / aa[l]) : scale[l];
    }

    CUTAWAY_INLINE unsigned at(Column x, int i) const {
        return index<Codes>(x[i], scale[x.lane] * s[i / size][x.lane]);
    }
};

struct Q3_K : SymmetricGroups<Three, 16, -32> {
    static constexpr int bytes = 110;
    CUTAWAY_INLINE void write(Column x, uint8_t* out) const {
        std::memset(out, 0, bytes);
        for (int i = 0; i < block; ++i) {
            const unsigned q = at(x, i);
            out[i % 32] |= static_cast<uint8_t>((q >> 2) << (i / 32));
            out[32 + 32 * (i / 128) + i % 32] |= static_cast<uint8_t>((q & 3) << (2 * (i % 128 / 32)));
        }
        for (int g = 0; g < groups; ++g) {
            const unsigned six = static_cast<unsigned>(static_cast<int>(s[g][x.lane]) + 32);
            out[96 + g % 8] |= static_cast<uint8_t>((six & 15) << (4 * (g / 8)));
            out[104 + g % 4] |= static_cast<uint8_t>((six >> 4) << (2 * (g / 4)));
        }
        store_half(out + 108, scale[x.lane]);
    }
};

struct Q6_K : SymmetricGroups<Six, 16, -128> {
    static constexpr int bytes = 210;
    CUTAWAY_INLINE void write(Column x, uint8_t* out) const {
        std::memset(out, 0, bytes);
        for (int i = 0; i < block; ++i) {
            const unsigned q = at(x, i);
            const int part = i % 128 / 32;
            out[64 * (i / 128) + i % 64] |= static_cast<uint8_t>((q & 15) << (4 * (part / 2)));
            out[128 + 32 * (i / 128) + i % 32] |= static_cast<uint8_t>((q >> 4) << (2 * part));
        }
        for (int g = 0; g < groups; ++g) out[192 + g] = static_cast<uint8_t>(static_cast<int>(s[g][x.lane]));
        store_half(out + 208, scale[x.lane]);
    }
};

struct IQ4_XS : SymmetricGroups<Levels, 8, -32> {
    static constexpr int bytes = 136;
    CUTAWAY_INLINE void write(Column x, uint8_t* out) const {
        std::memset(out, 0, bytes);
        store_half(out, scale[x.lane]);
        for (int g = 0; g < groups; ++g) {
            const unsigned six = static_cast<unsigned>(static_cast<int>(s[g][x.lane]) + 32);
            out[2 + g / 4] |= static_cast<uint8_t>((six >> 4) << (2 * (g % 4)));
            out[4 + g / 2] |= static_cast<uint8_t>((six & 15) << (4 * (g % 2)));
        }
        for (int i = 0; i < block; ++i) {
            out[8 + 16 * (i / 32) + i % 16] |= static_cast<uint8_t>(at(x, i) << (4 * (i % 32 / 16)));
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
    if (isa() >= Isa::avx2) return fit_avx2<T>;
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
        case 7: fit_all<Q5_1>(job, values, threads); return 0;
        case 8: fit_all<Q8_0>(job, values, threads); return 0;
        case 10: fit_all<Q2_K>(job, values, threads); return 0;
        case 11: fit_all<Q3_K>(job, values, threads); return 0;
        case 12: fit_all<Q4_K>(job, values, threads); return 0;
        case 13: fit_all<Q5_K>(job, values, threads); return 0;
        case 14: fit_all<Q6_K>(job, values, threads); return 0;
        case 20: fit_all<IQ4_NL>(job, values, threads); return 0;
        case 23: fit_all<IQ4_XS>(job, values, threads); return 0;
        default: return -1;
    }
}
