//===- AttentionOperands.cpp - Queries, keys, values and sinks ------------===//
//
// The tensors that an attention reads, in a layout that the kernels know.
//
//===----------------------------------------------------------------------===//

#include "AttentionMatcher.h"

#include "mlir/IR/Builders.h"

#include <algorithm>
#include <cmath>

using namespace mlir;
using namespace prefill;
using Kind = Expr::Kind;

/// All places on the way back from `value` where rows lie as kernels read
/// them, the deepest last. Casts to a wider type are looked through: kernels
/// multiply in fp32.
SmallVector<Rows> Matcher::layouts(Value value, ArrayRef<ExprRef> indices,
                                   ExprRef row, ExprRef rowCount,
                                   ExprRef column, int64_t width,
                                   bool mayScale) {
  SmallVector<Rows> found;
  auto equal = [&](ExprRef a, ExprRef b) { return ctx.proveEqual(a, b); };
  SmallVector<SymbolicAnalysis::ViewStep> steps =
      analysis.viewChain(value, indices);
  for (unsigned casts = 0; casts < 3; ++casts) {
    SymbolicAnalysis::ViewStep last = steps.back();
    auto cast = last.value.getDefiningOp<onnx::NodeOp>();
    if (!cast || !cast.is("Cast") || !cast.getInput(0))
      break;
    Type from = analysis.facts(cast.getInput(0)).elementType,
         to = analysis.facts(last.value).elementType;
    if (!isFloat(from) || !isFloat(to) ||
        from.getIntOrFloatBitWidth() >= to.getIntOrFloatBitWidth())
      break;
    for (auto step : analysis.viewChain(cast.getInput(0), last.indices)) {
      step.factor *= last.factor;
      steps.push_back(step);
    }
  }
  // Whether a tensor of `shape` read at `at` has a layout: which, and of how
  // many heads.
  auto layoutOf = [&](ArrayRef<ExprRef> shape, ArrayRef<ExprRef> at)
      -> std::optional<std::pair<TensorLayout, int64_t>> {
    size_t rank = shape.size();
    if (!equal(at[0], space.b) || !equal(shape[0], space.dims.batch))
      return std::nullopt;
    for (TensorLayout layout : {TensorLayout::BHSD, TensorLayout::BSHD}) {
      bool bhsd = layout == TensorLayout::BHSD;
      if (rank == 3 && bhsd)
        continue;
      size_t rowAxis = bhsd ? 2 : 1, headAxis = bhsd ? 1 : 2;
      auto total = ctx.resolve(shape[headAxis])->asInt();
      if (!total || *total <= 0 || !equal(at[rowAxis], row) ||
          !equal(shape[rowAxis], rowCount))
        continue;
      int64_t count = rank == 3 ? *total / width : *total;
      if (count <= 0 || heads % count != 0 ||
          (rank == 3 && count * width != *total))
        continue;
      ExprRef head = ctx.floorDiv(space.h, ctx.getInt(heads / count));
      bool fits = rank == 3
                      ? equal(at[2], ctx.add(ctx.scale(head, width), column))
                      : equal(at[headAxis], head) && equal(at[3], column) &&
                            equal(shape[3], ctx.getInt(width));
      if (fits)
        return std::make_pair(layout, count);
    }
    return std::nullopt;
  };
  for (bool transposed : {false, true}) {
    for (const auto &step : steps) {
      const TensorFacts &f = analysis.facts(step.value);
      size_t rank = step.indices.size();
      if (!f.ranked || f.shape.size() != rank || (rank != 3 && rank != 4) ||
          (step.factor != 1 && !mayScale))
        continue;
      if (!transposed) {
        if (auto at = layoutOf(f.shape, step.indices))
          found.push_back({step.value, at->first, at->second, step.factor, {}});
        continue;
      }
      SmallVector<int64_t, 4> perm;
      for (size_t axis = 0; axis < rank; ++axis)
        perm.push_back(axis);
      while (std::next_permutation(perm.begin(), perm.end())) {
        SmallVector<ExprRef> shape, at;
        for (int64_t axis : perm) {
          shape.push_back(f.shape[axis]);
          at.push_back(step.indices[axis]);
        }
        if (auto lies = layoutOf(shape, at)) {
          found.push_back(
              {step.value, lies->first, lies->second, step.factor, perm});
          break;
        }
      }
    }
    // Only what lies in no way that kernels read is transposed.
    if (!found.empty())
      break;
  }
  return found;
}

/// q `[batch, heads, rows, d]` times all factors of rows; nothing if one of
/// them lies in another way, or has another type.
PlannedValue Matcher::scaleRows(PlannedValue q, RankedTensorType type) {
  // fp16 queries may overflow where their scores do not.
  if (type.getElementType().isF16())
    return {};
  for (RowFactor &factor : rowFactors) {
    const TensorFacts &f = analysis.facts(factor.tensor);
    ExprRef places[] = {space.b, space.h, space.i, nullptr};
    if (f.elementType != type.getElementType() || f.shape.size() > 4)
      return {};
    for (auto [size, at, place] :
         llvm::zip(llvm::reverse(f.shape), llvm::reverse(factor.indices),
                   llvm::reverse(places)))
      if (!size->isInt(1) && (!place || !ctx.proveEqual(at, place)))
        return {};
    q = site.plan(factor.node.getOpType(), {q, factor.tensor}, type);
  }
  return q;
}

