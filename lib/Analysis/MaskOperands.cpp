//===- MaskOperands.cpp - Masks that stay operands ------------------------===//
//
// What a mask does that no attribute says: padding vectors, segments, and
// tensors as they are, with the nodes that bring them into an operand's shape.
//
//===----------------------------------------------------------------------===//

#include "MaskParts.h"
#include "Rules.h"

#include "mlir/IR/Builders.h"
#include "llvm/ADT/STLExtras.h"

#include <cmath>

using namespace mlir;
using namespace prefill;
using Kind = Expr::Kind;

PlannedValue MaskPlanner::node(StringRef opType, ArrayRef<PlannedValue> inputs,
                               Type type, ArrayRef<NamedAttribute> attributes) {
  AttentionSite scratch;
  scratch.nodes = std::move(nodes);
  PlannedValue result = scratch.plan(opType, inputs, type, attributes);
  nodes = std::move(scratch.nodes);
  return result;
}

PlannedValue MaskPlanner::ints(ArrayRef<int64_t> values) {
  AttentionSite scratch;
  scratch.nodes = std::move(nodes);
  PlannedValue result = scratch.planInts(context, values);
  nodes = std::move(scratch.nodes);
  return result;
}

/// `op` (Squeeze or Unsqueeze) of `value` over `axes`, as the opset writes it.
static PlannedValue planAxes(MaskPlanner planner, StringRef op,
                             PlannedValue value, ArrayRef<int64_t> axes,
                             Type type, int64_t opset) {
  if (opset >= 13)
    return planner.node(op, {value, planner.ints(axes)}, type);
  Builder builder(planner.context);
  return planner.node(op, {value}, type,
                      {onnx::intsAttr(builder, "axes", axes)});
}

bool MaskBuilder::keyVector(ExprRef e, Parts &parts) {
  if (depends(e, space.i) || depends(e, space.h))
    return false;
  MLIRContext *context = site.core->getContext();
  auto take = [&](PlannedValue value) {
    parts.keyMasks.push_back(value);
    parts.dataMask = true;
    return true;
  };
  auto shapeIs = [&](Value value) {
    const TensorFacts &f = analysis.facts(value);
    return f.ranked && f.shape.size() == 2 &&
           ctx.proveEqual(f.shape[0], space.dims.batch) &&
           ctx.proveEqual(f.shape[1], space.dims.keys);
  };
  // The vector itself: bool, or integers that are compared with 0.
  ExprRef load = e;
  if (e->is(Kind::Not) && e->operands[0]->is(Kind::Eq0))
    load = e->operands[0]->operands[0];
  if (load->is(Kind::Load) && load->operands.size() == 2 &&
      load->operands[0] == space.b && load->operands[1] == space.j &&
      shapeIs(load->value)) {
    Type type = analysis.facts(load->value).elementType;
    bool whole = type && (type.isInteger(32) || type.isInteger(64)) &&
                 !type.isUnsignedInteger();
    if ((load == e && isBool(type)) || (load != e && whole))
      return take(load->value);
  }
  for (const auto &place : analysis.places(e, space.variables())) {
    const TensorFacts &f = analysis.facts(place.value);
    if (!isBool(f.elementType) || f.shape.empty())
      continue;
    // Exactly [.., b, .., j, ..] with sizes of 1 elsewhere.
    SmallVector<int64_t> drop;
    bool fits = true, sawKeys = false;
    int64_t batchAxis = -1;
    for (auto [axis, x] : llvm::enumerate(place.indices)) {
      ExprRef size = f.shape[axis];
      if (x == space.j && space.j->is(Kind::Index)) {
        fits &= ctx.proveEqual(size, space.dims.keys);
        sawKeys = true;
      } else if (x == space.b && space.b->is(Kind::Index)) {
        fits &= !sawKeys && ctx.proveEqual(size, space.dims.batch);
        batchAxis = axis;
      } else {
        fits &= size->isInt(1);
        drop.push_back(axis);
      }
    }
    if (!fits || !sawKeys)
      continue;
    if (batchAxis < 0) {
      // One vector for all: only a batch of 1 makes it [b, t].
      if (!space.dims.batch->isInt(1))
        continue;
      if (!drop.empty() && drop[0] == 0)
        drop.erase(drop.begin());
      else
        continue;
    }
    PlannedValue value = place.value;
    MaskPlanner planner{parts.nodes, context};
    if (!drop.empty())
      value =
          planAxes(planner, "Squeeze", value, drop,
                   typeOf(f.elementType, {space.dims.batch, space.dims.keys}),
                   analysis.getOpset());
    return take(value);
  }
  return false;
}

