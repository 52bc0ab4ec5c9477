#include "core/thread_pool.hpp"

#if !defined(_WIN32)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

#include <condition_variable>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace cutaway {
namespace {

// About 50 microseconds of pauses: longer than the gap between two matrix products.
constexpr int kSpins = 4000;

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// A counter that one side raises and the other waits for: a short spin, then sleep.
class Signal {
  public:
    uint64_t value() const { return value_.load(std::memory_order_acquire); }

    void raise() {
        value_.fetch_add(1);
        if (sleepers_.load() == 0) return;
        { const std::lock_guard lock(mutex_); }  // a sleeper is past its last look, or inside wait()
        wake_.notify_all();
    }

    void wait_for(uint64_t target) {
        for (int i = 0; i < kSpins; ++i) {
            if (value() >= target) return;
            pause();
        }
        std::unique_lock lock(mutex_);
        sleepers_.fetch_add(1);
        wake_.wait(lock, [&] { return value_.load() >= target; });
        sleepers_.fetch_sub(1);
    }

  private:
    std::atomic<uint64_t> value_{0};
    std::atomic<int> sleepers_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
};

// Each worker has its own start signal, so that a job for two wakes one thread and not sixty.
struct alignas(64) Worker {
    Signal start;
    const Job* job = nullptr;
    int workers = 0;
    std::thread::native_handle_type thread{};
    int kept_off = -1;  // the processor that it may not run on
};

// Where the caller runs no worker is put: Linux wakes one where it slept, and if that is there, it waits for the
// caller's turn to end, milliseconds later, though another processor is idle. For as many threads as processors.
void keep_off_callers(std::vector<std::unique_ptr<Worker>>& workers, int helpers) {
#if defined(__linux__)
    const int here = sched_getcpu();
    if (here < 0 || here >= CPU_SETSIZE) return;
    cpu_set_t others;
    bool known = false;
    for (int i = 0; i < helpers; ++i) {
        Worker& worker = *workers[static_cast<size_t>(i)];
        if (worker.kept_off == here) continue;
        if (!known) {
            if (sched_getaffinity(0, sizeof others, &others) != 0 || CPU_COUNT(&others) <= helpers) return;
            CPU_CLR(here, &others);
            known = true;
        }
        if (pthread_setaffinity_np(worker.thread, sizeof others, &others) == 0) worker.kept_off = here;
    }
#else
    (void)workers, (void)helpers;
#endif
}

struct Pool {
    std::vector<std::unique_ptr<Worker>> workers;
    alignas(64) Signal done;
    uint64_t finished = 0;  // what done will show once every job so far is over

    void grow(int count) {
        while (static_cast<int>(workers.size()) < count) {
            auto worker = std::make_unique<Worker>();
            const int index = static_cast<int>(workers.size()) + 1;
            try {
                std::thread thread([this, self = worker.get(), index] { serve(*self, index); });
                worker->thread = thread.native_handle();
                thread.detach();
            } catch (const std::system_error&) {
                return;  // the system gives no more threads: those that there are do the work
            }
            workers.push_back(std::move(worker));
        }
    }

    void serve(Worker& self, int index) {
        for (uint64_t turn = 1;; ++turn) {
            self.start.wait_for(turn);
            (*self.job)(index, self.workers);
            done.raise();
        }
    }

    void run(int threads, const Job& job) {
        grow(threads - 1);
        const int helpers = std::min(threads - 1, static_cast<int>(workers.size()));
        keep_off_callers(workers, helpers);
        for (int i = 0; i < helpers; ++i) {
            workers[i]->job = &job;
            workers[i]->workers = helpers + 1;
            workers[i]->start.raise();
        }
        job(0, helpers + 1);
        finished += static_cast<uint64_t>(helpers);
        done.wait_for(finished);
    }
};

// The pool is never destroyed: its threads sleep until the process ends.
Pool* pool = nullptr;
std::atomic<bool> busy{false};

#if !defined(_WIN32)
// The parent's threads do not exist in the child, and its pool's locks may be held: it is left, and made
// anew.
void after_fork_in_child() {
    pool = nullptr;
    busy.store(false);
}

[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, after_fork_in_child);
#endif

}  // namespace

void run(int threads, const Job& job) {
    if (threads <= 1 || busy.exchange(true, std::memory_order_acquire)) return job(0, 1);
    if (pool == nullptr) pool = new Pool;
    pool->run(threads, job);
    busy.store(false, std::memory_order_release);
}

}  // namespace cutaway
