//===- Driver.h - From options to artifacts ----------------------*- C++ -*-==//
#ifndef PREFILL_DRIVER_DRIVER_H
#define PREFILL_DRIVER_DRIVER_H

#include "mlir/IR/DialectRegistry.h"
#include "mlir/Pass/PassManager.h"
#include "prefill/Driver/CompilerOptions.h"

#include <vector>

namespace prefill {
struct SiteReport;
struct ChunkReport;
struct LivenessReport;

/// The dialects that the tool reads and writes.
void registerDialects(mlir::DialectRegistry &registry);

/// Our passes and the few upstream ones that are useful beside them.
void registerPasses();

/// onnx -> prefill: what -emit=prefill runs. What was found in the model is
/// appended to `reports`, which must outlive `pm`.
void buildRaisePipeline(mlir::OpPassManager &pm,
                        std::vector<SiteReport> &reports);

/// prefill -> prefill with fewer rows, the first part of what -emit=sparse
/// adds. What was done is written to the reports, which must outlive `pm`.
void buildRowPipeline(mlir::OpPassManager &pm, const CompilerOptions &options,
                      LivenessReport &report, ChunkReport &chunk);

/// Rows of a chunk by the option's text, 0 for "off"; nothing, with `error`, if
/// it is not one.
std::optional<int64_t> parseChunk(llvm::StringRef text, std::string &error);

/// prefill -> prefill with sparse attention: what -emit=sparse adds.
void buildSparsifyPipeline(mlir::OpPassManager &pm,
                           const CompilerOptions &options);

/// Compiles `options.input`. Returns the exit status; a failure has printed one
/// line that says what is wrong and left no output.
int compile(const CompilerOptions &options);

/// True when the file's first bytes are those of an ONNX protobuf message
/// rather than of MLIR text or bytecode.
bool looksLikeONNX(llvm::StringRef path);

/// Prints what `prefill-opt inspect` shows of `options.input`.
int inspect(const CompilerOptions &options);

/// Prints what `prefill-opt cost` predicts for `options.input`: FLOPs, bytes,
/// memory and time after each transform that the options ask for.
int cost(const CompilerOptions &options);

} // namespace prefill

#endif
