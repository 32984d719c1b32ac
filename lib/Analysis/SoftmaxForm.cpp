//===- SoftmaxForm.cpp - A softmax in any spelling ------------------------===//

#include "SoftmaxForm.h"
#include "AttentionMatch.h"
#include "Rules.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/SmallPtrSet.h"
#include "llvm/ADT/StringSet.h"

using namespace mlir;
using namespace prefill;

//===----------------------------------------------------------------------===//
// Products around it
//===----------------------------------------------------------------------===//

bool prefill::isDead(Operation *op, unsigned depth) {
  return isa<onnx::NodeOp>(op) && depth < 8 &&
         llvm::all_of(
             op->getUsers(),
             [&](Operation *user) { return isDead(user, depth + 1); });
}

/// Ops of which a matcher may know what they do to scores.
static bool isKnownStep(onnx::NodeOp node) {
  static const llvm::StringSet<> known = {
      "Cast",  "Identity", "Dropout", "Reshape",   "Transpose", "Add",
      "Sub",   "Mul",      "Div",     "Where",     "Tanh",      "Max",
      "Slice", "Concat",   "Squeeze", "Unsqueeze", "Flatten"};
  return node.getDomain().empty() && known.contains(node.getOpType());
}

/// Ops that compute elements of rows and keys from those of the same rows and
/// keys, or move them about.
static bool isLooseStep(onnx::NodeOp node) {
  if (isKnownStep(node))
    return true;
  static const llvm::StringSet<> loose = {"Abs",
                                          "CastLike",
                                          "Clip",
                                          "Erf",
                                          "Expand",
                                          "Gather",
                                          "Max",
                                          "Min",
                                          "Mod",
                                          "Neg",
                                          "Pad",
                                          "Pow",
                                          "PRelu",
                                          "QuantizeLinear",
                                          "Relu",
                                          "LeakyRelu",
                                          "Round",
                                          "Sigmoid",
                                          "Softplus",
                                          "Sqrt",
                                          "Sum",
                                          "DequantizeLinear",
                                          "Split",
                                          "Tile",
                                          "BatchNormalization",
                                          "LayerNormalization",
                                          "Reciprocal",
                                          "Trilu",
                                          "Exp",
                                          "Log",
                                          "Floor",
                                          "Conv",
                                          "GatherElements",
                                          "ScatterElements",
                                          "ScatterND",
                                          "DynamicQuantizeLinear",
                                          "Mean",
                                          "ReduceMean",
                                          "HardSigmoid",
                                          "Softsign",
                                          "Sign",
                                          "Ceil",
                                          "IsNaN",
                                          "Elu"};
  return (node.getDomain().empty() || node.getDomain() == "com.microsoft") &&
         loose.contains(node.getOpType());
}

/// A product of two computed tensors, quantised ones and those of other
/// domains included.
static bool isLooseProduct(onnx::NodeOp node) {
  if (isProduct(node))
    return true;
  static const llvm::StringSet<> others = {"Gemm",
                                           "MatMulInteger",
                                           "QLinearMatMul",
                                           "TransposeMatMul",
                                           "MatMulIntegerToFloat",
                                           "FusedMatMulActivation",
                                           "DynamicQuantizeMatMul",
                                           "FusedGemm",
                                           "Einsum"};
  RankedTensorType type;
  if (!others.contains(node.getOpType()))
    return false;
  unsigned second = node.is("QLinearMatMul") ? 3 : 1;
  for (unsigned i : {0u, second})
    if (!node.getInput(i) || onnx::getConstantTensor(node.getInput(i), type))
      return false;
  return true;
}

static bool leadsBack(Value value, bool loose, unsigned depth,
                      unsigned &steps) {
  auto node = value ? value.getDefiningOp<onnx::NodeOp>() : nullptr;
  if (!node || depth > 24 || ++steps > 256)
    return false;
  if (loose ? isLooseProduct(node) : isProduct(node))
    return true;
  if (loose ? !isLooseStep(node) : !isKnownStep(node))
    return false;
  static const llvm::StringSet<> several = {
      "Add", "Sub", "Mul", "Div", "Max", "Concat", "Where", "Min", "Sum"};
  bool all = several.contains(node.getOpType());
  for (auto [i, input] : llvm::enumerate(node.getInputs()))
    if ((i == 0 || all) && leadsBack(input, loose, depth + 1, steps))
      return true;
  return false;
}