/// Chooses q, k and v for an attention of `type`.
LogicalResult Matcher::matchOperands(const Product &qk, const Product &product,
                                     ExprRef d, ExprRef e, Type type) {
  SmallVector<Rows> q = layouts(qk.lhs, qk.lhsIndices, space.i, space.dims.rows,
                                d, site.headDim, true);
  SmallVector<Rows> k = layouts(qk.rhs, qk.rhsIndices, space.j, space.dims.keys,
                                d, site.headDim, true);
  SmallVector<Rows> v = layouts(product.rhs, product.rhsIndices, space.j,
                                space.dims.keys, e, site.vHeadDim, false);
  llvm::erase_if(q, [&](const Rows &r) { return r.heads != heads; });
  if (!rowFactors.empty())
    llvm::erase_if(q, [&](const Rows &r) {
      return r.layout != TensorLayout::BHSD ||
             analysis.facts(r.value).shape.size() != 4;
    });
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
    return refuse(product.node,
                  "the values do not lie as [batch, heads, keys, d] or "
                  "[batch, keys, heads, d] with the queries' batch",
                  product.rhs);
  if (!type || !(type.isF32() || type.isF16() || type.isBF16()))
    return refuse(product.node,
                  "q, k, v and the result are not all of one type f32, "
                  "f16 or bf16",
                  product.rhs);
  // Those of the result's type; else narrower ones, which are cast.
  auto typeOf = [&](const Rows &r) {
    return analysis.facts(r.value).elementType;
  };
  SmallVector<Rows> allK = k, allV = v;
  auto isNarrower = [&](const Rows &r) {
    Type t = typeOf(r);
    return isFloat(t) &&
           t.getIntOrFloatBitWidth() < type.getIntOrFloatBitWidth();
  };
  for (SmallVector<Rows> *list : {&q, &k, &v}) {
    bool any =
        llvm::any_of(*list, [&](const Rows &r) { return typeOf(r) == type; });
    Value first = list->front().value;
    llvm::erase_if(*list, [&](const Rows &r) {
      return any ? typeOf(r) != type : !isNarrower(r);
    });
    if (list->empty())
      return refuse(qk.node,
                    "q, k, v and the result are not all of one type f32, "
                    "f16 or bf16",
                    first);
  }
  // The fewest KV heads that keys and values both have; narrower ones only
  // where they are fewer: heads that were repeated before they were cast.
  const Rows *bestK = nullptr, *bestV = nullptr;
  for (const Rows &x : k)
    for (const Rows &y : v)
      if (x.heads == y.heads && (!bestK || x.heads <= bestK->heads)) {
        bestK = &x;
        bestV = &y;
      }
  auto mayCast = [&](const Rows &r) {
    return typeOf(r) == type || isNarrower(r);
  };
  for (const Rows &x : allK)
    for (const Rows &y : allV)
      if (bestK && x.heads == y.heads && x.heads < bestK->heads && mayCast(x) &&
          mayCast(y)) {
        bestK = &x;
        bestV = &y;
      }
  if (!bestK)
    return refuse(qk.node, "keys and values have different numbers of heads",
                  qk.rhs);
  const Rows &bestQ = q.back();
  auto operand = [&](const Rows &r) -> PlannedValue {
    PlannedValue value = r.value;
    Builder builder(softmax->getContext());
    SmallVector<int64_t> sizes, shape;
    for (ExprRef size : analysis.facts(r.value).shape)
      sizes.push_back(
          ctx.resolve(size)->asInt().value_or(ShapedType::kDynamic));
    shape = sizes;
    if (!r.perm.empty()) {
      for (auto [to, from] : llvm::enumerate(r.perm))
        shape[to] = sizes[from];
      value = site.plan("Transpose", {value},
                        RankedTensorType::get(shape, typeOf(r)),
                        {onnx::intsAttr(builder, "perm", r.perm)});
    }
    if (typeOf(r) == type)
      return value;
    int64_t to = type.isF32() ? 1 : type.isF16() ? 10 : 16;
    return site.plan("Cast", {value}, RankedTensorType::get(shape, type),
                     {onnx::intAttr(builder, "to", to)});
  };
  site.q = operand(bestQ);
  if (!rowFactors.empty()) {
    SmallVector<int64_t> shape;
    for (ExprRef size : {space.dims.batch, space.dims.heads, space.dims.rows,
                         ctx.getInt(site.headDim)})
      shape.push_back(
          ctx.resolve(size)->asInt().value_or(ShapedType::kDynamic));
    PlannedValue scaled = scaleRows(site.q, RankedTensorType::get(shape, type));
    if (!scaled)
      return refuse(rowFactors[0].node,
                    "the factor of the scores does not lie as they do, or has "
                    "not the queries' type float32 or bfloat16",
                    rowFactors[0].tensor);
    site.q = scaled;
    traits.push_back("scaled rows");
  }
  site.k = operand(*bestK);
  site.v = operand(*bestV);
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
  return success();
}

LogicalResult Matcher::matchSinks(Value value) {
  // Element (b, h, i, 0) of the tensor beside the scores is sink[h].
  const TensorFacts &f = analysis.facts(value);
  if (!f.ranked || scoreIndices.size() != f.shape.size())
    return refuse(softmax, "the sinks beside the scores have another rank",
                  value);
  Indices indices(scoreIndices);
  indices[axis] = ctx.getInt(0);
  for (auto [k, size] : llvm::enumerate(f.shape))
    if (size->isInt(1))
      indices[k] = ctx.getInt(0);
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