bool MaskBuilder::segments(ExprRef e, Parts &parts) {
  // seg[b, i] == seg[b, j]
  if (!e->is(Kind::Eq0) || parts.qSegment || site.qSegment)
    return false;
  ExprRef sum = e->operands[0];
  if (!sum->is(Kind::Sum) || sum->operands.size() != 2 || sum->integer != 0 ||
      sum->coefficients[0] + sum->coefficients[1] != 0 ||
      std::abs(sum->coefficients[0]) != 1)
    return false;
  ExprRef x = sum->operands[0], y = sum->operands[1];
  if (!x->is(Kind::Load) || !y->is(Kind::Load))
    return false;
  auto matches = [&](ExprRef load, ExprRef variable, ExprRef size) {
    const TensorFacts &f = analysis.facts(load->value);
    return load->operands.size() == 2 && load->operands[0] == space.b &&
           load->operands[1] == variable &&
           ctx.proveEqual(f.shape[0], space.dims.batch) &&
           ctx.proveEqual(f.shape[1], size) && f.elementType &&
           f.elementType.isInteger(64);
  };
  if (!matches(x, space.i, space.dims.rows))
    std::swap(x, y);
  if (!matches(x, space.i, space.dims.rows) ||
      !matches(y, space.j, space.dims.keys))
    return false;
  parts.qSegment = x->value;
  parts.kSegment = y->value;
  // One tensor for rows and keys: the diagonal is always visible.
  parts.dataMask |= x->value != y->value;
  return true;
}

PlannedValue MaskBuilder::planNumber(double value, Parts &parts) {
  AttentionSite scratch;
  scratch.nodes = std::move(parts.nodes);
  auto type = RankedTensorType::get({}, scoreType);
  llvm::APFloat number(value);
  bool losesInfo;
  number.convert(cast<FloatType>(scoreType).getFloatSemantics(),
                 llvm::APFloat::rmNearestTiesToEven, &losesInfo);
  PlannedValue result =
      scratch.planConstant(DenseElementsAttr::get(type, ArrayRef(number)));
  parts.nodes = std::move(scratch.nodes);
  return result;
}

/// [batch * heads, rows, keys] as [batch, heads, rows, keys], or nothing.
PlannedValue MaskBuilder::splitHeads(Value tensor, Parts &parts) {
  const TensorFacts &f = analysis.facts(tensor);
  auto heads = space.dims.heads->asInt();
  if (f.shape.size() < 3 || (f.shape.size() == 3 && f.shape[0]->isInt(1)))
    return tensor; // the same for all
  if (f.shape.size() != 3 || !heads || analysis.getOpset() < 13 ||
      !ctx.proveEqual(f.shape[0], ctx.mul(space.dims.batch, space.dims.heads)))
    return {};
  MLIRContext *context = site.core->getContext();
  MaskPlanner planner{parts.nodes, context};
  Type i64 = IntegerType::get(context, 64);
  auto ints = [&](int64_t n) { return RankedTensorType::get({n}, i64); };
  PlannedValue all = planner.node("Shape", {tensor}, ints(3));
  PlannedValue last = planner.node(
      "Slice", {all, planner.ints({1}), planner.ints({3})}, ints(2));
  Builder builder(context);
  PlannedValue shape =
      planner.node("Concat", {planner.ints({-1, *heads}), last}, ints(4),
                   {onnx::intAttr(builder, "axis", 0)});
  return planner.node("Reshape", {tensor, shape},
                      typeOf(f.elementType, {space.dims.batch, space.dims.heads,
                                             f.shape[1], f.shape[2]}));
}

/// `visible` ? 0 : `hidden`, to be added.
PlannedValue MaskBuilder::asNumbers(PlannedValue visible, double hidden,
                                    Parts &parts) {
  PlannedValue zero = planNumber(0, parts), low = planNumber(hidden, parts);
  MaskPlanner planner{parts.nodes, site.core->getContext()};
  return planner.node("Where", {visible, zero, low},
                      UnrankedTensorType::get(scoreType));
}

