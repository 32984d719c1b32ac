//===- ElementRules.cpp - Elements of results from elements of inputs -----===//
//
// An abstract interpreter for integer, boolean and mask tensors: the element of
// a result at symbolic indices as an expression. Null where a rule is not sure.
//
//===----------------------------------------------------------------------===//

#include "Rules.h"

#include "llvm/ADT/APFloat.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringSet.h"

#include <cmath>

using namespace mlir;
using namespace prefill;
using Kind = Expr::Kind;

/// `v` as an element of `type` holds it.
static double roundTo(double v, Type type) {
  auto floatType = dyn_cast_or_null<FloatType>(type);
  if (!floatType || floatType.isF64())
    return v;
  llvm::APFloat value(v);
  bool losesInfo;
  value.convert(floatType.getFloatSemantics(),
                llvm::APFloat::rmNearestTiesToEven, &losesInfo);
  value.convert(llvm::APFloat::IEEEdouble(), llvm::APFloat::rmNearestTiesToEven,
                &losesInfo);
  return value.convertToDouble();
}

/// Integers up to this are exact in `type`, so that arithmetic on them is that
/// of integers (positions never get near 2^24).
static bool holdsPositions(Type type) { return type.isF32() || type.isF64(); }

/// a ? x : y with numbers for x and y.
static bool isNumberSelect(ExprRef a) {
  return a->is(Kind::Select) && a->operands[1]->asNumber() &&
         a->operands[2]->asNumber();
}

ExprRef ElementRules::operand(unsigned i) {
  Value input = node.getInput(i);
  const TensorFacts &out = analysis.facts(node.getResult(result));
  if (!input || !out.ranked || out.shape.size() != indices.size())
    return nullptr;
  return analysis.broadcastElement(input, indices, out.shape);
}

Type ElementRules::type(unsigned i) {
  Value input = node.getInput(i);
  return input ? analysis.facts(input).elementType : Type();
}

ExprRef ElementRules::cast(ExprRef a, Type from, Type to) {
  if (!from || !to)
    return nullptr;
  if (from == to)
    return a;
  if (isNumberSelect(a)) {
    ExprRef x = cast(a->operands[1], from, to);
    ExprRef y = cast(a->operands[2], from, to);
    return x && y ? ctx.select(a->operands[0], x, y) : nullptr;
  }
  if (isBool(from)) {
    if (isFloat(to))
      return ctx.select(a, ctx.getFloat(1), ctx.getFloat(0));
    if (isIntegerLike(to))
      return ctx.select(a, ctx.getInt(1), ctx.getInt(0));
    return nullptr;
  }
  if (isIntegerLike(from)) {
    if (isBool(to))
      return ctx.logicalNot(ctx.eq0(a));
    if (isFloat(to))
      return a->is(Kind::Int)
                 ? ctx.getFloat(roundTo(static_cast<double>(a->integer), to))
             : holdsPositions(to) ? ctx.toFloat(a)
                                  : ctx.apply("Cast", {a});
    // Positions fit into 32 bits; smaller integers may wrap.
    if (isIntegerLike(to) && to.getIntOrFloatBitWidth() >= 32)
      return a;
    return a->is(Kind::Int) && a->integer >= 0 && a->integer < 128 ? a
                                                                   : nullptr;
  }
  if (!isFloat(from))
    return nullptr;
  if (a->is(Kind::Float)) {
    if (isFloat(to))
      return ctx.getFloat(roundTo(a->number, to));
    if (isBool(to))
      return ctx.getBool(a->number != 0);
    if (isIntegerLike(to) && std::abs(a->number) < 1e15)
      return ctx.getInt(static_cast<int64_t>(a->number));
    return nullptr;
  }
  if (a->is(Kind::ToFloat)) {
    if (isFloat(to) && holdsPositions(to))
      return a;
    if (isIntegerLike(to) || isBool(to))
      return cast(a->operands[0], IntegerType::get(to.getContext(), 64), to);
  }
  if (isFloat(to))
    return ctx.apply("Cast", {a});
  return nullptr;
}

