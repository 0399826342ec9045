// SPDX-License-Identifier: Apache-2.0
#include "mdconv_attributes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <sstream>
#include <stdexcept>

namespace mdconv {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

constexpr char const* kActivationNames[] = {"none", "relu", "relu6", "hardswish"};  // in the order of Activation

constexpr char const* kSizesAllowed = "1 to 8 kernel sizes, each 3, 5 or 7";
constexpr char const* kSplitsAllowed = "as many channel counts as kernel_sizes has, each at least 1";
constexpr char const* kStrideAllowed = "1 or 2";
constexpr char const* kActivationAllowed = "none, relu, relu6 or hardswish";
constexpr char const* kScaleAllowed = "a finite number above 0, for int8 only and then both x_scale and y_scale";

template <typename T>
std::string join(std::vector<T> const& values) {
    std::ostringstream text;
    text << '[';
    for (size_t i = 0; i < values.size(); ++i) {
        text << (i == 0 ? "" : ", ") << values[i];
    }
    text << ']';
    return text.str();
}

// Nine digits tell any two float32 apart.
std::string to_text(float value) {
    std::ostringstream text;
    text.precision(std::numeric_limits<float>::max_digits10);
    text << value;
    return text.str();
}

[[noreturn]] void refuse(char const* name, std::string const& came, char const* allowed) {
    throw std::invalid_argument(std::string("attribute ") + name + " is " + came + ", expected " + allowed);
}

PluginField const* find(PluginFieldCollection const& collection, char const* name) {
    for (int32_t i = 0; i < collection.nbFields; ++i) {
        if (std::strcmp(collection.fields[i].name, name) == 0) {
            return &collection.fields[i];
        }
    }
    return nullptr;
}

[[noreturn]] void refuse_type(PluginField const& field, char const* allowed) {
    refuse(field.name, "of field type " + std::to_string(static_cast<int32_t>(field.type)), allowed);
}

template <typename T>
std::vector<T> elements(PluginField const& field) {
    auto const* data = static_cast<T const*>(field.data);
    return data == nullptr || field.length < 1 ? std::vector<T>{} : std::vector<T>(data, data + field.length);
}

// Some parsers hand over ONNX's 64-bit integers as they are, others narrow them.
std::vector<int64_t> integers(PluginFieldCollection const& collection, char const* name, char const* allowed) {
    PluginField const* field = find(collection, name);
    if (field == nullptr) {
        refuse(name, "missing", allowed);
    }
    if (field->type == PluginFieldType::kINT64) {
        return elements<int64_t>(*field);
    }
    if (field->type == PluginFieldType::kINT32) {
        std::vector<int32_t> const narrow = elements<int32_t>(*field);
        return {narrow.begin(), narrow.end()};
    }
    refuse_type(*field, allowed);
}

std::vector<int32_t> kernel_sizes(PluginFieldCollection const& collection) {
    std::vector<int64_t> const sizes = integers(collection, "kernel_sizes", kSizesAllowed);
    bool const known = std::all_of(sizes.begin(), sizes.end(), [](int64_t k) { return k == 3 || k == 5 || k == 7; });
    if (sizes.empty() || sizes.size() > kMaxGroups || !known) {
        refuse("kernel_sizes", join(sizes), kSizesAllowed);
    }
    return {sizes.begin(), sizes.end()};
}

std::vector<int32_t> channel_splits(PluginFieldCollection const& collection, size_t groups) {
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    std::vector<int64_t> const splits = integers(collection, "channel_splits", kSplitsAllowed);
    bool const counts =
        std::all_of(splits.begin(), splits.end(), [](int64_t count) { return count >= 1 && count <= kMost; });
    if (splits.size() != groups || !counts || std::accumulate(splits.begin(), splits.end(), int64_t{0}) > kMost) {
        refuse("channel_splits", join(splits), kSplitsAllowed);
    }
    return {splits.begin(), splits.end()};
}

int32_t stride(PluginFieldCollection const& collection) {
    std::vector<int64_t> const value = integers(collection, "stride", kStrideAllowed);
    if (value != std::vector<int64_t>{1} && value != std::vector<int64_t>{2}) {
        refuse("stride", value.size() == 1 ? std::to_string(value[0]) : join(value), kStrideAllowed);
    }
    return static_cast<int32_t>(value[0]);
}

Activation activation(PluginFieldCollection const& collection) {
    PluginField const* field = find(collection, "activation");
    if (field == nullptr) {
        refuse("activation", "missing", kActivationAllowed);
    }
    if (field->type != PluginFieldType::kCHAR) {
        refuse_type(*field, kActivationAllowed);
    }
    std::vector<char> const characters = elements<char>(*field);
    // Whether the length counts a closing zero is the parser's affair.
    std::string const name(characters.begin(), std::find(characters.begin(), characters.end(), '\0'));
    auto const* found = std::find_if(std::begin(kActivationNames), std::end(kActivationNames),
                                     [&](char const* known) { return name == known; });
    if (found == std::end(kActivationNames)) {
        refuse("activation", "\"" + name + "\"", kActivationAllowed);
    }
    return static_cast<Activation>(found - std::begin(kActivationNames));
}

// 0 where the attribute is absent.
float scale(PluginFieldCollection const& collection, char const* name) {
    PluginField const* field = find(collection, name);
    if (field == nullptr) {
        return 0.0F;
    }
    if (field->type != PluginFieldType::kFLOAT32) {
        refuse_type(*field, kScaleAllowed);
    }
    std::vector<float> const value = elements<float>(*field);
    if (value.size() != 1 || !std::isfinite(value[0]) || value[0] < 0.0F) {
        refuse(name, value.size() == 1 ? to_text(value[0]) : join(value), kScaleAllowed);
    }
    return value[0];
}

char const* name_of(Activation activation) { return kActivationNames[static_cast<int32_t>(activation)]; }

}  // namespace

