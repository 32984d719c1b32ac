//===- AttentionKernelTest.cpp - Generated attention against float64 ------===//

#include "AttentionProblem.h"
#include "gtest/gtest.h"
#include <cmath>
#include <limits>
#include <random>

using namespace prefill;
using namespace prefill::harness;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr int32_t skipped = std::numeric_limits<int32_t>::max();

KernelSpec makeSpec(int32_t d, int32_t e = 0, DType dtype = DType::F32) {
  KernelSpec spec;
  spec.headDim = d;
  spec.vHeadDim = e ? e : d;
  spec.dtype = dtype;
  return spec;
}

KernelSpec makeCausal(int32_t d, int32_t e = 0, DType dtype = DType::F32) {
  KernelSpec spec = makeSpec(d, e, dtype);
  spec.causal = true;
  return spec;
}

/// All instruction sets of this machine.
void expectRight(Problem &problem) {
  for (int level = 2; level <= machineLevel(); ++level) {
    std::string message = problem.check(*getCpuTarget(level));
    EXPECT_EQ(message, "") << "x86-64-v" << level;
  }
}

TEST(AttentionKernel, CausalLengths) {
  for (int64_t length : {1, 2, 17, 63, 64, 65, 127, 128, 200}) {
    Problem problem(makeCausal(64), length, length);
    expectRight(problem);
  }
}

TEST(AttentionKernel, MoreKeysThanQueries) {
  for (auto [queries, keys] :
       {std::pair(1, 1), {1, 64}, {1, 65}, {3, 200}, {70, 130}, {64, 191}}) {
    Problem causal(makeCausal(64), queries, keys);
    expectRight(causal);
    Problem full(makeSpec(64), queries, keys);
    expectRight(full);
  }
}

TEST(AttentionKernel, MoreQueriesThanKeys) {
  // The first rows see nothing.
  Problem problem(makeCausal(64), 100, 40);
  expectRight(problem);
  EXPECT_EQ(problem.o[0], 0.0f);
  EXPECT_EQ(problem.lse[0], -inf);
  EXPECT_NE(problem.lse[99], -inf);
}

TEST(AttentionKernel, HeadDims) {
  for (int32_t d : {1, 2, 5, 8, 16, 24, 40, 72, 80, 96, 128, 192, 256}) {
    Problem problem(makeCausal(d), 70, 134);
    expectRight(problem);
  }
}

TEST(AttentionKernel, DifferentValueDim) {
  for (auto [d, e] : {std::pair(64, 128), {192, 128}, {40, 8}, {24, 100}}) {
    Problem problem(makeCausal(d, e), 70, 70);
    expectRight(problem);
  }
}

TEST(AttentionKernel, BlockSizes) {
  for (auto [bq, bk] :
       {std::pair(16, 16), {32, 64}, {64, 128}, {128, 64}, {48, 32}}) {
    KernelSpec spec = makeCausal(64);
    spec.blockQ = bq;
    spec.blockK = bk;
    Problem problem(spec, 150, 170);
    expectRight(problem);
  }
}

TEST(AttentionKernel, StorageTypes) {
  for (DType type : {DType::F16, DType::BF16})
    for (int32_t d : {8, 20, 64, 80, 128})
      for (int64_t length : {1, 65, 150}) {
        Problem problem(makeCausal(d, 0, type), length, length);
        expectRight(problem);
      }
}

