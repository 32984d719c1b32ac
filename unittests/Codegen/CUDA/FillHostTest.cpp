//===- FillHostTest.cpp - Rows without keys -------------------------------===//
//
// Models whose rows without keys are not 0: the mean of all values, no number,
// or what they would be without masks.
//
//===----------------------------------------------------------------------===//

#include "HostFixture.h"

using namespace prefill;
using namespace prefill::harness;

namespace {

using FillHost = CudaHost;

/// Hides the first `count` keys: under a causal mask as many rows see nothing.
void hide(Call &call, int b, int count) {
  std::fill_n(call.mask.begin() + size_t(b) * call.keys, count, 0);
}

/// Batch entries padded on the left, by more than one thread block of rows, by
/// a few and not at all.
TEST_F(FillHost, Padding) {
  for (const char *name : {"mean", "scores"})
    for (bool otherLayout : {false, true}) {
      SCOPED_TRACE(std::string(name) + (otherLayout ? " transposed" : ""));
      Call call(name, 3, 90, 90, otherLayout);
      hide(call, 0, 70);
      hide(call, 1, 3);
      call.mask[size_t(2) * 90] = 1;
      EXPECT_RUNS(call);
      EXPECT_EQ(call.functions.back(), "prefill_fill_rows");
    }
}

/// More keys than a thread block has threads, a row that sees none of them.
TEST_F(FillHost, ManyKeys) {
  for (const char *name : {"mean", "scores"}) {
    SCOPED_TRACE(name);
    Call call(name, 1, 40, 600);
    hide(call, 0, 600);
    EXPECT_RUNS(call);
  }
}

/// More queries than keys, lengths on the device and on the host: the mean is
/// that of all values.
TEST_F(FillHost, Lengths) {
  for (DLDeviceType device : {kDLCUDA, kDLCPU}) {
    Call call("mean", 3, 60, 50);
    call.lengths = {50, 20, 0};
    call.inputs[PREFILL_IN_KV_LENGTHS] = &call.tensors[7];
    call.tensors[7].device = {device, 0};
    EXPECT_RUNS(call);
  }
}

/// Behind a window; and without a log-sum-exp of the host's, which then lies in
/// workspace.
TEST_F(FillHost, NoNumber) {
  Call call("nan", 2, 60, 60);
  call.offsets = {-10, 80};
  EXPECT_RUNS(call);
  EXPECT_EQ(call.live, 0);
  const int before = int(call.memory.size());
  call.outputs.resize(1);
  std::fill(call.data[3].begin(), call.data[3].end(), 0);
  EXPECT_RUNS(call);
  EXPECT_EQ(int(call.memory.size()), before + 1);
  EXPECT_EQ(call.live, 0);
}

/// Where every row sees a key there is no second launch.
TEST_F(FillHost, NothingToFill) {
  Call call("mean", 1, 40, 40);
  call.inputs[PREFILL_IN_KEY_MASK] = nullptr;
  std::fill(call.mask.begin(), call.mask.end(), 1);
  EXPECT_RUNS(call);
  EXPECT_EQ(std::count(call.functions.begin(), call.functions.end(),
                       "prefill_fill_rows"),
            0);
}

TEST_F(FillHost, Errors) {
  Call call("mean", 1, 40, 40);
  call.context.device_alloc = [](void *, size_t) -> void * { return nullptr; };
  call.outputs.resize(1);
  refused(call, PREFILL_OUT_OF_MEMORY, "workspace");
}

} // namespace
