// A corpus is a file of words between white space, read in pieces: memory is one small buffer a reader, however
// large the file. A word belongs to the piece in which it begins.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace cutaway {

inline constexpr int64_t kPiece = 1 << 16;    // bytes of the file in a piece
inline constexpr int64_t kLongest = 1 << 12;  // bytes of the longest word; what is longer is no text

struct Bytes {
    const uint8_t* data;
    int64_t size;
};

uint64_t hash(Bytes word);

enum class Found { word, end, too_long, unreadable };

// The words of one piece, in order.
class Reader {
  public:
    Reader(int file, int64_t piece);
    Found next();
    Bytes word() const { return word_; }
    bool new_line() const { return new_line_; }  // whether a line ended between the last word and this one
    int64_t where() const { return base_ + at_; }  // in the file

  private:
    bool refill();  // keeps what is not yet read; false at the end of the file
    bool skip(bool spaces);

    int file_;
    int64_t end_;
    int64_t base_;  // where in the file the buffer begins
    int64_t at_ = 0, filled_ = 0;
    bool broken_ = false, new_line_ = false;
    Bytes word_{};
    std::vector<uint8_t> buffer_;
};

// Words to their numbers, in memory that grows with the words alone.
class Dictionary {
  public:
    static constexpr int64_t kNone = -1;
    Dictionary();
    int64_t find(Bytes word) const;
    int64_t find_or_add(Bytes word);
    int64_t size() const { return static_cast<int64_t>(offsets_.size()) - 1; }
    int64_t bytes() const { return offsets_.back(); }
    Bytes operator[](int64_t i) const {
        return {text_.data() + offsets_[static_cast<size_t>(i)],
                offsets_[static_cast<size_t>(i) + 1] - offsets_[static_cast<size_t>(i)]};
    }

  private:
    struct Slot {
        uint32_t id;  // one more than the word's number; 0 is an empty slot
        uint32_t tag;  // the hash's upper half, so that few words are compared
    };
    size_t slot(Bytes word, uint64_t hashed) const;
    void grow();

    std::vector<Slot> slots_;
    std::vector<int64_t> offsets_;
    std::vector<uint8_t> text_;
};

}  // namespace cutaway
