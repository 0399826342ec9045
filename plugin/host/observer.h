// SPDX-License-Identifier: Apache-2.0
//
// Counts and checks the accesses of a launch. The emulator tells it where the launch stands.
#pragma once

#include <emulated_memory.h>

#include "emulator.h"

namespace emulated {

void begin_launch(Options const& options, Report* report, uint32_t threads, uint32_t shared_bytes);
void begin_block();
void end_block();
void end_launch();
void begin_thread(uint32_t thread);  // also where a thread goes on behind a barrier
void pass_barrier();

void add_finding(Report* report, std::string const& text);
std::string text_of(Site site);

}  // namespace emulated
