// SPDX-License-Identifier: Apache-2.0
//
// How large a problem's tensors are, and a group's own weights: what runs the kernels must know, here or on a GPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "mdconv_problem.h"

inline uint64_t stored_channels(mdconv::Problem const& problem) {
    auto const up = [&](int32_t unit) { return static_cast<uint64_t>((problem.channels + unit - 1) / unit * unit); };
    switch (problem.layout) {
        case mdconv::Layout::kLinear:
            return up(1);
        case mdconv::Layout::kChw4:
            return up(4);
        case mdconv::Layout::kChw32:
            return up(32);
        case mdconv::Layout::kHwc8:
            return up(8);
    }
    return 0;
}

inline uint64_t element_bytes(mdconv::DataType type) {
    return type == mdconv::DataType::kFloat32 ? 4 : type == mdconv::DataType::kFloat16 ? 2 : 1;
}

inline uint64_t largest_kernel(mdconv::Problem const& problem) {
    return static_cast<uint64_t>(*std::max_element(problem.kernel_sizes, problem.kernel_sizes + problem.groups));
}

// Of each of mdconv::Tensors.
struct TensorBytes {
    uint64_t x, weight, bias, weight_scale, y;

    explicit TensorBytes(mdconv::Problem const& problem) {
        uint64_t const element = element_bytes(problem.type);
        uint64_t const planes = static_cast<uint64_t>(problem.batch) * stored_channels(problem) * element;
        auto const channels = static_cast<uint64_t>(problem.channels);
        auto const out = [&](int32_t size) {
            return static_cast<uint64_t>((size + problem.stride - 1) / problem.stride);
        };
        bool const int8 = problem.type == mdconv::DataType::kInt8;
        x = planes * static_cast<uint64_t>(problem.height) * static_cast<uint64_t>(problem.width);
        weight = channels * largest_kernel(problem) * largest_kernel(problem) * element;
        bias = channels * (int8 ? 4 : element);
        weight_scale = int8 ? channels * 4 : 0;
        y = planes * out(problem.height) * out(problem.width);
    }
};

// The weights of a group (C, 1, K, K) with its own K, of all weights (C, 1, K, K) with the largest K.
inline std::vector<unsigned char> weights_of_group(mdconv::Problem const& problem, unsigned char const* all,
                                                   int32_t group) {
    uint64_t first = 0;
    for (int32_t i = 0; i < group; ++i) {
        first += static_cast<uint64_t>(problem.channel_splits[i]);
    }
    uint64_t const element = element_bytes(problem.type);
    uint64_t const largest = largest_kernel(problem);
    auto const size = static_cast<uint64_t>(problem.kernel_sizes[group]);
    auto const channels = static_cast<uint64_t>(problem.channel_splits[group]);
    uint64_t const margin = (largest - size) / 2;
    std::vector<unsigned char> packed(channels * size * size * element);
    for (uint64_t row = 0; row < channels * size; ++row) {
        uint64_t const channel = first + row / size;
        uint64_t const from = (channel * largest + row % size + margin) * largest + margin;
        std::memcpy(packed.data() + row * size * element, all + from * element, size * element);
    }
    return packed;
}