ExprRef ElementRules::unary(StringRef op, ExprRef a, Type from, Type to) {
  if (!a)
    return nullptr;
  if (isNumberSelect(a)) {
    ExprRef x = unary(op, a->operands[1], from, to);
    ExprRef y = unary(op, a->operands[2], from, to);
    return x && y ? ctx.select(a->operands[0], x, y) : nullptr;
  }
  if (isIntegerLike(from)) {
    if (op == "Neg")
      return ctx.scale(a, -1);
    if (op == "Abs")
      return ctx.max(a, ctx.scale(a, -1));
    return nullptr;
  }
  if (!isFloat(from))
    return nullptr;
  if (op == "Neg" && a->is(Kind::ToFloat))
    return ctx.toFloat(ctx.scale(a->operands[0], -1));
  if (a->is(Kind::Float)) {
    double v = a->number, r = 0;
    if (op == "IsNaN")
      return ctx.getBool(std::isnan(v));
    if (op == "IsInf")
      return ctx.getBool(
          std::isinf(v) &&
          node.getInt(v < 0 ? "detect_negative" : "detect_positive", 1));
    if (op == "Neg")
      r = -v;
    else if (op == "Abs")
      r = std::abs(v);
    else if (op == "Sqrt")
      r = std::sqrt(v);
    else if (op == "Reciprocal")
      r = 1 / v;
    else if (op == "Exp")
      r = std::exp(v);
    else if (op == "Log")
      r = std::log(v);
    else if (op == "Floor")
      r = std::floor(v);
    else if (op == "Ceil")
      r = std::ceil(v);
    else if (op == "Tanh")
      r = std::tanh(v);
    else
      return ctx.apply(op, {a});
    return ctx.getFloat(roundTo(r, to));
  }
  return ctx.apply(op, {a});
}

ExprRef ElementRules::binary(StringRef op, ExprRef a, ExprRef b, Type type) {
  if (!a || !b)
    return nullptr;
  // Arithmetic with numbers moves into a choice between numbers.
  auto inside = [&](ExprRef choice, bool left) -> ExprRef {
    ExprRef other = left ? b : a;
    ExprRef x = left ? binary(op, choice->operands[1], other, type)
                     : binary(op, other, choice->operands[1], type);
    ExprRef y = left ? binary(op, choice->operands[2], other, type)
                     : binary(op, other, choice->operands[2], type);
    return x && y ? ctx.select(choice->operands[0], x, y) : nullptr;
  };
  if (isNumberSelect(a) && b->asNumber())
    return inside(a, true);
  if (isNumberSelect(b) && a->asNumber())
    return inside(b, false);
  if (isNumberSelect(a) && isNumberSelect(b) &&
      a->operands[0] == b->operands[0]) {
    ExprRef x = binary(op, a->operands[1], b->operands[1], type);
    ExprRef y = binary(op, a->operands[2], b->operands[2], type);
    return x && y ? ctx.select(a->operands[0], x, y) : nullptr;
  }
  if (isIntegerLike(type)) {
    if (op == "Add")
      return ctx.add(a, b);
    if (op == "Sub")
      return ctx.sub(a, b);
    if (op == "Mul")
      return ctx.mul(a, b);
    if (op == "Max")
      return ctx.max(a, b);
    if (op == "Min")
      return ctx.min(a, b);
    // Integer division truncates; it is the floor where nothing is negative.
    bool plain = ctx.proveNonNegative(a) &&
                 (ctx.provePositive(b) ||
                  (!b->is(Kind::Int) && ctx.proveNonNegative(b)));
    if (op == "Div" && plain)
      return ctx.floorDiv(a, b);
    if (op == "Mod" && plain)
      return ctx.mod(a, b);
    return nullptr;
  }
  if (!isFloat(type))
    return nullptr;
  if (a->is(Kind::Float) && b->is(Kind::Float)) {
    double x = a->number, y = b->number, r;
    if (op == "Add")
      r = x + y;
    else if (op == "Sub")
      r = x - y;
    else if (op == "Mul")
      r = x * y;
    else if (op == "Div")
      r = x / y;
    else if (op == "Pow")
      r = std::pow(x, y);
    else if (op == "Max")
      r = std::max(x, y);
    else if (op == "Min")
      r = std::min(x, y);
    else
      return nullptr;
    return ctx.getFloat(roundTo(r, type));
  }
  // Whole numbers stay integers.
  auto whole = [&](ExprRef e) -> ExprRef {
    if (e->is(Kind::ToFloat))
      return e->operands[0];
    if (e->is(Kind::Float) && std::trunc(e->number) == e->number &&
        std::abs(e->number) < 1e9)
      return ctx.getInt(static_cast<int64_t>(e->number));
    return nullptr;
  };
  if (holdsPositions(type))
    if (ExprRef x = whole(a))
      if (ExprRef y = whole(b)) {
        if (op == "Add")
          return ctx.toFloat(ctx.add(x, y));
        if (op == "Sub")
          return ctx.toFloat(ctx.sub(x, y));
        if (op == "Mul")
          return ctx.toFloat(ctx.mul(x, y));
      }
  auto number = [](ExprRef e, double v) {
    return e->is(Kind::Float) && e->number == v;
  };
  if ((op == "Add" || op == "Sub") && number(b, 0))
    return a;
  if (op == "Add" && number(a, 0))
    return b;
  if ((op == "Mul" || op == "Div" || op == "Pow") && number(b, 1))
    return a;
  if (op == "Mul" && number(a, 1))
    return b;
  // Rounding is left aside: x - c is x + (-c).
  if (op == "Sub" && b->is(Kind::Float))
    return ctx.apply("Add", {a, ctx.getFloat(-b->number)});
  return ctx.apply(op, {a, b});
}

