//===- VectorEmitter.cpp - Small pieces of vector code --------------------===//

#include "VectorEmitter.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"

using namespace mlir;
using namespace prefill;

static int64_t widthOf(Value value) {
  return cast<VectorType>(value.getType()).getDimSize(0);
}

//===----------------------------------------------------------------------===//
// Types and constants
//===----------------------------------------------------------------------===//

Type VectorEmitter::ptr() { return LLVM::LLVMPointerType::get(b.getContext()); }

Value VectorEmitter::integer(int64_t value) {
  return arith::ConstantOp::create(b, loc, b.getI64IntegerAttr(value));
}

Value VectorEmitter::number(float value) {
  return arith::ConstantOp::create(b, loc, b.getF32FloatAttr(value));
}

Value VectorEmitter::splat(float value, int64_t width) {
  return arith::ConstantOp::create(
      b, loc, DenseElementsAttr::get(floats(width), b.getF32FloatAttr(value)));
}

Value VectorEmitter::splatBits(int64_t value, int64_t width) {
  return arith::ConstantOp::create(
      b, loc,
      DenseElementsAttr::get(vector(b.getI32Type(), width),
                             b.getI32IntegerAttr(int32_t(value))));
}

//===----------------------------------------------------------------------===//
// Integers and addresses
//===----------------------------------------------------------------------===//

Value VectorEmitter::add(Value x, Value y) {
  return arith::AddIOp::create(b, loc, x, y);
}

Value VectorEmitter::add(Value x, int64_t y) {
  return y == 0 ? x : add(x, integer(y));
}

Value VectorEmitter::mul(Value x, int64_t y) {
  return y == 1 ? x : arith::MulIOp::create(b, loc, x, integer(y)).getResult();
}

Value VectorEmitter::less(Value x, Value y) {
  return arith::CmpIOp::create(b, loc, arith::CmpIPredicate::slt, x, y);
}

Value VectorEmitter::select(Value condition, Value x, Value y) {
  return arith::SelectOp::create(b, loc, condition, x, y);
}

Value VectorEmitter::at(Value base, Value bytes) {
  return LLVM::GEPOp::create(b, loc, ptr(), b.getI8Type(), base,
                             ArrayRef<LLVM::GEPArg>{bytes});
}

Value VectorEmitter::at(Value base, int64_t bytes) {
  if (bytes == 0)
    return base;
  return LLVM::GEPOp::create(
      b, loc, ptr(), b.getI8Type(), base,
      ArrayRef<LLVM::GEPArg>{LLVM::GEPArg(int32_t(bytes))});
}

//===----------------------------------------------------------------------===//
// Memory
//===----------------------------------------------------------------------===//

/// The alignment that every element has by itself.
static int64_t elementBytes(Type type) {
  Type element = getElementTypeOrSelf(type);
  if (!element.isIntOrFloat())
    return 8; // pointers
  return std::max<int64_t>(1, element.getIntOrFloatBitWidth() / 8);
}

Value VectorEmitter::load(Type type, Value address, int64_t align) {
  return LLVM::LoadOp::create(b, loc, type, address,
                              align ? align : elementBytes(type));
}

void VectorEmitter::store(Value value, Value address, int64_t align) {
  LLVM::StoreOp::create(b, loc, value, address,
                        align ? align : elementBytes(value.getType()));
}

void VectorEmitter::prefetch(Value address, int64_t bytes) {
  for (int64_t offset = 0; offset < bytes; offset += 64)
    LLVM::Prefetch::create(b, loc, at(address, offset), /*rw=*/0, /*hint=*/2,
                           /*cache=*/1);
}

Value VectorEmitter::broadcast(Value scalar, int64_t width) {
  return vector::BroadcastOp::create(b, loc, vector(scalar.getType(), width),
                                     scalar);
}

Value VectorEmitter::bits(Value x) {
  return arith::BitcastOp::create(b, loc, vector(b.getI32Type(), widthOf(x)),
                                  x);
}

Value VectorEmitter::floatsOf(Value x) {
  return arith::BitcastOp::create(b, loc, floats(widthOf(x)), x);
}

