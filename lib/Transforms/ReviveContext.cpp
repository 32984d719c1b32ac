//===- ReviveContext.cpp - The context, and what is left of it
//-------------===//
//
// The rows so far, which of them the layers after each stage see and compute in
// a call, and which wait (ReviveRows.cpp).
//
//===----------------------------------------------------------------------===//

#include "Protection.h"
#include "ReviveRows.h"

using namespace mlir;
using namespace prefill;

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
