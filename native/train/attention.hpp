// Attention over heads for training, forward and backward: tensors as PyTorch lays them out.
#pragma once

#include <cstdint>

namespace cutaway {

// Vectors of a tensor by batch, head and token; their numbers are neighbours, the steps between them are in numbers.
struct TensorOf {
    void* at;
    int64_t batch, head, token;
};

// o[t] = sum_s p[t s] v[s]     p = softmax over s of scale q[t] . k[s]  where t sees s
// Query head h reads key-value head h / (heads / groups). Numbers are floats, or the upper halves of floats (bfloat16).
// `seen` says for each of batch, query and key whether it is seen; where it is null, all is, or if `causal`, keys up to
// the query's own. `logs` [batch heads queries] are the logarithms of the softmax' sums, from which p is made again.
struct Heads {
    int64_t batch, heads, groups, queries, keys, key_size, value_size;
    TensorOf q, k, v, out, grad_out, grad_q, grad_k, grad_v;
    const uint8_t* seen;
    float* logs;
    float* scratch;  // cutaway_train_attention_scratch floats for each worker
    float scale;
    int32_t bf16, causal;
};

// Where a worker keeps what it works on, all of it floats.
struct Room {
    float *keys_across, *values_across, *keys, *values, *grad_keys, *grad_values, *q, *out, *grad_q, *p, *grad_p;
};

}  // namespace cutaway
