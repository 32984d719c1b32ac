//===- SymbolicAnalysis.cpp - Shapes and elements of a graph --------------===//

#include "prefill/Analysis/SymbolicAnalysis.h"
#include "Rules.h"
#include "prefill/Dialect/Prefill/Prefill.h"

#include "llvm/ADT/STLExtras.h"

#include <cmath>

using namespace mlir;
using namespace prefill;
using Kind = Expr::Kind;

// element() of a value gives up (an opaque Load) beyond these.
static constexpr unsigned maxDepth = 192;
static constexpr unsigned maxBudget = 20000;
// Constants with more elements are opaque where single elements are asked for,
// and where a band (a causal mask stored as bytes) is looked for.
static constexpr int64_t maxConstant = 65536;
static constexpr int64_t maxBand = int64_t(1) << 24;
static constexpr size_t maxElements = 256;

//===----------------------------------------------------------------------===//
// Constants
//===----------------------------------------------------------------------===//

namespace {
/// A constant as two values: `inside` where low <= column - row <= high,
/// otherwise `outside`; or as slope * index + start along its only long axis.
struct ConstantPattern {
  enum class Kind { None, Uniform, Band, Affine } kind = Kind::None;
  double inside = 0, outside = 0;
  std::optional<int64_t> low, high;
  int64_t start = 0, slope = 0;
  int64_t row = -1, column = -1; ///< the long axes
};
} // namespace

/// Bytes of constants, read once.
struct SymbolicAnalysis::Constants {
  llvm::DenseMap<Value, std::optional<onnx::ConstantElements>> small;
  llvm::DenseMap<Value, ConstantPattern> patterns;

  const std::optional<onnx::ConstantElements> &get(Value value) {
    auto [it, isNew] = small.try_emplace(value);
    if (isNew)
      it->second = onnx::getConstantElements(value, maxConstant);
    return it->second;
  }

  const ConstantPattern &pattern(Value value) {
    auto [it, isNew] = patterns.try_emplace(value);
    if (isNew)
      it->second = find(value);
    return it->second;
  }

private:
  static ConstantPattern find(Value value) {
    ConstantPattern p;
    auto constant = onnx::getConstantElements(value, maxBand);
    if (!constant || constant->size() == 0)
      return p;
    size_t count = constant->size();
    auto at = [&](size_t i) { return constant->asDouble(i); };
    bool uniform = true;
    for (size_t i = 1; i < count && uniform; ++i)
      uniform = at(i) == at(0);
    if (uniform) {
      p.kind = ConstantPattern::Kind::Uniform;
      p.inside = at(0);
      return p;
    }
    ArrayRef<int64_t> shape = constant->type.getShape();
    SmallVector<int64_t> axes;
    for (size_t axis = 0; axis < shape.size(); ++axis)
      if (shape[axis] != 1)
        axes.push_back(axis);
    if (axes.size() == 1) {
      double start = at(0), slope = at(1) - at(0);
      if (std::trunc(start) != start || std::trunc(slope) != slope ||
          std::abs(start) > 1e9 || std::abs(slope) > 1e9)
        return p;
      for (size_t i = 0; i < count; ++i)
        if (at(i) != start + slope * static_cast<double>(i))
          return p;
      p.kind = ConstantPattern::Kind::Affine;
      p.start = static_cast<int64_t>(start);
      p.slope = static_cast<int64_t>(slope);
      p.row = axes[0];
      return p;
    }
    if (axes.size() != 2)
      return p;
    int64_t rows = shape[axes[0]], columns = shape[axes[1]];
    // Of the two values one is inside of the band.
    double second = at(0);
    for (size_t i = 1; i < count && second == at(0); ++i)
      second = at(i);
    for (double inside : {at(0), second}) {
      std::optional<int64_t> low, high;
      std::optional<double> outside;
      bool fits = true;
      for (int64_t r = 0; r < rows && fits; ++r)
        for (int64_t c = 0; c < columns; ++c) {
          double v = at(r * columns + c);
          if (v == inside) {
            low = std::min(low.value_or(c - r), c - r);
            high = std::max(high.value_or(c - r), c - r);
          } else if (!outside || v == *outside) {
            outside = v;
          } else {
            fits = false;
            break;
          }
        }
      if (!fits || !outside)
        continue;
      for (int64_t r = 0; r < rows && fits; ++r)
        for (int64_t c = 0; c < columns && fits; ++c)
          fits = (c - r >= *low && c - r <= *high) ==
                 (at(r * columns + c) == inside);
      if (!fits)
        continue;
      p.kind = ConstantPattern::Kind::Band;
      p.inside = inside;
      p.outside = *outside;
      if (*low > -(rows - 1))
        p.low = low;
      if (*high < columns - 1)
        p.high = high;
      p.row = axes[0];
      p.column = axes[1];
      return p;
    }
    return p;
  }
};

