//===- KernelBuilder.cpp - Attention and score kernels on tiles -----------===//

#include "TileBuilder.h"
#include "prefill/kernel_abi.h"
#include "llvm/ADT/StringExtras.h"

using namespace mlir;
using namespace prefill;

Value prefill::buildPredicate(TileBuilder &t, const Visibility &visibility,
                              Value keys) {
  OpBuilder &b = t.b;
  Location loc = t.loc;
  const int64_t bq = t.spec.blockQ, bk = t.spec.blockK;
  auto ints = t.tensor({bq, bk}, b.getI32Type());
  auto bools = t.tensor({bq, bk}, b.getI1Type());
  Value visible;
  auto require = [&](Value condition) {
    visible =
        visible ? arith::AndIOp::create(b, loc, visible, condition).getResult()
                : condition;
  };
  auto compare = [&](arith::CmpIPredicate predicate, Value x, Value y) {
    return arith::CmpIOp::create(b, loc, predicate, x, y).getResult();
  };
  if (visibility.highest || visibility.lowest) {
    Value position =
        tile::PositionsOp::create(b, loc, t.tensor({bk}, b.getI32Type()), keys);
    Value key = t.broadcast(position, {1}, ints);
    if (visibility.highest)
      require(compare(arith::CmpIPredicate::sle, key,
                      t.broadcast(visibility.highest, {0}, ints)));
    if (visibility.lowest)
      require(compare(arith::CmpIPredicate::sge, key,
                      t.broadcast(visibility.lowest, {0}, ints)));
  }
  if (visibility.keyMask) {
    auto bytes = t.tensor({bk}, b.getI8Type());
    Value mask = t.load(visibility.keyMask, bytes, keys);
    Value zero = arith::ConstantOp::create(
        b, loc, DenseElementsAttr::get(bytes, b.getI8IntegerAttr(0)));
    Value set = compare(arith::CmpIPredicate::ne, mask, zero);
    require(t.broadcast(set, {1}, bools));
  }
  if (visibility.qSegment) {
    Value segment =
        t.load(visibility.kSegment, t.tensor({bk}, b.getI32Type()), keys);
    require(compare(arith::CmpIPredicate::eq, t.broadcast(segment, {1}, ints),
                    t.broadcast(visibility.qSegment, {0}, ints)));
  }
  if (!visible)
    visible = arith::ConstantOp::create(
        b, loc, DenseElementsAttr::get(bools, b.getBoolAttr(true)));
  return visible;
}

Visibility prefill::bindVisibility(TileBuilder &t, uint32_t features) {
  OpBuilder &b = t.b;
  Location loc = t.loc;
  constexpr int64_t any = ShapedType::kDynamic;
  Type i32 = b.getI32Type(), i64 = b.getI64Type();
  Visibility visibility;
  if (features & (PREFILL_TILE_CAUSAL | PREFILL_TILE_WINDOW)) {
    Value position = t.argument("position", i64);
    if (features & PREFILL_TILE_CAUSAL)
      visibility.highest = t.bound(position, t.argument("window_right", i64));
    if (features & PREFILL_TILE_WINDOW) {
      Value left = t.argument("window_left", i64);
      visibility.lowest =
          t.bound(position, arith::SubIOp::create(b, loc, t.integer(0), left));
    }
  }
  if (features & PREFILL_TILE_KEY_MASK)
    visibility.keyMask = t.argument("key_mask", t.view({any}, b.getI8Type()));
  if (features & PREFILL_TILE_SEGMENTS) {
    visibility.qSegment = t.load(t.argument("q_segment", t.view({any}, i32)),
                                 t.tensor({t.spec.blockQ}, i32));
    visibility.kSegment = t.argument("k_segment", t.view({any}, i32));
  }
  return visibility;
}

