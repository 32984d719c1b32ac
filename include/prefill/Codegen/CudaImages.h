//===- CudaImages.h - Code for GPUs, as a library carries it ----*- C++ -*-===//
//
// Plain data between the CUDA code generator, the library writer and the
// manifest.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_CODEGEN_CUDAIMAGES_H
#define PREFILL_CODEGEN_CUDAIMAGES_H

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace prefill {

/// One kernel for one architecture (prefill_cuda_image of kernel_abi.h).
struct CudaImage {
  std::string target;     ///< "sm_80"
  std::string function;   ///< in the module
  int32_t arch = 80;      ///< 10 * major + minor compute capability
  bool exactArch = false; ///< runs on this compute capability alone
  bool isPtx = false;     ///< the driver compiles it; else a cubin
  int32_t kind = 0;       ///< PREFILL_CUDA_*
  int32_t blockQ = 0, blockK = 0, threads = 0, sharedBytes = 0;
  int32_t stages = 0; ///< of keys and values in shared memory; 0: no tiles
  int32_t registers = 0;  ///< a thread; 0: not known, the driver decides
  int32_t spillBytes = 0; ///< allowed by -allow-spills
  std::string note;       ///< about the schedule, for the manifest
  std::string data;       ///< compressed (zlib)
  uint64_t size = 0;      ///< uncompressed
};

/// Why a kernel has no code for a target; it runs on the CPU there.
struct CudaRefusal {
  std::string kernel, target, reason;
};

/// All CUDA code of a library.
struct CudaLibrary {
  std::vector<CudaImage> images;
  /// Indices into `images` by KernelSpec::name, best first.
  std::map<std::string, std::vector<size_t>> kernels;
  std::vector<CudaRefusal> refusals;
  std::vector<std::string> notes; ///< what the user should know, one line each
  int compiled = 0, cached = 0;
};

} // namespace prefill

#endif
