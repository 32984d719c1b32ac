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

#include "PromptWalk.h"
#include "Protection.h"
#include "PrunePlan.h"
#include "prefill/Transforms/Passes.h"
#include "prefill/Transforms/Pruning.h"

#include "mlir/Analysis/TopologicalSortUtils.h"

namespace prefill {
#define GEN_PASS_DEF_REVIVEROWS
#include "prefill/Transforms/Passes.h.inc"
} // namespace prefill

using namespace mlir;
using namespace prefill;

namespace {
/// Carries out a plan.
struct Reviver {
  Reviver(SymbolicAnalysis &analysis, const PrunePlan &plan,
          const PromptWalk &walk, const PruneSpec &spec,
          const ProtectSpec &protection)
      : analysis(analysis), plan(plan), walk(walk), spec(spec),
        protection(protection), graph(analysis.getGraph()),
        ret(cast<onnx::ReturnOp>(graph.getBody().front().getTerminator())),
        builder(ret), loc(graph.getLoc()),
        unknown(onnx::UnknownType::get(builder.getContext())) {}

  /// An error, or "".
  std::string run();

private:
  /// The rows of the layers after a stage, in this call. Numbers of rows count
  /// from the context's first one.
  struct Level {
    Value selected; ///< [m] rows that are seen, ascending
    Value computed; ///< [r] those of them that are computed in this call
    Value places;   ///< [r] where these are among the selected
    Value order;    ///< [m] where the selected are in the caches; null: there
    Value hidden;   ///< [1, r, d] what the layers begin with; null: all
    Value protect;  ///< [1, m] bool
    Value count;    ///< r, [1]
    std::string seen, fresh, cached; ///< names of dimensions
  };

  SymbolicAnalysis &analysis;
  const PrunePlan &plan;
  const PromptWalk &walk;
  const PruneSpec &spec;
  const ProtectSpec &protection;
  onnx::GraphOp graph;
  onnx::ReturnOp ret;
  OpBuilder builder;
  Location loc;
  Type unknown;

  SmallVector<Level> levels;
  Value ids;         ///< all of the context, [1, P + n]
  Value past, total; ///< P and P + n, [1]
  SmallVector<std::pair<std::string, Value>> outputs;
  DenseMap<Value, Value> wholes;
  /// K or V of this call: those that the attentions of its level see.
  DenseMap<std::pair<Value, unsigned>, Value> caches;
  std::string error;

  bool fail(Operation *op, const llvm::Twine &why) {
    if (!error.empty())
      return false;
    error = nameOf(op) + why.str();
    return false;
  }

  Value node(StringRef op, ValueRange inputs,
             ArrayRef<NamedAttribute> attributes = {}) {
    return onnx::NodeOp::create(builder, loc, op, "", inputs, unknown,
                                attributes)
        .getResult(0);
  }
  Value ints(ArrayRef<int64_t> values, bool scalar = false) {
    return onnx::createInts(builder, loc, values, scalar);
  }
  NamedAttribute axis(int64_t value) {
    return onnx::intAttr(builder, "axis", value);
  }
  /// Dimension `along` of `value`, [1].
  Value size(Value value, int64_t along) {
    return node("Gather", {node("Shape", value), ints({along})}, {axis(0)});
  }
  /// begin, ..., end - 1, of [1] each.
  Value range(Value begin, Value end) {
    return node("Range", {node("Squeeze", begin), node("Squeeze", end),
                          ints({1}, true)});
  }
  /// The entries of `list` where `condition` holds.
  Value those(Value list, Value condition) {
    return node("Compress", {list, condition}, {axis(0)});
  }
  Value isPlace(Value places) {
    return node("GreaterOrEqual", {places, ints({0})});
  }
  /// Rows of `value` along axis `along`, whose type has them named `name`.
  Value take(Value value, Value rows, int64_t along, Type type,
             StringRef name) {
    Value some = node("Gather", {value, rows}, {axis(along)});
    some.setType(withSize(type, along, ShapedType::kDynamic, name));
    return some;
  }
  /// The rank and the element type of `value`, which may have been made here.
  std::pair<int64_t, Type> formOf(Value value) {
    if (auto type = dyn_cast<RankedTensorType>(value.getType()))
      return {type.getRank(), type.getElementType()};
    const TensorFacts &f = analysis.facts(value);
    return {static_cast<int64_t>(f.shape.size()), f.elementType};
  }
  Value asInt64(Value value) {
    return node("Cast", value, {onnx::intAttr(builder, "to", 7)});
  }

  //===--------------------------------------------------------------------===//
  // State
  //===--------------------------------------------------------------------===//