ExprRef ElementRules::compare(StringRef op, ExprRef a, ExprRef b) {
  if (!a || !b)
    return nullptr;
  if (isNumberSelect(a) && b->asNumber()) {
    ExprRef x = compare(op, a->operands[1], b);
    ExprRef y = compare(op, a->operands[2], b);
    return x && y ? ctx.select(a->operands[0], x, y) : nullptr;
  }
  if (isNumberSelect(b) && a->asNumber()) {
    ExprRef x = compare(op, a, b->operands[1]);
    ExprRef y = compare(op, a, b->operands[2]);
    return x && y ? ctx.select(b->operands[0], x, y) : nullptr;
  }
  Type in = type(0);
  if (!in)
    return nullptr;
  if (isBool(in)) { // Equal only
    if (op != "Equal")
      return nullptr;
    return ctx.select(a, b, ctx.logicalNot(b));
  }
  if (isFloat(in)) {
    if (a->is(Kind::Float) && b->is(Kind::Float)) {
      double x = a->number, y = b->number;
      return ctx.getBool(op == "Equal"            ? x == y
                         : op == "Less"           ? x < y
                         : op == "LessOrEqual"    ? x <= y
                         : op == "Greater"        ? x > y
                         : op == "GreaterOrEqual" ? x >= y
                                                  : false);
    }
    auto whole = [&](ExprRef e) -> ExprRef {
      if (e->is(Kind::ToFloat))
        return e->operands[0];
      if (e->is(Kind::Float) && std::trunc(e->number) == e->number &&
          std::abs(e->number) < 1e9)
        return ctx.getInt(static_cast<int64_t>(e->number));
      return nullptr;
    };
    a = whole(a);
    b = whole(b);
    if (!a || !b)
      return nullptr;
  } else if (!isIntegerLike(in)) {
    return nullptr;
  }
  ExprRef one = ctx.getInt(1);
  if (op == "Equal")
    return ctx.eq0(ctx.sub(a, b));
  if (op == "Less")
    return ctx.ge0(ctx.sub(ctx.sub(b, a), one));
  if (op == "LessOrEqual")
    return ctx.ge0(ctx.sub(b, a));
  if (op == "Greater")
    return ctx.ge0(ctx.sub(ctx.sub(a, b), one));
  if (op == "GreaterOrEqual")
    return ctx.ge0(ctx.sub(a, b));
  return nullptr;
}

