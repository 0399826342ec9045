// SPDX-License-Identifier: Apache-2.0
//
// What is computed: one MD-Conv layer on one shape.
#pragma once

#include <cstdint>
#include <cstring>

namespace mdconv {

enum class DataType : int32_t { kFloat32 = 0, kFloat16 = 1, kInt8 = 2 };

// Where the element (n, c, h, w) of an (N, C, H, W) tensor lies. X and Y have the same layout.
enum class Layout : int32_t {
    kLinear = 0,  // NCHW
    kChw4 = 1,    // int8: (N, ceil(C / 4), H, W, 4)
    kChw32 = 2,   // int8: (N, ceil(C / 32), H, W, 32)
    kHwc8 = 3,    // float16: (N, H, W, C rounded up to a multiple of 8)
};

enum class Activation : int32_t { kNone = 0, kRelu = 1, kRelu6 = 2, kHardswish = 3 };

// A group is a run of channels that share a kernel size.
constexpr int32_t kMaxGroups = 8;

// One MD-Conv layer on one shape. The output is (N, C, ceil(H / stride), ceil(W / stride)); padding is size / 2 a side.
struct Problem {
    DataType type;
    Layout layout;
    Activation activation;
    int32_t batch;
    int32_t channels;
    int32_t height;
    int32_t width;
    int32_t stride;                      // 1 or 2
    int32_t groups;                      // 1 to kMaxGroups
    int32_t kernel_sizes[kMaxGroups];    // each 3, 5 or 7
    int32_t channel_splits[kMaxGroups];  // sums to channels
    float x_scale;                       // int8 only: the real value of an input code
    float y_scale;                       // int8 only: the real value of an output code
};

// Bit by bit, unused entries included: a problem is made once and copied.
inline bool operator==(Problem const& a, Problem const& b) { return std::memcmp(&a, &b, sizeof(Problem)) == 0; }

}  // namespace mdconv