bool MaskBuilder::joinBias(PlannedValue tensor, bool isBool, Parts &parts) {
  MaskPlanner planner{parts.nodes, site.core->getContext()};
  PlannedValue other = parts.bias ? parts.bias : site.bias;
  bool otherBool = parts.bias ? parts.biasIsBool : false;
  if (!parts.bias && site.bias) {
    if (site.bias.kind != PlannedValue::Kind::Existing)
      return false;
    otherBool = prefill::isBool(analysis.facts(site.bias.value).elementType);
  }
  if (!other) {
    parts.bias = tensor;
    parts.biasIsBool = isBool;
    return true;
  }
  if (isBool != otherBool) {
    // Both as numbers. Only one that hides so that it swallows the score may
    // be added in place of being put there.
    if (parts.hidden.size() != 1 || !scoreType ||
        !hides(parts.hidden[0], scoreType, /*added=*/true))
      return false;
    (isBool ? tensor : other) =
        asNumbers(isBool ? tensor : other, parts.hidden[0], parts);
    isBool = false;
  }
  Type element =
      isBool ? IntegerType::get(site.core->getContext(), 1) : scoreType;
  // In float16, the least number would swallow the other one or become -inf;
  // ONNX Runtime adds both to the scores in float32.
  if (!isBool && scoreType.isF16()) {
    element = Float32Type::get(site.core->getContext());
    Builder builder(site.core->getContext());
    for (PlannedValue *value : {&other, &tensor}) {
      Type known =
          value->kind == PlannedValue::Kind::Existing
              ? analysis.facts(value->value).elementType
              : onnx::getElementType(
                    parts.nodes[value->node].resultTypes[value->result]);
      if (known != element)
        *value =
            planner.node("Cast", {*value}, UnrankedTensorType::get(element),
                         {onnx::intAttr(builder, "to", 1)});
    }
  }
  parts.bias = planner.node(isBool ? "And" : "Add", {other, tensor},
                            UnrankedTensorType::get(element));
  parts.biasIsBool = isBool;
  return true;
}

