//===- CudaKernelTest.cpp - CUDA kernels run in the emulator --------------===//
//
// Every kind of kernel that compileCuda generates, on small and awkward shapes.
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

#define EXPECT_RIGHT(problem) EXPECT_EQ((problem).check(), "")

TEST(CudaKernel, Dense) {
  for (DType dtype : {DType::BF16, DType::F16})
    for (int headDim : {64, 128})
      for (bool causal : {false, true}) {
        SCOPED_TRACE(testing::Message()
                     << int(dtype) << " " << headDim << " " << causal);
        GpuProblem problem(makeSpec(dtype, headDim, causal), 150, 150);
        EXPECT_RIGHT(problem);
        EXPECT_GT(problem.products, 0u);
      }
}

TEST(CudaKernel, OtherHeadDimensions) {
  for (int headDim : {16, 80, 96, 192, 256}) {
    SCOPED_TRACE(headDim);
    GpuProblem problem(makeSpec(DType::BF16, headDim, true), 70, 130);
    EXPECT_RIGHT(problem);
  }
  KernelSpec spec = makeSpec(DType::F16, 192, true);
  spec.vHeadDim = 128;
  GpuProblem problem(spec, 40, 70);
  EXPECT_RIGHT(problem);
}

TEST(CudaKernel, Lengths) {
  for (auto [queries, keys] :
       {std::pair(1, 1), std::pair(1, 200), std::pair(129, 65),
        std::pair(65, 129), std::pair(128, 64), std::pair(30, 300)})
    for (bool causal : {false, true}) {
      SCOPED_TRACE(testing::Message() << queries << " " << keys << causal);
      // More queries than keys: the first rows see nothing.
      GpuProblem problem(makeSpec(DType::F16, 64, causal), queries, keys);
      EXPECT_RIGHT(problem);
    }
}

/// Where visibility ends at a block's last key, or one beside it: whether a
/// block needs its mask, and whether it is visited.
TEST(CudaKernel, EdgesOfBlocks) {
  for (int more : {61, 62, 63, 64}) {
    SCOPED_TRACE(more);
    GpuProblem causal(makeSpec(DType::F16, 64, true), 100, 100 + more);
    EXPECT_RIGHT(causal);
    GpuProblem full(makeSpec(DType::F16, 64, false), 3, more + 1);
    EXPECT_RIGHT(full);
    KernelSpec spec = makeSpec(DType::F16, 64, true);
    spec.windowLeft = more + 236; // the last row sees from key 130 to 127 on
    GpuProblem window(spec, 128, 428);
    EXPECT_RIGHT(window);
  }
}

TEST(CudaKernel, BatchesHeadsStrides) {
  KernelSpec spec = makeSpec(DType::F16, 64, true);
  spec.qHeads = 6;
  spec.kvHeads = 2;
  for (bool bshd : {false, true}) {
    GpuProblem problem(spec, 40, 90);
    problem.batch = 2;
    problem.bshd = bshd;
    EXPECT_RIGHT(problem);
    problem.keyLengths = {90, 41};
    problem.wantLse = false;
    EXPECT_RIGHT(problem);
    // Fewer keys than queries, and none at all.
    problem.keyLengths = {7, 0};
    problem.wantLse = true;
    EXPECT_RIGHT(problem);
  }
}

TEST(CudaKernel, Window) {
  KernelSpec spec = makeSpec(DType::BF16, 64, true);
  for (int window : {0, 5, 100}) {
    spec.windowLeft = window;
    GpuProblem problem(spec, 200, 300);
    EXPECT_RIGHT(problem);
  }
  spec.causal = false;
  spec.windowLeft = 20;
  spec.windowRight = 9;
  GpuProblem problem(spec, 140, 150);
  EXPECT_RIGHT(problem);
}