TEST(AttentionKernel, StorageExtremes) {
  // Subnormal and large fp16 numbers, in and out.
  for (DType type : {DType::F16, DType::BF16}) {
    Problem problem(makeCausal(64, 0, type), 40, 40);
    for (size_t i = 0; i < problem.v.size(); ++i)
      problem.v[i] =
          fromStorage(toStorage(problem.v[i] * (i % 3 == 0   ? 1e-6f
                                                : i % 3 == 1 ? 1e4f
                                                             : 6e-8f),
                                type),
                      type);
    expectRight(problem);
    // Each value by itself: one key, so the output is the value.
    Problem single(makeSpec(64, 0, type), 1, 1);
    for (int i = 0; i < 64; ++i)
      // From 0x0080 on bf16 is normal in fp32; below it reads as zero.
      single.v[i] = fromStorage(
          uint16_t(i < 32 ? (type == DType::BF16 ? 0x80 : 0) + i * 37
                          : 0x7bff - i * 7),
          type);
    single.tolerance = 1e-7f;
    expectRight(single);
    for (int i = 0; i < 64; ++i)
      EXPECT_EQ(single.o[i], single.v[i]);
  }
}

TEST(AttentionKernel, Window) {
  for (int64_t left : {0, 5, 63, 64, 100})
    for (bool causal : {true, false}) {
      KernelSpec spec = makeCausal(64);
      spec.causal = causal;
      spec.windowLeft = left;
      spec.windowRight = causal ? KernelSpec::Unbounded : left / 2;
      Problem problem(spec, 150, 170);
      expectRight(problem);
    }
}

TEST(AttentionKernel, KeyMask) {
  for (bool causal : {true, false}) {
    KernelSpec spec = makeSpec(64);
    spec.causal = causal;
    spec.hasKeyMask = true;
    Problem some(spec, 150, 170);
    expectRight(some);
    Problem none(spec, 70, 70);
    none.keyMask.assign(70, 0);
    expectRight(none);
    EXPECT_EQ(none.lse[3], -inf);
    Problem all(spec, 70, 128);
    all.keyMask.assign(128, 1);
    expectRight(all);
  }
}

TEST(AttentionKernel, Bias) {
  KernelSpec spec = makeCausal(64);
  spec.hasBias = true;
  Problem plain(spec, 150, 170);
  expectRight(plain);
  Problem perKey(spec, 150, 170);
  perKey.biasRowStride = 0;
  expectRight(perKey);
  Problem perRow(spec, 150, 170);
  perRow.biasRowStride = 1;
  perRow.biasKeyStride = 0;
  expectRight(perRow);
  Problem one(spec, 70, 70);
  one.biasRowStride = one.biasKeyStride = 0;
  one.bias.resize(1);
  expectRight(one);
  Problem hidden(spec, 80, 80);
  for (size_t i = 0; i < hidden.bias.size(); ++i)
    if (i % 3 == 0 || i < 80)
      hidden.bias[i] = -inf;
  expectRight(hidden);
  EXPECT_EQ(hidden.o[0], 0.0f);
}

TEST(AttentionKernel, Softcap) {
  for (float cap : {0.5f, 20.0f, 50.0f}) {
    KernelSpec spec = makeCausal(64);
    spec.softcap = cap;
    Problem problem(spec, 80, 80);
    expectRight(problem);
    Problem large(spec, 80, 80);
    for (float &value : large.q)
      value *= 1e4f;
    expectRight(large);
  }
}

TEST(AttentionKernel, Sink) {
  KernelSpec spec = makeCausal(64);
  spec.hasSink = true;
  for (float sink : {0.5f, -20.0f, 30.0f, -inf}) {
    Problem problem(spec, 80, 60);
    problem.sink = sink;
    expectRight(problem);
  }
}

TEST(AttentionKernel, Segments) {
  KernelSpec spec = makeCausal(64);
  spec.hasSegments = true;
  Problem problem(spec, 150, 170);
  expectRight(problem);
  spec.causal = false;
  Problem full(spec, 150, 150);
  expectRight(full);
}

TEST(AttentionKernel, EverythingAtOnce) {
  for (DType type : {DType::F32, DType::BF16}) {
    KernelSpec spec = makeCausal(40, 72, type);
    spec.windowLeft = 90;
    spec.hasKeyMask = spec.hasBias = spec.hasSink = spec.hasSegments = true;
    spec.softcap = 5;
    Problem problem(spec, 130, 170);
    problem.columns.assign(3, {3, 20, 21, skipped, 63});
    problem.blocks = {{1, 2}, {1, 2}, {2}};
    expectRight(problem);
  }
}

