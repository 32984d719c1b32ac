//===- AttentionMatch.cpp - Attention built of single ops -----------------===//
//
// From a Softmax back to the product of queries and keys and on to the product
// with the values. Every tensor on the way is followed by index: the matcher
// knows which element (b, h, i, j) it looks at, so that it does not matter
// which reshapes and transposes an exporter put in between. q, k and v are then
// read from the deepest tensor that still has a layout the kernels know.
//
//===----------------------------------------------------------------------===//

#include "AttentionMatcher.h"

#include "llvm/ADT/StringSet.h"

#include <cmath>

using namespace mlir;
using namespace prefill;
using Kind = Expr::Kind;
//===----------------------------------------------------------------------===//
// Finding the products
//===----------------------------------------------------------------------===//

/// Whether nothing that is computed from `op` is used.
bool prefill::isDead(Operation *op, unsigned depth) {
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
