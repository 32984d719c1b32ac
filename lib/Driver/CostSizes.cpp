//===- CostSizes.cpp - Shapes of a graph as numbers -----------------------===//

#include "CostSizes.h"
#include "prefill/Dialect/Prefill/Prefill.h"

#include "llvm/ADT/SetVector.h"
#include "llvm/ADT/StringExtras.h"

using namespace mlir;
using namespace prefill;

//===----------------------------------------------------------------------===//
// Expressions
//===----------------------------------------------------------------------===//

/// `e` of operands `v`.
static std::optional<int64_t> apply(ExprRef e, ArrayRef<int64_t> v) {
  auto floorDiv = [](int64_t a, int64_t b) {
    return a / b - (a % b != 0 && (a < 0) != (b < 0));
  };
  switch (e->kind) {
  case Expr::Kind::Sum: {
    int64_t sum = e->integer;
    for (auto [value, factor] : llvm::zip_equal(v, e->coefficients))
      sum += value * factor;
    return sum;
  }
  case Expr::Kind::Product: {
    int64_t product = 1;
    for (int64_t value : v)
      product *= value;
    return product;
  }
  case Expr::Kind::FloorDiv:
  case Expr::Kind::Mod:
    if (v[1] <= 0)
      return std::nullopt;
    return e->is(Expr::Kind::Mod) ? v[0] - v[1] * floorDiv(v[0], v[1])
                                  : floorDiv(v[0], v[1]);
  case Expr::Kind::Min:
    return std::min(v[0], v[1]);
  case Expr::Kind::Max:
    return std::max(v[0], v[1]);
  case Expr::Kind::Ge0:
    return v[0] >= 0;
  case Expr::Kind::Eq0:
    return v[0] == 0;
  case Expr::Kind::And:
    return llvm::all_of(v, [](int64_t x) { return x != 0; });
  case Expr::Kind::Or:
    return llvm::any_of(v, [](int64_t x) { return x != 0; });
  case Expr::Kind::Not:
    return !v[0];
  case Expr::Kind::Select:
    return v[0] ? v[1] : v[2];
  default:
    return std::nullopt;
  }
}

std::optional<int64_t> Sizes::eval(ExprRef e) {
  if (e->is(Expr::Kind::Int) || e->is(Expr::Kind::Bool))
    return e->integer;
  if (auto known = symbols.find(e); known != symbols.end())
    return known->second;
  SmallVector<int64_t> values;
  for (ExprRef operand : e->operands) {
    std::optional<int64_t> value = eval(operand);
    if (!value)
      return std::nullopt;
    values.push_back(*value);
  }
  return apply(e, values);
}

Shape Sizes::shape(Value value) {
  const TensorFacts &facts = analysis.facts(value);
  if (!facts.ranked)
    return std::nullopt;
  SmallVector<int64_t> sizes;
  for (ExprRef dim : facts.shape) {
    std::optional<int64_t> size = eval(analysis.expressions().resolve(dim));
    if (!size || *size < 0)
      return std::nullopt;
    sizes.push_back(*size);
  }
  return sizes;
}

//===----------------------------------------------------------------------===//
// Inputs
//===----------------------------------------------------------------------===//

namespace {
/// Gives every dimension of the graph's inputs a size.
struct Binder {
  onnx::GraphOp graph;
  SymbolicAnalysis &analysis;
  const CostSizes &sizes;
  Sizes &known;
  std::string error;

  static bool isFresh(ExprRef dim) { return dim->is(Expr::Kind::Symbol); }

  StringRef nameOf(unsigned input) {
    return onnx::getEntryName(graph.getInputs()[input]).getValue();
  }
  Value argument(unsigned i) { return graph.getBody().front().getArgument(i); }

  /// Dimension `dim` is `size`; false where it is another number.
  bool bind(ExprRef dim, int64_t size) {
    if (auto number = dim->asInt())
      return *number == size;
    if (isFresh(dim))
      known.symbols.try_emplace(dim, size);
    return known.eval(dim) == size;
  }

  /// The input that has a row for every token.
  std::optional<unsigned> tokenInput() {
    unsigned count = graph.getBody().front().getNumArguments();
    for (StringRef wanted : {"input_ids", "inputs_embeds", ""})
      for (unsigned i = 0; i < count; ++i)
        if ((wanted.empty() || nameOf(i) == wanted) &&
            analysis.facts(argument(i)).shape.size() >= 2)
          return i;
    return std::nullopt;
  }

  bool fail(const llvm::Twine &what) {
    error = what.str();
    return false;
  }

  /// Every -dim names a dimension of an input.
  bool checkNames() {
    llvm::SmallSetVector<StringRef, 8> names;
    for (Value input : graph.getBody().front().getArguments())
      for (ExprRef dim : analysis.facts(input).shape)
        if (isFresh(dim) && !dim->name.starts_with("?"))
          names.insert(dim->name);
    for (const auto &entry : sizes.given)
      if (!names.contains(entry.getKey()))
        return fail("-dim=" + entry.getKey() +
                    ": no input has a dimension of this name" +
                    (names.empty() ? "" : "; there are ") +
                    llvm::join(names, ", "));
    return true;
  }

