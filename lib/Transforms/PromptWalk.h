//===- PromptWalk.h - Whether prompts can be told apart ----------*- C++ -*-==//
//
// Private to lib/Transforms: the proof behind packs and chunks. Rows of other
// prompts, or of another time, may stand beside a row only if everything on the
// way from the input to the outputs treats rows one by one, but for causal
// attentions over the prompt's own keys.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_LIB_TRANSFORMS_PROMPTWALK_H
#define PREFILL_LIB_TRANSFORMS_PROMPTWALK_H

#include "RowPlan.h"

#include "llvm/ADT/SetVector.h"

namespace prefill {

/// Walks from the outputs to what their rows are made of.
class PromptWalk {
public:
  PromptWalk(SymbolicAnalysis &analysis) : analysis(analysis) {}

  /// Proves it for all outputs of `graph`; returns an error or "".
  std::string run(onnx::GraphOp graph);

  ExprRef batch = nullptr; ///< batch entries of input_ids
  ExprRef count = nullptr; ///< rows of it
  llvm::SetVector<mlir::Operation *> attentions;
  llvm::SetVector<mlir::Operation *> ranges; ///< position ids the model makes

private:
  bool fail(mlir::Operation *op, const llvm::Twine &why);
  bool isSizes(mlir::Value value);
  bool isFixed(mlir::Value value);
  RowRule ruleOf(onnx::NodeOp node, unsigned result, RowAxis rows,
                 ExprRef number);
  bool demand(mlir::Value value, RowAxis rows, mlir::Operation *reader);
  bool attention(AttentionOp op, mlir::Value result, RowAxis rows);
  bool isPositions(onnx::NodeOp node);
  bool visit(mlir::Value value, RowAxis rows);
  bool findSelection(mlir::Value &value, std::optional<int64_t> &axis);

  SymbolicAnalysis &analysis;
  llvm::DenseMap<mlir::Value, RowAxis> seen;
  llvm::SmallVector<std::pair<mlir::Value, RowAxis>> work;
  llvm::DenseMap<mlir::Value, bool> known; ///< results of isFixed
  std::string error;
};

/// Whether `value`, an output, is the K (`key`; rotated) or V of `op` as a KV
/// cache holds it, [1, heads, rows, width].
bool isCacheOf(SymbolicAnalysis &analysis, mlir::Value value, AttentionOp op,
               bool key);

/// Writes `key`: `value` where a host can read it, into the model's metadata.
void addMetadata(mlir::ModuleOp module, llvm::StringRef key,
                 llvm::StringRef value);

/// Adds an int64 input of shape `shape` to the graph.
mlir::Value addIntInput(onnx::GraphOp graph, llvm::StringRef name,
                        llvm::ArrayRef<int64_t> shape,
                        llvm::ArrayRef<llvm::StringRef> dims);

} // namespace prefill

#endif
