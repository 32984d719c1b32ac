//===- RowLiveness.cpp - Only the rows that reach the outputs -------------===//
//
// A model gives logits for few rows and computes its last layer for all:
//
//   %y = prefill.attention %q, %k, %v {causal}      // [b, s, d]
//   %z = onnx.node "Add"(%x, %y)
//   %l = onnx.node "Gather"(%z, %rows) {axis = 1}
// becomes
//   %q1 = onnx.node "Gather"(%q, %rows) {axis = 1}  // [b, rows, d]
//   %x1 = onnx.node "Gather"(%x, %rows) {axis = 1}
//   %y = prefill.attention %q1, %k, %v q_positions(%rows) {causal}
//   %l = onnx.node "Add"(%x1, %y)
//
// RowPlan.cpp finds what shrinks, this file rewrites it.
//
//===----------------------------------------------------------------------===//

#include "mlir/Analysis/TopologicalSortUtils.h"
#include "mlir/IR/Remarks.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"

#include "RowPlan.h"
#include "prefill/Transforms/Passes.h"

namespace prefill {
#define GEN_PASS_DEF_ROWLIVENESS
#include "prefill/Transforms/Passes.h.inc"
} // namespace prefill

using namespace mlir;
using namespace prefill;

/// The name of `op` for a reader.
static std::string describe(Operation *op) {
  if (auto attention = dyn_cast<AttentionOp>(op))
    return ("attention '" + attention.getLayer().value_or("") + "'").str();
  auto node = dyn_cast<onnx::NodeOp>(op);
  if (!node)
    return op->getName().getStringRef().str();
  StringRef name =
      node.getNodeName().empty() ? node.getOutputName(0) : node.getNodeName();
  return (node.getOpType() + " '" + name + "'").str();
}

Type prefill::withSize(Type type, int64_t axis, int64_t size, StringRef name) {
  auto ranked = dyn_cast<RankedTensorType>(type);
  if (!ranked || axis >= ranked.getRank())
    return type;
  SmallVector<int64_t> shape(ranked.getShape());
  SmallVector<StringRef> names;
  for (int64_t i = 0; i < ranked.getRank(); ++i)
    names.push_back(i == axis ? name : onnx::getDimName(type, i));
  shape[axis] = size;
  return onnx::getTensorType(shape, ranked.getElementType(), names);
}

//===----------------------------------------------------------------------===//
// Shapes
//===----------------------------------------------------------------------===//

static Value makeNode(OpBuilder &builder, StringRef op, ValueRange inputs,
                      ArrayRef<NamedAttribute> attributes = {}) {
  return onnx::NodeOp::create(builder, builder.getUnknownLoc(), op, "", inputs,
                              onnx::UnknownType::get(builder.getContext()),
                              attributes)
      .getResult(0);
}

void prefill::retargetReshape(OpBuilder &builder, SymbolicAnalysis &analysis,
                              onnx::NodeOp op, RowAxis rows,
                              llvm::function_ref<Value()> count) {
  auto ints = [&](ArrayRef<int64_t> values) {
    return onnx::createInts(builder, op.getLoc(), values);
  };
  Value shape = op.getInput(1);
  int64_t rank = analysis.facts(op.getResult(0)).shape.size();
  auto known = analysis.constantInts(shape);
  if (known && (*known)[rows.axis] == -1)
    return;
  // -1 may stand for one size only.
  if (known && !llvm::is_contained(*known, -1)) {
    (*known)[rows.axis] = -1;
    op->setOperand(1, ints(*known));
    return;
  }
  Value number = rows.merged ? ints({-1}) : count();
  SmallVector<Value> parts;
  if (rows.axis > 0)
    parts.push_back(
        makeNode(builder, "Slice", {shape, ints({0}), ints({rows.axis})}));
  parts.push_back(number);
  if (rows.axis + 1 < rank)
    parts.push_back(makeNode(builder, "Slice",
                             {shape, ints({rows.axis + 1}), ints({rank})}));
  op->setOperand(1, makeNode(builder, "Concat", parts,
                             {onnx::intAttr(builder, "axis", 0)}));
}

