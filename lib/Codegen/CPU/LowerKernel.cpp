//===- LowerKernel.cpp - Arguments, workspace and loops of a kernel -------===//

#include "KernelLowering.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "prefill/kernel_abi.h"
#include "llvm/ADT/ScopeExit.h"
#include <cstddef>

using namespace mlir;
using namespace prefill;

/// Flush subnormal results and read subnormal operands as zero, all exceptions
/// masked: a product with subnormal probabilities costs a hundred cycles each.
static constexpr int32_t kControlWord = 0x1f80 | 0x8040;

int64_t KernelLowering::allocate(int64_t bytes) {
  int64_t offset = used;
  used += (bytes + 63) / 64 * 64;
  return offset;
}

//===----------------------------------------------------------------------===//
// Arguments
//===----------------------------------------------------------------------===//

Value KernelLowering::field(size_t offset, Type type) {
  return e.load(type, e.at(arguments, int64_t(offset)));
}

#define ATTENTION(name) offsetof(prefill_tile_args, name)
#define SCORE(name) offsetof(prefill_score_args, name)

LogicalResult KernelLowering::bindArguments() {
  const bool isScore = kernel.getAbi() == "score";
  Type i64 = b.getI64Type();
  memory = field(isScore ? SCORE(workspace) : ATTENTION(workspace), e.ptr());
  rowCount = field(isScore ? SCORE(rows) : ATTENTION(rows), i64);
  auto bytes = [&](size_t offset, Type element) {
    return e.mul(field(offset, i64), element.getIntOrFloatBitWidth() / 8);
  };
  auto packed = [&](BoundView &view, size_t offset, tile::ViewType type) {
    view.packed = field(offset, e.ptr());
    view.packedBytes =
        type.getShape()[1] * type.getElementType().getIntOrFloatBitWidth() / 8;
  };
  for (BlockArgument argument : kernel.getBody().getArguments()) {
    StringRef name = kernel.getArgAttrOfType<StringAttr>(
        argument.getArgNumber(), tile::kFieldAttr);
    Type type = argument.getType();
    auto unknown = [&] {
      return kernel.emitOpError("argument ")
             << argument.getArgNumber() << ": no field '" << name
             << "' of type " << type << " in the " << kernel.getAbi()
             << " block";
    };
    if (auto viewType = dyn_cast<tile::ViewType>(type)) {
      BoundView view;
      Type element = view.element = viewType.getElementType();
      struct Matrix {
        StringRef name;
        size_t base, stride;
        bool keyed;
      };
      const Matrix attention[] = {
          {"q", ATTENTION(q), ATTENTION(q_stride), false},
          {"k", ATTENTION(k), ATTENTION(k_stride), true},
          {"v", ATTENTION(v), ATTENTION(v_stride), true},
          {"o", ATTENTION(o), ATTENTION(o_stride), false}};
      const Matrix score[] = {{"q", SCORE(q), SCORE(q_stride), false},
                              {"k", SCORE(k), SCORE(k_stride), true}};
      ArrayRef<Matrix> matrices =
          isScore ? ArrayRef<Matrix>(score) : ArrayRef<Matrix>(attention);
      const auto *matrix = llvm::find_if(
          matrices, [&](const Matrix &m) { return m.name == name; });
      if (matrix != matrices.end() && viewType.getRank() == 2) {
        view.base = field(matrix->base, e.ptr());
        view.rowBytes = bytes(matrix->stride, element);
        if (!matrix->keyed)
          view.rows = rowCount;
        else if (!isScore)
          packed(view, name == "k" ? ATTENTION(col_k) : ATTENTION(col_v),
                 viewType);
      } else if (isScore && name == "out" && element.isF32() &&
                 viewType.getRank() == 2) {
        view.base = field(SCORE(out), e.ptr());
        view.rowBytes = e.integer(4);
        view.keyBytes = e.integer(viewType.getShape()[0] * 4);
      } else if (!isScore && name == "bias" && element.isF32() &&
                 viewType.getRank() == 2) {
        view.base = field(ATTENTION(bias), e.ptr());
        view.rowBytes = bytes(ATTENTION(bias_row_stride), element);
        view.keyBytes = bytes(ATTENTION(bias_key_stride), element);
        view.rows = rowCount;
      } else if (!isScore && name == "lse" && element.isF32() &&
                 viewType.getRank() == 1) {
        view.base = field(ATTENTION(lse), e.ptr());
        view.rows = rowCount;
        view.nullable = true;
      } else if (!isScore && name == "key_mask" && element.isInteger(8) &&
                 viewType.getRank() == 1) {
        view.base = field(ATTENTION(key_mask), e.ptr());
      } else if (!isScore && name == "k_segment" && element.isInteger(32) &&
                 viewType.getRank() == 1) {
        view.base = field(ATTENTION(k_segment), e.ptr());
      } else if (!isScore && name == "q_segment" && element.isInteger(32) &&
                 viewType.getRank() == 1) {
        view.base = field(ATTENTION(q_segment), e.ptr());
        view.rows = rowCount;
      } else {
        return unknown();
      }
      views[argument] = view;
    } else if (isa<tile::KeyIndexType>(type)) {
      if (isScore && name == "range") {
        keyBegin = field(SCORE(key_begin), i64);
        keyEnd = field(SCORE(key_end), i64);
      } else if (!isScore && name == "keys") {
        blocks = field(ATTENTION(blocks), e.ptr());
        blockCount = field(ATTENTION(block_count), i64);
        fullCount = field(ATTENTION(full_count), i64);
        columnCount = field(ATTENTION(col_count), i64);
        columnPositions = field(ATTENTION(col_pos), e.ptr());
        keyEnd = field(ATTENTION(kv_len), i64);
      } else {
        return unknown();
      }
    } else {
      struct Number {
        StringRef name;
        size_t offset;
        bool isFloat;
      };
      const Number attention[] = {
          {"scale", ATTENTION(scale), true},
          {"softcap", ATTENTION(softcap), true},
          {"sink", ATTENTION(sink), true},
          {"skip", ATTENTION(skip), true},
          {"rows", ATTENTION(rows), false},
          {"position", ATTENTION(position), false},
          {"window_left", ATTENTION(window_left), false},
          {"window_right", ATTENTION(window_right), false}};
      const Number score[] = {{"scale", SCORE(scale), true}};
      ArrayRef<Number> numbers =
          isScore ? ArrayRef<Number>(score) : ArrayRef<Number>(attention);
      const auto *number = llvm::find_if(
          numbers, [&](const Number &n) { return n.name == name; });
      if (number == numbers.end() ||
          !(number->isFloat ? type.isF32() : type.isInteger(64)))
        return unknown();
      scalars[argument] = field(number->offset, type);
    }
  }
  return success();
}

