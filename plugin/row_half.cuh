// SPDX-License-Identifier: Apache-2.0
//
// One thread's outputs in float16: kColumns columns of kRows rows of one channel, two columns an instruction.
#pragma once

#include <cuda_fp16.h>

#include "device_memory.cuh"
#include "kernel_params.h"

namespace mdconv {

__device__ __forceinline__ __half2 as_half2(uint32_t bits) { return *reinterpret_cast<__half2*>(&bits); }

__device__ __forceinline__ uint32_t as_bits(__half2 pair) { return *reinterpret_cast<uint32_t*>(&pair); }

// Bias is in the sum already. hardswish in float32: its gate would lose half its digits in float16.
template <bool kHardswish>
__device__ __forceinline__ uint32_t activate_half(KernelParams const& p, __half2 sum) {
    if constexpr (kHardswish) {
        float const low = __low2float(sum);
        float const high = __high2float(sum);
        return as_bits(__floats2half2_rn(low * __saturatef(fmaf(low, 1.0f / 6.0f, 0.5f)),
                                         high * __saturatef(fmaf(high, 1.0f / 6.0f, 0.5f))));
    } else {
        return as_bits(__hmin2(__hmax2(sum, __float2half2_rn(p.low)), __float2half2_rn(p.high)));
    }
}

// kCount weights that follow one another in shared memory, two in a register; `address` is any multiple of 2. Words are
// read, up to two bytes before and four behind.
template <int kCount>
struct HalfWeights {
    static constexpr int kWords = (kCount + 1) / 2;

    uint32_t words[kWords];

    __device__ __forceinline__ explicit HalfWeights(int32_t address) {
        uint32_t const selector = (address & 2) == 0 ? 0x3210 : 0x5432;
        int32_t const base = address & ~3;
        uint32_t before = load_shared<uint32_t>(base);
#pragma unroll
        for (int i = 0; i < kWords; ++i) {
            uint32_t const next = load_shared<uint32_t>(base + 4 * i + 4);
            words[i] = __byte_perm(before, next, selector);
            before = next;
        }
    }

    // Weight `index` in both halves.
    __device__ __forceinline__ __half2 twice(int index) const {
        __half2 const pair = as_half2(words[index / 2]);
        return index % 2 == 0 ? __low2half2(pair) : __high2half2(pair);
    }
};

template <int kSize, int kStride, int kRows, bool kHardswish>
struct HalfRows {
    static constexpr int kPairs = kColumns / 2;
    // words[i] holds input columns 2 i - 4 and 2 i - 3, counted from the column under the first output.
    static constexpr int kWords = kStride == 1 ? 6 : 7;

    __device__ __forceinline__ static void load_row(int32_t address, uint32_t (&words)[kWords]) {
        if constexpr (kSize == 7) {
            uint2 const before = load_shared<uint2>(address - 8);
            words[0] = before.x;
            words[1] = before.y;
        } else {
            words[1] = load_shared<uint32_t>(address - 4);
        }
        uint2 const first = load_shared<uint2>(address);
        words[2] = first.x;
        words[3] = first.y;
        if constexpr (kStride == 2) {
            uint2 const second = load_shared<uint2>(address + 8);
            words[4] = second.x;
            words[5] = second.y;
            if constexpr (kSize > 3) {
                words[6] = load_shared<uint32_t>(address + 16);
            }
        } else if constexpr (kSize == 7) {
            uint2 const second = load_shared<uint2>(address + 8);
            words[4] = second.x;
            words[5] = second.y;
        } else {
            words[4] = load_shared<uint32_t>(address + 8);
        }
    }

    // The inputs of output pair `pair` under kernel column `tap`.
    __device__ __forceinline__ static __half2 inputs(uint32_t const (&words)[kWords], int pair, int tap) {
        int const column = 2 * kStride * pair + tap - kSize / 2 + 4;  // from the start of words
        uint32_t const here = words[column / 2];
        if (kStride == 2) {
            return as_half2(__byte_perm(here, words[column / 2 + 1], column % 2 == 0 ? 0x5410 : 0x7632));
        }
        return as_half2(column % 2 == 0 ? here : __byte_perm(here, words[column / 2 + 1], 0x5432));
    }

