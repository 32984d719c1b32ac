//===- PromptWalk.cpp - Whether prompts can be told apart ----------------===//

#include "PromptWalk.h"

using namespace mlir;
using namespace prefill;

bool PromptWalk::fail(Operation *op, const llvm::Twine &why) {
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

/// Whether `value` is a list of numbers and batch sizes.
bool PromptWalk::isSizes(Value value) {
  auto elements = analysis.elements(value);
  return elements && llvm::all_of(*elements, [&](ExprRef e) {
           return e->asInt() || analysis.expressions().proveEqual(e, batch);
         });
}

/// Whether `value` is the same in every call (of one batch entry).
bool PromptWalk::isFixed(Value value) {
  Operation *op = value.getDefiningOp();
  if (!op || isa<AttentionOp>(op) || op->getNumRegions())
    return false;
  if (auto it = known.find(value); it != known.end())
    return it->second;
  bool fixed = isSizes(value) ||
               llvm::all_of(op->getOperands(),
                            [&](Value operand) { return isFixed(operand); });
  return known[value] = fixed;
}

/// The rule for `node`, whose operands without rows must be the same for
/// every prompt: rotary frequencies chosen by the longest position are not.
RowRule PromptWalk::ruleOf(onnx::NodeOp node, unsigned result, RowAxis rows,
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
bool PromptWalk::demand(Value value, RowAxis rows, Operation *reader) {
  auto [it, isNew] = seen.insert({value, rows});
  if (!isNew)
    return it->second == rows ||
           fail(reader, "reads rows of one value in two places");
  work.push_back({value, rows});
  return true;
}

bool PromptWalk::attention(AttentionOp op, Value result, RowAxis rows) {
  if (rows.merged ||
      rows.axis != (result == op.getRotatedK() ? 2 : rowAxis(op.getOLayout())))
    return fail(op, "its rows are not where those of the outputs are");
  if (!op.getCausal())
    return fail(op, "it is not causal");
  if (op.getBias() || op.getKeyMask() || op.getKvLengths() ||
      op.getQSegment() || op.getQOffset())
    return fail(op, "it has a mask or bias of its own: of attention_mask, "
                    "position_ids or ALiBi; export the model without");
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
      if (!demand(table, {static_cast<int64_t>(f.shape.size()) - 2, false}, op))
        return false;
    }
  return demand(op.getQ(), {rowAxis(op.getQLayout()), false}, op) &&
         demand(op.getK(), {rowAxis(op.getKLayout()), false}, op) &&
         demand(op.getV(), {rowAxis(op.getVLayout()), false}, op);
}

/// Range(0, rows, 1).
bool PromptWalk::isPositions(onnx::NodeOp node) {
  auto first = node.getInput(0) ? analysis.uniformNumber(node.getInput(0))
                                : std::nullopt;
  auto step = node.getInput(2) ? analysis.uniformNumber(node.getInput(2))
                               : std::nullopt;
  Type type = analysis.facts(node.getResult(0)).elementType;
  return first == 0.0 && step == 1.0 && type && type.isInteger(64);
}

bool PromptWalk::visit(Value value, RowAxis rows) {
  if (isa<BlockArgument>(value))
    return !rows.merged || fail(nullptr, "an input has merged rows");
  if (auto op = value.getDefiningOp<AttentionOp>())
    return attention(op, value, rows);
  auto node = value.getDefiningOp<onnx::NodeOp>();
  if (!node)
    return fail(value.getDefiningOp(), "a constant has a row for every token");
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

/// Where rows are selected on the way to output `value`: follows what stands
/// after the selection back to it, and makes `value` what it selects from.
bool PromptWalk::findSelection(Value &value, std::optional<int64_t> &axis) {
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
        analysis.expressions().proveEqual(selection->count, count)) {
      if (rows.axis != selection->axis)
        return false;
      value = op->getOperand(0);
      axis = selection->axis;
      return true;
    }
    auto node = dyn_cast<onnx::NodeOp>(op);
    if (!node)
      return false;
    RowRule rule =
        ruleOf(node, cast<OpResult>(value).getResultNumber(), rows, selected);
    if (!rule.refusal.empty() || rule.operands.size() != 1)
      return false;
    value = node->getOperand(rule.operands[0].operand);
    rows = rule.operands[0].rows;
  }
  return false;
}

