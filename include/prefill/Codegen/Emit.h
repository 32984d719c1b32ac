//===- Emit.h - From kernels to machine code --------------------*- C++ -*-===//
#ifndef PREFILL_CODEGEN_EMIT_H
#define PREFILL_CODEGEN_EMIT_H

#include "prefill/Codegen/CPU.h"
#include "prefill/Codegen/KernelSpec.h"

namespace llvm {
class Module;
} // namespace llvm

namespace prefill {

/// What one tile kernel becomes for one instruction set.
struct EmittedKernel {
  std::string object;   ///< an ELF relocatable object
  std::string assembly; ///< only if asked for
  std::string llvmIR;   ///< optimised; only if asked for
  int64_t workspaceBytes = 0;
};

enum class KernelKind { Attention, Score };

/// The symbol of a kernel's code for one instruction set.
std::string getTileSymbol(llvm::StringRef key, const CpuTarget &target);

/// The kernel at the tile level, as text.
bool printTileKernel(const KernelSpec &spec, KernelKind kind, std::string &text,
                     std::string &error);

/// Compiles one kernel. Has a context of its own: calls may run in parallel.
bool emitKernel(const KernelSpec &spec, KernelKind kind,
                const CpuTarget &target, bool wantText, EmittedKernel &result,
                std::string &error);

/// Compiles a module for x86-64-v<level> (1: the baseline) to an object, and to
/// LLVM IR and assembly text if `text` is given.
bool emitModule(llvm::Module &module, int level, std::string &object,
                EmittedKernel *text, std::string &error);

} // namespace prefill

#endif
