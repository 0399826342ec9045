// SPDX-License-Identifier: Apache-2.0
//
// The kernel of all layouts whose tiles are planes in shared memory: linear for every type, CHW4 and CHW32 for int8.
#pragma once

#include "row_float.cuh"
#include "row_half.cuh"
#include "row_int8.cuh"
#include "tile_interleaved.cuh"
#include "tile_linear.cuh"

namespace mdconv {

template <DataType kType>
constexpr int kBytesOf = kType == DataType::kFloat32   ? 4
                         : kType == DataType::kFloat16 ? 2
                                                       : 1;

template <DataType kType>
constexpr int kResultWords = kColumns * kBytesOf<kType> / 4;

// A block of CHW32 has all 32 channels of its pixels, and takes more threads to have enough of them.
template <Layout kLayout>
constexpr int kPlanarThreads = kLayout == Layout::kChw32 ? 448 : 256;

template <Layout kLayout>
constexpr int kPlanarBlocks = kLayout == Layout::kChw32 ? kBlocksOfSm - 1 : kBlocksOfSm;

template <DataType kType, Layout kLayout, int kStride>
using TileOf = std::conditional_t<kLayout == Layout::kLinear, LinearTile<kBytesOf<kType>, kStride>,
                                  std::conditional_t<kLayout == Layout::kChw4, Chw4Tile<kStride>, Chw32Tile<kStride>>>;

template <DataType kType, int kSize, int kStride, int kRows, bool kHardswish>
using RowsOf =
    std::conditional_t<kType == DataType::kInt8, Int8Rows<kSize, kStride, kRows, kHardswish>,
                       std::conditional_t<kType == DataType::kFloat16, HalfRows<kSize, kStride, kRows, kHardswish>,
                                          FloatRows<kSize, kStride, kRows, kHardswish>>>;

// What turns a channel's sums into output codes. Thread i works it out for channel i of the block.
struct Requantization {
    float scale, bias;

    __device__ __forceinline__ static Requantization load(KernelParams const& p, Tile const& tile) {
        bool const mine = static_cast<int32_t>(threadIdx.x) < tile.planes;
        int32_t const channel = tile.channel + static_cast<int32_t>(threadIdx.x);
        return {__uint_as_float(load_global_if<uint32_t>(mine, p.weight_scale + channel)),
                __uint_as_float(load_global_if<uint32_t>(mine, static_cast<float const*>(p.bias) + channel))};
    }

