//===- HotTest.cpp - The loops of hot.c for every instruction set
//----------===//
#include "Reference.h"
#include "internal.h"
#include "gtest/gtest.h"

using namespace ref;

namespace {

class Hot : public testing::TestWithParam<const pf_hot *> {
protected:
  void SetUp() override {
    if (GetParam()->isa > pf_cpu_isa())
      GTEST_SKIP();
  }
  const pf_hot &hot() { return *GetParam(); }
};

INSTANTIATE_TEST_SUITE_P(AllLevels, Hot,
                         testing::Values(&pf_hot_v2, &pf_hot_v3, &pf_hot_v4),
                         [](const auto &info) {
                           return "v" + std::to_string(info.param->isa);
                         });

TEST_P(Hot, HalfToFloatIsExact) {
  std::vector<uint16_t> all(65536);
  for (size_t i = 0; i < all.size(); ++i)
    all[i] = static_cast<uint16_t>(i);
  std::vector<float> out(all.size());
  for (int64_t stride : {1, 3}) {
    const int64_t n = stride == 1 ? 65536 : 65536 / 3;
    hot().to_float(out.data(), all.data(), stride, n, PREFILL_F16);
    for (int64_t i = 0; i < n; ++i) {
      _Float16 h;
      memcpy(&h, &all[static_cast<size_t>(i * stride)], 2);
      float want = static_cast<float>(h), have = out[static_cast<size_t>(i)];
      ASSERT_TRUE(have == want || (std::isnan(have) && std::isnan(want))) << i;
    }
  }
}

TEST_P(Hot, FloatToHalfRoundsToEven) {
  std::vector<float> in;
  for (uint32_t bits = 0; bits < 0xffffe000u; bits += 0x1357) {
    float x;
    memcpy(&x, &bits, 4);
    in.push_back(x);
  }
  for (float x : {65504.0f, 65519.9f, 65520.0f, 1e30f, 5.9e-8f, 2.9e-8f})
    in.push_back(x), in.push_back(-x);
  std::vector<_Float16> out(in.size());
  hot().from_float(out.data(), in.data(), static_cast<int64_t>(in.size()),
                   PREFILL_F16);
  for (size_t i = 0; i < in.size(); ++i) {
    _Float16 want = static_cast<_Float16>(in[i]);
    ASSERT_TRUE(out[i] == want ||
                (std::isnan(static_cast<float>(out[i])) && std::isnan(in[i])))
        << in[i];
  }
}

TEST_P(Hot, Bfloat) {
  std::vector<float> in = {0,     -0.0f,   1,        1.0039062f, 1.0117188f,
                           3e38f, 3.4e38f, INFINITY, NAN,        -2.5f};
  std::vector<bf16> out(in.size());
  hot().from_float(out.data(), in.data(), static_cast<int64_t>(in.size()),
                   PREFILL_BF16);
  std::vector<float> back(in.size());
  hot().to_float(back.data(), out.data(), 1, static_cast<int64_t>(in.size()),
                 PREFILL_BF16);
  EXPECT_EQ(back[2], 1.0f);
  EXPECT_EQ(back[3], 1.0f);         // tie to even
  EXPECT_EQ(back[4], 1.015625f);    // tie to even
  EXPECT_TRUE(std::isinf(back[6])); // rounds past the largest
  EXPECT_TRUE(std::isnan(back[8]));
  EXPECT_EQ(back[9], -2.5f);
}

TEST_P(Hot, Scores) {
  Random random(11);
  for (int dtype : {PREFILL_F32, PREFILL_F16, PREFILL_BF16})
    for (int64_t lanes : {1, 16, 24, 37, 64, 128})
      for (int64_t d : {1, 24, 64, 5000})
        for (int64_t n : {1, 7}) {
          if (d == 5000 && lanes != 24)
            continue;
          const int64_t stride = d + 3;
          std::vector<float> q(static_cast<size_t>(d * lanes)),
              k(static_cast<size_t>(n * stride)),
              out(static_cast<size_t>(n * lanes));
          for (float &x : q)
            x = static_cast<float>(random.normal());
          for (float &x : k)
            x = static_cast<float>(random.below(65) - 32) / 16; // exact in all
          std::vector<uint16_t> narrowed(k.size());
          const void *source = k.data();
          if (dtype != PREFILL_F32) {
            hot().from_float(narrowed.data(), k.data(),
                             static_cast<int64_t>(k.size()), dtype);
            source = narrowed.data();
          }
          hot().score(out.data(), q.data(), lanes, d, source, stride, n, dtype);
          for (int64_t j = 0; j < n; ++j)
            for (int64_t i = 0; i < lanes; ++i) {
              double want = 0;
              for (int64_t c = 0; c < d; ++c)
                want += double(q[static_cast<size_t>(c * lanes + i)]) *
                        double(k[static_cast<size_t>(j * stride + c)]);
              ASSERT_NEAR(out[static_cast<size_t>(j * lanes + i)], want,
                          1e-5 * std::sqrt(double(d)) * 10)
                  << lanes << " " << d;
            }
        }
}

TEST_P(Hot, SoftmaxSums) {
  Random random(12);
  for (int64_t lanes : {1, 16, 21, 64}) {
    const int64_t n = 50;
    std::vector<float> s(static_cast<size_t>(n * lanes)),
        m(static_cast<size_t>(lanes), -1e30f), l(m.size()), inv(m.size()),
        column(static_cast<size_t>(n)),
        diagonal(static_cast<size_t>(n + 2 * lanes));
    for (float &x : s)
      x = static_cast<float>(3 * random.normal());
    s[3] = -1e30f;
    hot().row_max(m.data(), s.data(), lanes, n);
    hot().exp_sum(l.data(), s.data(), m.data(), lanes, n);
    for (size_t i = 0; i < l.size(); ++i)
      inv[i] = 1 / l[i];
    hot().sums(column.data(), diagonal.data() + n, s.data(), m.data(),
               inv.data(), lanes, n);
    std::vector<double> wantColumn(column.size()),
        wantDiagonal(diagonal.size());
    for (int64_t i = 0; i < lanes; ++i) {
      double sum = 0, most = -1e30;
      for (int64_t j = 0; j < n; ++j)
        most = std::max<double>(most, s[static_cast<size_t>(j * lanes + i)]);
      for (int64_t j = 0; j < n; ++j)
        sum += std::exp(s[static_cast<size_t>(j * lanes + i)] - most);
      EXPECT_NEAR(l[static_cast<size_t>(i)], sum, 1e-5 * sum);
      for (int64_t j = 0; j < n; ++j) {
        double p = std::exp(s[static_cast<size_t>(j * lanes + i)] - most) / sum;
        wantColumn[static_cast<size_t>(j)] += p;
        wantDiagonal[static_cast<size_t>(n + i - j)] += p;
      }
    }
    for (size_t j = 0; j < column.size(); ++j)
      EXPECT_NEAR(column[j], wantColumn[j], 1e-5);
    for (size_t j = 0; j < diagonal.size(); ++j)
      EXPECT_NEAR(diagonal[j], wantDiagonal[j], 1e-5);
  }
}

TEST_P(Hot, BlockSums) {
  Random random(13);
  for (int64_t lanes : {1, 16, 21, 64, 128}) {
    const int64_t n = 50, blocks = 3;
    std::vector<float> s(static_cast<size_t>(blocks * n * lanes)),
        m(static_cast<size_t>(blocks * lanes), -2e38f), sum(m.size()),
        total(static_cast<size_t>(lanes));
    for (float &x : s)
      x = static_cast<float>(20 * random.normal());
    auto at = [&](int64_t j, int64_t i) -> float & {
      return s[static_cast<size_t>(j * lanes + i)];
    };
    for (int64_t j = 0; j < n; ++j)
      at(j, 0) = -2e38f; // the first block is hidden from lane 0
    if (lanes > 8) {
      at(60, 3) = NAN;
      at(61, 4) = INFINITY;
      at(149, 5) = NAN;
      at(62, 6) = -INFINITY;
    }
    for (int64_t block = 0; block < blocks; ++block) {
      float *most = m.data() + block * lanes;
      if (block)
        std::copy_n(most - lanes, lanes, most);
      hot().block_sums(sum.data() + block * lanes, most,
                       s.data() + block * n * lanes, lanes, n);
    }
    for (int64_t block = 0; block < blocks; ++block)
      hot().rescale(total.data(), sum.data() + block * lanes,
                    m.data() + block * lanes, m.data() + (blocks - 1) * lanes,
                    lanes);
    for (int64_t i = 0; i < lanes; ++i) {
      if (lanes > 8 && i >= 3 && i <= 5) {
        EXPECT_TRUE(std::isnan(total[static_cast<size_t>(i)])) << i;
        continue;
      }
      double most = -2e38;
      for (int64_t j = 0; j < blocks * n; ++j)
        most = std::max<double>(most, at(j, i));
      for (int64_t block = 0; block < blocks; ++block) {
        double want = 0;
        for (int64_t j = block * n; j < (block + 1) * n; ++j)
          want += std::exp(static_cast<double>(at(j, i)) - most);
        EXPECT_NEAR(sum[static_cast<size_t>(block * lanes + i)], want,
                    1e-5 * want + 1e-30)
            << lanes << " " << i << " " << block;
      }
    }
  }
}

TEST_P(Hot, Softcap) {
  std::vector<float> x = {0, 1, -1, 30, -30, 1000, -1000, 0.01f, 5, -7,
                          2, 3, 4,  6,  8,   9,    10,    11,    12};
  std::vector<float> y = x;
  hot().softcap(y.data(), 30, static_cast<int64_t>(y.size()));
  for (size_t i = 0; i < x.size(); ++i)
    EXPECT_NEAR(y[i], 30 * std::tanh(x[i] / 30), 1e-5);
}

TEST_P(Hot, BoolBecomesMask) {
  const uint8_t in[] = {0, 1, 255, 0};
  float out[4];
  hot().to_float(out, in, 1, 4, PF_BOOL8);
  EXPECT_EQ(out[0], -INFINITY);
  EXPECT_EQ(out[1], 0);
  EXPECT_EQ(out[2], 0);
  hot().to_float(out, in, 2, 2, PF_BOOL8);
  EXPECT_EQ(out[1], 0);
}

TEST(Cpu, LevelIsKnown) {
  uint32_t isa = pf_cpu_isa();
  EXPECT_GE(isa, 2u);
  EXPECT_LE(isa, 4u);
  EXPECT_EQ(pf_hot_for(2), &pf_hot_v2);
  EXPECT_EQ(pf_hot_for(9), &pf_hot_v4);
}

} // namespace
