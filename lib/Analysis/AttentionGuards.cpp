//===- AttentionGuards.cpp - Zeros in rows without keys -------------------===//
//
// Exporters put zeros in place of the NaN that a softmax of nothing but -inf
// gives: where the largest score or bias of a row is -inf, where all of its
// scores are, where it has no visible key, or in every masked place.
//
//===----------------------------------------------------------------------===//

#include "AttentionMatcher.h"

#include <cmath>

using namespace mlir;
using namespace prefill;
using Kind = Expr::Kind;

/// Whether `value` is -inf everywhere.
static bool isMinusInfinity(SymbolicAnalysis &analysis, Value value) {
  auto number = analysis.uniformNumber(value);
  return number && std::isinf(*number) && *number < 0;
}

/// Whether all keys of a row are -inf in `value`, at `at` (with the key's
/// index), exactly where the row sees no key.
std::optional<Matcher::GuardEffect>
Matcher::minusInfinity(Value value, const Indices &at,
                       const MaskBuilder &masks) {
  ExprRef e = analysis.element(value, at);
  // A mask of -inf and finite numbers.
  if (e->is(Kind::Select) && masks.visible()) {
    ExprRef shown = e->operands[0];
    auto isLow = [](ExprRef x) {
      return x->is(Kind::Float) && std::isinf(x->number) && x->number < 0;
    };
    auto isFinite = [](ExprRef x) {
      return x->is(Kind::Float) && std::isfinite(x->number);
    };
    if (isLow(e->operands[1]) && isFinite(e->operands[2]))
      shown = ctx.logicalNot(shown);
    else if (!isLow(e->operands[2]) || !isFinite(e->operands[1]))
      shown = nullptr;
    if (shown && shown == masks.visible())
      return GuardEffect::Zero;
  }
  // All that is added: where it is -inf, the score is.
  if (terms.size() == 1 && terms[0].kind == MaskTerm::Kind::Added && !floor &&
      terms[0].element == e)
    return GuardEffect::ZeroIfNaN;
  // The scores themselves.
  for (const auto &step : analysis.viewChain(value, at)) {
    if (!(step.factor > 0))
      break;
    for (const auto &[scores, indices] : maskedScores)
      if (!floor && scores == step.value && same(step.indices, indices))
        return GuardEffect::ZeroIfNaN;
    auto cast = step.value.getDefiningOp<onnx::NodeOp>();
    if (cast && cast.is("Cast") && cast.getInput(0) &&
        isFloat(analysis.facts(cast.getInput(0)).elementType))
      for (const auto &[scores, indices] : maskedScores)
        if (!floor && scores == cast.getInput(0) && same(step.indices, indices))
          return GuardEffect::ZeroIfNaN;
  }
  return std::nullopt;
}

