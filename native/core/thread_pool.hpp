// A small thread pool: workers spin for a moment, then sleep. It does one job at a time, and a caller that finds it
// busy works alone.
#pragma once

#include <cstdint>

namespace cutaway {

// A borrowed callable: a pointer to it and a function that calls it; it must outlive the call that takes it.
class Job {
  public:
    template <class F>
    Job(const F& f) : self_(&f), call_([](const void* self, int worker, int workers) {
        (*static_cast<const F*>(self))(worker, workers);
    }) {}
    void operator()(int worker, int workers) const { call_(self_, worker, workers); }

  private:
    const void* self_;
    void (*call_)(const void*, int, int);
};

// Runs job(worker, workers) for worker = 0 .. workers-1 at once, the caller being worker 0, and returns
// when all are done. workers is at most threads, and 1 when the pool is at work for another caller (or for
// this one, in a nested call) or when no thread can be made: a job must give the same result for every
// number of workers, and must not throw. After fork() the child makes its threads anew.
void run(int threads, const Job& job);

// Runs body(data) on several threads at once: OpenMP's GOMP_parallel.
using Parallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// How many, and whose: a host program's (torch's wait awake between its operations, and others would have to share
// their cores), or where `parallel` is null the pool's.
struct Threads {
    int32_t count;
    Parallel parallel;
};

// Runs the job on those threads. Workers of a host program always have the number 0.
inline void run(Threads by, const Job& job) {
#if defined(__SANITIZE_THREAD__)
    by.parallel = nullptr;  // OpenMP's barriers are not seen, and what they order would be called races
#endif
    if (by.count <= 1 || by.parallel == nullptr) return run(by.count, job);
    by.parallel([](void* data) { (*static_cast<const Job*>(data))(0, 1); }, const_cast<Job*>(&job),
                static_cast<unsigned>(by.count), 0);
}

// Calls part(begin, end) over [0, count) in pieces of at most `piece`, handed out as workers become free.
template <class F>
void split(int64_t count, int64_t piece, int threads, const F& part);
template <class F>
void split(int64_t count, int64_t piece, Threads by, const F& part);

// The same, but each worker takes the pieces of its own share of [0, count) first, in their order, and then those that others
// have not begun: what it writes first is in the memory of its own processors, where a step's worker reads it.
template <class F>
void split_by_shares(int64_t count, int64_t piece, int threads, const F& part);

}  // namespace cutaway

#include <algorithm>
#include <atomic>
#include <vector>

template <class F>
void cutaway::split(int64_t count, int64_t piece, int threads, const F& part) {
    split(count, piece, Threads{threads, nullptr}, part);
}

template <class F>
void cutaway::split(int64_t count, int64_t piece, Threads by, const F& part) {
    const int64_t pieces = (count + piece - 1) / piece;
    std::atomic<int64_t> next{0};
    const auto work = [&](int, int) {
        for (int64_t i = next.fetch_add(1); i < pieces; i = next.fetch_add(1)) {
            part(i * piece, std::min(count, (i + 1) * piece));
        }
    };
    by.count = static_cast<int32_t>(std::min<int64_t>(by.count, pieces));
    run(by, work);
}

template <class F>
void cutaway::split_by_shares(int64_t count, int64_t piece, int threads, const F& part) {
    const int64_t pieces = (count + piece - 1) / piece;
    const int most = static_cast<int>(std::min<int64_t>(std::max(threads, 1), std::max<int64_t>(pieces, 1)));
    std::vector<std::atomic<int64_t>> taken(static_cast<size_t>(most));
    const auto work = [&](int worker, int workers) {
        for (int i = 0; i < workers; ++i) {
            const int share = (worker + i) % workers;
            const int64_t begin = pieces * share / workers, own = pieces * (share + 1) / workers - begin;
            std::atomic<int64_t>& next = taken[static_cast<size_t>(share)];
            for (int64_t n = next.fetch_add(1); n < own; n = next.fetch_add(1)) {
                part((begin + n) * piece, std::min(count, (begin + n + 1) * piece));
            }
        }
    };
    run(most, work);
}
