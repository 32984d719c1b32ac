//===- AttentionMatch.cpp - Attention built of single ops -----------------===//
//
// From a Softmax back to the product of queries and keys and on to the product
// with the values. Every tensor on the way is followed by index: the matcher
// knows which element (b, h, i, j) it looks at, so that it does not matter
// which reshapes and transposes an exporter put in between. q, k and v are then
// read from the deepest tensor that still has a layout the kernels know.
//
//===----------------------------------------------------------------------===//

#include "AttentionMatch.h"
#include "Rules.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringSet.h"

#include <cmath>

using namespace mlir;
using namespace prefill;
using Kind = Expr::Kind;

namespace {

/// One of q, k, v: a tensor, how it lies, and by what it is multiplied.
struct Rows {
  Value value;
  TensorLayout layout = TensorLayout::BHSD;
  int64_t heads = 0;
  double factor = 1;
};

/// The matcher of one Softmax.
struct Matcher {
  SymbolicAnalysis &analysis;
  ExprContext &ctx;
  AttentionSite &site;
  onnx::NodeOp softmax;
  ScoreSpace space;
  int64_t heads = 0;
  /// Ops between the two products: nothing else may read their results.
  llvm::SmallPtrSet<Operation *, 16> region;
  llvm::SmallVector<StringRef> traits; ///< for the form

  SmallVector<MaskTerm> terms;
  std::optional<double> floor;
  Value sinks;
  bool nanGuard = false;
  double scale = 1;
  std::optional<double> softcap;

  Matcher(onnx::NodeOp softmax, SymbolicAnalysis &analysis, AttentionSite &site)
      : analysis(analysis), ctx(analysis.expressions()), site(site),
        softmax(softmax) {}

  bool run();
  LogicalResult matchAll(Value scores, Indices scoreIndices, onnx::NodeOp pv);

private:
  LogicalResult refuse(Operation *node, const Twine &why, Value v = {}) {
    return site.refuse(node, why, v);
  }
  bool leadsToProduct(Value value, unsigned depth, unsigned &steps);
  bool leads(Value value) {
    unsigned steps = 0;
    return leadsToProduct(value, 0, steps);
  }
  void forwardProducts(Value value, SmallVectorImpl<onnx::NodeOp> &found,
                       bool &elsewhere, unsigned depth);
  LogicalResult peelTop(Value &scores);
  Indices leading(size_t rank);
  LogicalResult walkScores(Value value, Indices indices, Product &product,
                           ExprRef &headDim);
  LogicalResult walkProbabilities(Value value, Indices indices,
                                  ArrayRef<ExprRef> expected);
  SmallVector<Rows> layouts(Value value, ArrayRef<ExprRef> indices, ExprRef row,
                            ExprRef rowCount, ExprRef column, int64_t width,
                            bool mayScale);
  LogicalResult matchSinks(Value value);
  bool emptyRowGuard(Value condition, ArrayRef<ExprRef> indices,
                     ArrayRef<ExprRef> shape, ExprRef visible);
  void absorbOutput(Value o, Indices indices, const MaskBuilder &masks,
                    bool &zeroRows);
  bool planShape(Value o);
  LogicalResult checkUses();
  ExprRef negate(ExprRef e);
};

} // namespace

//===----------------------------------------------------------------------===//
// Finding the products
//===----------------------------------------------------------------------===//

/// Whether nothing that is computed from `op` is used.
static bool isDead(Operation *op, unsigned depth) {
  return isa<onnx::NodeOp>(op) && depth < 8 &&
         llvm::all_of(
             op->getUsers(),
             [&](Operation *user) { return isDead(user, depth + 1); });
}

bool Matcher::leadsToProduct(Value value, unsigned depth, unsigned &steps) {
  auto node = value ? value.getDefiningOp<onnx::NodeOp>() : nullptr;
  if (!node || depth > 24 || ++steps > 256)
    return false;
  if (isProduct(node))
    return true;
  static const llvm::StringSet<> through = {
      "Cast",  "Identity", "Dropout", "Reshape",   "Transpose", "Add",
      "Sub",   "Mul",      "Div",     "Where",     "Tanh",      "Max",
      "Slice", "Concat",   "Squeeze", "Unsqueeze", "Flatten"};
  if (!node.getDomain().empty() || !through.contains(node.getOpType()))
    return false;
  bool all = node.is("Add") || node.is("Sub") || node.is("Mul") ||
             node.is("Div") || node.is("Where") || node.is("Max") ||
             node.is("Concat");
  for (auto [i, input] : llvm::enumerate(node.getInputs()))
    if ((i == 0 || all) && leadsToProduct(input, depth + 1, steps))
      return true;
  return false;
}

