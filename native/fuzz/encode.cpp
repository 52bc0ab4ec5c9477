// A libFuzzer target (scripts/fuzz/native.sh): any bytes, by every scanner. Pieces must tile the text; ids, by search
// and over several jobs, must decode to it. The vocabulary is the 256 bytes and some tokens that overlap.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "tokenizer/scan.hpp"

extern "C" {
void* cutaway_vocabulary_compile(uint32_t, const uint8_t*, const uint64_t*, const int32_t*, const int32_t*,
                                 const uint32_t*, uint64_t, const uint8_t*, uint32_t, uint32_t, const int32_t*,
                                 const uint32_t*, int32_t, uint32_t, uint32_t, const uint8_t*, const uint64_t*,
                                 uint64_t*);
void cutaway_vocabulary_take(void*, uint8_t*);
void* cutaway_tokenizer_open(const uint8_t*, uint64_t, uint64_t);
int64_t cutaway_tokenizer_encode(void*, int32_t, const uint8_t* const*, const int64_t*, int64_t, int32_t*, int64_t,
                                 int32_t* (*)(int64_t), int64_t*, int32_t);
int64_t cutaway_tokenizer_decoded(void*, const int32_t*, int64_t);
void cutaway_tokenizer_decode(void*, const int32_t*, int64_t, uint8_t*, int64_t);
}

namespace {

void require(bool holds) {
    if (!holds) std::abort();
}

void* open() {
    std::vector<std::string> texts;
    for (int byte = 0; byte < 256; ++byte) texts.emplace_back(1, static_cast<char>(byte));
    for (const char* text : {"aa", "ab", "ba", "aaa", "abab", " a", "  ", "    ", "'s", "\n\n", "\xe4\xb8", "\xe4\xb8\xad"}) {
        texts.emplace_back(text);
    }
    std::string all;
    std::vector<uint64_t> starts{0};
    std::vector<int32_t> ids, ranks;
    std::vector<uint32_t> bytes;
    for (const std::string& text : texts) {
        ids.push_back(static_cast<int32_t>(ids.size()));
        ranks.push_back(ids.back() < 256 ? -1 : ids.back());
        all += text;
        starts.push_back(all.size());
    }
    for (uint32_t byte = 0; byte < 256; ++byte) bytes.push_back(byte);
    const std::vector<int32_t> none(256, -1);
    const std::vector<uint8_t> unused(texts.size(), 0);
    const auto* data = reinterpret_cast<const uint8_t*>(all.data());
    const auto count = static_cast<uint32_t>(texts.size());
    uint64_t size = 0;
    void* made = cutaway_vocabulary_compile(count, data, starts.data(), ids.data(), ranks.data(), nullptr, 0,
                                            unused.data(), 1, 1, none.data(), bytes.data(), -1, 0, count, data,
                                            starts.data(), &size);
    require(made != nullptr);
    static std::vector<uint64_t> kept;
    kept.resize((size + 7) / 8);
    auto* laid_out = reinterpret_cast<uint8_t*>(kept.data());
    cutaway_vocabulary_take(made, laid_out);
    void* tokenizer = cutaway_tokenizer_open(laid_out, size, 1 << 20);
    require(tokenizer != nullptr);
    return tokenizer;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* input, size_t size) {
    static void* const tokenizer = open();
    // In memory of its own size, so that reading past it is seen.
    const std::vector<uint8_t> text(input, input + size);
    const uint8_t* texts[2] = {text.data(), text.data() + size / 2};
    const int64_t sizes[2] = {static_cast<int64_t>(size / 2), static_cast<int64_t>(size - size / 2)};
    for (int32_t pattern = 0; pattern < static_cast<int32_t>(cutaway::Pattern::count); ++pattern) {
        size_t done = 0;
        cutaway::for_each_piece(static_cast<cutaway::Pattern>(pattern), text.data(), size, [&](size_t begin, size_t end) {
            require(begin == done && end > begin && end <= size);
            done = end;
        });
        require(done == size);
        static std::vector<int32_t> ids;
        ids.assign(size / 2, 0);
        int64_t counts[2] = {0, 0};
        const auto more = [](int64_t count) {
            ids.resize(static_cast<size_t>(count));
            return ids.data();
        };
        const int64_t count = cutaway_tokenizer_encode(tokenizer, pattern, texts, sizes, 2, ids.data(),
                                                       static_cast<int64_t>(ids.size()), more, counts, 1);
        require(count >= 0 && counts[0] + counts[1] == count);
        require(cutaway_tokenizer_decoded(tokenizer, ids.data(), count) == static_cast<int64_t>(size));
        std::vector<uint8_t> back(size);
        cutaway_tokenizer_decode(tokenizer, ids.data(), count, back.data(), static_cast<int64_t>(size));
        require(back == text);
    }
    return 0;
}
