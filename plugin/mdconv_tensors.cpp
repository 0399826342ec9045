// SPDX-License-Identifier: Apache-2.0
#include "mdconv_tensors.h"

#include <algorithm>
#include <stdexcept>

namespace mdconv {
namespace {

using nvinfer1::Dims;
using nvinfer1::TensorFormat;
using Type = nvinfer1::DataType;

constexpr char const* kInputs[] = {"X", "W", "B", "w_scale"};

// Not float16 in kCHW16, which TensorRT has for its DLA only.
constexpr Combination kCombinations[] = {
    {Type::kFLOAT, TensorFormat::kLINEAR, mdconv::DataType::kFloat32, Layout::kLinear},
    {Type::kHALF, TensorFormat::kLINEAR, mdconv::DataType::kFloat16, Layout::kLinear},
    {Type::kHALF, TensorFormat::kHWC8, mdconv::DataType::kFloat16, Layout::kHwc8},
    {Type::kINT8, TensorFormat::kLINEAR, mdconv::DataType::kInt8, Layout::kLinear},
    {Type::kINT8, TensorFormat::kCHW4, mdconv::DataType::kInt8, Layout::kChw4},
    {Type::kINT8, TensorFormat::kCHW32, mdconv::DataType::kInt8, Layout::kChw32},
};

std::string name_of(Type type) {
    switch (type) {
        case Type::kFLOAT:
            return "float32";
        case Type::kHALF:
            return "float16";
        case Type::kINT8:
            return "int8";
        default:
            return "TensorRT's type " + std::to_string(static_cast<int32_t>(type));
    }
}

void check_dimensions(std::string const& what, Dims const& came, Dims const& expected) {
    bool fits = came.nbDims == expected.nbDims;
    for (int32_t i = 0; fits && i < expected.nbDims; ++i) {
        fits = came.d[i] < 0 || expected.d[i] < 0 || came.d[i] == expected.d[i];
    }
    if (!fits) {
        throw std::invalid_argument(what + " has dimensions " + to_text(came) + ", expected " + to_text(expected));
    }
}

}  // namespace

Combination const* find_combination(Type type, TensorFormat format) {
    auto const* found = std::find_if(std::begin(kCombinations), std::end(kCombinations),
                                     [&](Combination const& c) { return c.type == type && c.format == format; });
    return found == std::end(kCombinations) ? nullptr : found;
}

int32_t input_count(Attributes const& attributes) { return attributes.quantized() ? 4 : 3; }

Type input_type(int32_t index, Type x) {
    bool const float32_beside_int8 = index >= 2 && x == Type::kINT8;
    return float32_beside_int8 ? Type::kFLOAT : x;
}

std::string to_text(Dims const& dims) {
    std::string text = "[";
    for (int32_t i = 0; i < dims.nbDims; ++i) {
        text += (i == 0 ? "" : ", ") + (dims.d[i] < 0 ? std::string("any") : std::to_string(dims.d[i]));
    }
    return text + "]";
}

void check_counts(Attributes const& attributes, int32_t inputs, int32_t outputs) {
    if (inputs != input_count(attributes) || outputs != 1) {
        throw std::invalid_argument(
            "the node has " + std::to_string(inputs) + " inputs and " + std::to_string(outputs) +
            " outputs, expected " +
            (attributes.quantized() ? "X, W, B, w_scale and Y, since it has x_scale" : "X, W, B and Y") +
            (attributes.quantized() ? "" : "; an int8 node has w_scale and the attributes x_scale and y_scale"));
    }
}

void check_types(Attributes const& attributes, Type const* types) {
    Type const x = types[0];
    if (find_combination(x, TensorFormat::kLINEAR) == nullptr) {
        throw std::invalid_argument("input X is " + name_of(x) + ", expected float32, float16 or int8");
    }
    if ((x == Type::kINT8) != attributes.quantized()) {
        throw std::invalid_argument("input X is " + name_of(x) + ", expected " +
                                    (attributes.quantized() ? "int8, since attribute x_scale is set"
                                                            : "float32 or float16; int8 needs x_scale and y_scale"));
    }
    for (int32_t i = 1; i < input_count(attributes); ++i) {
        Type const wanted = input_type(i, x);
        if (types[i] != wanted) {
            throw std::invalid_argument(std::string("input ") + kInputs[i] + " is " + name_of(types[i]) +
                                        ", expected " + name_of(wanted) + " where X is " + name_of(x));
        }
    }
}

void check_shapes(Attributes const& attributes, Dims const* inputs, Dims const& output) {
    int64_t const channels = attributes.channels();
    int64_t const size = attributes.weight_size();
    auto const strided = [&](int64_t extent) {
        return extent < 0 ? extent : (extent + attributes.stride - 1) / attributes.stride;
    };
    check_dimensions("input X", inputs[0], Dims{4, {-1, channels, -1, -1}});
    check_dimensions("input W", inputs[1], Dims{4, {channels, 1, size, size}});
    for (int32_t i = 2; i < input_count(attributes); ++i) {
        check_dimensions(std::string("input ") + kInputs[i], inputs[i], Dims{1, {channels}});
    }
    Dims const& x = inputs[0];
    check_dimensions("output Y", output, Dims{4, {x.d[0], channels, strided(x.d[2]), strided(x.d[3])}});
}

}  // namespace mdconv
