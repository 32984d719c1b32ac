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

/// Takes off what the softmax does not see (a maximum that is subtracted) and
/// the logits of sinks beside the scores.
LogicalResult Matcher::peelTop(Value &scores) {
  for (unsigned step = 0; step < 6; ++step) {
    auto node = scores.getDefiningOp<onnx::NodeOp>();
    if (!node)
      return success();
    if (node.is("Sub")) {
      auto max = node.getInput(1)
                     ? node.getInput(1).getDefiningOp<onnx::NodeOp>()
                     : nullptr;
      if (!max || !max.is("ReduceMax") || max.getInput(0) != node.getInput(0) ||
          !max.getInt("keepdims", 1))
        return success();
      auto axes = axesOf(analysis, max, 1);
      int64_t rank = analysis.facts(scores).shape.size();
      if (!axes || axes->size() != 1 ||
          normalizeAxis((*axes)[0], rank) != rank - 1)
        return success();
      region.insert(node);
      region.insert(max);
      scores = node.getInput(0);
    } else if (node.is("Concat") && node.getInputs().size() == 2) {
      int64_t rank = analysis.facts(scores).shape.size();
      ExprRef last = analysis.dim(node.getInput(1), -1);
      if (normalizeAxis(node.getInt("axis", 0), rank) != rank - 1 || !last ||
          !last->isInt(1) || sinks)
        return success();
      region.insert(node);
      scores = node.getInput(0);
      sinks = node.getInput(1);
    } else if (node.is("Cast") && !sinks &&
               isFloat(analysis.facts(scores).elementType) &&
               isFloat(analysis.facts(node.getInput(0)).elementType)) {
      // Looked through only to find sinks; walkScores does it again otherwise.
      auto inner = node.getInput(0).getDefiningOp<onnx::NodeOp>();
      if (!inner || !(inner.is("Concat") || inner.is("Sub")))
        return success();
      region.insert(node);
      scores = node.getInput(0);
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

LogicalResult Matcher::walkScores(Value value, Indices indices,
                                  Product &product, ExprRef &headDim) {
  double pending = 1; // multiplies everything further in
  bool capped = false;
  for (unsigned step = 0; step < 32; ++step) {
    auto node = value.getDefiningOp<onnx::NodeOp>();
    if (!node)
      return refuse(softmax, "its scores are not computed in this graph",
                    value);
    if (isProduct(node)) {
      auto [left, right] = contractionSizes(analysis, node);
      headDim = left && ctx.resolve(left)->asInt() ? ctx.resolve(left)
                : right                            ? ctx.resolve(right)
                                                   : nullptr;
      if (!headDim || !headDim->asInt() || headDim->integer <= 0)
        return refuse(node, "the head dimension is not known", value);
      auto found =
          productAt(analysis, value, indices, ctx.getIndex("d", headDim));
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
    bool untouched = pending == 1 && !capped;
    // Only what is added at (b, h, i, j) can be an operand as it is.
    auto placeTensor = [&](MaskTerm &term, Value tensor) {
      Indices plain = leading(4), joined = leading(3);
      for (Indices *x : {&plain, &joined})
        x->append({space.i, space.j});
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
    bool scalable = pending > 0 && !capped;
    if (node.is("Cast")) {
      if (!isFloat(out.elementType) ||
          !isFloat(analysis.facts(a).elementType) || !moveTo(a))
        return refuse(node, "scores are cast to something that is no float",
                      value);
      traits.push_back("cast scores");
    } else if (node.is("Mul") || node.is("Div")) {
      bool left = leads(a), right = leads(b);
      if (left == right || (right && node.is("Div")))
        return refuse(node, "scores are not multiplied by a number", value);
      auto number = analysis.uniformNumber(left ? b : a);
      if (!number || *number == 0 || !std::isfinite(*number))
        return refuse(node, "scores are not multiplied by a number",
                      left ? b : a);
      pending = node.is("Mul") ? pending * *number : pending / *number;
      if (!moveTo(left ? a : b))
        return lost();
    } else if (node.is("Tanh")) {
      if (capped || !(pending > 0))
        return refuse(node, "scores go through Tanh in no known way", value);
      capped = true;
      softcap = pending;
      pending = 1;
      if (!moveTo(a))
        return lost();
    } else if (node.is("Add") || node.is("Sub")) {
      bool left = leads(a), right = leads(b);
      if (left == right || (right && node.is("Sub")))
        return refuse(node, "both operands come from products, or none", value);
      if (!scalable)
        return refuse(node,
                      "scores are capped or negated after a mask or bias "
                      "is added",
                      value);
      Value other = left ? b : a;
      MaskTerm term;
      term.factor = pending;
      term.element = analysis.broadcastElement(other, indices, out.shape);
      placeTensor(term, other);
      if (node.is("Sub")) {
        term.element = negate(term.element);
        term.tensor = {};
      }
      terms.push_back(term);
      if (!moveTo(left ? a : b))
        return lost();
    } else if (node.is("Where")) {
      Value c = a, other = node.getInput(2);
      bool first = leads(b), second = leads(other);
      if (first == second)
        return refuse(node, "both choices come from products, or none", value);
      if (!scalable)
        return refuse(
            node, "scores are capped or negated after they are masked", value);
      auto number = analysis.uniformNumber(first ? other : b);
      if (!number || !MaskBuilder::hides(*number, out.elementType, false))
        return refuse(node,
                      "what masked scores become is neither -inf nor so "
                      "large a negative number that no score reaches it",
                      first ? other : b);
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
      bool left = leads(a);
      auto number = analysis.uniformNumber(left ? b : a);
      if (left == leads(b) || !number || !untouched || floor ||
          !MaskBuilder::hides(*number, out.elementType, true))
        return refuse(node, "scores are bounded from below", value);
      floor = *number;
      if (!moveTo(left ? a : b))
        return lost();
    } else {
      return refuse(node, "scores go through " + node.getOpType(), value);
    }
  }
  return refuse(softmax, "the way to its scores is too long");
}

//===----------------------------------------------------------------------===//
// Queries, keys, values
//===----------------------------------------------------------------------===//

/// All places on the way back from `value` where rows lie as kernels read
/// them, the deepest last.
SmallVector<Rows> Matcher::layouts(Value value, ArrayRef<ExprRef> indices,
                                   ExprRef row, ExprRef rowCount,
                                   ExprRef column, int64_t width,
                                   bool mayScale) {
  SmallVector<Rows> found;
  auto equal = [&](ExprRef a, ExprRef b) { return ctx.proveEqual(a, b); };
  for (const auto &step : analysis.viewChain(value, indices)) {
    const TensorFacts &f = analysis.facts(step.value);
    size_t rank = step.indices.size();
    if (!f.ranked || f.shape.size() != rank || (rank != 3 && rank != 4) ||
        (step.factor != 1 && !mayScale))
      continue;
    if (!equal(step.indices[0], space.b) ||
        !equal(f.shape[0], space.dims.batch))
      continue;
    for (TensorLayout layout : {TensorLayout::BHSD, TensorLayout::BSHD}) {
      bool bhsd = layout == TensorLayout::BHSD;
      if (rank == 3 && bhsd)
        continue;
      size_t rowAxis = bhsd ? 2 : 1, headAxis = bhsd ? 1 : 2;
      auto total = ctx.resolve(f.shape[headAxis])->asInt();
      if (!total || *total <= 0 || !equal(step.indices[rowAxis], row) ||
          !equal(f.shape[rowAxis], rowCount))
        continue;
      int64_t count = rank == 3 ? *total / width : *total;
      if (count <= 0 || heads % count != 0 ||
          (rank == 3 && count * width != *total))
        continue;
      ExprRef head = ctx.floorDiv(space.h, ctx.getInt(heads / count));
      bool fits = rank == 3 ? equal(step.indices[2],
                                    ctx.add(ctx.scale(head, width), column))
                            : equal(step.indices[headAxis], head) &&
                                  equal(step.indices[3], column) &&
                                  equal(f.shape[3], ctx.getInt(width));
      if (!fits)
        continue;
      found.push_back({step.value, layout, count, step.factor});
      break;
    }
  }
  return found;
}

LogicalResult Matcher::matchSinks(Value value) {
  // Element (b, h, i, 0) of the tensor beside the scores is sink[h].
  const TensorFacts &f = analysis.facts(value);
  Indices indices = leading(f.shape.size());
  indices.push_back(space.i);
  indices.push_back(ctx.getInt(0));
  if (indices.size() != f.shape.size())
    return refuse(softmax, "the sinks beside the scores have another rank",
                  value);
  for (auto [axis, size] : llvm::enumerate(f.shape))
    if (size->isInt(1))
      indices[axis] = ctx.getInt(0);
  auto chain = analysis.viewChain(value, indices);
  for (const auto &step : llvm::reverse(chain)) {
    if (step.factor != 1 || step.indices.size() != 1 ||
        !ctx.proveEqual(step.indices[0], space.h) ||
        !ctx.proveEqual(analysis.dim(step.value, 0), ctx.getInt(heads)))
      continue;
    site.sinks = step.value;
    traits.push_back("sinks");
    return success();
  }
  // [1, h, 1, 1] and the like: flattened.
  for (const auto &step : llvm::reverse(chain)) {
    const TensorFacts &s = analysis.facts(step.value);
    ExprRef total = ctx.getInt(1);
    bool plain = step.factor == 1;
    for (auto [size, x] : llvm::zip_equal(s.shape, step.indices)) {
      total = ctx.mul(total, size);
      plain &= size->isInt(1) || ctx.proveEqual(x, space.h);
    }
    if (!plain || !ctx.proveEqual(total, ctx.getInt(heads)))
      continue;
    site.sinks = site.plan(
        "Reshape", {step.value, site.planInts(softmax->getContext(), {-1})},
        RankedTensorType::get({heads}, s.elementType));
    traits.push_back("sinks");
    return success();
  }
  return refuse(softmax,
                "what stands beside the scores is not one logit a head", value);
}
