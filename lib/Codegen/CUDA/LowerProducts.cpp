//===- LowerProducts.cpp - Matrix products by mma.sync --------------------===//

#include "WarpLowering.h"

using namespace mlir;
using namespace prefill;

/// Registers of the left operand for 16 rows (`group`) and 16 of the inner
/// dimension (`step`).
SmallVector<Value> WarpLowering::loadLeft(Value a, int64_t m, int64_t step) {
  if (auto smem = dyn_cast<warp::SmemType>(a.getType())) {
    const int64_t count = groups(smem.getRows());
    // Lanes 0-15 give rows 0-15 of the left half, 16-31 those of the right one.
    Value row = add(add(mul(warpId, i32(16 * count)), bitAnd(lane, i32(15))),
                    i32(16 * m));
    Value chunk = add(shiftRight(lane, 4), i32(step % 4 * 2));
    Value swizzled = mul(bitXor(chunk, bitAnd(lane, i32(7))), i32(16));
    Value address = offset(scalar(a), add(mul(row, i32(128)), swizzled));
    return gpu.loadMatrices(offset(address, step / 4 * smem.getRows() * 128),
                            /*transpose=*/false);
  }
  // Accumulators of columns 16 s to 16 s + 15, rounded to 16 bits, are the left
  // operand as it should lie.
  auto type = cast<RankedTensorType>(a.getType());
  const int64_t columns = type.getDimSize(1) / 8;
  const Lanes &pairs = lanes(a);
  SmallVector<Value> result;
  for (int64_t j = 0; j < 2; ++j)
    for (int64_t r = 0; r < 2; ++r)
      result.push_back(pairs[(m * columns + 2 * step + j) * 2 + r]);
  return result;
}

LogicalResult WarpLowering::lower(warp::MmaOp op) {
  auto type = cast<RankedTensorType>(op.getResult().getType());
  warp::SmemType right = op.getB().getType();
  const bool transpose = op.getTransposeB();
  const int64_t count = groups(type.getDimSize(0));
  const int64_t columns = type.getDimSize(1) / 8;
  const int64_t steps = (transpose ? right.getCols() : right.getRows()) / 16;
  Lanes sums =
      op.getAcc() ? lanes(op.getAcc()) : Lanes(count * columns * 4, f32(0));
  // Four 8x8 matrices make the right operands of two products. With
  // `transpose_b` rows of the stage are columns of the operand: matrices go
  // down the inner dimension first, then across columns; else the other way.
  Value rowInStage, half;
  if (transpose) {
    rowInStage = add(bitAnd(lane, i32(7)), mul(shiftRight(lane, 4), i32(8)));
    half = bitAnd(shiftRight(lane, 3), i32(1));
  } else {
    rowInStage = bitAnd(lane, i32(15));
    half = shiftRight(lane, 4);
  }
  Value low = bitAnd(lane, i32(7));
  Value start = offset(scalar(op.getB()), mul(rowInStage, i32(128)));
  SmallVector<Value> chunks; // of a piece of 128 bytes
  for (int64_t c = 0; c < 4; ++c)
    chunks.push_back(
        offset(start, mul(bitXor(add(half, i32(2 * c)), low), i32(16))));
  for (int64_t step = 0; step < steps; ++step) {
    SmallVector<SmallVector<Value>> left;
    for (int64_t m = 0; m < count; ++m)
      left.push_back(loadLeft(op.getA(), m, step));
    for (int64_t j = 0; j < columns; j += 2) {
      // Where the 16 x 16 piece at inner dimension `step`, columns 8 j lies.
      const int64_t rowPiece = transpose ? j / 2 : step;
      const int64_t colPiece = transpose ? step : j / 2;
      Value address =
          offset(chunks[colPiece % 4],
                 rowPiece * 16 * 128 + colPiece / 4 * right.getRows() * 128);
      SmallVector<Value> matrices = gpu.loadMatrices(address, !transpose);
      for (int64_t m = 0; m < count; ++m)
        for (int64_t side = 0; side < 2; ++side) {
          const int64_t at = (m * columns + j + side) * 4;
          SmallVector<Value> sum = gpu.multiply(
              left[m], ArrayRef<Value>(matrices).slice(2 * side, 2),
              ArrayRef<Value>(sums).slice(at, 4), right.getElementType());
          llvm::copy(sum, sums.begin() + at);
        }
    }
  }
  map[op.getResult()] = sums;
  return success();
}
