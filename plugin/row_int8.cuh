// SPDX-License-Identifier: Apache-2.0
//
// One thread's outputs in int8: kColumns columns of kRows rows of one channel, by dot products along kernel rows.
#pragma once

#include "device_memory.cuh"
#include "kernel_params.h"

namespace mdconv {

// 1.5 * 2^23. A float this large has no fraction bits: adding it rounds to whole numbers, half to even, and the low
// byte of the sum's bits is the number in two's complement. An int32 sum below 2^22 that starts at its bits is, read as
// float, the sum plus it.
constexpr float kRounder = 12582912.0f;
constexpr int32_t kRounderBits = 0x4B400000;

// The four bytes that start `offset` bytes behind the start of words[0]. Known at compile time, this is a word or one
// PRMT.
template <int kOffset>
__device__ __forceinline__ uint32_t window(uint32_t const* words) {
    constexpr int kWord = kOffset >> 2;
    constexpr int kByte = kOffset & 3;
    if constexpr (kByte == 0) {
        return words[kWord];
    } else {
        return __byte_perm(words[kWord], words[kWord + 1], 0x3210 + 0x1111 * kByte);
    }
}

// A channel's kernel as words of four weights:
//   3x3: word i is kernel row i as (0, w0, w1, w2).
//   5x5: word i is (w0, w1, w2, w3) of row i; word 5 is w4 of rows 0 to 3; words 6 to 9 hold w4 of row 4 at the byte
//   where
//        the pixel stands that column 0 to 3 needs, zeros elsewhere.
//   7x7: words 2 i and 2 i + 1 are (w0, w1, w2, w3) and (w4, w5, w6, 0) of row i.
template <int kSize, int kStride>
struct Int8Kernel {
    static constexpr int kWords = kSize == 3 ? 3 : kSize == 5 ? 10 : 14;

    uint32_t words[kWords];

    // From a tensor of (kTensor, kTensor) weights a channel, this channel's at `address` in shared memory, its kernel
    // in the middle. Up to three bytes before and seven behind are read, too.
    template <int kTensor>
    __device__ __forceinline__ void load(int32_t address) {
        // The bytes of the middle rows, the first of them at byte 0.
        constexpr int kInset = (kTensor - kSize) / 2;
        constexpr int kBytes = (kSize - 1) * kTensor + kSize + 1;
        constexpr int kAligned = (kBytes + 3) / 4 + 1;
        // A smaller kernel's rows start one column early, with a zero: a 3x3 kernel's word starts so.
        constexpr int kEarly = kSize == 3 && kInset > 0 ? 1 : 0;
        int32_t const first = address + kInset * (kTensor + 1) - kEarly;
        uint32_t bytes[kAligned];
        load_aligned(first, bytes);
        if constexpr (kSize == 3) {
            words[0] = row_of_three<kTensor, kEarly, 0>(bytes);
            words[1] = row_of_three<kTensor, kEarly, 1>(bytes);
            words[2] = row_of_three<kTensor, kEarly, 2>(bytes);
        } else if constexpr (kSize == 5) {
            words[0] = window<0>(bytes);
            words[1] = window<kTensor>(bytes);
            words[2] = window<2 * kTensor>(bytes);
            words[3] = window<3 * kTensor>(bytes);
            words[4] = window<4 * kTensor>(bytes);
            uint32_t const first_two = __byte_perm(window<4>(bytes), window<kTensor + 4>(bytes), 0x0040);
            uint32_t const next_two =
                __byte_perm(window<2 * kTensor + 4>(bytes), window<3 * kTensor + 4>(bytes), 0x0040);
            words[5] = __byte_perm(first_two, next_two, 0x5410);
            uint32_t const corner = window<4 * kTensor + 4>(bytes) & 0xFF;
            words[6] = corner << (8 * (2 & 3));
            words[7] = corner << (8 * ((kStride + 2) & 3));
            words[8] = corner << (8 * ((2 * kStride + 2) & 3));
            words[9] = corner << (8 * ((3 * kStride + 2) & 3));
        } else {
            rows_of_seven<0>(bytes);
            rows_of_seven<1>(bytes);
            rows_of_seven<2>(bytes);
            rows_of_seven<3>(bytes);
            rows_of_seven<4>(bytes);
            rows_of_seven<5>(bytes);
            rows_of_seven<6>(bytes);
        }
    }

    template <int kCount>
    __device__ __forceinline__ static void load_aligned(int32_t address, uint32_t (&bytes)[kCount]) {
        uint32_t const selector = 0x3210 + 0x1111 * static_cast<uint32_t>(address & 3);
        int32_t const base = address & ~3;
        uint32_t before = load_shared<uint32_t>(base);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            uint32_t const next = load_shared<uint32_t>(base + 4 * i + 4);
            bytes[i] = __byte_perm(before, next, selector);
            before = next;
        }
    }

    template <int kTensor, int kEarly, int kRow>
    __device__ __forceinline__ static uint32_t row_of_three(uint32_t const* bytes) {
        uint32_t const row = window<kTensor * kRow>(bytes);
        return kEarly == 1 ? row : row << 8;
    }

    template <int kRow>
    __device__ __forceinline__ void rows_of_seven(uint32_t const* bytes) {
        words[2 * kRow] = window<7 * kRow>(bytes);
        words[2 * kRow + 1] = window<7 * kRow + 4>(bytes) & 0xFFFFFF;
    }
};

