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

LogicalResult Matcher::walkProbabilities(Value value, Indices indices) {
  for (unsigned step = 0; step < 16; ++step) {
    if (value == form.probabilities) {
      // They lie as the softmax's scores do.
      for (auto [from, view] : peeled)
        if (view) {
          auto at =
              analysis.viewStep(from.getDefiningOp<onnx::NodeOp>(), 0, indices);
          if (!at)
            return refuse(softmax, "how its scores lie is not known", from);
          indices = at->indices;
        }
      if (same(indices, scoreIndices))
        return success();
      int64_t last = analysis.facts(form.scores).shape.size() - 1;
      if (form.axis != last)
        return refuse(softmax,
                      "it runs along axis " + Twine(*form.axis) +
                          ", not along the keys that the product with the "
                          "values sums over",
                      value);
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
    if (node.is("Where")) {
      auto test = node.getInput(0)
                      ? node.getInput(0).getDefiningOp<onnx::NodeOp>()
                      : nullptr;
      bool zeroWhere = fromProbabilities.contains(node.getInput(2));
      Value kept = node.getInput(zeroWhere ? 2 : 1);
      Value zero = node.getInput(zeroWhere ? 1 : 2);
      auto &out = analysis.facts(value);
      if (!fromProbabilities.contains(kept) ||
          analysis.uniformNumber(zero) != 0.0)
        return refuse(node, "what stands in place of probabilities is not 0",
                      value);
      if (auto like = zero.getDefiningOp<onnx::NodeOp>();
          like && like.is("CastLike"))
        region.insert(like);
      if (zeroWhere && test && test.is("IsNaN") && test.getInput(0) == kept &&
          !nanGuard) {
        region.insert(test);
        nanGuard = true;
        value = kept;
        continue;
      }
      auto &in = analysis.facts(kept);
      if (in.ranked && out.ranked && same(in.shape, out.shape)) {
        guards.push_back({node, node.getInput(0), zeroWhere, indices,
                          SmallVector<ExprRef, 5>(ArrayRef(out.shape))});
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

/// Plans the transpose of [batch, heads, rows, e] to the axes of `o`.
bool Matcher::planOrder(Value o, ArrayRef<Role> roles) {
  static constexpr Role written[] = {Role::Batch, Role::Head, Role::Row,
                                     Role::Column};
  if (roles.size() != 4 || analysis.facts(o).shape.size() != 4)
    return false;
  SmallVector<int64_t> perm, sizes;
  for (Role role : roles) {
    const Role *at = llvm::find(written, role);
    if (at == std::end(written))
      return false;
    perm.push_back(at - std::begin(written));
  }
  for (ExprRef e : {space.dims.batch, space.dims.heads, space.dims.rows,
                    ctx.getInt(site.vHeadDim)})
    sizes.push_back(ctx.resolve(e)->asInt().value_or(ShapedType::kDynamic));
  site.oLayout = TensorLayout::BHSD;
  site.resultType = RankedTensorType::get(sizes, analysis.facts(o).elementType);
  Builder builder(softmax->getContext());
  site.replacements.emplace_back(
      o, site.plan("Transpose", {PlannedValue::attention()},
                   analysis.inferredType(o),
                   {onnx::intsAttr(builder, "perm", perm)}));
  return true;
}

/// Plans the reshape of [batch, heads, rows, e] to the shape of `o`, whose
/// leading axes hold batch and heads in another way.
bool Matcher::planShape(Value o, ArrayRef<Role> roles) {
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
  bool usual = roles.size() == rank && rank >= 3 &&
               roles[rank - 2] == Role::Row &&
               roles[rank - 1] == Role::Column && llvm::is_sorted(roles);
  if (!usual || analysis.getOpset() < 13)
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
void Matcher::absorbOutput(Value o, ArrayRef<Role> roles, Indices indices,
                           ExprRef e, const MaskBuilder &masks,
                           std::optional<GuardEffect> &zeroRows) {
  int64_t width = site.vHeadDim;
  SmallVector<Operation *> moved; // ops between o and value
  size_t movedToBest = 0;
  Value best = {};
  struct Lies {
    TensorLayout layout;
    Indices indices;
    SmallVector<ExprRef> shape;
  };
  ExprRef h = space.h, i = space.i, b = space.b;
  Lies forms[] = {
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
  auto formOf = [&](Value v) -> Lies * {
    const TensorFacts &f = analysis.facts(v);
    for (Lies &form : forms) {
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
          at = node.getInput(
              analysis.uniformNumber(node.getInput(1)) == 0.0 ? 2 : 1);
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
  std::optional<GuardEffect> guarded;
  for (unsigned step = 0; step < 8; ++step) {
    if (Lies *form = formOf(value)) {
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
    bool zeroWhere = node.getInput(2) == value;
    if (node.is("Where") && (zeroWhere || node.getInput(1) == value) &&
        analysis.uniformNumber(node.getInput(zeroWhere ? 1 : 2)) == 0.0) {
      Lies *form = formOf(value);
      if (!form || !f.ranked || f.shape.size() != form->shape.size() ||
          !llvm::all_of(llvm::zip_equal(f.shape, form->shape), [&](auto pair) {
            return ctx.proveEqual(std::get<0>(pair), std::get<1>(pair));
          }))
        break;
      auto effect = effectOf({node, node.getInput(0), zeroWhere, form->indices,
                              SmallVector<ExprRef, 5>(ArrayRef(f.shape))},
                             masks);
      if (!effect)
        break;
      if (guarded != GuardEffect::Zero)
        guarded = effect;
    } else if (!f.ranked || node.getInput(0) != value ||
               !analysis.viewStep(
                   node, 0, analysis.indexVariables(node.getResult(0), "o"))) {
      break;
    }
    moved.push_back(node);
    value = node.getResult(0);
  }
  region.insert(moved.begin(), moved.begin() + movedToBest);
  if (!best && (planShape(o, roles) || planOrder(o, roles))) {
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

/// Whether nothing is computed from `op` but what goes with the region.
static bool goesWith(Operation *op,
                     const llvm::SmallPtrSetImpl<Operation *> &region,
                     unsigned depth) {
  return isa<onnx::NodeOp>(op) && depth < 12 &&
         llvm::all_of(
             op->getUsers(),
             [&](Operation *user) {
               return region.contains(user) ||
                      goesWith(user, region, depth + 1);
             });
}

/// Refuses when an intermediate result is used by something else.
LogicalResult Matcher::checkUses() {
  for (Operation *op : region)
    for (Value result : op->getResults()) {
      if (result == site.replacements.front().first)
        continue;
      for (Operation *user : result.getUsers())
        if (!region.contains(user) && !goesWith(user, region, 0))
          return refuse(op, "its result is also used outside of the attention",
                        result);
    }
  return success();
}
