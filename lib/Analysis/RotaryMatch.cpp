//===- RotaryMatch.cpp - Rows rotated by their position -------------------===//
//
// Follows single elements. Element c of a rotated row is
//
//   x[c] * cos[p, l] + sign * x[mate] * sin[p, l]
//
// with mate and sign as the kind says. A first element tells the kind and how
// wide the tables are; then one symbolic element for each half (or for even and
// odd elements) and one for what is not rotated prove the rest. Exporters write
// the pairing in many ways (Slice, Split, strides of 2, Unsqueeze and Concat,
// Neg before or after); by index all of them are the same.
//
//===----------------------------------------------------------------------===//

#include "RotaryMatch.h"
#include "Rules.h"

using namespace mlir;
using namespace prefill;

namespace {

/// An element of a tensor, times `sign`.
struct Place {
  Value value;
  Indices indices;
  double sign = 1;
};
/// The places where one and the same element can be read, the deepest last.
using Trail = SmallVector<Place>;

/// What an element is: `cosTerm` times `cos` plus `sinTerm` times `sin`, each
/// product with its sign; or, with no tables, `cosTerm` alone.
struct Lane {
  Trail cosTerm, cos, sinTerm, sin;
  double cosSign = 1, sinSign = 1;
};

class RotaryMatcher {
public:
  RotaryMatcher(SymbolicAnalysis &analysis, const RowsAt &rows)
      : analysis(analysis), ctx(analysis.expressions()), rows(rows),
        head(ctx.getIndex("head", ctx.getInt(rows.heads))) {}

  std::optional<Rotation> run();

private:
  Indices indicesOf(TensorLayout layout, size_t rank, ExprRef lane);
  Trail follow(Value value, Indices indices, bool mayNarrow);
  std::optional<Place> step(const Place &at, bool mayNarrow);
  std::optional<Lane> laneAt(ExprRef lane);
  bool findSource(const Lane &first);
  ExprRef sourceLane(const Trail &trail);
  SmallVector<Value> tables(const Trail &trail);
  ExprRef tableLane(const Trail &trail, Value table);
  bool proves(ExprRef lane, ExprRef mate, ExprRef inTable, double sign);
  bool untouched(ExprRef lane);
  bool provesAll(RotaryKind kind, int64_t dim);
  bool equal(ExprRef a, ExprRef b) { return a && b && ctx.proveEqual(a, b); }

  SymbolicAnalysis &analysis;
  ExprContext &ctx;
  const RowsAt &rows;
  ExprRef head;
  Rotation found;
};

} // namespace

/// Where element `lane` of a row of `rows` lies in a tensor of `rank`.
Indices RotaryMatcher::indicesOf(TensorLayout layout, size_t rank,
                                 ExprRef lane) {
  if (layout == TensorLayout::BHSD)
    return {rows.b, head, rows.row, lane};
  if (rank == 3)
    return {rows.b, rows.row, ctx.add(ctx.scale(head, rows.width), lane)};
  return {rows.b, rows.row, head, lane};
}

/// The element that `at` is a copy of, or its negative.
std::optional<Place> RotaryMatcher::step(const Place &at, bool mayNarrow) {
  auto node = at.value.getDefiningOp<onnx::NodeOp>();
  if (!node || !node.getDomain().empty())
    return std::nullopt;
  unsigned number = cast<OpResult>(at.value).getResultNumber();
  if (auto view = analysis.viewStep(node, number, at.indices))
    return Place{view->value, view->indices, at.sign};
  Value input = node.getNumOperands() ? node.getInput(0) : Value();
  if (!input)
    return std::nullopt;
  if (node.is("Neg"))
    return Place{input, at.indices, -at.sign};
  if (node.is("Cast")) {
    // Rotations are computed in fp32 by many: to widen loses nothing, the last
    // rounding is the kernel's own.
    Type from = analysis.facts(input).elementType;
    Type to = analysis.facts(at.value).elementType;
    if (isFloat(from) && isFloat(to) &&
        (mayNarrow || (from.getIntOrFloatBitWidth() < 32 && to.isF32())))
      return Place{input, at.indices, at.sign};
    return std::nullopt;
  }
  if (node.is("Concat")) {
    auto axis = normalizeAxis(node.getInt("axis", 0), at.indices.size());
    if (!axis)
      return std::nullopt;
    ExprRef e = at.indices[*axis], offset = ctx.getInt(0);
    for (Value part : node.getInputs()) {
      const TensorFacts &f = analysis.facts(part);
      if (!f.ranked || f.shape.size() != at.indices.size())
        return std::nullopt;
      ExprRef end = ctx.add(offset, f.shape[*axis]);
      if (ctx.provePositive(ctx.sub(end, e))) {
        Indices inside(at.indices);
        inside[*axis] = ctx.sub(e, offset);
        return ctx.proveNonNegative(inside[*axis])
                   ? std::optional(Place{part, inside, at.sign})
                   : std::nullopt;
      }
      offset = end;
    }
  }
  return std::nullopt;
}

