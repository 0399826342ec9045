// SPDX-License-Identifier: Apache-2.0
//
// Leads the plugin through its life on a CPU as TensorRT does on a GPU: found by getCreators, called through TensorRT's
// interfaces only, its kernels run by the emulator. A C interface for tests/native/plugin_harness.py, which knows what
// should come out; this file only calls and hands back.
#include <NvInferRuntime.h>

#include <cstring>
#include <deque>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "../../mdconv_plugin.h"

namespace {

using namespace nvinfer1;

class Logger final : public ILogger {
public:
    void log(Severity severity, char const* text) noexcept override {
        lines += std::to_string(static_cast<int>(severity)) + " " + text + "\n";
    }
    std::string lines;
};

class LoggerFinder final : public ILoggerFinder {
public:
    ILogger* findLogger() override { return &logger; }
    Logger logger;
};

LoggerFinder finder;
std::string taken;  // what take_messages() last handed out

// An expression over dimensions that knows its value all along; whether it tells is another matter.
class Expression final : public IDimensionExpr, public apiv::VDimensionExpr {
public:
    Expression(int64_t value_, bool constant_) : value(value_), constant(constant_) { mImpl = this; }
    bool isConstant() const override { return constant; }
    int64_t getConstantValue() const override { return constant ? value : std::numeric_limits<int64_t>::min(); }
    bool isSizeTensor() const override { return false; }

    int64_t value;
    bool constant;
};

class ExpressionBuilder final : public IExprBuilder, public apiv::VExprBuilder {
public:
    ExpressionBuilder() { mImpl = this; }
    IDimensionExpr const* constant(int64_t value) override { return make(value, true); }
    IDimensionExpr const* operation(DimensionOperation op, IDimensionExpr const& first,
                                    IDimensionExpr const& second) override {
        auto const& a = static_cast<Expression const&>(first);
        auto const& b = static_cast<Expression const&>(second);
        bool const known = a.constant && b.constant;
        switch (op) {
            case DimensionOperation::kSUM:
                return make(a.value + b.value, known);
            case DimensionOperation::kSUB:
                return make(a.value - b.value, known);
            case DimensionOperation::kPROD:
                return make(a.value * b.value, known);
            case DimensionOperation::kFLOOR_DIV:
                return make(a.value / b.value, known);
            case DimensionOperation::kCEIL_DIV:
                return make((a.value + b.value - 1) / b.value, known);
            default:
                return nullptr;
        }
    }
    IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) override {
        return nullptr;
    }
    IDimensionExpr const* make(int64_t value, bool constant) { return &made_.emplace_back(value, constant); }

private:
    std::deque<Expression> made_;
};

class ResourceContext final : public IPluginResourceContext {
public:
    IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
    IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
};

template <typename Capability>
Capability& capability(IPluginV3* plugin, PluginCapabilityType type) {
    return *static_cast<Capability*>(plugin->getCapabilityInterface(type));
}

IPluginV3OneBuild& build(IPluginV3* plugin) {
    return capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}

