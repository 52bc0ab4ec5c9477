// Counting the distinct words of a corpus (reference: collections.Counter over cutaway/tokenizer/word_split.py).
//
// A text is cut into stretches at places where no piece changes; each worker scans stretches and counts into a
// table of its own, and the tables are added up when the words are read. Words of up to 15 bytes are in the table
// itself: two numbers are compared, and no memory but the slot is touched.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <vector>

#include "core/api.hpp"
#include "core/large_pages.hpp"
#include "core/thread_pool.hpp"
#include "tokenizer/scan.hpp"

namespace cutaway {
namespace {

constexpr size_t kStretch = 1 << 17;
constexpr size_t kInline = 15;
constexpr uint64_t kLong = 0xff;  // in place of the length of a word that is on the heap

struct Word {
    const uint8_t* text;
    size_t size;
};

// A word of up to 15 bytes is those bytes, and its length in the highest; a longer one its hash and place.
struct Slot {
    uint64_t low = 0, high = 0;
    int64_t count = 0;
};

uint64_t mixed(uint64_t low, uint64_t high) {
    const auto product = static_cast<unsigned __int128>(low ^ 0x9e3779b97f4a7c15u) * (high ^ 0xd1b54a32d192ed03u);
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t hash_of(const uint8_t* text, size_t size) {
    uint64_t hash = size;
    for (; size > 0; ) {
        uint64_t part[2] = {0, 0};
        const size_t taken = std::min<size_t>(size, 16);
        std::memcpy(part, text, taken);
        hash = mixed(part[0] ^ hash, part[1] + 0x632be59bd9b4e019u * hash);
        text += taken;
        size -= taken;
    }
    return hash;
}

// What is looked for: the slot's two numbers, for a long word before it has a place.
struct Key {
    uint64_t low, high, hash;
};

class Table {
  public:
    Table() : slots_(1 << 12) {}

    void add(const Word& word, const Key& key, int64_t count) {
        if (2 * (used_ + 1) > slots_.size()) grow();
        const bool is_long = word.size > kInline;
        for (size_t at = key.hash & mask();; at = (at + 1) & mask()) {
            Slot& slot = slots_[at];
            if (slot.count == 0) {
                slot = is_long ? keep(word, key) : Slot{key.low, key.high, 0};
                slot.count = count;
                ++used_;
                return;
            }
            if (slot.low != key.low) continue;
            if (is_long ? same(slot, word) : slot.high == key.high) {
                slot.count += count;
                return;
            }
        }
    }

    void prefetch(const Key& key) const { __builtin_prefetch(&slots_[key.hash & mask()], 1); }

    template <class F>
    void each(const F& f) const {
        for (const Slot& slot : slots_) {
            if (slot.count != 0) f(word_of(slot), slot.count);
        }
    }

    size_t size() const { return used_; }
    size_t text() const {
        size_t sum = 0;
        each([&](const Word& word, int64_t) { sum += word.size; });
        return sum;
    }

  private:
    size_t mask() const { return slots_.size() - 1; }

    static bool is_long(const Slot& slot) { return slot.high >> 56 == kLong; }

    Word word_of(const Slot& slot) const {
        if (!is_long(slot)) return {reinterpret_cast<const uint8_t*>(&slot), slot.high >> 56};
        const uint8_t* at = long_.data() + (slot.high & ~(kLong << 56));
        uint64_t size;
        std::memcpy(&size, at, 8);
        return {at + 8, size};
    }

    bool same(const Slot& slot, const Word& word) const {
        if (!is_long(slot)) return false;
        const Word known = word_of(slot);
        return known.size == word.size && std::memcmp(known.text, word.text, word.size) == 0;
    }

    Slot keep(const Word& word, const Key& key) {
        const size_t at = long_.size();
        const uint64_t size = word.size;
        long_.resize(at + 8 + word.size);
        std::memcpy(long_.data() + at, &size, 8);
        std::memcpy(long_.data() + at + 8, word.text, word.size);
        return {key.low, kLong << 56 | at, 0};
    }

    void grow() {
        std::vector<Slot, LargePages<Slot>> old(2 * slots_.size());
        old.swap(slots_);
        for (const Slot& slot : old) {
            if (slot.count == 0) continue;
            size_t at = (is_long(slot) ? slot.low : mixed(slot.low, slot.high)) & mask();
            while (slots_[at].count != 0) at = (at + 1) & mask();
            slots_[at] = slot;
        }
    }

    std::vector<Slot, LargePages<Slot>> slots_;
    std::vector<uint8_t> long_;  // each long word behind its length
    size_t used_ = 0;
};

// `end` is the end of the buffer: a short word is read as 16 bytes where there are so many.
Key key_of(const Word& word, const uint8_t* end) {
    if (word.size > kInline) {
        const uint64_t hash = hash_of(word.text, word.size);
        return {hash, kLong << 56, hash};
    }
    uint64_t low = 0, high = 0;
    if (end - word.text >= 16) {
        std::memcpy(&low, word.text, 8);
        std::memcpy(&high, word.text + 8, 8);
        if (word.size <= 8) {
            high = 0;
            low = word.size == 0 ? 0 : low & ~uint64_t{0} >> (64 - 8 * word.size);
        } else {
            high &= ~uint64_t{0} >> (128 - 8 * word.size);
        }
    } else {
        uint8_t padded[16] = {};
        std::memcpy(padded, word.text, word.size);
        std::memcpy(&low, padded, 8);
        std::memcpy(&high, padded + 8, 8);
    }
    high |= static_cast<uint64_t>(word.size) << 56;
    return {low, high, mixed(low, high)};
}

class WordCounter {
  public:
    // The words of a text, as the pattern cuts it.
    void add(Pattern pattern, const uint8_t* text, size_t size, int threads) {
        std::vector<size_t> bounds = {0};
        while (bounds.back() < size) bounds.push_back(cut(pattern, text, size, bounds.back()));
        const size_t stretches = bounds.size() - 1;
        const int workers = static_cast<int>(std::min<size_t>(std::max(threads, 1), std::max<size_t>(stretches, 1)));
        while (tables_.size() < static_cast<size_t>(workers)) tables_.emplace_back();
        std::atomic<size_t> next{0};
        std::atomic<bool> failed{false};
        run(workers, [&](int worker, int) {
            try {
                for (size_t i = next.fetch_add(1); i < stretches && !failed; i = next.fetch_add(1)) {
                    scan(pattern, text + bounds[i], bounds[i + 1] - bounds[i], text + size, tables_[worker]);
                }
            } catch (const std::bad_alloc&) {
                failed = true;
            }
        });
        if (failed) throw std::bad_alloc();
    }

    void put(const Word& word, int64_t count) {
        tables_[0].add(word, key_of(word, word.text + word.size), count);
    }

    // All words in one table.
    Table& whole() {
        for (size_t i = 1; i < tables_.size(); ++i) {
            tables_[i].each([&](const Word& word, int64_t count) { put(word, count); });
            tables_[i] = Table();
        }
        return tables_[0];
    }

    // Past `limit` words, drops the rarest and says what the most frequent of them counted.
    int64_t prune(size_t limit) {
        size_t most = 0;
        for (const Table& table : tables_) most += table.size();
        if (most <= limit || whole().size() <= limit) return 0;
        std::vector<int64_t> counts;
        whole().each([&](const Word&, int64_t count) { counts.push_back(count); });
        const size_t rank = counts.size() - 1 - limit / 2;
        std::nth_element(counts.begin(), counts.begin() + static_cast<int64_t>(rank), counts.end());
        const int64_t dropped = counts[rank];
        const Table before = std::move(tables_[0]);
        tables_[0] = Table();
        before.each([&](const Word& word, int64_t count) {
            if (count > dropped) put(word, count);
        });
        return dropped;
    }

  private:
    static constexpr size_t kBatch = 128;

    static size_t cut(Pattern pattern, const uint8_t* text, size_t size, size_t begin) {
        for (size_t target = begin + kStretch; target < size; target += kStretch) {
            const size_t found = safe_cut(pattern, text, begin, target);
            if (found > begin) return found;
        }
        return size;
    }

    static void scan(Pattern pattern, const uint8_t* text, size_t size, const uint8_t* end, Table& table) {
        Scanner scanner(pattern);
        scanner.open(text, size);
        size_t ends[kBatch], begin = 0;
        Word words[kBatch];
        Key keys[kBatch];
        while (const size_t count = scanner.next(ends, kBatch)) {
            for (size_t i = 0; i < count; begin = ends[i++]) {
                words[i] = {text + begin, ends[i] - begin};
                keys[i] = key_of(words[i], end);
                table.prefetch(keys[i]);
            }
            for (size_t i = 0; i < count; ++i) table.add(words[i], keys[i], 1);
        }
    }

    std::vector<Table> tables_ = std::vector<Table>(1);
};

// The place of the first byte that is not part of a UTF-8 character, or size.
size_t utf8_until(const uint8_t* text, size_t size) {
    size_t at = 0;
    while (at < size) {
        uint64_t eight;
        if (size - at >= 8 && (std::memcpy(&eight, text + at, 8), (eight & 0x8080808080808080u) == 0)) {
            at += 8;
            continue;
        }
        const uint8_t lead = text[at];
        if (lead < 0x80) {
            ++at;
            continue;
        }
        const size_t more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
        if (lead < 0xc2 || lead > 0xf4 || size - at <= more) return at;
        // The second byte's range excludes overlong forms, surrogates and what is above U+10FFFF.
        const uint8_t least = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
        const uint8_t most = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
        if (text[at + 1] < least || text[at + 1] > most) return at;
        for (size_t i = 2; i <= more; ++i) {
            if ((text[at + i] & 0xc0) != 0x80) return at;
        }
        at += more + 1;
    }
    return size;
}

}  // namespace
}  // namespace cutaway

// An empty counter of words; null when there is not enough memory.
CUTAWAY_API void* cutaway_word_counter_new() try {
    return new cutaway::WordCounter;
} catch (const std::bad_alloc&) {
    return nullptr;
}

// Counts the words of a text as a pattern (scan.hpp) cuts it. -1: not enough memory, the counter is spoilt.
CUTAWAY_API int32_t cutaway_word_counter_add(void* counter, int32_t pattern, const uint8_t* text, int64_t size,
                                      int32_t threads) try {
    static_cast<cutaway::WordCounter*>(counter)->add(static_cast<cutaway::Pattern>(pattern), text,
                                             static_cast<size_t>(size), threads);
    return 0;
} catch (const std::bad_alloc&) {
    return -1;
}

// Adds words with their counts, which are at least 1.
CUTAWAY_API int32_t cutaway_word_counter_put(void* counter, const uint8_t* text, const int64_t* offsets,
                                      const int64_t* counts, int64_t words) try {
    for (int64_t i = 0; i < words; ++i) {
        static_cast<cutaway::WordCounter*>(counter)->put(
            {text + offsets[i], static_cast<size_t>(offsets[i + 1] - offsets[i])}, counts[i]);
    }
    return 0;
} catch (const std::bad_alloc&) {
    return -1;
}

// Drops the rarest words if there are more than `limit`: the highest count dropped, or 0; -1 without memory.
CUTAWAY_API int64_t cutaway_word_counter_prune(void* counter, int64_t limit) try {
    return static_cast<cutaway::WordCounter*>(counter)->prune(static_cast<size_t>(limit));
} catch (const std::bad_alloc&) {
    return -1;
}

// How many distinct words there are, and how many bytes they have together.
CUTAWAY_API int32_t cutaway_word_counter_size(void* counter, int64_t* words, int64_t* text) try {
    const cutaway::Table& whole = static_cast<cutaway::WordCounter*>(counter)->whole();
    *words = static_cast<int64_t>(whole.size());
    *text = static_cast<int64_t>(whole.text());
    return 0;
} catch (const std::bad_alloc&) {
    return -1;
}

// Writes all words into arrays of the sizes that cutaway_word_counter_size returned; offsets has one more.
CUTAWAY_API void cutaway_word_counter_words(void* counter, uint8_t* text, int64_t* offsets, int64_t* counts) {
    int64_t place = 0;
    *offsets++ = 0;
    static_cast<cutaway::WordCounter*>(counter)->whole().each([&](const cutaway::Word& word, int64_t count) {
        std::memcpy(text + place, word.text, word.size);
        place += static_cast<int64_t>(word.size);
        *offsets++ = place;
        *counts++ = count;
    });
}

CUTAWAY_API void cutaway_word_counter_free(void* counter) { delete static_cast<cutaway::WordCounter*>(counter); }

// The last place up to `most`, which is in the text, at which it can be cut without a word changing; else 0.
CUTAWAY_API int64_t cutaway_split_point(int32_t pattern, const uint8_t* text, int64_t most) {
    return static_cast<int64_t>(
        cutaway::safe_cut(static_cast<cutaway::Pattern>(pattern), text, 0, static_cast<size_t>(most)));
}

// The place of the first byte that is not UTF-8, or of a character cut off at the end; else size.
CUTAWAY_API int64_t cutaway_utf8_until(const uint8_t* text, int64_t size) {
    return static_cast<int64_t>(cutaway::utf8_until(text, static_cast<size_t>(size)));
}