uint32_t prefill::getTileFeatures(const KernelSpec &spec) {
  uint32_t features = 0;
  // CAUSAL is any bound on the right, WINDOW one on the left (kernel_abi.h).
  if (spec.causal || spec.windowRight < KernelSpec::Unbounded)
    features |= PREFILL_TILE_CAUSAL;
  if (spec.windowLeft < KernelSpec::Unbounded)
    features |= PREFILL_TILE_WINDOW;
  if (spec.hasKeyMask)
    features |= PREFILL_TILE_KEY_MASK;
  if (spec.hasBias)
    features |= PREFILL_TILE_BIAS;
  if (spec.softcap != 0)
    features |= PREFILL_TILE_SOFTCAP;
  if (spec.hasSink)
    features |= PREFILL_TILE_SINK;
  if (spec.hasSegments)
    features |= PREFILL_TILE_SEGMENTS;
  if (llvm::any_of(spec.heads,
                   [](const HeadPlan &head) { return head.skip > 0; }))
    features |= PREFILL_TILE_SKIP;
  return features;
}

std::string prefill::checkKernelSpec(const KernelSpec &spec) {
  auto range = [](StringRef what, int64_t value, int64_t low, int64_t high,
                  int64_t multiple) -> std::string {
    if (value >= low && value <= high && value % multiple == 0)
      return "";
    std::string text = (what + " " + Twine(value) + " is not in [" +
                        Twine(low) + ", " + Twine(high) + "]")
                           .str();
    if (multiple > 1)
      text += (" or no multiple of " + Twine(multiple)).str();
    return text;
  };
  auto named = [&](std::string reason) {
    return reason.empty() ? reason : "kernel '" + spec.name + "': " + reason;
  };
  std::string reason = range("head dimension", spec.headDim, 1, 1024, 1);
  if (reason.empty())
    reason = range("value head dimension", spec.vHeadDim, 1, 1024, 1);
  if (reason.empty())
    reason = range("block_q", spec.blockQ, 16, 256, 16);
  if (reason.empty())
    reason = range("block_k", spec.blockK, 16, 256, 16);
  if (reason.empty())
    reason = range("query head count", spec.qHeads, 1, 1 << 20, 1);
  if (reason.empty())
    reason = range("KV head count", spec.kvHeads, 1, spec.qHeads, 1);
  if (reason.empty() && spec.qHeads % spec.kvHeads != 0)
    reason = "KV heads do not divide query heads";
  if (reason.empty() && !spec.heads.empty() &&
      int32_t(spec.heads.size()) != spec.qHeads)
    reason = "the plan does not have one entry a query head";
  if (reason.empty() && spec.softcap < 0)
    reason = "softcap is negative";
  if (reason.empty() && spec.maskedRow == MaskedRow::Scores &&
      (spec.hasBias || spec.hasSegments))
    reason = "rows without a visible key cannot be their scores beside a bias "
             "or segments";
  return named(reason);
}

static std::string keyOf(StringRef what, const KernelSpec &spec) {
  static constexpr const char *names[] = {"f32", "f16", "bf16"};
  return (what + "_" + names[int32_t(spec.dtype) % 3] + "_d" +
          Twine(spec.headDim))
      .str();
}

std::string prefill::getTileKey(const KernelSpec &spec) {
  return (keyOf("attention", spec) + "_e" + Twine(spec.vHeadDim) + "_q" +
          Twine(spec.blockQ) + "_k" + Twine(spec.blockK) + "_x" +
          Twine::utohexstr(getTileFeatures(spec)))
      .str();
}

std::string prefill::getScoreKey(const KernelSpec &spec) {
  return (keyOf("score", spec) + "_q" + Twine(spec.blockQ) + "_k" +
          Twine(spec.blockK))
      .str();
}

