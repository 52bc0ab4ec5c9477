// How far ahead weights are prefetched, for all products.
#include "runtime/prefetch.hpp"

#include <atomic>

#include "core/api.hpp"
#include "core/isa.hpp"

namespace cutaway {
namespace {

std::atomic<int32_t> in_use{-1};

int32_t usual() {
#if defined(CUTAWAY_X86)
    return best_isa() < Isa::avx512 ? kEightBits : kNone;
#else
    return kNone;
#endif
}

}  // namespace

int32_t prefetch() {
    const int32_t asked = in_use.load(std::memory_order_relaxed);
    return asked < 0 ? usual() : asked;
}

}  // namespace cutaway

CUTAWAY_API int32_t cutaway_prefetch_usual() { return cutaway::usual(); }

CUTAWAY_API int32_t cutaway_prefetch() { return cutaway::prefetch(); }

// Asks so far ahead from now on; below 0: as usual.
CUTAWAY_API void cutaway_prefetch_use(int32_t bytes) { cutaway::in_use.store(bytes, std::memory_order_relaxed); }
