// A packed matrix as panels: sixteen rows side by side, the same bytes in another order, so that a vector
// register holds the same place of sixteen rows. cutaway/runtime/panels.py states the layout and is the reference.
//
// Of each block (32 values, or 256) a panel holds, field after field, the field of sixteen rows: halves one a row,
// then scale bytes byte by byte, then quants in words of four bytes, word by word. The fifth bits of Q5_0 and Q5_1
// are put in the order that the kernel reads them in. Floats are stored in pairs of columns.
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

template <Field F>
uint8_t* field_of(Rows rows, int64_t at, uint8_t* out) {
    for (int r = 0; r < kPanel; ++r) {
        for (int i = 0; i < F.count; ++i) {
            uint8_t* to = out + (i * kPanel + r) * F.size;
            std::memcpy(to, rows[r] + at + F.from + i * F.size, F.size);
            if constexpr (F.fifths) {
                uint32_t bits;
                std::memcpy(&bits, to, 4);
                bits = rotated_bits(bits);
                std::memcpy(to, &bits, 4);
            }
        }
    }
    return out + F.count * kPanel * F.size;
}

// So many blocks of sixteen rows, one after another, field by field.
template <int Bytes, Field... F>
void blocks_of(Rows rows, int64_t blocks, uint8_t* out) {
    for (int64_t block = 0; block < blocks; ++block) ((out = field_of<F>(rows, block * Bytes, out)), ...);
}

struct Layout {
    int values, bytes;  // of a block of one row; floats count a pair of columns
    int halves;  // how many scales and leasts must be finite: its first fields
    void (*pack)(Rows, int64_t blocks, uint8_t*);
    Field fields[4];  // those that a type has not have no pieces
};

template <int Values, int Bytes, int Halves, Field... F>
bool is(Layout& out) {
    out = {Values, Bytes, Halves, blocks_of<Bytes, F...>, {F...}};
    return true;
}

bool layout_of(int32_t type, Layout& out) {
    constexpr Field half{0, 1, 2}, second{2, 1, 2};
    switch (type) {
        case kF32: return is<2, 8, 0, Field{0, 2, 4}>(out);
        case kF16: return is<2, 4, 0, Field{0, 2, 2}>(out);
        case kBF16: return is<2, 4, 0, Field{0, 1, 4}>(out);
        case kQ4_0: return is<32, 18, 1, half, Field{2, 4, 4}>(out);
        case kQ4_1: return is<32, 20, 2, half, second, Field{4, 4, 4}>(out);
        case kQ5_0: return is<32, 22, 1, half, Field{2, 1, 4, true}, Field{6, 4, 4}>(out);
        case kQ5_1: return is<32, 24, 2, half, second, Field{4, 1, 4, true}, Field{8, 4, 4}>(out);
        case kQ8_0: return is<32, 34, 1, half, Field{2, 8, 4}>(out);
        case kQ4_K: return is<256, 144, 2, half, second, Field{4, 12, 1}, Field{16, 32, 4}>(out);
        case kQ5_K: return is<256, 176, 2, half, second, Field{4, 12, 1}, Field{16, 40, 4}>(out);
        case kQ6_K: return is<256, 210, 1, Field{208, 1, 2}, Field{192, 16, 1}, Field{0, 48, 4}>(out);
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
            finite &= all_finite<uint16_t>(row + block * layout.bytes + layout.fields[i].from, 1, 0x7c00u);
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
    uint8_t block[256];
    static_assert(sizeof block >= 210, "the largest block");
    for (int64_t done = 0; done < matrix.columns; done += layout.values) {
        for (const Field& field : layout.fields) {
            for (int i = 0; i < field.count; ++i) {
                uint8_t* to = block + field.from + i * field.size;
                std::memcpy(to, from + (i * kPanel + row % kPanel) * field.size, static_cast<size_t>(field.size));
                if (!field.fifths) continue;
                uint32_t bits;
                std::memcpy(&bits, to, 4);
                bits = bits_transposed(bits);
                std::memcpy(to, &bits, 4);
            }
            from += field.count * kPanel * field.size;
        }
        cutaway_unpack(matrix.type, block, std::min<int64_t>(layout.values, matrix.columns - done), out + done, 1);
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
    split((rows + kPanel - 1) / kPanel, 4, threads, [&](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; ++panel) packing.panel(panel);
    });
    return packing.broken.load();
}