//===----------------------------------------------------------------------===//
// Workspace
//===----------------------------------------------------------------------===//

void KernelLowering::assignSlots(Block &block, const Schedule &schedule) {
  const unsigned end = schedule.steps.size();
  DenseMap<Operation *, unsigned> stepOfOp;
  for (auto [number, step] : llvm::enumerate(schedule.steps)) {
    if (step.anchor)
      stepOfOp[step.anchor] = number;
    for (Operation *op : step.ops)
      stepOfOp[op] = number;
  }
  // Last step that reads a value, through ops that are evaluated in place; and
  // whether that step reads it other than element by element.
  struct Use {
    unsigned last = 0;
    bool whole = false, any = false;
  };
  std::function<void(Value, Use &)> collect = [&](Value value, Use &use) {
    for (OpOperand &operand : value.getUses()) {
      Operation *user = block.findAncestorOpInBlock(*operand.getOwner());
      if (!user)
        continue;
      unsigned step = end;
      bool whole = false;
      if (user == block.getTerminator()) {
        whole = true;
      } else if (auto found = stepOfOp.find(user); found != stepOfOp.end()) {
        step = found->second;
        auto dot = dyn_cast<tile::DotOp>(user);
        whole =
            isa<tile::ForTilesOp>(user) || (dot && dot.getA() == operand.get());
      } else {
        for (Value result : user->getResults())
          collect(result, use);
        continue;
      }
      if (!use.any || step > use.last) {
        use.last = step;
        use.whole = whole;
      } else if (step == use.last) {
        use.whole |= whole;
      }
      use.any = true;
    }
  };
  struct Free {
    int64_t slot, columns;
    unsigned from;    ///< first step that may write it
    bool elementwise; ///< its last reader reads it element by element
  };
  SmallVector<Free> free;
  for (unsigned number = 0; number < end; ++number) {
    const Step &step = schedule.steps[number];
    SmallVector<Value> results;
    if (step.anchor && step.kind != Step::Loop)
      llvm::append_range(results, step.anchor->getResults());
    for (Operation *op : step.ops)
      llvm::append_range(results, op->getResults());
    for (Value value : results) {
      Use use;
      collect(value, use);
      if (!use.any || (use.last == number && !use.whole &&
                       kinds.lookup(value) == ValueKind::Square))
        continue;
      if (kinds.lookup(value) == ValueKind::Row) {
        bool within = use.last == number && step.kind == Step::Rows;
        if (!within)
          slots[value] = allocate(queryRows * 4);
        continue;
      }
      int64_t columns = tileType(value).getDimSize(1);
      // A product that continues a carried tile writes where it reads.
      auto yield = dyn_cast<tile::YieldOp>(block.getTerminator());
      if (yield && value.hasOneUse() &&
          value.getUses().begin()->getOwner() == yield.getOperation()) {
        auto loop = cast<tile::ForTilesOp>(block.getParentOp());
        unsigned carried = value.getUses().begin()->getOperandNumber();
        Use before;
        collect(loop.getIterArgs()[carried], before);
        if (before.last <= number && !before.whole) {
          slots[value] = slots.lookup(loop.getIterArgs()[carried]);
          continue;
        }
      }
      auto *reuse = llvm::find_if(free, [&](const Free &f) {
        return f.columns == columns &&
               (f.from < number || (f.from == number && f.elementwise));
      });
      if (reuse != free.end()) {
        slots[value] = reuse->slot;
        free.erase(reuse);
      } else {
        slots[value] = allocate(queryRows * columns * 4);
      }
      if (use.last < end)
        free.push_back({slots[value], columns, use.last, !use.whole});
    }
  }
}

