//===- GpuProblem.h - A launch, its kernel and its truth --------*- C++ -*-===//
#ifndef PREFILL_UNITTESTS_CODEGEN_CUDA_GPUPROBLEM_H
#define PREFILL_UNITTESTS_CODEGEN_CUDA_GPUPROBLEM_H

#include "prefill/Codegen/CUDA/CUDA.h"
#include "prefill/Emulator/Emulator.h"

namespace prefill::harness {

/// Attention of a small batch by a CUDA kernel in the emulator, compared with
/// float64. Fields are set, then `check` is called.
struct GpuProblem {
  GpuProblem(const KernelSpec &spec, int queries, int keys)
      : spec(spec), queries(queries), keys(keys) {}

  KernelSpec spec;
  CudaOptions options;
  int queries, keys, batch = 1;
  std::vector<int32_t> keyLengths; ///< one a batch entry; empty: all `keys`
  bool bshd = false;               ///< rows of all heads beside each other
  float amplitude = 1;             ///< of q; large ones make huge scores
  bool wantLse = true;
  /// With options.persistent: thread blocks, and heads worked on at a time.
  int blocks = 3, headsTogether = 1;
  /// With options.lists: the share of blocks that are visited, and of the keys
  /// of the others that are gathered.
  double blockShare = 0.5, columnShare = 0;
  unsigned seed = 1;
  double tolerance =
      0; ///< of the error relative to the largest |v|; 0: default

  /// Empty if right; else what is wrong.
  std::string check(const emu::Options &how = {});
  /// After `check`.
  uint64_t products = 0;
};

} // namespace prefill::harness

#endif