  /// The input prefill.past.`what`, with `rows` for the name of its rows.
  Value addPast(const llvm::Twine &what, Type type, int64_t along,
                StringRef rows) {
    Value input = graph.getBody().front().addArgument(
        withSize(type, along, ShapedType::kDynamic, ("past_" + rows).str()),
        loc);
    SmallVector<Attribute> names(graph.getInputs().begin(),
                                 graph.getInputs().end());
    names.push_back(builder.getStringAttr("prefill.past." + what));
    graph.setInputsAttr(builder.getArrayAttr(names));
    return input;
  }
  void addPresent(const llvm::Twine &what, Value value, Type type,
                  int64_t along, StringRef rows) {
    value.setType(withSize(type, along, ShapedType::kDynamic, rows));
    outputs.push_back({("prefill.present." + what).str(), value});
  }
  /// Appends `added` to the state `what` of `type`; returns all of it.
  Value append(const llvm::Twine &what, Value added, Type type, int64_t along,
               StringRef rows) {
    Value all = node("Concat", {addPast(what, type, along, rows), added},
                     {axis(along)});
    addPresent(what, all, type, along, rows);
    return all;
  }

  bool checkInterface();
  void makeContext();
  Value getWanted();
  Value makeProtection();
  void makeLevel(const PruneStage &stage);

  //===--------------------------------------------------------------------===//
  // What has a row for every row of the context
  //===--------------------------------------------------------------------===//

