//===- PruneGroups.cpp - Small keys of a group stay in the cache ----------===//
//
// After chunk-prompt with parts:
//
//   %o, %ck, %cv = prefill.attention %q, %k, %v segment_starts(%starts)
//       cache(%past_k, %past_v, %cache_slots)
// becomes
//   %protect = prefill.protect_rows %ids segment_starts(%starts)
//       parts(%prompt_parts)
//   %score = prefill.key_norm %k
//   %rows = prefill.select_rows %score protect(%protect)
//       segment_starts(%starts) keep 1.0 {topk = 64, round_down}
//   %o, %ck, %cv = prefill.attention ... cache(...) kept(%rows)
//
// QuickPrefill (TIGER-AI-Lab/QuickVideo): a group of rows sees the keys that
// earlier groups left and all of its own, then keeps those with small norms.
// The number that stays is the same in every layer, so that one cache length
// serves all. With decay it falls from layer to layer, and cache_slots,
// [layers, n, 2], has lengths for each. What protects rows is made once;
// selections are per layer.
//
//===----------------------------------------------------------------------===//

#include "PromptWalk.h"
#include "Protection.h"
#include "PrunePlan.h"
#include "prefill/Transforms/Passes.h"
#include "prefill/Transforms/Pruning.h"

namespace prefill {
#define GEN_PASS_DEF_PRUNEGROUPS
#include "prefill/Transforms/Passes.h.inc"
} // namespace prefill

using namespace mlir;
using namespace prefill;

namespace {
struct PruneGroupsPass final : prefill::impl::PruneGroupsBase<PruneGroupsPass> {
  using Base::Base;
  PruneGroupsPass(PruneGroupsOptions options, PruneReport *report)
      : Base(std::move(options)), report(report) {}

  void runOnOperation() override {
    if (failed(runOnMainGraph(
            getOperation(), [&](onnx::GraphOp graph) { return work(graph); })))
      signalPassFailure();
  }

private:
  PruneReport *report = nullptr;

  std::string work(onnx::GraphOp graph) {
    PruneSpec spec;
    ProtectSpec protection;
    std::string error;
    if (!parsePruneSpec(prune, spec, error))
      return "-prune=" + prune + ": " + error;
    if (!spec.isQuickPrefill())
      return "-prune=" + prune + ": prune-groups does quickprefill";
    if (!parseProtectSpec(protect, protection, error))
      return "-protect=" + protect + ": " + error;
    SmallVector<AttentionOp> attentions(
        graph.getBody().front().getOps<AttentionOp>());
    if (error = check(graph, attentions); !error.empty())
      return "-prune=quickprefill: " + error;
    rewrite(graph, attentions, spec, protection);
    addMetadata(getOperation(), "prefill.query",
                std::to_string(queryRows(spec, protection)));
    if (report) {
      report->attentions = attentions.size();
      report->changed = !spec.keepsAll();
    }
    numAttentions += attentions.size();
    return "";
  }

  static Value findInput(onnx::GraphOp graph, StringRef name) {
    for (auto [argument, entry] : llvm::zip_equal(
             graph.getBody().front().getArguments(), graph.getInputs()))
      if (onnx::getEntryName(entry).getValue() == name)
        return argument;
    return {};
  }

  /// What is not known of the chunks already; an error, or "".
  static std::string check(onnx::GraphOp graph,
                           MutableArrayRef<AttentionOp> attentions) {
    for (StringRef name : {"input_ids", "prompt_parts"})
      if (!findInput(graph, name))
        return ("the model has no input '" + name +
                "': chunk-prompt with parts comes first")
            .str();
    if (!isa<RankedTensorType>(findInput(graph, "input_ids").getType()))
      return "the input 'input_ids' has no type [batch, tokens]";
    if (findInput(graph, "protected_rows"))
      return "the model has an input 'protected_rows' already";
    for (AttentionOp op : attentions) {
      std::string where =
          "attention '" + op.getLayer().value_or("").str() + "': ";
      if (!op.getPastK() || op.getKeptRows())
        return where + "it has no KV cache of ours to take rows out of";
      if (op.getWindowLeft())
        return where + "it has a window, which counts positions, and rows of "
                       "a pruned cache do not stand side by side";
    }
    return attentions.empty() ? "no attention was raised" : "";
  }

