//===- ModelTest.cpp - Kernels by name
//-------------------------------------===//
#include "Reference.h"
#include "gtest/gtest.h"

using namespace ref;

namespace {

TEST(Model, Names) {
  ASSERT_EQ(prefill_kernel_count(), 2u);
  EXPECT_STREQ(prefill_kernel_name(0), "attention_f32");
  EXPECT_STREQ(prefill_kernel_name(1), "attention_f16");
  EXPECT_EQ(prefill_kernel_name(2), nullptr);
  EXPECT_EQ(prefill_kernel_name(SIZE_MAX), nullptr);
}

TEST(Model, RunByName) {
  Problem<8, 8, 16, 16, float, PREFILL_TILE_CAUSAL> p;
  p.build();
  const DLTensor *inputs[] = {p.in[0].get(), p.in[1].get(), p.in[2].get()};
  DLTensor *outputs[] = {p.out[0].get()};
  EXPECT_EQ(prefill_run(&p.context, "attention_f32", inputs, 3, outputs, 1),
            PREFILL_OK)
      << p.context.message;
  EXPECT_LT(p.error(), 2e-6);
  EXPECT_EQ(prefill_run(&p.context, "attention_f64", inputs, 3, outputs, 1),
            PREFILL_NOT_FOUND);
  EXPECT_STREQ(p.context.message,
               "kernel 'attention_f64': not in this library, which has 2");
  EXPECT_EQ(prefill_run(&p.context, nullptr, inputs, 3, outputs, 1),
            PREFILL_INVALID_ARGUMENT);
  EXPECT_EQ(prefill_run(nullptr, "attention_f32", inputs, 3, outputs, 1),
            PREFILL_INVALID_ARGUMENT);
}

} // namespace
