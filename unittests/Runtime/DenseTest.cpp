//===- DenseTest.cpp - Dense attention through the runtime
//-----------------===//
//
// Every mask, layout, type and degenerate size against an attention without
// tiles. Head dims are small; the tile function is the reference one.
//
//===----------------------------------------------------------------------===//
#include "Reference.h"
#include "gtest/gtest.h"

using namespace ref;

namespace {

constexpr unsigned Causal = PREFILL_TILE_CAUSAL;
constexpr unsigned CausalWindow = PREFILL_TILE_CAUSAL | PREFILL_TILE_WINDOW;

template <class P>
void expectClose(P &p, double tolerance = 2e-6) {
  ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
  EXPECT_STREQ(p.context.message, "");
  EXPECT_LT(p.error(), tolerance);
}

struct PoolContext {
  prefill_pool *pool;
  explicit PoolContext(size_t threads) : pool(prefill_pool_create(threads)) {}
  ~PoolContext() { prefill_pool_destroy(pool); }
  void use(prefill_context &context) {
    context.host = pool;
    context.parallel_for = prefill_pool_parallel_for;
  }
};

TEST(Dense, RaggedLengths) {
  for (int64_t s : {1, 2, 15, 16, 17, 31, 33, 64, 70})
    for (int64_t t : {s, s + 1, s + 16, s + 23}) {
      Problem<8, 4, 16, 16, float, Causal> p;
      p.b = 2;
      p.s = s;
      p.t = t;
      p.build(static_cast<uint64_t>(s * 100 + t));
      p.wantStatistics();
      SCOPED_TRACE(s);
      expectClose(p);
      for (int64_t h = 0; h < p.hq; ++h)
        EXPECT_EQ(p.out[PREFILL_OUT_DENSITY].at<float>({0, h}), 1.0f);
    }
}

TEST(Dense, MoreQueriesThanKeys) {
  // With END alignment the first rows are at negative positions.
  for (int masked : {PREFILL_MASKED_ZERO, PREFILL_MASKED_MEAN,
                     PREFILL_MASKED_NAN, PREFILL_MASKED_SCORES}) {
    Problem<8, 4, 16, 16, float, Causal> p;
    p.s = 50;
    p.t = 20;
    p.maskedRow = masked;
    p.build();
    p.wantStatistics();
    expectClose(p);
  }
}

TEST(Dense, BlocksOfOtherShapes) {
  Problem<8, 4, 32, 16, float, Causal> wide;
  wide.s = 75;
  wide.t = 91;
  wide.build();
  expectClose(wide);
  Problem<8, 4, 8, 32, float, Causal> tall;
  tall.s = 75;
  tall.t = 91;
  tall.build();
  expectClose(tall);
}

TEST(Dense, NotCausal) {
  Problem<8, 4, 16, 16, float, 0> p;
  p.s = 21;
  p.t = 53;
  p.build();
  p.wantStatistics();
  expectClose(p);
}

TEST(Dense, Windows) {
  for (int64_t left : {0, 1, 15, 16, 17, 40})
    for (int64_t right : {0, 5, 17}) {
      Problem<8, 4, 16, 16, float, CausalWindow> p;
      p.s = 77;
      p.t = 85;
      p.windowLeft = left;
      p.windowRight = right;
      p.build();
      p.wantStatistics();
      SCOPED_TRACE(left);
      expectClose(p);
    }
}

TEST(Dense, WindowSkipsBlocks) {
  Problem<8, 4, 16, 16, float, CausalWindow> p;
  p.s = p.t = 16 * 20;
  p.windowLeft = 16;
  p.build();
  spy().reset(true);
  p.wantStatistics();
  expectClose(p);
  // Rows of tile i see blocks i - 1 and i; nothing else is touched.
  for (int64_t i = 0; i < 20; ++i)
    for (int64_t j = 0; j < 20; ++j)
      EXPECT_EQ(p.out[PREFILL_OUT_BLOCK_MAP].at<uint8_t>({0, 0, i, j}),
                j == i || j == i - 1);
  EXPECT_EQ(spy().violations, 0);
  spy().reset(false);
}

TEST(Dense, LayoutsAndStrides) {
  for (int mask = 0; mask < 16; ++mask)
    for (int64_t pad : {0, 3}) {
      Problem<8, 4, 16, 16, float, Causal> p;
      p.b = 2;
      p.qLayout = mask & 1;
      p.kLayout = mask >> 1 & 1;
      p.vLayout = mask >> 2 & 1;
      p.oLayout = mask >> 3 & 1;
      p.pad = pad;
      p.build();
      expectClose(p);
    }
  Problem<8, 4, 16, 16, float, Causal> p;
  p.b = 2;
  p.flat = true;
  p.build();
  expectClose(p);
}

TEST(Dense, Types) {
  Problem<8, 4, 16, 16, _Float16, Causal> half;
  half.maskedRow = PREFILL_MASKED_MEAN;
  half.s = 50;
  half.build();
  expectClose(half, 2e-3);
  Problem<8, 4, 16, 16, bf16, Causal> brain;
  brain.maskedRow = PREFILL_MASKED_MEAN;
  brain.s = 50;
  brain.build();
  expectClose(brain, 2e-2);
}

TEST(Dense, KeyMask) {
  constexpr unsigned F = Causal | PREFILL_TILE_KEY_MASK;
  for (uint8_t bits : {8, 32, 64})
    for (int masked : {PREFILL_MASKED_ZERO, PREFILL_MASKED_MEAN,
                       PREFILL_MASKED_NAN, PREFILL_MASKED_SCORES}) {
      Problem<8, 4, 16, 16, float, F> p;
      p.b = 3;
      p.s = p.t = 83;
      p.maskedRow = masked;
      p.build();
      p.wantStatistics();
      Tensor &mask = p.in[PREFILL_IN_KEY_MASK];
      mask.make({p.b, p.t}, bits == 8 ? kDLUInt : kDLInt, bits, bits == 32);
      // Left padding, right padding, holes.
      for (int64_t bi = 0; bi < p.b; ++bi)
        for (int64_t j = 0; j < p.t; ++j) {
          bool on = bi == 0 ? j >= 37 : bi == 1 ? j < 35 : j % 3 != 0;
          if (bits == 8)
            mask.at<uint8_t>({bi, j}) = on ? 7 : 0;
          else if (bits == 32)
            mask.at<int32_t>({bi, j}) = on ? -1 : 0;
          else
            mask.at<int64_t>({bi, j}) = on ? int64_t(1) << 40 : 0;
        }
      expectClose(p);
      // Blocks without any visible key are not visited.
      EXPECT_EQ(p.out[PREFILL_OUT_BLOCK_MAP].at<uint8_t>({0, 0, 5, 0}), 0);
      EXPECT_EQ(p.out[PREFILL_OUT_BLOCK_MAP].at<uint8_t>({0, 0, 5, 1}), 0);
      EXPECT_EQ(p.out[PREFILL_OUT_BLOCK_MAP].at<uint8_t>({0, 0, 5, 2}), 1);
    }
}

TEST(Dense, RowsWithoutKeysSeeAll) {
  // Windows, caps, half precision, grouped heads; a mask that leaves nothing of
  // whole tiles, and one that leaves a batch row nothing at all.
  constexpr unsigned F = Causal | PREFILL_TILE_WINDOW | PREFILL_TILE_KEY_MASK |
                         PREFILL_TILE_SOFTCAP;
  Problem<8, 4, 16, 16, _Float16, F> p;
  p.b = 3;
  p.hq = 4;
  p.hk = 2;
  p.s = 70;
  p.t = 75;
  p.windowLeft = 20;
  p.maskedRow = PREFILL_MASKED_SCORES;
  p.build();
  p.wantStatistics();
  Tensor &mask = p.in[PREFILL_IN_KEY_MASK];
  mask.make({p.b, p.t}, kDLInt, 64);
  for (int64_t j = 0; j < p.t; ++j) {
    mask.at<int64_t>({0, j}) = j >= 45;
    mask.at<int64_t>({1, j}) = 0;
    mask.at<int64_t>({2, j}) = j < 31;
  }
  expectClose(p, 2e-3);
  p.out[PREFILL_OUT_LSE].absent = true;
  expectClose(p, 2e-3);
}

TEST(Dense, RowsWithoutKeysHaveNoBias) {
  Problem<8, 4, 16, 16, float, PREFILL_TILE_BIAS> p;
  p.maskedRow = PREFILL_MASKED_SCORES;
  p.build();
  EXPECT_EQ(p.run(), PREFILL_INVALID_ARGUMENT);
}

TEST(Dense, KernelWithKeyMaskButNoMask) {
  Problem<8, 4, 16, 16, float,
          PREFILL_TILE_CAUSAL | PREFILL_TILE_KEY_MASK | PREFILL_TILE_BIAS |
              PREFILL_TILE_SEGMENTS>
      p;
  p.build();
  expectClose(p);
}

TEST(Dense, KvLengths) {
  for (uint8_t bits : {32, 64}) {
    Problem<8, 4, 16, 16, float, 0> p;
    p.b = 4;
    p.t = 60;
    p.maskedRow = bits == 32 ? PREFILL_MASKED_MEAN : PREFILL_MASKED_SCORES;
    p.build();
    p.wantStatistics();
    Tensor &lengths = p.in[PREFILL_IN_KV_LENGTHS];
    lengths.make({4}, kDLInt, bits);
    const int64_t values[] = {60, 33, 16, 0};
    for (int64_t bi = 0; bi < 4; ++bi)
      if (bits == 32)
        lengths.at<int32_t>({bi}) = static_cast<int32_t>(values[bi]);
      else
        lengths.at<int64_t>({bi}) = values[bi];
    expectClose(p);
  }
  // Out of range values are clamped; a scalar holds for all.
  Problem<8, 4, 16, 16, float, 0> p;
  p.b = 2;
  p.build();
  p.in[PREFILL_IN_KV_LENGTHS].make({}, kDLInt, 64);
  p.in[PREFILL_IN_KV_LENGTHS].at<int64_t>({}) = INT64_MAX;
  expectClose(p);
}

TEST(Dense, PaddingIsNeverRead) {
  // What lies past kv_len and what a key mask hides may hold anything, but for
  // values in a block that is visited: these are multiplied by 0.
  Problem<8, 4, 16, 16, float, Causal | PREFILL_TILE_KEY_MASK> p;
  p.b = 2;
  p.t = 75;
  p.build();
  p.wantStatistics();
  Tensor &lengths = p.in[PREFILL_IN_KV_LENGTHS];
  lengths.make({p.b}, kDLInt, 64);
  lengths.at<int64_t>({0}) = 41;
  lengths.at<int64_t>({1}) = 64;
  Tensor &mask = p.in[PREFILL_IN_KEY_MASK];
  mask.make({p.b, p.t}, kDLUInt, 8);
  auto fill = [&](int64_t bi, int64_t j, bool values) {
    for (int64_t h = 0; h < p.hk; ++h) {
      for (int64_t c = 0; c < 8; ++c)
        p.k(bi, h, j, c) = NAN;
      for (int64_t c = 0; c < 4 && values; ++c)
        p.v(bi, h, j, c) = NAN;
    }
  };
  for (int64_t bi = 0; bi < p.b; ++bi)
    for (int64_t j = 0; j < p.t; ++j) {
      mask.at<uint8_t>({bi, j}) = j >= 20 && j != 33;
      if (j >= lengths.at<int64_t>({bi}))
        fill(bi, j, true);
      else if (!mask.at<uint8_t>({bi, j}))
        fill(bi, j, j < 16);
    }
  ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
  for (int64_t bi = 0; bi < p.b; ++bi)
    for (int64_t j = 0; j < p.t; ++j)
      if (j >= lengths.at<int64_t>({bi}) || !mask.at<uint8_t>({bi, j}))
        for (int64_t h = 0; h < p.hk; ++h)
          for (int64_t c = 0; c < 8; ++c) {
            p.k(bi, h, j, c) = 0;
            p.v(bi, h, j, c / 2) = 0;
          }
  EXPECT_LT(p.error(), 2e-6);
}

TEST(Dense, Sinks) {
  Problem<8, 4, 16, 16, float, Causal | PREFILL_TILE_SINK> p;
  p.s = 50;
  p.t = 40; // rows without keys: the sink alone
  p.build();
  p.wantStatistics();
  Tensor &sinks = p.in[PREFILL_IN_SINKS];
  sinks.make({p.hq}, kDLFloat, 32);
  for (int64_t h = 0; h < p.hq; ++h)
    sinks.at<float>({h}) = 0.5f * static_cast<float>(h) - 1;
  expectClose(p);
}

TEST(Dense, Segments) {
  constexpr unsigned F = Causal | PREFILL_TILE_SEGMENTS;
  Problem<8, 4, 16, 16, float, F> p;
  p.b = 2;
  p.s = p.t = 200;
  p.build();
  p.wantStatistics();
  for (int slot : {PREFILL_IN_Q_SEGMENT, PREFILL_IN_K_SEGMENT}) {
    p.in[slot].make({p.b, p.t}, kDLInt, 64);
    for (int64_t j = 0; j < p.t; ++j) {
      p.in[slot].at<int64_t>({0, j}) = j / 64;
      p.in[slot].at<int64_t>({1, j}) = j % 64 / 50 - 7;
    }
  }
  expectClose(p);
  // Segments of 64 rows: tile 8 (rows 128..) sees nothing before block 8.
  for (int64_t j = 0; j < 8; ++j)
    EXPECT_EQ(p.out[PREFILL_OUT_BLOCK_MAP].at<uint8_t>({0, 1, 8, j}), 0);
  p.in[PREFILL_IN_Q_SEGMENT].at<int64_t>({0, 0}) = int64_t(1) << 33;
  EXPECT_EQ(p.run(), PREFILL_INVALID_ARGUMENT);
}

TEST(Dense, Bias) {
  constexpr unsigned F = Causal | PREFILL_TILE_BIAS;
  const int64_t s = 37, t = 50, hq = 4, b = 2;
  const std::vector<std::vector<int64_t>> shapes = {
      {b, hq, s, t}, {1, hq, s, t}, {b, 1, s, t},  {1, 1, s, t},
      {s, t},        {hq, 1, t},    {b, hq, 1, t}, {t},
      {s, 1},        {hq, 1, 1},    {1},           {}};
  for (const auto &shape : shapes)
    for (int type = 0; type < 4; ++type)
      for (int64_t pad : {0, 2}) {
        if (shape.empty() && pad)
          continue;
        Problem<8, 4, 16, 16, float, F> p;
        p.b = b;
        p.s = s;
        p.t = t;
        p.maskedRow = PREFILL_MASKED_MEAN;
        p.build();
        p.wantStatistics();
        Tensor &bias = p.in[PREFILL_IN_BIAS];
        bias.make(shape,
                  type == 0   ? kDLUInt
                  : type == 3 ? kDLBfloat
                              : kDLFloat,
                  type == 0   ? 8
                  : type == 1 ? 32
                              : 16,
                  pad);
        Random random(7);
        std::vector<int64_t> index(shape.size());
        for (bool more = true; more;) {
          double x = random.below(4) ? random.normal() : MinusInf;
          if (type == 0)
            bias.at<uint8_t>(index) = random.below(3) != 0;
          else if (type == 1)
            narrow(x, bias.at<float>(index));
          else if (type == 2)
            narrow(x, bias.at<_Float16>(index));
          else
            narrow(std::isinf(x) ? -1e4 : x, bias.at<bf16>(index));
          more = false;
          for (size_t i = shape.size(); i-- > 0 && !more;)
            if (++index[i] < shape[i])
              more = true;
            else
              index[i] = 0;
        }
        SCOPED_TRACE(testing::PrintToString(shape) + " type " +
                     std::to_string(type));
        expectClose(p, 1e-5);
      }
}

/// A float32 bias whose rows hold finite minima and -inf in every mixture.
template <class P>
void fillWithMinima(P &p, std::vector<int64_t> shape, uint64_t seed) {
  Tensor &bias = p.in[PREFILL_IN_BIAS];
  bias.make(std::move(shape), kDLFloat, 32, 3);
  const float least = -std::numeric_limits<float>::max();
  const float some[] = {least, -3.3e38f, -3.1e38f,
                        static_cast<float>(MinusInf)};
  Random random(seed);
  const int64_t rows = bias.shape[bias.shape.size() - 2];
  const int64_t heads = bias.shape.size() > 2 ? bias.shape[1] : 1;
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t lone = random.below(p.t);
      for (int64_t j = 0; j < p.t; ++j) {
        float x = least; // 0: all the same
        switch ((i + h) % 8) {
        case 1: // one finite minimum, the others -inf
          x = j == lone ? least : some[3];
          break;
        case 2: // different minima
          x = some[random.below(3)];
          break;
        case 3: // and -inf among them
          x = some[random.below(4)];
          break;
        case 4: // nothing but -inf
          x = some[3];
          break;
        case 5: // an ordinary key beside minima
          x = j == lone ? 1.0f : least;
          break;
        case 6: // finite late, where a causal row does not see it
          x = j > lone ? -3.2e38f : some[3];
          break;
        case 7: // ordinary
          x = static_cast<float>(random.normal());
          break;
        default:
          break;
        }
        if (bias.shape.size() > 2)
          bias.at<float>({0, h, i, j}) = x;
        else
          bias.at<float>({i, j}) = x;
      }
    }
}

