// Byte pair encoding of text: pieces are looked up in a cache; one not seen before is a token, or is encoded by
// search, or merged.
//
// The search: merging gives the only sequence of reachable symbols in which merging any two neighbours by themselves
// gives just those two. (Merges inside a region do not depend on what is outside, until one crosses its border; the
// first to cross a border would also cross it with only the two neighbours there.) So the longest symbols are tried
// first, from left to right, each checked against the one before, and taken back where nothing can follow; a place
// where that happened is not tried again, because what leads to a place is unique too. Linear in practice and at worst
// linear times the number of symbols that begin a symbol. Whether two neighbours stay apart is found by undoing their
// merges, latest first, and asking at each step whether the pair across the border would have merged before; a table
// keeps the last answers. That needs every merge to rank behind those of its parts; a vocabulary in which one does not
// is merged by a heap.
#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <utility>
#include <vector>

#include "core/api.hpp"
#include "core/isa.hpp"
#include "core/thread_pool.hpp"
#include "tokenizer/scan.hpp"
#include "tokenizer/batch_merge.hpp"
#include "tokenizer/unicode.hpp"
#include "tokenizer/vocabulary.hpp"

#if defined(CUTAWAY_X86)
#include <immintrin.h>
#endif

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cutaway {
namespace {

constexpr size_t kBatch = 256;          // pieces whose cache lines are prefetched together
constexpr size_t kSpare = 3 * kBatch + 4;  // ids that a batch of short pieces may write without asking for room
constexpr size_t kJob = 64 << 10;       // bytes of text that a thread takes at a time
constexpr size_t kLongestCached = 256;  // bytes of a piece
constexpr size_t kShort = 15;           // bytes of a piece that is its own key
constexpr unsigned kFirstBits = 10;
constexpr unsigned kKnownBits = 14;  // of the number of places where answers about pairs of symbols are kept
constexpr size_t kUnknown = 256;     // such questions before any is: a short text has few

// Ids of a piece as they are found, and whether it held a byte that the vocabulary cannot write.
struct Ids {
    std::vector<int32_t> values;
    bool lacking = false;
};

class Encoder {
  public:
    explicit Encoder(const Vocabulary& vocabulary) : vocabulary_(vocabulary), header_(vocabulary.header()) {}

    // Appends the ids of one piece.
    void encode(const uint8_t* piece, size_t size, Ids& out) {
        encode_known(piece, size, out);
        write_unknown(out);
    }

    // Whether short pieces can be merged together, without asking first whether one is a token.
    bool together() const { return header_.bytewise && !header_.tied && (header_.closed || !header_.whole); }

    // The ids of a piece that was, put into `ids` unless symbols are their ids; null where a symbol is not written as
    // itself.
    CUTAWAY_INLINE const int32_t* take(const Together::Lane& lane, int32_t* ids) const {
        if (header_.plain) return reinterpret_cast<const int32_t*>(lane.first());
        int32_t least = 0;
        for (size_t i = 0; i < lane.count; ++i) least = std::min(least, ids[i] = vocabulary_.written(lane.first()[i]));
        return least == 0 ? ids : nullptr;
    }

  private:
    const Vocabulary& vocabulary_;
    const Header& header_;
    std::vector<uint32_t> found_;
    std::vector<uint64_t> dead_;
    std::vector<uint64_t> known_;  // pairs of symbols, 42 bits, and whether they stay apart; one in each place
    size_t asked_ = 0;             // without it
    bool unknown_ = false;         // an unknown token comes before the next symbol that has an id

    void encode_known(const uint8_t* piece, size_t size, Ids& out) {
        if (const uint32_t all = vocabulary_.exact(piece, size);
            all != kNone && vocabulary_.symbol(all).id >= 0 && (header_.whole || vocabulary_.reached(all))) {
            if (header_.whole || !vocabulary_.symbol(all).unused) {
                out.values.push_back(vocabulary_.symbol(all).id);
                return;
            }
        }
        if (!header_.monotone) return merged(piece, size, out);
        if (header_.bytewise) return search(piece, size, out);
        // Characters without a symbol merge with nothing: what is between them is encoded by itself.
        size_t begin = 0;
        for (size_t at = 0; at < size;) {
            const size_t length = character(piece + at, size - at).size;
            if (vocabulary_.exact(piece + at, length) == kNone) {
                if (at > begin) search(piece + begin, at - begin, out);
                unwritten(piece + at, length, out);
                begin = at + length;
            }
            at += length;
        }
        if (size > begin) search(piece + begin, size - begin, out);
    }

    void search(const uint8_t* piece, size_t size, Ids& out) {
        found_.clear();
        dead_.assign(size / 64 + 1, 0);
        size_t place = 0;
        Vocabulary::Longest next = vocabulary_.longest(piece, size);
        while (place < size) {
            const uint32_t last = found_.empty() ? kNone : found_.back();
            // Finds what follows while it waits for the memory that decides whether it may.
            if (last != kNone && next.symbol != kNone) vocabulary_.ask(vocabulary_.pair_of(last, next.symbol));
            const Vocabulary::Longest after = vocabulary_.longest(piece + place + next.size, size - place - next.size);
            if (fits(place, last, next)) {
                found_.push_back(next.symbol);
                place += next.size;
                next = after;
                continue;
            }
            while (next.symbol != kNone && !fits(place, last, next)) next = shorter(next.symbol);
            if (next.symbol != kNone) {
                found_.push_back(next.symbol);
                place += next.size;
                next = vocabulary_.longest(piece + place, size - place);
            } else if (last != kNone) {
                dead_[place >> 6] |= 1ull << (place & 63);
                found_.pop_back();
                place -= vocabulary_.symbol(last).size;
                next = shorter(last);
            } else {
                return merged(piece, size, out);  // cannot be: merging itself gives such a sequence
            }
        }
        write(found_, piece, out);
    }

    // The next one to try where `symbol` does not fit.
    Vocabulary::Longest shorter(uint32_t symbol) const {
        const uint32_t prefix = vocabulary_.symbol(symbol).prefix;
        return {prefix, prefix == kNone ? 0u : vocabulary_.symbol(prefix).size};
    }

    bool fits(size_t place, uint32_t last, const Vocabulary::Longest& next) {
        const size_t end = place + next.size;
        return next.symbol != kNone && !(dead_[end >> 6] >> (end & 63) & 1) &&
               (last == kNone || stay_apart(last, next.symbol));
    }

    // apart(), as found the last time: the same characters come beside each other again and again.
    bool stay_apart(uint32_t left, uint32_t right) {
        if (known_.empty()) {
            if (++asked_ < kUnknown) return apart(left, right);
            known_.assign(1 << kKnownBits, kNoEntry);
        }
        const uint64_t pair = static_cast<uint64_t>(left) << 21 | right;
        uint64_t& known = known_[pair * kMix >> (64 - kKnownBits)];
        if (known >> 1 != pair) known = pair << 1 | apart(left, right);
        return known & 1;
    }

    // Whether merging the texts of two symbols gives the two: no pair across their border merges first.
    bool apart(uint32_t left, uint32_t right) const {
        uint32_t limit = kNone;  // the pair across would have to come before this one
        for (;;) {
            if (vocabulary_.pair(left, right) < limit) return false;
            const Symbol& one = vocabulary_.symbol(left);
            const Symbol& two = vocabulary_.symbol(right);
            if (one.rank > two.rank) {
                limit = one.first;  // of equal ranks the left merge goes first
                left = one.right;
            } else if (two.rank >= 0) {
                limit = two.past;
                right = two.left;
            } else {
                return true;
            }
        }
    }

    void merged(const uint8_t* piece, size_t size, Ids& out) {
        found_.clear();
        size_t begin = 0;
        for (size_t at = 0; at < size;) {
            const size_t length = header_.bytewise ? 1 : character(piece + at, size - at).size;
            const uint32_t symbol =
                header_.bytewise ? header_.byte_symbols[piece[at]] : vocabulary_.exact(piece + at, length);
            at += length;
            if (symbol != kNone) {
                found_.push_back(symbol);
                continue;
            }
            merge(vocabulary_, found_);
            write(found_, piece + begin, out);
            unwritten(piece + at - length, length, out);
            found_.clear();
            begin = at;
        }
        merge(vocabulary_, found_);
        write(found_, piece + begin, out);
    }

    void write(const std::vector<uint32_t>& symbols, const uint8_t* text, Ids& out) {
        if (header_.plain) {
            if (!symbols.empty()) write_unknown(out);
            out.values.insert(out.values.end(), symbols.begin(), symbols.end());
            return;
        }
        for (const uint32_t symbol : symbols) {
            write(symbol, text, out);
            text += vocabulary_.symbol(symbol).size;
        }
    }

    void write(uint32_t symbol, const uint8_t* text, Ids& out) {
        const Symbol& one = vocabulary_.symbol(symbol);
        if (one.unused && one.left != kNone) {
            write(one.left, text, out);
            write(one.right, text + vocabulary_.symbol(one.left).size, out);
        } else if (one.id < 0) {
            unwritten(text, one.size, out);
        } else {
            write_unknown(out);
            out.values.push_back(one.id);
        }
    }

    // Text without an id becomes its byte tokens if all are there, else the unknown token, once a run if so fused. As in
    // `tokenizers`, the unknown token of a run comes behind the byte tokens of what follows it.
    void unwritten(const uint8_t* text, size_t size, Ids& out) {
        if (std::all_of(text, text + size, [&](uint8_t byte) { return header_.byte_ids[byte] >= 0; })) {
            for (size_t i = 0; i < size; ++i) out.values.push_back(header_.byte_ids[text[i]]);
        } else if (header_.unknown < 0) {
            out.lacking = true;
        } else {
            if (!header_.fuse) write_unknown(out);
            unknown_ = true;
        }
    }

    void write_unknown(Ids& out) {
        if (unknown_) out.values.push_back(header_.unknown);
        unknown_ = false;
    }
};

// Zeroed memory, in large pages where the system has them and it is worth it.
class Memory {
  public:
    // `large`: it will be filled, and read at random places.
    explicit Memory(size_t size, [[maybe_unused]] bool large) : size_(size) {
#if defined(__linux__)
        void* got = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (got == MAP_FAILED) throw std::bad_alloc();
        if (large && size >= 2u << 20) madvise(got, size, MADV_HUGEPAGE);
        data_ = static_cast<uint8_t*>(got);
#else
        data_ = static_cast<uint8_t*>(std::calloc(size, 1));
        if (data_ == nullptr) throw std::bad_alloc();
#endif
    }
    ~Memory() {
#if defined(__linux__)
        munmap(data_, size_);
#else
        std::free(data_);
#endif
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    uint8_t* data() const { return data_; }
    size_t size() const { return size_; }

  private:
    uint8_t* data_;
    size_t size_;
};

// A piece: its key and where its entry is looked for first.
struct Key {
    uint64_t low, high, hash;
    const uint8_t* text;
    size_t size;

    // The bytes of a short piece, padded to 16.
    const uint8_t* bytes() const { return reinterpret_cast<const uint8_t*>(&low); }
};

// Masks the first so many of 16 bytes.
struct First {
    uint64_t low, high;
};
constexpr std::array<First, 16> kFirst = [] {
    std::array<First, 16> out{};
    for (size_t i = 0; i < 16; ++i) {
        out[i] = {i < 8 ? (1ull << 8 * i) - 1 : ~0ull, i < 8 ? 0 : (1ull << 8 * (i - 8)) - 1};
    }
    return out;
}();

inline uint64_t hash_of(uint64_t low, uint64_t high) {
    const auto product = static_cast<unsigned __int128>(low ^ 0x9E3779B97F4A7C15) * (high ^ 0xD1B54A32D192ED03);
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

// A long piece is known by a hash, and its bytes are compared.
__attribute__((noinline)) Key long_key(const uint8_t* text, size_t size) {
    uint64_t state = size;
    size_t i = 0;
    for (; i + 16 <= size; i += 16) {
        uint64_t words[2];
        std::memcpy(words, text + i, 16);
        state = hash_of(state ^ words[0], std::rotl(state, 32) ^ words[1]);
    }
    uint64_t words[2] = {};
    std::memcpy(words, text + i, size - i);
    const uint64_t low = hash_of(state ^ words[0], std::rotl(state, 32) ^ words[1]), high = 0xFFull << 56 | size;
    return {low, high, hash_of(low, high), text, size};
}

// A short piece is its bytes and its size. `room` bytes may be read.
CUTAWAY_INLINE Key key_of(const uint8_t* text, size_t size, size_t room) {
    if (size > kShort) return long_key(text, size);
    uint64_t words[2] = {};
    if (room >= 16) {
        std::memcpy(words, text, 16);
    } else {
        std::memcpy(words, text, size);
    }
    const uint64_t low = words[0] & kFirst[size].low;
    const uint64_t high = (words[1] & kFirst[size].high) | static_cast<uint64_t>(size) << 56;
    return {low, high, hash_of(low, high), text, size};
}

#if defined(CUTAWAY_X86)
// The same; what is masked out is not read.
CUTAWAY_AVX512 inline Key key_of_avx512(const uint8_t* text, size_t size, size_t) {
    if (size > kShort) return long_key(text, size);
    const __m128i bytes = _mm_maskz_loadu_epi8(static_cast<__mmask16>((1u << size) - 1), text);
    const auto low = static_cast<uint64_t>(_mm_cvtsi128_si64(bytes));
    const uint64_t high = static_cast<uint64_t>(_mm_extract_epi64(bytes, 1)) | static_cast<uint64_t>(size) << 56;
    return {low, high, hash_of(low, high), text, size};
}
#endif

// The ids of pieces seen before. Any number of threads look up and add at once, under a shared lock; growing needs the
// lock alone. An entry is written by the thread that makes it busy, and is whole once its state says so.
class Cache {
  public:
    explicit Cache(size_t most_bytes) {
        while ((2 * sizeof(Entry) << most_bits_) <= most_bytes / 2) ++most_bits_;
        make(kFirstBits);
    }

    static constexpr uint32_t kBusy = 0xFF, kStored = 0xFE;

    struct Entry {
        uint64_t low, high;
        int32_t ids[3];               // or where they are in the store, and how many
        std::atomic<uint32_t> state;  // 0 free, kBusy, kStored, else how many ids and one

        // Whether this is the piece's entry, with its ids in it.
        bool holds(const Key& key) const {
            const uint32_t now = state.load(std::memory_order_acquire);
            return (now - 1 < kStored - 1) & (((low ^ key.low) | (high ^ key.high)) == 0);
        }
    };
    std::shared_mutex lock;

    // Where pieces are looked for first, and next: one cache line. For as long as the cache is not grown.
    struct Firsts {
        const Entry* entries;
        unsigned shift;
        const Entry& operator[](const Key& key) const { return entries[key.hash >> shift]; }
        const Entry& second(const Key& key) const { return entries[key.hash >> shift ^ 1]; }
    };
    Firsts firsts() const { return {entries(), 64 - bits_}; }

    // The ids of a piece: how many, and where they are. Null when it is not here.
    const int32_t* find(const Key& key, uint32_t& count) const {
        for (uint64_t tries = 0; tries < kTries; ++tries) {
            const Entry& entry = entries()[place(key.hash, tries)];
            const uint32_t state = entry.state.load(std::memory_order_acquire);
            if (state == 0) return nullptr;
            if (state == kBusy || entry.low != key.low || entry.high != key.high) continue;
            if (state < kStored) {
                count = state - 1;
                return entry.ids;
            }
            const int32_t* ids = store() + entry.ids[0];
            count = static_cast<uint32_t>(entry.ids[1]);
            if (key.size <= kShort || std::memcmp(ids + count, key.text, key.size) == 0) return ids;
        }
        return nullptr;
    }

    // Whether the piece was added; the caller passes relieve() how many were.
    bool add(const Key& key, const int32_t* ids, size_t count) {
        const bool stored = count > 3 || key.size > kShort;
        size_t start = 0;
        if (filled_.load(std::memory_order_relaxed) > (1ull << bits_) * 5 / 8) return false;
        if (stored) {
            const size_t words = count + (key.size > kShort ? (key.size + 3) / 4 : 0);
            start = stored_.fetch_add(words, std::memory_order_relaxed);
            if (start + words > store_->size() / 4) return false;
            std::memcpy(store() + start, ids, count * 4);
            if (key.size > kShort) std::memcpy(store() + start + count, key.text, key.size);
        }
        for (uint64_t tries = 0; tries < kTries; ++tries) {
            Entry& entry = entries()[place(key.hash, tries)];
            uint32_t state = entry.state.load(std::memory_order_acquire);
            if (state != 0 || !entry.state.compare_exchange_strong(state, kBusy, std::memory_order_acquire)) {
                // A batch may hold a new piece twice.
                if (state != kBusy && entry.low == key.low && entry.high == key.high && !stored) return false;
                continue;
            }
            entry.low = key.low;
            entry.high = key.high;
            if (stored) {
                entry.ids[0] = static_cast<int32_t>(start);
                entry.ids[1] = static_cast<int32_t>(count);
            } else {
                for (size_t j = 0; j < 3; ++j) entry.ids[j] = j < count ? ids[j] : 0;
            }
            entry.state.store(stored ? kStored : static_cast<uint32_t>(count) + 1, std::memory_order_release);
            return true;
        }
        return false;
    }

    // Makes room if there is little left, for which it lets go of the lock and takes it again. To be called often: once
    // full the cache takes nothing, and every new piece is encoded anew.
    void relieve(std::shared_lock<std::shared_mutex>& shared, size_t added) {
        if (added > 0) filled_.fetch_add(added, std::memory_order_relaxed);
        if (!crowded()) return;
        shared.unlock();
        {
            const std::unique_lock alone(lock);
            if (crowded()) grow(std::min(bits_ + 2, most_bits_));
        }
        shared.lock();
    }

    // Makes room for the different pieces of so much text: of prose 30,000 come in the first MB, 125,000 in the first
    // ten. A table of 2 MB is a large page, and made as soon as a smaller one. No thread may hold the lock.
    void expect(size_t size) {
        const size_t places = size < 40'000 ? size / 40 : std::max<size_t>(size / 40, 40'000);
        const auto bits = std::min(most_bits_, static_cast<unsigned>(std::bit_width(places)));
        const std::unique_lock alone(lock);
        if (bits > bits_) grow(bits);
    }

    size_t bytes() const { return table_->size() + std::min(stored_.load() * 4, store_->size()); }

  private:
    static constexpr int kTries = 32;
    unsigned bits_ = 0;
    unsigned most_bits_ = kFirstBits;
    std::unique_ptr<Memory> table_, store_;
    std::atomic<size_t> filled_{0}, stored_{0};

    bool full() const { return stored_.load(std::memory_order_relaxed) > store_->size() / 8; }
    bool crowded() const { return full() || filled_.load(std::memory_order_relaxed) > (1ull << bits_) / 2; }

    // More room, or at its largest an empty cache. No other thread may be at work in it.
    void grow(unsigned bits) {
        if (full() || bits_ >= most_bits_) return make(bits_);
        const std::unique_ptr<Memory> old = std::move(table_);
        const size_t count = 1ull << bits_;
        widen(bits);
        const auto* entries_before = reinterpret_cast<const Entry*>(old->data());
        for (size_t i = 0; i < count; ++i) {
            const Entry& entry = entries_before[i];
            const uint32_t state = entry.state.load(std::memory_order_relaxed);
            if (state == 0) continue;
            const uint64_t hash = hash_of(entry.low, entry.high);
            uint64_t tries = 0;
            while (entries()[place(hash, tries)].state.load(std::memory_order_relaxed) != 0) ++tries;
            Entry& copy = entries()[place(hash, tries)];
            copy.low = entry.low;
            copy.high = entry.high;
            std::copy_n(entry.ids, 3, copy.ids);
            copy.state.store(state, std::memory_order_relaxed);
            filled_.fetch_add(1, std::memory_order_relaxed);
        }
    }

    Entry* entries() const { return reinterpret_cast<Entry*>(table_->data()); }
    int32_t* store() const { return reinterpret_cast<int32_t*>(store_->data()); }
    // Where an entry is looked for: the two places of its cache line, then those of the next ones.
    uint64_t place(uint64_t hash, uint64_t tries) const {
        return (((hash >> (64 - bits_)) ^ (tries & 1)) + (tries & ~1ull)) & ((1ull << bits_) - 1);
    }

    void make(unsigned bits) {
        widen(bits);
        store_ = std::make_unique<Memory>(sizeof(Entry) << most_bits_, false);  // the system gives what is written to
        stored_ = 0;
    }

    void widen(unsigned bits) {
        bits_ = bits;
        table_ = std::make_unique<Memory>(sizeof(Entry) << bits, true);
        filled_ = 0;
    }
};
static_assert(sizeof(Cache::Entry) == 32);
static_assert(kShort <= Together::kLongest);

struct Tokenizer {
    Vocabulary vocabulary;
    Cache cache;
    explicit Tokenizer(size_t most_bytes) : cache(most_bytes) {}
};

// Texts, each where it is stored.
struct Texts {
    const uint8_t* const* at;
    const int64_t* sizes;
    size_t count;

    size_t size(size_t text) const { return static_cast<size_t>(sizes[text]); }
};

// What one thread encodes at a time: a stretch of one text, or some whole texts.
struct Job {
    size_t first, last;  // texts
    size_t begin, end;   // of the stretch; of whole texts 0 and their size
    size_t count = 0;    // ids
    size_t place = 0;    // of the first of them among all ids
    bool done = false;
};

// Jobs, handed out in order, and where each one's ids go: behind those of all before it, once those are counted.
class Jobs {
  public:
    explicit Jobs(std::vector<Job> jobs) : jobs_(std::move(jobs)) {}

    size_t count() const { return jobs_.size(); }
    Job& operator[](size_t job) { return jobs_[job]; }
    size_t next() { return next_.fetch_add(1); }

    // Whether a job's place is known.
    bool placed(size_t job) {
        const std::lock_guard held(lock_);
        return job <= settled_;
    }

    void settle(size_t job, size_t count) {
        const std::lock_guard held(lock_);
        jobs_[job].count = count;
        jobs_[job].done = true;
        for (; settled_ < jobs_.size() && jobs_[settled_].done; ++settled_) {
            total_ += jobs_[settled_].count;
            if (settled_ + 1 < jobs_.size()) jobs_[settled_ + 1].place = total_;
        }
    }

    // The number of all ids, when every job is done.
    size_t total() const { return total_; }

  private:
    std::vector<Job> jobs_;
    std::atomic<size_t> next_{0};
    std::mutex lock_;
    size_t settled_ = 0;  // all jobs before this one are done
    size_t total_ = 0;    // ids of those
};

// Where the caller wants the ids, and room for so many; null when they are only counted.
struct Out {
    int32_t* ids;
    size_t room;
};

// What a thread needs while it encodes.
struct Worker {
    Encoder encoder;
    Scanner scanner;
    Ids fresh;
    size_t ends[kBatch];
    Key keys[kBatch];
    int32_t* out = nullptr;  // of the job
    size_t used = 0, room = 0;
    size_t added = 0;  // to the cache
    std::vector<int32_t> own;
    size_t held = 0;              // ids in `own` of jobs before, which wait for their place
    std::vector<size_t> waiting;  // those jobs
    Together together;
    std::array<Together::Lane, Together::kLanes> lanes;
    std::array<size_t, Together::kLanes> seen;  // the pieces of the lanes

    Worker(const Vocabulary& vocabulary, Pattern pattern)
        : encoder(vocabulary), scanner(pattern), together(vocabulary) {}

    // Ids of a job of `most` bytes go to `place` from now on if there is room whatever comes, else to memory of its own,
    // which grows.
    void open(int32_t* place, size_t size, size_t most) {
        const bool there = size >= most + kSpare;
        out = there ? place : own.data() + held;
        room = there ? size : own.size() - held;
        used = 0;
    }

    // The job is done: its ids are where they were to go, or wait.
    void close(size_t job, bool wanted) {
        if (!wanted || out != own.data() + held) return;
        waiting.push_back(job);
        held += used;
    }

    // Puts ids that wait where they go, as far as that is known and there is room.
    void place(Jobs& jobs, const Out& to) {
        const int32_t* from = own.data();
        size_t put = 0;
        for (; put < waiting.size() && jobs.placed(waiting[put]); ++put) {
            const Job& job = jobs[waiting[put]];
            if (job.place + job.count > to.room) break;
            if (job.count > 0) std::memcpy(to.ids + job.place, from, job.count * 4);
            from += job.count;
        }
        if (put == 0) return;
        const auto left = static_cast<size_t>(own.data() + held - from);
        if (left > 0) std::memmove(own.data(), from, left * 4);
        held = left;
        waiting.erase(waiting.begin(), waiting.begin() + static_cast<ptrdiff_t>(put));
    }

    // Appends the ids of pieces that lie one after the other from text[begin] on; up to `limit` may be read.
    void encode(Cache& cache, const uint8_t* text, size_t begin, size_t count, size_t limit) {
#if defined(CUTAWAY_X86)
        if (isa() >= Isa::avx512) return encode_avx512(cache, text, begin, count, limit);
        if (isa() >= Isa::avx2) return encode_bits(cache, text, begin, count, limit);
#endif
        encode_all<key_of>(cache, text, begin, count, limit);
    }

#if defined(CUTAWAY_X86)
    CUTAWAY_AVX512 __attribute__((flatten)) void encode_avx512(Cache& cache, const uint8_t* text, size_t begin,
                                                               size_t count, size_t limit) {
        encode_all<key_of_avx512>(cache, text, begin, count, limit);
    }
    CUTAWAY_BITS void encode_bits(Cache& cache, const uint8_t* text, size_t begin, size_t count, size_t limit) {
        encode_all<key_of>(cache, text, begin, count, limit);
    }
#endif

    template <Key (*key_of)(const uint8_t*, size_t, size_t)>
    CUTAWAY_INLINE void encode_all(Cache& cache, const uint8_t* text, size_t begin, size_t count, size_t limit) {
        const Cache::Firsts firsts = cache.firsts();
        for (size_t i = 0; i < count; begin = ends[i++]) {
            keys[i] = key_of(text + begin, ends[i] - begin, limit - begin);
            __builtin_prefetch(&firsts[keys[i]]);
        }
        reserve(0);
        int32_t* to = out + used;
        for (size_t i = 0; i < count; ++i) {
            const Cache::Entry* entry = &firsts[keys[i]];
            if (entry->holds(keys[i]) || (entry = &firsts.second(keys[i]))->holds(keys[i])) {
                std::memcpy(to, entry->ids, sizeof entry->ids);
                to += entry->state.load(std::memory_order_relaxed) - 1;
                continue;
            }
            used = static_cast<size_t>(to - out);
            other(cache, i, count);
            reserve(0);
            to = out + used;
        }
        used = static_cast<size_t>(to - out);
    }

    // Room for so many ids, and then for a batch of short pieces.
    void reserve(size_t count) {
        if (room - used >= count + kSpare) return;
        own.resize(2 * (held + used + count + kSpare));
        out = own.data() + held;
        room = own.size() - held;
    }

    // A piece that is neither where it is looked for first nor next. If it was not seen before, it is encoded together
    // with others of the batch that were not.
    __attribute__((noinline)) void other(Cache& cache, size_t place, size_t count) {
        const Key& key = keys[place];
        uint32_t size = 0;
        const int32_t* ids = cache.find(key, size);
        if (ids == nullptr && encoder.together() && key.size <= kShort) {
            see(cache, place, count);
            ids = cache.find(key, size);
        }
        if (ids != nullptr) {
            append(ids, size);
        } else {
            encoded(cache, key);
            append(fresh.values.data(), fresh.values.size());
        }
    }

    // Puts short pieces of the batch that are not in the cache there, from one on that is not.
    void see(Cache& cache, size_t place, size_t count) {
        const Cache::Firsts firsts = cache.firsts();
        std::array<uint16_t, kBatch> asked;
        size_t missing = 0;
        for (size_t i = place; i < count; ++i) {  // which do not follow from what came before, so without a branch
            asked[missing] = static_cast<uint16_t>(i);
            missing += !firsts[keys[i]].holds(keys[i]) & (keys[i].size <= kShort);
        }
        size_t used_lanes = 0;
        for (size_t one = 0; one < missing; ++one) {
            const size_t i = asked[one];
            uint32_t size = 0;
            seen[used_lanes] = i;
            lanes[used_lanes].text = keys[i].bytes();
            lanes[used_lanes].count = static_cast<uint32_t>(keys[i].size);
            used_lanes += cache.find(keys[i], size) == nullptr;
            if (used_lanes == Together::kLanes) see_lanes(cache, std::exchange(used_lanes, 0));
        }
        see_lanes(cache, used_lanes);
    }

    void see_lanes(Cache& cache, size_t count) {
        together.merge(lanes.data(), count);
        for (size_t i = 0; i < count; ++i) {
            const Key& key = keys[seen[i]];
            std::array<int32_t, 16> held{};
            if (const int32_t* ids = encoder.take(lanes[i], held.data())) {
                added += cache.add(key, ids, lanes[i].count);
            } else {
                encoded(cache, key);
            }
        }
    }

    void append(const int32_t* ids, size_t count) {
        reserve(count);
        std::copy_n(ids, count, out + used);
        used += count;
    }

    // A piece by itself: its ids are in `fresh`, and in the cache if it has them all.
    void encoded(Cache& cache, const Key& key) {
        fresh.values.clear();
        const bool lacked = std::exchange(fresh.lacking, false);
        encoder.encode(key.text, key.size, fresh);
        if (!fresh.lacking && key.size <= kLongestCached && !fresh.values.empty()) {
            added += cache.add(key, fresh.values.data(), fresh.values.size());
        }
        fresh.lacking |= lacked;
    }
};

std::vector<Job> jobs_of(Pattern pattern, const Texts& texts) {
    std::vector<Job> jobs;
    for (size_t i = 0; i < texts.count;) {
        size_t last = i + 1, size = texts.size(i);
        while (last < texts.count && size + texts.size(last) <= kJob) size += texts.size(last++);
        if (size <= 2 * kJob) {
            jobs.push_back({i, last, 0, size});
        } else {
            for (size_t place = 0; place < size;) {
                const size_t least = place + kJob / 2;
                size_t cut = size - place <= 2 * kJob ? size : safe_cut(pattern, texts.at[i], least, place + kJob);
                if (cut == least) cut = size;  // nowhere near: the rest in one
                jobs.push_back({i, last, place, cut});
                place = cut;
            }
        }
        i = last;
    }
    return jobs;
}

// Encodes texts. Their ids go to `out`, one text's after the other's, and where those are too many for it, to what
// `more` makes of it: memory for so many, with what it holds by then. The number of each text's ids is added to counts.
// Returns how many, or -1 where a byte could not be written.
int64_t encode(Tokenizer& tokenizer, Pattern pattern, const Texts& texts, Out out, int32_t* (*more)(int64_t),
               int64_t* counts, int threads) {
    Jobs jobs(jobs_of(pattern, texts));
    size_t size = 0;
    for (size_t i = 0; i < texts.count; ++i) size += texts.size(i);
    tokenizer.cache.expect(size);
    const int most = static_cast<int>(std::clamp<size_t>(jobs.count(), 1, static_cast<size_t>(std::max(threads, 1))));
    std::vector<std::unique_ptr<Worker>> workers(static_cast<size_t>(most));
    run(most, [&](int index, int) {
        Worker& worker = *(workers[static_cast<size_t>(index)] = std::make_unique<Worker>(tokenizer.vocabulary, pattern));
        for (size_t j = jobs.next(); j < jobs.count(); j = jobs.next()) {
            const Job& job = jobs[j];
            const bool there = jobs.placed(j) && job.place <= out.room;
            worker.open(there ? out.ids + job.place : nullptr, there ? out.room - job.place : 0, job.end - job.begin);
            {
                std::shared_lock shared(tokenizer.cache.lock);
                for (size_t i = job.first; i < job.last; ++i) {
                    const size_t end = job.last - job.first > 1 ? texts.size(i) : job.end;
                    const uint8_t* text = texts.at[i] + job.begin;
                    const size_t before = worker.used;
                    worker.scanner.open(text, end - job.begin);
                    size_t done = 0;
                    while (const size_t count = worker.scanner.next(worker.ends, kBatch)) {
                        const size_t reached = worker.ends[count - 1];
                        worker.encode(tokenizer.cache, text, done, count, texts.size(i) - job.begin);
                        tokenizer.cache.relieve(shared, std::exchange(worker.added, 0));
                        done = reached;
                    }
                    std::atomic_ref<int64_t>(counts[i]).fetch_add(static_cast<int64_t>(worker.used - before));
                }
            }
            worker.close(j, out.ids != nullptr);
            jobs.settle(j, worker.used);
            worker.place(jobs, out);
        }
    });
    const size_t total = jobs.total();
    bool lacking = false;
    if (out.ids != nullptr && total > out.room) out = {more(static_cast<int64_t>(total)), total};
    for (const auto& worker : workers) {
        if (worker == nullptr) continue;  // fewer threads than were asked for
        worker->place(jobs, out);
        lacking |= worker->fresh.lacking;
    }
    return lacking ? -1 : static_cast<int64_t>(total);
}

}  // namespace
}  // namespace cutaway

using cutaway::Pattern;

// Opens a compiled vocabulary that is at `data`, and must stay there; null where it is damaged. The cache of pieces
// takes at most `most` bytes.
CUTAWAY_API void* cutaway_tokenizer_open(const uint8_t* data, uint64_t size, uint64_t most) {
    auto tokenizer = std::make_unique<cutaway::Tokenizer>(most);
    return tokenizer->vocabulary.open(data, size) ? tokenizer.release() : nullptr;
}

CUTAWAY_API void cutaway_tokenizer_close(void* tokenizer) { delete static_cast<cutaway::Tokenizer*>(tokenizer); }

// Encodes `count` texts. The ids go to `out`, which has room for so many, or are only counted (null). Where there are
// more, more(how many) gives longer memory with the same beginning; it may be null where there is room for an id a byte.
// counts[i], 0 before, is what text i has. Returns how many, or -1 where the vocabulary has no token for a byte of a text.
CUTAWAY_API int64_t cutaway_tokenizer_encode(void* tokenizer, int32_t pattern, const uint8_t* const* texts,
                                             const int64_t* sizes, int64_t count, int32_t* out, int64_t room,
                                             int32_t* (*more)(int64_t), int64_t* counts, int32_t threads) {
    return cutaway::encode(*static_cast<cutaway::Tokenizer*>(tokenizer), static_cast<Pattern>(pattern),
                           {texts, sizes, static_cast<size_t>(count)}, {out, static_cast<size_t>(room)}, more, counts,
                           threads);
}

// The same for one text whose pieces are known by their ends.
CUTAWAY_API int64_t cutaway_tokenizer_pieces(void* tokenizer, const uint8_t* text, const int64_t* ends, int64_t count,
                                             int32_t* out) {
    auto& self = *static_cast<cutaway::Tokenizer*>(tokenizer);
    cutaway::Worker worker(self.vocabulary, Pattern::lines);
    int64_t written = 0;
    size_t begin = 0;
    const size_t limit = count ? static_cast<size_t>(ends[count - 1]) : 0;
    for (int64_t i = 0; i < count;) {
        const auto batch = static_cast<size_t>(std::min<int64_t>(cutaway::kBatch, count - i));
        std::copy_n(ends + i, batch, worker.ends);
        const size_t reached = worker.ends[batch - 1];
        worker.open(nullptr, 0, 0);
        {
            std::shared_lock shared(self.cache.lock);
            worker.encode(self.cache, text, begin, batch, limit);
            self.cache.relieve(shared, std::exchange(worker.added, 0));
        }
        if (worker.used > 0) std::memcpy(out + written, worker.out, worker.used * 4);
        written += static_cast<int64_t>(worker.used);
        begin = reached;
        i += static_cast<int64_t>(batch);
    }
    return worker.fresh.lacking ? -1 : written;
}

// How many bytes ids stand for; -1 where one is no id, or has no bytes.
CUTAWAY_API int64_t cutaway_tokenizer_decoded(void* tokenizer, const int32_t* ids, int64_t count) {
    const cutaway::Vocabulary& vocabulary = static_cast<cutaway::Tokenizer*>(tokenizer)->vocabulary;
    const uint32_t* starts = vocabulary.text_starts();
    int64_t size = 0;
    bool bad = false;
    for (int64_t i = 0; i < count; ++i) {
        const auto id = static_cast<uint32_t>(ids[i]);
        if (id >= vocabulary.header().tokens) return -1;
        const uint32_t bytes = starts[id + 1] - starts[id];
        bad |= bytes == 0;
        size += bytes;
    }
    return bad ? -1 : size;
}

// Their bytes, of which there are `size`.
CUTAWAY_API void cutaway_tokenizer_decode(void* tokenizer, const int32_t* ids, int64_t count, uint8_t* out,
                                          int64_t size) {
    const cutaway::Vocabulary& vocabulary = static_cast<cutaway::Tokenizer*>(tokenizer)->vocabulary;
    const uint32_t* starts = vocabulary.text_starts();
    const uint8_t* text = vocabulary.text();
    const size_t readable = vocabulary.text_size();
    const uint8_t* const end = out + size;
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t start = starts[ids[i]];
        const uint32_t bytes = starts[ids[i] + 1] - start;
        if (bytes <= 16 && end - out >= 16 && start + 16 <= readable) {
            std::memcpy(out, text + start, 16);
        } else {
            std::memcpy(out, text + start, bytes);
        }
        out += bytes;
    }
}

