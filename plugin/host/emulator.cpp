// SPDX-License-Identifier: Apache-2.0

#include "emulator.h"

#include <emulated_memory.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "fibers.h"
#include "observer.h"

uint3 threadIdx{};
uint3 blockIdx{};
dim3 blockDim{};
dim3 gridDim{};

namespace emulated {

bool observing = false;
unsigned char* shared_memory = nullptr;
uint32_t shared_size = 0;

namespace {

constexpr uint32_t kMaxThreads = 1024;
constexpr size_t kSharedWithoutAsking = 48 * 1024;
constexpr size_t kMaxShared = 99 * 1024;  // of sm_87
constexpr unsigned char kPoison = 0xCD;   // int8 -51, float16 and float32 of the order of -20 and -4e8

enum class State { kReady, kAtBarrier, kDone };

struct Thread {
    uint3 index{};
    State state = State::kReady;
    int barrier = -1;
};

struct Launch {
    void (*call)(void const* kernel, void const* parameter) = nullptr;
    void const* kernel = nullptr;
    void const* parameter = nullptr;
    std::vector<Site> barriers;  // in the order in which they were met
    cudaError_t error = cudaSuccess;
};

std::mutex g_one_launch;
Options g_options;
Report g_report{};
Launch g_launch;
cudaError_t g_last_error = cudaSuccess;
cudaError_t g_planted_error = cudaSuccess;
std::map<void const*, size_t> g_allowed_shared;

std::vector<Thread> g_threads;
Thread* g_current = nullptr;

void run_thread() {
    g_launch.call(g_launch.kernel, g_launch.parameter);
    g_current->state = State::kDone;
}

void resume(uint32_t thread) {
    g_current = &g_threads[thread];
    threadIdx = g_current->index;
    if (observing) {
        begin_thread(thread);
    }
    resume_fiber(thread);
}

std::string thread_name(uint32_t thread) {
    return "block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
           std::to_string(blockIdx.z) + ") thread " + std::to_string(thread);
}

std::string where(Thread const& thread) {
    if (thread.state == State::kDone) {
        return "has ended";
    }
    return "waits at " + text_of(g_launch.barriers[static_cast<size_t>(thread.barrier)]);
}

// Whether all threads stand at the same place; if not, that is a finding which ends the launch.
bool threads_agree() {
    Thread const& first = g_threads[0];
    for (size_t t = 1; t < g_threads.size(); ++t) {
        Thread const& other = g_threads[t];
        if (other.state != first.state || other.barrier != first.barrier) {
            add_finding(&g_report, "barrier divergence: " + thread_name(0) + " " + where(first) + ", thread " +
                                       std::to_string(t) + " " + where(other));
            g_launch.error = cudaErrorLaunchFailure;
            return false;
        }
    }
    return true;
}

void set_up_threads(uint32_t threads) {
    g_threads.assign(threads, Thread{});
    uint3 index{};
    for (Thread& thread : g_threads) {
        thread.index = index;
        if (++index.x == blockDim.x) {
            index.x = 0;
            if (++index.y == blockDim.y) {
                index.y = 0;
                ++index.z;
            }
        }
    }
}

// Lets each thread run to its next barrier, again and again, until all have ended.
void run_block(uint32_t threads) {
    set_up_threads(threads);
    std::memset(shared_memory, kPoison, shared_size);
    if (observing) {
        begin_block();
    }
    do {
        for (uint32_t t = 0; t < threads; ++t) {
            resume(t);
            if (g_launch.error != cudaSuccess) {
                return;
            }
        }
        if (!threads_agree()) {
            return;
        }
        if (observing) {
            pass_barrier();
        }
    } while (g_threads[0].state != State::kDone);
    if (observing) {
        end_block();
    }
}

bool fits(dim3 grid, dim3 block) {
    auto const positive = [](dim3 d) { return d.x > 0 && d.y > 0 && d.z > 0; };
    return positive(grid) && positive(block) && grid.x <= 0x7FFFFFFF && grid.y <= 65535 && grid.z <= 65535 &&
           block.x <= kMaxThreads && block.y <= kMaxThreads && block.z <= 64 &&
           uint64_t{block.x} * block.y * block.z <= kMaxThreads;
}

void run_grid(dim3 grid, uint32_t threads) {
    for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z) {
        for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
            for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
                run_block(threads);
                ++g_report.blocks;
                if (g_launch.error != cudaSuccess) {
                    restart_fibers();
                    return;
                }
            }
        }
    }
}