//===----------------------------------------------------------------------===//
// Shapes
//===----------------------------------------------------------------------===//

/// Whether integers select rows of a constant table, as token ids do, perhaps
/// after a reshape.
static bool isTokens(Value input, unsigned depth = 0) {
  if (depth == 0 && !isIntegerLike(onnx::getElementType(input.getType())))
    return false;
  return llvm::any_of(input.getUsers(), [&](Operation *user) {
    auto node = dyn_cast<onnx::NodeOp>(user);
    RankedTensorType type;
    if (!node || node.getNumResults() == 0)
      return false;
    if (depth < 3 && node.getInput(0) == input &&
        (node.is("Reshape") || node.is("Cast") || node.is("Identity")))
      return isTokens(node.getResult(0), depth + 1);
    return node.is("Gather") && node.getInput(1) == input &&
           node.getInt("axis", 0) == 0 && node.getInput(0) &&
           onnx::getConstantTensor(node.getInput(0), type) &&
           type.getRank() == 2;
  });
}

SymbolicAnalysis::SymbolicAnalysis(onnx::GraphOp graph, Block *branch)
    : graph(graph), opset(onnx::getOpsetVersion(graph)),
      constants(std::make_unique<Constants>()) {
  Block &body = graph.getBody().front();
  for (BlockArgument argument : body.getArguments()) {
    setDeclared(argument, /*trusted=*/true);
    // Token ids: without any there are no rows at all, and every attention's
    // result is empty whatever is said about it.
    if (isTokens(argument))
      for (ExprRef e : table[argument].shape)
        if (e->is(Kind::Symbol))
          context.assumePositive(e);
  }
  inferBlock(branch ? *branch : body, /*until=*/nullptr);
}

void SymbolicAnalysis::inferBlock(Block &block, Operation *until) {
  // What stands before a branch is seen in it. What comes later is not: it may
  // hold only where the other branch was taken.
  if (Operation *holder = block.getParentOp(); holder != graph)
    inferBlock(*holder->getBlock(), holder);
  for (Operation &op : block) {
    if (&op == until)
      return;
    if (auto attention = dyn_cast<AttentionOp>(op))
      inferAttention(attention);
    else if (auto node = dyn_cast<onnx::NodeOp>(op))
      inferNode(node);
    else
      for (Value result : op.getResults())
        setDeclared(result, /*trusted=*/isa<onnx::InitializerOp>(op));
  }
}

SymbolicAnalysis::~SymbolicAnalysis() = default;

