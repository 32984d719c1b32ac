//===- LowerProducts.cpp - Matrix products of tiles -----------------------===//
//
// A product's piece is a square of accumulators in registers: rows of keys or
// head dimensions by vectors of query rows. Its second operand is read where it
// lies, or from a copy as fp32 where its type or its gathered rows ask for one;
// what the next round reads is asked for on the way.
//
//===----------------------------------------------------------------------===//

#include "KernelLowering.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"

using namespace mlir;
using namespace prefill;

void KernelLowering::copyOperand(Type element, int64_t width, Value base,
                                 Value stride, bool clearDead) {
  auto rows =
      scf::ForOp::create(b, loc, e.integer(0), keyTile.live, e.integer(1));
  OpBuilder::InsertionGuard guard(b);
  b.setInsertionPointToStart(rows.getBody());
  Value row = rows.getInductionVar();
  Value keep;
  if (clearDead) {
    Value position =
        e.load(b.getI32Type(), e.at(workspace(positionSlot), e.mul(row, 4)));
    Value dead = arith::ConstantOp::create(
        b, loc, b.getI32IntegerAttr(std::numeric_limits<int32_t>::max()));
    keep =
        arith::CmpIOp::create(b, loc, arith::CmpIPredicate::ne, position, dead);
    // Keys of a block exist up to `live`; their numbers may not be written.
    keep = arith::OrIOp::create(b, loc, keep, keyTile.isBlock);
  }
  int64_t bytes = element.getIntOrFloatBitWidth() / 8;
  Value from = e.at(base, arith::MulIOp::create(b, loc, row, stride));
  if (clearDead)
    from = e.select(keep, from, zeros);
  Value to = e.at(workspace(operandSlot), e.mul(row, width * 4));
  for (int64_t column = 0; column < width;) {
    int64_t count = std::min<int64_t>(
        target.lanes, int64_t(1) << llvm::Log2_64(uint64_t(width - column)));
    e.store(e.loadFloats(element, e.at(from, column * bytes), count),
            e.at(to, column * 4));
    column += count;
  }
}

FailureOr<std::pair<Value, Value>>
KernelLowering::productOperand(tile::DotOp dot) {
  Operation *definer = dot.getB().getDefiningOp();
  if (auto widen = dyn_cast_or_null<arith::ExtFOp>(definer))
    definer = widen.getIn().getDefiningOp();
  auto load = dyn_cast_or_null<tile::LoadOp>(definer);
  if (!load || !load.getKeys() || !views[load.getView()].rowBytes)
    return dot.emitOpError("needs rows of keys as its second operand");
  const BoundView &view = views[load.getView()];
  int64_t width = tileType(load).getDimSize(1);
  Value stride = view.rowBytes;
  Value base =
      e.at(view.base, arith::MulIOp::create(b, loc, keyTile.first, stride));
  if (view.packed) {
    Value packed = e.at(view.packed, e.mul(keyTile.first, view.packedBytes));
    base = e.select(keyTile.isBlock, base, packed);
    stride = e.select(keyTile.isBlock, stride, e.integer(view.packedBytes));
  }
  // What dead columns hold may be anything, even NaN, and a product over keys
  // would multiply it by 0.
  const bool clearDead = view.packed && !dot.getTransposeB();
  Value buffer = workspace(operandSlot), packedStride = e.integer(width * 4);
  if (!view.element.isF32()) {
    copyOperand(view.element, width, base, stride, clearDead);
    return std::make_pair(buffer, packedStride);
  }
  if (!clearDead)
    return std::make_pair(base, stride);
  auto branch = scf::IfOp::create(b, loc, TypeRange{e.ptr(), b.getI64Type()},
                                  keyTile.isBlock, /*withElse=*/true);
  OpBuilder::InsertionGuard guard(b);
  b.setInsertionPointToStart(branch.thenBlock());
  scf::YieldOp::create(b, loc, ValueRange{base, stride});
  b.setInsertionPointToStart(branch.elseBlock());
  copyOperand(view.element, width, base, stride, clearDead);
  scf::YieldOp::create(b, loc, ValueRange{buffer, packedStride});
  return std::make_pair(branch.getResult(0), branch.getResult(1));
}