IPluginV3OneRuntime& runtime(IPluginV3* plugin) {
    return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

IPluginCreatorV3One* creator() {
    int32_t count = 0;
    IPluginCreatorInterface* const* const creators = getCreators(count);
    bool const one = count == 1 && std::strcmp(creators[0]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") == 0;
    return one ? static_cast<IPluginCreatorV3One*>(creators[0]) : nullptr;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// With `logger` false, the plugin has no logger to speak to.
void harness_set_logger(bool logger) { setLoggerFinder(logger ? &finder : nullptr); }

// What was logged since the last call, a line each: severity and text.
char const* harness_take_messages() {
    taken = std::exchange(finder.logger.lines, {});
    return taken.c_str();
}

// The name, version and namespace of the creator, or of `plugin` if it is not null.
char const* harness_identity(IPluginV3* plugin, int32_t which) {
    if (plugin == nullptr) {
        return which == 0   ? creator()->getPluginName()
               : which == 1 ? creator()->getPluginVersion()
                            : creator()->getPluginNamespace();
    }
    auto const& core = capability<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE);
    return which == 0 ? core.getPluginName() : which == 1 ? core.getPluginVersion() : core.getPluginNamespace();
}

PluginFieldCollection const* harness_field_names() { return creator()->getFieldNames(); }

IPluginV3* harness_create(char const* name, PluginFieldCollection const* fields, int32_t phase) {
    return creator()->createPlugin(name, fields, static_cast<TensorRTPhase>(phase));
}

void harness_destroy(IPluginV3* plugin) { delete plugin; }

IPluginV3* harness_clone(IPluginV3* plugin) { return plugin->clone(); }

IPluginV3* harness_attach(IPluginV3* plugin) {
    ResourceContext context;
    return runtime(plugin).attachToContext(&context);
}

int32_t harness_output_count(IPluginV3* plugin) { return build(plugin).getNbOutputs(); }

int32_t harness_output_types(IPluginV3* plugin, DataType const* inputs, int32_t count, DataType* output) {
    return build(plugin).getOutputDataTypes(output, 1, inputs, count);
}

// `dims` are the values that dimensions have, `known` which of them are constants when the network is built. Returns
// the plugin's status; `output` gets the values, `output_known` whether they are constants.
int32_t harness_output_shape(IPluginV3* plugin, Dims const* dims, Dims const* known, int32_t count, Dims* output,
                             Dims* output_known) {
    ExpressionBuilder builder;
    std::vector<DimsExprs> inputs(count);
    for (int32_t i = 0; i < count; ++i) {
        inputs[i].nbDims = dims[i].nbDims;
        for (int32_t j = 0; j < dims[i].nbDims; ++j) {
            inputs[i].d[j] = builder.make(dims[i].d[j], known[i].d[j] != 0);
        }
    }
    DimsExprs shape{};
    int32_t const status = build(plugin).getOutputShapes(inputs.data(), count, nullptr, 0, &shape, 1, builder);
    output->nbDims = output_known->nbDims = shape.nbDims;
    for (int32_t j = 0; j < shape.nbDims; ++j) {
        auto const& expression = static_cast<Expression const&>(*shape.d[j]);
        output->d[j] = expression.value;
        output_known->d[j] = expression.constant ? 1 : 0;
    }
    return status;
}

bool harness_supports(IPluginV3* plugin, int32_t position, DynamicPluginTensorDesc const* tensors, int32_t inputs) {
    return build(plugin).supportsFormatCombination(position, tensors, inputs, 1);
}

int32_t harness_configure(IPluginV3* plugin, DynamicPluginTensorDesc const* tensors, int32_t inputs) {
    return build(plugin).configurePlugin(tensors, inputs, tensors + inputs, 1);
}

int32_t harness_tactics(IPluginV3* plugin, int32_t* tactics, int32_t capacity) {
    int32_t const count = build(plugin).getNbTactics();
    return count <= capacity && build(plugin).getValidTactics(tactics, count) == 0 ? count : -1;
}

char const* harness_timing_id(IPluginV3* plugin) { return build(plugin).getTimingCacheID(); }

char const* harness_metadata(IPluginV3* plugin) { return build(plugin).getMetadataString(); }

int32_t harness_set_tactic(IPluginV3* plugin, int32_t tactic) { return runtime(plugin).setTactic(tactic); }

int32_t harness_shape_change(IPluginV3* plugin, PluginTensorDesc const* tensors, int32_t inputs) {
    return runtime(plugin).onShapeChange(tensors, inputs, tensors + inputs, 1);
}

int32_t harness_enqueue(IPluginV3* plugin, PluginTensorDesc const* tensors, int32_t inputs, void const* const* x,
                        void* y) {
    return runtime(plugin).enqueue(tensors, tensors + inputs, x, &y, nullptr, nullptr);
}

PluginFieldCollection const* harness_serialize(IPluginV3* plugin) { return runtime(plugin).getFieldsToSerialize(); }
}
#pragma GCC visibility pop
