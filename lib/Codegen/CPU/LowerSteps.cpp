//===- LowerSteps.cpp - Loops over tiles ----------------------------------===//
//
// Every step walks the transposed copy of a tile in pieces of some rows (keys
// or head dimensions) by some vectors of query rows, computes its anchor's
// values for the piece in registers and evaluates the riding ops on them.
//
//===----------------------------------------------------------------------===//

#include "KernelLowering.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"

using namespace mlir;
using namespace prefill;

/// The element type that a tile has in registers.
static Type registerType(Value value) {
  Type element = getElementTypeOrSelf(value.getType());
  return isa<FloatType>(element) ? Float32Type::get(value.getContext())
                                 : element;
}

//===----------------------------------------------------------------------===//
// Loops
//===----------------------------------------------------------------------===//

void KernelLowering::forLanes(int64_t vectors, function_ref<void(Value)> body) {
  int64_t step = vectors * target.lanes;
  if (step == queryRows)
    return body(e.integer(0));
  auto loop = scf::ForOp::create(b, loc, e.integer(0), e.integer(queryRows),
                                 e.integer(step));
  OpBuilder::InsertionGuard guard(b);
  b.setInsertionPointToStart(loop.getBody());
  body(loop.getInductionVar());
}

Value KernelLowering::slotAddress(int64_t slot, Value row, Value lane) {
  Value offset = e.add(e.mul(row, queryRows * 4), e.mul(lane, 4));
  return e.at(workspace(slot), offset);
}

int64_t KernelLowering::groupVectors(int64_t vectors) const {
  // Groups of query rows must divide the tile.
  while (queryRows % (vectors * target.lanes) != 0)
    vectors /= 2;
  return vectors;
}

