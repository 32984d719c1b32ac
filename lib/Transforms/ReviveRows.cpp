//===- ReviveRows.cpp - Rows that were left out come back -----------------===//
//
// LazyLLM's auxiliary cache (arXiv:2407.14057). One model serves a prompt and
// the decode steps after it; what earlier calls computed is its state, inputs
// prefill.past.X and outputs prefill.present.X:
//
//   ids                 the tokens of the context so far
//   key.L, value.L      K (not rotated) and V of layer L for the rows that it
//                       has computed, in the order in which it did
//   rows.L              which rows of the context these are, in the layers
//                       after stage L (those before the first one have all)
//   hidden.L            what layer L gave for the rows that the layers after
//                       it have not computed: the auxiliary cache
//   waiting.L           which rows these are, ascending
//
// With P rows before this call and n new ones, after stage L
//
//   %rows = prefill.select_rows %score protect(%protect) keep 0.7
//   %sel = Gather(the rows seen by layer L, %rows)
//   %pool = Concat(hidden.L, what layer L gives in this call)
//   %x1 = Gather(%pool, those in %sel that are in the pool)   // is computed
//   hidden.L <- the other rows of the pool
//
// and the attentions after it read, for %x1's queries, the rows in %sel:
//
//   %keys = Gather(Concat(key.L+1, %k), the places of %sel)
//   %o = prefill.attention %q, %keys, %values rotary(the tables' rows in %sel)
//        q_positions(the places of %x1's rows in %sel)
//
// A row is computed in a layer when it is seen there for the first time, and
// never again. %sel ascends, so that the order of keys is that of positions.
//
// The proof is that of chunks (PromptWalk.h: rows are independent but for
// causal attention, so that they may be computed in other calls) and that of
// pruning (PrunePlan.h: rows can leave after the stages).
//
//===----------------------------------------------------------------------===//

#include "ReviveRows.h"
#include "prefill/Transforms/Passes.h"

#include "mlir/Analysis/TopologicalSortUtils.h"

namespace prefill {
#define GEN_PASS_DEF_REVIVEROWS
#include "prefill/Transforms/Passes.h.inc"
} // namespace prefill

using namespace mlir;
using namespace prefill;

/// What the model's inputs and outputs must be. Takes outputs away that are
/// caches: the state has these.
bool Reviver::checkInterface() {
  const TensorFacts &tokens = analysis.facts(plan.tokens);
  if (tokens.shape.size() != 2)
    return fail(nullptr, "the model has no input 'input_ids' [batch, tokens]");
  if (tokens.shape[0]->asInt() && !tokens.shape[0]->isInt(1))
    return fail(nullptr, "the model is for a batch of more than one");
  if (tokens.shape[1]->asInt())
    return fail(nullptr, "the model is for a fixed number of tokens, and a "
                         "decode step has one");
  for (auto [argument, name] : llvm::zip_equal(
           graph.getBody().front().getArguments(), graph.getInputs())) {
    StringRef text = onnx::getEntryName(name).getValue();
    if (text.starts_with("prefill.past."))
      return fail(nullptr, "the model has an input '" + text + "' already");
    if (text == "position_ids" && analysis.facts(argument).shape.size() != 2)
      return fail(nullptr, "the input 'position_ids' is not [batch, tokens]: "
                           "positions of several axes are not kept for rows "
                           "that come back");
  }
  if (protection.system)
    if (std::string why = checkNewInputs(graph, {"protected_rows"});
        !why.empty())
      return fail(nullptr, why);
  for (const RowSelection &selection : plan.selections) {
    if (selection.kind != RowSelection::Kind::Slice)
      continue;
    onnx::NodeOp op = selection.node;
    if (analysis.constantInts(op->getOperand(1))->front() != -1)
      return fail(op, "it takes more rows than the last one, and those before "
                      "it may be revived ones: ask for -logits=rows");
  }
  SmallVector<Value> values;
  SmallVector<Attribute> names;
  for (auto [output, name] :
       llvm::zip_equal(ret.getValues(), ret.getOutputNames())) {
    Value value = output; // C++17's lambdas capture no structured binding.
    StringRef text = onnx::getEntryName(name).getValue();
    bool isCache = llvm::any_of(plan.attentions, [&](const auto &entry) {
      return isCacheOf(analysis, value, entry.first, /*key=*/true) ||
             isCacheOf(analysis, value, entry.first, /*key=*/false);
    });
    if (isCache)
      continue;
    if (text != "logits")
      return fail(nullptr, "the output '" + text +
                               "' is neither logits nor a KV cache, and would "
                               "have rows of several calls");
    values.push_back(value);
    names.push_back(name);
  }
  ret.getValuesMutable().assign(values);
  ret.setOutputNamesAttr(builder.getArrayAttr(names));
  return true;
}

