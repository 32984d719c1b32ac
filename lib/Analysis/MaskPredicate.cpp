//===- MaskPredicate.cpp - What masks do to scores ------------------------===//

#include "prefill/Analysis/MaskPredicate.h"
#include "Rules.h"

#include "mlir/IR/Builders.h"
#include "llvm/ADT/STLExtras.h"

#include <cmath>
#include <limits>

using namespace mlir;
using namespace prefill;
using Kind = Expr::Kind;

ScoreSpace::ScoreSpace(ExprContext &ctx, const MaskDims &dims) : dims(dims) {
  auto index = [&](StringRef name, ExprRef bound) {
    return bound->isInt(1) ? ctx.getInt(0) : ctx.getIndex(name, bound);
  };
  b = index("b", dims.batch);
  h = index("h", dims.heads);
  i = index("i", dims.rows);
  j = index("j", dims.keys);
}

/// What was found so far. Copied before a term is tried, so that a term that
/// fails half-way leaves nothing behind.
struct MaskBuilder::Parts {
  /// j <= i + upper, i - j <= back.
  ExprRef upper = nullptr, back = nullptr;
  SmallVector<PlannedValue> keyMasks;
  PlannedValue kvLengths, qSegment, kSegment, bias;
  bool biasIsBool = false;
  /// A bias of which nothing is known: it may hide keys itself.
  bool opaqueBias = false;
  /// Something hides keys of which no more is known.
  bool dataMask = false;
  SmallVector<double> hidden; ///< distinct values of masked scores
  unsigned addedFinite = 0;   ///< finite minima that can add up
  ExprRef visible = nullptr;
  SmallVector<PlannedNode> nodes; ///< all planned nodes of the site
  // Chosen by resolveBand.
  bool causal = false;
  std::optional<int64_t> windowLeft, windowRight;
  QueryAlignment alignment = QueryAlignment::End;
  PlannedValue qOffset;
  ExprRef offset = nullptr;

  void hide(double value) {
    if (!llvm::is_contained(hidden, value))
      hidden.push_back(value);
  }
};

MaskBuilder::MaskBuilder(SymbolicAnalysis &analysis, AttentionSite &site,
                         const ScoreSpace &space, Type scoreType)
    : analysis(analysis), ctx(analysis.expressions()), site(site), space(space),
      scoreType(scoreType) {}

bool MaskBuilder::hides(double value, Type type, bool added) {
  if (std::isnan(value) || value >= 0)
    return false;
  if (std::isinf(value))
    return true;
  if (!isFloat(type))
    return false;
  // Put in place of a score, a number hides it if no score comes near it. Added
  // to a score it must also swallow it, or rows without a visible key would
  // still tell the scores apart. fp16 has no such number; its lowest is what
  // every exporter takes for one.
  if (type.isF16())
    return value <= -65000;
  return value <= (added ? -1e30 : -1e9);
}

double MaskBuilder::times(double value, double factor) {
  double product = value * factor;
  auto type = dyn_cast_or_null<FloatType>(scoreType);
  if (!type || type.isF64())
    return product;
  double largest =
      llvm::APFloat::getLargest(type.getFloatSemantics()).convertToDouble();
  if (std::abs(product) > largest)
    return std::copysign(std::numeric_limits<double>::infinity(), product);
  return product;
}

ExprRef MaskBuilder::times(ExprRef e, double factor) {
  if (!e || factor == 1)
    return e;
  if (e->is(Kind::Float))
    return ctx.getFloat(times(e->number, factor));
  if (e->is(Kind::Select))
    return ctx.select(e->operands[0], times(e->operands[1], factor),
                      times(e->operands[2], factor));
  if (e->is(Kind::Apply) && e->name == "Add")
    return ctx.apply("Add", {times(e->operands[0], factor),
                             times(e->operands[1], factor)});
  return ctx.apply("Mul", {e, ctx.getFloat(factor)});
}

void MaskBuilder::add(const MaskTerm &given) {
  MaskTerm term = given;
  if (term.kind == MaskTerm::Kind::Added)
    term.element = times(term.element, term.factor);
  else
    term.hidden = times(term.hidden, term.factor);
  terms.push_back(term);
}

