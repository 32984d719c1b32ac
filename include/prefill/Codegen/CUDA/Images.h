//===- Images.h - All CUDA code of a model ----------------------*- C++ -*-===//
#ifndef PREFILL_CODEGEN_CUDA_IMAGES_H
#define PREFILL_CODEGEN_CUDA_IMAGES_H

#include "prefill/Codegen/CudaImages.h"
#include "prefill/Codegen/KernelSpec.h"
#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/StringRef.h"
#include <optional>

namespace prefill {
struct CudaKernel;
struct CudaOptions;

/// A GPU as the command line names it.
struct CudaTarget {
  std::string name; ///< "sm_80"
  int arch = 80;    ///< CudaOptions::arch
  /// CudaOptions::archSpecific: code that runs on this architecture alone.
  bool exact = false;
};

/// The target of that name, and the names there are.
std::optional<CudaTarget> findCudaTarget(llvm::StringRef name);
std::string cudaTargetNames();

/// What of a kernel the device's attention computes: all heads dense, nothing
/// left out (`skip`), Q and K as prefill_rotate leaves them.
KernelSpec getCudaSpec(const KernelSpec &spec);

/// Whether a head visits on GPUs what its plan says; else it visits everything.
bool isSparseOnGpu(const KernelSpec &spec, const HeadPlan &head);

struct CudaImageOptions {
  std::vector<CudaTarget> targets;
  std::string ptxas;    ///< empty: CUDA_HOME/bin, then PATH
  bool runPtxas = true; ///< else PTX alone
  bool allowSpills = false;
  /// As LibraryOptions.
  std::string cacheDir;
  bool useCache = true;
  unsigned threads = 0;
};

/// Compiles every kernel for every target: a cubin each where there is a ptxas,
/// and PTX for GPUs newer than the newest target. A kernel that GPUs do not
/// take is refused in `library`, which is no failure; one that does not
/// compile, or spills, is (`error` is one line that names it).
bool compileCudaImages(llvm::ArrayRef<KernelSpec> specs,
                       const CudaImageOptions &options, CudaLibrary &library,
                       std::string &error);

/// Compiles the kernels that bring inputs into the form that attention kernels
/// read (cuda_abi.h): prefill_rotate and prefill_convert, in one module.
bool compileCudaInputs(const CudaOptions &options, CudaKernel &kernels,
                       std::string &error);

} // namespace prefill

#endif
