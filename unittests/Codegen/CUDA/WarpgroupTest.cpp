//===- WarpgroupTest.cpp - Kernels for sm_90a run in the emulator ---------===//
//
// The schedule with a copying and computing warpgroups: every head dimension,
// type, mask and index, on shapes with ragged ends, with asynchronous work as
// early and as late as the program allows.
//
//===----------------------------------------------------------------------===//

#include "GpuProblem.h"
#include "gtest/gtest.h"

using namespace prefill;
using namespace prefill::harness;

static KernelSpec makeSpec(DType dtype, int headDim, bool causal) {
  KernelSpec spec;
  spec.name = "test";
  spec.dtype = dtype;
  spec.headDim = spec.vHeadDim = headDim;
  spec.causal = causal;
  return spec;
}

/// A problem for sm_90a.
static GpuProblem makeProblem(const KernelSpec &spec, int queries, int keys) {
  GpuProblem problem(spec, queries, keys);
  problem.options.arch = 90;
  problem.options.archSpecific = true;
  return problem;
}

/// Eager in order, then late and shuffled.
static std::string checkBoth(GpuProblem &problem) {
  std::string error = problem.check();
  if (!error.empty())
    return "eager: " + error;
  emu::Options how;
  how.late = true;
  how.seed = 5;
  error = problem.check(how);
  return error.empty() ? error : "late: " + error;
}

#define EXPECT_RIGHT(problem) EXPECT_EQ(checkBoth(problem), "")

TEST(Warpgroup, Dense) {
  for (DType dtype : {DType::BF16, DType::F16})
    for (bool causal : {false, true}) {
      SCOPED_TRACE(testing::Message() << int(dtype) << " " << causal);
      GpuProblem problem = makeProblem(makeSpec(dtype, 128, causal), 300, 450);
      EXPECT_RIGHT(problem);
      EXPECT_GT(problem.products, 0u);
    }
}

TEST(Warpgroup, HeadDimensions) {
  for (int headDim : {16, 64, 80, 96, 192, 256}) {
    SCOPED_TRACE(headDim);
    GpuProblem problem =
        makeProblem(makeSpec(DType::BF16, headDim, true), 150, 333);
    EXPECT_RIGHT(problem);
  }
  KernelSpec spec = makeSpec(DType::F16, 192, true);
  spec.vHeadDim = 128;
  GpuProblem problem = makeProblem(spec, 40, 170);
  EXPECT_RIGHT(problem);
}

/// Where visibility ends at a block's last key, or one beside it.
TEST(Warpgroup, Lengths) {
  for (auto [queries, keys] :
       {std::pair(1, 1), std::pair(1, 200), std::pair(200, 129),
        std::pair(128, 128), std::pair(129, 385), std::pair(30, 640)})
    for (bool causal : {false, true}) {
      SCOPED_TRACE(testing::Message() << queries << " " << keys << causal);
      // More queries than keys: the first rows see nothing.
      GpuProblem problem =
          makeProblem(makeSpec(DType::F16, 64, causal), queries, keys);
      EXPECT_RIGHT(problem);
    }
}

TEST(Warpgroup, BatchesHeadsStrides) {
  KernelSpec spec = makeSpec(DType::F16, 128, true);
  spec.qHeads = 4;
  spec.kvHeads = 2;
  for (bool bshd : {false, true}) {
    GpuProblem problem = makeProblem(spec, 40, 290);
    problem.batch = 2;
    problem.bshd = bshd;
    EXPECT_RIGHT(problem);
    problem.keyLengths = {290, 141};
    problem.wantLse = false;
    EXPECT_RIGHT(problem);
    // Fewer keys than queries, and none at all.
    problem.keyLengths = {7, 0};
    problem.wantLse = true;
    EXPECT_RIGHT(problem);
  }
}