void KernelLowering::copySlot(Value from, Value to) {
  if (slots.contains(from) && slots.lookup(from) == slots.lookup(to))
    return;
  int64_t columns =
      tileType(to).getRank() == 2 ? tileType(to).getDimSize(1) : 1;
  int64_t target = slots.lookup(to);
  bool isRow = kinds.lookup(to) == ValueKind::Row;
  forLanes(1, [&](Value lane) {
    auto copyRow = [&](Value row) {
      Value vector;
      if (isRow) {
        auto vectors = rowVectors(from, lane, 1);
        if (failed(vectors))
          return;
        vector = (*vectors)[0];
      } else {
        Piece piece(row, 1, lane, 1);
        auto vectors = square(from, piece);
        if (failed(vectors))
          return;
        vector = (*vectors)[0];
      }
      e.store(vector, slotAddress(target, row, lane), 4);
    };
    if (columns == 1)
      return copyRow(e.integer(0));
    auto loop = scf::ForOp::create(b, loc, e.integer(0), e.integer(columns),
                                   e.integer(1));
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToStart(loop.getBody());
    copyRow(loop.getInductionVar());
  });
}

//===----------------------------------------------------------------------===//
// Structure
//===----------------------------------------------------------------------===//

LogicalResult KernelLowering::lowerBlock(Block &block) {
  FailureOr<Schedule> schedule = scheduleBlock(block, kinds);
  if (failed(schedule))
    return failure();
  for (Operation *op : schedule->scalars) {
    IRMapping mapping;
    for (Value operand : op->getOperands())
      mapping.map(operand, scalar(operand));
    Operation *copy = b.clone(*op, mapping);
    for (auto [from, to] : llvm::zip(op->getResults(), copy->getResults()))
      scalars[from] = to;
  }
  assignSlots(block, *schedule);
  // Rows of a tile are read in an order that hides the stream from the
  // hardware.
  for (const Step &step : schedule->steps)
    if (step.kind == Step::Pack)
      if (auto load = cast<tile::LoadOp>(step.anchor); !load.getKeys())
        prefetchRows(views.lookup(load.getView()), load.getResult());
  for (const Step &step : schedule->steps)
    if (failed(lowerStep(step)))
      return failure();
  return success();
}