void SymbolicAnalysis::setDeclared(Value value, bool trusted) {
  TensorFacts &f = table[value];
  if (!f.elementType)
    f.elementType = onnx::getElementType(value.getType());
  auto type = dyn_cast<RankedTensorType>(value.getType());
  if (!type)
    return;
  if (!f.ranked) {
    f.ranked = true;
    for (auto [axis, size] : llvm::enumerate(type.getShape())) {
      StringRef name = onnx::getDimName(type, axis);
      if (!ShapedType::isDynamic(size))
        f.shape.push_back(context.getInt(size));
      else if (trusted && !name.empty())
        f.shape.push_back(context.parseDim(name));
      else
        f.shape.push_back(context.freshSymbol("?"));
    }
    return;
  }
  if (static_cast<int64_t>(f.shape.size()) != type.getRank())
    return;
  // A size that could not be computed at all: a fresh symbol.
  for (auto [size, e] : llvm::zip_equal(type.getShape(), f.shape))
    if (!ShapedType::isDynamic(size) && e->is(Kind::Symbol) &&
        e->name.starts_with("? "))
      e = context.getInt(size);
}

void SymbolicAnalysis::inferAttention(AttentionOp op) {
  // Batch and rows are those of q; the rest is in the type.
  auto type = dyn_cast<RankedTensorType>(op.getO().getType());
  int64_t rows = op.getQLayout() == TensorLayout::BSHD ? 1 : 2;
  ExprRef batch = dim(op.getQ(), 0), count = dim(op.getQ(), rows);
  for (Value result : op.getResults())
    setDeclared(result, /*trusted=*/false);
  if (!type || !batch || !count)
    return;
  TensorFacts &f = table[op.getO()];
  f.shape[0] = batch;
  f.shape[op.getOLayout() == TensorLayout::BSHD ? 1 : 2] = count;
  ExprRef keys = dim(op.getK(), op.getKLayout() == TensorLayout::BSHD ? 1 : 2);
  Value rotated = op.getRotatedK();
  if (rotated && keys && table[rotated].shape.size() == 4) {
    table[rotated].shape[0] = batch;
    table[rotated].shape[2] = keys;
  }
}

/// Gather's indices lie inside of what they index, or the execution is invalid:
/// a mask that is read at every position of a cache and its new tokens is at
/// least as long as these.
void SymbolicAnalysis::noteBounds(onnx::NodeOp node) {
  bool isND = node.is("GatherND");
  if ((!isND && !node.is("Gather")) || node.getInputs().size() < 2)
    return;
  const TensorFacts data = facts(node.getInput(0)),
                    where = facts(node.getInput(1));
  if (!data.ranked || !where.ranked || (isND && where.shape.empty()))
    return;
  auto axis = isND ? node.getInt("batch_dims", 0)
                   : normalizeAxis(node.getInt("axis", 0), data.shape.size());
  int64_t count = isND ? where.shape.back()->asInt().value_or(0) : 1;
  if (!axis || *axis < 0 || count > 8 ||
      *axis + count > static_cast<int64_t>(data.shape.size()))
    return;
  // Of an empty tensor nothing is read.
  if (!llvm::all_of(where.shape,
                    [&](ExprRef size) { return context.provePositive(size); }))
    return;
  Indices at = indexVariables(node.getInput(1), "bound");
  for (int64_t k = 0; k < count; ++k) {
    ExprRef size = data.shape[*axis + k];
    if (size->is(Kind::Int))
      continue;
    if (isND)
      at.back() = context.getInt(k);
    ExprRef last = element(node.getInput(1), at);
    for (auto [variable, extent] : llvm::zip_equal(at, where.shape))
      if (variable->is(Kind::Index))
        last = context.substitute(last, variable,
                                  context.sub(extent, context.getInt(1)));
    context.assumeNonNegative(
        context.sub(context.sub(size, last), context.getInt(1)));
  }
}

void SymbolicAnalysis::inferNode(onnx::NodeOp node) {
  ShapeRules rules(*this, node);
  rules.run();
  for (auto [value, f] : llvm::zip_equal(node.getOutputs(), rules.results)) {
    for (ExprRef &e : f.shape)
      e = context.resolve(e);
    table[value] = f;
    setDeclared(value, /*trusted=*/false);
  }
  noteBounds(node);
}

