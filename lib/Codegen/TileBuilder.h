//===- TileBuilder.h - The ops of a kernel, with fewer words ----*- C++ -*-===//
//
// What the builders of kernels share.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_LIB_CODEGEN_TILEBUILDER_H
#define PREFILL_LIB_CODEGEN_TILEBUILDER_H

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "prefill/Codegen/KernelBuilder.h"

namespace prefill {

// Only files of the code generator include this.
using namespace mlir;

inline constexpr double kLog2E = 1.4426950408889634;
inline constexpr double kLn2 = 0.6931471805599453;
/// Lower bound of the running maximum: finite, so that differences of two
/// maxima are never inf - inf, and low enough for every visible score.
inline constexpr float kLowestMax = -3.0e38f;

/// The ops of a kernel, with fewer words.
class TileBuilder {
public:
  TileBuilder(OpBuilder &builder, const KernelSpec &spec)
      : b(builder), loc(builder.getUnknownLoc()), spec(spec) {}

  Type f32() { return b.getF32Type(); }
  Type storage() {
    switch (spec.dtype) {
    case DType::F16:
      return b.getF16Type();
    case DType::BF16:
      return b.getBF16Type();
    case DType::F32:
      break;
    }
    return f32();
  }
  RankedTensorType tensor(ArrayRef<int64_t> shape, Type type) {
    return RankedTensorType::get(shape, type);
  }
  tile::ViewType view(ArrayRef<int64_t> shape, Type type) {
    return tile::ViewType::get(b.getContext(), shape, type);
  }
  RankedTensorType scores() {
    return tensor({spec.blockQ, spec.blockK}, f32());
  }

  Value constant(float value, Type type) {
    Type element = getElementTypeOrSelf(type);
    auto number = b.getFloatAttr(element, value);
    if (auto shaped = dyn_cast<RankedTensorType>(type))
      return arith::ConstantOp::create(b, loc,
                                       DenseElementsAttr::get(shaped, number));
    return arith::ConstantOp::create(b, loc, number);
  }
  Value integer(int64_t value) {
    return arith::ConstantOp::create(b, loc, b.getI64IntegerAttr(value));
  }
  Value add(Value x, Value y) { return arith::AddFOp::create(b, loc, x, y); }
  Value sub(Value x, Value y) { return arith::SubFOp::create(b, loc, x, y); }
  Value mul(Value x, Value y) { return arith::MulFOp::create(b, loc, x, y); }
  Value mul(Value x, double y) { return mul(x, constant(y, x.getType())); }
  Value exp2(Value x) { return math::Exp2Op::create(b, loc, x); }
  Value broadcast(Value x, ArrayRef<int64_t> dims, Type type) {
    return tile::BroadcastOp::create(b, loc, type, x,
                                     b.getDenseI64ArrayAttr(dims));
  }
  /// One number a row, repeated along the rows of `like`.
  Value alongRows(Value x, Value like) {
    return broadcast(x, {0}, like.getType());
  }
  /// The larger one; y when either is NaN.
  Value larger(Value x, Value y) {
    Value greater =
        arith::CmpFOp::create(b, loc, arith::CmpFPredicate::OGT, x, y);
    return arith::SelectOp::create(b, loc, greater, x, y);
  }
  Value load(Value view, RankedTensorType type, Value keys = {}) {
    return tile::LoadOp::create(b, loc, type, view, keys);
  }
  Value widen(Value x) {
    auto type = cast<RankedTensorType>(x.getType());
    if (type.getElementType().isF32())
      return x;
    return arith::ExtFOp::create(b, loc, tensor(type.getShape(), f32()), x);
  }

  /// Starts a kernel; arguments follow by `argument`.
  tile::KernelOp begin(StringRef name, StringRef abi) {
    kernel = tile::KernelOp::create(b, loc, name, b.getFunctionType({}, {}),
                                    abi, ArrayAttr(), ArrayAttr());
    body = b.createBlock(&kernel.getBody());
    return kernel;
  }
  Value argument(StringRef field, Type type) {
    fields.push_back(b.getDictionaryAttr(
        b.getNamedAttr(tile::kFieldAttr, b.getStringAttr(field))));
    return body->addArgument(type, loc);
  }
  void end() {
    tile::ReturnOp::create(b, loc);
    kernel.setFunctionType(b.getFunctionType(body->getArgumentTypes(), {}));
    kernel.setArgAttrsAttr(b.getArrayAttr(fields));
    b.setInsertionPointAfter(kernel);
  }

  /// position + distance + row, one number a row, saturated to i32.
  Value bound(Value position, Value distance) {
    Value sum = position;
    if (distance)
      sum = arith::AddIOp::create(b, loc, sum, distance);
    // Leaves room for the row number; INT32_MAX itself marks dead keys.
    const int64_t limit = int64_t(std::numeric_limits<int32_t>::max()) - 65536;
    sum = arith::MinSIOp::create(b, loc, sum, integer(limit));
    sum = arith::MaxSIOp::create(b, loc, sum, integer(-limit));
    Value start = arith::TruncIOp::create(b, loc, b.getI32Type(), sum);
    auto type = tensor({spec.blockQ}, b.getI32Type());
    Value rows = tile::RowsOp::create(b, loc, type);
    return arith::AddIOp::create(b, loc, rows, broadcast(start, {}, type));
  }

  OpBuilder &b;
  Location loc;
  const KernelSpec &spec;

private:
  tile::KernelOp kernel;
  Block *body = nullptr;
  SmallVector<Attribute> fields;
};

/// What decides about visibility inside a kernel.
struct Visibility {
  Value highest, lowest;    ///< one number a row: last and first visible key
  Value keyMask;            ///< view
  Value qSegment, kSegment; ///< one number a row; view
};

/// The body of the mask: which of these keys each row may see.
Value buildPredicate(TileBuilder &t, const Visibility &visibility, Value keys);

/// Arguments that decide about visibility, as the features (PREFILL_TILE_*)
/// say, in the order in which attention kernels have them.
Visibility bindVisibility(TileBuilder &t, uint32_t features);

} // namespace prefill

#endif