/// What zeros where `condition` at `at` is `truth` do: it must say that a row
/// has no visible key. `ops` are the nodes that say it.
std::optional<Matcher::GuardEffect>
Matcher::emptyTest(Value condition, Indices at, bool truth,
                   const MaskBuilder &masks, SmallVectorImpl<onnx::NodeOp> &ops,
                   unsigned depth) {
  if (!condition || depth > 12 || !analysis.facts(condition).ranked ||
      analysis.facts(condition).shape.size() != at.size())
    return std::nullopt;
  // In every masked place.
  if (isBool(analysis.facts(condition).elementType) && masks.visible()) {
    ExprRef hidden = analysis.element(condition, at);
    if (!truth)
      hidden = ctx.logicalNot(hidden);
    if (hidden == ctx.logicalNot(masks.visible()))
      return GuardEffect::Zero;
  }
  auto node = condition.getDefiningOp<onnx::NodeOp>();
  if (!node || !node.getDomain().empty())
    return std::nullopt;
  ops.push_back(node);
  if (auto view = analysis.viewStep(
          node, cast<OpResult>(condition).getResultNumber(), at))
    return emptyTest(view->value, view->indices, truth, masks, ops, depth + 1);
  if (node.is("Not"))
    return emptyTest(node.getInput(0), at, !truth, masks, ops, depth + 1);

  /// The reduction that `value` is, with the key's index in place of the 0.
  auto reduction = [&](Value value, Indices from, StringRef op,
                       Indices &full) -> onnx::NodeOp {
    for (unsigned step = 0; step < 8; ++step) {
      auto def = value ? value.getDefiningOp<onnx::NodeOp>() : nullptr;
      if (!def || !def.getDomain().empty())
        return nullptr;
      ops.push_back(def);
      if (def.is(op)) {
        auto axes = axesOf(analysis, def, 1);
        const TensorFacts &in = analysis.facts(def.getInput(0));
        if (!axes || axes->size() != 1 || !in.ranked)
          return nullptr;
        auto along = normalizeAxis((*axes)[0], in.shape.size());
        if (!along || !ctx.proveEqual(in.shape[*along], space.dims.keys))
          return nullptr;
        full = from;
        if (!def.getInt("keepdims", 1)) {
          if (from.size() + 1 != in.shape.size())
            return nullptr;
          full.insert(full.begin() + *along, space.j);
        } else {
          if (from.size() != in.shape.size())
            return nullptr;
          full[*along] = space.j;
        }
        return def;
      }
      if (auto view = analysis.viewStep(def, 0, from)) {
        value = view->value;
        from = view->indices;
        continue;
      }
      if (!def.is("Cast"))
        return nullptr;
      value = def.getInput(0);
    }
    return nullptr;
  };
  auto broadcastTo = [&](Value value) {
    return analysis.broadcastIndices(analysis.facts(value).shape, at,
                                     analysis.facts(condition).shape);
  };
  /// Ones (or true) exactly at visible keys, or exactly at hidden ones.
  auto marks = [&](Value value, const Indices &x, bool visibleOnes) {
    const TensorFacts &f = analysis.facts(value);
    if (!masks.visible() || !f.elementType)
      return false;
    ExprRef e = analysis.element(value, x);
    ExprRef wanted =
        visibleOnes ? masks.visible() : ctx.logicalNot(masks.visible());
    if (isBool(f.elementType))
      return e == wanted;
    bool floats = isFloat(f.elementType);
    ExprRef one = floats ? ctx.getFloat(1) : ctx.getInt(1);
    ExprRef zero = floats ? ctx.getFloat(0) : ctx.getInt(0);
    return e == ctx.select(wanted, one, zero);
  };

  Indices full;
  // The largest is -inf.
  bool atMost = node.is("Equal") || node.is("LessOrEqual");
  bool above = node.is("Greater");
  if (((atMost && truth) || (above && !truth)) &&
      isMinusInfinity(analysis, node.getInput(1)))
    if (auto x = broadcastTo(node.getInput(0)))
      if (auto max = reduction(node.getInput(0), *x, "ReduceMax", full))
        return minusInfinity(max.getInput(0), full, masks);
  if (node.is("IsInf") && truth && node.getInt("detect_negative", 1))
    if (auto max = reduction(node.getInput(0), at, "ReduceMax", full))
      return minusInfinity(max.getInput(0), full, masks);
  // As many visible keys as nothing.
  bool below = node.is("Less");
  if ((atMost || below) && truth) {
    auto limit = analysis.uniformNumber(node.getInput(1));
    auto x = broadcastTo(node.getInput(0));
    if (limit == (below ? 1.0 : 0.0) && x)
      for (StringRef op : {"ReduceSum", "ReduceMax"})
        if (auto sum = reduction(node.getInput(0), *x, op, full))
          if (marks(sum.getInput(0), full, /*visibleOnes=*/true))
            return GuardEffect::Zero;
  }
  if (above && !truth && analysis.uniformNumber(node.getInput(1)) == 0.0)
    if (auto x = broadcastTo(node.getInput(0)))
      for (StringRef op : {"ReduceSum", "ReduceMax"})
        if (auto sum = reduction(node.getInput(0), *x, op, full))
          if (marks(sum.getInput(0), full, /*visibleOnes=*/true))
            return GuardEffect::Zero;
  // All keys are hidden; not any is visible.
  if (node.is("Cast") || node.is("ReduceMin") || node.is("ReduceMax")) {
    if (auto all = truth ? reduction(condition, at, "ReduceMin", full)
                         : onnx::NodeOp()) {
      if (marks(all.getInput(0), full, /*visibleOnes=*/false))
        return GuardEffect::Zero;
      // Cast(x == -inf)
      Value each = all.getInput(0);
      auto test = each.getDefiningOp<onnx::NodeOp>();
      if (test && test.is("Cast") && test.getInput(0)) {
        ops.push_back(test);
        test = test.getInput(0).getDefiningOp<onnx::NodeOp>();
      }
      bool equals = test && test.is("Equal") &&
                    isMinusInfinity(analysis, test.getInput(1));
      bool infinite =
          test && test.is("IsInf") && test.getInt("detect_negative", 1);
      if (equals || infinite) {
        ops.push_back(test);
        auto &out = analysis.facts(test.getResult(0));
        auto x = analysis.broadcastIndices(
            analysis.facts(test.getInput(0)).shape, full, out.shape);
        if (x)
          return minusInfinity(test.getInput(0), *x, masks);
      }
    }
    if (auto any = truth ? onnx::NodeOp()
                         : reduction(condition, at, "ReduceMax", full))
      if (marks(any.getInput(0), full, /*visibleOnes=*/true))
        return GuardEffect::Zero;
  }
  return std::nullopt;
}

std::optional<Matcher::GuardEffect>
Matcher::effectOf(const RowGuard &guard, const MaskBuilder &masks) {
  const TensorFacts &f = analysis.facts(guard.condition);
  if (!f.ranked)
    return std::nullopt;
  auto at = analysis.broadcastIndices(f.shape, guard.indices, guard.shape);
  if (!at)
    return std::nullopt;
  SmallVector<onnx::NodeOp> ops;
  auto effect = emptyTest(guard.condition, *at, guard.zeroWhere, masks, ops, 0);
  if (!effect)
    return std::nullopt;
  // What reads the scores goes with them.
  bool grown = true;
  while (grown) {
    grown = false;
    for (onnx::NodeOp op : ops)
      if (!region.contains(op) && llvm::any_of(op.getInputs(), [&](Value v) {
            return v.getDefiningOp() && region.contains(v.getDefiningOp());
          })) {
        region.insert(op);
        grown = true;
      }
  }
  return effect;
}