bool MaskBuilder::depends(ExprRef e, ExprRef variable) {
  return variable->is(Kind::Index) && ctx.dependsOn(e, variable);
}

Type MaskBuilder::typeOf(Type element, ArrayRef<ExprRef> shape) {
  SmallVector<int64_t> sizes;
  for (ExprRef e : shape)
    sizes.push_back(ctx.resolve(e)->asInt().value_or(ShapedType::kDynamic));
  return onnx::getTensorType(sizes, element);
}

//===----------------------------------------------------------------------===//
// Operands
//===----------------------------------------------------------------------===//

namespace {
/// Planned nodes on a list that may be thrown away.
struct Planner {
  SmallVector<PlannedNode> &nodes;
  MLIRContext *context;

  PlannedValue node(StringRef opType, ArrayRef<PlannedValue> inputs, Type type,
                    ArrayRef<NamedAttribute> attributes = {}) {
    AttentionSite scratch;
    scratch.nodes = std::move(nodes);
    PlannedValue result = scratch.plan(opType, inputs, type, attributes);
    nodes = std::move(scratch.nodes);
    return result;
  }
  PlannedValue ints(ArrayRef<int64_t> values) {
    AttentionSite scratch;
    scratch.nodes = std::move(nodes);
    PlannedValue result = scratch.planInts(context, values);
    nodes = std::move(scratch.nodes);
    return result;
  }
};
} // namespace

/// `op` (Squeeze or Unsqueeze) of `value` over `axes`, as the opset writes it.
static PlannedValue planAxes(Planner planner, StringRef op, PlannedValue value,
                             ArrayRef<int64_t> axes, Type type,
                             int64_t opset) {
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
    Planner planner{parts.nodes, context};
    if (!drop.empty())
      value = planAxes(planner, "Squeeze", value, drop,
                       typeOf(f.elementType,
                              {space.dims.batch, space.dims.keys}),
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
      !ctx.proveEqual(f.shape[0],
                      ctx.mul(space.dims.batch, space.dims.heads)))
    return {};
  MLIRContext *context = site.core->getContext();
  Planner planner{parts.nodes, context};
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
                      typeOf(f.elementType, {space.dims.batch,
                                             space.dims.heads, f.shape[1],
                                             f.shape[2]}));
}

/// `visible` ? 0 : `hidden`, to be added.
PlannedValue MaskBuilder::asNumbers(PlannedValue visible, double hidden,
                                    Parts &parts) {
  PlannedValue zero = planNumber(0, parts), low = planNumber(hidden, parts);
  Planner planner{parts.nodes, site.core->getContext()};
  return planner.node("Where", {visible, zero, low},
                      UnrankedTensorType::get(scoreType));
}

bool MaskBuilder::joinBias(PlannedValue tensor, bool isBool, Parts &parts) {
  Planner planner{parts.nodes, site.core->getContext()};
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
  Type element = isBool ? IntegerType::get(site.core->getContext(), 1)
                        : scoreType;
  parts.bias = planner.node(isBool ? "And" : "Add", {other, tensor},
                            UnrankedTensorType::get(element));
  parts.biasIsBool = isBool;
  return true;
}