const TensorFacts &SymbolicAnalysis::facts(Value value) const {
  auto it = table.find(value);
  return it == table.end() ? unknown : it->second;
}

ExprRef SymbolicAnalysis::dim(Value value, int64_t axis) const {
  const TensorFacts &f = facts(value);
  if (!f.ranked)
    return nullptr;
  auto normal = normalizeAxis(axis, f.shape.size());
  return normal ? f.shape[*normal] : nullptr;
}

Type SymbolicAnalysis::inferredType(Value value) {
  const TensorFacts &f = facts(value);
  if (!f.elementType)
    return {};
  if (!f.ranked)
    return UnrankedTensorType::get(f.elementType);
  SmallVector<int64_t> shape;
  SmallVector<StringRef> names;
  for (ExprRef e : f.shape) {
    ExprRef resolved = context.resolve(e);
    shape.push_back(resolved->asInt().value_or(ShapedType::kDynamic));
    bool named = resolved->is(Kind::Symbol) && !resolved->name.contains(' ');
    names.push_back(named ? resolved->name : StringRef());
  }
  return onnx::getTensorType(shape, f.elementType, names);
}

/// s + p and s + q with s > 0: both are at least 1, and 1 only for a single
/// token without a cache. In all other executions they are equal, which is then
/// noted. Exporters that name every dimension give each layer's cache a length
/// of its own. A mask alone may be longer than one token: what only a Gather
/// shows to be positive does not count.
static bool areSameTokens(ExprContext &ctx, ExprRef a, ExprRef b) {
  ExprRef difference = ctx.resolve(ctx.sub(a, b));
  auto isCount = [&](ExprRef e) {
    e = ctx.resolve(e);
    return !e->is(Kind::Symbol) || ctx.isPositive(e);
  };
  bool match = isCount(a) && isCount(b) && difference->is(Kind::Sum) &&
               difference->integer == 0 && difference->operands.size() == 2 &&
               llvm::all_of(difference->operands,
                            [](ExprRef e) { return e->is(Kind::Symbol); }) &&
               difference->coefficients[0] + difference->coefficients[1] == 0 &&
               ctx.provePositive(a) && ctx.provePositive(b);
  if (match)
    ctx.assumeEqual(a, b);
  return match;
}

void prefill::lookAgainAtStretched(ExprContext &ctx, ExprRef size,
                                   ExprRef other) {
  for (auto [more, less] : ctx.takeStretched())
    if (!ctx.proveEqual(more, less) &&
        !(ctx.proveEqual(more, size) && areSameTokens(ctx, other, less)))
      ctx.noteStretched(more, less);
}

ExprRef prefill::broadcastDim(ExprContext &ctx, ExprRef a, ExprRef b) {
  if (a->isInt(1))
    return b;
  if (b->isInt(1) || ctx.proveEqual(a, b))
    return a;
  if (a->is(Kind::Int))
    return a;
  if (b->is(Kind::Int))
    return b;
  // min(c, x) with c > 1 is 1 only where x is: it equals x or the execution is
  // invalid. Such sizes come from slices of a stored mask, whose rows are known
  // to be inside of it when its columns are.
  auto clipped = [&](ExprRef m, ExprRef x) {
    return m->is(Kind::Min) && llvm::is_contained(m->operands, x) &&
           llvm::any_of(m->operands, [&](ExprRef o) {
             return o != x && ctx.proveNonNegative(ctx.sub(o, ctx.getInt(2)));
           });
  };
  if (clipped(a, b)) {
    ctx.assumeMin(a, b);
    return b;
  }
  if (clipped(b, a)) {
    ctx.assumeMin(b, a);
    return a;
  }
  // a >= b > 0: 1 only where b is.
  for (auto [more, less] : {std::make_pair(a, b), std::make_pair(b, a)})
    if (ctx.provePositive(less) && ctx.proveNonNegative(ctx.sub(more, less))) {
      if (!areSameTokens(ctx, more, less))
        ctx.noteStretched(more, less);
      return more;
    }
  if (areSameTokens(ctx, a, b))
    return a;
  if (a->id > b->id)
    std::swap(a, b);
  // One of the two; a name for it. Kept as a fresh symbol that both uses share.
  return ctx.getSymbol("broadcast " + std::to_string(a->id) + " " +
                       std::to_string(b->id));
}

