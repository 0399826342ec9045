// SPDX-License-Identifier: Apache-2.0
//
// The emulator's options and report as Python's ctypes can hold them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "emulator.h"

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
    char sites[8192];     // of shared memory, a line each: place, requests, wavefronts, minimum; separated by tabs
};

char const* mdconv_host_error_name(int32_t error);
}
#pragma GCC visibility pop

// Does `run` under the options and fills the report; returns what `run` did.
int32_t observed(HostOptions const& options, std::vector<emulated::Region> regions, HostReport* report,
                 std::function<cudaError_t()> const& run);