void prefill::redirectShape(OpBuilder &builder, SymbolicAnalysis &analysis,
                            onnx::NodeOp shape) {
  Location loc = shape.getLoc();
  Value value = shape.getInput(0);
  auto [begin, end] = shapeRange(shape, analysis.facts(value).shape.size());
  auto sizes = findSizes(analysis, value, begin, end);
  NamedAttribute first = onnx::intAttr(builder, "axis", 0);
  SmallVector<Value> parts;
  for (auto [input, number] : *sizes)
    parts.push_back(input ? makeNode(builder, "Gather",
                                     {makeNode(builder, "Shape", input),
                                      onnx::createInts(builder, loc, {number})},
                                     {first})
                          : onnx::createInts(builder, loc, {number}));
  Value all = parts.empty()
                  ? makeNode(builder, "Shape",
                             onnx::createInts(builder, loc, {0}, true))
                  : makeNode(builder, "Concat", parts, {first});
  all.setType(shape.getResult(0).getType());
  shape.getResult(0).replaceAllUsesWith(all);
}

void prefill::eraseDeadNodes(onnx::GraphOp graph) {
  for (Operation &op :
       llvm::make_early_inc_range(llvm::reverse(graph.getBody().front())))
    if (isa<onnx::NodeOp, onnx::InitializerOp, onnx::AbsentOp>(op) &&
        isOpTriviallyDead(&op))
      op.erase();
}

//===----------------------------------------------------------------------===//
// Rewriting
//===----------------------------------------------------------------------===//

namespace {
/// Carries out one plan.
struct Rewriter {
  SymbolicAnalysis &analysis;
  RowSelection selection;
  const RowPlan &plan;
  OpBuilder builder;
  Location loc;
  Type unknown;
  DenseMap<std::pair<Value, int64_t>, Value> selected;
  Value indices, positions, count;

  Rewriter(SymbolicAnalysis &analysis, RowSelection selection,
           const RowPlan &plan)
      : analysis(analysis), selection(selection), plan(plan),
        builder(selection.node), loc(selection.node.getLoc()),
        unknown(onnx::UnknownType::get(builder.getContext())) {}

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
  /// Dimension `axis` of `value` as a vector of one number.
  Value size(Value value, int64_t axis) {
    return node("Gather", {node("Shape", value), ints({axis})},
                {this->axis(0)});
  }

  /// The number of rows before the selection, [1].
  Value getCount() {
    if (!count)
      count = size(plan.begin, plan.beginAxis);
    return count;
  }

  /// The selected rows as non-negative numbers, [rows] i64.
  Value getPositions() {
    if (positions)
      return positions;
    Value zero = ints({0});
    if (selection.kind == RowSelection::Kind::Slice) {
      Value all = node("Range", {ints({0}, true), node("Squeeze", {getCount()}),
                                 ints({1}, true)});
      return positions = slice(all, 0);
    }
    Value given = node("Cast", {getIndices()},
                       {onnx::intAttr(builder, "to", /*INT64=*/7)});
    Value fromEnd = node("Add", {given, getCount()});
    return positions =
               node("Where", {node("Less", {given, zero}), fromEnd, given});
  }

  /// The indices of a Gather or GatherND, [rows].
  Value getIndices() {
    if (!indices)
      indices = node("Reshape", {selection.node.getInput(1), ints({-1})});
    return indices;
  }

  Value slice(Value value, int64_t along) {
    SmallVector<Value> inputs{value, selection.node.getInput(1),
                              selection.node.getInput(2), ints({along})};
    if (Value steps = selection.node.getInput(4))
      inputs.push_back(steps);
    return node("Slice", inputs);
  }

  /// The selected rows of `value`.
  Value select(Value value, int64_t along) {
    Value &known = selected[{value, along}];
    if (!known) {
      known = selection.kind == RowSelection::Kind::Slice
                  ? slice(value, along)
                  : node("Gather", {value, getIndices()}, {axis(along)});
      known.setType(withSize(value.getType(), along, ShapedType::kDynamic));
    }
    return known;
  }

  /// The number of selected rows, [1].
  Value getNewCount() {
    return node("Shape",
                {selection.kind == RowSelection::Kind::Slice ? getPositions()
                                                             : getIndices()});
  }