    __device__ __forceinline__ void store(KernelParams const& p, Tile const& tile) const {
        if (static_cast<int32_t>(threadIdx.x) < tile.planes) {
            uint2 const factor_and_offset =
                make_uint2(__float_as_uint(p.x_scale * scale / p.y_scale), __float_as_uint(bias / p.y_scale));
            store_shared<uint2>(p.slot_offset + 8 * static_cast<int32_t>(threadIdx.x), factor_and_offset);
        }
    }
};

template <DataType kType>
__device__ __forceinline__ auto load_bias(KernelParams const& p, int32_t channel) {
    if constexpr (kType == DataType::kFloat32) {
        return __uint_as_float(load_global<uint32_t>(static_cast<float const*>(p.bias) + channel));
    } else {
        uint32_t const bits = load_global<uint16_t>(static_cast<uint16_t const*>(p.bias) + channel);
        return as_half2(bits | bits << 16);
    }
}

// One channel's results of the thread at `place`. `weights` is where the block's start in shared memory.
template <DataType kType, int kSize, int kTensor, int kStride, int kRows, bool kHardswish>
__device__ __forceinline__ void run_rows(KernelParams const& p, Place const& place, int32_t channel, int32_t weights,
                                         uint32_t (&results)[kRows][kResultWords<kType>]) {
    constexpr int32_t kBytes = kBytesOf<kType>;
    constexpr int32_t kInset = (kTensor - kSize) / 2;
    int32_t const plane = static_cast<int32_t>(place.plane);
    int32_t const first_row = static_cast<int32_t>(place.y) * kRows * kStride + kInset;
    int32_t const first_column = static_cast<int32_t>(place.x) * kColumns * kStride;
    int32_t const address = plane * p.plane_stride + first_row * p.pitch + p.margin + first_column * kBytes;
    weights += kBytes * kTensor * kTensor * plane;
    RowsOf<kType, kSize, kStride, kRows, kHardswish> rows;
    if constexpr (kType == DataType::kInt8) {
        rows.template run<kTensor>(p, weights, p.slot_offset + 8 * plane, address, results);
    } else {
        rows.template run<kTensor>(p, weights, load_bias<kType>(p, channel), address, results);
    }
}

// The channel's kernel size and that of the weight tensor, as template constants.
template <DataType kType, int kStride, int kRows, bool kHardswish>
__device__ __forceinline__ void run_channel(KernelParams const& p, Place const& place, int32_t channel, int32_t weights,
                                            uint32_t (&results)[kRows][kResultWords<kType>]) {
    int32_t const size = kernel_size_of(p, channel);
    if (size == 7) {
        run_rows<kType, 7, 7, kStride, kRows, kHardswish>(p, place, channel, weights, results);
    } else if (size == 5 && p.weight_size == 7) {
        run_rows<kType, 5, 7, kStride, kRows, kHardswish>(p, place, channel, weights, results);
    } else if (size == 5) {
        run_rows<kType, 5, 5, kStride, kRows, kHardswish>(p, place, channel, weights, results);
    } else if (p.weight_size == 7) {
        run_rows<kType, 3, 7, kStride, kRows, kHardswish>(p, place, channel, weights, results);
    } else if (p.weight_size == 5) {
        run_rows<kType, 3, 5, kStride, kRows, kHardswish>(p, place, channel, weights, results);
    } else {
        run_rows<kType, 3, 3, kStride, kRows, kHardswish>(p, place, channel, weights, results);
    }
}

template <DataType kType, Layout kLayout, int kStride, int kRows, bool kHardswish>
__global__ void __launch_bounds__(kPlanarThreads<kLayout>, kPlanarBlocks<kLayout>)
    planar_kernel(__grid_constant__ KernelParams const p) {
    constexpr int64_t kBytes = kBytesOf<kType>;
    Tile const tile = tile_of_block<kStride>(p);
    TileOf<kType, kLayout, kStride> data(p, tile);
    int64_t const taps = p.weight_size * p.weight_size;

    data.fetch();
    int32_t const weights =
        p.weight_offset + copy_flat(p.weight, kBytes * p.channels * taps, kBytes * tile.channel * taps,
                                    static_cast<int32_t>(kBytes * tile.planes * taps), p.weight_offset);
    Requantization requantization{};
    if constexpr (kType == DataType::kInt8) {
        requantization = Requantization::load(p, tile);
    }
    __syncthreads();

    data.pad();
    if constexpr (kType == DataType::kInt8) {
        requantization.store(p, tile);
    }
    __syncthreads();

    Place const place = place_of_thread(p);
    int32_t const channel = tile.channel + static_cast<int32_t>(place.plane);
    bool const in_tile = place.plane < static_cast<uint32_t>(p.planes);
    uint32_t results[kRows][kResultWords<kType>] = {};
    if (in_tile && channel < p.channels) {
        run_channel<kType, kStride, kRows, kHardswish>(p, place, channel, weights, results);
    }
    // Padding channels of an interleaved layout are written, as zeros.
    bool const stored =
        in_tile && (kLayout == Layout::kLinear ? channel < p.channels
                                               : kLayout == Layout::kChw32 || channel < (p.channels + 3) / 4 * 4);
    if constexpr (kLayout != Layout::kChw32) {
        if (p.tiles_x > 1) {
            if (stored) {
                data.write_directly(place, results);
            }
            return;
        }
    }
    __syncthreads();
    if (stored) {
        data.stage(place, results);
    }
    __syncthreads();
    data.write();
}

}  // namespace mdconv