void KernelLowering::prefetchRows(const BoundView &view, Value tile) {
  RankedTensorType type = tileType(tile);
  if (type.getRank() != 2 || !view.rowBytes || !view.rows)
    return;
  const int64_t bytes =
      type.getDimSize(1) * view.element.getIntOrFloatBitWidth() / 8;
  auto loop = scf::ForOp::create(b, loc, e.integer(0), view.rows, e.integer(1));
  OpBuilder::InsertionGuard guard(b);
  b.setInsertionPointToStart(loop.getBody());
  e.prefetch(
      e.at(view.base, arith::MulIOp::create(b, loc, loop.getInductionVar(),
                                            view.rowBytes)),
      bytes);
}

LogicalResult KernelLowering::lowerLoop(tile::ForTilesOp loop) {
  const int64_t size = loop.getIndex().getType().getSize();
  for (auto [init, argument, result] :
       llvm::zip(loop.getInits(), loop.getIterArgs(), loop.getResults())) {
    RankedTensorType type = tileType(argument);
    if (!type.getElementType().isF32())
      return loop.emitOpError("carries something else than fp32 tiles");
    int64_t columns = type.getRank() == 2 ? type.getDimSize(1) : 1;
    slots[argument] = slots[result] = allocate(queryRows * columns * 4);
    copySlot(init, argument);
  }
  // Results lie in memory that was not touched lately; it comes into the cache
  // while they are computed.
  for (auto store : kernel.getBody().getOps<tile::StoreOp>())
    prefetchRows(views.lookup(store.getView()), store.getValue());
  auto ceilDiv = [&](Value x) {
    return arith::ShRUIOp::create(b, loc, e.add(x, size - 1),
                                  e.integer(llvm::Log2_64(uint64_t(size))))
        .getResult();
  };
  if (!llvm::isPowerOf2_64(uint64_t(size)))
    return loop.emitOpError("tiles of an index hold a power of two of keys");
  Value count;
  if (keyBegin) {
    count = arith::SubIOp::create(b, loc, keyEnd, keyBegin);
    count = arith::MaxSIOp::create(b, loc, count, e.integer(0));
    count = ceilDiv(count);
  } else {
    count = e.add(blockCount, ceilDiv(columnCount));
  }
  auto rounds = scf::ForOp::create(b, loc, e.integer(0), count, e.integer(1));
  OpBuilder::InsertionGuard guard(b);
  b.setInsertionPointToStart(rounds.getBody());
  Value round = rounds.getInductionVar();
  KeyTile saved = keyTile;
  auto restore = llvm::scope_exit([&] { keyTile = saved; });
  if (keyBegin) {
    keyTile.isBlock = Value();
    keyTile.first = e.add(keyBegin, e.mul(round, size));
    keyTile.next = e.add(keyTile.first, size);
  } else {
    keyTile.isBlock = e.less(round, blockCount);
    Type i64 = b.getI64Type();
    auto first = scf::IfOp::create(b, loc, TypeRange{i64, i64}, keyTile.isBlock,
                                   /*withElse=*/true);
    {
      OpBuilder::InsertionGuard inIf(b);
      b.setInsertionPointToStart(first.thenBlock());
      auto firstKey = [&](Value number) -> Value {
        Value id = e.load(b.getI32Type(), e.at(blocks, e.mul(number, 4)));
        return e.mul(arith::ExtUIOp::create(b, loc, i64, id), size);
      };
      Value next = arith::MinSIOp::create(b, loc, e.add(round, 1),
                                          e.add(blockCount, -1));
      scf::YieldOp::create(b, loc, {firstKey(round), firstKey(next)});
      b.setInsertionPointToStart(first.elseBlock());
      Value column = arith::SubIOp::create(b, loc, round, blockCount);
      column = e.mul(column, size);
      scf::YieldOp::create(b, loc, {column, column});
    }
    keyTile.first = first.getResult(0);
    keyTile.next = first.getResult(1);
    keyTile.masked = arith::CmpIOp::create(b, loc, arith::CmpIPredicate::sge,
                                           round, fullCount);
    // Columns may be skipped or invisible one by one.
    Value isColumn = arith::XOrIOp::create(
        b, loc, keyTile.isBlock,
        arith::ConstantOp::create(b, loc, b.getBoolAttr(true)));
    keyTile.masked = arith::OrIOp::create(b, loc, keyTile.masked, isColumn);
  }
  Value end =
      keyBegin ? keyEnd : e.select(keyTile.isBlock, keyEnd, columnCount);
  keyTile.live = arith::MinSIOp::create(
      b, loc, arith::SubIOp::create(b, loc, end, keyTile.first),
      e.integer(size));
  if (findBounds(loop)) {
    const int64_t vectors = groupVectors(target.trimVectors);
    if (vectors == groupVectors(target.tileVectors)) {
      keyTile.isRanged = true;
    } else {
      const int64_t rows = vectors * target.lanes;
      Value end = keyRange(e.integer(0), rows).end;
      Value begin = keyRange(e.integer(queryRows - rows), rows).begin;
      keyTile.trims = arith::OrIOp::create(b, loc, e.less(end, e.integer(size)),
                                           e.less(e.integer(0), begin));
    }
  }
  if (needsPositions) {
    // Rounds in which no key exists, such as columns that are all in blocks.
    auto any = scf::IfOp::create(b, loc, TypeRange{}, emitPositions(),
                                 /*withElse=*/false);
    b.setInsertionPointToStart(any.thenBlock());
  }
  if (failed(lowerBlock(loop.getBody().front())))
    return failure();
  auto yield = cast<tile::YieldOp>(loop.getYield());
  for (auto [value, argument] :
       llvm::zip(yield.getValues(), loop.getIterArgs())) {
    // Copied one after the other, so a value must not already be overwritten.
    if (value != argument && llvm::is_contained(loop.getIterArgs(), value))
      return yield.emitOpError("permutes carried values");
    copySlot(value, argument);
  }
  return success();
}

