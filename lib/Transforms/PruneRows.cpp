//===- PruneRows.cpp - Rows leave later layers ----------------------------===//
//
// After a layer, the rows that the last row attends to least go:
//
//   %o = prefill.attention %q, %k, %v rotary(%cos, %sin) {causal}
//   ... %x = onnx.node "Add"(...)                   // the layer's result
// becomes
//   %o, %score = prefill.attention ... token_score
//   %rows = prefill.select_rows %score protect(%protect) keep 0.7
//   %x1 = onnx.node "GatherND"(%x, %rows)           // what later layers get
//   %cos1 = ... of the rows                         // and all else with rows
//
// LazyLLM (arXiv:2407.14057). MustDrop (arXiv:2411.10803) scores the rows of an
// image, which a new input marks, by the text after it:
//
//   %o, %score, %peak = prefill.attention ... score_rows(%asking)
//   %rows = prefill.select_rows %score peak(%peak) columns(%vision)
//           protect(%protect) global 0.001 individual 0.001
//
// With kv=final its caches lose the rows that go later, too:
//
//   %kept = onnx.node "GatherElements"(%rows, %rows_of_the_next_stage)
//   %present = onnx.node "Gather"(%k, %kept) {axis = 2}
//
// FlowCut (arXiv:2505.19536) prunes a vision encoder; each layer's score takes
// in half of the one before:
//
//   %score, %shares = prefill.flow_score %q, %k, %v previous(%before)
//   %rows = prefill.select_rows %score protect(%protect) shares(%shares)
//           target 64 left 4 skip 1
//
// In a language model FlowCut keeps so many vision rows:
//
//   %score, %_ = prefill.flow_score %q, %k, %v columns(%vision) rotary(...)
//   %rows = prefill.select_rows %score protect(%protect) columns(%vision)
//           target 64
//
// PrunePlan.cpp finds what shrinks, this file rewrites it.
//
//===----------------------------------------------------------------------===//

#include "PromptWalk.h"
#include "Protection.h"
#include "PrunePlan.h"
#include "prefill/Transforms/Passes.h"
#include "prefill/Transforms/Pruning.h"

#include "mlir/Analysis/TopologicalSortUtils.h"

#include <cmath>

namespace prefill {
#define GEN_PASS_DEF_PRUNEROWS
#include "prefill/Transforms/Passes.h.inc"
} // namespace prefill

using namespace mlir;
using namespace prefill;

void prefill::addTokenScore(AttentionOp op, bool withPeak) {
  OpBuilder builder(op);
  auto typeOf = [](Value result) { return result ? result.getType() : Type(); };
  Type scores = onnx::getTensorType(
      {ShapedType::kDynamic, ShapedType::kDynamic}, builder.getF32Type());
  auto scored = AttentionOp::create(
      builder, op.getLoc(), op.getO().getType(), typeOf(op.getLse()),
      typeOf(op.getRotatedK()), typeOf(op.getPresentK()),
      typeOf(op.getPresentV()), scores, withPeak ? scores : Type(), op.getQ(),
      op.getK(), op.getV(), op.getBias(), op.getKeyMask(), op.getKvLengths(),
      op.getSinks(), op.getQSegment(), op.getKSegment(), op.getQOffset(),
      op.getCos(), op.getSin(), op.getQPositions(), op.getSegmentStarts(),
      op.getPastK(), op.getPastV(), op.getCacheSlots(),
      withPeak ? op.getQ() : Value(), op.getContextSlots(), op.getKeptRows(),
      op.getQHeadsAttr(), op.getKvHeadsAttr(), op.getHeadDimAttr(),
      op.getVHeadDimAttr(), op.getScaleAttr(), op.getCausalAttr(),
      op.getWindowLeftAttr(), op.getWindowRightAttr(), op.getSoftcapAttr(),
      op.getAlignmentAttr(), op.getMaskedRowAttr(), op.getQLayoutAttr(),
      op.getKLayoutAttr(), op.getVLayoutAttr(), op.getOLayoutAttr(),
      op.getRotaryAttr(), op.getRotaryDimAttr(), op.getContextTemperatureAttr(),
      op.getContextScaleAttr(), op.getLayerAttr(), op.getFormAttr());
  op->replaceAllUsesWith(scored->getResults().take_front(op->getNumResults()));
  op->erase();
}