TEST(Dense, MinimaOfABias) {
  constexpr unsigned F = Causal | PREFILL_TILE_BIAS | PREFILL_TILE_KEY_MASK;
  for (int masked :
       {PREFILL_MASKED_ZERO, PREFILL_MASKED_MEAN, PREFILL_MASKED_NAN})
    for (bool perHead : {false, true}) {
      Problem<8, 4, 16, 16, float, F> p;
      p.b = 2;
      p.s = 77;
      p.t = 90;
      p.pad = 2;
      p.maskedRow = masked;
      p.build();
      p.wantStatistics();
      if (perHead)
        fillWithMinima(p, {1, p.hq, p.s, p.t}, 3);
      else
        fillWithMinima(p, {p.s, p.t}, 4);
      SCOPED_TRACE(masked);
      expectClose(p, 1e-5);
      // Without the LSE nobody asks the tile function for it but the runtime.
      p.out[PREFILL_OUT_LSE].absent = true;
      expectClose(p, 1e-5);
      // Keys that another mask hides do not count, whatever their bias.
      Tensor &mask = p.in[PREFILL_IN_KEY_MASK];
      mask.make({p.b, p.t}, kDLUInt, 8);
      for (int64_t j = 0; j < p.t; ++j) {
        mask.at<uint8_t>({0, j}) = j >= 40;
        mask.at<uint8_t>({1, j}) = j % 5 == 0;
      }
      expectClose(p, 1e-5);
    }
}