/// Whether what a mask hides in `value` has no effect on anything but the
/// tiles that are computed from it: it is -inf there, or 0, and what reduces
/// over keys can as well leave it out. Numbers a row are taken to be finite.
static bool vanishes(Value value, bool isZero) {
  return llvm::all_of(value.getUses(), [&](OpOperand &use) {
    Operation *user = use.getOwner();
    if (auto reduce = dyn_cast<tile::ReduceRowOp>(user))
      return (reduce.getKind() == tile::ReduceKind::Sum) == isZero;
    if (auto dot = dyn_cast<tile::DotOp>(user))
      return isZero && use.getOperandNumber() == 0;
    if (isZero)
      return false;
    if (isa<math::Exp2Op>(user))
      return vanishes(user->getResult(0), true);
    if (isa<arith::SubFOp>(user)) {
      auto row = user->getOperand(1).getDefiningOp<tile::BroadcastOp>();
      return use.getOperandNumber() == 0 && row &&
             llvm::equal(row.getDims(), ArrayRef<int64_t>{0}) &&
             vanishes(user->getResult(0), false);
    }
    if (isa<arith::MulFOp>(user)) {
      auto factor = user->getOperand(1).getDefiningOp<arith::ConstantOp>();
      auto splat =
          factor ? dyn_cast<SplatElementsAttr>(factor.getValue()) : nullptr;
      return splat && splat.getSplatValue<APFloat>().isFiniteNonZero() &&
             !splat.getSplatValue<APFloat>().isNegative() &&
             vanishes(user->getResult(0), false);
    }
    return false;
  });
}

/// The number of row 0 where a tile holds one number a row that grows by 1.
static Value rowZero(Value tile) {
  auto alongRows = tile.getDefiningOp<tile::BroadcastOp>();
  if (!alongRows || !llvm::equal(alongRows.getDims(), ArrayRef<int64_t>{0}))
    return {};
  auto sum = alongRows.getSource().getDefiningOp<arith::AddIOp>();
  if (!sum || !sum.getLhs().getDefiningOp<tile::RowsOp>())
    return {};
  auto start = sum.getRhs().getDefiningOp<tile::BroadcastOp>();
  return start && start.getDims().empty() ? start.getSource() : Value();
}

