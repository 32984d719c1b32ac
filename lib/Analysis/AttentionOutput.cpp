//===- AttentionOutput.cpp - From a softmax on to the result --------------===//
//
// What is between the softmax and the product with the values, and what becomes
// of the result.
//
//===----------------------------------------------------------------------===//

#include "AttentionMatcher.h"

#include <cmath>

using namespace mlir;
using namespace prefill;
using Kind = Expr::Kind;

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
