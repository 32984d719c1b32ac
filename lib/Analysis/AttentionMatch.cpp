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

#include <algorithm>

#include <cmath>

using namespace mlir;
using namespace prefill;
using Kind = Expr::Kind;

//===----------------------------------------------------------------------===//
// Finding the products
//===----------------------------------------------------------------------===//

bool Matcher::same(ArrayRef<ExprRef> a, ArrayRef<ExprRef> b) {
  return a.size() == b.size() &&
         llvm::all_of(llvm::zip_equal(a, b), [&](auto pair) {
           return ctx.proveEqual(std::get<0>(pair), std::get<1>(pair));
         });
}

void Matcher::forwardProducts(Value value, SmallVectorImpl<onnx::NodeOp> &found,
                              bool &elsewhere, unsigned depth) {
  static const llvm::StringSet<> through = {
      "Cast",  "Identity", "Dropout",   "Where", "Reshape", "Transpose",
      "Slice", "Squeeze",  "Unsqueeze", "Mul",   "Div",     "Flatten"};
  if (depth > 12)
    return;
  fromProbabilities.insert(value);
  for (Operation *user : value.getUsers()) {
    auto node = dyn_cast<onnx::NodeOp>(user);
    if (!node || node->getBlock() != softmax->getBlock()) {
      elsewhere = true;
      continue;
    }
    if (llvm::is_contained(form.ops, user))
      continue;
    // Only their type or shape; checkUses says more.
    if ((node.is("CastLike") && node.getInput(0) != value) ||
        node.is("Shape") || node.is("Size"))
      continue;
    if (isProduct(node)) {
      if (!llvm::is_contained(found, node))
        found.push_back(node);
    } else if (node.getDomain().empty() && through.contains(node.getOpType())) {
      forwardProducts(node.getResult(0), found, elsewhere, depth + 1);
    } else if (!node.is("IsNaN") && !isDead(node)) {
      elsewhere = true;
    }
  }
}

bool Matcher::run() {
  SmallVector<onnx::NodeOp> products;
  bool elsewhere = false;
  bool plainSoftmax = softmax.is("Softmax");
  forwardProducts(form.probabilities, products, elsewhere, 0);
  if (products.empty()) {
    // A classifier, a router, a sampler; or an attention with something unknown
    // between its products.
    Operation *through = nullptr;
    if (!comesFromProduct(form.scores) ||
        !reachesProduct(form.probabilities, through))
      return false;
    auto node = cast<onnx::NodeOp>(through);
    (void)refuse(node, "probabilities go through " + node.getOpType(),
                 form.probabilities);
    return true;
  }
  if (!leadsToProduct(form.scores)) {
    bool loosely = comesFromProduct(form.scores);
    if (!plainSoftmax && !loosely)
      return false; // Exponentials of something else.
    (void)refuse(softmax,
                 loosely ? "there are steps between its scores and the product "
                           "of queries and keys that are not known"
                         : "its scores are not a product of two computed "
                           "tensors with known steps in between",
                 form.scores);
    return true;
  }
  if (!form.problem.empty() || !form.axis) {
    (void)refuse(softmax,
                 form.problem.empty() ? "the axis it runs along is not known"
                                      : form.problem,
                 form.scores);
    return true;
  }
  if (products.size() > 1 || elsewhere) {
    (void)refuse(softmax,
                 "its probabilities are used outside of the product "
                 "with the values",
                 form.probabilities);
    return true;
  }
  region.insert(form.ops.begin(), form.ops.end());
  axis = *form.axis;
  Value scores = form.scores;
  if (failed(peelTop(scores)))
    return true;
  const TensorFacts &s = analysis.facts(scores);
  size_t rank = s.shape.size();
  if (!s.ranked || rank < 3 || rank > 5) {
    (void)refuse(softmax,
                 "its scores have rank " + Twine(rank) +
                     ", expected batch, heads, rows and keys",
                 scores);
    return true;
  }
  SmallVector<Reading> all = readings(s.shape);
  if (all.empty()) {
    (void)refuse(softmax, "the number of heads is not known", scores);
    return true;
  }
  AttentionSite clean = site;
  AttentionSite first;
  for (const Reading &reading : all) {
    Matcher attempt = *this;
    attempt.site = clean; // `site` is a reference: the same site
    attempt.heads = reading.heads;
    attempt.space = ScoreSpace(ctx, reading.dims);
    attempt.scoreIndices =
        attempt.indicesOf(reading.roles, s.shape, /*column=*/nullptr);
    if (succeeded(attempt.matchAll(scores, products[0])))
      return true;
    if (!first.core)
      first = site;
  }
  site = first;
  return true;
}

