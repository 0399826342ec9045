// SPDX-License-Identifier: Apache-2.0
//
// Memory of a GPU for tests/native/plugin_harness.py, whose arrays are the host's. Each call waits for what is under
// way. An error ends the process with its name: there is no test to go on with.

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace {

void check(cudaError_t error) {
    if (error != cudaSuccess) {
        std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
        std::abort();
    }
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

void* device_memory_new(void const* content, uint64_t size) {
    void* made = nullptr;
    check(cudaMalloc(&made, size));
    check(cudaMemcpy(made, content, size, cudaMemcpyHostToDevice));
    return made;
}

void device_memory_read(void const* memory, void* target, uint64_t size) {
    check(cudaMemcpy(target, memory, size, cudaMemcpyDeviceToHost));
}

void device_memory_delete(void* memory) { check(cudaFree(memory)); }
}
#pragma GCC visibility pop
