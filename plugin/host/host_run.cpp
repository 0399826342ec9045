// SPDX-License-Identifier: Apache-2.0

#include "host_run.h"

#include <algorithm>
#include <string>
#include <vector>

#include "problem_bytes.h"
#include "unfused.h"

namespace {

using mdconv::Problem;
using mdconv::Tensors;

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
    TensorBytes const bytes(problem);
    std::vector<emulated::Region> regions;
    add_region(regions, tensors.x, bytes.x, false);
    add_region(regions, tensors.y, bytes.y, true);
    add_region(regions, tensors.weight, bytes.weight, false);
    add_region(regions, tensors.bias, bytes.bias, false);
    add_region(regions, tensors.weight_scale, bytes.weight_scale, false);
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
        for (int32_t i = 0; i < problem.groups; ++i) {
            auto const packed = weights_of_group(problem, static_cast<unsigned char const*>(given.weight), i);
            weights.emplace_back(packed.size());
            std::copy(packed.begin(), packed.end(), weights.back().data());
            tensors.weights[i] = weights.back().data();
        }
    }

    void add_regions(std::vector<emulated::Region>& regions) const {
        add_region(regions, workspace.data(), workspace.size(), true);
        for (Aligned const& group : weights) {
            add_region(regions, group.data(), group.size(), false);
        }
    }
};

}  // namespace

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
