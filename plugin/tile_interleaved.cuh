// SPDX-License-Identifier: Apache-2.0
//
// The interleaved int8 layouts (CHW4 and CHW32): a block's input into padded rows in shared memory, one plane a channel
// as in the linear layout, and its results back. The arithmetic then is the linear layout's.
//
// Four pixels of four channels are a 4x4 matrix of bytes: transposed, they are four pixels of each channel.
#pragma once

#include "tile.cuh"

namespace mdconv {

// From four pixels (words of four channels) to four channels (words of four pixels), and back.
__device__ __forceinline__ void transpose(uint32_t (&words)[4]) {
    uint32_t const low01 = __byte_perm(words[0], words[1], 0x5140);
    uint32_t const low23 = __byte_perm(words[2], words[3], 0x5140);
    uint32_t const high01 = __byte_perm(words[0], words[1], 0x7362);
    uint32_t const high23 = __byte_perm(words[2], words[3], 0x7362);
    words[0] = __byte_perm(low01, low23, 0x5410);
    words[1] = __byte_perm(low01, low23, 0x7632);
    words[2] = __byte_perm(high01, high23, 0x5410);
    words[3] = __byte_perm(high01, high23, 0x7632);
}

// What CHW4 and CHW32 share. kGroup channels of a pixel lie side by side.
template <int kGroup, int kStride>
struct InterleavedTile {
    KernelParams const& p;
    Tile const& tile;
    int64_t first_group;  // of the block, in X and Y

    __device__ __forceinline__ InterleavedTile(KernelParams const& params, Tile const& block_tile)
        : p(params), tile(block_tile) {
        int64_t const groups = (p.channels + kGroup - 1) / kGroup;
        first_group = tile.image * groups + tile.channel / kGroup;
    }

    __device__ __forceinline__ unsigned char const* pixel(int32_t group, int32_t y, int32_t x) const {
        int64_t const index = ((first_group + group) * p.height + y) * p.width + x;
        return static_cast<unsigned char const*>(p.x) + index * kGroup;
    }

    __device__ __forceinline__ unsigned char* result(int32_t group, int32_t y, int32_t x) const {
        int64_t const index = ((first_group + group) * p.out_height + y) * p.out_width + x;
        return static_cast<unsigned char*>(p.y) + index * kGroup;
    }

    // Whether a tap of the tile's outputs stands on input column x, and the image has it.
    __device__ __forceinline__ bool wanted(int32_t x) const {
        int32_t const last = tile.left + kStride * (p.tile_columns - 1) + p.pad;
        return x >= max(tile.left - p.pad, 0) && x <= min(last, p.width - 1);
    }

    __device__ __forceinline__ int32_t address(int32_t plane, int32_t tile_row, int32_t quad) const {
        return plane * p.plane_stride + tile_row * p.pitch + p.margin + 4 * quad;
    }

    // `target` is the first channel's `address`.
    __device__ __forceinline__ void store_channels(int32_t target, uint32_t (&pixels)[4]) const {
        transpose(pixels);
#pragma unroll
        for (int i = 0; i < 4; ++i, target += p.plane_stride) {
            store_shared<uint32_t>(target, pixels[i]);
        }
    }
};

template <int kStride>
struct Chw32Tile : InterleavedTile<32, kStride> {
    using Base = InterleavedTile<32, kStride>;
    using Base::Base;
    using Base::p;
    using Base::tile;

    __device__ __forceinline__ void load() {}

    // Two threads share the 32 bytes of a pixel, so that a warp asks for whole sectors.
    __device__ __forceinline__ void store() {
        uint32_t const items = 2 * p.by_row_quads.divisor * static_cast<uint32_t>(p.in_rows);
        for (uint32_t item = threadIdx.x; item < items; item += blockDim.x) {
            int32_t const half = static_cast<int32_t>(item & 1);
            uint32_t column;
            int32_t const tile_row = static_cast<int32_t>(divide(item >> 1, p.by_row_quads, column));
            int32_t const quad = static_cast<int32_t>(column) - 1;
            int32_t const y = tile.top + tile_row;
            int32_t const x = tile.left + 4 * quad;
            bool const inside = y >= tile.in_begin && y < tile.in_end;
            uint4 pixels[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                auto const* const source = Base::pixel(0, y, x + i) + 16 * half;
                pixels[i] = load_global_if<uint4>(inside && Base::wanted(x + i), source);
            }
            uint32_t first[4] = {pixels[0].x, pixels[1].x, pixels[2].x, pixels[3].x};
            uint32_t second[4] = {pixels[0].y, pixels[1].y, pixels[2].y, pixels[3].y};
            uint32_t third[4] = {pixels[0].z, pixels[1].z, pixels[2].z, pixels[3].z};
            uint32_t fourth[4] = {pixels[0].w, pixels[1].w, pixels[2].w, pixels[3].w};
            int32_t const target = Base::address(16 * half, tile_row, quad);
            Base::store_channels(target, first);
            Base::store_channels(target + 4 * p.plane_stride, second);
            Base::store_channels(target + 8 * p.plane_stride, third);
            Base::store_channels(target + 12 * p.plane_stride, fourth);
        }
    }

