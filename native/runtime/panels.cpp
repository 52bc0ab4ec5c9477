// A packed matrix as panels: sixteen rows side by side, the same bytes in another order, so that a vector
// register holds the same place of sixteen rows. cutaway/runtime/panels.py states the layout and is the reference.
//
// For each block (32 values, or 256) a panel holds, field after field, the field of sixteen rows: halves one a row,
// then scale bytes byte by byte, then quants in words of four bytes, word by word. The fifth bits of Q5_0 and Q5_1
// are put in the order that the kernel reads them in. The K types' blocks are first brought into the order in which a
// product reads them, row by row (`linear_blocks_of`). Floats are stored in pairs of columns.
#include <cstring>
#include <vector>

#include "core/api.hpp"
#include "runtime/matmul.hpp"
#include "core/thread_pool.hpp"

CUTAWAY_API int32_t cutaway_unpack(int32_t type, const uint8_t* in, int64_t values, float* out, int32_t threads);

namespace cutaway {
namespace {

using Rows = const uint8_t* const*;  // sixteen rows, at the block in question

// Part of a row's block: `count` pieces of `size` bytes from byte `from` on. `fifths`: bits that are rotated.
struct Field {
    int from, count, size;
    bool fifths = false;
};

// Bit 4 s + i becomes bit 8 i + s.
uint32_t rotated_bits(uint32_t bits) {
    uint32_t out = 0;
    for (int part = 0; part < 8; ++part) {  // four bits, spread to the lowest of four bytes
        out |= ((((bits >> (4 * part)) & 15) * 0x00204081u) & 0x01010101u) << part;
    }
    return out;
}

// Bit 8 i + s becomes bit 4 s + i.
uint32_t bits_transposed(uint32_t bits) {
    uint32_t out = 0;
    for (int bit = 0; bit < 32; ++bit) out |= ((bits >> bit) & 1) << (4 * (bit % 8) + bit / 8);
    return out;
}

uint32_t word_at(const uint8_t* p) {
    uint32_t word;
    std::memcpy(&word, p, sizeof word);
    return word;
}
void put_word(uint8_t* p, uint32_t word) { std::memcpy(p, &word, sizeof word); }

// One row's block of a K type from its file's order into that in which a product reads it, and back.
using Reorder = void (*)(const uint8_t* in, uint8_t* out);

// For a pair of groups (of four), the six-bit scales and minima in three bytes: the even group's scale, the odd one's, the even
// one's minimum, and above each two bits of the odd one's. The file has them as cutaway/quantization/formats.py, six_bits, says.
void six_bits_there(const uint8_t* in, int pair, uint8_t* out) {
    uint8_t scale[2], least[2];
    for (int i = 0; i < 2; ++i) {
        const int g = 2 * pair + i;
        scale[i] = g < 4 ? in[g] & 63 : (in[g + 4] & 15) | (in[g - 4] >> 2 & 48);
        least[i] = g < 4 ? in[g + 4] & 63 : (in[g + 4] >> 4) | (in[g] >> 2 & 48);
    }
    out[0] = static_cast<uint8_t>(scale[0] | least[1] << 6);
    out[1] = static_cast<uint8_t>(scale[1] | (least[1] >> 2 & 3) << 6);
    out[2] = static_cast<uint8_t>(least[0] | least[1] >> 4 << 6);
}
void six_bits_back(const uint8_t* in, int pair, uint8_t* out) {
    const int scale[] = {in[0] & 63, in[1] & 63}, least[] = {in[2] & 63, in[0] >> 6 | (in[1] >> 4 & 12) | (in[2] >> 2 & 48)};
    for (int i = 0; i < 2; ++i) {  // the lower four groups come first, and their bytes' upper bits are the others'
        const int g = 2 * pair + i;
        if (g < 4) {
            out[g] = static_cast<uint8_t>(scale[i]);
            out[g + 4] = static_cast<uint8_t>(least[i]);
        } else {
            out[g + 4] = static_cast<uint8_t>((scale[i] & 15) | (least[i] & 15) << 4);
            out[g - 4] |= static_cast<uint8_t>(scale[i] >> 4 << 6);
            out[g] |= static_cast<uint8_t>(least[i] >> 4 << 6);
        }
    }
}

// Halves; then of each pair of groups the scales and, of Q5_K, the fifth bits (a group's word as Q5_0's), and nibbles.
template <bool Fifths>
void k_there(const uint8_t* in, uint8_t* out) {
    std::memcpy(out, in, 4);
    out += 4;
    for (int pair = 0; pair < 4; ++pair, out += Fifths ? 43 : 35) {
        six_bits_there(in + 4, pair, out);
        for (int i = 0; Fifths && i < 2; ++i) {
            uint32_t bits = 0;
            for (int s = 0; s < 8; ++s) bits |= (word_at(in + 16 + 4 * s) >> (2 * pair + i) & 0x01010101u) << s;
            put_word(out + 3 + 4 * i, bits);
        }
        std::memcpy(out + (Fifths ? 11 : 3), in + (Fifths ? 48 : 16) + 32 * pair, 32);
    }
}
template <bool Fifths>
void k_back(const uint8_t* in, uint8_t* out) {
    std::memset(out, 0, Fifths ? 48 : 16);
    std::memcpy(out, in, 4);
    in += 4;
    for (int pair = 0; pair < 4; ++pair, in += Fifths ? 43 : 35) {
        six_bits_back(in, pair, out + 4);
        for (int i = 0; Fifths && i < 2; ++i) {
            const uint32_t bits = word_at(in + 3 + 4 * i);
            for (int s = 0; s < 8; ++s) {
                uint8_t* to = out + 16 + 4 * s;
                put_word(to, word_at(to) | (bits >> s & 0x01010101u) << (2 * pair + i));
            }
        }
        std::memcpy(out + (Fifths ? 48 : 16) + 32 * pair, in + (Fifths ? 11 : 3), 32);
    }
}

// The word of the two-bit weights of part p of sixteen: those of columns 4j.. at bits 2j of each byte; and back.
uint32_t pairs_there(const uint8_t* quants, int p) {
    uint32_t word = 0;
    for (int j = 0; j < 4; ++j) {
        const uint8_t* at = quants + 32 * (p / 8) + 16 * (p % 2) + 4 * j;
        word |= (word_at(at) >> 2 * (p / 2 % 4) & 0x03030303u) << 2 * j;
    }
    return word;
}
void pairs_back(uint32_t word, int p, uint8_t* quants) {
    for (int j = 0; j < 4; ++j) {
        uint8_t* at = quants + 32 * (p / 8) + 16 * (p % 2) + 4 * j;
        put_word(at, word_at(at) | (word >> 2 * j & 0x03030303u) << 2 * (p / 2 % 4));
    }
}

// Halves; then of each pair of groups its four parts' scales and minima, and a word of each part.
void q2_there(const uint8_t* in, uint8_t* out) {
    std::memcpy(out, in + 80, 4);
    out += 4;
    for (int pair = 0; pair < 4; ++pair, out += 20) {
        std::memcpy(out, in + 4 * pair, 4);
        for (int part = 0; part < 4; ++part) put_word(out + 4 + 4 * part, pairs_there(in + 16, 4 * pair + part));
    }
}
void q2_back(const uint8_t* in, uint8_t* out) {
    std::memset(out, 0, 80);
    std::memcpy(out + 80, in, 4);
    in += 4;
    for (int pair = 0; pair < 4; ++pair, in += 20) {
        std::memcpy(out + 4 * pair, in, 4);
        for (int part = 0; part < 4; ++part) pairs_back(word_at(in + 4 + 4 * part), 4 * pair + part, out + 16);
    }
}

// Q3_K in a panel: the half; for each pair of groups four scales (two bytes of low nibbles, one of upper bits); for
// each group a word of each part and one of third bits (as Q5_0's fifth bits). cutaway/quantization/formats.py has the
// order of the file.
void q3_there(const uint8_t* in, uint8_t* out) {
    const uint8_t* scales = in + 96;
    std::memcpy(out, in + 108, 2);
    out += 2;
    for (int pair = 0; pair < 4; ++pair, out += 27) {
        std::memset(out, 0, 3);
        for (int part = 0; part < 4; ++part) {
            const int i = 4 * pair + part, low = scales[i % 8] >> 4 * (i / 8) & 15, high = scales[8 + i % 4] >> 2 * (i / 4) & 3;
            out[part / 2] |= static_cast<uint8_t>(low << 4 * (part % 2));
            out[2] |= static_cast<uint8_t>(high << 2 * part);
        }
        for (int i = 0; i < 2; ++i) {
            const int group = 2 * pair + i;
            uint32_t third = 0;
            for (int s = 0; s < 8; ++s) third |= (word_at(in + 4 * s) >> group & 0x01010101u) << s;
            put_word(out + 3 + 12 * i, pairs_there(in + 32, 2 * group));
            put_word(out + 7 + 12 * i, pairs_there(in + 32, 2 * group + 1));
            put_word(out + 11 + 12 * i, third);
        }
    }
}
void q3_back(const uint8_t* in, uint8_t* out) {
    std::memset(out, 0, 108);
    std::memcpy(out + 108, in, 2);
    uint8_t* scales = out + 96;
    in += 2;
    for (int pair = 0; pair < 4; ++pair, in += 27) {
        for (int part = 0; part < 4; ++part) {
            const int i = 4 * pair + part;
            scales[i % 8] |= static_cast<uint8_t>((in[part / 2] >> 4 * (part % 2) & 15) << 4 * (i / 8));
            scales[8 + i % 4] |= static_cast<uint8_t>((in[2] >> 2 * part & 3) << 2 * (i / 4));
        }
        for (int i = 0; i < 2; ++i) {
            const int group = 2 * pair + i;
            const uint32_t third = word_at(in + 11 + 12 * i);
            for (int s = 0; s < 8; ++s) put_word(out + 4 * s, word_at(out + 4 * s) | (third >> s & 0x01010101u) << group);
            pairs_back(word_at(in + 3 + 12 * i), 2 * group, out + 32);
            pairs_back(word_at(in + 7 + 12 * i), 2 * group + 1, out + 32);
        }
    }
}

// The half, the scales, and of each sixteen weights two words of nibbles (of the first and second four weights, of the third
// and fourth) and one of the upper bit pairs of all.
void q6_there(const uint8_t* in, uint8_t* out) {
    std::memcpy(out, in + 208, 2);
    std::memcpy(out + 2, in + 192, 16);
    for (int part = 0; part < 16; ++part) {
        const int half = part / 8, row = part / 2 % 4, nibble = row / 2 * 4;
        const uint8_t* low = in + 64 * half + 32 * (row % 2) + 16 * (part % 2);
        const uint8_t* high = in + 128 + 32 * half + 16 * (part % 2);
        uint32_t words[3] = {};
        for (int j = 0; j < 4; ++j) {
            words[j / 2] |= (word_at(low + 4 * j) >> nibble & 0x0f0f0f0fu) << 4 * (j % 2);
            words[2] |= (word_at(high + 4 * j) >> 2 * row & 0x03030303u) << 2 * j;
        }
        std::memcpy(out + 18 + 12 * part, words, sizeof words);
    }
}
void q6_back(const uint8_t* in, uint8_t* out) {
    std::memset(out, 0, 192);
    std::memcpy(out + 208, in, 2);
    std::memcpy(out + 192, in + 2, 16);
    for (int part = 0; part < 16; ++part) {
        const int half = part / 8, row = part / 2 % 4, nibble = row / 2 * 4;
        uint8_t* low = out + 64 * half + 32 * (row % 2) + 16 * (part % 2);
        uint8_t* high = out + 128 + 32 * half + 16 * (part % 2);
        const uint8_t* words = in + 18 + 12 * part;
        for (int j = 0; j < 4; ++j) {
            const uint32_t four = word_at(words + 4 * (j / 2)) >> 4 * (j % 2) & 0x0f0f0f0fu;
            put_word(low + 4 * j, word_at(low + 4 * j) | four << nibble);
            put_word(high + 4 * j, word_at(high + 4 * j) | (word_at(words + 8) >> 2 * j & 0x03030303u) << 2 * row);
        }
    }
}

template <Field F>
uint8_t* field_of(Rows rows, int64_t at, uint8_t* out) {
    for (int r = 0; r < kPanel; ++r) {
        for (int i = 0; i < F.count; ++i) {
            uint8_t* to = out + (i * kPanel + r) * F.size;
            std::memcpy(to, rows[r] + at + F.from + i * F.size, F.size);
            if constexpr (F.fifths) put_word(to, rotated_bits(word_at(to)));
        }
    }
    return out + F.count * kPanel * F.size;
}

template <int Bytes, Field... F>
void blocks_of(Rows rows, int64_t blocks, uint8_t* out) {
    for (int64_t block = 0; block < blocks; ++block) ((out = field_of<F>(rows, block * Bytes, out)), ...);
}

// The same of blocks in another order than their file's.
template <int Bytes, Reorder There, Field... F>
void linear_blocks_of(Rows rows, int64_t blocks, uint8_t* out) {
    uint8_t room[kPanel][Bytes];
    const uint8_t* at[kPanel];
    for (int64_t block = 0; block < blocks; ++block) {
        for (int r = 0; r < kPanel; ++r) {
            There(rows[r] + block * Bytes, room[r]);
            at[r] = room[r];
        }
        ((out = field_of<F>(at, 0, out)), ...);
    }
}

constexpr int kFields = 10;  // at most
struct Layout {
    int values, bytes;  // of a block of one row; floats count a pair of columns
    int halves[2];  // where a block of the file holds numbers that must be finite; -1: none
    void (*pack)(Rows, int64_t blocks, uint8_t*);
    Field fields[kFields];  // those that a type has not have no pieces
    Reorder back;           // from the panels' order; null where that is the file's
};

template <int Values, int Bytes, Field... F>
bool is(Layout& out, int half = -1, int least = -1) {
    out = {Values, Bytes, {half, least}, blocks_of<Bytes, F...>, {F...}, nullptr};
    return true;
}

template <int Bytes, Reorder There, Reorder Back, Field... F>
bool is_linear(Layout& out, int half, int least = -1) {
    out = {256, Bytes, {half, least}, linear_blocks_of<Bytes, There, F...>, {F...}, Back};
    return true;
}

bool layout_of(int32_t type, Layout& out) {
    constexpr Field half{0, 1, 2}, second{2, 1, 2};
    switch (type) {
        case kF32: return is<2, 8, Field{0, 2, 4}>(out);
        case kF16: return is<2, 4, Field{0, 2, 2}>(out);
        case kBF16: return is<2, 4, Field{0, 1, 4}>(out);
        case kQ4_0: return is<32, 18, half, Field{2, 4, 4}>(out, 0);
        case kQ4_1: return is<32, 20, half, second, Field{4, 4, 4}>(out, 0, 2);
        case kQ5_0: return is<32, 22, half, Field{2, 1, 4, true}, Field{6, 4, 4}>(out, 0);
        case kQ5_1: return is<32, 24, half, second, Field{4, 1, 4, true}, Field{8, 4, 4}>(out, 0, 2);
        case kQ8_0: return is<32, 34, half, Field{2, 8, 4}>(out, 0);
        case kQ2_K:
            return is_linear<84, q2_there, q2_back, half, second, Field{4, 4, 1}, Field{8, 4, 4}, Field{24, 4, 1}, Field{28, 4, 4},
                             Field{44, 4, 1}, Field{48, 4, 4}, Field{64, 4, 1}, Field{68, 4, 4}>(out, 80, 82);
        case kQ3_K:
            return is_linear<110, q3_there, q3_back, half, Field{2, 3, 1}, Field{5, 6, 4}, Field{29, 3, 1}, Field{32, 6, 4},
                             Field{56, 3, 1}, Field{59, 6, 4}, Field{83, 3, 1}, Field{86, 6, 4}>(out, 108);
        case kIQ4_NL: return is<32, 18, half, Field{2, 4, 4}>(out, 0);
        case kIQ4_XS: return is<256, 136, half, Field{2, 6, 1}, Field{8, 32, 4}>(out, 0);
        case kMXFP4: return is<32, 17, Field{0, 1, 1}, Field{1, 4, 4}>(out);
        case kQ4_K:
            return is_linear<144, k_there<false>, k_back<false>, half, second, Field{4, 3, 1}, Field{7, 8, 4}, Field{39, 3, 1},
                             Field{42, 8, 4}, Field{74, 3, 1}, Field{77, 8, 4}, Field{109, 3, 1}, Field{112, 8, 4}>(out, 0, 2);
        case kQ5_K:
            return is_linear<176, k_there<true>, k_back<true>, half, second, Field{4, 3, 1}, Field{7, 10, 4}, Field{47, 3, 1},
                             Field{50, 10, 4}, Field{90, 3, 1}, Field{93, 10, 4}, Field{133, 3, 1}, Field{136, 10, 4}>(out, 0, 2);
        case kQ6_K:
            return is_linear<210, q6_there, q6_back, half, Field{2, 16, 1}, Field{18, 48, 4}>(out, 208);
        default: return false;
    }
}

// Whether a number whose exponent is all ones is among them: infinite, or not a number.
template <class T>
bool all_finite(const uint8_t* at, int64_t count, T exponent) {
    bool finite = true;
    for (int64_t i = 0; i < count; ++i) {
        T bits;
        std::memcpy(&bits, at + i * static_cast<int64_t>(sizeof bits), sizeof bits);
        finite &= (bits & exponent) != exponent;
    }
    return finite;
}

bool row_is_finite(int32_t type, const Layout& layout, const uint8_t* row, int64_t columns) {
    if (type == kF32) return all_finite<uint32_t>(row, columns, 0x7f800000u);
    if (type == kF16) return all_finite<uint16_t>(row, columns, 0x7c00u);
    if (type == kBF16) return all_finite<uint16_t>(row, columns, 0x7f80u);
    bool finite = true;
    for (int64_t block = 0; block < columns / layout.values; ++block) {
        for (const int half : layout.halves) {
            if (half >= 0) finite &= all_finite<uint16_t>(row + block * layout.bytes + half, 1, 0x7c00u);
        }
    }
    return finite;
}

struct Packing {
    int32_t type;
    Layout layout;
    const uint8_t* in;
    int64_t rows, columns, row_bytes;
    uint8_t* out;
    std::vector<uint8_t> zeros;  // a row past the last
    std::atomic<int64_t> broken{-1};  // some row that holds what is no finite number

