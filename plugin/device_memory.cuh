// SPDX-License-Identifier: Apache-2.0
//
// The only ways in which the kernels touch memory. On a CPU the same names come from the emulator, which counts and
// checks every access (host/include/emulated_memory.h).
#pragma once

#ifndef __CUDACC__
#include <emulated_memory.h>
#else

#include <cuda_runtime.h>

#include <cstdint>

namespace mdconv {

// V is one of uint8_t, uint16_t, uint32_t, uint2, uint4; an address is aligned to its size.

// Reads global memory that nothing writes while the kernel runs.
template <typename V>
__device__ __forceinline__ V load_global(void const* address) {
    return __ldg(static_cast<V const*>(address));
}

// The same, or zeros where `wanted` is false. All threads of a warp come here together, wanted or not.
template <typename V>
__device__ __forceinline__ V load_global_if(bool wanted, void const* address) {
    V value{};
    if (wanted) {
        value = __ldg(static_cast<V const*>(address));
    }
    return value;
}

template <typename V>
__device__ __forceinline__ void store_global_if(bool wanted, void* address, V value) {
    if (wanted) {
        *static_cast<V*>(address) = value;
    }
}

__device__ __forceinline__ unsigned char* shared_bytes() {
    extern __shared__ uint4 dynamic[];
    return reinterpret_cast<unsigned char*>(dynamic);
}

// `offset` counts bytes from the start of the block's dynamic shared memory. It is signed, so that the compiler may
// take a constant part of it into the instruction.
template <typename V>
__device__ __forceinline__ V load_shared(int32_t offset) {
    return *reinterpret_cast<V const*>(shared_bytes() + offset);
}

template <typename V>
__device__ __forceinline__ void store_shared(int32_t offset, V value) {
    *reinterpret_cast<V*>(shared_bytes() + offset) = value;
}

template <typename V>
__device__ __forceinline__ void store_shared_if(bool wanted, int32_t offset, V value) {
    if (wanted) {
        *reinterpret_cast<V*>(shared_bytes() + offset) = value;
    }
}

}  // namespace mdconv

#endif
