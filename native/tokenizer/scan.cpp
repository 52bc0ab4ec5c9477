#include "tokenizer/scan.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "core/api.hpp"
#include "core/isa.hpp"
#include "tokenizer/split_bitmaps.hpp"
#include "tokenizer/unicode.hpp"

#if defined(CUTAWAY_X86)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace cutaway {
namespace {

constexpr size_t kAhead = 1024;       // bytes: between two windows the processor forgets that text is read in order
constexpr size_t kWindow = 16 << 10;  // bytes classified at once: the bitmaps stay in the first cache

// Which bitmaps a class is in. A walker needs at most four.
enum Map : int { kWord, kOther, kNumbers, kSpaces, kSigns, kMaps };
// kOther: small letters where words have a case; Chinese and Japanese in deepseek3.
// The bitmaps of ByteMap are those of single bytes, and only split_bitmaps.hpp makes them.
enum ByteMap : size_t { kBlanks = kMaps, kNewlines, kContinuing, kAllMaps };

constexpr uint8_t bit(Map map) { return static_cast<uint8_t>(1u << map); }

using Sets = std::array<uint8_t, kClasses>;

// Words of letters; signs are whatever is no letter, number or space.
constexpr Sets kLetters = {bit(kSigns), bit(kWord), bit(kWord),  bit(kWord), bit(kSigns),
                           bit(kNumbers), bit(kSigns), bit(kSigns), bit(kSpaces)};
constexpr Sets kMarked = {bit(kSigns), bit(kWord), bit(kWord),  bit(kWord), bit(kWord),
                          bit(kNumbers), bit(kSigns), bit(kSigns), bit(kSpaces)};
// kWord is what may stand in a word's capital half, kOther in its small half; a mark is a sign as well.
constexpr uint8_t kBoth = bit(kWord) | bit(kOther);
constexpr Sets kCased = {bit(kSigns), bit(kWord), bit(kOther),  kBoth, kBoth | bit(kSigns),
                         bit(kNumbers), bit(kSigns), bit(kSigns), bit(kSpaces)};
constexpr Sets kDeepseek = {0, bit(kWord), bit(kWord),  bit(kWord), bit(kWord),
                            bit(kNumbers), bit(kSigns), bit(kSigns), bit(kSpaces)};

const Sets& sets_of(Pattern pattern) {
    switch (pattern) {
        case Pattern::qwen35:
        case Pattern::qwen35_any: return kMarked;
        case Pattern::o200k:
        case Pattern::tekken: return kCased;
        case Pattern::deepseek3: return kDeepseek;
        default: return kLetters;
    }
}

// 64 bytes of ASCII by kind, a bit each; high is what is not ASCII, continuing what of that begins no
// character.
struct Ascii {
    uint64_t upper, lower, digit, space, control, high, continuing, blank, newline;
};

#if defined(CUTAWAY_X86)
CUTAWAY_AVX2 inline uint64_t below(__m256i shifted, char limit) {
    const __m256i top = _mm256_set1_epi8(static_cast<char>(limit - 1));
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_max_epu8(shifted, top), top)));
}

CUTAWAY_AVX2 inline Ascii half_avx2(const uint8_t* text) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(text));
    const auto from = [&](char first) __attribute__((target("avx2,fma,f16c"))) {
        return _mm256_sub_epi8(bytes, _mm256_set1_epi8(first));
    };
    const __m256i blank = _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(' '));
    const __m256i removed = _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(0x7F));
    const __m256i newline = _mm256_or_si256(_mm256_cmpeq_epi8(bytes, _mm256_set1_epi8('\n')),
                                            _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8('\r')));
    const uint64_t blanks = static_cast<uint32_t>(_mm256_movemask_epi8(blank));
    const uint64_t spaces = blanks | below(from('\t'), 5);
    return {below(from('A'), 26),
            below(from('a'), 26),
            below(from('0'), 10),
            spaces,
            (below(bytes, 32) & ~spaces) | static_cast<uint32_t>(_mm256_movemask_epi8(removed)),
            static_cast<uint32_t>(_mm256_movemask_epi8(bytes)),
            static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpgt_epi8(_mm256_set1_epi8(-64), bytes))),
            blanks,
            static_cast<uint32_t>(_mm256_movemask_epi8(newline))};
}

