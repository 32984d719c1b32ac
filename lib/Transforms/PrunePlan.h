//===- PrunePlan.h - Which values lose rows ----------------------*- C++ -*-==//
//
// Private to lib/Transforms: what token pruning knows before it rewrites.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_LIB_TRANSFORMS_PRUNEPLAN_H
#define PREFILL_LIB_TRANSFORMS_PRUNEPLAN_H

#include "RowPlan.h"
#include "prefill/Transforms/Pruning.h"

namespace prefill {

/// Rows go after an attention's layer.
struct PruneStage {
  int64_t layer = 0;     ///< from 1
  AttentionOp attention; ///< whose last row decides
  mlir::Value cut;       ///< the one value that carries rows on, [b, s, d]
};

/// An operand of an op with fewer rows that has more: rows of a level are to be
/// taken of it.
struct PruneUse {
  mlir::OpOperand *operand;
  int64_t axis; ///< of its rows
  unsigned level;
};

/// What changes. Level 0 has all rows, level i what stage i - 1 left.
struct PrunePlan {
  /// The graph's input_ids, [b, s], or inputs_embeds, [b, s, d]; of a vision
  /// encoder what the first stage's layer gives, [b, s, d].
  mlir::Value tokens;
  llvm::SmallVector<PruneStage> stages;
  /// Values with fewer rows: where these lie, and their level.
  llvm::MapVector<mlir::Value, std::pair<RowAxis, unsigned>> rows;
  llvm::SmallVector<PruneUse> uses;
  /// Reshapes among them, whose target says how many rows there are.
  llvm::SmallVector<std::pair<onnx::NodeOp, unsigned>> reshapes;
  llvm::SmallVector<std::pair<AttentionOp, unsigned>> attentions;
  /// Nodes that take some of the rows, by their numbers.
  llvm::SmallVector<RowSelection> selections;
  /// Outputs that are KV caches to be cut to the rows that are left in the end,
  /// by their place, with the level of their rows.
  llvm::SmallVector<std::pair<unsigned, unsigned>> caches;
  /// Shape nodes that must not read a value with fewer rows.
  llvm::SmallVector<onnx::NodeOp> shapes;
  /// An encoder's Slice of all rows but the first, or null: right only where
  /// the first one never goes.
  onnx::NodeOp butFirst;
  /// What is computed from such Slices (a projector): one row less.
  llvm::DenseSet<mlir::Value> behindSlice;
};

/// The attentions that the graph's outputs need, in order: what nobody reads
/// (the last layer of an encoder whose features are those of the one before) is
/// no layer.
llvm::SmallVector<AttentionOp> getLiveAttentions(onnx::GraphOp graph);

/// Erases what the graph's outputs do not need.
void eraseUnread(onnx::GraphOp graph);

/// The name of `op` for a reader, with a colon.
std::string nameOf(mlir::Operation *op);

/// Runs `work` on the main graph of `module`, if it has one; the error that it
/// returns, if any, becomes a diagnostic.
mlir::LogicalResult
runOnMainGraph(mlir::ModuleOp module,
               llvm::function_ref<std::string(onnx::GraphOp)> work);

/// Whether the graph has none of these inputs yet, or which one it has.
std::string checkNewInputs(onnx::GraphOp graph,
                           llvm::ArrayRef<llvm::StringRef> added);

/// Gives the graph further outputs.
void appendOutputs(onnx::GraphOp graph,
                   llvm::ArrayRef<std::pair<std::string, mlir::Value>> outputs);

/// Removes Shape nodes of the plan that nothing reads any more, and what was
/// made for them: targets of Reshapes in it may count all rows.
void eraseDeadShapes(const PrunePlan &plan);

/// Whether row 0 of an encoder's `rows` is a class token, or why that is not
/// known.
std::string findClassToken(const PruneSpec &spec, std::optional<int64_t> rows,
                           bool &cls);

/// FlowCut's score of the rows of a vision encoder's attention.
FlowScoreOp createFlowScore(mlir::OpBuilder &builder, AttentionOp op,
                            mlir::Value previous, bool cls);

/// Proves that rows can go after `layers` (from 1) of the attentions of the
/// graph and finds what that changes. `encoder`: it is a vision encoder, whose
/// attention is not causal. False with the op and the reason.
bool planPruning(SymbolicAnalysis &analysis, llvm::ArrayRef<int64_t> layers,
                 bool encoder, PrunePlan &plan, std::string &error);

/// Replaces `op` by the same attention with its token_score, and with
/// token_peak if asked for. Its score_rows are to be set then; so that operands
/// stay where they are, another value holds their place.
void addTokenScore(AttentionOp op, bool withPeak);

} // namespace prefill

#endif