namespace {
/// Carries out a plan.
struct Rewriter {
  SymbolicAnalysis &analysis;
  const PrunePlan &plan;
  const ProtectSpec &protection;
  const PruneSpec &spec;
  onnx::GraphOp graph;
  OpBuilder builder;
  Location loc;
  Type unknown;

  /// What stands for a number of rows: level 0 is all, level i is after stage
  /// i - 1.
  struct Level {
    Value relative; ///< [b, m] rows of the level before
    Value absolute; ///< [b, m] rows of the prompt
    Value protect;  ///< [b, m]
    Value alive;    ///< [b, m], or null
    Value vision;   ///< [b, m] bool, of MustDrop and FlowCut in a language
                    ///< model: rows of an image
    Value asking;   ///< [b, m] bool, of MustDrop: text after it
    Value starts;   ///< [segments + 1], or null
    Value count;    ///< [1], made when asked for
    std::string name;
  };
  SmallVector<Level> levels;
  bool cls = false; ///< FlowCut: row 0 is the class token
  /// FlowCut's scores, and the attentions whose operands they read.
  SmallVector<std::pair<FlowScoreOp, AttentionOp>> flows;
  DenseMap<std::pair<Value, unsigned>, Value> gathered;
  DenseMap<unsigned, Value> survivors; ///< of rows of a level

  Rewriter(SymbolicAnalysis &analysis, const PrunePlan &plan,
           const ProtectSpec &protection, const PruneSpec &spec)
      : analysis(analysis), plan(plan), protection(protection), spec(spec),
        graph(analysis.getGraph()),
        builder(graph.getBody().front().getTerminator()), loc(graph.getLoc()),
        unknown(onnx::UnknownType::get(builder.getContext())) {}

  Value node(StringRef op, ValueRange inputs,
             ArrayRef<NamedAttribute> attributes = {}) {
    return onnx::NodeOp::create(builder, loc, op, "", inputs, unknown,
                                attributes)
        .getResult(0);
  }
  Value ints(ArrayRef<int64_t> values) {
    return onnx::createInts(builder, loc, values);
  }
  NamedAttribute axis(int64_t value) {
    return onnx::intAttr(builder, "axis", value);
  }
  Type rowsType(Type element, StringRef name) {
    return onnx::getTensorType({ShapedType::kDynamic, ShapedType::kDynamic},
                               element, {"", name});
  }

  Value getCount(unsigned level) {
    Level &l = levels[level];
    if (!l.count)
      l.count =
          node("Gather", {node("Shape", l.absolute), ints({1})}, {axis(0)});
    return l.count;
  }

  Value asInt64(Value value) {
    return node("Cast", value, {onnx::intAttr(builder, "to", 7)});
  }

  /// The rows that are asked for, [m] i64, or null.
  Value getWanted() {
    SmallVector<Value> parts;
    for (const RowSelection &s : plan.selections) {
      if (s.kind != RowSelection::Kind::Slice) {
        parts.push_back(
            asInt64(node("Reshape", {s.node->getOperand(1), ints({-1})})));
        continue;
      }
      SmallVector<int64_t> last;
      for (int64_t i = analysis.constantInts(s.node->getOperand(1))->front();
           i < 0; ++i)
        last.push_back(i);
      parts.push_back(ints(last));
    }
    if (parts.empty())
      return {};
    return parts.size() == 1 ? parts[0] : node("Concat", parts, {axis(0)});
  }

  /// Token ids, [b, s] i64; of a model that takes embeddings zeros.
  Value getIds() {
    const TensorFacts &tokens = analysis.facts(plan.tokens);
    if (tokens.shape.size() == 3)
      return asInt64(
          node("ConstantOfShape",
               node("Gather", {node("Shape", plan.tokens), ints({0, 1})},
                    {axis(0)})));
    return tokens.elementType.isInteger(64) ? plan.tokens
                                            : asInt64(plan.tokens);
  }