bool MaskBuilder::asTensor(ExprRef e, bool isBool, Parts &parts) {
  ExprRef order[4] = {space.b, space.h, space.i, space.j};
  ExprRef sizes[4] = {space.dims.batch, space.dims.heads, space.dims.rows,
                      space.dims.keys};
  std::optional<SymbolicAnalysis::ViewStep> best;
  SmallVector<int64_t> bestDrop, bestAdd;
  SmallVector<ExprRef> bestShape;
  for (const auto &place : analysis.places(e, space.variables())) {
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
        fits &= ctx.proveEqual(size, sizes[p]) &&
                (present.empty() || present.back() < p);
        present.push_back(p);
      } else {
        fits &= size->isInt(1);
        drop.push_back(axis);
      }
    }
    if (!fits || present.empty() || present.back() != 3)
      continue;
    // Already right if every kept axis is where a broadcast expects it.
    int64_t rank = place.indices.size();
    bool direct = rank <= 4;
    for (int64_t axis = 0; axis < rank && direct; ++axis) {
      int64_t p = axis + 4 - rank;
      direct = place.indices[axis]->isInt(0) || place.indices[axis] == order[p];
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
    bestAdd = add;
    bestShape = shape;
    if (direct)
      break;
  }
  if (!best)
    return false;
  Planner planner{parts.nodes, site.core->getContext()};
  PlannedValue value = best->value;
  Type element = analysis.facts(best->value).elementType;
  int64_t opset = analysis.getOpset();
  if (!bestDrop.empty())
    value = planAxes(planner, "Squeeze", value, bestDrop,
                     UnrankedTensorType::get(element), opset);
  if (!bestAdd.empty())
    value = planAxes(planner, "Unsqueeze", value, bestAdd,
                     typeOf(element, bestShape), opset);
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
    value = Planner{parts.nodes, site.core->getContext()}.node(
        "Not", {value}, typeOf(f.elementType, f.shape));
  if (!isBool && term.factor != 1) {
    PlannedValue factor = planNumber(term.factor, parts);
    value = Planner{parts.nodes, site.core->getContext()}.node(
        "Mul", {value, factor}, typeOf(f.elementType, f.shape));
  }
  parts.visible = nullptr;
  return joinBias(value, isBool, parts);
}

//===----------------------------------------------------------------------===//
// Conditions
//===----------------------------------------------------------------------===//

/// The two loads of x[b, i] - x[b, j] in `e` (in this order), or nulls.
static std::pair<ExprRef, ExprRef> loadedPair(ExprRef sum,
                                              const ScoreSpace &space) {
  ExprRef row = nullptr, key = nullptr;
  if (sum->is(Kind::Sum))
    for (ExprRef e : sum->operands)
      if (e->is(Kind::Load) && e->operands.size() == 2 &&
          e->operands[0] == space.b) {
        if (e->operands[1] == space.i)
          row = e;
        if (e->operands[1] == space.j)
          key = e;
      }
  if (row && key && row->value == key->value)
    return {row, key};
  return {};
}

/// Whether segments[b, x] counts the places up to x where positions[b, x] is not
/// positions[b, x - 1] + 1. Then positions in one segment differ as their
/// indices do.
bool MaskBuilder::countsBreaks(Value segments, Value positions) {
  auto node = segments.getDefiningOp<onnx::NodeOp>();
  if (!node || !node.is("CumSum") || node.getInt("reverse", 0) ||
      node.getInt("exclusive", 0))
    return false;
  auto axes = analysis.constantInts(node.getInput(1));
  const TensorFacts &f = analysis.facts(segments);
  if (!axes || axes->size() != 1 || !f.ranked || f.shape.size() != 2 ||
      normalizeAxis((*axes)[0], 2) != 1)
    return false;
  // At x + 1 >= 1; what the first one counts shifts all segments alike.
  ExprRef one = ctx.getInt(1);
  ExprRef x = ctx.getIndex("x", ctx.sub(space.dims.rows, one));
  ExprRef next = ctx.add(x, one);
  ExprRef step = ctx.sub(analysis.element(positions, {space.b, next}),
                         analysis.element(positions, {space.b, x}));
  return analysis.element(node.getInput(0), {space.b, next}) ==
         ctx.select(ctx.eq0(ctx.sub(step, one)), ctx.getInt(0), one);
}

/// `e` with positions replaced by indices where one of `others` keeps rows and
/// keys in one segment of consecutive positions.
ExprRef MaskBuilder::withinSegments(ExprRef e, ArrayRef<ExprRef> others) {
  if (!e->is(Kind::Ge0))
    return e;
  auto [row, key] = loadedPair(e->operands[0], space);
  if (!row)
    return e;
  for (ExprRef other : others) {
    if (!other->is(Kind::Eq0) || other == e)
      continue;
    auto [segment, same] = loadedPair(other->operands[0], space);
    if (!segment || !countsBreaks(segment->value, row->value))
      continue;
    // Only differences of positions are differences of indices.
    auto split = ctx.splitLinear(e->operands[0], row);
    auto rest = split ? ctx.splitLinear(split->second, key) : std::nullopt;
    if (!rest || split->first + rest->first != 0)
      continue;
    return ctx.ge0(ctx.add(
        rest->second,
        ctx.scale(ctx.sub(space.i, space.j), split->first)));
  }
  return e;
}

