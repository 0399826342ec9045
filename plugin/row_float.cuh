// SPDX-License-Identifier: Apache-2.0
//
// One thread's outputs in float32: kColumns columns of kRows rows of one channel.
#pragma once

#include "device_memory.cuh"
#include "kernel_params.h"

namespace mdconv {

template <int kSize, int kStride, int kRows, bool kHardswish>
struct FloatRows {
    // pixels[i] is input column i - 4, counted from the column under the first output.
    static constexpr int kPixels = kStride == 1 ? 12 : 16;

    __device__ __forceinline__ static void load_four(int32_t address, float* pixels) {
        uint4 const four = load_shared<uint4>(address);
        pixels[0] = __uint_as_float(four.x);
        pixels[1] = __uint_as_float(four.y);
        pixels[2] = __uint_as_float(four.z);
        pixels[3] = __uint_as_float(four.w);
    }

    __device__ __forceinline__ static void load_two(int32_t address, float* pixels) {
        uint2 const two = load_shared<uint2>(address);
        pixels[0] = __uint_as_float(two.x);
        pixels[1] = __uint_as_float(two.y);
    }

    __device__ __forceinline__ static void load_one(int32_t address, float* pixels) {
        pixels[0] = __uint_as_float(load_shared<uint32_t>(address));
    }

    __device__ __forceinline__ static void load_row(int32_t address, float (&pixels)[kPixels]) {
        constexpr int kPad = kSize / 2;
        if constexpr (kPad == 1) {
            load_one(address - 4, pixels + 3);
        } else if constexpr (kPad == 2) {
            load_two(address - 8, pixels + 2);
        } else {
            load_four(address - 16, pixels);
        }
#pragma unroll
        for (int i = 0; i < kStride; ++i) {
            load_four(address + 16 * i, pixels + 4 + 4 * i);
        }
        // The last output stands on column 3 kStride of these.
        constexpr int kBehind = 3 * kStride + kPad - (4 * kStride - 1);
        if constexpr (kBehind == 1) {
            load_one(address + 16 * kStride, pixels + 4 + 4 * kStride);
        } else if constexpr (kBehind == 2) {
            load_two(address + 16 * kStride, pixels + 4 + 4 * kStride);
        } else if constexpr (kBehind == 3) {
            load_four(address + 16 * kStride, pixels + 4 + 4 * kStride);
        }
    }

    __device__ __forceinline__ static uint32_t activate(KernelParams const& p, float sum) {
        if constexpr (kHardswish) {
            return __float_as_uint(sum * __saturatef(fmaf(sum, 1.0f / 6.0f, 0.5f)));
        } else {
            return __float_as_uint(fminf(fmaxf(sum, p.low), p.high));
        }
    }

    // Sixteen bytes of results a row; `weights` and `address` as in HalfRows.
    template <int kTensor>
    __device__ __forceinline__ void run(KernelParams const& p, int32_t weights, float bias, int32_t address,
                                        uint32_t (&results)[kRows][kColumns]) {
        float sums[kRows][kColumns];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
            for (int o = 0; o < kColumns; ++o) {
                sums[r][o] = bias;
            }
        }
        if constexpr (kSize == 7) {
            add_by_kernel_row<kTensor>(p, weights, address, sums);
        } else {
            add_by_input_row<kTensor>(p, weights + (kTensor - kSize) / 2 * (kTensor + 1) * 4, address, sums);
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
            for (int o = 0; o < kColumns; ++o) {
                results[r][o] = activate(p, sums[r][o]);
            }
        }
    }

    // Each input row is read once and serves all kernel rows.
    template <int kTensor>
    __device__ __forceinline__ void add_by_input_row(KernelParams const& p, int32_t weights, int32_t address,
                                                     float (&sums)[kRows][kColumns]) {
        float weight[kSize][kSize];
#pragma unroll
        for (int i = 0; i < kSize; ++i) {
#pragma unroll
            for (int j = 0; j < kSize; ++j) {
                load_one(weights + 4 * (i * kTensor + j), &weight[i][j]);
            }
        }
#pragma unroll
        for (int input_row = 0; input_row < kStride * (kRows - 1) + kSize; ++input_row) {
            float pixels[kPixels] = {};
            load_row(address, pixels);
            address += p.pitch;
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                int const i = input_row - kStride * r;
                if (i >= 0 && i < kSize) {
                    add_taps(pixels, weight[i], sums[r]);
                }
            }
        }
    }

    // For the largest kernel, whose weights would fill the registers: one of its rows at a time.
    template <int kTensor>
    __device__ __forceinline__ void add_by_kernel_row(KernelParams const& p, int32_t weights, int32_t address,
                                                      float (&sums)[kRows][kColumns]) {
#pragma unroll 1
        for (int i = 0; i < kSize; ++i) {
            float weight[kSize];
#pragma unroll
            for (int j = 0; j < kSize; ++j) {
                load_one(weights + 4 * (i * kTensor + j), &weight[j]);
            }
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                float pixels[kPixels] = {};
                load_row(address + (kStride * r + i) * p.pitch, pixels);
                add_taps(pixels, weight, sums[r]);
            }
        }
    }

    __device__ __forceinline__ static void add_taps(float const (&pixels)[kPixels], float const (&weight)[kSize],
                                                    float (&sums)[kColumns]) {
#pragma unroll
        for (int o = 0; o < kColumns; ++o) {
#pragma unroll
            for (int j = 0; j < kSize; ++j) {
                sums[o] = fmaf(pixels[4 + kStride * o + j - kSize / 2], weight[j], sums[o]);
            }
        }
    }
};

}  // namespace mdconv
