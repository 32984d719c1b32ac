//===- SymbolicExpr.cpp - Expressions over dimensions and indices ---------===//

#include "SymbolicExprParts.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/Format.h"
#include "llvm/Support/MathExtras.h"

#include <cmath>
#include <cstring>

using namespace prefill;
using namespace prefill::expr_limits;
using llvm::ArrayRef;
using Kind = Expr::Kind;

std::optional<int64_t> Expr::asInt() const {
  return kind == Kind::Int ? std::optional<int64_t>(integer) : std::nullopt;
}

std::optional<double> Expr::asNumber() const {
  if (kind == Kind::Int || kind == Kind::Bool)
    return static_cast<double>(integer);
  if (kind == Kind::Float)
    return number;
  return std::nullopt;
}

static void profile(llvm::FoldingSetNodeID &id, Kind kind,
                    llvm::ArrayRef<ExprRef> operands,
                    llvm::ArrayRef<int64_t> coefficients, int64_t integer,
                    double number, mlir::Value value, llvm::StringRef name) {
  id.AddInteger(static_cast<unsigned>(kind));
  id.AddInteger(integer);
  uint64_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  id.AddInteger(bits);
  id.AddPointer(value.getAsOpaquePointer());
  id.AddString(name);
  id.AddInteger(static_cast<unsigned>(operands.size()));
  for (ExprRef e : operands)
    id.AddPointer(e);
  for (int64_t c : coefficients)
    id.AddInteger(c);
}

void Expr::Profile(llvm::FoldingSetNodeID &id) const {
  profile(id, kind, operands, coefficients, integer, number, value, name);
}

ExprContext::ExprContext() = default;

ExprRef ExprContext::intern(Kind kind, llvm::ArrayRef<ExprRef> operands,
                            llvm::ArrayRef<int64_t> coefficients,
                            int64_t integer, double number, mlir::Value value,
                            llvm::StringRef name) {
  unsigned height = 0;
  for (ExprRef e : operands)
    height = std::max(height, e->height + 1);
  if (height > maxHeight) {
    // What it was made of stays its identity.
    llvm::SmallVector<int64_t, 8> identity(coefficients);
    for (ExprRef e : operands)
      identity.push_back(e->id);
    identity.push_back(static_cast<int64_t>(kind));
    return intern(Kind::Deep, {}, identity, integer, number, value, name);
  }
  llvm::FoldingSetNodeID id;
  profile(id, kind, operands, coefficients, integer, number, value, name);
  void *position = nullptr;
  if (Expr *found = set.FindNodeOrInsertPos(id, position))
    return found;
  Expr *e = new (allocator) Expr();
  e->kind = kind;
  e->operands = operands.copy(allocator);
  e->coefficients = coefficients.copy(allocator);
  e->integer = integer;
  e->number = number;
  e->value = value;
  e->name = name.copy(allocator);
  e->height = height;
  e->id = nextId++;
  set.InsertNode(e, position);
  return e;
}

//===----------------------------------------------------------------------===//
// Leaves
//===----------------------------------------------------------------------===//

ExprRef ExprContext::getInt(int64_t value) {
  return intern(Kind::Int, {}, {}, value);
}
ExprRef ExprContext::getBool(bool value) {
  return intern(Kind::Bool, {}, {}, value);
}
ExprRef ExprContext::getFloat(double value) {
  return intern(Kind::Float, {}, {}, 0, value);
}
ExprRef ExprContext::getSymbol(llvm::StringRef name) {
  return intern(Kind::Symbol, {}, {}, 0, 0, {}, name);
}
ExprRef ExprContext::freshSymbol(llvm::StringRef hint) {
  // No declared name can hold a space, so that fresh ones never clash.
  return getSymbol((hint + " " + llvm::Twine(nextFresh++)).str());
}
ExprRef ExprContext::getIndex(llvm::StringRef name, ExprRef bound) {
  return intern(Kind::Index, {bound}, {}, 0, 0, {}, name);
}
ExprRef ExprContext::getLoad(mlir::Value value,
                             llvm::ArrayRef<ExprRef> indices) {
  return intern(Kind::Load, indices, {}, 0, 0, value);
}

//===----------------------------------------------------------------------===//
// Polynomials
//===----------------------------------------------------------------------===//

