// Memory at a multiple of a power of two, for the systems that have no aligned_alloc too.
#pragma once

#include <cstddef>
#include <cstdlib>

#if defined(_WIN32)
#include <malloc.h>
#endif

namespace cutaway {

// nullptr where there is none; `size` is a multiple of `alignment`. Only aligned_free gives it back.
inline void* aligned_take(size_t alignment, size_t size) {
#if defined(_WIN32)
    return _aligned_malloc(size, alignment);
#else
    return std::aligned_alloc(alignment, size);
#endif
}

inline void aligned_free(void* memory) {
#if defined(_WIN32)
    _aligned_free(memory);
#else
    std::free(memory);
#endif
}

}  // namespace cutaway
