// A libFuzzer target (scripts/fuzz/native.sh): any bytes as the blocks of a quantised tensor, of every type, unpacked by
// each instruction set that the processor has: the same numbers as by portable C++, NaN where that has NaN.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <vector>

extern "C" {
int32_t cutaway_unpack(int32_t, const uint8_t*, int64_t, float*, int32_t);
int32_t cutaway_isa_use(int32_t);
}

namespace {

struct Type {
    int32_t id;
    size_t block, bytes;
};

// Numbers, block and bytes as in cutaway/gguf/types.py.
constexpr Type kTypes[] = {
    {0, 1, 4},     {1, 1, 2},     {2, 32, 18},   {3, 32, 20},    {6, 32, 22},   {7, 32, 24},   {8, 32, 34},   {10, 256, 84},
    {11, 256, 110}, {12, 256, 144}, {13, 256, 176}, {14, 256, 210}, {20, 32, 18}, {23, 256, 136}, {39, 32, 17}, {30, 1, 2},
};
constexpr int32_t kSets = 5;

void require(bool holds) {
    if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* input, size_t size) {
    for (const Type& type : kTypes) {
        const size_t blocks = size / type.bytes;
        if (blocks == 0) continue;
        // In memory of their own size, so that reading or writing past it is seen.
        const std::vector<uint8_t> data(input, input + blocks * type.bytes);
        const size_t values = blocks * type.block - (type.block > 1 ? input[0] % type.block : 0);  // a row may end in a block
        std::vector<float> expected(values);
        require(cutaway_isa_use(0) == 0);
        require(cutaway_unpack(type.id, data.data(), static_cast<int64_t>(values), expected.data(), 1) == 0);
        for (int32_t set = 1; set < kSets; ++set) {
            if (cutaway_isa_use(set) != 0) continue;
            std::vector<float> found(values);
            require(cutaway_unpack(type.id, data.data(), static_cast<int64_t>(values), found.data(), 1) == 0);
            for (size_t i = 0; i < values; ++i) {
                require(found[i] == expected[i] || (std::isnan(found[i]) && std::isnan(expected[i])));
            }
        }
    }
    require(cutaway_unpack(99, input, 0, nullptr, 1) == -1);
    return 0;
}
