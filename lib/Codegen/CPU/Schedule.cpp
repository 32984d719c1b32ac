//===- Schedule.cpp - Which tile ops share a loop -------------------------===//

#include "Schedule.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Math/IR/Math.h"

using namespace mlir;
using namespace prefill;

static int64_t rankOf(Value value) {
  auto type = dyn_cast<RankedTensorType>(value.getType());
  return type ? type.getRank() : 0;
}

/// Marks everything that a vector repeated across columns is computed from.
static void markKeys(Value value, DenseMap<Value, ValueKind> &kinds) {
  if (rankOf(value) != 1 || kinds.lookup(value) == ValueKind::Key)
    return;
  kinds[value] = ValueKind::Key;
  if (Operation *op = value.getDefiningOp())
    for (Value operand : op->getOperands())
      markKeys(operand, kinds);
}

/// Marks what a matrix product's second operand is computed from.
static void markOperand(Value value, DenseMap<Value, ValueKind> &kinds) {
  kinds[value] = ValueKind::Operand;
  if (auto widen = value.getDefiningOp<arith::ExtFOp>())
    markOperand(widen.getIn(), kinds);
}

DenseMap<Value, ValueKind> prefill::classifyValues(tile::KernelOp kernel) {
  DenseMap<Value, ValueKind> kinds;
  auto classify = [&](Value value) {
    if (isa<tile::ViewType, tile::KeyIndexType, tile::KeysType>(
            value.getType()))
      return;
    int64_t rank = rankOf(value);
    kinds[value] = rank == 0   ? ValueKind::Scalar
                   : rank == 1 ? ValueKind::Row
                               : ValueKind::Square;
  };
  kernel.walk<WalkOrder::PreOrder>([&](Operation *op) {
    for (Region &region : op->getRegions())
      for (Block &block : region)
        for (Value argument : block.getArguments())
          classify(argument);
    for (Value result : op->getResults())
      classify(result);
  });
  kernel.walk([&](Operation *op) {
    if (auto broadcast = dyn_cast<tile::BroadcastOp>(op)) {
      if (!broadcast.getDims().empty() && broadcast.getDims()[0] == 1)
        markKeys(broadcast.getSource(), kinds);
    } else if (auto dot = dyn_cast<tile::DotOp>(op)) {
      markOperand(dot.getB(), kinds);
    }
  });
  return kinds;
}

static bool isElementwise(Operation *op) {
  return op->hasTrait<OpTrait::Elementwise>() &&
         isa<arith::ArithDialect, math::MathDialect>(op->getDialect());
}

namespace {

class Scheduler {
public:
  Scheduler(Block &block, const DenseMap<Value, ValueKind> &kinds)
      : block(block), kinds(kinds) {}

  FailureOr<Schedule> run() {
    for (Operation &op : block.without_terminator())
      if (failed(place(&op)))
        return failure();
    return std::move(schedule);
  }

private:
  LogicalResult place(Operation *op);
  LogicalResult placeElementwise(Operation *op);

  ValueKind kindOf(Value value) const { return kinds.lookup(value); }

  unsigned append(Step::Kind kind, Operation *anchor) {
    schedule.steps.push_back({kind, anchor, {}});
    if (anchor)
      for (Value result : anchor->getResults())
        schedule.stepOf[result] = schedule.steps.size() - 1;
    return schedule.steps.size() - 1;
  }
  void ride(unsigned step, Operation *op) {
    schedule.steps[step].ops.push_back(op);
    for (Value result : op->getResults())
      schedule.stepOf[result] = step;
  }

  /// True if a value is only ever wanted inside one later step, element by
  /// element: the accumulator of a product, or what a store writes.
  bool feedsAnchorOnly(Value value) const {
    if (!value.hasOneUse())
      return false;
    OpOperand &use = *value.getUses().begin();
    Operation *user = use.getOwner();
    if (user->getBlock() != &block)
      return false;
    if (auto dot = dyn_cast<tile::DotOp>(user))
      return use.get() == dot.getAcc() && use.get() != dot.getA();
    if (auto store = dyn_cast<tile::StoreOp>(user))
      return !store.getKeys();
    return isElementwise(user) && user->getNumResults() == 1 &&
           feedsAnchorOnly(user->getResult(0));
  }

  /// The number of columns of a step's tile.
  static int64_t columnsOf(const Step &step) {
    auto columns = [](Value value) {
      return cast<RankedTensorType>(value.getType()).getDimSize(1);
    };
    if (step.anchor)
      return columns(step.anchor->getResult(0));
    for (Operation *op : step.ops)
      if (rankOf(op->getResult(0)) == 2)
        return columns(op->getResult(0));
    return 0;
  }