//===----------------------------------------------------------------------===//
// Elements
//===----------------------------------------------------------------------===//

/// A number as an expression of the type's kind.
static ExprRef numberOf(ExprContext &ctx, double v, Type type) {
  if (isFloat(type))
    return ctx.getFloat(v);
  if (isBool(type))
    return ctx.getBool(v != 0);
  return ctx.getInt(static_cast<int64_t>(v));
}

/// The element of constant `value`, or null.
static ExprRef constantElement(ExprContext &ctx, const ConstantPattern &pattern,
                               ArrayRef<ExprRef> indices, Type type) {
  switch (pattern.kind) {
  case ConstantPattern::Kind::None:
    return nullptr;
  case ConstantPattern::Kind::Uniform:
    return numberOf(ctx, pattern.inside, type);
  case ConstantPattern::Kind::Affine: {
    ExprRef e = ctx.add(ctx.scale(indices[pattern.row], pattern.slope),
                        ctx.getInt(pattern.start));
    return isFloat(type) ? ctx.toFloat(e) : isBool(type) ? nullptr : e;
  }
  case ConstantPattern::Kind::Band: {
    ExprRef distance = ctx.sub(indices[pattern.column], indices[pattern.row]);
    ExprRef inside = ctx.getBool(true);
    if (pattern.low)
      inside = ctx.logicalAnd(
          inside, ctx.ge0(ctx.sub(distance, ctx.getInt(*pattern.low))));
    if (pattern.high)
      inside = ctx.logicalAnd(
          inside, ctx.ge0(ctx.sub(ctx.getInt(*pattern.high), distance)));
    return ctx.select(inside, numberOf(ctx, pattern.inside, type),
                      numberOf(ctx, pattern.outside, type));
  }
  }
  return nullptr;
}

ExprRef SymbolicAnalysis::element(Value value, ArrayRef<ExprRef> indices) {
  ExprRef key = context.getLoad(value, indices);
  if (auto it = memo.find(key); it != memo.end())
    return it->second;
  if (depth == 0)
    budget = maxBudget;
  if (depth >= maxDepth || budget == 0)
    return key;
  --budget;
  ++depth;
  ExprRef result = nullptr;
  RankedTensorType type;
  const TensorFacts &f = facts(value);
  if (!f.ranked || f.shape.size() != indices.size()) {
    // Nothing is known about where the element lies.
  } else if (onnx::getConstantTensor(value, type) ||
             (value.getDefiningOp<onnx::NodeOp>() &&
              value.getDefiningOp<onnx::NodeOp>().is("Constant"))) {
    bool plain =
        llvm::all_of(indices, [](ExprRef e) { return e->is(Kind::Int); });
    const auto &constant = constants->get(value);
    if (plain && constant) {
      int64_t position = 0;
      bool inside = true;
      for (auto [size, e] :
           llvm::zip_equal(constant->type.getShape(), indices)) {
        position = position * size + e->integer;
        inside &= e->integer >= 0 && e->integer < size;
      }
      if (inside && constant->isFloat())
        result = context.getFloat(constant->floats[position]);
      else if (inside && isBool(f.elementType))
        result = context.getBool(constant->ints[position]);
      else if (inside)
        result = context.getInt(constant->ints[position]);
    } else {
      result = constantElement(context, constants->pattern(value), indices,
                               f.elementType);
    }
  } else if (auto node = value.getDefiningOp<onnx::NodeOp>()) {
    result = ElementRules{*this, context, node,
                          cast<OpResult>(value).getResultNumber(), indices}
                 .run();
  }
  --depth;
  if (!result)
    result = key;
  memo[key] = result;
  // Remember where the expression can be read, if at plain indices.
  bool plain = llvm::all_of(indices, [&](ExprRef e) {
    return e->isInt(0) || (e->is(Kind::Index) && llvm::count(indices, e) == 1);
  });
  if (plain)
    if (auto &places = witnesses[result]; places.size() < 8)
      places.push_back(key);
  return result;
}