LogicalResult KernelLowering::forPieces(
    const Step &step, int64_t rows, int64_t pieceRows, int64_t vectors,
    function_ref<LogicalResult(Piece &)> anchor, bool overKeys) {
  vectors = groupVectors(vectors);
  SmallVector<tile::ReduceRowOp> reductions;
  for (Operation *op : step.ops)
    if (auto reduce = dyn_cast<tile::ReduceRowOp>(op))
      reductions.push_back(reduce);
  LogicalResult status = success();
  forLanes(vectors, [&](Value lane) {
    // Numbers a row that the riding ops read stay in registers.
    RowCache saved = rowCache;
    auto cacheRows = [&](Value lane, int64_t vectors) {
      rowCache = saved;
      for (Operation *op : step.ops)
        for (Value operand : op->getOperands())
          if (auto broadcast = operand.getDefiningOp<tile::BroadcastOp>())
            if (kinds.lookup(broadcast.getSource()) == ValueKind::Row &&
                tileType(operand).getRank() == 2)
              if (auto values =
                      rowVectors(broadcast.getSource(), lane, vectors);
                  succeeded(values))
                rowCache[broadcast.getSource()] = *values;
    };
    cacheRows(lane, vectors);
    SmallVector<Value> accumulators;
    for (tile::ReduceRowOp reduce : reductions) {
      bool isMax = reduce.getKind() == tile::ReduceKind::Max;
      float start = isMax ? -std::numeric_limits<float>::infinity() : 0.0f;
      accumulators.append(vectors, e.splat(start));
    }
    auto visitPiece = [&](Piece piece, ValueRange before) {
      SmallVector<Value> after(before);
      if (failed(anchor(piece)) || failed(evaluate(step, piece))) {
        status = failure();
        return after;
      }
      for (auto [number, reduce] : llvm::enumerate(reductions)) {
        FailureOr<Vectors> values = square(reduce.getValue(), piece);
        if (failed(values)) {
          status = failure();
          return after;
        }
        for (auto [i, value] : llvm::enumerate(*values)) {
          Value &sum = after[number * piece.vectors + i % piece.vectors];
          sum = reduce.getKind() == tile::ReduceKind::Max
                    ? e.largerOf(value, sum)
                    : arith::AddFOp::create(b, loc, sum, value).getResult();
        }
      }
      return after;
    };
    auto visit = [&](Value row, int64_t count, ValueRange before) {
      return visitPiece(Piece(row, count, lane, vectors), before);
    };
    // Without the first `skip` vectors of the group.
    auto loopOver = [&](Value from, Value to, int64_t skip = 0) {
      SmallVector<Value *> carried;
      SmallVector<Value> before;
      for (auto [i, value] : llvm::enumerate(accumulators))
        if (int64_t(i) % vectors >= skip) {
          carried.push_back(&value);
          before.push_back(value);
        }
      auto loop =
          scf::ForOp::create(b, loc, from, to, e.integer(pieceRows), before);
      OpBuilder::InsertionGuard guard(b);
      b.setInsertionPointToStart(loop.getBody());
      SmallVector<Value> after =
          visitPiece(Piece(loop.getInductionVar(), pieceRows,
                           e.add(lane, skip * target.lanes), vectors - skip),
                     loop.getRegionIterArgs());
      // Without carried values the builder has made the terminator.
      if (!before.empty())
        scf::YieldOp::create(b, loc, after);
      for (auto [value, result] : llvm::zip(carried, loop.getResults()))
        *value = result;
    };
    int64_t whole = rows / pieceRows * pieceRows;
    scf::IfOp rest;
    if (overKeys && keyTile.isRanged) {
      auto [begin, end] = keyRange(lane, vectors * target.lanes);
      auto roundDown = [&](Value row) -> Value {
        Value over = arith::RemUIOp::create(b, loc, row, e.integer(pieceRows));
        return arith::SubIOp::create(b, loc, row, over);
      };
      Value from = roundDown(begin);
      if (whole > 0) {
        Value to = arith::MinSIOp::create(b, loc, end, e.integer(whole));
        if (Value shared = sharedEnd(lane, vectors)) {
          Value split = roundDown(e.add(shared, pieceRows - 1));
          split = arith::MaxSIOp::create(b, loc, split, from);
          split = arith::MinSIOp::create(b, loc, split, e.integer(whole));
          loopOver(from, split);
          cacheRows(e.add(lane, (vectors - 1) * target.lanes), 1);
          loopOver(split, to, /*skip=*/vectors - 1);
          cacheRows(lane, vectors);
        } else {
          loopOver(from, to);
        }
      }
      if (whole < rows) {
        rest = scf::IfOp::create(b, loc, ValueRange(accumulators).getTypes(),
                                 e.less(e.integer(whole), end),
                                 /*withElse=*/!accumulators.empty());
        if (!accumulators.empty()) {
          b.setInsertionPointToStart(rest.elseBlock());
          scf::YieldOp::create(b, loc, accumulators);
        }
        b.setInsertionPointToStart(rest.thenBlock());
      }
    } else if (whole == pieceRows) {
      accumulators = visit(e.integer(0), pieceRows, accumulators);
    } else if (whole > 0) {
      loopOver(e.integer(0), e.integer(whole));
    }
    // Powers of two, so that narrow loads and stores stay simple.
    for (int64_t row = whole; row < rows;) {
      int64_t count = rows - row;
      if (step.kind == Step::Pack || step.kind == Step::Unpack)
        count = int64_t(1) << llvm::Log2_64(uint64_t(count));
      accumulators = visit(e.integer(row), count, accumulators);
      row += count;
    }
    if (rest) {
      if (!accumulators.empty())
        scf::YieldOp::create(b, loc, accumulators);
      b.setInsertionPointAfter(rest);
      accumulators.assign(rest.getResults().begin(), rest.getResults().end());
    }
    rowCache = std::move(saved);
    for (auto [number, reduce] : llvm::enumerate(reductions))
      for (int64_t i = 0; i < vectors; ++i)
        e.store(accumulators[number * vectors + i],
                e.at(slotAddress(slots.lookup(reduce), e.integer(0), lane),
                     i * target.vectorBytes()));
  });
  return status;
}