TEST(AttentionKernel, BlockListsAndColumns) {
  Problem problem(makeCausal(64), 256, 256);
  problem.blocks = {{0}, {1}, {0, 2}, {3}};
  problem.columns = {{}, {5, 6, 40}, {70, skipped, skipped, 100}, {}};
  for (int32_t j = 0; j < 130; j += 1)
    problem.columns[3].push_back(j % 5 == 0 || j / 64 == 1 ? skipped : j);
  expectRight(problem);
}

TEST(AttentionKernel, ColumnsAboveTheDiagonal) {
  // Columns that only some rows of the tile may see.
  Problem problem(makeCausal(64), 128, 128);
  problem.blocks = {{0}, {}};
  problem.columns = {{}, {60, 64, 80, 100, 127}};
  expectRight(problem);
}

TEST(AttentionKernel, EmptyBlockLists) {
  for (KernelSpec spec : {makeCausal(64), makeSpec(64)}) {
    Problem problem(spec, 100, 100);
    problem.blocks = {{}, {}};
    expectRight(problem);
    EXPECT_EQ(problem.o[77], 0.0f);
    EXPECT_EQ(problem.lse[99], -inf);
  }
}

TEST(AttentionKernel, MaskedBlocksNeedNoPromise) {
  Problem problem(makeCausal(64), 200, 200);
  problem.useFullBlocks = false;
  expectRight(problem);
}

/// The spec with a plan that skips.
KernelSpec skipping(KernelSpec spec) {
  HeadPlan plan;
  plan.skip = 0.5f;
  spec.heads.assign(size_t(spec.qHeads), plan);
  return spec;
}

TEST(AttentionKernel, SkipsTilesThatNoRowNeeds) {
  for (DType type : {DType::F32, DType::F16})
    for (float skip : {0.0f, 1e-6f, 1e-3f, 0.3f})
      for (int64_t length : {200, 256, 300}) {
        Problem problem(skipping(makeCausal(64, 0, type)), length, length);
        // Scores of keys from 128 to 191 are 7.5 below the largest before
        // them, and 15 in odd rows.
        for (int64_t row = 0; row < length; ++row)
          for (int64_t i = 0; i < 64; ++i)
            problem.q[row * 64 + i] = float(i % 8 == 0) * (row % 2 ? 2 : 1);
        for (int64_t key = 0; key < length; ++key)
          for (int64_t i = 0; i < 64; ++i)
            problem.k[key * 64 + i] = i % 8           ? 0.0f
                                      : key / 64 == 2 ? -6.0f
                                                      : float(key % 7) / 4;
        problem.skip = skip;
        expectRight(problem);
        // Tiles behind them, and their own, do without.
        EXPECT_EQ(problem.leftOutCount,
                  skip < 1e-3f ? 0 : (length + 63) / 64 - 2);
      }
}

TEST(AttentionKernel, SkipsWithEverythingElse) {
  for (bool bias : {false, true})
    for (float skip : {1e-4f, 0.2f, 0.9f}) {
      KernelSpec spec = skipping(makeCausal(40, 72));
      spec.windowLeft = 150;
      spec.hasKeyMask = spec.hasSink = true;
      spec.hasBias = bias;
      spec.softcap = 20;
      Problem problem(spec, 330, 370);
      for (float &x : problem.q)
        x *= 6;
      problem.skip = skip;
      problem.sink = 9;
      expectRight(problem);
      EXPECT_LT(problem.leftOutCount, problem.roundCount);
      if (skip > 0.5f)
        EXPECT_GT(problem.leftOutCount, 0);
    }
  // Gathered columns are tiles as well.
  Problem problem(skipping(makeCausal(64)), 256, 256);
  problem.blocks = {{0}, {1}, {0, 2}, {3}};
  problem.columns = {{}, {5, 6, 40}, {70, skipped, skipped, 100}, {5, 6, 130}};
  for (int64_t i = 0; i < 64; ++i)
    problem.k[5 * 64 + i] = problem.k[6 * 64 + i] = problem.k[40 * 64 + i] = 0;
  for (float &x : problem.q)
    x *= 8;
  problem.skip = 0.5f;
  expectRight(problem);
  EXPECT_GT(problem.leftOutCount, 0);
}

