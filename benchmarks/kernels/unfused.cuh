// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "device_memory.cuh"
#include "mdconv_problem.h"

namespace unfused {

using mdconv::load_global;
using mdconv::load_global_if;
using mdconv::load_shared;
using mdconv::store_global_if;
using mdconv::store_shared;
using mdconv::store_shared_if;

constexpr int kChunk = 16;  // bytes of an access, where it is aligned

// The unsigned integer that holds an element.
template <typename T>
struct BitsOf;
template <>
struct BitsOf<float> {
    using Type = uint32_t;
};
template <>
struct BitsOf<__half> {
    using Type = uint16_t;
};
template <>
struct BitsOf<int8_t> {
    using Type = uint8_t;
};
template <typename T>
using Bits = typename BitsOf<T>::Type;

template <typename T>
__device__ __forceinline__ float to_float(Bits<T> bits) {
    if constexpr (sizeof(T) == 4) {
        return __uint_as_float(bits);
    } else if constexpr (sizeof(T) == 2) {
        return __half2float(__ushort_as_half(bits));
    } else {
        return static_cast<float>(static_cast<int8_t>(bits));
    }
}

// Rounds to nearest, half to even; int8 saturates.
template <typename T>
__device__ __forceinline__ Bits<T> from_float(float value) {
    if constexpr (sizeof(T) == 4) {
        return __float_as_uint(value);
    } else if constexpr (sizeof(T) == 2) {
        return __half_as_ushort(__float2half_rn(value));
    } else {
        return static_cast<uint8_t>(__float2int_rn(fminf(fmaxf(value, -128.0f), 127.0f)));
    }
}

// Split and concat: `runs` runs of `run_items` items each, `source_stride` and `target_stride` items apart.
struct CopyParams {
    void const* source;
    void* target;
    int64_t run_items, source_stride, target_stride;
};

template <typename V>
__global__ void __launch_bounds__(256) copy_kernel(__grid_constant__ CopyParams const p) {
    auto const* const source = static_cast<V const*>(p.source) + blockIdx.y * p.source_stride;
    auto* const target = static_cast<V*>(p.target) + blockIdx.y * p.target_stride;
    int64_t const item = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    bool const mine = item < p.run_items;
    V const value = load_global_if<V>(mine, source + item);
    store_global_if<V>(mine, target + item, value);
}

// Bytes [begin, begin + count) of a tensor of `size` bytes, to shared memory at `offset` + begin % 16.
template <typename V>
__device__ __forceinline__ void load_range(void const* tensor, int64_t size, int64_t begin, int32_t count,
                                           uint32_t offset) {
    auto const* const bytes = static_cast<unsigned char const*>(tensor);
    int64_t const first = begin / kChunk * kChunk;
    auto const chunks = static_cast<int32_t>((begin + count - first + kChunk - 1) / kChunk);
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < chunks; i += static_cast<int32_t>(blockDim.x)) {
        int64_t const at = first + int64_t{kChunk} * i;
        uint32_t const to = offset + static_cast<uint32_t>(kChunk * i);
        bool const whole = at + kChunk <= size;
        uint4 const chunk = load_global_if<uint4>(whole, bytes + at);
        store_shared_if<uint4>(whole, to, chunk);
        if (!whole) {
            for (int64_t j = 0; at + j < size; j += sizeof(V)) {
                store_shared<V>(to + static_cast<uint32_t>(j), load_global<V>(bytes + at + j));
            }
        }
    }
}

// The way back: from shared memory at `offset` + begin % 16.
template <typename V>
__device__ __forceinline__ void store_range(void* tensor, int64_t begin, int32_t count, uint32_t offset) {
    auto* const bytes = static_cast<unsigned char*>(tensor);
    int64_t const end = begin + count;
    int64_t const first = begin / kChunk * kChunk;
    auto const chunks = static_cast<int32_t>((end - first + kChunk - 1) / kChunk);
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < chunks; i += static_cast<int32_t>(blockDim.x)) {
        int64_t const at = first + int64_t{kChunk} * i;
        uint32_t const from = offset + static_cast<uint32_t>(kChunk * i);
        if (at >= begin && at + kChunk <= end) {
            store_global_if<uint4>(true, bytes + at, load_shared<uint4>(from));
        } else {
            for (int64_t j = max(at, begin); j < min(at + kChunk, end); j += sizeof(V)) {
                store_global_if<V>(true, bytes + j, load_shared<V>(from + static_cast<uint32_t>(j - at)));
            }
        }
    }
}