TEST(Dense, MinimaOfABiasBesideOtherMasks) {
  constexpr unsigned F =
      CausalWindow | PREFILL_TILE_BIAS | PREFILL_TILE_SEGMENTS;
  Problem<8, 4, 16, 16, float, F> p;
  p.s = p.t = 90;
  p.windowLeft = 20;
  p.maskedRow = PREFILL_MASKED_NAN;
  p.build();
  p.wantStatistics();
  fillWithMinima(p, {p.s, p.t}, 5);
  expectClose(p, 1e-5);
  for (int slot : {PREFILL_IN_Q_SEGMENT, PREFILL_IN_K_SEGMENT}) {
    p.in[slot].make({p.b, p.t}, kDLInt, 64);
    for (int64_t j = 0; j < p.t; ++j)
      p.in[slot].at<int64_t>({0, j}) = j / 35;
  }
  expectClose(p, 1e-5);
  p.in[PREFILL_IN_KV_LENGTHS].make({1}, kDLInt, 64);
  p.in[PREFILL_IN_KV_LENGTHS].at<int64_t>({0}) = 61;
  expectClose(p, 1e-5);
}

TEST(Dense, MinimaOfABiasInLargeTiles) {
  // More rows in a tile than are computed at a time, and a softcap.
  Problem<8, 4, 128, 32, float, PREFILL_TILE_BIAS | PREFILL_TILE_SOFTCAP> p;
  p.s = 250;
  p.t = 70;
  p.build();
  p.wantStatistics();
  fillWithMinima(p, {p.s, p.t}, 6);
  for (int64_t i = 100; i < p.s; ++i) // all of them
    for (int64_t j = 0; j < p.t; ++j)
      p.in[PREFILL_IN_BIAS].at<float>({i, j}) = j % 3 ? -3.3e38f : -3.2e38f;
  expectClose(p, 1e-5);
}

