// SPDX-License-Identifier: Apache-2.0
//
// Stands in for CUDA's header of this name: float16, each operation rounded once, to nearest, half to even.
//
// Operations are done in double and rounded from there. This rounds once: a sum or a fused product and sum of float16
// numbers is exact in double, or so far apart in magnitude that the smaller part cannot decide a tie.
#pragma once

#include <cuda_runtime.h>

struct __half {
    uint16_t bits;
    __half() = default;
    inline __half(float value);
};

struct alignas(4) __half2 {
    __half x, y;
    __half2() = default;
    __half2(__half low, __half high) : x(low), y(high) {}
};

using half = __half;
using half2 = __half2;

namespace emulated {

inline float half_to_float(__half value) {
    uint32_t const sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
    uint32_t const rest = value.bits & 0x7FFF;
    if (rest < 0x0400) {
        float const magnitude = static_cast<float>(rest) * 0x1p-24f;
        return __uint_as_float(__float_as_uint(magnitude) | sign);
    }
    return __uint_as_float(((rest << 13) + (rest < 0x7C00 ? 112u << 23 : 224u << 23)) | sign);
}

inline __half half_of_bits(uint32_t bits) {
    __half value;
    value.bits = static_cast<uint16_t>(bits);
    return value;
}

inline __half half_from_double(double value) {
    uint64_t const bits = bits_of<uint64_t>(value);
    uint32_t const sign = static_cast<uint32_t>(bits >> 48) & 0x8000;
    double const magnitude = bits_of<double>(bits & ~(uint64_t{1} << 63));
    if (!(magnitude < 65520.0)) {
        return half_of_bits(value == value ? 0x7C00 | sign : 0x7FFF);
    }
    // A number whose last place is float16's for this magnitude: adding it rounds there.
    uint64_t const exponent = std::max<uint64_t>(bits >> 52 & 0x7FF, 1023 - 14);
    double const rounder = bits_of<double>((exponent + 42) << 52);
    double const rounded = (magnitude + rounder) - rounder;
    if (rounded < 0x1p-14) {
        return half_of_bits(static_cast<uint32_t>(rounded * 0x1p24) | sign);
    }
    return half_of_bits(((__float_as_uint(static_cast<float>(rounded)) - (112u << 23)) >> 13) | sign);
}

inline double wide(__half value) { return static_cast<double>(half_to_float(value)); }

inline __half saturate(__half value) {
    float const clamped = __saturatef(half_to_float(value));
    return clamped == half_to_float(value) ? value : half_from_double(static_cast<double>(clamped));
}

}  // namespace emulated

inline float __half2float(__half value) { return emulated::half_to_float(value); }
inline __half __float2half_rn(float value) { return emulated::half_from_double(static_cast<double>(value)); }

inline __half::__half(float value) : __half(__float2half_rn(value)) {}

inline __half __ushort_as_half(unsigned short bits) { return emulated::half_of_bits(bits); }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }

inline __half2 __halves2half2(__half low, __half high) { return {low, high}; }
inline __half2 __half2half2(__half value) { return {value, value}; }
inline __half2 __float2half2_rn(float value) { return __half2half2(__float2half_rn(value)); }
inline __half2 __floats2half2_rn(float low, float high) { return {__float2half_rn(low), __float2half_rn(high)}; }
inline float __low2float(__half2 pair) { return __half2float(pair.x); }
inline float __high2float(__half2 pair) { return __half2float(pair.y); }
inline __half __low2half(__half2 pair) { return pair.x; }
inline __half __high2half(__half2 pair) { return pair.y; }
inline __half2 __low2half2(__half2 pair) { return {pair.x, pair.x}; }
inline __half2 __high2half2(__half2 pair) { return {pair.y, pair.y}; }

inline __half __hadd(__half a, __half b) { return emulated::half_from_double(emulated::wide(a) + emulated::wide(b)); }
inline __half __hmul(__half a, __half b) { return emulated::half_from_double(emulated::wide(a) * emulated::wide(b)); }
inline __half __hfma(__half a, __half b, __half c) {
    return emulated::half_from_double(emulated::wide(a) * emulated::wide(b) + emulated::wide(c));
}

// As fminf and fmaxf: a number wins over NaN.
inline __half __hmin(__half a, __half b) {
    return emulated::half_from_double(std::fmin(emulated::wide(a), emulated::wide(b)));
}
inline __half __hmax(__half a, __half b) {
    return emulated::half_from_double(std::fmax(emulated::wide(a), emulated::wide(b)));
}

inline __half2 __hadd2(__half2 a, __half2 b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }
inline __half2 __hmul2(__half2 a, __half2 b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
inline __half2 __hmin2(__half2 a, __half2 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }
inline __half2 __hmax2(__half2 a, __half2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }
inline __half2 __hfma2_sat(__half2 a, __half2 b, __half2 c) {
    __half2 const sum = __hfma2(a, b, c);
    return {emulated::saturate(sum.x), emulated::saturate(sum.y)};
}
