//===- PtxasTest.cpp - What ptxas says, and what is refused ---------------===//

#include "prefill/Codegen/CUDA/CUDA.h"
#include "llvm/IR/Module.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/raw_ostream.h"
#include "gtest/gtest.h"

using namespace prefill;

static KernelSpec makeSpec(int headDim) {
  KernelSpec spec;
  spec.name = "layer0";
  spec.dtype = DType::BF16;
  spec.headDim = spec.vHeadDim = headDim;
  spec.causal = true;
  return spec;
}

static void addFeatures(KernelSpec &spec) {
  spec.windowLeft = 100;
  spec.softcap = 30;
  spec.hasSink = spec.hasKeyMask = true;
}

TEST(Ptxas, Log) {
  PtxasReport report = parsePtxasLog(
      "ptxas info    : 0 bytes gmem\n"
      "ptxas info    : Compiling entry function 'k' for 'sm_90a'\n"
      "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async "
      "instructions are serialized due to insufficient register resources\n"
      "ptxas info    : Function properties for k\n"
      "    336 bytes stack frame, 496 bytes spill stores, 312 bytes spill "
      "loads\n"
      "ptxas info    : Used 168 registers, used 16 barriers, 288 bytes "
      "cmem[0]\n");
  EXPECT_EQ(report.registers, 168);
  EXPECT_EQ(report.stackBytes, 336);
  EXPECT_EQ(report.spillStores, 496);
  EXPECT_EQ(report.spillLoads, 312);
  ASSERT_EQ(report.messages.size(), 1u);
  EXPECT_NE(report.messages[0].find("C7510"), std::string::npos);
}

/// Every head dimension and feature of sm_80 assembles without spills.
TEST(Ptxas, NoSpills) {
  if (findPtxas("").empty())
    GTEST_SKIP() << "no ptxas in CUDA_HOME or PATH";
  for (int headDim : {64, 96, 128, 192, 256})
    for (bool lists : {false, true}) {
      CudaOptions options;
      options.lists = lists;
      CudaKernel kernel;
      std::string error;
      EXPECT_TRUE(compileCuda(makeSpec(headDim), options, kernel, error))
          << error;
      EXPECT_TRUE(kernel.report.assembled);
      EXPECT_FALSE(kernel.cubin.empty());
      EXPECT_GT(kernel.report.ptxas.registers, 64);
      EXPECT_EQ(kernel.report.ptxas.spillStores, 0);
    }
}

/// All features at once, which need most registers.
TEST(Ptxas, NoSpillsWithAllFeatures) {
  if (findPtxas("").empty())
    GTEST_SKIP() << "no ptxas in CUDA_HOME or PATH";
  for (int headDim : {64, 128, 192, 256}) {
    KernelSpec spec = makeSpec(headDim);
    addFeatures(spec);
    CudaOptions options;
    options.lists = true;
    CudaKernel kernel;
    std::string error;
    EXPECT_TRUE(compileCuda(spec, options, kernel, error)) << error;
  }
}

/// Later GPUs have code of their own, in the shared memory that they have.
TEST(Ptxas, OtherTargets) {
  if (findPtxas("").empty())
    GTEST_SKIP() << "no ptxas in CUDA_HOME or PATH";
  for (int arch : {86, 89, 90})
    for (int headDim : {64, 128, 256}) {
      CudaOptions options;
      options.arch = arch;
      CudaKernel kernel;
      std::string error;
      EXPECT_TRUE(compileCuda(makeSpec(headDim), options, kernel, error))
          << error;
      EXPECT_LE(kernel.report.sharedBytes, getSharedLimit(arch));
      EXPECT_NE(kernel.ptx.find(".target sm_" + std::to_string(arch)),
                std::string::npos);
    }
}