// The bytes that the cache of pieces takes now.
CUTAWAY_API int64_t cutaway_tokenizer_cached(void* tokenizer) {
    auto& self = *static_cast<cutaway::Tokenizer*>(tokenizer);
    const std::shared_lock shared(self.cache.lock);
    return static_cast<int64_t>(self.cache.bytes());
}

// Where the UTF-8 of a Python list's texts is, by Python's own functions, whose lock the caller holds; Python keeps it
// as long as the text. Returns how many were read: fewer than `count` where one is no text, or has none (an exception is
// set). Most texts are in no cache: a batch is prefetched before the first is read.
CUTAWAY_API int64_t cutaway_texts(void* list, int64_t count, void* (*item)(void*, intptr_t),
                                  const char* (*utf8)(void*, intptr_t*), const char** texts, int64_t* sizes) {
    constexpr int64_t kItems = 32;
    void* items[kItems];
    for (int64_t read = 0; read < count;) {
        const int64_t got = std::min(kItems, count - read);
        for (int64_t i = 0; i < got; ++i) {
            items[i] = item(list, static_cast<intptr_t>(read + i));
            if (items[i] == nullptr) return read;
            __builtin_prefetch(items[i]);
        }
        for (int64_t i = 0; i < got; ++i, ++read) {
            intptr_t size = 0;
            texts[read] = utf8(items[i], &size);
            sizes[read] = size;
            if (texts[read] == nullptr) return read;
        }
    }
    return count;
}

