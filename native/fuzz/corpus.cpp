// A libFuzzer target (scripts/fuzz/native.sh): any bytes as a corpus, also one of several pieces, whose words are counted
// on two threads and numbered by a dictionary. The counts are those of a loop over the bytes; what has too long a word is
// refused.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "embedding/corpus.hpp"

extern "C" {
void* cutaway_counter_new(int32_t);
void cutaway_counter_free(void*);
int32_t cutaway_counter_add(void*, int32_t, int64_t, int64_t, int64_t*);
int32_t cutaway_counter_size(void*, int64_t*, int64_t*);
void cutaway_counter_take(const void*, uint8_t*, int64_t*, int64_t*);
cutaway::Dictionary* cutaway_dictionary_new(const uint8_t*, const int64_t*, int64_t);
void cutaway_dictionary_free(cutaway::Dictionary*);
}

namespace {

void require(bool holds) {
    if (!holds) std::abort();
}

bool is_space(uint8_t c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* input, size_t size) {
    if (size == 0) return 0;
    std::vector<uint8_t> text(input, input + size);
    // Every fourth is repeated past a piece's end, which comes at another place of it each time.
    while (input[0] % 4 == 0 && text.size() < 2 * cutaway::kPiece + 999) text.insert(text.end(), input, input + size);
    static const int file = memfd_create("corpus", 0);
    require(ftruncate(file, 0) == 0);
    require(pwrite(file, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()));

    std::map<std::string, int64_t> expected;
    bool too_long = false;
    for (size_t at = 0; at < text.size();) {
        size_t stop = at;
        while (stop < text.size() && !is_space(text[stop])) ++stop;
        if (stop > at) ++expected[std::string(text.begin() + static_cast<int64_t>(at), text.begin() + static_cast<int64_t>(stop))];
        too_long = too_long || static_cast<int64_t>(stop - at) > cutaway::kLongest;
        at = stop + 1;
    }

    void* counter = cutaway_counter_new(2);
    require(counter != nullptr);
    int64_t where = 0, words = 0, bytes = 0;
    const auto pieces = static_cast<int64_t>(text.size()) / cutaway::kPiece + 1;
    const int32_t status = cutaway_counter_add(counter, file, 0, pieces, &where);
    require((status == static_cast<int32_t>(cutaway::Found::too_long)) == too_long);
    require(too_long || status == 0);
    require(cutaway_counter_size(counter, &words, &bytes) == 0);
    std::vector<uint8_t> all(static_cast<size_t>(bytes));
    std::vector<int64_t> ends(static_cast<size_t>(words)), times(static_cast<size_t>(words));
    cutaway_counter_take(counter, all.data(), ends.data(), times.data());
    cutaway_counter_free(counter);
    if (too_long) return 0;
    require(static_cast<size_t>(words) == expected.size());
    cutaway::Dictionary* numbered = cutaway_dictionary_new(all.data(), ends.data(), words);
    require(numbered != nullptr && numbered->size() == words);
    int64_t begin = 0;
    for (int64_t i = 0; i < words; begin = ends[static_cast<size_t>(i++)]) {
        const auto end = ends[static_cast<size_t>(i)];
        const auto found = expected.find(std::string(all.begin() + begin, all.begin() + end));
        require(found != expected.end() && found->second == times[static_cast<size_t>(i)]);
        require(numbered->find({all.data() + begin, end - begin}) == i);
    }
    cutaway_dictionary_free(numbered);
    return 0;
}