CUTAWAY_AVX2 Ascii ascii_avx2(const uint8_t* text) {
    const Ascii a = half_avx2(text);
    const Ascii b = half_avx2(text + 32);
    return {a.upper | b.upper << 32,     a.lower | b.lower << 32, a.digit | b.digit << 32,
            a.space | b.space << 32,     a.control | b.control << 32,
            a.high | b.high << 32,       a.continuing | b.continuing << 32,
            a.blank | b.blank << 32,     a.newline | b.newline << 32};
}

CUTAWAY_AVX512 inline Ascii ascii_avx512(const uint8_t* text) {
    const __m512i bytes = _mm512_loadu_si512(text);
    const auto is = [&](char byte) __attribute__((target("avx512f,avx512bw"))) -> uint64_t {
        return _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(byte));
    };
    const auto within = [&](char first, char count) __attribute__((target("avx512f,avx512bw"))) -> uint64_t {
        return _mm512_cmplt_epu8_mask(_mm512_sub_epi8(bytes, _mm512_set1_epi8(first)), _mm512_set1_epi8(count));
    };
    const uint64_t blank = is(' '), space = blank | within('\t', 5);
    return {within('A', 26),
            within('a', 26),
            within('0', 10),
            space,
            (within(0, 32) & ~space) | is(0x7F),
            _mm512_movepi8_mask(bytes),
            within(static_cast<char>(0x80), 0x40),
            blank,
            is('\n') | is('\r')};
}
#elif defined(__aarch64__)
inline uint64_t bits_of(uint8x16_t mask) {
    const uint8x16_t weights = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t weighed = vandq_u8(mask, weights);
    return vaddv_u8(vget_low_u8(weighed)) | static_cast<uint64_t>(vaddv_u8(vget_high_u8(weighed))) << 8;
}

Ascii ascii_neon(const uint8_t* text) {
    Ascii out{};
    for (int i = 0; i < 64; i += 16) {
        const uint8x16_t bytes = vld1q_u8(text + i);
        const auto within = [&](uint8_t first, uint8_t count) {
            return vcltq_u8(vsubq_u8(bytes, vdupq_n_u8(first)), vdupq_n_u8(count));
        };
        const uint8x16_t blank = vceqq_u8(bytes, vdupq_n_u8(' '));
        const uint8x16_t space = vorrq_u8(blank, within('\t', 5));
        const uint8x16_t control =
            vorrq_u8(vbicq_u8(within(0, 32), space), vceqq_u8(bytes, vdupq_n_u8(0x7F)));
        out.upper |= bits_of(within('A', 26)) << i;
        out.lower |= bits_of(within('a', 26)) << i;
        out.digit |= bits_of(within('0', 10)) << i;
        out.space |= bits_of(space) << i;
        out.control |= bits_of(control) << i;
        out.high |= bits_of(vcgeq_u8(bytes, vdupq_n_u8(0x80))) << i;
        out.continuing |= bits_of(within(0x80, 0x40)) << i;
        out.blank |= bits_of(blank) << i;
        out.newline |= bits_of(vorrq_u8(within('\n', 1), within('\r', 1))) << i;
    }
    return out;
}
#endif

Ascii ascii_portable(const uint8_t* text) {
    Ascii out{};
    for (int i = 0; i < 64; ++i) {
        const uint8_t byte = text[i];
        const auto within = [&](uint8_t first, uint8_t count) {
            return static_cast<uint64_t>(static_cast<uint8_t>(byte - first) < count) << i;
        };
        const uint64_t space = within(' ', 1) | within('\t', 5);
        out.upper |= within('A', 26);
        out.lower |= within('a', 26);
        out.digit |= within('0', 10);
        out.space |= space;
        out.control |= (within(0, 32) & ~space) | within(0x7F, 1);
        out.high |= within(0x80, 0x80);
        out.continuing |= within(0x80, 0x40);
        out.blank |= within(' ', 1);
        out.newline |= within('\n', 1) | within('\r', 1);
    }
    return out;
}

bool chinese_or_japanese(uint32_t code) { return (code >= 0x4E00 && code <= 0x9FA5) || (code >= 0x3040 && code <= 0x30FF); }

