//===- VariantsTest.cpp - Every kind of attention kernel in the emulator --===//
//
// Head dimensions x types x masks x forms, on shapes with ragged ends. By
// default a part in which every two values meet; PREFILL_ALL_VARIANTS=1 in the
// environment runs all of them (some minutes).
//
//===----------------------------------------------------------------------===//

#include "GpuProblem.h"
#include "gtest/gtest.h"
#include <cstdlib>

using namespace prefill;
using namespace prefill::harness;

namespace {

struct Form {
  const char *name;
  bool hopper, lists, tensorMaps, persistent;
};
const Form forms[] = {
    {"sm_80", false, false, false, false},
    {"sm_80 lists", false, true, false, false},
    {"sm_90a", true, false, false, false},
    {"sm_90a TMA", true, false, true, false},
    {"sm_90a lists", true, true, false, false},
    {"sm_90a persistent TMA", true, false, true, true},
};
const int headDims[] = {64, 96, 128, 192, 256};
const char *const masks[] = {"none", "causal", "window", "softcap and sink",
                             "key mask"};

TEST(Variants, MatchFloat64) {
  const bool all = std::getenv("PREFILL_ALL_VARIANTS") != nullptr;
  for (int f = 0; f < 6; ++f)
    for (int d = 0; d < 5; ++d)
      for (int m = 0; m < 5; ++m)
        for (int half = 0; half < 2; ++half) {
          // Each form meets each size and each mask, once in each type or
          // other.
          if (!all && ((d + m + f) % 5 || (d + f) % 2 != half))
            continue;
          SCOPED_TRACE(testing::Message()
                       << forms[f].name << ", " << headDims[d] << ", "
                       << masks[m] << (half ? ", f16" : ", bf16"));
          KernelSpec spec;
          spec.name = "test";
          spec.dtype = half ? DType::F16 : DType::BF16;
          spec.headDim = spec.vHeadDim = headDims[d];
          spec.causal = m != 0 && m != 4;
          if (m == 2)
            spec.windowLeft = 70;
          if (m == 3) {
            spec.softcap = 20;
            spec.hasSink = true;
          }
          spec.hasKeyMask = m == 4;
          GpuProblem problem(spec, 45, 150);
          problem.options.arch = forms[f].hopper ? 90 : 80;
          problem.options.archSpecific = forms[f].hopper;
          problem.options.lists = forms[f].lists;
          problem.options.tensorMaps = forms[f].tensorMaps;
          problem.options.persistent = forms[f].persistent;
          problem.columnShare = forms[f].lists ? 0.3 : 0;
          emu::Options how;
          how.late = true;
          how.seed = 3;
          EXPECT_EQ(problem.check(how), "");
        }
}

} // namespace
