// The kernels of this processor's best instruction set beside the portable ones, without Python: for a target that
// runs under an emulator (scripts/check/neon.sh). Prints what differs; exit code 1 if anything does.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "runtime/attention.hpp"
#include "core/half.hpp"
#include "core/isa.hpp"
#include "runtime/matmul.hpp"
#include "runtime/recurrence.hpp"
#include "core/thread_pool.hpp"
#include "runtime/vectors.hpp"

extern "C" {
int32_t cutaway_isa_use(int32_t level);
int64_t cutaway_packed_bytes(int32_t type, int64_t rows, int64_t columns);
int64_t cutaway_pack(int32_t type, const uint8_t* in, int64_t rows, int64_t columns, uint8_t* out, int32_t threads);
void cutaway_multiply(const cutaway::Matrix* matrix, const cutaway::Vectors* in, int32_t tokens, float* out, int32_t threads,
                      cutaway::Parallel parallel);
}

namespace {

using namespace cutaway;

uint64_t state = 1;
uint32_t number() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 33);
}
float real() { return static_cast<float>(number() % 20001) / 10000.0f - 1.0f; }

int faults = 0;
void hold(bool right, const char* what, int type, int count) {
    if (right) return;
    std::printf("%s differs (type %d, %d)\n", what, type, count);
    ++faults;
}

bool near(const std::vector<float>& a, const std::vector<float>& b, float tolerance) {
    float most = 0.0f, apart = 0.0f;
    for (size_t i = 0; i < a.size(); ++i) {
        if (!std::isfinite(a[i])) return false;
        most = std::fmax(most, std::fabs(b[i]));
        apart = std::fmax(apart, std::fabs(a[i] - b[i]));
    }
    return apart <= tolerance * most;
}

struct Kind {
    int32_t type;
    int block, bytes;
    int halves[2];  // where finite halves must stand, -1 for none
};
constexpr Kind kKinds[] = {
    {kF32, 1, 4, {-1, -1}},   {kF16, 1, 2, {-1, -1}},  {kBF16, 1, 2, {-1, -1}},    {kQ4_0, 32, 18, {0, -1}},
    {kQ4_1, 32, 20, {0, 2}},  {kQ5_0, 32, 22, {0, -1}}, {kQ5_1, 32, 24, {0, 2}},   {kQ8_0, 32, 34, {0, -1}},
    {kQ2_K, 256, 84, {80, 82}}, {kQ3_K, 256, 110, {108, -1}}, {kIQ4_NL, 32, 18, {0, -1}}, {kIQ4_XS, 256, 136, {0, -1}},
    {kMXFP4, 32, 17, {-1, -1}}, {kQ4_K, 256, 144, {0, 2}}, {kQ5_K, 256, 176, {0, 2}}, {kQ6_K, 256, 210, {208, -1}},
};

// Random weights, or below 256 ones whose bytes are all the same.
constexpr int kRandom = 256;
std::vector<uint8_t> weights(const Kind& kind, int rows, int columns, int byte) {
    std::vector<uint8_t> out(static_cast<size_t>(rows) * (columns / kind.block) * kind.bytes);
    for (uint8_t& each : out) each = static_cast<uint8_t>(byte == kRandom ? number() : byte);
    for (size_t at = 0; at < out.size(); at += static_cast<size_t>(kind.bytes)) {
        const float value = real();
        const uint16_t half = float_to_half(value);
        const uint32_t bits = std::bit_cast<uint32_t>(value);
        if (kind.type == kF32) std::memcpy(&out[at], &value, 4);
        if (kind.type == kF16) std::memcpy(&out[at], &half, 2);
        if (kind.type == kBF16) {
            const uint16_t top = static_cast<uint16_t>(bits >> 16);
            std::memcpy(&out[at], &top, 2);
        }
        if (kind.type == kMXFP4) out[at] = static_cast<uint8_t>(120 + out[at] % 8);  // 2^(that - 128)
        for (const int place : kind.halves) {
            const uint16_t scale = float_to_half(real());
            if (place >= 0) std::memcpy(&out[at + static_cast<size_t>(place)], &scale, 2);
        }
    }
    return out;
}

