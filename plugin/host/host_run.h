// SPDX-License-Identifier: Apache-2.0
//
// What tests and benchmarks call, through Python's ctypes: the kernels' API on host memory, and what the emulator saw.
#pragma once

#include <cstdint>

#include "../mdconv_kernel.h"

#pragma GCC visibility push(default)
extern "C" {

struct HostOptions {
    int32_t count;
    int32_t check;
    int32_t drop_barrier;  // -1: none
};

struct HostReport {
    uint64_t global_load_requests, global_load_sectors;
    uint64_t global_store_requests, global_store_sectors;
    uint64_t shared_load_requests, shared_load_wavefronts, shared_load_minimum;
    uint64_t shared_store_requests, shared_store_wavefronts, shared_store_minimum;
    uint64_t launches, blocks, barrier_sites, findings;
    char messages[4096];  // a line each
};

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

char const* mdconv_host_error_name(int32_t error);
}
#pragma GCC visibility pop
