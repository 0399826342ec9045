// SPDX-License-Identifier: Apache-2.0
//
// What the host works out once a launch and every thread reads.
#pragma once

#include <cstdint>

#include "mdconv_problem.h"

namespace mdconv {

// Division of 0 <= n < 2^31 by a fixed d >= 1 without the division: Granlund and Montgomery, "Division by Invariant
// Integers using Multiplication", PLDI 1994, figure 4.1.
struct FastDivisor {
    uint32_t divisor;
    uint32_t multiplier;
    uint32_t shift;

    static FastDivisor of(uint32_t d) {
        uint32_t shift = 0;
        while ((uint64_t{1} << shift) < d) {
            ++shift;
        }
        uint64_t const multiplier = (uint64_t{1} << 32) * ((uint64_t{1} << shift) - d) / d + 1;
        return {d, static_cast<uint32_t>(multiplier), shift};
    }
};

// The same in two instructions, where n * d < 2^31, as for anything that is counted inside a block: n / d is the high
// word of 2 n * ceil(2^31 / d), whose error n * (ceil(2^31 / d) * d - 2^31) / d / 2^31 is less than the 1 / d to the
// next quotient.
struct SmallDivisor {
    uint32_t divisor;
    uint32_t multiplier;

    static SmallDivisor of(int32_t d) {
        uint32_t const divisor = static_cast<uint32_t>(d);
        return {divisor, ((uint32_t{1} << 31) + divisor - 1) / divisor};
    }
};

struct KernelParams {
    void const* x;
    void const* weight;
    void const* bias;
    float const* weight_scale;
    void* y;

    int32_t channels, height, width, out_height, out_width;
    int32_t group_end[kMaxGroups];   // first channel behind the group
    int32_t group_size[kMaxGroups];  // kernel size
    int32_t groups;
    int32_t weight_size;  // K of the weight tensor, the largest kernel size
    int32_t pad;          // K / 2: the halo of every tile

    float x_scale, y_scale;
    float low, high;  // bounds of the output; int8: in units of y_scale

    // The tile of a block: `planes` channels of tile_rows x tile_columns outputs. A thread has kColumns columns of as
    // many rows as the tactic says; threads_x of them lie side by side, threads_y below one another.
    int32_t planes, tile_rows, tile_columns;
    int32_t tiles_x;
    FastDivisor by_tiles_x;
    SmallDivisor by_threads_x, by_threads_plane;

    // The padded tile in shared memory, in bytes: rows of `pitch`, the image's first column of the tile `margin` behind
    // a row's start.
    int32_t in_rows, pitch, plane_stride, margin;
    SmallDivisor by_in_rows, by_height;

    // Linear layout. `granule` is the largest power of two up to 16 that divides a row's bytes.
    int32_t granule;
    SmallDivisor by_row_bytes;
    uint32_t tail_mask[4];  // which bytes of a row's last 16 belong to the row

    // Interleaved layouts.
    SmallDivisor by_row_quads;

    // Offsets in shared memory, in bytes: the padded tile (then the results) is at 0.
    int32_t flat_offset;    // the input as it lies in global memory, before it is padded
    int32_t weight_offset;  // weights as they lie in global memory
    int32_t slot_offset;    // what the threads read of a channel beside its weights, or its weights rearranged
    int64_t x_bytes;        // of the whole tensor
};

// Whether a kernel of so many rows a thread gets 80 registers of sm_87, not 72: so many half-precision
// sums would spill. The interleaved float16 kernel gets 80, too.
constexpr bool needs_registers(DataType type, int32_t rows) { return type == DataType::kFloat16 && rows > 7; }

constexpr int32_t kColumns = 4;          // output columns a thread
constexpr int32_t kInterleavedPair = 8;  // pairs of channels a block of the interleaved float16 kernel
constexpr int32_t kPixelBytes = 32;      // of one pixel in the interleaved kernels: a memory sector
constexpr int32_t kLeft = 4;             // columns before a tile's first that have their place in its rows

}  // namespace mdconv
