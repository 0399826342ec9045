// SPDX-License-Identifier: Apache-2.0
//
// The interleaved float16 layout (HWC8): two channels an instruction, so that every tap of every column is a word as it
// lies in memory. A block has 16 channels, the 32 bytes of a memory sector, of a tile of the image.
#pragma once

#include "row_half.cuh"
#include "tile.cuh"

namespace mdconv {

// Where a pixel's 32 bytes lie in the tile: `column` counts from kLeft before the tile's first column. A gap behind
// every pixel of a thread's columns keeps the threads of a warp on different banks.
template <int kStride>
__device__ __forceinline__ constexpr int32_t pixel_offset(int32_t column) {
    return kPixelBytes * (column + column / (kColumns * kStride));
}

template <int kSize, int kStride, int kRows, bool kHardswish>
struct PairRows {
    static constexpr int kWords = kStride * (kColumns - 1) + kSize;

    // words[i] is two channels of the pixel under kernel column i of the first output, then to its right.
    __device__ __forceinline__ static void load_row(int32_t address, uint32_t (&words)[kWords]) {
#pragma unroll
        for (int i = 0; i < kWords; ++i) {
            words[i] = load_shared<uint32_t>(address + pixel_offset<kStride>(kLeft - kSize / 2 + i));
        }
    }

    __device__ __forceinline__ static __half2 weight_at(KernelParams const& p, int32_t weights, int i, int j) {
        int32_t const index = i * p.weight_size + j;
        return as_half2(load_shared<uint32_t>(weights + 4 * kInterleavedPair * index));
    }

    __device__ __forceinline__ static __half2 kernel_row(uint32_t const (&words)[kWords], int column,
                                                         __half2 const* weight, __half2 start) {
        __half2 sum = start;
#pragma unroll
        for (int j = 0; j < kSize; ++j) {
            sum = __hfma2(as_half2(words[kStride * column + j]), weight[j], sum);
        }
        return sum;
    }

    // Two channels of kColumns results a row. `weights` is the pair's first kernel row, `address` the pixel kLeft
    // before the first output's in its first kernel row. Summed as in HalfRows.
    __device__ __forceinline__ static void run(KernelParams const& p, int32_t weights, __half2 bias, int32_t address,
                                               uint32_t (&results)[kRows][kColumns]) {
        if constexpr (kSize == 7) {
            constexpr int kHalf = (kRows + 1) / 2;  // float32 sums of all rows would fill the registers
            run_by_kernel_row<0, kHalf>(p, weights, bias, address, results);
            run_by_kernel_row<kHalf, kRows>(p, weights, bias, address, results);
        } else {
            run_by_input_row(p, weights, bias, address, results);
        }
    }

    __device__ __forceinline__ static void run_by_input_row(KernelParams const& p, int32_t weights, __half2 bias,
                                                            int32_t address, uint32_t (&results)[kRows][kColumns]) {
        __half2 weight[kSize][kSize];
#pragma unroll
        for (int i = 0; i < kSize; ++i) {
#pragma unroll
            for (int j = 0; j < kSize; ++j) {
                weight[i][j] = weight_at(p, weights, i, j);
            }
        }
        __half2 sums[kRows][kColumns];
#pragma unroll
        for (int input_row = 0; input_row < kStride * (kRows - 1) + kSize; ++input_row) {
            uint32_t words[kWords];
            load_row(address, words);
            address += p.pitch;
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                int const i = input_row - kStride * r;
                if (i < 0 || i >= kSize) {
                    continue;
                }
#pragma unroll
                for (int o = 0; o < kColumns; ++o) {
                    __half2 const row = kernel_row(words, o, weight[i], i == 0 ? bias : __half2half2(__half(0.0f)));
                    sums[r][o] = i == 0 ? row : __hadd2(sums[r][o], row);
                    if (i == kSize - 1) {
                        results[r][o] = activate_half<kHardswish>(p, sums[r][o]);
                    }
                }
            }
        }
    }