TEST(CudaKernel, SoftcapSinkKeyMask) {
  KernelSpec spec = makeSpec(DType::F16, 64, true);
  spec.softcap = 5;
  GpuProblem capped(spec, 70, 100);
  capped.amplitude = 8;
  EXPECT_RIGHT(capped);
  spec.softcap = 0;
  spec.hasSink = true;
  spec.qHeads = 2;
  GpuProblem sink(spec, 100, 70);
  EXPECT_RIGHT(sink);
  spec.hasSink = false;
  spec.hasKeyMask = true;
  GpuProblem masked(spec, 100, 70);
  masked.batch = 2;
  EXPECT_RIGHT(masked);
  // A key mask may hide keys of blocks that all rows see by causality.
  GpuProblem prefix(spec, 100, 300);
  EXPECT_RIGHT(prefix);
}

TEST(CudaKernel, HugeScores) {
  GpuProblem large(makeSpec(DType::BF16, 64, true), 70, 70);
  large.amplitude = 1e15;
  EXPECT_RIGHT(large);
  large.spec.dtype = DType::F16;
  large.amplitude = 3000;
  EXPECT_RIGHT(large);
}

TEST(CudaKernel, Lists) {
  for (int headDim : {64, 128})
    for (double columns : {0.0, 0.1}) {
      SCOPED_TRACE(testing::Message() << headDim << " " << columns);
      KernelSpec spec = makeSpec(DType::BF16, headDim, true);
      spec.qHeads = 2;
      GpuProblem problem(spec, 200, 330);
      problem.options.lists = true;
      problem.columnShare = columns;
      EXPECT_RIGHT(problem);
      // Columns alone, and nothing at all.
      problem.blockShare = 0;
      EXPECT_RIGHT(problem);
    }
}

TEST(CudaKernel, ListsWithAllFeatures) {
  for (int headDim : {64, 256}) {
    KernelSpec spec = makeSpec(DType::F16, headDim, true);
    spec.qHeads = 2;
    spec.windowLeft = 90;
    spec.softcap = 20;
    spec.hasSink = spec.hasKeyMask = true;
    GpuProblem problem(spec, 140, 200);
    problem.batch = 2;
    problem.keyLengths = {200, 111};
    problem.options.lists = true;
    problem.columnShare = 0.3;
    EXPECT_RIGHT(problem);
  }
}

TEST(CudaKernel, Schedules) {
  struct {
    int blockQ, blockK, warps, stages;
  } schedules[] = {{64, 64, 4, 1}, {64, 80, 4, 2},   {128, 112, 8, 3},
                   {32, 16, 2, 4}, {128, 144, 4, 1}, {16, 32, 1, 2}};
  for (auto [blockQ, blockK, warps, stages] : schedules) {
    SCOPED_TRACE(testing::Message() << blockQ << "x" << blockK);
    GpuProblem problem(makeSpec(DType::BF16, 64, true), 140, 200);
    problem.options.blockQ = blockQ;
    problem.options.blockK = blockK;
    problem.options.warps = warps;
    problem.options.stages = stages;
    EXPECT_RIGHT(problem);
    problem.options.lists = true;
    problem.columnShare = 0.2;
    EXPECT_RIGHT(problem);
  }
}

TEST(CudaKernel, SmallerSharedMemory) {
  GpuProblem problem(makeSpec(DType::BF16, 256, true), 100, 70);
  problem.options.arch = 89; // 64 rows a block
  EXPECT_RIGHT(problem);
}

/// Whatever the order of threads and of asynchronous work.
TEST(CudaKernel, LateAndShuffled) {
  GpuProblem problem(makeSpec(DType::BF16, 64, true), 200, 330);
  for (bool lists : {false, true}) {
    problem.options.lists = lists;
    problem.columnShare = 0.1;
    emu::Options how;
    how.late = true;
    EXPECT_EQ(problem.check(how), "");
    how.seed = 7;
    EXPECT_EQ(problem.check(how), "");
  }
}
