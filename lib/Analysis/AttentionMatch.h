//===- AttentionMatch.h - Attention built of single ops -------------------===//
//
// Private to lib/Analysis.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_LIB_ANALYSIS_ATTENTIONMATCH_H
#define PREFILL_LIB_ANALYSIS_ATTENTIONMATCH_H

#include "prefill/Analysis/AttentionSite.h"
#include "prefill/Analysis/MaskPredicate.h"
#include "prefill/Analysis/SymbolicAnalysis.h"
#include "llvm/ADT/SmallPtrSet.h"

namespace prefill {

/// Matches a softmax that begins at `node` (Softmax, or an exponential) between
/// two matrix products. Returns false when it is no part of an attention.
/// Otherwise `site` is filled or refused.
bool matchSoftmaxForm(onnx::NodeOp node, SymbolicAnalysis &analysis,
                      AttentionSite &site);

/// A matrix product of two computed tensors, at the indices of one element of
/// its result.
struct Product {
  onnx::NodeOp node;
  mlir::Value lhs, rhs;
  Indices lhsIndices, rhsIndices; ///< with the contraction variable
  double factor = 1;
};

/// The product that `value`, at `indices`, is an element of; `contraction` is
/// the variable summed over. Nothing when `value` is no product or the indices
/// cannot be followed.
std::optional<Product> productAt(SymbolicAnalysis &analysis, mlir::Value value,
                                 llvm::ArrayRef<ExprRef> indices,
                                 ExprRef contraction);
/// Whether `node` multiplies matrices, both computed.
bool isProduct(onnx::NodeOp node);
/// The size that a product sums over, as its operands declare it (left first).
std::pair<ExprRef, ExprRef> contractionSizes(SymbolicAnalysis &analysis,
                                             onnx::NodeOp node);

} // namespace prefill

#endif