    // Words of four results, one plane a channel; an odd number of words a plane.
    __device__ __forceinline__ int32_t staged_plane() const { return (p.tile_rows * row_words()) | 1; }

    __device__ __forceinline__ int32_t row_words() const { return static_cast<int32_t>(p.by_threads_x.divisor); }

    template <int kRows>
    __device__ __forceinline__ void stage(Place const& place, uint32_t const (&results)[kRows][1]) const {
        int32_t const row = static_cast<int32_t>(place.y) * kRows;
        int32_t const first = static_cast<int32_t>(place.plane) * staged_plane() + row * row_words();
        int32_t target = 4 * (first + static_cast<int32_t>(place.x));
#pragma unroll
        for (int r = 0; r < kRows; ++r, target += 4 * row_words()) {
            store_shared<uint32_t>(target, results[r][0]);
        }
    }

    __device__ __forceinline__ void write() const {
        int32_t const rows = min(p.out_height - tile.row, p.tile_rows);
        uint32_t const items = 2 * p.by_threads_x.divisor * static_cast<uint32_t>(rows);
        for (uint32_t item = threadIdx.x; item < items; item += blockDim.x) {
            int32_t const half = static_cast<int32_t>(item & 1);
            uint32_t quad;
            int32_t const row = static_cast<int32_t>(divide(item >> 1, p.by_threads_x, quad));
            uint32_t words[4][4];
            int32_t const first = 16 * half * staged_plane() + row * row_words() + static_cast<int32_t>(quad);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    words[i][j] = load_shared<uint32_t>(4 * (first + (4 * i + j) * staged_plane()));
                }
                transpose(words[i]);
            }
            int32_t const x = tile.column + 4 * static_cast<int32_t>(quad);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                auto* const target = Base::result(0, tile.row + row, x + j) + 16 * half;
                store_global_if<uint4>(x + j < p.out_width, target,
                                       make_uint4(words[0][j], words[1][j], words[2][j], words[3][j]));
            }
        }
    }
};

template <int kStride>
struct Chw4Tile : InterleavedTile<4, kStride> {
    using Base = InterleavedTile<4, kStride>;
    using Base::Base;
    using Base::p;
    using Base::tile;

    // Where rows are no multiple of 16 bytes, whole rows are laid down as they come first; else four pixels are one
    // access.
    __device__ __forceinline__ bool comes_flat() const { return p.granule < 16 && p.tiles_x == 1; }

    __device__ __forceinline__ int32_t groups() const { return (tile.planes + 3) / 4; }

    int32_t first;  // byte of the tile, in shared memory

    __device__ __forceinline__ void load() {}

    __device__ __forceinline__ void store() {
        if (comes_flat()) {
            int64_t const begin = Base::pixel(0, tile.in_begin, 0) - static_cast<unsigned char const*>(p.x);
            int32_t const rows = (groups() - 1) * p.height + tile.in_end - tile.in_begin;
            FlatRun run(p.x, p.x_bytes, begin, 4 * rows * p.width);
            run.load();
            first = run.store(p.flat_offset);
        } else {
            fill<false>();
        }
    }

    __device__ __forceinline__ void pad() {
        if (comes_flat()) {
            fill<true>();
        }
    }