TEST(Warpgroup, Window) {
  KernelSpec spec = makeSpec(DType::BF16, 64, true);
  for (int window : {0, 100, 300}) {
    spec.windowLeft = window;
    GpuProblem problem = makeProblem(spec, 200, 700);
    EXPECT_RIGHT(problem);
  }
  spec.causal = false;
  spec.windowLeft = 20;
  spec.windowRight = 9;
  GpuProblem problem = makeProblem(spec, 140, 450);
  EXPECT_RIGHT(problem);
}

TEST(Warpgroup, SoftcapSinkKeyMask) {
  KernelSpec spec = makeSpec(DType::F16, 64, true);
  spec.softcap = 5;
  GpuProblem capped = makeProblem(spec, 70, 300);
  capped.amplitude = 8;
  EXPECT_RIGHT(capped);
  spec.softcap = 0;
  spec.hasSink = true;
  spec.qHeads = 2;
  GpuProblem sink = makeProblem(spec, 100, 300);
  EXPECT_RIGHT(sink);
  spec.hasSink = false;
  spec.hasKeyMask = true;
  GpuProblem masked = makeProblem(spec, 100, 300);
  masked.batch = 2;
  EXPECT_RIGHT(masked);
}

TEST(Warpgroup, HugeScores) {
  GpuProblem large = makeProblem(makeSpec(DType::BF16, 64, true), 70, 270);
  large.amplitude = 1e15;
  EXPECT_RIGHT(large);
  large.spec.dtype = DType::F16;
  large.amplitude = 3000;
  EXPECT_RIGHT(large);
}

TEST(Warpgroup, Lists) {
  for (int headDim : {64, 128, 256})
    for (double columns : {0.0, 0.3}) {
      SCOPED_TRACE(testing::Message() << headDim << " " << columns);
      KernelSpec spec = makeSpec(DType::BF16, headDim, true);
      spec.qHeads = 2;
      GpuProblem problem = makeProblem(spec, 200, 700);
      problem.options.lists = true;
      problem.columnShare = columns;
      EXPECT_EQ(problem.check(), "");
      // Columns alone, and nothing at all.
      problem.blockShare = 0;
      EXPECT_RIGHT(problem);
    }
}

TEST(Warpgroup, ListsWithAllFeatures) {
  for (int headDim : {64, 256}) {
    KernelSpec spec = makeSpec(DType::F16, headDim, true);
    spec.qHeads = 2;
    spec.windowLeft = 190;
    spec.softcap = 20;
    spec.hasSink = spec.hasKeyMask = true;
    GpuProblem problem = makeProblem(spec, 140, 400);
    problem.batch = 2;
    problem.keyLengths = {400, 211};
    problem.options.lists = true;
    problem.columnShare = 0.3;
    EXPECT_RIGHT(problem);
  }
}

/// Other numbers of stages and warpgroups; widths that are no power of two.
TEST(Warpgroup, Schedules) {
  struct {
    int blockQ, blockK, warps, stages;
  } schedules[] = {{128, 96, 8, 1}, {128, 176, 8, 3}, {192, 80, 12, 2}};
  for (auto [blockQ, blockK, warps, stages] : schedules) {
    SCOPED_TRACE(testing::Message() << blockQ << "x" << blockK);
    GpuProblem problem = makeProblem(makeSpec(DType::BF16, 64, true), 140, 600);
    problem.options.blockQ = blockQ;
    problem.options.blockK = blockK;
    problem.options.warps = warps;
    problem.options.stages = stages;
    EXPECT_RIGHT(problem);
  }
  // What a kernel whose table's tiles spill has instead.
  KernelSpec spec = makeSpec(DType::F16, 160, false);
  spec.softcap = 20;
  spec.hasKeyMask = true;
  for (bool tensorMaps : {false, true}) {
    GpuProblem fewer = makeProblem(spec, 70, 300);
    fewer.options.blockK = 96;
    fewer.options.tensorMaps = tensorMaps;
    EXPECT_RIGHT(fewer);
  }
}

