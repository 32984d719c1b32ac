//===- FoldScoreScale.cpp - The scale of scores in the exponential --------===//
//
// Online softmax over a loop's tiles, with scores s = c x of which x is what
// the tensor cores give and c > 0 a scalar:
//
//   m' = max(m, max s); a = exp2(m - m'); p = exp2(s - m')
//
// becomes, with r the maximum of x so far and c r rounded to M,
//
//   r' = max(r, max x); M' = c r'; a = exp2(c r - M'); p = exp2(fma(x, c, -M'))
//
// one operation an element less. Any M' serves that is the same for all of a
// row, as long as exponents stay small; but the product in the fma is exact and
// M' is not, so p at the maximum is 2^(rounding error of M'). Where |M'| >=
// 2^28 that is up to 2^16. There scores of one row are equal or differ by more
// than 8, and c is replaced by a power of two, whose products are exact: the
// largest weigh 1, the others nothing to speak of.
//
//===----------------------------------------------------------------------===//

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/IR/Matchers.h"
#include "prefill/Codegen/CUDA/CUDA.h"

namespace prefill {
#define GEN_PASS_DEF_FOLDSCORESCALE
#include "prefill/Codegen/CUDA/Passes.h.inc"
} // namespace prefill

using namespace mlir;
using namespace prefill;

namespace {

class Folder {
public:
  explicit Folder(tile::ForTilesOp loop)
      : loop(loop), b(loop), loc(loop.getLoc()) {}
  bool match();
  void rewrite();

private:
  /// The op that defines a value in the loop's body and has the only use of
  /// its operand chain.
  template <typename Op>
  Op inBody(Value value) {
    auto op = value.getDefiningOp<Op>();
    return op && op->getBlock() == &loop.getBody().front() ? op : Op();
  }
  Value splat(Type type, Value scalar) {
    return tile::BroadcastOp::create(b, loc, type, scalar,
                                     b.getDenseI64ArrayAttr({}));
  }
  Value rows(Value row, Type type) {
    return tile::BroadcastOp::create(b, loc, type, row,
                                     b.getDenseI64ArrayAttr({0}));
  }
  Value number(double value) {
    return arith::ConstantOp::create(b, loc, b.getF32FloatAttr(value));
  }

  tile::ForTilesOp loop;
  OpBuilder b;
  Location loc;
  unsigned maximum = 0; ///< which iter arg
  arith::MulFOp scaling;
  tile::MaskOp mask; ///< or null
  tile::ReduceRowOp reduce;
  arith::CmpFOp compare;
  arith::SelectOp newMaximum;
  arith::SubFOp oldDifference, difference;
  Value factor;
};

} // namespace

bool Folder::match() {
  Block &body = loop.getBody().front();
  for (auto dot : body.getOps<tile::DotOp>()) {
    if (!dot.getResult().hasOneUse())
      continue;
    scaling = dyn_cast<arith::MulFOp>(*dot.getResult().user_begin());
    if (!scaling || scaling.getLhs() != dot.getResult())
      continue;
    auto broadcast = scaling.getRhs().getDefiningOp<tile::BroadcastOp>();
    if (!broadcast || isa<ShapedType>(broadcast.getSource().getType()))
      continue;
    factor = broadcast.getSource();
    if (factor.getParentBlock() == &body)
      continue;
    Value scores = scaling.getResult();
    mask = {};
    if (scores.hasOneUse()) {
      mask = dyn_cast<tile::MaskOp>(*scores.user_begin());
      if (!mask)
        continue;
      scores = mask.getResult();
    }
    // max, and the difference under the exponential.
    reduce = {}, difference = {};
    unsigned uses = 0;
    for (Operation *user : scores.getUsers()) {
      ++uses;
      if (auto op = dyn_cast<tile::ReduceRowOp>(user))
        reduce = op;
      if (auto op = dyn_cast<arith::SubFOp>(user))
        difference = op;
    }
    if (uses != 2 || !reduce || !difference ||
        reduce.getKind() != tile::ReduceKind::Max ||
        difference.getLhs() != scores)
      continue;
    auto spread = difference.getRhs().getDefiningOp<tile::BroadcastOp>();
    if (!spread || !difference.getResult().hasOneUse() ||
        !isa<math::Exp2Op>(*difference.getResult().user_begin()))
      continue;
    newMaximum = inBody<arith::SelectOp>(spread.getSource());
    if (!newMaximum)
      continue;
    compare = inBody<arith::CmpFOp>(newMaximum.getCondition());
    if (!compare || compare.getPredicate() != arith::CmpFPredicate::OGT ||
        compare.getLhs() != reduce.getResult() ||
        newMaximum.getTrueValue() != reduce.getResult() ||
        newMaximum.getFalseValue() != compare.getRhs() ||
        !compare.getResult().hasOneUse())
      continue;
    auto arg = dyn_cast<BlockArgument>(compare.getRhs());
    auto at = llvm::find(loop.getIterArgs(), compare.getRhs());
    if (!arg || at == loop.getIterArgs().end())
      continue;
    maximum = at - loop.getIterArgs().begin();
    if (loop.getYield()->getOperand(maximum) != newMaximum.getResult())
      continue;
    // The old maximum is compared, kept, and subtracted from; the new one is
    // spread, yielded and subtracted.
    oldDifference = {};
    bool others = false;
    for (Operation *user : arg.getUsers()) {
      if (auto op = dyn_cast<arith::SubFOp>(user))
        oldDifference = op;
      else
        others |= user != compare && user != newMaximum;
    }
    for (Operation *user : newMaximum->getUsers())
      others |=
          user != oldDifference && user != spread && user != loop.getYield();
    if (others || !oldDifference || oldDifference.getLhs() != arg ||
        oldDifference.getRhs() != newMaximum.getResult())
      continue;
    return true;
  }
  return false;
}

