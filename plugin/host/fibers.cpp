// SPDX-License-Identifier: Apache-2.0

// The checked longjmp takes a jump to another stack for an error.
#undef _FORTIFY_SOURCE

#include "fibers.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <memory>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulated {

namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kGuardBytes = 64 * 1024;  // a multiple of every page size

struct Stack {
    void* bottom = nullptr;
    size_t bytes = 0;
    void* fake = nullptr;  // AddressSanitizer's, while the stack rests
};

// A context starts a stack; from then on jumps change between them, since they take no system call.
struct Fiber {
    jmp_buf resume;
    ucontext_t context;
    Stack stack;
};

std::vector<std::unique_ptr<Fiber>> g_fibers;
void (*g_body)() = nullptr;
Fiber* g_current = nullptr;
jmp_buf g_resumer;
Stack g_resumer_stack;

// AddressSanitizer wants to know of each change of stacks: before it, and on arrival.
void leave_for([[maybe_unused]] Stack& from, [[maybe_unused]] Stack const& to) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&from.fake, to.bottom, to.bytes);
#endif
}

void arrive_on_fiber([[maybe_unused]] Fiber& fiber) {
#ifdef __SANITIZE_ADDRESS__
    void const* bottom = nullptr;
    __sanitizer_finish_switch_fiber(fiber.stack.fake, &bottom, &g_resumer_stack.bytes);
    g_resumer_stack.bottom = const_cast<void*>(bottom);
#endif
}

void arrive_on_resumer() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(g_resumer_stack.fake, nullptr, nullptr);
#endif
}

void live() {
    arrive_on_fiber(*g_current);
    for (;;) {
        rest();
        g_body();
    }
}

__attribute__((noinline)) void start(Fiber& fiber) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.bottom;
    fiber.context.uc_stack.ss_size = fiber.stack.bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, live, 0);
    g_current = &fiber;
    leave_for(g_resumer_stack, fiber.stack);
    if (_setjmp(g_resumer) == 0) {
        setcontext(&fiber.context);
    }
    arrive_on_resumer();
}

std::unique_ptr<Fiber> make_fiber() {
    void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) {
        return nullptr;
    }
    auto fiber = std::make_unique<Fiber>();
    fiber->stack.bottom = static_cast<char*>(memory) + kGuardBytes;
    fiber->stack.bytes = kStackBytes;
    start(*fiber);
    return fiber;
}

}  // namespace

bool have_fibers(uint32_t count, void (*body)()) {
    g_body = body;
    while (g_fibers.size() < count) {
        auto fiber = make_fiber();
        if (fiber == nullptr) {
            return false;
        }
        g_fibers.push_back(std::move(fiber));
    }
    return true;
}

__attribute__((noinline)) void resume_fiber(uint32_t fiber) {
    g_current = g_fibers[fiber].get();
    leave_for(g_resumer_stack, g_current->stack);
    if (_setjmp(g_resumer) == 0) {
        _longjmp(g_current->resume, 1);
    }
    arrive_on_resumer();
}

__attribute__((noinline)) void rest() {
    Fiber& fiber = *g_current;
    leave_for(fiber.stack, g_resumer_stack);
    if (_setjmp(fiber.resume) == 0) {
        _longjmp(g_resumer, 1);
    }
    arrive_on_fiber(*g_current);
}

void restart_fibers() {
    for (auto const& fiber : g_fibers) {
#ifdef __SANITIZE_ADDRESS__
        __asan_unpoison_memory_region(fiber->stack.bottom, fiber->stack.bytes);
#endif
        fiber->stack.fake = nullptr;
        start(*fiber);
    }
}

}  // namespace emulated
