// SPDX-License-Identifier: Apache-2.0
//
// What the kernels' API says of a problem before anything runs: the same here and with a GPU.

#include "host_run.h"

int32_t mdconv_host_tactic_count(int32_t type, int32_t layout) {
    return mdconv::tactic_count(static_cast<mdconv::DataType>(type), static_cast<mdconv::Layout>(layout));
}

int32_t mdconv_host_default_tactic(mdconv::Problem const* problem) { return mdconv::default_tactic(*problem); }

char const* mdconv_host_why_unsupported(mdconv::Problem const* problem) { return mdconv::why_unsupported(*problem); }

int32_t mdconv_host_plan(mdconv::Problem const* problem, int32_t tactic, HostPlan* plan) {
    mdconv::LaunchPlan made{};
    cudaError_t const error = mdconv::plan_launch(*problem, tactic, &made);
    *plan = {{made.grid.x, made.grid.y, made.grid.z},
             {made.block.x, made.block.y, made.block.z},
             made.shared_bytes,
             made.rows_per_thread,
             made.tile_planes,
             made.tile_rows,
             made.tile_columns};
    return error;
}
