//===- SymbolicExpr.cpp - Expressions over dimensions and indices ---------===//

#include "prefill/Analysis/SymbolicExpr.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/Format.h"
#include "llvm/Support/MathExtras.h"

#include <cmath>
#include <cstring>

using namespace prefill;
using llvm::ArrayRef;
using Kind = Expr::Kind;

// Larger sums and products become opaque, so that hostile graphs cannot make
// expressions explode.
static constexpr size_t maxTerms = 24;
static constexpr size_t maxDegree = 6;
static constexpr unsigned maxProofDepth = 8;
static constexpr unsigned maxProofSteps = 128;
static constexpr unsigned maxDepth = 64;
static constexpr unsigned maxHeight = 40;

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

/// A polynomial under construction: monomials (an atom or a Product) with
/// coefficients.
struct ExprContext::Terms {
  int64_t constant = 0;
  llvm::SmallVector<std::pair<ExprRef, int64_t>, 8> list;
  bool overflow = false;

  void add(ExprRef monomial, int64_t coefficient) {
    for (auto &[m, c] : list)
      if (m == monomial) {
        overflow |= llvm::AddOverflow(c, coefficient, c);
        return;
      }
    list.push_back({monomial, coefficient});
    overflow |= list.size() > 4 * maxTerms;
  }
  void addConstant(int64_t c) {
    overflow |= llvm::AddOverflow(constant, c, constant);
  }
};

/// The atoms of a monomial.
static llvm::ArrayRef<ExprRef> atomsOf(const ExprRef &monomial) {
  return monomial->is(Kind::Product) ? monomial->operands
                                     : llvm::ArrayRef<ExprRef>(monomial);
}

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

//===----------------------------------------------------------------------===//
// Proofs
//===----------------------------------------------------------------------===//

/// Whether an atom is never negative.
static bool nonNegativeAtom(ExprContext &ctx, ExprRef a, unsigned depth) {
  if (depth > maxProofDepth)
    return false;
  switch (a->kind) {
  case Kind::Symbol:
  case Kind::Index:
  case Kind::Mod:
    return true;
  case Kind::Product:
    return llvm::all_of(a->operands, [&](ExprRef x) {
      return nonNegativeAtom(ctx, x, depth + 1);
    });
  case Kind::FloorDiv:
    return ctx.proveNonNegative(a->operands[0]);
  case Kind::Min:
    return ctx.proveNonNegative(a->operands[0]) &&
           ctx.proveNonNegative(a->operands[1]);
  case Kind::Max:
    return ctx.proveNonNegative(a->operands[0]) ||
           ctx.proveNonNegative(a->operands[1]);
  case Kind::Select:
    return ctx.proveNonNegative(a->operands[1]) &&
           ctx.proveNonNegative(a->operands[2]);
  default:
    return false;
  }
}

namespace {
/// Proves a >= 0 by replacing bounded atoms by the bound that makes the sum
/// smallest.
struct BoundProof {
  ExprContext &ctx;
  unsigned &budget;

  bool prove(ExprRef a, unsigned depth) {
    if (a->is(Kind::Int))
      return a->integer >= 0;
    if (budget == 0 || depth > maxProofDepth)
      return false;
    --budget;
    if (!a->is(Kind::Sum))
      return nonNegativeAtom(ctx, a, depth) || eliminate(a, depth);
    bool plain = a->integer >= 0;
    for (auto [m, c] : llvm::zip_equal(a->operands, a->coefficients))
      plain &= c >= 0 && nonNegativeAtom(ctx, m, depth);
    return plain || eliminate(a, depth);
  }

