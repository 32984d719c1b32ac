//===- TmaHostTest.cpp - Launches with tensor maps ------------------------===//
//
// Which launches on an H100 copy by TMA, that the maps which the host encodes
// are the tensors, and that everything else takes the kernel without.
//
//===----------------------------------------------------------------------===//

#include "HostFixture.h"

using namespace prefill;
using namespace prefill::harness;

namespace {

class TmaHost : public CudaHost {
protected:
  void SetUp() override {
    CudaHost::SetUp();
    driver->major = 9;
    driver->shared_limit = 227 << 10;
  }
  /// Right, by the kernel whose name ends like this.
  void runs(Call &call, const char *suffix) {
    EXPECT_RUNS(call);
    ASSERT_FALSE(call.functions.empty());
    EXPECT_TRUE(llvm::StringRef(call.functions.back()).ends_with(suffix))
        << call.functions.back();
  }
  void copiesByTma(Call &call) { runs(call, "_sm_90a_tma"); }
  void copiesByCpAsync(Call &call) { runs(call, "_sm_90a"); }
  static constexpr int kNaN = 0x7fff; ///< of float16 and bfloat16
};

/// All head dimensions, heads in groups of two, memory in both orders.
TEST_F(TmaHost, HeadDimensionsAndStrides) {
  for (const char *name : {"causal", "d96", "d128", "d192", "d256"})
    for (bool otherLayout : {false, true}) {
      SCOPED_TRACE(std::string(name) + (otherLayout ? " transposed" : ""));
      Call call(name, 2, 70, 150, otherLayout);
      call.late = otherLayout;
      copiesByTma(call);
      EXPECT_EQ(call.maps, 3);
      EXPECT_EQ(call.batches, std::vector<unsigned>{2});
    }
}

TEST_F(TmaHost, Lengths) {
  for (auto [queries, keys] : {std::pair(1, 1), std::pair(1, 200),
                               std::pair(200, 129), std::pair(193, 385)}) {
    SCOPED_TRACE(testing::Message() << queries << " " << keys);
    Call call("causal", 1, queries, keys);
    copiesByTma(call);
  }
}

TEST_F(TmaHost, MaskSinksWindowSoftcapRotary) {
  Call features("features", 2, 60, 90);
  copiesByTma(features);
  Call rotary("rotary", 2, 60, 90);
  copiesByTma(rotary);
  EXPECT_EQ(rotary.functions.size(), 3u);
  EXPECT_EQ(rotary.live, 0);
}

/// Lengths that the host knows are those of the maps: whatever lies behind them
/// is not read. A launch without keys has no maps.
TEST_F(TmaHost, LengthsOnTheHost) {
  Call call("causal", 3, 60, 90);
  call.lengths = {90, 33, 0};
  call.inputs[PREFILL_IN_KV_LENGTHS] = &call.tensors[7];
  call.tensors[7].device = {kDLCPU, 0};
  for (int b = 0; b < 3; ++b)
    for (int h = 0; h < 2; ++h)
      for (int key = call.lengths[b]; key < 90; ++key)
        for (int tensor : {1, 2})
          for (int c = 0; c < 64; ++c)
            call.data[tensor][call.at(false, b, h, key) + c] = kNaN;
  EXPECT_RUNS(call);
  ASSERT_EQ(call.functions.size(), 3u);
  for (int i = 0; i < 3; ++i)
    EXPECT_EQ(llvm::StringRef(call.functions[i]).ends_with("_tma"), i < 2);
}

/// Lengths on the device are the kernel's to read: no map knows them. Offsets
/// are no matter of the maps.
TEST_F(TmaHost, NumbersOnTheDevice) {
  Call ragged("causal", 3, 60, 90);
  ragged.lengths = {90, 33, 0};
  ragged.inputs[PREFILL_IN_KV_LENGTHS] = &ragged.tensors[7];
  copiesByCpAsync(ragged);
  EXPECT_EQ(ragged.maps, 0);
  Call offsets("d128", 3, 60, 90);
  offsets.offsets = {30, 25, 0};
  copiesByTma(offsets);
  EXPECT_EQ(offsets.batches, std::vector<unsigned>{3});
}

/// Strides that maps cannot have, or of which nobody knows whether they can.
TEST_F(TmaHost, Strides) {
  // One batch entry: its stride is not used.
  Call single("causal", 1, 70, 150, /*otherLayout=*/true);
  for (auto &strides : single.strides)
    strides[0] = 12345;
  copiesByTma(single);
  // All batch entries have the keys of the first.
  Call shared("causal", 2, 70, 150, /*otherLayout=*/true);
  for (int i : {1, 2}) {
    shared.strides[i][0] = 0;
    const size_t half = shared.data[i].size() / 2;
    std::copy_n(shared.data[i].begin(), half, shared.data[i].begin() + half);
  }
  copiesByCpAsync(shared);
  EXPECT_EQ(shared.maps, 1); // of Q
  // Pieces of 16 bytes are what both kernels read.
  driver->launches = 0;
  Call shifted("causal");
  shifted.tensors[2].byte_offset = 2;
  refused(shifted, PREFILL_INVALID_ARGUMENT, "aligned to 16 bytes");
  Call uneven("causal", 1, 100, 100, /*otherLayout=*/true);
  uneven.strides[1][2] = 2 * 64 + 4;
  refused(uneven, PREFILL_INVALID_SHAPE, "multiple of 8");
}

/// A driver that cannot encode is no error, and neither are maps that it
/// refuses.
TEST_F(TmaHost, DriverThatDoesNotEncode) {
  driver->failing = "cuTensorMapEncodeTiled";
  driver->code = 801;
  Call call("causal", 2, 70, 150);
  copiesByCpAsync(call);
  EXPECT_STREQ(call.context.message, "");
  driver->failing = nullptr;
  copiesByTma(call);
}

/// One that does not have the function, which needs a process of its own:
/// PREFILL_FAKE_DRIVER names it.
using OldDriver = TmaHost;
TEST_F(OldDriver, LacksTensorMaps) {
  if (dlsym(RTLD_DEFAULT, "cuTensorMapEncodeTiled"))
    GTEST_SKIP() << "this process has a driver of CUDA 12";
  Call call("causal", 2, 70, 150);
  copiesByCpAsync(call);
}

/// A launch takes its maps by value: nothing is allocated, nothing copied, and
/// the same call gives the same launch.
TEST_F(TmaHost, NoMemory) {
  Call call("causal");
  copiesByTma(call);
  EXPECT_EQ(driver->pool_count, 0);
  EXPECT_TRUE(call.memory.empty());
  const int loads = driver->loads;
  copiesByTma(call);
  EXPECT_EQ(driver->loads, loads);
}

TEST_F(TmaHost, Environment) {
  for (auto [value, suffix] :
       {std::pair("cp.async", "_sm_90a"), std::pair("tma", "_sm_90a_tma"),
        std::pair("", "_sm_90a_tma")}) {
    Call call("causal");
    EXPECT_EQ(runWith("PREFILL_CUDA_COPIES", value, call), PREFILL_OK)
        << call.context.message;
    EXPECT_LT(call.error(), tolerance);
    ASSERT_EQ(call.functions.size(), 1u);
    EXPECT_TRUE(llvm::StringRef(call.functions[0]).ends_with(suffix)) << value;
  }
  Call wrong("causal");
  EXPECT_EQ(runWith("PREFILL_CUDA_COPIES", "fast", wrong),
            PREFILL_DEVICE_ERROR);
  EXPECT_NE(std::string(wrong.context.message)
                .find("PREFILL_CUDA_COPIES=fast: expected tma or cp.async"),
            std::string::npos)
      << wrong.context.message;
}

} // namespace
