//===- RowRules.cpp - Operators that treat rows one by one ----------------===//

#include "prefill/Analysis/RowRules.h"
#include "Rules.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringSet.h"

using namespace mlir;
using namespace prefill;

/// Element by element, all operands broadcast to the result.
static const llvm::StringSet<> elementwise = {
    // clang-format off
    "Abs", "Add", "And", "BiasGelu", "Cast", "Ceil", "Celu", "Cos", "Div",
    "Elu", "Equal", "Erf", "Exp", "FastGelu", "Floor", "Gelu", "Greater",
    "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
    "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish",
    "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "QuickGelu", "Reciprocal",
    "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign",
    "Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu", "Where", "Xor",
    // clang-format on
};

/// Element by element of the first operand; the others are parameters.
static const llvm::StringSet<> firstOnly = {"CastLike", "Clip", "Dropout"};

static const llvm::StringSet<> reductions = {
    "ReduceL1",  "ReduceL2",       "ReduceLogSum", "ReduceLogSumExp",
    "ReduceMax", "ReduceMean",     "ReduceMin",    "ReduceProd",
    "ReduceSum", "ReduceSumSquare"};

static const llvm::StringSet<> norms = {
    "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"};

namespace {
struct Finder {
  SymbolicAnalysis &analysis;
  onnx::NodeOp node;
  unsigned result;
  RowAxis rows;
  ExprRef count;
  ExprContext &ctx;
  RowRule rule;

  int64_t rank(unsigned operand) {
    Value v = node.getInput(operand);
    return v && analysis.facts(v).ranked
               ? static_cast<int64_t>(analysis.facts(v).shape.size())
               : -1;
  }
  int64_t resultRank() {
    const TensorFacts &f = analysis.facts(node.getOutput(result));
    return f.ranked ? static_cast<int64_t>(f.shape.size()) : -1;
  }
  void refuse(const llvm::Twine &why) {
    if (rule.refusal.empty())
      rule.refusal = why.str();
  }
  /// Operand `operand` has its rows at `axis`.
  void add(unsigned operand, int64_t axis) { add(operand, axis, rows.merged); }
  void add(unsigned operand, int64_t axis, bool merged) {
    if (axis < 0 || (merged && axis != 0))
      return refuse("it moves the axis of the rows");
    rule.operands.push_back({operand, {axis, merged}});
  }

  /// An operand that is broadcast to the result has rows, or one for all.
  void broadcast(unsigned operand) {
    if (!node.getInput(operand))
      return;
    int64_t own = rank(operand), all = resultRank();
    if (own < 0 || all < 0)
      return refuse("the rank of an operand is not known");
    int64_t axis = rows.axis - (all - own);
    if (axis < 0)
      return;
    ExprRef size = analysis.dim(node.getInput(operand), axis);
    if (size->isInt(1))
      return;
    ExprRef whole = analysis.dim(node.getOutput(result), rows.axis);
    if (!ctx.proveEqual(size, whole))
      return refuse("an operand is not proven to have all rows");
    add(operand, axis);
  }

  void matMul() {
    int64_t left = rank(0), right = rank(1), all = resultRank();
    if (left < 2 || right < 2 || all < 2)
      return refuse("the rank of an operand is not known or below 2");
    // Columns of the product are columns of the right factor.
    if (rows.axis == all - 1)
      return add(1, right - 1);
    if (rows.axis == all - 2)
      return add(0, left - 2);
    broadcast(0);
    broadcast(1);
  }

  void gemm() {
    if (rows.axis != 0)
      return refuse("its rows are columns of the product");
    add(0, node.getInt("transA", 0) ? 1 : 0);
    broadcast(2);
  }

  /// com.microsoft's (X, positions, cos, sin) and ONNX's (X, cos, sin[,
  /// positions]), whose tables have a row for every token without positions.
  void rotaryEmbedding(bool isContrib) {
    int64_t all = rank(0);
    if (rows.merged || (all != 3 && all != 4) || rows.axis != all - 2)
      return refuse("its rows are not the tokens");
    add(0, rows.axis);
    unsigned positions = isContrib ? 1 : 3;
    SmallVector<unsigned, 2> perToken = {positions};
    if (!node.getInput(positions))
      perToken = {1, 2};
    for (unsigned operand : perToken) {
      if (!node.getInput(operand))
        return refuse("its tables are not known");
      if (rank(operand) < 2 ||
          !ctx.proveEqual(analysis.dim(node.getInput(operand), 1), count))
        return refuse("its positions are not proven to be one for every token");
      add(operand, 1);
    }
  }

