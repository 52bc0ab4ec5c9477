// A byte pair vocabulary laid out flat, so that it is one file that opens by being mapped: a trie of its tokens, the
// table of pairs, and for each symbol how it comes about. Symbols are the tokens, and bytes or characters without one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/isa.hpp"

#if defined(CUTAWAY_X86)
#include <immintrin.h>
#endif

namespace cutaway {

inline constexpr uint64_t kMagic = 0x3430656270617763;  // "cwapbe04": raise it with every change of the layout
inline constexpr uint32_t kNone = 0xFFFFFFFF;
inline constexpr uint32_t kLongestToken = 1u << 14;  // bytes; tokenizer/fast.py compiles none longer

// A node of the trie (a double array: the child by byte c is base ^ c, if that node's parent is this one).
struct Node {
    uint32_t base;  // bit 31: a symbol ends here; bit 30: one that merging reaches
    uint32_t parent;
};
inline constexpr uint32_t kEnds = 1u << 31;
inline constexpr uint32_t kReached = 1u << 30;
inline constexpr uint32_t kBase = kReached - 1;
inline constexpr uint32_t kRootless = kNone - 1;  // the root's parent: it is no child, not its own either

enum Section {
    kNodes, kSymbolOf, kSymbols, kWritten, kPairs, kRanks, kMade, kBytePairs, kTextStarts, kText, kSections
};

struct Symbol {
    uint32_t size : 31;  // bytes
    uint32_t unused : 1;
    uint32_t prefix;  // the longest reachable symbol that it begins with, not itself
    uint32_t left;    // the pair whose merge made it, or kNone
    uint32_t right;
    int32_t rank;  // of that merge; -1 for what is not made, -2 for what merging never comes to
    int32_t id;    // what it is written as, or -1
    uint32_t first;  // the number of the first pair of that rank, and that behind the last one
    uint32_t past;
};

struct Header {
    uint64_t magic;
    uint64_t size;      // bytes in all
    uint64_t checksum;  // of everything else
    uint32_t symbols;
    uint32_t tokens;  // ids that can be decoded
    uint32_t bytewise;
    uint32_t whole;     // a piece that is a token is that token
    uint32_t monotone;  // nothing merges before its parts: pieces can be encoded by search
    uint32_t bucket_bits;
    uint32_t first_made;  // merges make the symbols from here on, in order; kNone where they do not
    int32_t unknown;
    uint32_t fuse;
    uint32_t closed;  // merging comes to every symbol that has an id
    uint32_t tied;    // some merges to different symbols have one rank
    uint32_t plain;   // every symbol is written as its own number
    int32_t byte_ids[256];      // -1 without byte fallback
    uint32_t byte_symbols[256];  // bytewise
    uint64_t starts[kSections + 1];
};

// Pairs are packed: 21 bits left, 21 right, 22 the number of their merge in order of rank: of one rank and one symbol
// made, one number.
inline constexpr uint32_t kMostSymbols = (1u << 21) - 1;
inline constexpr uint32_t kMostPairs = (1u << 22) - 2;
inline constexpr uint32_t kBorder = kMostSymbols;  // no symbol: it has no pair with any

inline constexpr uint64_t kMix = 0x9E3779B97F4A7C15;
inline uint64_t mixed(uint64_t value) {
    value *= kMix;
    return value ^ value >> 32;
}

// Pairs lie in buckets of a cache line each, filled from the front: one line fetched finds a pair, or that there is
// none, but where a bucket is full and the next one holds what it could not.
inline constexpr size_t kBucket = 8;
inline constexpr uint64_t kNoEntry = ~0ull;
inline constexpr uint32_t kNoNumber = (1u << 22) - 1;

// A vocabulary in memory that its owner keeps.
class Vocabulary {
  public:
    // Checks the checksum and that nothing inside points outside; false where it does not hold.
    bool open(const uint8_t* data, size_t size) { return attach(data, size) && sound(); }
    // Without the checks of what is inside, for a layout that is being made.
    bool attach(const uint8_t* data, size_t size);

    const Header& header() const { return *header_; }
    const Symbol& symbol(uint32_t symbol) const { return symbols_[symbol]; }

    uint32_t child(uint32_t node, uint8_t byte) const {
        const uint32_t found = (nodes_[node].base & kBase) ^ byte;
        return nodes_[found].parent == node ? found : kNone;
    }
    // The longest reachable symbol that text begins with, or kNone, and its bytes.
    struct Longest {
        uint32_t symbol, size;
    };
    Longest longest(const uint8_t* text, size_t size) const {
        uint32_t node = 0, found = kNone, length = 0;
        for (uint32_t i = 0; i < size; ++i) {
            node = child(node, text[i]);
            if (node == kNone) break;
            if (nodes_[node].base & kReached) {
                found = node;
                length = i + 1;
            }
        }
        return {found == kNone ? kNone : symbol_of_[found], length};
    }
    // The symbol whose bytes are all of text, or kNone.
    uint32_t exact(const uint8_t* text, size_t size) const {
        uint32_t node = 0;
        for (size_t i = 0; i < size; ++i) {
            node = child(node, text[i]);
            if (node == kNone) return kNone;
        }
        return nodes_[node].base & kEnds ? symbol_of_[node] : kNone;
    }
    bool reached(uint32_t symbol) const { return symbols_[symbol].rank > -2; }
    // A symbol's id; -1 where it has none, or is not written as that.
    int32_t written(uint32_t symbol) const { return written_[symbol]; }

