//===- Fiber.cpp - Context switches ---------------------------------------===//

#include "Fiber.h"
#include <cstdint>
#include <cstdlib>
#include <sys/mman.h>

using namespace prefill::emu;

#ifdef __x86_64__
// Callee-saved registers go to the stack; the stack pointer says the rest. The
// floating-point control words are the same in all fibers.
asm(R"(
  .text
  .type prefill_emu_switch,@function
prefill_emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  retq
  .size prefill_emu_switch, .-prefill_emu_switch
)");
extern "C" void prefill_emu_switch(void **from, void *to);

void prefill::emu::prepare(Context &context, void *stack, size_t bytes,
                           void (*entry)()) {
  auto top = (reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t(15);
  auto *words = reinterpret_cast<uintptr_t *>(top);
  // As after a call: the return address lies where rsp % 16 == 8.
  *--words = 0;
  *--words = reinterpret_cast<uintptr_t>(entry);
  for (int i = 0; i < 6; ++i)
    *--words = 0;
  context.stackPointer = words;
}

void prefill::emu::switchTo(Context &from, Context &to) {
  prefill_emu_switch(&from.stackPointer, to.stackPointer);
}
#else
void prefill::emu::prepare(Context &context, void *stack, size_t bytes,
                           void (*entry)()) {
  getcontext(&context.context);
  context.context.uc_stack.ss_sp = stack;
  context.context.uc_stack.ss_size = bytes;
  context.context.uc_link = nullptr;
  makecontext(&context.context, entry, 0);
}

void prefill::emu::switchTo(Context &from, Context &to) {
  swapcontext(&from.context, &to.context);
}
#endif

void *Stacks::get(size_t index) {
  while (stacks.size() <= index) {
    // The lowest page stays unreadable: an overflow is a crash, not a riddle.
    void *stack = mmap(nullptr, kBytes + 4096, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED)
      abort();
    mprotect(stack, 4096, PROT_NONE);
    stacks.push_back(static_cast<char *>(stack) + 4096);
  }
  return stacks[index];
}

Stacks::~Stacks() {
  for (void *stack : stacks)
    munmap(static_cast<char *>(stack) - 4096, kBytes + 4096);
}
