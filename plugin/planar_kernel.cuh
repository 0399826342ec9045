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

// Blocks of at most so many threads, of which a multiprocessor is to hold so many. A block of CHW32 has all 32 channels
// of its pixels, and takes more threads to have enough of them.
template <DataType kType, Layout kLayout, int kRows>
struct PlanarBounds {
    static constexpr bool kFew = needs_registers(kType, kRows);
    static constexpr int kThreads = kLayout == Layout::kChw32 ? 448 : kFew ? 256 : 224;
    static constexpr int kBlocks = (kFew ? kFewResidentThreads : kResidentThreads) / kThreads;
};

template <DataType kType, Layout kLayout, int kStride>
using TileOf = std::conditional_t<kLayout == Layout::kLinear, LinearTile<kBytesOf<kType>, kStride>,
                                  std::conditional_t<kLayout == Layout::kChw4, Chw4Tile<kStride>, Chw32Tile<kStride>>>;

template <DataType kType, int kSize, int kStride, int kRows, bool kHardswish>
using RowsOf =
    std::conditional_t<kType == DataType::kInt8, Int8Rows<kSize, kStride, kRows, kHardswish>,
                       std::conditional_t<kType == DataType::kFloat16, HalfRows<kSize, kStride, kRows, kHardswish>,
                                          FloatRows<kSize, kStride, kRows, kHardswish>>>;

// What a channel has beside its weights: its bias; int8: the scale of its weights and its bias, then, worked out from
// them, the factor and the offset that turn its sums into output codes. Thread i looks after channel i of the block.
template <DataType kType>
struct ChannelConstants {
    static constexpr int32_t kSlot = 8;

    uint32_t scale = 0;
    uint32_t bias = 0;

    __device__ __forceinline__ static int32_t slot(KernelParams const& p, int32_t plane) {
        return p.slot_offset + kSlot * plane;
    }

    __device__ __forceinline__ static bool has_channel(Tile const& tile) {
        return static_cast<int32_t>(threadIdx.x) < tile.planes;
    }

    __device__ __forceinline__ void load(KernelParams const& p, Tile const& tile) {
        int32_t const channel = tile.channel + static_cast<int32_t>(threadIdx.x);
        if constexpr (kType == DataType::kFloat16) {
            uint32_t const half =
                load_global_if<uint16_t>(has_channel(tile), static_cast<uint16_t const*>(p.bias) + channel);
            bias = half | half << 16;
        } else {
            bias = load_global_if<uint32_t>(has_channel(tile), static_cast<uint32_t const*>(p.bias) + channel);
        }
        if constexpr (kType == DataType::kInt8) {
            scale = load_global_if<uint32_t>(has_channel(tile), p.weight_scale + channel);
        }
    }

    __device__ __forceinline__ void store(KernelParams const& p, Tile const& tile) const {
        store_shared_if<uint2>(has_channel(tile), slot(p, static_cast<int32_t>(threadIdx.x)), make_uint2(scale, bias));
    }

    // Behind a barrier, so that nobody waits for the division while loads are to be made.
    __device__ __forceinline__ static void work_out(KernelParams const& p, Tile const& tile) {
        if (has_channel(tile)) {
            int32_t const at = slot(p, static_cast<int32_t>(threadIdx.x));
            uint2 const raw = load_shared<uint2>(at);
            float const factor = p.x_scale * __uint_as_float(raw.x) / p.y_scale;
            float const offset = __uint_as_float(raw.y) / p.y_scale;
            store_shared<uint2>(at, make_uint2(__float_as_uint(factor), __float_as_uint(offset)));
        }
    }
};

// One channel's results of the thread at `place`. `weights` is where the block's start in shared memory.
template <DataType kType, int kSize, int kTensor, int kStride, int kRows, bool kHardswish>
__device__ __forceinline__ void run_rows(KernelParams const& p, Place const& place, int32_t weights,
                                         uint32_t (&results)[kRows][kResultWords<kType>]) {
    constexpr int32_t kBytes = kBytesOf<kType>;
    constexpr int32_t kInset = (kTensor - kSize) / 2;
    int32_t const plane = static_cast<int32_t>(place.plane);
    int32_t const first_row = static_cast<int32_t>(place.y) * kRows * kStride + kInset;
    int32_t const first_column = static_cast<int32_t>(place.x) * kColumns * kStride;
    int32_t const address = plane * p.plane_stride + first_row * p.pitch + p.margin + first_column * kBytes;
    weights += kBytes * kTensor * kTensor * plane;
    int32_t const constants = ChannelConstants<kType>::slot(p, plane);
    RowsOf<kType, kSize, kStride, kRows, kHardswish> rows;
    if constexpr (kType == DataType::kInt8) {
        rows.template run<kTensor>(p, weights, constants, address, results);
    } else if constexpr (kType == DataType::kFloat16) {
        rows.template run<kTensor>(p, weights, as_half2(load_shared<uint32_t>(constants + 4)), address, results);
    } else {
        float const bias = __uint_as_float(load_shared<uint32_t>(constants + 4));
        rows.template run<kTensor>(p, weights, bias, address, results);
    }
}

// The channel's kernel size and that of the weight tensor, as template constants.
template <DataType kType, int kStride, int kRows, bool kHardswish>
__device__ __forceinline__ void run_channel(KernelParams const& p, Place const& place, int32_t channel, int32_t weights,
                                            uint32_t (&results)[kRows][kResultWords<kType>]) {
    int32_t const size = kernel_size_of(p, channel);
    if (size == 7) {
        run_rows<kType, 7, 7, kStride, kRows, kHardswish>(p, place, weights, results);
    } else if (size == 5 && p.weight_size == 7) {
        run_rows<kType, 5, 7, kStride, kRows, kHardswish>(p, place, weights, results);
    } else if (size == 5) {
        run_rows<kType, 5, 5, kStride, kRows, kHardswish>(p, place, weights, results);
    } else if (p.weight_size == 7) {
        run_rows<kType, 3, 7, kStride, kRows, kHardswish>(p, place, weights, results);
    } else if (p.weight_size == 5) {
        run_rows<kType, 3, 5, kStride, kRows, kHardswish>(p, place, weights, results);
    } else {
        run_rows<kType, 3, 3, kStride, kRows, kHardswish>(p, place, weights, results);
    }
}

template <DataType kType, Layout kLayout, int kStride, int kRows, bool kHardswish>
__global__ void __launch_bounds__(PlanarBounds<kType, kLayout, kRows>::kThreads,
                                  PlanarBounds<kType, kLayout, kRows>::kBlocks)
    planar_kernel(__grid_constant__ KernelParams const p) {
    constexpr int64_t kBytes = kBytesOf<kType>;
    Tile const tile = tile_of_block<kStride>(p);
    TileOf<kType, kLayout, kStride> data(p, tile);
    int64_t const taps = p.weight_size * p.weight_size;

    // Ask for everything, then lay it down.
    FlatRun weight_run(p.weight, kBytes * p.channels * taps, kBytes * tile.channel * taps,
                       static_cast<int32_t>(kBytes * tile.planes * taps));
    ChannelConstants<kType> constants;
    weight_run.load();
    constants.load(p, tile);
    data.load();
    data.store();
    int32_t const weights = weight_run.store(p.weight_offset);
    constants.store(p, tile);
    if constexpr (kLayout != Layout::kChw32) {
        __syncthreads();
        data.pad();
    }
    if constexpr (kType == DataType::kInt8) {
        ChannelConstants<kType>::work_out(p, tile);
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