TEST(Dense, MinimaOfABiasAndScoresAsLarge) {
  // Scores of 1e32 are not lost beside -3.4e38: the greatest sum wins.
  Problem<8, 4, 16, 16, float, PREFILL_TILE_BIAS> p;
  p.spread = 3e32;
  p.build();
  p.wantStatistics();
  fillWithMinima(p, {p.s, p.t}, 7);
  for (int64_t i = 0; i < p.s; ++i)
    for (int64_t j = 0; j < p.t; ++j)
      if (p.in[PREFILL_IN_BIAS].at<float>({i, j}) > -1e38f)
        p.in[PREFILL_IN_BIAS].at<float>({i, j}) = -3.2e38f;
  expectClose(p, 1e-5);
}

TEST(Dense, MinimaOfABiasAndSinks) {
  Problem<8, 4, 16, 16, float, Causal | PREFILL_TILE_BIAS | PREFILL_TILE_SINK>
      p;
  p.build();
  p.wantStatistics();
  fillWithMinima(p, {p.s, p.t}, 8);
  Tensor &sinks = p.in[PREFILL_IN_SINKS];
  sinks.make({p.hq}, kDLFloat, 32);
  const float logits[] = {0.5f, static_cast<float>(MinusInf), -3.1e38f,
                          -3.35e38f};
  for (int64_t h = 0; h < p.hq; ++h)
    sinks.at<float>({h}) = logits[h];
  expectClose(p, 1e-5);
}