// A block's word of every bitmap, and what its last character writes into the next block.
struct Block {
    uint64_t now[kMaps] = {};
    uint64_t next[kMaps] = {};

    void set(uint8_t sets, uint64_t here, uint64_t there) {
        for (int map = 0; map < kMaps; ++map) {
            const uint64_t wanted = -static_cast<uint64_t>(sets >> map & 1);
            now[map] |= here & wanted;
            next[map] |= there & wanted;
        }
    }
};

// The bitmaps of a window, as its walker reads them. Beyond the window every bit is 0.
struct View {
    const uint8_t* text;
    size_t end;
    const uint8_t* maps[kAllMaps];

    View(const uint8_t* text, size_t size, const uint64_t* held) : text(text), end(size) {
        for (size_t map = 0; map < kAllMaps; ++map) {
            maps[map] = reinterpret_cast<const uint8_t*>(held + map * ((size + 63) / 64 + 1));
        }
    }
    const uint64_t* words(size_t map) const { return reinterpret_cast<const uint64_t*>(maps[map]); }

    bool is(Map map, size_t place) const { return maps[map][place >> 3] >> (place & 7) & 1; }

    // The first place from `place` on whose bit is 0.
    size_t run(Map map, size_t place) const {
        for (;;) {
            const uint8_t* at = maps[map] + (place >> 3);
            uint64_t word;
            std::memcpy(&word, at, 8);
            const unsigned shift = place & 7;
            const unsigned ones = static_cast<unsigned>(std::countr_one(word >> shift));
            place += ones;
            if (ones != 64 - shift) return place;
        }
    }

    size_t after(size_t place) const { return place + character(text + place, end - place).size; }
    bool newline(size_t place) const { return text[place] == '\n' || text[place] == '\r'; }
};

// What differs between the patterns that have one walker.
enum class Folding { none, ascii, unicode };

// The size of a contraction at a place that holds an apostrophe, or 0.
template <Folding folding>
size_t contraction(const View& view, size_t place) {
    const size_t left = view.end - place;
    if (left < 2) return 0;
    const auto letter = [&](size_t i) -> uint8_t {
        const uint8_t byte = view.text[place + i];
        return folding == Folding::none || byte < 'A' || byte > 'Z' ? byte : byte | 0x20;
    };
    const uint8_t one = letter(1);
    if (one == 's' || one == 't' || one == 'm' || one == 'd') return 2;
    if (left < 3) return 0;
    const uint8_t two = letter(2);
    if ((one == 'r' && two == 'e') || (one == 'v' && two == 'e') || (one == 'l' && two == 'l')) return 3;
    // The long s is an s in another case.
    if (folding == Folding::unicode && view.text[place + 1] == 0xC5 && view.text[place + 2] == 0xBF) return 3;
    return 0;
}

template <int most>
size_t number(const View& view, size_t place) {
    size_t end = view.after(place);
    for (int i = 1; i < most && view.is(kNumbers, end); ++i) end = view.after(end);
    return end;
}

// [^\s\p{L}\p{N}]+[\r\n]*, the signs beginning at `place`; with a slash among the line ends in some patterns.
template <bool slash>
size_t signs(const View& view, size_t place) {
    size_t end = view.run(kSigns, place);
    while (end < view.end && (view.newline(end) || (slash && view.text[end] == '/'))) ++end;
    return end;
}

// \s+(?!\S)|\s+ at a run of white space; `whole` when no sign or letter follows it, so that nothing is left over.
size_t blanks(const View& view, size_t place, size_t end, bool whole) {
    if (whole) return end;
    size_t last = end - 1;
    while (last > place && continues(view.text[last])) --last;
    return last > place ? last : end;
}

// \s*[\r\n]+ and then as above.
size_t lines_and_blanks(const View& view, size_t place, size_t end, bool whole) {
    for (size_t last = end; last > place; --last) {
        if (view.newline(last - 1)) return last;
    }
    return blanks(view, place, end, whole);
}

