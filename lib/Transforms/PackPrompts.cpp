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

#include "RowPlan.h"
#include "prefill/Transforms/Passes.h"

#include "llvm/ADT/SetVector.h"

namespace prefill {
#define GEN_PASS_DEF_PACKPROMPTS
#include "prefill/Transforms/Passes.h.inc"
} // namespace prefill

using namespace mlir;
using namespace prefill;

namespace {
/// Walks from the outputs to what their rows are made of.
struct Walk {
  Walk(SymbolicAnalysis &analysis, ExprRef count)
      : analysis(analysis), count(count) {}

  SymbolicAnalysis &analysis;
  ExprRef count; ///< rows of the pack
  llvm::SetVector<Operation *> attentions;
  llvm::SetVector<Operation *> ranges; ///< position ids made by the model
  DenseMap<Value, RowAxis> seen;
  SmallVector<std::pair<Value, RowAxis>> work;
  std::string error;

  bool fail(Operation *op, const llvm::Twine &why) {
    if (error.empty()) {
      auto node = dyn_cast_or_null<onnx::NodeOp>(op);
      std::string at;
      if (auto attention = dyn_cast_or_null<AttentionOp>(op))
        at = "attention '" + attention.getLayer().value_or("").str() + "': ";
      else if (node)
        at = (node.getOpType() + " '" +
              (node.getNodeName().empty() ? node.getOutputName(0)
                                          : node.getNodeName()) +
              "': ")
                 .str();
      error = at + why.str();
    }
    return false;
  }

  DenseMap<Value, bool> known; ///< results of isFixed

  /// Whether `value` is the same in every call.
  bool isFixed(Value value) {
    Operation *op = value.getDefiningOp();
    if (!op || isa<AttentionOp>(op) || op->getNumRegions())
      return false;
    if (auto it = known.find(value); it != known.end())
      return it->second;
    bool fixed = llvm::all_of(op->getOperands(),
                              [&](Value operand) { return isFixed(operand); });
    return known[value] = fixed;
  }

  /// The rule for `node`, whose operands without rows must be the same for
  /// every prompt: rotary frequencies chosen by the longest position are not.
  RowRule ruleOf(onnx::NodeOp node, unsigned result, RowAxis rows,
                 ExprRef number) {
    RowRule rule = findRowRule(analysis, node, result, rows, number);
    for (auto [i, operand] : llvm::enumerate(node->getOperands())) {
      bool hasRows = llvm::any_of(
          rule.operands, [&](const RowOperand &o) { return o.operand == i; });
      // A Reshape's target is about shapes: the rule has looked at it.
      if (rule.refusal.empty() && !hasRows && !(node.is("Reshape") && i == 1) &&
          !isFixed(operand))
        rule.refusal = "an operand of it is about the whole sequence";
    }
    return rule;
  }

  /// `value` has its rows at `axis`.
  bool demand(Value value, RowAxis rows, Operation *reader) {
    auto [it, isNew] = seen.insert({value, rows});
    if (!isNew)
      return it->second == rows ||
             fail(reader, "reads rows of one value in two places");
    work.push_back({value, rows});
    return true;
  }

  bool attention(AttentionOp op, Value result, RowAxis rows) {
    if (rows.merged ||
        rows.axis !=
            (result == op.getRotatedK() ? 2 : rowAxis(op.getOLayout())))
      return fail(op, "its rows are not where those of the outputs are");
    if (!op.getCausal())
      return fail(op, "it is not causal");
    if (op.getBias() || op.getKeyMask() || op.getKvLengths() ||
        op.getQSegment() || op.getQOffset())
      return fail(op, "it has a mask or bias of its own; export the model "
                      "without attention_mask");
    if (op.getLse() && !op.getLse().use_empty())
      return fail(op, "its lse is read");
    ExprContext &ctx = analysis.expressions();
    ExprRef keys = analysis.dim(op.getK(), rowAxis(op.getKLayout()));
    if (!keys || !ctx.proveEqual(keys, count))
      return fail(op, "its keys are not proven to be those of the prompt alone "
                      "(a KV cache is not packed)");
    attentions.insert(op);
    if (op.getCos())
      for (Value table : {op.getCos(), op.getSin()}) {
        const TensorFacts &f = analysis.facts(table);
        if (!f.ranked || f.shape.size() < 2 ||
            !ctx.proveEqual(f.shape[f.shape.size() - 2], count))
          return fail(op, "its rotary tables are not proven to have a row for "
                          "every token");
        if (!demand(table, {static_cast<int64_t>(f.shape.size()) - 2, false},
                    op))
          return false;
      }
    return demand(op.getQ(), {rowAxis(op.getQLayout()), false}, op) &&
           demand(op.getK(), {rowAxis(op.getKLayout()), false}, op) &&
           demand(op.getV(), {rowAxis(op.getVLayout()), false}, op);
  }

  /// Range(0, rows, 1).
  bool isPositions(onnx::NodeOp node) {
    auto first = node.getInput(0) ? analysis.uniformNumber(node.getInput(0))
                                  : std::nullopt;
    auto step = node.getInput(2) ? analysis.uniformNumber(node.getInput(2))
                                 : std::nullopt;
    Type type = analysis.facts(node.getResult(0)).elementType;
    return first == 0.0 && step == 1.0 && type && type.isInteger(64);
  }

