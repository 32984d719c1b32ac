//===- AttentionScores.cpp - From a softmax back to queries and keys ------===//
//
// What is between the product of queries and keys and the softmax, read
// backwards: masks, scale, caps, sinks; and where queries, keys and values lie.
//
//===----------------------------------------------------------------------===//

#include "AttentionMatcher.h"

#include <cmath>

using namespace mlir;
using namespace prefill;
using Kind = Expr::Kind;

/// Takes off what the softmax does not see (a maximum that is subtracted), the
/// logits of sinks beside the scores, and a reshape to two dimensions.
LogicalResult Matcher::peelTop(Value &scores) {
  auto peel = [&](onnx::NodeOp node, Value to, bool view) {
    region.insert(node);
    peeled.push_back({scores, view});
    scores = to;
  };
  for (unsigned step = 0; step < 8; ++step) {
    auto node = scores.getDefiningOp<onnx::NodeOp>();
    const TensorFacts &f = analysis.facts(scores);
    if (!node || !f.ranked)
      return success();
    int64_t rank = f.shape.size();
    if (node.is("Sub")) {
      Value subtracted = node.getInput(1);
      auto max =
          subtracted ? subtracted.getDefiningOp<onnx::NodeOp>() : nullptr;
      bool renamed = max && max.is("Identity");
      onnx::NodeOp identity = renamed ? max : nullptr;
      if (renamed)
        max = max.getInput(0).getDefiningOp<onnx::NodeOp>();
      auto along = keptReduction(analysis, max, "ReduceMax");
      if (!along || *along != axis || max.getInput(0) != node.getInput(0))
        return success();
      region.insert(max);
      if (identity)
        region.insert(identity);
      peel(node, node.getInput(0), /*view=*/false);
    } else if (node.is("Concat") && node.getInputs().size() == 2) {
      ExprRef last = analysis.dim(node.getInput(1), axis);
      if (normalizeAxis(node.getInt("axis", 0), rank) != axis || !last ||
          !last->isInt(1) || sinks)
        return success();
      sinks = node.getInput(1);
      peel(node, node.getInput(0), /*view=*/false);
    } else if (node.is("Cast") && !sinks && isFloat(f.elementType) &&
               isFloat(analysis.facts(node.getInput(0)).elementType)) {
      // Looked through only to find sinks; walkScores does it again otherwise.
      auto inner = node.getInput(0).getDefiningOp<onnx::NodeOp>();
      if (!inner || !(inner.is("Concat") || inner.is("Sub")))
        return success();
      peel(node, node.getInput(0), /*view=*/false);
    } else if (rank < 3 || rank > 5) {
      // The keys stay one axis, apart from all others.
      Indices x = analysis.indexVariables(scores, "r");
      auto view = analysis.viewStep(node, 0, x);
      if (!view || !x[axis]->is(Kind::Index))
        return success();
      std::optional<int64_t> to;
      for (auto [k, e] : llvm::enumerate(view->indices)) {
        if (e == x[axis])
          to = k;
        else if (ctx.dependsOn(e, x[axis]))
          return success();
      }
      if (!to || !ctx.proveEqual(analysis.dim(view->value, *to), f.shape[axis]))
        return success();
      axis = *to;
      peel(node, view->value, /*view=*/true);
    } else {
      return success();
    }
  }
  return success();
}

//===----------------------------------------------------------------------===//
// Scores
//===----------------------------------------------------------------------===//

ExprRef Matcher::negate(ExprRef e) {
  if (!e)
    return nullptr;
  if (e->is(Kind::Float))
    return ctx.getFloat(-e->number);
  if (e->is(Kind::Select)) {
    ExprRef x = negate(e->operands[1]), y = negate(e->operands[2]);
    return ctx.select(e->operands[0], x, y);
  }
  return ctx.apply("Neg", {e});
}

/// scores * m + (m ? 0 : low) with m of ones and zeros puts `low` in place of
/// scores: turns the term that was added last into that.
bool Matcher::multiplyByMask(Value other, ExprRef element, double pending) {
  auto number = [](ExprRef e, double v) { return e->asNumber() == v; };
  if (!element || !element->is(Kind::Select) || terms.empty() ||
      pending != terms.back().factor)
    return false;
  MaskTerm &term = terms.back();
  ExprRef added = term.element;
  if (term.kind != MaskTerm::Kind::Added || !added || !added->is(Kind::Select))
    return false;
  ExprRef shown = element->operands[0];
  if (number(element->operands[1], 0) && number(element->operands[2], 1))
    shown = ctx.logicalNot(shown);
  else if (!number(element->operands[1], 1) || !number(element->operands[2], 0))
    return false;
  ExprRef low = nullptr;
  if (added->operands[0] == shown && number(added->operands[1], 0))
    low = added->operands[2];
  else if (ctx.logicalNot(added->operands[0]) == shown &&
           number(added->operands[2], 0))
    low = added->operands[1];
  if (!low || !low->is(Kind::Float) || !std::isfinite(low->number) ||
      !MaskBuilder::hides(low->number, termType, /*added=*/false))
    return false;
  double factor = term.factor, hidden = low->number;
  term = MaskTerm();
  term.kind = MaskTerm::Kind::Visible;
  term.element = shown;
  term.hidden = hidden;
  term.factor = factor;
  return true;
}

