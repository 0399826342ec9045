// SPDX-License-Identifier: Apache-2.0
//
// One thread's outputs in int8: kColumns columns of kRows rows of one channel, by dot products along kernel rows.
#pragma once

#include "device_memory.cuh"
#include "kernel_params.h"

namespace mdconv {

// A channel's slot in shared memory, in words of four weights:
//   3x3: word i is kernel row i as (0, w0, w1, w2).
//   5x5: word i is (w0, w1, w2, w3) of row i; word 5 is w4 of rows 0 to 3; words 6 to 9 hold w4 of row 4 at the byte
//   where
//        the pixel stands that column 0 to 3 needs, zeros elsewhere.
//   7x7: words 2 i and 2 i + 1 are (w0, w1, w2, w3) and (w4, w5, w6, 0) of row i.
// Then the factor and the offset that turn a sum into output codes.
constexpr int32_t kInt8SlotWords = 16;
constexpr int32_t kInt8FactorWord = 14;

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

template <int kSize, int kStride, int kRows, bool kHardswish>
struct Int8Rows {
    static_assert(kSize == 3 || kSize == 5 || kSize == 7);

    // words[0] starts 4 bytes before the input column of the thread's first output.
    static constexpr int kWords = kStride == 1 ? 3 : 4;
    static constexpr int kWeights = kSize == 3 ? 3 : kSize == 5 ? 10 : 14;

    uint32_t weights[kWeights];
    float factor, offset;
    uint32_t fifth[kColumns];  // of the last four input rows, the pixel under w4 of each column; oldest in the low byte

    __device__ __forceinline__ void load_weights(uint32_t slot) {
#pragma unroll
        for (int i = 0; i < kWeights; i += 4) {
            uint4 const four = load_shared<uint4>(slot + 4 * i);
            uint32_t const word[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int j = 0; j < 4 && i + j < kWeights; ++j) {
                weights[i + j] = word[j];
            }
        }
        uint2 const two = load_shared<uint2>(slot + 4 * kInt8FactorWord);
        factor = __uint_as_float(two.x);
        offset = __uint_as_float(two.y);
    }

    __device__ __forceinline__ static void load_row(uint32_t address, uint32_t (&words)[kWords]) {
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
                        __dp4a(static_cast<int>(left), static_cast<int>(weights[2 * i]), sums[r][kColumn]);
                    sums[r][kColumn] =
                        __dp4a(static_cast<int>(right), static_cast<int>(weights[2 * i + 1]), sums[r][kColumn]);
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
                    sums[r][kColumn] = __dp4a(static_cast<int>(left), static_cast<int>(weights[i]), sums[r][kColumn]);
                }
                if (kSize == 5 && i == 4) {
                    sums[r][kColumn] =
                        __dp4a(static_cast<int>(fifth[kColumn]), static_cast<int>(weights[5]), sums[r][kColumn]);
                    sums[r][kColumn] =
                        __dp4a(static_cast<int>(word), static_cast<int>(weights[6 + kColumn]), sums[r][kColumn]);
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

    // Four output codes a row, in results[r][0]. `address` is that of the pixel under the first output's first kernel
    // row.
    __device__ __forceinline__ void run(KernelParams const& p, uint32_t slot, uint32_t address,
                                        uint32_t (&results)[kRows][1]) {
        load_weights(slot);
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
            address += static_cast<uint32_t>(p.pitch);
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

// Writes word `word` of a channel's slot. `raw` is where the channel's (K, K) weights start in shared memory.
__device__ __forceinline__ void pack_int8_word(KernelParams const& p, uint32_t raw, int size, int stride, int word,
                                               uint32_t slot) {
    int const margin = (p.weight_size - size) / 2;
    auto const weight = [&](int row, int column) -> uint32_t {
        return load_shared<uint8_t>(raw + static_cast<uint32_t>((row + margin) * p.weight_size + column + margin));
    };
    auto const row_of = [&](int row, int from, int count) {
        uint32_t packed = 0;
        for (int i = 0; i < count; ++i) {
            packed |= weight(row, from + i) << (8 * i);
        }
        return packed;
    };
    uint32_t packed = 0;
    if (size == 3) {
        packed = word < 3 ? row_of(word, 0, 3) << 8 : 0;
    } else if (size == 7) {
        packed = word < 14 ? row_of(word / 2, word % 2 * 4, 4 - word % 2) : 0;
    } else if (word < 5) {
        packed = row_of(word, 0, 4);
    } else if (word == 5) {
        for (int i = 0; i < 4; ++i) {
            packed |= weight(i, 4) << (8 * i);
        }
    } else if (word < 10) {
        packed = weight(4, 4) << (8 * ((stride * (word - 6) + 2) & 3));
    }
    store_shared<uint32_t>(slot + 4 * static_cast<uint32_t>(word), packed);
}

}  // namespace mdconv