// A depthwise convolution. A block has `planes` whole planes, or `tile_rows` output rows of one; whole rows either way,
// so that what it reads and writes is contiguous.
struct ConvParams {
    void const* x;       // (N, C, H, W)
    void const* weight;  // (C, 1, K, K)
    float const* weight_scale;
    void* y;
    int64_t all_planes;
    int32_t channels, height, width, out_height, out_width;
    int32_t planes, tile_rows;
    uint32_t weight_offset, out_offset;  // in shared memory, in bytes
    float x_scale, y_scale;
};

constexpr int kStrip = 4;  // output columns a thread computes at a time

template <typename T, int kSize, int kStride>
__device__ __forceinline__ void convolve_strip(ConvParams const& p, uint32_t plane_at, int32_t top, int32_t rows_begin,
                                               int32_t column, uint32_t weights, float (&sums)[kStrip]) {
    constexpr int kPixels = kStride * (kStrip - 1) + kSize;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
        int32_t const y = top + i;
        if (y < 0 || y >= p.height) {
            continue;
        }
        float pixels[kPixels];
#pragma unroll
        for (int j = 0; j < kPixels; ++j) {
            int32_t const x = column * kStride + j - kSize / 2;
            auto const at = static_cast<uint32_t>((y - rows_begin) * p.width + x) * sizeof(T);
            pixels[j] =
                x >= 0 && x < p.width ? to_float<T>(load_shared<Bits<T>>(plane_at + static_cast<uint32_t>(at))) : 0.0f;
        }
#pragma unroll
        for (int j = 0; j < kSize; ++j) {
            float const weight =
                __uint_as_float(load_shared<uint32_t>(weights + 4u * static_cast<uint32_t>(kSize * i + j)));
#pragma unroll
            for (int o = 0; o < kStrip; ++o) {
                sums[o] = fmaf(pixels[kStride * o + j], weight, sums[o]);
            }
        }
    }
}

// A plane's weights and then the factor of its sums, as floats.
template <typename T, int kSize>
__device__ __forceinline__ void load_weights(ConvParams const& p, int64_t first_plane, int32_t planes) {
    constexpr int kTaps = kSize * kSize;
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < planes * kTaps; i += static_cast<int32_t>(blockDim.x)) {
        auto const channel = static_cast<int32_t>((first_plane + i / kTaps) % p.channels);
        auto const* const weight = static_cast<Bits<T> const*>(p.weight) + (channel * kTaps + i % kTaps);
        store_shared<uint32_t>(p.weight_offset + 4u * static_cast<uint32_t>(i / kTaps * (kTaps + 1) + i % kTaps),
                               __float_as_uint(to_float<T>(load_global<Bits<T>>(weight))));
    }
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < planes; i += static_cast<int32_t>(blockDim.x)) {
        float factor = 1.0f;
        if constexpr (sizeof(T) == 1) {
            auto const channel = static_cast<int32_t>((first_plane + i) % p.channels);
            factor = p.x_scale * __uint_as_float(load_global<uint32_t>(p.weight_scale + channel)) / p.y_scale;
        }
        store_shared<uint32_t>(p.weight_offset + 4u * static_cast<uint32_t>(i * (kTaps + 1) + kTaps),
                               __float_as_uint(factor));
    }
}

template <typename T, int kSize, int kStride>
__global__ void __launch_bounds__(256) conv_kernel(__grid_constant__ ConvParams const p) {
    constexpr int kTaps = kSize * kSize;
    int64_t const first_plane = int64_t{blockIdx.x} * p.planes;
    auto const planes = static_cast<int32_t>(min(int64_t{p.planes}, p.all_planes - first_plane));
    int32_t const row = static_cast<int32_t>(blockIdx.y) * p.tile_rows;
    int32_t const rows = min(p.tile_rows, p.out_height - row);
    int32_t const in_begin = max(0, row * kStride - kSize / 2);
    int32_t const in_end = min(p.height, (row + rows - 1) * kStride + kSize / 2 + 1);

    int64_t const plane_bytes = int64_t{p.height} * p.width * static_cast<int64_t>(sizeof(T));
    int64_t const begin = first_plane * plane_bytes + int64_t{in_begin} * p.width * static_cast<int64_t>(sizeof(T));
    auto const in_bytes = static_cast<int32_t>((planes - 1) * plane_bytes) +
                          (in_end - in_begin) * p.width * static_cast<int32_t>(sizeof(T));
    load_range<Bits<T>>(p.x, p.all_planes * plane_bytes, begin, in_bytes, 0);
    load_weights<T, kSize>(p, first_plane, planes);
    __syncthreads();

    int64_t const out_begin = (first_plane * p.out_height + row) * p.out_width * static_cast<int64_t>(sizeof(T));
    int32_t const strips = (p.out_width + kStrip - 1) / kStrip;
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < planes * rows * strips;
         i += static_cast<int32_t>(blockDim.x)) {
        int32_t const column = i % strips * kStrip;
        int32_t const plane = i / strips / rows;
        int32_t const out_row = i / strips % rows;
        uint32_t const weights = p.weight_offset + 4u * static_cast<uint32_t>(plane * (kTaps + 1));
        float sums[kStrip] = {};
        convolve_strip<T, kSize, kStride>(p, static_cast<uint32_t>(begin % kChunk + plane * plane_bytes),
                                          (row + out_row) * kStride - kSize / 2, in_begin, column, weights, sums);
        float const factor = __uint_as_float(load_shared<uint32_t>(weights + 4u * kTaps));
        int32_t const at = (plane * p.out_height + out_row) * p.out_width + column;
#pragma unroll
        for (int o = 0; o < kStrip; ++o) {
            store_shared_if<Bits<T>>(column + o < p.out_width,
                                     p.out_offset + static_cast<uint32_t>(out_begin % kChunk) +
                                         static_cast<uint32_t>(at + o) * static_cast<uint32_t>(sizeof(T)),
                                     from_float<T>(sums[o] * factor));
        }
    }
    __syncthreads();
    auto const out_bytes = ((planes - 1) * p.out_height + rows) * p.out_width * static_cast<int32_t>(sizeof(T));
    store_range<Bits<T>>(p.y, out_begin, out_bytes, p.out_offset);
}

