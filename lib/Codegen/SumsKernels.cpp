//===- SumsKernels.cpp - Attention of the last query rows on tiles --------===//
//
// What vertical-slash selects from (MInference, Algorithm 2): the softmax of a
// few query rows over all keys, summed by column and by diagonal. Keys come in
// chunks, so that few rows keep a GPU busy: one kernel for the rows' maxima and
// sums, one for the lines.
//
//===----------------------------------------------------------------------===//

#include "TileBuilder.h"
#include "prefill/kernel_abi.h"

using namespace mlir;
using namespace prefill;

namespace {

/// Arguments and scores that both kernels share.
class SumsKernel {
public:
  SumsKernel(OpBuilder &builder, const KernelSpec &spec, StringRef what)
      : t(builder, spec), spec(spec) {
    const uint32_t features = getTileFeatures(spec);
    auto f32 = builder.getF32Type();
    kernel = t.begin(
        (what + "_" + getScoreKey(spec) + "_x" + Twine::utohexstr(features))
            .str(),
        "sums");
    constexpr int64_t any = ShapedType::kDynamic;
    q = t.argument("q", t.view({any, spec.headDim}, t.storage()));
    k = t.argument("k", t.view({any, spec.headDim}, t.storage()));
    index = t.argument(
        "keys", tile::KeyIndexType::get(builder.getContext(), spec.blockK));
    scale = t.argument("scale", f32);
    visibility = bindVisibility(t, features);
    if (features & PREFILL_TILE_SOFTCAP)
      softcap = t.argument("softcap", f32);
  }

  /// Before the loop.
  void loadRows() {
    Value factor =
        softcap ? arith::DivFOp::create(t.b, t.loc, scale, softcap).getResult()
                : t.mul(scale, kLog2E);
    Value rows =
        t.widen(t.load(q, t.tensor({spec.blockQ, spec.headDim}, t.storage())));
    scaled = t.mul(rows, t.broadcast(factor, {}, rows.getType()));
  }
  /// Scores of a tile of keys times log2(e); -inf where a row sees none.
  Value score(Value keys) {
    Value tile =
        t.load(k, t.tensor({spec.blockK, spec.headDim}, t.storage()), keys);
    Value s = tile::DotOp::create(t.b, t.loc, t.scores(), scaled, tile, Value(),
                                  /*transpose_b=*/true);
    if (softcap) {
      s = math::TanhOp::create(t.b, t.loc, s);
      s = t.mul(s, t.broadcast(t.mul(softcap, kLog2E), {}, s.getType()));
    }
    auto mask = tile::MaskOp::create(t.b, t.loc, t.scores(), s, keys);
    OpBuilder::InsertionGuard guard(t.b);
    t.b.createBlock(&mask.getPredicate());
    Value visible = buildPredicate(t, visibility, keys);
    tile::YieldOp::create(t.b, t.loc, ValueRange{visible});
    return mask.getResult();
  }

  TileBuilder t;
  const KernelSpec &spec;
  tile::KernelOp kernel;
  Value q, k, index, scale, softcap, scaled;
  Visibility visibility;
};

} // namespace

tile::KernelOp prefill::buildRowSumsKernel(OpBuilder &builder,
                                           const KernelSpec &spec) {
  OpBuilder::InsertionGuard guard(builder);
  SumsKernel kernel(builder, spec, "row_sums");
  TileBuilder &t = kernel.t;
  auto view = t.view({ShapedType::kDynamic}, t.f32());
  Value mostView = t.argument("row_most", view);
  Value sumView = t.argument("row_sum", view);
  auto numbers = t.tensor({spec.blockQ}, t.f32());
  kernel.loadRows();
  auto loop = tile::ForTilesOp::create(
      builder, t.loc, kernel.index,
      ValueRange{t.constant(kLowestMax, numbers), t.constant(0, numbers)});
  {
    OpBuilder::InsertionGuard inLoop(builder);
    builder.setInsertionPointToStart(&loop.getBody().front());
    Value oldMost = loop.getIterArgs()[0], oldSum = loop.getIterArgs()[1];
    Value s = kernel.score(loop.getKeys());
    Value most = t.larger(tile::ReduceRowOp::create(builder, t.loc, numbers,
                                                    tile::ReduceKind::Max, s),
                          oldMost);
    Value p = t.exp2(t.sub(s, t.alongRows(most, s)));
    Value sum = t.mul(oldSum, t.exp2(t.sub(oldMost, most)));
    sum = t.add(sum, tile::ReduceRowOp::create(builder, t.loc, numbers,
                                               tile::ReduceKind::Sum, p));
    tile::YieldOp::create(builder, t.loc, ValueRange{most, sum});
  }
  tile::StoreOp::create(builder, t.loc, loop.getResult(0), mostView, Value());
  tile::StoreOp::create(builder, t.loc, loop.getResult(1), sumView, Value());
  t.end();
  return kernel.kernel;
}

tile::KernelOp prefill::buildLineSumsKernel(OpBuilder &builder,
                                            const KernelSpec &spec) {
  OpBuilder::InsertionGuard guard(builder);
  SumsKernel kernel(builder, spec, "line_sums");
  TileBuilder &t = kernel.t;
  constexpr int64_t any = ShapedType::kDynamic;
  auto view = t.view({any}, t.f32());
  Value most = t.argument("most", view);
  Value inverse = t.argument("inverse", view);
  Value columns = t.argument("column", view);
  Value diagonals =
      t.argument("diagonal", t.view({any, 2 * int64_t(spec.blockQ)}, t.f32()));
  auto numbers = t.tensor({spec.blockQ}, t.f32());
  Value rowMost = t.load(most, numbers), rowInverse = t.load(inverse, numbers);
  Value exists =
      arith::CmpFOp::create(builder, t.loc, arith::CmpFPredicate::OGT,
                            rowInverse, t.constant(0, numbers));
  auto bools = t.tensor({spec.blockQ, spec.blockK}, builder.getI1Type());
  kernel.loadRows();
  auto loop =
      tile::ForTilesOp::create(builder, t.loc, kernel.index, ValueRange{});
  {
    OpBuilder::InsertionGuard inLoop(builder);
    builder.setInsertionPointToStart(&loop.getBody().front());
    Value s = kernel.score(loop.getKeys());
    Value p = t.exp2(t.sub(s, t.alongRows(rowMost, s)));
    p = t.mul(p, t.alongRows(rowInverse, p));
    // Rows that do not exist may have met numbers that are none.
    p = arith::SelectOp::create(builder, t.loc, t.broadcast(exists, {0}, bools),
                                p, t.constant(0, p.getType()));
    tile::StoreSumsOp::create(builder, t.loc, p, columns, diagonals,
                              loop.getKeys());
    tile::YieldOp::create(builder, t.loc, ValueRange{});
  }
  t.end();
  return kernel.kernel;
}
