//===- PrunePlan.cpp - Which values lose rows -----------------------------===//
//
// The rows leave at a value that everything later goes through: of what depends
// on a layer's attention, the last value before the next attention that is the
// only one still needed (the residual after the layer). From the outputs back
// to these values, every op must treat rows one by one (the table of row
// liveness) or be a causal attention over the prompt's own keys. What else has
// rows and meets them on the way, such as rotary tables, is to be gathered.
//
//===----------------------------------------------------------------------===//

#include "PrunePlan.h"

#include "llvm/ADT/STLExtras.h"

using namespace mlir;
using namespace prefill;

namespace {
struct Planner {
  Planner(SymbolicAnalysis &analysis, ArrayRef<int64_t> layers, bool encoder,
          PrunePlan &plan, std::string &error)
      : analysis(analysis), layers(layers), encoder(encoder), plan(plan),
        error(error), ctx(analysis.expressions()) {}

  SymbolicAnalysis &analysis;
  ArrayRef<int64_t> layers;
  bool encoder;
  PrunePlan &plan;
  std::string &error;
  ExprContext &ctx;
  ExprRef batch = nullptr, count = nullptr; ///< of the prompts
  ExprRef fewer = nullptr; ///< rows behind a Slice of all but the first
  DenseMap<Value, unsigned> produced; ///< levels of results; 0 is not stored
  DenseMap<Value, unsigned> cutLevel; ///< level of a cut's readers
  DenseMap<Value, RowAxis> demanded;
  llvm::DenseSet<Value> free; ///< seen, without rows
  SmallVector<std::pair<Value, std::optional<RowAxis>>> work;

  bool fail(Operation *op, const llvm::Twine &why) {
    if (error.empty())
      error = nameOf(op) + why.str();
    return false;
  }

  /// The level of a value for those who read it.
  unsigned levelOf(Value value) {
    auto cut = cutLevel.find(value);
    return cut == cutLevel.end() ? produced.lookup(value) : cut->second;
  }
  unsigned levelOf(Operation *op) {
    unsigned level = 0;
    for (Value operand : op->getOperands())
      level = std::max(level, levelOf(operand));
    return level;
  }

  bool hasRows(ExprRef size) { return size && ctx.proveEqual(size, count); }

  /// How many rows `value` has where it has rows.
  ExprRef countOf(Value value) {
    return plan.behindSlice.contains(value) ? fewer : count;
  }

  /// Where `value` has a row for every token of the prompt, if anywhere.
  std::optional<RowAxis> rowsOf(Value value) {
    for (auto [i, size] : llvm::enumerate(analysis.facts(value).shape))
      if (ctx.proveEqual(size, countOf(value)))
        return RowAxis{static_cast<int64_t>(i), false};
    return std::nullopt;
  }

  /// Layers are counted by their attention, so each is to read the one before:
  /// there is one tower, with one attention a layer.
  bool isOneTower() {
    DenseMap<Value, int64_t> behind; ///< how many attentions in a row
    int64_t count = 0;
    for (Operation &op : analysis.getGraph().getBody().front()) {
      int64_t most = 0;
      for (Value operand : op.getOperands())
        most = std::max(most, behind.lookup(operand));
      if (isa<AttentionOp>(op) && most++ != count++)
        return fail(&op, "it does not read the attention before it (several "
                         "towers in one file, or several images with an "
                         "attention for each): compile one tower, for one "
                         "image or a batch of images of one size");
      for (Value result : op.getResults())
        behind[result] = most;
    }
    return true;
  }

  /// The rows of an encoder are those of its first attention.
  bool findPatches() {
    if (!isOneTower())
      return false;
    auto all = analysis.getGraph().getBody().front().getOps<AttentionOp>();
    AttentionOp first = *all.begin();
    batch = analysis.dim(first.getQ(), 0);
    count = analysis.dim(first.getQ(), rowAxis(first.getQLayout()));
    if (!batch || !count)
      return fail(first, "the number of its rows is not known");
    fewer = ctx.sub(count, ctx.getInt(1));
    // Rows are told from features by their number.
    for (uint64_t other : {first.getQHeads(), first.getHeadDim(),
                           first.getQHeads() * first.getHeadDim()})
      if (count->isInt(static_cast<int64_t>(other)))
        return fail(first, "it has as many rows as heads or features, and the "
                           "two cannot be told apart");
    return true;
  }