bool MaskBuilder::condition(ExprRef e, Parts &parts) {
  if (parts.visible)
    parts.visible = ctx.logicalAnd(parts.visible, e);
  if (!e->is(Kind::And))
    return conjunct(e, parts);
  return llvm::all_of(e->operands, [&](ExprRef x) {
    return conjunct(withinSegments(x, e->operands), parts);
  });
}

bool MaskBuilder::conjunct(ExprRef e, Parts &parts) {
  if (e->isTrue())
    return true;
  if (e->isFalse())
    return false;
  if (e->is(Kind::Ge0)) {
    auto byRow = space.i->is(Kind::Index)
                     ? ctx.splitLinear(e->operands[0], space.i)
                     : std::make_optional(
                           std::make_pair(int64_t(0), e->operands[0]));
    auto byKey = byRow && space.j->is(Kind::Index)
                     ? ctx.splitLinear(byRow->second, space.j)
                     : std::nullopt;
    if (byKey && !depends(byKey->second, space.h)) {
      int64_t row = byRow->first, key = byKey->first;
      ExprRef rest = byKey->second;
      // With one row, i is 0 and has vanished.
      bool oneRow = !space.i->is(Kind::Index);
      if (key == -1 && (row == 1 || (oneRow && row == 0))) {
        if (!parts.upper || ctx.proveNonNegative(ctx.sub(parts.upper, rest))) {
          parts.upper = rest;
          return true;
        }
        if (ctx.proveNonNegative(ctx.sub(rest, parts.upper)))
          return true;
      }
      if (key == 1 && (row == -1 || (oneRow && row == 0))) {
        if (!parts.back || ctx.proveNonNegative(ctx.sub(parts.back, rest))) {
          parts.back = rest;
          return true;
        }
        if (ctx.proveNonNegative(ctx.sub(rest, parts.back)))
          return true;
      }
      // j < length of the batch's row.
      ExprRef length = ctx.add(rest, ctx.getInt(1));
      if (key == -1 && row == 0 && length->is(Kind::Load) &&
          length->operands.size() == 1 && length->operands[0] == space.b &&
          !parts.kvLengths && !site.kvLengths) {
        const TensorFacts &f = analysis.facts(length->value);
        if (ctx.proveEqual(f.shape[0], space.dims.batch) &&
            (f.elementType.isInteger(64) || f.elementType.isInteger(32))) {
          parts.kvLengths = length->value;
          parts.dataMask = true;
          return true;
        }
      }
    }
  }
  if (segments(e, parts) || keyVector(e, parts))
    return true;
  parts.dataMask = true;
  return asTensor(e, /*isBool=*/true, parts);
}

bool MaskBuilder::benignConstant(Value value) {
  auto constant = onnx::getConstantElements(value, 1 << 20);
  if (!constant)
    return false;
  for (size_t k = 0; k < constant->size(); ++k)
    if (!(constant->asDouble(k) > -1e20))
      return false;
  return true;
}

/// Whether a bias surely hides no key: it is made of ordinary constants.
bool MaskBuilder::benign(ExprRef e, unsigned depth) {
  if (depth > 16)
    return false;
  auto all = [&](ArrayRef<ExprRef> list) {
    return llvm::all_of(list,
                        [&](ExprRef x) { return benign(x, depth + 1); });
  };
  switch (e->kind) {
  case Kind::Float:
    return e->number > -1e20;
  case Kind::ToFloat:
    return true;
  case Kind::Select:
    return all(e->operands.drop_front());
  case Kind::Load: {
    RankedTensorType type;
    if (onnx::getConstantTensor(e->value, type))
      return benignConstant(e->value);
    auto node = e->value.getDefiningOp<onnx::NodeOp>();
    return node && (node.is("Gather") || node.is("GatherND")) &&
           node.getInput(0) && onnx::getConstantTensor(node.getInput(0), type) &&
           benignConstant(node.getInput(0));
  }
  case Kind::Apply:
    return (e->name == "Add" || e->name == "Sub" || e->name == "Mul" ||
            e->name == "Neg" || e->name == "Abs") &&
           all(e->operands);
  default:
    return false;
  }
}

