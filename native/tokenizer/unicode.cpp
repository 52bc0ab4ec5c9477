#include "tokenizer/unicode.hpp"

#include <algorithm>
#include <iterator>
#include <memory>

namespace cutaway {

static constexpr uint32_t kUnicode16_0[] = {
#include "../../cutaway/tokenizer/unicode-16.0.inc"
};

const uint8_t* unicode_classes() {
    static const std::unique_ptr<uint8_t[]> classes = [] {
        auto out = std::make_unique<uint8_t[]>(0x110000);
        for (auto run = std::begin(kUnicode16_0); run != std::end(kUnicode16_0); ++run) {
            const uint32_t next = run + 1 == std::end(kUnicode16_0) ? 0x110000 : run[1] >> 4;
            std::fill(out.get() + (*run >> 4), out.get() + next, static_cast<uint8_t>(*run & 15));
        }
        return out;
    }();
    return classes.get();
}

}  // namespace cutaway
