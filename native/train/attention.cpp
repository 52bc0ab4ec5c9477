// Attention for training on a CPU (FlashAttention's running softmax and its backward pass, 2205.14135): a block of
// queries meets a tile of keys, and scores are never in memory. A key-value head of one row is one piece of work, whose
// result does not depend on the thread. The reference is cutaway/attention/backends/naive.py, in tests/laws/test_backends.py.
#include "train/attention.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "core/api.hpp"
#include "core/half.hpp"
#include "core/isa.hpp"
#include "core/thread_pool.hpp"

#if defined(CUTAWAY_X86)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace cutaway {
namespace {

constexpr int64_t kQueries = 32, kKeys = 256;  // of a tile: its scores stay in the first cache

int64_t sixteens(int64_t n) { return (n + 15) / 16 * 16; }

using OfGroup = void (*)(const Heads& in, const Room& room, int64_t batch, int64_t group);

struct Functions {
    OfGroup attend, attend_bf16, back, back_bf16;
};

#define CUTAWAY_KERNELS "train/attention.inc"
#include "core/each_isa.inc"

// The parts of a worker's room, one after another.
constexpr int kParts = 11;
void sizes_of(const Heads& in, int64_t* sizes) {
    const int64_t keys = sixteens(in.keys), key_size = sixteens(in.key_size), value_size = sixteens(in.value_size);
    const int64_t parts[kParts] = {
        keys * key_size,       keys * value_size,      keys * key_size,
        keys * value_size,     keys * key_size,        keys * value_size,
        kQueries * key_size,   kQueries * value_size,  kQueries * std::max(key_size, value_size),
        kQueries * kKeys,      kQueries * kKeys};
    std::copy_n(parts, kParts, sizes);
}

int64_t room_size(const Heads& in) {
    int64_t sizes[kParts];
    sizes_of(in, sizes);
    return std::accumulate(sizes, sizes + kParts, int64_t{0});
}

Room room_of(const Heads& in, float* from) {
    int64_t sizes[kParts];
    sizes_of(in, sizes);
    const int64_t* size = sizes;
    const auto take = [&] { return std::exchange(from, from + *size++); };
    Room room;
    for (float** part : {&room.keys_across, &room.values_across, &room.keys, &room.values, &room.grad_keys,
                         &room.grad_values, &room.q, &room.out, &room.grad_q, &room.p, &room.grad_p}) {
        *part = take();
    }
    return room;
}

void every_group(const Heads& in, OfGroup each, Threads by) {
    std::atomic<int> workers{0};
    std::atomic<int64_t> next{0};
    const int64_t pieces = in.batch * in.groups;
    run(by, [&](int, int) {
        const Room room = room_of(in, in.scratch + workers.fetch_add(1) * room_size(in));
        for (int64_t i = next.fetch_add(1); i < pieces; i = next.fetch_add(1)) each(in, room, i / in.groups, i % in.groups);
    });
}

}  // namespace
}  // namespace cutaway

// Floats that each worker needs.
CUTAWAY_API int64_t cutaway_train_attention_scratch(const cutaway::Heads* in) { return cutaway::room_size(*in); }

// Fills out and logs.
CUTAWAY_API void cutaway_train_attention(const cutaway::Heads* in, int32_t threads, cutaway::Parallel parallel) {
    const auto& table = cutaway::chosen();
    cutaway::every_group(*in, in->bf16 != 0 ? table.attend_bf16 : table.attend, {threads, parallel});
}

// Fills grad_q, grad_k and grad_v.
CUTAWAY_API void cutaway_train_attention_backward(const cutaway::Heads* in, int32_t threads, cutaway::Parallel parallel) {
    const auto& table = cutaway::chosen();
    cutaway::every_group(*in, in->bf16 != 0 ? table.back_bf16 : table.back, {threads, parallel});
}