  /// Where `alive` is not 0.
  Value isAlive(Value alive) {
    Value zero = onnx::createInts(builder, loc, {0}, true);
    return node("Not", node("Equal", {alive, zero}));
  }

  /// Text after the last image: rows with a vision row before them and none at
  /// or after them, less padding.
  Value getAsking(Value vision, Value alive) {
    Value one = asInt64(vision);
    Value along = onnx::createInts(builder, loc, {1}, true);
    Value zero = onnx::createInts(builder, loc, {0}, true);
    Value before = node("CumSum", {one, along});
    Value after =
        node("CumSum", {one, along}, {onnx::intAttr(builder, "reverse", 1)});
    Value asking = node(
        "And", {node("Greater", {before, zero}), node("Equal", {after, zero})});
    if (alive)
      asking = node("And", {asking, isAlive(alive)});
    asking.setType(rowsType(builder.getI1Type(), ""));
    return asking;
  }

  /// All rows, and which of them may not go.
  void makeFirstLevel() {
    Value given = protection.system
                      ? addRowsInput(graph, plan.tokens, "protected_rows")
                      : Value();
    Level all;
    AttentionOp first = plan.stages.front().attention;
    all.starts = first.getSegmentStarts();
    all.alive = first.getKeyMask() ? asInt64(first.getKeyMask()) : Value();
    if (spec.needsVisionRows())
      all.vision = addRowsInput(graph, plan.tokens, "vision_rows");
    if (all.vision && all.alive) {
      all.vision = node("And", {all.vision, isAlive(all.alive)});
      all.vision.setType(rowsType(builder.getI1Type(), ""));
    }
    if (spec.isMustDrop())
      all.asking = getAsking(all.vision, all.alive);
    all.protect = createProtection(builder, loc, getIds(), protection,
                                   {given, all.alive, all.starts, getWanted(),
                                    all.vision, /*parts=*/Value()});
    levels.push_back(all);
  }

  /// Of [b, m] the rows that `rows` names.
  Value ofRows(Value value, Value rows) {
    return node("GatherElements", {value, rows}, {axis(1)});
  }

  /// FlowCut's score after `stage`, of all attentions up to its own.
  FlowScoreOp getFlow(const PruneStage &stage, unsigned level) {
    while (flows.size() < static_cast<size_t>(stage.layer)) {
      AttentionOp op = plan.attentions[flows.size()].first;
      Value previous;
      if (!flows.empty()) {
        previous = flows.back().first.getScore();
        bool fewer = level && plan.stages[level - 1].layer ==
                                  static_cast<int64_t>(flows.size());
        if (fewer)
          previous = ofRows(previous, levels[level].relative);
      }
      flows.push_back({createFlowScore(builder, op, previous, cls), op});
    }
    return flows.back().first;
  }

  /// FlowCut's selection after `stage`.
  SelectRowsOp selectPatches(const PruneStage &stage, const Level &before) {
    FlowScoreOp flow = getFlow(stage, levels.size() - 1);
    int64_t left =
        static_cast<int64_t>(plan.attentions.size()) - 1 - stage.layer;
    return SelectRowsOp::create(
        builder, loc,
        rowsType(builder.getI64Type(),
                 "rows_after_" + std::to_string(stage.layer)),
        Type(), flow.getScore(), before.protect, Value(), Value(), Value(),
        Value(), flow.getShares(), FloatAttr(), FloatAttr(), FloatAttr(),
        builder.getI64IntegerAttr(spec.target), builder.getI64IntegerAttr(left),
        builder.getI64IntegerAttr(cls), /*topk=*/IntegerAttr(),
        /*round_down=*/UnitAttr());
  }

