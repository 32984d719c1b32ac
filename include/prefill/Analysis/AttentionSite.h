//===- AttentionSite.h - One attention found in a model ----------*- C++ -*-==//
//
// Plain data between the matchers (lib/Analysis), which prove what a piece of
// an onnx.graph computes, and the raise pass (lib/Transforms), which rewrites
// it. A matcher changes nothing: nodes that a rewrite needs are *planned* here
// and created by the pass.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_ANALYSIS_ATTENTIONSITE_H
#define PREFILL_ANALYSIS_ATTENTIONSITE_H

#include "prefill/Dialect/ONNX/ONNX.h"
#include "prefill/Dialect/Prefill/Prefill.h"

#include <optional>
#include <string>

namespace prefill {

class Expr;
class SymbolicAnalysis;

/// A value that a rewrite uses: one that exists, a result of a planned node, or
/// a result of the attention itself.
struct PlannedValue {
  enum class Kind { None, Existing, Node, Attention };
  Kind kind = Kind::None;
  mlir::Value value;   ///< Existing
  unsigned node = 0;   ///< Node: index into AttentionSite::nodes
  unsigned result = 0; ///< Node, Attention: which result (Attention: 0 is o)

  PlannedValue() = default;
  PlannedValue(mlir::Value v)
      : kind(v ? Kind::Existing : Kind::None), value(v) {}
  static PlannedValue attention(unsigned result = 0) {
    PlannedValue v;
    v.kind = Kind::Attention;
    v.result = result;
    return v;
  }
  explicit operator bool() const { return kind != Kind::None; }
};

/// An onnx.node that the rewrite creates. Nodes are created in order, those
/// that depend on the attention's results after it, all others before it. An
/// input of kind None becomes an onnx.absent.
struct PlannedNode {
  std::string opType, domain;
  llvm::SmallVector<PlannedValue> inputs;
  llvm::SmallVector<mlir::NamedAttribute> attributes;
  llvm::SmallVector<mlir::Type, 1> resultTypes;
};

/// An attention of an onnx.graph: what to write, or why not.
struct AttentionSite {
  /// The node that makes this an attention: the Softmax, or the fused op.
  mlir::Operation *core = nullptr;
  std::string layer; ///< from metadata or names; for reports
  std::string form;  ///< what was found, e.g. "MatMul-Softmax-MatMul"

  /// Empty: everything is proven and the site can be rewritten. Otherwise why
  /// it stays as it was, with the node and the value (or null) that show it.
  std::string refusal;
  mlir::Operation *refusalNode = nullptr;
  mlir::Value refusalValue;

  // Operands of prefill.attention.
  PlannedValue q, k, v, bias, keyMask, kvLengths, sinks, qSegment, kSegment,
      qOffset, cos, sin;
  // Attributes of prefill.attention. 0: not known (only in a refused site).
  int64_t qHeads = 0, kvHeads = 0, headDim = 0, vHeadDim = 0;
  double scale = 0;
  bool causal = false;
  std::optional<int64_t> windowLeft, windowRight;
  std::optional<double> softcap;
  QueryAlignment alignment = QueryAlignment::End;
  MaskedRowRule maskedRow = MaskedRowRule::Zero;
  TensorLayout qLayout = TensorLayout::BHSD, kLayout = TensorLayout::BHSD,
               vLayout = TensorLayout::BHSD, oLayout = TensorLayout::BHSD;
  RotaryKind rotary = RotaryKind::None;
  int64_t rotaryDim = 0;

  /// The type of result o.
  mlir::Type resultType;
  /// The type of result rotated_k, if `rotatedKey` asks for it.
  mlir::Type rotatedKeyType;
  /// With `rotary`, if something else reads the keys after the rotation: that
  /// value, of rank 4. Its uses after the attention become the attention's
  /// result rotated_k (transposed for BSHD).
  mlir::Value rotatedKey;
  TensorLayout rotatedKeyLayout = TensorLayout::BHSD;
  /// Nodes to create, in order.
  llvm::SmallVector<PlannedNode> nodes;
  /// Which values become what: the replaced output (by
  /// PlannedValue::attention() or a node on it), and further results of a fused
  /// op (present_key, ...).
  llvm::SmallVector<std::pair<mlir::Value, PlannedValue>> replacements;
  /// New types for values whose type was not known (kernels need the element
  /// type of q, k, v).
  llvm::SmallVector<std::pair<mlir::Value, mlir::Type>> types;

