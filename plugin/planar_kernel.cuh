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
constexpr int kPlanarBlocks = kLayout == Layout::kChw32 ? 2 : 3;  // a multiprocessor, for half of its warps

template <DataType kType, Layout kLayout, int kStride>
using TileOf = std::conditional_t<kLayout == Layout::kLinear, LinearTile<kBytesOf<kType>, kStride>,
                                  std::conditional_t<kLayout == Layout::kChw4, Chw4Tile<kStride>, Chw32Tile<kStride>>>;

template <DataType kType, int kSize, int kStride, int kRows, bool kHardswish>
using RowsOf =
    std::conditional_t<kType == DataType::kInt8, Int8Rows<kSize, kStride, kRows, kHardswish>,
                       std::conditional_t<kType == DataType::kFloat16, HalfRows<kSize, kStride, kRows, kHardswish>,
                                          FloatRows<kSize, kStride, kRows, kHardswish>>>;

// What turns a channel's sums into output codes.
struct Requantization {
    float scale, bias;

    // Thread i loads channel i of the block.
    __device__ __forceinline__ static Requantization load(KernelParams const& p, Tile const& tile) {
        bool const mine = static_cast<int32_t>(threadIdx.x) < tile.planes;
        int32_t const channel = tile.channel + static_cast<int32_t>(threadIdx.x);
        return {__uint_as_float(load_global_if<uint32_t>(mine, p.weight_scale + channel)),
                __uint_as_float(load_global_if<uint32_t>(mine, static_cast<float const*>(p.bias) + channel))};
    }

    __device__ __forceinline__ void store(KernelParams const& p, Tile const& tile) const {
        if (static_cast<int32_t>(threadIdx.x) < tile.planes) {
            uint2 const words =
                make_uint2(__float_as_uint(p.x_scale * scale / p.y_scale), __float_as_uint(bias / p.y_scale));
            uint32_t const word = kInt8SlotWords * threadIdx.x + kInt8FactorWord;
            store_shared<uint2>(static_cast<uint32_t>(p.slot_offset) + 4 * word, words);
        }
    }
};

template <int kStride>
__device__ __forceinline__ void pack_int8(KernelParams const& p, Tile const& tile, uint32_t raw) {
    uint32_t const taps = static_cast<uint32_t>(p.weight_size * p.weight_size);
    for (uint32_t item = threadIdx.x; item < static_cast<uint32_t>(tile.planes) * kInt8SlotWords; item += blockDim.x) {
        uint32_t const plane = item / kInt8SlotWords;
        int const word = static_cast<int>(item % kInt8SlotWords);
        int const size = kernel_size_of(p, tile.channel + static_cast<int32_t>(plane));
        if (word < (size == 3 ? 4 : size == 5 ? 12 : kInt8FactorWord)) {
            pack_int8_word(p, raw + plane * taps, size, kStride, word,
                           static_cast<uint32_t>(p.slot_offset) + 4 * kInt8SlotWords * plane);
        }
    }
}

template <DataType kType>
__device__ __forceinline__ auto load_bias(KernelParams const& p, int32_t channel) {
    if constexpr (kType == DataType::kFloat32) {
        return __uint_as_float(load_global<uint32_t>(static_cast<float const*>(p.bias) + channel));
    } else {
        uint32_t const bits = load_global<uint16_t>(static_cast<uint16_t const*>(p.bias) + channel);
        return as_half2(bits | bits << 16);
    }
}

// One channel's results of the thread at `place`. `raw` is where the block's weights start in shared memory.
template <DataType kType, int kSize, int kStride, int kRows, bool kHardswish>
__device__ __forceinline__ void run_rows(KernelParams const& p, Place const& place, int32_t channel, uint32_t raw,
                                         uint32_t (&results)[kRows][kResultWords<kType>]) {
    constexpr uint32_t kBytes = kBytesOf<kType>;
    uint32_t const inset = static_cast<uint32_t>(p.pad - kSize / 2);
    uint32_t const address = place.plane * static_cast<uint32_t>(p.plane_stride) +
                             (place.y * kRows * kStride + inset) * static_cast<uint32_t>(p.pitch) +
                             static_cast<uint32_t>(p.margin) + place.x * kColumns * kStride * kBytes;
    RowsOf<kType, kSize, kStride, kRows, kHardswish> rows;
    if constexpr (kType == DataType::kInt8) {
        rows.run(p, static_cast<uint32_t>(p.slot_offset) + 4 * kInt8SlotWords * place.plane, address, results);
    } else {
        uint32_t const taps = static_cast<uint32_t>(p.weight_size * p.weight_size);
        uint32_t const first = place.plane * taps + inset * static_cast<uint32_t>(p.weight_size) + inset;
        rows.run(p, raw + kBytes * first, load_bias<kType>(p, channel), address, results);
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
    uint32_t const raw =
        static_cast<uint32_t>(p.weight_offset) +
        copy_flat(p.weight, kBytes * p.channels * taps, kBytes * tile.channel * taps,
                  static_cast<int32_t>(kBytes * tile.planes * taps), static_cast<uint32_t>(p.weight_offset), 0);
    Requantization requantization{};
    if constexpr (kType == DataType::kInt8) {
        requantization = Requantization::load(p, tile);
    }
    __syncthreads();

    data.pad();
    if constexpr (kType == DataType::kInt8) {
        requantization.store(p, tile);
        pack_int8<kStride>(p, tile, raw);
    }
    __syncthreads();

    Place const place = place_of_thread(p);
    int32_t const channel = tile.channel + static_cast<int32_t>(place.plane);
    bool const in_tile = place.plane < static_cast<uint32_t>(p.planes);
    uint32_t results[kRows][kResultWords<kType>] = {};
    if (in_tile && channel < p.channels) {
        int32_t const size = kernel_size_of(p, channel);
        if (size == 3) {
            run_rows<kType, 3, kStride, kRows, kHardswish>(p, place, channel, raw, results);
        } else if (size == 5) {
            run_rows<kType, 5, kStride, kRows, kHardswish>(p, place, channel, raw, results);
        } else {
            run_rows<kType, 7, kStride, kRows, kHardswish>(p, place, channel, raw, results);
        }
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
