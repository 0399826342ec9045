// SPDX-License-Identifier: Apache-2.0
//
// Which part of the problem a block works on, and which part of that a thread.
#pragma once

#include <type_traits>

#include "device_memory.cuh"
#include "kernel_params.h"

namespace mdconv {

// Threads that a multiprocessor is to hold at least, which bounds the registers of a thread: 72 for 896, 80 for 768,
// both more than half of the warps of sm_87. The compiler takes a few more for sm_100 and later, and would spill them.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kResidentThreads = 448;
constexpr int kFewResidentThreads = 512;
#else
constexpr int kResidentThreads = 896;
constexpr int kFewResidentThreads = 768;
#endif

__device__ __forceinline__ uint32_t operator/(uint32_t n, FastDivisor const& d) {
    return (__umulhi(n, d.multiplier) + n) >> d.shift;
}

__device__ __forceinline__ uint32_t operator/(uint32_t n, SmallDivisor const& d) {
    return __umulhi(2 * n, d.multiplier);
}

// n / d, and the remainder in `rest`.
template <typename Divisor>
__device__ __forceinline__ uint32_t divide(uint32_t n, Divisor const& d, uint32_t& rest) {
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
    uint4 unit{};
#pragma unroll 1
    for (int i = 0; i < 16; ++i) {
        uint32_t const byte = load_global_if<uint8_t>(offset + i < bytes, start + i);
        unit.x = __funnelshift_r(unit.x, unit.y, 8);
        unit.y = __funnelshift_r(unit.y, unit.z, 8);
        unit.z = __funnelshift_r(unit.z, unit.w, 8);
        unit.w = __funnelshift_r(unit.w, byte, 8);
    }
    return unit;
}

// A run of a tensor's bytes on its way to shared memory, by aligned units of 16 bytes: asked for by `load`, laid down
// by `store`, so that everything that a block needs is under way at once. Eight bytes of zeros follow, for whoever
// reads a little more.
struct FlatRun {
    void const* tensor;
    int64_t bytes;  // of the tensor
    int64_t begin;
    int32_t early;  // bytes of the first unit that come before the run
    int32_t end;    // of the run, from the start of its first unit
    uint4 first;

    __device__ __forceinline__ FlatRun(void const* whole, int64_t whole_bytes, int64_t from, int32_t count)
        : tensor(whole), bytes(whole_bytes), begin(from), early(static_cast<int32_t>(from & 15)), end(early + count) {}

    __device__ __forceinline__ uint4 unit(int32_t at) const {
        return at < end ? load_unit(tensor, begin - early + at, bytes) : uint4{};
    }

    __device__ __forceinline__ void load() { first = unit(16 * static_cast<int32_t>(threadIdx.x)); }

    // Returns where the run's first byte is.
    __device__ __forceinline__ int32_t store(int32_t target) const {
        int32_t at = 16 * static_cast<int32_t>(threadIdx.x);
        store_shared_if<uint4>(at < end + 8, target + at, first);
        for (at += 16 * static_cast<int32_t>(blockDim.x); at < end + 8; at += 16 * static_cast<int32_t>(blockDim.x)) {
            store_shared<uint4>(target + at, unit(at));
        }
        return target + early;
    }
};

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
            store_global_if<uint4>(true, target + at, load_shared<uint4>(at));
            continue;
        }
#pragma unroll 1
        for (int32_t i = max(at, late); i < min(at + 16, end); i += kPiece) {
            store_global_if<Piece>(true, target + i, load_shared<Piece>(i));
        }
    }
}

__device__ __forceinline__ void clear_shared(int32_t end) {
#pragma unroll 4
    for (int32_t at = 16 * static_cast<int32_t>(threadIdx.x); at < end; at += 16 * static_cast<int32_t>(blockDim.x)) {
        store_shared<uint4>(at, uint4{});
    }
}

}  // namespace mdconv
