// SPDX-License-Identifier: Apache-2.0
//
// MDConv (domain "mdconv", version 1) as a TensorRT plugin, for TensorRT 10.3 to 11.x.
//
// Inputs: X (N, C, H, W), W (C, 1, K, K), B (C,); an int8 node has w_scale (C,) float32 as its fourth. Output: Y.
// The attributes are in mdconv_attributes.h, the arithmetic in mdconv_kernel.h.
#pragma once

#include <NvInferRuntime.h>

#include <string>
#include <vector>

#include "mdconv_attributes.h"
#include "mdconv_kernel.h"

namespace mdconv {

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
public:
    explicit Plugin(Attributes attributes);

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // IPluginV3OneCore
    char const* getPluginName() const noexcept override;
    char const* getPluginVersion() const noexcept override;
    char const* getPluginNamespace() const noexcept override;

    // IPluginV3OneBuild
    int32_t getNbOutputs() const noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, int32_t nbOutputs, nvinfer1::DataType const* inputTypes,
                               int32_t nbInputs) const noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs, nvinfer1::DimsExprs const* shapeInputs,
                            int32_t nbShapeInputs, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
                            nvinfer1::IExprBuilder& exprBuilder) noexcept override;
    bool supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t nbInputs,
                                   int32_t nbOutputs) noexcept override;
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
                            nvinfer1::DynamicPluginTensorDesc const* out, int32_t nbOutputs) noexcept override;
    int32_t getNbTactics() noexcept override;
    int32_t getValidTactics(int32_t* tactics, int32_t nbTactics) noexcept override;
    char const* getTimingCacheID() noexcept override;
    char const* getMetadataString() noexcept override;

    // IPluginV3OneRuntime
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    int32_t setTactic(int32_t tactic) noexcept override;
    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs, nvinfer1::PluginTensorDesc const* out,
                          int32_t nbOutputs) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc,
                    void const* const* inputs, void* const* outputs, void* workspace,
                    cudaStream_t stream) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

private:
    Problem problem_of(nvinfer1::PluginTensorDesc const& x) const;
    void prepare_for(nvinfer1::PluginTensorDesc const& x);
    [[noreturn]] void refuse_launch(nvinfer1::PluginTensorDesc const& x, cudaError_t error) const;

    Attributes attributes_;
    Problem problem_;  // of these attributes; type, layout and shape are those of the last configurePlugin
    std::string metadata_;
    std::string timing_id_;
    int32_t tactic_ = 0;  // 0 where TensorRT chose none
    // What enqueue launches, worked out for the last shape and tactic.
    PreparedLaunch prepared_{};
    bool is_prepared_ = false;
    int32_t prepared_tactic_ = 0;
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_{};
};

class Creator final : public nvinfer1::IPluginCreatorV3One {
public:
    Creator();
    nvinfer1::IPluginV3* createPlugin(char const* name, nvinfer1::PluginFieldCollection const* fc,
                                      nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
    char const* getPluginName() const noexcept override;
    char const* getPluginVersion() const noexcept override;
    char const* getPluginNamespace() const noexcept override;

private:
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_;
};

}  // namespace mdconv

// What TensorRT, trtexec (--dynamicPlugins) and others look for in a plugin library.
extern "C" {
[[gnu::visibility("default")]] nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);
[[gnu::visibility("default")]] void setLoggerFinder(nvinfer1::ILoggerFinder* finder);
}
