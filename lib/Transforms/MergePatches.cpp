//===- MergePatches.cpp - Windows of alike patches become one row ---------===//
//
// MustDrop (arXiv:2411.10803) in a vision encoder. After the first layer
// windows of the grid of patches are merged where these are alike:
//
//   %x = onnx.node "Add"(...)                       // the first layer's result
// becomes
//   %y, %rows, %merged = prefill.merge_windows %x protect(%protect)
//       grid 24 window 3 x 3 similarity 0.8 skip 1
//
// and the patches that the class token attends to most in the last layer are a
// further output, prefill.key_rows: the language model is not to drop them.
// PrunePlan.cpp finds what shrinks, as for rows that leave.
//
//===----------------------------------------------------------------------===//

#include "Protection.h"
#include "PrunePlan.h"
#include "prefill/Transforms/Passes.h"
#include "prefill/Transforms/Pruning.h"

#include "mlir/Analysis/TopologicalSortUtils.h"

#include <cmath>

namespace prefill {
#define GEN_PASS_DEF_MERGEPATCHES
#include "prefill/Transforms/Passes.h.inc"
} // namespace prefill

using namespace mlir;
using namespace prefill;

namespace {
/// Carries out a plan.
struct Rewriter {
  SymbolicAnalysis &analysis;
  PrunePlan &plan;
  const PruneSpec &spec;
  bool cls; ///< row 0 is the class token
  onnx::GraphOp graph;
  OpBuilder builder;
  Location loc;
  Type unknown;
  SmallVector<std::pair<std::string, Value>> outputs;

  Rewriter(SymbolicAnalysis &analysis, PrunePlan &plan, const PruneSpec &spec,
           bool cls)
      : analysis(analysis), plan(plan), spec(spec), cls(cls),
        graph(analysis.getGraph()),
        builder(graph.getBody().front().getTerminator()), loc(graph.getLoc()),
        unknown(onnx::UnknownType::get(builder.getContext())) {}

  onnx::NodeOp make(StringRef op, ValueRange inputs, ArrayRef<Type> results,
                    ArrayRef<NamedAttribute> attributes) {
    return onnx::NodeOp::create(builder, loc, op, "", inputs,
                                SmallVector<Type>(results), attributes);
  }
  Value node(StringRef op, ValueRange inputs,
             ArrayRef<NamedAttribute> attributes = {}) {
    return make(op, inputs, unknown, attributes).getResult(0);
  }
  Value ints(ArrayRef<int64_t> values) {
    return onnx::createInts(builder, loc, values);
  }
  NamedAttribute axis(int64_t value) {
    return onnx::intAttr(builder, "axis", value);
  }
  Value cast(Value value, int64_t type) {
    return node("Cast", value, {onnx::intAttr(builder, "to", type)});
  }
  Type rowsType(Type element, StringRef name) {
    return onnx::getTensorType({ShapedType::kDynamic, ShapedType::kDynamic},
                               element, {"", name});
  }
  /// Size 1 of `value`, [1] i64.
  Value countOf(Value value) {
    return node("Gather", {node("Shape", value), ints({1})}, {axis(0)});
  }