bool MaskBuilder::explainAdded(ExprRef e, Parts &parts, unsigned depth) {
  if (depth > 16)
    return false;
  if (e->is(Kind::Float))
    return std::isfinite(e->number) && e->number > -1e20; // no effect
  if (e->is(Kind::Select)) {
    for (bool hiddenFirst : {true, false}) {
      ExprRef hiddenSide = e->operands[hiddenFirst ? 1 : 2];
      ExprRef other = e->operands[hiddenFirst ? 2 : 1];
      if (!hiddenSide->is(Kind::Float) ||
          !hides(hiddenSide->number, scoreType, /*added=*/true))
        continue;
      ExprRef shown = hiddenFirst ? ctx.logicalNot(e->operands[0])
                                  : e->operands[0];
      parts.hide(hiddenSide->number);
      if (std::isfinite(hiddenSide->number) && depth == 0)
        ++parts.addedFinite;
      return condition(shown, parts) && explainAdded(other, parts, depth + 1);
    }
  }
  if (e->is(Kind::Apply) && e->name == "Add")
    return explainAdded(e->operands[0], parts, 0) &&
           explainAdded(e->operands[1], parts, 0);
  bool harmless = benign(e, 0);
  // The same number for all keys of a row changes nothing.
  if (harmless && !depends(e, space.j))
    return true;
  parts.opaqueBias |= !harmless;
  parts.dataMask |= !harmless;
  if (!harmless)
    parts.visible = nullptr;
  return asTensor(e, /*isBool=*/false, parts);
}

bool MaskBuilder::explain(const MaskTerm &term, Parts &parts) {
  if (!term.element)
    return false;
  if (term.kind == MaskTerm::Kind::Visible) {
    if (!hides(term.hidden, scoreType, /*added=*/false))
      return false;
    parts.hide(term.hidden);
    // What is added later adds up with what is put in place now.
    if (parts.addedFinite > 0 && std::isfinite(term.hidden))
      ++parts.addedFinite;
    return condition(term.element, parts);
  }
  return explainAdded(term.element, parts, 0);
}

//===----------------------------------------------------------------------===//
// Bands
//===----------------------------------------------------------------------===//

bool MaskBuilder::fitBand(Parts &parts, QueryAlignment alignment,
                          ExprRef offset) {
  bool causal = site.causal;
  std::optional<int64_t> left = site.windowLeft, right = site.windowRight;
  if (parts.upper) {
    auto distance = ctx.resolve(ctx.sub(parts.upper, offset))->asInt();
    if (!distance || *distance < 0)
      return false;
    if (*distance == 0)
      causal = true;
    else if (!causal)
      right = std::min(right.value_or(*distance), *distance);
  }
  if (parts.back) {
    auto distance = ctx.resolve(ctx.add(parts.back, offset))->asInt();
    if (!distance || *distance < 0)
      return false;
    left = std::min(left.value_or(*distance), *distance);
  }
  if (causal)
    right.reset();
  parts.causal = causal;
  parts.windowLeft = left;
  parts.windowRight = right;
  parts.alignment = alignment;
  parts.offset = offset;
  return true;
}

