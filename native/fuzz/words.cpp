// A libFuzzer target (scripts/fuzz/native.sh): any bytes are counted as words by every pattern, on one thread and on two,
// and a text of many stretches likewise; the counts are those of a map over the scanner's pieces. A cut changes no piece.
// Then pairs of the words' bytes are merged. Valid UTF-8 ends where a decoder that goes byte by byte stops.
#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "tokenizer/scan.hpp"

extern "C" {
void* cutaway_word_counter_new();
int32_t cutaway_word_counter_add(void*, int32_t, const uint8_t*, int64_t, int32_t);
int32_t cutaway_word_counter_size(void*, int64_t*, int64_t*);
void cutaway_word_counter_words(void*, uint8_t*, int64_t*, int64_t*);
void cutaway_word_counter_free(void*);
int64_t cutaway_split_point(int32_t, const uint8_t*, int64_t);
int64_t cutaway_utf8_until(const uint8_t*, int64_t);
void* cutaway_bpe_new(const int32_t*, const int64_t*, const int64_t*, int64_t, int32_t, int32_t, int64_t);
int64_t cutaway_bpe_step(void*, int64_t, int64_t*);
void cutaway_bpe_free(void*);
}

namespace {

constexpr int32_t kMerges = 32;
constexpr size_t kMany = 300'000;  // bytes of more than two stretches

using Counts = std::map<std::string, int64_t>;

void require(bool holds) {
    if (!holds) std::abort();
}

Counts expected(int32_t pattern, const std::vector<uint8_t>& text) {
    Counts counts;
    cutaway::for_each_piece(static_cast<cutaway::Pattern>(pattern), text.data(), text.size(), [&](size_t begin, size_t end) {
        ++counts[std::string(text.begin() + static_cast<int64_t>(begin), text.begin() + static_cast<int64_t>(end))];
    });
    return counts;
}

Counts counted(int32_t pattern, const std::vector<uint8_t>& text, int32_t threads) {
    void* counter = cutaway_word_counter_new();
    require(counter != nullptr);
    require(cutaway_word_counter_add(counter, pattern, text.data(), static_cast<int64_t>(text.size()), threads) == 0);
    int64_t words = 0, bytes = 0;
    require(cutaway_word_counter_size(counter, &words, &bytes) == 0);
    std::vector<uint8_t> all(static_cast<size_t>(bytes));
    std::vector<int64_t> offsets(static_cast<size_t>(words) + 1), times(static_cast<size_t>(words));
    cutaway_word_counter_words(counter, all.data(), offsets.data(), times.data());
    cutaway_word_counter_free(counter);
    Counts counts;
    for (size_t i = 0; i < times.size(); ++i) {
        counts[std::string(all.begin() + offsets[i], all.begin() + offsets[i + 1])] += times[i];
    }
    return counts;
}

void merge(const Counts& counts) {
    std::vector<int32_t> symbols;
    std::vector<int64_t> offsets{0}, times;
    for (const auto& [word, count] : counts) {
        for (const char c : word) symbols.push_back(static_cast<uint8_t>(c));
        offsets.push_back(static_cast<int64_t>(symbols.size()));
        times.push_back(count);
    }
    void* trainer = cutaway_bpe_new(symbols.data(), offsets.data(), times.data(), static_cast<int64_t>(times.size()), 256,
                                    256 + kMerges, 1);
    require(trainer != nullptr);
    std::vector<int64_t> rows(4 * kMerges);
    const int64_t made = cutaway_bpe_step(trainer, kMerges, rows.data());
    require(made >= 0 && made <= kMerges);
    for (int64_t i = 0; i < made; ++i) {
        const int64_t* row = rows.data() + 4 * i;
        require(row[0] >= 0 && row[0] < row[2] && row[1] >= 0 && row[1] < row[2] && row[2] < 256 + kMerges && row[3] > 0);
        require(i == 0 || row[3] <= row[-1]);
    }
    cutaway_bpe_free(trainer);
}

size_t valid(const std::vector<uint8_t>& text) {
    for (size_t at = 0; at < text.size();) {
        const uint8_t lead = text[at];
        const size_t more = lead < 0x80 ? 0 : lead < 0xc0 ? 9 : lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : lead < 0xf8 ? 3 : 9;
        if (more == 9 || text.size() - at <= more) return at;
        uint32_t code = more == 0 ? lead : lead & (0x3fu >> more);
        for (size_t i = 1; i <= more; ++i) {
            if ((text[at + i] & 0xc0) != 0x80) return at;
            code = code << 6 | (text[at + i] & 0x3f);
        }
        constexpr uint32_t least[] = {0, 0x80, 0x800, 0x10000};
        if (code < least[more] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return at;
        at += more + 1;
    }
    return text.size();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* input, size_t size) {
    if (size == 0) return 0;
    // In memory of its own size, so that reading past it is seen.
    const std::vector<uint8_t> text(input, input + size);
    require(cutaway_utf8_until(text.data(), static_cast<int64_t>(size)) == static_cast<int64_t>(valid(text)));
    for (int32_t pattern = 0; pattern < static_cast<int32_t>(cutaway::Pattern::count); ++pattern) {
        const Counts counts = expected(pattern, text);
        require(counted(pattern, text, 1) == counts);
        const auto cut = static_cast<size_t>(cutaway_split_point(pattern, text.data(), static_cast<int64_t>(size / 2)));
        require(cut <= size / 2);
        Counts halves = expected(pattern, {text.begin(), text.begin() + static_cast<int64_t>(cut)});
        for (const auto& [word, count] : expected(pattern, {text.begin() + static_cast<int64_t>(cut), text.end()})) {
            halves[word] += count;
        }
        require(halves == counts);
        if (pattern == input[0] % static_cast<int32_t>(cutaway::Pattern::count)) merge(counts);
    }
    if (input[0] % 64 == 0) {  // few: it is a large text
        std::vector<uint8_t> many;
        while (many.size() < kMany) many.insert(many.end(), text.begin(), text.end());
        const int32_t pattern = input[size - 1] % static_cast<int32_t>(cutaway::Pattern::count);
        require(counted(pattern, many, 2) == expected(pattern, many));
    }
    return 0;
}
