//===- QuantizedTest.cpp - Loops over signed bytes ---------------------===//
//
// The loops of quantized_hot.c against int64 and float64, for every instruction
// set.
//
//===----------------------------------------------------------------------===//
#include "quantized.h"
#include "Reference.h"
#include "gtest/gtest.h"

using namespace ref;

namespace {

constexpr int64_t Lanes = PF_QUANTIZED_LANES;

// --- Loops ------------------------------------------------------------------

struct Table {
  const char *name;
  const pf_quantized_hot *hot;
  bool available;
};
std::vector<Table> tables() {
  return {{"v2", &pf_quantized_v2, pf_cpu_isa() >= PREFILL_ISA_X86_64_V2},
          {"v3", &pf_quantized_v3, pf_cpu_isa() >= PREFILL_ISA_X86_64_V3},
          {"vnni", &pf_quantized_vnni,
           pf_cpu_isa() >= PREFILL_ISA_X86_64_V4 && pf_cpu_vnni()}};
}

class Quantized : public testing::TestWithParam<Table> {
protected:
  void SetUp() override {
    if (!GetParam().available)
      GTEST_SKIP();
  }
  const pf_quantized_hot &hot() { return *GetParam().hot; }
};
INSTANTIATE_TEST_SUITE_P(AllLevels, Quantized, testing::ValuesIn(tables()),
                         [](const auto &info) { return info.param.name; });

TEST_P(Quantized, DotsAreExact) {
  Random random(1);
  for (int64_t groups : {1, 2, 16, 20, 32})
    for (int64_t n : {0, 1, 3, 6, 16, 63, 64})
      for (bool extreme : {false, true}) {
        std::vector<int8_t> q(size_t(groups * 4 * Lanes));
        std::vector<int8_t> k(size_t(groups * 4 * n));
        auto element = [&] {
          return static_cast<int8_t>(extreme ? (random.below(8) ? 127 : -127)
                                             : random.below(255) - 127);
        };
        for (int8_t &x : q)
          x = element();
        for (int8_t &x : k)
          x = element();
        std::vector<uint8_t> flipped(k.size());
        for (size_t i = 0; i < k.size(); ++i)
          flipped[i] = static_cast<uint8_t>(k[i]) ^ hot().key_flip;
        std::vector<int32_t> sums(Lanes), most(Lanes, -5), again(Lanes, -5);
        std::vector<int32_t> out(size_t(n * Lanes));
        for (int64_t g = 0; g < groups; ++g)
          for (int64_t i = 0; i < Lanes * 4; ++i)
            sums[size_t(i / 4)] += q[size_t(g * Lanes * 4 + i)];
        hot().dots(out.data(), most.data(), q.data(), sums.data(),
                   flipped.data(), groups, n);
        hot().dots(nullptr, again.data(), q.data(), sums.data(), flipped.data(),
                   groups, n);
        EXPECT_EQ(most, again);
        for (int64_t lane = 0; lane < Lanes; ++lane) {
          int64_t greatest = -5;
          for (int64_t j = 0; j < n; ++j) {
            int64_t sum = 0;
            for (int64_t c = 0; c < groups * 4; ++c)
              sum += int64_t{q[size_t((c / 4 * Lanes + lane) * 4 + c % 4)]} *
                     k[size_t(j * groups * 4 + c)];
            ASSERT_EQ(out[size_t(j * Lanes + lane)], sum);
            greatest = std::max(greatest, sum);
          }
          ASSERT_EQ(most[size_t(lane)], greatest);
        }
      }
}

TEST_P(Quantized, SumsOfExponentials) {
  Random random(2);
  for (int64_t n : {1, 7, 64}) {
    std::vector<int32_t> dot(size_t(n * Lanes)), most(Lanes, INT32_MIN);
    std::vector<float> factor(Lanes), sum(Lanes, -1);
    for (int64_t i = 0; i < n * Lanes; ++i) {
      dot[size_t(i)] = static_cast<int32_t>(random.below(200000) - 100000);
      int32_t &top = most[size_t(i % Lanes)];
      top = std::max(top, dot[size_t(i)]);
    }
    for (int64_t lane = 0; lane < Lanes; ++lane)
      factor[size_t(lane)] = static_cast<float>(lane) * 1e-5f;
    factor[1] = 1e20f; // nothing but the largest counts
    hot().exp_sum(sum.data(), dot.data(), most.data(), factor.data(), n);
    for (int64_t lane = 0; lane < Lanes; ++lane) {
      double want = 0;
      for (int64_t j = 0; j < n; ++j)
        want += std::exp((dot[size_t(j * Lanes + lane)] - most[size_t(lane)]) *
                         static_cast<double>(factor[size_t(lane)]));
      ASSERT_NEAR(sum[size_t(lane)] / want, 1, 2e-4) << lane;
    }
  }
}

TEST_P(Quantized, Above) {
  std::vector<int32_t> most(Lanes);
  std::vector<float> factor(Lanes), bound(Lanes);
  for (int64_t lane = 0; lane < Lanes; ++lane) {
    most[size_t(lane)] = static_cast<int32_t>(lane);
    factor[size_t(lane)] = lane == 5 ? NAN : 2;
    bound[size_t(lane)] = lane == 60 ? NAN : lane == 61 ? INFINITY : 20;
  }
  const uint64_t got =
      hot().above(most.data(), factor.data(), 0.5f, bound.data());
  for (int64_t lane = 0; lane < Lanes; ++lane)
    EXPECT_EQ(got >> lane & 1, lane == 5 || (lane > 20 && lane != 61)) << lane;
}

TEST_P(Quantized, Rounding) {
  for (int64_t n : {1, 5, 16, 33}) {
    std::vector<float> x, mean;
    for (int64_t i = 0; i < n; ++i) {
      x.push_back(static_cast<float>(i) * 0.5f - 3);
      mean.push_back(i % 3 ? 0.25f : 0);
    }
    std::vector<uint8_t> out(size_t(n + 1), 77);
    hot().round(out.data(), x.data(), mean.data(), 3.0f, n, 0x80);
    float most = 0;
    for (size_t i = 0; i < size_t(n); ++i) {
      most = std::max(most, std::fabs(x[i] - mean[i]));
      EXPECT_EQ(static_cast<int8_t>(out[i] ^ 0x80),
                std::nearbyint((x[i] - mean[i]) * 3.0f));
    }
    EXPECT_EQ(out[size_t(n)], 77);
    EXPECT_EQ(hot().largest(x.data(), mean.data(), n), most);
    x[size_t(n - 1)] = NAN;
    EXPECT_TRUE(std::isnan(hot().largest(x.data(), mean.data(), n)));
    x[size_t(n - 1)] = -INFINITY;
    EXPECT_TRUE(std::isinf(hot().largest(x.data(), mean.data(), n)));
  }
}

} // namespace