//===----------------------------------------------------------------------===//
// Ops that move elements by more than a view
//===----------------------------------------------------------------------===//

/// Whether `whole` at the place where `e` is `offset` is `first`: whole is a
/// formula in an index variable that e = variable + number moves along.
static bool continues(ExprContext &ctx, ExprRef whole, ExprRef first, ExprRef e,
                      ExprRef offset) {
  ArrayRef<ExprRef> candidates =
      e->is(Kind::Sum) ? e->operands : ArrayRef<ExprRef>(e);
  for (ExprRef variable : candidates) {
    if (!variable->is(Kind::Index))
      continue;
    auto split = ctx.splitLinear(ctx.sub(e, offset), variable);
    if (!split || split->first != 1)
      continue;
    ExprRef there =
        ctx.substitute(whole, variable, ctx.scale(split->second, -1));
    if (!ctx.dependsOn(there, variable) && ctx.proveEqual(there, first))
      return true;
  }
  return false;
}

ExprRef ElementRules::concat() {
  auto axis = normalizeAxis(node.getInt("axis", 0), indices.size());
  if (!axis)
    return nullptr;
  ExprRef e = indices[*axis], offset = ctx.getInt(0);
  // From the front: parts that e is proven to be past are skipped; the first
  // that it may be in is it, or a choice.
  struct Part {
    ExprRef isBefore; ///< e is in this part or an earlier one
    ExprRef element;
    ExprRef length, offset;
  };
  SmallVector<Part> parts;
  for (Value input : node.getInputs()) {
    const TensorFacts &f = analysis.facts(input);
    if (!f.ranked || f.shape.size() != indices.size())
      return nullptr;
    ExprRef length = f.shape[*axis], end = ctx.add(offset, length);
    ExprRef before = ctx.ge0(ctx.sub(ctx.sub(end, e), ctx.getInt(1)));
    if (!before->isFalse()) {
      Indices mapped(indices);
      ExprRef inside = ctx.sub(e, offset);
      // In this part the index is between 0 and the length, which the
      // expression alone does not say.
      ExprRef variable =
          ctx.getIndex("part" + std::to_string(analysis.depth), length);
      bool bounded = inside->is(Kind::Int) || inside->is(Kind::Index);
      mapped[*axis] = bounded ? inside : variable;
      ExprRef element = analysis.element(input, mapped);
      if (!bounded)
        element = ctx.substitute(element, variable, inside);
      if (!bounded && ctx.dependsOn(element, variable))
        return nullptr;
      parts.push_back({before, element, length, offset});
      if (before->isTrue() || parts.size() > 3)
        break;
    }
    offset = end;
  }
  if (parts.empty() || parts.size() > 3)
    return nullptr;
  ExprRef whole = parts.back().element;
  for (const Part &part : llvm::reverse(ArrayRef(parts).drop_back())) {
    // A part of one element that continues what follows is no case of its own:
    // x[0] - 1 before x, where x is a range.
    if (part.length->isInt(1) &&
        continues(ctx, whole, part.element, e, part.offset))
      continue;
    whole = ctx.select(part.isBefore, part.element, whole);
  }
  return whole;
}

ExprRef ElementRules::gather() {
  Value data = node.getInput(0), where = node.getInput(1);
  const TensorFacts &d = analysis.facts(data), &w = analysis.facts(where);
  if (!d.ranked || !w.ranked)
    return nullptr;
  auto axis = normalizeAxis(node.getInt("axis", 0), d.shape.size());
  if (!axis)
    return nullptr;
  ArrayRef<ExprRef> at = indices.slice(*axis, w.shape.size());
  ExprRef e = analysis.element(where, at);
  if (e->is(Kind::Int) && e->integer < 0)
    e = ctx.add(d.shape[*axis], e);
  if (!ctx.proveNonNegative(e))
    return nullptr;
  Indices mapped(indices.begin(), indices.begin() + *axis);
  mapped.push_back(e);
  mapped.append(indices.begin() + *axis + w.shape.size(), indices.end());
  return analysis.element(data, mapped);
}

