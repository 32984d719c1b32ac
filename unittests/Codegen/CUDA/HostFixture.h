//===- HostFixture.h - Tests that call a library with CUDA code -*- C++ -*-===//
#ifndef PREFILL_UNITTESTS_CODEGEN_CUDA_HOSTFIXTURE_H
#define PREFILL_UNITTESTS_CODEGEN_CUDA_HOSTFIXTURE_H

#include "HostCall.h"
#include "gtest/gtest.h"

namespace prefill::harness {

class CudaHost : public ::testing::Test {
protected:
  void SetUp() override {
    ASSERT_EQ(World::get().error, "");
    driver = World::get().reset();
    // Code of earlier tests is not in this test's context.
    static unsigned long long contexts = 100;
    driver->context = ++contexts;
  }
  /// The message contains `word`, nothing was launched, and the next call
  /// works.
  void refused(Call &call, prefill_status status, const char *word) {
    EXPECT_EQ(call.run(driver, false), status) << call.context.message;
    EXPECT_NE(std::string(call.context.message).find(word), std::string::npos)
        << call.context.message;
    EXPECT_NE(std::string(call.context.message).find(call.spec.name),
              std::string::npos)
        << call.context.message;
    EXPECT_EQ(driver->launches, 0);
  }
  fake_cuda *driver = nullptr;
};

#define EXPECT_RUNS(call)                                                      \
  do {                                                                         \
    EXPECT_EQ((call).run(driver), PREFILL_OK) << (call).context.message;       \
    EXPECT_EQ((call).emulation, "");                                           \
    EXPECT_LT((call).error(), tolerance);                                      \
  } while (0)
constexpr double tolerance = 2.5e-2; // bf16; probabilities are rounded too

} // namespace prefill::harness

#endif
