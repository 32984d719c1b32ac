//===- XAttentionTest.cpp - XAttention's choice of blocks -----------------===//
//
// Whole calls against the sums along antidiagonals in float64 (XAttention.h,
// Mass.h).
//
//===----------------------------------------------------------------------===//
#include "XAttention.h"
#include "Plans.h"

using namespace ref;

namespace {

/// Runs a problem; every tile keeps what the masses say.
template <class P>
void check(P &p, double tolerance = 2e-6) {
  using Of = BlocksOf<P>;
  p.plan.dense_below = 0;
  checkSparse(p, tolerance);
  for (int64_t b = 0; b < p.b; ++b)
    for (int64_t h = 0; h < p.hq; ++h)
      for (int64_t tile = 0; tile * Of::rows < p.s; ++tile) {
        SCOPED_TRACE(testing::Message() << b << " " << h << " " << tile);
        const prefill_head_plan &plan = p.heads[size_t(h)];
        const std::vector<bool> visible = visibleBlocks(p, b, tile);
        const std::vector<bool> kept = keptBlocks(p, b, h, tile);
        if (Of::rows % plan.stride || Of::keys % plan.stride) { // dense
          EXPECT_EQ(kept, visible);
          continue;
        }
        std::vector<double> mass = stridedMass(p, b, h, tile);
        for (size_t block = 0; block < mass.size(); ++block)
          mass[block] = visible[block] ? mass[block] : 0;
        expectTopP(kept, visible, forcedBlocks(p, b, tile), mass,
                   double(plan.top_p), 3e-4);
      }
}

TEST(XAttention, IsAttentionOverWhatItVisits) {
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
      SCOPED_TRACE(testing::Message() << "s " << s << " past " << past);
      check(p);
    }
}

TEST(XAttention, OtherTilesTypesAndMasks) {
  auto run = [](auto &p, double tolerance = 2e-6) {
    p.b = 3;
    p.s = 300;
    p.t = 337;
    p.spread = 3;
    p.heads = {xAttention(2, 0.5f), xAttention(4, 0.8f), xAttention(8, 0.9f),
               xAttention(32, 0.9f)}; // the last does not fit: dense
    p.build();
    hideKeys(p);
    check(p, tolerance);
  };
  Problem<8, 4, 32, 16, float, Causal> wide;
  run(wide);
  Problem<8, 4, 16, 32, float, Causal> tall;
  run(tall);
  Problem<8, 4, 24, 16, float, Causal> odd;
  run(odd);
  Problem<8, 4, 16, 16, float, Causal | PREFILL_TILE_KEY_MASK> masked;
  run(masked);
  Problem<8, 4, 16, 16, float, Causal | PREFILL_TILE_WINDOW> window;
  window.windowLeft = 150;
  run(window);
  Problem<8, 4, 16, 16, _Float16, Causal> half;
  run(half, 4e-3);
}

TEST(XAttention, KeepsWhatHasTheMass) {
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

TEST(XAttention, InstructionSetsAgree) {
  std::vector<char> first;
  for (uint32_t limit : {0, 3, 2}) {
    Problem<8, 4, 16, 16, float, Causal> p;
    p.s = p.t = 400;
    p.spread = 3;
    p.heads = {xAttention(2, 0.5f), xAttention(4, 0.8f), xAttention(8, 0.9f),
               xAttention(16, 0.7f)};
    p.build();
    p.context.isa_limit = limit;
    check(p);
    const auto &map = p.out[PREFILL_OUT_BLOCK_MAP].bytes;
    if (first.empty())
      first = map;
    EXPECT_EQ(map, first) << limit;
  }
}

TEST(XAttention, BesideSale) {
  // Both use the keys in bytes, of other KV heads too.
  Problem<8, 4, 16, 16, float, Causal> p, alone;
  for (auto *x : {&p, &alone}) {
    x->s = x->t = 300;
    x->hk = 4;
    x->spread = 3;
    x->heads = {xAttention(4, 0.8f), sale(0.05f), saleMass(0.8f, 4),
                xAttention(8, 0.7f)};
    if (x == &alone)
      x->heads[1] = x->heads[2] = aShape(8, 20);
    x->build();
    x->plan.dense_below = 0;
    x->wantStatistics();
    ASSERT_EQ(x->run(), PREFILL_OK);
  }
  for (int64_t h : {0, 3})
    for (int64_t tile = 0; tile < 19; ++tile)
      EXPECT_EQ(keptBlocks(p, 0, h, tile), keptBlocks(alone, 0, h, tile));
}

TEST(XAttention, WhatIsNotFiniteKeepsEverything) {
  for (float bad : {NAN, INFINITY, -INFINITY, 1e38f, 1e30f}) {
    Problem<8, 4, 16, 16, float, Causal> p;
    p.hq = p.hk = 1;
    p.heads = {xAttention(4, 0.2f)};
    buildWithBadKey(p, bad);
    ASSERT_EQ(p.run(), PREFILL_OK);
    EXPECT_EQ(p.out[PREFILL_OUT_DENSITY].at<float>({0, 0}), 1.0f) << bad;
    // Query row 70 is in tile 4.
    buildWithBadKey(p, 1);
    p.q(0, 0, 70, 1) = bad;
    ASSERT_EQ(p.run(), PREFILL_OK);
    for (int64_t tile = 0; tile < 13; ++tile) {
      const std::vector<bool> kept = keptBlocks(p, 0, 0, tile);
      const int64_t count = std::count(kept.begin(), kept.end(), true);
      if (tile == 4)
        EXPECT_EQ(count, 5) << bad;
      else if (tile > 5)
        EXPECT_LT(count, tile + 1) << bad << " " << tile;
    }
  }
}

TEST(XAttention, Rotary) {
  Problem<8, 4, 16, 16, float, Causal> p, r;
  for (auto *x : {&p, &r}) {
    x->s = x->t = 200;
    x->heads = {xAttention(2, 0.5f), xAttention(4, 0.8f), xAttention(8, 0.7f),
                xAttention(16, 0.7f)};
    x->spread = 3;
  }
  expectRotatedRows(p, r);
}

} // namespace
