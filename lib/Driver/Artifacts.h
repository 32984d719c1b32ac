//===- Artifacts.h - Writing the output folder -------------------*- C++ -*-==//
#ifndef PREFILL_LIB_DRIVER_ARTIFACTS_H
#define PREFILL_LIB_DRIVER_ARTIFACTS_H

#include "Manifest.h"
#include "mlir/IR/BuiltinOps.h"
#include "prefill/Driver/CompilerOptions.h"

namespace prefill {

/// Compiles the kernels and writes model.onnx, libprefill_model.so,
/// prefill_model.h and manifest.json to `options.output`. On failure nothing of
/// it is left and `error` is one line.
bool writeArtifacts(const CompilerOptions &options, mlir::ModuleOp module,
                    const OutlineResult &outlined,
                    llvm::ArrayRef<DeclinedSite> declined,
                    const LivenessReport &liveness, const ChunkReport &chunk,
                    std::string &error);

/// The text of -emit=tile|llvm|asm.
bool emitKernelText(const CompilerOptions &options,
                    llvm::ArrayRef<KernelSpec> kernels, std::string &text,
                    std::string &error);

} // namespace prefill

#endif
