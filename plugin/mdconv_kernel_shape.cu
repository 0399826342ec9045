// SPDX-License-Identifier: Apache-2.0
//
// The search for the tile of a tactic: of all that fit, the one with the least modelled cost.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "launch_shape.h"

namespace mdconv {

namespace {

int32_t largest_granule(int32_t bytes) {
    int32_t granule = 16;
    while (bytes % granule != 0) {
        granule /= 2;
    }
    return granule;
}

// What does not depend on the tile.
KernelParams params_of(Problem const& problem) {
    KernelParams params{};
    params.channels = problem.channels;
    params.height = problem.height;
    params.width = problem.width;
    params.out_height = ceil_div(problem.height, problem.stride);
    params.out_width = ceil_div(problem.width, problem.stride);
    params.groups = problem.groups;
    int32_t end = 0;
    for (int32_t i = 0; i < problem.groups; ++i) {
        end += problem.channel_splits[i];
        params.group_end[i] = end;
        params.group_size[i] = problem.kernel_sizes[i];
        params.weight_size = std::max(params.weight_size, problem.kernel_sizes[i]);
    }
    params.pad = params.weight_size / 2;
    params.x_scale = problem.x_scale;
    params.y_scale = problem.y_scale;
    int32_t const row_bytes = problem.width * bytes_of(problem.type) * (problem.layout == Layout::kChw4 ? 4 : 1);
    params.granule = largest_granule(row_bytes);
    params.by_row_bytes = SmallDivisor::of(row_bytes);
    for (int32_t i = 0; i < 4; ++i) {
        int32_t const tail = (row_bytes - 1) % 16 + 1;  // bytes in a row's last 16
        int32_t const bytes = std::min(std::max(tail - 4 * i, 0), 4);
        params.tail_mask[i] = bytes == 4 ? ~0u : (1u << (8 * bytes)) - 1;
    }
    params.by_height = SmallDivisor::of(problem.height);
    params.x_bytes = static_cast<int64_t>(problem.batch) * stored_channels(problem) * problem.height * problem.width *
                     bytes_of(problem.type);
    return params;
}

// Threads of a block: `x` beside one another in a row, `y` below one another, `planes` channels.
struct Block {
    int32_t x, y, planes;
};

void set_block(Problem const& problem, Tactic tactic, Block block, KernelParams& params) {
    params.planes = block.planes;
    params.tile_rows = block.y * tactic.rows;
    params.tile_columns = block.x * kColumns;
    params.tiles_x = ceil_div(params.out_width, params.tile_columns);
    params.in_rows = (params.tile_rows - 1) * problem.stride + 1 + 2 * params.pad;
    params.by_tiles_x = FastDivisor::of(static_cast<uint32_t>(params.tiles_x));
    params.by_threads_x = SmallDivisor::of(block.x);
    params.by_threads_plane = SmallDivisor::of(block.x * block.y);
    params.by_in_rows = SmallDivisor::of(params.in_rows);
}

int32_t threads_of(Problem const& problem, Block block) {
    bool const pairs = problem.layout == Layout::kHwc8;
    return block.x * block.y * (pairs ? kInterleavedPair : block.planes);
}

dim3 grid_of(Problem const& problem, KernelParams const& params) {
    int32_t const tiles_y = ceil_div(params.out_height, params.tile_rows);
    return dim3(static_cast<uint32_t>(params.tiles_x * tiles_y),
                static_cast<uint32_t>(ceil_div(problem.channels, params.planes)), static_cast<uint32_t>(problem.batch));
}

// Times that the fullest bank is asked for when `threads` threads read `bytes` bytes each, summed over the first warps.
template <typename Address>
int32_t bank_rounds(int32_t threads, int32_t bytes, Address address_of) {
    int32_t rounds = 0;
    int32_t const lanes = 128 / bytes;
    for (int32_t first = 0; first < std::min(threads, 128); first += lanes) {
        int32_t asked[32] = {};
        for (int32_t t = first; t < std::min(first + lanes, threads); ++t) {
            for (int32_t word = 0; word < bytes / 4; ++word) {
                ++asked[(address_of(t) / 4 + word) % 32];
            }
        }
        rounds += *std::max_element(asked, asked + 32);
    }
    return rounds;
}

struct PlanarRules {
    int32_t element;  // bytes
    int32_t unit;     // rows and margins are multiples of it, in bytes
    bool flat;        // the input is laid down as it comes first
};

PlanarRules rules_of(Problem const& problem, KernelParams const& params) {
    int32_t const element = bytes_of(problem.type);
    // The widest access to a thread's pixels: see load_row of the row types.
    int32_t unit = problem.type == DataType::kFloat32   ? 16
                   : problem.type == DataType::kFloat16 ? 8
                                                        : 4 * problem.stride;
    bool flat = false;
    if (problem.layout == Layout::kLinear) {
        flat = params.granule < 8;
        unit = flat ? unit : std::max(unit, params.granule);
    } else if (problem.layout == Layout::kChw4) {
        flat = params.granule < 16;
    }
    return {element, unit, flat && params.tiles_x == 1};
}

// Offsets and sizes in shared memory, with `more_pitch` and `more_plane` units to spare.
void lay_out_planar(Problem const& problem, int32_t more_pitch, int32_t more_plane, LaunchShape& shape) {
    KernelParams& params = shape.params;
    PlanarRules const rules = rules_of(problem, params);
    int32_t const threads_x = static_cast<int32_t>(params.by_threads_x.divisor);
    params.margin = rules.unit;
    int32_t row = threads_x * kColumns * problem.stride * rules.element;
    bool const whole_rows = problem.layout == Layout::kLinear && params.tiles_x == 1;
    if (whole_rows) {
        row = std::max(row, rules.flat ? round_up(params.width * rules.element, 16) : params.width * rules.element);
    } else {
        row += kColumns * rules.element;
    }
    // The zeros behind a whole row are those before the next one.
    params.pitch = round_up(params.margin + row, rules.unit) + more_pitch * rules.unit;
    int32_t plane = params.pitch * params.in_rows + (whole_rows ? params.margin : 0) + more_plane * rules.unit;
    plane = problem.layout == Layout::kLinear && !rules.flat ? round_up(plane, 16) : plane;
    if (problem.layout == Layout::kChw32 && problem.stride == 1 && plane / 4 % 2 == 0) {
        plane += 4;  // two threads store the halves of a pixel 16 planes apart: on different banks
    }
    params.plane_stride = plane;
    params.by_row_quads = SmallDivisor::of(threads_x * problem.stride + 2);

    params.flat_offset = round_up(plane * params.planes, 16);
    int32_t const group = group_of(problem.layout);
    int32_t const flat_rows =
        params.planes > group ? params.planes / group * params.height : std::min(params.in_rows, params.height);
    int32_t const flat = rules.flat ? round_up(flat_rows * params.width * rules.element * group, 16) + 64 : 0;
    int32_t const weights = params.planes * params.weight_size * params.weight_size * rules.element;
    params.weight_offset = params.flat_offset + flat;
    params.slot_offset = round_up(params.weight_offset + weights + 32, 16);
    int32_t const slots = 8 * params.planes;
    int32_t const rows_out = std::min(params.tile_rows, params.out_height);
    int32_t const results = problem.layout == Layout::kChw32
                                ? 4 * params.planes * (params.tile_rows * threads_x | 1)
                                : 32 + params.planes * rows_out * params.out_width * rules.element;
    bool const staged = problem.layout == Layout::kChw32 || params.tiles_x == 1;
    shape.shared_bytes = std::max(params.slot_offset + slots, staged ? round_up(results, 16) : 0);
}

LaunchShape planar_shape(Problem const& problem, Tactic tactic, Block block) {
    LaunchShape shape{};
    shape.params = params_of(problem);
    set_block(problem, tactic, block, shape.params);
    shape.grid = grid_of(problem, shape.params);
    shape.block = dim3(static_cast<uint32_t>(round_up(threads_of(problem, block), 32)));
    lay_out_planar(problem, 0, 0, shape);
    judge(problem, tactic, shape);
    return shape;
}

void lay_out_interleaved_half(Problem const& problem, LaunchShape& shape) {
    KernelParams& params = shape.params;
    int32_t const columns = (params.tile_columns - 1) * problem.stride + 1 + 2 * params.pad;
    params.by_row_quads = SmallDivisor::of(columns);
    int32_t const last = kLeft - params.pad + columns;  // of the columns before the tile's first some are loaded
    params.pitch = kPixelBytes * (last + last / (kColumns * problem.stride) + 1);
    params.weight_offset = params.in_rows * params.pitch;
    int32_t const taps = params.weight_size * params.weight_size;
    params.slot_offset = round_up(params.weight_offset + 2 * params.planes * taps + 32, 16);
    shape.shared_bytes = params.slot_offset + 4 * kInterleavedPair * (taps + 1);
}

LaunchShape interleaved_half_shape(Problem const& problem, Tactic tactic, Block block) {
    LaunchShape shape{};
    shape.params = params_of(problem);
    set_block(problem, tactic, block, shape.params);
    shape.grid = grid_of(problem, shape.params);
    shape.block = dim3(static_cast<uint32_t>(round_up(threads_of(problem, block), 32)));
    lay_out_interleaved_half(problem, shape);
    judge(problem, tactic, shape);
    return shape;
}

// Keeps the best of the shapes that it is offered.
struct Best {
    LaunchShape shape{};

