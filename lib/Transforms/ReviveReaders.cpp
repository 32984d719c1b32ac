//===- ReviveReaders.cpp - What reads rows of the whole context
//------------===//
//
// Attentions read the cache, other ops those rows of the context that their
// layers compute (ReviveRows.cpp).
//
//===----------------------------------------------------------------------===//

#include "ReviveRows.h"

using namespace mlir;
using namespace prefill;

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