// Bias and activation: a thread has 16 bytes, the last one what is left.
struct BiasParams {
    void const* x;  // (N, C, H, W)
    void const* bias;
    void* y;
    int64_t elements;
    int32_t channels, plane;  // elements of a plane
    mdconv::Activation activation;
    float y_scale;  // 1 but for int8
};

__device__ __forceinline__ float activate(BiasParams const& p, float value) {
    switch (p.activation) {
        case mdconv::Activation::kNone:
            return value;
        case mdconv::Activation::kRelu:
            return fmaxf(value, 0.0f);
        case mdconv::Activation::kRelu6:
            return fminf(fmaxf(value, 0.0f), 6.0f / p.y_scale);
        case mdconv::Activation::kHardswish:
            return value * __saturatef(fmaf(value, p.y_scale / 6.0f, 0.5f));
    }
    return value;
}

// The bias of an element; loaded again only where the channel changes.
template <typename T>
struct ElementBias {
    using Stored = std::conditional_t<sizeof(T) == 2, __half, float>;  // int8 has a float32 bias

    int32_t channel = -1;
    float value = 0.0f;

    __device__ __forceinline__ float at(BiasParams const& p, int64_t element) {
        auto const here = static_cast<int32_t>(element / p.plane % p.channels);
        auto const* const address = static_cast<Bits<Stored> const*>(p.bias) + here;
        Bits<Stored> const bits = load_global_if<Bits<Stored>>(here != channel, address);
        if (here != channel) {
            channel = here;
            value = to_float<Stored>(bits) / p.y_scale;
        }
        return value;
    }
};

template <typename T>
__device__ __forceinline__ Bits<T> biased(BiasParams const& p, ElementBias<T>& bias, int64_t element, Bits<T> bits) {
    return from_float<T>(activate(p, to_float<T>(bits) + bias.at(p, element)));
}

template <typename T>
__global__ void __launch_bounds__(256) bias_kernel(__grid_constant__ BiasParams const p) {
    constexpr int kItems = kChunk / sizeof(T);
    int64_t const first = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kItems;
    auto const* const source = static_cast<Bits<T> const*>(p.x) + first;
    auto* const target = static_cast<Bits<T>*>(p.y) + first;
    ElementBias<T> bias;
    if (first + kItems <= p.elements) {
        uint4 const chunk = load_global<uint4>(source);
        uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
        constexpr int kInWord = kItems / 4;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            uint32_t result = 0;
#pragma unroll
            for (int j = 0; j < kInWord; ++j) {
                int const shift = 32 / kInWord * j;
                auto const bits = static_cast<Bits<T>>(words[i] >> shift);
                result |= static_cast<uint32_t>(biased<T>(p, bias, first + kInWord * i + j, bits)) << shift;
            }
            words[i] = result;
        }
        store_global_if<uint4>(true, target, make_uint4(words[0], words[1], words[2], words[3]));
    } else {
        for (int64_t i = 0; first + i < p.elements; ++i) {
            Bits<T> const bits = load_global<Bits<T>>(source + i);
            store_global_if<Bits<T>>(true, target + i, biased<T>(p, bias, first + i, bits));
        }
    }
}

}  // namespace unfused
