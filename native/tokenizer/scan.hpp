// Cutting text into the pieces across which nothing merges: the split patterns of the models, by hand.
//
// A text is classified first, 64 bytes at a time, into bitmaps (a bit a byte: is it of a letter, of a number,
// ...), with vector instructions where it is ASCII. Where the pattern allows, the pieces' first bytes are then found
// for 64 bytes at once (split_bitmaps.hpp); else a walker finds each piece's end by counting the ones at a place of a bitmap,
// and never decodes a letter. Pieces tile the text. The reference is cutaway/tokenizer/pretokenize.py, whose patterns
// these are; classes are those of unicode.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cutaway {

// The numbers are those of cutaway/native/bpe.py.
enum class Pattern : int32_t {
    lines,      // [^\n]+|[\n]+ (Gemma 4)
    gpt2,       // 's ... | ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
    smollm,     // \p{N} alone, then gpt2
    cl100k,     // contractions in any case of Unicode; numbers of up to three digits
    llama3,     // as cl100k, contractions in any case of ASCII
    qwen2,      // as llama3, digits alone
    qwen2_any,  // as cl100k, digits alone
    qwen35,     // as qwen2, marks are letters
    qwen35_any,
    o200k,      // a word is capitals and then small letters, with its contraction
    tekken,     // as o200k, no contractions, digits alone
    deepseek3,  // numbers, then Chinese and Japanese, then the rest
    count
};

// Where a text can be cut in two without a piece changing: the greatest such place in (begin, target], or begin
// if there is none. (Between a letter of ASCII and a space: every pattern but `lines` cuts there, and none looks
// beyond.)
size_t safe_cut(Pattern pattern, const uint8_t* text, size_t begin, size_t target);

// Cuts one text; next() goes on where it stopped. Invalid UTF-8 is cut somehow, each bad byte as a character
// of no class.
class Scanner {
  public:
    explicit Scanner(Pattern pattern) : pattern_(pattern) {}

    // The text must stay where it is until the last call of next().
    void open(const uint8_t* text, size_t size);

    // Writes the ends of the next pieces (the first begins at 0, or at the last end written) and returns how
    // many, at most `room`, which is more than 64; 0 when the text is at its end.
    size_t next(size_t* ends, size_t room);

  private:
    void classify();
    bool mark();
    size_t walk(size_t* ends, size_t room);

    Pattern pattern_;
    const uint8_t* text_ = nullptr;
    size_t size_ = 0;
    size_t begin_ = 0;  // of the window that is classified
    size_t end_ = 0;
    size_t place_ = 0;  // in the window
    bool plain_ = false;   // the window's bitmaps say all that marks are made of
    bool marked_ = false;
    std::vector<uint64_t> maps_;
    std::vector<uint64_t> marks_;  // the pieces' first bytes, and lone signs
};

// Calls piece(begin, end) for every piece of a text.
template <class F>
void for_each_piece(Pattern pattern, const uint8_t* text, size_t size, const F& piece) {
    Scanner scanner(pattern);
    scanner.open(text, size);
    size_t ends[256];
    size_t begin = 0;
    while (const size_t count = scanner.next(ends, 256)) {
        for (size_t i = 0; i < count; begin = ends[i++]) piece(begin, ends[i]);
    }
}

}  // namespace cutaway
