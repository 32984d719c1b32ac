//===- SymbolicExprProof.cpp - Proofs and substitution --------------------===//

#include "SymbolicExprParts.h"

using namespace prefill;
using namespace prefill::expr_limits;
using llvm::ArrayRef;
using Kind = Expr::Kind;

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
        if (up)
          llvm::append_range(bounds, ctx.lowerBounds(atom));
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
  ExprRef best = nullptr, rest = nullptr;
  int64_t sign = 0;
  for (auto [m, c] : terms.list)
    if (m->is(Kind::Symbol) && (c == 1 || c == -1) &&
        (!best || m->id > best->id))
      if (auto split = splitLinear(difference, m); split && split->first == c) {
        best = m;
        sign = c;
        rest = split->second;
      }
  if (!best)
    return;
  // sign * best + rest == 0
  solved[best] = scale(rest, -sign);
  resolved.clear();
}

void ExprContext::assumeNonNegative(ExprRef a) {
  a = resolve(a);
  Terms terms;
  auto isSymbol = [](ExprRef atom) { return atom->is(Kind::Symbol); };
  if (proveNonNegative(a) || !addTerms(terms, a, 1) ||
      !llvm::all_of(terms.list, [&](auto term) {
        return llvm::all_of(atomsOf(term.first), isSymbol);
      }))
    return;
  for (auto [m, c] : terms.list) {
    auto parts =
        m->is(Kind::Symbol) && c == 1 ? splitLinear(a, m) : std::nullopt;
    if (!parts || parts->first != 1)
      continue;
    llvm::SmallVector<ExprRef, 1> &known = bounds[m];
    ExprRef bound = scale(parts->second, -1);
    if (known.size() < 4 && !llvm::is_contained(known, bound))
      known.push_back(bound);
  }
}

ArrayRef<ExprRef> ExprContext::lowerBounds(ExprRef symbol) const {
  auto found = bounds.find(symbol);
  return found == bounds.end() ? ArrayRef<ExprRef>() : found->second;
}

void ExprContext::assumeMin(ExprRef min, ExprRef x) {
  solved[min] = x;
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