  /// Gives every layer slots of its own: cache_slots becomes [layers, n, 2].
  static void splitSlots(onnx::GraphOp graph,
                         MutableArrayRef<AttentionOp> attentions) {
    OpBuilder builder(graph.getContext());
    Value slots = findInput(graph, "cache_slots");
    Type own = slots.getType();
    slots.setType(onnx::getTensorType(
        {static_cast<int64_t>(attentions.size()), ShapedType::kDynamic, 2},
        builder.getI64Type(), {"", "segments", ""}));
    for (auto [i, op] : llvm::enumerate(attentions)) {
      builder.setInsertionPoint(op);
      Value layer = onnx::createInts(builder, op.getLoc(), int64_t(i),
                                     /*scalar=*/true);
      Value mine = onnx::NodeOp::create(builder, op.getLoc(), "Gather", "",
                                        {slots, layer}, own,
                                        {onnx::intAttr(builder, "axis", 0)})
                       .getResult(0);
      op.getCacheSlotsMutable().assign(mine);
    }
  }

  static void rewrite(onnx::GraphOp graph,
                      MutableArrayRef<AttentionOp> attentions,
                      const PruneSpec &spec, const ProtectSpec &protection) {
    Block &body = graph.getBody().front();
    OpBuilder builder(graph.getContext());
    builder.setInsertionPointToStart(&body);
    Value ids = findInput(graph, "input_ids");
    ProtectOperands operands;
    operands.starts = attentions.front().getSegmentStarts();
    operands.parts = findInput(graph, "prompt_parts");
    if (protection.system)
      operands.given = addRowsInput(graph, ids, "protected_rows");
    if (!cast<RankedTensorType>(ids.getType()).getElementType().isInteger(64))
      ids = onnx::NodeOp::create(builder, graph.getLoc(), "Cast", "", ids,
                                 onnx::UnknownType::get(graph.getContext()),
                                 {onnx::intAttr(builder, "to", 7)})
                .getResult(0);
    Value protect =
        createProtection(builder, graph.getLoc(), ids, protection, operands);
    auto ret = cast<onnx::ReturnOp>(body.getTerminator());
    SmallVector<Attribute> names(ret.getOutputNames().begin(),
                                 ret.getOutputNames().end());
    Type scores =
        onnx::getTensorType({1, ShapedType::kDynamic}, builder.getF32Type());
    const auto layers = static_cast<int64_t>(attentions.size());
    if (spec.decays())
      splitSlots(graph, attentions);
    for (auto [i, op] : llvm::enumerate(attentions)) {
      builder.setInsertionPoint(op);
      const std::string number = std::to_string(i + 1);
      Type rows = onnx::getTensorType(
          {1, ShapedType::kDynamic}, builder.getI64Type(),
          {"", spec.decays() ? "kept_rows_" + number : "kept_rows"});
      auto [topk, share] = spec.budgetOf(int64_t(i), layers);
      Value score = KeyNormOp::create(builder, op->getLoc(), scores, op.getK(),
                                      op.getKLayoutAttr());
      auto select = SelectRowsOp::create(
          builder, op->getLoc(), rows, /*starts=*/Type(), score, protect,
          /*alive=*/Value(), operands.starts, /*peak=*/Value(),
          /*columns=*/Value(), /*shares=*/Value(),
          builder.getF64FloatAttr(share),
          /*global=*/FloatAttr(), /*individual=*/FloatAttr(),
          /*target=*/IntegerAttr(), /*left=*/IntegerAttr(),
          /*skip=*/IntegerAttr(),
          topk ? builder.getI64IntegerAttr(topk) : IntegerAttr(),
          builder.getUnitAttr());
      op.getKeptRowsMutable().assign(select.getRows());
      ret.getValuesMutable().append(select.getRows());
      names.push_back(builder.getStringAttr("prefill.kept." + number));
    }
    ret.setOutputNamesAttr(builder.getArrayAttr(names));
  }
};
} // namespace

std::unique_ptr<Pass> prefill::createPruneGroups(PruneGroupsOptions options,
                                                 PruneReport &report) {
  return std::make_unique<PruneGroupsPass>(std::move(options), &report);
}