  bool findInput() {
    if (encoder)
      return findPatches();
    onnx::GraphOp graph = analysis.getGraph();
    for (auto [argument, name] : llvm::zip_equal(
             graph.getBody().front().getArguments(), graph.getInputs())) {
      StringRef text = onnx::getEntryName(name).getValue();
      size_t rank = text == "input_ids" ? 2 : text == "inputs_embeds" ? 3 : 0;
      if (rank && analysis.facts(argument).shape.size() == rank &&
          (rank == 2 || !plan.tokens))
        plan.tokens = argument;
    }
    if (!plan.tokens)
      return fail(nullptr, "the model has no input 'input_ids' [batch, tokens] "
                           "or 'inputs_embeds' [batch, tokens, features]");
    batch = analysis.facts(plan.tokens).shape[0];
    count = analysis.facts(plan.tokens).shape[1];
    return true;
  }

  /// Finds where the rows of stage `stage` leave, before `next`.
  bool findCut(PruneStage &stage, AttentionOp next) {
    DenseMap<Operation *, unsigned> number;
    for (auto [i, op] : llvm::enumerate(*stage.attention->getBlock()))
      number[&op] = i;
    auto lastUse = [&](Value value) {
      unsigned last = 0;
      for (Operation *user : value.getUsers()) {
        auto node = dyn_cast<onnx::NodeOp>(user);
        if (node && node.is("Shape"))
          continue;
        // Of a user in a subgraph the op that holds it counts.
        Operation *here =
            stage.attention->getBlock()->findAncestorOpInBlock(*user);
        last = std::max(last, number.lookup(here));
      }
      return last;
    };
    llvm::MapVector<Value, unsigned> live{};
    live[stage.attention.getO()] = lastUse(stage.attention.getO());
    for (Operation *op = stage.attention->getNextNode();
         op && op != next.getOperation(); op = op->getNextNode()) {
      bool depends = llvm::any_of(op->getOperands(), [&](Value operand) {
        return live.contains(operand);
      });
      unsigned at = number[op];
      auto node = dyn_cast<onnx::NodeOp>(op);
      if (depends && !(node && node.is("Shape")))
        for (Value result : op->getResults())
          live[result] = lastUse(result);
      live.remove_if([&](auto &entry) { return entry.second <= at; });
      if (live.size() != 1)
        continue;
      Value only = live.begin()->first;
      const TensorFacts &f = analysis.facts(only);
      if (f.ranked && f.shape.size() == 3 && hasRows(f.shape[1]) &&
          ctx.proveEqual(f.shape[0], batch))
        stage.cut = only;
    }
    return stage.cut ||
           fail(stage.attention,
                "no value after its layer carries all its rows on, [batch, "
                "tokens, features], so there is nothing to take rows out of");
  }

  bool findStages() {
    SmallVector<AttentionOp> all(
        analysis.getGraph().getBody().front().getOps<AttentionOp>());
    for (int64_t layer : layers) {
      PruneStage stage{layer, all[layer - 1], Value()};
      if (!findCut(stage, all[layer]))
        return false;
      cutLevel[stage.cut] = plan.stages.size() + 1;
      plan.stages.push_back(stage);
    }
    if (encoder && !plan.stages.empty())
      plan.tokens = plan.stages.front().cut;
    return true;
  }