Trail RotaryMatcher::follow(Value value, Indices indices, bool mayNarrow) {
  Trail trail = {{value, std::move(indices), 1}};
  while (trail.size() < 32) {
    auto next = step(trail.back(), mayNarrow);
    if (!next)
      break;
    trail.push_back(*next);
  }
  return trail;
}

/// Takes element `lane` apart.
std::optional<Lane> RotaryMatcher::laneAt(ExprRef lane) {
  const TensorFacts &f = analysis.facts(rows.value);
  Trail top =
      follow(rows.value, indicesOf(rows.layout, f.shape.size(), lane), true);
  Place sum = top.back();
  auto node = sum.value.getDefiningOp<onnx::NodeOp>();
  auto operand = [&](onnx::NodeOp of, unsigned i,
                     const Place &at) -> std::optional<Trail> {
    Value input = of.getInput(i);
    if (!input || !analysis.facts(input).ranked)
      return std::nullopt;
    auto indices =
        analysis.broadcastIndices(analysis.facts(input).shape, at.indices,
                                  analysis.facts(at.value).shape);
    if (!indices)
      return std::nullopt;
    return follow(input, *indices, false);
  };
  Lane result;
  if (!node || !(node.is("Add") || node.is("Sub"))) {
    // Not rotated: the element itself.
    result.cosTerm = std::move(top);
    return result;
  }
  Trail factors[2][2];
  double signs[2];
  for (unsigned i : {0u, 1u}) {
    auto term = operand(node, i, sum);
    if (!term)
      return std::nullopt;
    Place product = term->back();
    auto times = product.value.getDefiningOp<onnx::NodeOp>();
    if (!times || !times.is("Mul")) {
      // A bias that is added: part of the rows that are not rotated.
      result.cosTerm = std::move(top);
      return result;
    }
    signs[i] = product.sign * sum.sign * (i == 1 && node.is("Sub") ? -1 : 1);
    for (unsigned k : {0u, 1u}) {
      auto factor = operand(times, k, product);
      if (!factor)
        return std::nullopt;
      signs[i] *= factor->back().sign;
      factors[i][k] = std::move(*factor);
    }
  }
  // The rows are what both products share.
  for (unsigned i : {0u, 1u})
    for (unsigned k : {0u, 1u}) {
      if (factors[0][i].back().value != factors[1][k].back().value)
        continue;
      // Which of the products is x[c] * cos is seen by its lane.
      result.cosTerm = std::move(factors[0][i]);
      result.cos = std::move(factors[0][1 - i]);
      result.sinTerm = std::move(factors[1][k]);
      result.sin = std::move(factors[1][1 - k]);
      result.cosSign = signs[0];
      result.sinSign = signs[1];
      if (!found.source)
        return result;
      if (!equal(sourceLane(result.cosTerm), lane)) {
        std::swap(result.cosTerm, result.sinTerm);
        std::swap(result.cos, result.sin);
        std::swap(result.cosSign, result.sinSign);
      }
      return result;
    }
  return std::nullopt;
}

/// The lane of the source that `trail` passes, or null.
ExprRef RotaryMatcher::sourceLane(const Trail &trail) {
  for (const Place &at : trail) {
    if (at.value != found.source)
      continue;
    size_t rank = at.indices.size();
    ExprRef lane = at.indices.back();
    if (rank == 3)
      lane = ctx.sub(lane, ctx.scale(head, rows.width));
    Indices expected = indicesOf(found.layout, rank, lane);
    if (rank == expected.size() &&
        llvm::all_of(llvm::zip_equal(at.indices, expected), [&](auto pair) {
          return equal(std::get<0>(pair), std::get<1>(pair));
        }))
      return lane;
  }
  return nullptr;
}