/// Which of two added products, 0 or 1, is that of queries and keys; nothing
/// if none is, or both. The other one is a bias, as that of relative positions,
/// which is computed of queries or keys, too: what it multiplies with them lies
/// at no row or key, but at their distance.
std::optional<unsigned> Matcher::queryKeySide(onnx::NodeOp add,
                                              ArrayRef<ExprRef> indices) {
  if (trials > 3)
    return std::nullopt;
  auto only = [&](ArrayRef<ExprRef> at, ExprRef x, ExprRef y) {
    auto moves = [&](ExprRef v) {
      return v->is(Kind::Index) &&
             llvm::any_of(at, [&](ExprRef e) { return ctx.dependsOn(e, v); });
    };
    return moves(x) && !moves(y);
  };
  std::optional<unsigned> found;
  for (unsigned side : {0u, 1u}) {
    Value value = add.getInput(side);
    const TensorFacts &f = analysis.facts(value);
    auto at =
        f.ranked ? analysis.broadcastIndices(
                       f.shape, indices, analysis.facts(add.getResult(0)).shape)
                 : std::nullopt;
    if (!at)
      continue;
    AttentionSite before = site; // `site` is a reference: the same site
    Matcher trial = *this;
    ++trial.trials;
    Product product;
    ExprRef headDim = nullptr;
    bool fits = succeeded(trial.walkScores(value, *at, product, headDim));
    site = before;
    ArrayRef<ExprRef> l = product.lhsIndices, r = product.rhsIndices;
    if (!fits || !((only(l, space.i, space.j) && only(r, space.j, space.i)) ||
                   (only(l, space.j, space.i) && only(r, space.i, space.j))))
      continue;
    if (found)
      return std::nullopt;
    found = side;
  }
  return found;
}