SmallVector<SymbolicAnalysis::ViewStep>
SymbolicAnalysis::places(ExprRef e, ArrayRef<ExprRef> vars) {
  SmallVector<ViewStep> result;
  auto it = witnesses.find(e);
  if (it == witnesses.end())
    return result;
  for (ExprRef load : it->second)
    if (llvm::all_of(load->operands, [&](ExprRef x) {
          return x->isInt(0) || llvm::is_contained(vars, x);
        }))
      result.push_back({load->value, Indices(load->operands), 1});
  return result;
}

std::optional<Indices>
SymbolicAnalysis::broadcastIndices(ArrayRef<ExprRef> shape,
                                   ArrayRef<ExprRef> indices,
                                   ArrayRef<ExprRef> resultShape) {
  if (shape.size() > indices.size() || indices.size() != resultShape.size())
    return std::nullopt;
  Indices result;
  size_t skipped = indices.size() - shape.size();
  for (auto [axis, size] : llvm::enumerate(shape)) {
    ExprRef full = resultShape[axis + skipped];
    if (size->isInt(1))
      result.push_back(context.getInt(0));
    // The rest: either this operand has the result's size, or it is 1. A known
    // size is not 1, so never stretched. If the result is as broadcastDim made
    // it of `size` and something that is not larger, the operand is not
    // stretched.
    else if (context.proveEqual(size, full) || full->isInt(1) ||
             size->is(Kind::Int) ||
             (size->is(Kind::Min) && broadcastDim(context, size, full) == full))
      result.push_back(indices[axis + skipped]);
    else
      return std::nullopt;
  }
  return result;
}

ExprRef SymbolicAnalysis::broadcastElement(Value value,
                                           ArrayRef<ExprRef> indices,
                                           ArrayRef<ExprRef> resultShape) {
  const TensorFacts &f = facts(value);
  if (!f.ranked)
    return nullptr;
  auto mapped = broadcastIndices(f.shape, indices, resultShape);
  return mapped ? element(value, *mapped) : nullptr;
}

std::optional<SmallVector<ExprRef>> SymbolicAnalysis::elements(Value value) {
  if (!value)
    return std::nullopt;
  const TensorFacts &f = facts(value);
  if (!f.ranked || f.shape.size() > 1)
    return std::nullopt;
  if (f.shape.empty())
    return SmallVector<ExprRef>{element(value, {})};
  auto count = context.resolve(f.shape[0])->asInt();
  if (!count || *count < 0 || *count > static_cast<int64_t>(maxElements))
    return std::nullopt;
  SmallVector<ExprRef> result;
  for (int64_t i = 0; i < *count; ++i)
    result.push_back(context.resolve(element(value, {context.getInt(i)})));
  return result;
}

std::optional<SmallVector<int64_t>>
SymbolicAnalysis::constantInts(Value value) {
  auto list = elements(value);
  if (!list)
    return std::nullopt;
  SmallVector<int64_t> result;
  for (ExprRef e : *list) {
    auto v = e->asInt();
    if (!v)
      return std::nullopt;
    result.push_back(*v);
  }
  return result;
}

Indices SymbolicAnalysis::indexVariables(Value value, StringRef prefix) {
  Indices result;
  for (auto [axis, size] : llvm::enumerate(facts(value).shape))
    result.push_back(
        size->isInt(1)
            ? context.getInt(0)
            : context.getIndex((prefix + llvm::Twine(axis)).str(), size));
  return result;
}

