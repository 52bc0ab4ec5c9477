// Where pieces begin, 64 bytes at a time: the patterns of GPT-2's and cl100k's kind as arithmetic on bitmaps, without a
// branch that depends on the text. (After simdjson's stage 1, arXiv:1902.08318. The walkers of scan.cpp say the same a
// piece at a time, and serve the other patterns.)
//
// Runs of letters, of numbers, of signs and of white space begin pieces; the rest is which run takes the character in
// front. Where a run ends is found by adding its first bit to it: the carry comes out behind its last.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "core/isa.hpp"

namespace cutaway {

// What differs between the patterns that are marked.
struct Rules {
    bool lines;   // cl100k: any sign or space but a line end belongs to the word behind it, and line ends end a piece
    int digits;   // the most in a piece; 0 for any number of them, with a space in front
    bool alone;   // numbers are cut off before the rest is looked at
};

// A window's bitmaps, 64 bytes a word, each with a word of zeros behind it.
struct Bitmaps {
    const uint64_t* letters;
    const uint64_t* numbers;
    const uint64_t* spaces;
    const uint64_t* signs;
    const uint64_t* blanks;      // ' '
    const uint64_t* newlines;    // '\n' and '\r'
    const uint64_t* continuing;  // bytes that begin no character
    size_t size;                 // bytes
};

// A bitmap's word, and what is on its two sides.
struct Neighbours {
    uint64_t before, here, after;

    explicit Neighbours(const uint64_t* map, size_t word)
        : before(word ? map[word - 1] : 0), here(map[word]), after(map[word + 1]) {}
    uint64_t previous(int count = 1) const { return here << count | before >> (64 - count); }
    uint64_t next() const { return here >> 1 | after << 63; }
};

// Adds the first bits of runs to them; the bits behind the runs, of which the last may be the next word's first.
struct Behind {
    uint64_t carry = 0;

    uint64_t operator()(uint64_t runs, uint64_t firsts) {
        uint64_t sum;
        const bool one = __builtin_add_overflow(runs, firsts, &sum);
        const bool two = __builtin_add_overflow(sum, carry, &sum);
        carry = one | two;
        return sum & ~runs;
    }
};

// Clears the mark behind line ends where the white space there goes on to another line end, at `end`: all of it is one
// piece. Unless those line ends belong to signs in front of them.
inline void unmark(const Bitmaps& maps, size_t end, uint64_t* marks) {
    const auto is = [](const uint64_t* map, size_t place) { return map[place >> 6] >> (place & 63) & 1; };
    size_t place = end - 1;
    while (!is(maps.newlines, place - 1)) --place;
    size_t first = place - 1;
    while (first > 0 && is(maps.newlines, first - 1)) --first;
    if (first == 0 || !is(maps.signs, first - 1)) marks[place >> 6] &= ~(1ull << (place & 63));
}

// Marks the first byte of every piece. Contractions are left to the caller: `lone` gets the signs that are a
// run by themselves with no space in front, and letters behind.
template <Rules rules>
CUTAWAY_INLINE void mark(const Bitmaps& maps, uint64_t* marks, uint64_t* lone) {
    const size_t words = (maps.size + 63) / 64;
    Behind behind_sign, behind_lines, behind_blanks;
    uint64_t third = 0;  // begins a piece in this word, as the fourth digit from one in the last
    for (size_t i = 0; i < words; ++i) {
        const Neighbours letter(maps.letters, i), number(maps.numbers, i), space(maps.spaces, i), sign(maps.signs, i);
        const Neighbours blank(maps.blanks, i), newline(maps.newlines, i);
        const uint64_t firsts = ~maps.continuing[i];
        const uint64_t behind_blank = blank.previous();
        uint64_t found = 0;

        // Signs, with the space in front of them. A run of one sign takes the word behind it: `joined` marks where.
        const uint64_t run = sign.here & ~sign.previous() & ~behind_blank;
        const uint64_t rest = sign.here & firsts & sign.previous();
        const uint64_t joined = behind_sign(sign.here & ~rest, run) & letter.here;
        found |= run;
        lone[i] = run & letter.next();

        // White space: its last character is left for what follows, but for line ends where those end a piece.
        uint64_t last = space.here & ~space.next();
        if (rules.lines) last &= ~newline.here;
        if (rules.alone) last &= ~number.next();
        uint64_t begins = space.here & ~space.previous();
        if (rules.lines) {
            const uint64_t taken = newline.here & sign.previous();
            begins &= ~taken;
            begins |= behind_lines(newline.here, taken) & space.here;
        }

        uint64_t words_begin = letter.here & ~letter.previous();
        words_begin &= ~(rules.lines ? joined | (space.previous() & ~newline.previous()) : behind_blank);
        found |= words_begin | begins;

        if (rules.digits == 0) {
            found |= number.here & ~number.previous() & ~behind_blank;
        } else if (rules.digits == 1) {
            found |= number.here & firsts;
        } else {
            const uint64_t fourth = number.here & number.previous() & number.previous(2) & number.previous(3);
            uint64_t digit = (number.here & ~number.previous()) | (third & fourth);
            third = 0;
            while (digit) {
                found |= digit;
                third |= digit >> 61;
                digit = digit << 3 & fourth;
            }
        }

        if (i + 1 == words) last &= ~(1ull << ((maps.size - 1) & 63));  // nothing follows
        if (last & maps.continuing[i]) {
            for (uint64_t wide = last & maps.continuing[i]; wide; wide &= wide - 1) {
                size_t place = i * 64 + static_cast<size_t>(std::countr_zero(wide));
                while (maps.continuing[place >> 6] >> (place & 63) & 1) --place;
                if (place >> 6 == i) {
                    found |= 1ull << (place & 63);
                } else {
                    marks[place >> 6] |= 1ull << (place & 63);
                }
            }
            last &= firsts;
        }
        marks[i] = found | last;

        if (rules.lines) {
            const uint64_t gap = space.here & ~newline.here;
            const uint64_t first = gap & newline.previous();
            marks[i] |= first;
            const uint64_t ends = behind_blanks(gap, first) & newline.here;
            for (uint64_t end = ends; end; end &= end - 1) {
                unmark(maps, i * 64 + static_cast<size_t>(std::countr_zero(end)), marks);
            }
        }
    }
}

}  // namespace cutaway
