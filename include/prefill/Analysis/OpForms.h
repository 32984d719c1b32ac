//===- OpForms.h - Fused attention operators --------------------*- C++ -*-===//
//
// What the matchers of fused attention operators share (lib/Analysis/OpForms*).
// Each reads one operator, proves every attribute and input, and describes it
// as prefill.attention with ordinary onnx.nodes around it: caches, rotary
// embedding, biases, packed inputs. python/tests/op_forms states the same in
// numpy and checks it against ONNX Runtime.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_ANALYSIS_OPFORMS_H
#define PREFILL_ANALYSIS_OPFORMS_H

#include "prefill/Analysis/AttentionSite.h"
#include "prefill/Analysis/SymbolicAnalysis.h"

namespace prefill {

/// Reads one fused operator and plans its rewrite. Whatever cannot be read or
/// proven refuses the site; the first reason stays, so matchers may read on and
/// ask `refused()` where it matters.
class OpForm {
public:
  OpForm(onnx::NodeOp node, SymbolicAnalysis &analysis, AttentionSite &site);

  onnx::NodeOp node;
  SymbolicAnalysis &analysis;
  AttentionSite &site;
  ExprContext &exprs;
  mlir::MLIRContext *context;
  mlir::Builder builder;

  bool refused() const { return site.refused(); }
  void refuse(const llvm::Twine &reason, mlir::Value value = {});

  //===--------------------------------------------------------------------===//
  // Attributes and inputs
  //===--------------------------------------------------------------------===//

  /// Refuses attributes that are not in `known`: what they mean is not known.
  void allowAttributes(llvm::ArrayRef<llvm::StringRef> known);
  /// The attribute or `otherwise`; refuses one of another kind.
  int64_t readInt(llvm::StringRef name, int64_t otherwise);
  double readFloat(llvm::StringRef name, double otherwise);
  /// An attribute that is 0 or 1.
  bool readBool(llvm::StringRef name, bool otherwise);
  /// Input `i`, or null; `name` is for reasons.
  mlir::Value input(unsigned i) { return node.getInput(i); }
  /// Refuses when input `i` is there.
  void needAbsent(unsigned i, llvm::StringRef name);
  /// Refuses when output `i` is used.
  void needUnused(unsigned i, llvm::StringRef name);
  /// Whether something uses output `i`.
  bool isUsed(unsigned i);

  //===--------------------------------------------------------------------===//
  // Shapes and types
  //===--------------------------------------------------------------------===//

  /// The rank of `value`, or -1.
  int64_t rank(mlir::Value value);
  /// The size of an axis (negative: from the end) when it is a number, or -1.
  int64_t size(mlir::Value value, int64_t axis);
  ExprRef dim(mlir::Value value, int64_t axis);
  bool provablyEqual(ExprRef a, ExprRef b);
  /// The element type of `value`, or null.
  mlir::Type elementType(mlir::Value value);
  /// The element type of q, k and v, which must agree and be one that kernels
  /// are made for; refuses otherwise.
  mlir::Type commonType(llvm::ArrayRef<mlir::Value> values);
  /// The number that an expression is, or ShapedType::kDynamic.
  static int64_t staticSize(ExprRef e);
  /// `value` as an operand of the attention; notes its type if the model does
  /// not declare it.
  PlannedValue use(mlir::Value value);

  //===--------------------------------------------------------------------===//
  // Planned nodes
  //===--------------------------------------------------------------------===//

  mlir::RankedTensorType tensor(llvm::ArrayRef<int64_t> shape,
                                mlir::Type element);
  mlir::RankedTensorType ints(llvm::ArrayRef<int64_t> shape) {
    return tensor(shape, builder.getI64Type());
  }
  PlannedValue constantInt(int64_t value); ///< a scalar
  /// All elements 0 (or `value`).
  PlannedValue constantFloats(llvm::ArrayRef<int64_t> shape, mlir::Type element,
                              double value = 0);
  /// Size `axis` of a value as int64 [1], or as a scalar.
  PlannedValue planDim(PlannedValue value, int64_t axis, bool scalar = false);
  PlannedValue planCast(PlannedValue value, mlir::RankedTensorType type);
  PlannedValue planReshape(PlannedValue value, llvm::ArrayRef<int64_t> shape,
                           mlir::RankedTensorType type);
  /// [b,s,h*d] to [b,h,s,d].
  PlannedValue planHeadsFirst(PlannedValue value, int64_t heads, int64_t dim,
                              mlir::Type element);
  PlannedValue planConcat(llvm::ArrayRef<PlannedValue> values, int64_t axis,
                          mlir::RankedTensorType type);
  /// The parts of `value` ([.., sum of sizes]) along the last axis.
  llvm::SmallVector<PlannedValue> planSplit(PlannedValue value,
                                            llvm::ArrayRef<int64_t> sizes,
                                            mlir::Type element);
  /// Slice of a bias vector: elements [begin, end).
  PlannedValue planSlice(PlannedValue value, int64_t begin, int64_t end,
                         mlir::Type element);

  //===--------------------------------------------------------------------===//
  // The attention
  //===--------------------------------------------------------------------===//

  /// One of q, k, v where it really lies: transposes and repeated heads before
  /// it are folded into layout and number of heads.
  struct Operand {
    PlannedValue value;
    TensorLayout layout = TensorLayout::BHSD;
    int64_t heads = 0;
  };
  /// `value` is [b,h,s,d] (4-D) or [b,s,h*d] (3-D). Repeated heads are folded
  /// down to `fewestHeads` at the least.
  Operand fold(mlir::Value value, int64_t heads, int64_t dim,
               int64_t fewestHeads);
  /// Folds k and v to the same number of heads and sets site.k, site.v, their
  /// layouts and site.kvHeads.
  void setKeysAndValues(mlir::Value k, mlir::Value v, int64_t heads,
                        int64_t headDim, int64_t vHeadDim);

  /// Sets the mask or bias operand `mask` of the scores [batch, heads, rows,
  /// keys].
  struct MaskRules {
    /// What -inf gives for a row that sees nothing.
    MaskedRowRule infinite = MaskedRowRule::Zero;
    /// The operator takes the lowest finite number for -inf.
    bool lowestHides = false;
    /// Other masks (lengths, windows, causal) hide keys for good.
    bool hard = false;
    /// Keep the tensor as an operand as it is.
    bool direct = false;
  };
  void setMask(mlir::Value mask, const MaskDims &dims, const MaskRules &rules);

  /// Output 0 becomes the attention's result, [b,h,s,e] or, with `packed`,
  /// [b,s,h*e]. A transpose that follows the former is folded.
  void setOutput(bool packed, ExprRef batch, ExprRef rows);
  void replace(unsigned output, PlannedValue value);
};

/// ai.onnx Attention 23, 24, 25.
void matchOnnxAttention(OpForm &form);
/// com.microsoft GroupQueryAttention.
void matchGroupQueryAttention(OpForm &form);
/// com.microsoft MultiHeadAttention.
void matchMultiHeadAttention(OpForm &form);
/// com.microsoft Attention.
void matchPackedWeightAttention(OpForm &form);

} // namespace prefill

#endif