TEST(AttentionKernel, SkippingSeesNumbersThatAreNone) {
  Problem problem(skipping(makeCausal(64)), 200, 200);
  for (int64_t i = 0; i < 64; ++i)
    problem.k[3 * 64 + i] = 0;
  for (int64_t row = 0; row < 200; ++row)
    for (int64_t i = 0; i < 64; ++i)
      problem.q[row * 64 + i] = problem.k[3 * 64 + i] = float(i < 8);
  for (int64_t key = 64; key < 128; ++key)
    for (int64_t i = 0; i < 8; ++i)
      problem.k[key * 64 + i] = -30;
  problem.k[100 * 64 + 2] = nan;
  problem.skip = 0.5f;
  expectRight(problem);
  EXPECT_TRUE(std::isnan(problem.o[199 * 64]));
}

TEST(AttentionKernel, LargeScores) {
  for (float factor : {1e3f, 1e10f, 1e14f}) {
    Problem problem(makeCausal(64), 130, 130);
    for (float &value : problem.q)
      value *= factor;
    for (float &value : problem.k)
      value *= factor;
    // One row's largest score decides; ties of this size do not occur.
    expectRight(problem);
    for (float value : problem.o)
      EXPECT_TRUE(std::isfinite(value));
  }
}

TEST(AttentionKernel, TinyScores) {
  Problem problem(makeCausal(64), 130, 130);
  for (float &value : problem.q)
    value *= 1e-30f;
  expectRight(problem);
}

TEST(AttentionKernel, FarApartScores) {
  // Maxima that grow and fall from block to block by more than exp2's range.
  Problem problem(makeCausal(64), 256, 256);
  for (int64_t key = 0; key < 256; ++key)
    for (int i = 0; i < 64; ++i)
      problem.k[key * 64 + i] *= key / 64 % 2 ? 100.0f : 0.01f;
  // Scores of some hundreds are themselves exact to 1e-4 only.
  problem.tolerance = 5e-4f;
  expectRight(problem);
}

TEST(AttentionKernel, NanInAKeyPoisonsItsRowsOnly) {
  Problem problem(makeCausal(64), 130, 130);
  problem.k[100 * 64 + 3] = nan;
  expectRight(problem);
  EXPECT_FALSE(std::isnan(problem.o[99 * 64]));
  EXPECT_TRUE(std::isnan(problem.o[100 * 64]));
  EXPECT_TRUE(std::isnan(problem.o[129 * 64]));
}

/// Value number `key` becomes `number` as a whole; with NaN the key does, too
/// (a key of infinities has scores of -inf, which nobody sees).
void poison(Problem &problem, int64_t key, float number) {
  const KernelSpec &spec = problem.spec;
  if (std::isnan(number))
    std::fill_n(&problem.k[key * spec.headDim], spec.headDim, number);
  std::fill_n(&problem.v[key * spec.vHeadDim], spec.vHeadDim, number);
}

