// SPDX-License-Identifier: Apache-2.0

#include "host_run.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "unfused.h"

namespace {

using mdconv::DataType;
using mdconv::Layout;
using mdconv::Problem;
using mdconv::Tensors;

uint64_t padded_channels(Problem const& problem) {
    auto const up = [&](int32_t unit) { return static_cast<uint64_t>((problem.channels + unit - 1) / unit * unit); };
    switch (problem.layout) {
        case Layout::kLinear:
            return up(1);
        case Layout::kChw4:
            return up(4);
        case Layout::kChw32:
            return up(32);
        case Layout::kHwc8:
            return up(8);
    }
    return 0;
}

uint64_t element_bytes(DataType type) { return type == DataType::kFloat32 ? 4 : type == DataType::kFloat16 ? 2 : 1; }

int32_t largest_kernel(Problem const& problem) {
    return *std::max_element(problem.kernel_sizes, problem.kernel_sizes + problem.groups);
}

// Zeros, aligned as what cudaMalloc returns.
class Aligned {
public:
    explicit Aligned(uint64_t size) : size_(size), memory_(size + kAlignment) {}

    unsigned char* data() {
        auto const address = reinterpret_cast<uint64_t>(memory_.data());
        return memory_.data() + (kAlignment - address % kAlignment) % kAlignment;
    }
    unsigned char const* data() const { return const_cast<Aligned*>(this)->data(); }
    uint64_t size() const { return size_; }

private:
    static constexpr uint64_t kAlignment = 256;
    uint64_t size_;
    std::vector<unsigned char> memory_;
};

void add_region(std::vector<emulated::Region>& regions, void const* start, uint64_t bytes, bool writable) {
    auto const begin = reinterpret_cast<uint64_t>(start);
    regions.push_back({begin, begin + bytes, writable});
}

std::vector<emulated::Region> regions_of(Problem const& problem, Tensors const& tensors) {
    uint64_t const element = element_bytes(problem.type);
    uint64_t const planes = static_cast<uint64_t>(problem.batch) * padded_channels(problem);
    auto const channels = static_cast<uint64_t>(problem.channels);
    auto const out = [&](int32_t size) { return static_cast<uint64_t>((size + problem.stride - 1) / problem.stride); };
    auto const largest = static_cast<uint64_t>(largest_kernel(problem));
    std::vector<emulated::Region> regions;
    add_region(regions, tensors.x,
               planes * static_cast<uint64_t>(problem.height) * static_cast<uint64_t>(problem.width) * element, false);
    add_region(regions, tensors.y, planes * out(problem.height) * out(problem.width) * element, true);
    add_region(regions, tensors.weight, channels * largest * largest * element, false);
    add_region(regions, tensors.bias, channels * (problem.type == DataType::kInt8 ? 4 : element), false);
    if (problem.type == DataType::kInt8) {
        add_region(regions, tensors.weight_scale, channels * 4, false);
    }
    return regions;
}

// What the unfused sequence takes beside the layer's tensors: each group's weights without their rim, and the
// workspace.
struct UnfusedBuffers {
    unfused::Tensors tensors{};
    std::vector<Aligned> weights;
    Aligned workspace;

    UnfusedBuffers(Problem const& problem, Tensors const& given) : workspace(unfused::workspace_bytes(problem)) {
        tensors.x = given.x;
        tensors.bias = given.bias;
        tensors.weight_scale = given.weight_scale;
        tensors.y = given.y;
        tensors.workspace = workspace.data();
        int32_t first = 0;
        for (int32_t i = 0; i < problem.groups; first += problem.channel_splits[i], ++i) {
            weights.push_back(weights_of_group(problem, static_cast<unsigned char const*>(given.weight), i, first));
            tensors.weights[i] = weights.back().data();
        }
    }

    void add_regions(std::vector<emulated::Region>& regions) const {
        add_region(regions, workspace.data(), workspace.size(), true);
        for (Aligned const& group : weights) {
            add_region(regions, group.data(), group.size(), false);
        }
    }

    static Aligned weights_of_group(Problem const& problem, unsigned char const* all, int32_t group, int32_t first) {
        uint64_t const element = element_bytes(problem.type);
        auto const largest = static_cast<uint64_t>(largest_kernel(problem));
        auto const size = static_cast<uint64_t>(problem.kernel_sizes[group]);
        auto const channels = static_cast<uint64_t>(problem.channel_splits[group]);
        uint64_t const margin = (largest - size) / 2;
        Aligned packed(channels * size * size * element);
        for (uint64_t row = 0; row < channels * size; ++row) {
            uint64_t const channel = static_cast<uint64_t>(first) + row / size;
            uint64_t const from = (channel * largest + row % size + margin) * largest + margin;
            std::memcpy(packed.data() + row * size * element, all + from * element, size * element);
        }
        return packed;
    }
};

}  // namespace

int32_t mdconv_host_tactic_count(int32_t type, int32_t layout) {
    return mdconv::tactic_count(static_cast<DataType>(type), static_cast<Layout>(layout));
}

int32_t mdconv_host_default_tactic(Problem const* problem) { return mdconv::default_tactic(*problem); }

char const* mdconv_host_why_unsupported(Problem const* problem) { return mdconv::why_unsupported(*problem); }

int32_t mdconv_host_plan(Problem const* problem, int32_t tactic, HostPlan* plan) {
    mdconv::LaunchPlan made{};
    cudaError_t const error = mdconv::plan_launch(*problem, tactic, &made);
    *plan = {{made.grid.x, made.grid.y, made.grid.z},
             {made.block.x, made.block.y, made.block.z},
             made.shared_bytes,
             made.rows_per_thread,
             made.tile_planes,
             made.tile_rows,
             made.tile_columns};
    return error;
}

int32_t mdconv_host_launch(Problem const* problem, Tensors const* tensors, int32_t tactic, HostOptions const* options,
                           HostReport* report) {
    auto regions = options->check ? regions_of(*problem, *tensors) : std::vector<emulated::Region>{};
    return observed(*options, std::move(regions), report,
                    [&] { return mdconv::launch(*problem, *tensors, tactic, nullptr); });
}

int32_t mdconv_host_launch_unfused(Problem const* problem, Tensors const* tensors, HostOptions const* options,
                                   HostReport* report) {
    auto regions = options->check ? regions_of(*problem, *tensors) : std::vector<emulated::Region>{};
    UnfusedBuffers buffers(*problem, *tensors);
    if (options->check) {
        buffers.add_regions(regions);
    }
    return observed(*options, std::move(regions), report,
                    [&] { return unfused::launch(*problem, buffers.tensors, nullptr); });
}
