//===- AttentionProduct.cpp - Matrix products of attention ----------------===//

#include "AttentionMatch.h"
#include "Rules.h"

#include "llvm/ADT/STLExtras.h"

using namespace mlir;
using namespace prefill;

/// Whether `value` is a weight, perhaps stored in another form: constants and
/// what is computed of nothing else.
static bool isWeight(Value value, unsigned depth = 0) {
  RankedTensorType type;
  if (onnx::getConstantTensor(value, type))
    return true;
  auto node = value.getDefiningOp<onnx::NodeOp>();
  if (!node || depth > 4 || node->getNumRegions() != 0)
    return false;
  return llvm::all_of(node.getInputs(), [&](Value input) {
    return isa_and_nonnull<onnx::AbsentOp>(input.getDefiningOp()) ||
           isWeight(input, depth + 1);
  });
}

bool prefill::isProduct(onnx::NodeOp node) {
  if (!node)
    return false;
  bool known = node.is("MatMul") || node.is("FusedMatMul", "com.microsoft") ||
               node.is("Einsum");
  if (!known || node.getInputs().size() != 2)
    return false;
  // Learned queries are constants of more than two axes.
  RankedTensorType type;
  unsigned constants = 0;
  for (Value input : node.getInputs()) {
    if (!isWeight(input))
      continue;
    ++constants;
    if (!onnx::getConstantTensor(input, type) || type.getRank() < 3)
      return false;
  }
  return constants < 2;
}

namespace {
/// `bhid,bhjd->bhij` taken apart.
struct Equation {
  std::string lhs, rhs, out;
  char summed = 0;

  static std::optional<Equation> parse(SymbolicAnalysis &analysis,
                                       onnx::NodeOp node) {
    auto plain = plainEquation(analysis, node);
    if (!plain)
      return std::nullopt;
    auto [in, out] = StringRef(*plain).split("->");
    auto [lhs, rhs] = in.split(',');
    Equation e{lhs.str(), rhs.str(), out.str()};
    if (out.empty() || lhs.empty() || rhs.empty() || rhs.contains(','))
      return std::nullopt;
    for (const std::string &side : {e.lhs, e.rhs})
      for (char c : side) {
        if (StringRef(side).count(c) != 1)
          return std::nullopt; // a diagonal
        if (out.contains(c))
          continue;
        if (e.summed && e.summed != c)
          return std::nullopt;
        e.summed = c;
      }
    if (!e.summed || !StringRef(e.lhs).contains(e.summed) ||
        !StringRef(e.rhs).contains(e.summed))
      return std::nullopt;
    return e;
  }
};
} // namespace

std::pair<ExprRef, ExprRef>
prefill::contractionSizes(SymbolicAnalysis &analysis, onnx::NodeOp node) {
  Value lhs = node.getInput(0), rhs = node.getInput(1);
  if (node.is("Einsum")) {
    auto e = Equation::parse(analysis, node);
    if (!e)
      return {};
    return {analysis.dim(lhs, e->lhs.find(e->summed)),
            analysis.dim(rhs, e->rhs.find(e->summed))};
  }
  return {analysis.dim(lhs, node.getInt("transA", 0) ? -2 : -1),
          analysis.dim(rhs, node.getInt("transB", 0) ? -1 : -2)};
}

std::optional<Product> prefill::productAt(SymbolicAnalysis &analysis,
                                          Value value,
                                          ArrayRef<ExprRef> indices,
                                          ExprRef contraction) {
  auto node = value.getDefiningOp<onnx::NodeOp>();
  if (!isProduct(node))
    return std::nullopt;
  Product p;
  p.node = node;
  p.lhs = node.getInput(0);
  p.rhs = node.getInput(1);
  const TensorFacts &l = analysis.facts(p.lhs), &r = analysis.facts(p.rhs),
                    &out = analysis.facts(value);
  if (!l.ranked || !r.ranked || !out.ranked ||
      out.shape.size() != indices.size())
    return std::nullopt;
  if (node.is("Einsum")) {
    auto e = Equation::parse(analysis, node);
    if (!e || e->out.size() != indices.size())
      return std::nullopt;
    auto fill = [&](StringRef letters, const TensorFacts &f, Indices &to) {
      ExprContext &ctx = analysis.expressions();
      if (f.shape.size() != letters.size())
        return false;
      for (auto [size, c] : llvm::zip_equal(f.shape, letters)) {
        if (c == e->summed) {
          to.push_back(contraction);
          continue;
        }
        size_t at = e->out.find(c);
        if (size->isInt(1))
          to.push_back(ctx.getInt(0));
        else if (ctx.proveEqual(size, out.shape[at]))
          to.push_back(indices[at]);
        else
          return false; // It may be 1, and stretched.
      }
      return true;
    };
    if (!fill(e->lhs, l, p.lhsIndices) || !fill(e->rhs, r, p.rhsIndices))
      return std::nullopt;
    return p;
  }
  if (l.shape.size() < 2 || r.shape.size() < 2 || indices.size() < 2 ||
      node.getInt("transBatchA", 0) || node.getInt("transBatchB", 0))
    return std::nullopt;
  p.factor = node.getFloat("alpha", 1);
  ArrayRef<ExprRef> outBatch = ArrayRef<ExprRef>(out.shape).drop_back(2);
  auto fill = [&](const TensorFacts &f, ExprRef row, ExprRef column,
                  Indices &to) {
    auto batch =
        analysis.broadcastIndices(ArrayRef<ExprRef>(f.shape).drop_back(2),
                                  indices.drop_back(2), outBatch);
    if (!batch)
      return false;
    to = *batch;
    to.push_back(row);
    to.push_back(column);
    return true;
  };
  ExprRef row = indices[indices.size() - 2], column = indices.back();
  bool ta = node.getInt("transA", 0), tb = node.getInt("transB", 0);
  if (!fill(l, ta ? contraction : row, ta ? row : contraction, p.lhsIndices) ||
      !fill(r, tb ? column : contraction, tb ? contraction : column,
            p.rhsIndices))
    return std::nullopt;
  return p;
}