/// The schedule with warpgroups: no spills and no serialised products (C75xx),
/// which compileCuda refuses, for every head dimension, index and mask.
TEST(Ptxas, Warpgroups) {
  if (findPtxas("").empty())
    GTEST_SKIP() << "no ptxas in CUDA_HOME or PATH";
  for (int headDim : {64, 96, 128, 192, 256})
    for (const char *kind : {"", "tma", "lists"})
      for (bool all : {false, true}) {
        SCOPED_TRACE(testing::Message() << headDim << kind << all);
        KernelSpec spec = makeSpec(headDim);
        if (all)
          addFeatures(spec);
        CudaOptions options;
        options.arch = 90;
        options.archSpecific = true;
        options.lists = kind == llvm::StringRef("lists");
        options.tensorMaps = kind == llvm::StringRef("tma");
        CudaKernel kernel;
        std::string error;
        EXPECT_TRUE(compileCuda(spec, options, kernel, error)) << error;
        EXPECT_TRUE(kernel.report.schedule.warpgroups) << kernel.report.note;
        EXPECT_LE(kernel.report.sharedBytes, getSharedLimit(90));
        EXPECT_NE(kernel.ptx.find(".target sm_90a"), std::string::npos);
        EXPECT_NE(kernel.ptx.find("wgmma.mma_async"), std::string::npos);
      }
}

/// Where the table's tiles would spill there are fewer keys to one, and the
/// note says so; sm_90's code comes after that.
TEST(Ptxas, FewerKeys) {
  if (findPtxas("").empty())
    GTEST_SKIP() << "no ptxas in CUDA_HOME or PATH";
  KernelSpec spec = makeSpec(160);
  spec.causal = false;
  spec.softcap = 30;
  spec.hasKeyMask = true;
  for (bool tensorMaps : {false, true}) {
    CudaOptions options;
    options.arch = 90;
    options.archSpecific = true;
    options.tensorMaps = tensorMaps;
    CudaKernel kernel;
    std::string error;
    EXPECT_TRUE(compileCuda(spec, options, kernel, error)) << error;
    EXPECT_EQ(error, "");
    const CudaSchedule &schedule = kernel.report.schedule;
    EXPECT_TRUE(schedule.warpgroups) << kernel.report.note;
    EXPECT_EQ(schedule.tensorMaps, tensorMaps);
    EXPECT_EQ(kernel.report.ptxas.spillStores, 0);
    EXPECT_GE(schedule.blockK, 64);
    EXPECT_LT(schedule.blockK, 112);
    EXPECT_TRUE(llvm::StringRef(kernel.report.note)
                    .starts_with("has " + std::to_string(schedule.blockK) +
                                 " keys a tile; kernel '"))
        << kernel.report.note;
  }
}

/// The same for persistent thread blocks. (benchmarks/cuda_static.py compiles
/// what is left out here.)
TEST(Ptxas, Persistent) {
  if (findPtxas("").empty())
    GTEST_SKIP() << "no ptxas in CUDA_HOME or PATH";
  for (int headDim : {64, 96, 128, 192, 256})
    for (bool all : {false, true}) {
      SCOPED_TRACE(testing::Message() << headDim << all);
      KernelSpec spec = makeSpec(headDim);
      spec.causal = all || headDim != 256;
      if (all)
        addFeatures(spec);
      CudaOptions options;
      options.arch = 90;
      options.archSpecific = true;
      options.persistent = true;
      options.tensorMaps = all == (headDim % 128 == 0);
      CudaKernel kernel;
      std::string error;
      EXPECT_TRUE(compileCuda(spec, options, kernel, error)) << error;
      EXPECT_TRUE(kernel.report.schedule.persistent) << kernel.report.note;
      EXPECT_NE(kernel.name.find("_persistent"), std::string::npos);
    }
}