//===----------------------------------------------------------------------===//
// What axes are
//===----------------------------------------------------------------------===//

/// All ways to read scores of `shape` whose axis `axis` counts the keys, the
/// usual ones first.
SmallVector<Reading> Matcher::readings(ArrayRef<ExprRef> shape) {
  using R = Role;
  SmallVector<Reading> found;
  auto consider = [&](ArrayRef<Role> others) {
    Reading r;
    ExprRef rows = nullptr, batch = nullptr, inner = nullptr;
    int64_t heads = 1;
    bool known = true;
    size_t next = 0;
    for (size_t k = 0; k < shape.size(); ++k) {
      Role role = static_cast<int64_t>(k) == axis ? R::Key : others[next++];
      r.roles.push_back(role);
      auto count = shape[k]->asInt();
      if (role == R::Row)
        rows = shape[k];
      if (role == R::Batch || role == R::BatchOuter)
        batch = shape[k];
      if (role == R::BatchInner)
        inner = shape[k];
      if (role == R::Head || role == R::Group || role == R::Each) {
        known &= count && *count > 0;
        heads *= known ? *count : 1;
      }
    }
    if (!known || !rows || !batch)
      return;
    r.batch = inner ? ctx.mul(batch, inner) : batch;
    r.heads = heads;
    r.dims = {r.batch, ctx.getInt(heads), rows, shape[axis]};
    found.push_back(r);
  };
  if (shape.size() == 3) {
    for (bool rowLast : {true, false}) {
      size_t lead = axis == 0 ? 1 : 0, row = axis == 2 ? 1 : 2;
      if (!rowLast)
        std::swap(lead, row);
      ExprRef all = shape[lead];
      auto joined = [&](ExprRef batch, int64_t heads) {
        Reading r;
        r.roles.assign(3, R::Key);
        r.roles[lead] = R::Joined;
        r.roles[row] = R::Row;
        r.batch = batch;
        r.heads = heads;
        r.dims = {batch, ctx.getInt(heads), shape[row], shape[axis]};
        found.push_back(r);
      };
      if (auto n = all->asInt())
        joined(ctx.getInt(1), *n);
      else if (all->is(Kind::Sum) && all->operands.size() == 1 &&
               all->integer == 0 && all->coefficients[0] > 1)
        joined(all->operands[0], all->coefficients[0]);
      joined(all, 1);
    }
  } else if (shape.size() == 4) {
    for (const Roles &roles :
         std::initializer_list<Roles>{{R::Batch, R::Head, R::Row},
                                      {R::Batch, R::Row, R::Head},
                                      {R::Head, R::Batch, R::Row},
                                      {R::Row, R::Batch, R::Head},
                                      {R::Head, R::Row, R::Batch},
                                      {R::Row, R::Head, R::Batch}})
      consider(roles);
  } else if (shape.size() == 5) {
    for (const Roles &roles : std::initializer_list<Roles>{
             {R::Batch, R::Group, R::Each, R::Row},
             {R::BatchOuter, R::BatchInner, R::Head, R::Row},
             {R::Batch, R::Row, R::Group, R::Each},
             {R::Batch, R::Group, R::Row, R::Each},
             {R::BatchOuter, R::BatchInner, R::Row, R::Head},
             {R::Group, R::Each, R::Batch, R::Row}})
      consider(roles);
  }
  return found;
}

