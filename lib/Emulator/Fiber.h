//===- Fiber.h - Threads of a kernel as fibers ------------------*- C++ -*-===//

#ifndef PREFILL_LIB_EMULATOR_FIBER_H
#define PREFILL_LIB_EMULATOR_FIBER_H

#include <cstddef>
#include <memory>
#include <vector>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace prefill::emu {

/// Where a fiber, or the scheduler, continues.
struct Context {
#ifdef __x86_64__
  void *stackPointer = nullptr;
#else
  ucontext_t context;
#endif
};

/// Makes `context` start `entry` on the given stack; `entry` must not return.
void prepare(Context &context, void *stack, size_t bytes, void (*entry)());
/// Leaves the present context in `from` and continues `to`.
void switchTo(Context &from, Context &to);

/// Stacks of one size, kept from block to block.
class Stacks {
public:
  /// Unoptimised code keeps every value of a kernel there; untouched pages cost
  /// nothing.
  static constexpr size_t kBytes = 1 << 20;
  ~Stacks();
  void *get(size_t index);

private:
  std::vector<void *> stacks;
};

} // namespace prefill::emu

#endif // PREFILL_LIB_EMULATOR_FIBER_H
