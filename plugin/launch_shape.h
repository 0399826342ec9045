// SPDX-License-Identifier: Apache-2.0
//
// How a problem is cut into blocks: host arithmetic.
#pragma once

#include <cuda_runtime_api.h>

#include "kernel_params.h"
#include "mdconv_kernel.cuh"

namespace mdconv {

constexpr int32_t kSharedOfBlock = 48 * 1024;  // without asking the driver for more

inline int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

inline int32_t round_up(int32_t value, int32_t multiple) { return ceil_div(value, multiple) * multiple; }

inline int32_t bytes_of(DataType type) { return type == DataType::kFloat32 ? 4 : type == DataType::kFloat16 ? 2 : 1; }

// Channels side by side in the layout.
inline int32_t group_of(Layout layout) {
    switch (layout) {
        case Layout::kLinear:
            return 1;
        case Layout::kChw4:
            return 4;
        case Layout::kChw32:
            return 32;
        case Layout::kHwc8:
            return 8;
    }
    return 1;
}

inline int32_t stored_channels(Problem const& problem) { return round_up(problem.channels, group_of(problem.layout)); }

struct LaunchShape {
    KernelParams params;  // but for the addresses and the bounds
    dim3 grid, block;
    int32_t shared_bytes;
    int32_t rank;  // 0: it does not fit; else the higher the better, whatever the cost
    double cost;   // modelled cycles on the smallest Jetson that we build for, for comparing shapes of one problem only
};

inline bool is_better(LaunchShape const& a, LaunchShape const& b) {
    return a.rank > b.rank || (a.rank == b.rank && a.cost < b.cost);
}

// What a shape has to have before its cost counts: it fits; little is read twice; half of a multiprocessor's warps can
// be resident.
int32_t rank_of(Problem const& problem, Tactic tactic, LaunchShape const& shape);

// Sets the shape's cost and rank.
void judge(Problem const& problem, Tactic tactic, LaunchShape& shape);

LaunchShape shape_of_planar(Problem const& problem, Tactic tactic);

// Spends shared memory that is left on rows and planes that start on other banks.
void spread_over_banks(Problem const& problem, Tactic tactic, LaunchShape& shape);

LaunchShape shape_of_interleaved_half(Problem const& problem, Tactic tactic);

}  // namespace mdconv
