// Reading and counting the words of a corpus. cutaway/embedding/corpus.py states the same in Python.
#include "embedding/corpus.hpp"

#include <array>
#include <atomic>
#include <cerrno>
#include <memory>
#include <new>

#include "core/api.hpp"
#include "core/thread_pool.hpp"

#if defined(_WIN32)
#include <io.h>
#include <windows.h>
#else
#include <unistd.h>
#endif

namespace cutaway {
namespace {

constexpr auto kSpaces = [] {
    std::array<bool, 256> spaces{};
    for (const uint8_t c : {' ', '\t', '\n', '\v', '\f', '\r'}) spaces[c] = true;
    return spaces;
}();

// Up to `size` bytes of a file from byte `at` on: how many, 0 at its end, -1 where it cannot be read.
int64_t read_at(int file, uint8_t* into, size_t size, int64_t at) {
#if defined(_WIN32)
    OVERLAPPED where = {};
    where.Offset = static_cast<DWORD>(at);
    where.OffsetHigh = static_cast<DWORD>(at >> 32);
    DWORD got = 0;
    const auto handle = reinterpret_cast<HANDLE>(_get_osfhandle(file));
    if (ReadFile(handle, into, static_cast<DWORD>(size), &got, &where)) return got;
    return GetLastError() == ERROR_HANDLE_EOF ? 0 : -1;
#else
    ssize_t got = 0;
    do {
        got = pread(file, into, size, at);
    } while (got < 0 && errno == EINTR);
    return got;
#endif
}

}  // namespace

// FNV-1a, finished by one mixing step so that both halves can be used.
uint64_t hash(Bytes word) {
    uint64_t h = 0xcbf29ce484222325u;
    for (int64_t i = 0; i < word.size; ++i) h = (h ^ word.data[i]) * 0x100000001b3u;
    h ^= h >> 32;
    return h * 0x9e3779b97f4a7c15u;
}

// One byte before the piece tells whether its first word began in the piece before.
Reader::Reader(int file, int64_t piece)
    : file_(file), end_((piece + 1) * kPiece), base_(piece == 0 ? 0 : piece * kPiece - 1), buffer_(4 * kLongest) {
    if (piece > 0) skip(false);
}

bool Reader::refill() {
    const int64_t kept = filled_ - at_;
    std::memmove(buffer_.data(), buffer_.data() + at_, static_cast<size_t>(kept));
    base_ += at_;
    at_ = 0;
    filled_ = kept;
    const size_t room = buffer_.size() - static_cast<size_t>(filled_);
    const int64_t got = read_at(file_, buffer_.data() + filled_, room, base_ + filled_);
    broken_ = got < 0;
    filled_ += got > 0 ? got : 0;
    return got > 0;
}

// Moves past white space, or past what is none; false at the end of the file.
bool Reader::skip(bool spaces) {
    for (;;) {
        for (; at_ < filled_; ++at_) {
            const uint8_t c = buffer_[static_cast<size_t>(at_)];
            if (kSpaces[c] != spaces) return true;
            if (c == '\n') new_line_ = true;
        }
        if (!refill()) return false;
    }
}

Found Reader::next() {
    new_line_ = false;
    if (!skip(true)) return broken_ ? Found::unreadable : Found::end;
    if (where() >= end_) return Found::end;
    int64_t stop = at_;
    for (;;) {
        while (stop < filled_ && !kSpaces[buffer_[static_cast<size_t>(stop)]]) ++stop;
        if (stop - at_ > kLongest) return Found::too_long;
        if (stop < filled_) break;
        const int64_t length = stop - at_;
        const bool more = refill();
        stop = length;
        if (!more) break;
    }
    if (broken_) return Found::unreadable;
    word_ = {buffer_.data() + at_, stop - at_};
    at_ = stop;
    return Found::word;
}

Dictionary::Dictionary() : slots_(1 << 12, Slot{0, 0}), offsets_(1, 0) {}

size_t Dictionary::slot(Bytes word, uint64_t hashed) const {
    const size_t mask = slots_.size() - 1;
    const auto tag = static_cast<uint32_t>(hashed >> 32);
    for (size_t i = hashed & mask;; i = (i + 1) & mask) {
        const Slot& slot = slots_[i];
        if (slot.id == 0) return i;
        if (slot.tag != tag) continue;
        const Bytes known = (*this)[slot.id - 1];
        if (known.size == word.size && std::memcmp(known.data, word.data, static_cast<size_t>(word.size)) == 0) return i;
    }
}

int64_t Dictionary::find(Bytes word) const { return static_cast<int64_t>(slots_[slot(word, hash(word))].id) - 1; }

int64_t Dictionary::find_or_add(Bytes word) {
    const uint64_t hashed = hash(word);
    Slot& found = slots_[slot(word, hashed)];
    if (found.id != 0) return found.id - 1;
    if (size() >= 0xfffffffe) throw std::bad_alloc();
    text_.insert(text_.end(), word.data, word.data + word.size);
    offsets_.push_back(static_cast<int64_t>(text_.size()));
    found = {static_cast<uint32_t>(size()), static_cast<uint32_t>(hashed >> 32)};
    const int64_t id = size() - 1;
    if (static_cast<size_t>(size()) * 2 > slots_.size()) grow();
    return id;
}

void Dictionary::grow() {
    std::vector<Slot> larger(slots_.size() * 2, Slot{0, 0});
    slots_.swap(larger);
    for (int64_t i = 0; i < size(); ++i) {
        const uint64_t hashed = hash((*this)[i]);
        slots_[slot((*this)[i], hashed)] = {static_cast<uint32_t>(i + 1), static_cast<uint32_t>(hashed >> 32)};
    }
}

namespace {

struct Count {
    Dictionary words;
    std::vector<int64_t> times;