  /// FlowCut's selection of vision rows in a language model: as the last row
  /// reads those of the stage's own attention.
  SelectRowsOp selectVision(const PruneStage &stage, const Level &before) {
    AttentionOp op = stage.attention;
    Type scores = rowsType(builder.getF32Type(), "");
    const auto valueScale =
        static_cast<float>(1 / std::sqrt(static_cast<double>(op.getHeadDim())));
    auto flow = FlowScoreOp::create(
        builder, loc, scores, scores, op.getQ(), op.getK(), op.getV(),
        /*previous=*/Value(), before.vision, before.alive, op.getCos(),
        op.getSin(), op.getQHeadsAttr(), op.getKvHeadsAttr(),
        op.getHeadDimAttr(), op.getScaleAttr(),
        builder.getF32FloatAttr(valueScale), /*cls=*/UnitAttr(),
        op.getRotaryAttr(), op.getRotaryDimAttr(), op.getQLayoutAttr(),
        op.getKLayoutAttr(), op.getVLayoutAttr());
    return SelectRowsOp::create(
        builder, loc,
        rowsType(builder.getI64Type(),
                 "rows_after_" + std::to_string(stage.layer)),
        Type(), flow.getScore(), before.protect, Value(), Value(), Value(),
        before.vision, /*shares=*/Value(), FloatAttr(), FloatAttr(),
        FloatAttr(), builder.getI64IntegerAttr(spec.target),
        /*left=*/IntegerAttr(), /*skip=*/IntegerAttr(),
        /*topk=*/IntegerAttr(), /*round_down=*/UnitAttr());
  }

  /// The selection of the others, by the stage's own attention.
  SelectRowsOp selectRows(const PruneStage &stage, const Level &before) {
    AttentionOp attention = stage.attention;
    if (before.asking)
      attention.getScoreRowsMutable().assign(before.asking);
    auto rule = [&](bool used, double value) {
      return used ? builder.getF64FloatAttr(value) : FloatAttr();
    };
    Type i64 = builder.getI64Type();
    const bool thresholds = static_cast<bool>(before.vision);
    return SelectRowsOp::create(
        builder, loc,
        rowsType(i64, "rows_after_" + std::to_string(stage.layer)),
        before.starts ? onnx::getTensorType({ShapedType::kDynamic}, i64)
                      : Type(),
        attention.getTokenScore(), before.protect, before.alive, before.starts,
        attention.getTokenPeak(), before.vision, /*shares=*/Value(),
        rule(!thresholds, spec.keep), rule(thresholds, spec.global),
        rule(thresholds, spec.individual), /*target=*/IntegerAttr(),
        /*left=*/IntegerAttr(), /*skip=*/IntegerAttr(),
        /*topk=*/IntegerAttr(), /*round_down=*/UnitAttr());
  }

  void makeLevel(const PruneStage &stage) {
    const Level before = levels.back();
    Level level;
    level.name = "rows_after_" + std::to_string(stage.layer);
    Type i64 = builder.getI64Type();
    SelectRowsOp select = spec.isFlowCut()       ? selectPatches(stage, before)
                          : spec.isFlowCutText() ? selectVision(stage, before)
                                                 : selectRows(stage, before);
    level.relative = level.absolute = select.getRows();
    level.starts = select.getStarts();
    if (before.absolute)
      level.absolute = ofRows(before.absolute, level.relative);
    level.absolute.setType(rowsType(i64, level.name));
    level.protect = ofRows(before.protect, level.relative);
    if (before.alive)
      level.alive = ofRows(before.alive, level.relative);
    if (before.asking) {
      level.vision = ofRows(before.vision, level.relative);
      level.asking = ofRows(before.asking, level.relative);
    }
    levels.push_back(level);
  }

  /// Rows of `value`, [b|1, n, ...] or with `lead` [n, ...], by rows [b, m].
  Value gather(Value value, Value rows, bool perBatch) {
    if (!perBatch)
      return node("Gather", {value, rows}, {axis(0)});
    return node("GatherND", {value, node("Unsqueeze", {rows, ints({2})})},
                {onnx::intAttr(builder, "batch_dims", 1)});
  }