LogicalResult Matcher::walkScores(Value value, Indices indices,
                                  Product &product, ExprRef &headDim) {
  double pending = 1; // multiplies everything further in
  bool capped = false;
  // The narrowest type that the scores become on the way to the softmax.
  auto narrowest =
      dyn_cast_or_null<FloatType>(analysis.facts(value).elementType);
  auto noteTerm = [&](Type type) {
    auto here = dyn_cast_or_null<FloatType>(type);
    if (!here || (termType && termType != type))
      return false;
    termType = type;
    return !narrowest || here == narrowest ||
           here.getIntOrFloatBitWidth() < narrowest.getIntOrFloatBitWidth();
  };
  const char *typeReason =
      "masks are added in several types, or scores made narrower after it";
  for (unsigned step = 0; step < 32; ++step) {
    auto node = value.getDefiningOp<onnx::NodeOp>();
    if (!node)
      return refuse(softmax, "its scores are not computed in this graph",
                    value);
    if (terms.empty())
      maskedScores.push_back({value, indices});
    if (isProduct(node)) {
      auto [left, right] = contractionSizes(analysis, node);
      headDim = left && ctx.resolve(left)->asInt() ? ctx.resolve(left)
                : right                            ? ctx.resolve(right)
                                                   : nullptr;
      if (!headDim || !headDim->asInt() || headDim->integer <= 0)
        return refuse(node, "the head dimension is not known", value);
      auto found = productAt(analysis, value, indices, indexOver("d", headDim));
      if (!found)
        return refuse(node,
                      "which elements the product of queries and keys "
                      "multiplies is not known",
                      value);
      product = *found;
      pending *= product.factor;
      scale = capped ? pending * *softcap : pending;
      region.insert(node);
      return success();
    }
    region.insert(node);
    if (auto view = analysis.viewStep(
            node, cast<OpResult>(value).getResultNumber(), indices)) {
      value = view->value;
      indices = view->indices;
      continue;
    }
    const TensorFacts &out = analysis.facts(value);
    Value a = node.getInput(0), b = node.getInput(1);
    auto moveTo = [&](Value to) {
      auto mapped = analysis.broadcastIndices(analysis.facts(to).shape, indices,
                                              out.shape);
      if (!analysis.facts(to).ranked || !mapped)
        return false;
      value = to;
      indices = *mapped;
      return true;
    };
    auto lost = [&]() {
      return refuse(node, "the shape of its operands is not known well enough",
                    value);
    };
    bool untouched = pending == 1 && !capped && rowFactors.empty();
    // Only what is added at (b, h, i, j) can be an operand as it is.
    auto placeTensor = [&](MaskTerm &term, Value tensor) {
      Indices plain = {space.b, space.h, space.i, space.j};
      Indices joined = {ctx.add(ctx.scale(space.b, heads), space.h), space.i,
                        space.j};
      auto at = [&](const Indices &x) {
        return x.size() == indices.size() &&
               llvm::all_of(llvm::zip_equal(x, indices), [&](auto pair) {
                 return ctx.proveEqual(std::get<0>(pair), std::get<1>(pair));
               });
      };
      term.joined = !at(plain);
      if (!term.joined || at(joined))
        term.tensor = tensor;
    };
    // A factor over a mask scales the mask; a negative one would turn it over.
    bool scalable = pending > 0 && !capped && rowFactors.empty();
    if (node.is("Cast")) {
      if (!isFloat(out.elementType) ||
          !isFloat(analysis.facts(a).elementType) || !moveTo(a))
        return refuse(node, "scores are cast to something that is no float",
                      value);
      traits.push_back("cast scores");
      auto from = cast<FloatType>(analysis.facts(value).elementType);
      if (!narrowest ||
          from.getIntOrFloatBitWidth() < narrowest.getIntOrFloatBitWidth())
        narrowest = from;
    } else if (node.is("Mul") || node.is("Div")) {
      bool left = leadsToProduct(a), right = leadsToProduct(b);
      if (left == right || (right && node.is("Div")))
        return refuse(node, "scores are not multiplied by a number", value);
      Value other = left ? b : a;
      auto number = analysis.uniformNumber(other);
      if (!number && node.is("Mul") &&
          multiplyByMask(other,
                         analysis.broadcastElement(other, indices, out.shape),
                         pending)) {
        if (!moveTo(left ? a : b))
          return lost();
        continue;
      }
      auto at = number ? std::nullopt
                       : analysis.broadcastIndices(analysis.facts(other).shape,
                                                   indices, out.shape);
      if (at && llvm::none_of(*at, [&](ExprRef e) {
            return ctx.dependsOn(e, space.j);
          })) {
        rowFactors.push_back({node, other, *at});
        if (!moveTo(left ? a : b))
          return lost();
        continue;
      }
      if (!number || *number == 0 || !std::isfinite(*number))
        return refuse(node,
                      "scores are multiplied neither by a number nor by a "
                      "factor that is the same for all keys",
                      other);
      pending = node.is("Mul") ? pending * *number : pending / *number;
      if (!moveTo(left ? a : b))
        return lost();
    } else if (node.is("Tanh")) {
      if (capped || !(pending > 0) || !rowFactors.empty())
        return refuse(node, "scores go through Tanh in no known way", value);
      capped = true;
      softcap = pending;
      pending = 1;
      if (!moveTo(a))
        return lost();
    } else if (node.is("Add") || node.is("Sub")) {
      bool left = leadsToProduct(a), right = leadsToProduct(b);
      if (left && right && node.is("Add")) {
        auto side = queryKeySide(node, indices);
        left = side == 0u;
        right = side == 1u;
      }
      if (left == right || (right && node.is("Sub")))
        return refuse(node, "both operands come from products, or none", value);
      if (!scalable)
        return refuse(node,
                      "scores are capped, negated or scaled row by row after a "
                      "mask or bias is added",
                      value);
      Value other = left ? b : a;
      if (!noteTerm(out.elementType))
        return refuse(node, typeReason, value);
      MaskTerm term;
      term.factor = pending;
      term.element = analysis.broadcastElement(other, indices, out.shape);
      placeTensor(term, other);
      if (node.is("Sub")) {
        term.element = negate(term.element);
        term.minus = true;
      }
      terms.push_back(term);
      if (!moveTo(left ? a : b))
        return lost();
    } else if (node.is("Where")) {
      Value c = a, other = node.getInput(2);
      bool first = leadsToProduct(b), second = leadsToProduct(other);
      if (first == second)
        return refuse(node, "both choices come from products, or none", value);
      if (!scalable)
        return refuse(
            node,
            "scores are capped, negated or scaled row by row after they are "
            "masked",
            value);
      auto number = analysis.uniformNumber(first ? other : b);
      if (!number || !MaskBuilder::hides(*number, out.elementType, false))
        return refuse(node,
                      "what masked scores become is neither -inf nor so "
                      "large a negative number that no score reaches it",
                      first ? other : b);
      if (!noteTerm(out.elementType))
        return refuse(node, typeReason, value);
      MaskTerm term;
      term.kind = MaskTerm::Kind::Visible;
      term.element = analysis.broadcastElement(c, indices, out.shape);
      if (term.element && second)
        term.element = ctx.logicalNot(term.element);
      placeTensor(term, c);
      term.negated = second;
      term.hidden = *number;
      term.factor = pending;
      terms.push_back(term);
      if (!moveTo(first ? b : other))
        return lost();
    } else if (node.is("Max") && node.getInputs().size() == 2) {
      bool left = leadsToProduct(a);
      auto number = analysis.uniformNumber(left ? b : a);
      if (left == leadsToProduct(b) || !number || !untouched || floor ||
          !MaskBuilder::hides(*number, out.elementType, true))
        return refuse(node, "scores are bounded from below", value);
      floor = number;
      if (!moveTo(left ? a : b))
        return lost();
    } else {
      return refuse(node, "scores go through " + node.getOpType(), value);
    }
  }
  return refuse(softmax, "the way to its scores is too long");
}
