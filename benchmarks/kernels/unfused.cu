// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "unfused.cuh"
#include "unfused.h"

namespace unfused {

namespace {

using mdconv::DataType;
using mdconv::Problem;

constexpr int32_t kThreads = 256;
constexpr int64_t kSharedForTile = 40 * 1024;  // of 48 KiB: weights and rounding take the rest

int64_t element_bytes(DataType type) { return type == DataType::kFloat32 ? 4 : type == DataType::kFloat16 ? 2 : 1; }

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Bytes of one image's channel.
struct Planes {
    int64_t x, y;

    explicit Planes(Problem const& problem)
        : x(element_bytes(problem.type) * problem.height * problem.width),
          y(element_bytes(problem.type) * out(problem, problem.height) * out(problem, problem.width)) {}

    static int32_t out(Problem const& problem, int32_t size) { return (size + problem.stride - 1) / problem.stride; }
};

// Offsets in the workspace: the groups' inputs and outputs, then all outputs joined.
struct Workspace {
    int64_t x[mdconv::kMaxGroups];
    int64_t y[mdconv::kMaxGroups];
    int64_t joined;
    int64_t bytes = 0;

    explicit Workspace(Problem const& problem) {
        Planes const planes(problem);
        for (int32_t i = 0; i < problem.groups; ++i) {
            int64_t const count = int64_t{problem.batch} * problem.channel_splits[i];
            x[i] = take(count * planes.x);
            y[i] = take(count * planes.y);
        }
        joined = take(int64_t{problem.batch} * problem.channels * planes.y);
    }

