//===- SymbolicAnalysis.h - Shapes and elements of a graph -------*- C++ -*-==//
//
// Symbolic inference over one onnx.graph: the shape of every value as
// expressions over dimension symbols, and on demand any element of any value as
// an expression in the indices.
//
// Declared shapes of graph inputs are trusted: equal names are equal sizes, as
// ONNX says. Declared shapes of other values (value_info) are not: dynamo's
// symbols can be misrelated. They are used only for the rank and the static
// sizes of values that the analysis could not compute itself; a declared name
// of an intermediate value is never used in a proof.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_ANALYSIS_SYMBOLICANALYSIS_H
#define PREFILL_ANALYSIS_SYMBOLICANALYSIS_H

#include "prefill/Analysis/SymbolicExpr.h"
#include "prefill/Dialect/ONNX/ONNX.h"

#include <memory>

namespace prefill {
class AttentionOp;

/// What is known about a value.
struct TensorFacts {
  mlir::Type elementType; ///< null: not known
  bool ranked = false;
  llvm::SmallVector<ExprRef, 4> shape; ///< never null entries
};

using Indices = llvm::SmallVector<ExprRef, 4>;

/// Symbolic facts about an onnx.graph. The graph must not change while it is
/// used.
class SymbolicAnalysis {
public:
  /// `branch`: null, or the block of a branch of an `If`, however deep inside
  /// of others. Then it is the values of that block and those before it that
  /// are known, and what is assumed holds where the branch is taken.
  explicit SymbolicAnalysis(onnx::GraphOp graph, mlir::Block *branch = nullptr);
  ~SymbolicAnalysis();

  ExprContext &expressions() { return context; }
  onnx::GraphOp getGraph() { return graph; }
  int64_t getOpset() const { return opset; }

  /// What is known about `value`, which belongs to the graph's body or branch.
  const TensorFacts &facts(mlir::Value value) const;
  /// The tensor type that the facts give, or null when they do not even have an
  /// element type.
  mlir::Type inferredType(mlir::Value value);
  /// Size `axis` (negative: from the end) of `value`, or null.
  ExprRef dim(mlir::Value value, int64_t axis) const;

  /// The element of `value` at `indices` (one a dimension), as an expression.
  /// What is not understood is an opaque Load.
  ExprRef element(mlir::Value value, llvm::ArrayRef<ExprRef> indices);
  /// The element of `value` that a broadcast to `resultShape` reads at
  /// `indices`; null when that is not known.
  ExprRef broadcastElement(mlir::Value value, llvm::ArrayRef<ExprRef> indices,
                           llvm::ArrayRef<ExprRef> resultShape);
  /// Where a broadcast of a tensor of `shape` to `resultShape` reads.
  std::optional<Indices> broadcastIndices(llvm::ArrayRef<ExprRef> shape,
                                          llvm::ArrayRef<ExprRef> indices,
                                          llvm::ArrayRef<ExprRef> resultShape);
  /// The elements of a value of rank 0 or 1 with a known small size, or
  /// nothing.
  std::optional<llvm::SmallVector<ExprRef>> elements(mlir::Value value);
  /// The same, all constant.
  std::optional<llvm::SmallVector<int64_t>> constantInts(mlir::Value value);
  /// The one number that all elements of `value` are, or nothing.
  std::optional<double> uniformNumber(mlir::Value value);
  /// Index variables called `prefix0`, `prefix1`, ... over the dimensions of
  /// `value`.
  Indices indexVariables(mlir::Value value, llvm::StringRef prefix);

  /// A step of a chain of views: element [indices] of `value`, times `factor`,
  /// is the element that the chain began with.
  struct ViewStep {
    mlir::Value value;
    Indices indices;
    double factor = 1;
  };
  /// Follows `value` at `indices` back through ops that only move elements
  /// (Reshape, Transpose, Expand, Slice, ...) or multiply by one constant. The
  /// first step is `value` itself.
  llvm::SmallVector<ViewStep> viewChain(mlir::Value value,
                                        llvm::ArrayRef<ExprRef> indices);
  /// If `node`'s output `result` at `indices` is an element of one of its
  /// inputs, unchanged, where that element is.
  std::optional<ViewStep> viewStep(onnx::NodeOp node, unsigned result,
                                   llvm::ArrayRef<ExprRef> indices);

  /// Where expression `e` can be read: values and the indices, each of `vars`
  /// or the constant 0, as far as such places were seen by element().
  llvm::SmallVector<ViewStep> places(ExprRef e, llvm::ArrayRef<ExprRef> vars);

private:
  friend struct ShapeRules;
  friend struct ElementRules;

  struct Constants;
  /// Infers what `block` has before `until`, and what stands before `block`.
  void inferBlock(mlir::Block &block, mlir::Operation *until);
  void inferNode(onnx::NodeOp node);
  void noteBounds(onnx::NodeOp node);
  void inferAttention(AttentionOp op);
  void setDeclared(mlir::Value value, bool trusted);

  onnx::GraphOp graph;
  int64_t opset = 0;
  ExprContext context;
  llvm::DenseMap<mlir::Value, TensorFacts> table;
  /// element() results; the key is a Load expression.
  llvm::DenseMap<ExprRef, ExprRef> memo;
  /// For each expression that element() gave, the Loads that read it.
  llvm::DenseMap<ExprRef, llvm::SmallVector<ExprRef, 1>> witnesses;
  std::unique_ptr<Constants> constants;
  unsigned depth = 0, budget = 0;
  TensorFacts unknown;
};

} // namespace prefill

#endif