// Bytes of ASCII that may stand in front of a word: no letter, digit or line end.
constexpr std::array<uint8_t, 256> prefixes(bool apostrophe, bool signs) {
    std::array<uint8_t, 256> out{};
    for (int byte = 0; byte < 128; ++byte) {
        const bool letter = (byte | 0x20) >= 'a' && (byte | 0x20) <= 'z';
        const bool digit = byte >= '0' && byte <= '9';
        const bool sign = byte > ' ' && byte < 0x7F && !letter && !digit;
        out[static_cast<size_t>(byte)] = !letter && !digit && byte != '\r' && byte != '\n' &&
                                         (apostrophe || byte != '\'') && (signs || !sign);
    }
    return out;
}

struct Gpt2 {
    template <bool alone>
    static size_t end(const View& view, size_t place) {
        const uint8_t byte = view.text[place];
        const bool blank = byte == ' ';
        const size_t start = place + blank;
        if (view.is(kWord, start)) return view.run(kWord, start);
        if (byte == '\'') {
            if (const size_t size = contraction<Folding::none>(view, place)) return place + size;
        }
        if (alone ? view.is(kNumbers, place) : view.is(kNumbers, start)) {
            return alone ? view.after(place) : view.run(kNumbers, start);
        }
        if (view.is(kSigns, start)) return view.run(kSigns, start);
        const size_t end = view.run(kSpaces, place);
        return blanks(view, place, end, end == view.end || (alone && view.is(kNumbers, end)));
    }
};

template <Folding folding, int digits>
struct Cl100k {
    static size_t end(const View& view, size_t place) {
        static constexpr std::array<uint8_t, 256> kPrefix = prefixes(false, true);
        const uint8_t byte = view.text[place];
        const bool word = view.is(kWord, place);
        const size_t start = place + !word;
        if ((word | kPrefix[byte]) & view.is(kWord, start)) return view.run(kWord, start);
        if (byte == '\'') {
            if (const size_t size = contraction<folding>(view, place)) return place + size;
            if (view.is(kWord, start)) return view.run(kWord, start);
        }
        if (view.is(kNumbers, place)) return number<digits>(view, place);
        if (byte >= 0x80) {
            const size_t next = view.after(place);
            if (view.is(kWord, next)) return view.run(kWord, next);
        }
        if (byte == ' ' && view.is(kSigns, place + 1)) return signs<false>(view, place + 1);
        if (view.is(kSigns, place)) return signs<false>(view, place);
        const size_t end = view.run(kSpaces, place);
        return lines_and_blanks(view, place, end, end == view.end);
    }
};

template <bool contracted, int digits>
struct Cased {
    // The two word alternatives from `start` on, where the word itself begins; 0 where neither matches. Both say
    // "capitals, then small letters"; the first wants one of the second kind, and takes a letter without case
    // back from the capitals for it.
    static size_t word(const View& view, size_t start, bool capitals) {
        const size_t middle = view.run(kWord, start);
        if (view.is(kOther, middle)) return view.run(kOther, middle);
        if (middle == start) return 0;
        for (size_t last = middle; last > start;) {
            // Down to the last byte of a character that may be either, a byte of the bitmaps at a time.
            const size_t at = (last - 1) >> 3;
            const unsigned both = view.maps[kWord][at] & view.maps[kOther][at] & ((2u << ((last - 1) & 7)) - 1);
            if (both) {
                const size_t found = at * 8 + static_cast<size_t>(std::bit_width(both));
                if (found <= start) break;
                return found;
            }
            last = at * 8;
        }
        return capitals ? middle : 0;
    }

    static size_t suffixed(const View& view, size_t end) {
        if (contracted && end < view.end && view.text[end] == '\'') {
            return end + contraction<Folding::unicode>(view, end);
        }
        return end;
    }

    static size_t end(const View& view, size_t place) {
        static constexpr std::array<uint8_t, 256> kPrefix = prefixes(true, true);
        const uint8_t byte = view.text[place];
        const bool inside = view.is(kWord, place) | view.is(kOther, place);
        const bool mark = inside && view.is(kSigns, place);
        if (!mark) {
            const size_t start = place + !inside;
            if ((inside | kPrefix[byte]) & (view.is(kWord, start) | view.is(kOther, start))) {
                return suffixed(view, word(view, start, true));
            }
        } else {
            return marked(view, place);
        }
        if (view.is(kNumbers, place)) return number<digits>(view, place);
        if (byte >= 0x80) {
            const size_t next = view.after(place);
            if (view.is(kWord, next) | view.is(kOther, next)) return suffixed(view, word(view, next, true));
        }
        if (byte == ' ' && view.is(kSigns, place + 1)) return signs<true>(view, place + 1);
        if (view.is(kSigns, place)) return signs<true>(view, place);
        const size_t end = view.run(kSpaces, place);
        return lines_and_blanks(view, place, end, end == view.end);
    }

