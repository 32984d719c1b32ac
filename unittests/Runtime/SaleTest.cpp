//===- SaleTest.cpp - SALE's choice of blocks -----------------------------===//
//
// Whole calls against an estimate that quantises the same numbers and then goes
// key by key in int64 and float64.
//
//===----------------------------------------------------------------------===//
#include "Sale.h"
#include "Plans.h"
#include "sparse.h"

using namespace ref;

namespace {

template <class P>
void checkBlocks(P &p, double tolerance = 2e-6) {
  p.wantStatistics();
  p.plan.dense_below = 0;
  ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
  const int64_t bq = p.desc.block_q, bk = p.desc.block_k;
  auto map = [&](int64_t b, int64_t h, int64_t tile, int64_t block) {
    return p.out[PREFILL_OUT_BLOCK_MAP].template at<uint8_t>(
               {b, h, tile, block}) == 1;
  };
  int64_t doubts = 0, total = 0;
  for (int64_t b = 0; b < p.b; ++b)
    for (int64_t h = 0; h < p.hq; ++h) {
      ExpectedSale<P> expected(p, b, h);
      for (int64_t tile = 0; tile * bq < p.s; ++tile) {
        const auto verdicts = expected.tile(tile);
        for (size_t block = 0; block < verdicts.size(); ++block) {
          ++total;
          if (verdicts[block] == ExpectedSale<P>::Doubt)
            ++doubts;
          else
            ASSERT_EQ(map(b, h, tile, int64_t(block)),
                      verdicts[block] == ExpectedSale<P>::Kept)
                << "batch " << b << " head " << h << " tile " << tile
                << " block " << block;
        }
      }
    }
  EXPECT_LE(doubts, total / 100 + 1);
  EXPECT_LT(p.error([&](int64_t b, int64_t h, int64_t i, int64_t j) {
    return map(b, h, i / bq, j / bk);
  }),
            tolerance);
}

TEST(Sale, KeepsTheBlocksItShould) {
  for (int64_t s : {16, 100, 333})
    for (int64_t past : {0, 5, 64, 100}) {
      Problem<8, 4, 16, 16, float, Causal> p;
      p.b = 3;
      p.hq = 8;
      p.s = s;
      p.t = s + past;
      p.spread = 3;
      p.heads = {sale(0.05f),          sale(0.02f, 4),
                 saleMass(0.8f),       saleMass(0.9f, 4),
                 sale(0.05f, 0, 0, 0), sale(0.03f, 8, 20, 40, 4),
                 saleMass(0.9f, 8, 4), saleMass(0.5f, 4, 16, 0, 0)};
      p.build(static_cast<uint64_t>(s + past));
      SCOPED_TRACE(testing::Message() << "s " << s << " past " << past);
      checkBlocks(p);
    }
}

template <class P>
void checkMasked(P &p, double tolerance = 2e-6) {
  p.b = 3;
  p.s = 250;
  p.t = 287;
  p.spread = 3;
  p.heads = {sale(0.05f), saleMass(0.8f, 4), sale(0.03f, 4, 20, 40, 4),
             saleMass(0.9f, 8, 8)};
  p.build();
  hideKeys(p);
  if (p.desc.features & PREFILL_TILE_KEY_MASK) // hidden keys may be anything
    for (int64_t kh = 0; kh < p.hk; ++kh)
      narrow(1e4, p.k(1, kh, 50, 2));
  checkBlocks(p, tolerance);
}

TEST(Sale, OtherTilesTypesAndMasks) {
  Problem<8, 4, 32, 16, float, Causal> wide;
  checkMasked(wide);
  Problem<8, 4, 16, 32, float, Causal> tall;
  checkMasked(tall);
  Problem<6, 4, 24, 16, float, Causal> odd; // rows end within four bytes
  checkMasked(odd);
  Problem<8, 4, 128, 16, float, Causal> large; // a tile is two groups of rows
  checkMasked(large);
  Problem<8, 4, 16, 16, float, Causal | PREFILL_TILE_KEY_MASK> masked;
  checkMasked(masked);
  Problem<8, 4, 16, 16, float, Causal | PREFILL_TILE_WINDOW> window;
  window.windowLeft = 150;
  checkMasked(window);
  Problem<8, 4, 16, 16, float, Causal | PREFILL_TILE_SOFTCAP> softcap;
  checkMasked(softcap);
  Problem<8, 4, 16, 16, _Float16, Causal> half;
  checkMasked(half, 4e-3);
  Problem<8, 4, 16, 16, bf16, Causal> brain;
  checkMasked(brain, 3e-2);
}

TEST(Sale, InstructionSetsAgree) {
  std::vector<char> first;
  for (uint32_t limit : {0, 3, 2}) {
    Problem<8, 4, 16, 16, float, Causal> p;
    p.s = p.t = 400;
    p.spread = 3;
    p.heads = {sale(0.05f), sale(0.03f, 4), saleMass(0.8f), saleMass(0.9f, 4)};
    p.build();
    p.context.isa_limit = limit;
    checkBlocks(p);
    const auto &map = p.out[PREFILL_OUT_BLOCK_MAP].bytes;
    if (first.empty())
      first = map;
    EXPECT_EQ(map, first) << limit;
  }
}

TEST(Sale, ASharedConstantOfTheKeysChangesNothing) {
  // What smoothing is for: large, and the same for all keys.
  Problem<8, 4, 16, 16, float, Causal> p, shifted;
  for (auto *x : {&p, &shifted}) {
    x->s = x->t = 400;
    x->spread = 3;
    x->heads = {sale(0.05f), saleMass(0.9f), sale(0.05f, 8, 8, 24, 4),
                saleMass(0.8f, 8, 4)};
    x->build();
    x->wantStatistics();
    x->plan.dense_below = 0;
  }
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t j = 0; j < 400; ++j)
      shifted.k(0, h, j, 3) += 64;
  ASSERT_EQ(p.run(), PREFILL_OK);
  ASSERT_EQ(shifted.run(), PREFILL_OK);
  int64_t differences = 0;
  for (int64_t i = 0; i < 4 * 25 * 25; ++i)
    differences += p.out[PREFILL_OUT_BLOCK_MAP].data<uint8_t>()[i] !=
                   shifted.out[PREFILL_OUT_BLOCK_MAP].data<uint8_t>()[i];
  EXPECT_LT(differences, 4 * 25 * 25 / 200);
}

