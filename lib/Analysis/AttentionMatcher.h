//===- AttentionMatcher.h - The matcher of one softmax -----------*- C++ -*-==//
//
// Private to lib/Analysis: AttentionMatch.cpp finds the products around a
// softmax and puts everything together, AttentionScores.cpp goes back from it
// to queries and keys, AttentionOutput.cpp on to the values and the result,
// AttentionGuards.cpp reads what is done about rows without keys,
// AttentionOperands.cpp finds the tensors that are read.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_LIB_ANALYSIS_ATTENTIONMATCHER_H
#define PREFILL_LIB_ANALYSIS_ATTENTIONMATCHER_H

#include "AttentionMatch.h"
#include "Rules.h"
#include "SoftmaxForm.h"

#include "llvm/ADT/STLExtras.h"

namespace prefill {

/// One of q, k, v: a tensor, how it lies, and by what it is multiplied.
struct Rows {
  mlir::Value value;
  TensorLayout layout = TensorLayout::BHSD;
  int64_t heads = 0;
  double factor = 1;
  llvm::SmallVector<int64_t, 4> perm; ///< to be transposed by, if not empty
};

/// What an axis of the scores or of the result counts.
enum class Role {
  Batch,
  BatchOuter, ///< batch / size of BatchInner
  BatchInner,
  Joined, ///< batch * heads + head
  Head,
  Group, ///< head / size of Each
  Each,
  Row,
  Key,
  Column ///< of the values
};
using Roles = llvm::SmallVector<Role, 5>;

/// One way to read the axes of the scores.
struct Reading {
  Roles roles;
  ExprRef batch = nullptr;
  int64_t heads = 0;
  MaskDims dims;
};

/// A Where that puts zeros in place of probabilities or results.
struct RowGuard {
  onnx::NodeOp node;
  mlir::Value condition;
  bool zeroWhere = true;               ///< zeros where it is true
  Indices indices;                     ///< of the Where's result
  llvm::SmallVector<ExprRef, 5> shape; ///< of the Where's result
};

/// A factor of the scores that is the same for all keys, so one of the queries.
struct RowFactor {
  onnx::NodeOp node; ///< Mul or Div
  mlir::Value tensor;
  Indices indices; ///< of the tensor, at (b, h, i, any key)
};

/// The matcher of one softmax.
struct Matcher {
  SymbolicAnalysis &analysis;
  ExprContext &ctx;
  AttentionSite &site;
  const SoftmaxForm &form;
  onnx::NodeOp softmax; ///< form.core
  ScoreSpace space;
  int64_t heads = 0;
  /// Ops between the two products: nothing else may read their results.
  llvm::SmallPtrSet<mlir::Operation *, 16> region;
  llvm::SmallVector<llvm::StringRef> traits; ///< for the form

  /// From the softmax's scores to those that masks are read from: each value
  /// and whether the step to the next moves elements.
  llvm::SmallVector<std::pair<mlir::Value, bool>, 4> peeled;
  /// The axis of the keys in the scores that are read.
  int64_t axis = -1;
  Indices scoreIndices;
  /// Values derived from the probabilities on the way to the product.
  llvm::SmallPtrSet<mlir::Value, 8> fromProbabilities;

  llvm::SmallVector<MaskTerm> terms;
  /// The type of the scores where the masks are added, and whether they are
  /// made narrower after it.
  mlir::Type termType;
  /// The scores with all masks: values and where in them (b, h, i, j) is.
  llvm::SmallVector<std::pair<mlir::Value, Indices>, 4> maskedScores;
  std::optional<double> floor;
  mlir::Value sinks;
  bool nanGuard = false;
  llvm::SmallVector<RowGuard, 1> guards;
  double scale = 1;
  std::optional<double> softcap;
  llvm::SmallVector<RowFactor, 1> rowFactors;
  unsigned trials = 0; ///< how deep this is in trials of operands of Adds

  Matcher(const SoftmaxForm &form, SymbolicAnalysis &analysis,
          AttentionSite &site)
      : analysis(analysis), ctx(analysis.expressions()), site(site), form(form),
        softmax(form.core) {}

  bool run();

private:
  mlir::LogicalResult refuse(mlir::Operation *node, const llvm::Twine &why,
                             mlir::Value v = {}) {
    return site.refuse(node, why, v);
  }
  void forwardProducts(mlir::Value value,
                       llvm::SmallVectorImpl<onnx::NodeOp> &found,
                       bool &elsewhere, unsigned depth);
  mlir::LogicalResult peelTop(mlir::Value &scores);
  llvm::SmallVector<Reading> readings(llvm::ArrayRef<ExprRef> shape);
  llvm::SmallVector<Roles> resultRoles(llvm::ArrayRef<ExprRef> shape);
  Indices indicesOf(llvm::ArrayRef<Role> roles, llvm::ArrayRef<ExprRef> shape,
                    ExprRef column);
  mlir::LogicalResult matchAll(mlir::Value scores, onnx::NodeOp pv);
  mlir::LogicalResult matchValues(onnx::NodeOp pv, Product &product,
                                  Roles &roles, mlir::Value &o);
  mlir::LogicalResult divideLater(mlir::Value &o, llvm::ArrayRef<ExprRef> at);
  mlir::LogicalResult walkScores(mlir::Value value, Indices indices,
                                 Product &product, ExprRef &headDim);
  bool multiplyByMask(mlir::Value other, ExprRef element, double pending);
  std::optional<unsigned> queryKeySide(onnx::NodeOp add,
                                       llvm::ArrayRef<ExprRef> indices);
  PlannedValue scaleRows(PlannedValue q, mlir::RankedTensorType type);
  mlir::LogicalResult walkProbabilities(mlir::Value value, Indices indices);
  llvm::SmallVector<Rows> layouts(mlir::Value value,
                                  llvm::ArrayRef<ExprRef> indices, ExprRef row,
                                  ExprRef rowCount, ExprRef column,
                                  int64_t width, bool mayScale);
  mlir::LogicalResult matchOperands(const Product &qk, const Product &product,
                                    ExprRef d, ExprRef e, mlir::Type type);
  mlir::LogicalResult matchSinks(mlir::Value value);

  /// What a guard does to rows without keys.
  enum class GuardEffect {
    Zero,     ///< they become zero
    ZeroIfNaN ///< they become zero if all their scores are -inf
  };
  std::optional<GuardEffect> effectOf(const RowGuard &guard,
                                      const MaskBuilder &masks);
  std::optional<GuardEffect> emptyTest(mlir::Value condition, Indices at,
                                       bool truth, const MaskBuilder &masks,
                                       llvm::SmallVectorImpl<onnx::NodeOp> &ops,
                                       unsigned depth);
  std::optional<GuardEffect> minusInfinity(mlir::Value value, const Indices &at,
                                           const MaskBuilder &masks);
  void absorbOutput(mlir::Value o, llvm::ArrayRef<Role> roles, Indices indices,
                    ExprRef e, const MaskBuilder &masks,
                    std::optional<GuardEffect> &zeroRows);
  bool planOrder(mlir::Value o, llvm::ArrayRef<Role> roles);
  bool planShape(mlir::Value o, llvm::ArrayRef<Role> roles);
  mlir::LogicalResult checkUses();
  ExprRef negate(ExprRef e);
  /// An index variable, or 0 where there is only one.
  ExprRef indexOver(llvm::StringRef name, ExprRef size);
  bool same(llvm::ArrayRef<ExprRef> a, llvm::ArrayRef<ExprRef> b);
};

} // namespace prefill

#endif
