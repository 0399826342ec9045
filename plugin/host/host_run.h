// SPDX-License-Identifier: Apache-2.0
//
// What tests and benchmarks call, through Python's ctypes: the kernels' API on host memory, and what the emulator saw.
#pragma once

#include <cstdint>

#include "host_report.h"
#include "mdconv_kernel.h"

#pragma GCC visibility push(default)
extern "C" {

struct HostPlan {
    uint32_t grid[3];
    uint32_t block[3];
    uint64_t shared_bytes;
    int32_t rows_per_thread, tile_planes, tile_rows, tile_columns;
};

// The functions of mdconv_kernel.h. Errors are values of cudaError_t.
int32_t mdconv_host_tactic_count(int32_t type, int32_t layout);
int32_t mdconv_host_default_tactic(mdconv::Problem const* problem);
char const* mdconv_host_why_unsupported(mdconv::Problem const* problem);
int32_t mdconv_host_plan(mdconv::Problem const* problem, int32_t tactic, HostPlan* plan);
int32_t mdconv_host_launch(mdconv::Problem const* problem, mdconv::Tensors const* tensors, int32_t tactic,
                           HostOptions const* options, HostReport* report);

// The same layer by the unfused sequence (benchmarks/kernels/unfused.h).
int32_t mdconv_host_launch_unfused(mdconv::Problem const* problem, mdconv::Tensors const* tensors,
                                   HostOptions const* options, HostReport* report);
}
#pragma GCC visibility pop
