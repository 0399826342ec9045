// A stand-in for the CUDA driver, for tests of our own driver-API code on a machine without a GPU.
//
// Device memory is host memory. What a real driver would do later, it does as late as it may: asynchronous copies, events and
// host functions wait in their stream until something synchronizes. Fresh and freed memory is filled with a pattern, and
// freed blocks are kept, so that a missing synchronize, a dangling address or a stale result shows in the numbers. What is
// wrong by itself (work on freed memory, pageable memory in an asynchronous copy) is noted as a violation.
//
// Environment:
//   STAND_IN_REPORT      folder; at exit <pid>.json is written there: what still lives, violations, calls
//   STAND_IN_INTEGRATED  "1": the device shares the host's memory, as a Jetson's does
//   STAND_IN_DEVICES     number of devices (default 1)
//   STAND_IN_FAIL        "cuName:3:700": the third call of cuName returns error 700; "cuName:3+:700": every later one, too

#include <cuda.h>
#include <cudaProfiler.h>
#include <dlfcn.h>
#include <sys/types.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

using Operation = std::function<void()>;

struct CUctx_st {};
struct CUgraph_st {
    std::vector<Operation> operations;
};
struct CUgraphExec_st {
    std::vector<Operation> operations;
};
struct CUstream_st {
    std::deque<Operation> pending;
    CUgraph capture;
    bool capture_broken;
};
struct CUevent_st {
    CUstream stream;
    bool recorded, done;
    std::chrono::steady_clock::time_point time;
};