    // Eight bytes of results a row. `weights` is where the channel's (kTensor, kTensor) weights start in shared memory,
    // the kernel in their middle; `address` that of the pixel under the first output's first kernel row.
    template <int kTensor>
    __device__ __forceinline__ void run(KernelParams const& p, int32_t weights, __half2 bias, int32_t address,
                                        uint32_t (&results)[kRows][kPairs]) {
        if constexpr (kSize == 7) {
            constexpr int kFew = kRows > 7 ? 7 : kRows;  // float32 sums of more rows would fill the registers
            run_by_kernel_row<0, kFew>(p, weights, bias, address, results);
            if constexpr (kFew < kRows) {
                run_by_kernel_row<kFew, kRows>(p, weights, bias, address, results);
            }
        } else {
            run_by_input_row<kTensor>(p, weights, bias, address, results);
        }
    }

    // Each input row is read once and serves all kernel rows. A kernel row's products are summed for themselves, which
    // keeps the rounding error that of short sums.
    template <int kTensor>
    __device__ __forceinline__ void run_by_input_row(KernelParams const& p, int32_t weights, __half2 bias,
                                                     int32_t address, uint32_t (&results)[kRows][kPairs]) {
        HalfWeights<(kSize - 1) * kTensor + kSize> const kernel(weights + (kTensor - kSize) / 2 * (kTensor + 1) * 2);
        __half2 sums[kRows][kPairs];
#pragma unroll
        for (int input_row = 0; input_row < kStride * (kRows - 1) + kSize; ++input_row) {
            uint32_t words[kWords] = {};
            load_row(address, words);
            address += p.pitch;
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                int const i = input_row - kStride * r;
                if (i < 0 || i >= kSize) {
                    continue;
                }
#pragma unroll
                for (int pair = 0; pair < kPairs; ++pair) {
                    __half2 const first = kernel.twice(i * kTensor);
                    __half2 row =
                        i == 0 ? __hfma2(inputs(words, pair, 0), first, bias) : __hmul2(inputs(words, pair, 0), first);
#pragma unroll
                    for (int tap = 1; tap < kSize; ++tap) {
                        row = __hfma2(inputs(words, pair, tap), kernel.twice(i * kTensor + tap), row);
                    }
                    sums[r][pair] = i == 0 ? row : __hadd2(sums[r][pair], row);
                    if (i == kSize - 1) {
                        results[r][pair] = activate_half<kHardswish>(p, sums[r][pair]);
                    }
                }
            }
        }
    }

    // For the largest kernel, whose weights would fill the registers: one of its rows at a time. 49 products are many
    // for float16: the rows are summed in float32.
    template <int kFrom, int kTo>
    __device__ __forceinline__ void run_by_kernel_row(KernelParams const& p, int32_t weights, __half2 bias,
                                                      int32_t address, uint32_t (&results)[kRows][kPairs]) {
        float sums[kTo - kFrom][kColumns];
#pragma unroll
        for (int r = 0; r < kTo - kFrom; ++r) {
#pragma unroll
            for (int o = 0; o < kColumns; ++o) {
                sums[r][o] = __low2float(bias);
            }
        }
#pragma unroll 1
        for (int i = 0; i < kSize; ++i) {
            HalfWeights<kSize> const kernel_row(weights + 2 * kSize * i);
#pragma unroll
            for (int r = 0; r < kTo - kFrom; ++r) {
                uint32_t words[kWords] = {};
                load_row(address + (kStride * (r + kFrom) + i) * p.pitch, words);
#pragma unroll
                for (int pair = 0; pair < kPairs; ++pair) {
                    __half2 row = __hmul2(inputs(words, pair, 0), kernel_row.twice(0));
#pragma unroll
                    for (int tap = 1; tap < kSize; ++tap) {
                        row = __hfma2(inputs(words, pair, tap), kernel_row.twice(tap), row);
                    }
                    sums[r][2 * pair] += __low2float(row);
                    sums[r][2 * pair + 1] += __high2float(row);
                }
            }
        }
#pragma unroll
        for (int r = 0; r < kTo - kFrom; ++r) {
#pragma unroll
            for (int pair = 0; pair < kPairs; ++pair) {
                __half2 const sum = __floats2half2_rn(sums[r][2 * pair], sums[r][2 * pair + 1]);
                results[r + kFrom][pair] = activate_half<kHardswish>(p, sum);
            }
        }
    }
};

}  // namespace mdconv
