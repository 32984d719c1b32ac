//===- DriverParts.h - What the modes of the driver share --------*- C++ -*-==//
//
// Private to lib/Driver.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_LIB_DRIVER_DRIVERPARTS_H
#define PREFILL_LIB_DRIVER_DRIVERPARTS_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/OwningOpRef.h"
#include "mlir/Pass/PassManager.h"
#include "prefill/Driver/CompilerOptions.h"

#include <memory>

namespace prefill {
struct SiteReport;

/// Prints one line that says what is wrong; returns the exit status.
int fail(const llvm::Twine &what);

/// A context with our dialects that prints errors as one line each.
std::unique_ptr<mlir::MLIRContext> makeContext(const CompilerOptions &options);

/// The module of an ONNX file, or of an MLIR file of one of our levels; null
/// after an error was printed.
mlir::OwningOpRef<mlir::ModuleOp> load(mlir::MLIRContext &context,
                                       llvm::StringRef path);

/// Runs the passes that `build` adds; false after an error was printed.
bool runPasses(mlir::MLIRContext &context, mlir::ModuleOp module,
               llvm::function_ref<void(mlir::OpPassManager &)> build);

/// Raises attention, with what the options promise of the inputs.
bool raise(mlir::MLIRContext &context, mlir::ModuleOp module,
           const CompilerOptions &options, std::vector<SiteReport> &sites);

/// Options that cannot be met, found before any work.
bool validate(const CompilerOptions &options, std::string &error);

/// With plain `-sparsify`, the plan that `prefill-opt calibrate` left beside
/// the model decides; `-sparsify=auto:` does without it.
void takeCalibratedPlan(CompilerOptions &options);

/// Writes `text` to a file that appears only when it is complete, or to stdout.
int writeText(llvm::StringRef path,
              llvm::function_ref<void(llvm::raw_ostream &)> text);

} // namespace prefill

#endif