tile::KernelOp prefill::buildAttentionKernel(OpBuilder &builder,
                                             const KernelSpec &spec) {
  OpBuilder::InsertionGuard guard(builder);
  TileBuilder t(builder, spec);
  OpBuilder &b = builder;
  Location loc = t.loc;
  constexpr int64_t any = ShapedType::kDynamic;
  const int64_t bq = spec.blockQ, bk = spec.blockK, d = spec.headDim,
                e = spec.vHeadDim;
  const uint32_t features = getTileFeatures(spec);
  Type type = t.storage(), f32 = t.f32(), i32 = b.getI32Type(),
       i64 = b.getI64Type();
  auto rowNumbers = t.tensor({bq}, f32);
  auto outputs = t.tensor({bq, e}, f32);

  tile::KernelOp kernel = t.begin(getTileKey(spec), "attention");
  Value q = t.argument("q", t.view({any, d}, type));
  Value k = t.argument("k", t.view({any, d}, type));
  Value v = t.argument("v", t.view({any, e}, type));
  Value o = t.argument("o", t.view({any, e}, type));
  Value lse = t.argument("lse", t.view({any}, f32));
  Value index =
      t.argument("keys", tile::KeyIndexType::get(b.getContext(), spec.blockK));
  Value scale = t.argument("scale", f32);

  Visibility visibility = bindVisibility(t, features);
  Value bias, softcap, sink;
  if (features & PREFILL_TILE_BIAS)
    bias = t.argument("bias", t.view({any, any}, f32));
  if (features & PREFILL_TILE_SOFTCAP)
    softcap = t.argument("softcap", f32);
  if (features & PREFILL_TILE_SINK)
    sink = t.argument("sink", f32);
  Value skip, rowCount;
  if (features & PREFILL_TILE_SKIP) {
    skip = t.argument("skip", f32);
    rowCount = arith::TruncIOp::create(b, loc, i32, t.argument("rows", i64));
  }

  // Scores are kept times log2(e), so that the softmax is a power of two. With
  // a bias they are kept as they are and only differences are multiplied: a row
  // that a large finite bias covers whole is then rounded as the model rounds
  // it (score + bias), and the bias cancels exactly. With a softcap the factor
  // comes after the tanh, and q carries scale / softcap.
  const bool natural = static_cast<bool>(bias);
  const double unit = natural ? 1.0 : kLog2E;
  auto power = [&](Value difference) {
    return t.exp2(natural ? t.mul(difference, kLog2E) : difference);
  };
  Value factor = softcap
                     ? arith::DivFOp::create(b, loc, scale, softcap).getResult()
                     : t.mul(scale, unit);
  Value rows = t.widen(t.load(q, t.tensor({bq, d}, type)));
  Value scaled = t.mul(rows, t.broadcast(factor, {}, rows.getType()));

  Value lowest = t.constant(kLowestMax, rowNumbers);
  Value max = lowest, sum = t.constant(0, rowNumbers);
  if (sink) {
    Value logit = t.broadcast(t.mul(sink, unit), {}, rowNumbers);
    max = t.larger(lowest, logit);
    sum = power(t.sub(logit, max));
  }
  auto loop = tile::ForTilesOp::create(
      b, loc, index, ValueRange{max, sum, t.constant(0, outputs)});
  {
    OpBuilder::InsertionGuard inLoop(b);
    b.setInsertionPointToStart(&loop.getBody().front());
    Value keys = loop.getKeys();
    Value oldMax = loop.getIterArgs()[0], oldSum = loop.getIterArgs()[1],
          oldOut = loop.getIterArgs()[2];
    Value biasTile;
    if (bias)
      biasTile = t.load(bias, t.scores(), keys);
    Value kTile = t.load(k, t.tensor({bk, d}, type), keys);
    Value s = tile::DotOp::create(b, loc, t.scores(), scaled, kTile, Value(),
                                  /*transpose_b=*/true);
    if (softcap) {
      s = math::TanhOp::create(b, loc, s);
      s = t.mul(s, t.broadcast(t.mul(softcap, unit), {}, s.getType()));
    }
    if (biasTile)
      s = t.add(s, biasTile);
    // A maximum passes over what is no number; a sum does not.
    Value sound;
    if (skip) {
      sound = tile::ReduceRowOp::create(b, loc, rowNumbers,
                                        tile::ReduceKind::Sum, s);
      sound = t.sub(sound, sound);
    }
    auto mask = tile::MaskOp::create(b, loc, t.scores(), s, keys);
    {
      OpBuilder::InsertionGuard inMask(b);
      b.createBlock(&mask.getPredicate());
      Value visible = buildPredicate(t, visibility, keys);
      tile::YieldOp::create(b, loc, ValueRange{visible});
    }
    s = mask.getResult();
    Value tileMax =
        tile::ReduceRowOp::create(b, loc, rowNumbers, tile::ReduceKind::Max, s);
    if (skip) {
      Value below = t.sub(tileMax, oldMax);
      below = t.sub(natural ? t.mul(below, kLog2E) : below,
                    t.broadcast(skip, {}, rowNumbers));
      // Rows past the last have no say.
      auto numbers = t.tensor({bq}, i32);
      Value missing =
          arith::CmpIOp::create(b, loc, arith::CmpIPredicate::sge,
                                tile::RowsOp::create(b, loc, numbers),
                                t.broadcast(rowCount, {}, numbers));
      tile::NeedOp::create(b, loc,
                           arith::SelectOp::create(b, loc, missing,
                                                   t.constant(-1, rowNumbers),
                                                   t.add(below, sound)));
    }
    Value newMax = t.larger(tileMax, oldMax);
    Value decay = power(t.sub(oldMax, newMax));
    Value p = power(t.sub(s, t.alongRows(newMax, s)));
    Value tileSum =
        tile::ReduceRowOp::create(b, loc, rowNumbers, tile::ReduceKind::Sum, p);
    Value newSum = t.add(t.mul(oldSum, decay), tileSum);
    Value decayed = t.mul(oldOut, t.alongRows(decay, oldOut));
    Value vTile = t.load(v, t.tensor({bk, e}, type), keys);
    Value newOut = tile::DotOp::create(b, loc, outputs, p, vTile, decayed,
                                       /*transpose_b=*/false);
    tile::YieldOp::create(b, loc, ValueRange{newMax, newSum, newOut});
  }
  max = loop.getResult(0);
  sum = loop.getResult(1);
  Value out = loop.getResult(2);
  Value zero = t.constant(0, rowNumbers);
  Value none =
      arith::CmpFOp::create(b, loc, arith::CmpFPredicate::OEQ, sum, zero);
  Value inverse = arith::DivFOp::create(b, loc, t.constant(1, rowNumbers), sum);
  inverse = arith::SelectOp::create(b, loc, none, zero, inverse);
  out = t.mul(out, t.alongRows(inverse, out));
  if (type != f32)
    out = arith::TruncFOp::create(b, loc, t.tensor({bq, e}, type), out);
  tile::StoreOp::create(b, loc, out, o, Value());
  Value logSum = math::Log2Op::create(b, loc, sum);
  logSum = natural ? t.add(max, t.mul(logSum, kLn2))
                   : t.mul(t.add(max, logSum), kLn2);
  tile::StoreOp::create(b, loc, logSum, lse, Value());
  t.end();
  return kernel;
}

