//===- PersistentHostTest.cpp - Launches of persistent kernels ------------===//
//
// Which launches on an H100 get one thread block a multiprocessor, with which
// order of tiles, and that all others get a block a tile.
//
//===----------------------------------------------------------------------===//

#include "HostFixture.h"

using namespace prefill;
using namespace prefill::harness;

namespace {

class PersistentHost : public CudaHost {
protected:
  void SetUp() override {
    CudaHost::SetUp();
    driver->major = 9;
    driver->shared_limit = 227 << 10;
    driver->processors = 3;
  }
  /// Right, by the kernel whose name ends like this.
  void runs(Call &call, const char *suffix) {
    EXPECT_RUNS(call);
    ASSERT_FALSE(call.functions.empty());
    EXPECT_TRUE(llvm::StringRef(call.functions.back()).ends_with(suffix))
        << call.functions.back();
  }
  /// By so many blocks, with so many heads at a time.
  void isPersistent(Call &call, unsigned blocks, int together) {
    runs(call, "_sm_90a_persistent_tma");
    EXPECT_EQ(call.blocks.back(), blocks);
    EXPECT_EQ(call.batches.back(), 1u);
    EXPECT_EQ(call.last.heads_together, together);
  }
};

/// Every kernel that libraries carry in this form: head dimensions, layouts,
/// masks, sinks, rotary embedding, early and late copies.
TEST_F(PersistentHost, Kernels) {
  for (const char *name :
       {"causal", "d96", "d128", "d256", "features", "rotary"})
    for (bool otherLayout : {false, true}) {
      SCOPED_TRACE(std::string(name) + (otherLayout ? " transposed" : ""));
      Call call(name, 2, 200, 260, otherLayout);
      call.late = otherLayout;
      isPersistent(call, 3, 8);
      EXPECT_EQ(call.last.batch, 2);
    }
}

/// As many blocks as the GPU has multiprocessors; with no more tiles than
/// these, each tile is a block of its own.
TEST_F(PersistentHost, Blocks) {
  for (int processors : {1, 2, 7}) {
    SCOPED_TRACE(processors);
    driver->processors = processors;
    Call call("causal", 1, 300, 300); // 2 tiles of 192 rows, 4 heads
    isPersistent(call, processors, 4);
  }
  driver->processors = 8;
  Call few("causal", 1, 300, 300);
  runs(few, "_sm_90a_tma");
  EXPECT_EQ(few.blocks, std::vector<unsigned>{2});
}

/// Batch entries whose lengths differ: known to the host they are launches of
/// their own, on the device nobody knows which tiles are long.
TEST_F(PersistentHost, RaggedBatches) {
  Call call("causal", 3, 200, 290);
  call.lengths = {290, 133, 0};
  call.inputs[PREFILL_IN_KV_LENGTHS] = &call.tensors[7];
  call.tensors[7].device = {kDLCPU, 0};
  EXPECT_RUNS(call);
  ASSERT_EQ(call.functions.size(), 3u);
  for (int i = 0; i < 3; ++i)
    EXPECT_EQ(llvm::StringRef(call.functions[i]).ends_with("_persistent_tma"),
              i < 2);
  Call device("causal", 3, 200, 290);
  device.lengths = {290, 133, 0};
  device.inputs[PREFILL_IN_KV_LENGTHS] = &device.tensors[7];
  runs(device, "_sm_90a");
  // Positions are the kernel's to read.
  Call offsets("d128", 3, 200, 290);
  offsets.offsets = {90, 25, 0};
  isPersistent(offsets, 3, 12);
}

/// Without a causal mask its tiles would be smaller: libraries have none.
TEST_F(PersistentHost, NotCarried) {
  for (const char *name : {"bshd", "d192"}) {
    Call call(name, 2, 400, 150);
    runs(call, "_sm_90a_tma");
  }
}

/// Whatever keeps a launch from copying by TMA keeps it from this kernel, and a
/// driver that does not say what the GPU has is no error.
TEST_F(PersistentHost, FallsBack) {
  driver->failing = "cuTensorMapEncodeTiled";
  driver->code = 801;
  Call maps("causal", 2, 300, 300);
  runs(maps, "_sm_90a");
  driver->failing = nullptr;
  driver->processors = 0; // the driver refuses to say
  Call unknown("causal", 2, 300, 300);
  runs(unknown, "_sm_90a_tma");
  EXPECT_STREQ(unknown.context.message, "");
}

/// A launch that fails is named, and the next one works.
TEST_F(PersistentHost, Errors) {
  for (const char *name : {"cuModuleLoadDataEx", "cuLaunchKernel"}) {
    Call call("causal", 1, 300, 300);
    driver->failing = name;
    driver->code = 2;
    refused(call, PREFILL_DEVICE_ERROR, name);
    driver->failing = nullptr;
  }
  Call call("causal", 1, 300, 300);
  isPersistent(call, 3, 4);
}

TEST_F(PersistentHost, Environment) {
  for (auto [value, suffix] :
       {std::pair("tile", "_sm_90a_tma"),
        std::pair("persistent", "_sm_90a_persistent_tma")}) {
    Call call("causal", 1, 300, 300);
    EXPECT_EQ(runWith("PREFILL_CUDA_BLOCKS", value, call), PREFILL_OK)
        << call.context.message;
    EXPECT_LT(call.error(), tolerance);
    ASSERT_EQ(call.functions.size(), 1u);
    EXPECT_TRUE(llvm::StringRef(call.functions[0]).ends_with(suffix)) << value;
  }
  Call wrong("causal", 1, 300, 300);
  EXPECT_EQ(runWith("PREFILL_CUDA_BLOCKS", "all", wrong), PREFILL_DEVICE_ERROR);
  EXPECT_NE(std::string(wrong.context.message)
                .find("PREFILL_CUDA_BLOCKS=all: expected persistent or tile"),
            std::string::npos)
      << wrong.context.message;
}

/// As CUDA graphs need it: no memory, nothing loaded a second time, and the
/// same grid for the same shapes.
TEST_F(PersistentHost, SameLaunchAgain) {
  Call call("causal", 1, 300, 300);
  isPersistent(call, 3, 4);
  const int loads = driver->loads;
  isPersistent(call, 3, 4);
  EXPECT_EQ(driver->loads, loads);
  EXPECT_EQ(driver->pool_count, 0);
  EXPECT_TRUE(call.memory.empty());
}

} // namespace