/// Where sm_90a's kernel does not assemble, sm_90's takes its place and the
/// note says so.
TEST(Ptxas, FallsBackFromWarpgroups) {
  const std::string real = findPtxas("");
  if (real.empty())
    GTEST_SKIP() << "no ptxas in CUDA_HOME or PATH";
  llvm::SmallString<128> script;
  ASSERT_FALSE(llvm::sys::fs::createTemporaryFile("ptxas", "sh", script));
  {
    std::error_code code;
    llvm::raw_fd_ostream stream(script, code);
    stream << "#!/bin/sh\ncase \"$*\" in *sm_90a*) echo 'error: not this "
              "one'; exit 1;; esac\nexec "
           << real << " \"$@\"\n";
  }
  ASSERT_FALSE(llvm::sys::fs::setPermissions(script, llvm::sys::fs::all_all));
  CudaOptions options;
  options.arch = 90;
  options.archSpecific = true;
  options.ptxas = std::string(script);
  CudaKernel kernel;
  std::string error;
  EXPECT_TRUE(compileCuda(makeSpec(64), options, kernel, error)) << error;
  EXPECT_FALSE(kernel.report.schedule.warpgroups);
  EXPECT_TRUE(kernel.report.assembled);
  EXPECT_NE(kernel.report.note.find("not this one"), std::string::npos)
      << kernel.report.note;
  EXPECT_NE(kernel.ptx.find(".target sm_90\n"), std::string::npos);
  // A persistent kernel gives up being one before.
  options.persistent = true;
  EXPECT_TRUE(compileCuda(makeSpec(64), options, kernel, error)) << error;
  EXPECT_TRUE(llvm::StringRef(kernel.report.note)
                  .starts_with("is not persistent; kernel '"))
      << kernel.report.note;
  EXPECT_NE(kernel.report.note.find("; runs sm_90's code; "), std::string::npos)
      << kernel.report.note;
  // Not for sizes that someone asked for.
  options.blockK = 64;
  EXPECT_FALSE(compileCuda(makeSpec(64), options, kernel, error));
  llvm::sys::fs::remove(script);
}

/// Spills fail the compilation with the kernel's name, unless allowed.
TEST(Ptxas, Spills) {
  if (findPtxas("").empty())
    GTEST_SKIP() << "no ptxas in CUDA_HOME or PATH";
  CudaOptions options;
  options.warps = 4; // twice the accumulators a thread
  CudaKernel kernel;
  std::string error;
  EXPECT_FALSE(compileCuda(makeSpec(256), options, kernel, error));
  EXPECT_NE(error.find("prefill_attention_bf16_d256"), std::string::npos)
      << error;
  EXPECT_NE(error.find("spills"), std::string::npos) << error;
  options.allowSpills = true;
  EXPECT_TRUE(compileCuda(makeSpec(256), options, kernel, error)) << error;
  EXPECT_GT(kernel.report.ptxas.spillStores, 0);
  EXPECT_FALSE(kernel.cubin.empty());
}

TEST(Ptxas, Missing) {
  CudaOptions options;
  options.ptxas = "/nowhere/ptxas";
  CudaKernel kernel;
  std::string error;
  EXPECT_FALSE(compileCuda(makeSpec(64), options, kernel, error));
  EXPECT_NE(error.find("/nowhere/ptxas"), std::string::npos) << error;
  options.runPtxas = false;
  EXPECT_TRUE(compileCuda(makeSpec(64), options, kernel, error)) << error;
  EXPECT_FALSE(kernel.report.assembled);
  EXPECT_NE(kernel.ptx.find(".target sm_80"), std::string::npos);
  EXPECT_NE(kernel.module.get(), nullptr);
}

TEST(Refusals, NameWhatAndWhy) {
  auto refused = [](KernelSpec spec, const char *word) {
    CudaKernel kernel;
    std::string error;
    EXPECT_FALSE(compileCuda(spec, {}, kernel, error)) << word;
    EXPECT_NE(error.find("layer0"), std::string::npos) << error;
    EXPECT_NE(error.find(word), std::string::npos) << error;
    EXPECT_EQ(error.find('\n'), std::string::npos);
  };
  KernelSpec spec = makeSpec(64);
  spec.dtype = DType::F32;
  refused(spec, "float32");
  refused(makeSpec(72), "head dimension 72");
  refused(makeSpec(512), "head dimension 512");
  spec = makeSpec(64);
  spec.hasBias = true;
  refused(spec, "bias");
  spec = makeSpec(64);
  spec.hasSegments = true;
  refused(spec, "segments");
  spec = makeSpec(64);
  spec.rotary = Rotary::Half;
  refused(spec, "rotary");
  spec = makeSpec(64);
  spec.heads.resize(spec.qHeads);
  spec.heads.back().skip = 0.01f;
  refused(spec, "skip");
  CudaOptions options;
  options.arch = 75;
  CudaKernel kernel;
  std::string error;
  EXPECT_FALSE(compileCuda(makeSpec(64), options, kernel, error));
  EXPECT_NE(error.find("sm_75"), std::string::npos) << error;
  options = {};
  options.stages = 5;
  EXPECT_FALSE(compileCuda(makeSpec(256), options, kernel, error));
  EXPECT_NE(error.find("shared memory"), std::string::npos) << error;
}
