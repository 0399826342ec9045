// SPDX-License-Identifier: Apache-2.0
//
// Which part of the problem a block works on, and which part of that a thread.
#pragma once

#include <type_traits>

#include "device_memory.cuh"
#include "kernel_params.h"

namespace mdconv {

__device__ __forceinline__ uint32_t operator/(uint32_t n, FastDivisor const& d) {
    return (__umulhi(n, d.multiplier) + n) >> d.shift;
}

// n / d, and the remainder in `rest`.
__device__ __forceinline__ uint32_t divide(uint32_t n, FastDivisor const& d, uint32_t& rest) {
    uint32_t const quotient = n / d;
    rest = n - quotient * d.divisor;
    return quotient;
}

struct Tile {
    int32_t image;
    int32_t channel;           // the first one
    int32_t planes;            // channels that exist, at most p.planes
    int32_t row, column;       // the first output
    int32_t top, left;         // of the padded tile's first row and of its first column behind the margin, in the input
    int32_t in_begin, in_end;  // the input rows of the tile that the image has
};

// blockIdx: x the tile in the plane, y the run of channels, z the image.
template <int kStride>
__device__ __forceinline__ Tile tile_of_block(KernelParams const& p) {
    Tile tile;
    uint32_t tile_x = 0;
    uint32_t const tile_y = p.tiles_x == 1 ? blockIdx.x : divide(blockIdx.x, p.by_tiles_x, tile_x);
    tile.image = static_cast<int32_t>(blockIdx.z);
    tile.channel = static_cast<int32_t>(blockIdx.y) * p.planes;
    tile.planes = min(p.planes, p.channels - tile.channel);
    tile.row = static_cast<int32_t>(tile_y) * p.tile_rows;
    tile.column = static_cast<int32_t>(tile_x) * p.tile_columns;
    tile.top = tile.row * kStride - p.pad;
    tile.left = tile.column * kStride;
    tile.in_begin = max(tile.top, 0);
    tile.in_end = min(tile.top + p.in_rows, p.height);
    return tile;
}

// A thread's place: `plane` channels, `y` runs of rows and `x` runs of columns into the tile.
struct Place {
    uint32_t plane, y, x;
};

__device__ __forceinline__ Place place_of_thread(KernelParams const& p) {
    Place place;
    uint32_t rest;
    place.plane = divide(threadIdx.x, p.by_threads_plane, rest);
    place.y = divide(rest, p.by_threads_x, place.x);
    return place;
}

__device__ __forceinline__ int32_t kernel_size_of(KernelParams const& p, int32_t channel) {
    int32_t size = p.group_size[0];
    for (int32_t i = 1; i < p.groups; ++i) {
        size = channel >= p.group_end[i - 1] ? p.group_size[i] : size;
    }
    return size;
}

// The 16 bytes at `offset` of a tensor of `bytes` bytes; zeros behind its end.
__device__ __forceinline__ uint4 load_unit(void const* tensor, int64_t offset, int64_t bytes) {
    auto const* const start = static_cast<unsigned char const*>(tensor) + offset;
    if (offset + 16 <= bytes) {
        return load_global<uint4>(start);
    }
    uint32_t words[4] = {};
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        words[i / 4] |= static_cast<uint32_t>(load_global_if<uint8_t>(offset + i < bytes, start + i)) << (8 * (i % 4));
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// Copies bytes [begin, begin + count) of a tensor to `target` in shared memory by aligned units of 16 bytes. The first
// unit starts begin % 16 bytes early, which is returned; `behind` units of zeros follow the last one.
__device__ __forceinline__ uint32_t copy_flat(void const* tensor, int64_t bytes, int64_t begin, int32_t count,
                                              uint32_t target, int32_t behind) {
    int32_t const early = static_cast<int32_t>(begin & 15);
    int32_t const units = (early + count + 15) >> 4;
    for (int32_t u = static_cast<int32_t>(threadIdx.x); u < units + behind; u += static_cast<int32_t>(blockDim.x)) {
        uint4 const unit = u < units ? load_unit(tensor, begin - early + 16 * u, bytes) : uint4{};
        store_shared<uint4>(target + 16 * static_cast<uint32_t>(u), unit);
    }
    return static_cast<uint32_t>(early);
}

template <int kBytes>
using ElementOf = std::conditional_t<kBytes == 1, uint8_t, std::conditional_t<kBytes == 2, uint16_t, uint32_t>>;

// The way back: bytes [begin, begin + count) of `tensor` from the start of shared memory, where they begin begin % 16
// bytes late. What does not fill a unit of 16 bytes goes by pieces of kPiece.
template <int kPiece>
__device__ __forceinline__ void write_flat(void* tensor, int64_t begin, int32_t count) {
    using Piece = ElementOf<kPiece>;
    int32_t const late = static_cast<int32_t>(begin & 15);
    int32_t const end = late + count;
    auto* const target = static_cast<unsigned char*>(tensor) + begin - late;
    for (int32_t at = 16 * static_cast<int32_t>(threadIdx.x); at < end; at += 16 * static_cast<int32_t>(blockDim.x)) {
        if (at >= late && at + 16 <= end) {
            store_global_if<uint4>(true, target + at, load_shared<uint4>(static_cast<uint32_t>(at)));
            continue;
        }
#pragma unroll 1
        for (int32_t i = max(at, late); i < min(at + 16, end); i += kPiece) {
            store_global_if<Piece>(true, target + i, load_shared<Piece>(static_cast<uint32_t>(i)));
        }
    }
}

__device__ __forceinline__ void clear_shared(uint32_t begin, uint32_t end) {
    for (uint32_t i = begin + 16 * threadIdx.x; i < end; i += 16 * blockDim.x) {
        store_shared<uint4>(i, uint4{});
    }
}

}  // namespace mdconv