  /// Levels of all results; Shape nodes of values with fewer rows.
  bool findLevels() {
    Block &body = analysis.getGraph().getBody().front();
    for (Operation &op : body) {
      unsigned level = levelOf(&op);
      if (!level || isa<onnx::ReturnOp>(op))
        continue;
      auto node = dyn_cast<onnx::NodeOp>(op);
      if (!(node && node.is("Shape")) &&
          (dropsFirst(&op) ||
           llvm::any_of(op.getOperands(), [&](Value operand) {
             return plan.behindSlice.contains(operand);
           })))
        plan.behindSlice.insert_range(op.getResults());
      if (node && node.is("Shape")) {
        const TensorFacts &f = analysis.facts(node.getInput(0));
        auto [begin, end] = shapeRange(node, f.shape.size());
        if (!f.ranked || !findSizes(analysis, node.getInput(0), begin, end))
          return fail(node, "it asks for sizes that are not known");
        plan.shapes.push_back(node);
        continue;
      }
      for (Value result : op.getResults()) {
        produced[result] = level;
        for (Operation *user : result.getUsers())
          if (user->getBlock() != &body)
            return fail(user, "a subgraph reads rows");
      }
    }
    return true;
  }

  /// `value` is needed, with rows at `rows` or without any.
  bool demand(Value value, std::optional<RowAxis> rows, Operation *reader) {
    if (!produced.lookup(value))
      return true;
    if (!rows) {
      if (demanded.contains(value))
        return fail(reader, "it reads rows as a whole");
      if (free.insert(value).second)
        work.push_back({value, rows});
      return true;
    }
    if (free.contains(value))
      return fail(reader, "it reads rows as a whole");
    auto [it, isNew] = demanded.insert({value, *rows});
    if (!isNew)
      return it->second == *rows ||
             fail(reader, "it reads rows of one value in two places");
    work.push_back({value, rows});
    return true;
  }

  /// Operand `number` of `op`, of level `level`, has its rows at `rows`.
  /// `table`: it may get a batch axis in front.
  bool use(Operation *op, unsigned number, RowAxis rows, unsigned level,
           bool table) {
    OpOperand &operand = op->getOpOperand(number);
    Value value = operand.get();
    unsigned own = produced.lookup(value);
    if (op->getNumResults() && plan.behindSlice.contains(op->getResult(0)) &&
        !plan.behindSlice.contains(value) && !dropsFirst(op))
      return fail(op, "an operand of it has a row for every patch, and is not "
                      "computed from those that are left");
    if (own != level) {
      ArrayRef<ExprRef> shape(analysis.facts(value).shape);
      bool isCut = cutLevel.lookup(value) == level;
      if (own && !isCut)
        return fail(op, "it reads rows that an earlier layer left out");
      if (rows.merged)
        return fail(op, "it reads rows of all prompts in one axis");
      bool known =
          rows.axis == 0
              ? table
              : (rows.axis == 1 || (rows.axis == 2 && shape[1]->isInt(1))) &&
                    (shape[0]->isInt(1) || ctx.proveEqual(shape[0], batch));
      if (!known)
        return fail(op, "an operand of it has its rows where they cannot be "
                        "taken out prompt by prompt");
      plan.uses.push_back({&operand, rows.axis, level});
    }
    return demand(value, rows, op);
  }

  /// What an attention must be, so that rows can be left out of its keys, or
  /// scored.
  bool checkAttention(AttentionOp op) {
    if (encoder &&
        (op.getCausal() || op.getCos() || op.getKeyMask() || op.getSoftcap() ||
         op.getWindowRight() || op.getQHeads() != op.getKvHeads() ||
         op.getHeadDim() != op.getVHeadDim()))
      return fail(op, "it is not a vision encoder's: causal, rotated, masked, "
                      "capped, or with heads of different kinds");
    if (!encoder && !op.getCausal())
      return fail(op, "it is not causal");
    if (op.getWindowLeft())
      return fail(op, "it has a window, which counts positions, and fewer rows "
                      "do not stand side by side");
    if (op.getBias() || op.getSinks() || op.getKvLengths() ||
        op.getQSegment() || op.getQOffset() || op.getQPositions() ||
        op.getPastK())
      return fail(op, "it has a bias, sinks, lengths, segments or positions of "
                      "its own, which would need their rows left out too");
    for (auto [value, layout] : {std::pair{op.getQ(), op.getQLayout()},
                                 std::pair{op.getK(), op.getKLayout()},
                                 std::pair{op.getV(), op.getVLayout()}})
      if (!hasRows(analysis.dim(value, rowAxis(layout))))
        return fail(op, encoder
                            ? "its queries and keys are not all rows of the "
                              "encoder (attention that pools is not pruned)"
                            : "its queries and keys are not proven to be "
                              "those of the prompt alone (a KV cache is not "
                              "pruned)");
    if (Value mask = op.getKeyMask()) {
      const TensorFacts &f = analysis.facts(mask);
      if (f.shape.size() != 2 || !hasRows(f.shape[1]) ||
          !ctx.proveEqual(f.shape[0], batch))
        return fail(op, "its key mask is not proven to be [batch, tokens]");
    }
    return true;
  }

