// SPDX-License-Identifier: Apache-2.0
//
// The fused MD-Conv op on a GPU: multi-kernel depthwise convolution, bias (folded batch norm), activation and, for
// int8, requantization, in one pass over memory. Raw pointers and a stream; knows nothing of TensorRT.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernel_params.h"
#include "mdconv_problem.h"

namespace mdconv {

// Device addresses, each aligned to 16 bytes. T is the problem's type.
struct Tensors {
    void const* x;              // T, in the problem's layout
    void const* weight;         // T (C, 1, K, K), K the largest kernel size; smaller kernels centred and zero-padded
    void const* bias;           // (C,): float32 for int8, else T
    float const* weight_scale;  // int8 only: float32 (C,)
    void* y;                    // T, in the problem's layout; padding channels are written as zeros
};

// The ways to cut a problem into thread blocks are numbered from 1 to this; a tactic may be slower than another, never
// wrong.
int32_t tactic_count(DataType type, Layout layout);

// How a tactic cuts a problem: for tests, for reports, and for whoever launches or simulates the kernel otherwise.
struct LaunchPlan {
    dim3 grid;
    dim3 block;
    size_t shared_bytes;
    void const* kernel;  // the __global__ function; takes one struct by value
    int32_t rows_per_thread;
    int32_t tile_planes;   // channels a block
    int32_t tile_rows;     // output rows a block
    int32_t tile_columns;  // output columns a block
};

// The tactic that a model of traffic and idle threads expects to be fastest, where nothing is timed.
int32_t default_tactic(Problem const& problem);

// nullptr if the kernels can run the problem, else what is wrong: a static text that names the field and what is
// allowed.
char const* why_unsupported(Problem const& problem);

// Fills `plan`. Returns cudaErrorInvalidValue for a problem that is unsupported or a tactic that does not exist.
cudaError_t plan_launch(Problem const& problem, int32_t tactic, LaunchPlan* plan);

// Everything about a launch but the addresses: worked out once a shape (tens of microseconds), used for every launch.
struct PreparedLaunch {
    Problem problem;
    LaunchPlan plan;
    KernelParams params;
};

// Fills `prepared`. Returns what `plan_launch` does.
cudaError_t prepare(Problem const& problem, int32_t tactic, PreparedLaunch* prepared);

// Enqueues the op on `stream`: one kernel launch, no allocation, no synchronization, so that it can be captured in a
// CUDA graph. Returns cudaErrorInvalidValue if an address is null or misaligned, else what the launch returned.
//
// Arithmetic, with acc the sum over the taps of a channel c:
//   float32: y = act(acc + bias[c]), summed in float32.
//   float16: each kernel row is summed in float16, and so are the rows of 3x3 and 5x5 kernels; rows of 7x7 in float32.
//   int8:    acc in int32; m = x_scale * weight_scale[c] / y_scale and b = bias[c] / y_scale in float32, in this order;
//            t = fma(float(acc), m, b); t = clamp(t, 0, 6 / y_scale) for relu6 (and so on); y = t rounded half to even,
//            saturated to [-128, 127]. hardswish: t * clamp(fma(t, y_scale / 6, 0.5), 0, 1), in this order.
cudaError_t launch(PreparedLaunch const& prepared, Tensors const& tensors, cudaStream_t stream);

// `prepare` and `launch` in one.
cudaError_t launch(Problem const& problem, Tensors const& tensors, int32_t tactic, cudaStream_t stream);

}  // namespace mdconv
