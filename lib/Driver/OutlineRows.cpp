//===- OutlineRows.cpp - Ops on rows to nodes of the plug-in --------------===//

#include "prefill/Dialect/ONNX/ONNX.h"
#include "prefill/Dialect/Prefill/Prefill.h"
#include "prefill/Driver/Outline.h"
#include "llvm/ADT/STLExtras.h"

#include <cmath>

using namespace mlir;
using namespace prefill;

/// Replaces `op` by the node `name` with the same operands and results; null
/// operands are omitted.
static void replace(Operation *op, StringRef name, ArrayRef<Value> operands,
                    ArrayRef<NamedAttribute> attributes) {
  OpBuilder builder(op);
  Value absent;
  SmallVector<Value> inputs;
  for (Value operand : operands) {
    if (!operand && !absent)
      absent = onnx::createAbsent(builder, op->getLoc());
    inputs.push_back(operand ? operand : absent);
  }
  while (inputs.back() == absent)
    inputs.pop_back();
  if (absent && !llvm::is_contained(inputs, absent))
    absent.getDefiningOp()->erase();
  auto node =
      onnx::NodeOp::create(builder, op->getLoc(), name, "prefill.opt", inputs,
                           SmallVector<Type>(op->getResultTypes()), attributes);
  // Results that nothing reads are left out, but not the first one, which all
  // of these ops have to give: without names all are given.
  SmallVector<StringRef> unnamed(op->getNumResults());
  if (!op->getResult(0).use_empty())
    node.setOutputNamesAttr(builder.getStrArrayAttr(unnamed));
  op->replaceAllUsesWith(node->getResults());
  op->erase();
}

/// Ordinary operators of every opset from 13 on: the sum of squares over all
/// axes but batch and rows.
static void outlineKeyNorm(KeyNormOp op) {
  OpBuilder b(op);
  Type unknown = onnx::UnknownType::get(b.getContext());
  auto node = [&](StringRef name, ValueRange inputs,
                  ArrayRef<NamedAttribute> attributes = {}) -> Value {
    return onnx::NodeOp::create(b, op.getLoc(), name, "", inputs, unknown,
                                attributes)
        .getResult(0);
  };
  // [b,t,h,d] and [b,t,h*d] become [b,t,-1], [b,h,t,d] is left.
  const bool headsFirst = op.getKLayout() == TensorLayout::BHSD;
  Value k = op.getK();
  if (!headsFirst)
    k = node("Reshape", {k, onnx::createInts(b, op.getLoc(), {0, 0, -1})});
  k = node("Cast", k, {onnx::intAttr(b, "to", 1)});
  Value axes = headsFirst ? onnx::createInts(b, op.getLoc(), {1, 3})
                          : onnx::createInts(b, op.getLoc(), {2});
  Value sum = node("ReduceSum", {node("Mul", {k, k}), axes},
                   {onnx::intAttr(b, "keepdims", 0)});
  Value score = node("Neg", sum);
  score.setType(op.getScore().getType());
  op.getScore().replaceAllUsesWith(score);
  op.erase();
}

/// `0-16,49150-49151`.
static std::string rangesText(ArrayRef<int64_t> ranges) {
  std::string text;
  for (size_t i = 0; i < ranges.size(); i += 2)
    text += (i ? "," : "") + std::to_string(ranges[i]) + "-" +
            std::to_string(ranges[i + 1]);
  return text;
}

static Value castTo(OpBuilder &b, Value value, int64_t to, Type type) {
  return onnx::NodeOp::create(b, value.getLoc(), "Cast", "", {value}, type,
                              {onnx::intAttr(b, "to", to)})
      .getResult(0);
}

/// `value`, which may be null, as float32, which the plug-in reads.
static Value asFloat(OpBuilder &b, Value value) {
  Type element = value ? onnx::getElementType(value.getType()) : Type();
  if (!value || (element && element.isF32()))
    return value;
  return castTo(b, value, /*FLOAT=*/1, onnx::UnknownType::get(b.getContext()));
}

static NamedAttribute number(Builder &b, StringRef name, int64_t value) {
  return onnx::stringAttr(b, name, std::to_string(value));
}