bool MaskBuilder::resolveBand(Parts &parts) {
  ExprRef end = ctx.sub(space.dims.keys, space.dims.rows);
  ExprRef start = ctx.getInt(0);
  bool set = site.causal || site.windowLeft || site.windowRight;
  parts.causal = site.causal;
  parts.windowLeft = site.windowLeft;
  parts.windowRight = site.windowRight;
  parts.alignment = site.alignment;
  parts.offset = site.alignment == QueryAlignment::End     ? end
                 : site.alignment == QueryAlignment::Start ? start
                                                           : nullptr;
  if (!parts.upper && !parts.back)
    return true;
  if (set) // What the op says already fixes the offset.
    return parts.offset && fitBand(parts, site.alignment, parts.offset);
  // Exactly causal first, with either alignment; then windows.
  for (auto [alignment, offset] :
       {std::make_pair(QueryAlignment::End, end),
        std::make_pair(QueryAlignment::Start, start)})
    if (parts.upper && ctx.proveEqual(parts.upper, offset) &&
        fitBand(parts, alignment, offset))
      return true;
  if (fitBand(parts, QueryAlignment::End, end) ||
      fitBand(parts, QueryAlignment::Start, start))
    return true;
  // An offset that the model computes: a number or one a batch row.
  if (!parts.upper)
    return false;
  for (const auto &place : analysis.places(parts.upper, {space.b})) {
    const TensorFacts &f = analysis.facts(place.value);
    bool shape = f.shape.empty() ||
                 (f.shape.size() == 1 &&
                  (f.shape[0]->isInt(1) ||
                   ctx.proveEqual(f.shape[0], space.dims.batch)));
    if (!shape || !f.elementType || !f.elementType.isInteger(64))
      continue;
    if (fitBand(parts, QueryAlignment::Operand, parts.upper)) {
      parts.qOffset = place.value;
      return true;
    }
  }
  return false;
}

bool MaskBuilder::provenNeverEmpty(const Parts &parts) {
  if (parts.dataMask || site.keyMask || site.kvLengths || site.qSegment ||
      site.bias)
    return false;
  bool upper = parts.causal || parts.windowRight, lower = !!parts.windowLeft;
  if (!upper && !lower)
    return true; // Only diagonals could hide; segments alone keep i's own key
                 // where rows are keys.
  if (!parts.offset || parts.alignment == QueryAlignment::Operand)
    return false;
  // Row i's own position i + offset is a key, and visible.
  ExprRef first = parts.offset;
  ExprRef last = ctx.sub(ctx.add(space.dims.rows, parts.offset),
                         space.dims.keys); // <= 0
  bool reachesFirst = ctx.proveNonNegative(first);
  bool reachesLast = ctx.proveNonNegative(ctx.scale(last, -1));
  if (parts.qSegment)
    return reachesFirst && reachesLast && ctx.proveEqual(first, ctx.getInt(0));
  if (!lower) // key 0 is visible
    return reachesFirst;
  return reachesFirst && reachesLast;
}

//===----------------------------------------------------------------------===//
// All together
//===----------------------------------------------------------------------===//

bool MaskBuilder::commit(Parts &parts) {
  if (!resolveBand(parts))
    return false;
  rowsNeverEmpty = provenNeverEmpty(parts);
  bool finite = llvm::any_of(parts.hidden,
                             [](double v) { return std::isfinite(v); });
  bool infinite = llvm::any_of(parts.hidden,
                               [](double v) { return std::isinf(v); });
  // With a floor all hidden scores are that number.
  unsigned kinds = floor ? 1 : parts.hidden.size();
  unsigned sums = floor ? 1 : parts.addedFinite;
  if (floor) {
    finite = !parts.hidden.empty() || parts.opaqueBias;
    infinite = false;
  }
  if (!rowsNeverEmpty) {
    // Rows without a visible key: the original averages over those keys that
    // have the largest of several hidden values. Not expressible.
    bool inBias = parts.bias && !parts.biasIsBool && !parts.upper &&
                  !parts.back && parts.keyMasks.empty() && !parts.qSegment &&
                  !parts.kvLengths;
    if ((kinds > 1 || sums > 1) && !inBias)
      return false;
    // A bias that hides keys itself beside a mask of finite numbers: a row
    // whose visible keys the bias hides sees masked ones again.
    if (finite && parts.opaqueBias &&
        (parts.upper || parts.back || !parts.keyMasks.empty() ||
         parts.qSegment || parts.biasIsBool))
      return false;
  }
  // Numbers in a bias are the kernel's business.
  if (parts.bias && !parts.biasIsBool && !parts.upper && !parts.back &&
      parts.keyMasks.empty() && !parts.qSegment && !parts.kvLengths)
    finite = infinite = false;
  rule = rowsNeverEmpty              ? MaskedRowRule::Zero
         : infinite || !finite       ? MaskedRowRule::NaN
                                     : MaskedRowRule::Mean;
  if (!parts.keyMasks.empty()) {
    PlannedValue mask = parts.keyMasks[0];
    if (site.keyMask)
      return false;
    MLIRContext *context = site.core->getContext();
    Type boolean = IntegerType::get(context, 1);
    Type type = typeOf(boolean, {space.dims.batch, space.dims.keys});
    Planner planner{parts.nodes, context};
    auto asBool = [&](PlannedValue v) {
      if (v.kind == PlannedValue::Kind::Existing &&
          !isBool(analysis.facts(v.value).elementType)) {
        Builder builder(context);
        return planner.node("Cast", {v}, type,
                            {onnx::intAttr(builder, "to", 9)});
      }
      return v;
    };
    for (PlannedValue other : ArrayRef(parts.keyMasks).drop_front()) {
      if (other.kind == mask.kind && other.value == mask.value &&
          other.node == mask.node)
        continue;
      mask = planner.node("And", {asBool(mask), asBool(other)}, type);
    }
    site.keyMask = mask;
  }
  site.nodes = std::move(parts.nodes);
  site.causal = parts.causal;
  site.windowLeft = parts.windowLeft;
  site.windowRight = parts.windowRight;
  if (parts.causal || parts.windowLeft || parts.windowRight)
    site.alignment = parts.alignment;
  if (parts.qOffset)
    site.qOffset = parts.qOffset;
  if (parts.kvLengths)
    site.kvLengths = parts.kvLengths;
  if (parts.qSegment) {
    site.qSegment = parts.qSegment;
    site.kSegment = parts.kSegment;
  }
  if (parts.bias)
    site.bias = parts.bias;
  visibleAll = parts.visible;
  return true;
}