Value VectorEmitter::loadFloats(Type storage, Value address, int64_t width) {
  if (storage.isF32())
    return load(floats(width), address);
  if (storage.isF16() && target.hasF16c) {
    Value half = load(vector(storage, width), address);
    return arith::ExtFOp::create(b, loc, floats(width), half);
  }
  auto words = vector(b.getI32Type(), width);
  Value raw = load(vector(b.getI16Type(), width), address);
  raw = arith::ExtUIOp::create(b, loc, words, raw);
  auto shift = [&](Value x, int64_t by) {
    return arith::ShLIOp::create(b, loc, x, splatBits(by, width)).getResult();
  };
  if (storage.isBF16())
    return floatsOf(shift(raw, 16));
  // fp16: move exponent and mantissa into place and correct the exponent's
  // bias; subnormals by a subtraction that the hardware normalises, infinities
  // and NaNs by a second correction.
  auto mask = [&](Value x, int64_t with) {
    return arith::AndIOp::create(b, loc, x, splatBits(with, width)).getResult();
  };
  auto plus = [&](Value x, int64_t y) {
    return arith::AddIOp::create(b, loc, x, splatBits(y, width)).getResult();
  };
  auto equal = [&](Value x, int64_t y) {
    return arith::CmpIOp::create(b, loc, arith::CmpIPredicate::eq, x,
                                 splatBits(y, width))
        .getResult();
  };
  Value magnitude = shift(mask(raw, 0x7fff), 13);
  Value exponent = mask(magnitude, 0x0f800000);
  Value normal = plus(magnitude, 112 << 23);
  Value special = plus(magnitude, 224 << 23);
  Value subnormal =
      bits(arith::SubFOp::create(b, loc, floatsOf(plus(magnitude, 113 << 23)),
                                 floatsOf(splatBits(113 << 23, width))));
  Value value = select(equal(exponent, 0x0f800000), special, normal);
  value = select(equal(exponent, 0), subnormal, value);
  Value sign = shift(mask(raw, 0x8000), 16);
  return floatsOf(arith::OrIOp::create(b, loc, value, sign));
}

Value VectorEmitter::loadFloat(Type storage, Value address) {
  if (storage.isF32())
    return load(storage, address);
  Value one = loadFloats(storage, address, 1);
  return vector::ExtractOp::create(b, loc, one, ArrayRef<int64_t>{0});
}

Value VectorEmitter::roundToBFloat(Value x) {
  int64_t width = widthOf(x);
  auto shiftDown = [&](Value v) {
    return arith::ShRUIOp::create(b, loc, v, splatBits(16, width)).getResult();
  };
  Value raw = bits(x);
  Value odd =
      arith::AndIOp::create(b, loc, shiftDown(raw), splatBits(1, width));
  Value rounded = add(add(raw, splatBits(0x7fff, width)), odd);
  // Rounding would turn some NaNs into infinity or zero.
  Value quiet = arith::OrIOp::create(b, loc, raw, splatBits(0x400000, width));
  Value isNan = arith::CmpFOp::create(b, loc, arith::CmpFPredicate::UNO, x, x);
  Value high = shiftDown(select(isNan, quiet, rounded));
  return arith::TruncIOp::create(b, loc, vector(b.getI16Type(), width), high);
}

Value VectorEmitter::roundToHalf(Value x) {
  int64_t width = widthOf(x);
  auto constant = [&](int64_t value) { return splatBits(value, width); };
  auto unsignedLess = [&](Value u, int64_t v) {
    return arith::CmpIOp::create(b, loc, arith::CmpIPredicate::ult, u,
                                 constant(v))
        .getResult();
  };
  Value raw = bits(x);
  Value sign = arith::AndIOp::create(b, loc, raw, constant(0x80000000));
  Value magnitude = arith::XOrIOp::create(b, loc, raw, sign);
  // Subnormal results: an addition that leaves the rounded mantissa in the low
  // bits.
  const int64_t magic = ((127 - 15) + (23 - 10) + 1) << 23;
  Value small = arith::AddFOp::create(b, loc, floatsOf(magnitude),
                                      floatsOf(constant(magic)));
  Value subnormal = arith::SubIOp::create(b, loc, bits(small), constant(magic));
  // Normal results: rebias and round to nearest even on the bits.
  Value odd = arith::AndIOp::create(
      b, loc, arith::ShRUIOp::create(b, loc, magnitude, constant(13)),
      constant(1));
  Value normal = add(add(magnitude, constant(-(112 << 23) + 0xfff)), odd);
  normal = arith::ShRUIOp::create(b, loc, normal, constant(13));
  Value value = select(unsignedLess(magnitude, 113 << 23), subnormal, normal);
  Value nanOrInf =
      select(arith::CmpIOp::create(b, loc, arith::CmpIPredicate::ugt, magnitude,
                                   constant(0x7f800000)),
             constant(0x7e00), constant(0x7c00));
  // From 65520 on the nearest fp16 is infinity.
  value = select(unsignedLess(magnitude, (127 + 16) << 23), value, nanOrInf);
  Value signBits = arith::ShRUIOp::create(b, loc, sign, constant(16));
  value = arith::OrIOp::create(b, loc, value, signBits);
  return arith::TruncIOp::create(b, loc, vector(b.getI16Type(), width), value);
}

