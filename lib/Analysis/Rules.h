//===- Rules.h - What single ops do to shapes and elements ----------------===//
//
// Private to lib/Analysis.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_LIB_ANALYSIS_RULES_H
#define PREFILL_LIB_ANALYSIS_RULES_H

#include "prefill/Analysis/SymbolicAnalysis.h"
#include "prefill/Dialect/Prefill/Prefill.h"

namespace prefill {

/// A Slice along one axis, normalised.
struct SliceAxis {
  int64_t axis = 0;
  ExprRef start = nullptr; ///< null: not known
  ExprRef length = nullptr;
  int64_t step = 1;
};

/// The type of the elements as the rules see them.
inline bool isIntegerLike(mlir::Type type) {
  return type && mlir::isa<mlir::IntegerType>(type) && !type.isInteger(1);
}
inline bool isBool(mlir::Type type) { return type && type.isInteger(1); }
inline bool isFloat(mlir::Type type) {
  return type && mlir::isa<mlir::FloatType>(type);
}

/// Whether rows without a visible key average over keys that finite numbers
/// hide.
inline bool isAverage(MaskedRowRule rule) {
  return rule == MaskedRowRule::Mean || rule == MaskedRowRule::Scores;
}

/// Axis `axis` of a tensor of `rank` counted from the front, or nothing when it
/// is out of range.
inline std::optional<int64_t> normalizeAxis(int64_t axis, int64_t rank) {
  if (axis < 0)
    axis += rank;
  if (axis < 0 || axis >= rank)
    return std::nullopt;
  return axis;
}

/// The result size of broadcasting sizes a and b in a valid execution.
ExprRef broadcastDim(ExprContext &ctx, ExprRef a, ExprRef b);
/// Looks again at broadcasts to `size` from sizes that were only known to be no
/// greater, now that it is to be `other`: both may be lengths of one cache.
void lookAgainAtStretched(ExprContext &ctx, ExprRef size, ExprRef other);

/// The axes of Squeeze, Unsqueeze and reductions: attribute or input.
std::optional<llvm::SmallVector<int64_t>>
axesOf(SymbolicAnalysis &analysis, onnx::NodeOp node, unsigned input);

/// The axes of a Slice, or nothing when they are not known.
std::optional<llvm::SmallVector<SliceAxis>>
sliceAxes(SymbolicAnalysis &analysis, onnx::NodeOp node);

/// What a Pad puts before and after each axis of its input, or nothing when
/// that is not known.
struct PadAxis {
  ExprRef before = nullptr, after = nullptr;
};
std::optional<llvm::SmallVector<PadAxis>> padAxes(SymbolicAnalysis &analysis,
                                                  onnx::NodeOp node);

/// Offset and length of each output of a Split along its axis.
std::optional<llvm::SmallVector<std::pair<ExprRef, ExprRef>>>
splitParts(SymbolicAnalysis &analysis, onnx::NodeOp node);

/// An Einsum's equation without spaces, its "..." written as letters; nothing
/// when it has no "->", or its "..." stand for different numbers of axes.
std::optional<std::string> plainEquation(SymbolicAnalysis &analysis,
                                         onnx::NodeOp node);

/// The type of ONNX's TensorProto.DataType `dataType`, or null.
mlir::Type elementTypeOf(mlir::MLIRContext *context, int64_t dataType);

/// Shapes of a node's results from those of its inputs.
struct ShapeRules {
  SymbolicAnalysis &analysis;
  ExprContext &ctx;
  onnx::NodeOp node;
  /// One per result; what stays unranked is not known.
  llvm::SmallVector<TensorFacts, 2> results;

  ShapeRules(SymbolicAnalysis &analysis, onnx::NodeOp node);
  void run();

private:
  const TensorFacts &in(unsigned i);
  void set(unsigned result, mlir::Type elementType,
           llvm::ArrayRef<ExprRef> shape);
  void same(unsigned result, unsigned input);
  ExprRef product(llvm::ArrayRef<ExprRef> shape);
  std::optional<llvm::SmallVector<ExprRef>>
  broadcast(llvm::ArrayRef<unsigned> inputs);

  bool elementwise();
  bool defaultDomain();
  bool contribDomain();
  bool quantized();
  void reshape();
  void expand();
  void matmul(mlir::Value a, mlir::Value b, bool transA, bool transB);
  void gemm();
  void concat();
  void gather();
  void gatherND();
  void squeeze();
  void unsqueeze();
  void reduce();
  void pad();
  void constantNode();
  void einsum();
  void conv();
  void attention();
  void headsFromQuery(int64_t heads, int64_t kvHeads);
};

/// Elements of a node's results from those of its inputs.
struct ElementRules {
  SymbolicAnalysis &analysis;
  ExprContext &ctx;
  onnx::NodeOp node;
  unsigned result;
  llvm::ArrayRef<ExprRef> indices;

  /// The element, or null when the rule does not know.
  ExprRef run();

private:
  ExprRef operand(unsigned i);
  mlir::Type type(unsigned i);
  ExprRef unary(llvm::StringRef op, ExprRef a, mlir::Type from, mlir::Type to);
  ExprRef binary(llvm::StringRef op, ExprRef a, ExprRef b, mlir::Type type);
  ExprRef compare(llvm::StringRef op, ExprRef a, ExprRef b);
  ExprRef cast(ExprRef a, mlir::Type from, mlir::Type to);
  ExprRef concat();
  ExprRef gather();
  ExprRef gatherND();
  ExprRef cumSum();
  ExprRef range();
  ExprRef trilu();
  ExprRef pad();
};

} // namespace prefill

#endif
