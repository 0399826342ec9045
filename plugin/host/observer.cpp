// SPDX-License-Identifier: Apache-2.0

#include "observer.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace emulated {

namespace {

constexpr uint32_t kWarp = 32;
constexpr uint32_t kSectorBytes = 32;
constexpr uint32_t kBanks = 32;
constexpr uint32_t kBankBytes = 4;
constexpr size_t kMostMessages = 8;
constexpr size_t kSiteSlots = 4096;
constexpr uint64_t kNobody = ~uint64_t{0};

// What a warp did at one call site: for its k-th pass, an address for each lane that took part.
using Passes = std::vector<std::array<uint64_t, kWarp>>;

struct SiteLog {
    Access access;
    uint32_t bytes;
    Site site;
    std::vector<uint32_t> passes;  // of each thread of the block
    std::vector<Passes> warps;
    SharedTraffic shared;  // of the launch so far
};

// Who touched a byte of shared memory. Epochs are counted over the whole launch, one more behind each barrier.
struct Shadow {
    uint32_t write_epoch, writer;
    uint32_t read_epoch, reader;
};

constexpr uint32_t kManyReaders = ~uint32_t{0};

Options g_options;
Report* g_report = nullptr;
uint32_t g_threads = 0;
uint32_t g_thread = 0;
uint32_t g_epoch = 0;        // epochs start at 1, so that 0 is never
uint32_t g_block_epoch = 0;  // the block's first
std::vector<SiteLog> g_sites;
std::vector<uint32_t> g_site_of_key;  // open addressing; 0: free, else an index of g_sites plus 1
std::vector<Shadow> g_shadow;

size_t hash_of(Access access, uint32_t bytes, Site site) {
    auto const file = reinterpret_cast<uintptr_t>(site.file);
    return (static_cast<size_t>(site.line) * 64 + static_cast<size_t>(access) * 16 + bytes) * 2654435761u ^ file >> 4;
}

void add_site(Access access, uint32_t bytes, Site site) {
    if (g_sites.size() == kSiteSlots / 2) {
        std::fprintf(stderr, "emulator: a kernel with more than %zu lines that access memory\n", kSiteSlots / 2);
        std::abort();
    }
    g_sites.push_back({access, bytes, site, std::vector<uint32_t>(g_threads), {}, {}});
    g_sites.back().warps.resize((g_threads + kWarp - 1) / kWarp);
}

SiteLog& log_of(Access access, uint32_t bytes, Site site) {
    size_t const mask = g_site_of_key.size() - 1;
    for (size_t slot = hash_of(access, bytes, site) & mask;; slot = (slot + 1) & mask) {
        if (g_site_of_key[slot] == 0) {
            add_site(access, bytes, site);
            g_site_of_key[slot] = static_cast<uint32_t>(g_sites.size());
        }
        SiteLog& log = g_sites[g_site_of_key[slot] - 1];
        if (log.site.line == site.line && log.site.file == site.file && log.access == access && log.bytes == bytes) {
            return log;
        }
    }
}

void note_pass(SiteLog& log, bool wanted, uint64_t address) {
    uint32_t const pass = log.passes[g_thread]++;
    Passes& passes = log.warps[g_thread / kWarp];
    if (pass == passes.size()) {
        passes.emplace_back().fill(kNobody);
    }
    if (wanted) {
        passes[pass][g_thread % kWarp] = address;
    }
}

// The distinct values of address / unit among `lanes`.
uint32_t distinct(std::array<uint64_t, kWarp> const& lanes, uint64_t unit) {
    std::array<uint64_t, kWarp> seen;
    uint32_t count = 0;
    for (uint64_t const address : lanes) {
        if (address == kNobody) {
            continue;
        }
        uint64_t const place = address / unit;
        auto const end = seen.begin() + count;
        if (std::find(std::make_reverse_iterator(end), seen.rend(), place) == seen.rend()) {
            seen[count++] = place;
        }
    }
    return count;
}

// Shared memory serves a warp's 4-byte accesses together, 8-byte ones by half warps, 16-byte ones by quarters. Each
// takes as many wavefronts as the bank with the most distinct words has of them.
uint32_t wavefronts_of(uint64_t const* lanes, uint32_t count, uint32_t bytes) {
    std::array<std::array<uint64_t, kWarp>, kBanks> words;
    std::array<uint32_t, kBanks> depth{};
    uint32_t most = 0;
    for (uint32_t i = 0; i < count; ++i) {
        if (lanes[i] == kNobody) {
            continue;
        }
        for (uint64_t word = lanes[i] / kBankBytes; word * kBankBytes < lanes[i] + bytes; ++word) {
            auto& bank = words[word % kBanks];
            uint32_t& used = depth[word % kBanks];
            if (std::find(bank.begin(), bank.begin() + used, word) == bank.begin() + used) {
                bank[used++] = word;
                most = std::max(most, used);
            }
        }
    }
    return most;
}

void add_global(std::array<uint64_t, kWarp> const& lanes, GlobalTraffic& traffic) {
    uint32_t const sectors = distinct(lanes, kSectorBytes);
    traffic.requests += sectors > 0;
    traffic.sectors += sectors;
}

void add_shared(std::array<uint64_t, kWarp> const& lanes, uint32_t bytes, SharedTraffic& traffic) {
    uint32_t const together = bytes <= 4 ? kWarp : bytes == 8 ? kWarp / 2 : kWarp / 4;
    uint32_t wavefronts = 0;
    for (uint32_t first = 0; first < kWarp; first += together) {
        uint32_t const needed = wavefronts_of(lanes.data() + first, together, bytes);
        wavefronts += needed;
        traffic.minimum_wavefronts += needed > 0;
    }
    traffic.requests += wavefronts > 0;
    traffic.wavefronts += wavefronts;
}

void add_log(SiteLog& log) {
    for (Passes const& passes : log.warps) {
        for (auto const& lanes : passes) {
            switch (log.access) {
                case Access::kLoadGlobal:
                    add_global(lanes, g_report->global_load);
                    break;
                case Access::kStoreGlobal:
                    add_global(lanes, g_report->global_store);
                    break;
                case Access::kLoadShared:
                    add_shared(lanes, log.bytes, log.shared);
                    break;
                case Access::kStoreShared:
                    add_shared(lanes, log.bytes, log.shared);
                    break;
            }
        }
    }
}

std::string place_of(uint64_t address, uint32_t bytes, Site site) {
    return "block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
           std::to_string(blockIdx.z) + ") thread " + std::to_string(g_thread) + ", " + std::to_string(bytes) +
           " bytes at " + std::to_string(address) + ", " + text_of(site);
}

// One finding an access, however many of its bytes are concerned.
void check_shared_load(uint32_t offset, uint32_t bytes, Site site) {
    char const* wrong = nullptr;
    uint32_t other = 0;
    for (uint32_t i = offset; i < offset + bytes; ++i) {
        Shadow& shadow = g_shadow[i];
        if (shadow.write_epoch < g_block_epoch) {
            wrong = "uninitialised read of shared memory";
        } else if (shadow.write_epoch == g_epoch && shadow.writer != g_thread && wrong == nullptr) {
            wrong = "race: read without a barrier since the write";
            other = shadow.writer + 1;
        }
        if (shadow.read_epoch != g_epoch) {
            shadow.read_epoch = g_epoch;
            shadow.reader = g_thread;
        } else if (shadow.reader != g_thread) {
            shadow.reader = kManyReaders;
        }
    }
    if (wrong != nullptr) {
        add_finding(g_report, std::string(wrong) + (other > 0 ? " by thread " + std::to_string(other - 1) : "") + ": " +
                                  place_of(offset, bytes, site));
    }
}

void check_shared_store(uint32_t offset, uint32_t bytes, Site site) {
    char const* wrong = nullptr;
    for (uint32_t i = offset; i < offset + bytes; ++i) {
        Shadow& shadow = g_shadow[i];
        if (shadow.write_epoch == g_epoch && shadow.writer != g_thread) {
            wrong = "race: write without a barrier since another thread's write";
        } else if (shadow.read_epoch == g_epoch && shadow.reader != g_thread && wrong == nullptr) {
            wrong = "race: write without a barrier since another thread's read";
        }
        shadow.write_epoch = g_epoch;
        shadow.writer = g_thread;
    }
    if (wrong != nullptr) {
        add_finding(g_report, std::string(wrong) + ": " + place_of(offset, bytes, site));
    }
}

void check_global(bool store, uint64_t address, uint32_t bytes, Site site) {
    for (Region const& region : g_options.regions) {
        if (region.begin <= address && address + bytes <= region.end && (region.writable || !store)) {
            return;
        }
    }
    if (!g_options.regions.empty()) {
        add_finding(g_report,
                    std::string(store ? "store" : "load") + " outside the tensors: " + place_of(address, bytes, site));
    }
}

void check(Access access, uint64_t address, uint32_t bytes, Site site) {
    switch (access) {
        case Access::kLoadGlobal:
            check_global(false, address, bytes, site);
            break;
        case Access::kStoreGlobal:
            check_global(true, address, bytes, site);
            break;
        case Access::kLoadShared:
            check_shared_load(static_cast<uint32_t>(address), bytes, site);
            break;
        case Access::kStoreShared:
            check_shared_store(static_cast<uint32_t>(address), bytes, site);
            break;
    }
}

}  // namespace

