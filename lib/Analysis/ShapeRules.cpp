//===- ShapeRules.cpp - Shapes of results from shapes of inputs -----------===//
//
// One rule a family of ops. A rule that is not sure leaves the result unranked
// or the size a fresh symbol: never wrong, only unknown.
//
//===----------------------------------------------------------------------===//

#include "Rules.h"

#include "mlir/IR/Builders.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringSet.h"

using namespace mlir;
using namespace prefill;
using Kind = Expr::Kind;

Type prefill::elementTypeOf(MLIRContext *context, int64_t dataType) {
  switch (dataType) {
  case 1:
    return Float32Type::get(context);
  case 2:
    return IntegerType::get(context, 8, IntegerType::Unsigned);
  case 3:
    return IntegerType::get(context, 8);
  case 4:
    return IntegerType::get(context, 16, IntegerType::Unsigned);
  case 5:
    return IntegerType::get(context, 16);
  case 6:
    return IntegerType::get(context, 32);
  case 7:
    return IntegerType::get(context, 64);
  case 9:
    return IntegerType::get(context, 1);
  case 10:
    return Float16Type::get(context);
  case 11:
    return Float64Type::get(context);
  case 12:
    return IntegerType::get(context, 32, IntegerType::Unsigned);
  case 13:
    return IntegerType::get(context, 64, IntegerType::Unsigned);
  case 16:
    return BFloat16Type::get(context);
  default:
    return {};
  }
}

//===----------------------------------------------------------------------===//
// Helpers
//===----------------------------------------------------------------------===//

ShapeRules::ShapeRules(SymbolicAnalysis &analysis, onnx::NodeOp node)
    : analysis(analysis), ctx(analysis.context), node(node),
      results(node.getNumResults()) {}

const TensorFacts &ShapeRules::in(unsigned i) {
  Value input = node.getInput(i);
  return input ? analysis.facts(input) : analysis.unknown;
}

void ShapeRules::set(unsigned result, Type elementType,
                     ArrayRef<ExprRef> shape) {
  if (result >= results.size())
    return;
  results[result].elementType = elementType;
  results[result].ranked = true;
  results[result].shape.assign(shape.begin(), shape.end());
}

void ShapeRules::same(unsigned result, unsigned input) {
  if (result < results.size())
    results[result] = in(input);
}

ExprRef ShapeRules::product(ArrayRef<ExprRef> shape) {
  ExprRef total = ctx.getInt(1);
  for (ExprRef e : shape)
    total = ctx.mul(total, e);
  return total;
}

std::optional<SmallVector<ExprRef>>
ShapeRules::broadcast(ArrayRef<unsigned> inputs) {
  SmallVector<ExprRef> result;
  for (unsigned i : inputs) {
    const TensorFacts &f = in(i);
    if (!f.ranked)
      return std::nullopt;
    while (result.size() < f.shape.size())
      result.insert(result.begin(), ctx.getInt(1));
    size_t skipped = result.size() - f.shape.size();
    // From the back: what columns of a stored mask say tells about its rows.
    for (size_t axis = f.shape.size(); axis-- > 0;)
      result[axis + skipped] =
          broadcastDim(ctx, result[axis + skipped], f.shape[axis]);
  }
  return result;
}

//===----------------------------------------------------------------------===//
// Rules
//===----------------------------------------------------------------------===//

