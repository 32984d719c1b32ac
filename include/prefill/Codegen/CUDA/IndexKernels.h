//===- IndexKernels.h - Selection and lists on the device -------*- C++ -*-===//
//
// What runs between q, k and a kernel with lists: the kernels that
// runtime/include/prefill/cuda_index.h lists, with their grids and buffers. The
// two with matrix products come from tile kernels, the others, which have none,
// from C (runtime/cuda).
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_CODEGEN_CUDA_INDEXKERNELS_H
#define PREFILL_CODEGEN_CUDA_INDEXKERNELS_H

#include "prefill/Codegen/CUDA/CUDA.h"

namespace prefill {

/// Compiles the kernels prefill_index_* for options.arch, all in one module:
/// they serve every model. Of `options`, only the architecture and what
/// concerns ptxas count; report.ptxas has the largest of all kernels. `error`
/// is one line.
bool compileCudaIndex(const CudaOptions &options, CudaKernel &kernels,
                      std::string &error);

/// The schedule of the kernels CudaKernelKind::RowSums and LineSums; `spec`,
/// the attention kernel's, loses what they do not depend on.
bool chooseSumsSchedule(KernelSpec &spec, int arch, CudaSchedule &schedule,
                        std::string &error);

} // namespace prefill

#endif