bool ExprContext::addTerms(Terms &terms, ExprRef a, int64_t factor) {
  auto scaled = [&](int64_t c) {
    int64_t result = 0;
    terms.overflow |= llvm::MulOverflow(c, factor, result);
    return result;
  };
  if (a->is(Kind::Int)) {
    terms.addConstant(scaled(a->integer));
  } else if (a->is(Kind::Sum)) {
    terms.addConstant(scaled(a->integer));
    for (auto [m, c] : llvm::zip_equal(a->operands, a->coefficients))
      terms.add(m, scaled(c));
  } else {
    terms.add(a, factor);
  }
  return !terms.overflow;
}

ExprRef ExprContext::fromTerms(Terms &terms) {
  if (terms.overflow)
    return nullptr;
  llvm::erase_if(terms.list, [](auto &t) { return t.second == 0; });
  // b * (r / b) + r % b is r: an index split by one Reshape and joined by the
  // next.
  for (size_t i = 0; i < terms.list.size(); ++i) {
    auto [m, c] = terms.list[i];
    if (!m->is(Kind::Mod))
      continue;
    ExprRef quotient = intern(Kind::FloorDiv, m->operands);
    ExprRef whole = scale(mul(quotient, m->operands[1]), c);
    if (!whole->is(Kind::Sum) || whole->integer != 0)
      continue;
    bool all = true;
    for (auto [wm, wc] : llvm::zip_equal(whole->operands, whole->coefficients))
      all &= llvm::is_contained(terms.list, std::make_pair(wm, wc));
    if (!all)
      continue;
    terms.list.erase(terms.list.begin() + i);
    if (!addTerms(terms, whole, -1) || !addTerms(terms, m->operands[0], c))
      return nullptr;
    return fromTerms(terms);
  }
  if (terms.list.size() > maxTerms)
    return nullptr;
  if (terms.list.empty())
    return getInt(terms.constant);
  if (terms.list.size() == 1 && terms.constant == 0 &&
      terms.list[0].second == 1)
    return terms.list[0].first;
  llvm::sort(terms.list,
             [](auto &x, auto &y) { return x.first->id < y.first->id; });
  llvm::SmallVector<ExprRef, 8> operands;
  llvm::SmallVector<int64_t, 8> coefficients;
  for (auto [m, c] : terms.list) {
    operands.push_back(m);
    coefficients.push_back(c);
  }
  return intern(Kind::Sum, operands, coefficients, terms.constant);
}

ExprRef ExprContext::product(llvm::ArrayRef<ExprRef> atoms) {
  if (atoms.size() == 1)
    return atoms[0];
  llvm::SmallVector<ExprRef, 4> sorted(atoms);
  llvm::sort(sorted, [](ExprRef x, ExprRef y) { return x->id < y->id; });
  return intern(Kind::Product, sorted);
}

/// A Select between two numbers: arithmetic with numbers moves into it, so that
/// masks stay recognisable.
static bool isNumberSelect(ExprRef a) {
  return a->is(Kind::Select) && a->operands[1]->is(Kind::Int) &&
         a->operands[2]->is(Kind::Int);
}

ExprRef ExprContext::add(ExprRef a, ExprRef b) {
  if (isNumberSelect(b))
    std::swap(a, b);
  if (isNumberSelect(a) && b->is(Kind::Int))
    return select(a->operands[0], add(a->operands[1], b),
                  add(a->operands[2], b));
  Terms terms;
  if (addTerms(terms, a, 1) && addTerms(terms, b, 1))
    if (ExprRef sum = fromTerms(terms))
      return sum;
  return apply("+", {a, b});
}

ExprRef ExprContext::sub(ExprRef a, ExprRef b) { return add(a, scale(b, -1)); }

ExprRef ExprContext::scale(ExprRef a, int64_t factor) {
  if (isNumberSelect(a))
    return select(a->operands[0], scale(a->operands[1], factor),
                  scale(a->operands[2], factor));
  Terms terms;
  if (addTerms(terms, a, factor))
    if (ExprRef sum = fromTerms(terms))
      return sum;
  return apply("*", {a, getInt(factor)});
}