namespace {

struct Block {
    size_t size;
    bool device, live, ours;
};

struct State {
    std::recursive_mutex mutex;
    std::map<uintptr_t, Block> blocks;
    std::map<std::string, long> live, calls;
    std::set<std::string> violations;
    std::set<unsigned long> threads;
    CUstream_st null_stream{};
    std::deque<Operation> orphans;  // work of streams that were destroyed while it waited
};

State& state() {
    static State* instance = new State;  // never destroyed: the report is written after static destructors
    return *instance;
}

thread_local std::vector<CUcontext> contexts;

bool flag(const char* name) {
    const char* value = std::getenv(name);
    return value != nullptr && std::strcmp(value, "1") == 0;
}

void violate(const std::string& what) { state().violations.insert(what); }

// Counts the call and returns the error that STAND_IN_FAIL wants of it.
CUresult enter(const char* name) {
    const long count = ++state().calls[name];
    const char* wanted = std::getenv("STAND_IN_FAIL");
    if (wanted == nullptr) return CUDA_SUCCESS;
    const std::string text = wanted;
    const size_t first = text.find(':'), second = text.find(':', first + 1);
    const long from = std::atol(text.c_str() + first + 1);
    const bool hit = text[second - 1] == '+' ? count >= from : count == from;
    if (text.substr(0, first) != name || !hit) return CUDA_SUCCESS;
    return static_cast<CUresult>(std::atoi(text.c_str() + second + 1));
}

#define ENTER()                                                        \
    std::lock_guard<std::recursive_mutex> guard(state().mutex);        \
    if (const CUresult failure = enter(__func__)) return failure

#define ENTER_IN_CONTEXT() \
    ENTER();               \
    if (contexts.empty()) return CUDA_ERROR_INVALID_CONTEXT

CUdeviceptr allocate(size_t size, bool device) {
    void* memory = std::malloc(size);
    std::memset(memory, 0xCD, size);
    state().blocks[reinterpret_cast<uintptr_t>(memory)] = {size, device, true, true};
    ++state().live[device ? "device memory" : "host memory"];
    return reinterpret_cast<CUdeviceptr>(memory);
}

CUresult release(uintptr_t start, bool device) {
    const auto found = state().blocks.find(start);
    if (found == state().blocks.end() || !found->second.live || found->second.device != device)
        return CUDA_ERROR_INVALID_VALUE;
    std::memset(reinterpret_cast<void*>(start), 0xDB, found->second.size);
    found->second.live = false;  // the block stays: whoever still reads it reads the pattern
    --state().live[device ? "device memory" : "host memory"];
    return CUDA_SUCCESS;
}

// Whether [address, address + size) lies in one live block; notes a violation if not.
bool touch(uintptr_t address, size_t size, const char* who) {
    auto after = state().blocks.upper_bound(address);
    if (after == state().blocks.begin()) {
        violate(std::string(who) + " on memory that was never allocated or page-locked");
        return false;
    }
    const auto& [start, block] = *--after;
    if (address + size > start + block.size) {
        violate(std::string(who) + " on memory that was never allocated or page-locked");
        return false;
    }
    if (!block.live) violate(std::string(who) + " on freed memory");
    return block.live;
}

CUstream_st& real(CUstream stream) { return stream == nullptr ? state().null_stream : *stream; }

void defer(CUstream stream, Operation operation) {
    CUstream_st& queue = real(stream);
    if (queue.capture != nullptr)
        queue.capture->operations.push_back(std::move(operation));
    else
        queue.pending.push_back(std::move(operation));
}

void drain(std::deque<Operation>& pending) {
    while (!pending.empty()) {
        const Operation operation = std::move(pending.front());
        pending.pop_front();
        operation();
    }
}

CUresult copy(void* to, const void* from, size_t size, CUstream stream, const char* who) {
    const auto target = reinterpret_cast<uintptr_t>(to), source = reinterpret_cast<uintptr_t>(from);
    if (!touch(target, size, who) || !touch(source, size, who)) return CUDA_ERROR_INVALID_VALUE;
    const std::string name = who;
    defer(stream, [=] {
        if (touch(target, size, name.c_str()) && touch(source, size, name.c_str())) std::memcpy(to, from, size);
    });
    return CUDA_SUCCESS;
}

std::string json(const std::map<std::string, long>& numbers) {
    std::string text = "{";
    for (const auto& [name, number] : numbers)
        text += (text.size() > 1 ? ", \"" : "\"") + name + "\": " + std::to_string(number);
    return text + "}";
}

__attribute__((destructor)) void write_report() {
    const char* folder = std::getenv("STAND_IN_REPORT");
    if (folder == nullptr || state().calls.empty()) return;
    std::string violations;
    for (const auto& violation : state().violations) violations += (violations.empty() ? "\"" : ", \"") + violation + "\"";
    std::map<std::string, long> live = state().live;
    live["contexts on the last thread's stack"] = static_cast<long>(contexts.size());
    FILE* file = std::fopen((std::string(folder) + "/" + std::to_string(getpid()) + ".json").c_str(), "w");
    if (file == nullptr) return;
    std::fprintf(file, "{\"live\": %s, \"violations\": [%s], \"calls\": %s, \"threads\": %zu}\n", json(live).c_str(),
                 violations.c_str(), json(state().calls).c_str(), state().threads.size());
    std::fclose(file);
}

}  // namespace