  /// Replaces one atom of `a` by a bound of it and goes on.
  bool eliminate(ExprRef a, unsigned depth) {
    llvm::SmallVector<ExprRef, 8> atoms;
    auto collect = [&](ExprRef m) {
      for (ExprRef atom : atomsOf(m))
        if (!llvm::is_contained(atoms, atom))
          atoms.push_back(atom);
    };
    if (a->is(Kind::Sum))
      llvm::for_each(a->operands, collect);
    else
      collect(a);
    for (ExprRef atom : atoms) {
      bool bounded = atom->is(Kind::Index) || atom->is(Kind::Symbol) ||
                     atom->is(Kind::Mod) || atom->is(Kind::Min) ||
                     atom->is(Kind::Max) || atom->is(Kind::FloorDiv);
      auto parts = bounded ? split(a, atom) : std::nullopt;
      if (!parts)
        continue;
      auto [slope, rest] = *parts;
      bool up = signIs(slope, 1), down = signIs(slope, -1);
      if (!up && !down)
        continue;
      llvm::SmallVector<ExprRef, 2> bounds;
      switch (atom->kind) {
      case Kind::Index:
        bounds.push_back(
            up ? ctx.getInt(0)
               : ctx.sub(ctx.resolve(atom->operands[0]), ctx.getInt(1)));
        break;
      case Kind::Symbol:
        if (up && ctx.isPositive(atom))
          bounds.push_back(ctx.getInt(1));
        break;
      case Kind::Mod:
        bounds.push_back(up ? ctx.getInt(0)
                            : ctx.sub(atom->operands[1], ctx.getInt(1)));
        break;
      case Kind::Min:
        if (down)
          llvm::append_range(bounds, atom->operands);
        break;
      case Kind::Max:
        if (up)
          llvm::append_range(bounds, atom->operands);
        break;
      case Kind::FloorDiv: {
        // floor(x / b) <= (n - 1) / b for x < n where b divides n: n / b - 1.
        ExprRef x = atom->operands[0], b = atom->operands[1];
        if (down && x->is(Kind::Index))
          if (ExprRef n = ctx.exactDiv(ctx.resolve(x->operands[0]), b))
            bounds.push_back(ctx.sub(n, ctx.getInt(1)));
        break;
      }
      default:
        break;
      }
      for (ExprRef bound : bounds)
        if (prove(ctx.add(rest, ctx.mul(slope, bound)), depth + 1))
          return true;
      if (!bounds.empty() && atom->is(Kind::Index))
        return false; // No other order of elimination does better.
    }
    return false;
  }

  /// a = first * atom + second, both without atom.
  std::optional<std::pair<ExprRef, ExprRef>> split(ExprRef a, ExprRef atom) {
    if (a == atom)
      return std::make_pair(ctx.getInt(1), ctx.getInt(0));
    if (!a->is(Kind::Sum) && !a->is(Kind::Product))
      return std::nullopt;
    ExprRef slope = ctx.getInt(0);
    ExprRef rest = ctx.getInt(a->is(Kind::Sum) ? a->integer : 0);
    ArrayRef<ExprRef> monomials =
        a->is(Kind::Sum) ? a->operands : ArrayRef<ExprRef>(a);
    for (auto [k, m] : llvm::enumerate(monomials)) {
      int64_t c = a->is(Kind::Sum) ? a->coefficients[k] : 1;
      ExprRef others = ctx.getInt(c);
      unsigned count = 0;
      for (ExprRef x : atomsOf(m)) {
        if (x == atom)
          ++count;
        else if (ctx.dependsOn(x, atom))
          return std::nullopt;
        else
          others = ctx.mul(others, x);
      }
      if (count > 1)
        return std::nullopt;
      (count ? slope : rest) = ctx.add(count ? slope : rest, others);
    }
    return std::make_pair(slope, rest);
  }

  /// Whether all terms of `a` times `sign` are >= 0.
  bool signIs(ExprRef a, int64_t sign) {
    if (a->is(Kind::Int))
      return a->integer * sign >= 0;
    if (!a->is(Kind::Sum))
      return sign > 0 && nonNegativeAtom(ctx, a, 0);
    if (a->integer * sign < 0)
      return false;
    for (auto [m, c] : llvm::zip_equal(a->operands, a->coefficients))
      if (c * sign < 0 || !nonNegativeAtom(ctx, m, 0))
        return false;
    return true;
  }
};
} // namespace

bool ExprContext::proveNonNegative(ExprRef a) {
  if (a->is(Kind::Int))
    return a->integer >= 0;
  // Proofs ask for proofs about smaller expressions; hostile nests end here.
  if (proofDepth == 0)
    proofBudget = maxProofSteps;
  if (proofDepth > maxProofDepth || proofBudget == 0)
    return false;
  --proofBudget;
  ++proofDepth;
  bool proven = BoundProof{*this, proofBudget}.prove(resolve(a), 0);
  --proofDepth;
  return proven;
}

bool ExprContext::proveEqual(ExprRef a, ExprRef b) {
  if (!a || !b)
    return false;
  return a == b || resolve(sub(a, b))->isInt(0);
}

