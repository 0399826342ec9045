// SPDX-License-Identifier: Apache-2.0
//
// Stands in for CUDA's header of this name: what device code is written in, for a C++ compiler. Shared memory is
// reached through emulated_memory.h only, so __shared__ is not defined, and neither are atomics and shuffles.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#define __host__
#define __device__
#define __global__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct alignas(8) uint2 {
    unsigned int x, y;
};

struct alignas(16) uint4 {
    unsigned int x, y, z, w;
};

inline uint2 make_uint2(unsigned int x, unsigned int y) { return {x, y}; }
inline uint4 make_uint4(unsigned int x, unsigned int y, unsigned int z, unsigned int w) { return {x, y, z, w}; }

// Of the thread that runs now.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

void __syncthreads(char const* file = __builtin_FILE(), int line = __builtin_LINE());

namespace emulated {

// Carries out a launch: `call` runs the kernel once, as one thread, with the parameter at `parameter`.
cudaError_t launch_kernel(void (*call)(void const* kernel, void const* parameter), void const* kernel, dim3 grid,
                          dim3 block, void const* parameter, size_t shared_bytes);

void allow_shared_bytes(void const* kernel, int bytes);

}  // namespace emulated

// A kernel takes one struct by value. The launch is over when this returns; streams make no difference.
template <typename Parameter>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameter), dim3 grid, dim3 block, void** arguments,
                             size_t shared_bytes = 0, cudaStream_t = nullptr) {
    auto const call = [](void const* function, void const* parameter) {
        reinterpret_cast<void (*)(Parameter)>(const_cast<void*>(function))(*static_cast<Parameter const*>(parameter));
    };
    return emulated::launch_kernel(call, reinterpret_cast<void const*>(kernel), grid, block, arguments[0],
                                   shared_bytes);
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

// More than 48 KiB of dynamic shared memory must be asked for first, as on a GPU.
template <typename Parameter>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameter), cudaFuncAttribute, int value) {
    emulated::allow_shared_bytes(reinterpret_cast<void const*>(kernel), value);
    return cudaSuccess;
}

using std::max;
using std::min;

namespace emulated {

template <typename To, typename From>
inline To bits_of(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

}  // namespace emulated

inline float __int_as_float(int bits) { return emulated::bits_of<float>(bits); }
inline float __uint_as_float(unsigned int bits) { return emulated::bits_of<float>(bits); }
inline int __float_as_int(float value) { return emulated::bits_of<int>(value); }
inline unsigned int __float_as_uint(float value) { return emulated::bits_of<unsigned int>(value); }

inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }

// NaN becomes 0.
inline float __saturatef(float value) { return value > 0.0f ? std::fmin(value, 1.0f) : 0.0f; }

// To nearest, half to even; saturates; NaN becomes 0.
inline int __float2int_rn(float value) {
    if (!(value < 2147483648.0f)) {
        return value == value ? INT32_MAX : 0;
    }
    return value < -2147483648.0f ? INT32_MIN : static_cast<int>(std::nearbyint(value));
}

// The sum of four products of signed bytes, and c.
inline int __dp4a(int a, int b, int c) {
    unsigned int sum = static_cast<unsigned int>(c);
    for (int shift = 0; shift < 32; shift += 8) {
        auto const left = static_cast<int8_t>(static_cast<unsigned int>(a) >> shift);
        auto const right = static_cast<int8_t>(static_cast<unsigned int>(b) >> shift);
        sum += static_cast<unsigned int>(left * right);
    }
    return static_cast<int>(sum);
}

// Byte i of the result is byte (selector >> 4 i) & 7 of y:x, or its sign eight times where the selector's bit 3 is set.
inline unsigned int __byte_perm(unsigned int x, unsigned int y, unsigned int selector) {
    uint64_t const bytes = static_cast<uint64_t>(y) << 32 | x;
    unsigned int result = 0;
    for (int i = 0; i < 4; ++i) {
        unsigned int const choice = selector >> (4 * i) & 15;
        auto byte = static_cast<unsigned int>(bytes >> (8 * (choice & 7)) & 0xFF);
        if (choice & 8) {
            byte = byte & 0x80 ? 0xFF : 0;
        }
        result |= byte << (8 * i);
    }
    return result;
}

inline unsigned int __umulhi(unsigned int a, unsigned int b) {
    return static_cast<unsigned int>(static_cast<uint64_t>(a) * b >> 32);
}

inline unsigned int __funnelshift_r(unsigned int low, unsigned int high, unsigned int shift) {
    return static_cast<unsigned int>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