void VectorEmitter::storeFloats(Value value, Type storage, Value address) {
  int64_t width = widthOf(value);
  if (storage.isF32())
    return store(value, address);
  if (storage.isBF16())
    return store(roundToBFloat(value), address);
  if (target.hasF16c)
    return store(arith::TruncFOp::create(b, loc, vector(storage, width), value),
                 address);
  store(roundToHalf(value), address);
}

//===----------------------------------------------------------------------===//
// Arithmetic
//===----------------------------------------------------------------------===//

Value VectorEmitter::fma(Value x, Value y, Value z) {
  if (target.hasFma)
    return vector::FMAOp::create(b, loc, x, y, z);
  return arith::AddFOp::create(b, loc, arith::MulFOp::create(b, loc, x, y), z);
}

Value VectorEmitter::largerOf(Value x, Value y) {
  return select(arith::CmpFOp::create(b, loc, arith::CmpFPredicate::OGT, x, y),
                x, y);
}

Value VectorEmitter::smallerOf(Value x, Value y) {
  return select(arith::CmpFOp::create(b, loc, arith::CmpFPredicate::OLT, x, y),
                x, y);
}

Value VectorEmitter::exp2(Value x) {
  if (target.hasScale)
    return exp2ByScale(x);
  int64_t width = widthOf(x);
  // 2^f on [-1/2, 1/2], minimal largest relative error (2e-7 in fp32), exact at
  // 0.
  static constexpr float coefficients[] = {0x1.000000p+0f, 0x1.62e428p-1f,
                                           0x1.ebf918p-3f, 0x1.c6b6e4p-5f,
                                           0x1.3d0c52p-7f, 0x1.5c08e4p-10f};
  // Below, the result is 0; the exponent field of 2^-127 is 0. The order of
  // operands lets a NaN through.
  x = largerOf(splat(-127.0f, width), x);
  x = smallerOf(splat(128.0f, width), x);
  // 1.5 * 2^23 + 127: the sum's low bits hold round(x) + 127.
  const float magic = 12582912.0f + 127.0f;
  Value shifted = arith::AddFOp::create(b, loc, x, splat(magic, width));
  Value rounded = arith::SubFOp::create(b, loc, shifted, splat(magic, width));
  Value f = arith::SubFOp::create(b, loc, x, rounded);
  Value p = splat(coefficients[5], width);
  for (int i = 4; i >= 0; --i)
    p = fma(p, f, splat(coefficients[i], width));
  Value exponent =
      arith::ShLIOp::create(b, loc, bits(shifted), splatBits(23, width));
  // A product rather than an addition to the bits: NaN and 0 stay what they
  // are.
  return arith::MulFOp::create(b, loc, p, floatsOf(exponent));
}

Value VectorEmitter::exp2ByScale(Value x) {
  // AVX-512 splits off the integral part and adds it to the exponent, for
  // infinities too: no range needs to be cut off.
  int64_t width = widthOf(x);
  // 2^f on [0, 1], minimal largest relative error (1.5e-7 in fp32), exact at
  // 0.
  static constexpr float coefficients[] = {0x1.000000p+0f, 0x1.62e4bap-1f,
                                           0x1.ebdb56p-3f, 0x1.c91ce6p-5f,
                                           0x1.277856p-7f, 0x1.e974fap-10f};
  const int64_t bits = width * 32;
  auto i32 = [&](int32_t value) {
    return arith::ConstantOp::create(b, loc, b.getI32IntegerAttr(value))
        .getResult();
  };
  Value all = arith::ConstantOp::create(
      b, loc,
      b.getIntegerAttr(b.getIntegerType(std::max<int64_t>(width, 8)), -1));
  auto call = [&](StringRef name, ValueRange operands) {
    std::string symbol =
        ("llvm.x86.avx512.mask." + name + ".ps." + Twine(bits)).str();
    return LLVM::CallIntrinsicOp::create(b, loc, floats(width),
                                         b.getStringAttr(symbol), operands)
        .getResult(0);
  };
  // 9: rounds down, no exception. 4: rounds as always.
  SmallVector<Value> reduce{x, i32(9), splat(0.0f, width), all};
  SmallVector<Value> scale{Value(), x, splat(0.0f, width), all};
  if (width == 16) {
    reduce.push_back(i32(4));
    scale.push_back(i32(4));
  }
  Value f = call("reduce", reduce);
  Value p = splat(coefficients[5], width);
  for (int i = 4; i >= 0; --i)
    p = fma(p, f, splat(coefficients[i], width));
  scale[0] = p;
  return call("scalef", scale);
}