TEST(Sale, WhatIsNotFiniteKeepsEverything) {
  for (double value : {double(NAN), double(INFINITY), 1e38, 1e30})
    for (bool inKeys : {false, true}) {
      Problem<8, 4, 16, 16, float, Causal> p;
      p.hq = 2;
      p.hk = 1;
      p.s = p.t = 200;
      p.heads = {sale(0.3f), saleMass(0.2f)};
      p.build();
      p.plan.dense_below = 0;
      p.wantStatistics();
      // Query row 70 is in tile 4; keys matter to all rows.
      for (int64_t h = 0; h < (inKeys ? 1 : 2); ++h)
        (inKeys ? p.k(0, h, 70, 1) : p.q(0, h, 70, 1)) =
            static_cast<float>(value);
      ASSERT_EQ(p.run(), PREFILL_OK);
      for (int64_t h = 0; h < 2; ++h)
        for (int64_t tile = inKeys ? 0 : 4; tile < (inKeys ? 13 : 5); ++tile)
          for (int64_t block = 0; block <= tile; ++block)
            ASSERT_EQ(
                p.out[PREFILL_OUT_BLOCK_MAP].at<uint8_t>({0, h, tile, block}),
                1)
                << value << inKeys << h << tile << " " << block;
      if (!inKeys)
        EXPECT_LT(p.out[PREFILL_OUT_DENSITY].at<float>({0, 0}), 0.9f);
    }
}