void KernelLowering::prefetchNext(const Piece &piece, Value round,
                                  int64_t rounds) {
  // Rows of keys.
  SmallVector<BoundView> keyed;
  SmallVector<int64_t> widths;
  for (BlockArgument argument : kernel.getBody().getArguments()) {
    BoundView view = views.lookup(argument);
    if (!view.rowBytes || view.rows || view.keyBytes)
      continue;
    keyed.push_back(view);
    widths.push_back(cast<tile::ViewType>(argument.getType()).getShape()[1] *
                     view.element.getIntOrFloatBitWidth() / 8);
  }
  const Value first = e.add(keyTile.next, piece.row);
  auto rowAddress = [&](const BoundView &view, Value key) {
    return e.at(view.base, arith::MulIOp::create(b, loc, key, view.rowBytes));
  };
  if (!round) {
    // Each group of query rows asks for its part of the lines.
    const int64_t rows = piece.vectors * target.lanes;
    Value group = arith::DivUIOp::create(b, loc, piece.lane, e.integer(rows));
    for (auto [view, width] : llvm::zip(keyed, widths)) {
      const auto part =
          int64_t(llvm::alignTo(llvm::divideCeil(width, queryRows / rows), 64));
      Value address = e.at(rowAddress(view, first), e.mul(group, part));
      for (int64_t r = 0; r < piece.rows; ++r) {
        e.prefetch(address, part);
        address = e.at(address, view.rowBytes);
      }
    }
    return;
  }
  // One line a round, one view after the other: more of them at a time than the
  // processor can wait for would hold up the product.
  Value address;
  for (auto [number, view] : llvm::enumerate(keyed)) {
    Value start = e.integer(int64_t(number) * rounds / int64_t(keyed.size()));
    Value index = arith::SubIOp::create(b, loc, round, start);
    Value lines = e.integer(int64_t(llvm::divideCeil(widths[number], 64)));
    Value row = arith::DivUIOp::create(b, loc, index, lines);
    Value line = arith::RemUIOp::create(b, loc, index, lines);
    Value here = e.at(rowAddress(view, e.add(first, row)), e.mul(line, 64));
    address = address ? e.select(e.less(round, start), address, here) : here;
  }
  if (address)
    e.prefetch(address, 1);
}

Value KernelLowering::isUnsound(Value base, Value stride, int64_t width) {
  auto branch = scf::IfOp::create(b, loc, TypeRange{b.getI1Type()},
                                  keyTile.masked, /*withElse=*/true);
  OpBuilder::InsertionGuard guard(b);
  b.setInsertionPointToStart(branch.elseBlock());
  scf::YieldOp::create(
      b, loc,
      arith::ConstantOp::create(b, loc, b.getBoolAttr(false)).getResult());
  b.setInsertionPointToStart(branch.thenBlock());
  // 0 times a finite number is 0. Two rows at a time and eight sums, so that no
  // sum waits for the one before it; what is left of a row has sums of its own.
  constexpr int64_t rows = 2, chains = 8;
  SmallVector<int64_t> counts;
  for (int64_t column = 0; column < width; column += counts.back())
    counts.push_back(std::min<int64_t>(
        target.lanes, int64_t(1) << llvm::Log2_64(uint64_t(width - column))));
  const int64_t whole = llvm::count(counts, int64_t(target.lanes));
  const int64_t shared = std::min(chains, rows * whole);
  Vectors sums(shared, e.splat(0));
  for (int64_t count : ArrayRef(counts).drop_front(whole))
    sums.push_back(e.splat(0, count));
  auto loop = scf::ForOp::create(b, loc, e.integer(0), keyTile.live,
                                 e.integer(rows), sums);
  b.setInsertionPointToStart(loop.getBody());
  Vectors after(loop.getRegionIterArgs().begin(),
                loop.getRegionIterArgs().end());
  Value last = e.add(keyTile.live, -1);
  for (int64_t r = 0; r < rows; ++r) {
    Value row =
        arith::MinSIOp::create(b, loc, e.add(loop.getInductionVar(), r), last);
    Value address = e.at(base, arith::MulIOp::create(b, loc, row, stride));
    for (int64_t i = 0, column = 0; i < int64_t(counts.size()); ++i) {
      Value &sum =
          after[i < whole ? (r * whole + i) % chains : shared + i - whole];
      Value vector = e.load(e.floats(counts[i]), e.at(address, column * 4));
      sum = e.fma(vector, e.splat(0, counts[i]), sum);
      column += counts[i];
    }
  }
  scf::YieldOp::create(b, loc, after);
  b.setInsertionPointAfter(loop);
  Value unsound;
  Vectors results(loop.getResults().begin(), loop.getResults().end());
  for (int64_t i = 1; i < shared; ++i)
    results[0] = arith::AddFOp::create(b, loc, results[0], results[i]);
  for (int64_t i = 0; i < int64_t(results.size()); ++i) {
    if (i > 0 && i < shared)
      continue;
    Value bad = arith::CmpFOp::create(b, loc, arith::CmpFPredicate::UNO,
                                      results[i], results[i]);
    bad = vector::ReductionOp::create(b, loc, vector::CombiningKind::OR, bad);
    unsound =
        unsound ? arith::OrIOp::create(b, loc, unsound, bad).getResult() : bad;
  }
  scf::YieldOp::create(b, loc, unsound);
  return branch.getResult(0);
}

