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
    static constexpr int kAhead = 4;  // units that a thread has under way

    KernelParams const& p;
    Tile const& tile;
    int32_t row_bytes;
    int32_t rows;  // of all channels
    FlatRun run;
    uint4 ahead[kAhead];

    __device__ __forceinline__ LinearTile(KernelParams const& params, Tile const& block_tile)
        : p(params),
          tile(block_tile),
          row_bytes(params.width * kBytes),
          rows((tile.planes - 1) * p.height + tile.in_end - tile.in_begin),
          run(p.x, p.x_bytes, first_row() * row_bytes, rows * row_bytes) {}

    // Of the tile, among all rows of X.
    __device__ __forceinline__ int64_t first_row() const {
        int64_t const plane = static_cast<int64_t>(tile.image) * p.channels + tile.channel;
        return plane * p.height + tile.in_begin;
    }

    // Loads begin.
    __device__ __forceinline__ void load() {
        if (p.tiles_x == 1) {
            load_ahead(16 * static_cast<int32_t>(threadIdx.x));
        }
    }

    // Before a barrier.
    __device__ __forceinline__ void store() {
        if (p.tiles_x > 1) {
            return;
        }
        clear_shared(p.planes * p.plane_stride);
        if (p.granule < 8) {
            // shift_rows reads 20 bytes behind the run.
            for_all_units(run.end + 20, [&](int32_t at, uint4 const& unit) {
                store_shared_if<uint4>(at < run.end + 20, p.flat_offset + at, unit);
            });
        }
    }

    __device__ __forceinline__ void load_ahead(int32_t at) {
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
            ahead[k] = run.unit(at + 16 * k * static_cast<int32_t>(blockDim.x));
        }
    }

    // Calls use(place, unit) for each of the thread's units up to `end`, of which the first kAhead are under way.
    template <typename Use>
    __device__ __forceinline__ void for_all_units(int32_t end, Use use) {
        int32_t const step = 16 * static_cast<int32_t>(blockDim.x);
        int32_t at = 16 * static_cast<int32_t>(threadIdx.x);
#pragma unroll 1
        while (true) {
#pragma unroll
            for (int k = 0; k < kAhead; ++k) {
                use(at + k * step, ahead[k]);
            }
            at += kAhead * step;
            if (at >= end) {
                return;
            }
            load_ahead(at);
        }
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

    // Where row `row` of the run has its place: the rows of a channel follow one another, then comes the next channel's
    // halo.
    __device__ __forceinline__ int32_t address(int32_t row) const {
        int32_t const plane = static_cast<int32_t>(static_cast<uint32_t>(row) / p.by_height);
        return plane * (p.plane_stride - p.height * p.pitch) + (row + tile.in_begin - tile.top) * p.pitch + p.margin;
    }

    template <int kGranule>
    __device__ __forceinline__ void scatter_all() {
        for_all_units(run.end, [&](int32_t at, uint4 const& unit) { scatter<kGranule>(at, unit); });
    }

    template <int kGranule>
    __device__ __forceinline__ void scatter(int32_t at, uint4 const& unit) const {
        uint32_t const words[4] = {unit.x, unit.y, unit.z, unit.w};
#pragma unroll
        for (int i = 0; i < 16 / kGranule; ++i) {
            int32_t const position = at + kGranule * i - run.early;
            bool const mine = position >= 0 && position < rows * row_bytes;
            uint32_t column;
            uint32_t const known = static_cast<uint32_t>(mine ? position : 0);
            int32_t const row = static_cast<int32_t>(divide(known, p.by_row_bytes, column));
            int32_t const target = address(row) + static_cast<int32_t>(column);
            if constexpr (kGranule == 16) {
                store_shared_if<uint4>(mine, target, unit);
            } else {
                store_shared_if<uint2>(mine, target, make_uint2(words[2 * i], words[2 * i + 1]));
            }
        }
    }

    // Each thread a row, 16 bytes at a time. kWords: rows start at whole words.
    template <bool kWords>
    __device__ __forceinline__ void shift_rows() const {
        for (int32_t row = static_cast<int32_t>(threadIdx.x); row < rows; row += static_cast<int32_t>(blockDim.x)) {
            int32_t const source = p.flat_offset + run.early + row * row_bytes;
            int32_t target = address(row);
            uint32_t const selector = 0x3210 + 0x1111 * static_cast<uint32_t>(source & 3);
            int32_t word = source & ~3;
#pragma unroll 1
            for (int32_t left = row_bytes; left > 0; left -= 16, word += 16, target += 16) {
                uint32_t words[5];
#pragma unroll
                for (int i = 0; i < (kWords ? 4 : 5); ++i) {
                    words[i] = load_shared<uint32_t>(word + 4 * i);
                }
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    words[i] = kWords ? words[i] : __byte_perm(words[i], words[i + 1], selector);
                }
                if (left <= 16) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        words[i] &= p.tail_mask[i];
                    }
                }
                store_sixteen(target, words);
            }
        }
    }

    // Rows start at multiples of the widest access that the element type allows.
    __device__ __forceinline__ static void store_sixteen(int32_t address, uint32_t const (&words)[5]) {
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

    // Images too wide for whole rows: element by element.
    __device__ __forceinline__ void gather() const {
        using Element = ElementOf<kBytes>;
        auto const* const x = static_cast<Element const*>(p.x);
        int32_t const pitch = p.pitch / kBytes;
        for (int32_t tile_row = 0; tile_row < p.in_rows; ++tile_row) {
            int32_t const y = tile.top + tile_row;
            int64_t const row = (first_row() + y - tile.in_begin) * p.width;
            for (int32_t i = static_cast<int32_t>(threadIdx.x); i < pitch; i += static_cast<int32_t>(blockDim.x)) {
                int32_t const column = tile.left + i - p.margin / kBytes;
                bool const inside = y >= 0 && y < p.height && column >= 0 && column < p.width;
                Element const value = load_global_if<Element>(inside, x + row + column);
                store_shared<Element>(tile_row * p.pitch + i * kBytes, value);
            }
        }
    }

    // Lays a thread's results down as they go to global memory. Between barriers.
    template <int kRows, int kWords>
    __device__ __forceinline__ void stage(Place const& place, uint32_t const (&results)[kRows][kWords]) const {
        int32_t const column = static_cast<int32_t>(place.x) * kColumns;
        if ((p.out_width & 3) == 0) {
            stage_by<4>(place, column, results);
        } else if ((p.out_width & 1) == 0) {
            stage_by<2>(place, column, results);
        } else {
            stage_by<1>(place, column, results);
        }
    }

    // `kPiece` columns at a time, as far as the image goes.
    template <int kPiece, int kRows, int kWords>
    __device__ __forceinline__ void stage_by(Place const& place, int32_t column,
                                             uint32_t const (&results)[kRows][kWords]) const {
        int32_t const block_rows = min(p.out_height - tile.row, p.tile_rows);
        int32_t const first_row = static_cast<int32_t>(place.y) * kRows;
        int32_t const mine = block_rows - first_row;
        int32_t const start = (static_cast<int32_t>(place.plane) * block_rows + first_row) * p.out_width + column;
        int32_t target = results_early() + start * kBytes;
#pragma unroll
        for (int r = 0; r < kRows; ++r, target += p.out_width * kBytes) {
#pragma unroll
            for (int i = 0; i < kColumns; i += kPiece) {
                bool const inside = r < mine && (kPiece == kColumns || column + i < p.out_width);
                store_piece<kPiece * kBytes>(inside, target + i * kBytes, &results[r][i * kBytes / 4], i * kBytes % 4);
            }
        }
    }

    template <int kPieceBytes>
    __device__ __forceinline__ static void store_piece(bool inside, int32_t at, uint32_t const* words, int byte) {
        if constexpr (kPieceBytes == 16) {
            store_shared_if<uint4>(inside, at, make_uint4(words[0], words[1], words[2], words[3]));
        } else if constexpr (kPieceBytes == 8) {
            store_shared_if<uint2>(inside, at, make_uint2(words[0], words[1]));
        } else {
            using Piece = ElementOf<kPieceBytes>;
            store_shared_if<Piece>(inside, at, static_cast<Piece>(words[0] >> (8 * byte)));
        }
    }

    // First byte of the block's results in Y.
    __device__ __forceinline__ int64_t results_begin() const {
        int64_t const plane = static_cast<int64_t>(tile.image) * p.channels + tile.channel;
        return (plane * p.out_height + tile.row) * p.out_width * kBytes;
    }

    __device__ __forceinline__ int32_t results_early() const { return static_cast<int32_t>(results_begin() & 15); }

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
