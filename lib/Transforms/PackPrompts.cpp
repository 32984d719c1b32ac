//===- PackPrompts.cpp - Several prompts in one sequence ------------------===//
//
// Makes a model of one prompt one of several that stand side by side:
//
//   %p = onnx.node "Range"(%zero, %length, %one)        // positions
//   %o = prefill.attention %q, %k, %v rotary(%cos, %sin) {causal}
// becomes, with a new input %segment_starts,
//   %p = i - (the start of the prompt that row i belongs to)
//   %o = prefill.attention %q, %k, %v rotary(%cos, %sin)
//          segment_starts(%segment_starts) {causal}
//
// Prepacking, arXiv:2404.09529; here attention never looks across prompts, so
// that no mask of rows times rows is needed. Everything that reaches an output
// must treat rows one by one but for these attentions.
//
//===----------------------------------------------------------------------===//

#include "PromptWalk.h"
#include "prefill/Transforms/Passes.h"

namespace prefill {
#define GEN_PASS_DEF_PACKPROMPTS
#include "prefill/Transforms/Passes.h.inc"
} // namespace prefill

using namespace mlir;
using namespace prefill;

namespace {
struct PackPromptsPass final : prefill::impl::PackPromptsBase<PackPromptsPass> {
  using Base::Base;

  void runOnOperation() override {
    onnx::GraphOp graph = onnx::getMainGraph(getOperation());
    if (!graph)
      return;
    std::string error = pack(graph);
    if (error.empty())
      return;
    emitError(UnknownLoc::get(&getContext())) << "-pack: " << error;
    signalPassFailure();
  }

private:
  /// Proves that the model can be packed and rewrites it; returns an error or
  /// "".
  std::string pack(onnx::GraphOp graph) {
    SymbolicAnalysis analysis(graph);
    PromptWalk walk(analysis);
    if (std::string error = walk.run(graph); !error.empty())
      return error;
    rewrite(graph, analysis, walk);
    return "";
  }

  void rewrite(onnx::GraphOp graph, SymbolicAnalysis &analysis,
               PromptWalk &walk) {
    OpBuilder builder(graph.getContext());
    Location loc = graph.getLoc();
    Type unknown = onnx::UnknownType::get(graph.getContext());
    Value starts = addIntInput(graph, "segment_starts", {ShapedType::kDynamic},
                               {"segments_and_one"});
    for (Operation *op : walk.attentions)
      cast<AttentionOp>(op).getSegmentStartsMutable().assign(starts);
    numAttentions += walk.attentions.size();

    for (Operation *range : walk.ranges) {
      builder.setInsertionPointAfter(range);
      auto node = [&](StringRef op, ValueRange inputs,
                      ArrayRef<NamedAttribute> attributes = {}) {
        return onnx::NodeOp::create(builder, loc, op, "", inputs, unknown,
                                    attributes)
            .getResult(0);
      };
      Value row = range->getResult(0);
      auto ints = [&](ArrayRef<int64_t> values) {
        return onnx::createInts(builder, loc, values);
      };
      // The last start at or before each row: [n + 1, rows] -> [rows].
      Value column = node("Reshape", {starts, ints({-1, 1})});
      Value begun = node("LessOrEqual", {column, row});
      Value own = node("Where", {begun, column, ints({0})});
      auto keep = onnx::intAttr(builder, "keepdims", 0);
      Value start = analysis.getOpset() >= 18
                        ? node("ReduceMax", {own, ints({0})}, {keep})
                        : node("ReduceMax", own,
                               {onnx::intsAttr(builder, "axes", {0}), keep});
      Value position = node("Sub", {row, start});
      position.setType(row.getType());
      SmallPtrSet<Operation *, 2> readers = {begun.getDefiningOp(),
                                             position.getDefiningOp()};
      row.replaceAllUsesExcept(position, readers);
    }
  }
};
} // namespace
