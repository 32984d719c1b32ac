//===- RowPlan.cpp - Which rows of which values are needed ----------------===//
//
// One walk from the outputs to the inputs. An op is computed in full if an op
// that is computed in full (or the graph's result) reads it; with the selected
// rows only if nothing but the selection, or operands with rows of such ops,
// reads it and the table of operators proves that its rows do not mix. Where
// the walk has to go back on what it took for granted, it starts again with
// that op computed in full.
//
//===----------------------------------------------------------------------===//

#include "RowPlan.h"

#include "mlir/Interfaces/SideEffectInterfaces.h"
#include "llvm/ADT/StringSet.h"

using namespace mlir;
using namespace prefill;

//===----------------------------------------------------------------------===//
// Selections
//===----------------------------------------------------------------------===//

/// Whether the indices are the last rows in order.
static bool areLast(SymbolicAnalysis &analysis, Value indices, ExprRef count) {
  ExprContext &ctx = analysis.expressions();
  auto elements = analysis.elements(indices);
  if (!elements || elements->empty())
    return false;
  int64_t size = elements->size();
  for (auto [i, e] : llvm::enumerate(*elements)) {
    ExprRef fromEnd = ctx.getInt(static_cast<int64_t>(i) - size);
    if (!ctx.proveEqual(e, fromEnd) &&
        !ctx.proveEqual(e, ctx.add(count, fromEnd)))
      return false;
  }
  return true;
}

static std::optional<RowSelection> matchSlice(SymbolicAnalysis &analysis,
                                              onnx::NodeOp node) {
  // Since opset 10 bounds are operands, 1, 2, 3 (axes) and 4 (steps).
  if (analysis.getOpset() < 10 || !node.getInput(1) || !node.getInput(2))
    return std::nullopt;
  Value data = node.getInput(0);
  auto starts = analysis.elements(node.getInput(1));
  auto ends = analysis.elements(node.getInput(2));
  SmallVector<int64_t> axes{0}, steps{1};
  for (auto [list, operand] : {std::pair{&axes, 3u}, std::pair{&steps, 4u}})
    if (Value given = node.getInput(operand)) {
      auto constant = analysis.constantInts(given);
      if (!constant)
        return std::nullopt;
      *list = *constant;
    }
  if (!starts || !ends || starts->size() != 1 || ends->size() != 1 ||
      axes.size() != 1 || steps.size() != 1)
    return std::nullopt;
  RowSelection selection{node, RowSelection::Kind::Slice, axes[0]};
  if (selection.axis < 0)
    selection.axis += analysis.facts(data).shape.size();
  selection.count = analysis.dim(data, axes[0]);
  // From -n, or from a proven distance to the end, on.
  ExprContext &ctx = analysis.expressions();
  ExprRef start = starts->front(), end = ends->front();
  auto number = start->asInt();
  bool fromEnd =
      (number && *number < 0) ||
      (selection.count && ctx.provePositive(ctx.sub(selection.count, start)) &&
       ctx.proveNonNegative(start));
  bool toEnd = (end->asInt() && *end->asInt() >= INT32_MAX) ||
               (selection.count && ctx.proveEqual(end, selection.count));
  selection.last = steps[0] == 1 && fromEnd && toEnd;
  return selection;
}

std::optional<RowSelection> prefill::matchSelection(SymbolicAnalysis &analysis,
                                                    Operation *op) {
  auto node = dyn_cast<onnx::NodeOp>(op);
  if (!node || !node.getDomain().empty() || !node.getInput(0) ||
      !analysis.facts(node.getInput(0)).ranked ||
      !isa_and_nonnull<onnx::NodeOp, AttentionOp>(
          node.getInput(0).getDefiningOp()) ||
      !isa_and_nonnull<FloatType>(analysis.facts(node.getInput(0)).elementType))
    return std::nullopt;
  Value data = node.getInput(0);
  std::optional<RowSelection> selection;
  if (node.is("Slice")) {
    selection = matchSlice(analysis, node);
  } else if (node.is("Gather") || node.is("GatherND")) {
    bool nd = node.is("GatherND");
    Value indices = node.getInput(1);
    if (!indices || !analysis.facts(indices).ranked)
      return std::nullopt;
    ArrayRef<ExprRef> shape(analysis.facts(indices).shape);
    if (nd ? node.getInt("batch_dims", 0) || shape.size() != 2 ||
                 !shape[1]->isInt(1)
           : shape.size() > 1)
      return std::nullopt;
    selection = RowSelection{
        node, nd ? RowSelection::Kind::GatherND : RowSelection::Kind::Gather,
        nd ? 0 : node.getInt("axis", 0)};
    if (selection->axis < 0)
      selection->axis += analysis.facts(data).shape.size();
    selection->count = analysis.dim(data, selection->axis);
    selection->last =
        !nd && selection->count && areLast(analysis, indices, selection->count);
  }
  if (!selection || !selection->count || selection->count->isInt(1))
    return std::nullopt;
  return selection;
}