    template <int kFrom, int kTo>
    __device__ __forceinline__ static void run_by_kernel_row(KernelParams const& p, int32_t weights, __half2 bias,
                                                             int32_t address, uint32_t (&results)[kRows][kColumns]) {
        float low[kTo - kFrom][kColumns], high[kTo - kFrom][kColumns];
#pragma unroll
        for (int r = 0; r < kTo - kFrom; ++r) {
#pragma unroll
            for (int o = 0; o < kColumns; ++o) {
                low[r][o] = __low2float(bias);
                high[r][o] = __high2float(bias);
            }
        }
#pragma unroll 1
        for (int i = 0; i < kSize; ++i) {
            __half2 weight[kSize];
#pragma unroll
            for (int j = 0; j < kSize; ++j) {
                weight[j] = weight_at(p, weights, i, j);
            }
#pragma unroll
            for (int r = 0; r < kTo - kFrom; ++r) {
                uint32_t words[kWords];
                load_row(address + (kStride * (r + kFrom) + i) * p.pitch, words);
#pragma unroll
                for (int o = 0; o < kColumns; ++o) {
                    __half2 const row = kernel_row(words, o, weight, __half2half2(__half(0.0f)));
                    low[r][o] += __low2float(row);
                    high[r][o] += __high2float(row);
                }
            }
        }
#pragma unroll
        for (int r = 0; r < kTo - kFrom; ++r) {
#pragma unroll
            for (int o = 0; o < kColumns; ++o) {
                results[r + kFrom][o] = activate_half<kHardswish>(p, __floats2half2_rn(low[r][o], high[r][o]));
            }
        }
    }
};

// Channels of X and Y in memory, padding included.
__device__ __forceinline__ int32_t stored_channels(KernelParams const& p) { return (p.channels + 7) / 8 * 8; }

// Where a channel of a pixel lies, in bytes.
__device__ __forceinline__ int64_t half_offset(KernelParams const& p, int32_t image, int32_t channel, int32_t height,
                                               int32_t width, int32_t y, int32_t x) {
    int64_t const pixel = (static_cast<int64_t>(image) * height + y) * width + x;
    return 2 * (pixel * stored_channels(p) + channel);
}

// A thread asks for several pixels before it lays the first one down. Two threads share the 32 bytes of a pixel.
template <int kStride>
__device__ __forceinline__ void fetch_pixels(KernelParams const& p, Tile const& tile) {
    constexpr int kAhead = 4;
    int32_t const half = static_cast<int32_t>(threadIdx.x & 1);
    int32_t const channel = tile.channel + 8 * half;
    bool const there = channel < stored_channels(p);
    auto const* const image =
        static_cast<unsigned char const*>(p.x) + half_offset(p, tile.image, channel, p.height, p.width, 0, 0);
    int64_t const pixel_bytes = 2 * stored_channels(p);
    uint32_t const pixels = p.by_row_quads.divisor * static_cast<uint32_t>(p.in_rows);
    uint32_t const step = blockDim.x / 2;
    for (uint32_t pixel = threadIdx.x / 2; pixel < pixels; pixel += kAhead * step) {
        uint4 ahead[kAhead];
        int32_t target[kAhead];
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
            uint32_t rest;
            int32_t const tile_row = static_cast<int32_t>(divide(pixel + k * step, p.by_row_quads, rest));
            int32_t const column = static_cast<int32_t>(rest) + kLeft - p.pad;
            int32_t const y = tile.top + tile_row;
            int32_t const x = tile.left + column - kLeft;
            bool const inside = there && y >= tile.in_begin && y < tile.in_end &&
                                static_cast<uint32_t>(x) < static_cast<uint32_t>(p.width);
            ahead[k] = load_global_if<uint4>(inside, image + (y * p.width + x) * pixel_bytes);
            target[k] = tile_row * p.pitch + pixel_offset<kStride>(column) + 16 * half;
        }
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
            store_shared_if<uint4>(pixel + k * step < pixels, target[k], ahead[k]);
        }
    }
}

// Weights of pairs of channels side by side: word (tap, pair).
__device__ __forceinline__ void pack_pairs(KernelParams const& p, Tile const& tile, int32_t raw_weights) {
    int32_t const taps = p.weight_size * p.weight_size;
    for (int32_t item = static_cast<int32_t>(threadIdx.x); item < kInterleavedPair * taps;
         item += static_cast<int32_t>(blockDim.x)) {
        int32_t const first = 2 * (item % kInterleavedPair);
        int32_t const raw = raw_weights + 2 * (first * taps + item / kInterleavedPair);
        uint32_t const low = first < tile.planes ? load_shared<uint16_t>(raw) : 0;
        uint32_t const high = first + 1 < tile.planes ? load_shared<uint16_t>(raw + 2 * taps) : 0;
        store_shared<uint32_t>(p.slot_offset + 4 * item, low | high << 16);
    }
}