ExprRef ExprContext::mul(ExprRef a, ExprRef b) {
  if (a->is(Kind::Int))
    return scale(b, a->integer);
  if (b->is(Kind::Int))
    return scale(a, b->integer);
  Terms x, y, result;
  bool fits = addTerms(x, a, 1) && addTerms(y, b, 1) &&
              (x.list.size() + 1) * (y.list.size() + 1) <= 4 * maxTerms;
  if (fits) {
    int64_t constant = 0;
    fits &= !llvm::MulOverflow(x.constant, y.constant, constant);
    result.addConstant(constant);
    for (auto [m, c] : x.list)
      if (y.constant)
        fits &= addTerms(result, m, 0) &&
                !llvm::MulOverflow(c, y.constant, constant) &&
                addTerms(result, m, constant);
    for (auto [m, c] : y.list)
      if (x.constant)
        fits &= !llvm::MulOverflow(c, x.constant, constant) &&
                addTerms(result, m, constant);
    for (auto [m, c] : x.list)
      for (auto [n, d] : y.list) {
        llvm::SmallVector<ExprRef, 4> atoms(atomsOf(m));
        llvm::append_range(atoms, atomsOf(n));
        if (atoms.size() > maxDegree || llvm::MulOverflow(c, d, constant)) {
          fits = false;
          break;
        }
        result.add(product(atoms), constant);
      }
  }
  if (fits)
    if (ExprRef sum = fromTerms(result))
      return sum;
  if (a->id > b->id)
    std::swap(a, b);
  return apply("*", {a, b});
}

/// m without the atoms of n, or nothing when n does not divide m.
static std::optional<llvm::SmallVector<ExprRef, 4>>
divideMonomial(llvm::ArrayRef<ExprRef> m, llvm::ArrayRef<ExprRef> n) {
  llvm::SmallVector<ExprRef, 4> rest(m);
  for (ExprRef atom : n) {
    auto *it = llvm::find(rest, atom);
    if (it == rest.end())
      return std::nullopt;
    rest.erase(it);
  }
  return rest;
}

/// A monomial order: by degree, then by atoms.
static bool monomialLess(llvm::ArrayRef<ExprRef> a, llvm::ArrayRef<ExprRef> b) {
  if (a.size() != b.size())
    return a.size() < b.size();
  for (auto [x, y] : llvm::zip_equal(a, b))
    if (x != y)
      return x->id < y->id;
  return false;
}

namespace {
/// The leading monomial of a polynomial; no atoms for a constant.
struct Lead {
  llvm::ArrayRef<ExprRef> atoms;
  int64_t coefficient = 0;
};
} // namespace

static Lead leadOf(const ExprRef &a) {
  if (a->is(Kind::Int))
    return {{}, a->integer};
  if (!a->is(Kind::Sum))
    return {atomsOf(a), 1};
  Lead lead;
  for (size_t i = 0; i < a->operands.size(); ++i)
    if (!lead.coefficient || monomialLess(lead.atoms, atomsOf(a->operands[i])))
      lead = {atomsOf(a->operands[i]), a->coefficients[i]};
  return lead;
}

/// Polynomial division: a = b * first + second, as far as terms divide.
static std::pair<ExprRef, ExprRef> divide(ExprContext &ctx, ExprRef a,
                                          ExprRef b) {
  Lead lead = leadOf(b);
  ExprRef quotient = ctx.getInt(0), rest = a;
  for (unsigned step = 0; step < 2 * maxTerms; ++step) {
    // The largest term of the rest that the leading term of b divides.
    std::optional<llvm::SmallVector<ExprRef, 4>> best;
    int64_t bestCoefficient = 0;
    auto consider = [&](llvm::ArrayRef<ExprRef> atoms, int64_t coefficient) {
      int64_t c = llvm::divideFloorSigned(coefficient, lead.coefficient);
      auto q = divideMonomial(atoms, lead.atoms);
      if (c == 0 || !q || (best && !monomialLess(*best, *q)))
        return;
      best = q;
      bestCoefficient = c;
    };
    if (rest->is(Kind::Sum)) {
      for (size_t i = 0; i < rest->operands.size(); ++i)
        consider(atomsOf(rest->operands[i]), rest->coefficients[i]);
      if (rest->integer)
        consider({}, rest->integer);
    } else if (rest->is(Kind::Int)) {
      if (rest->integer)
        consider({}, rest->integer);
    } else {
      consider(atomsOf(rest), 1);
    }
    if (!best)
      break;
    ExprRef part = ctx.getInt(bestCoefficient);
    for (ExprRef atom : *best)
      part = ctx.mul(part, atom);
    quotient = ctx.add(quotient, part);
    rest = ctx.sub(rest, ctx.mul(part, b));
  }
  return {quotient, rest};
}

ExprRef ExprContext::exactDiv(ExprRef a, ExprRef b) {
  if (b->isInt(0))
    return nullptr;
  auto [quotient, rest] = divide(*this, a, b);
  return rest->isInt(0) ? quotient : nullptr;
}

