//===- SparseTest.cpp - Sparse patterns through the runtime
//----------------===//
//
// The estimates against float64, and properties of whole calls: what a tile
// function was asked to visit, and that the result is the attention over just
// that. `dense_below = 0` switches the cost function off.
//
//===----------------------------------------------------------------------===//
#include "Plans.h"

using namespace ref;

namespace {

TEST(Sparse, EveryPatternIsAttentionOverWhatItVisits) {
  for (int64_t s : {16, 100, 333})
    for (int64_t past : {0, 5, 64, 100}) {
      Problem<8, 4, 16, 16, float, Causal> p;
      p.b = 2;
      p.hq = 8;
      p.hk = 4;
      p.s = s;
      p.t = s + past;
      p.spread = 3;
      p.heads = {aShape(20, 40),        triShape(8, 24, 20),
                 verticalSlash(10, 60), verticalSlash(60, 110, 40),
                 blockSparse(3),        verticalSlash(0, 0, 16, 0.3f),
                 blockSparse(0, 0.3f),  strided(20, 24, 3)};
      p.build(static_cast<uint64_t>(s + past));
      p.plan.dense_below = 0;
      SCOPED_TRACE(testing::Message() << "s " << s << " past " << past);
      checkSparse(p);
    }
}

TEST(Sparse, BlocksOfOtherShapes) {
  auto check = [](auto &p) {
    p.s = 300;
    p.t = 337;
    p.heads = {verticalSlash(20, 60, 40), verticalSlash(0, 0, 16, 0.4f),
               strided(8, 30, 4), blockSparse(4)};
    p.build();
    p.plan.dense_below = 0;
    checkSparse(p);
  };
  Problem<8, 4, 32, 16, float, Causal> wide;
  check(wide);
  Problem<8, 4, 16, 32, float, Causal> tall;
  check(tall);
  Problem<8, 4, 24, 16, float, Causal> odd;
  check(odd);
}

TEST(Sparse, FlexPrefillInfLLMAndGuards) {
  for (int64_t s : {16, 100, 333})
    for (int64_t past : {0, 5, 100}) {
      Problem<8, 4, 16, 16, float, Causal> p;
      p.b = 2;
      p.hq = 8;
      p.s = s;
      p.t = s + past;
      p.spread = 3;
      p.heads = {infLLM(3),
                 infLLM(3),
                 infLLM(3),
                 infLLM(3),
                 flexPrefill(0.5f, 0),
                 flexPrefill(0.5f, 1),
                 blockTopP(0.3f, 0),
                 blockTopP(0.3f, 0.1f)};
      p.build(static_cast<uint64_t>(s + past));
      p.plan.dense_below = 0;
      SCOPED_TRACE(testing::Message() << "s " << s << " past " << past);
      checkSparse(p);
    }
}

TEST(Sparse, Sampled) {
  for (int64_t s : {16, 100, 333})
    for (int64_t past : {0, 5, 64, 100}) {
      Problem<8, 4, 16, 16, float, Causal> p;
      p.b = 2;
      p.s = s;
      p.t = s + past;
      p.spread = 3;
      p.heads = {sampled(2, 0.5f), sampled(4, 0.8f), sampled(8, 0.95f),
                 sampled(16, 0.3f)};
      p.build(static_cast<uint64_t>(s + past));
      p.plan.dense_below = 0;
      SCOPED_TRACE(testing::Message() << "s " << s << " past " << past);
      checkSparse(p);
    }
}

TEST(Sparse, Types) {
  Problem<8, 4, 16, 16, _Float16, Causal> half;
  half.s = half.t = 200;
  half.heads = {verticalSlash(20, 60), aShape(8, 50), blockSparse(4),
                verticalSlash(0, 0, 16, 0.4f)};
  half.build();
  half.plan.dense_below = 0;
  checkSparse(half, 4e-3);
  Problem<8, 4, 16, 16, bf16, Causal> brain;
  brain.s = brain.t = 200;
  brain.heads = half.heads;
  brain.build();
  brain.plan.dense_below = 0;
  checkSparse(brain, 3e-2);
}

TEST(Sparse, RowsWithoutKeysSeeAll) {
  Problem<8, 4, 16, 16, float, Causal | PREFILL_TILE_KEY_MASK> p;
  p.b = 3;
  p.s = p.t = 250;
  p.maskedRow = PREFILL_MASKED_SCORES;
  p.heads = {verticalSlash(20, 60), strided(8, 30, 4), blockSparse(4),
             verticalSlash(0, 0, 16, 0.4f)};
  p.build();
  p.plan.dense_below = 0;
  Tensor &mask = p.in[PREFILL_IN_KEY_MASK];
  mask.make({3, 250}, kDLInt, 64);
  for (int64_t j = 0; j < 250; ++j) {
    mask.at<int64_t>({0, j}) = 1;
    mask.at<int64_t>({1, j}) = j >= 77;
    mask.at<int64_t>({2, j}) = 0;
  }
  checkSparse(p);
}

TEST(Sparse, MasksWindowsAndLengths) {
  constexpr unsigned F = Causal | PREFILL_TILE_WINDOW | PREFILL_TILE_KEY_MASK |
                         PREFILL_TILE_SOFTCAP | PREFILL_TILE_SINK;
  Problem<8, 4, 16, 16, float, F> p;
  p.b = 4;
  p.s = p.t = 250;
  p.windowLeft = 150;
  p.maskedRow = PREFILL_MASKED_MEAN;
  p.heads = {verticalSlash(20, 60), strided(8, 30, 4), blockSparse(4),
             verticalSlash(0, 0, 16, 0.4f)};
  p.build();
  p.plan.dense_below = 0;
  Tensor &mask = p.in[PREFILL_IN_KEY_MASK];
  mask.make({4, 250}, kDLInt, 64);
  for (int64_t j = 0; j < 250; ++j) {
    mask.at<int64_t>({0, j}) = 1;
    mask.at<int64_t>({1, j}) = j >= 77;
    mask.at<int64_t>({2, j}) = j < 200;
    mask.at<int64_t>({3, j}) = j % 7 != 3;
  }
  p.in[PREFILL_IN_KV_LENGTHS].make({4}, kDLInt, 32);
  for (int64_t b = 0; b < 4; ++b)
    p.in[PREFILL_IN_KV_LENGTHS].at<int32_t>({b}) = b == 3 ? 123 : 250;
  p.in[PREFILL_IN_SINKS].make({4}, kDLFloat, 32);
  for (int64_t h = 0; h < 4; ++h)
    p.in[PREFILL_IN_SINKS].at<float>({h}) = 0.1f * static_cast<float>(h);
  checkSparse(p);
}

TEST(Sparse, KeepingEverythingIsDense) {
  Problem<8, 4, 16, 16, float, Causal> p;
  p.s = p.t = 250;
  p.heads = {verticalSlash(30, 250), aShape(0, 250), blockSparse(16),
             verticalSlash(250, 50)};
  p.build();
  p.plan.dense_below = 0;
  p.wantStatistics();
  ASSERT_EQ(p.run(), PREFILL_OK);
  EXPECT_LT(p.error(), 2e-6);
}

TEST(Sparse, DensityStaysWithinBudget) {
  Problem<8, 4, 16, 16, float, Causal> p;
  p.s = p.t = 16 * 60;
  p.spread = 3;
  p.heads = {verticalSlash(0, 0, 16, 0.25f), blockSparse(0, 0.25f),
             verticalSlash(0, 0, 16, 0.5f), blockSparse(0, 0.5f)};
  p.build();
  p.plan.dense_below = 0;
  p.wantStatistics();
  ASSERT_EQ(p.run(), PREFILL_OK);
  for (int64_t h = 0; h < 4; ++h) {
    const float density = p.out[PREFILL_OUT_DENSITY].at<float>({0, h});
    const float budget = h < 2 ? 0.25f : 0.5f;
    EXPECT_LE(density, budget * 1.12f) << h;
    EXPECT_GE(density, budget * 0.75f) << h;
  }
}

TEST(Sparse, FindsVerticalsAndSlashes) {
  // All rows attend to keys 100 and 300 and to the key 200 before them.
  using P = Problem<64, 4, 16, 16, float, Causal>;
  P p;
  p.hq = p.hk = 1;
  p.s = p.t = 640;
  p.heads = {verticalSlash(0, 0, 16, 0.35f)};
  p.build();
  auto phase = [](int64_t x, int64_t c) {
    const int64_t pair = c / 2;
    double w = std::pow(1000.0, -static_cast<double>(pair) / 15.0);
    return c % 2 ? std::sin(static_cast<double>(x) * w)
                 : std::cos(static_cast<double>(x) * w);
  };
  for (int64_t i = 0; i < 640; ++i)
    for (int64_t c = 0; c < 64; ++c) {
      // Elements 0 to 29: rotations that peak where j = i - 200.
      if (c < 30) {
        p.q(0, 0, i, c) = static_cast<float>(8 * phase(i - 200, c));
        p.k(0, 0, i, c) = static_cast<float>(phase(i, c));
      } else {
        p.q(0, 0, i, c) = c == 30 ? 120.f : 0.f;
        p.k(0, 0, i, c) = c == 30 && (i == 100 || i == 300) ? 1.f : 0.f;
      }
    }
  p.plan.dense_below = 0;
  p.wantStatistics();
  Spying spying;
  ASSERT_EQ(p.run(), PREFILL_OK);
  for (int64_t i = 310; i < 640; ++i) {
    auto &seen = spy().visited[&p.o(0, 0, i, 0)];
    EXPECT_EQ(seen.count(100), 1u) << i;
    EXPECT_EQ(seen.count(300), 1u) << i;
    EXPECT_EQ(seen.count(i - 200), 1u) << i;
    EXPECT_EQ(seen.count(0), 1u) << "sink, row " << i;
  }
  EXPECT_LE(p.out[PREFILL_OUT_DENSITY].at<float>({0, 0}), 0.4f);
}

TEST(Sparse, AShapeVisitsWhatItSays) {
  Problem<8, 4, 16, 16, float, Causal> p;
  p.hq = p.hk = 1;
  p.s = p.t = 320;
  p.heads = {aShape(16, 33)};
  p.build();
  p.plan.dense_below = 0;
  p.wantStatistics();
  Spying spying;
  ASSERT_EQ(p.run(), PREFILL_OK);
  for (int64_t i = 0; i < 20; ++i)
    for (int64_t j = 0; j < 20; ++j)
      EXPECT_EQ(p.out[PREFILL_OUT_BLOCK_MAP].at<uint8_t>({0, 0, i, j}),
                j <= i && (j == 0 || j >= i - 2));
  for (int64_t i = 0; i < 320; ++i) {
    auto &seen = spy().visited[&p.o(0, 0, i, 0)];
    for (int64_t j = 0; j <= i; ++j)
      if (j < 16 || i - j < 33)
        EXPECT_EQ(seen.count(j), 1u);
  }
}

TEST(Sparse, TriShapeRunsTheLastRowsDense) {
  Problem<8, 4, 16, 16, float, Causal> p;
  p.hq = p.hk = 1;
  p.s = p.t = 320;
  p.heads = {triShape(16, 16, 20)};
  p.build();
  p.plan.dense_below = 0;
  Spying spying;
  ASSERT_EQ(p.run(), PREFILL_OK);
  EXPECT_LT(spy().visited[&p.o(0, 0, 280, 0)].size(), 100u);
  for (int64_t i = 300; i < 320; ++i)
    EXPECT_EQ(spy().visited[&p.o(0, 0, i, 0)].size(),
              static_cast<size_t>(i + 1));
}

TEST(Sparse, BatchEntriesAreIndependent) {
  // A right-padded entry gives, in its rows, what it gives alone.
  constexpr unsigned F = Causal | PREFILL_TILE_KEY_MASK;
  const auto heads = std::vector<prefill_head_plan>{
      verticalSlash(20, 60), verticalSlash(0, 0, 16, 0.3f), blockSparse(3),
      aShape(8, 30)};
  Problem<8, 4, 16, 16, float, F> both, alone;
  both.b = 2;
  both.s = both.t = 300;
  alone.s = alone.t = 201;
  both.heads = alone.heads = heads;
  both.build(5);
  alone.build(6);
  both.plan.dense_below = alone.plan.dense_below = 0;
  for (int64_t i = 0; i < 201; ++i)
    for (int64_t h = 0; h < 4; ++h)
      for (int64_t c = 0; c < 8; ++c) {
        alone.q(0, h, i, c) = both.q(1, h, i, c);
        if (h < 2)
          alone.k(0, h, i, c) = both.k(1, h, i, c);
        if (h < 2 && c < 4)
          alone.v(0, h, i, c) = both.v(1, h, i, c);
      }
  Tensor &mask = both.in[PREFILL_IN_KEY_MASK];
  mask.make({2, 300}, kDLUInt, 8);
  for (int64_t j = 0; j < 300; ++j) {
    mask.at<uint8_t>({0, j}) = 1;
    mask.at<uint8_t>({1, j}) = j < 201;
  }
  ASSERT_EQ(both.run(), PREFILL_OK);
  ASSERT_EQ(alone.run(), PREFILL_OK);
  for (int64_t h = 0; h < 4; ++h) {
    if (h == 1)
      continue; // a share of the blocks: more tiles, another budget
    for (int64_t i = 0; i < 201; ++i)
      for (int64_t c = 0; c < 4; ++c)
        ASSERT_EQ(both.o(1, h, i, c), alone.o(0, h, i, c)) << h << " " << i;
  }
}

TEST(Sparse, HeadsCommute) {
  const auto plans = std::vector<prefill_head_plan>{
      verticalSlash(20, 60), verticalSlash(0, 0, 16, 0.3f), blockSparse(3),
      aShape(8, 30)};
  Problem<8, 4, 16, 16, float, Causal> p, r;
  p.hk = r.hk = 4;
  p.s = p.t = r.s = r.t = 300;
  p.heads = plans;
  r.heads = {plans[3], plans[2], plans[1], plans[0]};
  p.build();
  r.build();
  p.plan.dense_below = r.plan.dense_below = 0;
  for (int64_t h = 0; h < 4; ++h)
    for (int64_t i = 0; i < 300; ++i)
      for (int64_t c = 0; c < 8; ++c) {
        r.q(0, 3 - h, i, c) = p.q(0, h, i, c);
        r.k(0, 3 - h, i, c) = p.k(0, h, i, c);
        if (c < 4)
          r.v(0, 3 - h, i, c) = p.v(0, h, i, c);
      }
  ASSERT_EQ(p.run(), PREFILL_OK);
  ASSERT_EQ(r.run(), PREFILL_OK);
  for (int64_t h = 0; h < 4; ++h)
    for (int64_t i = 0; i < 300; ++i)
      for (int64_t c = 0; c < 4; ++c)
        ASSERT_EQ(r.o(0, 3 - h, i, c), p.o(0, h, i, c));
}

TEST(Sparse, ThreadsGiveTheSameBits) {
  Problem<8, 4, 16, 16, float, Causal> p;
  p.b = 2;
  p.s = p.t = 500;
  p.heads = {verticalSlash(20, 60),
             verticalSlash(0, 0, 16, 0.3f),
             blockSparse(3),
             xAttention(4, 0.8f),
             sampled(4, 0.8f),
             sampled(16, 0.5f),
             flexPrefill(0.5f, 0),
             flexPrefill(0.5f, 1),
             infLLM(3),
             infLLM(4),
             infLLM(4),
             blockTopP(0.3f, 0.1f)};
  p.hq = 12;
  p.build();
  p.plan.dense_below = 0;
  expectThreadsAgree(p);
}

TEST(Sparse, OneQueryRunsDense) {
  Problem<8, 4, 16, 16, float, Causal> p;
  p.s = 1;
  p.t = 400;
  p.heads.assign(4, aShape(8, 16));
  p.build();
  p.plan.dense_below = 0;
  p.wantStatistics();
  ASSERT_EQ(p.run(), PREFILL_OK);
  EXPECT_LT(p.error(), 2e-6);
}

TEST(Sparse, DenseBelow) {
  for (int32_t below : {200, 201}) {
    Problem<8, 4, 16, 16, float, Causal> p;
    p.s = p.t = 200;
    p.heads.assign(4, aShape(8, 16));
    p.build();
    p.plan.dense_below = below;
    p.wantStatistics();
    ASSERT_EQ(p.run(), PREFILL_OK);
    EXPECT_EQ(p.out[PREFILL_OUT_DENSITY].at<float>({0, 0}) == 1.0f,
              below == 201);
  }
}

TEST(Sparse, DegenerateSizesWithPlans) {
  for (int64_t s : {0, 1, 2, 5, 40})
    for (int64_t t : {0, 1, 3, 30, 40}) {
      Problem<8, 4, 16, 16, float, Causal> p;
      p.s = s;
      p.t = t;
      p.hq = 8;
      p.heads = {xAttention(8, 0.9f),
                 verticalSlash(1, 1),
                 sampled(8, 0.9f),
                 verticalSlash(0, 0, 16, 0.01f),
                 flexPrefill(0.5f, 0),
                 flexPrefill(0.9f, 1),
                 infLLM(1),
                 blockTopP(0.5f, 0.5f)};
      p.build();
      p.plan.dense_below = 0;
      p.wantStatistics();
      ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
    }
}

TEST(Sparse, Rotary) {
  // Rotating by an angle of 0 changes nothing, estimates included.
  Problem<8, 4, 16, 16, float, Causal> p, r;
  p.s = p.t = r.s = r.t = 200;
  p.heads = r.heads = {verticalSlash(20, 60), verticalSlash(0, 0, 16, 0.3f),
                       blockSparse(3), xAttention(4, 0.7f)};
  r.rotary = 1;
  r.rotaryDim = 8;
  p.build();
  r.build();
  p.plan.dense_below = r.plan.dense_below = 0;
  rotaryTables(r, 200, [](int64_t, int64_t) { return std::pair(1.f, 0.f); });
  ASSERT_EQ(p.run(), PREFILL_OK);
  ASSERT_EQ(r.run(), PREFILL_OK) << r.context.message;
  for (int64_t h = 0; h < 4; ++h)
    for (int64_t i = 0; i < 200; ++i)
      for (int64_t c = 0; c < 4; ++c)
        ASSERT_EQ(p.o(0, h, i, c), r.o(0, h, i, c));
}

} // namespace