std::optional<double> SymbolicAnalysis::uniformNumber(Value value) {
  if (!value || !facts(value).ranked)
    return std::nullopt;
  // Weights are not scanned for being uniform; only what could be a scalar.
  int64_t total = 1;
  for (ExprRef e : facts(value).shape)
    if (auto size = e->asInt(); size && total <= maxConstant)
      total *= *size;
  if (total > maxConstant)
    return std::nullopt;
  return element(value, indexVariables(value, "u"))->asNumber();
}

//===----------------------------------------------------------------------===//
// Views
//===----------------------------------------------------------------------===//

/// Where element `x` of a reshape of `from` to `to` lies.
static std::optional<Indices> reshapeIndices(ExprContext &ctx,
                                             ArrayRef<ExprRef> from,
                                             ArrayRef<ExprRef> to,
                                             ArrayRef<ExprRef> x) {
  Indices result(from.size(), ctx.getInt(0));
  size_t p = 0, q = 0;
  while (true) {
    while (p < from.size() && from[p]->isInt(1))
      ++p;
    while (q < to.size() && to[q]->isInt(1))
      ++q;
    if (p == from.size() && q == to.size())
      return result;
    if (p == from.size() || q == to.size())
      return std::nullopt; // Sizes of 1 that are not proven to be.
    // The smallest groups of dimensions with equal products.
    size_t pEnd = p + 1, qEnd = q + 1;
    ExprRef in = from[p], out = to[q];
    while (!ctx.proveEqual(in, out)) {
      bool growIn = ctx.exactDiv(out, in), growOut = ctx.exactDiv(in, out);
      if (growIn && pEnd < from.size()) {
        in = ctx.mul(in, from[pEnd++]);
      } else if (growOut && qEnd < to.size()) {
        out = ctx.mul(out, to[qEnd++]);
      } else {
        pEnd = from.size();
        qEnd = to.size();
        break;
      }
    }
    ExprRef linear = ctx.getInt(0);
    for (size_t k = q; k < qEnd; ++k)
      linear = ctx.add(ctx.mul(linear, to[k]), x[k]);
    for (size_t k = pEnd; k-- > p + 1;) {
      if (from[k]->isInt(1))
        continue;
      result[k] = ctx.mod(linear, from[k]);
      linear = ctx.floorDiv(linear, from[k]);
    }
    result[p] = linear;
    p = pEnd;
    q = qEnd;
  }
}