  /// The axis of an operand that lost the axes `gone` on the way to the result.
  int64_t before(int64_t axis, ArrayRef<int64_t> gone) {
    SmallVector<int64_t> sorted(gone);
    llvm::sort(sorted);
    for (int64_t g : sorted)
      axis += g <= axis;
    return axis;
  }

  /// Axes given by an attribute or an input, counted from the front.
  std::optional<SmallVector<int64_t>> axes(int64_t rank) {
    auto found = axesOf(analysis, node, 1);
    if (!found || rank < 0)
      return std::nullopt;
    for (int64_t &axis : *found) {
      auto normal = normalizeAxis(axis, rank);
      if (!normal)
        return std::nullopt;
      axis = *normal;
    }
    return found;
  }

  void reduce() {
    auto gone = axes(rank(0));
    if (!gone || gone->empty())
      return refuse("the axes that it reduces are not known");
    int64_t axis =
        node.getInt("keepdims", 1) ? rows.axis : before(rows.axis, *gone);
    if (llvm::is_contained(*gone, axis))
      return refuse("it reduces over the rows");
    add(0, axis);
  }

  void squeeze() {
    auto gone = axes(rank(0));
    if (!gone || gone->empty())
      return refuse("the axes that it removes are not known");
    add(0, before(rows.axis, *gone));
  }

  void unsqueeze() {
    auto made = axes(resultRank());
    if (!made)
      return refuse("the axes that it adds are not known");
    if (llvm::is_contained(*made, rows.axis))
      return refuse("it makes the axis of the rows");
    int64_t axis = rows.axis;
    for (int64_t m : *made)
      axis -= m < rows.axis;
    add(0, axis);
  }

  void transpose() {
    int64_t all = resultRank();
    if (all < 0)
      return refuse("its rank is not known");
    auto perm = node.getInts("perm");
    add(0, perm ? (*perm)[rows.axis] : all - 1 - rows.axis);
  }

  void softmax() {
    int64_t old = analysis.getOpset() < 13;
    auto axis = normalizeAxis(node.getInt("axis", old ? 1 : -1), resultRank());
    if (!axis || (old ? rows.axis >= *axis : rows.axis == *axis))
      return refuse("it mixes rows");
    add(0, rows.axis);
  }

  /// Normalises over the axes from `axis` on; further results are statistics.
  void norm(int64_t axis, unsigned rowOperands) {
    auto first = normalizeAxis(axis, resultRank());
    if (!first || rows.axis >= *first)
      return refuse("it mixes rows");
    for (unsigned i = 0; i < rowOperands; ++i)
      broadcast(i);
  }

  void alongOtherAxis(int64_t otherwise, bool all) {
    auto axis = normalizeAxis(node.getInt("axis", otherwise), resultRank());
    if (!axis || *axis == rows.axis)
      return refuse("it takes rows apart or puts them together");
    for (unsigned i = 0; i < (all ? node.getInputs().size() : 1); ++i) {
      ExprRef size = analysis.dim(node.getInput(i), rows.axis);
      ExprRef whole = analysis.dim(node.getOutput(result), rows.axis);
      if (!size || !whole || !ctx.proveEqual(size, whole))
        return refuse("an operand is not proven to have all rows");
      add(i, rows.axis);
    }
  }

  void slice() {
    auto sliced = sliceAxes(analysis, node);
    if (!sliced)
      return refuse("its axes are not known");
    for (const SliceAxis &s : *sliced)
      if (s.axis == rows.axis)
        return refuse("it takes some of the rows");
    add(0, rows.axis);
  }

  void gather() {
    int64_t data = rank(0), indices = rank(1);
    auto axis = normalizeAxis(node.getInt("axis", 0), data);
    if (!axis || indices < 0)
      return refuse("its rank is not known");
    if (rows.axis < *axis)
      return add(0, rows.axis);
    if (rows.axis < *axis + indices)
      return add(1, rows.axis - *axis);
    add(0, rows.axis - indices + 1);
  }

  void quantize() {
    if (rank(1) < 0)
      return refuse("the rank of its scale is not known");
    auto axis = normalizeAxis(node.getInt("axis", 1), resultRank());
    if (rank(1) > 1 || (rank(1) == 1 && (!axis || *axis == rows.axis) &&
                        !analysis.dim(node.getInput(1), 0)->isInt(1)))
      return refuse("it has a scale for every row");
    add(0, rows.axis);
  }

  ExprRef product(ArrayRef<ExprRef> sizes) {
    ExprRef all = ctx.getInt(1);
    for (ExprRef size : sizes)
      all = ctx.mul(all, size);
    return all;
  }