    void panel(int64_t index) {
        // Rows past the last are zeros, and so is the second half of the last pair of an odd number of floats.
        const uint8_t* at[kPanel];
        for (int r = 0; r < kPanel; ++r) {
            const int64_t row = index * kPanel + r;
            at[r] = row < rows ? in + row * row_bytes : zeros.data();
            if (!row_is_finite(type, layout, at[r], columns)) broken.store(row);
        }
        const int64_t whole = columns / layout.values;
        uint8_t* to = out + index * panel_bytes(type, columns);
        layout.pack(at, whole, to);
        if (columns % layout.values == 0) return;
        uint8_t last[kPanel][8] = {};
        const uint8_t* from[kPanel];
        for (int r = 0; r < kPanel; ++r) {
            const int64_t rest = row_bytes - whole * layout.bytes;
            std::memcpy(last[r], at[r] + whole * layout.bytes, static_cast<size_t>(rest));
            from[r] = last[r];
        }
        layout.pack(from, 1, to + whole * layout.bytes * kPanel);
    }
};

}  // namespace

int64_t panel_bytes(int32_t type, int64_t columns) {
    Layout layout;
    if (!layout_of(type, layout)) return 0;
    return (columns + layout.values - 1) / layout.values * layout.bytes * kPanel;
}

void unpack_row(const Matrix& matrix, int64_t row, float* out) {
    Layout layout;
    if (!layout_of(matrix.type, layout)) return;
    const uint8_t* from = matrix.panels + row / kPanel * panel_bytes(matrix.type, matrix.columns);
    uint8_t block[256], reordered[256];
    static_assert(sizeof block >= 210, "the largest block");
    for (int64_t done = 0; done < matrix.columns; done += layout.values) {
        for (const Field& field : layout.fields) {
            for (int i = 0; i < field.count; ++i) {
                uint8_t* to = block + field.from + i * field.size;
                std::memcpy(to, from + (i * kPanel + row % kPanel) * field.size, static_cast<size_t>(field.size));
                if (field.fifths) put_word(to, bits_transposed(word_at(to)));
            }
            from += field.count * kPanel * field.size;
        }
        if (layout.back != nullptr) layout.back(block, reordered);
        cutaway_unpack(matrix.type, layout.back == nullptr ? block : reordered, std::min<int64_t>(layout.values, matrix.columns - done), out + done, 1);
    }
}

}  // namespace cutaway