ExprRef ExprContext::floorDiv(ExprRef a, ExprRef b) {
  if (b->isInt(1))
    return a;
  if (b->is(Kind::Int) && b->integer <= 0)
    return apply("/", {a, b});
  auto [quotient, rest] = divide(*this, a, b);
  if (rest->isInt(0))
    return quotient;
  if (proveNonNegative(rest) && proveNonNegative(sub(sub(b, rest), getInt(1))))
    return quotient;
  ExprRef atom;
  // floor(floor(x / c) / b) = floor(x / (c * b)) for positive c, b.
  if (rest->is(Kind::FloorDiv))
    atom =
        intern(Kind::FloorDiv, {rest->operands[0], mul(rest->operands[1], b)});
  else
    atom = intern(Kind::FloorDiv, {rest, b});
  return add(quotient, atom);
}

ExprRef ExprContext::mod(ExprRef a, ExprRef b) {
  if (b->isInt(1))
    return getInt(0);
  if (b->is(Kind::Int) && b->integer <= 0)
    return apply("%", {a, b});
  ExprRef rest = divide(*this, a, b).second;
  if (rest->isInt(0) || (proveNonNegative(rest) &&
                         proveNonNegative(sub(sub(b, rest), getInt(1)))))
    return rest;
  return intern(Kind::Mod, {rest, b});
}

ExprRef ExprContext::min(ExprRef a, ExprRef b) {
  ExprRef difference = sub(a, b);
  if (proveNonNegative(difference))
    return b;
  if (proveNonNegative(scale(difference, -1)))
    return a;
  if (a->id > b->id)
    std::swap(a, b);
  return intern(Kind::Min, {a, b});
}

ExprRef ExprContext::max(ExprRef a, ExprRef b) {
  ExprRef difference = sub(a, b);
  if (proveNonNegative(difference))
    return a;
  if (proveNonNegative(scale(difference, -1)))
    return b;
  if (a->id > b->id)
    std::swap(a, b);
  return intern(Kind::Max, {a, b});
}

std::optional<std::pair<int64_t, ExprRef>>
ExprContext::splitLinear(ExprRef a, ExprRef atom) {
  int64_t coefficient = 0;
  Terms rest;
  Terms all;
  if (!addTerms(all, a, 1))
    return std::nullopt;
  rest.constant = all.constant;
  for (auto [m, c] : all.list) {
    if (m == atom)
      coefficient = c;
    else if (dependsOn(m, atom))
      return std::nullopt;
    else
      rest.add(m, c);
  }
  ExprRef sum = fromTerms(rest);
  if (!sum)
    return std::nullopt;
  return std::make_pair(coefficient, sum);
}

//===----------------------------------------------------------------------===//
// Booleans and the rest
//===----------------------------------------------------------------------===//

ExprRef ExprContext::ge0(ExprRef a) {
  if (isNumberSelect(a))
    return select(a->operands[0], ge0(a->operands[1]), ge0(a->operands[2]));
  if (proveNonNegative(a))
    return getBool(true);
  if (proveNonNegative(sub(getInt(-1), a)))
    return getBool(false);
  // c - max(x, y) >= 0 where both c - x and c - y are; and so on.
  if (splitDepth < 3 &&
      (a->is(Kind::Sum) || a->is(Kind::Min) || a->is(Kind::Max))) {
    ExprRef bound = nullptr;
    for (ExprRef m : a->is(Kind::Sum) ? a->operands : ArrayRef<ExprRef>(a))
      if (m->is(Kind::Min) || m->is(Kind::Max))
        bound = m;
    auto split = bound ? splitLinear(a, bound) : std::nullopt;
    if (split && std::abs(split->first) == 1) {
      auto with = [&](ExprRef x) {
        return ge0(add(split->second, scale(x, split->first)));
      };
      bool both = bound->is(Kind::Min) == (split->first == 1);
      ++splitDepth;
      ExprRef x = with(bound->operands[0]), y = with(bound->operands[1]);
      --splitDepth;
      return both ? logicalAnd(x, y) : logicalOr(x, y);
    }
  }
  return intern(Kind::Ge0, {a});
}

