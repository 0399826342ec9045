// SPDX-License-Identifier: Apache-2.0
#include "interleaved_half.cuh"
#include "mdconv_kernel.cuh"
#include "planar_kernel.cuh"

namespace mdconv {

Kernel half_kernel(Layout layout, int32_t stride, int32_t rows, bool hardswish) {
    if (layout == Layout::kLinear) {
        return select_kernel<4, 7, 14>(stride, rows, hardswish, [](auto c) -> Kernel {
            return planar_kernel<DataType::kFloat16, Layout::kLinear, c.kStride, c.kRows, c.kHardswish>;
        });
    }
    return select_kernel<4, 7>(stride, rows, hardswish, [](auto c) -> Kernel {
        return interleaved_half_kernel<c.kStride, c.kRows, c.kHardswish>;
    });
}

}  // namespace mdconv
