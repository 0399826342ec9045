// SPDX-License-Identifier: Apache-2.0
#include "mdconv_plugin.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <limits>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "mdconv_tensors.h"

namespace mdconv {
namespace {

using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;
using Type = nvinfer1::DataType;

constexpr char const* kName = "MDConv";
constexpr char const* kVersion = "1";
constexpr char const* kNamespace = "mdconv";
std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

void report(char const* text) noexcept {
    try {
        std::string const line = std::string(kName) + ": " + text;
        nvinfer1::ILoggerFinder* const finder = logger_finder;
        nvinfer1::ILogger* const logger = finder == nullptr ? nullptr : finder->findLogger();
        if (logger != nullptr) {
            logger->log(nvinfer1::ILogger::Severity::kERROR, line.c_str());
        } else {
            std::cerr << line << std::endl;
        }
    } catch (...) {
        // There is nobody left to tell.
    }
}

// TensorRT takes no exceptions: runs `body`, reports what it throws, and returns `failed` then.
template <typename Result, typename Body>
Result guarded(Result failed, Body&& body) noexcept {
    try {
        return body();
    } catch (std::exception const& error) {
        report(error.what());
    } catch (...) {
        report("failed for an unknown reason");
    }
    return failed;
}

template <typename Body>
int32_t status(Body&& body) noexcept {
    return guarded(1, [&] {
        body();
        return 0;
    });
}

}  // namespace

Plugin::Plugin(Attributes attributes)
    : attributes_(std::move(attributes)),
      problem_{},
      metadata_(describe(attributes_)),
      // Times that were measured with other kernels are not ours.
      timing_id_(metadata_ + " kernels=" MDCONV_KERNEL_ID) {
    problem_.activation = attributes_.activation;
    problem_.channels = attributes_.channels();
    problem_.stride = attributes_.stride;
    problem_.groups = static_cast<int32_t>(attributes_.kernel_sizes.size());
    std::copy(attributes_.kernel_sizes.begin(), attributes_.kernel_sizes.end(), problem_.kernel_sizes);
    std::copy(attributes_.channel_splits.begin(), attributes_.channel_splits.end(), problem_.channel_splits);
    problem_.x_scale = attributes_.x_scale;
    problem_.y_scale = attributes_.y_scale;
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE:
            return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD:
            return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME:
            return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
    return guarded<nvinfer1::IPluginV3*>(nullptr, [&] {
        auto copy = std::make_unique<Plugin>(attributes_);
        copy->problem_ = problem_;
        copy->tactic_ = tactic_;
        return copy.release();
    });
}

char const* Plugin::getPluginName() const noexcept { return kName; }

char const* Plugin::getPluginVersion() const noexcept { return kVersion; }

char const* Plugin::getPluginNamespace() const noexcept { return kNamespace; }

int32_t Plugin::getNbOutputs() const noexcept { return 1; }

int32_t Plugin::getOutputDataTypes(Type* outputTypes, int32_t nbOutputs, Type const* inputTypes,
                                   int32_t nbInputs) const noexcept {
    return status([&] {
        check_counts(attributes_, nbInputs, nbOutputs);
        check_types(attributes_, inputTypes);
        outputTypes[0] = inputTypes[0];
    });
}

int32_t Plugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs, nvinfer1::DimsExprs const*,
                                int32_t, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
                                nvinfer1::IExprBuilder& exprBuilder) noexcept {
    return status([&] {
        check_counts(attributes_, nbInputs, nbOutputs);
        nvinfer1::DimsExprs const& x = inputs[0];
        if (x.nbDims != 4) {
            throw std::invalid_argument("input X has " + std::to_string(x.nbDims) + " dimensions, expected 4");
        }
        outputs[0] = x;
        if (attributes_.stride != 1) {
            nvinfer1::IDimensionExpr const* const stride = exprBuilder.constant(attributes_.stride);
            for (int32_t i : {2, 3}) {
                outputs[0].d[i] = exprBuilder.operation(nvinfer1::DimensionOperation::kCEIL_DIV, *x.d[i], *stride);
            }
        }
    });
}