bool KernelLowering::findBounds(tile::ForTilesOp loop) {
  highest = lowest = Value();
  auto masks = loop.getBody().front().getOps<tile::MaskOp>();
  if (!llvm::hasSingleElement(masks) || keyBegin)
    return false;
  tile::MaskOp mask = *masks.begin();
  if (!vanishes(mask.getResult(), false))
    return false;
  SmallVector<Value> conditions{
      mask.getPredicate().front().getTerminator()->getOperand(0)};
  while (!conditions.empty()) {
    Operation *op = conditions.pop_back_val().getDefiningOp();
    if (isa_and_nonnull<arith::AndIOp>(op))
      llvm::append_range(conditions, op->getOperands());
    auto compare = dyn_cast_or_null<arith::CmpIOp>(op);
    if (!compare)
      continue;
    auto key = compare.getLhs().getDefiningOp<tile::BroadcastOp>();
    Value start = rowZero(compare.getRhs());
    if (!start || !scalar(start) || !key ||
        !key.getSource().getDefiningOp<tile::PositionsOp>())
      continue;
    if (compare.getPredicate() == arith::CmpIPredicate::sle)
      highest = scalar(start);
    else if (compare.getPredicate() == arith::CmpIPredicate::sge)
      lowest = scalar(start);
  }
  return true;
}

KeyRange KernelLowering::keyRange(Value lane, int64_t rows) {
  // Columns lie in any order.
  auto clamp = [&](Value bound, int64_t more, Value ofColumns) {
    bound = arith::ExtSIOp::create(b, loc, b.getI64Type(), bound);
    Value key = arith::SubIOp::create(b, loc, e.add(e.add(bound, lane), more),
                                      keyTile.first);
    key = arith::MaxSIOp::create(b, loc, key, e.integer(0));
    key = arith::MinSIOp::create(b, loc, key, keyTile.live);
    return e.select(keyTile.isBlock, key, ofColumns);
  };
  KeyRange range{e.integer(0), keyTile.live};
  if (lowest)
    range.begin = clamp(lowest, 0, range.begin);
  if (highest)
    range.end = clamp(highest, rows, range.end);
  return range;
}

Value KernelLowering::sharedEnd(Value lane, int64_t vectors) {
  if (!keyTile.isMasked || !highest || vectors < 2)
    return {};
  return keyRange(lane, (vectors - 1) * target.lanes).end;
}

/// Writes the numbers of the round's keys, INT32_MAX where dead, and tells
/// whether there is any. Rounds that mask nothing need the numbers only for a
/// bias that is read key by key.
Value KernelLowering::emitPositions() {
  OpBuilder::InsertionGuard outside(b);
  Type i1 = b.getI1Type(), i32 = b.getI32Type();
  Value dead = arith::ConstantOp::create(
      b, loc, b.getI32IntegerAttr(std::numeric_limits<int32_t>::max()));
  scf::IfOp branch;
  if (!positionsAlways) {
    branch = scf::IfOp::create(b, loc, TypeRange{i1}, keyTile.masked,
                               /*withElse=*/true);
    b.setInsertionPointToStart(branch.elseBlock());
    Value yes = arith::ConstantOp::create(b, loc, b.getBoolAttr(true));
    scf::YieldOp::create(b, loc, yes);
    b.setInsertionPointToStart(branch.thenBlock());
  }
  auto loop = scf::ForOp::create(b, loc, e.integer(0), e.integer(keyTileSize),
                                 e.integer(1), ValueRange{dead});
  {
    OpBuilder::InsertionGuard inLoop(b);
    b.setInsertionPointToStart(loop.getBody());
    Value key = loop.getInductionVar();
    auto position = scf::IfOp::create(b, loc, TypeRange{i32}, keyTile.isBlock,
                                      /*withElse=*/true);
    {
      OpBuilder::InsertionGuard inIf(b);
      b.setInsertionPointToStart(position.thenBlock());
      Value number =
          arith::TruncIOp::create(b, loc, i32, e.add(keyTile.first, key));
      scf::YieldOp::create(b, loc,
                           e.select(e.less(key, keyTile.live), number, dead));
      b.setInsertionPointToStart(position.elseBlock());
      Value column = e.mul(e.add(keyTile.first, key), 4);
      scf::YieldOp::create(b, loc, e.load(i32, e.at(columnPositions, column)));
    }
    Value number = position.getResult(0);
    e.store(number, e.at(workspace(positionSlot), e.mul(key, 4)));
    Value least =
        arith::MinSIOp::create(b, loc, loop.getRegionIterArgs()[0], number);
    scf::YieldOp::create(b, loc, least);
  }
  Value any = arith::CmpIOp::create(b, loc, arith::CmpIPredicate::ne,
                                    loop.getResult(0), dead);
  if (!branch)
    return any;
  scf::YieldOp::create(b, loc, any);
  return branch.getResult(0);
}

