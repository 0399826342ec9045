// SPDX-License-Identifier: Apache-2.0
#include "mdconv_kernel.cuh"
#include "planar_kernel.cuh"

namespace mdconv {

Kernel float_kernel(int32_t stride, int32_t rows, bool hardswish) {
    return select_kernel<4, 7>(stride, rows, hardswish, [](auto c) -> Kernel {
        return planar_kernel<DataType::kFloat32, Layout::kLinear, c.kStride, c.kRows, c.kHardswish>;
    });
}

}  // namespace mdconv