  /// `value`, whose rows lie at `along`, with the rows of `level`.
  Value take(Value value, int64_t along, unsigned level) {
    Value &known = gathered[{value, level}];
    if (known)
      return known;
    bool isCut = level && plan.stages[level - 1].cut == value;
    Value rows = isCut ? levels[level].relative : levels[level].absolute;
    Value from = value;
    if (along == 2) // [b|1, 1, n, ...]
      from = node("Squeeze", {from, ints({1})});
    bool perBatch = along > 0 && !analysis.dim(value, 0)->isInt(1);
    if (along > 0 && !perBatch)
      from = node("Squeeze", {from, ints({0})});
    known = gather(from, rows, perBatch);
    if (along == 2)
      known = node("Unsqueeze", {known, ints({1})});
    if (along > 0) {
      Type type = withSize(value.getType(), along, ShapedType::kDynamic,
                           levels[level].name);
      if (!perBatch)
        type = withSize(type, 0, ShapedType::kDynamic);
      known.setType(type);
    }
    return known;
  }

  void attention(AttentionOp op, unsigned level) {
    if (op.getSegmentStarts())
      op.getSegmentStartsMutable().assign(levels[level].starts);
    // Maskless or with the mask of the rows.
    if (op.getKeyMask())
      op.getKeyMaskMutable().assign(
          ofRows(op.getKeyMask(), levels[level].absolute));
  }

  /// A selection of rows finds them where they are now.
  void redirectSelection(const RowSelection &selection) {
    if (selection.kind == RowSelection::Kind::Slice)
      return; // From the end, and the last rows are there.
    onnx::NodeOp op = selection.node;
    Value given = op->getOperand(1);
    Value count =
        node("Gather", {node("Shape", plan.tokens), ints({1})}, {axis(0)});
    Type type = unknown;
    if (auto tensor =
            dyn_cast_or_null<RankedTensorType>(analysis.inferredType(given)))
      type = tensor.clone(builder.getI64Type());
    auto find = onnx::NodeOp::create(
        builder, loc, "FindRows", "prefill.opt",
        {levels.back().absolute, count, asInt64(given)}, type);
    op->setOperand(1, find.getResult(0));
  }

  /// Of the rows of `level` those that are left in the end, by their place
  /// among them, [m] i64. A prompt alone: thresholds take no batches.
  Value getSurvivors(unsigned level) {
    Value &known = survivors[level];
    if (!known) {
      const Level &last = levels.back();
      Value rows = level ? last.relative : last.absolute;
      for (unsigned l = levels.size() - 1; level && l-- > level + 1;)
        rows = ofRows(levels[l].relative, rows);
      known = node("Reshape", {rows, ints({-1})});
    }
    return known;
  }

  /// The caches hold the rows that are left in the end.
  void cutCaches() {
    auto ret = cast<onnx::ReturnOp>(graph.getBody().front().getTerminator());
    DenseMap<Value, Value> cuts;
    for (auto [place, level] : plan.caches) {
      if (level + 1 == levels.size())
        continue;
      Value value = ret.getValues()[place];
      Value &cut = cuts[value];
      if (!cut) {
        cut = node("Gather", {value, getSurvivors(level)}, {axis(2)});
        cut.setType(withSize(value.getType(), 2, ShapedType::kDynamic,
                             levels.back().name));
      }
      ret.setOperand(place, cut);
    }
  }

  void addOutputs() {
    SmallVector<std::pair<std::string, Value>> outputs;
    for (auto [stage, level] :
         llvm::zip_equal(plan.stages, ArrayRef(levels).drop_front()))
      outputs.push_back(
          {"prefill.rows." + std::to_string(stage.layer), level.absolute});
    appendOutputs(graph, outputs);
  }