LogicalResult KernelLowering::forShapes(
    function_ref<LogicalResult(int64_t rows, int64_t vectors)> emit) {
  if (!keyTile.trims)
    return emit(target.tileRows, target.tileVectors);
  auto branch = scf::IfOp::create(b, loc, TypeRange{}, keyTile.trims,
                                  /*withElse=*/true);
  OpBuilder::InsertionGuard guard(b);
  b.setInsertionPointToStart(branch.elseBlock());
  if (failed(emit(target.tileRows, target.tileVectors)))
    return failure();
  b.setInsertionPointToStart(branch.thenBlock());
  keyTile.isMasked = keyTile.isRanged = true;
  LogicalResult status = emit(target.trimRows, target.trimVectors);
  keyTile.isMasked = keyTile.isRanged = false;
  return status;
}

LogicalResult KernelLowering::lowerStep(const Step &step) {
  switch (step.kind) {
  case Step::Loop:
    return lowerLoop(cast<tile::ForTilesOp>(step.anchor));
  case Step::Rows:
    return lowerRows(step);
  case Step::Dot:
    return lowerDot(step);
  case Step::Pack:
    return cast<tile::LoadOp>(step.anchor).getKeys() ? lowerKeyedPack(step)
                                                     : lowerPack(step);
  case Step::Map:
    return lowerMap(step);
  case Step::Unpack:
    return lowerUnpack(step);
  case Step::Need:
    return lowerNeed(cast<tile::NeedOp>(step.anchor));
  }
  return failure();
}

//===----------------------------------------------------------------------===//
// Values of a piece
//===----------------------------------------------------------------------===//

void KernelLowering::save(Value value, Piece &piece) {
  auto slot = slots.find(value);
  if (slot == slots.end() || kinds.lookup(value) != ValueKind::Square)
    return;
  Value address = slotAddress(slot->second, piece.row, piece.lane);
  for (auto [i, vector] : llvm::enumerate(piece.squares[value])) {
    int64_t row = i / piece.vectors, group = i % piece.vectors;
    e.store(vector,
            e.at(address, row * queryRows * 4 + group * target.vectorBytes()));
  }
}

LogicalResult KernelLowering::evaluate(const Step &step, Piece &piece) {
  if (step.anchor && step.anchor->getNumResults() == 1)
    save(step.anchor->getResult(0), piece);
  for (Operation *op : step.ops) {
    if (isa<tile::ReduceRowOp>(op))
      continue;
    if (auto mask = dyn_cast<tile::MaskOp>(op)) {
      if (failed(lowerMask(mask, piece)))
        return failure();
      save(mask.getResult(), piece);
      continue;
    }
    if (auto store = dyn_cast<tile::StoreOp>(op)) {
      if (failed(storeKeys(store, piece)))
        return failure();
      continue;
    }
    Vectors results;
    SmallVector<Vectors> operands;
    for (Value operand : op->getOperands()) {
      FailureOr<Vectors> values = square(operand, piece);
      if (failed(values))
        return failure();
      operands.push_back(*values);
    }
    for (int64_t i = 0; i < piece.rows * piece.vectors; ++i) {
      SmallVector<Value> inputs;
      for (Vectors &values : operands)
        inputs.push_back(values[i]);
      FailureOr<Value> result = elementwise(op, inputs);
      if (failed(result))
        return failure();
      results.push_back(*result);
    }
    piece.squares[op->getResult(0)] = std::move(results);
    save(op->getResult(0), piece);
  }
  return success();
}

FailureOr<Value> KernelLowering::elementwise(Operation *op,
                                             ArrayRef<Value> operands) {
  if (isa<math::Exp2Op>(op))
    return e.exp2(operands[0]);
  if (isa<math::TanhOp>(op))
    return e.tanh(operands[0]);
  if (isa<math::Log2Op>(op))
    return e.log2(operands[0]);
  if (isa<math::FmaOp>(op))
    return e.fma(operands[0], operands[1], operands[2]);
  // Storage types are fp32 in registers; stores round.
  if (isa<arith::ExtFOp>(op))
    return operands[0];
  if (auto round = dyn_cast<arith::TruncFOp>(op)) {
    if (!llvm::all_of(round->getUsers(), llvm::IsaPred<tile::StoreOp>))
      return op->emitOpError("may only round what is stored");
    return operands[0];
  }
  if (!isa<arith::ArithDialect>(op->getDialect()))
    return op->emitOpError("has no vector form in the CPU lowering");
  auto width = cast<VectorType>(operands[0].getType()).getDimSize(0);
  OperationState state(loc, op->getName());
  state.addOperands(operands);
  state.addTypes(e.vector(registerType(op->getResult(0)), width));
  for (NamedAttribute attribute : op->getAttrs())
    state.addAttribute(attribute.getName(), attribute.getValue());
  return b.create(state)->getResult(0);
}