//===----------------------------------------------------------------------===//
// Sizes
//===----------------------------------------------------------------------===//

std::pair<int64_t, int64_t> prefill::shapeRange(onnx::NodeOp shape,
                                                int64_t rank) {
  auto bound = [&](StringRef name, int64_t otherwise) {
    int64_t value = shape.getInt(name, otherwise);
    return std::clamp<int64_t>(value < 0 ? value + rank : value, 0, rank);
  };
  return {bound("start", 0), bound("end", rank)};
}

std::optional<SmallVector<std::pair<Value, int64_t>>>
prefill::findSizes(SymbolicAnalysis &analysis, Value value, int64_t begin,
                   int64_t end) {
  ExprContext &ctx = analysis.expressions();
  SmallVector<std::pair<Value, int64_t>> sizes;
  Block &body = analysis.getGraph().getBody().front();
  for (int64_t axis = begin; axis < end; ++axis) {
    ExprRef size = analysis.dim(value, axis);
    if (!size)
      return std::nullopt;
    if (auto number = size->asInt()) {
      sizes.push_back({Value(), *number});
      continue;
    }
    size_t found = sizes.size();
    for (BlockArgument input : body.getArguments())
      for (auto [i, e] : llvm::enumerate(analysis.facts(input).shape))
        if (sizes.size() == found && ctx.proveEqual(e, size))
          sizes.push_back({input, static_cast<int64_t>(i)});
    if (sizes.size() == found)
      return std::nullopt;
  }
  return sizes;
}

//===----------------------------------------------------------------------===//
// The plan
//===----------------------------------------------------------------------===//

bool RowPlan::saves() const {
  static const llvm::StringSet<> products = {"MatMul", "Gemm", "MatMulNBits"};
  return begin && llvm::any_of(shrunk, [](const auto &entry) {
           auto node = dyn_cast<onnx::NodeOp>(entry.first);
           return !node || products.contains(node.getOpType());
         });
}

namespace {
struct Planner {
  SymbolicAnalysis &analysis;
  RowSelection selection;
  /// Ops that must be computed in full, found out in an earlier walk.
  llvm::DenseSet<Operation *> forced;
  llvm::DenseSet<Operation *> full;
  RowPlan plan;
  bool again = false;

  void stop(Operation *op, const llvm::Twine &why) {
    if (!plan.stop) {
      plan.stop = op;
      plan.why = why.str();
    }
  }

  /// A Shape node can look elsewhere.
  bool canRedirect(onnx::NodeOp shape) {
    Value value = shape.getInput(0);
    const TensorFacts &f = analysis.facts(value);
    if (!shape.is("Shape") || !f.ranked)
      return false;
    auto [begin, end] = shapeRange(shape, f.shape.size());
    return findSizes(analysis, value, begin, end).has_value();
  }

  /// What the uses of `value` need of it.
  struct Need {
    bool everything = false;
    std::optional<RowAxis> rows;
    SmallVector<onnx::NodeOp> shapes;
  };
  void addUses(Value value, Need &need) {
    Block *body = &analysis.getGraph().getBody().front();
    for (OpOperand &use : value.getUses()) {
      Operation *user = use.getOwner();
      if (user->getBlock() != body) {
        need.everything = true; // Read inside of a subgraph.
        continue;
      }
      std::optional<RowAxis> rows;
      if (user == selection.node && use.getOperandNumber() == 0) {
        rows = RowAxis{selection.axis};
      } else if (auto it = plan.shrunk.find(user); it != plan.shrunk.end()) {
        for (const RowOperand &operand : it->second)
          if (operand.operand == use.getOperandNumber())
            rows = operand.rows;
      } else if (!full.contains(user)) {
        continue; // Dead.
      } else if (auto shape = dyn_cast<onnx::NodeOp>(user);
                 shape && canRedirect(shape)) {
        need.shapes.push_back(shape);
        continue;
      }
      if (!rows || (need.rows && !(*need.rows == *rows)))
        need.everything = true;
      else
        need.rows = rows;
    }
  }