  void run() {
    // Shapes are asked about before anything changes.
    for (onnx::NodeOp shape : plan.shapes)
      redirectShape(builder, analysis, shape);
    makeFirstLevel();
    for (const PruneStage &stage : plan.stages)
      makeLevel(stage);
    for (auto [op, level] : plan.reshapes) {
      unsigned own = level;
      Value result = op->getResult(0);
      retargetReshape(builder, analysis, op, plan.rows.lookup(result).first,
                      [&] {
                        Value count = getCount(own);
                        return plan.behindSlice.contains(result)
                                   ? node("Sub", {count, ints({1})})
                                   : count;
                      });
    }
    for (const PruneUse &use : plan.uses)
      use.operand->set(take(use.operand->get(), use.axis, use.level));
    for (auto [op, level] : plan.attentions)
      if (level)
        attention(op, level);
    for (const RowSelection &selection : plan.selections)
      redirectSelection(selection);
    // What an attention reads has been taken of what it read before.
    for (auto [flow, op] : flows)
      flow->setOperands(0, 3, {op.getQ(), op.getK(), op.getV()});
    for (auto [value, where] : plan.rows)
      if (where.second)
        value.setType(
            withSize(value.getType(), where.first.axis, ShapedType::kDynamic,
                     where.first.merged || plan.behindSlice.contains(value)
                         ? StringRef()
                         : StringRef(levels[where.second].name)));
    cutCaches();
    addOutputs();
    eraseDeadShapes(plan);
    sortTopologically(&graph.getBody().front());
  }
};

struct PruneRowsPass final : prefill::impl::PruneRowsBase<PruneRowsPass> {
  using Base::Base;
  PruneRowsPass(PruneRowsOptions options, PruneReport &report)
      : Base(std::move(options)), report(&report) {}

  void runOnOperation() override {
    if (failed(runOnMainGraph(
            getOperation(), [&](onnx::GraphOp graph) { return work(graph); })))
      signalPassFailure();
  }

private:
  PruneReport *report = nullptr;

  /// How many rows a vision encoder has, those of its first attention.
  static std::optional<int64_t> countPatches(onnx::GraphOp graph) {
    SymbolicAnalysis analysis(graph);
    AttentionOp first = getLiveAttentions(graph).front();
    ExprRef rows = analysis.dim(first.getQ(), rowAxis(first.getQLayout()));
    return rows ? rows->asInt() : std::nullopt;
  }

  /// What the model's inputs must be, or what they are instead.
  static std::string checkInputs(onnx::GraphOp graph,
                                 SymbolicAnalysis &analysis,
                                 const PrunePlan &plan, const PruneSpec &spec,
                                 const ProtectSpec &protection) {
    SmallVector<StringRef> added;
    if (protection.system)
      added.push_back("protected_rows");
    if (spec.needsVisionRows())
      added.push_back("vision_rows");
    if (std::string error = checkNewInputs(graph, added); !error.empty())
      return "-prune: " + error;
    if (!protection.ids.empty() &&
        analysis.facts(plan.tokens).shape.size() != 2)
      return "-protect=ids: the model has no input 'input_ids'; protect rows "
             "with rows:A-B or system";
    for (const PruneStage &stage : plan.stages) {
      AttentionOp op = stage.attention;
      if (spec.needsVisionRows() && op.getSegmentStarts())
        return "-prune: vision rows are those of one prompt, and this model "
               "takes several in one sequence";
      if (spec.isFlowCutText() &&
          (op.getSoftcap() || op.getHeadDim() != op.getVHeadDim()))
        return "-prune: " + nameOf(op) +
               "its scores are capped, or its keys and values have heads of "
               "different sizes, and FlowCut's score is not defined for it";
    }
    return "";
  }

