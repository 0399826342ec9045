// SPDX-License-Identifier: Apache-2.0
//
// Stands where a process has TensorRT loaded for all to see: a registry that keeps what registers itself, and a
// version.
#include <NvInferRuntime.h>

#include <algorithm>
#include <string>
#include <vector>

namespace {

using namespace nvinfer1;

class Registry final : public IPluginRegistry {
public:
    bool registerCreator(IPluginCreator&, AsciiChar const*) noexcept override { return false; }
    IPluginCreator* const* getPluginCreatorList(int32_t*) const noexcept override { return nullptr; }
    IPluginCreator* getPluginCreator(AsciiChar const*, AsciiChar const*, AsciiChar const*) noexcept override {
        return nullptr;
    }
    void setErrorRecorder(IErrorRecorder*) noexcept override {}
    IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
    bool deregisterCreator(IPluginCreator const&) noexcept override { return false; }
    bool isParentSearchEnabled() const override { return false; }
    void setParentSearchEnabled(bool) override {}
    PluginLibraryHandle loadLibrary(AsciiChar const*) noexcept override { return nullptr; }
    void deregisterLibrary(PluginLibraryHandle) noexcept override {}
    bool registerCreator(IPluginCreatorInterface& creator, AsciiChar const* name_space) noexcept override {
        creators.push_back(&creator);
        last_namespace = name_space;
        return true;
    }
    IPluginCreatorInterface* const* getAllCreators(int32_t*) const noexcept override { return nullptr; }
    IPluginCreatorInterface* getCreator(AsciiChar const*, AsciiChar const*, AsciiChar const*) noexcept override {
        return nullptr;
    }
    bool deregisterCreator(IPluginCreatorInterface const& creator) noexcept override {
        auto const found = std::find(creators.begin(), creators.end(), &creator);
        if (found == creators.end()) {
            return false;
        }
        creators.erase(found);
        return true;
    }
    IPluginResource* acquirePluginResource(AsciiChar const*, IPluginResource*) noexcept override { return nullptr; }
    int32_t releasePluginResource(AsciiChar const*) noexcept override { return 0; }
    IPluginCreatorInterface* const* getAllCreatorsRecursive(int32_t*) noexcept override { return nullptr; }

    std::vector<IPluginCreatorInterface const*> creators;
    std::string last_namespace;
};

Registry& the_registry() {
    static Registry registry;
    return registry;
}

}  // namespace

extern "C" {
[[gnu::visibility("default")]] nvinfer1::IPluginRegistry* getPluginRegistry() noexcept { return &the_registry(); }

[[gnu::visibility("default")]] int32_t probe_registered() {
    return static_cast<int32_t>(the_registry().creators.size());
}

[[gnu::visibility("default")]] char const* probe_namespace() { return the_registry().last_namespace.c_str(); }
}
