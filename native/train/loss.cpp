// Cross-entropy and z-loss of some rows of logits. Their gradient overwrites the logits, so no second array of that
// size is needed. The reference is `logits_grad` of cutaway/train/loss.py.
#include <algorithm>
#include <cmath>
#include <cstring>

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

struct Functions {
    float (*logits_grad)(float* row, int64_t size, int64_t target, float z);
    float (*logits_grad_bf16)(uint16_t* row, int64_t size, int64_t target, float z);
};

#define CUTAWAY_KERNELS "train/loss.inc"
#include "core/each_isa.inc"

template <typename T>
void each_row(T* logits, int64_t rows, int64_t size, const int64_t* targets, float z, float* of_target, float* logs,
              Threads by, float (*logits_grad)(T*, int64_t, int64_t, float)) {
    split(rows, 8, by, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; ++r) {
            T* row = logits + r * size;
            of_target[r] = as_float(row[targets[r]]);
            logs[r] = logits_grad(row, size, targets[r], z);
        }
    });
}

}  // namespace
}  // namespace cutaway

// Logits [rows size], floats or (`bf16`) their upper halves, become gradients. Fills each row's logit of its target, and
// the logarithm of the sum of the exponentials of all.
CUTAWAY_API void cutaway_loss(void* logits, int32_t bf16, int64_t rows, int64_t size, const int64_t* targets, float z,
                              float* of_target, float* logs, int32_t threads, cutaway::Parallel parallel) {
    using namespace cutaway;
    const auto& table = chosen();
    const Threads by{threads, parallel};
    if (bf16 != 0) {
        each_row(static_cast<uint16_t*>(logits), rows, size, targets, z, of_target, logs, by, table.logits_grad_bf16);
    } else {
        each_row(static_cast<float*>(logits), rows, size, targets, z, of_target, logs, by, table.logits_grad);
    }
}