void ExprContext::assumeEqual(ExprRef a, ExprRef b) {
  if (a == b)
    return;
  ExprRef difference = resolve(sub(a, b));
  Terms terms;
  if (!addTerms(terms, difference, 1))
    return;
  // Solve for the newest symbol: fresh ones are newer than the model's names.
  ExprRef best = nullptr;
  int64_t sign = 0;
  for (auto [m, c] : terms.list)
    if (m->is(Kind::Symbol) && (c == 1 || c == -1) &&
        (!best || m->id > best->id))
      if (auto split = splitLinear(difference, m); split && split->first == c) {
        best = m;
        sign = c;
      }
  if (!best)
    return;
  // sign * best + rest == 0
  ExprRef rest = splitLinear(difference, best)->second;
  solved[best] = scale(rest, -sign);
  resolved.clear();
}

ExprRef ExprContext::resolve(ExprRef a) {
  if (solved.empty())
    return a;
  for (unsigned round = 0; round < 4; ++round) {
    ExprRef next = substituteIn(a, solved, resolved, 0);
    if (next == a)
      break;
    a = next;
  }
  return a;
}

//===----------------------------------------------------------------------===//
// Substitution
//===----------------------------------------------------------------------===//

ExprRef ExprContext::rebuild(ExprRef a, llvm::ArrayRef<ExprRef> operands) {
  switch (a->kind) {
  case Kind::Sum: {
    ExprRef sum = getInt(a->integer);
    for (auto [m, c] : llvm::zip_equal(operands, a->coefficients))
      sum = add(sum, scale(m, c));
    return sum;
  }
  case Kind::Product: {
    ExprRef result = operands[0];
    for (ExprRef x : operands.drop_front())
      result = mul(result, x);
    return result;
  }
  case Kind::FloorDiv:
    return floorDiv(operands[0], operands[1]);
  case Kind::Mod:
    return mod(operands[0], operands[1]);
  case Kind::Min:
    return min(operands[0], operands[1]);
  case Kind::Max:
    return max(operands[0], operands[1]);
  case Kind::Ge0:
    return ge0(operands[0]);
  case Kind::Eq0:
    return eq0(operands[0]);
  case Kind::And:
  case Kind::Or: {
    ExprRef result = operands[0];
    for (ExprRef x : operands.drop_front())
      result = a->is(Kind::And) ? logicalAnd(result, x) : logicalOr(result, x);
    return result;
  }
  case Kind::Not:
    return logicalNot(operands[0]);
  case Kind::ToFloat:
    return toFloat(operands[0]);
  case Kind::Load:
    return getLoad(a->value, operands);
  case Kind::Select:
    return select(operands[0], operands[1], operands[2]);
  case Kind::Apply:
    return apply(a->name, operands);
  default:
    return a;
  }
}

ExprRef ExprContext::substituteIn(ExprRef a,
                                  const llvm::DenseMap<ExprRef, ExprRef> &map,
                                  llvm::DenseMap<ExprRef, ExprRef> &memo,
                                  unsigned level) {
  if (auto it = map.find(a); it != map.end())
    return it->second;
  // An index stays the variable that it is; its bound is resolved when used.
  if (a->operands.empty() || a->is(Kind::Index) || level > maxDepth)
    return a;
  if (auto it = memo.find(a); it != memo.end())
    return it->second;
  llvm::SmallVector<ExprRef, 4> operands;
  bool changed = false;
  for (ExprRef x : a->operands) {
    operands.push_back(substituteIn(x, map, memo, level + 1));
    changed |= operands.back() != x;
  }
  ExprRef result = changed ? rebuild(a, operands) : a;
  memo[a] = result;
  return result;
}

ExprRef ExprContext::substitute(ExprRef a, ExprRef from, ExprRef to) {
  if (a == from)
    return to;
  llvm::DenseMap<ExprRef, ExprRef> map, memo;
  map[from] = to;
  return substituteIn(a, map, memo, 0);
}

static bool dependsOnIn(ExprRef a, ExprRef atom,
                        llvm::SmallDenseSet<ExprRef, 16> &seen) {
  if (a == atom || a->is(Kind::Deep))
    return true;
  // The bound of an index is not part of its value.
  if (a->is(Kind::Index) || a->operands.empty() || !seen.insert(a).second)
    return false;
  if (seen.size() > 256)
    return true; // Better too often than too late.
  return llvm::any_of(a->operands,
                      [&](ExprRef x) { return dependsOnIn(x, atom, seen); });
}

bool ExprContext::dependsOn(ExprRef a, ExprRef atom) {
  llvm::SmallDenseSet<ExprRef, 16> seen;
  return dependsOnIn(a, atom, seen);
}