LogicalResult MaskBuilder::finish() {
  Parts parts;
  parts.nodes = site.nodes;
  parts.visible = ctx.getBool(true);
  for (const MaskTerm &term : terms) {
    Parts tried = parts;
    // The band must still fit with this term's part of it.
    if (explain(term, tried)) {
      Parts band = tried;
      if (resolveBand(band)) {
        parts = std::move(tried);
        continue;
      }
    }
    if (!whole(term, parts))
      return site.refuse(term.tensor ? term.tensor.getDefiningOp() : site.core,
                         "the mask is not understood and cannot be an operand",
                         term.tensor);
  }
  if (commit(parts))
    return success();
  // Every term as it is.
  Parts plain;
  plain.nodes = site.nodes;
  for (const MaskTerm &term : terms)
    if (!whole(term, plain))
      return site.refuse(site.core,
                         "rows without a visible key depend on the numbers that "
                         "mask them, and the masks cannot be operands",
                         term.tensor);
  if (commit(plain))
    return success();
  return site.refuse(site.core, "the masks cannot be combined",
                     terms.empty() ? Value() : terms.front().tensor);
}

LogicalResult prefill::applyMask(SymbolicAnalysis &analysis,
                                 AttentionSite &site, Value mask,
                                 const MaskDims &dims, bool &neverEmpty) {
  neverEmpty = false;
  if (!dims.batch || !dims.heads || !dims.rows || !dims.keys)
    return failure();
  ScoreSpace space(analysis.expressions(), dims);
  const TensorFacts &f = analysis.facts(mask);
  Value q = site.q.kind == PlannedValue::Kind::Existing ? site.q.value : Value();
  Type scoreType = q ? analysis.facts(q).elementType : Type();
  bool boolean = isBool(f.elementType);
  if (!boolean && isFloat(f.elementType))
    scoreType = f.elementType;
  MaskBuilder builder(analysis, site, space, scoreType);
  MaskTerm term;
  term.kind = boolean ? MaskTerm::Kind::Visible : MaskTerm::Kind::Added;
  term.hidden = -std::numeric_limits<double>::infinity();
  term.tensor = mask;
  term.element =
      analysis.broadcastElement(mask, space.variables(), space.shape());
  builder.add(term);
  if (failed(builder.finish()))
    return failure();
  neverEmpty = builder.neverEmpty();
  if (!boolean)
    site.maskedRow = builder.emptyRow();
  return success();
}