bool prefill::leadsToProduct(Value value) {
  unsigned steps = 0;
  return leadsBack(value, /*loose=*/false, 0, steps);
}

bool prefill::comesFromProduct(Value value) {
  unsigned steps = 0;
  return leadsBack(value, /*loose=*/true, 0, steps);
}

bool prefill::reachesProduct(Value value, Operation *&through) {
  SmallVector<std::pair<Operation *, Operation *>> work; // op, first on the way
  llvm::SmallPtrSet<Operation *, 32> seen;
  for (Operation *user : value.getUsers())
    work.push_back({user, user});
  for (size_t k = 0; k < work.size() && k < 256; ++k) {
    auto [op, first] = work[k];
    auto node = dyn_cast<onnx::NodeOp>(op);
    if (!node || !seen.insert(op).second)
      continue;
    if (isLooseProduct(node)) {
      through = first;
      return true;
    }
    if (!isLooseStep(node))
      continue;
    // The first that a matcher would not follow is the one to name.
    bool named = first != op || !isKnownStep(node);
    for (Operation *user : node.getResult(0).getUsers())
      work.push_back({user, named ? first : user});
  }
  return false;
}

//===----------------------------------------------------------------------===//
// Spellings
//===----------------------------------------------------------------------===//

std::optional<int64_t> prefill::keptReduction(SymbolicAnalysis &analysis,
                                              onnx::NodeOp node, StringRef op) {
  if (!node || !node.is(op) || !node.getInput(0) || !node.getInt("keepdims", 1))
    return std::nullopt;
  const TensorFacts &f = analysis.facts(node.getInput(0));
  auto axes = axesOf(analysis, node, 1);
  if (!f.ranked || !axes || axes->size() != 1)
    return std::nullopt;
  return normalizeAxis((*axes)[0], f.shape.size());
}

/// The axis of a Softmax or LogSoftmax, or nothing with a reason.
static std::optional<int64_t> axisOf(SymbolicAnalysis &analysis,
                                     onnx::NodeOp node, std::string &problem) {
  bool flattens = analysis.getOpset() < 13;
  int64_t given = node.getInt("axis", flattens ? 1 : -1);
  const TensorFacts &f = analysis.facts(node.getInput(0));
  if (!f.ranked) {
    problem = "the rank of its scores is not known";
    return std::nullopt;
  }
  int64_t rank = f.shape.size();
  auto axis = normalizeAxis(given, rank);
  if (!axis) {
    problem = "its axis is out of range";
    return std::nullopt;
  }
  if (!flattens)
    return axis;
  // Before opset 13 an axis stood for all from it on.
  std::optional<int64_t> only;
  for (int64_t k = *axis; k < rank; ++k) {
    if (f.shape[k]->isInt(1))
      continue;
    if (only) {
      problem = ("it runs over all axes from " + Twine(given) +
                 " on, not along the keys alone")
                    .str();
      return std::nullopt;
    }
    only = k;
  }
  return only ? *only : rank - 1;
}

static onnx::NodeOp definition(Value value) {
  return value ? value.getDefiningOp<onnx::NodeOp>() : nullptr;
}

/// The value without Identity around it.
static Value plain(Value value, SmallVectorImpl<Operation *> &ops) {
  for (auto node = definition(value); node && node.is("Identity");
       node = definition(value)) {
    ops.push_back(node);
    value = node.getInput(0);
  }
  return value;
}