Value VectorEmitter::tanh(Value x) {
  // 1 - 2 / (e^2x + 1); large arguments end at 1 and -1 by themselves.
  int64_t width = widthOf(x);
  Value power = exp2(arith::MulFOp::create(
      b, loc, x, splat(float(2 * 1.4426950408889634), width)));
  Value one = splat(1.0f, width);
  Value quotient = arith::DivFOp::create(
      b, loc, splat(2.0f, width), arith::AddFOp::create(b, loc, power, one));
  return arith::SubFOp::create(b, loc, one, quotient);
}

Value VectorEmitter::log2(Value x) {
  int64_t width = widthOf(x);
  auto constant = [&](int64_t value) { return splatBits(value, width); };
  // x = m * 2^n with m in [sqrt(1/2), sqrt(2)).
  const int64_t sqrtHalf = 0x3f3504f3;
  Value offset = arith::SubIOp::create(b, loc, bits(x), constant(sqrtHalf));
  Value exponent = arith::ShRSIOp::create(b, loc, offset, constant(23));
  Value mantissa = floatsOf(arith::SubIOp::create(
      b, loc, bits(x), arith::ShLIOp::create(b, loc, exponent, constant(23))));
  Value n = arith::SIToFPOp::create(b, loc, floats(width), exponent);
  // log2(m) = 2/ln(2) * atanh(f), f = (m - 1) / (m + 1), |f| < 0.172.
  Value one = splat(1.0f, width);
  Value f = arith::DivFOp::create(b, loc,
                                  arith::SubFOp::create(b, loc, mantissa, one),
                                  arith::AddFOp::create(b, loc, mantissa, one));
  Value square = arith::MulFOp::create(b, loc, f, f);
  const double factor = 2 * 1.4426950408889634;
  Value series = splat(float(factor / 9), width);
  for (int k = 7; k >= 1; k -= 2)
    series = fma(series, square, splat(float(factor / k), width));
  Value result = fma(f, series, n);
  Value isZero = arith::CmpFOp::create(b, loc, arith::CmpFPredicate::OEQ, x,
                                       splat(0.0f, width));
  Value isNan = arith::CmpFOp::create(b, loc, arith::CmpFPredicate::UNO, x, x);
  result = select(isZero, splat(-std::numeric_limits<float>::infinity(), width),
                  result);
  return select(isNan, x, result);
}

//===----------------------------------------------------------------------===//
// Rearrangement
//===----------------------------------------------------------------------===//

Value VectorEmitter::shuffle(Value x, Value y, ArrayRef<int64_t> mask) {
  return vector::ShuffleOp::create(b, loc, x, y, mask);
}

Value VectorEmitter::resize(Value value, int64_t width) {
  int64_t have = widthOf(value);
  if (have == width)
    return value;
  SmallVector<int64_t> mask;
  for (int64_t i = 0; i < width; ++i)
    mask.push_back(i % have);
  return shuffle(value, value, mask);
}

void VectorEmitter::transpose(MutableArrayRef<Value> rows) {
  int64_t lanes = target.lanes;
  // Swaps the off-diagonal quarters of ever smaller squares.
  for (int64_t half = lanes / 2; half >= 1; half /= 2) {
    SmallVector<int64_t> upper, lower;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      bool left = (lane & half) == 0;
      upper.push_back(left ? lane : lanes + lane - half);
      lower.push_back(left ? lane + half : lanes + lane);
    }
    for (int64_t i = 0; i < lanes; ++i) {
      if (i & half)
        continue;
      Value x = rows[i], y = rows[i | half];
      rows[i] = shuffle(x, y, upper);
      rows[i | half] = shuffle(x, y, lower);
    }
  }
}