  void attention(AttentionOp op) {
    bool placed = op.getCausal() || op.getWindowLeft() || op.getWindowRight() ||
                  op.getRotary() != RotaryKind::None || op.getSegmentStarts();
    if (!placed)
      return;
    ExprContext &ctx = analysis.expressions();
    int64_t keyAxis = rowAxis(op.getKLayout());
    ExprRef keys = analysis.dim(op.getK(), keyAxis);
    bool square = keys && ctx.proveEqual(keys, selection.count);
    auto end = QueryAlignmentAttr::get(op.getContext(), QueryAlignment::End);
    switch (op.getAlignment()) {
    case QueryAlignment::End:
      if (selection.last && !op.getSegmentStarts())
        return;
      break;
    case QueryAlignment::Start:
      if (selection.last && square)
        return op.setAlignmentAttr(end);
      break;
    case QueryAlignment::Operand:
      break;
    }
    Value rows = getPositions();
    if (Value given = op.getQPositions()) {
      rows = node("Gather", {given, getPositions()}, {axis(-1)});
    } else if (Value offset = op.getQOffset()) {
      Value wide = node("Cast", {offset}, {onnx::intAttr(builder, "to", 7)});
      rows = node("Add", {node("Reshape", {wide, ints({-1, 1})}), rows});
      op.getQOffsetMutable().clear();
    } else if (op.getAlignment() == QueryAlignment::End && !square) {
      rows = node("Add",
                  {node("Sub", {size(op.getK(), keyAxis), getCount()}), rows});
    }
    op.getQPositionsMutable().assign(rows);
    op.setAlignmentAttr(
        QueryAlignmentAttr::get(op.getContext(), QueryAlignment::Operand));
  }

  void run() {
    for (auto &[op, operands] : plan.shrunk) {
      if (auto reshaped = dyn_cast<onnx::NodeOp>(op);
          reshaped && reshaped.is("Reshape"))
        retargetReshape(builder, analysis, reshaped,
                        plan.rows.lookup(op->getResult(0)),
                        [&] { return getNewCount(); });
      if (auto core = dyn_cast<AttentionOp>(op))
        attention(core);
    }
    for (onnx::NodeOp shape : plan.shapes)
      redirectShape(builder, analysis, shape);
    // What is selected keeps its own value for others; results shrink last.
    for (auto &[op, operands] : plan.shrunk)
      for (const RowOperand &operand : operands)
        if (Value v = op->getOperand(operand.operand); !plan.rows.contains(v))
          op->setOperand(operand.operand, select(v, operand.rows.axis));
    for (auto [value, rows] : plan.rows)
      value.setType(withSize(value.getType(), rows.axis, ShapedType::kDynamic));
    onnx::NodeOp root = selection.node;
    Value data = root.getInput(0);
    bool scalar = selection.kind == RowSelection::Kind::Gather &&
                  analysis.facts(root.getInput(1)).shape.empty();
    if (scalar) {
      root->setOperand(1, ints({0}, true)); // The axis goes, as before.
    } else {
      // An attention's type must stay known.
      if (isa<RankedTensorType>(root.getResult(0).getType()))
        data.setType(root.getResult(0).getType());
      root.getResult(0).replaceAllUsesWith(data);
      root->erase();
    }
  }
};
} // namespace

//===----------------------------------------------------------------------===//
// -logits
//===----------------------------------------------------------------------===//

std::string prefill::selectLogits(onnx::GraphOp graph, StringRef which) {
  SymbolicAnalysis analysis(graph);
  Block &body = graph.getBody().front();
  auto ret = cast<onnx::ReturnOp>(body.getTerminator());
  OpOperand *logits = nullptr;
  for (auto [name, operand] :
       llvm::zip_equal(ret.getOutputNames(), ret->getOpOperands()))
    if (onnx::getEntryName(name).getValue() == "logits")
      logits = &operand;
  if (!logits)
    return "the model has no output 'logits'";
  Value value = logits->get();
  const TensorFacts &f = analysis.facts(value);
  if (!f.ranked || f.shape.size() != 3 || !value.getDefiningOp())
    return "the output 'logits' is not known to be [batch, rows, vocabulary]";
  bool all = llvm::any_of(body.getArguments(), [&](Value input) {
    ArrayRef<ExprRef> shape(analysis.facts(input).shape);
    return (shape.size() == 2 || shape.size() == 3) && // embeddings
           analysis.expressions().proveEqual(shape[1], f.shape[1]);
  });
  if (!all)
    return "the output 'logits' is not proven to have a row for every token";
  OpBuilder builder(ret);
  Location loc = value.getLoc();
  SmallVector<Value> inputs{value};
  SmallVector<NamedAttribute> attributes;
  if (which == "rows") {
    auto type = onnx::getTensorType({ShapedType::kDynamic},
                                    builder.getI64Type(), {"logits_rows"});
    inputs.push_back(body.addArgument(type, loc));
    SmallVector<Attribute> names(graph.getInputs().begin(),
                                 graph.getInputs().end());
    names.push_back(builder.getStringAttr("logits_rows"));
    graph.setInputsAttr(builder.getArrayAttr(names));
    attributes.push_back(onnx::intAttr(builder, "axis", 1));
  } else {
    for (int64_t v : {int64_t(-1), INT64_MAX, int64_t(1)})
      inputs.push_back(onnx::createInts(builder, loc, {v}));
  }
  Type type = analysis.inferredType(value);
  type = which == "rows"
             ? withSize(type, 1, ShapedType::kDynamic, "logits_rows")
             : withSize(type, 1, 1);
  auto node =
      onnx::NodeOp::create(builder, loc, which == "rows" ? "Gather" : "Slice",
                           "", inputs, type, attributes);
  node.setLabelAttr(builder.getStringAttr("prefill.logits"));
  logits->set(node.getResult(0));
  return "";
}