// The values of a Python list of integers, read by Python's own functions (of its stable interface), whose lock the
// caller holds: a batch's items are prefetched before the first is read, as most are in no cache. `type` is
// Python's int, or null where objects do not have their type behind one word. Returns how many were read: fewer than
// `count` where one is no integer (an exception is set) or not of 32 bits.
CUTAWAY_API int64_t cutaway_integers(void* list, int64_t count, const void* type, void* (*item)(void*, intptr_t),
                                     long (*value)(void*), void (*hold)(void*), void (*release)(void*),
                                     int32_t* out) {
    constexpr int64_t kItems = 32;
    void* items[kItems];
    int64_t read = 0;
    bool good = true;
    while (good && read < count) {
        int64_t got = 0;
        for (; got < kItems && read + got < count; ++got) {
            items[got] = item(list, static_cast<intptr_t>(read + got));
            if (items[got] == nullptr) break;  // the list has become shorter
            __builtin_prefetch(items[got]);
        }
        if (got == 0) break;
        // An integer of a class of the caller's may run Python, and that change the list.
        bool strange = type == nullptr;
        for (int64_t i = 0; i < got && !strange; ++i) strange = static_cast<const void* const*>(items[i])[1] != type;
        for (int64_t i = 0; i < got && strange; ++i) hold(items[i]);
        int64_t done = 0;
        for (; good && done < got; ++done) {
            const long found = value(items[done]);
            good = found >= 0 && found <= INT32_MAX;
            out[read + done] = static_cast<int32_t>(found);
        }
        for (int64_t i = 0; i < got && strange; ++i) release(items[i]);
        read += done - !good;
    }
    return read;
}