static void outlineMerge(MergeWindowsOp merge) {
  OpBuilder b(merge);
  // As whole numbers: every machine rounds those alike.
  const int64_t similarity =
      std::llround(merge.getSimilarity().convertToDouble() * 1e6);
  Value x = asFloat(b, merge.getX());
  if (x != merge.getX()) {
    // What follows gets the type that it had; CastLike is of opset 15.
    Type element = onnx::getElementType(merge.getX().getType());
    const int64_t to = element.isF16() ? 10 : element.isF64() ? 11 : 16;
    b.setInsertionPointAfter(merge);
    Value back = castTo(b, merge.getY(), to, merge.getY().getType());
    merge.getY().replaceAllUsesExcept(back, back.getDefiningOp());
    merge.getY().setType(onnx::UnknownType::get(b.getContext()));
    b.setInsertionPoint(merge);
  }
  replace(merge, "MergeWindows", {x, merge.getProtect()},
          {number(b, "grid", merge.getGrid()),
           number(b, "height", merge.getHeight()),
           number(b, "width", merge.getWidth()),
           number(b, "skip", merge.getSkip()),
           number(b, "similarity", similarity)});
}

static void outlineFlow(FlowScoreOp flow) {
  OpBuilder b(flow);
  // The bits of the scale: text would be read by the host's locale.
  auto bits = [](const APFloat &value) -> int64_t {
    return value.bitcastToAPInt().getZExtValue();
  };
  replace(flow, "FlowScore",
          {asFloat(b, flow.getQ()), asFloat(b, flow.getK()),
           asFloat(b, flow.getV()), flow.getPrevious(), flow.getColumns(),
           flow.getAlive(), asFloat(b, flow.getCos()),
           asFloat(b, flow.getSin())},
          {number(b, "heads", flow.getHeads()),
           number(b, "kv_heads", flow.getKvHeads()),
           number(b, "dim", flow.getHeadDim()),
           number(b, "scale", bits(flow.getScale())),
           number(b, "value_scale", bits(flow.getValueScale())),
           number(b, "cls", flow.getCls()),
           number(b, "rotary", static_cast<int64_t>(flow.getRotary())),
           number(b, "rotary_dim", flow.getRotaryDim()),
           number(b, "q", flow.getQLayout() == TensorLayout::BSHD),
           number(b, "k", flow.getKLayout() == TensorLayout::BSHD),
           number(b, "v", flow.getVLayout() == TensorLayout::BSHD)});
}

void prefill::outlineRows(ModuleOp module) {
  SmallVector<Operation *> ops;
  module.walk([&](Operation *op) {
    if (isa<ProtectRowsOp, SelectRowsOp, FlowScoreOp, KeyNormOp,
            MergeWindowsOp>(op))
      ops.push_back(op);
  });
  Builder b(module.getContext());
  for (Operation *op : ops) {
    if (auto protect = dyn_cast<ProtectRowsOp>(op)) {
      replace(
          op, "ProtectRows",
          {protect.getIds(), protect.getGiven(), protect.getAlive(),
           protect.getSegmentStarts(), protect.getWanted(), protect.getOnly(),
           protect.getParts()},
          {onnx::stringAttr(b, "bos", std::to_string(protect.getBos())),
           onnx::stringAttr(b, "last", std::to_string(protect.getLast())),
           onnx::stringAttr(b, "ids", rangesText(protect.getIdRanges())),
           onnx::stringAttr(b, "rows", rangesText(protect.getRowRanges()))});
      continue;
    }
    if (auto flow = dyn_cast<FlowScoreOp>(op)) {
      outlineFlow(flow);
      continue;
    }
    if (auto merge = dyn_cast<MergeWindowsOp>(op)) {
      outlineMerge(merge);
      continue;
    }
    if (auto norm = dyn_cast<KeyNormOp>(op)) {
      outlineKeyNorm(norm);
      continue;
    }
    auto select = cast<SelectRowsOp>(op);
    // As whole numbers: every machine rounds those alike.
    auto scaled = [&](std::optional<APFloat> value, double scale) {
      return std::to_string(std::llround(value->convertToDouble() * scale));
    };
    SmallVector<NamedAttribute> rule;
    if (select.getTarget()) {
      rule.push_back(number(b, "target", *select.getTarget()));
      if (select.getLeft())
        rule.append({number(b, "left", *select.getLeft()),
                     number(b, "skip", *select.getSkip())});
    } else if (select.getKeep()) {
      rule.push_back(
          onnx::stringAttr(b, "keep", scaled(select.getKeep(), 1e6)));
    } else {
      rule.push_back(
          onnx::stringAttr(b, "global", scaled(select.getGlobal(), 1e12)));
      rule.push_back(onnx::stringAttr(b, "individual",
                                      scaled(select.getIndividual(), 1e12)));
    }
    if (auto topk = select.getTopk())
      rule.push_back(onnx::stringAttr(b, "topk", std::to_string(*topk)));
    if (select.getRoundDown())
      rule.push_back(onnx::stringAttr(b, "round", "down"));
    replace(op, "SelectRows",
            {select.getScore(), select.getProtect(), select.getAlive(),
             select.getSegmentStarts(), select.getPeak(), select.getColumns(),
             select.getShares()},
            rule);
  }
}