std::vector<float> product(const Kind& kind, int rows, int columns, const std::vector<uint8_t>& panels,
                           std::vector<float> x, int tokens) {
    const int64_t width = (columns + 31) / 32 * 32, groups = width / 32;
    std::vector<int8_t> q(static_cast<size_t>(tokens * width));
    std::vector<float> rounded(q.size());
    std::vector<uint16_t> bf16(q.size());
    std::vector<float> scale(static_cast<size_t>(tokens * groups)), shift(scale.size());
    std::vector<int32_t> lacks(kLacks * scale.size());
    std::vector<float> out(static_cast<size_t>(tokens * ((rows + 15) / 16 * 16)));
    const Matrix matrix = {panels.data(), nullptr, kind.type, rows, columns, 0};
    const Vectors in = {x.data(),     rounded.data(), bf16.data(), q.data(), scale.data(),
                        shift.data(), lacks.data(),   width,       static_cast<int64_t>(q.size()) / width};
    cutaway_multiply(&matrix, &in, tokens, out.data(), 1, nullptr);
    return out;
}

// The largest sums that there are too: of equal weights and equal numbers.
void products(int32_t best, const Kind& kind, int byte) {
    const int rows = 37, columns = kind.block == 1 ? 75 : 3 * kind.block;
    const std::vector<uint8_t> in = weights(kind, rows, columns, byte);
    std::vector<uint8_t> panels(static_cast<size_t>(cutaway_packed_bytes(kind.type, rows, columns)));
    hold(cutaway_pack(kind.type, in.data(), rows, columns, panels.data(), 2) == -1, "packing", kind.type, 0);
    for (int tokens = 1; tokens <= 17; tokens += tokens < 7 ? 1 : 10) {
        const int width = (columns + 31) / 32 * 32;
        std::vector<float> x(static_cast<size_t>(tokens * width));
        for (int i = 0; i < tokens * width; ++i) {
            const float each = byte == kRandom ? real() : 1.0f;
            x[static_cast<size_t>(i)] = i % width < columns ? each : 0.0f;
        }
        cutaway_isa_use(0);
        const std::vector<float> portable = product(kind, rows, columns, panels, x, tokens);
        cutaway_isa_use(best);
        const std::vector<float> ours = product(kind, rows, columns, panels, x, tokens);
        const bool floats = kind.type == kF32 || kind.type == kF16;
        hold(floats ? near(ours, portable, 1e-5f) : ours == portable, "a product", kind.type, tokens);
    }
}

// Some rows over a page whose keys and values are filled with numbers.
void attend(int32_t best, PageOf page, const char* what, const uint64_t* chosen = nullptr) {
    constexpr int rows = 7;
    std::vector<uint16_t> keys(static_cast<size_t>(PageOf::halves(page.cache, page.key_size)));
    std::vector<uint16_t> values(static_cast<size_t>(PageOf::halves(page.cache, page.value_stride)));
    const auto size = static_cast<size_t>(page.key_size), stride = static_cast<size_t>(page.value_stride);
    page.keys = page.latent > 0 ? values.data() : keys.data();
    page.values = values.data();
    std::vector<float> query(rows * size), key(size), value(stride);
    for (int s = 0; s < kPage; ++s) {
        for (float& each : key) each = real();
        for (float& each : value) each = real();
        if (page.latent == 0) store_key(page, s, key.data());
        store_value(page, page.latent > 0 ? page.key_size : 24, s, value.data());
    }
    for (float& each : query) each = real();
    Look looks[rows];
    for (int r = 0; r < rows; ++r) looks[r] = {query.data() + r * page.key_size, 3 * r, 128 - 17 * r, 0.0f, 0, chosen};
    const size_t mixed_size = rows * static_cast<size_t>(page.mixed());
    std::vector<float> mixed[2] = {std::vector<float>(mixed_size), std::vector<float>(mixed_size)};
    Gathered gathered[2][rows];
    for (const int which : {0, 1}) {
        cutaway_isa_use(which == 0 ? 0 : best);
        attend_page(page, looks, rows, 0.0f, mixed[which].data(), gathered[which]);
    }
    hold(near(mixed[1], mixed[0], 1e-5f), what, page.cache, rows);
    for (int r = 0; r < rows; ++r) {
        hold(std::fabs(gathered[1][r].weight - gathered[0][r].weight) < 1e-4f, "a sum of weights", page.cache, r);
    }
}

