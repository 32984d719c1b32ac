//===- AttentionKernelTest.cpp - Generated attention against float64 ------===//

#include "AttentionProblem.h"
#include "gtest/gtest.h"

using namespace prefill;
using namespace prefill::harness;

namespace {

KernelSpec causalSpec(int32_t d) {
  KernelSpec spec;
  spec.headDim = spec.vHeadDim = d;
  spec.causal = true;
  return spec;
}

void expectRight(Problem &problem) {
  for (int level = 2; level <= machineLevel(); ++level) {
    std::string message = problem.check(*getCpuTarget(level));
    EXPECT_EQ(message, "") << "x86-64-v" << level;
  }
}

TEST(AttentionKernel, CausalD64) {
  for (int64_t length : {1, 2, 17, 63, 64, 65, 200}) {
    Problem problem(causalSpec(64), length, length);
    expectRight(problem);
  }
}

} // namespace