/// All ways to read a result of `shape`, the usual one first.
SmallVector<Roles> Matcher::resultRoles(ArrayRef<ExprRef> shape) {
  using R = Role;
  SmallVector<Roles> usual, found;
  if (shape.size() == 3)
    usual = {{R::Joined, R::Row, R::Column}};
  else if (shape.size() == 4)
    usual = {{R::Batch, R::Head, R::Row, R::Column}};
  else if (shape.size() == 5)
    usual = {{R::Batch, R::Group, R::Each, R::Row, R::Column},
             {R::BatchOuter, R::BatchInner, R::Head, R::Row, R::Column}};
  for (Roles &first : usual) {
    Roles roles = first;
    llvm::sort(roles);
    do {
      int64_t each = 0, column = 0;
      ExprRef inner = nullptr;
      for (auto [size, role] : llvm::zip_equal(shape, roles)) {
        auto count = ctx.resolve(size)->asInt();
        if (role == R::Each)
          each = count.value_or(0);
        if (role == R::Column)
          column = count.value_or(0);
        if (role == R::BatchInner)
          inner = size;
      }
      bool fits = column > 0;
      for (auto [size, role] : llvm::zip_equal(shape, roles)) {
        ExprRef wanted = nullptr;
        if (role == R::Batch)
          wanted = space.dims.batch;
        else if (role == R::Head)
          wanted = space.dims.heads;
        else if (role == R::Row)
          wanted = space.dims.rows;
        else if (role == R::Joined)
          wanted = ctx.mul(space.dims.batch, space.dims.heads);
        else if (role == R::Group)
          wanted = each > 0 && heads % each == 0 ? ctx.getInt(heads / each)
                                                 : nullptr;
        else if (role == R::BatchOuter)
          wanted = inner ? ctx.exactDiv(space.dims.batch, inner) : nullptr;
        else
          continue;
        fits &= wanted && ctx.proveEqual(size, wanted);
      }
      if (fits && roles == first)
        found.insert(found.begin(), roles);
      else if (fits)
        found.push_back(roles);
    } while (std::next_permutation(roles.begin(), roles.end()));
  }
  return found;
}

ExprRef Matcher::indexOver(StringRef name, ExprRef size) {
  return ctx.resolve(size)->isInt(1) ? ctx.getInt(0) : ctx.getIndex(name, size);
}

/// Where element (b, h, i, j) or (b, h, i, column) of a tensor lies whose axes
/// are `roles`.
Indices Matcher::indicesOf(ArrayRef<Role> roles, ArrayRef<ExprRef> shape,
                           ExprRef column) {
  ExprRef each = ctx.getInt(1), inner = ctx.getInt(1);
  for (auto [size, role] : llvm::zip_equal(shape, roles)) {
    if (role == Role::Each)
      each = size;
    if (role == Role::BatchInner)
      inner = size;
  }
  auto over = [&](ExprRef x, ExprRef by) {
    return x->isInt(0) ? x : ctx.floorDiv(x, by);
  };
  auto rest = [&](ExprRef x, ExprRef by) {
    return x->isInt(0) ? x : ctx.mod(x, by);
  };
  Indices result;
  for (Role role : roles) {
    switch (role) {
    case Role::Batch:
      result.push_back(space.b);
      break;
    case Role::BatchOuter:
      result.push_back(over(space.b, inner));
      break;
    case Role::BatchInner:
      result.push_back(rest(space.b, inner));
      break;
    case Role::Joined:
      result.push_back(ctx.add(ctx.scale(space.b, heads), space.h));
      break;
    case Role::Head:
      result.push_back(space.h);
      break;
    case Role::Group:
      result.push_back(over(space.h, each));
      break;
    case Role::Each:
      result.push_back(rest(space.h, each));
      break;
    case Role::Row:
      result.push_back(space.i);
      break;
    case Role::Key:
      result.push_back(space.j);
      break;
    case Role::Column:
      result.push_back(column);
      break;
    }
  }
  return result;
}

//===----------------------------------------------------------------------===//
// The values
//===----------------------------------------------------------------------===//