LogicalResult KernelLowering::run() {
  b.setInsertionPoint(kernel);
  auto function = func::FuncOp::create(b, loc, kernel.getName(),
                                       b.getFunctionType({e.ptr()}, {}));
  auto dropOnFailure = llvm::scope_exit([&] { function.erase(); });
  b.setInsertionPointToStart(function.addEntryBlock());
  arguments = function.getArgument(0);
  kinds = classifyValues(kernel);

  // Every tile of the kernel's arithmetic has the same rows.
  LogicalResult status = success();
  int64_t trash = 0, operand = 0;
  kernel.walk([&](Operation *op) {
    for (Value value : op->getResults()) {
      ValueKind kind = kinds.lookup(value);
      auto type = dyn_cast<RankedTensorType>(value.getType());
      if (!type || (kind != ValueKind::Square && kind != ValueKind::Row))
        continue;
      if (queryRows == 0)
        queryRows = type.getDimSize(0);
      if (type.getDimSize(0) != queryRows)
        status = op->emitOpError("has ")
                 << type.getDimSize(0) << " rows where others have "
                 << queryRows;
      trash = std::max(trash, type.getRank() == 2 ? type.getDimSize(1) : 1);
    }
    if (auto dot = dyn_cast<tile::DotOp>(op)) {
      Value memory = dot.getB();
      if (auto widen = memory.getDefiningOp<arith::ExtFOp>())
        memory = widen.getIn();
      auto type = tileType(memory);
      // Converted to fp32, or copied without dead columns.
      if (!type.getElementType().isF32() ||
          (!dot.getTransposeB() && kernel.getAbi() == "attention"))
        operand = std::max(operand, type.getNumElements() * 4);
    }
    if (auto mask = dyn_cast<tile::MaskOp>(op))
      keyTileSize = mask.getKeys().getType().getSize();
    // Columns may be dead one by one.
    if (auto loop = dyn_cast<tile::ForTilesOp>(op);
        loop && kernel.getAbi() == "attention")
      keyTileSize = loop.getIndex().getType().getSize();
    if (auto load = dyn_cast<tile::LoadOp>(op))
      if (load.getKeys() && kinds.lookup(load) == ValueKind::Square) {
        keyTileSize = load.getKeys().getType().getSize();
        positionsAlways = true;
      }
  });
  if (failed(status))
    return failure();
  if (queryRows == 0 || queryRows % 16 != 0)
    return kernel.emitOpError("needs tiles of a multiple of 16 rows");
  trashSlot = allocate(std::max(trash, queryRows) * 4);
  operandSlot = allocate(operand);
  needsPositions = keyTileSize != 0;
  if (needsPositions)
    positionSlot = allocate(keyTileSize * 4);
  int64_t controlSlot = allocate(8);
  if (failed(bindArguments()))
    return failure();
  if (needsPositions && keyBegin)
    return kernel.emitOpError("masks keys of a plain range");

  // Rows that do not exist read as zero.
  auto module = kernel->getParentOfType<ModuleOp>();
  auto zeroType = LLVM::LLVMArrayType::get(b.getI8Type(), 4 * 1024);
  constexpr StringLiteral zeroName = "prefill_tile_zeros";
  if (!module.lookupSymbol(zeroName)) {
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToStart(module.getBody());
    auto global = LLVM::GlobalOp::create(b, loc, zeroType, /*isConstant=*/true,
                                         LLVM::Linkage::Internal, zeroName,
                                         Attribute(), /*alignment=*/64);
    Block *init = b.createBlock(&global.getInitializerRegion());
    b.setInsertionPointToStart(init);
    LLVM::ReturnOp::create(b, loc,
                           LLVM::ZeroOp::create(b, loc, zeroType).getResult());
  }
  zeros = LLVM::AddressOfOp::create(b, loc, e.ptr(), zeroName);

  auto control = [&](StringRef intrinsic, Value address) {
    LLVM::CallIntrinsicOp::create(b, loc, b.getStringAttr(intrinsic),
                                  ValueRange{address});
  };
  Value before = workspace(controlSlot), during = workspace(controlSlot + 4);
  control("llvm.x86.sse.stmxcsr", before);
  e.store(arith::ConstantOp::create(b, loc, b.getI32IntegerAttr(kControlWord)),
          during);
  control("llvm.x86.sse.ldmxcsr", during);
  if (failed(lowerBlock(kernel.getBody().front())))
    return failure();
  control("llvm.x86.sse.ldmxcsr", before);
  func::ReturnOp::create(b, loc);
  function->setAttr(kWorkspaceAttr, b.getI64IntegerAttr(used));
  dropOnFailure.release();
  kernel.erase();
  return success();
}