/// Exponentials: exp(log_softmax(x)), exp(x - logsumexp(x)), or e / sum(e).
static std::optional<SoftmaxForm> exponentials(SymbolicAnalysis &analysis,
                                               onnx::NodeOp exp) {
  SoftmaxForm form;
  form.core = exp;
  Value input = exp.getInput(0), e = exp.getResult(0);
  auto before = definition(input);
  if (before && before.is("LogSoftmax")) {
    form.name = "LogSoftmax-Exp";
    form.scores = before.getInput(0);
    form.probabilities = e;
    form.ops = {before, exp};
    form.axis = axisOf(analysis, before, form.problem);
    return form;
  }
  if (before && before.is("Sub")) {
    Value x = before.getInput(0);
    SmallVector<Operation *> ops = {before, exp};
    Value total = plain(before.getInput(1), ops);
    auto sum = definition(total);
    std::optional<int64_t> axis;
    if (sum && sum.getInput(0) == x) {
      axis = keptReduction(analysis, sum, "ReduceLogSumExp");
      ops.push_back(sum);
    } else if (sum && sum.is("Log")) {
      auto inner = definition(sum.getInput(0));
      axis = keptReduction(analysis, inner, "ReduceSum");
      auto e2 = axis ? definition(inner.getInput(0)) : nullptr;
      if (!e2 || !e2.is("Exp") || e2.getInput(0) != x)
        axis.reset();
      else
        ops.append({sum, inner, e2});
    }
    if (axis) {
      form.name = "LogSumExp-Exp";
      form.scores = x;
      form.probabilities = e;
      form.ops = ops;
      form.axis = axis;
      form.logarithm = true;
      form.stable = sum.is("ReduceLogSumExp");
      return form;
    }
  }
  // The maximum of what is exponentiated is taken off first, or nothing is.
  form.stable = false;
  if (before && before.is("Sub")) {
    SmallVector<Operation *> ignored;
    auto max = definition(plain(before.getInput(1), ignored));
    form.stable =
        max && max.is("ReduceMax") && max.getInput(0) == before.getInput(0);
  }
  form.scores = input;
  for (Operation *user : e.getUsers()) {
    auto sum = dyn_cast<onnx::NodeOp>(user);
    auto axis = keptReduction(analysis, sum, "ReduceSum");
    if (!axis || sum.getInput(0) != e)
      continue;
    SmallVector<Operation *> next(sum->getUsers());
    for (size_t k = 0; k < next.size() && k < 16; ++k) {
      auto node = dyn_cast<onnx::NodeOp>(next[k]);
      if (!node)
        continue;
      if (node.is("Reciprocal")) {
        for (Operation *user2 : node->getUsers()) {
          auto mul = dyn_cast<onnx::NodeOp>(user2);
          if (!mul || !mul.is("Mul") || !llvm::is_contained(mul.getInputs(), e))
            continue;
          form.name = "Exp-ReduceSum-Mul";
          form.core = mul;
          form.probabilities = mul.getResult(0);
          form.ops = {exp, sum, node, mul};
          form.axis = axis;
          return form;
        }
      }
      if (!node.is("Div") || node.getInput(1) != sum.getResult(0))
        continue;
      form.axis = axis;
      form.core = node;
      if (node.getInput(0) == e) {
        form.name = "Exp-ReduceSum-Div";
        form.probabilities = node.getResult(0);
        form.ops = {exp, sum, node};
        return form;
      }
      if (auto product = definition(node.getInput(0));
          product && isProduct(product)) {
        form.name = "Exp-ReduceSum, divided after the product";
        form.probabilities = e;
        form.divisor = sum.getResult(0);
        form.ops = {exp, sum};
        return form;
      }
    }
  }
  // Something else that may be an attention.
  form.core = exp;
  form.name = "Exp";
  form.probabilities = e;
  form.ops = {exp};
  form.problem = "the exponentials of its scores are not divided by their sums "
                 "in a way that is known";
  return form;
}

std::optional<SoftmaxForm> prefill::softmaxAt(SymbolicAnalysis &analysis,
                                              onnx::NodeOp node) {
  if (!node.getInput(0))
    return std::nullopt;
  if (node.is("Exp"))
    return exponentials(analysis, node);
  if (!node.is("Softmax"))
    return std::nullopt;
  SoftmaxForm form;
  form.core = node;
  form.name = "Softmax";
  form.scores = node.getInput(0);
  form.probabilities = node.getResult(0);
  form.ops = {node};
  form.axis = axisOf(analysis, node, form.problem);
  return form;
}
