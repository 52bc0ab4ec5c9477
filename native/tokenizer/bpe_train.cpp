// Learning the merges of byte pair encoding from counted words (reference: cutaway/tokenizer/bpe_train.py).
//
// All words lie one after the other in one array of cells with an edge between them. A token covers as many
// cells as it has base symbols, and only its first and its last cell hold its id: the neighbour on the right
// begins where the token ends, the one on the left ends in the cell before, so no links are kept. A pair knows
// every place where it stood when it came to be. It can only lose places after that, because a pair comes to
// be when the younger of its two tokens does; so lists are written once, at their exact size, and an entry
// whose cells have changed is passed over. Pairs rarer than a threshold are not followed at all: if the merges
// ever get down to it, a lower one is set and everything is counted anew, and the result is the same.
#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <unordered_set>
#include <vector>

#include "core/api.hpp"
#include "core/large_pages.hpp"

namespace cutaway {
namespace {

using Symbol = int32_t;

template <class T>
using Large = std::vector<T, LargePages<T>>;

constexpr Symbol kEdge = -1;    // between words, and in place of characters outside the alphabet
constexpr Symbol kInside = -2;  // where a token began that is now part of a longer one

struct Place {
    uint32_t cell;
    uint32_t word;
};

struct Pair {
    uint64_t key = 0;
    int64_t count = kFree;
    uint64_t first = 0;  // of its places
    uint64_t places = 0;
    static constexpr int64_t kFree = -1;
};

uint64_t key_of(Symbol left, Symbol right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// Pairs by key: open addressing, nothing is ever taken out.
class Pairs {
  public:
    explicit Pairs(size_t room = 1 << 12) : slots_(room) {}

    Pair* find(uint64_t key) {
        Pair* slot = slot_of(key);
        return slot->count == Pair::kFree ? nullptr : slot;
    }

    Pair& put(uint64_t key) {
        if (2 * (used_ + 1) > slots_.size()) grow();
        Pair* slot = slot_of(key);
        if (slot->count == Pair::kFree) {
            *slot = {key, 0, 0, 0};
            ++used_;
        }
        return *slot;
    }

    void prefetch(uint64_t key) const { __builtin_prefetch(&slots_[start(key)]); }

    template <class F>
    void each(const F& f) {
        for (Pair& slot : slots_) {
            if (slot.count != Pair::kFree) f(slot);
        }
    }

  private:
    size_t start(uint64_t key) const {
        uint64_t mixed = key * 0x9e3779b97f4a7c15u;
        mixed ^= mixed >> 32;
        return static_cast<size_t>(mixed * 0x9e3779b97f4a7c15u >> 20) & (slots_.size() - 1);
    }

    Pair* slot_of(uint64_t key) {
        size_t at = start(key);
        while (slots_[at].count != Pair::kFree && slots_[at].key != key) at = (at + 1) & (slots_.size() - 1);
        return &slots_[at];
    }

    void grow() {
        Large<Pair> old(2 * slots_.size());
        old.swap(slots_);
        for (const Pair& pair : old) {
            if (pair.count != Pair::kFree) *slot_of(pair.key) = pair;
        }
    }

    Large<Pair> slots_;
    size_t used_ = 0;
};

// What a merge adds up for one neighbour before the tables are touched: many places, few neighbours.
struct Beside {
    int64_t weight = 0;
    uint64_t places = 0;
    uint64_t next = 0;  // where the next of its places is written
};

class Side {
  public:
    explicit Side(size_t symbols) : all_(symbols) {}

    void add(Symbol symbol, int64_t weight) {
        Beside& beside = all_[symbol];
        if (beside.places++ == 0) met_.push_back(symbol);
        beside.weight += weight;
    }

    Beside& operator[](Symbol symbol) { return all_[symbol]; }
    const std::vector<Symbol>& met() const { return met_; }

    void clear() {
        for (const Symbol symbol : met_) all_[symbol] = {};
        met_.clear();
    }

  private:
    std::vector<Beside> all_;
    std::vector<Symbol> met_;
};

struct Candidate {
    int64_t count;
    uint64_t key;
    // The heap's top is the highest count; of equal counts the pair of the lowest left id, then right id.
    bool operator<(const Candidate& other) const {
        return count != other.count ? count < other.count : key > other.key;
    }
};

struct Merge {
    Symbol left, right, made;
    int64_t count;
};

class Trainer {
  public:
    Trainer(const int32_t* symbols, const int64_t* offsets, const int64_t* counts, int64_t words,
            int32_t alphabet, int32_t size, int64_t rarest)
        : counts_(counts, counts + words), size_(size), rarest_(rarest),
          left_(static_cast<size_t>(size)), right_(static_cast<size_t>(size)) {
        const int64_t total = offsets[words];
        cells_.reserve(static_cast<size_t>(total + words + 1));
        starts_.reserve(static_cast<size_t>(words + 1));
        int64_t weight = 0;
        for (int64_t word = 0; word < words; ++word) {
            cells_.push_back(kEdge);
            starts_.push_back(static_cast<uint32_t>(cells_.size()));
            cells_.insert(cells_.end(), symbols + offsets[word], symbols + offsets[word + 1]);
            weight += counts[word] * (offsets[word + 1] - offsets[word]);
        }
        cells_.push_back(kEdge);
        starts_.push_back(static_cast<uint32_t>(cells_.size()));
        for (Symbol symbol = 0; symbol < alphabet; ++symbol) name(std::u32string(1, static_cast<char32_t>(symbol)));
        // Counts fall about as one over the rank of a merge, so few pairs below this are ever merged.
        threshold_ = std::max(rarest_, weight / (int64_t{kMargin} * std::max(size, 1)));
        count_all();
    }

    void reserve(const int32_t* symbols, int64_t size) {
        reserved_.insert(std::u32string(symbols, symbols + size));
    }

    // The next merge, done; false when no pair is left that may merge.
    bool step(Merge& done) {
        if (static_cast<int32_t>(texts_.size()) >= size_) return false;
        for (;;) {
            if (heap_.empty()) {
                if (threshold_ == rarest_) return false;
                threshold_ = std::max(rarest_, threshold_ / 8);
                count_all();
                continue;
            }
            const Candidate best = heap_.front();
            std::pop_heap(heap_.begin(), heap_.end());
            heap_.pop_back();
            Pair* pair = pairs_.find(best.key);
            if (pair == nullptr || pair->count < threshold_) continue;
            if (pair->count != best.count) {
                push({pair->count, best.key});
                continue;
            }
            const auto left = static_cast<Symbol>(best.key >> 32), right = static_cast<Symbol>(best.key);
            std::u32string text = texts_[left] + texts_[right];
            if (reserved_.contains(text)) continue;
            done = {left, right, static_cast<Symbol>(texts_.size()), best.count};
            name(std::move(text));
            join(*pair, done);
            lose(done);
            gain(done.made);
            return true;
        }
    }

  private:
    static constexpr int kMargin = 64;
    static constexpr size_t kAhead = 12;

    void name(std::u32string text) {
        lengths_.push_back(static_cast<uint32_t>(text.size()));
        texts_.push_back(std::move(text));
    }

    void push(Candidate candidate) {
        heap_.push_back(candidate);
        std::push_heap(heap_.begin(), heap_.end());
    }

    // Writes the new token at every place of the pair, from left to right, and adds up what its neighbours
    // lose; a neighbour that was made just now has no pairs yet.
    void join(Pair& pair, const Merge& done) {
        const uint32_t left_size = lengths_[done.left], size = lengths_[done.made];
        Symbol* cells = cells_.data();
        const Place* places = places_.data() + pair.first;
        const size_t count = pair.places;
        joined_.clear();
        for (size_t i = 0; i < count; ++i) {
            if (i + kAhead < count) {
                __builtin_prefetch(cells + places[i + kAhead].cell);
                __builtin_prefetch(counts_.data() + places[i + kAhead].word);
            }
            const uint64_t at = places[i].cell;
            if (cells[at] != done.left || cells[at + left_size] != done.right) continue;
            const int64_t weight = counts_[places[i].word];
            if (cells[at - 1] >= 0) left_.add(cells[at - 1], weight);
            if (cells[at + size] >= 0) right_.add(cells[at + size], weight);
            cells[at + left_size] = kInside;
            cells[at] = cells[at + size - 1] = done.made;
            joined_.push_back(places[i]);
        }
        pair.count = 0;
    }

    void lose(const Merge& done) {
        for (const Symbol left : left_.met()) pairs_.prefetch(key_of(left, done.left));
        for (const Symbol left : left_.met()) less(key_of(left, done.left), left_[left].weight);
        for (const Symbol right : right_.met()) pairs_.prefetch(key_of(done.right, right));
        for (const Symbol right : right_.met()) less(key_of(done.right, right), right_[right].weight);
        left_.clear();
        right_.clear();
    }

    // A pair that is already merged, or that is not followed, has nothing to lose.
    void less(uint64_t key, int64_t weight) {
        Pair* pair = pairs_.find(key);
        if (pair != nullptr && pair->count > 0) pair->count -= weight;
    }

    // The pairs that the places in joined_ make with their neighbours.
    void gain(Symbol made) {
        const uint32_t size = lengths_[made];
        const Symbol* cells = cells_.data();
        for (const Place& place : joined_) {
            const Symbol left = cells[place.cell - 1], right = cells[place.cell + size];
            if (left >= 0 && left != made) left_.add(left, counts_[place.word]);
            if (right >= 0) right_.add(right, counts_[place.word]);
        }
        for (const Symbol left : left_.met()) follow(key_of(left, made), left_[left]);
        for (const Symbol right : right_.met()) follow(key_of(made, right), right_[right]);
        for (const Place& place : joined_) {
            const Symbol left = cells[place.cell - 1], right = cells[place.cell + size];
            if (left >= 0 && left != made && left_[left].weight >= threshold_) {
                places_[left_[left].next++] = {place.cell - lengths_[left], place.word};
            }
            if (right >= 0 && right_[right].weight >= threshold_) places_[right_[right].next++] = place;
        }
        left_.clear();
        right_.clear();
    }

    // Makes room for the places of a pair, if it is frequent enough to be followed.
    void follow(uint64_t key, Beside& beside) {
        if (beside.weight < threshold_) return;
        Pair& pair = pairs_.put(key);
        pair = {key, beside.weight, places_.size(), beside.places};
        beside.next = places_.size();
        places_.resize(places_.size() + beside.places);
        push({pair.count, key});
    }

    template <class F>
    void each_token(const F& f) {
        for (uint32_t word = 0; word + 1 < starts_.size(); ++word) {
            for (uint32_t at = starts_[word]; at + 1 < starts_[word + 1];) {
                if (cells_[at] < 0) {
                    ++at;
                    continue;
                }
                const uint32_t size = lengths_[cells_[at]];
                f(at, word);
                at += size;
            }
        }
    }

    template <class F>
    void each_pair(const F& f) {
        each_token([&](uint32_t at, uint32_t word) {
            const Symbol right = cells_[at + lengths_[cells_[at]]];
            if (right >= 0) f(key_of(cells_[at], right), at, word);
        });
    }

    // Counts every pair as the cells are now, and follows those that reach the threshold.
    void count_all() {
        Pairs all;
        each_pair([&](uint64_t key, uint32_t, uint32_t word) {
            Pair& pair = all.put(key);
            pair.count += counts_[word];
            ++pair.places;
        });
        uint64_t places = 0;
        pairs_ = Pairs();
        heap_.clear();
        all.each([&](const Pair& pair) {
            if (pair.count < threshold_) return;
            pairs_.put(pair.key) = {pair.key, pair.count, places, 0};
            places += pair.places;
            heap_.push_back({pair.count, pair.key});
        });
        std::make_heap(heap_.begin(), heap_.end());
        places_.assign(places, {});
        each_pair([&](uint64_t key, uint32_t at, uint32_t word) {
            Pair* pair = pairs_.find(key);
            if (pair != nullptr) places_[pair->first + pair->places++] = {at, word};
        });
    }

    Large<Symbol> cells_;
    std::vector<uint32_t> starts_;  // the first cell of each word, and one past the last edge
    Large<int64_t> counts_;
    std::vector<std::u32string> texts_;  // each token's base symbols
    std::vector<uint32_t> lengths_;
    std::unordered_set<std::u32string> reserved_;
    int32_t size_;
    int64_t rarest_, threshold_;
    Pairs pairs_;
    Large<Place> places_, joined_;
    std::vector<Candidate> heap_;
    Side left_, right_;
};

}  // namespace
}  // namespace cutaway

// A trainer over words of base symbols (below `alphabet`, or -1 where nothing may merge), which are copied;
// offsets has words + 1 entries. Merges go on until there are `size` tokens or no pair has `rarest`
// occurrences. Null when there is not enough memory.
CUTAWAY_API void* cutaway_bpe_new(const int32_t* symbols, const int64_t* offsets, const int64_t* counts,
                                  int64_t words, int32_t alphabet, int32_t size, int64_t rarest) try {
    return new cutaway::Trainer(symbols, offsets, counts, words, alphabet, std::max(alphabet, size), rarest);
} catch (const std::bad_alloc&) {
    return nullptr;
}

// No token with this text is ever made.
CUTAWAY_API int32_t cutaway_bpe_reserve(void* trainer, const int32_t* symbols, int64_t size) try {
    static_cast<cutaway::Trainer*>(trainer)->reserve(symbols, size);
    return 0;
} catch (const std::bad_alloc&) {
    return -1;
}

// Up to `most` further merges: left, right, made and count of each, four numbers a merge. How many there
// were; -1 when there is not enough memory.
CUTAWAY_API int64_t cutaway_bpe_step(void* trainer, int64_t most, int64_t* out) try {
    cutaway::Merge done{};
    for (int64_t i = 0; i < most; ++i) {
        if (!static_cast<cutaway::Trainer*>(trainer)->step(done)) return i;
        const int64_t row[] = {done.left, done.right, done.made, done.count};
        std::copy(row, row + 4, out + 4 * i);
    }
    return most;
} catch (const std::bad_alloc&) {
    return -1;
}

CUTAWAY_API void cutaway_bpe_free(void* trainer) { delete static_cast<cutaway::Trainer*>(trainer); }
