//===- MaskPredicate.cpp - What masks do to scores ------------------------===//

#include "prefill/Analysis/MaskPredicate.h"
#include "MaskParts.h"
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
    return ctx.apply(
        "Add", {times(e->operands[0], factor), times(e->operands[1], factor)});
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

/// Whether segments[b, x] counts the places up to x where positions[b, x] is
/// not positions[b, x - 1] + 1. Then positions in one segment differ as their
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
    return ctx.ge0(ctx.add(rest->second,
                           ctx.scale(ctx.sub(space.i, space.j), split->first)));
  }
  return e;
}

bool MaskBuilder::condition(ExprRef e, Parts &parts) {
  if (parts.visible)
    parts.visible = ctx.logicalAnd(parts.visible, e);
  if (parts.reading == Parts::Reading::Whole) {
    if (e->isTrue())
      return true;
    parts.dataMask = true;
    return asTensor(e, /*isBool=*/true, parts);
  }
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
  if (e->is(Kind::Ge0) && parts.reading == Parts::Reading::Parts) {
    auto byRow =
        space.i->is(Kind::Index)
            ? ctx.splitLinear(e->operands[0], space.i)
            : std::make_optional(std::make_pair(int64_t(0), e->operands[0]));
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
    return llvm::all_of(list, [&](ExprRef x) { return benign(x, depth + 1); });
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
           node.getInput(0) &&
           onnx::getConstantTensor(node.getInput(0), type) &&
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
      ExprRef shown =
          hiddenFirst ? ctx.logicalNot(e->operands[0]) : e->operands[0];
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
    bool shape =
        f.shape.empty() ||
        (f.shape.size() == 1 && (f.shape[0]->isInt(1) ||
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
  bool finite =
      llvm::any_of(parts.hidden, [](double v) { return std::isfinite(v); });
  bool infinite =
      llvm::any_of(parts.hidden, [](double v) { return std::isinf(v); });
  // With a floor all hidden scores are that number.
  unsigned kinds = floor ? 1 : parts.hidden.size();
  unsigned sums = floor ? 1 : parts.addedFinite;
  if (floor) {
    finite = !parts.hidden.empty() || parts.opaqueBias;
    infinite = false;
  }
  if (!rowsNeverEmpty) {
    // Rows without a visible key: the original averages over those keys that
    // have the largest of several hidden values. Only a bias can say which.
    bool inBias = parts.bias && !parts.biasIsBool && !parts.upper &&
                  !parts.back && parts.keyMasks.empty() && !parts.qSegment &&
                  !parts.kvLengths;
    if (kinds > 1 || sums > 1) {
      if (!inBias)
        return false;
      infinite = true;
    }
    // A bias that hides keys itself beside a mask of finite numbers: a row
    // whose visible keys the bias hides sees masked ones again.
    if (finite && parts.opaqueBias &&
        (parts.upper || parts.back || !parts.keyMasks.empty() ||
         parts.qSegment || parts.biasIsBool))
      return false;
  }
  // ONNX Runtime adds float16 in float32 on CPUs: -65504 swallows no score
  // there. Rows without a visible key are what their scores say, biases
  // included.
  const bool leaves = scoreType && scoreType.isF16() && finite && !floor &&
                      parts.addedFinite > 0 && !rowsNeverEmpty;
  if (leaves && (parts.bias || site.bias || parts.qSegment || site.qSegment))
    return false;
  // A bias that hides keys itself is added as the model does it, finite minima
  // included: what remains are rows of -inf. (Not with a floor: see `finite`.)
  if (parts.opaqueBias && !floor)
    infinite = true;
  rule = rowsNeverEmpty        ? MaskedRowRule::Zero
         : infinite || !finite ? MaskedRowRule::NaN
         : leaves              ? MaskedRowRule::Scores
                               : MaskedRowRule::Mean;
  if (!parts.keyMasks.empty()) {
    PlannedValue mask = parts.keyMasks[0];
    if (site.keyMask)
      return false;
    MLIRContext *context = site.core->getContext();
    Type boolean = IntegerType::get(context, 1);
    Type type = typeOf(boolean, {space.dims.batch, space.dims.keys});
    MaskPlanner planner{parts.nodes, context};
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

/// Whether NaN or +inf occurs in `e`: such a score takes a whole row over.
static bool takesOver(ExprRef e, unsigned depth) {
  if (depth > 16)
    return false;
  if (e->is(Kind::Float))
    return std::isnan(e->number) || (std::isinf(e->number) && e->number > 0);
  return llvm::any_of(e->operands,
                      [&](ExprRef x) { return takesOver(x, depth + 1); });
}

LogicalResult MaskBuilder::finish() {
  for (const MaskTerm &term : terms)
    if (term.element && takesOver(term.element, 0))
      return site.refuse(term.tensor ? term.tensor.getDefiningOp() : site.core,
                         "the mask adds +inf or NaN", term.tensor);
  Parts parts;
  parts.nodes = site.nodes;
  parts.visible = ctx.getBool(true);
  for (const MaskTerm &term : terms) {
    bool explained = false;
    for (Parts::Reading reading :
         {Parts::Reading::Parts, Parts::Reading::NoBand,
          Parts::Reading::Whole}) {
      Parts tried = parts;
      tried.reading = reading;
      if (!explain(term, tried))
        continue;
      // The band must still fit with this term's part of it.
      Parts band = tried;
      if (!resolveBand(band))
        continue;
      parts = std::move(tried);
      explained = true;
      break;
    }
    if (!explained && !whole(term, parts))
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
      return site.refuse(
          site.core,
          "rows without a visible key depend on the numbers that "
          "mask them, and the masks cannot be operands",
          term.tensor);
  if (commit(plain))
    return success();
  return site.refuse(site.core, "the masks cannot be combined",
                     terms.empty() ? Value() : terms.front().tensor);
}

double prefill::lowestNumber(Type type) {
  return APFloat::getLargest(cast<FloatType>(type).getFloatSemantics(),
                             /*Negative=*/true)
      .convertToDouble();
}

void prefill::hideLowNumbers(SymbolicAnalysis &analysis, AttentionSite &site,
                             double limit) {
  PlannedValue bias = site.bias;
  auto type = dyn_cast_or_null<TensorType>(
      bias.kind == PlannedValue::Kind::Existing
          ? analysis.inferredType(bias.value)
          : site.nodes[bias.node].resultTypes[bias.result]);
  if (!type)
    return (void)site.refuse(site.core, "the type of the bias is not known");
  if (!isFloat(type.getElementType()))
    return;
  auto number = [&](double value) {
    APFloat rounded(value);
    bool inexact = false;
    rounded.convert(cast<FloatType>(type.getElementType()).getFloatSemantics(),
                    APFloat::rmNearestTiesToEven, &inexact);
    return site.planConstant(DenseElementsAttr::get(
        RankedTensorType::get({}, type.getElementType()), rounded));
  };
  PlannedValue low =
      site.plan("LessOrEqual", {bias, number(limit)},
                type.clone(IntegerType::get(type.getContext(), 1)));
  site.bias = site.plan(
      "Where", {low, number(-std::numeric_limits<double>::infinity()), bias},
      type);
}

LogicalResult prefill::applyMask(SymbolicAnalysis &analysis,
                                 AttentionSite &site, Value mask,
                                 const MaskDims &dims, bool &neverEmpty) {
  neverEmpty = false;
  if (!dims.batch || !dims.heads || !dims.rows || !dims.keys)
    return failure();
  ScoreSpace space(analysis.expressions(), dims);
  const TensorFacts &f = analysis.facts(mask);
  Value q =
      site.q.kind == PlannedValue::Kind::Existing ? site.q.value : Value();
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