std::string Reviver::run() {
  if (!checkInterface())
    return error;
  // Shapes are asked about before anything changes.
  for (onnx::NodeOp shape : plan.shapes)
    redirectShape(builder, analysis, shape);
  makeContext();
  for (const PruneStage &stage : plan.stages) {
    ExprRef width = analysis.dim(stage.cut, 2);
    if (!width || !width->asInt() ||
        !isa_and_nonnull<FloatType>(analysis.facts(stage.cut).elementType)) {
      fail(stage.attention, "the type of what its layer gives is not known");
      return error;
    }
    makeLevel(stage);
  }
  for (auto [op, level] : plan.reshapes) {
    unsigned own = level;
    retargetReshape(builder, analysis, op,
                    plan.rows.lookup(op->getResult(0)).first,
                    [&] { return levels[own].count; });
  }
  for (const PruneUse &entry : plan.uses)
    if (!use(entry))
      return error;
  for (auto [number, entry] : llvm::enumerate(plan.attentions))
    if (!attention(entry.first, number))
      return error;
  for (const RowSelection &selection : plan.selections)
    redirectSelection(selection);
  for (auto [value, where] : plan.rows)
    if (where.second && !(isa<AttentionOp>(value.getDefiningOp()) &&
                          value != value.getDefiningOp()->getResult(0)))
      value.setType(
          withSize(value.getType(), where.first.axis, ShapedType::kDynamic,
                   where.first.merged ? StringRef()
                                      : StringRef(levels[where.second].fresh)));
  // Positions that the model counts go on where the context ends.
  for (Operation *counted : walk.ranges) {
    Value row = counted->getResult(0);
    Value position = node("Add", {row, node("Squeeze", past)});
    position.setType(row.getType());
    row.replaceAllUsesExcept(position, position.getDefiningOp());
  }
  appendOutputs(graph, outputs);
  sortTopologically(&graph.getBody().front());
  eraseDeadNodes(graph);
  return "";
}

namespace {
struct ReviveRowsPass final : prefill::impl::ReviveRowsBase<ReviveRowsPass> {
  using Base::Base;
  ReviveRowsPass(ReviveRowsOptions options, PruneReport &report)
      : Base(std::move(options)), report(&report) {}

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
    if (!parseProtectSpec(protect, protection, error))
      return "-protect=" + protect + ": " + error;
    if (!spec.aux)
      return "-prune=" + prune + ": revive-rows does lazyllm with aux=on";
    SmallVector<AttentionOp> attentions(
        graph.getBody().front().getOps<AttentionOp>());
    std::vector<int64_t> layers;
    if (!resolveLayers(spec, static_cast<int64_t>(attentions.size()), layers,
                       error))
      return "-prune=" + prune + ": " + error;
    if (logits != "all")
      if (error = selectLogits(graph, logits); !error.empty())
        return "-logits=" + logits + ": " + error;
    for (int64_t layer : layers)
      addTokenScore(attentions[layer - 1], /*withPeak=*/false);
    SymbolicAnalysis analysis(graph);
    PromptWalk walk(analysis);
    if (error = walk.run(graph); !error.empty())
      return "-prune=lazyllm with aux=on: " + error;
    PrunePlan plan;
    if (!planPruning(analysis, layers, /*encoder=*/false, plan, error))
      return "-prune: " + error;
    Reviver reviver(analysis, plan, walk, spec, protection);
    if (error = reviver.run(); !error.empty())
      return "-prune=lazyllm with aux=on: " + error;
    if (report)
      *report = {layers, static_cast<int64_t>(plan.attentions.size()),
                 !spec.keepsAll()};
    numAttentions += plan.attentions.size();
    return "";
  }
};
} // namespace

std::unique_ptr<Pass> prefill::createReviveRows(ReviveRowsOptions options,
                                                PruneReport &report) {
  return std::make_unique<ReviveRowsPass>(std::move(options), report);
}
