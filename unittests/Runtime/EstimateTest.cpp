//===- EstimateTest.cpp - Sums of the last rows, and the crossover --------===//
//
// Column and diagonal sums against float64; when a head runs dense.
//
//===----------------------------------------------------------------------===//
#include "estimate.h"
#include "Plans.h"

using namespace ref;

namespace {

// --- Estimates --------------------------------------------------------------

template <class P>
void checkSums(P &p, int64_t b, int64_t h, int64_t last, int64_t rowEnd,
               double tolerance = 2e-5) {
  Checked<P> checked(p);
  std::vector<char> memory(static_cast<size_t>(pf_sums_bytes(&checked.call)) +
                           64);
  void *aligned = reinterpret_cast<void *>(
      (reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
  const pf_sums sums = pf_estimate_sums(&checked.call, b, h, last, aligned);
  std::vector<double> column(static_cast<size_t>(p.t)),
      diagonal(static_cast<size_t>(p.t));
  const int64_t rowBegin = std::max<int64_t>(0, rowEnd - last);
  EXPECT_EQ(sums.first_position, p.position(b, rowBegin));
  EXPECT_EQ(sums.end_position, p.position(b, rowEnd));
  for (int64_t i = rowBegin; i < rowEnd; ++i) {
    std::vector<double> logits(static_cast<size_t>(p.t), MinusInf);
    double m = MinusInf, l = 0;
    for (int64_t j = 0; j < p.t; ++j) {
      if (!p.visible(b, i, j))
        continue;
      double x = 0;
      for (int64_t c = 0; c < p.desc.head_dim; ++c)
        x += widen(p.q(b, h, i, c)) * widen(p.k(b, h / (p.hq / p.hk), j, c));
      x /= std::sqrt(static_cast<double>(p.desc.head_dim));
      if (p.softcap > 0)
        x = p.softcap * std::tanh(x / p.softcap);
      logits[static_cast<size_t>(j)] = x;
      m = std::max(m, x);
    }
    for (double x : logits)
      l += std::exp(x - m);
    for (int64_t j = 0; j < p.t; ++j) {
      double w = std::exp(logits[static_cast<size_t>(j)] - m) / l;
      column[static_cast<size_t>(j)] += w;
      if (p.position(b, i) >= j)
        diagonal[static_cast<size_t>(p.position(b, i) - j)] += w;
    }
  }
  for (int64_t j = 0; j < p.t; ++j) {
    ASSERT_NEAR(sums.column[j], column[static_cast<size_t>(j)], tolerance) << j;
    ASSERT_NEAR(sums.diagonal[j], diagonal[static_cast<size_t>(j)], tolerance)
        << j;
  }
}

TEST(Estimate, Sums) {
  for (int64_t s : {20, 64, 300})
    for (int64_t past : {0, 37})
      for (int64_t last : {1, 16, 19, 50}) {
        Problem<8, 4, 16, 16, float, Causal> p;
        p.b = 2;
        p.s = s;
        p.t = s + past;
        p.spread = 3;
        p.build();
        checkSums(p, 1, 3, last, s);
      }
}

TEST(Estimate, SumsUnderMasks) {
  constexpr unsigned F = Causal | PREFILL_TILE_WINDOW | PREFILL_TILE_KEY_MASK |
                         PREFILL_TILE_SOFTCAP;
  Problem<8, 4, 16, 16, float, F> p;
  p.b = 3;
  p.s = p.t = 300;
  p.windowLeft = 99;
  p.spread = 3;
  p.build();
  Tensor &mask = p.in[PREFILL_IN_KEY_MASK];
  mask.make({3, 300}, kDLInt, 64);
  for (int64_t j = 0; j < 300; ++j) {
    mask.at<int64_t>({0, j}) = j >= 250;
    mask.at<int64_t>({1, j}) = j < 201;
    mask.at<int64_t>({2, j}) = j % 5 != 0 || j == 299;
  }
  checkSums(p, 0, 0, 40, 300);
  checkSums(p, 1, 1, 40, 201); // rows past the padding do not vote
  checkSums(p, 2, 2, 40, 300);
}

TEST(Estimate, SumsOfLongPromptsAreScoredTwice) {
  Problem<8, 4, 128, 64, float, Causal> p;
  p.hq = p.hk = 1;
  p.s = 20;
  p.t = 17000; // 17000 x 128 scores are more than 8 MB
  p.spread = 3;
  p.build();
  checkSums(p, 0, 0, 16, 20);
}

TEST(Estimate, SumsOfHalfPrecision) {
  Problem<8, 4, 16, 16, bf16, Causal> p;
  p.s = p.t = 100;
  p.build();
  checkSums(p, 0, 2, 16, 100);
}

TEST(Estimate, SumsWithAGeneratedScoreFunction) {
  Problem<8, 4, 16, 16, float, Causal> p;
  p.s = p.t = 100;
  p.build();
  p.variant.score = referenceScore<8, 16>;
  checkSums(p, 0, 2, 20, 100);
}

TEST(Estimate, SumsThatAreNoNumbersKeepEverything) {
  for (float bad : {NAN, INFINITY}) {
    Problem<8, 4, 16, 16, float, Causal | PREFILL_TILE_KEY_MASK> p;
    p.heads = {verticalSlash(20, 50, 16), verticalSlash(0, 0, 16, 0.2f),
               verticalSlash(20, 50, 10), verticalSlash(0, 0, 3, 0.2f)};
    p.hk = 2;
    buildWithBadKey(p, bad); // of the first KV head
    ASSERT_EQ(p.run(), PREFILL_OK);
    for (int64_t h = 0; h < 4; ++h) {
      const float density = p.out[PREFILL_OUT_DENSITY].at<float>({0, h});
      if (h < 2)
        EXPECT_EQ(density, 1) << bad << " " << h;
      else
        EXPECT_LT(density, 0.95f) << bad << " " << h;
    }
    // A key that nobody sees may be anything: even lanes without a row.
    Tensor &mask = p.in[PREFILL_IN_KEY_MASK];
    mask.make({1, 200}, kDLUInt, 8);
    for (int64_t j = 0; j < 200; ++j)
      mask.at<uint8_t>({0, j}) = j != 90;
    ASSERT_EQ(p.run(), PREFILL_OK);
    for (int64_t h = 0; h < 4; ++h)
      EXPECT_LT(p.out[PREFILL_OUT_DENSITY].at<float>({0, h}), 0.95f) << h;
  }
}

// --- Crossover --------------------------------------------------------------

TEST(Crossover, ShortPromptsRunDense) {
  for (int64_t s : {128, 256, 512}) {
    Problem<8, 4, 64, 64, float, Causal> p;
    p.hq = p.hk = 1;
    p.s = p.t = s;
    p.heads = {verticalSlash(1000, 6096, 64)};
    p.build();
    p.plan.dense_below = -1;
    p.wantStatistics();
    ASSERT_EQ(p.run(), PREFILL_OK);
    EXPECT_EQ(p.out[PREFILL_OUT_DENSITY].at<float>({0, 0}), 1.0f);
  }
}

TEST(Crossover, LongPromptsRunSparse) {
  Problem<8, 4, 64, 64, float, Causal> p;
  p.hq = p.hk = 1;
  p.s = 256;
  p.t = 16384;
  p.heads = {aShape(128, 512)};
  p.build();
  p.plan.dense_below = -1;
  p.wantStatistics();
  ASSERT_EQ(p.run(), PREFILL_OK);
  EXPECT_LT(p.out[PREFILL_OUT_DENSITY].at<float>({0, 0}), 0.1f);
}

TEST(Crossover, TooManyKeptBlocksRunDense) {
  // The prediction for these counts is sparse at this length; attention that is
  // spread evenly keeps more than it saves.
  Problem<8, 4, 64, 64, float, Causal> p;
  p.hq = p.hk = 1;
  p.s = 64;
  p.t = 16384;
  p.spread = 0.01;
  p.heads = {verticalSlash(1000, 2000, 64)};
  p.build();
  p.plan.dense_below = -1;
  p.wantStatistics();
  ASSERT_EQ(p.run(), PREFILL_OK);
  EXPECT_LE(p.out[PREFILL_OUT_DENSITY].at<float>({0, 0}), 1.0f);
}

TEST(Crossover, FlexPrefillsBudgetIsCounted) {
  Problem<8, 4, 64, 64, float, Causal> p;
  p.s = p.t = 4096;
  p.build();
  Checked<decltype(p)> checked(p);
  const pf_work dense = {64, 64 * 65 / 2, 0};
  auto blocks = [&](int32_t budget) {
    const prefill_head_plan plan = flexPrefill(0.9f, 0.1f, budget);
    return pf_predict_work(&checked.call, &plan, &dense, 4096, false).blocks;
  };
  EXPECT_EQ(blocks(64), blocks(0));
  EXPECT_GT(blocks(1024), blocks(0));
  EXPECT_EQ(blocks(4096), dense.blocks);
}

TEST(Crossover, XAttentionsCostFollowsTheMachine) {
  pf_call call{};
  call.hot = &pf_hot_v3;
  const pf_work dense = {128, 128 * 129 / 2, 0};
  auto share = [&](int32_t stride) {
    const prefill_head_plan plan = xAttention(stride, 0.9f);
    return pf_cost_estimate_strided(&call, &plan, &dense) /
           pf_cost_dense(&dense);
  };
  const double slow = share(8);
  EXPECT_LT(slow, 0.06);
  EXPECT_LT(share(16), slow);
  EXPECT_GT(share(4), slow);
  call.hot = &pf_hot_v4;
  EXPECT_EQ(share(8) < slow, pf_cpu_vnni());
}

TEST(Crossover, GridsAndBoundaries) {
  Problem<8, 4, 64, 64, float, Causal> p;
  p.s = p.t = 8192;
  p.build();
  Checked<decltype(p)> checked(p);
  checked.call.modalities = 2;
  auto pays = [&](const prefill_head_plan &plan, int64_t tiles) {
    const pf_work dense = {tiles, tiles * (tiles + 1) / 2, 0};
    return pf_worth_estimating(&checked.call, &plan, &dense, tiles * 64);
  };
  // Half of the keys in three kinds of lines are all; a known stride is cheaper
  // to estimate than one to be found.
  EXPECT_FALSE(pays(grid(2), 128));
  EXPECT_TRUE(pays(grid(64), 128));
  EXPECT_TRUE(pays(grid(0), 128));
  EXPECT_FALSE(pays(grid(64), 4));
  EXPECT_TRUE(pays(grid(16), 16));
  EXPECT_FALSE(pays(grid(0), 16));
  EXPECT_FALSE(pays(boundary(false, 1000, 1024), 64)); // as much as there is
  EXPECT_TRUE(pays(boundary(false, 64, 128), 128));
  EXPECT_FALSE(pays(boundary(false, 64, 128), 8));
  // Pairs cost more than rows, and more modalities more.
  bool bounded;
  auto estimate = [&](bool pairs) {
    const prefill_head_plan plan = boundary(pairs, 64, 128);
    const pf_work dense = {64, 64 * 65 / 2, 0};
    return pf_cost_estimate(&checked.call, &plan, &dense, 4096, &bounded);
  };
  const double rows = estimate(false), pairs = estimate(true);
  EXPECT_GT(pairs, rows);
  checked.call.modalities = 4;
  EXPECT_EQ(estimate(false), 2 * rows);
  EXPECT_GT(estimate(true), 2 * pairs);
}

TEST(Crossover, PredictionsAreBounded) {
  Problem<8, 4, 64, 64, float, Causal> p;
  p.s = p.t = 4096;
  p.build();
  Checked<decltype(p)> checked(p);
  const pf_work dense = {64, 64 * 65 / 2, 0};
  for (const prefill_head_plan &plan :
       {aShape(128, 1024), triShape(8, 512, 128), verticalSlash(1000, 6096),
        verticalSlash(30, 100), verticalSlash(0, 0, 64, 0.1f), blockSparse(10),
        blockSparse(0, 0.1f), strided(64, 512, 8), strided(0, 0, 1),
        xAttention(8, 0.9f), sampled(8, 0.9f), flexPrefill(0.9f, 0.1f),
        infLLM(8), blockTopP(0.9f, 0), grid(0), grid(2), grid(128),
        boundary(false, 100, 300), boundary(true, 1000, 1024)}) {
    const pf_work likely =
        pf_predict_work(&checked.call, &plan, &dense, 4096, false);
    const pf_work worst =
        pf_predict_work(&checked.call, &plan, &dense, 4096, true);
    EXPECT_GT(likely.blocks, 0);
    EXPECT_LE(likely.blocks, dense.blocks);
    EXPECT_LE(likely.blocks, worst.blocks);
    EXPECT_LE(likely.column_tiles, worst.column_tiles);
  }
}

} // namespace
