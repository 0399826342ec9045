// SPDX-License-Identifier: Apache-2.0
//
// The accessors of device_memory.cuh on a CPU. Each access is bounds-checked in shared memory and checked for
// alignment; while the emulator observes, it is also counted and checked (../observer.h).
//
// A call site is the caller's line: two accesses of one thread from the same line are told apart by their order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace emulated {

enum class Access : int { kLoadGlobal, kStoreGlobal, kLoadShared, kStoreShared };

inline bool is_shared(Access access) { return access == Access::kLoadShared || access == Access::kStoreShared; }

struct Site {
    char const* file;
    int line;
};

extern bool observing;
extern unsigned char* shared_memory;
extern uint32_t shared_size;

void observe(Access access, bool wanted, uint64_t address, uint32_t bytes, Site site);

// Ends the launch with cudaErrorMisalignedAddress or cudaErrorIllegalAddress.
[[noreturn]] void refuse_access(Access access, uint64_t address, uint32_t bytes, Site site);

inline bool is_whole(uint64_t address, size_t bytes) { return address % bytes == 0; }

template <typename V>
inline void touch_global(Access access, bool wanted, void const* pointer, Site site) {
    auto const address = reinterpret_cast<uint64_t>(pointer);
    if (wanted && !is_whole(address, sizeof(V))) {
        refuse_access(access, address, sizeof(V), site);
    }
    if (observing) {
        observe(access, wanted, address, sizeof(V), site);
    }
}

template <typename V>
inline void touch_shared(Access access, bool wanted, uint32_t offset, Site site) {
    if (wanted && (!is_whole(offset, sizeof(V)) || offset > shared_size || sizeof(V) > shared_size - offset)) {
        refuse_access(access, offset, sizeof(V), site);
    }
    if (observing) {
        observe(access, wanted, offset, sizeof(V), site);
    }
}

}  // namespace emulated

namespace mdconv {

template <typename V>
inline V load_global_if(bool wanted, void const* address, int line = __builtin_LINE(),
                        char const* file = __builtin_FILE()) {
    emulated::touch_global<V>(emulated::Access::kLoadGlobal, wanted, address, {file, line});
    V value{};
    if (wanted) {
        std::memcpy(&value, address, sizeof value);
    }
    return value;
}

template <typename V>
inline V load_global(void const* address, int line = __builtin_LINE(), char const* file = __builtin_FILE()) {
    return load_global_if<V>(true, address, line, file);
}

template <typename V>
inline void store_global_if(bool wanted, void* address, V value, int line = __builtin_LINE(),
                            char const* file = __builtin_FILE()) {
    emulated::touch_global<V>(emulated::Access::kStoreGlobal, wanted, address, {file, line});
    if (wanted) {
        std::memcpy(address, &value, sizeof value);
    }
}

template <typename V>
inline V load_shared(uint32_t offset, int line = __builtin_LINE(), char const* file = __builtin_FILE()) {
    emulated::touch_shared<V>(emulated::Access::kLoadShared, true, offset, {file, line});
    V value;
    std::memcpy(&value, emulated::shared_memory + offset, sizeof value);
    return value;
}

template <typename V>
inline void store_shared_if(bool wanted, uint32_t offset, V value, int line = __builtin_LINE(),
                            char const* file = __builtin_FILE()) {
    emulated::touch_shared<V>(emulated::Access::kStoreShared, wanted, offset, {file, line});
    if (wanted) {
        std::memcpy(emulated::shared_memory + offset, &value, sizeof value);
    }
}

template <typename V>
inline void store_shared(uint32_t offset, V value, int line = __builtin_LINE(), char const* file = __builtin_FILE()) {
    store_shared_if(true, offset, value, line, file);
}

}  // namespace mdconv