/// Copies by TMA, which fills rows past the end with zeros.
TEST(Warpgroup, TensorMaps) {
  for (int headDim : {64, 96, 256})
    for (bool bshd : {false, true}) {
      SCOPED_TRACE(testing::Message() << headDim << " " << bshd);
      KernelSpec spec = makeSpec(DType::BF16, headDim, true);
      spec.qHeads = 2;
      GpuProblem problem = makeProblem(spec, 150, 333);
      problem.options.tensorMaps = true;
      problem.batch = 2;
      problem.bshd = bshd;
      EXPECT_RIGHT(problem);
    }
  // Rows that see nothing, and lists, which have no tensor maps.
  GpuProblem few = makeProblem(makeSpec(DType::F16, 128, true), 300, 70);
  few.options.tensorMaps = true;
  EXPECT_RIGHT(few);
  few.options.lists = true;
  EXPECT_RIGHT(few);
}

/// Several tiles of query rows a block, one after the other: with and without
/// TMA, a number of blocks that does and does not divide that of tiles, rings
/// that go on at odd stages.
TEST(Warpgroup, Persistent) {
  for (bool tensorMaps : {false, true})
    for (int headDim : {64, 128, 256}) {
      SCOPED_TRACE(testing::Message() << headDim << " " << tensorMaps);
      KernelSpec spec = makeSpec(DType::BF16, headDim, true);
      spec.qHeads = 2;
      spec.kvHeads = 1;
      GpuProblem problem = makeProblem(spec, 270, 350);
      problem.options.persistent = true;
      problem.options.tensorMaps = tensorMaps;
      problem.blocks = 2;
      problem.batch = headDim == 64 ? 2 : 1;
      problem.bshd = headDim == 128;
      EXPECT_RIGHT(problem);
    }
}

/// Numbers of blocks and of heads at a time; one block alone, more blocks than
/// there is work for.
TEST(Warpgroup, PersistentOrders) {
  KernelSpec spec = makeSpec(DType::F16, 64, true);
  spec.qHeads = 3;
  for (int blocks : {1, 2, 7, 50})
    for (int heads : {1, 4, 100}) {
      SCOPED_TRACE(testing::Message() << blocks << " " << heads);
      GpuProblem problem = makeProblem(spec, 200, 200);
      problem.options.persistent = true;
      problem.blocks = blocks;
      problem.headsTogether = heads;
      problem.batch = 2;
      EXPECT_EQ(problem.check(), "");
    }
}

/// Tiles without keys, ragged batches, every mask; three computing warpgroups
/// and two, one stage and three.
TEST(Warpgroup, PersistentShapes) {
  KernelSpec spec = makeSpec(DType::F16, 64, true);
  spec.qHeads = 2;
  for (auto [queries, keys] : {std::pair(1, 1), std::pair(500, 130)}) {
    GpuProblem problem = makeProblem(spec, queries, keys);
    problem.options.persistent = true;
    problem.blocks = 2;
    EXPECT_RIGHT(problem);
    problem.batch = 3;
    problem.keyLengths = {keys, keys / 2, 0};
    EXPECT_RIGHT(problem);
  }
  spec.windowLeft = 150;
  spec.softcap = 20;
  spec.hasSink = spec.hasKeyMask = true;
  GpuProblem rich = makeProblem(spec, 300, 500);
  rich.options.persistent = true;
  rich.batch = 2;
  rich.keyLengths = {500, 211};
  EXPECT_RIGHT(rich);
  for (int stages : {1, 3}) {
    GpuProblem ring = makeProblem(makeSpec(DType::BF16, 64, false), 450, 333);
    ring.options.persistent = true;
    ring.options.stages = stages;
    ring.blocks = 2;
    EXPECT_RIGHT(ring);
  }
  // Lists are not for persistent blocks.
  rich.options.lists = true;
  EXPECT_RIGHT(rich);
}
