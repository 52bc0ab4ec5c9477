// Shared by every exported function: the C ABI, and its version, which cutaway/native/ checks.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define CUTAWAY_API extern "C" __declspec(dllexport)
#else
#define CUTAWAY_API extern "C" __attribute__((visibility("default")))
#endif

namespace cutaway {

// Files are little-endian, and kernels read them in place.
static_assert(std::endian::native == std::endian::little);

// Raise this whenever an exported function changes its arguments or its meaning.
inline constexpr int32_t kAbi = 16;

}  // namespace cutaway