void Matcher::forwardProducts(Value value, SmallVectorImpl<onnx::NodeOp> &found,
                              bool &elsewhere, unsigned depth) {
  static const llvm::StringSet<> through = {
      "Cast",  "Identity", "Dropout",   "Where", "Reshape", "Transpose",
      "Slice", "Squeeze",  "Unsqueeze", "Mul",   "Div",     "Flatten"};
  if (depth > 12)
    return;
  for (Operation *user : value.getUsers()) {
    auto node = dyn_cast<onnx::NodeOp>(user);
    if (!node || node->getBlock() != softmax->getBlock()) {
      elsewhere = true;
      continue;
    }
    if (isProduct(node)) {
      if (!llvm::is_contained(found, node))
        found.push_back(node);
    } else if (node.getDomain().empty() && through.contains(node.getOpType())) {
      forwardProducts(node.getResult(0), found, elsewhere, depth + 1);
    } else if (!node.is("IsNaN") && !isDead(node, 0)) {
      elsewhere = true;
    }
  }
}

bool Matcher::run() {
  SmallVector<onnx::NodeOp> products;
  bool elsewhere = false;
  forwardProducts(softmax.getResult(0), products, elsewhere, 0);
  if (products.empty())
    return false; // A classifier, a router, a sampler.
  Value input = softmax.getInput(0);
  if (!input || !leads(input)) {
    (void)refuse(softmax,
                 "its scores are not a product of two computed "
                 "tensors with known steps in between",
                 input);
    return true;
  }
  if (products.size() > 1 || elsewhere) {
    (void)refuse(softmax,
                 "its probabilities are used outside of the product "
                 "with the values",
                 softmax.getResult(0));
    return true;
  }
  const TensorFacts &f = analysis.facts(input);
  if (!f.ranked) {
    (void)refuse(softmax, "the rank of its scores is not known", input);
    return true;
  }
  int64_t rank = f.shape.size();
  // Before opset 13 an axis stood for all from it on; for the last it is one.
  int64_t axis = softmax.getInt("axis", analysis.getOpset() < 13 ? 1 : -1);
  if (normalizeAxis(axis, rank) != rank - 1) {
    (void)refuse(softmax,
                 "it runs along axis " + Twine(axis) +
                     ", not along the keys (the last axis)",
                 input);
    return true;
  }
  region.insert(softmax);
  Value scores = input;
  if (failed(peelTop(scores)))
    return true;
  const TensorFacts &s = analysis.facts(scores);
  if (!s.ranked || static_cast<int64_t>(s.shape.size()) != rank || rank < 3 ||
      rank > 5) {
    (void)refuse(softmax,
                 "its scores have rank " + Twine(rank) +
                     ", expected batch, heads, rows and keys",
                 scores);
    return true;
  }
  // What the leading axes are: (batch, heads), batch * heads, or (batch, KV
  // heads, heads of a group).
  SmallVector<std::pair<ExprRef, int64_t>> readings;
  if (rank == 4) {
    if (auto h = s.shape[1]->asInt())
      readings.push_back({s.shape[0], *h});
  } else if (rank == 5) {
    auto groups = s.shape[1]->asInt(), each = s.shape[2]->asInt();
    if (groups && each)
      readings.push_back({s.shape[0], *groups * *each});
  } else {
    ExprRef all = s.shape[0];
    if (auto n = all->asInt())
      readings.push_back({ctx.getInt(1), *n});
    else if (all->is(Kind::Sum) && all->operands.size() == 1 &&
             all->integer == 0 && all->coefficients[0] > 1)
      readings.push_back({all->operands[0], all->coefficients[0]});
    readings.push_back({all, 1});
  }
  if (readings.empty()) {
    (void)refuse(softmax, "the number of heads is not known", scores);
    return true;
  }
  AttentionSite clean = site;
  auto cleanRegion = region;
  AttentionSite first;
  for (auto [batch, count] : readings) {
    Matcher attempt = *this;
    attempt.site = clean; // `site` is a reference: the same site
    attempt.heads = count;
    attempt.space = ScoreSpace(
        ctx, {batch, ctx.getInt(count), s.shape[rank - 2], s.shape[rank - 1]});
    Indices indices = attempt.leading(rank);
    indices.push_back(attempt.space.i);
    indices.push_back(attempt.space.j);
    if (succeeded(attempt.matchAll(scores, indices, products[0])))
      return true;
    if (!first.core)
      first = site;
  }
  site = first;
  return true;
}