/// A splat constant as a vector; null if it is no splat.
static Value splatConstant(arith::ConstantOp constant, VectorEmitter &e) {
  auto dense = dyn_cast<DenseElementsAttr>(constant.getValue());
  if (!dense || !dense.isSplat())
    return {};
  auto type = e.vector(dense.getElementType());
  return arith::ConstantOp::create(
      e.b, e.loc,
      DenseElementsAttr::get(type, dense.getSplatValue<Attribute>()));
}

FailureOr<KernelLowering::Vectors>
KernelLowering::rowVectors(Value value, Value lane, int64_t vectors) {
  if (auto cached = rowCache.find(value); cached != rowCache.end())
    return cached->second;
  Operation *op = value.getDefiningOp();
  Vectors results;
  if (auto slot = slots.find(value); slot != slots.end()) {
    Value address = slotAddress(slot->second, e.integer(0), lane);
    for (int64_t i = 0; i < vectors; ++i)
      results.push_back(e.load(e.vector(registerType(value)),
                               e.at(address, i * target.vectorBytes()), 4));
    return results;
  }
  if (auto constant = dyn_cast_or_null<arith::ConstantOp>(op)) {
    if (Value splat = splatConstant(constant, e)) {
      results.append(vectors, splat);
      return results;
    }
  }
  if (auto broadcast = dyn_cast_or_null<tile::BroadcastOp>(op);
      broadcast && broadcast.getDims().empty()) {
    results.append(vectors, e.broadcast(scalar(broadcast.getSource())));
    return results;
  }
  if (isa_and_nonnull<tile::RowsOp>(op)) {
    SmallVector<int32_t> numbers;
    for (int64_t i = 0; i < target.lanes; ++i)
      numbers.push_back(i);
    auto type = e.vector(b.getI32Type());
    Value within = arith::ConstantOp::create(
        b, loc, DenseElementsAttr::get(type, ArrayRef<int32_t>(numbers)));
    for (int64_t i = 0; i < vectors; ++i) {
      Value first = arith::TruncIOp::create(b, loc, b.getI32Type(),
                                            e.add(lane, i * target.lanes));
      results.push_back(e.add(within, e.broadcast(first)));
    }
    return results;
  }
  return emitError(op ? op->getLoc() : loc,
                   "a value of the kernel is used before it is computed");
}

FailureOr<Value> KernelLowering::keyScalar(Value value, Value position) {
  Operation *op = value.getDefiningOp();
  if (!op)
    return emitError(loc, "a carried value is used as one number a key");
  if (isa<tile::PositionsOp>(op))
    return position;
  if (auto constant = dyn_cast<arith::ConstantOp>(op)) {
    auto dense = dyn_cast<DenseElementsAttr>(constant.getValue());
    if (!dense || !dense.isSplat())
      return op->emitOpError("is no splat");
    return arith::ConstantOp::create(
               b, loc, cast<TypedAttr>(dense.getSplatValue<Attribute>()))
        .getResult();
  }
  if (auto load = dyn_cast<tile::LoadOp>(op)) {
    // Dead keys have no entry; key 0 exists whenever a tile is visited.
    Value dead = arith::CmpIOp::create(
        b, loc, arith::CmpIPredicate::eq, position,
        arith::ConstantOp::create(
            b, loc, b.getI32IntegerAttr(std::numeric_limits<int32_t>::max())));
    Value number = arith::ExtSIOp::create(b, loc, b.getI64Type(), position);
    number = e.select(dead, e.integer(0), number);
    const BoundView &view = views[load.getView()];
    Value offset = e.mul(number, view.element.getIntOrFloatBitWidth() / 8);
    return e.load(view.element, e.at(view.base, offset));
  }
  OperationState state(loc, op->getName());
  for (Value operand : op->getOperands()) {
    FailureOr<Value> input = keyScalar(operand, position);
    if (failed(input))
      return failure();
    state.addOperands(*input);
  }
  if (!isa<arith::ArithDialect>(op->getDialect()))
    return op->emitOpError("is not known on one number a key");
  state.addTypes(getElementTypeOrSelf(value.getType()));
  for (NamedAttribute attribute : op->getAttrs())
    state.addAttribute(attribute.getName(), attribute.getValue());
  return b.create(state)->getResult(0);
}

