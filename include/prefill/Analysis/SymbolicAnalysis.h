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

namespace prefill {

/// What is known about a value.
struct TensorFacts {
  mlir::Type elementType; ///< null: not known
  bool ranked = false;
  llvm::SmallVector<ExprRef, 4> shape; ///< never null entries
};

/// Symbolic facts about an onnx.graph. The graph must not change while it is
/// used.
class SymbolicAnalysis {
public:
  explicit SymbolicAnalysis(onnx::GraphOp graph);

  ExprContext &expressions() { return context; }
  onnx::GraphOp getGraph() { return graph; }
  int64_t getOpset() const { return opset; }

  /// What is known about `value`, which belongs to the graph's body.
  const TensorFacts &facts(mlir::Value value);
  /// The tensor type that the facts give, or the declared one when they say
  /// nothing; null when neither does.
  mlir::Type inferredType(mlir::Value value);
  /// Size `axis` (negative: from the end) of `value`, or null.
  ExprRef dim(mlir::Value value, int64_t axis);

  /// The element of `value` at `indices` (one a dimension), as an expression.
  /// What is not understood is an opaque Load.
  ExprRef element(mlir::Value value, llvm::ArrayRef<ExprRef> indices);
  /// The same, broadcast: `indices` are of a result of higher or equal rank.
  ExprRef broadcastElement(mlir::Value value, llvm::ArrayRef<ExprRef> indices,
                           llvm::ArrayRef<ExprRef> resultShape);
  /// The elements of a 1-D (or scalar) value with a known small size, or
  /// nothing.
  std::optional<llvm::SmallVector<ExprRef>> elements(mlir::Value value);
  /// The same, all constant.
  std::optional<llvm::SmallVector<int64_t>> constantInts(mlir::Value value);
  /// The one number that all elements of `value` are, or nothing.
  std::optional<double> uniformNumber(mlir::Value value);

  /// A step of a chain of views: element [indices] of `value`, times `factor`,
  /// is the element that the chain began with.
  struct ViewStep {
    mlir::Value value;
    llvm::SmallVector<ExprRef, 4> indices;
    double factor = 1;
  };
  /// Follows `value` at `indices` back through ops that only move elements
  /// (Reshape, Transpose, Expand, Slice, ...) or multiply by one constant. The
  /// first step is `value` itself.
  llvm::SmallVector<ViewStep> viewChain(mlir::Value value,
                                        llvm::ArrayRef<ExprRef> indices);

  /// A value that holds the expression `e` at plain indices (each an Index
  /// variable of `vars`, in any order, or the constant 0), found while elements
  /// were computed; null when there is none.
  mlir::Value witness(ExprRef e, llvm::ArrayRef<ExprRef> vars,
                      llvm::SmallVectorImpl<ExprRef> &indices);

private:
  friend struct ShapeRules;
  friend struct ElementRules;

  void inferNode(onnx::NodeOp node);
  void setDeclared(mlir::Value value, bool trusted);

  onnx::GraphOp graph;
  int64_t opset = 0;
  ExprContext context;
  llvm::DenseMap<mlir::Value, TensorFacts> table;
  /// element() results; the key is a Load expression.
  llvm::DenseMap<ExprRef, ExprRef> memo;
  /// For each expression that element() gave, where it can be read.
  llvm::DenseMap<ExprRef, llvm::SmallVector<ExprRef, 1>> witnesses;
  unsigned depth = 0;
  TensorFacts unknown;
};

} // namespace prefill

#endif
