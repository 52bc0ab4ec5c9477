// Memory in large pages, where the system has them, for tables that are read at random: fewer misses of the TLB.
#pragma once

#include <cstddef>
#include <new>

#include "core/aligned.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cutaway {

// An allocator for containers of the standard library.
template <class T>
struct LargePages {
    using value_type = T;
    static constexpr size_t kPage = 2u << 20;

    LargePages() = default;
    template <class U>
    LargePages(const LargePages<U>&) {}

    T* allocate(size_t count) {
        const size_t size = count * sizeof(T);
        const size_t alignment = size < kPage ? alignof(std::max_align_t) : kPage;
        void* got = aligned_take(alignment, (size + alignment - 1) / alignment * alignment);
        if (got == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
        if (size >= kPage) madvise(got, size, MADV_HUGEPAGE);
#endif
        return static_cast<T*>(got);
    }
    void deallocate(T* held, size_t) { aligned_free(held); }

    template <class U>
    bool operator==(const LargePages<U>&) const { return true; }
};

}  // namespace cutaway