void Folder::rewrite() {
  auto tileType = cast<RankedTensorType>(scaling.getType());
  auto rowType = cast<RankedTensorType>(newMaximum.getType());
  // Outside: a power of two from c, at most 1, so that no product overflows;
  // and the maximum so far in units of x.
  b.setInsertionPoint(loop);
  Value bits = arith::BitcastOp::create(b, loc, b.getI32Type(), factor);
  Value exponent =
      arith::ConstantOp::create(b, loc, b.getI32IntegerAttr(0x7f800000));
  Value power = arith::BitcastOp::create(
      b, loc, b.getF32Type(), arith::AndIOp::create(b, loc, bits, exponent));
  power = arith::MinNumFOp::create(b, loc, power, number(1));
  Value init = loop.getInits()[maximum];
  Attribute constant;
  // The lowest number serves in any unit.
  if (!matchPattern(init, m_Constant(&constant)))
    init = arith::DivFOp::create(b, loc, init, splat(rowType, factor));
  loop.getInitsMutable()[maximum].set(init);

  b.setInsertionPoint(newMaximum);
  Value old = compare.getRhs();
  Value raw = arith::MaxNumFOp::create(b, loc, reduce.getResult(), old);
  Value scaled = arith::MulFOp::create(b, loc, raw, splat(rowType, factor));
  Value isLarge = arith::CmpFOp::create(
      b, loc, arith::CmpFPredicate::OGE, math::AbsFOp::create(b, loc, scaled),
      splat(rowType, number(double(1 << 28))));
  Value scale = arith::SelectOp::create(b, loc, isLarge, splat(rowType, power),
                                        splat(rowType, factor));
  Value reference = arith::SelectOp::create(
      b, loc, isLarge,
      arith::MulFOp::create(b, loc, raw, splat(rowType, power)), scaled);
  b.setInsertionPoint(oldDifference);
  Value oldReference = arith::MulFOp::create(b, loc, old, scale);
  Value step = arith::SubFOp::create(b, loc, oldReference, reference);
  oldDifference.getResult().replaceAllUsesWith(step);
  b.setInsertionPoint(difference);
  Value negative = arith::NegFOp::create(b, loc, reference);
  Value fused =
      math::FmaOp::create(b, loc, difference.getLhs(), rows(scale, tileType),
                          rows(negative, tileType));
  difference.getResult().replaceAllUsesWith(fused);
  loop.getYield()->setOperand(maximum, raw);
  scaling.getResult().replaceAllUsesWith(scaling.getLhs());

  // Behind: back to the scores' unit.
  b.setInsertionPointAfter(loop);
  Value result = loop.getResult(maximum);
  Value factors = splat(rowType, factor);
  Value back = arith::MulFOp::create(b, loc, result, factors);
  result.replaceAllUsesExcept(back, back.getDefiningOp());
  for (Operation *op :
       {difference.getOperation(), oldDifference.getOperation()}) {
    auto spread = op->getOperand(1).getDefiningOp<tile::BroadcastOp>();
    op->erase();
    if (spread && spread->use_empty())
      spread->erase();
  }
  newMaximum.erase();
  compare.erase();
  scaling.erase();
}

namespace {

struct FoldScoreScale
    : public prefill::impl::FoldScoreScaleBase<FoldScoreScale> {
  void runOnOperation() override {
    SmallVector<tile::ForTilesOp> loops;
    getOperation().walk([&](tile::ForTilesOp loop) { loops.push_back(loop); });
    for (tile::ForTilesOp loop : loops) {
      Folder folder(loop);
      if (folder.match())
        folder.rewrite();
    }
  }
};

} // namespace