/// The deepest tensor that both products of lane 0 read and that lies as
/// kernels read it.
bool RotaryMatcher::findSource(const Lane &first) {
  Type type = analysis.facts(rows.value).elementType;
  ExprRef zero = ctx.getInt(0);
  for (const Place &at : llvm::reverse(first.cosTerm)) {
    const TensorFacts &f = analysis.facts(at.value);
    size_t rank = at.indices.size();
    if (f.elementType != type || !f.ranked || (rank != 3 && rank != 4))
      continue;
    for (TensorLayout layout : {TensorLayout::BHSD, TensorLayout::BSHD}) {
      bool bhsd = layout == TensorLayout::BHSD;
      if (rank == 3 && bhsd)
        continue;
      ExprRef width = ctx.getInt(rows.width), count = ctx.getInt(rows.heads);
      SmallVector<ExprRef> shape = {rows.batch, bhsd ? count : rows.rows,
                                    bhsd        ? rows.rows
                                    : rank == 3 ? ctx.mul(count, width)
                                                : count};
      if (rank == 4)
        shape.push_back(width);
      if (!llvm::all_of(llvm::zip_equal(f.shape, shape), [&](auto pair) {
            return equal(std::get<0>(pair), std::get<1>(pair));
          }))
        continue;
      found.source = at.value;
      found.layout = layout;
      ExprRef a = sourceLane(first.cosTerm), b = sourceLane(first.sinTerm);
      if (a && b && equal(a, zero) != equal(b, zero))
        return true;
    }
  }
  found.source = {};
  return false;
}

/// The tensors of `trail` that are tables of rows by lanes, the deepest first.
SmallVector<Value> RotaryMatcher::tables(const Trail &trail) {
  SmallVector<Value> result;
  for (const Place &at : llvm::reverse(trail))
    if (tableLane(trail, at.value))
      result.push_back(at.value);
  return result;
}

/// The lane of `table` that `trail` passes, or null.
ExprRef RotaryMatcher::tableLane(const Trail &trail, Value table) {
  for (const Place &at : trail) {
    const TensorFacts &f = analysis.facts(at.value);
    size_t rank = at.indices.size();
    if (at.value != table || !f.ranked || (rank != 2 && rank != 3) ||
        !f.shape.back()->asInt() || !equal(at.indices[rank - 2], rows.row))
      continue;
    if (rank == 3 && !(f.shape[0]->isInt(1) || (equal(f.shape[0], rows.batch) &&
                                                equal(at.indices[0], rows.b))))
      continue;
    return at.indices.back();
  }
  return nullptr;
}

/// Whether element `lane` is x[lane] * cos[inTable] + sign * x[mate] *
/// sin[inTable].
bool RotaryMatcher::proves(ExprRef lane, ExprRef mate, ExprRef inTable,
                           double sign) {
  auto parts = laneAt(lane);
  return parts && parts->cosSign == 1 && parts->sinSign == sign &&
         equal(sourceLane(parts->cosTerm), lane) &&
         equal(sourceLane(parts->sinTerm), mate) &&
         equal(tableLane(parts->cos, found.cos), inTable) &&
         equal(tableLane(parts->sin, found.sin), inTable);
}

/// Whether element `lane` is x[lane].
bool RotaryMatcher::untouched(ExprRef lane) {
  auto parts = laneAt(lane);
  return parts && parts->cos.empty() &&
         equal(sourceLane(parts->cosTerm), lane) &&
         llvm::all_of(parts->cosTerm,
                      [](const Place &at) { return at.sign == 1; });
}

/// Whether all lanes are what a rotation of `kind` over `dim` elements by the
/// tables found makes them.
bool RotaryMatcher::provesAll(RotaryKind kind, int64_t dim) {
  const TensorFacts &cos = analysis.facts(found.cos);
  const TensorFacts &sin = analysis.facts(found.sin);
  Type type = analysis.facts(rows.value).elementType;
  int64_t width = *cos.shape.back()->asInt(), half = dim / 2;
  // What the runtime asks of the tables.
  if (dim < 2 || dim % 2 || dim > rows.width ||
      (width != dim && width != half) || cos.shape.size() != sin.shape.size() ||
      !llvm::all_of(
          llvm::zip_equal(cos.shape, sin.shape),
          [&](auto p) { return equal(std::get<0>(p), std::get<1>(p)); }) ||
      !cos.elementType || cos.elementType != sin.elementType ||
      (cos.elementType != type && !cos.elementType.isF32()))
    return false;
  found.kind = kind;
  found.dim = dim;
  bool wide = width == dim;
  ExprRef i = ctx.getIndex("lane", ctx.getInt(half));
  ExprRef first = i, second = ctx.add(i, ctx.getInt(half));
  if (kind == RotaryKind::Interleaved) {
    first = ctx.scale(i, 2);
    second = ctx.add(first, ctx.getInt(1));
  }
  if (!proves(first, second, wide ? first : i, -1) ||
      !proves(second, first, wide ? second : i, 1))
    return false;
  if (dim == rows.width)
    return true;
  ExprRef rest = ctx.getIndex("rest", ctx.getInt(rows.width - dim));
  return untouched(ctx.add(rest, ctx.getInt(dim)));
}

