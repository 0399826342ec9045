// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include <cmath>
#include <limits>

#include "launch_shape.h"
#include "mdconv_kernel.cuh"
#include "mdconv_kernel.h"

namespace mdconv {

namespace {

constexpr Tactic kPlanarTactics[] = {{7, 224}, {14, 224}, {4, 224}, {7, 128}, {14, 128}, {4, 128}};
constexpr Tactic kWideTactics[] = {{14, 448}, {7, 448}, {4, 448}, {14, 256}, {7, 256}};
constexpr Tactic kFloatTactics[] = {{7, 224}, {4, 224}, {7, 128}, {4, 128}};
constexpr Tactic kPairTactics[] = {{7, 256}, {4, 256}, {7, 128}, {4, 128}};

// A thread of stride 2 has half the rows, from as many input rows.
Tactic for_stride(Tactic tactic, int32_t stride) { return {(tactic.rows + stride - 1) / stride, tactic.threads}; }

struct TacticList {
    Tactic const* first;
    int32_t count;
};

template <int32_t kCount>
TacticList list_of(Tactic const (&tactics)[kCount]) {
    return {tactics, kCount};
}

TacticList tactics_of(DataType type, Layout layout) {
    switch (layout) {
        case Layout::kHwc8:
            return list_of(kPairTactics);
        case Layout::kChw32:
            return list_of(kWideTactics);
        default:
            return type == DataType::kFloat32 ? list_of(kFloatTactics) : list_of(kPlanarTactics);
    }
}

bool has_layout(DataType type, Layout layout) {
    switch (layout) {
        case Layout::kLinear:
            return true;
        case Layout::kChw4:
        case Layout::kChw32:
            return type == DataType::kInt8;
        case Layout::kHwc8:
            return type == DataType::kFloat16;
    }
    return false;
}

bool is_interleaved_half(Problem const& problem) { return problem.layout == Layout::kHwc8; }

LaunchShape shape_of(Problem const& problem, Tactic tactic) {
    return is_interleaved_half(problem) ? shape_of_interleaved_half(problem, tactic) : shape_of_planar(problem, tactic);
}

Kernel kernel_of(Problem const& problem, int32_t rows) {
    bool const hardswish = problem.activation == Activation::kHardswish;
    switch (problem.type) {
        case DataType::kFloat32:
            return float_kernel(problem.stride, rows, hardswish);
        case DataType::kFloat16:
            return half_kernel(problem.layout, problem.stride, rows, hardswish);
        case DataType::kInt8:
            return int8_kernel(problem.layout, problem.stride, rows, hardswish);
    }
    return nullptr;
}

// The bounds that an activation puts on the output; int8: in units of y_scale, with those of the codes.
void set_bounds(Problem const& problem, KernelParams& params) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    bool const int8 = problem.type == DataType::kInt8;
    float low = int8 ? -128.0f : -kInfinity;
    float high = int8 ? 127.0f : kInfinity;
    if (problem.activation == Activation::kRelu || problem.activation == Activation::kRelu6) {
        low = 0.0f;
    }
    if (problem.activation == Activation::kRelu6) {
        high = int8 ? std::fmin(6.0f / problem.y_scale, high) : 6.0f;
    }
    params.low = low;
    params.high = high;
}

bool is_scale(float value) { return std::isfinite(value) && value > 0.0f; }

bool is_aligned(void const* address) { return address != nullptr && reinterpret_cast<uintptr_t>(address) % 16 == 0; }

bool are_usable(Problem const& problem, Tensors const& tensors) {
    bool const scaled = problem.type != DataType::kInt8 || is_aligned(tensors.weight_scale);
    return scaled && is_aligned(tensors.x) && is_aligned(tensors.weight) && is_aligned(tensors.bias) &&
           is_aligned(tensors.y);
}

}  // namespace

int32_t tactic_count(DataType type, Layout layout) {
    return has_layout(type, layout) ? tactics_of(type, layout).count : 0;
}