/// Reads the product of probabilities and values `pv`; `o` is its result.
LogicalResult Matcher::matchValues(onnx::NodeOp pv, Product &product,
                                   Roles &roles, Value &o) {
  o = pv.getResult(0);
  const TensorFacts &of = analysis.facts(o);
  auto [keys, valueRows] = contractionSizes(analysis, pv);
  if (!of.ranked || !keys || !ctx.proveEqual(keys, space.dims.keys))
    return refuse(pv, "the product with the values does not run over the keys",
                  o);
  AttentionSite before = site, first;
  auto readable = resultRoles(of.shape);
  for (const Roles &attempt : readable) {
    site = before;
    size_t columnAxis = llvm::find(attempt, Role::Column) - attempt.begin();
    ExprRef e = indexOver("e", of.shape[columnAxis]);
    auto at = productAt(analysis, o, indicesOf(attempt, of.shape, e), space.j);
    if (!at || at->factor != 1) {
      (void)refuse(pv, "which values the product multiplies is not known", o);
    } else {
      // Probabilities on the right: the transposed product.
      if (!fromProbabilities.contains(at->lhs)) {
        std::swap(at->lhs, at->rhs);
        std::swap(at->lhsIndices, at->rhsIndices);
      }
      Matcher walk = *this;
      if (succeeded(walk.walkProbabilities(at->lhs, at->lhsIndices))) {
        region = walk.region;
        guards = walk.guards;
        nanGuard = walk.nanGuard;
        product = *at;
        roles = attempt;
        region.insert(pv);
        site.vHeadDim = ctx.resolve(of.shape[columnAxis])->integer;
        return success();
      }
    }
    if (!first.core)
      first = site;
  }
  if (readable.empty())
    return refuse(pv, "the head dimension of the values is not known", o);
  site = first;
  return failure();
}

/// The division by the sums of exponentials after the product.
LogicalResult Matcher::divideLater(Value &o, ArrayRef<ExprRef> at) {
  auto div = o.hasOneUse() ? dyn_cast<onnx::NodeOp>(*o.user_begin()) : nullptr;
  const TensorFacts &of = analysis.facts(o);
  if (!div || !div.is("Div") || div.getInput(0) != o ||
      div.getInput(1) != form.divisor)
    return refuse(softmax,
                  "the exponentials of its scores are not divided by their "
                  "sums in a way that is known",
                  o);
  const TensorFacts &sums = analysis.facts(form.divisor);
  const TensorFacts &result = analysis.facts(div.getResult(0));
  auto where = sums.ranked && result.ranked &&
                       same(ArrayRef<ExprRef>(result.shape), of.shape)
                   ? analysis.broadcastIndices(sums.shape, at, result.shape)
                   : std::nullopt;
  // The sums lie as the exponentials do, which are the scores.
  Indices wanted(scoreIndices);
  wanted[axis] = ctx.getInt(0);
  bool moved = llvm::any_of(peeled, [](auto &step) { return step.second; });
  if (!where || moved || !same(*where, wanted))
    return refuse(div, "which sums the result is divided by is not known", o);
  region.insert(div);
  o = div.getResult(0);
  return success();
}

//===----------------------------------------------------------------------===//
// All together
//===----------------------------------------------------------------------===//