TEST(Sale, TinyScoresAreAllAlike) {
  Problem<8, 4, 16, 16, float, Causal> p;
  p.s = p.t = 320;
  p.heads.assign(4, saleMass(0.5f, 8, 0, 0, 0));
  p.build();
  p.plan.dense_below = 0;
  p.wantStatistics();
  for (int64_t h = 0; h < 4; ++h)
    for (int64_t i = 0; i < 320; ++i)
      for (int64_t c = 0; c < 8; ++c)
        p.q(0, h, i, c) *= 1e-35f;
  ASSERT_EQ(p.run(), PREFILL_OK);
  // Every block but the last has the same mass: the lower ones go first.
  for (int64_t block = 0; block < 20; ++block)
    EXPECT_EQ(p.out[PREFILL_OUT_BLOCK_MAP].at<uint8_t>({0, 0, 19, block}),
              block < 10 || block == 19)
        << block;
}

TEST(Sale, LowThresholdsAreDense) {
  Problem<8, 4, 16, 16, float, Causal> p;
  p.s = p.t = 320;
  p.heads = {sale(1e-5f), sale(0), sale(0.5f), sale(0.5f, 5)};
  p.build();
  p.plan.dense_below = 0;
  p.wantStatistics();
  ASSERT_EQ(p.run(), PREFILL_OK);
  for (int64_t h : {0, 1, 3}) // five bits: no such estimate
    EXPECT_EQ(p.out[PREFILL_OUT_DENSITY].at<float>({0, h}), 1.0f);
  EXPECT_LT(p.out[PREFILL_OUT_DENSITY].at<float>({0, 2}), 0.9f);
}

TEST(Sale, CostsFollowTheMachine) {
  pf_call call{};
  call.hot = &pf_hot_v3;
  const pf_work dense = {128, 128 * 129 / 2, 0};
  auto cost = [&](const prefill_head_plan &plan) {
    return pf_cost_estimate_quantized(&call, &plan, &dense);
  };
  const double slow = cost(sale(0.02f));
  EXPECT_LT(slow, 0.5 * pf_cost_dense(&dense));
  EXPECT_LT(cost(saleMass(0.9f, 8, 4)), 0.5 * cost(saleMass(0.9f)));
  EXPECT_GT(cost(saleMass(0.9f)), slow);
  call.hot = &pf_hot_v4;
  EXPECT_EQ(cost(sale(0.02f)) < 0.5 * slow, pf_cpu_vnni());
}

TEST(Sale, DegenerateSizes) {
  for (int64_t s : {0, 1, 2, 5, 40})
    for (int64_t t : {0, 1, 3, 30, 40}) {
      Problem<8, 4, 16, 16, float, Causal> p;
      p.s = s;
      p.t = t;
      p.heads = {sale(0.1f), saleMass(0.5f), sale(0.1f, 4, 0, 0, 16),
                 saleMass(0.5f, 4, 16, 0, 0)};
      p.build();
      p.plan.dense_below = 0;
      p.wantStatistics();
      ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
    }
}

TEST(Sale, ThreadsGiveTheSameBits) {
  Problem<8, 4, 16, 16, float, Causal> p;
  p.b = 2;
  p.s = p.t = 500;
  p.heads = {sale(0.05f), sale(0.05f, 4), saleMass(0.8f), saleMass(0.8f, 4, 4)};
  p.build();
  p.plan.dense_below = 0;
  expectThreadsAgree(p);
}

TEST(Sale, Rotary) {
  // The estimate sees rotated rows: the same call on rows rotated before.
  Problem<8, 4, 16, 16, float, Causal> p, r;
  for (auto *x : {&p, &r}) {
    x->s = x->t = 200;
    x->heads = {sale(0.05f), saleMass(0.8f), sale(0.05f, 4),
                saleMass(0.8f, 4, 4)};
    x->spread = 3;
  }
  expectRotatedRows(p, r);
}

} // namespace
