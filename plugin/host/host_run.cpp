// SPDX-License-Identifier: Apache-2.0

#include "host_run.h"

#include <cstring>
#include <vector>

#include "emulator.h"

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
        case Layout::kChw16:
            return up(16);
    }
    return 0;
}

uint64_t element_bytes(DataType type) { return type == DataType::kFloat32 ? 4 : type == DataType::kFloat16 ? 2 : 1; }

void add_region(std::vector<emulated::Region>& regions, void const* start, uint64_t bytes, bool writable) {
    auto const begin = reinterpret_cast<uint64_t>(start);
    regions.push_back({begin, begin + bytes, writable});
}

std::vector<emulated::Region> regions_of(Problem const& problem, Tensors const& tensors) {
    uint64_t const element = element_bytes(problem.type);
    uint64_t const planes = static_cast<uint64_t>(problem.batch) * padded_channels(problem);
    auto const channels = static_cast<uint64_t>(problem.channels);
    auto const out = [&](int32_t size) { return static_cast<uint64_t>((size + problem.stride - 1) / problem.stride); };
    uint64_t largest = 0;
    for (int32_t i = 0; i < problem.groups; ++i) {
        largest = std::max<uint64_t>(largest, static_cast<uint64_t>(problem.kernel_sizes[i]));
    }
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

void fill_report(emulated::Report const& seen, HostReport* report) {
    *report = {};
    report->global_load_requests = seen.global_load.requests;
    report->global_load_sectors = seen.global_load.sectors;
    report->global_store_requests = seen.global_store.requests;
    report->global_store_sectors = seen.global_store.sectors;
    report->shared_load_requests = seen.shared_load.requests;
    report->shared_load_wavefronts = seen.shared_load.wavefronts;
    report->shared_load_minimum = seen.shared_load.minimum_wavefronts;
    report->shared_store_requests = seen.shared_store.requests;
    report->shared_store_wavefronts = seen.shared_store.wavefronts;
    report->shared_store_minimum = seen.shared_store.minimum_wavefronts;
    report->launches = seen.launches;
    report->blocks = seen.blocks;
    report->barrier_sites = seen.barrier_sites;
    report->findings = seen.findings;
    std::string text;
    for (std::string const& message : seen.messages) {
        text += message + "\n";
    }
    std::strncpy(report->messages, text.c_str(), sizeof report->messages - 1);
}

template <typename Run>
int32_t observed(HostOptions const& options, std::vector<emulated::Region> regions, HostReport* report,
                 Run const& run) {
    emulated::set_options({options.count != 0, options.check != 0, options.drop_barrier, std::move(regions)});
    cudaError_t const error = run();
    emulated::set_options({});
    fill_report(emulated::take_report(), report);
    return error;
}

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

char const* mdconv_host_error_name(int32_t error) { return cudaGetErrorName(static_cast<cudaError_t>(error)); }
