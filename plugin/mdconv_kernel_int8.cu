// SPDX-License-Identifier: Apache-2.0
#include "mdconv_kernel.cuh"
#include "planar_kernel.cuh"

namespace mdconv {

Kernel int8_kernel(Layout layout, int32_t stride, int32_t rows, bool hardswish) {
    return select_kernel<4, 7, 14>(stride, rows, hardswish, [layout](auto c) -> Kernel {
        if (layout == Layout::kLinear) {
            return planar_kernel<DataType::kInt8, Layout::kLinear, c.kStride, c.kRows, c.kHardswish>;
        }
        if (layout == Layout::kChw4) {
            return planar_kernel<DataType::kInt8, Layout::kChw4, c.kStride, c.kRows, c.kHardswish>;
        }
        return planar_kernel<DataType::kInt8, Layout::kChw32, c.kStride, c.kRows, c.kHardswish>;
    });
}

}  // namespace mdconv