    void add(Bytes word, int64_t more) {
        const auto id = static_cast<size_t>(words.find_or_add(word));
        if (id == times.size()) times.push_back(0);
        times[id] += more;
    }
};

struct Counter {
    std::vector<Count> workers;
};

Found count_piece(Count& count, Reader& reader) {
    Found found = reader.next();
    for (; found == Found::word; found = reader.next()) count.add(reader.word(), 1);
    return found;
}

}  // namespace
}  // namespace cutaway

using namespace cutaway;


CUTAWAY_API Counter* cutaway_counter_new(int32_t threads) {
    try {
        return new Counter{std::vector<Count>(static_cast<size_t>(threads))};
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

CUTAWAY_API void cutaway_counter_free(Counter* counter) { delete counter; }

// Counts the words of the pieces [first, last). 0, or the Found that stopped it, `where` in the file; -1 when
// memory is short.
CUTAWAY_API int32_t cutaway_counter_add(Counter* counter, int32_t file, int64_t first, int64_t last, int64_t* where) {
    std::atomic<int64_t> next{first};
    std::atomic<int32_t> status{0};
    std::atomic<int64_t> place{0};
    run(static_cast<int>(counter->workers.size()), [&](int worker, int) {
        try {
            for (int64_t i = next.fetch_add(1); i < last && status == 0; i = next.fetch_add(1)) {
                Reader reader(file, i);
                const Found found = count_piece(counter->workers[static_cast<size_t>(worker)], reader);
                if (found == Found::end) continue;
                place = reader.where();
                status = static_cast<int32_t>(found);
            }
        } catch (const std::bad_alloc&) {
            status = -1;
        }
    });
    *where = place;
    return status;
}

// Joins the workers' counts, and says how many words there are and the bytes they take. -1 when memory is short.
CUTAWAY_API int32_t cutaway_counter_size(Counter* counter, int64_t* words, int64_t* bytes) {
    try {
        Count& all = counter->workers.front();
        for (size_t w = 1; w < counter->workers.size(); ++w) {
            Count& part = counter->workers[w];
            for (int64_t i = 0; i < part.words.size(); ++i) all.add(part.words[i], part.times[static_cast<size_t>(i)]);
            part = Count{};
        }
        *words = all.words.size();
        *bytes = all.words.bytes();
        return 0;
    } catch (const std::bad_alloc&) {
        return -1;
    }
}

// The words one after another, where each ends, and how often it came.
CUTAWAY_API void cutaway_counter_take(const Counter* counter, uint8_t* text, int64_t* ends, int64_t* times) {
    const Count& all = counter->workers.front();
    int64_t at = 0;
    for (int64_t i = 0; i < all.words.size(); ++i) {
        const Bytes word = all.words[i];
        std::memcpy(text + at, word.data, static_cast<size_t>(word.size));
        ends[i] = at += word.size;
        times[i] = all.times[static_cast<size_t>(i)];
    }
}

// A dictionary of `count` different words, numbered as they come; null when memory is short.
CUTAWAY_API Dictionary* cutaway_dictionary_new(const uint8_t* text, const int64_t* ends, int64_t count) {
    try {
        auto words = std::make_unique<Dictionary>();
        int64_t begin = 0;
        for (int64_t i = 0; i < count; begin = ends[i++]) words->find_or_add({text + begin, ends[i] - begin});
        return words.release();
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

CUTAWAY_API void cutaway_dictionary_free(Dictionary* words) { delete words; }