TEST(Dense, MinimaOfABiasOfOtherTypes) {
  constexpr unsigned F = Causal | PREFILL_TILE_BIAS;
  Problem<8, 4, 16, 16, _Float16, F> half;
  half.maskedRow = PREFILL_MASKED_NAN;
  half.build();
  half.wantStatistics();
  fillWithMinima(half, {half.s, half.t}, 9);
  expectClose(half, 2e-3);
  Problem<8, 4, 16, 16, bf16, F> brain;
  brain.flat = true;
  brain.build();
  brain.wantStatistics();
  Tensor &bias = brain.in[PREFILL_IN_BIAS];
  bias.make({brain.s, brain.t}, kDLBfloat, 16);
  for (int64_t i = 0; i < brain.s; ++i)
    for (int64_t j = 0; j < brain.t; ++j)
      narrow(i % 3 == 0   ? -3.38e38
             : i % 3 == 1 ? (j % 4 == 1 ? -3.38e38 : MinusInf)
                          : MinusInf,
             bias.at<bf16>({i, j}));
  expectClose(brain, 2e-2);
}

TEST(Dense, BoolBiasSkipsBlocks) {
  Problem<8, 4, 16, 16, float, PREFILL_TILE_BIAS> p;
  p.s = p.t = 64;
  p.build();
  p.wantStatistics();
  Tensor &bias = p.in[PREFILL_IN_BIAS];
  bias.make({p.s, p.t}, 6 /* kDLBool */, 8);
  for (int64_t i = 0; i < p.s; ++i)
    for (int64_t j = 0; j < p.t; ++j)
      bias.at<uint8_t>({i, j}) = j <= i;
  expectClose(p);
  for (int64_t i = 0; i < 4; ++i)
    for (int64_t j = 0; j < 4; ++j)
      EXPECT_EQ(p.out[PREFILL_OUT_BLOCK_MAP].at<uint8_t>({0, 0, i, j}), j <= i);
}

