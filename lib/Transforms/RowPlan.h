//===- RowPlan.h - Which rows of which values are needed ---------*- C++ -*-==//
//
// Private to lib/Transforms: what row liveness knows before it rewrites.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_LIB_TRANSFORMS_ROWPLAN_H
#define PREFILL_LIB_TRANSFORMS_ROWPLAN_H

#include "prefill/Analysis/RowRules.h"
#include "prefill/Dialect/Prefill/Prefill.h"

#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/MapVector.h"

namespace prefill {

/// A node that takes some rows of a value and drops the others.
struct RowSelection {
  onnx::NodeOp node;
  enum class Kind { Gather, GatherND, Slice } kind = Kind::Gather;
  int64_t axis = 0;        ///< of operand 0, where the rows lie
  ExprRef count = nullptr; ///< rows before the selection
  bool last = false;       ///< proven: the last rows, in order
};

/// `op` as a selection of rows, or nothing.
std::optional<RowSelection> matchSelection(SymbolicAnalysis &analysis,
                                           mlir::Operation *op);

/// Where q, o and bias of an attention have their rows.
inline int64_t rowAxis(TensorLayout layout) {
  return layout == TensorLayout::BSHD ? 1 : 2;
}

/// What can do with the selected rows only.
struct RowPlan {
  /// Ops whose results shrink to the selected rows, with the operands that
  /// shrink too; users come before what they use.
  llvm::MapVector<mlir::Operation *, llvm::SmallVector<RowOperand, 2>> shrunk;
  /// Where the rows of their results lie.
  llvm::DenseMap<mlir::Value, RowAxis> rows;
  /// A value that is selected from, with all rows, and their axis.
  mlir::Value begin;
  int64_t beginAxis = 0;
  /// Shape nodes that must not read a shrunk value.
  llvm::SmallVector<onnx::NodeOp> shapes;
  /// The op that stopped it first, and why.
  mlir::Operation *stop = nullptr;
  std::string why;

  /// Whether it leaves out work that counts (a product with weights or an
  /// attention) and there is something to select the rows from.
  bool saves() const;
};

/// Finds everything that only the rows of `selection` need.
RowPlan planRows(SymbolicAnalysis &analysis, const RowSelection &selection);

/// Graph inputs and axes whose sizes are those of dimensions [begin, end) of
/// `value`; a null value where the size is the constant beside it. Nothing when
/// one is not known.
std::optional<llvm::SmallVector<std::pair<mlir::Value, int64_t>>>
findSizes(SymbolicAnalysis &analysis, mlir::Value value, int64_t begin,
          int64_t end);

/// The part [begin, end) of the dimensions that a Shape node gives.
std::pair<int64_t, int64_t> shapeRange(onnx::NodeOp shape, int64_t rank);

/// Has `graph` give the rows `which` (last, rows) of its output `logits` only.
/// Returns an error, or "".
std::string selectLogits(onnx::GraphOp graph, llvm::StringRef which);

/// `type` with another size, and name, at `axis`; other types as they are.
mlir::Type withSize(mlir::Type type, int64_t axis, int64_t size,
                    llvm::StringRef name = "");

/// Writes the target of Reshape `op` for another number of rows, which lie at
/// `rows` of its result. `count` makes that number, [1] i64; nodes are made
/// with `builder`.
void retargetReshape(mlir::OpBuilder &builder, SymbolicAnalysis &analysis,
                     onnx::NodeOp op, RowAxis rows,
                     llvm::function_ref<mlir::Value()> count);

/// Has Shape node `shape` read graph inputs for the same sizes, as findSizes
/// finds them.
void redirectShape(mlir::OpBuilder &builder, SymbolicAnalysis &analysis,
                   onnx::NodeOp shape);

/// Erases nodes and constants of `graph` that nothing uses.
void eraseDeadNodes(onnx::GraphOp graph);

} // namespace prefill

#endif