std::string PromptWalk::run(onnx::GraphOp graph) {
  if (onnx::getOpsetVersion(graph) < 13)
    return "the model's opset is below 13";
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
             "pack; export it without, or promise that it is ones: "
             "-padding=none";
  }
  if (!ids || analysis.facts(ids).shape.size() != 2)
    return "the model has no input 'input_ids' [batch, tokens]";
  batch = analysis.facts(ids).shape[0];
  count = analysis.facts(ids).shape[1];
  ExprContext &ctx = analysis.expressions();
  for (auto [operand, name] :
       llvm::zip_equal(ret.getValues(), ret.getOutputNames())) {
    StringRef text = onnx::getEntryName(name).getValue();
    Value value = operand;
    std::optional<int64_t> axis;
    for (auto [i, size] : llvm::enumerate(analysis.facts(value).shape))
      if (!axis && ctx.proveEqual(size, count))
        axis = i;
    if (!axis && !findSelection(value, axis))
      return ("the output '" + text +
              "' is not proven to have a row for every token, or for those "
              "that are selected")
          .str();
    if (!demand(value, {*axis, false}, ret))
      return error;
  }
  while (!work.empty()) {
    auto [value, rows] = work.pop_back_val();
    if (!visit(value, rows))
      return error;
  }
  if (attentions.empty())
    return "no attention was raised";
  return "";
}

/// A transpose of the second and the third of four dimensions.
static bool swapsHeadsAndRows(onnx::NodeOp node) {
  auto perm =
      node && node.is("Transpose") ? node.getInts("perm") : std::nullopt;
  return perm && *perm == ArrayRef<int64_t>({0, 2, 1, 3});
}

bool prefill::isCacheOf(SymbolicAnalysis &analysis, Value value, AttentionOp op,
                        bool key) {
  if (key && op.getRotary() != RotaryKind::None)
    return value == op.getRotatedK();
  Value part = key ? op.getK() : op.getV();
  if ((key ? op.getKLayout() : op.getVLayout()) == TensorLayout::BHSD)
    return value == part;
  auto moved = value.getDefiningOp<onnx::NodeOp>();
  if (!swapsHeadsAndRows(moved))
    return false;
  Value rows = moved.getInput(0);
  if (rows == part)
    return analysis.facts(part).shape.size() == 4;
  auto split = rows.getDefiningOp<onnx::NodeOp>();
  if (!split || !split.is("Reshape") || split.getInput(0) != part)
    return false;
  ArrayRef<ExprRef> shape(analysis.facts(rows).shape);
  ExprRef before = analysis.dim(part, 1);
  return shape.size() == 4 && before &&
         shape[2]->isInt(static_cast<int64_t>(op.getKvHeads())) &&
         shape[3]->isInt(
             static_cast<int64_t>(key ? op.getHeadDim() : op.getVHeadDim())) &&
         analysis.expressions().proveEqual(shape[1], before);
}

void prefill::addMetadata(ModuleOp module, StringRef key, StringRef value) {
  Builder builder(module.getContext());
  StringRef name = onnx::ONNXDialect::kMetadata;
  SmallVector<Attribute> metadata;
  if (auto known = module->getAttrOfType<ArrayAttr>(name))
    metadata.append(known.begin(), known.end());
  metadata.push_back(builder.getStringAttr(key));
  metadata.push_back(builder.getStringAttr(value));
  module->setAttr(name, builder.getArrayAttr(metadata));
}

Value prefill::addIntInput(onnx::GraphOp graph, StringRef name,
                           ArrayRef<int64_t> shape, ArrayRef<StringRef> dims) {
  Builder builder(graph.getContext());
  Value input = graph.getBody().front().addArgument(
      onnx::getTensorType(shape, builder.getI64Type(), dims), graph.getLoc());
  SmallVector<Attribute> names(graph.getInputs().begin(),
                               graph.getInputs().end());
  names.push_back(builder.getStringAttr(name));
  graph.setInputsAttr(builder.getArrayAttr(names));
  return input;
}