void attention(int32_t best) {
    const uint64_t chosen[] = {0x8000100000050013u, 0x0001000000200481u};
    for (const int32_t cache : {kHalves, kBytes, kNibbles}) {
        attend(best, {nullptr, nullptr, 24, 32, cache}, "attention");
        attend(best, {nullptr, nullptr, 96, 96, cache, 64}, "latent attention");
        attend(best, {nullptr, nullptr, 96, 96, cache, 64}, "attention to chosen latents", chosen);
    }
}

// A head's state over some tokens, by both rules; a unit vector; and a short convolution.
void recurrence(int32_t best) {
    constexpr int64_t rows = 10, stride = 32, channels = 37, taps = 4;
    std::vector<float> decay(rows);
    for (float& each : decay) each = 0.9f + 0.1f * real();
    for (const int way : {0, 1, 2, 3}) {  // without the delta rule and by it, one decay for all rows and one for each
        const bool delta = way % 2 != 0;
        std::vector<float> state[2] = {std::vector<float>(rows * stride), std::vector<float>(rows * stride)};
        for (int token = 0; token < 5; ++token) {
            std::vector<float> key(rows), query(rows), value(stride), z[2] = {value, value};
            for (std::vector<float>* each : {&key, &query, &value}) {
                for (float& x : *each) x = real();
            }
            for (const int which : {0, 1}) {
                cutaway_isa_use(which == 0 ? 0 : best);
                change_state(state[which].data(), rows, stride, decay.data(), way / 2, delta, key.data(), 0.7f, value.data(),
                             query.data(), z[which].data());
            }
            hold(z[1] == z[0] && state[1] == state[0], "a recurrence", way, token);
        }
    }
    std::vector<float> x(channels), weights(channels * taps), bias(channels);
    for (std::vector<float>* each : {&x, &weights, &bias}) {
        for (float& one : *each) one = real();
    }
    std::vector<float> united[2] = {x, x}, tail[2], y[2] = {x, x};
    for (const int which : {0, 1}) {
        cutaway_isa_use(which == 0 ? 0 : best);
        unit(united[which].data(), channels);
        tail[which].resize(channels * (taps - 1));
        for (int token = 0; token < 6; ++token) {
            convolve(x.data(), channels, taps, weights.data(), bias.data(), token % 2 == 0, tail[which].data(), y[which].data());
        }
    }
    hold(near(united[1], united[0], 1e-6f), "a unit vector", 0, channels);
    hold(near(y[1], y[0], 1e-6f) && tail[1] == tail[0], "a convolution", 0, channels);
}

void between(int32_t best) {
    std::vector<float> x(96), weight(96);
    for (float& each : x) each = 3.0f * real();
    for (float& each : weight) each = real();
    const float curve[] = {0.8f, 0.9f, 0.5f, -1e-6f};
    for (int kind = kSilu; kind <= kSigmoid; ++kind) {
        std::vector<float> out[2] = {x, x};
        const Activation by = {curve, kind, kind % 2 == 0 ? 0.0f : 1.5f};
        for (const int which : {0, 1}) {
            cutaway_isa_use(which == 0 ? 0 : best);
            activate(by, out[which].data(), weight.data(), 96);
        }
        hold(near(out[1], out[0], 1e-6f), "an activation", kind, 96);
    }
    std::vector<float> normed[2] = {x, x};
    for (const int which : {0, 1}) {
        cutaway_isa_use(which == 0 ? 0 : best);
        rms_norm(x.data(), weight.data(), 91, 1e-5f, normed[which].data());
    }
    hold(near(normed[1], normed[0], 1e-6f), "a norm", 0, 91);
    for (const int which : {0, 1}) {
        cutaway_isa_use(which == 0 ? 0 : best);
        layer_norm(x.data(), weight.data(), weight.data(), 91, 1e-5f, normed[which].data());
    }
    hold(near(normed[1], normed[0], 1e-6f), "a layer norm", 0, 91);
}

}  // namespace

int main() {
    const int32_t best = static_cast<int32_t>(best_isa());
    std::printf("instruction set %d, dot products %d\n", best, has_dot_products());
    for (const Kind& kind : kKinds) {
        for (const int byte : {kRandom, 0xff, 0x80, 0x00}) products(best, kind, kind.block == 1 ? kRandom : byte);
    }
    attention(best);
    recurrence(best);
    between(best);
    std::printf(faults == 0 ? "same as the portable kernels\n" : "%d faults\n", faults);
    return faults == 0 ? 0 : 1;
}