LogicalResult Matcher::matchAll(Value scores, onnx::NodeOp pv) {
  site.qHeads = heads;
  Product qk;
  ExprRef headDim = nullptr;
  if (failed(walkScores(scores, scoreIndices, qk, headDim)))
    return failure();
  site.headDim = headDim->integer;
  ExprRef d = indexOver("d", headDim);

  // Keys on the left: the transposed product.
  auto moves = [&](ArrayRef<ExprRef> indices, ExprRef x) {
    return x->is(Kind::Index) && llvm::any_of(indices, [&](ExprRef e) {
             return ctx.dependsOn(e, x);
           });
  };
  if (moves(qk.lhsIndices, space.j) && !moves(qk.lhsIndices, space.i)) {
    std::swap(qk.lhs, qk.rhs);
    std::swap(qk.lhsIndices, qk.rhsIndices);
  }

  // The second product: probabilities times values.
  Product values;
  Roles roles;
  Value o;
  if (failed(matchValues(pv, values, roles, o)))
    return failure();
  const TensorFacts &of = analysis.facts(o);
  size_t columnAxis = llvm::find(roles, Role::Column) - roles.begin();
  ExprRef e = indexOver("e", of.shape[columnAxis]);
  Indices oIndices = indicesOf(roles, of.shape, e);
  if (form.divisor && (nanGuard || !guards.empty()))
    return refuse(softmax, "its exponentials are masked after they are summed");
  if (form.divisor && failed(divideLater(o, oIndices)))
    return failure();

  Type type = of.elementType;
  if (failed(matchOperands(qk, values, d, e, type)))
    return failure();
  for (Operation *op : region) {
    auto cast = dyn_cast<onnx::NodeOp>(op);
    Type to = cast && cast.is("Cast")
                  ? analysis.facts(cast.getResult(0)).elementType
                  : Type();
    if (isFloat(to) && to != type &&
        to.getIntOrFloatBitWidth() <= type.getIntOrFloatBitWidth())
      return refuse(op, "scores or probabilities are rounded to another type",
                    cast.getResult(0));
  }
  if (sinks && failed(matchSinks(sinks)))
    return failure();

  // Masks. They are added to scores of the scores' type, which fp16 models
  // often raise to fp32 first.
  Type scoreType = termType ? termType : analysis.facts(scores).elementType;
  MaskBuilder masks(analysis, site, space, scoreType);
  for (const MaskTerm &term : terms)
    masks.add(term);
  if (floor)
    masks.setFloor(*floor);
  if (failed(masks.finish()))
    return failure();
  bool numbers =
      site.bias && !(site.bias.kind == PlannedValue::Kind::Existing &&
                     isBool(analysis.facts(site.bias.value).elementType));
  if (numbers && scoreType != type)
    return refuse(softmax, "the bias is not of the type of the queries",
                  site.bias.value);
  std::optional<GuardEffect> outputGuard;
  absorbOutput(o, roles, oIndices, e, masks, outputGuard);
  bool zeroRows = outputGuard == GuardEffect::Zero;
  bool zeroNaN = nanGuard || outputGuard == GuardEffect::ZeroIfNaN;
  if (site.refused())
    return failure();
  site.maskedRow = masks.emptyRow();
  if (form.logarithm && !masks.neverEmpty() &&
      (isAverage(site.maskedRow) || numbers))
    return refuse(softmax, "rows without a visible key have logarithms of sums "
                           "that their lowest numbers swallow");
  if (!form.stable && !masks.neverEmpty()) {
    // exp(x) of low numbers is 0, and so is their sum.
    if (numbers)
      return refuse(softmax,
                    "exponentials of scores with a bias are summed without "
                    "their maximum being subtracted first",
                    site.bias.value);
    if (isAverage(site.maskedRow))
      site.maskedRow = MaskedRowRule::NaN;
  }
  bool nan = site.maskedRow == MaskedRowRule::NaN;
  for (const RowGuard &guard : guards) {
    auto effect = effectOf(guard, masks);
    if (!effect)
      return refuse(guard.node, "which rows its zeros are put in is not proven",
                    guard.condition);
    zeroRows |= *effect == GuardEffect::Zero;
    if (nan)
      site.maskedRow = MaskedRowRule::Zero;
  }
  // Those rows are 0 whatever numbers hide their keys.
  if (zeroRows && numbers) {
    // Those of float16 that were added up in float32 are the least number and
    // something.
    const bool joined =
        type.isF16() && site.bias.kind == PlannedValue::Kind::Node &&
        onnx::getElementType(
            site.nodes[site.bias.node].resultTypes[site.bias.result])
            .isF32();
    hideLowNumbers(analysis, site,
                   joined ? -6e4 : std::max(lowestNumber(type), -3e38));
  }
  if (zeroRows || sinks || (zeroNaN && nan))
    site.maskedRow = MaskedRowRule::Zero;
  if (nanGuard)
    traits.push_back("NaN guard");
  if (!guards.empty())
    traits.push_back("empty rows guarded");
  if (failed(checkUses()))
    return failure();
  site.form =
      (qk.node.getOpType() + "-" + form.name + "-" + pv.getOpType()).str();
  for (StringRef trait : traits)
    site.form += (", " + trait).str();
  return success();
}

bool prefill::matchSoftmaxForm(onnx::NodeOp node, SymbolicAnalysis &analysis,
                               AttentionSite &site) {
  auto form = softmaxAt(analysis, node);
  if (!form)
    return false;
  site.core = form->core;
  return Matcher(*form, analysis, site).run();
}