  Value whole(Value value, Operation *reader);
  bool attention(AttentionOp op, unsigned number);
  Value cache(Value part, const llvm::Twine &what, TensorLayout layout,
              int64_t heads, int64_t width, unsigned number);
  bool use(const PruneUse &use);
  void redirectSelection(const RowSelection &selection);
};
} // namespace

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
  for (Attribute name : graph.getInputs()) {
    StringRef text = onnx::getEntryName(name).getValue();
    if (text.starts_with("prefill.past."))
      return fail(nullptr, "the model has an input '" + text + "' already");
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

/// The tokens so far, and the first level: the layers that have all rows.
void Reviver::makeContext() {
  StringRef rows = "context";
  Value tokens = plan.tokens;
  Type type = withSize(tokens.getType(), 0, 1);
  tokens.setType(type);
  ids = append("ids", tokens, type, 1, rows);
  total = size(ids, 1);
  past = node("Sub", {total, size(tokens, 1)});
  for (auto [argument, name] :
       llvm::zip_equal(graph.getBody().front().getArguments().take_front(
                           graph.getInputs().size()),
                       graph.getInputs()))
    if (onnx::getEntryName(name).getValue() == "position_ids") {
      Type own = withSize(argument.getType(), 0, 1);
      argument.setType(own);
      wholes[argument] = append("position_ids", argument, own, 1, rows);
      break;
    }
  Level all;
  all.selected = range(ints({0}), total);
  all.computed = all.places = range(past, total);
  all.protect = makeProtection();
  all.seen = all.cached = rows;
  levels.push_back(all);
}

/// The rows that are asked for, [m] i64, numbered in the context (or from its
/// end); null if none but the last one is.
Value Reviver::getWanted() {
  SmallVector<Value> parts;
  for (const RowSelection &s : plan.selections) {
    if (s.kind == RowSelection::Kind::Slice)
      continue;
    Value given = asInt64(node("Reshape", {s.node->getOperand(1), ints({-1})}));
    parts.push_back(node("Where", {node("Less", {given, ints({0})}), given,
                                   node("Add", {given, past})}));
  }
  if (parts.empty())
    return {};
  return parts.size() == 1 ? parts[0] : node("Concat", parts, {axis(0)});
}

/// [1, P + n] bool. Rows of the context are counted, not those of a call.
Value Reviver::makeProtection() {
  ProtectOperands operands;
  operands.wanted = getWanted();
  if (protection.system) {
    Value given = addRowsInput(graph, plan.tokens, "protected_rows");
    operands.given =
        append("protected_rows", given, given.getType(), 1, "context");
  }
  bool wide = analysis.facts(plan.tokens).elementType.isInteger(64);
  return createProtection(builder, loc, wide ? ids : asInt64(ids), protection,
                          operands);
}

/// What is left after `stage`, and what of it is computed in this call.
void Reviver::makeLevel(const PruneStage &stage) {
  const Level before = levels.back();
  const std::string number = std::to_string(stage.layer);
  Level level;
  level.seen = "rows_after_" + number;
  level.fresh = "computed_after_" + number;
  level.cached = "cached_after_" + number;
  Type i64 = builder.getI64Type();
  Type chosen =
      onnx::getTensorType({1, ShapedType::kDynamic}, i64, {"", level.seen});
  AttentionOp scored = stage.attention;
  auto select = SelectRowsOp::create(
      builder, loc, chosen, /*starts=*/Type(), scored.getTokenScore(),
      before.protect, /*alive=*/Value(), /*segment_starts=*/Value(),
      /*peak=*/Value(), /*columns=*/Value(), /*shares=*/Value(),
      builder.getF64FloatAttr(spec.keep), /*global=*/FloatAttr(),
      /*individual=*/FloatAttr(), /*target=*/IntegerAttr(),
      /*left=*/IntegerAttr(), /*skip=*/IntegerAttr(), /*topk=*/IntegerAttr(),
      /*round_down=*/UnitAttr());
  Value rows = node("Reshape", {select.getRows(), ints({-1})});
  Type list = onnx::getTensorType({ShapedType::kDynamic}, i64);
  level.selected = take(before.selected, rows, 0, list, level.seen);
  level.protect =
      node("GatherElements", {before.protect, select.getRows()}, {axis(1)});

  // Where every row of the context is in the pool, or -1.
  Value waiting =
      addPast("waiting." + number, list, 0, "waiting_after_" + number);
  Value pool = node("Concat", {waiting, before.computed}, {axis(0)});
  Value none = node("Expand", {ints({-1}), total});
  auto place = [&](Value held) {
    return node("ScatterElements",
                {none, held, range(ints({0}), node("Shape", held))}, {axis(0)});
  };
  Value inPool = place(pool);
  Value from = node("Gather", {inPool, level.selected}, {axis(0)});
  Value isNew = isPlace(from);
  level.computed = those(level.selected, isNew);
  level.computed.setType(withSize(list, 0, ShapedType::kDynamic, level.fresh));
  level.places = those(range(ints({0}), node("Shape", level.selected)), isNew);
  level.count = node("Shape", level.computed);

  const TensorFacts &cut = analysis.facts(stage.cut);
  Type hidden = onnx::getTensorType(
      {1, ShapedType::kDynamic, *cut.shape[2]->asInt()}, cut.elementType);
  Value all =
      node("Concat",
           {addPast("hidden." + number, hidden, 1, "waiting_after_" + number),
            stage.cut},
           {axis(1)});
  level.hidden = take(all, those(from, isNew), 1, hidden, level.fresh);

  // What was not taken waits.
  Value minus = node("Expand", {ints({-1}), node("Shape", level.selected)});
  Value rest =
      node("ScatterElements", {inPool, level.selected, minus}, {axis(0)});
  Value stays = isPlace(rest);
  std::string left = "left_after_" + number;
  addPresent("waiting." + number, those(range(ints({0}), total), stays), list,
             0, left);
  addPresent("hidden." + number,
             node("Gather", {all, those(rest, stays)}, {axis(1)}), hidden, 1,
             left);

  Value held = append("rows." + number, level.computed, list, 0, level.cached);
  level.order = node("Gather", {place(held), level.selected}, {axis(0)});
  Value told = node("Unsqueeze", {level.selected, ints({0})});
  told.setType(chosen);
  outputs.push_back({"prefill.rows." + number, told});
  levels.push_back(level);
}

/// `value`, which has a row for every token of this call, as it is for all of
/// the context: made of the number of tokens and their positions alone, it is
/// computed once more for all of them. Null with an error where it is made of
/// anything else, as then rows of earlier calls are not there.
Value Reviver::whole(Value value, Operation *reader) {
  if (auto known = wholes.find(value); known != wholes.end())
    return known->second;
  Operation *op = value.getDefiningOp();
  if (op && !op->getNumOperands() && !op->getNumRegions())
    return wholes[value] = value; // A constant.
  auto node = dyn_cast_or_null<onnx::NodeOp>(op);
  if (!node || op->getNumRegions()) {
    fail(reader, "it reads rows that are not made of positions alone, and of "
                 "rows of earlier calls there are none");
    return {};
  }
  // Sizes are those of the tokens.
  for (Value operand : SmallVector<Value>(op->getOperands())) {
    auto shape = operand.getDefiningOp<onnx::NodeOp>();
    if (!shape || !shape.is("Shape") || isa<BlockArgument>(shape.getInput(0)))
      continue;
    const TensorFacts &f = analysis.facts(shape.getInput(0));
    auto [begin, end] = shapeRange(shape, f.shape.size());
    if (f.ranked && findSizes(analysis, shape.getInput(0), begin, end))
      redirectShape(builder, analysis, shape);
  }
  SmallVector<Value> operands;
  for (Value operand : SmallVector<Value>(op->getOperands())) {
    Value all = node.is("Shape") && operand == plan.tokens
                    ? ids
                    : whole(operand, reader);
    if (!all)
      return {};
    operands.push_back(all);
  }
  if (llvm::equal(operands, op->getOperands()))
    return wholes[value] = value;
  auto copy = cast<onnx::NodeOp>(builder.clone(*op));
  copy->setOperands(operands);
  copy.removeLabelAttr();
  copy.removeOutputNamesAttr();
  for (auto [own, all] :
       llvm::zip_equal(op->getResults(), copy->getResults())) {
    all.setType(unknown);
    wholes[own] = all;
  }
  return wholes[value];
}

/// K or V of the rows that level `number` sees.
Value Reviver::cache(Value part, const llvm::Twine &what, TensorLayout layout,
                     int64_t heads, int64_t width, unsigned number) {
  Value &known = caches[{part, number}];
  if (known)
    return known;
  const Level &level = levels[number];
  const int64_t dynamic = ShapedType::kDynamic;
  auto [rank, element] = formOf(part);
  SmallVector<int64_t> shape{1, heads, dynamic, width};
  if (layout == TensorLayout::BSHD)
    shape = rank == 3 ? SmallVector<int64_t>{1, dynamic, heads * width}
                      : SmallVector<int64_t>{1, dynamic, heads, width};
  Type type = onnx::getTensorType(shape, element);
  const int64_t along = rowAxis(layout);
  Value all = append(what, part, type, along, level.cached);
  return known = level.order ? take(all, level.order, along, type, level.seen)
                             : all;
}

/// Attention number `number`, from 0, reads what its level sees.
bool Reviver::attention(AttentionOp op, unsigned number) {
  const unsigned own = plan.attentions[number].second;
  const Level &level = levels[own];
  for (Value part : {op.getK(), op.getV()})
    if (!isa_and_nonnull<FloatType>(formOf(part).second))
      return fail(op, "its element type is not known");
  const std::string layer = std::to_string(number + 1);
  if (op.getCos())
    for (MutableOperandRange slot : {op.getCosMutable(), op.getSinMutable()}) {
      Value table = slot[0].get();
      Value all = whole(table, op);
      if (!all)
        return false;
      int64_t along =
          static_cast<int64_t>(analysis.facts(table).shape.size()) - 2;
      if (level.order)
        all = take(all, level.selected, along, table.getType(), level.seen);
      else if (all != table)
        all.setType(
            withSize(table.getType(), along, ShapedType::kDynamic, level.seen));
      slot.assign(all);
    }
  op.getKMutable().assign(cache(op.getK(), "key." + layer, op.getKLayout(),
                                op.getKvHeads(), op.getHeadDim(), own));
  op.getVMutable().assign(cache(op.getV(), "value." + layer, op.getVLayout(),
                                op.getKvHeads(), op.getVHeadDim(), own));
  op.getQPositionsMutable().assign(level.places);
  op.setAlignment(QueryAlignment::Operand);
  if (Value rotated = op.getRotatedK()) // of the keys, not of new rows
    rotated.setType(
        withSize(rotated.getType(), 2, ShapedType::kDynamic, level.seen));
  return true;
}

/// An operand of an op after a stage has the rows that are computed.
bool Reviver::use(const PruneUse &use) {
  Operation *op = use.operand->getOwner();
  Value value = use.operand->get();
  const Level &level = levels[use.level];
  if (use.level && plan.stages[use.level - 1].cut == value) {
    use.operand->set(level.hidden);
    return true;
  }
  if (auto attention = dyn_cast<AttentionOp>(op)) {
    bool isTable = value == attention.getCos() || value == attention.getSin();
    return isTable || // attention() has seen to it.
           fail(op, "it reads keys or values of a layer that has other rows");
  }
  Value all = whole(value, op);
  if (all)
    use.operand->set(
        take(all, level.computed, use.axis, value.getType(), level.fresh));
  return static_cast<bool>(all);
}

/// A selection of rows of the call finds them among those that are computed.
void Reviver::redirectSelection(const RowSelection &selection) {
  if (selection.kind == RowSelection::Kind::Slice)
    return; // The last row of the context is the last one of every call.
  onnx::NodeOp op = selection.node;
  Value given = op->getOperand(1);
  Type type = unknown;
  if (auto tensor =
          dyn_cast_or_null<RankedTensorType>(analysis.inferredType(given)))
    type = tensor.clone(builder.getI64Type());
  Value wanted = asInt64(given);
  wanted = node("Where", {node("Less", {wanted, ints({0}, true)}), wanted,
                          node("Add", {wanted, node("Squeeze", past)})});
  auto find = onnx::NodeOp::create(
      builder, loc, "FindRows", "prefill.opt",
      {node("Unsqueeze", {levels.back().computed, ints({0})}), total, wanted},
      type);
  op->setOperand(1, find.getResult(0));
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