LogicalResult KernelLowering::productPiece(tile::DotOp dot, Value base,
                                           Value stride, Piece &piece,
                                           tile::MaskOp hiding) {
  auto slot = slots.find(dot.getA());
  if (slot == slots.end())
    return dot.emitOpError("needs a computed tile as its first operand");
  Vectors sums;
  if (dot.getAcc()) {
    FailureOr<Vectors> start = square(dot.getAcc(), piece);
    if (failed(start))
      return failure();
    sums = *start;
  } else {
    sums.append(piece.rows * piece.vectors, e.splat(0.0f));
  }
  Value left = slotAddress(slot->second, e.integer(0), piece.lane);
  // Broadcast operands: element (row, k) lies at rowAddress[row] + k * 4, or,
  // for keys as the inner dimension, at base + k * stride + row * 4.
  SmallVector<Value> rowAddress;
  KeyRange inner{e.integer(0), Value()};
  if (dot.getTransposeB()) {
    // Dead keys repeat the last one that exists.
    Value last = e.add(keyTile.live, -1);
    for (int64_t r = 0; r < piece.rows; ++r) {
      Value key = arith::MinSIOp::create(b, loc, e.add(piece.row, r), last);
      rowAddress.push_back(
          e.at(base, arith::MulIOp::create(b, loc, key, stride)));
    }
    inner.end = e.integer(tileType(dot.getA()).getDimSize(1));
  } else {
    rowAddress.push_back(e.at(base, e.mul(piece.row, 4)));
    inner.end = keyTile.live;
    if (keyTile.isRanged)
      inner = keyRange(piece.lane, piece.vectors * target.lanes);
  }
  const bool prefetches =
      dot.getTransposeB() && keyTile.next && !keyTile.isMasked;
  const bool isOneGroup = piece.vectors * target.lanes == queryRows;
  if (prefetches && !isOneGroup)
    prefetchNext(piece);
  LogicalResult status = success();
  // Without the first `skip` vectors.
  auto reduce = [&](Value from, Value to, int64_t skip = 0) {
    SmallVector<Value *> carried;
    Vectors before;
    for (auto [i, sum] : llvm::enumerate(sums))
      if (int64_t(i) % piece.vectors >= skip) {
        carried.push_back(&sum);
        before.push_back(sum);
      }
    auto loop = scf::ForOp::create(b, loc, from, to, e.integer(1), before);
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToStart(loop.getBody());
    Value k = loop.getInductionVar();
    if (prefetches && isOneGroup)
      prefetchNext(piece, k, tileType(dot.getA()).getDimSize(1));
    Vectors after(loop.getRegionIterArgs().begin(),
                  loop.getRegionIterArgs().end());
    Value vectors = e.at(left, e.mul(k, queryRows * 4));
    Vectors lanes;
    for (int64_t c = skip; c < piece.vectors; ++c)
      lanes.push_back(
          e.load(e.floats(), e.at(vectors, c * target.vectorBytes())));
    const auto count = int64_t(lanes.size());
    Vectors visible;
    if (hiding) {
      auto seen = visibleOf(hiding, Piece(k, 1, piece.lane, piece.vectors));
      if (failed(seen))
        status = failure();
      visible = succeeded(seen) ? *seen : lanes;
    }
    for (int64_t r = 0; r < piece.rows; ++r) {
      Value address = dot.getTransposeB()
                          ? e.at(rowAddress[r], e.mul(k, 4))
                          : e.at(e.at(rowAddress[0],
                                      arith::MulIOp::create(b, loc, k, stride)),
                                 r * 4);
      Value factor = e.broadcast(e.load(b.getF32Type(), address));
      for (int64_t c = 0; c < count; ++c) {
        Value &sum = after[r * count + c];
        Value more = e.fma(factor, lanes[c], sum);
        sum = hiding ? e.select(visible[c], more, sum) : more;
      }
    }
    scf::YieldOp::create(b, loc, after);
    for (auto [sum, result] : llvm::zip(carried, loop.getResults()))
      *sum = result;
  };
  Value shared =
      dot.getTransposeB() ? Value() : sharedEnd(piece.lane, piece.vectors);
  if (shared) {
    shared = arith::MaxSIOp::create(b, loc, shared, inner.begin);
    reduce(inner.begin, shared);
    reduce(shared, inner.end, /*skip=*/piece.vectors - 1);
  } else {
    reduce(inner.begin, inner.end);
  }
  piece.squares[dot.getResult()] = sums;
  return status;
}

