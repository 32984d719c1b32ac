//===- RaiseAttention.cpp - Proven attention to prefill.attention ---------===//
//
// Writes what lib/Analysis found: for each site that is proven, the planned
// onnx.nodes and one prefill.attention in place of the core,
//
//   %s = onnx.node "MatMul"(%q, %kt); ... %p = onnx.node "Softmax"(%m)
//   %o = onnx.node "MatMul"(%p, %v)
// becomes
//   %o = prefill.attention %q, %k, %v {causal, scale = 0.25, ...}
//
// (with the rows before their rotary embedding, where that is proven too),
// and erases what nothing uses any more. Sites that are refused stay as they
// are, with a missed remark.
//
//===----------------------------------------------------------------------===//

#include "mlir/IR/Remarks.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"

#include "prefill/Analysis/AttentionSite.h"
#include "prefill/Transforms/Passes.h"
#include <vector>

namespace prefill {
#define GEN_PASS_DEF_RAISEATTENTION
#include "prefill/Transforms/Passes.h.inc"
} // namespace prefill

using namespace mlir;
using namespace prefill;

namespace {
/// Operations that compute the same from the same operands.
struct SameNode : llvm::DenseMapInfo<Operation *> {
  static unsigned getHashValue(const Operation *op) {
    return OperationEquivalence::computeHash(
        const_cast<Operation *>(op), OperationEquivalence::directHashValue,
        OperationEquivalence::ignoreHashValue,
        OperationEquivalence::IgnoreLocations);
  }
  static bool isEqual(const Operation *a, const Operation *b) {
    if (a == b)
      return true;
    if (a == getEmptyKey() || a == getTombstoneKey() || b == getEmptyKey() ||
        b == getTombstoneKey())
      return false;
    return OperationEquivalence::isEquivalentTo(
        const_cast<Operation *>(a), const_cast<Operation *>(b),
        OperationEquivalence::IgnoreLocations);
  }
};

struct RaiseAttentionPass final
    : prefill::impl::RaiseAttentionBase<RaiseAttentionPass> {
  RaiseAttentionPass() = default;
  explicit RaiseAttentionPass(std::vector<SiteReport> &reports)
      : reports(&reports) {}

  void runOnOperation() override {
    for (AttentionSite &site : findAttention(getOperation())) {
      if (reports)
        reports->push_back(reportSite(site));
      if (site.refused()) {
        ++numDeclined;
        explain(site);
      } else {
        ++numRaised;
        rewrite(site);
      }
    }
    eraseDead();
    created.clear();
    replaced.clear();
  }

private:
  /// Where to tell what was found, or null.
  std::vector<SiteReport> *reports = nullptr;
  /// What became of values that were replaced: a later site may read them.
  DenseMap<Value, Value> replaced;
  /// Ops that may have lost their last use.
  SmallVector<Operation *> maybeDead;
  /// Nodes and initializers that were created. Sites share them: the layers of
  /// a model need the same positions and lengths.
  llvm::DenseSet<Operation *, SameNode> created;

  /// `op`, just made at the insertion point, or one like it from before.
  Operation *unique(Operation *op) {
    auto [it, isNew] = created.insert(op);
    if (isNew)
      return op;
    Operation *known = *it;
    if (known->getBlock() != op->getBlock() || !known->isBeforeInBlock(op))
      return op;
    op->erase();
    return known;
  }

  void explain(const AttentionSite &site) {
    auto node = dyn_cast_or_null<onnx::NodeOp>(site.refusalNode);
    Operation *at = node ? node.getOperation() : site.core;
    std::string text = "attention stays as it was: ";
    if (node) {
      StringRef name = node.getNodeName().empty() ? node.getOutputName(0)
                                                  : node.getNodeName();
      text += node.getOpType();
      text += name.empty() ? "" : (" '" + name + "'").str();
      text += ": ";
    }
    text += site.refusal;
    if (site.refusalValue)
      if (StringRef name = onnx::getValueName(site.refusalValue); !name.empty())
        text += (" (value '" + name + "')").str();
    remark::missed(
        at->getLoc(),
        remark::RemarkOpts::name("NotRaised").category("raise-attention"))
        << text;
  }

  void rewrite(AttentionSite &site) {
    // Operands come before the core and its surroundings; the first replaced
    // result is before all uses of any.
    Operation *point = nullptr;
    for (auto &[value, planned] : site.replacements)
      if (Operation *op = value.getDefiningOp())
        if (!point || op->isBeforeInBlock(point))
          point = op;
    if (!point)
      return;
    OpBuilder builder(point);
    Location loc = site.core->getLoc();
    AttentionOp attention;
    SmallVector<SmallVector<Value>> made(site.nodes.size());
    Value absent;

    auto get = [&](const PlannedValue &v) -> Value {
      switch (v.kind) {
      case PlannedValue::Kind::None:
        return {};
      case PlannedValue::Kind::Existing: {
        auto it = replaced.find(v.value);
        return it == replaced.end() ? v.value : it->second;
      }
      case PlannedValue::Kind::Node:
        return made[v.node][v.result];
      case PlannedValue::Kind::Attention:
        return attention->getResult(v.result);
      }
      return {};
    };
    // A node waits for the attention if it reads its result, directly or not.
    SmallVector<bool> after(site.nodes.size(), false);
    for (auto [i, node] : llvm::enumerate(site.nodes))
      for (const PlannedValue &input : node.inputs)
        after[i] |=
            input.kind == PlannedValue::Kind::Attention ||
            (input.kind == PlannedValue::Kind::Node && after[input.node]);
    auto createNodes = [&](bool late) {
      for (auto [i, node] : llvm::enumerate(site.nodes)) {
        if (after[i] != late)
          continue;
        if (node.opType == "Constant" && node.attributes.size() == 1)
          if (auto elements =
                  dyn_cast<ElementsAttr>(node.attributes[0].getValue())) {
            Value constant = onnx::createInitializer(builder, loc, elements);
            made[i] = {unique(constant.getDefiningOp())->getResult(0)};
            continue;
          }
        SmallVector<Value> inputs;
        for (const PlannedValue &input : node.inputs) {
          Value v = get(input);
          if (!v && !absent)
            absent = onnx::createAbsent(builder, loc);
          inputs.push_back(v ? v : absent);
        }
        auto op =
            onnx::NodeOp::create(builder, loc, node.opType, node.domain, inputs,
                                 node.resultTypes, node.attributes);
        llvm::append_range(made[i], unique(op)->getResults());
      }
    };

    createNodes(/*late=*/false);
    for (auto &[value, type] : site.types)
      value.setType(type);
    MLIRContext *context = builder.getContext();
    auto i64 = [&](int64_t v) { return builder.getI64IntegerAttr(v); };
    auto optional = [&](std::optional<int64_t> v) {
      return v ? i64(*v) : IntegerAttr();
    };
    auto text = [&](StringRef s) {
      return s.empty() ? StringAttr() : builder.getStringAttr(s);
    };
    attention = AttentionOp::create(
        builder, loc, site.resultType, /*lse=*/Type(),
        site.rotatedKey ? site.rotatedKeyType : Type(), /*present_k=*/Type(),
        /*present_v=*/Type(), /*token_score=*/Type(), /*token_peak=*/Type(),
        get(site.q), get(site.k), get(site.v), get(site.bias),
        get(site.keyMask), get(site.kvLengths), get(site.sinks),
        get(site.qSegment), get(site.kSegment), get(site.qOffset),
        get(site.cos), get(site.sin),
        /*q_positions=*/Value(), /*segment_starts=*/Value(),
        /*past_k=*/Value(), /*past_v=*/Value(), /*cache_slots=*/Value(),
        /*score_rows=*/Value(), /*context_slots=*/Value(),
        /*kept_rows=*/Value(), i64(site.qHeads), i64(site.kvHeads),
        i64(site.headDim), i64(site.vHeadDim),
        builder.getF32FloatAttr(static_cast<float>(site.scale)),
        site.causal ? builder.getUnitAttr() : UnitAttr(),
        optional(site.windowLeft), optional(site.windowRight),
        site.softcap
            ? builder.getF32FloatAttr(static_cast<float>(*site.softcap))
            : FloatAttr(),
        QueryAlignmentAttr::get(context, site.alignment),
        MaskedRowRuleAttr::get(context, site.maskedRow),
        TensorLayoutAttr::get(context, site.qLayout),
        TensorLayoutAttr::get(context, site.kLayout),
        TensorLayoutAttr::get(context, site.vLayout),
        TensorLayoutAttr::get(context, site.oLayout),
        RotaryKindAttr::get(context, site.rotary), i64(site.rotaryDim),
        /*context_temperature=*/FloatAttr(), /*context_scale=*/FloatAttr(),
        text(site.layer), text(site.form));
    createNodes(/*late=*/true);
    for (auto &[value, planned] : site.replacements) {
      Value by = get(planned);
      if (Operation *op = value.getDefiningOp())
        maybeDead.push_back(op);
      value.replaceAllUsesWith(by);
      replaced[value] = by;
    }
    if (site.rotatedKey) {
      // What stands before the attention goes on reading the node's own result.
      Value rotated = attention.getRotatedK();
      if (site.rotatedKeyLayout == TensorLayout::BSHD)
        rotated = onnx::NodeOp::create(
                      builder, loc, "Transpose", "", rotated,
                      site.rotatedKey.getType(),
                      {onnx::intsAttr(builder, "perm", {0, 2, 1, 3})})
                      .getResult(0);
      Operation *last = rotated.getDefiningOp();
      site.rotatedKey.replaceUsesWithIf(rotated, [&](OpOperand &use) {
        Operation *user =
            last->getBlock()->findAncestorOpInBlock(*use.getOwner());
        return user && last->isBeforeInBlock(user);
      });
      maybeDead.push_back(site.rotatedKey.getDefiningOp());
    }
  }

  /// Erases nodes, initializers and absent markers that lost their last use.
  void eraseDead() {
    llvm::DenseSet<Operation *> gone;
    while (!maybeDead.empty()) {
      Operation *op = maybeDead.pop_back_val();
      if (gone.contains(op) ||
          !isa<onnx::NodeOp, onnx::InitializerOp, onnx::AbsentOp>(op) ||
          !isOpTriviallyDead(op))
        continue;
      for (Value operand : op->getOperands())
        if (Operation *definition = operand.getDefiningOp())
          maybeDead.push_back(definition);
      gone.insert(op);
      op->erase();
    }
  }
};
} // namespace

std::unique_ptr<Pass>
prefill::createRaiseAttention(std::vector<SiteReport> &reports) {
  return std::make_unique<RaiseAttentionPass>(reports);
}