  /// Windows of `grid` x `grid` patches.
  void merge(const ProtectSpec &protection, int64_t grid) {
    // Shapes are asked about before anything changes.
    for (onnx::NodeOp shape : plan.shapes)
      redirectShape(builder, analysis, shape);
    Value x = plan.stages.front().cut;
    if (!onnx::getElementType(x.getType()))
      x.setType(analysis.inferredType(x));
    Value given =
        protection.system ? addRowsInput(graph, x, "protected_rows") : Value();
    Value sizes = node("Gather", {node("Shape", x), ints({0, 1})}, {axis(0)});
    Value protect = createProtection(
        builder, loc, cast(node("ConstantOfShape", sizes), 7), protection,
        {given, /*alive=*/Value(), /*starts=*/Value(), /*wanted=*/Value(),
         /*only=*/Value(), /*parts=*/Value()});
    Type i64 = builder.getI64Type();
    auto merged = MergeWindowsOp::create(
        builder, loc, withSize(x.getType(), 1, ShapedType::kDynamic, "merged"),
        rowsType(i64, "merged"), onnx::getTensorType({1}, i64), x, protect,
        builder.getI64IntegerAttr(grid),
        builder.getI64IntegerAttr(spec.windowHeight),
        builder.getI64IntegerAttr(spec.windowWidth),
        builder.getF64FloatAttr(spec.similarity),
        builder.getI64IntegerAttr(cls));
    Value count;
    for (auto [op, level] : plan.reshapes) {
      Value result = op->getResult(0);
      retargetReshape(builder, analysis, op, plan.rows.lookup(result).first,
                      [&] {
                        if (!count)
                          count = countOf(merged.getRows());
                        return plan.behindSlice.contains(result)
                                   ? node("Sub", {count, ints({1})})
                                   : count;
                      });
    }
    for (const PruneUse &use : plan.uses)
      use.operand->set(merged.getY());
    for (auto [value, where] : plan.rows)
      if (where.second)
        value.setType(
            withSize(value.getType(), where.first.axis, ShapedType::kDynamic));
    outputs.push_back({"prefill.rows.1", merged.getRows()});
    outputs.push_back({"prefill.merged", merged.getMerged()});
  }

  /// The share `key` of the patches that the anchor attends to most in
  /// `attention`: [b, patches] bool.
  void markKeys(AttentionOp attention) {
    Value scores =
        createFlowScore(builder, attention, /*previous=*/Value(), cls)
            .getShares();
    if (cls)
      scores = node("Slice",
                    {scores, ints({1}),
                     ints({std::numeric_limits<int64_t>::max()}), ints({1})});
    // ceil(key * patches), in millionths so that every machine rounds alike.
    Value count = countOf(scores);
    Value share = node("Mul", {count, ints({std::llround(spec.key * 1e6)})});
    Value most =
        node("Div", {node("Add", {share, ints({999999})}), ints({1000000})});
    Value best = make("TopK", {scores, most}, {unknown, unknown}, {axis(1)})
                     .getResult(1);
    Value none = cast(node("ConstantOfShape", node("Shape", scores)), 7);
    Value ones = node("Expand", {ints({1}), node("Shape", best)});
    Value keys =
        cast(node("ScatterElements", {none, best, ones}, {axis(1)}), 9);
    keys.setType(rowsType(builder.getI1Type(), "patches_left"));
    outputs.push_back({"prefill.key_rows", keys});
  }