ExprRef ElementRules::gatherND() {
  Value data = node.getInput(0), where = node.getInput(1);
  const TensorFacts &d = analysis.facts(data), &w = analysis.facts(where);
  if (!d.ranked || !w.ranked || w.shape.empty())
    return nullptr;
  auto count = w.shape.back()->asInt();
  int64_t batch = node.getInt("batch_dims", 0);
  size_t outer = w.shape.size() - 1;
  if (!count || *count > 8 || outer > indices.size() ||
      batch > static_cast<int64_t>(outer))
    return nullptr;
  Indices mapped(indices.begin(), indices.begin() + batch);
  for (int64_t k = 0; k < *count; ++k) {
    Indices at(indices.begin(), indices.begin() + outer);
    at.push_back(ctx.getInt(k));
    ExprRef e = analysis.element(where, at);
    size_t axis = mapped.size();
    if (axis >= d.shape.size())
      return nullptr;
    if (e->is(Kind::Int) && e->integer < 0)
      e = ctx.add(d.shape[axis], e);
    if (!ctx.proveNonNegative(e))
      return nullptr;
    mapped.push_back(e);
  }
  mapped.append(indices.begin() + outer, indices.end());
  if (mapped.size() != d.shape.size())
    return nullptr;
  return analysis.element(data, mapped);
}

ExprRef ElementRules::cumSum() {
  Value input = node.getInput(0);
  const TensorFacts &f = analysis.facts(input);
  auto axes = analysis.constantInts(node.getInput(1));
  if (!axes || axes->size() != 1 || !f.ranked || !isIntegerLike(f.elementType))
    return nullptr;
  auto axis = normalizeAxis((*axes)[0], f.shape.size());
  if (!axis)
    return nullptr;
  // Only a summand that is the same all along the axis gives a closed form.
  Indices mapped(indices);
  ExprRef variable = ctx.getIndex("sum", f.shape[*axis]);
  mapped[*axis] = variable;
  ExprRef summand = analysis.element(input, mapped);
  if (ctx.dependsOn(summand, variable))
    return nullptr;
  ExprRef count = node.getInt("reverse", 0)
                      ? ctx.sub(f.shape[*axis], indices[*axis])
                      : ctx.add(indices[*axis], ctx.getInt(1));
  if (node.getInt("exclusive", 0))
    count = ctx.sub(count, ctx.getInt(1));
  return ctx.mul(summand, count);
}

ExprRef ElementRules::range() {
  auto start = analysis.elements(node.getInput(0));
  auto delta = analysis.elements(node.getInput(2));
  if (!start || !delta || start->size() != 1 || delta->size() != 1)
    return nullptr;
  ExprRef s = (*start)[0], d = (*delta)[0];
  if (isIntegerLike(type(0)))
    return ctx.add(s, ctx.mul(d, indices[0]));
  // A float range over whole numbers.
  auto wholeStart = s->asNumber(), wholeDelta = d->asNumber();
  if (!wholeStart || !wholeDelta || !type(0) || !holdsPositions(type(0)) ||
      std::trunc(*wholeStart) != *wholeStart || *wholeDelta != 1)
    return nullptr;
  return ctx.toFloat(
      ctx.add(ctx.getInt(static_cast<int64_t>(*wholeStart)), indices[0]));
}

