// What one worker reads of weights and state, in order, and how much of it is prefetched. A stream of memory that
// stops takes a microsecond to start again. So prefetching continues from one matrix into the next, also while the
// worker waits for others.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace cutaway {

// How far ahead weights are prefetched: kNone, kEightBits, or a number of bytes for every type, from one matrix into
// the next and while a worker waits. Which is fastest depends on the processor, by up to a factor of two:
// cutaway/runtime/prefetching.py measures it. Without a measurement kEightBits where there is no AVX-512, else kNone.
inline constexpr int32_t kNone = 0;       // the processor's own prefetcher alone
inline constexpr int32_t kEightBits = 1;  // a kilobyte or two, for the types that are multiplied as 8-bit numbers
int32_t prefetch();

// Prefetches into L2; the address may be past the array.
inline __attribute__((always_inline)) void ask(const uint8_t* from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at, 0, 2);
}

class Path {
  public:
    void clear() {
        stretches_.clear();
        stages_.clear();
        length_ = read_ = asked_ = 0;
        next_ = 0;
    }

    // A stage is what is read between two barriers.
    void add_stage() { stages_.push_back({stretches_.size(), length_}); }
    void add(const void* from, int64_t bytes) {
        if (bytes <= 0) return;
        stretches_.push_back({static_cast<const uint8_t*>(from), bytes, length_});
        length_ += bytes;
    }

    // The worker comes to a stage: all before it is read, by any worker.
    void begin(size_t stage) {
        read_ = stages_[stage].at;
        if (asked_ < read_) {
            next_ = stages_[stage].first;
            asked_ = read_;
        }
        while (asked_ < std::min(length_, read_ + kAhead)) some();
    }

    // The worker reads so many bytes more, and itself prefetches what follows closely. Where these bytes end a stretch,
    // this prefetches the beginning of the next one, and what is `side` bytes behind it, which is read beside it.
    void read(int64_t bytes, int64_t side) {
        read_ += bytes;
        while (next_ < stretches_.size() && stretches_[next_].at + stretches_[next_].bytes <= read_) ++next_;
        if (next_ == stretches_.size()) return;
        const Stretch& next = stretches_[next_];
        asked_ = std::max(asked_, std::max(read_, next.at));
        if (next.at != read_) return;
        ask(next.from, std::min(kBeginning, next.bytes));
        if (side > 0 && side < next.bytes) ask(next.from + side, std::min(kBeginning, next.bytes - side));
    }

    // So many bytes are about to be read: prefetches as many further on.
    void pass(int64_t bytes) {
        const uint8_t* from = next(bytes);
        if (from != nullptr) ask(from, bytes);
    }

    // Prefetches some more; false when enough is prefetched.
    bool some() {
        if (next_ == stretches_.size() || asked_ > read_ + kMost) return false;
        const int64_t before = read_;
        const uint8_t* from = next(kSome);
        read_ = before;
        ask(from, kSome);
        return true;
    }

  private:
    // Where to prefetch so many bytes while as many are read; null: enough is prefetched.
    const uint8_t* next(int64_t bytes) {
        read_ += bytes;
        if (next_ == stretches_.size() || asked_ > read_ + kMost) return nullptr;
        const Stretch& now = stretches_[next_];
        const uint8_t* from = now.from + (asked_ - now.at);
        asked_ = std::min(asked_ + bytes, now.at + now.bytes);
        next_ += asked_ == now.at + now.bytes;
        return from;
    }

    static constexpr int64_t kSome = 512;
    static constexpr int64_t kBeginning = 2 << 10;
    static constexpr int64_t kAhead = 8 << 10;   // while reading
    static constexpr int64_t kMost = 256 << 10;  // a part of the second cache
    struct Stretch {
        const uint8_t* from;
        int64_t bytes, at;  // `at` bytes of the path are before it
    };
    struct Stage {
        size_t first;  // stretch
        int64_t at;
    };
    int64_t length_ = 0, read_ = 0, asked_ = 0;
    size_t next_ = 0;
    std::vector<Stretch> stretches_;
    std::vector<Stage> stages_;
};

}  // namespace cutaway
