// SPDX-License-Identifier: Apache-2.0
//
// How a problem is cut into blocks: host arithmetic.
#pragma once

#include <cuda_runtime_api.h>

#include "kernel_params.h"
#include "mdconv_kernel.cuh"

namespace mdconv {

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

LaunchShape shape_of_planar(Problem const& problem, Tactic tactic);

// Spends shared memory that is left on rows and planes that start on other banks.
void spread_over_banks(Problem const& problem, Tactic tactic, LaunchShape& shape);

LaunchShape shape_of_interleaved_half(Problem const& problem, Tactic tactic);

}  // namespace mdconv
