//===- LowerTiles.cpp - Arithmetic on fragments ---------------------------===//

#include "WarpLowering.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include <limits>

using namespace mlir;
using namespace prefill;
using warp::FragKind;

static RankedTensorType fragmentOf(Value value) {
  return dyn_cast<RankedTensorType>(value.getType());
}

LogicalResult WarpLowering::lower(arith::ConstantOp op) {
  RankedTensorType type = fragmentOf(op);
  if (!type) {
    map[op.getResult()] = {b.clone(*op)->getResult(0)};
    return success();
  }
  auto dense = dyn_cast<DenseElementsAttr>(op.getValue());
  if (!dense || !dense.isSplat())
    return op.emitOpError("holds different numbers");
  int64_t count = 0;
  switch (*warp::getFragKind(type)) {
  case FragKind::Acc:
    count = groups(type.getDimSize(0)) * type.getDimSize(1) / 8 * 4;
    break;
  case FragKind::Row:
    count = groups(type.getDimSize(0)) * 2;
    break;
  case FragKind::Col:
    count = type.getDimSize(0) / 4;
    break;
  }
  Value value = arith::ConstantOp::create(
      b, loc, cast<TypedAttr>(dense.getSplatValue<Attribute>()));
  map[op.getResult()] = Lanes(count, value);
  return success();
}

LogicalResult WarpLowering::lowerElementwise(Operation *op) {
  if (op->getNumResults() != 1 || op->getNumRegions())
    return op->emitOpError("is not supported on GPUs");
  Value result = op->getResult(0);
  RankedTensorType type = fragmentOf(result);
  if (!type) {
    IRMapping scalars;
    for (Value operand : op->getOperands())
      scalars.map(operand, scalar(operand));
    map[result] = {b.clone(*op, scalars)->getResult(0)};
    return success();
  }
  if (!op->hasTrait<OpTrait::Elementwise>())
    return op->emitOpError("is not supported on GPUs");
  Lanes values;
  if (isa<arith::TruncFOp>(op)) {
    if (warp::getFragKind(type) != FragKind::Acc ||
        type.getElementTypeBitWidth() != 16 ||
        !getElementTypeOrSelf(op->getOperand(0).getType()).isF32())
      return op->emitOpError("to ") << type << " is not supported on GPUs";
    const Lanes &wide = lanes(op->getOperand(0));
    for (size_t i = 0; i < wide.size(); i += 2)
      values.push_back(gpu.pack(wide[i], wide[i + 1], type.getElementType()));
    map[result] = values;
    return success();
  }
  for (Value operand : op->getOperands()) {
    unsigned bits =
        getElementTypeOrSelf(operand.getType()).getIntOrFloatBitWidth();
    if (isa<FloatType>(getElementTypeOrSelf(operand.getType())) && bits != 32)
      return op->emitOpError("on 16-bit fragments is not supported on GPUs");
  }
  const size_t count = lanes(op->getOperand(0)).size();
  for (size_t i = 0; i < count; ++i) {
    SmallVector<Value> operands;
    for (Value operand : op->getOperands())
      operands.push_back(lanes(operand).size() == 1 && count != 1
                             ? scalar(operand)
                             : lanes(operand)[i]);
    // The unit's own approximations: 2 ulp, subnormals flushed.
    if (isa<math::Exp2Op>(op)) {
      values.push_back(gpu.exp2(operands[0]));
    } else if (isa<math::Log2Op>(op)) {
      values.push_back(gpu.log2(operands[0]));
    } else if (isa<math::TanhOp>(op)) {
      // tanh x = 1 - 2 / (1 + e^2x): absolute error below 1e-6, and +-1 where
      // the exponential overflows or vanishes. (tanh.approx is off by 5e-4.)
      Value twice = arith::MulFOp::create(b, loc, operands[0],
                                          f32(2 * 1.4426950408889634));
      Value sum = arith::AddFOp::create(b, loc, gpu.exp2(twice), f32(1));
      Value part = arith::MulFOp::create(b, loc, gpu.reciprocal(sum), f32(2));
      values.push_back(arith::SubFOp::create(b, loc, f32(1), part));
    } else if (isa<arith::DivFOp>(op)) {
      Value inverse = gpu.reciprocal(operands[1]);
      values.push_back(arith::MulFOp::create(b, loc, operands[0], inverse));
    } else if (isa<math::FmaOp>(op)) {
      values.push_back(LLVM::FMAOp::create(b, loc, operands));
    } else if (isa<math::AbsFOp>(op)) {
      values.push_back(LLVM::FAbsOp::create(b, loc, operands));
    } else {
      OperationState state(loc, op->getName());
      state.addOperands(operands);
      state.addTypes(type.getElementType());
      state.addAttributes(op->getAttrDictionary().getValue());
      values.push_back(b.create(state)->getResult(0));
    }
  }
  map[result] = values;
  return success();
}

LogicalResult WarpLowering::lower(tile::ReduceRowOp op) {
  RankedTensorType type = fragmentOf(op.getValue());
  const Lanes &values = lanes(op.getValue());
  const int64_t columns = type.getDimSize(1) / 8;
  const bool max = op.getKind() == tile::ReduceKind::Max;
  auto combine = [&](Value x, Value y) -> Value {
    if (max)
      return arith::MaxNumFOp::create(b, loc, x, y);
    return arith::AddFOp::create(b, loc, x, y);
  };
  Lanes result;
  for (int64_t m = 0; m < groups(type.getDimSize(0)); ++m)
    for (int64_t r = 0; r < 2; ++r) {
      // Two chains: the latency of one add would be the loop's.
      Value halves[2];
      for (int64_t j = 0; j < columns; ++j)
        for (int64_t e = 0; e < 2; ++e) {
          Value value = values[((m * columns + j) * 2 + r) * 2 + e];
          halves[e] = halves[e] ? combine(halves[e], value) : value;
        }
      Value all = combine(halves[0], halves[1]);
      all = combine(all, gpu.shuffleXor(all, 1));
      all = combine(all, gpu.shuffleXor(all, 2));
      result.push_back(all);
    }
  map[op.getResult()] = result;
  return success();
}

