//===- Naming.h - Names for values ------------------------------*- C++ -*-===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#ifndef PREFILL_LIB_EXPORT_NAMING_H
#define PREFILL_LIB_EXPORT_NAMING_H

#include "prefill/Dialect/ONNX/ONNX.h"
#include "llvm/ADT/StringSet.h"

namespace prefill {

/// Gives every value of a model the name that it is exported under: its own
/// where it has one that is free, the graph output's where it is returned, a
/// fresh one otherwise.
class ValueNames {
public:
  explicit ValueNames(mlir::ModuleOp module);

  /// The name of `value`; "" for an omitted input or output.
  llvm::StringRef get(mlir::Value value) const { return names.lookup(value); }

  /// Whether operand `index` of `op` has another name than the output that it
  /// is, so that an Identity must stand between them.
  bool needsIdentity(onnx::ReturnOp op, unsigned index) const;

  /// The name under which output `index` of a graph is exported.
  llvm::StringRef getOutputName(onnx::ReturnOp op, unsigned index) const;

private:
  void collect(mlir::ModuleOp module);
  void assign(mlir::Region &region);
  /// Names the values that `block` returns, where they can have the names of
  /// the outputs.
  void nameOutputs(mlir::Block &block, llvm::StringMap<mlir::Value> &claimed);
  llvm::StringRef makeFresh(llvm::StringRef stem);
  /// Gives `value` the name `own` unless another value of the region or one
  /// that the region uses has it.
  void claim(mlir::Value value, llvm::StringRef own, llvm::StringRef stem,
             llvm::StringMap<mlir::Value> &claimed);

  llvm::DenseMap<mlir::Value, llvm::StringRef> names;
  /// All names in the model, so that fresh ones are fresh everywhere.
  llvm::StringSet<> known;
  llvm::StringMap<unsigned> counters;
};

} // namespace prefill

#endif // PREFILL_LIB_EXPORT_NAMING_H
