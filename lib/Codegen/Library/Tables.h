//===- Tables.h - What the runtime reads of a library -----------*- C++ -*-===//
#ifndef PREFILL_CODEGEN_LIBRARY_TABLES_H
#define PREFILL_CODEGEN_LIBRARY_TABLES_H

#include "prefill/Codegen/CudaImages.h"
#include "prefill/Codegen/Emit.h"
#include <map>

namespace prefill {

/// Size of the workspace of each tile symbol.
using WorkspaceSizes = std::map<std::string, int64_t>;

/// An object with one prefill_attention_desc and one exported function a
/// kernel, and the list of kernels (kernel_abi.h).
bool emitTables(llvm::ArrayRef<KernelSpec> specs,
                llvm::ArrayRef<CpuTarget> targets,
                const WorkspaceSizes &workspaces, const CudaLibrary *cuda,
                std::string &object, std::string &error);

/// prefill_model.h.
std::string makeHeader(llvm::ArrayRef<KernelSpec> specs);

} // namespace prefill

#endif
