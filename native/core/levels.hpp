// The values of types whose four bits are indices, for quant.cpp, quant_search.cpp and runtime/matmul.cpp.
#pragma once

#include <cstdint>

namespace cutaway {

inline constexpr int8_t kLevels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};  // IQ4
inline constexpr int8_t kTwiceE2M1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};  // MXFP4, doubled

}  // namespace cutaway