  /// The target of a Reshape can be written for fewer rows: no other size is
  /// copied from the axis of the rows, and where -1 will have to stand for
  /// them, it stands for nothing else.
  void addReshaped(int64_t axis, bool merged) {
    auto sizes = analysis.elements(node.getInput(1));
    bool copies = !node.getInt("allowzero", 0);
    if (sizes)
      for (auto [i, size] : llvm::enumerate(*sizes)) {
        bool own = static_cast<int64_t>(i) == rows.axis;
        if (!own &&
            ((copies && size->isInt(0) && static_cast<int64_t>(i) == axis) ||
             (rows.merged && size->isInt(-1))))
          return refuse("its target cannot be written for fewer rows");
      }
    else if (rows.merged || axis != rows.axis)
      return refuse("its target is not known");
    add(0, axis, merged);
  }

  void reshape() {
    Value from = node.getInput(0), to = node.getOutput(result);
    const TensorFacts &in = analysis.facts(from), &out = analysis.facts(to);
    if (!in.ranked || !out.ranked)
      return refuse("its shape is not known");
    ArrayRef<ExprRef> source(in.shape), target(out.shape);
    // Elements from row to row, and rows from batch to batch, stay what they
    // are if what stands before the axis does.
    ExprRef outer = product(target.take_front(rows.axis));
    ExprRef own = target[rows.axis];
    for (auto [axis, size] : llvm::enumerate(source)) {
      ExprRef sourceOuter = product(source.take_front(axis));
      if (!rows.merged && ctx.proveEqual(size, count) &&
          ctx.proveEqual(own, count) && ctx.proveEqual(sourceOuter, outer))
        return addReshaped(axis, false);
      if (rows.merged && ctx.proveEqual(size, count) &&
          ctx.proveEqual(ctx.mul(sourceOuter, size), own))
        return addReshaped(axis, false);
    }
    if (!source.empty() && rows.merged && ctx.proveEqual(source[0], own))
      return addReshaped(0, true);
    if (!source.empty() && !rows.merged && ctx.proveEqual(own, count) &&
        ctx.proveEqual(ctx.mul(outer, own), source[0]))
      return addReshaped(0, true);
    refuse("its rows are not proven to stay together");
  }

  void find() {
    StringRef op = node.getOpType(), domain = node.getDomain();
    if (domain != "" && domain != "com.microsoft")
      return refuse("nothing is known about its domain");
    if (node.getNumRegions() || analysis.getOpset() < 7)
      return refuse("it is not known to treat rows one by one");
    bool skip = domain == "com.microsoft" && op.starts_with("Skip");
    if (result != 0 && op != "Split" && !(skip && result == 3))
      return refuse("this result of it is not known to be row by row");
    if (elementwise.contains(op)) {
      for (unsigned i = 0; i < node.getInputs().size(); ++i)
        broadcast(i);
      return;
    }
    if (firstOnly.contains(op))
      return add(0, rows.axis);
    if (norms.contains(op))
      return norm(node.getInt("axis", -1), 1);
    if (skip && (op == "SkipLayerNormalization" ||
                 op == "SkipSimplifiedLayerNormalization"))
      return norm(-1, 2);
    if (op == "MatMul" && domain.empty())
      return matMul();
    if (op == "MatMulNBits")
      return rows.axis + 1 < resultRank() ? add(0, rows.axis)
                                          : refuse("its rows are columns");
    if (op == "RotaryEmbedding")
      return rotaryEmbedding(!domain.empty());
    if (!domain.empty())
      return refuse("it is not known to treat rows one by one");
    if (reductions.contains(op))
      return reduce();
    if (op == "Gemm")
      return gemm();
    if (op == "Reshape")
      return reshape();
    if (op == "Transpose")
      return transpose();
    if (op == "Softmax" || op == "LogSoftmax")
      return softmax();
    if (op == "Squeeze")
      return squeeze();
    if (op == "Unsqueeze")
      return unsqueeze();
    if (op == "Split")
      return alongOtherAxis(0, /*all=*/false);
    if (op == "Concat")
      return alongOtherAxis(0, /*all=*/true);
    if (op == "Slice")
      return slice();
    if (op == "Gather")
      return gather();
    if (op == "QuantizeLinear" || op == "DequantizeLinear")
      return quantize();
    refuse("it is not known to treat rows one by one");
  }
};
} // namespace

RowRule prefill::findRowRule(SymbolicAnalysis &analysis, onnx::NodeOp node,
                             unsigned result, RowAxis rows, ExprRef count) {
  Finder finder{analysis, node, result, rows, count, analysis.expressions(),
                {}};
  finder.find();
  RowRule &rule = finder.rule;
  if (rule.refusal.empty() && rule.operands.empty())
    rule.refusal = "none of its operands has rows";
  return rule;
}