TEST(Dense, Softcap) {
  Problem<8, 4, 16, 16, float, Causal | PREFILL_TILE_SOFTCAP> p;
  p.build();
  expectClose(p);
}

TEST(Dense, Offsets) {
  constexpr unsigned F = CausalWindow;
  // Offsets far outside are like offsets just outside.
  for (int64_t offset : {int64_t(0), int64_t(10), int64_t(-5), INT64_MAX,
                         INT64_MIN, int64_t(1) << 40}) {
    Problem<8, 4, 16, 16, float, F> p;
    p.b = 2;
    p.s = 20;
    p.t = 60;
    p.windowLeft = 30;
    p.alignment = PREFILL_ALIGN_OPERAND;
    p.build();
    p.wantStatistics();
    p.in[PREFILL_IN_Q_OFFSET].make({2}, kDLInt, 64);
    p.in[PREFILL_IN_Q_OFFSET].at<int64_t>({0}) = offset;
    p.in[PREFILL_IN_Q_OFFSET].at<int64_t>({1}) = 33;
    ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
    if (std::llabs(offset / 2) > 1000) // the naive positions would overflow
      p.in[PREFILL_IN_Q_OFFSET].at<int64_t>({0}) = offset > 0 ? 1000 : -1000;
    EXPECT_LT(p.error(), 2e-6);
  }
  Problem<8, 4, 16, 16, float, Causal> start;
  start.s = 20;
  start.t = 60;
  start.alignment = PREFILL_ALIGN_START;
  start.build();
  expectClose(start);
}

