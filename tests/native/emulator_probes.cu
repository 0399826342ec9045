// SPDX-License-Identifier: Apache-2.0
//
// Small kernels whose traffic and faults are known by hand, and the intrinsics on arrays: to test the emulator with.
#include <cuda_fp16.h>

#include "device_memory.cuh"
#include "host_report.h"

using mdconv::load_global_if;
using mdconv::load_shared;
using mdconv::store_global_if;
using mdconv::store_shared;

namespace {

struct ProbeParams {
    unsigned char const* x;
    unsigned char* y;
    int32_t a, b;
};

// Thread t reads V at byte a + b t and keeps the last thread's.
template <typename V>
__global__ void read_global(ProbeParams const p) {
    V const value = load_global_if<V>(true, p.x + p.a + p.b * static_cast<int32_t>(threadIdx.x));
    store_global_if<V>(threadIdx.x == blockDim.x - 1, p.y, value);
}

// Every a-th thread writes four bytes at its place.
__global__ void write_some(ProbeParams const p) {
    bool const wanted = static_cast<int32_t>(threadIdx.x) % p.a == 0;
    store_global_if<uint32_t>(wanted, p.y + 4 * threadIdx.x, threadIdx.x);
}

// Lane t wants the pass t % 2 only. Grouped by pass, each of the two requests has every other lane.
__global__ void take_turns(ProbeParams const p) {
    uint32_t sum = 0;
    for (uint32_t pass = 0; pass < 2; ++pass) {
        sum += load_global_if<uint32_t>(threadIdx.x % 2 == pass, p.x + 4 * threadIdx.x);
    }
    store_global_if<uint32_t>(true, p.y + 4 * threadIdx.x, sum);
}

// Thread t writes, then reads, V at byte a t of shared memory.
template <typename V>
__global__ void touch_shared(ProbeParams const p) {
    auto const offset = static_cast<uint32_t>(p.a) * threadIdx.x;
    store_shared<V>(offset, V{});
    __syncthreads();
    V const value = load_shared<V>(offset);
    store_global_if<V>(false, p.y, value);
}

// Sums over pairs of neighbours, twice. Each barrier is needed: the first for reading what the neighbour wrote, the
// second because the neighbour reads what is overwritten then, the third as the first.
__global__ void neighbours(ProbeParams const p) {
    uint32_t const here = 4 * threadIdx.x;
    uint32_t const other = 4 * (threadIdx.x ^ 1);
    store_shared<uint32_t>(here, threadIdx.x);
    __syncthreads();
    uint32_t const sum = threadIdx.x + load_shared<uint32_t>(other);
    __syncthreads();
    store_shared<uint32_t>(here, sum);
    __syncthreads();
    store_global_if<uint32_t>(true, p.y + here, sum + load_shared<uint32_t>(other));
}

// All threads write the same word: a race even though the values are equal.
__global__ void write_together(ProbeParams const) { store_shared<uint32_t>(0, 1); }

// Shared memory is not carried from block to block.
__global__ void read_what_the_last_block_wrote(ProbeParams const p) {
    if (blockIdx.x == 0) {
        store_shared<uint32_t>(4 * threadIdx.x, 7);
    } else {
        store_global_if<uint32_t>(true, p.y + 4 * threadIdx.x, load_shared<uint32_t>(4 * threadIdx.x));
    }
}

__global__ void end_early(ProbeParams const p) {
    if (static_cast<int32_t>(threadIdx.x) == p.a) {
        return;
    }
    __syncthreads();
}

__global__ void meet_in_two_places(ProbeParams const p) {
    if (static_cast<int32_t>(threadIdx.x) < p.a) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

// Where a thread stands in the grid, as one number.
__global__ void count_threads(ProbeParams const p) {
    uint32_t const block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    uint32_t const thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    uint32_t const all = blockDim.x * blockDim.y * blockDim.z;
    __syncthreads();
    store_global_if<uint32_t>(true, p.y + 4 * (block * all + thread), block * all + thread);
}

using Probe = void (*)(ProbeParams);
constexpr Probe kProbes[] = {
    read_global<uint8_t>,  read_global<uint32_t>,          read_global<uint4>,  write_some,          take_turns,
    touch_shared<uint8_t>, touch_shared<uint32_t>,         touch_shared<uint2>, touch_shared<uint4>, neighbours,
    write_together,        read_what_the_last_block_wrote, end_early,           meet_in_two_places,  count_threads,
};

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Launches kProbes[probe]; `y` has `y_bytes` bytes, and while accesses are checked nothing else may be touched.
int32_t run_probe(int32_t probe, uint32_t const* grid, uint32_t const* block, uint32_t shared_bytes,
                  unsigned char const* x, uint32_t x_bytes, unsigned char* y, uint32_t y_bytes, int32_t a, int32_t b,
                  HostOptions const* options, HostReport* report) {
    auto const begin = [](void const* start) { return reinterpret_cast<uint64_t>(start); };
    ProbeParams params{x, y, a, b};
    void* arguments[] = {&params};
    return observed(*options, {{begin(x), begin(x) + x_bytes, false}, {begin(y), begin(y) + y_bytes, true}}, report,
                    [&] {
                        return cudaLaunchKernel(kProbes[probe], dim3(grid[0], grid[1], grid[2]),
                                                dim3(block[0], block[1], block[2]), arguments, shared_bytes, nullptr);
                    });
}

int32_t allow_shared(int32_t probe, int32_t bytes) {
    return cudaFuncSetAttribute(kProbes[probe], cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

void plant_error(int32_t error) { emulated::fail_next_launch(static_cast<cudaError_t>(error)); }
int32_t last_error() { return cudaGetLastError(); }
int32_t peek_error() { return cudaPeekAtLastError(); }

void half_to_float(int32_t n, uint16_t const* in, float* out) {
    for (int32_t i = 0; i < n; ++i) {
        out[i] = __half2float(__ushort_as_half(in[i]));
    }
}

void float_to_half(int32_t n, float const* in, uint16_t* out) {
    for (int32_t i = 0; i < n; ++i) {
        out[i] = __half_as_ushort(__float2half_rn(in[i]));
    }
}

// `out` has six results for each i: sum, product, fused, fused and clamped, smaller, larger, all of a, b (and c).
void half_arithmetic(int32_t n, uint16_t const* a, uint16_t const* b, uint16_t const* c, uint16_t* out) {
    for (int32_t i = 0; i < n; ++i, out += 6) {
        __half2 const x = __half2half2(__ushort_as_half(a[i]));
        __half2 const y = __halves2half2(__ushort_as_half(b[i]), __ushort_as_half(c[i]));
        __half2 const z = __low2half2(y);
        __half2 const w = __high2half2(y);
        __half2 const results[] = {__hadd2(x, z),        __hmul2(x, z), __hfma2(x, z, w),
                                   __hfma2_sat(x, z, w), __hmin2(x, z), __hmax2(x, z)};
        for (int32_t j = 0; j < 6; ++j) {
            out[j] = __half_as_ushort(__high2half(results[j]));
        }
    }
}

void word_arithmetic(int32_t n, uint32_t const* a, uint32_t const* b, uint32_t const* c, uint32_t* out) {
    for (int32_t i = 0; i < n; ++i, out += 4) {
        out[0] = static_cast<uint32_t>(
            __dp4a(static_cast<int32_t>(a[i]), static_cast<int32_t>(b[i]), static_cast<int32_t>(c[i])));
        out[1] = __byte_perm(a[i], b[i], c[i]);
        out[2] = __umulhi(a[i], b[i]);
        out[3] = __funnelshift_r(a[i], b[i], c[i]);
    }
}

void round_to_int(int32_t n, float const* in, int32_t* out) {
    for (int32_t i = 0; i < n; ++i) {
        out[i] = __float2int_rn(in[i]);
    }
}
}
#pragma GCC visibility pop