bool Plugin::supportsFormatCombination(int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t nbInputs,
                                       int32_t nbOutputs) noexcept {
    return guarded(false, [&] {
        check_counts(attributes_, nbInputs, nbOutputs);
        PluginTensorDesc const& x = inOut[0].desc;
        PluginTensorDesc const& tensor = inOut[pos].desc;
        if (pos == 0) {
            bool const fits_attributes = (x.type == Type::kINT8) == attributes_.quantized();
            return fits_attributes && find_combination(x.type, x.format) != nullptr;
        }
        if (pos == nbInputs) {
            return tensor.type == x.type && tensor.format == x.format;
        }
        return tensor.type == input_type(pos, x.type) && tensor.format == TensorFormat::kLINEAR;
    });
}

int32_t Plugin::configurePlugin(DynamicPluginTensorDesc const* in, int32_t nbInputs, DynamicPluginTensorDesc const* out,
                                int32_t nbOutputs) noexcept {
    return status([&] {
        check_counts(attributes_, nbInputs, nbOutputs);
        Dims inputs[4];
        Type types[4];
        for (int32_t i = 0; i < nbInputs; ++i) {
            inputs[i] = in[i].desc.dims;
            types[i] = in[i].desc.type;
        }
        check_types(attributes_, types);
        check_shapes(attributes_, inputs, out[0].desc.dims);
        Combination const* const chosen = find_combination(in[0].desc.type, in[0].desc.format);
        if (chosen == nullptr) {
            throw std::invalid_argument("input X came in a format that was not offered");
        }
        problem_.type = chosen->kernel_type;
        problem_.layout = chosen->layout;
    });
}

int32_t Plugin::getNbTactics() noexcept {
    return guarded(0, [&] { return tactic_count(problem_.type, problem_.layout); });
}

int32_t Plugin::getValidTactics(int32_t* tactics, int32_t nbTactics) noexcept {
    return status([&] { std::iota(tactics, tactics + nbTactics, 1); });
}

char const* Plugin::getTimingCacheID() noexcept { return timing_id_.c_str(); }

char const* Plugin::getMetadataString() noexcept { return metadata_.c_str(); }

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

int32_t Plugin::setTactic(int32_t tactic) noexcept {
    return status([&] {
        if (tactic < 0) {
            throw std::invalid_argument("tactic " + std::to_string(tactic) + " was set, expected 0 or more");
        }
        tactic_ = tactic;
    });
}

Problem Plugin::problem_of(PluginTensorDesc const& x) const {
    Combination const* const combination = find_combination(x.type, x.format);
    if (combination == nullptr) {
        throw std::invalid_argument("input X came in a format that was not offered");
    }
    Problem problem = problem_;
    problem.type = combination->kernel_type;
    problem.layout = combination->layout;
    for (auto const& [extent, index] : {std::pair{&problem.batch, 0}, {&problem.height, 2}, {&problem.width, 3}}) {
        if (x.dims.d[index] > std::numeric_limits<int32_t>::max()) {
            throw std::invalid_argument("input X has dimensions " + to_text(x.dims) + ", expected each below 2^31");
        }
        *extent = static_cast<int32_t>(x.dims.d[index]);
    }
    return problem;
}

int32_t Plugin::onShapeChange(PluginTensorDesc const* in, int32_t nbInputs, PluginTensorDesc const* out,
                              int32_t nbOutputs) noexcept {
    return status([&] {
        check_counts(attributes_, nbInputs, nbOutputs);
        Dims inputs[4];
        Type types[4];
        for (int32_t i = 0; i < nbInputs; ++i) {
            inputs[i] = in[i].dims;
            types[i] = in[i].type;
        }
        check_types(attributes_, types);
        check_shapes(attributes_, inputs, out[0].dims);
        char const* const reason = why_unsupported(problem_of(in[0]));
        if (reason != nullptr) {
            throw std::invalid_argument("input X of dimensions " + to_text(in[0].dims) + " cannot be run: " + reason);
        }
        prepare_for(in[0]);
    });
}

