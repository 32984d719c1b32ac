//===- SparseTest.cpp - Sparse patterns through the runtime
//----------------===//
//
// The estimates against float64, and properties of whole calls: what a tile
// function was asked to visit, and that the result is the attention over just
// that. `dense_below = 0` switches the cost function off.
//
//===----------------------------------------------------------------------===//
#include "Reference.h"
#include "estimate.h"
#include "gtest/gtest.h"

using namespace ref;

namespace {

constexpr unsigned Causal = PREFILL_TILE_CAUSAL;

prefill_head_plan aShape(int32_t init, int32_t local) {
  prefill_head_plan plan{};
  plan.pattern = PREFILL_PATTERN_A_SHAPE;
  plan.init = init;
  plan.local = local;
  return plan;
}
prefill_head_plan triShape(int32_t init, int32_t local, int32_t last) {
  prefill_head_plan plan = aShape(init, local);
  plan.pattern = PREFILL_PATTERN_TRI_SHAPE;
  plan.last = last;
  return plan;
}
prefill_head_plan strided(int32_t init, int32_t local, int32_t stride) {
  prefill_head_plan plan = aShape(init, local);
  plan.pattern = PREFILL_PATTERN_STRIDED;
  plan.stride = stride;
  return plan;
}
prefill_head_plan verticalSlash(int32_t vertical, int32_t slash,
                                int32_t last = 16, float density = 0) {
  prefill_head_plan plan{};
  plan.pattern = PREFILL_PATTERN_VERTICAL_SLASH;
  plan.vertical = vertical;
  plan.slash = slash;
  plan.last = last;
  plan.density = density;
  return plan;
}
prefill_head_plan blockSparse(int32_t topK, float density = 0) {
  prefill_head_plan plan{};
  plan.pattern = PREFILL_PATTERN_BLOCK_SPARSE;
  plan.top_k = topK;
  plan.density = density;
  return plan;
}

prefill_head_plan xAttention(int32_t stride, float topP) {
  prefill_head_plan plan{};
  plan.pattern = PREFILL_PATTERN_XATTENTION;
  plan.stride = stride;
  plan.top_p = topP;
  return plan;
}

prefill_head_plan sampled(int32_t stride, float topP) {
  prefill_head_plan plan = xAttention(stride, topP);
  plan.pattern = PREFILL_PATTERN_SAMPLED;
  return plan;
}

prefill_head_plan flexPrefill(float gamma, float tau) {
  prefill_head_plan plan{};
  plan.pattern = PREFILL_PATTERN_FLEXPREFILL;
  plan.top_p = gamma;
  plan.threshold = tau;
  plan.min_budget = 20;
  return plan;
}

prefill_head_plan infLLM(int32_t topK) {
  prefill_head_plan plan{};
  plan.pattern = PREFILL_PATTERN_INFLLM_V2;
  plan.top_k = topK;
  plan.init = 8;
  plan.local = 20;
  return plan;
}

prefill_head_plan blockTopP(float topP, float similarity) {
  prefill_head_plan plan{};
  plan.pattern = PREFILL_PATTERN_BLOCK_SPARSE;
  plan.top_p = topP;
  plan.similarity = similarity;
  return plan;
}

/// Turns spying on for a test.
struct Spying {
  Spying() { spy().reset(true); }
  ~Spying() { spy().reset(false); }
};

/// Runs a problem and checks what holds for every pattern.
template <class P>
void checkSparse(P &p, double tolerance = 2e-6) {
  Spying spying;
  p.wantStatistics();
  ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
  EXPECT_EQ(spy().violations, 0);
  auto keys = [&](int64_t b, int64_t h, int64_t i) -> std::multiset<int64_t> & {
    return spy().visited[&p.o(b, h, i, 0)];
  };
  int64_t visits = 0;
  std::vector<double> row;
  for (int64_t b = 0; b < p.b; ++b)
    for (int64_t h = 0; h < p.hq; ++h)
      for (int64_t i = 0; i < p.s; ++i) {
        const std::multiset<int64_t> &seen = keys(b, h, i);
        visits += static_cast<int64_t>(seen.size());
        for (int64_t j : seen) {
          ASSERT_EQ(seen.count(j), 1u) << "key visited twice";
          ASSERT_TRUE(p.visible(b, i, j));
        }
        const int64_t own = p.position(b, i);
        if (own >= 0 && p.visible(b, i, own))
          ASSERT_EQ(seen.count(own), 1u) << b << " " << h << " " << i;
        double lse;
        p.expectedRow(b, h, i, row, lse);
        EXPECT_LE(p.out[PREFILL_OUT_LSE].template at<float>({b, h, i}),
                  lse + 1e-5);
      }
  EXPECT_GT(visits, 0);
  EXPECT_LT(p.error([&](int64_t b, int64_t h, int64_t i, int64_t j) {
    return keys(b, h, i).count(j) != 0;
  }),
            tolerance);
}

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

TEST(Sparse, XAttention) {
  for (int64_t s : {16, 100, 333})
    for (int64_t past : {0, 5, 64, 100}) {
      Problem<8, 4, 16, 16, float, Causal> p;
      p.b = 2;
      p.s = s;
      p.t = s + past;
      p.spread = 3;
      p.heads = {xAttention(2, 0.5f), xAttention(4, 0.8f), xAttention(8, 0.95f),
                 xAttention(16, 0.3f)};
      p.build(static_cast<uint64_t>(s + past));
      p.plan.dense_below = 0;
      SCOPED_TRACE(testing::Message() << "s " << s << " past " << past);
      checkSparse(p);
    }
}

TEST(Sparse, XAttentionOnOtherTilesAndMasks) {
  auto check = [](auto &p, double tolerance = 2e-6) {
    p.b = 3;
    p.s = 300;
    p.t = 337;
    p.spread = 3;
    p.heads = {xAttention(2, 0.5f), xAttention(4, 0.8f), xAttention(8, 0.9f),
               xAttention(32, 0.9f)}; // the last does not fit: dense
    p.build();
    p.plan.dense_below = 0;
    if (p.desc.features & PREFILL_TILE_KEY_MASK) {
      Tensor &mask = p.in[PREFILL_IN_KEY_MASK];
      mask.make({p.b, p.t}, kDLUInt, 8);
      for (int64_t j = 0; j < p.t; ++j) {
        mask.at<uint8_t>({0, j}) = j % 7 != 3;
        mask.at<uint8_t>({1, j}) = j >= 100;
        mask.at<uint8_t>({2, j}) = j < 251;
      }
      p.in[PREFILL_IN_KV_LENGTHS].make({p.b}, kDLInt, 32);
      for (int64_t b = 0; b < p.b; ++b)
        p.in[PREFILL_IN_KV_LENGTHS].template at<int32_t>({b}) =
            static_cast<int32_t>(p.t - 41 * b);
    }
    checkSparse(p, tolerance);
  };
  Problem<8, 4, 32, 16, float, Causal> wide;
  check(wide);
  Problem<8, 4, 16, 32, float, Causal> tall;
  check(tall);
  Problem<8, 4, 24, 16, float, Causal> odd;
  check(odd);
  Problem<8, 4, 16, 16, float, Causal | PREFILL_TILE_KEY_MASK> masked;
  check(masked);
  Problem<8, 4, 16, 16, float, Causal | PREFILL_TILE_WINDOW> window;
  window.windowLeft = 150;
  check(window);
  Problem<8, 4, 16, 16, _Float16, Causal> half;
  check(half, 4e-3);
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

TEST(Sparse, XAttentionKeepsWhatHasTheMass) {
  // One block of keys that all later rows like, far more than any other.
  Problem<8, 4, 16, 16, float, Causal> p;
  p.hq = p.hk = 1;
  p.s = p.t = 320;
  p.heads = {xAttention(4, 0.9f)};
  p.build();
  p.plan.dense_below = 0;
  p.wantStatistics();
  for (int64_t i = 0; i < p.s; ++i)
    for (int64_t c = 0; c < 8; ++c) {
      p.q(0, 0, i, c) = c == 0 ? 8.0f : 0.0f;
      p.k(0, 0, i, c) = c == 0 && i / 16 == 7 ? 8.0f : 0.0f;
    }
  ASSERT_EQ(p.run(), PREFILL_OK);
  for (int64_t tile = 8; tile < 20; ++tile)
    for (int64_t block = 0; block <= tile; ++block)
      EXPECT_EQ(p.out[PREFILL_OUT_BLOCK_MAP].at<uint8_t>({0, 0, tile, block}),
                block == 0 || block == 7 || block == tile)
          << tile << " " << block;
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
  ASSERT_EQ(p.run(), PREFILL_OK);
  auto o = p.out[PREFILL_OUT_O].bytes;
  for (size_t threads : {2, 3, 7}) {
    prefill_pool *pool = prefill_pool_create(threads);
    p.context.host = pool;
    p.context.parallel_for = prefill_pool_parallel_for;
    std::fill(p.out[PREFILL_OUT_O].bytes.begin(),
              p.out[PREFILL_OUT_O].bytes.end(), 0);
    ASSERT_EQ(p.run(), PREFILL_OK);
    EXPECT_EQ(memcmp(o.data(), p.out[PREFILL_OUT_O].bytes.data(),
                     static_cast<size_t>(p.b * p.hq * p.s * 4) * 4),
              0);
    prefill_pool_destroy(pool);
  }
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
  r.in[PREFILL_IN_COS].make({200, 4}, kDLFloat, 32);
  r.in[PREFILL_IN_SIN].make({200, 4}, kDLFloat, 32);
  for (int64_t i = 0; i < 200; ++i)
    for (int64_t c = 0; c < 4; ++c) {
      r.in[PREFILL_IN_COS].at<float>({i, c}) = 1;
      r.in[PREFILL_IN_SIN].at<float>({i, c}) = 0;
    }
  ASSERT_EQ(p.run(), PREFILL_OK);
  ASSERT_EQ(r.run(), PREFILL_OK) << r.context.message;
  for (int64_t h = 0; h < 4; ++h)
    for (int64_t i = 0; i < 200; ++i)
      for (int64_t c = 0; c < 4; ++c)
        ASSERT_EQ(p.o(0, h, i, c), r.o(0, h, i, c));
}

// --- Estimates --------------------------------------------------------------

/// A checked call, for functions that take one.
template <class P>
struct Checked {
  pf_call call{};
  prefill_context context{};
  explicit Checked(P &p) {
    call.desc = &p.desc;
    call.context = &context;
    const DLTensor *inputs[PREFILL_IN_COUNT];
    DLTensor *outputs[PREFILL_OUT_COUNT];
    for (int i = 0; i < PREFILL_IN_COUNT; ++i)
      inputs[i] = p.in[i].get();
    for (int i = 0; i < PREFILL_OUT_COUNT; ++i)
      outputs[i] = p.out[i].get();
    EXPECT_EQ(
        pf_check(&call, inputs, PREFILL_IN_COUNT, outputs, PREFILL_OUT_COUNT),
        PREFILL_OK)
        << context.message;
  }
  ~Checked() { pf_release_all(&call); }
};

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

/// A score function as generated code has one.
template <int D, int BQ>
void referenceScore(const prefill_score_args *a) {
  const float *q = static_cast<const float *>(a->q);
  const float *k = static_cast<const float *>(a->k);
  for (int64_t j = a->key_begin; j < a->key_end; ++j)
    for (int64_t i = 0; i < BQ; ++i) {
      float x = 0;
      for (int c = 0; i < a->rows && c < D; ++c)
        x += q[i * a->q_stride + c] * k[j * a->k_stride + c];
      a->out[(j - a->key_begin) * BQ + i] = x * a->scale;
    }
}

TEST(Estimate, SumsWithAGeneratedScoreFunction) {
  Problem<8, 4, 16, 16, float, Causal> p;
  p.s = p.t = 100;
  p.build();
  p.variant.score = referenceScore<8, 16>;
  checkSums(p, 0, 2, 20, 100);
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
        infLLM(8), blockTopP(0.9f, 0)}) {
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