    // A mark is taken for the sign in front of a word first, then for a letter of it.
    static size_t marked(const View& view, size_t place) {
        const size_t next = view.after(place);
        if (const size_t end = word(view, next, false)) return suffixed(view, end);
        return suffixed(view, word(view, place, true));
    }
};

struct Deepseek3 {
    static bool sign_of_ascii(uint8_t byte) {
        return byte > ' ' && byte < 0x7F && !letter(byte) && !(byte >= '0' && byte <= '9');
    }
    static bool letter(uint8_t byte) { return (byte | 0x20) >= 'a' && (byte | 0x20) <= 'z'; }
    static bool nothing(const View& view, size_t place) {
        return !(view.is(kWord, place) | view.is(kOther, place) | view.is(kNumbers, place) |
                 view.is(kSpaces, place) | view.is(kSigns, place));
    }

    static size_t end(const View& view, size_t place) {
        static constexpr std::array<uint8_t, 256> kPrefix = prefixes(false, false);
        const uint8_t byte = view.text[place];
        const bool word = view.is(kWord, place);
        const size_t start = place + !word;
        if ((word | kPrefix[byte]) & view.is(kWord, start)) return view.run(kWord, start);
        if (view.is(kNumbers, place)) return number<3>(view, place);
        if (view.is(kOther, place)) return view.run(kOther, place);
        if (sign_of_ascii(byte) && start < view.end && letter(view.text[start])) {
            size_t end = start + 1;
            while (end < view.end && letter(view.text[end])) ++end;
            return end;
        }
        if (view.is(kSigns, place)) return signs<false>(view, place);
        const size_t next = view.after(place);
        if (!view.newline(place) && view.is(kWord, next)) return view.run(kWord, next);
        if (byte == ' ' && view.is(kSigns, place + 1)) return signs<false>(view, place + 1);
        if (view.is(kSpaces, place)) {
            const size_t end = view.run(kSpaces, place);
            const bool whole = end == view.end || view.is(kNumbers, end) || view.is(kOther, end);
            return lines_and_blanks(view, place, end, whole);
        }
        // Text that no alternative matches is one piece, up to where one matches.
        size_t end = next;
        while (end < view.end && nothing(view, end)) {
            const size_t beyond = view.after(end);
            if (view.is(kWord, beyond)) break;
            end = beyond;
        }
        return end;
    }
};