  bool visit(Value value, RowAxis rows) {
    if (isa<BlockArgument>(value))
      return !rows.merged || fail(nullptr, "an input has merged rows");
    if (auto op = value.getDefiningOp<AttentionOp>())
      return attention(op, value, rows);
    auto node = value.getDefiningOp<onnx::NodeOp>();
    if (!node)
      return fail(value.getDefiningOp(),
                  "a constant has a row for every token");
    if (node.is("Range")) {
      if (!isPositions(node))
        return fail(node, "it is not understood as positions from 0 on");
      ranges.insert(node);
      return true;
    }
    RowRule rule =
        ruleOf(node, cast<OpResult>(value).getResultNumber(), rows, count);
    if (!rule.refusal.empty())
      return fail(node, rule.refusal);
    for (const RowOperand &operand : rule.operands)
      if (!demand(node->getOperand(operand.operand), operand.rows, node))
        return false;
    return true;
  }

  bool run() {
    while (!work.empty()) {
      auto [value, rows] = work.pop_back_val();
      if (!visit(value, rows))
        return false;
    }
    return true;
  }
};

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
    if (onnx::getOpsetVersion(graph) < 13)
      return "the model's opset is below 13";
    SymbolicAnalysis analysis(graph);
    Block &body = graph.getBody().front();
    auto ret = cast<onnx::ReturnOp>(body.getTerminator());
    // The tokens: the only input with rows that may be given.
    Value ids;
    for (auto [argument, name] :
         llvm::zip_equal(body.getArguments(), graph.getInputs())) {
      StringRef text = onnx::getEntryName(name).getValue();
      if (text == "input_ids")
        ids = argument;
      else if (text == "segment_starts")
        return "the model has an input 'segment_starts' already";
      else if (text == "attention_mask" && !argument.use_empty())
        return "the model reads 'attention_mask', which has no meaning in a "
               "pack; export it without";
    }
    if (!ids || analysis.facts(ids).shape.size() != 2)
      return "the model has no input 'input_ids' [batch, tokens]";
    Walk walk(analysis, analysis.facts(ids).shape[1]);
    ExprContext &ctx = analysis.expressions();
    for (auto [operand, name] :
         llvm::zip_equal(ret.getValues(), ret.getOutputNames())) {
      StringRef text = onnx::getEntryName(name).getValue();
      Value value = operand;
      std::optional<int64_t> axis;
      for (auto [i, size] : llvm::enumerate(analysis.facts(value).shape))
        if (!axis && ctx.proveEqual(size, walk.count))
          axis = i;
      if (!axis && !findSelection(analysis, value, walk, axis))
        return ("the output '" + text +
                "' is not proven to have a row for every token, or for those "
                "that are selected")
            .str();
      if (!walk.demand(value, {*axis, false}, ret))
        return walk.error;
    }
    if (!walk.run())
      return walk.error;
    if (walk.attentions.empty())
      return "no attention was raised";
    rewrite(graph, analysis, walk);
    return "";
  }

  /// Where rows are selected on the way to output `value`: follows what stands
  /// after the selection back to it, and makes `value` what it selects from.
  bool findSelection(SymbolicAnalysis &analysis, Value &value, Walk &walk,
                     std::optional<int64_t> &axis) {
    // Everything after it only needs to treat the selected rows one by one.
    const TensorFacts &f = analysis.facts(value);
    if (!f.ranked || f.shape.size() < 2)
      return false;
    RowAxis rows{static_cast<int64_t>(f.shape.size()) - 2, false};
    ExprRef selected = f.shape[rows.axis];
    for (unsigned steps = 0; steps < 64; ++steps) {
      Operation *op = value.getDefiningOp();
      if (!op)
        return false;
      if (auto selection = matchSelection(analysis, op);
          selection &&
          analysis.expressions().proveEqual(selection->count, walk.count)) {
        if (rows.axis != selection->axis)
          return false;
        value = op->getOperand(0);
        axis = selection->axis;
        return true;
      }
      auto node = dyn_cast<onnx::NodeOp>(op);
      if (!node)
        return false;
      RowRule rule = walk.ruleOf(node, cast<OpResult>(value).getResultNumber(),
                                 rows, selected);
      if (!rule.refusal.empty() || rule.operands.size() != 1)
        return false;
      value = node->getOperand(rule.operands[0].operand);
      rows = rule.operands[0].rows;
    }
    return false;
  }

  void rewrite(onnx::GraphOp graph, SymbolicAnalysis &analysis, Walk &walk) {
    Block &body = graph.getBody().front();
    OpBuilder builder(graph.getContext());
    Location loc = graph.getLoc();
    Type unknown = onnx::UnknownType::get(graph.getContext());
    Value starts = body.addArgument(onnx::getTensorType({ShapedType::kDynamic},
                                                        builder.getI64Type(),
                                                        {"segments_and_one"}),
                                    loc);
    SmallVector<Attribute> names(graph.getInputs().begin(),
                                 graph.getInputs().end());
    names.push_back(builder.getStringAttr("segment_starts"));
    graph.setInputsAttr(builder.getArrayAttr(names));
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
