// SPDX-License-Identifier: Apache-2.0

#include "host_report.h"

#include <cstring>
#include <string>
#include <utility>

namespace {

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
    std::string messages, sites;
    for (std::string const& message : seen.messages) {
        messages += message + "\n";
    }
    for (auto const& [place, traffic] : seen.sites) {
        sites += place + "\t" + std::to_string(traffic.requests) + "\t" + std::to_string(traffic.wavefronts) + "\t" +
                 std::to_string(traffic.minimum_wavefronts) + "\n";
    }
    std::strncpy(report->messages, messages.c_str(), sizeof report->messages - 1);
    std::strncpy(report->sites, sites.c_str(), sizeof report->sites - 1);
}

}  // namespace

int32_t observed(HostOptions const& options, std::vector<emulated::Region> regions, HostReport* report,
                 std::function<cudaError_t()> const& run) {
    emulated::set_options({options.count != 0, options.check != 0, options.drop_barrier, std::move(regions)});
    cudaError_t const error = run();
    emulated::set_options({});
    fill_report(emulated::take_report(), report);
    return error;
}

char const* mdconv_host_error_name(int32_t error) { return cudaGetErrorName(static_cast<cudaError_t>(error)); }
