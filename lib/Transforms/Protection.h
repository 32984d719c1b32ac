//===- Protection.h - The rows that pruning never drops ----------*- C++ -*-==//
//
// Private to lib/Transforms.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_LIB_TRANSFORMS_PROTECTION_H
#define PREFILL_LIB_TRANSFORMS_PROTECTION_H

#include "prefill/Dialect/ONNX/ONNX.h"
#include "prefill/Dialect/Prefill/Prefill.h"
#include "prefill/Transforms/Pruning.h"

namespace prefill {

/// What prefill.protect_rows takes besides the tokens; any may be null.
struct ProtectOperands {
  mlir::Value given, alive, starts, wanted, only, parts;
};

/// A new input of the model, bool, with the first two dimensions of `tokens`.
mlir::Value addRowsInput(onnx::GraphOp graph, mlir::Value tokens,
                         llvm::StringRef name);

/// The prefill.protect_rows of `spec`; `ids`: [batch, rows] i64.
mlir::Value createProtection(mlir::OpBuilder &builder, mlir::Location loc,
                             mlir::Value ids, const ProtectSpec &spec,
                             const ProtectOperands &operands);

} // namespace prefill

#endif