    Best() { shape.rank = -1; }

    void offer(LaunchShape const& candidate) {
        if (is_better(candidate, shape)) {
            shape = candidate;
        }
    }
};

// Offers every way to cut the plane: `columns` columns of threads in as many equal parts as it takes, and rows
// likewise.
template <typename MakeShape>
void offer_tiles(Problem const& problem, Tactic tactic, int32_t lanes, int32_t x, Best& best, MakeShape make) {
    int32_t const all_rows = ceil_div(ceil_div(problem.height, problem.stride), tactic.rows);
    int32_t before = 0;
    for (int32_t parts = 1; parts <= all_rows; ++parts) {
        int32_t const y = ceil_div(all_rows, parts);
        if (y == before || x * y * lanes > tactic.threads) {
            continue;
        }
        before = y;
        best.offer(make(x, y));
    }
}

}  // namespace

LaunchShape shape_of_planar(Problem const& problem, Tactic tactic) {
    int32_t const group = group_of(problem.layout);
    int32_t const channels = stored_channels(problem);
    int32_t const all_columns = ceil_div(ceil_div(problem.width, problem.stride), kColumns);
    int32_t const all_rows = ceil_div(ceil_div(problem.height, problem.stride), tactic.rows);
    Best best;
    auto const one_group = [&](int32_t x, int32_t y) { return planar_shape(problem, tactic, {x, y, group}); };
    offer_tiles(problem, tactic, group, all_columns, best, one_group);
    int32_t const together = tactic.threads / (all_columns * all_rows) / group * group;
    if (problem.layout != Layout::kChw32) {
        for (int32_t planes = std::min(together, channels); planes > group; planes = planes / 2 / group * group) {
            best.offer(planar_shape(problem, tactic, {all_columns, all_rows, planes}));
        }
    }
    // Whole rows are contiguous in the layouts whose pixels are single words, so that parts of rows are for the widest
    // only.
    if (problem.layout == Layout::kChw32 || best.shape.rank < 1) {
        int32_t before = 0;
        for (int32_t parts = 2; parts <= all_columns; ++parts) {
            // Tiles start at multiples of 16 pixels.
            int32_t const x =
                std::min(round_up(ceil_div(all_columns, parts), problem.layout == Layout::kChw32 ? 1 : 4), 64);
            if (x != before) {
                offer_tiles(problem, tactic, group, x, best, one_group);
            }
            before = x;
        }
    }
    return best.shape;
}

LaunchShape shape_of_interleaved_half(Problem const& problem, Tactic tactic) {
    int32_t const all_columns = ceil_div(ceil_div(problem.width, problem.stride), kColumns);
    constexpr int32_t kChannels = 2 * kInterleavedPair;
    Best best;
    int32_t before = 0;
    for (int32_t parts = 1; parts <= all_columns; ++parts) {
        int32_t const x = ceil_div(all_columns, parts);
        if (x != before) {
            offer_tiles(problem, tactic, kInterleavedPair, x, best, [&](int32_t width, int32_t y) {
                return interleaved_half_shape(problem, tactic, {width, y, kChannels});
            });
        }
        before = x;
    }
    return best.shape;
}

void spread_over_banks(Problem const& problem, Tactic tactic, LaunchShape& shape) {
    int32_t const element = bytes_of(problem.type);
    int32_t const width = std::min(kColumns * problem.stride * element, 16);
    int32_t best = std::numeric_limits<int32_t>::max();
    LaunchShape const plain = shape;
    for (int32_t more_pitch = 0; more_pitch < 3; ++more_pitch) {
        for (int32_t more_plane = 0; more_plane < 8; ++more_plane) {
            LaunchShape candidate = plain;
            lay_out_planar(problem, more_pitch, more_plane, candidate);
            bool const fits = rank_of(problem, tactic, candidate) >= plain.rank;
            KernelParams const& params = candidate.params;
            int32_t const x = static_cast<int32_t>(params.by_threads_x.divisor);
            int32_t const plane = static_cast<int32_t>(params.by_threads_plane.divisor);
            int32_t const rounds = bank_rounds(static_cast<int32_t>(shape.block.x), width, [&](int32_t t) {
                return t / plane * params.plane_stride + t % plane / x * tactic.rows * problem.stride * params.pitch +
                       t % x * kColumns * problem.stride * element;
            });
            if (fits && rounds < best) {
                best = rounds;
                shape = candidate;
            }
        }
    }
}

}  // namespace mdconv
