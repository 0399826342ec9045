// SPDX-License-Identifier: Apache-2.0
//
// Which kernels there are. Each file mdconv_kernel_<type>.cu compiles those of one type and layout.
#pragma once

#include <type_traits>

#include "kernel_params.h"

namespace mdconv {

// A tactic: rows a thread, and the most threads a block.
struct Tactic {
    int32_t rows, threads;
};

using Kernel = void (*)(KernelParams);

// The kernels of one type and layout. `kernel` is nullptr for a number of rows that is not compiled.
Kernel float_kernel(int32_t stride, int32_t rows, bool hardswish);
Kernel half_kernel(Layout layout, int32_t stride, int32_t rows, bool hardswish);
Kernel int8_kernel(Layout layout, int32_t stride, int32_t rows, bool hardswish);

template <int kStrideOf, int kRowsOf, bool kHardswishOf>
struct Constants {
    static constexpr int kStride = kStrideOf;
    static constexpr int kRows = kRowsOf;
    static constexpr bool kHardswish = kHardswishOf;
};

// Turns the numbers of a launch into template constants, an object of `Constants` that it gives to `find`. kRows are
// those of stride 1; stride 2 has half of them.
template <int... kRows, typename Find>
Kernel select_kernel(int32_t stride, int32_t rows, bool hardswish, Find find) {
    Kernel found = nullptr;
    auto const try_rows = [&](auto constant) {
        constexpr int kThese = decltype(constant)::value;
        constexpr int kHalf = (kThese + 1) / 2;
        if (stride == 1 && rows == kThese) {
            found = hardswish ? find(Constants<1, kThese, true>{}) : find(Constants<1, kThese, false>{});
        } else if (stride == 2 && rows == kHalf) {
            found = hardswish ? find(Constants<2, kHalf, true>{}) : find(Constants<2, kHalf, false>{});
        }
    };
    (try_rows(std::integral_constant<int, kRows>{}), ...);
    return found;
}

}  // namespace mdconv