//===----------------------------------------------------------------------===//
// Numbers a row
//===----------------------------------------------------------------------===//

void KernelLowering::lowerRowLoad(tile::LoadOp load) {
  // Only rows that exist are read; the others are zero.
  const BoundView &view = views[load.getView()];
  int64_t slot = slots.lookup(load.getResult());
  Type element = view.element;
  forLanes(1, [&](Value lane) {
    Value zero =
        arith::ConstantOp::create(b, loc, b.getZeroAttr(e.vector(element)));
    e.store(zero, slotAddress(slot, e.integer(0), lane), 4);
  });
  auto loop = scf::ForOp::create(b, loc, e.integer(0), rowCount, e.integer(1));
  OpBuilder::InsertionGuard guard(b);
  b.setInsertionPointToStart(loop.getBody());
  Value offset = e.mul(loop.getInductionVar(), 4);
  e.store(e.load(element, e.at(view.base, offset)),
          e.at(workspace(slot), offset));
}

LogicalResult KernelLowering::lowerRows(const Step &step) {
  LogicalResult status = success();
  SmallVector<Operation *> ops;
  for (Operation *op : step.ops) {
    if (auto load = dyn_cast<tile::LoadOp>(op)) {
      if (tileType(load).getElementTypeBitWidth() != 32)
        return op->emitOpError("loads one number of other than 32 bits a row");
      if (slots.contains(load))
        lowerRowLoad(load);
    } else {
      ops.push_back(op);
    }
  }
  if (ops.empty())
    return success();
  forLanes(1, [&](Value lane) {
    RowCache saved = rowCache;
    for (Operation *op : ops) {
      SmallVector<Value> operands;
      for (Value operand : op->getOperands()) {
        FailureOr<Vectors> vectors = rowVectors(operand, lane, 1);
        if (failed(vectors)) {
          status = failure();
          return;
        }
        // A carried value may be overwritten below.
        rowCache[operand] = *vectors;
        operands.push_back((*vectors)[0]);
      }
      FailureOr<Value> result = elementwise(op, operands);
      if (failed(result)) {
        status = failure();
        return;
      }
      rowCache[op->getResult(0)] = {*result};
      auto slot = slots.find(op->getResult(0));
      if (slot == slots.end())
        continue;
      if (tileType(op->getResult(0)).getElementTypeBitWidth() != 32) {
        status = op->emitOpError("is used by a later loop and not of 32 bits");
        return;
      }
      e.store(*result, slotAddress(slot->second, e.integer(0), lane), 4);
    }
    rowCache = std::move(saved);
  });
  return status;
}

LogicalResult prefill::lowerKernelToCpu(tile::KernelOp kernel,
                                        const CpuTarget &target) {
  return KernelLowering(kernel, target).run();
}