void Plugin::prepare_for(PluginTensorDesc const& x) {
    Problem const problem = problem_of(x);
    if (is_prepared_ && prepared_tactic_ == tactic_ && prepared_.problem == problem) {
        return;
    }
    is_prepared_ = false;
    cudaError_t const error = prepare(problem, tactic_ != 0 ? tactic_ : default_tactic(problem), &prepared_);
    if (error != cudaSuccess) {
        refuse_launch(x, error);
    }
    prepared_tactic_ = tactic_;
    is_prepared_ = true;
}

void Plugin::refuse_launch(PluginTensorDesc const& x, cudaError_t error) const {
    std::string const tactic = tactic_ != 0 ? "tactic " + std::to_string(tactic_) : "the default tactic";
    throw std::runtime_error(tactic + " on X of dimensions " + to_text(x.dims) +
                             " was not launched: " + cudaGetErrorString(error));
}

// Believes nothing but what it is given: in which order TensorRT calls setTactic, onShapeChange and enqueue while it
// times tactics is not documented.
int32_t Plugin::enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const*, void const* const* inputs,
                        void* const* outputs, void*, cudaStream_t stream) noexcept {
    return status([&] {
        prepare_for(inputDesc[0]);
        auto const* const weight_scale = attributes_.quantized() ? static_cast<float const*>(inputs[3]) : nullptr;
        cudaError_t const error =
            launch(prepared_, Tensors{inputs[0], inputs[1], inputs[2], weight_scale, outputs[0]}, stream);
        if (error != cudaSuccess) {
            refuse_launch(inputDesc[0], error);
        }
    });
}

PluginFieldCollection const* Plugin::getFieldsToSerialize() noexcept {
    return guarded<PluginFieldCollection const*>(nullptr, [&] {
        fields_ = fields_of(attributes_);
        collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
        return &collection_;
    });
}

Creator::Creator() : fields_(field_names()), collection_{static_cast<int32_t>(fields_.size()), fields_.data()} {}

nvinfer1::IPluginV3* Creator::createPlugin(char const* name, PluginFieldCollection const* fc,
                                           nvinfer1::TensorRTPhase) noexcept {
    return guarded<nvinfer1::IPluginV3*>(nullptr, [&] {
        try {
            return new Plugin(parse_attributes(*fc));
        } catch (std::invalid_argument const& error) {
            throw std::invalid_argument(std::string("node ") + name + ": " + error.what());
        }
    });
}

PluginFieldCollection const* Creator::getFieldNames() noexcept { return &collection_; }

char const* Creator::getPluginName() const noexcept { return kName; }

char const* Creator::getPluginVersion() const noexcept { return kVersion; }

char const* Creator::getPluginNamespace() const noexcept { return kNamespace; }

}  // namespace mdconv

namespace {

mdconv::Creator creator;

// Who loads the library through TensorRT's registry asks `getCreators`. Triton, DeepStream and Polygraphy only open it:
// where the environment says so, it then registers itself with the TensorRT that the process has loaded already. Not
// otherwise, since the registry refuses a second creator of a name. The soname holds the major version, on which the
// layout of the registry depends.
void register_where_asked() {
    if (std::getenv("MDCONV_PLUGIN_REGISTER") == nullptr) {
        return;
    }
    std::string const soname = "libnvinfer.so." + std::to_string(NV_TENSORRT_MAJOR);
    void* const tensorrt = dlopen(soname.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    void* const symbol = tensorrt == nullptr ? nullptr : dlsym(tensorrt, "getPluginRegistry");
    if (symbol == nullptr) {
        mdconv::report(
            ("MDCONV_PLUGIN_REGISTER is set, but " + soname + " is not loaded: open this library later").c_str());
        return;
    }
    auto* const registry = reinterpret_cast<decltype(&getPluginRegistry)>(symbol)();
    if (registry == nullptr || !registry->registerCreator(creator, mdconv::kNamespace)) {
        mdconv::report("TensorRT's registry does not take the plugin: is it registered already?");
    }
}

[[maybe_unused]] bool const asked = (register_where_asked(), true);

}  // namespace

nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    return creators;
}

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { mdconv::logger_finder = finder; }