bool ShapeRules::elementwise() {
  static const llvm::StringSet<> unary = {"Abs",
                                          "Acos",
                                          "Acosh",
                                          "Asin",
                                          "Asinh",
                                          "Atan",
                                          "Atanh",
                                          "BitwiseNot",
                                          "Ceil",
                                          "Celu",
                                          "Clip",
                                          "Cos",
                                          "Cosh",
                                          "CumSum",
                                          "Elu",
                                          "Erf",
                                          "Exp",
                                          "Floor",
                                          "Gelu",
                                          "HardSigmoid",
                                          "HardSwish",
                                          "Identity",
                                          "LeakyRelu",
                                          "Log",
                                          "LogSoftmax",
                                          "Mish",
                                          "Neg",
                                          "Not",
                                          "Reciprocal",
                                          "Relu",
                                          "Round",
                                          "ScatterElements",
                                          "ScatterND",
                                          "Selu",
                                          "Sigmoid",
                                          "Sign",
                                          "Sin",
                                          "Sinh",
                                          "Softmax",
                                          "Softplus",
                                          "Softsign",
                                          "Sqrt",
                                          "Swish",
                                          "Tan",
                                          "Tanh",
                                          "ThresholdedRelu",
                                          "Trilu",
                                          "TensorScatter",
                                          "RotaryEmbedding",
                                          "RMSNormalization",
                                          "SimplifiedLayerNormalization",
                                          "LayerNormalization",
                                          "InstanceNormalization",
                                          "GroupNormalization",
                                          "BatchNormalization",
                                          "LpNormalization",
                                          "Dropout"};
  static const llvm::StringSet<> binary = {
      "Add",   "Sub",        "Mul",       "Div",        "Pow",     "Mod",
      "PRelu", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift"};
  static const llvm::StringSet<> logical = {
      "And",  "Or",          "Xor",     "Equal",
      "Less", "LessOrEqual", "Greater", "GreaterOrEqual"};
  static const llvm::StringSet<> variadic = {"Max", "Min", "Sum", "Mean"};
  StringRef op = node.getOpType();
  Type boolean = IntegerType::get(node->getContext(), 1);
  if (unary.contains(op)) {
    same(0, 0);
    if (op == "Dropout" && results.size() > 1 && in(0).ranked)
      set(1, boolean, in(0).shape);
    return true;
  }
  if (op == "IsNaN" || op == "IsInf") {
    if (in(0).ranked)
      set(0, boolean, in(0).shape);
    results[0].elementType = boolean;
    return true;
  }
  if (op == "Cast" || op == "CastLike") {
    same(0, 0);
    results[0].elementType =
        op == "Cast" ? elementTypeOf(node->getContext(), node.getInt("to", 0))
                     : in(1).elementType;
    return true;
  }
  SmallVector<unsigned> inputs;
  Type type;
  if (binary.contains(op)) {
    inputs = {0, 1};
    type = in(0).elementType ? in(0).elementType : in(1).elementType;
  } else if (logical.contains(op)) {
    inputs = {0, 1};
    type = boolean;
  } else if (op == "Where") {
    inputs = {0, 1, 2};
    type = in(1).elementType ? in(1).elementType : in(2).elementType;
  } else if (variadic.contains(op)) {
    for (unsigned i = 0; i < node.getInputs().size(); ++i)
      inputs.push_back(i);
    type = in(0).elementType;
  } else {
    return false;
  }
  if (auto shape = broadcast(inputs))
    set(0, type, *shape);
  results[0].elementType = type;
  return true;
}

void ShapeRules::reshape() {
  results[0].elementType = in(0).elementType;
  std::optional<SmallVector<ExprRef>> wanted;
  if (auto attr = node.getInts("shape")) {
    wanted.emplace();
    for (int64_t v : *attr)
      wanted->push_back(ctx.getInt(v));
  } else {
    wanted = analysis.elements(node.getInput(1));
  }
  if (!wanted)
    return;
  bool zeroCopies = node.getInt("allowzero", 0) == 0;
  SmallVector<ExprRef> shape;
  std::optional<size_t> open;
  for (auto [axis, e] : llvm::enumerate(*wanted)) {
    if (e->isInt(-1)) {
      if (open)
        return; // invalid
      open = axis;
      shape.push_back(ctx.getInt(1));
    } else if (e->isInt(0) && zeroCopies) {
      shape.push_back(in(0).ranked && axis < in(0).shape.size()
                          ? in(0).shape[axis]
                          : ctx.freshSymbol("?"));
    } else if (ctx.proveNonNegative(e)) {
      shape.push_back(e);
    } else {
      // It may turn out to be -1 or 0.
      shape.push_back(ctx.freshSymbol("?"));
    }
  }
  if (open) {
    ExprRef rest = nullptr;
    if (in(0).ranked)
      rest = ctx.exactDiv(product(in(0).shape), product(shape));
    shape[*open] =
        rest && ctx.proveNonNegative(rest) ? rest : ctx.freshSymbol("?");
  }
  set(0, in(0).elementType, shape);
}

void ShapeRules::expand() {
  results[0].elementType = in(0).elementType;
  auto wanted = analysis.elements(node.getInput(1));
  if (!wanted || !in(0).ranked)
    return;
  SmallVector<ExprRef> shape(*wanted);
  for (ExprRef &e : shape)
    if (!ctx.proveNonNegative(e))
      e = ctx.freshSymbol("?");
  while (shape.size() < in(0).shape.size())
    shape.insert(shape.begin(), ctx.getInt(1));
  size_t skipped = shape.size() - in(0).shape.size();
  for (auto [axis, size] : llvm::enumerate(in(0).shape))
    shape[axis + skipped] = broadcastDim(ctx, shape[axis + skipped], size);
  set(0, in(0).elementType, shape);
}

void ShapeRules::matmul(Value a, Value b, bool transA, bool transB) {
  const TensorFacts &x = analysis.facts(a), &y = analysis.facts(b);
  results[0].elementType = x.elementType ? x.elementType : y.elementType;
  if (!x.ranked || !y.ranked || x.shape.empty() || y.shape.empty())
    return;
  SmallVector<ExprRef> l(ArrayRef<ExprRef>(x.shape)),
      r(ArrayRef<ExprRef>(y.shape));
  bool vectorL = l.size() == 1, vectorR = r.size() == 1;
  if (vectorL)
    l.insert(l.begin(), ctx.getInt(1));
  if (vectorR)
    r.push_back(ctx.getInt(1));
  if (transA)
    std::swap(l[l.size() - 1], l[l.size() - 2]);
  if (transB)
    std::swap(r[r.size() - 1], r[r.size() - 2]);
  lookAgainAtStretched(ctx, l.back(), r[r.size() - 2]);
  ctx.assumeEqual(l.back(), r[r.size() - 2]);
  SmallVector<ExprRef> shape;
  size_t rank = std::max(l.size(), r.size());
  for (size_t axis = 0; axis + 2 < rank; ++axis) {
    auto get = [&](ArrayRef<ExprRef> s) {
      size_t skipped = rank - s.size();
      return axis < skipped ? ctx.getInt(1) : s[axis - skipped];
    };
    shape.push_back(broadcastDim(ctx, get(l), get(r)));
  }
  if (!vectorL)
    shape.push_back(l[l.size() - 2]);
  if (!vectorR)
    shape.push_back(r.back());
  set(0, results[0].elementType, shape);
}

void ShapeRules::gemm() {
  results[0].elementType = in(0).elementType;
  if (in(0).ranked && in(1).ranked && in(0).shape.size() == 2 &&
      in(1).shape.size() == 2)
    matmul(node.getInput(0), node.getInput(1), node.getInt("transA", 0) != 0,
           node.getInt("transB", 0) != 0);
}

void ShapeRules::concat() {
  unsigned count = node.getInputs().size();
  // All inputs have one type.
  for (unsigned i = 0; i < count && !results[0].elementType; ++i)
    results[0].elementType = in(i).elementType;
  // All inputs have one rank; one that is known tells it.
  std::optional<size_t> rank;
  for (unsigned i = 0; i < count; ++i)
    if (in(i).ranked)
      rank = in(i).shape.size();
  if (!rank)
    return;
  auto axis = normalizeAxis(node.getInt("axis", 0), *rank);
  if (!axis)
    return;
  SmallVector<ExprRef> shape(*rank, nullptr);
  bool complete = true;
  for (unsigned i = 0; i < count; ++i) {
    const TensorFacts &f = in(i);
    if (!f.ranked || f.shape.size() != *rank) {
      complete = false;
      continue;
    }
    for (size_t d = 0; d < *rank; ++d) {
      ExprRef size = f.shape[d];
      if (static_cast<int64_t>(d) == *axis)
        shape[d] = shape[d] ? ctx.add(shape[d], size) : size;
      else if (!shape[d])
        shape[d] = size;
      else {
        // Equal in every valid execution; keep the more telling one.
        ctx.assumeEqual(shape[d], size);
        if (size->is(Kind::Int))
          shape[d] = size;
      }
    }
  }
  if (!complete)
    shape[*axis] = ctx.freshSymbol("?");
  set(0, results[0].elementType, shape);
}

void ShapeRules::gather() {
  results[0].elementType = in(0).elementType;
  if (!in(0).ranked || !in(1).ranked)
    return;
  auto axis = normalizeAxis(node.getInt("axis", 0), in(0).shape.size());
  if (!axis)
    return;
  SmallVector<ExprRef> shape(in(0).shape.begin(), in(0).shape.begin() + *axis);
  llvm::append_range(shape, in(1).shape);
  shape.append(in(0).shape.begin() + *axis + 1, in(0).shape.end());
  set(0, in(0).elementType, shape);
}

void ShapeRules::gatherND() {
  results[0].elementType = in(0).elementType;
  if (!in(0).ranked || !in(1).ranked || in(1).shape.empty())
    return;
  auto last = in(1).shape.back()->asInt();
  int64_t batch = node.getInt("batch_dims", 0);
  int64_t rank = in(0).shape.size();
  if (!last || *last < 0 || batch < 0 || batch > rank || *last > rank - batch)
    return;
  SmallVector<ExprRef> shape(in(1).shape.begin(), in(1).shape.end() - 1);
  shape.append(in(0).shape.begin() + batch + *last, in(0).shape.end());
  set(0, in(0).elementType, shape);
}

void ShapeRules::squeeze() {
  results[0].elementType = in(0).elementType;
  if (!in(0).ranked)
    return;
  auto axes = axesOf(analysis, node, 1);
  if (!axes)
    return;
  int64_t rank = in(0).shape.size();
  SmallVector<bool> drop(rank, false);
  bool none = axes->empty() && !node.getInput(1) && !node.getInts("axes");
  for (int64_t axis : *axes)
    if (auto normal = normalizeAxis(axis, rank))
      drop[*normal] = true;
    else
      return;
  SmallVector<ExprRef> shape;
  for (int64_t axis = 0; axis < rank; ++axis) {
    if (none && !in(0).shape[axis]->is(Kind::Int))
      return; // It may be 1 at run time.
    if (!drop[axis] && !(none && in(0).shape[axis]->isInt(1)))
      shape.push_back(in(0).shape[axis]);
  }
  set(0, in(0).elementType, shape);
}

void ShapeRules::unsqueeze() {
  results[0].elementType = in(0).elementType;
  auto axes = axesOf(analysis, node, 1);
  if (!axes || !in(0).ranked)
    return;
  int64_t rank = in(0).shape.size() + axes->size();
  SmallVector<bool> added(rank, false);
  for (int64_t axis : *axes) {
    auto normal = normalizeAxis(axis, rank);
    if (!normal || added[*normal])
      return;
    added[*normal] = true;
  }
  SmallVector<ExprRef> shape;
  const auto *next = in(0).shape.begin();
  for (int64_t axis = 0; axis < rank; ++axis)
    shape.push_back(added[axis] ? ctx.getInt(1) : *next++);
  set(0, in(0).elementType, shape);
}

void ShapeRules::reduce() {
  bool arg = node.is("ArgMax") || node.is("ArgMin");
  Type type =
      arg ? IntegerType::get(node->getContext(), 64) : in(0).elementType;
  results[0].elementType = type;
  if (!in(0).ranked)
    return;
  int64_t rank = in(0).shape.size();
  std::optional<SmallVector<int64_t>> axes;
  if (arg)
    axes = SmallVector<int64_t>{node.getInt("axis", 0)};
  else
    axes = axesOf(analysis, node, 1);
  if (!axes)
    return;
  if (axes->empty()) {
    if (node.getInt("noop_with_empty_axes", 0)) {
      set(0, type, in(0).shape);
      return;
    }
    for (int64_t axis = 0; axis < rank; ++axis)
      axes->push_back(axis);
  }
  SmallVector<bool> gone(rank, false);
  for (int64_t axis : *axes)
    if (auto normal = normalizeAxis(axis, rank))
      gone[*normal] = true;
    else
      return;
  SmallVector<ExprRef> shape;
  for (int64_t axis = 0; axis < rank; ++axis)
    if (!gone[axis])
      shape.push_back(in(0).shape[axis]);
    else if (node.getInt("keepdims", 1))
      shape.push_back(ctx.getInt(1));
  set(0, type, shape);
}

void ShapeRules::pad() {
  results[0].elementType = in(0).elementType;
  if (!in(0).ranked)
    return;
  auto pads = padAxes(analysis, node);
  SmallVector<ExprRef> shape;
  for (auto [axis, size] : llvm::enumerate(in(0).shape)) {
    ExprRef padded =
        pads ? ctx.add(ctx.add(size, (*pads)[axis].before), (*pads)[axis].after)
             : nullptr;
    shape.push_back(
        padded && ctx.proveNonNegative(padded) ? padded : ctx.freshSymbol("?"));
  }
  set(0, in(0).elementType, shape);
}

void ShapeRules::constantNode() {
  MLIRContext *context = node->getContext();
  auto list = [&](Type type, int64_t size) {
    set(0, type, {ctx.getInt(size)});
  };
  RankedTensorType type;
  if (onnx::getConstantTensor(node.getResult(0), type)) {
    SmallVector<ExprRef> shape;
    for (int64_t size : type.getShape())
      shape.push_back(ctx.getInt(size));
    set(0, type.getElementType(), shape);
  } else if (node.getAttrOfName("value_int")) {
    set(0, IntegerType::get(context, 64), {});
  } else if (node.getAttrOfName("value_float")) {
    set(0, Float32Type::get(context), {});
  } else if (auto ints = node.getInts("value_ints")) {
    list(IntegerType::get(context, 64), ints->size());
  } else if (auto floats = node.getFloats("value_floats")) {
    list(Float32Type::get(context), floats->size());
  }
}

void ShapeRules::einsum() {
  results[0].elementType = in(0).elementType;
  auto plain = plainEquation(analysis, node);
  if (!plain)
    return;
  auto [left, right] = StringRef(*plain).split("->");
  SmallVector<StringRef> terms;
  left.split(terms, ',');
  if (terms.size() != node.getInputs().size())
    return;
  llvm::DenseMap<char, ExprRef> sizes;
  for (auto [i, term] : llvm::enumerate(terms)) {
    std::string letters;
    for (char c : term)
      if (c != ' ')
        letters += c;
    if (!in(i).ranked || in(i).shape.size() != letters.size())
      return;
    for (auto [c, size] : llvm::zip_equal(letters, in(i).shape)) {
      // One size, or 1, which is stretched.
      ExprRef &known = sizes[c];
      if (known && !right.contains(c) && !known->isInt(1) && !size->isInt(1))
        ctx.assumeEqual(known, size);
      known = known ? broadcastDim(ctx, known, size) : size;
    }
  }
  SmallVector<ExprRef> shape;
  for (char c : right) {
    if (c == ' ')
      continue;
    auto it = sizes.find(c);
    if (it == sizes.end())
      return;
    shape.push_back(it->second);
  }
  set(0, in(0).elementType, shape);
}

void ShapeRules::conv() {
  results[0].elementType = in(0).elementType;
  if (!in(0).ranked || !in(1).ranked || in(0).shape.size() < 3 ||
      in(1).shape.size() != in(0).shape.size())
    return;
  size_t spatial = in(0).shape.size() - 2;
  SmallVector<ExprRef> shape = {in(0).shape[0], in(1).shape[0]};
  auto pads = node.getInts("pads"), strides = node.getInts("strides"),
       dilations = node.getInts("dilations");
  bool plain = node.getString("auto_pad", "NOTSET") == "NOTSET";
  for (size_t d = 0; d < spatial; ++d) {
    auto kernel = in(1).shape[d + 2]->asInt();
    int64_t stride = strides && d < strides->size() ? (*strides)[d] : 1;
    int64_t dilation = dilations && d < dilations->size() ? (*dilations)[d] : 1;
    int64_t pad = pads && pads->size() == 2 * spatial
                      ? (*pads)[d] + (*pads)[d + spatial]
                      : 0;
    if (!kernel || !plain || stride <= 0) {
      shape.push_back(ctx.freshSymbol("?"));
      continue;
    }
    ExprRef room = ctx.add(in(0).shape[d + 2],
                           ctx.getInt(pad - dilation * (*kernel - 1) - 1));
    shape.push_back(
        ctx.add(ctx.floorDiv(room, ctx.getInt(stride)), ctx.getInt(1)));
  }
  set(0, in(0).elementType, shape);
}

bool ShapeRules::defaultDomain() {
  StringRef op = node.getOpType();
  MLIRContext *context = node->getContext();
  Type i64 = IntegerType::get(context, 64);
  if (elementwise())
    return true;
  if (op == "Constant") {
    constantNode();
  } else if (op == "Shape") {
    results[0].elementType = i64;
    if (in(0).ranked) {
      int64_t rank = in(0).shape.size();
      auto clip = [&](int64_t v) {
        return std::clamp<int64_t>(v < 0 ? v + rank : v, 0, rank);
      };
      int64_t start = clip(node.getInt("start", 0));
      int64_t end = clip(node.getInt("end", rank));
      set(0, i64, {ctx.getInt(std::max<int64_t>(0, end - start))});
    } else {
      set(0, i64, {ctx.freshSymbol("?")});
    }
  } else if (op == "Size") {
    set(0, i64, {});
  } else if (op == "Reshape") {
    reshape();
  } else if (op == "Flatten") {
    results[0].elementType = in(0).elementType;
    if (in(0).ranked) {
      int64_t rank = in(0).shape.size(), axis = node.getInt("axis", 1);
      if (axis < 0)
        axis += rank;
      if (axis >= 0 && axis <= rank) {
        ArrayRef<ExprRef> shape(in(0).shape);
        set(0, in(0).elementType,
            {product(shape.take_front(axis)), product(shape.drop_front(axis))});
      }
    }
  } else if (op == "Transpose") {
    results[0].elementType = in(0).elementType;
    if (in(0).ranked) {
      SmallVector<ExprRef> shape;
      int64_t rank = in(0).shape.size();
      if (auto perm = node.getInts("perm")) {
        for (int64_t axis : *perm) {
          if (axis < 0 || axis >= rank)
            return true;
          shape.push_back(in(0).shape[axis]);
        }
      } else {
        shape.assign(in(0).shape.rbegin(), in(0).shape.rend());
      }
      if (static_cast<int64_t>(shape.size()) == rank)
        set(0, in(0).elementType, shape);
    }
  } else if (op == "Expand") {
    expand();
  } else if (op == "Squeeze") {
    squeeze();
  } else if (op == "Unsqueeze") {
    unsqueeze();
  } else if (op == "Concat") {
    concat();
  } else if (op == "Slice") {
    results[0].elementType = in(0).elementType;
    if (auto axes = sliceAxes(analysis, node)) {
      SmallVector<ExprRef> shape(ArrayRef<ExprRef>(in(0).shape));
      for (const SliceAxis &s : *axes)
        shape[s.axis] = s.length ? s.length : ctx.freshSymbol("?");
      set(0, in(0).elementType, shape);
    } else if (in(0).ranked) {
      SmallVector<ExprRef> shape;
      for (size_t axis = 0; axis < in(0).shape.size(); ++axis)
        shape.push_back(ctx.freshSymbol("?"));
      set(0, in(0).elementType, shape);
    }
  } else if (op == "Split") {
    auto parts = splitParts(analysis, node);
    for (unsigned i = 0; i < results.size(); ++i) {
      results[i].elementType = in(0).elementType;
      auto axis = normalizeAxis(node.getInt("axis", 0), in(0).shape.size());
      if (!parts || !in(0).ranked || !axis)
        continue;
      SmallVector<ExprRef> shape(ArrayRef<ExprRef>(in(0).shape));
      shape[*axis] = (*parts)[i].second;
      set(i, in(0).elementType, shape);
    }
  } else if (op == "Gather") {
    gather();
  } else if (op == "GatherND") {
    gatherND();
  } else if (op == "GatherElements") {
    if (in(1).ranked)
      set(0, in(0).elementType, in(1).shape);
    results[0].elementType = in(0).elementType;
  } else if (op == "MatMul") {
    matmul(node.getInput(0), node.getInput(1), false, false);
  } else if (op == "Gemm") {
    gemm();
  } else if (op == "Einsum") {
    einsum();
  } else if (op == "Range") {
    Type type = in(0).elementType;
    auto start = analysis.elements(node.getInput(0));
    auto limit = analysis.elements(node.getInput(1));
    auto delta = analysis.elements(node.getInput(2));
    ExprRef size = nullptr;
    if (start && limit && delta && start->size() == 1 && limit->size() == 1 &&
        delta->size() == 1 && (*delta)[0]->isInt(1)) {
      size = ctx.sub((*limit)[0], (*start)[0]);
      if (!isIntegerLike(type))
        size = nullptr;
      else if (!ctx.proveNonNegative(size))
        size = ctx.max(size, ctx.getInt(0));
    }
    set(0, type, {size ? size : ctx.freshSymbol("?")});
  } else if (op == "ConstantOfShape") {
    Type type = Float32Type::get(context);
    if (auto value = dyn_cast_or_null<ElementsAttr>(
            onnx::unwrap(node.getAttrOfName("value"))))
      type = value.getElementType();
    results[0].elementType = type;
    if (auto shape = analysis.elements(node.getInput(0))) {
      for (ExprRef &e : *shape)
        if (!ctx.proveNonNegative(e))
          e = ctx.freshSymbol("?");
      // A scalar input is no shape.
      if (in(0).ranked && in(0).shape.size() == 1)
        set(0, type, *shape);
    }
  } else if (op == "Tile") {
    results[0].elementType = in(0).elementType;
    auto repeats = analysis.elements(node.getInput(1));
    if (repeats && in(0).ranked && repeats->size() == in(0).shape.size()) {
      SmallVector<ExprRef> shape;
      for (auto [size, n] : llvm::zip_equal(in(0).shape, *repeats))
        shape.push_back(ctx.proveNonNegative(n) ? ctx.mul(size, n)
                                                : ctx.freshSymbol("?"));
      set(0, in(0).elementType, shape);
    }
  } else if (op.starts_with("Reduce") || op == "ArgMax" || op == "ArgMin") {
    reduce();
  } else if (op == "TopK") {
    for (unsigned i = 0; i < results.size(); ++i) {
      results[i].elementType = i == 0 ? in(0).elementType : i64;
      auto axis = normalizeAxis(node.getInt("axis", -1), in(0).shape.size());
      auto k = analysis.elements(node.getInput(1));
      if (!in(0).ranked || !axis)
        continue;
      SmallVector<ExprRef> shape(ArrayRef<ExprRef>(in(0).shape));
      shape[*axis] = k && k->size() == 1 && ctx.proveNonNegative((*k)[0])
                         ? (*k)[0]
                         : ctx.freshSymbol("?");
      set(i, results[i].elementType, shape);
    }
  } else if (op == "Conv") {
    conv();
  } else if (op == "EyeLike") {
    if (in(0).ranked)
      set(0,
          node.getAttrOfName("dtype")
              ? elementTypeOf(context, node.getInt("dtype", 1))
              : in(0).elementType,
          in(0).shape);
  } else if (op == "Pad") {
    pad();
  } else if (op == "NonZero") {
    if (in(0).ranked)
      set(0, i64, {ctx.getInt(in(0).shape.size()), ctx.freshSymbol("?")});
  } else if (op == "Attention") {
    attention();
  } else if (!quantized()) {
    // Their shapes are no matter here, their type is.
    static const llvm::StringSet<> typeOfFirst = {
        "Resize",          "Upsample",      "MaxPool",
        "AveragePool",     "ConvTranspose", "GlobalAveragePool",
        "GridSample",      "RoiAlign",      "SpaceToDepth",
        "DepthToSpace",    "CenterCropPad", "Compress",
        "ReverseSequence", "Unique",        "Col2Im"};
    if (typeOfFirst.contains(op))
      results[0].elementType = in(0).elementType;
    return false;
  }
  return true;
}

void ShapeRules::run() {
  if (results.empty())
    return;
  if (node.getDomain().empty())
    (void)defaultDomain();
  else if (node.getDomain() == "com.microsoft")
    (void)contribDomain();
}