// Fills the bitmaps of a text: of each a word for 64 bytes, and one of zeros behind them. Whether marks can be made of
// them: not where a byte is no character, or a number that is counted is not of ASCII.
template <Ascii (*ascii)(const uint8_t*)>
CUTAWAY_INLINE bool classify_all(Pattern pattern, const uint8_t* text, size_t size, uint64_t* maps) {
    const size_t blocks = (size + 63) / 64;
    const Sets& sets = sets_of(pattern);
    const bool cased = &sets == &kCased;
    const bool deepseek = pattern == Pattern::deepseek3;
    const uint8_t* classes = nullptr;
    uint64_t strange = 0;
    Block block;
    for (size_t i = 0; i <= blocks; ++i) {
        const size_t start = i * 64;
        std::copy_n(block.next, kMaps, block.now);
        std::fill_n(block.next, kMaps, 0);
        Ascii kind{};
        if (i < blocks) {
            uint8_t padded[64];
            const uint8_t* bytes = text + start;
            const size_t left = std::min<size_t>(64, size - start);
            const uint64_t inside = left == 64 ? ~0ull : (1ull << left) - 1;
            if (left < 64) {
                std::memset(padded, 0, 64);
                std::memcpy(padded, bytes, left);
                bytes = padded;
            }
            __builtin_prefetch(bytes + kAhead);
            kind = ascii(bytes);
            const uint64_t letters = kind.upper | kind.lower;
            uint64_t signs = ~(letters | kind.digit | kind.space | kind.high);
            if (deepseek) signs &= ~kind.control;
            block.now[kWord] |= cased ? kind.upper : letters;
            block.now[kOther] |= cased ? kind.lower : 0;
            block.now[kNumbers] |= kind.digit;
            block.now[kSpaces] |= kind.space;
            block.now[kSigns] |= signs & inside;
            if (kind.high) {
                if (classes == nullptr) classes = unicode_classes();
                // Most characters are in the same bitmaps as the one before: those are gathered, and set at once.
                uint8_t gathered = 0;
                uint64_t here = 0, there = 0;
                for (uint64_t rest = kind.high & ~kind.continuing & inside; rest; rest &= rest - 1) {
                    const int place = std::countr_zero(rest);
                    const Character found = character(text + start + place, size - start - static_cast<size_t>(place));
                    const bool special = deepseek && chinese_or_japanese(found.code);
                    const uint8_t set = special ? bit(kOther) : sets[classes[found.code]];
                    if (set != gathered) {
                        block.set(gathered, here, there);
                        gathered = set;
                        here = there = 0;
                    }
                    const uint64_t ones = (1ull << found.size) - 1;
                    here |= ones << place;
                    if (place + static_cast<int>(found.size) > 64) there |= ones >> (64 - place);
                }
                block.set(gathered, here, there);
                // Bytes that continue nothing are of no class, each by itself.
                uint64_t all = 0;
                for (const uint64_t map : block.now) all |= map;
                const uint64_t stray = kind.high & inside & ~all;
                if (!deepseek) block.now[kSigns] |= stray;
                strange |= stray | (kind.high & block.now[kNumbers]);
            }
        }
        uint64_t* word = maps + i;
        for (const uint64_t map : block.now) {
            *word = map;
            word += blocks + 1;
        }
        word[0] = kind.blank;
        word[blocks + 1] = kind.newline;
        word[2 * (blocks + 1)] = kind.continuing;
    }
    return strange == 0;
}

#if defined(CUTAWAY_X86)
CUTAWAY_BITS bool classify_avx2(Pattern pattern, const uint8_t* text, size_t size, uint64_t* maps) {
    return classify_all<ascii_avx2>(pattern, text, size, maps);
}
CUTAWAY_AVX512 __attribute__((flatten)) bool classify_avx512(Pattern pattern, const uint8_t* text, size_t size,
                                                             uint64_t* maps) {
    return classify_all<ascii_avx512>(pattern, text, size, maps);
}
#endif

// Marks the first bytes of a window's pieces, but of its first.
template <Rules rules, Folding folding>
CUTAWAY_INLINE void marked_all(const View& view, uint64_t* marks) {
    const size_t words = (view.end + 63) / 64;
    uint64_t* lone = marks + words + 1;
    mark<rules>({view.words(kWord), view.words(kNumbers), view.words(kSpaces), view.words(kSigns),
                 view.words(kBlanks), view.words(kNewlines), view.words(kContinuing), view.end},
                marks, lone);
    marks[words] = 0;
    for (size_t i = 0; i < words; ++i) {
        for (uint64_t rest = lone[i]; rest; rest &= rest - 1) {
            const size_t place = i * 64 + static_cast<size_t>(std::countr_zero(rest));
            if (view.text[place] != '\'') continue;
            const size_t size = contraction<folding>(view, place);
            if (size == 0) continue;
            const size_t next = place + size;
            marks[(place + 1) >> 6] &= ~(1ull << ((place + 1) & 63));
            if (view.is(kWord, next)) marks[next >> 6] |= 1ull << (next & 63);
        }
    }
    marks[0] &= ~1ull;
}

#if defined(CUTAWAY_X86)
template <Rules rules, Folding folding>
CUTAWAY_BITS void marked_bits(const View& view, uint64_t* marks) {
    marked_all<rules, folding>(view, marks);
}
#endif

template <Rules rules, Folding folding>
void marked(const View& view, uint64_t* marks) {
#if defined(CUTAWAY_X86)
    if (isa() >= Isa::avx2) return marked_bits<rules, folding>(view, marks);
#endif
    marked_all<rules, folding>(view, marks);
}