LogicalResult WarpLowering::lower(warp::PartSumOp op) {
  RankedTensorType type = fragmentOf(op.getValue());
  const Lanes &values = lanes(op.getValue());
  const int64_t columns = type.getDimSize(1) / 8;
  Lanes result;
  for (int64_t m = 0; m < groups(type.getDimSize(0)); ++m)
    for (int64_t r = 0; r < 2; ++r) {
      Value halves[2];
      for (int64_t j = 0; j < columns; ++j)
        for (int64_t e = 0; e < 2; ++e) {
          Value value = values[((m * columns + j) * 2 + r) * 2 + e];
          halves[e] = halves[e]
                          ? arith::AddFOp::create(b, loc, halves[e], value)
                          : value;
        }
      result.push_back(arith::AddFOp::create(b, loc, halves[0], halves[1]));
    }
  map[op.getResult()] = result;
  return success();
}

LogicalResult WarpLowering::lower(warp::WholeSumOp op) {
  Lanes result;
  for (Value sum : lanes(op.getPart())) {
    for (int mask : {1, 2})
      sum = arith::AddFOp::create(b, loc, sum, gpu.shuffleXor(sum, mask));
    result.push_back(sum);
  }
  map[op.getResult()] = result;
  return success();
}

LogicalResult WarpLowering::lower(tile::BroadcastOp op) {
  RankedTensorType type = fragmentOf(op.getResult());
  const Lanes &source = lanes(op.getSource());
  FragKind kind = *warp::getFragKind(type);
  Lanes result;
  if (kind == FragKind::Row) {
    result.assign(groups(type.getDimSize(0)) * 2, source[0]);
  } else if (kind == FragKind::Col) {
    result.assign(type.getDimSize(0) / 4, source[0]);
  } else {
    for (int64_t m = 0; m < groups(type.getDimSize(0)); ++m)
      for (int64_t j = 0; j < type.getDimSize(1) / 8; ++j)
        for (int64_t r = 0; r < 2; ++r)
          for (int64_t e = 0; e < 2; ++e) {
            if (op.getDims().empty())
              result.push_back(source[0]);
            else if (op.getDims()[0] == 0)
              result.push_back(source[2 * m + r]);
            else
              result.push_back(source[2 * j + e]);
          }
  }
  map[op.getResult()] = result;
  return success();
}

LogicalResult WarpLowering::lower(tile::RowsOp op) {
  const int64_t count = groups(fragmentOf(op.getResult()).getDimSize(0));
  Lanes result;
  for (int64_t m = 0; m < count; ++m)
    for (int64_t r = 0; r < 2; ++r)
      result.push_back(
          add(add(mul(warpId, i32(16 * count)), group), i32(16 * m + 8 * r)));
  map[op.getResult()] = result;
  return success();
}

LogicalResult WarpLowering::lower(tile::PositionsOp op) {
  SmallVector<Value> tileRows;
  for (int64_t j = 0; j < fragmentOf(op.getResult()).getDimSize(0) / 8; ++j)
    for (int64_t e = 0; e < 2; ++e)
      tileRows.push_back(add(mul(quad, i32(2)), i32(8 * j + e)));
  Lanes result(keyNumbers(op.getKeys(), tileRows));
  map[op.getResult()] = result;
  return success();
}

LogicalResult WarpLowering::lower(tile::MaskOp op) {
  RankedTensorType type = fragmentOf(op.getScores());
  const Lanes scores = lanes(op.getScores());
  const int64_t columns = type.getDimSize(1) / 8;
  SmallVector<Type> types(scores.size(), b.getF32Type());
  Value masked = lanes(op.getKeys())[1];
  auto branch = scf::IfOp::create(b, loc, types, masked, /*withElse=*/true);
  {
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToStart(branch.thenBlock());
    Block &predicate = op.getPredicate().front();
    if (failed(lowerBlock(predicate)))
      return failure();
    const Lanes &visible = lanes(predicate.getTerminator()->getOperand(0));
    SmallVector<Value> tileRows;
    for (int64_t j = 0; j < columns; ++j)
      for (int64_t e = 0; e < 2; ++e)
        tileRows.push_back(add(mul(quad, i32(2)), i32(8 * j + e)));
    SmallVector<Value> alive;
    for (Value number : keyNumbers(op.getKeys(), tileRows))
      alive.push_back(compare(arith::CmpIPredicate::ult, number, kvLength));
    Value hidden = f32(-std::numeric_limits<double>::infinity());
    SmallVector<Value> result;
    for (size_t i = 0; i < scores.size(); ++i) {
      const size_t j = i / 4 % columns, e = i % 2;
      result.push_back(
          select(bitAnd(visible[i], alive[2 * j + e]), scores[i], hidden));
    }
    scf::YieldOp::create(b, loc, result);
    b.setInsertionPointToStart(branch.elseBlock());
    scf::YieldOp::create(b, loc, scores);
  }
  Lanes result(branch.getResults());
  map[op.getResult()] = result;
  return success();
}
