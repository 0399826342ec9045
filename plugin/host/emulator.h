// SPDX-License-Identifier: Apache-2.0
//
// Runs kernels on a CPU: blocks one after the other, the threads of a block as fibers that meet at __syncthreads().
// What kernels and their callers need of it is declared in include/; here is what tests ask of it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <vector>

namespace emulated {

// Global memory that kernels may touch. While accesses are checked, any other is a finding.
struct Region {
    uint64_t begin, end;
    bool writable;
};

struct Options {
    bool count = false;           // requests, sectors and wavefronts
    bool check = false;           // races, reads of shared memory that nobody wrote, global accesses outside `regions`
    int drop_barrier = -1;        // the barrier site (numbered as the first thread meets them) that does nothing
    std::vector<Region> regions;  // empty: anywhere
};

// A request is one access by a warp. Sectors are the distinct 32 bytes that it touches. Wavefronts are the passes that
// shared memory needs for it, `minimum_wavefronts` those that it would need without bank conflicts.
struct GlobalTraffic {
    uint64_t requests, sectors;
};

struct SharedTraffic {
    uint64_t requests, wavefronts, minimum_wavefronts;
};

struct SiteTraffic {
    std::string place;  // the line, the direction and the bytes of an access
    SharedTraffic traffic;
};

struct Report {
    GlobalTraffic global_load, global_store;
    SharedTraffic shared_load, shared_store;
    uint64_t launches, blocks;
    uint64_t barrier_sites;
    uint64_t findings;
    std::vector<SiteTraffic> sites;     // of shared memory
    std::vector<std::string> messages;  // of the first findings, and what ended a launch
};

// Of all launches that follow. Not for use by two threads at once, as the launches themselves.
void set_options(Options options);

// What happened since the last call.
Report take_report();

// The next launch does nothing and returns `error`, as a launch does on a broken device.
void fail_next_launch(cudaError_t error);

}  // namespace emulated
