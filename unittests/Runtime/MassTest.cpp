//===- MassTest.cpp - Patterns that give blocks a mass --------------------===//
//
// Which blocks `sampled` and block-sparse with a top-p keep, against softmaxes
// in float64 (Mass.h, Sampled.h).
//
//===----------------------------------------------------------------------===//
#include "Plans.h"
#include "Sampled.h"

using namespace ref;

namespace {

/// Runs the problem and checks every tile of every head.
template <class P>
void check(P &p, double tolerance = 1e-4) {
  using Of = BlocksOf<P>;
  p.plan.dense_below = 0;
  p.wantStatistics();
  ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
  for (int64_t b = 0; b < p.b; ++b)
    for (int64_t h = 0; h < p.hq; ++h) {
      const prefill_head_plan &plan = p.heads[static_cast<size_t>(h)];
      for (int64_t tile = 0; tile * Of::rows < p.s; ++tile) {
        SCOPED_TRACE(testing::Message()
                     << "batch " << b << " head " << h << " tile " << tile);
        const std::vector<bool> visible = visibleBlocks(p, b, tile);
        const std::vector<bool> kept = keptBlocks(p, b, h, tile);
        const std::vector<double> mass =
            plan.pattern == PREFILL_PATTERN_SAMPLED
                ? sampledMass(p, b, h, tile, plan)
                : pooledMass(p, b, h, tile * Of::rows,
                             std::min(p.s, (tile + 1) * Of::rows), visible);
        if (!mass.empty())
          expectTopP(
              kept, visible,
              forcedBlocks(p, b, tile, (plan.local + Of::keys - 1) / Of::keys),
              mass, static_cast<double>(plan.top_p), tolerance);
        else
          EXPECT_EQ(kept, visible);
      }
    }
}

TEST(Mass, KeepsTheMassOfItsRows) {
  for (int64_t s : {2, 16, 100, 333})
    for (int64_t past : {0, 5, 64, 101}) {
      Problem<8, 4, 16, 16, float, Causal> p;
      p.b = 3;
      p.s = s;
      p.t = s + past;
      p.spread = 4;
      p.hq = 6;
      p.heads = {sampled(2, 0.5f),       sampled(4, 0.8f, 20, 1),
                 sampled(8, 0.95f),      sampled(16, 0.3f, 1),
                 sampled(2, 0.7f, 0, 1), blockTopP(0.3f)};
      p.build(static_cast<uint64_t>(s + past));
      SCOPED_TRACE(testing::Message() << "s " << s << " past " << past);
      check(p);
    }
}

TEST(Mass, ManyGroupsOfLongerPrompts) {
  Problem<8, 4, 64, 64, float, Causal> p;
  p.hq = p.hk = 1;
  p.s = 64 * 17 + 3;
  p.t = p.s + 77;
  p.spread = 4;
  p.heads = {sampled(8, 0.9f)};
  p.build(3);
  check(p);
  p.heads = {sampled(8, 0.9f, 0, 1)};
  check(p);
}

TEST(Mass, LevelsAndScoreFunctions) {
  for (uint32_t isa = 2; isa <= pf_cpu_isa(); ++isa)
    for (prefill_score_fn score :
         {prefill_score_fn(nullptr), &referenceScore<8, 16>}) {
      Problem<8, 4, 16, 16, float, Causal> p;
      p.s = 150;
      p.t = 171;
      p.spread = 4;
      p.pad = 3;
      p.qLayout = p.kLayout = PREFILL_BSHD;
      p.heads = {sampled(1, 0.5f), sampled(2, 0.8f, 0, 1), sampled(8, 0.9f),
                 sampled(4, 0.99f, 0, 1)};
      p.build();
      p.variant.isa = isa;
      p.variant.score = score;
      SCOPED_TRACE(isa);
      check(p);
    }
}

TEST(Mass, OtherTiles) {
  auto run = [](auto &p, double tolerance) {
    p.s = 300;
    p.t = 337;
    p.spread = 4;
    p.heads = {sampled(1, 0.5f), sampled(2, 0.8f, 0, 1), blockTopP(0.9f),
               sampled(4, 0.99f)};
    p.build();
    check(p, tolerance);
  };
  Problem<8, 4, 32, 16, float, Causal> wide;
  run(wide, 1e-4);
  Problem<8, 4, 16, 32, float, Causal> tall;
  run(tall, 1e-4);
  Problem<8, 4, 24, 16, float, Causal> odd;
  run(odd, 1e-4);
  Problem<8, 4, 8, 512, float, Causal> chunky;
  run(chunky, 1e-4);
  Problem<8, 4, 16, 16, _Float16, Causal> half;
  run(half, 1e-4);
  Problem<8, 4, 16, 16, bf16, Causal> brain;
  run(brain, 1e-4);
}

TEST(Mass, MasksWindowsAndLengths) {
  constexpr unsigned F = Causal | PREFILL_TILE_WINDOW | PREFILL_TILE_KEY_MASK |
                         PREFILL_TILE_SOFTCAP;
  Problem<8, 4, 16, 16, float, F> p;
  p.b = 4;
  p.s = 250;
  p.t = 263;
  p.windowLeft = 150;
  p.spread = 4;
  p.heads = {sampled(2, 0.5f), sampled(4, 0.8f, 20, 1), sampled(16, 0.3f),
             blockTopP(0.8f)};
  p.build();
  for (int64_t h = 0; h < p.hk; ++h) // of keys that are masked
    p.v(2, h, 201, 1) = NAN;
  Tensor &mask = p.in[PREFILL_IN_KEY_MASK];
  mask.make({4, 263}, kDLInt, 64);
  for (int64_t j = 0; j < 263; ++j) {
    mask.at<int64_t>({0, j}) = 1;
    mask.at<int64_t>({1, j}) = j >= 77;
    mask.at<int64_t>({2, j}) = j < 200;
    mask.at<int64_t>({3, j}) = j % 7 != 3;
  }
  p.in[PREFILL_IN_KV_LENGTHS].make({4}, kDLInt, 32);
  for (int64_t b = 0; b < 4; ++b)
    p.in[PREFILL_IN_KV_LENGTHS].at<int32_t>({b}) = b == 3 ? 123 : 263;
  check(p);
}

TEST(Mass, Softcaps) {
  // Low enough to make all but the smallest scores alike.
  Problem<8, 4, 16, 16, float, Causal | PREFILL_TILE_SOFTCAP> p;
  p.softcap = 0.2f;
  p.s = 300;
  p.t = 337;
  p.spread = 6;
  p.heads = {blockTopP(0.5f), sampled(4, 0.5f), blockTopP(0.9f),
             sampled(16, 0.8f)};
  p.build();
  check(p);
}

TEST(Mass, RotatedQueries) {
  Problem<8, 4, 16, 16, float, Causal> p;
  p.s = 100;
  p.t = 130;
  p.spread = 4;
  p.rotary = 1;
  p.rotaryDim = 8;
  p.heads = {sampled(4, 0.8f), blockTopP(0.7f), sampled(8, 0.5f),
             blockTopP(0.9f)};
  p.build();
  auto angle = [](int64_t i, int64_t c) {
    return static_cast<double>(i) * std::pow(10.0, -static_cast<double>(c));
  };
  rotaryTables(p, 130, [&](int64_t i, int64_t c) {
    return std::pair(float(std::cos(angle(i, c))),
                     float(std::sin(angle(i, c))));
  });
  auto plain = p.element;
  p.element = [&, plain](bool query, int64_t b, int64_t h, int64_t n,
                         int64_t c) {
    const int64_t pair = c % 4, at = query ? p.position(b, n) : n;
    const double low = plain(query, b, h, n, pair),
                 high = plain(query, b, h, n, pair + 4);
    const double cosine = std::cos(angle(at, pair)),
                 sine = std::sin(angle(at, pair));
    return c < 4 ? low * cosine - high * sine : high * cosine + low * sine;
  };
  check(p);
}

TEST(Mass, NumbersThatAreNoneKeepEverything) {
  for (float bad : {NAN, INFINITY, -INFINITY}) {
    Problem<8, 4, 16, 16, float, Causal> p;
    p.hq = p.hk = 1;
    p.heads = {sampled(4, 0.1f)};
    buildWithBadKey(p, bad);
    ASSERT_EQ(p.run(), PREFILL_OK);
    for (int64_t tile = 0; tile < 13; ++tile) {
      SCOPED_TRACE(testing::Message() << bad << " tile " << tile);
      const std::vector<bool> kept = keptBlocks(p, 0, 0, tile);
      int64_t count = std::count(kept.begin(), kept.end(), true);
      if (tile >= 5 && bad != -INFINITY) // -inf: a key without weight
        EXPECT_EQ(count, tile + 1);
      else
        EXPECT_LE(count, 5);
    }
  }
  // The same for mean keys.
  for (float bad : {NAN, INFINITY}) {
    Problem<8, 4, 16, 16, float, Causal> p;
    p.hq = p.hk = 1;
    p.heads = {blockTopP(0.1f)};
    buildWithBadKey(p, bad);
    ASSERT_EQ(p.run(), PREFILL_OK);
    for (int64_t tile = 0; tile < 13; ++tile) {
      const std::vector<bool> kept = keptBlocks(p, 0, 0, tile);
      const int64_t count = std::count(kept.begin(), kept.end(), true);
      if (tile >= 5)
        EXPECT_EQ(count, tile + 1) << bad;
      else
        EXPECT_LE(count, 3) << bad;
    }
  }
  // A value that rows see.
  for (float bad : {NAN, INFINITY}) {
    Problem<8, 4, 16, 16, float, Causal> p;
    p.hq = p.hk = 1;
    p.s = p.t = 200;
    p.heads = {sampled(16, 0.1f, 0, 1)};
    p.build();
    p.plan.dense_below = 0;
    p.wantStatistics();
    p.v(0, 0, 90, 3) = bad;
    ASSERT_EQ(p.run(), PREFILL_OK);
    for (int64_t tile = 5; tile < 13; ++tile) {
      const std::vector<bool> kept = keptBlocks(p, 0, 0, tile);
      EXPECT_EQ(std::count(kept.begin(), kept.end(), true), tile + 1) << bad;
    }
  }
  // A query row that is looked at.
  Problem<8, 4, 16, 16, float, Causal> p;
  p.hq = p.hk = 1;
  p.s = p.t = 200;
  p.heads = {sampled(4, 0.1f)};
  p.build();
  p.plan.dense_below = 0;
  p.wantStatistics();
  p.q(0, 0, 16 * 7 + 3, 2) = NAN;
  ASSERT_EQ(p.run(), PREFILL_OK);
  for (int64_t tile = 0; tile < 13; ++tile) {
    const std::vector<bool> kept = keptBlocks(p, 0, 0, tile);
    const int64_t count = std::count(kept.begin(), kept.end(), true);
    if (tile == 7)
      EXPECT_EQ(count, 8);
    else
      EXPECT_LE(count, 5) << tile;
  }
}

TEST(Mass, HugeAndTinyScores) {
  for (float size : {1e-30f, 1e-3f, 1e3f, 1e12f, 1e18f}) {
    Problem<8, 4, 16, 16, float, Causal> p;
    p.s = p.t = 150;
    p.heads = {sampled(4, 0.7f), blockTopP(0.7f), sampled(8, 0.5f, 0, 1),
               blockTopP(0.9f)};
    p.build();
    for (int64_t h = 0; h < 4; ++h)
      for (int64_t i = 0; i < p.s; ++i)
        for (int64_t c = 0; c < 8; ++c)
          p.q(0, h, i, c) *= size;
    SCOPED_TRACE(size);
    check(p, size > 1e2f ? 2e-2 : 1e-4);
  }
}

TEST(Mass, SeeingNothingKeepsEverything) {
  // A window of one key and a mask that leaves every 40th key: rows that are
  // not looked at see keys.
  constexpr unsigned F = Causal | PREFILL_TILE_WINDOW | PREFILL_TILE_KEY_MASK;
  Problem<8, 4, 16, 16, float, F> p;
  p.s = p.t = 200;
  p.windowLeft = 3;
  p.heads.assign(4, sampled(16, 0.5f));
  p.build();
  Tensor &mask = p.in[PREFILL_IN_KEY_MASK];
  mask.make({1, 200}, kDLUInt, 8);
  for (int64_t j = 0; j < 200; ++j)
    mask.at<uint8_t>({0, j}) = j % 40 == 5;
  check(p);
  EXPECT_LT(p.error(), 2e-6);
}

TEST(Mass, EverythingMasked) {
  constexpr unsigned F = Causal | PREFILL_TILE_KEY_MASK;
  Problem<8, 4, 16, 16, float, F> p;
  p.b = 2;
  p.s = p.t = 100;
  p.heads = {sampled(8, 0.5f), blockTopP(0.9f), sampled(1, 0.5f),
             blockTopP(0.1f)};
  p.build();
  Tensor &mask = p.in[PREFILL_IN_KEY_MASK];
  mask.make({2, 100}, kDLUInt, 8);
  for (int64_t j = 0; j < 100; ++j) {
    mask.at<uint8_t>({0, j}) = 0;
    mask.at<uint8_t>({1, j}) = 1;
  }
  check(p);
}

TEST(Mass, StridesThatDoNotFitRunDense) {
  for (int32_t stride : {0, -4, 3, 32}) {
    Problem<8, 4, 16, 16, float, Causal> p;
    p.s = p.t = 100;
    p.heads.assign(4, sampled(stride, 0.1f));
    p.build();
    p.plan.dense_below = 0;
    p.wantStatistics();
    ASSERT_EQ(p.run(), PREFILL_OK);
    EXPECT_EQ(p.out[PREFILL_OUT_DENSITY].at<float>({0, 0}), 1.0f) << stride;
  }
}

} // namespace