  bool refused() const { return !refusal.empty(); }
  /// Refuses the site (the first reason stays) and returns failure.
  mlir::LogicalResult refuse(mlir::Operation *node, const llvm::Twine &reason,
                             mlir::Value value = {});

  /// Plans a node with one result and returns it.
  PlannedValue plan(llvm::StringRef opType, llvm::ArrayRef<PlannedValue> inputs,
                    mlir::Type resultType,
                    llvm::ArrayRef<mlir::NamedAttribute> attributes = {},
                    llvm::StringRef domain = "");
  /// Plans a node with any number of results; the first is returned, the others
  /// have the same `node` and another `result`.
  PlannedValue planMany(llvm::StringRef opType,
                        llvm::ArrayRef<PlannedValue> inputs,
                        llvm::ArrayRef<mlir::Type> resultTypes,
                        llvm::ArrayRef<mlir::NamedAttribute> attributes = {},
                        llvm::StringRef domain = "");
  /// Plans a 1-D int64 constant (axes, shapes).
  PlannedValue planInts(mlir::MLIRContext *context,
                        llvm::ArrayRef<int64_t> values);
  /// Plans a constant.
  PlannedValue planConstant(mlir::ElementsAttr value);

  /// The mask in words: "causal", "causal, window 4095, key padding", "none".
  std::string maskText() const;
};

/// One row of `prefill-opt inspect`.
struct SiteReport {
  std::string layer, form, reason, mask, node;
  bool raised = false;
  int64_t qHeads = 0, kvHeads = 0, headDim = 0; ///< 0: not known
};

/// All attentions of the module, in the model's order, refused ones included
/// (attention inside subgraphs and functions is always refused).
llvm::SmallVector<AttentionSite, 0> findAttention(mlir::ModuleOp module);

/// The report of one site. Its core must still be in the graph.
SiteReport reportSite(const AttentionSite &site);

/// The reports of `findAttention`: what raise-attention would do.
llvm::SmallVector<SiteReport> inspectAttention(mlir::ModuleOp module);

/// The layer that `op` belongs to, from its metadata's namespace or its name
/// ("model.layers.0.self_attn"), or "".
std::string layerName(mlir::Operation *op);

/// The dimensions of the score tensor that a mask is added to, as expressions.
struct MaskDims {
  const Expr *batch = nullptr, *heads = nullptr, *rows = nullptr,
             *keys = nullptr;
};

/// Describes what a mask tensor does to the scores [batch, heads, rows, keys],
/// to which it broadcasts from the right, in terms of `site`: sets causal,
/// windows and alignment, keyMask, segments and, for what is left, bias
/// (causal already set in `site`, with its alignment, stays and is combined).
/// A bool mask is true where visible; any other is added. `neverEmpty` is set
/// when every row provably sees a key. `maskedRow` is set to what an additive
/// mask gives for an empty row (Mean or Scores for finite minima, NaN for -inf)
/// and left alone for a bool mask. Fails only when the mask cannot be an
/// operand either.
mlir::LogicalResult applyMask(SymbolicAnalysis &analysis, AttentionSite &site,
                              mlir::Value mask, const MaskDims &dims,
                              bool &neverEmpty);

/// Matches fused attention ops: ONNX Attention, com.microsoft
/// GroupQueryAttention, MultiHeadAttention, Attention, ... Returns false when
/// `node` is none. Otherwise `site` is filled or refused.
bool matchOpForm(onnx::NodeOp node, SymbolicAnalysis &analysis,
                 AttentionSite &site);

} // namespace prefill

#endif