FailureOr<KernelLowering::Vectors> KernelLowering::square(Value value,
                                                          Piece &piece) {
  if (auto known = piece.squares.find(value); known != piece.squares.end())
    return known->second;
  int64_t count = piece.rows * piece.vectors;
  Vectors results;
  Operation *op = value.getDefiningOp();
  if (auto slot = slots.find(value); slot != slots.end()) {
    Value address = slotAddress(slot->second, piece.row, piece.lane);
    for (int64_t i = 0; i < count; ++i)
      results.push_back(
          e.load(e.vector(registerType(value)),
                 e.at(address, i / piece.vectors * queryRows * 4 +
                                   i % piece.vectors * target.vectorBytes()),
                 4));
  } else if (!op) {
    return emitError(loc, "a carried tile is used outside of its loop");
  } else if (auto constant = dyn_cast<arith::ConstantOp>(op)) {
    Value splat = splatConstant(constant, e);
    if (!splat)
      return op->emitOpError("is no splat");
    results.append(count, splat);
  } else if (auto broadcast = dyn_cast<tile::BroadcastOp>(op)) {
    if (broadcast.getDims().empty()) {
      results.append(count, e.broadcast(scalar(broadcast.getSource())));
    } else if (broadcast.getDims()[0] == 0) {
      FailureOr<Vectors> rows =
          rowVectors(broadcast.getSource(), piece.lane, piece.vectors);
      if (failed(rows))
        return failure();
      for (int64_t i = 0; i < count; ++i)
        results.push_back((*rows)[i % piece.vectors]);
    } else {
      if (!needsPositions)
        return op->emitOpError("repeats numbers of keys outside of a mask");
      for (int64_t r = 0; r < piece.rows; ++r) {
        Value offset = e.mul(e.add(piece.row, r), 4);
        Value position =
            e.load(b.getI32Type(), e.at(workspace(positionSlot), offset));
        FailureOr<Value> number = keyScalar(broadcast.getSource(), position);
        if (failed(number))
          return failure();
        results.append(piece.vectors, e.broadcast(*number));
      }
    }
  } else {
    // Element-wise, evaluated where it is used.
    SmallVector<Vectors> operands;
    for (Value operand : op->getOperands()) {
      FailureOr<Vectors> values = square(operand, piece);
      if (failed(values))
        return failure();
      operands.push_back(*values);
    }
    for (int64_t i = 0; i < count; ++i) {
      SmallVector<Value> inputs;
      for (Vectors &values : operands)
        inputs.push_back(values[i]);
      FailureOr<Value> result = elementwise(op, inputs);
      if (failed(result))
        return failure();
      results.push_back(*result);
    }
  }
  piece.squares[value] = results;
  return results;
}

FailureOr<KernelLowering::Vectors>
KernelLowering::visibleOf(tile::MaskOp mask, const Piece &piece) {
  // What is computed here is not available behind a branch around it.
  Piece inside(piece.row, piece.rows, piece.lane, piece.vectors);
  RowCache saved = rowCache;
  Value predicate = mask.getPredicate().front().getTerminator()->getOperand(0);
  FailureOr<Vectors> visible = square(predicate, inside);
  rowCache = std::move(saved);
  if (failed(visible))
    return failure();
  Value dead = e.splatBits(std::numeric_limits<int32_t>::max());
  for (int64_t r = 0; r < piece.rows; ++r) {
    Value offset = e.mul(e.add(piece.row, r), 4);
    Value position =
        e.load(b.getI32Type(), e.at(workspace(positionSlot), offset));
    Value alive = arith::CmpIOp::create(b, loc, arith::CmpIPredicate::ne,
                                        e.broadcast(position), dead);
    for (int64_t c = 0; c < piece.vectors; ++c) {
      Value &keep = (*visible)[r * piece.vectors + c];
      keep = arith::AndIOp::create(b, loc, alive, keep);
    }
  }
  return visible;
}

