//===- SoftmaxForm.h - A softmax in any spelling -----------------*- C++ -*-==//
//
// Private to lib/Analysis.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_LIB_ANALYSIS_SOFTMAXFORM_H
#define PREFILL_LIB_ANALYSIS_SOFTMAXFORM_H

#include "prefill/Analysis/SymbolicAnalysis.h"

#include <string>

namespace prefill {

/// A softmax: one node, or exponentials divided by their sums.
struct SoftmaxForm {
  onnx::NodeOp core; ///< for reports
  std::string name;  ///< for reports
  mlir::Value scores, probabilities;
  std::optional<int64_t> axis; ///< of `scores`, counted from the front
  llvm::SmallVector<mlir::Operation *> ops;
  /// The maximum of a row is subtracted, by the node itself or before it.
  bool stable = true;
  /// The logarithm of the sums is subtracted from the scores.
  bool logarithm = false;
  /// The sums, where the division comes after the product with the values;
  /// `probabilities` are then not divided yet.
  mlir::Value divisor;
  /// Why it is no softmax that is known.
  std::string problem;
};

/// The softmax that begins at `node` (Softmax, or an exponential), or nothing.
std::optional<SoftmaxForm> softmaxAt(SymbolicAnalysis &analysis,
                                     onnx::NodeOp node);

/// Whether `value` is a product of two computed tensors, with steps in between
/// that a matcher may know.
bool leadsToProduct(mlir::Value value);
/// The same with any steps that keep rows and keys apart.
bool comesFromProduct(mlir::Value value);
/// Whether `value` reaches a product of two computed tensors through any such
/// steps; `through` is the first.
bool reachesProduct(mlir::Value value, mlir::Operation *&through);
/// Whether nothing that is computed from `op` is used.
bool isDead(mlir::Operation *op, unsigned depth = 0);
/// The reduction `op` along one axis that is kept as a size of 1, of `value`:
/// its axis counted from the front, or nothing.
std::optional<int64_t> keptReduction(SymbolicAnalysis &analysis,
                                     onnx::NodeOp node, llvm::StringRef op);

} // namespace prefill

#endif