  bool attention(AttentionOp op, Value result, RowAxis rows) {
    unsigned level = produced.lookup(op.getO());
    if (rows.merged ||
        rows.axis !=
            (result == op.getRotatedK() ? 2 : rowAxis(op.getOLayout())))
      return fail(op, "its rows are not where those of the outputs are");
    if (op.getLse() && !op.getLse().use_empty())
      return fail(op, "its lse is read");
    if (op.getCos() && !llvm::is_contained(visited, op))
      for (MutableOperandRange slot :
           {op.getCosMutable(), op.getSinMutable()}) {
        OpOperand &table = slot[0];
        const TensorFacts &f = analysis.facts(table.get());
        if (!f.ranked || f.shape.size() < 2 ||
            !hasRows(f.shape[f.shape.size() - 2]))
          return fail(op, "its rotary tables are not proven to have a row for "
                          "every token");
        if (!use(op, table.getOperandNumber(),
                 {static_cast<int64_t>(f.shape.size()) - 2, false}, level,
                 /*table=*/true))
          return false;
      }
    if (llvm::is_contained(visited, op))
      return true;
    visited.push_back(op);
    return use(op, 0, {rowAxis(op.getQLayout()), false}, level, false) &&
           use(op, 1, {rowAxis(op.getKLayout()), false}, level, false) &&
           use(op, 2, {rowAxis(op.getVLayout()), false}, level, false);
  }
  SmallVector<AttentionOp> visited;

  /// A value with a row for every token that is left.
  bool visitRows(Value value, RowAxis rows) {
    Operation *op = value.getDefiningOp();
    unsigned level = produced.lookup(value);
    plan.rows[value] = {rows, level};
    if (auto core = dyn_cast<AttentionOp>(op))
      return attention(core, value, rows);
    auto node = dyn_cast<onnx::NodeOp>(op);
    if (!node)
      return fail(op, "it is not an operator");
    if (auto axis = dropsFirst(op)) {
      if (rows.merged || rows.axis != *axis)
        return fail(op, "the rows that it takes are not those of the outputs");
      plan.butFirst = node;
      return use(op, 0, rows, level, false);
    }
    RowRule rule =
        findRowRule(analysis, node, cast<OpResult>(value).getResultNumber(),
                    rows, countOf(value));
    if (!rule.refusal.empty())
      return fail(node, rule.refusal);
    bool isNew = visitedNodes.insert(node).second;
    for (unsigned i = 0; i < node->getNumOperands(); ++i) {
      const auto *found = llvm::find_if(
          rule.operands, [&](const RowOperand &o) { return o.operand == i; });
      if (found == rule.operands.end()) {
        if (!demand(node->getOperand(i), std::nullopt, node))
          return false;
      } else if (isNew && !use(node, i, found->rows, level, false)) {
        return false;
      }
    }
    if (isNew && node.is("Reshape"))
      plan.reshapes.push_back({node, level});
    return true;
  }
  llvm::DenseSet<Operation *> visitedNodes;