TEST(AttentionKernel, WhatARowDoesNotSeeMayBeAnything) {
  // check() computes every row from the keys that it sees, and no others.
  struct Shape {
    int32_t d, e;
    DType type;
  };
  for (Shape shape : {Shape{64, 64, DType::F32},
                      {5, 100, DType::F16},
                      {40, 7, DType::BF16},
                      {24, 256, DType::F32}})
    for (float number : {nan, inf}) {
      const auto [d, e, type] = shape;
      Problem causal(makeCausal(d, e, type), 130, 140);
      for (int64_t key : {23, 100, 139})
        poison(causal, key, number);
      expectRight(causal);
      EXPECT_TRUE(std::isfinite(causal.o[12 * e]));
      EXPECT_FALSE(std::isfinite(causal.o[13 * e])); // its position is 23
      Problem first(makeCausal(d, e, type), 70, 70);
      poison(first, 1, number);
      expectRight(first);
      EXPECT_TRUE(std::isfinite(first.o[0]));
      KernelSpec spec = makeCausal(d, e, type);
      spec.windowLeft = 20;
      Problem window(spec, 150, 150);
      poison(window, 66, number);
      expectRight(window);
      EXPECT_TRUE(std::isfinite(window.o[87 * e]));
    }
}

TEST(AttentionKernel, HiddenValuesOfEveryKind) {
  for (float number : {nan, -inf})
    for (bool full : {true, false}) {
      KernelSpec spec = makeSpec(64);
      spec.hasKeyMask = spec.hasSink = true;
      Problem masked(spec, 70, 130);
      masked.useFullBlocks = full;
      for (int64_t key = 0; key < 130; ++key)
        if (!masked.keyMask[key])
          poison(masked, key, number);
      expectRight(masked);
      spec = makeSpec(64);
      spec.hasSegments = true;
      Problem segments(spec, 150, 150);
      segments.useFullBlocks = full;
      for (int64_t key = 37; key < 74; ++key)
        poison(segments, key, number);
      expectRight(segments);
      spec = makeCausal(64);
      spec.hasBias = true;
      spec.softcap = 20;
      Problem bias(spec, 100, 100);
      bias.useFullBlocks = full;
      poison(bias, 70, number);
      expectRight(bias);
      Problem skips(skipping(makeCausal(64)), 200, 200);
      skips.skip = 1e-6f;
      poison(skips, 150, number);
      expectRight(skips);
      for (auto [bq, bk] : {std::pair(16, 16), {128, 64}, {48, 128}}) {
        spec = makeCausal(64);
        spec.blockQ = bq;
        spec.blockK = bk;
        Problem blocks(spec, 200, 200);
        blocks.useFullBlocks = full;
        poison(blocks, 131, number);
        expectRight(blocks);
      }
    }
  // Gathered columns, some of which some of the rows see.
  Problem columns(makeCausal(64), 128, 128);
  columns.blocks = {{0}, {}};
  columns.columns = {{}, {60, 64, skipped, 80, 100, 127}};
  poison(columns, 80, nan);
  expectRight(columns);
  EXPECT_FALSE(std::isnan(columns.o[79 * 64]));
  EXPECT_TRUE(std::isnan(columns.o[80 * 64]));
}

TEST(AttentionKernel, AVisibleValueShowsWhateverItsWeight) {
  // Key 20's weight is 0 in fp32 for the rows that see it.
  Problem problem(makeCausal(64), 64, 64);
  for (int i = 0; i < 64; ++i)
    problem.k[20 * 64 + i] = -1000;
  for (float &x : problem.q)
    x = 1;
  problem.v[20 * 64] = nan;
  for (int level = 2; level <= machineLevel(); ++level) {
    problem.check(*getCpuTarget(level));
    EXPECT_FALSE(std::isnan(problem.o[19 * 64]));
    EXPECT_TRUE(std::isnan(problem.o[20 * 64]));
    EXPECT_FALSE(std::isnan(problem.o[20 * 64 + 1]));
  }
}

TEST(AttentionKernel, NanWithPayload) {
  Problem problem(makeCausal(64), 70, 70);
  uint32_t bits = 0x7fc001ff;
  std::memcpy(&problem.q[5 * 64], &bits, 4);
  expectRight(problem);
  EXPECT_TRUE(std::isnan(problem.o[5 * 64]));
  EXPECT_FALSE(std::isnan(problem.o[6 * 64]));
}