std::optional<SymbolicAnalysis::ViewStep>
SymbolicAnalysis::viewStep(onnx::NodeOp node, unsigned resultNumber,
                           ArrayRef<ExprRef> indices) {
  if (!node.getDomain().empty() || node.getNumOperands() == 0)
    return std::nullopt;
  StringRef op = node.getOpType();
  Value input = node.getInput(0);
  if (!input)
    return std::nullopt;
  const TensorFacts &f = facts(input);
  const TensorFacts &out = facts(node.getResult(resultNumber));
  if (!f.ranked || !out.ranked || out.shape.size() != indices.size())
    return std::nullopt;
  ArrayRef<ExprRef> shape = f.shape;
  if (op == "Identity" ||
      (op == "Dropout" && resultNumber == 0 &&
       (!node.getInput(2) || uniformNumber(node.getInput(2)) == 0.0)))
    return ViewStep{input, Indices(indices), 1};
  if (op == "Cast" || op == "CastLike") {
    if (!f.elementType || f.elementType != out.elementType)
      return std::nullopt;
    return ViewStep{input, Indices(indices), 1};
  }
  if (op == "Reshape" || op == "Flatten" || op == "Squeeze" ||
      op == "Unsqueeze") {
    auto mapped = reshapeIndices(context, shape, out.shape, indices);
    if (!mapped)
      return std::nullopt;
    return ViewStep{input, *mapped, 1};
  }
  if (op == "Transpose") {
    Indices mapped(indices.size(), nullptr);
    SmallVector<int64_t> perm;
    if (auto attr = node.getInts("perm"))
      perm.assign(attr->begin(), attr->end());
    else
      for (int64_t axis = indices.size(); axis-- > 0;)
        perm.push_back(axis);
    if (perm.size() != indices.size())
      return std::nullopt;
    for (auto [to, from] : llvm::enumerate(perm)) {
      if (from < 0 || from >= static_cast<int64_t>(mapped.size()))
        return std::nullopt;
      mapped[from] = indices[to];
    }
    if (llvm::is_contained(mapped, nullptr))
      return std::nullopt;
    return ViewStep{input, mapped, 1};
  }
  if (op == "Expand") {
    auto mapped = broadcastIndices(shape, indices, out.shape);
    if (!mapped)
      return std::nullopt;
    return ViewStep{input, *mapped, 1};
  }
  if (op == "Slice") {
    auto axes = sliceAxes(*this, node);
    if (!axes)
      return std::nullopt;
    Indices mapped(indices);
    for (const SliceAxis &s : *axes) {
      if (!s.start)
        return std::nullopt;
      mapped[s.axis] =
          context.add(s.start, context.scale(indices[s.axis], s.step));
    }
    return ViewStep{input, mapped, 1};
  }
  if (op == "Split") {
    auto parts = splitParts(*this, node);
    auto axis = normalizeAxis(node.getInt("axis", 0), shape.size());
    if (!parts || !axis || resultNumber >= parts->size())
      return std::nullopt;
    Indices mapped(indices);
    mapped[*axis] = context.add(mapped[*axis], (*parts)[resultNumber].first);
    return ViewStep{input, mapped, 1};
  }
  if (op == "Pad") {
    auto pads = padAxes(*this, node);
    if (!pads || !llvm::all_of(*pads, [](const PadAxis &p) {
          return p.before->isInt(0) && p.after->isInt(0);
        }))
      return std::nullopt;
    return ViewStep{input, Indices(indices), 1};
  }
  if (op == "Tile") {
    Indices mapped;
    for (auto [size, e] : llvm::zip_equal(shape, indices))
      mapped.push_back(context.mod(e, size));
    return ViewStep{input, mapped, 1};
  }
  return std::nullopt;
}

SmallVector<SymbolicAnalysis::ViewStep>
SymbolicAnalysis::viewChain(Value value, ArrayRef<ExprRef> indices) {
  SmallVector<ViewStep> chain;
  chain.push_back({value, Indices(indices), 1});
  while (chain.size() < 64) {
    ViewStep last = chain.back();
    auto node = last.value.getDefiningOp<onnx::NodeOp>();
    if (!node)
      break;
    unsigned number = cast<OpResult>(last.value).getResultNumber();
    if (auto step = viewStep(node, number, last.indices)) {
      step->factor = last.factor;
      chain.push_back(*step);
      continue;
    }
    bool times = node.is("Mul"), over = node.is("Div");
    if ((!times && !over) || !isFloat(facts(last.value).elementType))
      break;
    Value data = node.getInput(0), other = node.getInput(1);
    if (!data || !other)
      break;
    auto number0 = times ? uniformNumber(data) : std::nullopt;
    auto number1 = uniformNumber(other);
    if (number0)
      std::swap(data, other);
    std::optional<double> factor = number0 ? number0 : number1;
    if (!factor || (over && *factor == 0))
      break;
    const TensorFacts &f = facts(data);
    if (!f.ranked || !facts(last.value).ranked)
      break;
    auto mapped =
        broadcastIndices(f.shape, last.indices, facts(last.value).shape);
    if (!mapped)
      break;
    chain.push_back(
        {data, *mapped, over ? last.factor / *factor : last.factor * *factor});
  }
  return chain;
}