  bool run() {
    if (sizes.original && !checkNames())
      return false;
    for (const auto &entry : sizes.given)
      known.symbols[analysis.expressions().getSymbol(entry.getKey())] =
          entry.getValue();
    if (sizes.tokens && !bindTokens())
      return false;
    for (Value input : graph.getBody().front().getArguments())
      if (!bindInput(input))
        return false;
    return true;
  }

  bool bindTokens() {
    std::optional<unsigned> ids = tokenInput();
    if (!ids)
      return fail("no input of the model has rows of tokens");
    ArrayRef<ExprRef> shape(analysis.facts(argument(*ids)).shape);
    if (!bind(shape[1], sizes.tokens))
      return fail("input '" + nameOf(*ids) + "' has " +
                  analysis.expressions().str(shape[1]) + " rows, not " +
                  llvm::Twine(sizes.tokens) +
                  ": give that to -tokens, or sizes with -dim=NAME=N");
    if (!bind(shape[0], sizes.batch))
      return fail("input '" + nameOf(*ids) + "' has a batch of " +
                  analysis.expressions().str(shape[0]) + ", not " +
                  llvm::Twine(sizes.batch));
    return true;
  }

  /// Dimensions that only this input has: caches are empty, masks as long as
  /// the prompt, lists of rows have one.
  bool bindInput(Value input) {
    StringRef name = nameOf(cast<BlockArgument>(input).getArgNumber());
    ArrayRef<ExprRef> shape(analysis.facts(input).shape);
    for (auto [axis, dim] : llvm::enumerate(shape)) {
      if (!isFresh(dim) || known.symbols.contains(dim))
        continue;
      bool past = name.contains("past") || dim->name.contains("past");
      std::optional<int64_t> size;
      if (name == "segment_starts")
        size = sizes.segments.size() + 1;
      else if (shape.size() == 1)
        size = !name.starts_with("logits") || sizes.segments.empty()
                   ? sizes.batch
                   : sizes.logits.value_or(int64_t(sizes.segments.size()));
      else if (name == "cache_slots" || name == "prompt_parts")
        size = sizes.segments.size();
      else if (past)
        size = axis == 0 ? sizes.batch : sizes.capacity;
      else if (sizes.tokens == 0 && axis == 0)
        size = sizes.batch;
      else if (sizes.tokens && shape.size() == 2)
        size = axis == 0 ? sizes.batch : sizes.tokens;
      if (!size)
        return fail("no size for dimension '" + dim->name + "' of input '" +
                    name + "': give -dim=" + dim->name + "=N");
      known.symbols[dim] = *size;
    }
    return true;
  }
};
} // namespace

/// Binds the number of rows that a selection leaves: its share, where no more
/// are protected; all of them where the data decide.
static void bindRows(Sizes &sizes, SelectRowsOp op) {
  SymbolicAnalysis &analysis = sizes.analysis;
  auto attention = op.getScore().getDefiningOp<AttentionOp>();
  auto norm = op.getScore().getDefiningOp<KeyNormOp>();
  auto flow = op.getScore().getDefiningOp<FlowScoreOp>();
  ArrayRef<ExprRef> rows(analysis.facts(op.getRows()).shape);
  if ((!attention && !norm && !flow) || rows.size() != 2)
    return;
  Shape keys = sizes.shape(attention ? attention.getK()
                           : norm    ? norm.getK()
                                     : flow.getK());
  if (!keys)
    return;
  TensorLayout layout = attention ? attention.getKLayout()
                        : norm    ? norm.getKLayout()
                                  : flow.getKLayout();
  int64_t all = (*keys)[layout == TensorLayout::BSHD ? 1 : 2];
  double share =
      (op.getKeep() ? op.getKeep()->convertToDouble() : 1) * double(all);
  auto left = int64_t(op.getRoundDown() ? std::floor(share) : std::ceil(share));
  if (std::optional<uint64_t> most = op.getTopk())
    left = all <= int64_t(*most) ? all : std::min(left, int64_t(*most));
  // Patches of a vision encoder: how many go before the last layer depends on
  // the image.
  if (op.getTarget() && op.getLeft() == 0) {
    const auto skip = int64_t(op.getSkip().value_or(0));
    left = std::min(left, skip + int64_t(*op.getTarget()));
  }
  sizes.symbols.try_emplace(rows[0], keys->front());
  sizes.symbols.try_emplace(rows[1], left);
}

bool Sizes::bind(const CostSizes &given, std::string &error) {
  Binder binder{analysis.getGraph(), analysis, given, *this, {}};
  if (!binder.run()) {
    error = binder.error;
    return false;
  }
  for (Operation &op : analysis.getGraph().getBody().front()) {
    if (auto select = dyn_cast<SelectRowsOp>(op))
      bindRows(*this, select);
    // Where rows are now: as many as were asked for.
    auto node = dyn_cast<onnx::NodeOp>(op);
    if (!node || !node.is("FindRows", "prefill.opt"))
      continue;
    Shape asked = shape(node.getInput(2));
    ArrayRef<ExprRef> found(analysis.facts(node.getResult(0)).shape);
    if (asked && asked->size() == found.size())
      for (auto [dim, size] : llvm::zip_equal(found, *asked))
        symbols.try_emplace(dim, size);
  }
  return true;
}