std::optional<Rotation> RotaryMatcher::run() {
  ExprRef zero = ctx.getInt(0);
  auto first = laneAt(zero);
  if (!first || first->cos.empty() || !findSource(*first))
    return std::nullopt;
  first = laneAt(zero); // in the right order, now that the source is known
  ExprRef mate = sourceLane(first->sinTerm);
  if (!mate || !mate->asInt() || mate->integer < 1)
    return std::nullopt;
  SmallVector<Value> sines = tables(first->sin);
  for (Value cos : tables(first->cos)) {
    // Exporters treat both tables alike: the sine as far along its way.
    int64_t width = *analysis.facts(cos).shape.back()->asInt();
    auto sin = llvm::find_if(sines, [&](Value v) {
      return analysis.facts(v).shape.size() ==
                 analysis.facts(cos).shape.size() &&
             analysis.facts(v).shape.back()->isInt(width);
    });
    if (sin == sines.end())
      continue;
    found.cos = cos;
    found.sin = *sin;
    if (provesAll(RotaryKind::Half, 2 * mate->integer) ||
        (mate->integer == 1 && (provesAll(RotaryKind::Interleaved, width) ||
                                provesAll(RotaryKind::Interleaved, 2 * width))))
      return found;
  }
  return std::nullopt;
}

//===----------------------------------------------------------------------===//
// RotaryEmbedding
//===----------------------------------------------------------------------===//

/// RotaryEmbedding of ONNX (opset 23: x, cos, sin, positions) and com.microsoft
/// (x, positions, cos, sin), where row i is at position i.
static std::optional<Rotation>
matchNode(SymbolicAnalysis &analysis, const RowsAt &rows, onnx::NodeOp node) {
  ExprContext &ctx = analysis.expressions();
  bool contrib = node.is("RotaryEmbedding", "com.microsoft");
  if (!contrib && !node.is("RotaryEmbedding"))
    return std::nullopt;
  Rotation found;
  found.source = node.getInput(0);
  found.layout = rows.layout;
  found.cos = node.getInput(contrib ? 2 : 1);
  found.sin = node.getInput(contrib ? 3 : 2);
  Value positions = node.getInput(contrib ? 1 : 3);
  found.kind = node.getInt("interleaved", 0) ? RotaryKind::Interleaved
                                             : RotaryKind::Half;
  if (!found.source || !found.cos || !found.sin)
    return std::nullopt;
  const TensorFacts &x = analysis.facts(found.source);
  const TensorFacts &cos = analysis.facts(found.cos);
  const TensorFacts &sin = analysis.facts(found.sin);
  // A tensor of rank 4 is [batch, heads, rows, width] to both.
  if (!x.ranked || !cos.ranked || !sin.ranked || cos.shape != sin.shape ||
      (x.shape.size() == 4 && rows.layout != TensorLayout::BHSD) ||
      (x.shape.size() == 3 &&
       node.getInt("num_heads", rows.heads) != rows.heads) ||
      node.getInt("is_packed_batching", 0) || cos.shape.size() < 2)
    return std::nullopt;
  auto half = cos.shape.back()->asInt();
  if (!half || *half <= 0 || 2 * *half > rows.width)
    return std::nullopt;
  found.dim = node.getInt("rotary_embedding_dim", 0);
  if (found.dim == 0)
    found.dim = contrib ? 2 * *half : rows.width;
  if (found.dim != 2 * *half || node.getFloat("scale", 1) != 1)
    return std::nullopt;
  if (!positions) // [batch or 1, rows, half]
    return !contrib && cos.shape.size() == 3 &&
                   (cos.shape[0]->isInt(1) ||
                    ctx.proveEqual(cos.shape[0], rows.batch)) &&
                   ctx.proveEqual(cos.shape[1], rows.rows)
               ? std::optional(found)
               : std::nullopt;
  const TensorFacts &p = analysis.facts(positions);
  if (cos.shape.size() != 2 || !p.ranked || p.shape.size() != 2 ||
      !ctx.proveEqual(p.shape[1], rows.rows) ||
      !ctx.proveEqual(analysis.element(positions, {rows.b, rows.row}),
                      rows.row))
    return std::nullopt;
  return found;
}