tile::KernelOp prefill::buildScoreKernel(OpBuilder &builder,
                                         const KernelSpec &spec) {
  OpBuilder::InsertionGuard guard(builder);
  TileBuilder t(builder, spec);
  OpBuilder &b = builder;
  Location loc = t.loc;
  constexpr int64_t any = ShapedType::kDynamic;
  const int64_t bq = spec.blockQ, bk = spec.blockK, d = spec.headDim;
  tile::KernelOp kernel = t.begin(getScoreKey(spec), "score");
  Value q = t.argument("q", t.view({any, d}, t.storage()));
  Value k = t.argument("k", t.view({any, d}, t.storage()));
  Value out = t.argument("out", t.view({bq, any}, t.f32()));
  Value index =
      t.argument("range", tile::KeyIndexType::get(b.getContext(), spec.blockK));
  Value scale = t.argument("scale", t.f32());
  Value rows = t.widen(t.load(q, t.tensor({bq, d}, t.storage())));
  Value scaled = t.mul(rows, t.broadcast(scale, {}, rows.getType()));
  auto loop = tile::ForTilesOp::create(b, loc, index, ValueRange{});
  {
    OpBuilder::InsertionGuard inLoop(b);
    b.setInsertionPointToStart(&loop.getBody().front());
    Value kTile = t.load(k, t.tensor({bk, d}, t.storage()), loop.getKeys());
    Value s = tile::DotOp::create(b, loc, t.scores(), scaled, kTile, Value(),
                                  /*transpose_b=*/true);
    tile::StoreOp::create(b, loc, s, out, loop.getKeys());
    tile::YieldOp::create(b, loc, ValueRange{});
  }
  t.end();
  return kernel;
}