// Bytes that hold a matrix as panels; 0 for a type that does not run.
CUTAWAY_API int64_t cutaway_packed_bytes(int32_t type, int64_t rows, int64_t columns) {
    return cutaway::panel_bytes(type, columns) * ((rows + cutaway::kPanel - 1) / cutaway::kPanel);
}

// Lays `rows` rows out as panels; the caller has checked both sizes. Returns -1, or a row that holds an infinite
// number or none, or -2 for a type that does not run.
CUTAWAY_API int64_t cutaway_pack(int32_t type, const uint8_t* in, int64_t rows, int64_t columns, uint8_t* out,
                                 int32_t threads) {
    using namespace cutaway;
    Packing packing{.type = type, .layout = {}, .in = in, .rows = rows, .columns = columns, .row_bytes = 0, .out = out, .zeros = {}};
    if (!layout_of(type, packing.layout)) return -2;
    const int64_t values = packing.layout.values, bytes = packing.layout.bytes;
    packing.row_bytes = values == 2 ? columns * (bytes / 2) : columns / values * bytes;
    if (rows % kPanel != 0) packing.zeros.resize(static_cast<size_t>(packing.row_bytes));
    split_by_shares((rows + kPanel - 1) / kPanel, 4, threads, [&](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; ++panel) packing.panel(panel);
    });
    return packing.broken.load();
}
