// The class of every code point, as split patterns see it, in one version of Unicode (cutaway/tokenizer/unicode-16.0.inc).
#pragma once

#include <cstddef>
#include <cstdint>

namespace cutaway {

// Exclusive; the numbers are those of cutaway/tokenizer/unicode.py.
enum Class : uint8_t { kRest, kUpper, kLower, kLetter, kMark, kNumber, kPunctuation, kSymbol, kSpace, kClasses };

// Classes by code point, below 0x110000. Unrolled from runs when first asked for; safe from any thread.
const uint8_t* unicode_classes();

// A character of UTF-8: its size in bytes and its code point. What is no character is one byte of class kRest
// and says code point 0xFFFF.
struct Character {
    uint32_t size;
    uint32_t code;
};

inline bool continues(uint8_t byte) { return (byte & 0xC0) == 0x80; }

// The character at text, of which `room` > 0 bytes may be read.
inline Character character(const uint8_t* text, size_t room) {
    const uint8_t lead = text[0];
    if (lead < 0x80) return {1, lead};
    if (lead >= 0xC2 && lead < 0xE0 && room >= 2 && continues(text[1])) {
        return {2, (lead & 0x1Fu) << 6 | (text[1] & 0x3Fu)};
    }
    if ((lead & 0xF0) == 0xE0 && room >= 3 && continues(text[1]) && continues(text[2])) {
        return {3, (lead & 0x0Fu) << 12 | (text[1] & 0x3Fu) << 6 | (text[2] & 0x3Fu)};
    }
    if (lead >= 0xF0 && lead < 0xF5 && room >= 4 && continues(text[1]) && continues(text[2]) && continues(text[3])) {
        const uint32_t code =
            (lead & 0x07u) << 18 | (text[1] & 0x3Fu) << 12 | (text[2] & 0x3Fu) << 6 | (text[3] & 0x3Fu);
        if (code < 0x110000) return {4, code};
    }
    return {1, 0xFFFF};
}

}  // namespace cutaway