ExprRef ExprContext::eq0(ExprRef a) {
  if (isNumberSelect(a))
    return select(a->operands[0], eq0(a->operands[1]), eq0(a->operands[2]));
  if (a->is(Kind::Int))
    return getBool(a->integer == 0);
  if (provePositive(a) || provePositive(scale(a, -1)))
    return getBool(false);
  if (a->is(Kind::Sum) && a->coefficients[0] < 0)
    a = scale(a, -1);
  return intern(Kind::Eq0, {a});
}

ExprRef ExprContext::logicalNot(ExprRef a) {
  if (a->is(Kind::Bool))
    return getBool(!a->integer);
  if (a->is(Kind::Not))
    return a->operands[0];
  if (a->is(Kind::Ge0)) // not (x >= 0) is -x - 1 >= 0
    return ge0(sub(getInt(-1), a->operands[0]));
  if (a->is(Kind::And) || a->is(Kind::Or)) {
    ExprRef result = logicalNot(a->operands[0]);
    for (ExprRef x : a->operands.drop_front())
      result = a->is(Kind::And) ? logicalOr(result, logicalNot(x))
                                : logicalAnd(result, logicalNot(x));
    return result;
  }
  return intern(Kind::Not, {a});
}

ExprRef ExprContext::logicalAnd(ExprRef a, ExprRef b) {
  if (a->isFalse() || b->isFalse())
    return getBool(false);
  if (a->isTrue() || a == b)
    return b;
  if (b->isTrue())
    return a;
  llvm::SmallVector<ExprRef, 8> list;
  for (ExprRef x : {a, b})
    for (ExprRef y :
         x->is(Kind::And) ? x->operands : llvm::ArrayRef<ExprRef>(x))
      if (!llvm::is_contained(list, y))
        list.push_back(y);
  for (ExprRef x : list)
    if (llvm::is_contained(list, logicalNot(x)))
      return getBool(false);
  if (list.size() > maxTerms)
    return apply("and", {a, b});
  llvm::sort(list, [](ExprRef x, ExprRef y) { return x->id < y->id; });
  return list.size() == 1 ? list[0] : intern(Kind::And, list);
}

ExprRef ExprContext::logicalOr(ExprRef a, ExprRef b) {
  if (a->isTrue() || b->isTrue())
    return getBool(true);
  if (a->isFalse() || a == b)
    return b;
  if (b->isFalse())
    return a;
  llvm::SmallVector<ExprRef, 8> list;
  for (ExprRef x : {a, b})
    for (ExprRef y : x->is(Kind::Or) ? x->operands : llvm::ArrayRef<ExprRef>(x))
      if (!llvm::is_contained(list, y))
        list.push_back(y);
  for (ExprRef x : list)
    if (llvm::is_contained(list, logicalNot(x)))
      return getBool(true);
  if (list.size() > maxTerms)
    return apply("or", {a, b});
  llvm::sort(list, [](ExprRef x, ExprRef y) { return x->id < y->id; });
  return list.size() == 1 ? list[0] : intern(Kind::Or, list);
}

ExprRef ExprContext::toFloat(ExprRef a) {
  if (a->is(Kind::Int))
    return getFloat(static_cast<double>(a->integer));
  if (isNumberSelect(a))
    return select(a->operands[0], toFloat(a->operands[1]),
                  toFloat(a->operands[2]));
  return intern(Kind::ToFloat, {a});
}

ExprRef ExprContext::select(ExprRef condition, ExprRef a, ExprRef b) {
  if (condition->isTrue() || a == b)
    return a;
  if (condition->isFalse())
    return b;
  if (a->is(Kind::Bool) && b->is(Kind::Bool))
    return a->integer ? condition : logicalNot(condition);
  if (a->is(Kind::Bool))
    return a->integer ? logicalOr(condition, b)
                      : logicalAnd(logicalNot(condition), b);
  if (b->is(Kind::Bool))
    return b->integer ? logicalOr(logicalNot(condition), a)
                      : logicalAnd(condition, a);
  if (condition->is(Kind::Not))
    return select(condition->operands[0], b, a);
  // select(c, select(c, x, y), z) is select(c, x, z).
  if (a->is(Kind::Select) && a->operands[0] == condition)
    a = a->operands[1];
  if (b->is(Kind::Select) && b->operands[0] == condition)
    b = b->operands[2];
  return intern(Kind::Select, {condition, a, b});
}

ExprRef ExprContext::apply(llvm::StringRef name,
                           llvm::ArrayRef<ExprRef> operands) {
  return intern(Kind::Apply, operands, {}, 0, 0, {}, name);
}
