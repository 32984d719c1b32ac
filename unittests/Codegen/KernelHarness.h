//===- KernelHarness.h - Compile, load and call tile functions --*- C++ -*-===//
//
// Shared by the tests and the benchmark: generated code is called directly,
// without the runtime library.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_UNITTESTS_CODEGEN_KERNELHARNESS_H
#define PREFILL_UNITTESTS_CODEGEN_KERNELHARNESS_H

#include "prefill/Codegen/Emit.h"
#include "prefill/kernel_abi.h"
#include <memory>
#include <string>

namespace prefill::harness {

/// Generated code of one spec for one instruction set, loaded.
struct LoadedKernel {
  prefill_tile_fn attention = nullptr;
  prefill_score_fn score = nullptr;
  int64_t attentionWorkspace = 0, scoreWorkspace = 0;
  EmittedKernel emitted; ///< of the attention kernel
};

/// Null and a message on failure. Kernels are kept for the process's life, by
/// everything they depend on.
const LoadedKernel *getKernel(const KernelSpec &spec, const CpuTarget &target,
                              std::string &error, bool wantText = false);

/// The highest x86-64 level that this machine runs.
int machineLevel();

uint16_t toStorage(float value, DType type);
float fromStorage(uint16_t value, DType type);

} // namespace prefill::harness

#endif