// Writes the marked places from `place`, which is a word's first, on; whole words, as many as fit.
CUTAWAY_INLINE size_t spread_all(const uint64_t* marks, size_t size, size_t base, size_t& place, size_t* ends,
                                 size_t room) {
    size_t count = 0, at = place;
    while (at < size && count + 64 < room) {
        uint64_t rest = marks[at >> 6];
        const auto found = static_cast<size_t>(std::popcount(rest));
        // Eight at a time, without asking whether there are so many: what is written too much is written over.
        for (size_t i = 0; i < found; i += 8) {
            CUTAWAY_UNROLL_8 for (size_t j = 0; j < 8; ++j) {
                ends[count + i + j] = base + at + static_cast<size_t>(std::countr_zero(rest));
                rest &= rest - 1;
            }
        }
        count += found;
        at += 64;
    }
    if (at >= size) ends[count++] = base + size;
    place = std::min(at, size);
    return count;
}

#if defined(CUTAWAY_X86)
CUTAWAY_BITS size_t spread_bits(const uint64_t* marks, size_t size, size_t base, size_t& place, size_t* ends,
                                size_t room) {
    return spread_all(marks, size, base, place, ends, room);
}
#endif

size_t spread(const uint64_t* marks, size_t size, size_t base, size_t& place, size_t* ends, size_t room) {
#if defined(CUTAWAY_X86)
    if (isa() >= Isa::avx2) return spread_bits(marks, size, base, place, ends, room);
#endif
    return spread_all(marks, size, base, place, ends, room);
}

template <size_t (*end_of)(const View&, size_t)>
CUTAWAY_INLINE size_t walk_all(const View& view, size_t& place, size_t base, size_t* ends, size_t room) {
    size_t count = 0;
    size_t at = place;
    while (at < view.end && count < room) {
        at = end_of(view, at);
        ends[count++] = base + at;
    }
    place = at;
    return count;
}

#if defined(CUTAWAY_X86)
template <size_t (*end_of)(const View&, size_t)>
CUTAWAY_BITS size_t walk_bits(const View& view, size_t& place, size_t base, size_t* ends, size_t room) {
    return walk_all<end_of>(view, place, base, ends, room);
}
#endif

template <size_t (*end_of)(const View&, size_t)>
size_t walked(const View& view, size_t& place, size_t base, size_t* ends, size_t room) {
#if defined(CUTAWAY_X86)
    if (isa() >= Isa::avx2) return walk_bits<end_of>(view, place, base, ends, room);
#endif
    return walk_all<end_of>(view, place, base, ends, room);
}

size_t lines(const uint8_t* text, size_t size, size_t& place, size_t* ends, size_t room) {
    size_t count = 0;
    while (place < size && count < room) {
        if (text[place] == '\n') {
            while (place < size && text[place] == '\n') ++place;
        } else {
            const void* found = std::memchr(text + place, '\n', size - place);
            place = found ? static_cast<size_t>(static_cast<const uint8_t*>(found) - text) : size;
        }
        ends[count++] = place;
    }
    return count;
}

}  // namespace

size_t safe_cut(Pattern pattern, const uint8_t* text, size_t begin, size_t target) {
    if (pattern == Pattern::lines) {
        for (size_t place = target; place > begin; --place) {
            if (text[place - 1] == '\n' && text[place] != '\n') return place;
        }
        return begin;
    }
    for (size_t place = target; place > begin; --place) {
        if (text[place] == ' ' && Deepseek3::letter(text[place - 1])) return place;
    }
    return begin;
}

void Scanner::open(const uint8_t* text, size_t size) {
    text_ = text;
    size_ = size;
    begin_ = end_ = place_ = 0;
}

size_t Scanner::next(size_t* ends, size_t room) {
    if (pattern_ == Pattern::lines) return lines(text_, size_, place_, ends, room);
    if (place_ == end_ - begin_) {
        if (end_ == size_) return 0;
        begin_ = end_;
        place_ = 0;
        for (size_t wide = kWindow; end_ == begin_; wide *= 2) {
            end_ = wide >= size_ - begin_ ? size_ : safe_cut(pattern_, text_, begin_ + wide / 2, begin_ + wide);
            if (end_ == begin_ + wide / 2) end_ = begin_;
        }
        classify();
        marked_ = plain_ && mark();
    }
    if (marked_) return spread(marks_.data(), end_ - begin_, begin_, place_, ends, room);
    return walk(ends, room);
}

