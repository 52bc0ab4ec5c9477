// Where the workers of one step wait for each other: a spin of well under a microsecond, after which a worker that
// waits for one the system has put to sleep gives its core away.
#pragma once

#include <atomic>
#include <thread>

namespace cutaway {

class Barrier {
  public:
    // One of `workers` has arrived; the last to arrive calls `last()` before the others go on.
    template <class F>
    void wait(int workers, const F& last) {
        if (workers == 1) return last();
        const int turn = turn_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == workers) {
            arrived_.store(0, std::memory_order_relaxed);
            last();
            turn_.store(turn + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; turn_.load(std::memory_order_acquire) == turn; ++spins) {
            if (spins < kSpins) relax();
            else std::this_thread::yield();
        }
    }

  private:
    static constexpr int kSpins = 2000;

    static void relax() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("yield");
#endif
    }

    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> turn_{0};
};

}  // namespace cutaway