__device__ __forceinline__ uint32_t load_half(void const* values, int32_t index, bool there) {
    return load_global_if<uint16_t>(there, static_cast<uint16_t const*>(values) + index);
}

constexpr int32_t kInterleavedThreads = 256;

template <int kStride, int kRows, bool kHardswish>
__global__ void __launch_bounds__(kInterleavedThreads, kFewResidentThreads / kInterleavedThreads)
    interleaved_half_kernel(__grid_constant__ KernelParams const p) {
    Tile const tile = tile_of_block<kStride>(p);
    int32_t const taps = p.weight_size * p.weight_size;
    FlatRun weight_run(p.weight, 2 * static_cast<int64_t>(p.channels) * taps,
                       2 * static_cast<int64_t>(tile.channel) * taps, 2 * tile.planes * taps);
    weight_run.load();
    // Eight pairs of one pixel are neighbours, so that a warp writes whole sectors.
    uint32_t const pair = threadIdx.x % kInterleavedPair;
    uint32_t x;
    uint32_t const y = divide(threadIdx.x / kInterleavedPair, p.by_threads_x, x);
    int32_t const channel = tile.channel + 2 * static_cast<int32_t>(pair);
    bool const first_there = channel < p.channels;
    bool const second_there = channel + 1 < p.channels;
    bool const looks_after_pair = threadIdx.x < kInterleavedPair;
    uint32_t const bias_bits = load_half(p.bias, channel, looks_after_pair && first_there) |
                               load_half(p.bias, channel + 1, looks_after_pair && second_there) << 16;
    fetch_pixels<kStride>(p, tile);
    int32_t const raw_weights = weight_run.store(p.weight_offset);
    int32_t const bias_offset = p.slot_offset + 4 * kInterleavedPair * taps;
    store_shared_if<uint32_t>(looks_after_pair, bias_offset + 4 * static_cast<int32_t>(pair), bias_bits);
    __syncthreads();
    pack_pairs(p, tile, raw_weights);
    __syncthreads();

    int32_t const first_row = tile.row + static_cast<int32_t>(y) * kRows;
    if (first_row >= min(tile.row + p.tile_rows, p.out_height) || channel >= stored_channels(p)) {
        return;
    }
    uint32_t results[kRows][kColumns] = {};
    if (first_there) {
        __half2 const bias = as_half2(load_shared<uint32_t>(bias_offset + 4 * static_cast<int32_t>(pair)));
        int32_t const size = max(kernel_size_of(p, channel), kernel_size_of(p, second_there ? channel + 1 : channel));
        int32_t const inset = p.pad - size / 2;
        uint32_t const weights = static_cast<uint32_t>(p.slot_offset) +
                                 4 * (kInterleavedPair * static_cast<uint32_t>(inset * p.weight_size + inset) + pair);
        uint32_t const address =
            (y * kRows * kStride + static_cast<uint32_t>(inset)) * static_cast<uint32_t>(p.pitch) +
            static_cast<uint32_t>(pixel_offset<kStride>(static_cast<int32_t>(x) * kColumns * kStride)) + 4 * pair;
        if (size == 3) {
            PairRows<3, kStride, kRows, kHardswish>::run(p, weights, bias, address, results);
        } else if (size == 5) {
            PairRows<5, kStride, kRows, kHardswish>::run(p, weights, bias, address, results);
        } else {
            PairRows<7, kStride, kRows, kHardswish>::run(p, weights, bias, address, results);
        }
    }
    int32_t const column = tile.column + static_cast<int32_t>(x) * kColumns;
    auto* row = static_cast<unsigned char*>(p.y) +
                half_offset(p, tile.image, channel, p.out_height, p.out_width, first_row, column);
    int32_t const pixel_bytes = 2 * stored_channels(p);
#pragma unroll
    for (int r = 0; r < kRows; ++r, row += static_cast<int64_t>(pixel_bytes) * p.out_width) {
        auto* target = row;
#pragma unroll
        for (int o = 0; o < kColumns; ++o, target += pixel_bytes) {
            bool const inside = first_row + r < p.out_height && column + o < p.out_width;
            // A padding channel stays zero whatever X holds there.
            store_global_if<uint32_t>(inside, target, second_there ? results[r][o] : results[r][o] & 0xFFFF);
        }
    }
}

}  // namespace mdconv
