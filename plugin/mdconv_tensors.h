// SPDX-License-Identifier: Apache-2.0
//
// The tensors of an MDConv node: which types, formats and dimensions they may have.
#pragma once

#include <NvInferRuntime.h>

#include <string>

#include "mdconv_attributes.h"
#include "mdconv_kernel.h"

namespace mdconv {

// What X and Y may be, always both the same; the other tensors are linear.
struct Combination {
    nvinfer1::DataType type;
    nvinfer1::TensorFormat format;
    DataType kernel_type;
    Layout layout;
};

// nullptr if there is no such combination.
Combination const* find_combination(nvinfer1::DataType type, nvinfer1::TensorFormat format);

// X, W, B and, where X is int8, w_scale.
int32_t input_count(Attributes const& attributes);

// The type of input `index` where X is of type `x`.
nvinfer1::DataType input_type(int32_t index, nvinfer1::DataType x);

// These throw std::invalid_argument, which names the tensor, what came and what is allowed. `types` and `inputs` have
// input_count() entries; a negative dimension is one that is not known yet.
void check_counts(Attributes const& attributes, int32_t inputs, int32_t outputs);
void check_types(Attributes const& attributes, nvinfer1::DataType const* types);
void check_shapes(Attributes const& attributes, nvinfer1::Dims const* inputs, nvinfer1::Dims const& output);

std::string to_text(nvinfer1::Dims const& dims);

}  // namespace mdconv