    int64_t take(int64_t size) {
        int64_t const place = bytes;
        bytes += round_up(size, 256);
        return place;
    }
};

template <typename Params>
cudaError_t enqueue(void (*kernel)(Params), dim3 grid, int64_t shared_bytes, Params params, cudaStream_t stream) {
    void* arguments[] = {&params};
    return cudaLaunchKernel(kernel, grid, dim3(kThreads), arguments, static_cast<size_t>(shared_bytes), stream);
}

template <typename V>
cudaError_t copy_as(CopyParams params, int64_t runs, cudaStream_t stream) {
    auto const unit = static_cast<int64_t>(sizeof(V));
    params.run_items /= unit;
    params.source_stride /= unit;
    params.target_stride /= unit;
    dim3 const grid(static_cast<unsigned int>((params.run_items + kThreads - 1) / kThreads),
                    static_cast<unsigned int>(runs));
    return enqueue(copy_kernel<V>, grid, 0, params, stream);
}

// Sizes in bytes; as wide accesses as all of them allow.
cudaError_t copy(void const* source, void* target, int64_t run, int64_t source_stride, int64_t target_stride,
                 int64_t runs, cudaStream_t stream) {
    CopyParams const params{source, target, run, source_stride, target_stride};
    auto const together = reinterpret_cast<uint64_t>(source) | reinterpret_cast<uint64_t>(target) |
                          static_cast<uint64_t>(run | source_stride | target_stride);
    switch (together & (~together + 1)) {
        case 1:
            return copy_as<uint8_t>(params, runs, stream);
        case 2:
            return copy_as<uint16_t>(params, runs, stream);
        case 4:
            return copy_as<uint32_t>(params, runs, stream);
        case 8:
            return copy_as<uint2>(params, runs, stream);
        default:
            return copy_as<uint4>(params, runs, stream);
    }
}

template <typename T>
auto conv_of(int32_t size, int32_t stride) -> void (*)(ConvParams) {
    switch (size) {
        case 3:
            return stride == 1 ? conv_kernel<T, 3, 1> : conv_kernel<T, 3, 2>;
        case 5:
            return stride == 1 ? conv_kernel<T, 5, 1> : conv_kernel<T, 5, 2>;
        default:
            return stride == 1 ? conv_kernel<T, 7, 1> : conv_kernel<T, 7, 2>;
    }
}

auto conv_of(Problem const& problem, int32_t group) -> void (*)(ConvParams) {
    int32_t const size = problem.kernel_sizes[group];
    switch (problem.type) {
        case DataType::kFloat32:
            return conv_of<float>(size, problem.stride);
        case DataType::kFloat16:
            return conv_of<__half>(size, problem.stride);
        default:
            return conv_of<int8_t>(size, problem.stride);
    }
}

// Several small planes a block, or as many rows of a large one as fit.
void cut_into_tiles(ConvParams& params, int32_t size, int32_t stride, int64_t bytes) {
    int64_t const whole =
        bytes * (int64_t{params.height} * params.width + int64_t{params.out_height} * params.out_width) +
        4 * (size * size + 1);
    params.planes = static_cast<int32_t>(std::clamp<int64_t>(kSharedForTile / 4 / whole, 1, params.all_planes));
    params.tile_rows = params.out_height;
    int64_t const row = bytes * (int64_t{stride} * params.width + params.out_width);
    if (whole > kSharedForTile) {
        int64_t const halo = bytes * size * params.width;
        params.tile_rows = static_cast<int32_t>(std::max<int64_t>(1, (kSharedForTile - halo) / row));
    }
}

cudaError_t convolve(Problem const& problem, Tensors const& tensors, int32_t group, unsigned char const* x,
                     unsigned char* y, int32_t first_channel, cudaStream_t stream) {
    int64_t const bytes = element_bytes(problem.type);
    int32_t const size = problem.kernel_sizes[group];
    ConvParams params{};
    params.x = x;
    params.weight = tensors.weights[group];
    params.weight_scale = problem.type == DataType::kInt8 ? tensors.weight_scale + first_channel : nullptr;
    params.y = y;
    params.channels = problem.channel_splits[group];
    params.all_planes = int64_t{problem.batch} * params.channels;
    params.height = problem.height;
    params.width = problem.width;
    params.out_height = Planes::out(problem, problem.height);
    params.out_width = Planes::out(problem, problem.width);
    params.x_scale = problem.x_scale;
    params.y_scale = problem.y_scale;
    cut_into_tiles(params, size, problem.stride, bytes);

    bool const whole = params.tile_rows == params.out_height;
    int64_t const in_rows = whole ? int64_t{params.planes} * params.height : problem.stride * params.tile_rows + size;
    int64_t const out_rows = whole ? int64_t{params.planes} * params.out_height : params.tile_rows;
    int64_t const weight_offset = round_up(in_rows * params.width * bytes, kChunk) + kChunk;
    int64_t const out_offset = weight_offset + round_up(4 * params.planes * (size * size + 1), kChunk);
    params.weight_offset = static_cast<uint32_t>(weight_offset);
    params.out_offset = static_cast<uint32_t>(out_offset);
    int64_t const shared_bytes = out_offset + round_up(out_rows * params.out_width * bytes, kChunk) + kChunk;
    dim3 const grid(static_cast<unsigned int>((params.all_planes + params.planes - 1) / params.planes),
                    static_cast<unsigned int>((params.out_height + params.tile_rows - 1) / params.tile_rows));
    return enqueue(conv_of(problem, group), grid, shared_bytes, params, stream);
}

cudaError_t add_bias(Problem const& problem, Tensors const& tensors, unsigned char const* x, cudaStream_t stream) {
    bool const int8 = problem.type == DataType::kInt8;
    int64_t const bytes = element_bytes(problem.type);
    int64_t const plane = Planes(problem).y / bytes;
    BiasParams const params{x,
                            tensors.bias,
                            tensors.y,
                            int64_t{problem.batch} * problem.channels * plane,
                            problem.channels,
                            static_cast<int32_t>(plane),
                            problem.activation,
                            int8 ? problem.y_scale : 1.0f};
    int64_t const chunks = (params.elements * bytes + kChunk - 1) / kChunk;
    dim3 const grid(static_cast<unsigned int>((chunks + kThreads - 1) / kThreads));
    switch (problem.type) {
        case DataType::kFloat32:
            return enqueue(bias_kernel<float>, grid, 0, params, stream);
        case DataType::kFloat16:
            return enqueue(bias_kernel<__half>, grid, 0, params, stream);
        default:
            return enqueue(bias_kernel<int8_t>, grid, 0, params, stream);
    }
}

}  // namespace

size_t workspace_bytes(Problem const& problem) { return static_cast<size_t>(Workspace(problem).bytes); }

cudaError_t launch(Problem const& problem, Tensors const& tensors, cudaStream_t stream) {
    if (problem.layout != mdconv::Layout::kLinear) {
        return cudaErrorInvalidValue;
    }
    Planes const planes(problem);
    Workspace const offsets(problem);
    auto* const workspace = static_cast<unsigned char*>(tensors.workspace);
    cudaError_t error = cudaSuccess;
    auto const then = [&](auto const& step) { error = error == cudaSuccess ? step() : error; };
    auto const* const x = static_cast<unsigned char const*>(tensors.x);
    int32_t first = 0;
    for (int32_t i = 0; i < problem.groups; first += problem.channel_splits[i], ++i) {
        int64_t const count = problem.channel_splits[i];
        then([&] {
            return copy(x + first * planes.x, workspace + offsets.x[i], count * planes.x, problem.channels * planes.x,
                        count * planes.x, problem.batch, stream);
        });
        then([&] {
            return convolve(problem, tensors, i, workspace + offsets.x[i], workspace + offsets.y[i], first, stream);
        });
        then([&] {
            return copy(workspace + offsets.y[i], workspace + offsets.joined + first * planes.y, count * planes.y,
                        count * planes.y, problem.channels * planes.y, problem.batch, stream);
        });
    }
    then([&] { return add_bias(problem, tensors, workspace + offsets.joined, stream); });
    return error;
}

}  // namespace unfused
