// SPDX-License-Identifier: Apache-2.0
//
// The attributes of an MDConv node: read from the fields that a parser or a serialized engine brings, checked, written
// back.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>
#include <vector>

#include "mdconv_kernel.h"

namespace mdconv {

struct Attributes {
    // One entry a group of channels, 1 to kMaxGroups of them.
    std::vector<int32_t> kernel_sizes;
    std::vector<int32_t> channel_splits;
    int32_t stride;
    Activation activation;
    // The real value of an input and of an output code; both 0 where the node is not quantized.
    float x_scale;
    float y_scale;

    bool quantized() const { return x_scale > 0.0F; }
    int32_t channels() const;
    int32_t weight_size() const;  // K of the weight tensor, the largest kernel size
};

// Throws std::invalid_argument, which names the attribute, what came and what is allowed. Fields of other names are not
// read: parsers differ in what they pass on.
Attributes parse_attributes(nvinfer1::PluginFieldCollection const& fields);

// The attributes that a node may have, with the types that `parse_attributes` expects; integers may be INT64 as well.
std::vector<nvinfer1::PluginField> field_names();

// Fields that `parse_attributes` turns into `attributes` again. They point into it, and the texts live forever.
std::vector<nvinfer1::PluginField> fields_of(Attributes const& attributes);

// All attributes in one line, equal for equal ones only.
std::string describe(Attributes const& attributes);

}  // namespace mdconv
