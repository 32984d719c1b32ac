//===- CostTest.cpp - What attention is predicted to cost -----------------===//
#include "prefill/cost.h"
#include "gtest/gtest.h"

#include <cstring>

namespace {

prefill_cost_units units(int64_t rows, int64_t keys,
                         const prefill_head_plan *plan, int32_t below = -1,
                         int64_t window = -1, int32_t causal = 1) {
  prefill_cost_shape shape{rows, keys, 64, 64, causal, window};
  prefill_cost_units result;
  prefill_cost_attention(&shape, plan, below, &result);
  return result;
}

TEST(Cost, DenseBlocks) {
  EXPECT_EQ(units(128, 128, nullptr).visible, 3);
  EXPECT_EQ(units(128, 128, nullptr, -1, -1, 0).visible, 4);
  EXPECT_EQ(units(64, 640, nullptr).visible, 10); // the last rows
  EXPECT_EQ(units(1, 640, nullptr).visible, 10);
  EXPECT_EQ(units(640, 640, nullptr, -1, 63).visible, 19); // own and one before
  EXPECT_EQ(units(0, 0, nullptr).visible, 0);
  prefill_cost_units dense = units(1024, 1024, nullptr);
  EXPECT_EQ(dense.chosen, dense.dense);
  EXPECT_EQ(dense.sparse, 0);
}

TEST(Cost, PatternsPayWhenPromptsAreLong) {
  prefill_head_plan plan{};
  plan.pattern = PREFILL_PATTERN_VERTICAL_SLASH;
  plan.density = 0.25f;
  plan.last = 64;
  prefill_cost_units small = units(256, 256, &plan),
                     large = units(8192, 8192, &plan);
  EXPECT_EQ(small.sparse, 0);
  EXPECT_EQ(small.chosen, small.dense);
  EXPECT_EQ(small.estimate, 0);
  EXPECT_EQ(large.sparse, 1);
  EXPECT_LT(large.chosen, 0.4 * large.dense);
  EXPECT_GT(large.estimate, 0);
  EXPECT_NEAR(large.visited / large.visible, 0.25, 0.01);
  // The user's word counts.
  EXPECT_EQ(units(256, 256, &plan, 0).sparse, 1);
  EXPECT_EQ(units(8192, 8192, &plan, 9000).sparse, 0);
  // One tile of rows runs dense.
  EXPECT_EQ(units(1, 8192, &plan).sparse, 0);
}

TEST(Cost, Devices) {
  size_t count = 0;
  for (; const prefill_device *device = prefill_device_at(count); ++count) {
    EXPECT_GT(device->linear, 0);
    EXPECT_GT(device->attention, 0);
    EXPECT_GT(device->bytes, 0);
    // What was not measured says so.
    EXPECT_EQ(device->measured == 0,
              std::strstr(device->source, "not measured") != nullptr);
  }
  EXPECT_GE(count, 3u);
}

} // namespace
