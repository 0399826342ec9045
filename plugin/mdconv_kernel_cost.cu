// SPDX-License-Identifier: Apache-2.0
//
// What a launch shape is worth: the traffic that it makes, the warps that it keeps resident, the time that a model
// gives it.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "launch_shape.h"

namespace mdconv {

namespace {

// sm_87: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability". A block's shared memory has 1
// KB more than it asks for.
constexpr int32_t kSharedOfSm = 164 * 1024;
constexpr int32_t kReservedOfBlock = 1024;
constexpr int32_t kRegistersOfSm = 64 * 1024;
constexpr int32_t kWarpsOfSm = 48;
constexpr int32_t kBlocksOfSm = 16;

// The model: eight multiprocessors that share 68 GB/s at 625 MHz, an Orin Nano (8 GB), and issue four warps a cycle.
constexpr double kSms = 8;
constexpr double kBytesPerCycle = 13.6;  // of one multiprocessor
constexpr double kWarpsPerCycle = 4;
constexpr double kLatency = 1500;  // of a block that waits for all of its data once

// Elements of `extent` that tiles of `tile` outputs read, all together: those on the border of two are read twice.
int64_t read_by_tiles(int32_t extent, int32_t out_extent, int32_t tile, int32_t stride, int32_t pad) {
    int64_t read = 0;
    for (int32_t first = 0; first < out_extent; first += tile) {
        int32_t const begin = std::max(first * stride - pad, 0);
        int32_t const end = std::min((first + tile - 1) * stride + pad + 1, extent);
        read += std::max(end - begin, 0);
    }
    return read;
}

struct Traffic {
    double bytes;  // that go over the memory bus, weights aside
    double ratio;  // to what has to
};

Traffic traffic_of(Problem const& problem, KernelParams const& params) {
    double const planes = static_cast<double>(problem.batch) * stored_channels(problem) * bytes_of(problem.type);
    double const rows = static_cast<double>(
        read_by_tiles(params.height, params.out_height, params.tile_rows, problem.stride, params.pad));
    double const columns = static_cast<double>(
        read_by_tiles(params.width, params.out_width, params.tile_columns, problem.stride, params.pad));
    double const out = static_cast<double>(params.out_height) * params.out_width;
    double const input = static_cast<double>(params.height) * params.width;
    return {planes * (rows * columns + out), (rows * columns + out) / (input + out)};
}

// Instructions that a thread issues; those of half the rate count twice.
double instructions_of(Problem const& problem, Tactic tactic) {
    double taps = 0;
    for (int32_t i = 0; i < problem.groups; ++i) {
        int32_t const size = problem.kernel_sizes[i];
        double const dots = size == 3 ? 3 : size == 5 ? 7 : 14;
        taps +=
            (problem.type == DataType::kInt8 ? 2 * dots : size * size) * problem.channel_splits[i] / problem.channels;
    }
    bool const pairs = problem.layout == Layout::kHwc8;
    double const per_instruction = problem.type == DataType::kFloat16 && !pairs ? 2 : 1;
    double const per_row = kColumns * (taps / per_instruction + (problem.type == DataType::kInt8 ? 7 : 2));
    double const per_input_row = problem.type == DataType::kInt8 ? 16 : 8;
    double const input_rows = problem.stride * (tactic.rows - 1) + 5;
    return 150 + tactic.rows * per_row + input_rows * per_input_row;
}

int32_t resident_blocks(Problem const& problem, Tactic tactic, LaunchShape const& shape) {
    int32_t const warps = ceil_div(static_cast<int32_t>(shape.block.x), 32);
    bool const pairs = problem.layout == Layout::kHwc8;
    int32_t const registers = pairs || needs_registers(problem.type, tactic.rows) ? 80 : 72;
    int32_t const by_registers = kRegistersOfSm / (32 * registers) / warps;
    int32_t const by_shared = kSharedOfSm / (shape.shared_bytes + kReservedOfBlock);
    return std::min(std::min(by_registers, by_shared), std::min(kWarpsOfSm / warps, kBlocksOfSm));
}

double cost_of(Problem const& problem, Tactic tactic, LaunchShape const& shape) {
    int32_t const warps = ceil_div(static_cast<int32_t>(shape.block.x), 32);
    int32_t const resident = std::max(resident_blocks(problem, tactic, shape), 1);
    double const blocks = static_cast<double>(shape.grid.x) * shape.grid.y * shape.grid.z;
    double const traffic = traffic_of(problem, shape.params).bytes / blocks;
    // Each unit of 16 bytes that is moved costs some twenty instructions a thread.
    double const issue = (warps * instructions_of(problem, tactic) + traffic / 16 * 20 / 32) / kWarpsPerCycle;
    double const memory = traffic / kBytesPerCycle;
    double const block = std::max(issue, memory) + 0.3 * std::min(issue, memory);
    double const rounds = (blocks + kSms - 1) / kSms;
    double const waves = (blocks + kSms * resident - 1) / (kSms * resident);
    return block * rounds + kLatency * waves;
}

bool is_half_occupied(Problem const& problem, Tactic tactic, LaunchShape const& shape) {
    int32_t const warps = ceil_div(static_cast<int32_t>(shape.block.x), 32);
    return resident_blocks(problem, tactic, shape) * warps >= kWarpsOfSm / 2;
}

constexpr double kBearableTraffic = 1.2;

}  // namespace

int32_t rank_of(Problem const& problem, Tactic tactic, LaunchShape const& shape) {
    if (shape.shared_bytes > kSharedOfBlock) {
        return 0;
    }
    bool const bearable = traffic_of(problem, shape.params).ratio <= kBearableTraffic;
    return 1 + 2 * bearable + is_half_occupied(problem, tactic, shape);
}

void judge(Problem const& problem, Tactic tactic, LaunchShape& shape) {
    shape.cost = cost_of(problem, tactic, shape);
    shape.rank = rank_of(problem, tactic, shape);
}

}  // namespace mdconv