Indices Matcher::leading(size_t rank) {
  ExprRef h = space.h, b = space.b;
  if (rank == 4)
    return {b, h};
  if (rank == 3)
    return {ctx.add(ctx.scale(b, heads), h)};
  Indices none;
  if (rank != 5)
    return none;
  // [b, groups, each]: heads = groups * each, taken from the scores.
  const TensorFacts &f = analysis.facts(softmax.getInput(0));
  if (!f.ranked || f.shape.size() != 5)
    return none;
  ExprRef each = f.shape[2];
  return {b, each->isInt(1) ? h : ctx.floorDiv(h, each),
          each->isInt(1) ? ctx.getInt(0) : ctx.mod(h, each)};
}

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
// Probabilities
//===----------------------------------------------------------------------===//

LogicalResult Matcher::walkProbabilities(Value value, Indices indices,
                                         ArrayRef<ExprRef> expected) {
  for (unsigned step = 0; step < 16; ++step) {
    if (value == softmax.getResult(0)) {
      if (indices.size() == expected.size() &&
          llvm::all_of(llvm::zip_equal(indices, expected), [&](auto pair) {
            return ctx.proveEqual(std::get<0>(pair), std::get<1>(pair));
          }))
        return success();
      return refuse(softmax,
                    "its probabilities are multiplied with the values "
                    "in another order than keys and queries have",
                    value);
    }
    auto node = value.getDefiningOp<onnx::NodeOp>();
    if (!node)
      break;
    region.insert(node);
    if (auto view = analysis.viewStep(
            node, cast<OpResult>(value).getResultNumber(), indices)) {
      value = view->value;
      indices = view->indices;
      continue;
    }
    if (node.is("Cast") && isFloat(analysis.facts(value).elementType) &&
        isFloat(analysis.facts(node.getInput(0)).elementType)) {
      value = node.getInput(0);
      continue;
    }
    if (node.is("Where") && !nanGuard) {
      auto test = node.getInput(0)
                      ? node.getInput(0).getDefiningOp<onnx::NodeOp>()
                      : nullptr;
      Value kept = node.getInput(2);
      if (test && test.is("IsNaN") && test.getInput(0) == kept &&
          analysis.uniformNumber(node.getInput(1)) == 0.0) {
        region.insert(test);
        nanGuard = true;
        value = kept;
        continue;
      }
    }
    return refuse(node, "probabilities go through " + node.getOpType(), value);
  }
  return refuse(softmax, "its probabilities are not what multiplies the values",
                value);
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

//===----------------------------------------------------------------------===//
// Output
//===----------------------------------------------------------------------===//

/// Whether `condition` at `indices` says that the row sees no key.
bool Matcher::emptyRowGuard(Value condition, ArrayRef<ExprRef> indices,
                            ArrayRef<ExprRef> shape, ExprRef visible) {
  const TensorFacts &f = analysis.facts(condition);
  if (!visible || !f.ranked)
    return false;
  auto mapped = analysis.broadcastIndices(f.shape, indices, shape);
  if (!mapped)
    return false;
  auto last = analysis.viewChain(condition, *mapped).back();
  auto test = last.value.getDefiningOp<onnx::NodeOp>();
  if (!test || last.factor != 1 ||
      !(test.is("Less") || test.is("Equal") || test.is("LessOrEqual")))
    return false;
  auto limit = analysis.uniformNumber(test.getInput(1));
  double expected = test.is("Less") ? 1 : 0;
  if (limit != expected)
    return false;
  auto sumIndices =
      analysis.broadcastIndices(analysis.facts(test.getInput(0)).shape,
                                last.indices, analysis.facts(last.value).shape);
  auto sum = test.getInput(0).getDefiningOp<onnx::NodeOp>();
  if (!sumIndices || !sum || !sum.is("ReduceSum") || !sum.getInt("keepdims", 1))
    return false;
  auto axes = axesOf(analysis, sum, 1);
  const TensorFacts &in = analysis.facts(sum.getInput(0));
  if (!axes || axes->size() != 1 || !in.ranked ||
      in.shape.size() != sumIndices->size() ||
      normalizeAxis((*axes)[0], in.shape.size()) !=
          static_cast<int64_t>(in.shape.size()) - 1 ||
      !ctx.proveEqual(in.shape.back(), space.dims.keys))
    return false;
  Indices at(*sumIndices);
  at.back() = space.j;
  ExprRef one = isFloat(in.elementType) ? ctx.getFloat(1) : ctx.getInt(1);
  ExprRef zero = isFloat(in.elementType) ? ctx.getFloat(0) : ctx.getInt(0);
  return analysis.element(sum.getInput(0), at) ==
         ctx.select(visible, one, zero);
}

/// Plans the reshape of [batch, heads, rows, e] to the shape of `o`, whose
/// leading axes hold batch and heads in another way.
bool Matcher::planShape(Value o) {
  const TensorFacts &f = analysis.facts(o);
  MLIRContext *context = softmax->getContext();
  size_t rank = f.shape.size();
  SmallVector<int64_t> lead = {-1};
  for (size_t axis = 1; axis + 2 < rank; ++axis) {
    auto size = f.shape[axis]->asInt();
    if (!size)
      return false;
    lead.push_back(*size);
  }
  if (rank < 3 || analysis.getOpset() < 13)
    return false;
  auto sizeOf = [&](ExprRef e) {
    return ctx.resolve(e)->asInt().value_or(ShapedType::kDynamic);
  };
  site.oLayout = TensorLayout::BHSD;
  site.resultType = RankedTensorType::get(
      {sizeOf(space.dims.batch), heads, sizeOf(space.dims.rows), site.vHeadDim},
      f.elementType);
  Type i64 = IntegerType::get(context, 64);
  auto ints = [&](int64_t n) { return RankedTensorType::get({n}, i64); };
  PlannedValue result = PlannedValue::attention();
  PlannedValue whole = site.plan("Shape", {result}, ints(4));
  PlannedValue last = site.plan(
      "Slice",
      {whole, site.planInts(context, {2}), site.planInts(context, {4})},
      ints(2));
  Builder builder(context);
  PlannedValue shape =
      site.plan("Concat", {site.planInts(context, lead), last}, ints(rank),
                {onnx::intAttr(builder, "axis", 0)});
  site.replacements.emplace_back(
      o, site.plan("Reshape", {result, shape}, analysis.inferredType(o)));
  return true;
}

/// Follows the result `o` as long as it is only moved about, and replaces the
/// last tensor that lies as kernels write it.
void Matcher::absorbOutput(Value o, Indices indices, const MaskBuilder &masks,
                           bool &zeroRows) {
  int64_t width = site.vHeadDim;
  ExprRef e = indices.back();
  SmallVector<Operation *> moved; // ops between o and value
  size_t movedToBest = 0;
  Value best = {};
  struct Form {
    TensorLayout layout;
    Indices indices;
    SmallVector<ExprRef> shape;
  };
  ExprRef h = space.h, i = space.i, b = space.b;
  Form forms[] = {
      {TensorLayout::BHSD,
       {b, h, i, e},
       {space.dims.batch, space.dims.heads, space.dims.rows,
        ctx.getInt(width)}},
      {TensorLayout::BSHD,
       {b, i, h, e},
       {space.dims.batch, space.dims.rows, space.dims.heads,
        ctx.getInt(width)}},
      {TensorLayout::BSHD,
       {b, i, ctx.add(ctx.scale(h, width), e)},
       {space.dims.batch, space.dims.rows, ctx.getInt(heads * width)}}};
  // Where element (b, h, i, e) of the result is in `v`, going back to o.
  auto formOf = [&](Value v) -> Form * {
    const TensorFacts &f = analysis.facts(v);
    for (Form &form : forms) {
      if (!f.ranked || f.shape.size() != form.shape.size() ||
          !llvm::all_of(llvm::zip_equal(f.shape, form.shape), [&](auto pair) {
            return ctx.proveEqual(std::get<0>(pair), std::get<1>(pair));
          }))
        continue;
      Value at = v;
      Indices x = form.indices;
      for (unsigned step = 0; step < 16 && at != o; ++step) {
        auto node = at.getDefiningOp<onnx::NodeOp>();
        if (node &&
            node.is("Where")) { // an absorbed guard, as wide as its input
          at = node.getInput(2);
          continue;
        }
        auto view = node ? analysis.viewStep(node, 0, x) : std::nullopt;
        if (!view)
          break;
        at = view->value;
        x = view->indices;
      }
      if (at == o && llvm::all_of(llvm::zip_equal(x, indices), [&](auto pair) {
            return ctx.proveEqual(std::get<0>(pair), std::get<1>(pair));
          }))
        return &form;
    }
    return nullptr;
  };
  Value value = o;
  bool guarded = false;
  for (unsigned step = 0; step < 8; ++step) {
    if (Form *form = formOf(value)) {
      best = value;
      site.oLayout = form->layout;
      zeroRows = guarded;
      movedToBest = moved.size();
    }
    if (!value.hasOneUse())
      break;
    auto node = dyn_cast<onnx::NodeOp>(*value.user_begin());
    if (!node || node->getBlock() != softmax->getBlock() ||
        node->getNumResults() == 0)
      break;
    const TensorFacts &f = analysis.facts(node.getResult(0));
    if (node.is("Where") && node.getInput(2) == value &&
        analysis.uniformNumber(node.getInput(1)) == 0.0) {
      Form *form = formOf(value);
      if (!form || !f.ranked || f.shape.size() != form->shape.size() ||
          !llvm::all_of(llvm::zip_equal(f.shape, form->shape),
                        [&](auto pair) {
                          return ctx.proveEqual(std::get<0>(pair),
                                                std::get<1>(pair));
                        }) ||
          !emptyRowGuard(node.getInput(0), form->indices, f.shape,
                         masks.visible()))
        break;
      guarded = true;
    } else if (!f.ranked || node.getInput(0) != value ||
               !analysis.viewStep(
                   node, 0, analysis.indexVariables(node.getResult(0), "o"))) {
      break;
    }
    moved.push_back(node);
    value = node.getResult(0);
  }
  region.insert(moved.begin(), moved.begin() + movedToBest);
  if (!best && planShape(o)) {
    best = o;
  } else if (!best) {
    (void)refuse(o.getDefiningOp(), "how its result lies is not known", o);
    return;
  } else {
    // The result's type: what the model declares, unless that says too little.
    Type inferred = analysis.inferredType(best);
    site.resultType = isa<RankedTensorType>(best.getType()) || !inferred
                          ? best.getType()
                          : inferred;
    site.replacements.emplace_back(best, PlannedValue::attention());
  }
  if (zeroRows)
    traits.push_back("empty rows replaced");
}

/// Refuses when an intermediate result is used by something else.
LogicalResult Matcher::checkUses() {
  for (Operation *op : region)
    for (Value result : op->getResults()) {
      if (result == site.replacements.front().first)
        continue;
      for (Operation *user : result.getUsers())
        if (!region.contains(user) && !isDead(user, 0))
          return refuse(op, "its result is also used outside of the attention",
                        result);
    }
  return success();
}

//===----------------------------------------------------------------------===//
// All together
//===----------------------------------------------------------------------===//

LogicalResult Matcher::matchAll(Value scores, Indices scoreIndices,
                                onnx::NodeOp pv) {
  site.qHeads = heads;
  Product qk;
  ExprRef headDim = nullptr;
  if (failed(walkScores(scores, scoreIndices, qk, headDim)))
    return failure();
  site.headDim = headDim->integer;
  ExprRef d = ctx.getIndex("d", headDim);

  // The second product: probabilities times values.
  Value o = pv.getResult(0);
  const TensorFacts &of = analysis.facts(o);
  auto [keys, valueRows] = contractionSizes(analysis, pv);
  if (!of.ranked || !keys || !ctx.proveEqual(keys, space.dims.keys))
    return refuse(pv, "the product with the values does not run over the keys",
                  o);
  auto vWidth = ctx.resolve(of.shape.back())->asInt();
  if (!vWidth || *vWidth <= 0)
    return refuse(pv, "the head dimension of the values is not known", o);
  site.vHeadDim = *vWidth;
  ExprRef e = ctx.getIndex("e", of.shape.back());
  Indices oIndices = leading(of.shape.size());
  oIndices.push_back(space.i);
  oIndices.push_back(e);
  auto product = oIndices.size() == of.shape.size()
                     ? productAt(analysis, o, oIndices, space.j)
                     : std::nullopt;
  if (!product || product->factor != 1)
    return refuse(pv, "which values the product multiplies is not known", o);
  region.insert(pv);
  // The probabilities must be the left operand; values the right one.
  if (failed(
          walkProbabilities(product->lhs, product->lhsIndices, scoreIndices)))
    return failure();

  // Queries, keys and values where they lie.
  SmallVector<Rows> q = layouts(qk.lhs, qk.lhsIndices, space.i, space.dims.rows,
                                d, site.headDim, true);
  SmallVector<Rows> k = layouts(qk.rhs, qk.rhsIndices, space.j, space.dims.keys,
                                d, site.headDim, true);
  SmallVector<Rows> v = layouts(product->rhs, product->rhsIndices, space.j,
                                space.dims.keys, e, site.vHeadDim, false);
  llvm::erase_if(q, [&](const Rows &r) { return r.heads != heads; });
  if (q.empty())
    return refuse(qk.node,
                  "the queries do not lie as [batch, heads, rows, d] "
                  "or [batch, rows, heads, d]",
                  qk.lhs);
  if (k.empty())
    return refuse(qk.node,
                  "the keys do not lie as [batch, heads, keys, d] or "
                  "[batch, keys, heads, d] with the queries' batch",
                  qk.rhs);
  if (v.empty())
    return refuse(pv,
                  "the values do not lie as [batch, heads, keys, d] or "
                  "[batch, keys, heads, d] with the queries' batch",
                  product->rhs);
  // The fewest KV heads that keys and values both have.
  const Rows *bestK = nullptr, *bestV = nullptr;
  for (const Rows &x : k)
    for (const Rows &y : v)
      if (x.heads == y.heads && (!bestK || x.heads <= bestK->heads)) {
        bestK = &x;
        bestV = &y;
      }
  if (!bestK)
    return refuse(qk.node, "keys and values have different numbers of heads",
                  qk.rhs);
  const Rows &bestQ = q.back();
  site.q = bestQ.value;
  site.k = bestK->value;
  site.v = bestV->value;
  site.qLayout = bestQ.layout;
  site.kLayout = bestK->layout;
  site.vLayout = bestV->layout;
  site.kvHeads = bestK->heads;
  scale *= bestQ.factor * bestK->factor;
  // Numbers that over- or underflow on the way make another result.
  if (!(std::abs(scale) > 1e-10 && std::abs(scale) < 1e10))
    return refuse(qk.node, "the scale is not an ordinary number");
  site.scale = scale;
  site.softcap = softcap;
  if (bestK->heads < heads)
    traits.push_back("grouped heads");
  if (softcap)
    traits.push_back("softcap");

  Type type = analysis.facts(bestQ.value).elementType;
  if (!type || !(type.isF32() || type.isF16() || type.isBF16()) ||
      analysis.facts(bestK->value).elementType != type ||
      analysis.facts(bestV->value).elementType != type ||
      of.elementType != type)
    return refuse(qk.node,
                  "q, k, v and the result are not all of one type f32, "
                  "f16 or bf16",
                  bestQ.value);
  if (sinks && failed(matchSinks(sinks)))
    return failure();

  // Masks. They are added to scores of the scores' type, which fp16 models
  // often raise to fp32 first.
  Type scoreType = analysis.facts(scores).elementType;
  MaskBuilder masks(analysis, site, space, scoreType);
  for (const MaskTerm &term : terms)
    masks.add(term);
  if (floor)
    masks.setFloor(*floor);
  if (failed(masks.finish()))
    return failure();
  if (site.bias && scoreType != type) {
    bool boolean = site.bias.kind == PlannedValue::Kind::Existing &&
                   isBool(analysis.facts(site.bias.value).elementType);
    if (!boolean)
      return refuse(softmax, "the bias is not of the type of the queries",
                    site.bias.value);
  }
  bool zeroRows = false;
  absorbOutput(o, oIndices, masks, zeroRows);
  if (site.refused())
    return failure();
  site.maskedRow = masks.emptyRow();
  if (zeroRows || sinks ||
      (nanGuard &&
       (site.maskedRow == MaskedRowRule::NaN || masks.emptyRowAssumed())))
    site.maskedRow = MaskedRowRule::Zero;
  if (nanGuard)
    traits.push_back("NaN guard");
  if (failed(checkUses()))
    return failure();
  site.form = (qk.node.getOpType() + "-Softmax-" + pv.getOpType()).str();
  for (StringRef trait : traits)
    site.form += (", " + trait).str();
  return success();
}

bool prefill::matchSoftmaxForm(onnx::NodeOp softmax, SymbolicAnalysis &analysis,
                               AttentionSite &site) {
  return Matcher(softmax, analysis, site).run();
}