ExprRef ElementRules::trilu() {
  if (indices.size() < 2)
    return nullptr;
  int64_t k = 0;
  if (Value diagonal = node.getInput(1)) {
    auto given = analysis.constantInts(diagonal);
    if (!given || given->size() != 1)
      return nullptr;
    k = (*given)[0];
  }
  ExprRef row = indices[indices.size() - 2], column = indices.back();
  ExprRef past = ctx.sub(ctx.sub(column, row), ctx.getInt(k));
  ExprRef kept =
      node.getInt("upper", 1) ? ctx.ge0(past) : ctx.ge0(ctx.scale(past, -1));
  ExprRef inner = analysis.element(node.getInput(0), indices);
  Type t = type(0);
  ExprRef zero = isFloat(t)  ? ctx.getFloat(0)
                 : isBool(t) ? ctx.getBool(false)
                             : ctx.getInt(0);
  return t ? ctx.select(kept, inner, zero) : nullptr;
}

ExprRef ElementRules::pad() {
  auto pads = padAxes(analysis, node);
  const TensorFacts &f = analysis.facts(node.getInput(0));
  if (!pads || pads->size() != indices.size() ||
      node.getString("mode", "constant") != "constant")
    return nullptr;
  Type t = type(0);
  ExprRef fill = isFloat(t)  ? ctx.getFloat(node.getFloat("value", 0))
                 : isBool(t) ? ctx.getBool(false)
                             : ctx.getInt(0);
  if (Value given = node.getInput(2)) {
    auto number = analysis.elements(given);
    if (!number || number->size() != 1)
      return nullptr;
    fill = (*number)[0];
  }
  ExprRef inside = ctx.getBool(true);
  Indices mapped;
  SmallVector<std::pair<ExprRef, ExprRef>> variables;
  for (auto [axis, e] : llvm::enumerate(indices)) {
    const PadAxis &p = (*pads)[axis];
    ExprRef at = ctx.sub(e, p.before);
    ExprRef first = ctx.ge0(at);
    ExprRef last = ctx.ge0(ctx.sub(ctx.sub(f.shape[axis], at), ctx.getInt(1)));
    if (!first->isTrue() || !last->isTrue()) {
      // Inside, the index is in bounds, which the expression does not say.
      ExprRef variable = ctx.getIndex("pad" + std::to_string(analysis.depth) +
                                          "." + std::to_string(axis),
                                      f.shape[axis]);
      variables.push_back({variable, at});
      at = variable;
    }
    inside = ctx.logicalAnd(inside, ctx.logicalAnd(first, last));
    mapped.push_back(at);
  }
  ExprRef element = analysis.element(node.getInput(0), mapped);
  for (auto [variable, at] : variables) {
    element = ctx.substitute(element, variable, at);
    if (ctx.dependsOn(element, variable))
      return nullptr;
  }
  return ctx.select(inside, element, fill);
}