char const* why_unsupported(Problem const& problem) {
    if (problem.type < DataType::kFloat32 || problem.type > DataType::kInt8) {
        return "type is none of float32, float16, int8";
    }
    if (!has_layout(problem.type, problem.layout)) {
        return "layout is not one of the type's: linear for all, CHW4 and CHW32 for int8, HWC8 for float16";
    }
    if (problem.activation < Activation::kNone || problem.activation > Activation::kHardswish) {
        return "activation is none of none, relu, relu6, hardswish";
    }
    if (problem.stride != 1 && problem.stride != 2) {
        return "stride is neither 1 nor 2";
    }
    if (problem.batch < 1 || problem.channels < 1 || problem.height < 1 || problem.width < 1) {
        return "batch, channels, height and width must be at least 1";
    }
    if (problem.batch > 65535 || problem.channels > 65535 || problem.height > 65535 || problem.width > 65535) {
        return "batch, channels, height and width must be at most 65535";
    }
    // A tile's bytes are counted in 32 bits, whole planes of several channels among them.
    if (static_cast<int64_t>(problem.height) * problem.width > (int64_t{1} << 28)) {
        return "height * width must be at most 2^28";
    }
    if (problem.groups < 1 || problem.groups > kMaxGroups) {
        return "kernel_sizes must have 1 to 8 entries";
    }
    int64_t channels = 0;
    for (int32_t i = 0; i < problem.groups; ++i) {
        int32_t const size = problem.kernel_sizes[i];
        if (size != 3 && size != 5 && size != 7) {
            return "kernel_sizes must each be 3, 5 or 7";
        }
        if (problem.channel_splits[i] < 1) {
            return "channel_splits must each be at least 1";
        }
        channels += problem.channel_splits[i];
    }
    if (channels != problem.channels) {
        return "channel_splits must sum to the channels of X";
    }
    if (problem.type == DataType::kInt8 && (!is_scale(problem.x_scale) || !is_scale(problem.y_scale))) {
        return "x_scale and y_scale must be positive and finite";
    }
    return nullptr;
}

cudaError_t prepare(Problem const& problem, int32_t tactic, PreparedLaunch* prepared) {
    if (why_unsupported(problem) != nullptr || tactic < 1 || tactic > tactic_count(problem.type, problem.layout)) {
        return cudaErrorInvalidValue;
    }
    Tactic const chosen = for_stride(tactics_of(problem.type, problem.layout).first[tactic - 1], problem.stride);
    LaunchShape shape = shape_of(problem, chosen);
    if (!is_interleaved_half(problem)) {
        spread_over_banks(problem, chosen, shape);
    }
    KernelParams params = shape.params;
    set_bounds(problem, params);
    Kernel const kernel = kernel_of(problem, chosen.rows);
    prepared->problem = problem;
    prepared->params = params;
    prepared->plan = {shape.grid,
                      shape.block,
                      static_cast<size_t>(shape.shared_bytes),
                      reinterpret_cast<void const*>(kernel),
                      chosen.rows,
                      params.planes,
                      params.tile_rows,
                      params.tile_columns};
    return cudaSuccess;
}

int32_t default_tactic(Problem const& problem) {
    TacticList const tactics = tactics_of(problem.type, problem.layout);
    int32_t best = 1;
    LaunchShape best_shape = shape_of(problem, for_stride(tactics.first[0], problem.stride));
    for (int32_t i = 1; i < tactics.count; ++i) {
        LaunchShape const shape = shape_of(problem, for_stride(tactics.first[i], problem.stride));
        if (is_better(shape, best_shape)) {
            best_shape = shape;
            best = i + 1;
        }
    }
    return best;
}

cudaError_t plan_launch(Problem const& problem, int32_t tactic, LaunchPlan* plan) {
    PreparedLaunch prepared;
    cudaError_t const status = prepare(problem, tactic, &prepared);
    if (status == cudaSuccess) {
        *plan = prepared.plan;
    }
    return status;
}

cudaError_t launch(PreparedLaunch const& prepared, Tensors const& tensors, cudaStream_t stream) {
    if (!are_usable(prepared.problem, tensors)) {
        return cudaErrorInvalidValue;
    }
    KernelParams params = prepared.params;
    params.x = tensors.x;
    params.weight = tensors.weight;
    params.bias = tensors.bias;
    params.weight_scale = tensors.weight_scale;
    params.y = tensors.y;
    void* arguments[] = {&params};
    LaunchPlan const& plan = prepared.plan;
    auto const kernel = reinterpret_cast<Kernel>(const_cast<void*>(plan.kernel));
    return cudaLaunchKernel(kernel, plan.grid, plan.block, arguments, plan.shared_bytes, stream);
}

cudaError_t launch(Problem const& problem, Tensors const& tensors, int32_t tactic, cudaStream_t stream) {
    PreparedLaunch prepared;
    cudaError_t const status = prepare(problem, tactic, &prepared);
    return status == cudaSuccess ? launch(prepared, tensors, stream) : status;
}

}  // namespace mdconv
