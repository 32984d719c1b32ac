//===- SparsifyAttention.cpp - Dense to sparse attention ------------------===//
//
// Writes the score -> select -> index composition of the pattern that each head
// is given before the attention, and replaces it by prefill.sparse_attention:
//
//   %o = prefill.attention %q, %k, %v {causal, ...}
// becomes
//   %c, %d = prefill.score.last_rows %q, %k rows 64
//   %sc = prefill.select %c {density = 0.25, forced = 30}
//   %sd = prefill.select %d {density = 0.25, forced = 100}
//   %i = prefill.index.relative %sc, %sd
//   %o = prefill.sparse_attention %q, %k, %v, %i {causal, ...}
//
//===----------------------------------------------------------------------===//

#include "ModalityInput.h"
#include "mlir/IR/Remarks.h"
#include "prefill/Dialect/Prefill/Prefill.h"
#include "prefill/Transforms/Passes.h"
#include "prefill/Transforms/PlanIR.h"
#include "prefill/Transforms/SparsityConfig.h"

namespace prefill {
#define GEN_PASS_DEF_SPARSIFYATTENTION
#include "prefill/Transforms/Passes.h.inc"
} // namespace prefill

using namespace mlir;
using namespace prefill;

/// Why the attention must stay dense, or empty.
static StringRef refusal(AttentionOp op) {
  if (!op.getCausal())
    return "it is not causal, and the patterns are defined for causal "
           "attention";
  if (op.getAlignment() == QueryAlignment::Start)
    return "its queries are aligned with the first keys, not the last";
  if (op.getBias())
    return "it has an additive bias or mask that no pattern knows of";
  if (op.getQSegment())
    return "it has several segments in a row, which no pattern knows of";
  return "";
}

/// Why a head must stay dense with this pattern only, or empty.
static StringRef refusal(AttentionOp op, SparsePattern pattern) {
  if (pattern == SparsePattern::Grid && op.getWindowLeft())
    return "it has a window, which counts tokens, and grid counts strides";
  return "";
}

