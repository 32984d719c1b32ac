//===- FlexPrefillTest.cpp - FlexPrefill against float64 ------------------===//

#include "FlexPrefill.h"
#include "Plans.h"

using namespace ref;

namespace {

template <class P>
void check(P &p) {
  p.plan.dense_below = 0;
  p.wantStatistics();
  ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
  for (int64_t b = 0; b < p.b; ++b)
    for (int64_t h = 0; h < p.hq; ++h)
      expectFlex(p, b, h,
                 [&](int64_t tile) { return keptBlocks(p, b, h, tile); });
}

TEST(FlexPrefill, BothKindsOfHeads) {
  for (int64_t s : {2, 16, 100, 500})
    for (int64_t past : {0, 5, 64, 101}) {
      Problem<8, 4, 16, 16, float, Causal> p;
      p.b = 2;
      p.hq = 6;
      p.s = s;
      p.t = s + past;
      p.spread = 4;
      p.heads = {
          flexPrefill(0.5f, 0, 0, 16),    flexPrefill(0.9f, 1, 0, 16),
          flexPrefill(0.7f, 0.3f, 40, 7), flexPrefill(0.3f, 0, 33, 40),
          flexPrefill(0.2f, 1, 64, 16),   flexPrefill(0.95f, 0.35f, 16, 16)};
      p.build(static_cast<uint64_t>(s + past));
      SCOPED_TRACE(testing::Message() << "s " << s << " past " << past);
      check(p);
    }
}

TEST(FlexPrefill, TheDistanceDecides) {
  Problem<8, 4, 16, 16, float, Causal> p;
  p.s = 200;
  p.t = 233;
  p.spread = 3;
  p.heads.assign(4, flexPrefill(0.8f, 1, 16, 16));
  p.build();
  for (double side : {0.999, 1.001}) {
    for (int64_t h = 0; h < 4; ++h)
      p.heads[static_cast<size_t>(h)].threshold =
          static_cast<float>(look(p, 0, h, 16).distance * side);
    SCOPED_TRACE(side);
    check(p);
  }
}

TEST(FlexPrefill, MasksWindowsAndLengths) {
  constexpr unsigned F = Causal | PREFILL_TILE_WINDOW | PREFILL_TILE_KEY_MASK |
                         PREFILL_TILE_SOFTCAP;
  Problem<8, 4, 16, 16, float, F> p;
  p.b = 4;
  p.s = 250;
  p.t = 263;
  p.windowLeft = 150;
  p.spread = 4;
  p.heads = {flexPrefill(0.5f, 0, 0, 16), flexPrefill(0.9f, 1, 0, 16),
             flexPrefill(0.7f, 0, 40, 7), flexPrefill(0.3f, 1, 33, 40)};
  p.build();
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

TEST(FlexPrefill, OtherTilesTypesAndLevels) {
  auto run = [](auto &p, uint32_t isa) {
    p.s = 300;
    p.t = 337;
    p.spread = 4;
    p.heads = {flexPrefill(0.5f, 0, 0, 16), flexPrefill(0.9f, 1, 0, 16),
               flexPrefill(0.7f, 0, 40, 7), flexPrefill(0.3f, 1, 33, 70)};
    p.build();
    p.variant.isa = isa;
    check(p);
  };
  for (uint32_t isa = 2; isa <= pf_cpu_isa(); ++isa) {
    Problem<8, 4, 32, 16, float, Causal> wide;
    run(wide, isa);
    Problem<8, 4, 16, 32, float, Causal> tall;
    run(tall, isa);
    Problem<8, 4, 64, 64, float, Causal> large;
    run(large, isa);
    Problem<8, 4, 16, 16, _Float16, Causal> half;
    run(half, isa);
  }
}

TEST(FlexPrefill, NumbersThatAreNoneKeepEverything) {
  for (float tau : {0.0f, 1.0f})
    for (float bad : {NAN, INFINITY}) {
      Problem<8, 4, 16, 16, float, Causal> p;
      p.hq = p.hk = 1;
      p.heads = {flexPrefill(0.1f, tau, 0, 16)};
      buildWithBadKey(p, bad);
      ASSERT_EQ(p.run(), PREFILL_OK);
      for (int64_t tile = 5; tile < 13; ++tile) {
        const std::vector<bool> kept = keptBlocks(p, 0, 0, tile);
        EXPECT_EQ(std::count(kept.begin(), kept.end(), true), tile + 1) << bad;
      }
    }
}

} // namespace
