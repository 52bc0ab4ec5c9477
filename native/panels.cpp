// A packed matrix turned into panels: sixteen rows side by side, the same bytes in another order, so that a vector
// register holds the same place of sixteen rows. cutaway/runtime/panels.py states the layout and is the twin.
//
// Of each block (32 values, or 256) a panel holds, field after field, the field of sixteen rows: halves one a row,
// then scale bytes byte by byte, then quants in words of four bytes, word by word. The fifth bits of Q5_0 and Q5_1
// are put in the order that the kernel reads them in. Floats lie in pairs of columns.
#include <cstring>
#include <vector>

#include "api.hpp"
#include "matmul.hpp"
#include "pool.hpp"

namespace cutaway {
namespace {

using Rows = const uint8_t* const*;  // sixteen rows, at the block in question

template <int Size, int Count>
uint8_t* bytes_of(Rows rows, int64_t from, uint8_t* out) {
    for (int r = 0; r < kPanel; ++r) {
        for (int i = 0; i < Count; ++i) std::memcpy(out + (i * kPanel + r) * Size, rows[r] + from + i * Size, Size);
    }
    return out + Count * kPanel * Size;
}

uint8_t* halves_of(Rows rows, int64_t from, uint8_t* out) { return bytes_of<2, 1>(rows, from, out); }

template <int Count>
uint8_t* words_of(Rows rows, int64_t from, uint8_t* out) {
    return bytes_of<4, Count>(rows, from, out);
}

// Bit 4 s + i becomes bit 8 i + s.
uint8_t* fifths_of(Rows rows, int64_t from, uint8_t* out) {
    for (int r = 0; r < kPanel; ++r, out += 4) {
        uint32_t bits = 0, turned = 0;
        std::memcpy(&bits, rows[r] + from, 4);
        for (int part = 0; part < 8; ++part) {  // four bits, spread to the lowest of four bytes
            turned |= ((((bits >> (4 * part)) & 15) * 0x00204081u) & 0x01010101u) << part;
        }
        std::memcpy(out, &turned, 4);
    }
    return out;
}

struct Layout {
    int values, bytes;  // of a block of one row; floats count a pair of columns
    uint8_t* (*pack)(Rows, int64_t blocks, uint8_t*);
    int halves;  // how many scales and leasts must be finite, and where they lie
    int half_at[2];
};

// So many blocks of sixteen rows, one after another, by what packs one of them.
template <uint8_t* (*Pack)(Rows, int64_t, uint8_t*), int Bytes>
uint8_t* blocks_of(Rows rows, int64_t blocks, uint8_t* out) {
    for (int64_t block = 0; block < blocks; ++block) out = Pack(rows, block * Bytes, out);
    return out;
}

uint8_t* pack_q4_0(Rows r, int64_t b, uint8_t* o) { return words_of<4>(r, b + 2, halves_of(r, b, o)); }
uint8_t* pack_q4_1(Rows r, int64_t b, uint8_t* o) {
    return words_of<4>(r, b + 4, halves_of(r, b + 2, halves_of(r, b, o)));
}
uint8_t* pack_q5_0(Rows r, int64_t b, uint8_t* o) {
    return words_of<4>(r, b + 6, fifths_of(r, b + 2, halves_of(r, b, o)));
}
uint8_t* pack_q5_1(Rows r, int64_t b, uint8_t* o) {
    return words_of<4>(r, b + 8, fifths_of(r, b + 4, halves_of(r, b + 2, halves_of(r, b, o))));
}
uint8_t* pack_q8_0(Rows r, int64_t b, uint8_t* o) { return words_of<8>(r, b + 2, halves_of(r, b, o)); }
uint8_t* pack_q4_k(Rows r, int64_t b, uint8_t* o) {
    o = halves_of(r, b + 2, halves_of(r, b, o));
    return words_of<32>(r, b + 16, bytes_of<1, 12>(r, b + 4, o));
}
uint8_t* pack_q5_k(Rows r, int64_t b, uint8_t* o) {
    o = halves_of(r, b + 2, halves_of(r, b, o));
    return words_of<40>(r, b + 16, bytes_of<1, 12>(r, b + 4, o));
}
uint8_t* pack_q6_k(Rows r, int64_t b, uint8_t* o) {
    o = bytes_of<1, 16>(r, b + 192, halves_of(r, b + 208, o));
    return words_of<48>(r, b, o);
}
uint8_t* pack_f32(Rows r, int64_t b, uint8_t* o) { return bytes_of<4, 2>(r, b, o); }
uint8_t* pack_f16(Rows r, int64_t b, uint8_t* o) { return bytes_of<2, 2>(r, b, o); }
uint8_t* pack_bf16(Rows r, int64_t b, uint8_t* o) { return words_of<1>(r, b, o); }

bool layout_of(int32_t type, Layout& out) {
    switch (type) {
        case kF32: out = {2, 8, blocks_of<pack_f32, 8>, 0, {}}; return true;
        case kF16: out = {2, 4, blocks_of<pack_f16, 4>, 0, {}}; return true;
        case kBF16: out = {2, 4, blocks_of<pack_bf16, 4>, 0, {}}; return true;
        case kQ4_0: out = {32, 18, blocks_of<pack_q4_0, 18>, 1, {0, 0}}; return true;
        case kQ4_1: out = {32, 20, blocks_of<pack_q4_1, 20>, 2, {0, 2}}; return true;
        case kQ5_0: out = {32, 22, blocks_of<pack_q5_0, 22>, 1, {0, 0}}; return true;
        case kQ5_1: out = {32, 24, blocks_of<pack_q5_1, 24>, 2, {0, 2}}; return true;
        case kQ8_0: out = {32, 34, blocks_of<pack_q8_0, 34>, 1, {0, 0}}; return true;
        case kQ4_K: out = {256, 144, blocks_of<pack_q4_k, 144>, 2, {0, 2}}; return true;
        case kQ5_K: out = {256, 176, blocks_of<pack_q5_k, 176>, 2, {0, 2}}; return true;
        case kQ6_K: out = {256, 210, blocks_of<pack_q6_k, 210>, 1, {208, 0}}; return true;
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
        for (int i = 0; i < layout.halves; ++i) {
            finite &= all_finite<uint16_t>(row + block * layout.bytes + layout.half_at[i], 1, 0x7c00u);
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
        uint8_t* to = layout.pack(at, whole, out + index * panel_bytes(type, columns));
        if (columns % layout.values == 0) return;
        uint8_t last[kPanel][8] = {};
        const uint8_t* from[kPanel];
        for (int r = 0; r < kPanel; ++r) {
            const int64_t rest = row_bytes - whole * layout.bytes;
            std::memcpy(last[r], at[r] + whole * layout.bytes, static_cast<size_t>(rest));
            from[r] = last[r];
        }
        layout.pack(from, 1, to);
    }
};

}  // namespace

int64_t panel_bytes(int32_t type, int64_t columns) {
    Layout layout;
    if (!layout_of(type, layout)) return 0;
    return (columns + layout.values - 1) / layout.values * layout.bytes * kPanel;
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
    split((rows + kPanel - 1) / kPanel, 4, threads, [&](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; ++panel) packing.panel(panel);
    });
    return packing.broken.load();
}