void begin_launch(Options const& options, Report* report, uint32_t threads, uint32_t shared_bytes) {
    g_options = options;
    g_report = report;
    g_threads = threads;
    g_epoch = 0;
    g_sites.clear();
    g_site_of_key.assign(kSiteSlots, 0);
    g_shadow.assign(shared_bytes, Shadow{});
}

void begin_block() { g_block_epoch = ++g_epoch; }

void begin_thread(uint32_t thread) { g_thread = thread; }

void pass_barrier() { ++g_epoch; }

void end_block() {
    for (SiteLog& log : g_sites) {
        add_log(log);
        std::fill(log.passes.begin(), log.passes.end(), 0);
        for (Passes& passes : log.warps) {
            passes.clear();
        }
    }
}

void end_launch() {
    for (SiteLog const& log : g_sites) {
        if (!is_shared(log.access)) {
            continue;
        }
        bool const store = log.access == Access::kStoreShared;
        SharedTraffic& total = store ? g_report->shared_store : g_report->shared_load;
        total.requests += log.shared.requests;
        total.wavefronts += log.shared.wavefronts;
        total.minimum_wavefronts += log.shared.minimum_wavefronts;
        g_report->sites.push_back(
            {text_of(log.site) + (store ? " store " : " load ") + std::to_string(log.bytes), log.shared});
    }
}

void observe(Access access, bool wanted, uint64_t address, uint32_t bytes, Site site) {
    if (g_options.count) {
        note_pass(log_of(access, bytes, site), wanted, address);
    }
    if (g_options.check && wanted) {
        check(access, address, bytes, site);
    }
}

void add_finding(Report* report, std::string const& text) {
    ++report->findings;
    if (report->messages.size() < kMostMessages) {
        report->messages.push_back(text);
    }
}

std::string text_of(Site site) {
    std::string const file = site.file;
    return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line);
}

}  // namespace emulated
