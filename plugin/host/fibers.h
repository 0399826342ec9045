// SPDX-License-Identifier: Apache-2.0
//
// Stacks that take turns on one thread. A fiber runs a body, again and again; `rest` hands back to whoever resumed it.
#pragma once

#include <cstdint>

namespace emulated {

// Makes fibers 0 to count - 1 if they do not exist; each will run `body`, then rest. False if there is no memory for
// them.
bool have_fibers(uint32_t count, void (*body)());

// Lets a fiber run until it rests or its body returns; the next call goes on there, or starts the body anew.
void resume_fiber(uint32_t fiber);

// Called on a fiber.
void rest();

// Makes every fiber forget where it stopped.
void restart_fibers();

}  // namespace emulated