bool MaskBuilder::asTensor(ExprRef e, bool isBool, Parts &parts) {
  ExprRef order[4] = {space.b, space.h, space.i, space.j};
  ExprRef sizes[4] = {space.dims.batch, space.dims.heads, space.dims.rows,
                      space.dims.keys};
  SmallVector<int64_t> bestDrop, bestOrder, bestAdd;
  SmallVector<ExprRef> bestShape;
  auto placeOf = [&](ExprRef wanted) {
    std::optional<SymbolicAnalysis::ViewStep> best;
    for (const auto &place : analysis.places(wanted, space.variables())) {
      const TensorFacts &f = analysis.facts(place.value);
      if (isBool ? !prefill::isBool(f.elementType) : f.elementType != scoreType)
        continue;
      // Align the axes with (b, h, i, j): drop sizes of 1, insert what misses.
      SmallVector<int64_t> drop, present;
      SmallVector<ExprRef> kept;
      bool fits = !place.indices.empty();
      for (auto [axis, x] : llvm::enumerate(place.indices)) {
        ExprRef size = f.shape[axis];
        auto *position = llvm::find(order, x);
        if (x->is(Kind::Index) && position != std::end(order)) {
          int64_t p = position - std::begin(order);
          // A slice of a stored bias, min(stored, keys) long, is not stretched.
          bool whole = ctx.proveEqual(size, sizes[p]) ||
                       (size->is(Kind::Min) &&
                        broadcastDim(ctx, size, sizes[p]) == sizes[p]);
          fits &= whole && !llvm::is_contained(present, p);
          present.push_back(p);
        } else {
          fits &= size->isInt(1);
          drop.push_back(axis);
        }
      }
      if (!fits || !llvm::is_contained(present, 3))
        continue;
      SmallVector<int64_t> perm; // of the axes that are kept
      for (size_t k = 0; k < present.size(); ++k)
        perm.push_back(k);
      llvm::sort(perm,
                 [&](int64_t x, int64_t y) { return present[x] < present[y]; });
      bool sorted = llvm::is_sorted(present);
      llvm::sort(present);
      if (!sorted && best)
        continue; // A place that needs no Transpose is better.
      // Already right if every kept axis is where a broadcast expects it.
      int64_t rank = place.indices.size();
      bool direct = rank <= 4;
      for (int64_t axis = 0; axis < rank && direct; ++axis) {
        int64_t p = axis + 4 - rank;
        direct =
            place.indices[axis]->isInt(0) || place.indices[axis] == order[p];
      }
      SmallVector<int64_t> add;
      SmallVector<ExprRef> shape;
      if (direct) {
        drop.clear();
      } else {
        for (int64_t p = 0; p < 4; ++p) {
          bool here = llvm::is_contained(present, p);
          if (!here && p > present.front())
            add.push_back(p - present.front());
          if (p >= present.front())
            shape.push_back(here ? sizes[p] : ctx.getInt(1));
        }
      }
      best = place;
      bestDrop = drop;
      bestOrder = sorted ? SmallVector<int64_t>() : perm;
      bestAdd = add;
      bestShape = shape;
      if (direct)
        break;
    }
    return best;
  };
  auto best = placeOf(e);
  bool negated = false;
  if (!best && isBool) {
    best = placeOf(ctx.logicalNot(e));
    negated = best.has_value();
  }
  // Of a bias that is subtracted or scaled, what is negated or scaled.
  bool minus = false;
  std::optional<double> factor;
  if (!best && !isBool && e->is(Kind::Apply) && e->name == "Neg") {
    minus = true;
    best = placeOf(e->operands[0]);
  } else if (!best && !isBool && e->is(Kind::Apply) && e->name == "Mul" &&
             e->operands[1]->is(Kind::Float)) {
    factor = e->operands[1]->number;
    best = placeOf(e->operands[0]);
  }
  if (!best)
    return false;
  MaskPlanner planner{parts.nodes, site.core->getContext()};
  PlannedValue value = best->value;
  Type element = analysis.facts(best->value).elementType;
  int64_t opset = analysis.getOpset();
  if (!bestDrop.empty())
    value = planAxes(planner, "Squeeze", value, bestDrop,
                     UnrankedTensorType::get(element), opset);
  if (!bestOrder.empty()) {
    Builder builder(planner.context);
    value = planner.node("Transpose", {value}, UnrankedTensorType::get(element),
                         {onnx::intsAttr(builder, "perm", bestOrder)});
  }
  if (!bestAdd.empty())
    value = planAxes(planner, "Unsqueeze", value, bestAdd,
                     typeOf(element, bestShape), opset);
  if (negated)
    value = planner.node("Not", {value}, UnrankedTensorType::get(element));
  if (minus)
    value = planner.node("Neg", {value}, UnrankedTensorType::get(element));
  if (factor) {
    PlannedValue number = planNumber(*factor, parts);
    value =
        planner.node("Mul", {value, number}, UnrankedTensorType::get(element));
  }
  return joinBias(value, isBool, parts);
}

bool MaskBuilder::whole(const MaskTerm &term, Parts &parts) {
  bool isBool = term.kind == MaskTerm::Kind::Visible;
  if (!term.tensor)
    return false;
  const TensorFacts &f = analysis.facts(term.tensor);
  if (isBool ? !prefill::isBool(f.elementType)
             : !f.elementType || f.elementType != scoreType)
    return false;
  // The kernel checks sizes; what it cannot do is stretch the keys.
  if (!f.ranked || f.shape.empty() || f.shape.size() > 4 ||
      f.shape.back()->isInt(1))
    return false;
  if (isBool && !hides(term.hidden, scoreType, /*added=*/false))
    return false;
  if (isBool) {
    parts.hide(term.hidden);
    if (parts.addedFinite > 0 && std::isfinite(term.hidden))
      ++parts.addedFinite;
  }
  parts.dataMask = true;
  parts.opaqueBias |= !isBool;
  PlannedValue value = term.tensor;
  if (term.joined)
    value = splitHeads(term.tensor, parts);
  if (!value)
    return false;
  if (isBool && term.negated)
    value = MaskPlanner{parts.nodes, site.core->getContext()}.node(
        "Not", {value}, typeOf(f.elementType, f.shape));
  if (term.minus)
    value = MaskPlanner{parts.nodes, site.core->getContext()}.node(
        "Neg", {value}, typeOf(f.elementType, f.shape));
  if (!isBool && term.factor != 1) {
    PlannedValue factor = planNumber(term.factor, parts);
    value = MaskPlanner{parts.nodes, site.core->getContext()}.node(
        "Mul", {value, factor}, typeOf(f.elementType, f.shape));
  }
  parts.visible = nullptr;
  return joinBias(value, isBool, parts);
}