namespace {
struct SparsifyAttentionPass final
    : prefill::impl::SparsifyAttentionBase<SparsifyAttentionPass> {
  using Base::Base;

  void runOnOperation() override {
    std::string error;
    std::optional<SparsityConfig> config = parseSparsity(pattern, error);
    if (!config) {
      emitError(UnknownLoc::get(&getContext()), error);
      return signalPassFailure();
    }
    SmallVector<AttentionOp> attentions;
    getOperation()->walk([&](AttentionOp op) { attentions.push_back(op); });
    SmallVector<LayerShape> shapes;
    for (AttentionOp op : attentions)
      shapes.push_back({static_cast<int64_t>(op.getQHeads()),
                        static_cast<int64_t>(op.getKvHeads())});
    if (!config->fit(shapes, error)) {
      emitError(UnknownLoc::get(&getContext()))
          << "-sparsify=" << pattern << ": " << error;
      return signalPassFailure();
    }
    bool asked = false;
    for (auto [layer, shape] : llvm::enumerate(shapes))
      for (int64_t head = 0; head < shape.queryHeads; ++head)
        asked |= needsModality(config->plan(layer, head).pattern);
    if (asked && modality.empty())
      error =
          "-sparsify=" + pattern +
          ": q-boundary and 2d-boundary need to know what kind of token "
          "each key is: give -modality=NAME (an integer value [batch, keys] "
          "of the model) or -modality=token:ID[,ID...] (of input_ids)";
    else if (!asked && !modality.empty())
      error = "-modality=" + modality + ": no pattern of -sparsify=" + pattern +
              " asks for it";
    if (asked && error.empty() && !attentions.empty())
      kinds = findModality(getOperation(), attentions.front(), modality, error);
    if (!error.empty()) {
      emitError(UnknownLoc::get(&getContext()), error);
      return signalPassFailure();
    }
    for (auto [layer, op] : llvm::enumerate(attentions))
      rewrite(op, layer, *config);
  }

private:
  Value kinds; ///< of the keys; null: not asked for

  void rewrite(AttentionOp op, int64_t layer, const SparsityConfig &config) {
    int64_t heads = op.getQHeads();
    SmallVector<HeadPlan> plans;
    bool sparse = false;
    StringRef why;
    for (int64_t head = 0; head < heads; ++head) {
      plans.push_back(config.plan(layer, head));
      StringRef here = refusal(op, plans.back().pattern);
      if (here.empty() && needsModality(plans.back().pattern) &&
          !isVisibleAt(kinds, op))
        here = "the value of -modality is not to be had in its function";
      if (!here.empty()) {
        why = here;
        plans.back() = HeadPlan();
      }
      sparse |=
          plans.back().pattern != SparsePattern::Dense || plans.back().skip > 0;
    }
    auto missed = [&] {
      ++numDense;
      remark::missed(
          op.getLoc(),
          remark::RemarkOpts::name("StaysDense").category("sparsify-attention"))
          << ("attention stays dense: " + why).str();
    };
    if (!sparse && !why.empty())
      return missed();
    if (!sparse) {
      ++numDense;
      return;
    }
    if (why = refusal(op); !why.empty())
      return missed();
    OpBuilder builder(op);
    SmallVector<HeadPlan> distinct;
    SmallVector<Value> choices;
    SmallVector<int64_t> choice;
    for (const HeadPlan &plan : plans) {
      auto *it = llvm::find(distinct, plan);
      choice.push_back(it - distinct.begin());
      if (it == distinct.end()) {
        choices.push_back(buildIndex(builder, op.getLoc(), op.getQ(), op.getK(),
                                     op.getV(), plan, kinds));
        distinct.push_back(plan);
      }
    }
    Value index = choices.front();
    if (choices.size() > 1)
      index = IndexPerHeadOp::create(builder, op.getLoc(), index.getType(),
                                     choices, choice);
    auto typeOf = [](Value result) {
      return result ? result.getType() : Type();
    };
    auto sparseOp = SparseAttentionOp::create(
        builder, op.getLoc(), op.getO().getType(), typeOf(op.getLse()),
        typeOf(op.getRotatedK()), typeOf(op.getPresentK()),
        typeOf(op.getPresentV()), typeOf(op.getTokenScore()),
        typeOf(op.getTokenPeak()), op.getQ(), op.getK(), op.getV(),
        op.getBias(), op.getKeyMask(), op.getKvLengths(), op.getSinks(),
        op.getQSegment(), op.getKSegment(), op.getQOffset(), op.getCos(),
        op.getSin(), op.getQPositions(), op.getSegmentStarts(), op.getPastK(),
        op.getPastV(), op.getCacheSlots(), op.getScoreRows(),
        op.getContextSlots(), op.getKeptRows(), index, op.getQHeadsAttr(),
        op.getKvHeadsAttr(), op.getHeadDimAttr(), op.getVHeadDimAttr(),
        op.getScaleAttr(), op.getCausalAttr(), op.getWindowLeftAttr(),
        op.getWindowRightAttr(), op.getSoftcapAttr(), op.getAlignmentAttr(),
        op.getMaskedRowAttr(), op.getQLayoutAttr(), op.getKLayoutAttr(),
        op.getVLayoutAttr(), op.getOLayoutAttr(), op.getRotaryAttr(),
        op.getRotaryDimAttr(), op.getContextTemperatureAttr(),
        op.getContextScaleAttr(), op.getLayerAttr(), op.getFormAttr());
    if (config.denseBelow >= 0)
      sparseOp->setDiscardableAttr(
          "prefill.dense_below", builder.getI64IntegerAttr(config.denseBelow));
    op->replaceAllUsesWith(sparseOp->getResults());
    op->erase();
    ++numSparse;
  }
};
} // namespace
