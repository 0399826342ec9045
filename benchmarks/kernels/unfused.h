// SPDX-License-Identifier: Apache-2.0
//
// What a runtime without the fused kernel does for an MD-Conv layer: split, one depthwise convolution a kernel size,
// concat, bias and activation, each a pass over memory. Linear layout. Something to compare with; not shipped.
//
// int8: split and concat move codes; the convolutions sum in int32 and write codes of y_scale; the last pass adds the
// bias to them, applies the activation and rounds again. float16: the convolutions sum in float32.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "mdconv_problem.h"

namespace unfused {

// Device addresses, each aligned to 16 bytes, as in mdconv::Tensors but for the weights.
struct Tensors {
    void const* x;
    void const* weights[mdconv::kMaxGroups];  // of each group (C, 1, K, K) with its own K
    void const* bias;
    float const* weight_scale;
    void* y;
    void* workspace;  // of `workspace_bytes`
};

size_t workspace_bytes(mdconv::Problem const& problem);

// Enqueues the sequence. Returns cudaErrorInvalidValue if the layout is not linear, else what the first failed launch
// returned. The problem is one that the fused kernel supports.
cudaError_t launch(mdconv::Problem const& problem, Tensors const& tensors, cudaStream_t stream);

}  // namespace unfused