  /// Finds the KV outputs of the first stage's layer and of all after it, for
  /// kv=final. What else has a row for every token might be a cache in a form
  /// that is not known.
  static std::string findCaches(onnx::GraphOp graph, SymbolicAnalysis &analysis,
                                PrunePlan &plan) {
    ExprRef count = analysis.dim(plan.tokens, 1);
    auto ret = cast<onnx::ReturnOp>(graph.getBody().front().getTerminator());
    auto isCache = [&](Value value, AttentionOp op) {
      return isCacheOf(analysis, value, op, /*key=*/true) ||
             isCacheOf(analysis, value, op, /*key=*/false);
    };
    for (unsigned place = 0; place < ret.getValues().size(); ++place) {
      Value value = ret.getValues()[place];
      // Of shared keys and values the first layer counts.
      const auto *owner =
          llvm::find_if(plan.attentions, [&](const auto &attention) {
            return isCache(value, attention.first);
          });
      if (owner != plan.attentions.end()) {
        if (owner - plan.attentions.begin() >= plan.stages.front().layer - 1)
          plan.caches.push_back({place, plan.rows.lookup(value).second});
        continue;
      }
      for (ExprRef size : analysis.facts(value).shape)
        if (analysis.expressions().proveEqual(size, count))
          return "-prune: kv=final: the output '" +
                 onnx::getEntryName(ret.getOutputNames()[place]).str() +
                 "' has a row for every token and is not known to be a KV "
                 "cache";
    }
    if (plan.caches.empty())
      return "-prune: kv=final: the model gives no KV cache of layer " +
             std::to_string(plan.stages.front().layer) + " or a later one";
    return "";
  }

  std::string work(onnx::GraphOp graph) {
    PruneSpec spec;
    ProtectSpec protection;
    std::string error;
    if (!parsePruneSpec(prune, spec, error))
      return "-prune=" + prune + ": " + error;
    if (!parseProtectSpec(protect, protection, error))
      return "-protect=" + protect + ": " + error;
    if (onnx::getOpsetVersion(graph) < 13)
      return "-prune: the model's opset is below 13";
    if (spec.isQuickPrefill() || spec.isMergePatches() || spec.aux)
      return "-prune=" + prune +
             ": prune-rows does lazyllm without aux=on, flowcut, and mustdrop "
             "in a language model";
    int64_t count = getLiveAttentions(graph).size();
    std::vector<int64_t> layers;
    if (!resolveLayers(spec, count, layers, error))
      return "-prune=" + prune + ": " + error;
    if (logits != "all")
      if (error = selectLogits(graph, logits); !error.empty())
        return "-logits=" + logits + ": " + error;
    if (report) {
      report->layers = layers;
      report->attentions = count;
    }
    if (spec.keepsAll())
      return "";
    bool cls = false;
    if (spec.isFlowCut()) {
      auto rows = countPatches(graph);
      (void)findClassToken(spec, rows, cls);
      if (rows && *rows - cls <= spec.target) {
        if (report)
          report->layers.clear();
        return "";
      }
    }
    eraseUnread(graph);
    SmallVector<AttentionOp> attentions(
        graph.getBody().front().getOps<AttentionOp>());
    for (int64_t layer : layers)
      if (!spec.isFlowCut() && !spec.isFlowCutText())
        addTokenScore(attentions[layer - 1], spec.isMustDrop());
    SymbolicAnalysis analysis(graph);
    PrunePlan plan;
    if (!planPruning(analysis, layers, spec.isFlowCut(), plan, error))
      return "-prune: " + error;
    if (spec.isFlowCut()) {
      auto rows = analysis.dim(plan.tokens, 1)->asInt();
      if (error = findClassToken(spec, rows, cls); !error.empty())
        return "-prune=" + prune + ": " + error;
      if (plan.butFirst && !cls)
        return "-prune: " + nameOf(plan.butFirst) +
               "it takes all rows but the first, which is no class token "
               "and may go";
      protectNoEnds(protect, protection);
      protection.bos = std::max<int64_t>(protection.bos, cls);
    }
    if (error = checkInputs(graph, analysis, plan, spec, protection);
        !error.empty())
      return error;
    if (spec.finalCaches)
      if (error = findCaches(graph, analysis, plan); !error.empty())
        return error;
    Rewriter rewriter(analysis, plan, protection, spec);
    rewriter.cls = cls;
    rewriter.run();
    if (report)
      report->changed = true;
    for (auto [op, level] : plan.attentions)
      numAttentions += level > 0;
    numNodes += plan.rows.size();
    return "";
  }
};
} // namespace

std::unique_ptr<Pass> prefill::createPruneRows(PruneRowsOptions options,
                                               PruneReport &report) {
  return std::make_unique<PruneRowsPass>(std::move(options), report);
}