TEST(Dense, EmptyDimensions) {
  for (int masked : {PREFILL_MASKED_ZERO, PREFILL_MASKED_MEAN,
                     PREFILL_MASKED_NAN, PREFILL_MASKED_SCORES}) {
    Problem<8, 4, 16, 16, float, Causal> noKeys;
    noKeys.t = 0;
    noKeys.maskedRow = masked;
    noKeys.build();
    noKeys.wantStatistics();
    expectClose(noKeys); // zeros and -inf
  }
  Problem<8, 4, 16, 16, float, Causal> noRows;
  noRows.s = 0;
  noRows.build();
  noRows.wantStatistics();
  expectClose(noRows);
  EXPECT_EQ(noRows.out[PREFILL_OUT_DENSITY].at<float>({0, 0}), 1.0f);
  Problem<8, 4, 16, 16, float, Causal> noBatch;
  noBatch.b = 0;
  noBatch.build();
  noBatch.in[PREFILL_IN_Q].dl.data = nullptr;
  expectClose(noBatch);
}

// --- Rotary -----------------------------------------------------------------

TEST(Dense, Rotary) {
  for (int kind : {1, 2})
    for (int rotaryDim : {8, 4})
      for (bool wide : {false, true})
        for (bool perBatch : {false, true}) {
          Problem<8, 4, 16, 16, float, Causal> p;
          p.b = 2;
          p.s = 19;
          p.t = 33;
          p.rotary = kind;
          p.rotaryDim = rotaryDim;
          p.build();
          const int64_t half = rotaryDim / 2, width = wide ? rotaryDim : half;
          Tensor &cosine = p.in[PREFILL_IN_COS], &sine = p.in[PREFILL_IN_SIN];
          cosine.make({perBatch ? 2 : 1, 40, width}, kDLFloat, 32);
          sine.make({perBatch ? 2 : 1, 40, width}, kDLFloat, 32);
          auto angle = [&](int64_t bi, int64_t pos, int64_t i) {
            return (static_cast<double>(pos) +
                    (perBatch ? 3.0 * static_cast<double>(bi) : 0)) *
                   std::pow(100.0, -2.0 * static_cast<double>(i) / rotaryDim);
          };
          for (int64_t bi = 0; bi < (perBatch ? 2 : 1); ++bi)
            for (int64_t pos = 0; pos < 40; ++pos)
              for (int64_t c = 0; c < width; ++c) {
                int64_t i = !wide ? c : kind == 1 ? c % half : c / 2;
                narrow(std::cos(angle(bi, pos, i)),
                       cosine.at<float>({bi, pos, c}));
                narrow(std::sin(angle(bi, pos, i)),
                       sine.at<float>({bi, pos, c}));
              }
          p.element = [&](bool ofQuery, int64_t bi, int64_t h, int64_t n,
                          int64_t c) {
            auto x = [&](int64_t e) {
              return ofQuery ? widen(p.q(bi, h, n, e))
                             : widen(p.k(bi, h, n, e));
            };
            if (c >= rotaryDim)
              return x(c);
            int64_t pos = ofQuery ? p.position(bi, n) : n;
            int64_t i = kind == 1 ? c % half : c / 2;
            bool second = kind == 1 ? c >= half : c % 2;
            int64_t mate = kind == 1 ? (second ? c - half : c + half)
                                     : (second ? c - 1 : c + 1);
            double a = angle(bi, pos, i);
            return x(c) * std::cos(a) +
                   (second ? 1 : -1) * x(mate) * std::sin(a);
          };
          SCOPED_TRACE(kind);
          Tensor &rotated = p.out[PREFILL_OUT_ROTATED_K];
          if (perBatch) // else it stays in workspace
            rotated.make({p.b, p.hk, p.t, 8}, kDLFloat, 32);
          expectClose(p, 1e-5);
          for (int64_t i = 0; perBatch && i < p.b * p.hk * p.t * 8; ++i) {
            std::vector<int64_t> at = {i / 8 / p.t / p.hk, i / 8 / p.t % p.hk,
                                       i / 8 % p.t, i % 8};
            ASSERT_NEAR(rotated.at<float>(at),
                        p.element(false, at[0], at[1], at[2], at[3]), 1e-5);
          }
        }
}