    // Two symbols beside each other, and the bucket of their pair if they are one.
    struct Pair {
        uint64_t key;
        const uint64_t* bucket;
    };
    Pair pair_of(uint32_t left, uint32_t right) const {
        const uint64_t key = static_cast<uint64_t>(left) << 21 | right;
        return {key, pairs_ + (key * kMix >> (64 - bucket_bits_)) * kBucket};
    }
    // The number of a pair's merge, or kNoNumber.
    uint32_t number(const Pair& pair) const {
        uint64_t entry = kNoEntry;
        for (size_t i = 0; i < kBucket; ++i) entry = pair.bucket[i] >> 22 == pair.key ? pair.bucket[i] : entry;
        return number(pair, entry);
    }
#if defined(CUTAWAY_X86)
    CUTAWAY_AVX512 CUTAWAY_INLINE uint32_t number_avx512(const Pair& pair) const {
        const __m512i keys = _mm512_srli_epi64(_mm512_loadu_si512(pair.bucket), 22);
        const __m512i key = _mm512_broadcastq_epi64(_mm_loadu_si64(&pair.key));
        const uint32_t same = _mm512_cmpeq_epi64_mask(keys, key);
        const uint64_t last = pair.bucket[kBucket - 1];
        if ((same | (last == kNoEntry)) == 0) [[unlikely]] return static_cast<uint32_t>(beyond(pair)) & kNoNumber;
        // Whether there is one no branch can guess.
        const auto none = static_cast<uint32_t>(static_cast<int32_t>(same - 1) >> 31);
        return (static_cast<uint32_t>(pair.bucket[__builtin_ctz(same | 1u << (kBucket - 1))]) | none) & kNoNumber;
    }
#endif
    // The same, or kNone.
    uint32_t pair(uint32_t left, uint32_t right) const {
        const uint32_t found = number(pair_of(left, right));
        return found == kNoNumber ? kNone : found;
    }
    // Has the memory that number() reads fetched.
    void ask(const Pair& pair) const { __builtin_prefetch(pair.bucket); }
    int32_t rank(uint32_t pair) const { return ranks_[pair]; }
    uint32_t made(uint32_t pair) const { return first_made_ != kNone ? first_made_ + pair : made_[pair]; }

    // The number of the pair of two bytes, where text is merged from bytes.
    uint32_t byte_pair(uint8_t left, uint8_t right) const { return byte_pairs_[left << 8 | right]; }

    const uint32_t* byte_pairs() const { return byte_pairs_; }

    const uint32_t* text_starts() const { return text_starts_; }
    const uint8_t* text() const { return text_; }
    size_t text_size() const { return static_cast<size_t>(header_->starts[kSections] - header_->starts[kText]); }

  private:
    bool sound() const;
    bool sound_symbols() const;
    bool sound_nodes() const;
    bool sound_pairs() const;
    // How many values of a kind a section has room for.
    template <class T>
    size_t room(Section section) const {
        return static_cast<size_t>(header_->starts[section + 1] - header_->starts[section]) / sizeof(T);
    }

    // A pair's entry in its first bucket, unless that one is full.
    CUTAWAY_INLINE uint32_t number(const Pair& pair, uint64_t entry) const {
        if (entry == kNoEntry && pair.bucket[kBucket - 1] != kNoEntry) [[unlikely]] entry = beyond(pair);
        return static_cast<uint32_t>(entry) & kNoNumber;
    }
    uint64_t beyond(Pair pair) const;

    const Header* header_ = nullptr;
    const Node* nodes_ = nullptr;
    const uint32_t* symbol_of_ = nullptr;
    const Symbol* symbols_ = nullptr;
    const uint64_t* pairs_ = nullptr;
    const int32_t* ranks_ = nullptr;
    const uint32_t* made_ = nullptr;
    const int32_t* written_ = nullptr;
    uint32_t bucket_bits_ = 1;
    uint32_t first_made_ = kNone;
    const uint32_t* byte_pairs_ = nullptr;
    const uint32_t* text_starts_ = nullptr;
    const uint8_t* text_ = nullptr;
};

// Merges symbols until no pair has a rank, the lowest rank first, of equal ones the leftmost: O(n log n).
void merge(const Vocabulary& vocabulary, std::vector<uint32_t>& symbols);

}  // namespace cutaway