LogicalResult KernelLowering::lowerMask(tile::MaskOp mask, Piece &piece) {
  FailureOr<Vectors> scores = square(mask.getScores(), piece);
  if (failed(scores))
    return failure();
  OpBuilder::InsertionGuard guard(b);
  scf::IfOp branch;
  if (!keyTile.isMasked) {
    SmallVector<Type> types(scores->size(), e.floats());
    branch = scf::IfOp::create(b, loc, types, keyTile.masked,
                               /*withElse=*/true);
    b.setInsertionPointToStart(branch.elseBlock());
    scf::YieldOp::create(b, loc, *scores);
    b.setInsertionPointToStart(branch.thenBlock());
  }
  FailureOr<Vectors> visible = visibleOf(mask, piece);
  if (failed(visible))
    return failure();
  Value hidden = e.splat(-std::numeric_limits<float>::infinity());
  Vectors masked;
  for (auto [keep, score] : llvm::zip_equal(*visible, *scores))
    masked.push_back(e.select(keep, score, hidden));
  if (branch) {
    scf::YieldOp::create(b, loc, masked);
    masked.assign(branch.getResults().begin(), branch.getResults().end());
  }
  piece.squares[mask.getResult()] = masked;
  return success();
}

LogicalResult KernelLowering::storeKeys(tile::StoreOp store, Piece &piece) {
  const BoundView &view = views[store.getView()];
  if (!view.keyBytes || !view.element.isF32())
    return store.emitOpError("stores one row a key, which has no CPU form");
  FailureOr<Vectors> values = square(store.getValue(), piece);
  if (failed(values))
    return failure();
  for (int64_t r = 0; r < piece.rows; ++r) {
    Value key = e.add(piece.row, r);
    Value number = e.add(keyTile.first, key);
    if (keyBegin)
      number = arith::SubIOp::create(b, loc, number, keyBegin);
    Value offset = arith::MulIOp::create(b, loc, number, view.keyBytes);
    Value address = e.select(e.less(key, keyTile.live), e.at(view.base, offset),
                             workspace(trashSlot));
    address = e.at(address, e.mul(piece.lane, 4));
    for (int64_t c = 0; c < piece.vectors; ++c)
      e.store((*values)[r * piece.vectors + c],
              e.at(address, c * target.vectorBytes()));
  }
  return success();
}

//===----------------------------------------------------------------------===//
// Maps
//===----------------------------------------------------------------------===//

/// Whether the columns of a tile are keys.
static bool isOverKeys(Value value) {
  Operation *op = value.getDefiningOp();
  if (auto dot = dyn_cast_or_null<tile::DotOp>(op))
    return dot.getTransposeB();
  if (isa_and_nonnull<tile::MaskOp>(op))
    return true;
  return op && op->hasTrait<OpTrait::Elementwise>() &&
         llvm::any_of(op->getOperands(), isOverKeys);
}

LogicalResult KernelLowering::lowerMap(const Step &step) {
  int64_t rows = 0;
  bool overKeys = false;
  for (Operation *op : step.ops)
    for (Value operand : op->getOperands())
      if (auto type = dyn_cast<RankedTensorType>(operand.getType()))
        if (type.getRank() == 2) {
          rows = type.getDimSize(1);
          overKeys |= isOverKeys(operand);
        }
  auto emit = [&](int64_t, int64_t vectors) {
    return forPieces(
        step, rows, 1, vectors, [](Piece &) { return success(); }, overKeys);
  };
  return overKeys ? forShapes(emit) : emit(1, target.tileVectors);
}

