//===- AttentionMatcher.h - The matcher of one softmax -----------*- C++ -*-==//
//
// Private to lib/Analysis: AttentionMatch.cpp finds the products around a
// softmax, AttentionScores.cpp goes back from it to queries and keys,
// AttentionOutput.cpp on to the values and the result.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_LIB_ANALYSIS_ATTENTIONMATCHER_H
#define PREFILL_LIB_ANALYSIS_ATTENTIONMATCHER_H

#include "AttentionMatch.h"
#include "Rules.h"

#include "llvm/ADT/STLExtras.h"

namespace prefill {

/// One of q, k, v: a tensor, how it lies, and by what it is multiplied.
struct Rows {
  mlir::Value value;
  TensorLayout layout = TensorLayout::BHSD;
  int64_t heads = 0;
  double factor = 1;
};

/// The matcher of one Softmax.
struct Matcher {
  SymbolicAnalysis &analysis;
  ExprContext &ctx;
  AttentionSite &site;
  onnx::NodeOp softmax;
  ScoreSpace space;
  int64_t heads = 0;
  /// Ops between the two products: nothing else may read their results.
  llvm::SmallPtrSet<mlir::Operation *, 16> region;
  llvm::SmallVector<llvm::StringRef> traits; ///< for the form

  llvm::SmallVector<MaskTerm> terms;
  std::optional<double> floor;
  mlir::Value sinks;
  bool nanGuard = false;
  double scale = 1;
  std::optional<double> softcap;

  Matcher(onnx::NodeOp softmax, SymbolicAnalysis &analysis, AttentionSite &site)
      : analysis(analysis), ctx(analysis.expressions()), site(site),
        softmax(softmax) {}

  bool run();
  mlir::LogicalResult matchAll(mlir::Value scores, Indices scoreIndices,
                               onnx::NodeOp pv);

private:
  mlir::LogicalResult refuse(mlir::Operation *node, const llvm::Twine &why,
                             mlir::Value v = {}) {
    return site.refuse(node, why, v);
  }
  bool leadsToProduct(mlir::Value value, unsigned depth, unsigned &steps);
  bool leads(mlir::Value value) {
    unsigned steps = 0;
    return leadsToProduct(value, 0, steps);
  }
  void forwardProducts(mlir::Value value,
                       llvm::SmallVectorImpl<onnx::NodeOp> &found,
                       bool &elsewhere, unsigned depth);
  mlir::LogicalResult peelTop(mlir::Value &scores);
  Indices leading(size_t rank);
  mlir::LogicalResult walkScores(mlir::Value value, Indices indices,
                                 Product &product, ExprRef &headDim);
  mlir::LogicalResult walkProbabilities(mlir::Value value, Indices indices,
                                        llvm::ArrayRef<ExprRef> expected);
  llvm::SmallVector<Rows> layouts(mlir::Value value,
                                  llvm::ArrayRef<ExprRef> indices, ExprRef row,
                                  ExprRef rowCount, ExprRef column,
                                  int64_t width, bool mayScale);
  mlir::LogicalResult matchSinks(mlir::Value value);
  bool emptyRowGuard(mlir::Value condition, llvm::ArrayRef<ExprRef> indices,
                     llvm::ArrayRef<ExprRef> shape, ExprRef visible);
  void absorbOutput(mlir::Value o, Indices indices, const MaskBuilder &masks,
                    bool &zeroRows);
  bool planShape(mlir::Value o);
  mlir::LogicalResult checkUses();
  ExprRef negate(ExprRef e);
};

/// Whether nothing that is computed from `op` is used.
bool isDead(mlir::Operation *op, unsigned depth);

} // namespace prefill

#endif