size_t Scanner::walk(size_t* ends, size_t room) {
    const View view(text_ + begin_, end_ - begin_, maps_.data());
    switch (pattern_) {
        case Pattern::gpt2: return walked<Gpt2::end<false>>(view, place_, begin_, ends, room);
        case Pattern::smollm: return walked<Gpt2::end<true>>(view, place_, begin_, ends, room);
        case Pattern::cl100k: return walked<Cl100k<Folding::unicode, 3>::end>(view, place_, begin_, ends, room);
        case Pattern::llama3: return walked<Cl100k<Folding::ascii, 3>::end>(view, place_, begin_, ends, room);
        case Pattern::qwen2:
        case Pattern::qwen35: return walked<Cl100k<Folding::ascii, 1>::end>(view, place_, begin_, ends, room);
        case Pattern::qwen2_any:
        case Pattern::qwen35_any:
            return walked<Cl100k<Folding::unicode, 1>::end>(view, place_, begin_, ends, room);
        case Pattern::o200k: return walked<Cased<true, 3>::end>(view, place_, begin_, ends, room);
        case Pattern::tekken: return walked<Cased<false, 1>::end>(view, place_, begin_, ends, room);
        default: return walked<Deepseek3::end>(view, place_, begin_, ends, room);
    }
}

// Marks the window's pieces; false where no rules say its pattern.
bool Scanner::mark() {
    marks_.resize(2 * ((end_ - begin_ + 63) / 64 + 1));
    const View view(text_ + begin_, end_ - begin_, maps_.data());
    switch (pattern_) {
        case Pattern::gpt2: marked<Rules{false, 0, false}, Folding::none>(view, marks_.data()); return true;
        case Pattern::smollm: marked<Rules{false, 1, true}, Folding::none>(view, marks_.data()); return true;
        case Pattern::cl100k: marked<Rules{true, 3, false}, Folding::unicode>(view, marks_.data()); return true;
        case Pattern::llama3: marked<Rules{true, 3, false}, Folding::ascii>(view, marks_.data()); return true;
        case Pattern::qwen2:
        case Pattern::qwen35: marked<Rules{true, 1, false}, Folding::ascii>(view, marks_.data()); return true;
        case Pattern::qwen2_any:
        case Pattern::qwen35_any: marked<Rules{true, 1, false}, Folding::unicode>(view, marks_.data()); return true;
        default: return false;
    }
}

// Fills the window's bitmaps.
void Scanner::classify() {
    maps_.resize(kAllMaps * ((end_ - begin_ + 63) / 64 + 1));
#if defined(CUTAWAY_X86)
    if (isa() >= Isa::avx512) {
        plain_ = classify_avx512(pattern_, text_ + begin_, end_ - begin_, maps_.data());
        return;
    }
    if (isa() >= Isa::avx2) {
        plain_ = classify_avx2(pattern_, text_ + begin_, end_ - begin_, maps_.data());
        return;
    }
#elif defined(__aarch64__)
    if (isa() == Isa::neon) {
        plain_ = classify_all<ascii_neon>(pattern_, text_ + begin_, end_ - begin_, maps_.data());
        return;
    }
#endif
    plain_ = classify_all<ascii_portable>(pattern_, text_ + begin_, end_ - begin_, maps_.data());
}

}  // namespace cutaway

// The ends of a text's pieces, into `ends`, which has room for one a byte; returns how many.
CUTAWAY_API int64_t cutaway_scan(int32_t pattern, const uint8_t* text, int64_t size, int64_t* ends) {
    cutaway::Scanner scanner(static_cast<cutaway::Pattern>(pattern));
    scanner.open(text, static_cast<size_t>(size));
    size_t some[256];
    int64_t count = 0;
    while (const size_t found = scanner.next(some, 256)) {
        for (size_t i = 0; i < found; ++i) ends[count++] = static_cast<int64_t>(some[i]);
    }
    return count;
}