//===----------------------------------------------------------------------===//
// The pass
//===----------------------------------------------------------------------===//

namespace {
struct RowLivenessPass final : prefill::impl::RowLivenessBase<RowLivenessPass> {
  using Base::Base;
  RowLivenessPass(RowLivenessOptions options, LivenessReport &report)
      : Base(std::move(options)), report(&report) {}

  void runOnOperation() override {
    onnx::GraphOp graph = onnx::getMainGraph(getOperation());
    if (!graph)
      return;
    if (logits != "all") {
      std::string error = logits == "last" || logits == "rows"
                              ? selectLogits(graph, logits)
                              : "expected all, last or rows";
      if (!error.empty()) {
        emitError(UnknownLoc::get(&getContext()))
            << "-logits=" << logits << ": " << error;
        return signalPassFailure();
      }
      if (report)
        report->logits = logits;
    }
    Block &body = graph.getBody().front();
    if (report)
      report->attentions = llvm::range_size(body.getOps<AttentionOp>());
    // Range and Slice with operands need it.
    if (onnx::getOpsetVersion(graph) < 11)
      return;
    llvm::DenseSet<Operation *> done;
    while (rewriteNext(graph, done))
      ;
  }

private:
  LivenessReport *report = nullptr;

  /// Carries out the first plan that saves something; `done` are selections
  /// that were looked at.
  bool rewriteNext(onnx::GraphOp graph, llvm::DenseSet<Operation *> &done) {
    SymbolicAnalysis analysis(graph);
    for (Operation &op : graph.getBody().front()) {
      if (done.contains(&op))
        continue;
      auto selection = matchSelection(analysis, &op);
      if (!selection)
        continue;
      done.insert(&op);
      RowPlan plan = planRows(analysis, *selection);
      if (!plan.saves()) {
        if (plan.stop && !selection->count->asInt())
          remark::missed(
              op.getLoc(),
              remark::RemarkOpts::name("AllRows").category("row-liveness"))
              << "all rows are computed before " + describe(&op) + ": " +
                     describe(plan.stop) + ": " + plan.why;
        continue;
      }
      tell(&op, *selection, plan);
      Rewriter rewriter(analysis, *selection, plan);
      rewriter.run();
      for (auto &[key, value] : rewriter.selected)
        done.insert(value.getDefiningOp()); // As far up as they go.
      sortTopologically(&graph.getBody().front());
      eraseDeadNodes(graph);
      return true;
    }
    return false;
  }

  void tell(Operation *op, RowSelection selection, const RowPlan &plan) {
    LivenessReport::Selection entry;
    entry.node = describe(op);
    entry.rows = "last rows";
    if (!selection.last) {
      // Named by the graph input, if it is one in another shape.
      Value from = selection.node.getInput(1);
      while (auto view = from.getDefiningOp<onnx::NodeOp>()) {
        if (!view.is("Unsqueeze") && !view.is("Reshape") && !view.is("Cast"))
          break;
        from = view.getInput(0);
      }
      StringRef name = onnx::getValueName(from);
      entry.rows = name.empty() ? "chosen rows" : ("rows '" + name + "'").str();
    }
    entry.nodes = plan.shrunk.size();
    for (auto &[shrunk, operands] : llvm::reverse(plan.shrunk))
      if (auto attention = dyn_cast<AttentionOp>(shrunk))
        entry.layers.push_back(attention.getLayer().value_or("").str());
    numNodes += entry.nodes;
    numAttentions += entry.layers.size();
    std::string text = entry.rows + " only: " + std::to_string(entry.nodes) +
                       " nodes before " + entry.node;
    if (!entry.layers.empty())
      text += ", queries of attention " + llvm::join(entry.layers, ", ");
    remark::passed(
        op->getLoc(),
        remark::RemarkOpts::name("FewerRows").category("row-liveness"))
        << text;
    if (report)
      report->selections.push_back(std::move(entry));
  }
};
} // namespace

std::unique_ptr<Pass> prefill::createRowLiveness(RowLivenessOptions options,
                                                 LivenessReport &report) {
  return std::make_unique<RowLivenessPass>(std::move(options), report);
}