/// The mask whose result `value` is computed from element by element, or null.
static tile::MaskOp maskBehind(Value value) {
  Operation *op = value.getDefiningOp();
  if (auto mask = dyn_cast_or_null<tile::MaskOp>(op))
    return mask;
  if (!op || !op->hasTrait<OpTrait::Elementwise>())
    return {};
  for (Value operand : op->getOperands())
    if (tile::MaskOp mask = maskBehind(operand))
      return mask;
  return {};
}

LogicalResult KernelLowering::lowerDot(const Step &step) {
  auto dot = cast<tile::DotOp>(step.anchor);
  auto operand = productOperand(dot);
  if (failed(operand))
    return failure();
  auto [base, stride] = *operand;
  int64_t rows = tileType(dot).getDimSize(1);
  auto emit = [&, base = base, stride = stride]() {
    return forShapes([&](int64_t pieceRows, int64_t vectors) {
      return forPieces(
          step, rows, std::min<int64_t>(rows, pieceRows), vectors,
          [&](Piece &piece) { return productPiece(dot, base, stride, piece); },
          dot.getTransposeB());
    });
  };
  tile::MaskOp mask =
      dot.getTransposeB() ? tile::MaskOp() : maskBehind(dot.getA());
  if (!mask || !keyTile.masked)
    return emit();
  // A hidden key has the weight 0, and 0 times an infinity or a NaN is NaN.
  // That is rare: keys are told apart row by row only where there is one.
  auto branch =
      scf::IfOp::create(b, loc, TypeRange{}, isUnsound(base, stride, rows),
                        /*withElse=*/true);
  OpBuilder::InsertionGuard guard(b);
  b.setInsertionPointToStart(branch.elseBlock());
  if (failed(emit()))
    return failure();
  b.setInsertionPointToStart(branch.thenBlock());
  KeyTile saved = keyTile;
  keyTile.isMasked = true;
  keyTile.isRanged = false;
  LogicalResult status =
      forPieces(step, rows, std::min<int64_t>(rows, 4), 1,
                [&, base = base, stride = stride](Piece &piece) {
                  return productPiece(dot, base, stride, piece, mask);
                });
  keyTile = saved;
  return status;
}