    // A thread asks for several quads before it lays the first one down.
    template <bool kFlat>
    __device__ __forceinline__ void fill() const {
        constexpr int kAhead = kFlat ? 1 : 4;
        uint32_t const items = p.by_row_quads.divisor * static_cast<uint32_t>(groups() * p.in_rows);
        for (uint32_t item = threadIdx.x; item < items; item += kAhead * blockDim.x) {
            uint32_t ahead[kAhead][4];
            int32_t target[kAhead];
#pragma unroll
            for (int k = 0; k < kAhead; ++k) {
                uint32_t column, tile_row;
                uint32_t const row = divide(item + k * blockDim.x, p.by_row_quads, column);
                int32_t const group = static_cast<int32_t>(divide(row, p.by_in_rows, tile_row));
                int32_t const quad = static_cast<int32_t>(column) - 1;
                int32_t const y = tile.top + static_cast<int32_t>(tile_row);
                bool const inside = item + k * blockDim.x < items && y >= tile.in_begin && y < tile.in_end;
                load_pixels<kFlat>(group, y, tile.left + 4 * quad, inside, ahead[k]);
                target[k] = Base::address(4 * group, static_cast<int32_t>(tile_row), quad);
            }
#pragma unroll
            for (int k = 0; k < kAhead; ++k) {
                if (item + k * blockDim.x < items) {
                    Base::store_channels(target[k], ahead[k]);
                }
            }
        }
    }

    template <bool kFlat>
    __device__ __forceinline__ void load_pixels(int32_t group, int32_t y, int32_t x, bool inside,
                                                uint32_t (&pixels)[4]) const {
        if constexpr (kFlat) {
            int32_t const row = group * p.height + y - tile.in_begin;
            int32_t const source = first + 4 * (row * p.width + x);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                bool const mine = inside && x + i >= 0 && x + i < p.width;
                pixels[i] = mine ? load_shared<uint32_t>(source + 4 * i) : 0;
            }
        } else if (p.granule == 16) {
            bool const mine = inside && x >= 0 && x < p.width;  // a multiple of four: all four pixels or none
            uint4 const four = load_global_if<uint4>(mine, Base::pixel(group, y, x));
            pixels[0] = four.x;
            pixels[1] = four.y;
            pixels[2] = four.z;
            pixels[3] = four.w;
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                bool const mine = inside && Base::wanted(x + i);
                pixels[i] = load_global_if<uint32_t>(mine, Base::pixel(group, y, x + i));
            }
        }
    }

    // As they go to global memory, byte by byte.
    template <int kRows>
    __device__ __forceinline__ void stage(Place const& place, uint32_t const (&results)[kRows][1]) const {
        int32_t const rows = min(p.out_height - tile.row, p.tile_rows);
        int32_t const first_row = static_cast<int32_t>(place.y) * kRows;
        int32_t const column = static_cast<int32_t>(place.x) * kColumns;
        int32_t const start = (static_cast<int32_t>(place.plane / 4) * rows + first_row) * p.out_width + column;
        int32_t target = results_early() + 4 * start + static_cast<int32_t>(place.plane & 3);
#pragma unroll
        for (int r = 0; r < kRows; ++r, target += 4 * p.out_width) {
#pragma unroll
            for (int i = 0; i < kColumns; ++i) {
                bool const inside = first_row + r < rows && column + i < p.out_width;
                store_shared_if<uint8_t>(inside, target + 4 * i, static_cast<uint8_t>(results[r][0] >> (8 * i)));
            }
        }
    }

    __device__ __forceinline__ int64_t results_begin() const {
        return Base::result(0, tile.row, 0) - static_cast<unsigned char*>(p.y);
    }

    __device__ __forceinline__ int32_t results_early() const { return static_cast<int32_t>(results_begin() & 15); }

    __device__ __forceinline__ void write() const {
        int32_t const rows = min(p.out_height - tile.row, p.tile_rows);
        write_flat<4>(p.y, results_begin(), 4 * groups() * rows * p.out_width);
    }

    template <int kRows>
    __device__ __forceinline__ void write_directly(Place const& place, uint32_t const (&results)[kRows][1]) const {
        int32_t const column = tile.column + static_cast<int32_t>(place.x) * kColumns;
        int32_t const first_row = tile.row + static_cast<int32_t>(place.y) * kRows;
        auto* y = Base::result(static_cast<int32_t>(place.plane / 4), first_row, column) + (place.plane & 3);
#pragma unroll
        for (int r = 0; r < kRows; ++r, y += 4 * p.out_width) {
#pragma unroll
            for (int i = 0; i < kColumns; ++i) {
                bool const inside = first_row + r < p.out_height && column + i < p.out_width;
                store_global_if<uint8_t>(inside, y + 4 * i, static_cast<uint8_t>(results[r][0] >> (8 * i)));
            }
        }
    }
};

}  // namespace mdconv