  /// The operands with rows of an attention whose queries shrink.
  RowRule attentionRule(AttentionOp op, RowAxis rows) {
    RowRule rule;
    if (rows.merged || rows.axis != rowAxis(op.getOLayout())) {
      rule.refusal = "its rows are not those that are selected";
      return rule;
    }
    if (op.getLse() && !op.getLse().use_empty())
      rule.refusal = "all of its lse is read";
    rule.operands.push_back({0, {rowAxis(op.getQLayout()), false}});
    auto number = [&](Value operand) {
      return static_cast<unsigned>(llvm::find(op->getOperands(), operand) -
                                   op->operand_begin());
    };
    if (Value bias = op.getBias()) {
      const TensorFacts &f = analysis.facts(bias);
      if (!f.ranked) {
        rule.refusal = "the rank of its bias is not known";
      } else if (f.shape.size() > 1) {
        int64_t axis = f.shape.size() - 2;
        ExprRef size = f.shape[axis];
        if (analysis.expressions().proveEqual(size, selection.count))
          rule.operands.push_back({number(bias), {axis, false}});
        else if (!size->isInt(1))
          rule.refusal = "its bias is not proven to have all rows";
      }
    }
    if (op.getQSegment())
      rule.operands.push_back({number(op.getQSegment()), {1, false}});
    return rule;
  }

  RowRule ruleOf(Operation *op, unsigned result, RowAxis rows) {
    if (auto attention = dyn_cast<AttentionOp>(op))
      return attentionRule(attention, rows);
    if (auto node = dyn_cast<onnx::NodeOp>(op))
      return findRowRule(analysis, node, result, rows, selection.count);
    RowRule rule;
    rule.refusal = "it is not an operator";
    return rule;
  }

  /// Makes ops that read rows of `op` in a merged axis full: there is nothing
  /// to select them from.
  void forceMergedUsers(Operation *op) {
    for (Value result : op->getResults())
      for (OpOperand &use : result.getUses())
        if (auto it = plan.shrunk.find(use.getOwner()); it != plan.shrunk.end())
          for (const RowOperand &operand : it->second)
            if (operand.operand == use.getOperandNumber() &&
                operand.rows.merged) {
              forced.insert(use.getOwner());
              again = true;
            }
  }

  void visit(Operation *op) {
    if (isa<onnx::ReturnOp>(op) || op == selection.node) {
      full.insert(op);
      return;
    }
    SmallVector<Need> needs(op->getNumResults());
    bool everything = false, some = false, shape = false;
    for (auto [result, need] : llvm::zip_equal(op->getResults(), needs)) {
      addUses(result, need);
      // The keys have all rows in any case.
      auto attention = dyn_cast<AttentionOp>(op);
      if (attention && result != attention.getO() &&
          result != attention.getLse()) {
        // A score is of the rows that it was asked of.
        everything |= attention.getScoreRows() && !result.use_empty() &&
                      (result == attention.getTokenScore() ||
                       result == attention.getTokenPeak());
        need.rows.reset();
        continue;
      }
      everything |= need.everything;
      some |= need.rows.has_value();
      shape |= !need.shapes.empty();
    }
    if (auto attention = dyn_cast<AttentionOp>(op);
        attention && !some && !everything)
      everything = true; // Only its keys are read: leave it.
    if (!some && !everything && !shape && wouldOpBeTriviallyDead(op))
      return;
    if (everything || !some) {
      if (some)
        stop(op, "all of its result is read elsewhere");
    } else if (!forced.contains(op)) {
      SmallVector<RowOperand, 2> operands;
      std::string refusal;
      bool first = true;
      for (auto [i, need] : llvm::enumerate(needs)) {
        if (!need.rows)
          continue;
        RowRule rule = ruleOf(op, i, *need.rows);
        if (!rule.refusal.empty())
          refusal = rule.refusal;
        else if (!first && !(operands == rule.operands))
          refusal = "its results have their rows in different places";
        operands = rule.operands;
        first = false;
      }
      if (refusal.empty()) {
        plan.shrunk.insert({op, operands});
        for (auto [result, need] : llvm::zip_equal(op->getResults(), needs)) {
          if (!need.rows)
            continue;
          plan.rows[result] = *need.rows;
          plan.shapes.append(need.shapes);
        }
        return;
      }
      stop(op, refusal);
    }
    full.insert(op);
    forceMergedUsers(op);
  }

  void run() {
    Block &body = analysis.getGraph().getBody().front();
    do {
      again = false;
      full.clear();
      plan = RowPlan();
      for (Operation &op : llvm::reverse(body)) {
        visit(&op);
        if (again)
          break;
      }
      for (auto &[op, operands] : plan.shrunk)
        for (const RowOperand &operand : operands) {
          Value value = op->getOperand(operand.operand);
          // Graph inputs have no merged rows either.
          if (operand.rows.merged && isa<BlockArgument>(value) &&
              forced.insert(op).second)
            again = true;
          if (!operand.rows.merged && !plan.rows.contains(value)) {
            plan.begin = value;
            plan.beginAxis = operand.rows.axis;
          }
        }
    } while (again);
  }
};
} // namespace

RowPlan prefill::planRows(SymbolicAnalysis &analysis,
                          const RowSelection &selection) {
  Planner planner{analysis, selection, {}, {}, RowPlan()};
  planner.run();
  return std::move(planner.plan);
}