TEST(AttentionKernel, InfiniteScores) {
  // +inf - +inf: NaN, as in every softmax; -inf is invisible.
  Problem problem(makeCausal(64), 70, 70);
  for (int i = 0; i < 64; ++i)
    problem.q[5 * 64 + i] = i == 0 ? inf : 1.0f;
  for (int j = 0; j < 70; ++j)
    problem.k[j * 64] = j == 3 ? -1.0f : 1.0f;
  for (int level = 2; level <= machineLevel(); ++level) {
    problem.check(*getCpuTarget(level));
    EXPECT_TRUE(std::isnan(problem.o[5 * 64]));
    EXPECT_FALSE(std::isnan(problem.o[4 * 64]));
    EXPECT_FALSE(std::isnan(problem.o[6 * 64]));
  }
}

TEST(AttentionKernel, SmallProbabilitiesStayFast) {
  // Scores about 87 below the maximum give subnormal probabilities; the kernel
  // flushes them and leaves the caller's control word alone (see check()).
  Problem problem(makeCausal(64), 130, 130);
  problem.scale = 12.0f;
  problem.tolerance = 5e-4f;
  expectRight(problem);
}

TEST(AttentionKernel, RandomCombinations) {
  std::mt19937 random(7);
  auto pick = [&](std::initializer_list<int> list) {
    return list.begin()[random() % list.size()];
  };
  auto chance = [&](unsigned outOf) { return random() % outOf == 0; };
  for (unsigned round = 0; round < 40; ++round) {
    KernelSpec spec;
    spec.headDim = pick({8, 24, 40, 64, 72, 80, 96, 128});
    spec.vHeadDim = chance(3) ? pick({8, 20, 64, 112}) : spec.headDim;
    spec.dtype = DType(random() % 3);
    spec.causal = chance(2);
    spec.blockQ = pick({16, 32, 64, 64, 128});
    spec.blockK = pick({16, 32, 64, 64, 128});
    if (chance(3))
      spec.windowLeft = pick({0, 10, 70, 150});
    if (chance(4))
      spec.windowRight = pick({0, 10, 70});
    spec.hasBias = chance(3);
    spec.hasKeyMask = chance(3);
    spec.hasSegments = chance(4);
    spec.hasSink = chance(4);
    spec.softcap = chance(4) ? 5.0f : 0.0f;
    int64_t queries = 1 + random() % 200, keys = 1 + random() % 250;
    Problem problem(spec, queries, keys, round);
    problem.useFullBlocks = chance(2);
    if (chance(2)) {
      // A random part of the blocks, some of the other keys as columns.
      for (int64_t tile = 0; tile * spec.blockQ < queries; ++tile) {
        problem.blocks.emplace_back();
        problem.columns.emplace_back();
        for (int64_t block = 0; block * spec.blockK < keys; ++block) {
          if (chance(2)) {
            problem.blocks.back().push_back(uint32_t(block));
            continue;
          }
          for (int64_t key = block * spec.blockK;
               key < std::min(keys, (block + 1) * spec.blockK); ++key)
            if (chance(5))
              problem.columns.back().push_back(chance(4) ? skipped
                                                         : int32_t(key));
        }
      }
    }
    int level = 2 + round % 3;
    if (level > machineLevel())
      continue;
    EXPECT_EQ(problem.check(*getCpuTarget(level)), "")
        << "round " << round << ", x86-64-v" << level;
  }
}

TEST(ScoreKernel, Shapes) {
  for (DType type : {DType::F32, DType::F16, DType::BF16})
    for (int32_t d : {8, 40, 64, 128})
      for (auto [queries, keys] :
           {std::pair(1, 1), {64, 64}, {64, 200}, {70, 65}}) {
        Problem problem(makeCausal(d, 0, type), queries, keys);
        for (int level = 2; level <= machineLevel(); ++level)
          EXPECT_EQ(problem.checkScores(*getCpuTarget(level)), "")
              << "x86-64-v" << level;
      }
}

} // namespace
