// The memory of one call: vectors and floats that a forward pass writes and forgets.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "core/aligned.hpp"
#include "runtime/matmul.hpp"

namespace cutaway {

inline int64_t rounded(int64_t size, int64_t to) { return (size + to - 1) / to * to; }

// Zeroed memory for one call. A thread keeps what its largest call took: new pages would cost more than zeroing.
class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() {
        if (more_.empty()) return;
        for (void* each : more_) aligned_free(each);
        aligned_free(kept_.memory);
        const int64_t page = taken_ < kHuge ? kSmall : kHuge, size = rounded(taken_, page);
        kept_.memory = static_cast<uint8_t*>(aligned_take(static_cast<size_t>(page), static_cast<size_t>(size)));
        kept_.size = kept_.memory == nullptr ? 0 : size;
#if defined(MADV_HUGEPAGE)
        if (kept_.memory != nullptr && page == kHuge) madvise(kept_.memory, static_cast<size_t>(size), MADV_HUGEPAGE);
#endif
    }
    template <class T>
    T* take(int64_t count) {
        const int64_t size = rounded(std::max<int64_t>(count, 1) * static_cast<int64_t>(sizeof(T)), 64);
        void* memory = nullptr;
        if (taken_ + size <= kept_.size) {
            memory = kept_.memory + taken_;
        } else {
            memory = aligned_take(64, static_cast<size_t>(size));
            if (memory == nullptr) throw std::bad_alloc();
            more_.push_back(memory);
        }
        taken_ += size;
        return static_cast<T*>(std::memset(memory, 0, static_cast<size_t>(size)));
    }
    // `with_bf16`: whether some matrix reads them so.
    Vectors vectors(int64_t tokens, int64_t columns, bool with_bf16) {
        const int64_t width = rounded(columns, kGroup), groups = width / kGroup;
        return {take<float>(tokens * width),
                with_bf16 ? take<float>(tokens * width) : nullptr,
                with_bf16 ? take<uint16_t>(tokens * width) : nullptr,
                take<int8_t>(tokens * width),
                take<float>(tokens * groups),
                take<float>(tokens * groups),
                take<int32_t>(tokens * groups * kLacks),
                width,
                tokens};
    }

  private:
    static constexpr int64_t kSmall = 4 << 10, kHuge = 2 << 20;  // bytes of pages
    struct Kept {
        uint8_t* memory = nullptr;
        int64_t size = 0;
        ~Kept() { aligned_free(memory); }
    };
    static thread_local Kept kept_;
    int64_t taken_ = 0;
    std::vector<void*> more_;
};

inline thread_local Scratch::Kept Scratch::kept_;

}  // namespace cutaway
