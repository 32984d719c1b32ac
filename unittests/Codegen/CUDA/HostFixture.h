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
  /// Runs it with a variable of the environment. These are read when a library
  /// first needs the driver, so a copy of the library is called.
  prefill_status runWith(const char *variable, const char *value, Call &call) {
    static int copies = 0;
    llvm::SmallString<128> from(World::get().folder), to(from);
    llvm::sys::path::append(from, "libmodel.so");
    llvm::sys::path::append(to, "libcopy" + std::to_string(copies++) + ".so");
    EXPECT_FALSE(llvm::sys::fs::copy_file(from, to));
    void *library = dlopen(to.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      ADD_FAILURE() << dlerror();
      return PREFILL_OK;
    }
    const harness::Run original = World::get().run;
    World::get().run =
        reinterpret_cast<harness::Run>(dlsym(library, "prefill_run"));
    setenv(variable, value, 1);
    const prefill_status status = call.run(driver);
    unsetenv(variable);
    World::get().run = original;
    return status;
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
