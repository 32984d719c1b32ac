//===- TileToTensorCores.cpp - Products in the form tensor cores have -----===//

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"
#include "prefill/Codegen/CUDA/CUDA.h"

namespace prefill {
#define GEN_PASS_DEF_TILETOTENSORCORES
#include "prefill/Codegen/CUDA/Passes.h.inc"
} // namespace prefill

using namespace mlir;
using namespace prefill;

/// A widened 16-bit tile; null if `value` is none.
static Value getNarrow(Value value) {
  auto extend = value.getDefiningOp<arith::ExtFOp>();
  if (!extend)
    return {};
  Type element = getElementTypeOrSelf(extend.getIn().getType());
  return element.isF16() || element.isBF16() ? extend.getIn() : Value();
}

/// The scalar that `value` repeats; null if it is no broadcast of one.
static Value getUniform(Value value) {
  auto broadcast = value.getDefiningOp<tile::BroadcastOp>();
  if (!broadcast || isa<ShapedType>(broadcast.getSource().getType()))
    return {};
  return broadcast.getSource();
}

static LogicalResult rewriteDot(tile::DotOp dot) {
  Type element = getElementTypeOrSelf(dot.getB().getType());
  if (!element.isF16() && !element.isBF16())
    return dot.emitOpError("right operand holds ")
           << element << ", tensor cores multiply f16 or bf16";
  auto aType = cast<RankedTensorType>(dot.getA().getType());
  if (aType.getElementType() == element)
    return success();
  OpBuilder b(dot);
  Location loc = dot.getLoc();
  // (x * c) y = (x y) * c: exact in what tensor cores multiply.
  Value narrow = getNarrow(dot.getA()), factor;
  auto product = dot.getA().getDefiningOp<arith::MulFOp>();
  if (!narrow && product && !dot.getAcc()) {
    narrow = getNarrow(product.getLhs());
    factor = getUniform(product.getRhs());
  }
  if (!narrow || (product && !factor) ||
      getElementTypeOrSelf(narrow.getType()) != element) {
    narrow = arith::TruncFOp::create(
        b, loc, RankedTensorType::get(aType.getShape(), element), dot.getA());
    factor = {};
  }
  Value result = tile::DotOp::create(b, loc, dot.getType(), narrow, dot.getB(),
                                     dot.getAcc(), dot.getTransposeB());
  if (factor) {
    Value factors = tile::BroadcastOp::create(b, loc, dot.getType(), factor,
                                              b.getDenseI64ArrayAttr({}));
    result = arith::MulFOp::create(b, loc, result, factors);
  }
  dot.replaceAllUsesWith(result);
  dot.erase();
  return success();
}

namespace {

struct TileToTensorCores
    : public prefill::impl::TileToTensorCoresBase<TileToTensorCores> {
  void runOnOperation() override {
    SmallVector<tile::DotOp> dots;
    getOperation().walk([&](tile::DotOp dot) { dots.push_back(dot); });
    for (tile::DotOp dot : dots)
      if (failed(rewriteDot(dot)))
        return signalPassFailure();
    // Widenings and factors that nobody reads any more; users come after.
    SmallVector<Operation *> ops;
    getOperation().walk([&](Operation *op) { ops.push_back(op); });
    for (Operation *op : llvm::reverse(ops))
      if (isOpTriviallyDead(op))
        op->erase();
  }
};

} // namespace