std::optional<Rotation> prefill::matchRotation(SymbolicAnalysis &analysis,
                                               const RowsAt &rows) {
  const TensorFacts &f = analysis.facts(rows.value);
  if (!f.ranked || f.shape.size() < 3)
    return std::nullopt;
  if (auto node = rows.value.getDefiningOp<onnx::NodeOp>())
    if (auto found = matchNode(analysis, rows, node))
      return found;
  return RotaryMatcher(analysis, rows).run();
}

//===----------------------------------------------------------------------===//
// Sites
//===----------------------------------------------------------------------===//

/// Whether a and b are one value, or computed alike: exporters give q and k
/// tables of their own.
static bool alike(Value a, Value b, unsigned depth = 0) {
  if (a == b)
    return true;
  auto x = a.getDefiningOp<onnx::NodeOp>(), y = b.getDefiningOp<onnx::NodeOp>();
  if (!x || !y || depth > 4 || x.getNumRegions() || y.getNumRegions() ||
      cast<OpResult>(a).getResultNumber() !=
          cast<OpResult>(b).getResultNumber() ||
      x.getOpType() != y.getOpType() || x.getDomain() != y.getDomain() ||
      x.getAttrsAttr() != y.getAttrsAttr() ||
      x.getNumOperands() != y.getNumOperands() ||
      x.getOpType().starts_with("Random"))
    return false;
  return llvm::all_of(
      llvm::zip_equal(x.getInputs(), y.getInputs()), [&](auto pair) {
        return alike(std::get<0>(pair), std::get<1>(pair), depth + 1);
      });
}

/// Whether `value` is used by something that does not only lead to `core`.
static bool usedBeside(Value value, Operation *core) {
  SmallVector<Value> work = {value};
  llvm::SmallPtrSet<Operation *, 16> seen = {core};
  for (size_t k = 0; k < work.size(); ++k)
    for (Operation *user : work[k].getUsers()) {
      if (!seen.insert(user).second)
        continue;
      if (!isa<onnx::NodeOp>(user) || user->getBlock() != core->getBlock() ||
          seen.size() > 32)
        return true;
      work.append(user->result_begin(), user->result_end());
    }
  return false;
}

void prefill::absorbRotation(SymbolicAnalysis &analysis, AttentionSite &site) {
  if (site.rotary != RotaryKind::None ||
      site.alignment == QueryAlignment::Operand ||
      site.q.kind != PlannedValue::Kind::Existing ||
      site.k.kind != PlannedValue::Kind::Existing)
    return;
  ExprContext &ctx = analysis.expressions();
  auto rowsOf = [&](Value value, TensorLayout layout, int64_t heads) {
    RowsAt at{value, layout};
    const TensorFacts &f = analysis.facts(value);
    if (!f.ranked || f.shape.size() < 3)
      return at;
    at.batch = f.shape[0];
    at.rows = f.shape[layout == TensorLayout::BHSD ? 2 : 1];
    at.b = ctx.getIndex("batch", at.batch);
    at.row = ctx.getIndex("row", at.rows);
    at.heads = heads;
    at.width = site.headDim;
    return at;
  };
  RowsAt q = rowsOf(site.q.value, site.qLayout, site.qHeads);
  RowsAt k = rowsOf(site.k.value, site.kLayout, site.kvHeads);
  if (!q.rows || !k.rows || !ctx.proveEqual(q.rows, k.rows))
    return;
  auto ofQ = matchRotation(analysis, q);
  auto ofK = ofQ ? matchRotation(analysis, k) : std::nullopt;
  if (!ofK || ofQ->kind != ofK->kind || ofQ->dim != ofK->dim ||
      !alike(ofQ->cos, ofK->cos) || !alike(ofQ->sin, ofK->sin))
    return;
  // A KV cache holds the rotated keys: they become a result.
  if (usedBeside(k.value, site.core)) {
    if (analysis.facts(k.value).shape.size() != 4)
      return;
    site.rotatedKey = k.value;
    site.rotatedKeyLayout = k.layout;
    auto size = [&](ExprRef e) {
      return ctx.resolve(e)->asInt().value_or(ShapedType::kDynamic);
    };
    site.rotatedKeyType = RankedTensorType::get(
        {size(k.batch), site.kvHeads, size(k.rows), site.headDim},
        analysis.facts(k.value).elementType);
    if (k.layout == TensorLayout::BHSD)
      if (Type declared = analysis.inferredType(k.value))
        site.rotatedKeyType = declared;
  }
  site.q = ofQ->source;
  site.qLayout = ofQ->layout;
  site.k = ofK->source;
  site.kLayout = ofK->layout;
  site.cos = ofQ->cos;
  site.sin = ofQ->sin;
  site.rotary = ofQ->kind;
  site.rotaryDim = ofQ->dim;
  site.form += ", RoPE";
}