  void finish() {
    appendOutputs(graph, outputs);
    eraseDeadShapes(plan);
    sortTopologically(&graph.getBody().front());
  }
};

struct MergePatchesPass final
    : prefill::impl::MergePatchesBase<MergePatchesPass> {
  using Base::Base;
  MergePatchesPass(MergePatchesOptions options, PruneReport &report)
      : Base(std::move(options)), report(&report) {}

  void runOnOperation() override {
    if (failed(runOnMainGraph(
            getOperation(), [&](onnx::GraphOp graph) { return work(graph); })))
      signalPassFailure();
  }

private:
  PruneReport *report = nullptr;

  /// Whether the plan is one that rows without a place can be put through.
  static std::string checkPlan(SymbolicAnalysis &analysis,
                               const PrunePlan &plan, bool cls) {
    Type element = analysis.facts(plan.stages.front().cut).elementType;
    if (!isa_and_nonnull<FloatType>(element))
      return nameOf(plan.stages.front().cut.getDefiningOp()) +
             "the type of its elements is not known to be one of floats";
    for (const PruneUse &use : plan.uses)
      if (use.operand->get() != plan.stages.front().cut)
        return nameOf(use.operand->getOwner()) +
               "it reads a value with a row for every patch, and merged "
               "patches have no place in it";
    if (plan.butFirst && !cls)
      return nameOf(plan.butFirst) +
             "it takes all rows but the first, which is no class token";
    for (const RowSelection &selection : plan.selections) {
      auto rows = selection.kind == RowSelection::Kind::Slice
                      ? std::nullopt
                      : analysis.constantInts(selection.node->getOperand(1));
      if (!cls || !rows ||
          !llvm::all_of(*rows, [](int64_t row) { return row == 0; }))
        return nameOf(selection.node) +
               "it takes rows by their number, and merged patches have none";
    }
    return "";
  }

  std::string work(onnx::GraphOp graph) {
    PruneSpec spec;
    ProtectSpec protection;
    std::string error;
    const std::string option = "-prune=" + prune;
    if (!parsePruneSpec(prune, spec, error))
      return option + ": " + error;
    if (!parseProtectSpec(protect, protection, error))
      return "-protect=" + protect + ": " + error;
    if (!spec.isMergePatches())
      return option + ": merge-patches does vit-merge and key of mustdrop";
    if (onnx::getOpsetVersion(graph) < 13)
      return "-prune: the model's opset is below 13";
    SmallVector<AttentionOp> attentions = getLiveAttentions(graph);
    if (report)
      report->attentions = attentions.size();
    SmallVector<int64_t> layers;
    if (spec.merges())
      layers.push_back(1);
    if (layers.empty() && spec.key == 0)
      return "";
    if (attentions.size() <= layers.size())
      return option + ": the model has " + std::to_string(attentions.size()) +
             " layers, too few";
    eraseUnread(graph);
    SymbolicAnalysis analysis(graph);
    PrunePlan plan;
    if (!planPruning(analysis, layers, /*encoder=*/true, plan, error))
      return "-prune: " + error;
    AttentionOp first = attentions.front();
    ExprRef size = analysis.dim(first.getQ(), rowAxis(first.getQLayout()));
    std::optional<int64_t> rows = size ? size->asInt() : std::nullopt;
    bool cls = false;
    if (error = findClassToken(spec, rows, cls); !error.empty())
      return option + ": " + error;
    int64_t grid = 0;
    if (spec.merges()) {
      if (!protection.ids.empty())
        return "-protect=ids: the model has no input 'input_ids'; protect rows "
               "with rows:A-B or system";
      if (protection.system)
        if (error = checkNewInputs(graph, {"protected_rows"}); !error.empty())
          return "-prune: " + error;
      if (error = findGrid(spec, rows, cls, grid); !error.empty())
        return option + ": " + error;
      if (error = checkPlan(analysis, plan, cls); !error.empty())
        return "-prune: " + error;
    }
    protectNoEnds(protect, protection);
    protection.bos = std::max<int64_t>(protection.bos, cls);
    Rewriter rewriter(analysis, plan, spec, cls);
    if (spec.merges())
      rewriter.merge(protection, grid);
    if (spec.key > 0)
      rewriter.markKeys(attentions.back());
    rewriter.finish();
    if (report && spec.merges()) {
      report->layers.assign(layers.begin(), layers.end());
      report->changed = true;
    }
    numNodes += plan.rows.size();
    return "";
  }

  /// The side of the grid of patches, or why windows of it are not known.
  static std::string findGrid(const PruneSpec &spec,
                              std::optional<int64_t> rows, bool cls,
                              int64_t &grid) {
    if (!rows)
      return "the number of patches is not known, and with it their grid; "
             "export the model for one size of images";
    const int64_t patches = *rows - cls;
    grid = std::llround(std::sqrt(patches));
    if (grid * grid != patches)
      return "its " + std::to_string(patches) +
             " patches are no square, so their grid is not known";
    if (grid % spec.windowHeight || grid % spec.windowWidth)
      return "a grid of " + std::to_string(grid) + " x " +
             std::to_string(grid) + " patches has no whole windows of " +
             std::to_string(spec.windowHeight) + " x " +
             std::to_string(spec.windowWidth);
    return "";
  }
};
} // namespace

std::unique_ptr<Pass> prefill::createMergePatches(MergePatchesOptions options,
                                                  PruneReport &report) {
  return std::make_unique<MergePatchesPass>(std::move(options), report);
}