//===----------------------------------------------------------------------===//
// Between row-major memory and lanes
//===----------------------------------------------------------------------===//

LogicalResult KernelLowering::lowerPack(const Step &step) {
  auto load = cast<tile::LoadOp>(step.anchor);
  const BoundView &view = views[load.getView()];
  if (!view.rowBytes || !view.rows)
    return load.emitOpError("needs rows that lie in memory");
  int64_t bytes = view.element.getIntOrFloatBitWidth() / 8;
  return forPieces(
      step, tileType(load).getDimSize(1), target.lanes, 1, [&](Piece &piece) {
        SmallVector<Value> lanes;
        Value column = e.mul(piece.row, bytes);
        for (int64_t i = 0; i < target.lanes; ++i) {
          Value row = e.add(piece.lane, i);
          Value offset = arith::MulIOp::create(b, loc, row, view.rowBytes);
          Value address =
              e.select(e.less(row, view.rows), e.at(view.base, offset), zeros);
          Value vector =
              e.loadFloats(view.element, e.at(address, column), piece.rows);
          lanes.push_back(e.resize(vector, target.lanes));
        }
        e.transpose(lanes);
        lanes.resize(piece.rows);
        piece.squares[load.getResult()] = lanes;
        return success();
      });
}

LogicalResult KernelLowering::lowerKeyedPack(const Step &step) {
  auto load = cast<tile::LoadOp>(step.anchor);
  const BoundView &view = views[load.getView()];
  if (!view.rowBytes || !view.keyBytes || !view.element.isF32() ||
      !step.ops.empty())
    return load.emitOpError("needs an fp32 matrix of rows and keys");
  int64_t keys = tileType(load).getDimSize(1);
  auto equal = [&](Value x, int64_t y) {
    return arith::CmpIOp::create(b, loc, arith::CmpIPredicate::eq, x,
                                 e.integer(y))
        .getResult();
  };
  // Whole blocks with adjacent keys by vectors, anything else one by one.
  Value adjacent = arith::AndIOp::create(b, loc, equal(view.keyBytes, 4),
                                         equal(keyTile.live, keys));
  adjacent = arith::AndIOp::create(b, loc, adjacent, keyTile.isBlock);
  auto branch = scf::IfOp::create(b, loc, TypeRange{}, adjacent,
                                  /*withElse=*/true);
  OpBuilder::InsertionGuard guard(b);
  b.setInsertionPointToStart(branch.thenBlock());
  Value start = e.mul(keyTile.first, 4);
  LogicalResult status =
      forPieces(step, keys, target.lanes, 1, [&](Piece &piece) {
        SmallVector<Value> lanes;
        Value column = e.add(start, e.mul(piece.row, 4));
        for (int64_t i = 0; i < target.lanes; ++i) {
          Value row = e.add(piece.lane, i);
          Value offset =
              e.add(arith::MulIOp::create(b, loc, row, view.rowBytes), column);
          Value address =
              e.select(e.less(row, view.rows), e.at(view.base, offset), zeros);
          lanes.push_back(
              e.resize(e.load(e.floats(piece.rows), address), target.lanes));
        }
        e.transpose(lanes);
        lanes.resize(piece.rows);
        piece.squares[load.getResult()] = lanes;
        return success();
      });
  if (failed(status))
    return failure();
  b.setInsertionPointToStart(branch.elseBlock());
  auto keyLoop =
      scf::ForOp::create(b, loc, e.integer(0), e.integer(keys), e.integer(1));
  b.setInsertionPointToStart(keyLoop.getBody());
  Value key = keyLoop.getInductionVar();
  Value position =
      e.load(b.getI32Type(), e.at(workspace(positionSlot), e.mul(key, 4)));
  Value dead = arith::CmpIOp::create(
      b, loc, arith::CmpIPredicate::eq, position,
      arith::ConstantOp::create(
          b, loc, b.getI32IntegerAttr(std::numeric_limits<int32_t>::max())));
  Value number =
      e.select(dead, e.integer(0),
               arith::ExtSIOp::create(b, loc, b.getI64Type(), position));
  Value column =
      e.at(view.base, arith::MulIOp::create(b, loc, number, view.keyBytes));
  auto rowLoop =
      scf::ForOp::create(b, loc, e.integer(0), view.rows, e.integer(1));
  b.setInsertionPointToStart(rowLoop.getBody());
  Value row = rowLoop.getInductionVar();
  Value value =
      e.load(b.getF32Type(),
             e.at(column, arith::MulIOp::create(b, loc, row, view.rowBytes)));
  e.store(value, slotAddress(slots.lookup(load), key, row));
  return success();
}