template <int kSize, int kStride, int kRows, bool kHardswish>
struct Int8Rows {
    static_assert(kSize == 3 || kSize == 5 || kSize == 7);

    // words[0] starts 4 bytes before the input column of the thread's first output.
    static constexpr int kWords = kStride == 1 ? 3 : 4;

    Int8Kernel<kSize, kStride> kernel;
    float factor, offset;
    uint32_t fifth[kColumns];  // of the last four input rows, the pixel under w4 of each column; oldest in the low byte

    __device__ __forceinline__ static void load_row(int32_t address, uint32_t (&words)[kWords]) {
        if constexpr (kStride == 1) {
            words[0] = load_shared<uint32_t>(address - 4);
            words[1] = load_shared<uint32_t>(address);
            words[2] = load_shared<uint32_t>(address + 4);
        } else {
            words[0] = load_shared<uint32_t>(address - 4);
            uint2 const two = load_shared<uint2>(address);
            words[1] = two.x;
            words[2] = two.y;
            words[3] = load_shared<uint32_t>(address + 8);
        }
    }

    template <int kColumn>
    __device__ __forceinline__ void add_row(uint32_t const (&words)[kWords], int input_row,
                                            int32_t (&sums)[kRows][kColumns]) {
        constexpr int kFirst = 4 + kStride * kColumn;
        if constexpr (kSize == 7) {
            uint32_t const left = window<kFirst - 3>(words);
            uint32_t const right = window<kFirst + 1>(words);
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                int const i = input_row - kStride * r;
                if (i >= 0 && i < kSize) {
                    sums[r][kColumn] =
                        __dp4a(static_cast<int>(left), static_cast<int>(kernel.words[2 * i]), sums[r][kColumn]);
                    sums[r][kColumn] =
                        __dp4a(static_cast<int>(right), static_cast<int>(kernel.words[2 * i + 1]), sums[r][kColumn]);
                }
            }
        } else {
            uint32_t const left = window<kFirst - 2>(words);
            constexpr int kFifth = kFirst + 2;  // the byte under the last weight of a 5-wide kernel row
            uint32_t const word = words[kFifth >> 2];
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                int const i = input_row - kStride * r;
                if (i >= 0 && i < kSize) {
                    sums[r][kColumn] =
                        __dp4a(static_cast<int>(left), static_cast<int>(kernel.words[i]), sums[r][kColumn]);
                }
                if (kSize == 5 && i == 4) {
                    sums[r][kColumn] =
                        __dp4a(static_cast<int>(fifth[kColumn]), static_cast<int>(kernel.words[5]), sums[r][kColumn]);
                    sums[r][kColumn] =
                        __dp4a(static_cast<int>(word), static_cast<int>(kernel.words[6 + kColumn]), sums[r][kColumn]);
                }
            }
            if constexpr (kSize == 5) {
                fifth[kColumn] = __byte_perm(fifth[kColumn], word, 0x4321 + ((kFifth & 3) << 12));
            }
        }
    }

    // An output code in the low byte.
    __device__ __forceinline__ uint32_t requantize(KernelParams const& p, int32_t sum) const {
        float t = fmaf(__int_as_float(sum) - kRounder, factor, offset);
        if constexpr (kHardswish) {
            t *= __saturatef(fmaf(t, p.y_scale / 6.0f, 0.5f));
        }
        t = fminf(fmaxf(t, p.low), p.high);
        return __float_as_uint(t + kRounder);
    }

    // Four output codes a row, in results[r][0]. `weights` is where the channel's (kTensor, kTensor) weights start in
    // shared memory, `scaling` its factor and offset, `address` the pixel under the first output's first kernel row.
    template <int kTensor>
    __device__ __forceinline__ void run(KernelParams const& p, int32_t weights, int32_t scaling, int32_t address,
                                        uint32_t (&results)[kRows][1]) {
        kernel.template load<kTensor>(weights);
        uint2 const two = load_shared<uint2>(scaling);
        factor = __uint_as_float(two.x);
        offset = __uint_as_float(two.y);
        int32_t sums[kRows][kColumns];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
            for (int o = 0; o < kColumns; ++o) {
                sums[r][o] = kRounderBits;
            }
        }
#pragma unroll
        for (int o = 0; o < kColumns; ++o) {
            fifth[o] = 0;
        }
#pragma unroll
        for (int input_row = 0; input_row < kStride * (kRows - 1) + kSize; ++input_row) {
            uint32_t words[kWords];
            load_row(address, words);
            address += p.pitch;
            add_row<0>(words, input_row, sums);
            add_row<1>(words, input_row, sums);
            add_row<2>(words, input_row, sums);
            add_row<3>(words, input_row, sums);
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                if (input_row == kStride * r + kSize - 1) {
                    uint32_t code[kColumns];
#pragma unroll
                    for (int o = 0; o < kColumns; ++o) {
                        code[o] = requantize(p, sums[r][o]);
                    }
                    results[r][0] = __byte_perm(__byte_perm(code[0], code[1], 0x0040),
                                                __byte_perm(code[2], code[3], 0x0040), 0x5410);
                }
            }
        }
    }
};

}  // namespace mdconv
