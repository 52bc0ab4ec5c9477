// What scripts/check/neon_counts.py counts: one product of a matrix for each line of standard input (a type by GGML's number,
// columns, rows, vectors), between two calls of `mark`. Compiled with our kernels, or as GGML with llama.cpp's.
#include <cstdint>
#include <cstdio>
#include <vector>

#if defined(GGML)
#include "ggml-backend.h"
#include "ggml-cpu.h"
#else
#include "core/thread_pool.hpp"
#include "runtime/matmul.hpp"
#endif

extern "C" __attribute__((noinline)) void mark() { __asm__ volatile(""); }

namespace {

std::vector<float> numbers(int64_t count) {
    std::vector<float> out(static_cast<size_t>(count));
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(i * 2654435761u % 2001) / 1000.0f - 1.0f;
    return out;
}

#if defined(GGML)
// Weights lie where llama.cpp's loader puts them: rearranged where it has a kernel for that.
ggml_backend_buffer_type_t place_for(ggml_backend_dev_t device, ggml_tensor* product, ggml_backend_buffer_type_t usual) {
    const auto extra = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
    for (ggml_backend_buffer_type_t* each = extra(device); each != nullptr && *each != nullptr; ++each) {
        product->src[0]->buffer = ggml_backend_buft_alloc_buffer(*each, 0);
        const bool takes = ggml_backend_dev_supports_op(device, product);
        ggml_backend_buffer_free(product->src[0]->buffer);
        product->src[0]->buffer = nullptr;
        if (takes) return *each;
    }
    return usual;
}

void multiply(int type, int64_t columns, int64_t rows, int64_t vectors) {
    static ggml_backend_t backend = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(backend, 1);
    ggml_context* of_weights = ggml_init({1 << 16, nullptr, true});
    ggml_context* of_vectors = ggml_init({1 << 20, nullptr, true});
    ggml_tensor* weights = ggml_new_tensor_2d(of_weights, static_cast<ggml_type>(type), columns, rows);
    ggml_tensor* x = ggml_new_tensor_2d(of_vectors, GGML_TYPE_F32, columns, vectors);
    ggml_tensor* y = ggml_mul_mat(of_vectors, weights, x);
    const auto place = place_for(ggml_backend_get_device(backend), y, ggml_backend_get_default_buffer_type(backend));
    ggml_backend_buffer_t room[] = {ggml_backend_alloc_ctx_tensors_from_buft(of_weights, place),
                                    ggml_backend_alloc_ctx_tensors(of_vectors, backend)};
    const std::vector<uint8_t> zeros(ggml_nbytes(weights));
    ggml_backend_tensor_set(weights, zeros.data(), 0, zeros.size());
    ggml_backend_tensor_set(x, numbers(columns * vectors).data(), 0, ggml_nbytes(x));
    ggml_cgraph* graph = ggml_new_graph(of_vectors);
    ggml_build_forward_expand(graph, y);
    mark();
    ggml_backend_graph_compute(backend, graph);
    mark();
    for (ggml_backend_buffer_t each : room) ggml_backend_buffer_free(each);
    ggml_free(of_vectors);
    ggml_free(of_weights);
}
#else
extern "C" {
int64_t cutaway_packed_bytes(int32_t type, int64_t rows, int64_t columns);
void cutaway_multiply(const cutaway::Matrix* matrix, const cutaway::Vectors* in, int32_t tokens, float* out, int32_t threads,
                      cutaway::Parallel parallel);
}

void multiply(int type, int64_t columns, int64_t rows, int64_t vectors) {
    using namespace cutaway;
    const std::vector<uint8_t> zeros(static_cast<size_t>(cutaway_packed_bytes(type, rows, columns)));
    std::vector<float> x = numbers(columns * vectors), rounded(x.size()), scale(x.size() / kGroup), shift(scale.size());
    std::vector<uint16_t> bf16(x.size());
    std::vector<int8_t> q(x.size());
    std::vector<int32_t> lacks(kLacks * scale.size());
    std::vector<float> y(static_cast<size_t>(rows * vectors));
    const Matrix weights = {zeros.data(), nullptr, type, static_cast<int32_t>(rows), static_cast<int32_t>(columns), 0};
    const Vectors in = {x.data(), rounded.data(), bf16.data(), q.data(), scale.data(), shift.data(), lacks.data(), columns, vectors};
    mark();
    cutaway_multiply(&weights, &in, static_cast<int32_t>(vectors), y.data(), 1, nullptr);
    mark();
}
#endif

}  // namespace

int main() {
    int type = 0, columns = 0, rows = 0, vectors = 0;
    while (std::scanf("%d %d %d %d", &type, &columns, &rows, &vectors) == 4) multiply(type, columns, rows, vectors);
    return 0;
}