void KernelLowering::storeRowVector(tile::StoreOp store) {
  const BoundView &view = views[store.getView()];
  OpBuilder::InsertionGuard guard(b);
  if (view.nullable) {
    Value null = LLVM::ZeroOp::create(b, loc, e.ptr());
    Value present =
        LLVM::ICmpOp::create(b, loc, LLVM::ICmpPredicate::ne, view.base, null);
    auto branch = scf::IfOp::create(b, loc, TypeRange{}, present,
                                    /*withElse=*/false);
    b.setInsertionPointToStart(branch.thenBlock());
  }
  auto loop = scf::ForOp::create(b, loc, e.integer(0), view.rows, e.integer(1));
  b.setInsertionPointToStart(loop.getBody());
  Value offset = e.mul(loop.getInductionVar(), 4);
  Value from = workspace(slots.lookup(store.getValue()));
  e.store(e.load(view.element, e.at(from, offset)), e.at(view.base, offset));
}

LogicalResult KernelLowering::lowerUnpack(const Step &step) {
  auto store = cast<tile::StoreOp>(step.anchor);
  const BoundView &view = views[store.getView()];
  if (tileType(store.getValue()).getRank() == 1) {
    if (!view.rows || !view.element.isF32() ||
        !slots.contains(store.getValue()))
      return store.emitOpError("needs computed fp32 numbers, one a row");
    storeRowVector(store);
    return success();
  }
  if (!view.rowBytes || !view.rows)
    return store.emitOpError("needs rows that lie in memory");
  int64_t bytes = view.element.getIntOrFloatBitWidth() / 8;
  return forPieces(
      step, tileType(store.getValue()).getDimSize(1), target.lanes, 1,
      [&](Piece &piece) -> LogicalResult {
        FailureOr<Vectors> values = square(store.getValue(), piece);
        if (failed(values))
          return failure();
        SmallVector<Value> lanes(values->begin(), values->end());
        lanes.resize(target.lanes, lanes.front());
        e.transpose(lanes);
        Value column = e.mul(piece.row, bytes);
        for (int64_t i = 0; i < target.lanes; ++i) {
          Value row = e.add(piece.lane, i);
          Value offset = arith::MulIOp::create(b, loc, row, view.rowBytes);
          Value address =
              e.select(e.less(row, view.rows), e.at(view.base, offset),
                       workspace(trashSlot));
          e.storeFloats(e.resize(lanes[i], piece.rows), view.element,
                        e.at(address, column));
        }
        return success();
      });
}

//===----------------------------------------------------------------------===//
// Rounds that end early
//===----------------------------------------------------------------------===//

LogicalResult KernelLowering::lowerNeed(tile::NeedOp need) {
  Value zero = e.splat(0), wanted;
  for (int64_t lane = 0; lane < queryRows; lane += target.lanes) {
    FailureOr<Vectors> numbers =
        rowVectors(need.getValue(), e.integer(lane), 1);
    if (failed(numbers))
      return failure();
    Value here = arith::CmpFOp::create(b, loc, arith::CmpFPredicate::UGE,
                                       (*numbers)[0], zero);
    wanted =
        wanted ? arith::OrIOp::create(b, loc, wanted, here).getResult() : here;
  }
  Value any =
      vector::ReductionOp::create(b, loc, vector::CombiningKind::OR, wanted);
  auto branch = scf::IfOp::create(b, loc, TypeRange{}, any,
                                  /*withElse=*/false);
  b.setInsertionPointToStart(branch.thenBlock());
  return success();
}