extern "C" {

// For the stand-in of TensorRT: may a kernel touch these bytes now?
int stand_in_touch(CUdeviceptr address, size_t size) {
    std::lock_guard<std::recursive_mutex> guard(state().mutex);
    return touch(static_cast<uintptr_t>(address), size, "a kernel");
}

// For the stand-in of TensorRT: something went wrong that has no place in CUDA.
void stand_in_violate(const char* what) {
    std::lock_guard<std::recursive_mutex> guard(state().mutex);
    violate(what);
}

// ---- driver and device

CUresult cuInit(unsigned int) {
    ENTER();
    const char* devices = std::getenv("STAND_IN_DEVICES");
    return devices != nullptr && std::atoi(devices) == 0 ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int* version) {
    *version = CUDA_VERSION;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult, const char** text) {
    *text = "an error of the stand-in driver";
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult, const char** text) {
    *text = "CUDA_ERROR_OF_THE_STAND_IN";
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int* count) {
    *count = 1;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetName(char* name, int length, CUdevice) {
    std::snprintf(name, static_cast<size_t>(length), "stand-in GPU");
    return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem(size_t* bytes, CUdevice) {
    *bytes = size_t{8} << 30;
    return CUDA_SUCCESS;
}

CUresult cuDeviceComputeCapability(int* major, int* minor, CUdevice) {
    *major = 8;
    *minor = 7;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
    *value = 0;
    if (attribute == CU_DEVICE_ATTRIBUTE_INTEGRATED) *value = flag("STAND_IN_INTEGRATED");
    if (attribute == CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY) *value = 1;
    if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) *value = 8;
    if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR) *value = 7;
    return CUDA_SUCCESS;
}

// ---- contexts

CUresult cuCtxCreate(CUcontext* context, CUctxCreateParams*, unsigned int, CUdevice) {
    ENTER();
    *context = new CUctx_st{};
    contexts.push_back(*context);
    ++state().live["contexts"];
    state().threads.insert(static_cast<unsigned long>(gettid()));
    return CUDA_SUCCESS;
}

CUresult cuCtxDetach(CUcontext context) {
    ENTER_IN_CONTEXT();
    if (contexts.back() != context) return CUDA_ERROR_INVALID_CONTEXT;
    drain(state().orphans);
    contexts.pop_back();
    --state().live["contexts"];
    for (const auto& [kind, count] : state().live)
        if (count != 0) violate("the context was destroyed while " + kind + " lived");
    delete context;
    return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent(CUcontext context) {
    ENTER();
    contexts.push_back(context);
    state().threads.insert(static_cast<unsigned long>(gettid()));
    return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent(CUcontext* context) {
    ENTER_IN_CONTEXT();
    if (context != nullptr) *context = contexts.back();
    contexts.pop_back();
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context) {
    *context = contexts.empty() ? nullptr : contexts.back();
    return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice* device) {
    ENTER_IN_CONTEXT();
    *device = 0;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetApiVersion(CUcontext, unsigned int* version) {
    *version = 3020;
    return CUDA_SUCCESS;
}

// ---- memory

CUresult cuMemAlloc(CUdeviceptr* address, size_t size) {
    ENTER_IN_CONTEXT();
    *address = allocate(size, true);
    return CUDA_SUCCESS;
}

CUresult cuMemFree(CUdeviceptr address) {
    ENTER_IN_CONTEXT();
    return release(static_cast<uintptr_t>(address), true);
}

CUresult cuMemHostAlloc(void** address, size_t size, unsigned int) {
    ENTER_IN_CONTEXT();
    *address = reinterpret_cast<void*>(allocate(size, false));
    return CUDA_SUCCESS;
}

CUresult cuMemFreeHost(void* address) {
    ENTER_IN_CONTEXT();
    return release(reinterpret_cast<uintptr_t>(address), false);
}

CUresult cuMemHostGetDevicePointer(CUdeviceptr* device, void* host, unsigned int) {
    ENTER_IN_CONTEXT();
    *device = reinterpret_cast<CUdeviceptr>(host);
    return touch(reinterpret_cast<uintptr_t>(host), 1, __func__) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemGetInfo(size_t* available, size_t* total) {
    ENTER_IN_CONTEXT();
    *available = *total = size_t{8} << 30;
    return CUDA_SUCCESS;
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t size, CUstream stream) {
    ENTER_IN_CONTEXT();
    return copy(reinterpret_cast<void*>(to), from, size, stream, __func__);
}

CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t size, CUstream stream) {
    ENTER_IN_CONTEXT();
    return copy(to, reinterpret_cast<const void*>(from), size, stream, __func__);
}

// ---- streams and events

CUresult cuStreamCreate(CUstream* stream, unsigned int) {
    ENTER_IN_CONTEXT();
    *stream = new CUstream_st{};
    ++state().live["streams"];
    return CUDA_SUCCESS;
}

CUresult cuStreamDestroy(CUstream stream) {
    ENTER_IN_CONTEXT();
    // As the real one: it returns at once, and what waited is done some time later.
    for (Operation& operation : stream->pending) state().orphans.push_back(std::move(operation));
    --state().live["streams"];
    delete stream;
    return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream stream) {
    ENTER_IN_CONTEXT();
    if (real(stream).capture != nullptr) {
        real(stream).capture_broken = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    drain(real(stream).pending);
    return CUDA_SUCCESS;
}

CUresult cuStreamQuery(CUstream stream) {
    ENTER_IN_CONTEXT();
    return real(stream).pending.empty() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void* data) {
    ENTER_IN_CONTEXT();
    defer(stream, [=] { function(data); });
    return CUDA_SUCCESS;
}

CUresult cuEventCreate(CUevent* event, unsigned int) {
    ENTER_IN_CONTEXT();
    *event = new CUevent_st{};
    ++state().live["events"];
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent event) {
    ENTER_IN_CONTEXT();
    (void)event;  // not deleted: it may be waiting in a stream
    --state().live["events"];
    return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
    ENTER_IN_CONTEXT();
    event->recorded = true;
    event->done = false;
    event->stream = stream;
    defer(stream, [=] {
        event->done = true;
        event->time = std::chrono::steady_clock::now();
    });
    return CUDA_SUCCESS;
}

CUresult cuEventSynchronize(CUevent event) {
    ENTER_IN_CONTEXT();
    if (event->recorded && !event->done) drain(real(event->stream).pending);
    return CUDA_SUCCESS;
}

CUresult cuEventQuery(CUevent event) {
    ENTER_IN_CONTEXT();
    return event->recorded && !event->done ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}

CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
    ENTER_IN_CONTEXT();
    if (!start->recorded || !end->recorded) return CUDA_ERROR_INVALID_HANDLE;
    if (!start->done || !end->done) return CUDA_ERROR_NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
    return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize(void) {
    ENTER_IN_CONTEXT();
    drain(state().orphans);
    drain(state().null_stream.pending);
    return CUDA_SUCCESS;
}

// ---- graphs

CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode) {
    ENTER_IN_CONTEXT();
    if (stream == nullptr || stream->capture != nullptr) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    stream->capture = new CUgraph_st{};
    stream->capture_broken = false;
    return CUDA_SUCCESS;
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
    ENTER_IN_CONTEXT();
    if (stream->capture == nullptr) return CUDA_ERROR_ILLEGAL_STATE;
    *graph = stream->capture;
    stream->capture = nullptr;
    if (stream->capture_broken) {
        delete *graph;
        *graph = nullptr;
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    ++state().live["graphs"];
    return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long) {
    ENTER_IN_CONTEXT();
    *executable = new CUgraphExec_st{graph->operations};
    ++state().live["executable graphs"];
    return CUDA_SUCCESS;
}

CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
    ENTER_IN_CONTEXT();
    for (const Operation& operation : executable->operations) defer(stream, operation);
    return CUDA_SUCCESS;
}

CUresult cuGraphExecDestroy(CUgraphExec executable) {
    ENTER_IN_CONTEXT();
    --state().live["executable graphs"];
    delete executable;
    return CUDA_SUCCESS;
}

CUresult cuGraphDestroy(CUgraph graph) {
    ENTER_IN_CONTEXT();
    --state().live["graphs"];
    delete graph;
    return CUDA_SUCCESS;
}

// ---- how cuda-bindings finds all these: by name, in the newest form that is here

CUresult cuGetProcAddress(const char* symbol, void** function, int, cuuint64_t, CUdriverProcAddressQueryResult* found) {
    *function = nullptr;
    for (const char* suffix : {"_v4", "_v3", "_v2", ""})
        if (*function == nullptr) *function = dlsym(RTLD_DEFAULT, (std::string(symbol) + suffix).c_str());
    if (found != nullptr)
        *found = *function != nullptr ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *function != nullptr ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

}  // extern "C"