  /// First step that could compute an op of these operands. A number a row is
  /// complete only after the step that computes it.
  unsigned earliest(Operation *op, bool square) const {
    unsigned step = barrier;
    auto visit = [&](Value value) {
      auto found = schedule.stepOf.find(value);
      if (found == schedule.stepOf.end())
        return;
      bool complete = square && kindOf(value) == ValueKind::Square;
      bool sameRows = !square && kindOf(value) == ValueKind::Row &&
                      schedule.steps[found->second].kind == Step::Rows;
      step = std::max(step, found->second + (complete || sameRows ? 0 : 1));
    };
    op->walk([&](Operation *nested) {
      if (nested != op)
        for (Value operand : nested->getOperands())
          visit(operand);
    });
    for (Value operand : op->getOperands()) {
      visit(operand);
      // Through what is evaluated in place.
      SmallVector<Value> stack{operand};
      while (!stack.empty()) {
        Value value = stack.pop_back_val();
        Operation *definer = value.getDefiningOp();
        if (!definer || definer->getBlock() != &block ||
            schedule.stepOf.contains(value))
          continue;
        for (Value inner : definer->getOperands()) {
          visit(inner);
          stack.push_back(inner);
        }
      }
    }
    return step;
  }

  Block &block;
  const DenseMap<Value, ValueKind> &kinds;
  Schedule schedule;
  unsigned barrier = 0; ///< first step behind the last tile.need
};

} // namespace

LogicalResult Scheduler::placeElementwise(Operation *op) {
  bool square = rankOf(op->getOperand(0)) == 2;
  unsigned first = earliest(op, square);
  unsigned count = schedule.steps.size();
  if (!square) {
    for (unsigned step = first; step < count; ++step)
      if (schedule.steps[step].kind == Step::Rows) {
        ride(step, op);
        return success();
      }
    ride(append(Step::Rows, nullptr), op);
    return success();
  }
  int64_t columns =
      cast<RankedTensorType>(op->getOperand(0).getType()).getDimSize(1);
  for (unsigned step = first; step < count; ++step) {
    Step::Kind kind = schedule.steps[step].kind;
    // A keyed load has two ways to its data; only the data itself is common.
    bool isKeyed = kind == Step::Pack &&
                   cast<tile::LoadOp>(schedule.steps[step].anchor).getKeys();
    if ((kind == Step::Dot || kind == Step::Map || kind == Step::Pack) &&
        !isKeyed && columnsOf(schedule.steps[step]) == columns) {
      ride(step, op);
      return success();
    }
  }
  ride(append(Step::Map, nullptr), op);
  return success();
}

LogicalResult Scheduler::place(Operation *op) {
  if (isa<tile::ForTilesOp>(op)) {
    append(Step::Loop, op);
    return success();
  }
  if (isa<tile::NeedOp>(op)) {
    barrier = append(Step::Need, op) + 1;
    return success();
  }
  if (isa<tile::DotOp>(op)) {
    append(Step::Dot, op);
    return success();
  }
  if (auto store = dyn_cast<tile::StoreOp>(op)) {
    if (store.getKeys()) {
      // Keys lie where the transposed tile has them: no step of its own.
      auto found = schedule.stepOf.find(store.getValue());
      if (found == schedule.stepOf.end())
        return op->emitOpError("stores a value that no loop computes");
      ride(found->second, op);
      return success();
    }
    schedule.steps.push_back({Step::Unpack, op, {}});
    return success();
  }
  if (isa<tile::PositionsOp>(op))
    return success();
  if (op->getNumResults() != 1)
    return op->emitOpError("is not known to the CPU lowering");
  Value result = op->getResult(0);
  ValueKind kind = kindOf(result);
  if (auto load = dyn_cast<tile::LoadOp>(op)) {
    if (kind == ValueKind::Square)
      append(Step::Pack, op);
    else if (kind == ValueKind::Row && load.getKeys())
      return op->emitOpError("gives one number a key where one a row is meant");
    else if (kind == ValueKind::Row)
      return placeElementwise(op);
    return success();
  }
  // Computed where they are used.
  if (isa<arith::ConstantOp, tile::BroadcastOp, tile::RowsOp>(op) &&
      kind != ValueKind::Scalar)
    return success();
  if (kind == ValueKind::Key || kind == ValueKind::Operand)
    return success();
  if (kind == ValueKind::Scalar) {
    schedule.scalars.push_back(op);
    return success();
  }
  if (isElementwise(op)) {
    if (kind == ValueKind::Square && feedsAnchorOnly(result))
      return success();
    return placeElementwise(op);
  }
  if (isa<tile::ReduceRowOp, tile::MaskOp>(op))
    return placeElementwise(op);
  return op->emitOpError("is not known to the CPU lowering");
}

FailureOr<Schedule>
prefill::scheduleBlock(Block &block, const DenseMap<Value, ValueKind> &kinds) {
  return Scheduler(block, kinds).run();
}