  /// A value that has no row for every token.
  bool visitFree(Value value) {
    Operation *op = value.getDefiningOp();
    if (auto selection = matchSelection(analysis, op);
        selection && hasRows(selection->count)) {
      if (levelOf(op) != plan.stages.size())
        return fail(op, "it takes rows before the last layer that leaves some "
                        "out");
      if (selection->kind == RowSelection::Kind::Slice &&
          (!selection->last || !startsFromEnd(selection->node)))
        return fail(op, "it takes rows by bounds that count all of them");
      if (levelOf(op->getOperand(1)))
        return fail(op, "the rows that it takes are computed from rows");
      if (!llvm::is_contained(selectionNodes, op)) {
        selectionNodes.push_back(op);
        plan.selections.push_back(*selection);
      }
      return use(op, 0, RowAxis{selection->axis, false}, levelOf(op), false);
    }
    for (Value operand : op->getOperands()) {
      if (!produced.lookup(operand))
        continue;
      if (isa<AttentionOp>(op) || rowsOf(operand))
        return fail(op, "it mixes rows");
      if (!demand(operand, std::nullopt, op))
        return false;
    }
    return true;
  }
  SmallVector<Operation *> selectionNodes;

  /// The axis that `op` cuts, if it is a Slice of an encoder's rows but the
  /// first, which stays where it is.
  std::optional<int64_t> dropsFirst(Operation *op) {
    auto node = dyn_cast<onnx::NodeOp>(op);
    if (!encoder || !node || !node.is("Slice"))
      return std::nullopt;
    auto selection = matchSelection(analysis, op);
    if (!selection || !selection->last || !hasRows(selection->count))
      return std::nullopt;
    auto start = analysis.constantInts(op->getOperand(1));
    if (!start || start->front() != 1)
      return std::nullopt;
    return selection->axis;
  }

  /// A Slice of the last rows that begins at a negative number.
  bool startsFromEnd(onnx::NodeOp slice) {
    auto start = analysis.constantInts(slice->getOperand(1));
    auto end = analysis.constantInts(slice->getOperand(2));
    return start && end && start->front() < 0 && start->front() > -4096 &&
           end->front() >= INT32_MAX;
  }

  /// Levels of the attentions.
  bool findAttentions() {
    for (AttentionOp op :
         analysis.getGraph().getBody().front().getOps<AttentionOp>()) {
      unsigned level = produced.lookup(op.getO());
      if (!encoder &&
          !hasRows(analysis.dim(op.getQ(), rowAxis(op.getQLayout()))))
        return fail(op,
                    "its queries are not the prompt's tokens (an encoder in "
                    "the same file): layers are counted by their "
                    "attention, so compile the language model by itself");
      bool scored =
          encoder || llvm::any_of(plan.stages, [&](const auto &stage) {
            return stage.attention == op;
          });
      if ((level || scored) && !checkAttention(op))
        return false;
      plan.attentions.push_back({op, level});
    }
    return true;
  }

  bool walk() {
    auto ret = cast<onnx::ReturnOp>(
        analysis.getGraph().getBody().front().getTerminator());
    unsigned index = 0;
    for (auto [value, name] :
         llvm::zip_equal(ret.getValues(), ret.getOutputNames())) {
      auto rows = rowsOf(value);
      StringRef text = onnx::getEntryName(name).getValue();
      if (rows && text == "logits" && produced.lookup(value))
        return fail(nullptr, "the output 'logits' has a row for every token, "
                             "and rows are left out; ask for -logits=last or "
                             "-logits=rows");
      // An encoder's features may be the very value that rows leave.
      bool isCut = encoder && rows && cutLevel.contains(value);
      unsigned number = index++;
      if (isCut ? !use(ret, number, *rows, cutLevel.lookup(value), false)
                : !demand(value, rows, ret))
        return false;
    }
    while (!work.empty()) {
      auto [value, rows] = work.pop_back_val();
      if (rows ? !visitRows(value, *rows) : !visitFree(value))
        return false;
    }
    return true;
  }
};
} // namespace

bool prefill::planPruning(SymbolicAnalysis &analysis, ArrayRef<int64_t> layers,
                          bool encoder, PrunePlan &plan, std::string &error) {
  Planner planner(analysis, layers, encoder, plan, error);
  return planner.findInput() && planner.findStages() && planner.findLevels() &&
         planner.findAttentions() && planner.walk();
}