ExprRef ElementRules::run() {
  StringRef op = node.getOpType();
  if (!node.getDomain().empty() || node->getNumRegions() != 0)
    return nullptr;
  const TensorFacts &out = analysis.facts(node.getResult(result));
  Type to = out.elementType;
  if (auto step = analysis.viewStep(node, result, indices))
    return analysis.element(step->value, step->indices);
  static const llvm::StringSet<> arithmetic = {"Add", "Sub", "Mul",
                                               "Div", "Mod", "Pow"};
  static const llvm::StringSet<> comparisons = {"Equal", "Less", "LessOrEqual",
                                                "Greater", "GreaterOrEqual"};
  static const llvm::StringSet<> unaries = {
      "Neg",  "Abs",  "Sqrt",  "Reciprocal", "Exp", "Log", "Floor",
      "Ceil", "Tanh", "IsNaN", "IsInf",      "Sin", "Cos", "Sigmoid"};
  if (arithmetic.contains(op)) {
    if (op == "Pow" && type(0) != type(1)) {
      ExprRef power = operand(1);
      auto number = power ? power->asNumber() : std::nullopt;
      return number ? binary(op, operand(0), ctx.getFloat(*number), to)
                    : nullptr;
    }
    if (op == "Mod" && node.getInt("fmod", 0))
      return nullptr;
    return binary(op, operand(0), operand(1), to);
  }
  if (comparisons.contains(op))
    return compare(op, operand(0), operand(1));
  // Which infinities count is not part of the name.
  if (op == "IsInf" && !(node.getInt("detect_negative", 1) &&
                         node.getInt("detect_positive", 1))) {
    ExprRef a = operand(0);
    bool numbers = a && (a->is(Kind::Float) || isNumberSelect(a));
    return numbers ? unary(op, a, type(0), to) : nullptr;
  }
  if (unaries.contains(op))
    return unary(op, operand(0), type(0), to);
  if (op == "Max" || op == "Min") {
    ExprRef value = operand(0);
    for (unsigned i = 1; i < node.getInputs().size(); ++i)
      value = binary(op, value, operand(i), to);
    return value;
  }
  if (op == "And" || op == "Or" || op == "Xor") {
    ExprRef a = operand(0), b = operand(1);
    if (!a || !b)
      return nullptr;
    return op == "And"  ? ctx.logicalAnd(a, b)
           : op == "Or" ? ctx.logicalOr(a, b)
                        : ctx.select(a, ctx.logicalNot(b), b);
  }
  if (op == "Not") {
    ExprRef a = operand(0);
    return a ? ctx.logicalNot(a) : nullptr;
  }
  if (op == "Where") {
    ExprRef c = operand(0), a = operand(1), b = operand(2);
    return c && a && b ? ctx.select(c, a, b) : nullptr;
  }
  if (op == "Cast" || op == "CastLike") {
    ExprRef a = analysis.element(node.getInput(0), indices);
    return cast(a, type(0), to);
  }
  if (op == "Shape") {
    const TensorFacts &f = analysis.facts(node.getInput(0));
    auto k = indices[0]->asInt();
    if (!f.ranked || !k)
      return nullptr;
    int64_t rank = f.shape.size(), start = node.getInt("start", 0);
    if (start < 0)
      start += rank;
    int64_t axis = std::clamp<int64_t>(start, 0, rank) + *k;
    return axis >= 0 && axis < rank ? f.shape[axis] : nullptr;
  }
  if (op == "Size") {
    const TensorFacts &f = analysis.facts(node.getInput(0));
    if (!f.ranked)
      return nullptr;
    ExprRef total = ctx.getInt(1);
    for (ExprRef e : f.shape)
      total = ctx.mul(total, e);
    return total;
  }
  if (op == "ConstantOfShape") {
    auto value = dyn_cast_or_null<DenseElementsAttr>(
        onnx::unwrap(node.getAttrOfName("value")));
    if (!value)
      return node.getAttrOfName("value") ? nullptr : ctx.getFloat(0);
    if (value.getNumElements() != 1)
      return nullptr;
    if (isFloat(to))
      return ctx.getFloat(
          (*value.getValues<APFloat>().begin()).convertToDouble());
    APInt bits = *value.getValues<APInt>().begin();
    if (isBool(to))
      return ctx.getBool(!bits.isZero());
    return bits.getBitWidth() <= 64 ? ctx.getInt(bits.getSExtValue()) : nullptr;
  }
  if (op == "Concat")
    return concat();
  if (op == "Gather")
    return gather();
  if (op == "GatherND")
    return gatherND();
  if (op == "CumSum")
    return cumSum();
  if (op == "Range")
    return range();
  if (op == "Trilu")
    return trilu();
  if (op == "Pad")
    return pad();
  if (op == "EyeLike" && indices.size() == 2) {
    ExprRef diagonal = ctx.eq0(ctx.sub(
        ctx.add(indices[0], ctx.getInt(node.getInt("k", 0))), indices[1]));
    if (isFloat(to))
      return ctx.select(diagonal, ctx.getFloat(1), ctx.getFloat(0));
    return isBool(to) ? diagonal
                      : ctx.select(diagonal, ctx.getInt(1), ctx.getInt(0));
  }
  return nullptr;
}