cudaError_t run_launch(dim3 grid, dim3 block, size_t shared_bytes) {
    auto const allowed = g_allowed_shared.find(g_launch.kernel);
    size_t const most = allowed == g_allowed_shared.end() ? kSharedWithoutAsking : allowed->second;
    if (shared_bytes > std::min(most, kMaxShared)) {
        return cudaErrorInvalidValue;
    }
    if (!fits(grid, block)) {
        return cudaErrorInvalidConfiguration;
    }
    uint32_t const threads = block.x * block.y * block.z;
    if (!have_fibers(threads, run_thread)) {
        return cudaErrorMemoryAllocation;
    }
    std::unique_ptr<unsigned char, void (*)(void*)> const shared(
        static_cast<unsigned char*>(std::aligned_alloc(128, (shared_bytes + 127) / 128 * 128 + 128)), std::free);
    shared_memory = shared.get();
    shared_size = static_cast<uint32_t>(shared_bytes);
    blockDim = block;
    gridDim = grid;
    observing = g_options.count || g_options.check;
    if (observing) {
        begin_launch(g_options, &g_report, threads, shared_size);
    }
    run_grid(grid, threads);
    if (observing) {
        end_launch();
    }
    g_report.barrier_sites = std::max<uint64_t>(g_report.barrier_sites, g_launch.barriers.size());
    return g_launch.error;
}

int barrier_of(char const* file, int line) {
    for (size_t i = 0; i < g_launch.barriers.size(); ++i) {
        if (g_launch.barriers[i].line == line && g_launch.barriers[i].file == file) {
            return static_cast<int>(i);
        }
    }
    g_launch.barriers.push_back({file, line});
    return static_cast<int>(g_launch.barriers.size()) - 1;
}

}  // namespace

void set_options(Options options) { g_options = std::move(options); }

Report take_report() { return std::exchange(g_report, Report{}); }

void fail_next_launch(cudaError_t error) { g_planted_error = error; }

void allow_shared_bytes(void const* kernel, int bytes) { g_allowed_shared[kernel] = static_cast<size_t>(bytes); }

cudaError_t launch_kernel(void (*call)(void const* kernel, void const* parameter), void const* kernel, dim3 grid,
                          dim3 block, void const* parameter, size_t shared_bytes) {
    std::lock_guard<std::mutex> const lock(g_one_launch);
    cudaError_t error = std::exchange(g_planted_error, cudaSuccess);
    if (error == cudaSuccess) {
        g_launch = {call, kernel, parameter, {}, cudaSuccess};
        ++g_report.launches;
        error = run_launch(grid, block, shared_bytes);
    }
    if (error != cudaSuccess) {
        g_last_error = error;
    }
    return error;
}

void refuse_access(Access access, uint64_t address, uint32_t bytes, Site site) {
    bool const misaligned = address % bytes != 0;
    auto const thread = static_cast<uint32_t>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
    add_finding(&g_report, std::string(misaligned ? "misaligned" : "out of bounds") + ": " + thread_name(thread) +
                               (is_shared(access) ? ", shared offset " : ", global address ") +
                               std::to_string(address) + ", " + std::to_string(bytes) + " bytes, at " + text_of(site));
    g_launch.error = misaligned ? cudaErrorMisalignedAddress : cudaErrorIllegalAddress;
    rest();
    std::abort();  // the fiber is not resumed
}

}  // namespace emulated

void __syncthreads(char const* file, int line) {
    using namespace emulated;
    int const barrier = barrier_of(file, line);
    if (barrier == g_options.drop_barrier) {
        return;
    }
    g_current->state = State::kAtBarrier;
    g_current->barrier = barrier;
    rest();
    g_current->state = State::kReady;
}

cudaError_t cudaGetLastError() { return std::exchange(emulated::g_last_error, cudaSuccess); }

cudaError_t cudaPeekAtLastError() { return emulated::g_last_error; }
