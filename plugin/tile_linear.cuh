// SPDX-License-Identifier: Apache-2.0
//
// The linear layout (NCHW): a block's input into padded rows in shared memory, and its results back.
//
// A tile is whole rows of the image, often whole planes: one run of bytes in global memory, read in aligned units of 16
// bytes whatever the width. Where rows are a multiple of 8 bytes the units go straight to their padded rows; elsewhere
// they are laid down as they come, and each row is then shifted to its place.
#pragma once

#include "tile.cuh"

namespace mdconv {

template <int kBytes, int kStride>
struct LinearTile {
    static constexpr int kAhead = 4;  // units a thread has under way while shared memory is cleared

    KernelParams const& p;
    Tile const& tile;
    int32_t row_bytes;
    int64_t begin;  // of the run
    int32_t count;  // its bytes
    uint32_t early;
    uint4 ahead[kAhead];

    __device__ __forceinline__ LinearTile(KernelParams const& params, Tile const& block_tile)
        : p(params), tile(block_tile), row_bytes(params.width * kBytes) {
        int64_t const plane = static_cast<int64_t>(tile.image) * p.channels + tile.channel;
        begin = (plane * p.height + tile.in_begin) * row_bytes;
        count = ((tile.planes - 1) * p.height + tile.in_end - tile.in_begin) * row_bytes;
    }

    // Before a barrier.
    __device__ __forceinline__ void fetch() {
        if (p.tiles_x > 1) {
            return;
        }
        if (p.granule < 8) {
            early = copy_flat(p.x, p.x_bytes, begin, count, static_cast<uint32_t>(p.flat_offset), 2);
            return;
        }
        early = static_cast<uint32_t>(begin & 15);
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
            ahead[k] = unit(static_cast<int32_t>(threadIdx.x + k * blockDim.x));
        }
        clear_shared(0, static_cast<uint32_t>(p.planes * p.plane_stride));
    }

    // Behind that barrier, and before another.
    __device__ __forceinline__ void pad() {
        if (p.tiles_x > 1) {
            gather();
        } else if (p.granule == 16) {
            scatter_all<16>();
        } else if (p.granule == 8) {
            scatter_all<8>();
        } else if (p.granule == 4) {
            shift_rows<true>();
        } else {
            shift_rows<false>();
        }
    }

    __device__ __forceinline__ uint4 unit(int32_t u) const {
        bool const wanted = 16 * u < static_cast<int32_t>(early) + count;
        return wanted ? load_unit(p.x, begin - early + 16 * u, p.x_bytes) : uint4{};
    }

    __device__ __forceinline__ uint32_t address(uint32_t plane, int32_t tile_row) const {
        return plane * static_cast<uint32_t>(p.plane_stride) + static_cast<uint32_t>(tile_row * p.pitch + p.margin);
    }

    template <int kGranule>
    __device__ __forceinline__ void scatter_all() {
        int32_t const threads = static_cast<int32_t>(blockDim.x);
        int32_t u = static_cast<int32_t>(threadIdx.x);
#pragma unroll
        for (int k = 0; k < kAhead; ++k, u += threads) {
            scatter<kGranule>(u, ahead[k]);
        }
        for (; 16 * u < static_cast<int32_t>(early) + count; u += threads) {
            scatter<kGranule>(u, unit(u));
        }
    }

    template <int kGranule>
    __device__ __forceinline__ void scatter(int32_t u, uint4 const& unit) const {
        uint32_t const words[4] = {unit.x, unit.y, unit.z, unit.w};
#pragma unroll
        for (int g = 0; g < 16 / kGranule; ++g) {
            int32_t const position = 16 * u + kGranule * g - static_cast<int32_t>(early);
            bool const mine = position >= 0 && position < count;
            uint32_t column, row;
            uint32_t const image_row = divide(static_cast<uint32_t>(max(position, 0)), p.by_row_bytes, column);
            uint32_t const plane = divide(image_row, p.by_height, row);
            uint32_t const target = address(plane, static_cast<int32_t>(row) + tile.in_begin - tile.top) + column;
            if constexpr (kGranule == 16) {
                store_shared_if<uint4>(mine, target, unit);
            } else {
                store_shared_if<uint2>(mine, target, make_uint2(words[2 * g], words[2 * g + 1]));
            }
        }
    }

