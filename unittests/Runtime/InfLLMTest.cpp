//===- InfLLMTest.cpp - InfLLM v2 and SpargeAttn's guard against float64 --===//
//
// InfLLM.h has the method; the guard's is here, from the description at the top
// of estimate_guard.c.
//
//===----------------------------------------------------------------------===//
#include "InfLLM.h"
#include "Plans.h"

using namespace ref;

namespace {

template <class P>
void check(P &p) {
  p.plan.dense_below = 0;
  p.wantStatistics();
  ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
  expectInfLLM(p, [&](int64_t b, int64_t h, int64_t tile) {
    return keptBlocks(p, b, h, tile);
  });
}

TEST(InfLLM, KeepsTheBestBlocksOfAGroup) {
  for (int64_t s : {2, 16, 100, 250})
    for (int64_t past : {0, 5, 101}) {
      Problem<8, 4, 16, 16, float, Causal> p;
      p.b = 2;
      p.hq = 6;
      p.hk = 2;
      p.s = s;
      p.t = s + past;
      p.spread = 4;
      p.heads = {infLLM(5, 16, 32), infLLM(5, 16, 32), infLLM(5, 16, 32),
                 infLLM(8, 0, 0),   infLLM(3, 20, 7),  infLLM(8, 0, 0)};
      p.build(static_cast<uint64_t>(s + past));
      SCOPED_TRACE(testing::Message() << "s " << s << " past " << past);
      check(p);
    }
}

TEST(InfLLM, OtherTilesTypesAndLevels) {
  auto run = [](auto &p, uint32_t isa) {
    p.s = 300;
    p.t = 337;
    p.spread = 4;
    p.heads.assign(4, infLLM(4, 10, 40));
    p.build();
    p.variant.isa = isa;
    check(p);
  };
  for (uint32_t isa = 2; isa <= pf_cpu_isa(); ++isa) {
    Problem<8, 4, 32, 16, float, Causal> wide;
    run(wide, isa);
    Problem<8, 4, 16, 32, float, Causal> tall;
    run(tall, isa);
    Problem<8, 4, 24, 64, float, Causal> odd;
    run(odd, isa);
    Problem<8, 4, 16, 16, _Float16, Causal> half;
    run(half, isa);
  }
}

TEST(InfLLM, MasksWindowsAndLengths) {
  constexpr unsigned F = Causal | PREFILL_TILE_WINDOW | PREFILL_TILE_KEY_MASK |
                         PREFILL_TILE_SOFTCAP;
  Problem<8, 4, 16, 16, float, F> p;
  p.b = 4;
  p.s = 250;
  p.t = 263;
  p.windowLeft = 150;
  p.spread = 4;
  p.heads.assign(4, infLLM(5, 16, 20));
  p.build();
  Tensor &mask = p.in[PREFILL_IN_KEY_MASK];
  mask.make({4, 263}, kDLInt, 64);
  for (int64_t j = 0; j < 263; ++j) {
    mask.at<int64_t>({0, j}) = 1;
    mask.at<int64_t>({1, j}) = j >= 77;
    mask.at<int64_t>({2, j}) = j < 100 || j >= 150;
    mask.at<int64_t>({3, j}) = j % 7 != 3;
  }
  p.in[PREFILL_IN_KV_LENGTHS].make({4}, kDLInt, 32);
  for (int64_t b = 0; b < 4; ++b)
    p.in[PREFILL_IN_KV_LENGTHS].at<int32_t>({b}) = b == 3 ? 123 : 263;
  check(p);
}

TEST(InfLLM, NumbersThatAreNoneKeepEverything) {
  for (float bad : {NAN, INFINITY}) {
    Problem<8, 4, 16, 16, float, Causal> p;
    p.heads.assign(4, infLLM(2, 0, 0));
    buildWithBadKey(p, bad);
    ASSERT_EQ(p.run(), PREFILL_OK);
    for (int64_t h = 0; h < 4; ++h)
      for (int64_t tile = 7; tile < 13; ++tile) {
        const std::vector<bool> kept = keptBlocks(p, 0, h, tile);
        EXPECT_EQ(std::count(kept.begin(), kept.end(), true),
                  h < 2 ? tile + 1 : 2)
            << bad;
      }
  }
}

// --- The guard ---------------------------------------------------------------

/// Mean cosine of all pairs of rows, keys less the mean of all that are seen.
template <class P>
double alike(P &p, bool query, int64_t b, int64_t h, int64_t begin,
             int64_t end) {
  using Of = BlocksOf<P>;
  double mean[Of::dim] = {}, seen = 0, sum = 0, count = 0;
  for (int64_t j = 0; j < p.t && !query; ++j)
    if (unmasked(p, b, j)) {
      ++seen;
      for (int64_t c = 0; c < Of::dim; ++c)
        mean[c] += p.element(false, b, h, j, c);
    }
  auto element = [&](int64_t i, int64_t c) {
    return p.element(query, b, h, i, c) - (query ? 0 : mean[c] / seen);
  };
  auto length = [&](int64_t i) {
    double square = 0;
    for (int64_t c = 0; c < Of::dim; ++c)
      square += std::pow(element(i, c), 2);
    return std::sqrt(square);
  };
  for (int64_t i = begin; i < end; ++i)
    for (int64_t j = begin; j < end; ++j) {
      if (!query && !(unmasked(p, b, i) && unmasked(p, b, j)))
        continue;
      double product = 0;
      for (int64_t c = 0; c < Of::dim; ++c)
        product += element(i, c) * element(j, c);
      sum += product / length(i) / length(j);
      ++count;
    }
  return count > 0 ? sum / count : 1;
}

TEST(Guard, CountsEveryRowWithItself) {
  // Sixteen rows along eight axes: 2 / 16 of all pairs are alike, but 1 / 15 of
  // those that are not a row and itself.
  for (float below : {0.1f, 0.13f}) {
    Problem<8, 4, 16, 16, float, Causal> p;
    p.hq = p.hk = 1;
    p.s = p.t = 320;
    p.heads = {blockSparse(1)};
    p.heads[0].similarity = below;
    p.build();
    p.plan.dense_below = 0;
    p.wantStatistics();
    for (int64_t i = 0; i < p.s; ++i)
      for (int64_t c = 0; c < 8; ++c) {
        const float sign = i / 16 % 2 ? -1.0f : 1.0f; // the mean key is 0
        p.q(0, 0, i, c) = p.k(0, 0, i, c) = i % 8 == c ? sign : 0.0f;
      }
    ASSERT_EQ(p.run(), PREFILL_OK);
    for (int64_t tile = 2; tile < 20; ++tile) {
      const std::vector<bool> kept = keptBlocks(p, 0, 0, tile);
      const int64_t count = std::count(kept.begin(), kept.end(), true);
      if (below > 0.125f)
        EXPECT_EQ(count, tile + 1);
      else
        EXPECT_LE(count, 2);
    }
  }
}

TEST(Guard, KeepsWhatIsNotAlike) {
  constexpr unsigned F = Causal | PREFILL_TILE_KEY_MASK;
  using P = Problem<8, 4, 16, 16, float, F>;
  prefill_head_plan topK{}, topP{}, xAttention{}, sampled{}, flex{};
  topK.pattern = topP.pattern = PREFILL_PATTERN_BLOCK_SPARSE;
  topK.top_k = 2;
  topP.top_p = 0.1f;
  xAttention.pattern = PREFILL_PATTERN_XATTENTION;
  sampled.pattern = PREFILL_PATTERN_SAMPLED;
  xAttention.stride = sampled.stride = 4;
  xAttention.top_p = sampled.top_p = 0.1f;
  flex.pattern = PREFILL_PATTERN_FLEXPREFILL;
  flex.top_p = 0.1f;
  const float below = 0.3f;
  P p;
  p.hq = 6;
  p.hk = 1;
  p.s = 300;
  p.t = 337;
  p.heads = {topK, topP, xAttention, sampled, flex, infLLM(2, 0, 0)};
  P plain;
  plain.hq = 6;
  plain.hk = 1;
  plain.s = p.s;
  plain.t = p.t;
  plain.heads = p.heads;
  for (prefill_head_plan &plan : p.heads)
    plan.similarity = below;
  int64_t keyBlocks = 0, queryTiles = 0;
  for (P *each : {&p, &plain}) {
    each->build();
    each->plan.dense_below = 0;
    each->wantStatistics();
    Tensor &mask = each->in[PREFILL_IN_KEY_MASK];
    mask.make({1, p.t}, kDLUInt, 8);
    for (int64_t j = 0; j < p.t; ++j)
      mask.at<uint8_t>({0, j}) = j % 5 != 2;
    // Two of three blocks have a direction of their own.
    for (int64_t j = 0; j < p.t; ++j)
      each->k(0, 0, j, 0) += j / 16 % 3 == 1 ? 0.f : 3.f;
    for (int64_t h = 0; h < 6; ++h)
      for (int64_t i = 0; i < p.s; ++i)
        each->q(0, h, i, 1) += i / 16 % 4 == 2 ? 0.f : 3.f;
    ASSERT_EQ(each->run(), PREFILL_OK) << each->context.message;
  }
  for (int64_t h = 0; h < 6; ++h)
    for (int64_t tile = 0; tile * 16 < p.s; ++tile) {
      const bool all = alike(p, true, 0, h, tile * 16,
                             std::min<int64_t>(p.s, tile * 16 + 16)) < 0.3;
      queryTiles += all;
      const std::vector<bool> kept = keptBlocks(p, 0, h, tile);
      const std::vector<bool> without = keptBlocks(plain, 0, h, tile);
      const std::vector<bool> visible = visibleBlocks(p, 0, tile);
      for (size_t block = 0; block < kept.size(); ++block) {
        const int64_t begin = static_cast<int64_t>(block) * 16;
        const bool odd =
            alike(p, false, 0, 0, begin, std::min(p.t, begin + 16)) < 0.3;
        keyBlocks += odd;
        if (!visible[block])
          EXPECT_FALSE(kept[block]);
        else if (all || odd)
          EXPECT_TRUE(kept[block]) << h << " " << tile << " " << block;
        else if (h == 0 || h == 5) // counts of blocks: nothing else changes
          EXPECT_EQ(kept[block], without[block])
              << h << " " << tile << " " << block;
      }
    }
  EXPECT_GT(keyBlocks, 0);
  EXPECT_GT(queryTiles, 0);
  EXPECT_LT(queryTiles, 6 * 19);
}

} // namespace