TEST(Dense, RotatedKeysOfNoQueries) {
  Problem<8, 4, 16, 16, float, Causal> p;
  p.s = 0;
  p.t = 3;
  p.rotary = 1;
  p.rotaryDim = 2;
  p.build();
  for (int slot : {PREFILL_IN_COS, PREFILL_IN_SIN}) {
    p.in[slot].make({3, 1}, kDLFloat, 32);
    for (int64_t i = 0; i < 3; ++i)
      p.in[slot].at<float>({i, 0}) = slot == PREFILL_IN_COS ? 0.0f : 1.0f;
  }
  Tensor &rotated = p.out[PREFILL_OUT_ROTATED_K];
  rotated.make({p.b, p.hk, p.t, 8}, kDLFloat, 32);
  ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
  EXPECT_EQ(rotated.at<float>({0, 0, 2, 0}), -widen(p.k(0, 0, 2, 1)));
  EXPECT_EQ(rotated.at<float>({0, 0, 2, 1}), widen(p.k(0, 0, 2, 0)));
}

TEST(Dense, RotatedKeysNeedARotatingKernel) {
  Problem<8, 4, 16, 16, float, Causal> p;
  p.build();
  p.out[PREFILL_OUT_ROTATED_K].make({p.b, p.hk, p.t, 8}, kDLFloat, 32);
  EXPECT_EQ(p.run(), PREFILL_INVALID_ARGUMENT);
  EXPECT_NE(std::string(p.context.message).find("ROTATED_K"),
            std::string::npos);
}

// --- Threads ----------------------------------------------------------------

/// Runs bodies in a scrambled order on the calling thread.
void scrambled(void *, size_t count, void (*body)(void *, size_t), void *data) {
  for (size_t i = 0; i < count; ++i)
    body(data, (i * 7 + 3) % count);
}

TEST(Dense, ThreadsGiveTheSameBits) {
  constexpr unsigned F =
      Causal | PREFILL_TILE_KEY_MASK | PREFILL_TILE_BIAS | PREFILL_TILE_SINK;
  Problem<8, 4, 16, 16, float, F> p;
  p.b = 3;
  p.hq = 6;
  p.hk = 3;
  p.s = 211;
  p.t = 240;
  p.maskedRow = PREFILL_MASKED_MEAN;
  p.build();
  p.wantStatistics();
  p.in[PREFILL_IN_BIAS].make({p.s, p.t}, kDLFloat, 16);
  for (int64_t i = 0; i < p.s; ++i)
    for (int64_t j = 0; j < p.t; ++j)
      narrow(0.01 * static_cast<double>((i * j) % 17),
             p.in[PREFILL_IN_BIAS].at<_Float16>({i, j}));
  ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
  auto o = p.out[PREFILL_OUT_O].bytes, lse = p.out[PREFILL_OUT_LSE].bytes;
  for (size_t threads : {1, 2, 3, 8}) {
    PoolContext pool(threads);
    pool.use(p.context);
    std::fill(p.out[PREFILL_OUT_O].bytes.begin(),
              p.out[PREFILL_OUT_O].bytes.end(), 0);
    ASSERT_EQ(p.run(), PREFILL_OK);
    EXPECT_EQ(memcmp(o.data(), p.out[PREFILL_OUT_O].bytes.data(),
                     static_cast<size_t>(p.b * p.hq * p.s * 4) * 4),
              0);
    EXPECT_EQ(lse, p.out[PREFILL_OUT_LSE].bytes);
  }
  p.context.parallel_for = scrambled;
  ASSERT_EQ(p.run(), PREFILL_OK);
  EXPECT_EQ(memcmp(o.data(), p.out[PREFILL_OUT_O].bytes.data(),
                   static_cast<size_t>(p.b * p.hq * p.s * 4) * 4),
            0);
}

} // namespace