int32_t Attributes::channels() const { return std::accumulate(channel_splits.begin(), channel_splits.end(), 0); }

int32_t Attributes::weight_size() const { return *std::max_element(kernel_sizes.begin(), kernel_sizes.end()); }

Attributes parse_attributes(PluginFieldCollection const& fields) {
    Attributes attributes{};
    attributes.kernel_sizes = kernel_sizes(fields);
    attributes.channel_splits = channel_splits(fields, attributes.kernel_sizes.size());
    attributes.stride = stride(fields);
    attributes.activation = activation(fields);
    attributes.x_scale = scale(fields, "x_scale");
    attributes.y_scale = scale(fields, "y_scale");
    if ((attributes.x_scale > 0.0F) != (attributes.y_scale > 0.0F)) {
        refuse(attributes.x_scale > 0.0F ? "y_scale" : "x_scale", "missing or 0", kScaleAllowed);
    }
    return attributes;
}

std::vector<PluginField> field_names() {
    return {
        {"kernel_sizes", nullptr, PluginFieldType::kINT32}, {"channel_splits", nullptr, PluginFieldType::kINT32},
        {"stride", nullptr, PluginFieldType::kINT32, 1},    {"activation", nullptr, PluginFieldType::kCHAR},
        {"x_scale", nullptr, PluginFieldType::kFLOAT32, 1}, {"y_scale", nullptr, PluginFieldType::kFLOAT32, 1},
    };
}

std::vector<PluginField> fields_of(Attributes const& attributes) {
    auto const groups = static_cast<int32_t>(attributes.kernel_sizes.size());
    char const* const activation = name_of(attributes.activation);
    return {
        {"kernel_sizes", attributes.kernel_sizes.data(), PluginFieldType::kINT32, groups},
        {"channel_splits", attributes.channel_splits.data(), PluginFieldType::kINT32, groups},
        {"stride", &attributes.stride, PluginFieldType::kINT32, 1},
        {"activation", activation, PluginFieldType::kCHAR, static_cast<int32_t>(std::strlen(activation))},
        {"x_scale", &attributes.x_scale, PluginFieldType::kFLOAT32, 1},
        {"y_scale", &attributes.y_scale, PluginFieldType::kFLOAT32, 1},
    };
}

std::string describe(Attributes const& attributes) {
    std::string text = "kernel_sizes=" + join(attributes.kernel_sizes) +
                       " channel_splits=" + join(attributes.channel_splits) +
                       " stride=" + std::to_string(attributes.stride) + " activation=" + name_of(attributes.activation);
    if (attributes.quantized()) {
        text += " x_scale=" + to_text(attributes.x_scale) + " y_scale=" + to_text(attributes.y_scale);
    }
    return text;
}

}  // namespace mdconv
