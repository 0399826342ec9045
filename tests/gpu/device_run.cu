// SPDX-License-Identifier: Apache-2.0
//
// host_run.h's functions with the kernels on a GPU: tensors are copied there and back, so that the tests that run the
// kernels on a CPU run them on a GPU unchanged. And how long a launch takes there.

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "host_run.h"
#include "problem_bytes.h"
#include "unfused.h"

namespace {

using mdconv::Problem;
using mdconv::Tensors;

constexpr unsigned char kPoison = 0xA5;  // what nobody wrote shows

// Exactly as long as the tensor, so that compute-sanitizer sees what goes beyond it.
class DeviceBytes {
public:
    explicit DeviceBytes(uint64_t size, void const* content = nullptr) {
        if (size == 0) {
            return;
        }
        check(cudaMalloc(&data_, size));
        check(content == nullptr ? cudaMemset(data_, kPoison, size)
                                 : cudaMemcpy(data_, content, size, cudaMemcpyDefault));
    }
    DeviceBytes(DeviceBytes const&) = delete;
    DeviceBytes& operator=(DeviceBytes const&) = delete;
    ~DeviceBytes() { cudaFree(data_); }

    void* data() const { return data_; }
    void to_host(void* target, uint64_t size) const { check(cudaMemcpy(target, data_, size, cudaMemcpyDefault)); }

    static void check(cudaError_t error) {
        if (error != cudaSuccess) {
            throw error;
        }
    }

private:
    void* data_ = nullptr;
};

// A layer's tensors on the device, `sets` of X and Y, and what the unfused sequence takes beside them.
class DeviceLayer {
public:
    DeviceLayer(Problem const& problem, Tensors const& host, int32_t sets)
        : bytes_(problem),
          weight_(bytes_.weight, host.weight),
          bias_(bytes_.bias, host.bias),
          weight_scale_(bytes_.weight_scale, host.weight_scale),
          workspace_(problem.layout == mdconv::Layout::kLinear ? unfused::workspace_bytes(problem) : 0) {
        for (int32_t i = 0; i < sets; ++i) {
            x_.push_back(std::make_unique<DeviceBytes>(bytes_.x, host.x));
            y_.push_back(std::make_unique<DeviceBytes>(bytes_.y));
        }
        for (int32_t i = 0; i < problem.groups; ++i) {
            auto const packed = weights_of_group(problem, static_cast<unsigned char const*>(host.weight), i);
            group_weights_.push_back(std::make_unique<DeviceBytes>(packed.size(), packed.data()));
        }
    }

    Tensors tensors(int32_t set) const {
        return {x_[set]->data(), weight_.data(), bias_.data(), static_cast<float const*>(weight_scale_.data()),
                y_[set]->data()};
    }

    unfused::Tensors unfused_tensors(int32_t set) const {
        Tensors const fused = tensors(set);
        unfused::Tensors given{};
        given.x = fused.x;
        for (size_t i = 0; i < group_weights_.size(); ++i) {
            given.weights[i] = group_weights_[i]->data();
        }
        given.bias = fused.bias;
        given.weight_scale = fused.weight_scale;
        given.y = fused.y;
        given.workspace = workspace_.data();
        return given;
    }

    void result_to(void* y) const { y_[0]->to_host(y, bytes_.y); }

private:
    TensorBytes bytes_;
    DeviceBytes weight_, bias_, weight_scale_, workspace_;
    std::vector<std::unique_ptr<DeviceBytes>> x_, y_, group_weights_;
};

// A tactic, or the unfused sequence where it is 0.
cudaError_t enqueue(Problem const& problem, DeviceLayer const& layer, int32_t tactic, int32_t set,
                    cudaStream_t stream) {
    return tactic == 0 ? unfused::launch(problem, layer.unfused_tensors(set), stream)
                       : mdconv::launch(problem, layer.tensors(set), tactic, stream);
}

int32_t result_or_error(std::function<void()> const& action) {
    try {
        action();
        return cudaSuccess;
    } catch (cudaError_t error) {
        return error;
    }
}

int32_t run_once(Problem const& problem, Tensors const& host, int32_t tactic, HostReport* report) {
    *report = {};
    return result_or_error([&] {
        DeviceLayer const layer(problem, host, 1);
        DeviceBytes::check(enqueue(problem, layer, tactic, 0, nullptr));
        DeviceBytes::check(cudaDeviceSynchronize());
        layer.result_to(host.y);
    });
}

// A launch for each set, captured once, timed `windows` times between events; microseconds a launch.
void time_windows(Problem const& problem, DeviceLayer const& layer, int32_t tactic, int32_t sets, int32_t windows,
                  float* microseconds) {
    auto const check = DeviceBytes::check;
    cudaStream_t stream = nullptr;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    cudaEvent_t start = nullptr, stop = nullptr;
    check(cudaStreamCreate(&stream));
    check(enqueue(problem, layer, tactic, 0, stream));  // loads the kernel, which must not be captured
    check(cudaStreamSynchronize(stream));
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int32_t set = 0; set < sets; ++set) {
        check(enqueue(problem, layer, tactic, set, stream));
    }
    check(cudaStreamEndCapture(stream, &graph));
    check(cudaGraphInstantiate(&executable, graph, 0));
    check(cudaEventCreate(&start));
    check(cudaEventCreate(&stop));
    check(cudaGraphLaunch(executable, stream));
    for (int32_t window = 0; window < windows; ++window) {
        check(cudaEventRecord(start, stream));
        check(cudaGraphLaunch(executable, stream));
        check(cudaEventRecord(stop, stream));
        check(cudaEventSynchronize(stop));
        float milliseconds = 0;
        check(cudaEventElapsedTime(&milliseconds, start, stop));
        microseconds[window] = 1000 * milliseconds / static_cast<float>(sets);
    }
    check(cudaEventDestroy(stop));
    check(cudaEventDestroy(start));
    check(cudaGraphExecDestroy(executable));
    check(cudaGraphDestroy(graph));
    check(cudaStreamDestroy(stream));
}

}  // namespace

char const* mdconv_host_error_name(int32_t error) { return cudaGetErrorName(static_cast<cudaError_t>(error)); }

int32_t mdconv_host_launch(Problem const* problem, Tensors const* tensors, int32_t tactic, HostOptions const*,
                           HostReport* report) {
    if (mdconv::why_unsupported(*problem) != nullptr || tactic == 0) {
        return cudaErrorInvalidValue;
    }
    return run_once(*problem, *tensors, tactic, report);
}

int32_t mdconv_host_launch_unfused(Problem const* problem, Tensors const* tensors, HostOptions const*,
                                   HostReport* report) {
    return run_once(*problem, *tensors, 0, report);
}

#pragma GCC visibility push(default)
extern "C" {

// Microseconds a launch of `tactic` (0: the unfused sequence) in each of `windows`; each launch of a window has its own
// X and Y, so that with enough `sets` they come from memory and not from a cache. Returns a value of cudaError_t.
int32_t mdconv_device_time(Problem const* problem, Tensors const* tensors, int32_t tactic, int32_t sets,
                           int32_t windows, float* microseconds) {
    return result_or_error([&] {
        DeviceLayer const layer(*problem, *tensors, sets);
        time_windows(*problem, layer, tactic, sets, windows, microseconds);
    });
}
}
#pragma GCC visibility pop