    // Each thread a run of 16 bytes of a row, as often as it takes, and the zeros around it: those behind a row are
    // those before the next.
    template <bool kWords>
    __device__ __forceinline__ void shift_rows() const {
        uint32_t const chunks = p.by_row_chunks.divisor;
        uint32_t const items = static_cast<uint32_t>(tile.planes * p.in_rows) * chunks;
        for (uint32_t item = threadIdx.x; item < items; item += blockDim.x) {
            uint32_t chunk, tile_row;
            uint32_t const row = divide(item, p.by_row_chunks, chunk);
            uint32_t const plane = divide(row, p.by_in_rows, tile_row);
            int32_t const y = tile.top + static_cast<int32_t>(tile_row);
            bool const inside = y >= tile.in_begin && y < tile.in_end;
            bool const last = chunk + 1 == chunks;
            int32_t const flat_row = static_cast<int32_t>(plane) * p.height + y - tile.in_begin;
            uint32_t const source = inside ? early + static_cast<uint32_t>(flat_row * row_bytes) + 16 * chunk : 0;
            uint32_t words[4];
            load_shifted<kWords>(static_cast<uint32_t>(p.flat_offset) + source, words);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                uint32_t const keep = last ? p.tail_mask[i] : ~0u;
                words[i] = inside ? words[i] & keep : 0;
            }
            uint32_t const target = address(plane, static_cast<int32_t>(tile_row));
            store_sixteen(target + 16 * chunk, words);
            if (chunk == 0) {
                clear(target - static_cast<uint32_t>(p.margin), target);
            }
            if (last) {
                bool const bottom = static_cast<int32_t>(tile_row) + 1 == p.in_rows;
                clear(target + 16 * chunks, target + static_cast<uint32_t>(bottom ? p.pitch : p.pitch - p.margin));
            }
        }
    }

    template <bool kWords>
    __device__ __forceinline__ static void load_shifted(uint32_t address, uint32_t (&words)[4]) {
        uint32_t const base = address & ~3u;
        uint32_t raw[5];
#pragma unroll
        for (int i = 0; i < (kWords ? 4 : 5); ++i) {
            raw[i] = load_shared<uint32_t>(base + 4 * i);
        }
        uint32_t const selector = 0x3210 + 0x1111 * (address & 3);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            words[i] = kWords ? raw[i] : __byte_perm(raw[i], raw[i + 1], selector);
        }
    }

    // Rows start at multiples of the widest access that the element type allows.
    __device__ __forceinline__ static void store_sixteen(uint32_t address, uint32_t const (&words)[4]) {
        if constexpr (kBytes == 4) {
            store_shared<uint4>(address, make_uint4(words[0], words[1], words[2], words[3]));
        } else if constexpr (kBytes == 2 || kStride == 2) {
            store_shared<uint2>(address, make_uint2(words[0], words[1]));
            store_shared<uint2>(address + 8, make_uint2(words[2], words[3]));
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                store_shared<uint32_t>(address + 4 * i, words[i]);
            }
        }
    }

    __device__ __forceinline__ static void clear(uint32_t begin, uint32_t end) {
        for (uint32_t i = begin; i < end; i += 4) {
            store_shared<uint32_t>(i, 0);
        }
    }

    // Images too wide for whole rows: element by element.
    __device__ __forceinline__ void gather() const {
        using Element = ElementOf<kBytes>;
        auto const* const x = static_cast<Element const*>(p.x);
        int32_t const pitch = p.pitch / kBytes;
        for (int32_t tile_row = 0; tile_row < p.in_rows; ++tile_row) {
            int32_t const y = tile.top + tile_row;
            int64_t const row = begin / kBytes + static_cast<int64_t>(y - tile.in_begin) * p.width;
            for (int32_t i = static_cast<int32_t>(threadIdx.x); i < pitch; i += static_cast<int32_t>(blockDim.x)) {
                int32_t const column = tile.left + i - p.margin / kBytes;
                bool const inside = y >= 0 && y < p.height && column >= 0 && column < p.width;
                Element const value = load_global_if<Element>(inside, x + row + column);
                store_shared<Element>(static_cast<uint32_t>(tile_row * p.pitch + i * kBytes), value);
            }
        }
    }

    // Lays a thread's results down as they go to global memory. Between barriers.
    template <int kRows, int kWords>
    __device__ __forceinline__ void stage(Place const& place, uint32_t const (&results)[kRows][kWords]) const {
        int32_t const first_row = static_cast<int32_t>(place.y) * kRows;
        int32_t const column = static_cast<int32_t>(place.x) * kColumns;
        int32_t const rows = min(p.out_height - tile.row, p.tile_rows);
        int32_t const start = (static_cast<int32_t>(place.plane) * rows + first_row) * p.out_width + column;
        uint32_t target = results_early() + static_cast<uint32_t>(start * kBytes);
#pragma unroll
        for (int r = 0; r < kRows; ++r, target += static_cast<uint32_t>(p.out_width * kBytes)) {
            if (first_row + r >= rows) {
                continue;
            }
            if ((p.out_width & 3) == 0) {
                store_row(target, results[r]);
            } else if ((p.out_width & 1) == 0) {
                store_pieces<2>(target, column, results[r]);
            } else {
                store_pieces<1>(target, column, results[r]);
            }
        }
    }

    template <int kWords>
    __device__ __forceinline__ static void store_row(uint32_t target, uint32_t const (&row)[kWords]) {
        if constexpr (kWords == 4) {
            store_shared<uint4>(target, make_uint4(row[0], row[1], row[2], row[3]));
        } else if constexpr (kWords == 2) {
            store_shared<uint2>(target, make_uint2(row[0], row[1]));
        } else {
            store_shared<uint32_t>(target, row[0]);
        }
    }

    // `kPiece` columns at a time, as far as the image goes.
    template <int kPiece, int kWords>
    __device__ __forceinline__ void store_pieces(uint32_t target, int32_t column, uint32_t const (&row)[kWords]) const {
        constexpr int kPieceBytes = kPiece * kBytes;
#pragma unroll
        for (int i = 0; i < kColumns; i += kPiece) {
            bool const inside = column + i < p.out_width;
            uint32_t const at = target + static_cast<uint32_t>(i * kBytes);
            uint32_t const word = row[i * kBytes / 4] >> (8 * (i * kBytes % 4));
            if constexpr (kPieceBytes == 8) {
                store_shared_if<uint2>(inside, at, make_uint2(row[i], row[i + 1]));
            } else if constexpr (kPieceBytes == 4) {
                store_shared_if<uint32_t>(inside, at, word);
            } else if constexpr (kPieceBytes == 2) {
                store_shared_if<uint16_t>(inside, at, static_cast<uint16_t>(word));
            } else {
                store_shared_if<uint8_t>(inside, at, static_cast<uint8_t>(word));
            }
        }
    }

    // First byte of the block's results in Y.
    __device__ __forceinline__ int64_t results_begin() const {
        int64_t const plane = static_cast<int64_t>(tile.image) * p.channels + tile.channel;
        return (plane * p.out_height + tile.row) * p.out_width * kBytes;
    }

    __device__ __forceinline__ uint32_t results_early() const { return static_cast<uint32_t>(results_begin() & 15); }

    // Copies what was staged to Y, behind a barrier.
    __device__ __forceinline__ void write() const {
        int32_t const rows = min(p.out_height - tile.row, p.tile_rows);
        write_flat<kBytes>(p.y, results_begin(), tile.planes * rows * p.out_width * kBytes);
    }

    // Where a tile is less than whole rows: each thread its own results, without staging.
    template <int kRows, int kWords>
    __device__ __forceinline__ void write_directly(Place const& place, uint32_t const (&results)[kRows][kWords]) const {
        using Element = ElementOf<kBytes>;
        int32_t const column = tile.column + static_cast<int32_t>(place.x) * kColumns;
        int32_t const first_row = tile.row + static_cast<int32_t>(place.y) * kRows;
        int64_t const plane = static_cast<int64_t>(tile.image) * p.channels + tile.channel + place.plane;
        auto* y = static_cast<Element*>(p.y) + (plane * p.out_height + first_row) * p.out_width + column;
#pragma unroll
        for (int r = 0; r < kRows; ++r, y += p.out_width) {
#pragma unroll
            for (int i = 0; i < kColumns; ++i) {
                bool const inside = first_row + r < p.out_height && column + i < p.out_width;
                uint32_t const word = results[r][i * kBytes / 4] >> (8 * (i * kBytes % 4));
                store_global_if<Element>(inside, y + i, static_cast<Element>(word));
            }
        }
    }
};

}  // namespace mdconv
