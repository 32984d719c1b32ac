//===- WindowsTest.cpp - Merged windows of patches, FlowCut's columns -----===//
//
// Against double-precision loops over all pairs, written from the formulas.
//
//===----------------------------------------------------------------------===//

#include "windows.h"
#include "flow.h"
#include "rows.h"

#include "gtest/gtest.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

namespace {

using Floats = std::vector<float>;
using Ints = std::vector<int64_t>;

struct Images {
  pf_windows windows;
  Floats x;
  std::vector<uint8_t> protect;

  Images(int64_t b, int64_t skip, int64_t grid, int64_t height, int64_t width,
         int64_t d, double least, uint32_t seed) {
    const int64_t n = skip + grid * grid;
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(.3F, 1);
    x.resize(b * n * d);
    for (float &value : x)
      value = normal(random);
    protect.resize(b * n);
    windows = {x.data(), protect.data(), b,      n,     d,
               skip,     grid,           height, width, least};
  }
  float *row(int64_t b, int64_t i) {
    return x.data() + (b * windows.n + i) * windows.d;
  }
  /// Rows of a window's patches.
  Ints patches(int64_t window) const {
    const int64_t across = windows.grid / windows.width;
    Ints rows;
    for (int64_t r = 0; r < windows.height; ++r)
      for (int64_t c = 0; c < windows.width; ++c)
        rows.push_back(windows.skip +
                       (window / across * windows.height + r) * windows.grid +
                       window % across * windows.width + c);
    return rows;
  }
  double cosine(int64_t b, int64_t i, int64_t j) {
    double product = 0, left = 0, right = 0;
    for (int64_t c = 0; c < windows.d; ++c) {
      const double p = row(b, i)[c], q = row(b, j)[c];
      product += p * q;
      left += p * p;
      right += q * q;
    }
    return left == 0 || right == 0 ? 0 : product / std::sqrt(left * right);
  }
  double similarity(int64_t b, int64_t window) {
    double sum = 0;
    const Ints rows = patches(window);
    for (int64_t i : rows)
      for (int64_t j : rows)
        sum += i == j ? 0 : cosine(b, i, j);
    return sum / static_cast<double>(rows.size() * (rows.size() - 1));
  }
  void makeEqual(int64_t b, int64_t window) {
    const Ints rows = patches(window);
    for (int64_t i : rows)
      std::copy_n(row(b, rows[0]), windows.d, row(b, i));
  }
};

TEST(Windows, SimilarityIsTheMeanOverPairs) {
  for (auto [height, width, grid] :
       {std::array<int64_t, 3>{3, 3, 6}, {1, 2, 4}, {2, 1, 4}, {5, 5, 5}}) {
    Images images(2, 1, grid, height, width, 7, 0, 3);
    std::fill_n(images.row(1, 2), 7, 0.0F); // similar to nothing
    const int64_t count = pf_window_count(&images.windows);
    EXPECT_EQ(count, grid / height * (grid / width));
    std::vector<double> found(count), scratch(7);
    for (int64_t b = 0; b < 2; ++b) {
      pf_window_similarity(&images.windows, b, found.data(), scratch.data());
      for (int64_t w = 0; w < count; ++w)
        EXPECT_NEAR(found[w], images.similarity(b, w), 1e-12);
    }
  }
}

TEST(Windows, AsManyAsInTheImageWithTheFewest) {
  Images images(3, 1, 6, 3, 3, 5, .99, 5);
  images.makeEqual(0, 1);
  images.makeEqual(0, 3);
  images.makeEqual(1, 2);
  images.makeEqual(2, 0);
  images.makeEqual(2, 2);
  Ints order(3 * 4);
  EXPECT_EQ(pf_rank_windows(&images.windows, order.data()), 1);
  // Of equal ones the first; the rest cannot be merged and comes in order.
  EXPECT_EQ(order, (Ints{1, 3, 0, 2, 2, 0, 1, 3, 0, 2, 1, 3}));
  // One image alone merges both of its windows.
  images.windows.b = 1;
  EXPECT_EQ(pf_rank_windows(&images.windows, order.data()), 2);
  images.protect[1 + 3] = 1; // a corner of window 1
  EXPECT_EQ(pf_rank_windows(&images.windows, order.data()), 1);
  EXPECT_EQ(order[0], 3);
  images.windows.b = 0;
  EXPECT_EQ(pf_rank_windows(&images.windows, order.data()), 0);
}

TEST(Windows, WhatIsNoNumberIsNotMerged) {
  const float nan = std::nanf("");
  const float inf = std::numeric_limits<float>::infinity();
  for (float bad : {nan, inf, -inf}) {
    Images images(1, 0, 4, 2, 2, 3, -1, 7);
    images.row(0, 0)[1] = bad;
    Ints order(4);
    EXPECT_EQ(pf_rank_windows(&images.windows, order.data()), 3);
    EXPECT_EQ(order[3], 0);
  }
}

TEST(Windows, EqualPatchesAreAlikeToOne) {
  Images images(1, 0, 12, 3, 3, 33, 1, 11);
  for (int64_t w = 0; w < 16; ++w)
    images.makeEqual(0, w);
  Ints order(16);
  EXPECT_EQ(pf_rank_windows(&images.windows, order.data()), 16);
  Images others(1, 0, 12, 3, 3, 33, 1, 11);
  EXPECT_EQ(pf_rank_windows(&others.windows, order.data()), 0);
}

TEST(Windows, MergedFirstThenTheOthersInOrder) {
  Images images(2, 1, 6, 3, 3, 4, .999, 13);
  images.makeEqual(0, 3);
  images.makeEqual(0, 0);
  images.row(0, 1)[0] += .05F; // window 0 is a little less alike
  images.makeEqual(1, 1);
  images.makeEqual(1, 2);
  Ints order(2 * 4);
  ASSERT_EQ(pf_rank_windows(&images.windows, order.data()), 2);
  const int64_t m = 37 - 2 * 8;
  Floats y(2 * m * 4);
  Ints rows(2 * m);
  ASSERT_TRUE(pf_merge_windows(&images.windows, order.data(), 2, y.data(),
                               rows.data()));
  const int64_t merged[2][2] = {{3, 0}, {1, 2}};
  for (int64_t b = 0; b < 2; ++b) {
    Ints expected = {0};
    std::vector<bool> gone(37);
    for (int64_t w : merged[b]) {
      expected.push_back(images.patches(w)[0]);
      for (int64_t i : images.patches(w))
        gone[i] = true;
    }
    for (int64_t i = 1; i < 37; ++i)
      if (!gone[i])
        expected.push_back(i);
    ASSERT_EQ(Ints(rows.begin() + b * m, rows.begin() + (b + 1) * m), expected);
    for (int64_t k = 0; k < m; ++k)
      for (int64_t c = 0; c < 4; ++c) {
        double value = images.row(b, expected[k])[c];
        if (k == 1 || k == 2) {
          value = 0;
          for (int64_t i : images.patches(merged[b][k - 1]))
            value += images.row(b, i)[c] / 9.0;
        }
        EXPECT_NEAR(y[(b * m + k) * 4 + c], value, 1e-6);
      }
  }
  // Nothing merged is what there was.
  Floats same(images.x.size());
  Ints all(2 * 37);
  ASSERT_TRUE(pf_merge_windows(&images.windows, order.data(), 0, same.data(),
                               all.data()));
  EXPECT_EQ(same, images.x);
}

//===----------------------------------------------------------------------===//
// FlowCut in a language model
//===----------------------------------------------------------------------===//

/// Row i of a head, rotated: pairs of halves or of neighbours.
std::vector<double> rotated(const float *x, int64_t d, int64_t dim, bool pairs,
                            const float *cos, const float *sin, int64_t width) {
  std::vector<double> y(x, x + d);
  for (int64_t c = 0; c < dim / 2; ++c) {
    const int64_t i = pairs ? 2 * c : c, j = pairs ? 2 * c + 1 : c + dim / 2;
    const int64_t at = width == dim ? i : c, other = width == dim ? j : c;
    y[i] = double(x[i]) * cos[at] - double(x[j]) * sin[at];
    y[j] = double(x[j]) * cos[other] + double(x[i]) * sin[other];
  }
  return y;
}

TEST(Flow, ColumnsAreReadByTheAnchorAlone) {
  const int64_t n = 11, heads = 4, kvHeads = 2, d = 6;
  std::mt19937 random(17);
  std::normal_distribution<float> normal;
  Floats q(heads * n * d), k(kvHeads * n * d), v(kvHeads * n * d);
  for (Floats *list : {&q, &k, &v})
    for (float &value : *list)
      value = normal(random);
  const std::vector<uint8_t> columns = {0, 0, 1, 1, 0, 1, 1, 1, 0, 0, 0};
  for (int64_t dim : {0, 4, 6})
    for (bool pairs : {false, true})
      for (bool wide : {false, true}) {
        const int64_t width = wide ? dim : dim / 2, anchor = 9;
        Floats cos(n * width + 1), sin(n * width + 1);
        for (size_t i = 0; i < cos.size(); ++i) {
          cos[i] = normal(random);
          sin[i] = normal(random);
        }
        pf_flow flow{};
        flow.q = {q.data(), n * d, d};
        flow.k = {k.data(), n * d, d};
        flow.v = {v.data(), n * d, d};
        flow.rotary = {cos.data(), sin.data(), width, dim, pairs};
        flow.n = n;
        flow.heads = heads;
        flow.kv_heads = kvHeads;
        flow.d = d;
        flow.scale = .7F;
        flow.value_scale = .4F;
        flow.anchor = anchor;
        flow.columns = columns.data();
        auto turn = [&](const float *x, int64_t i) {
          return rotated(x, d, dim, pairs, cos.data() + i * width,
                         sin.data() + i * width, width);
        };
        auto shares = [&](const Floats &left, const Floats &right, bool rotate,
                          double scale, int64_t count) {
          std::vector<double> mean(n);
          for (int64_t h = 0; h < count; ++h) {
            const int64_t g = h / (count / kvHeads);
            std::vector<double> weight(n);
            double sum = 0;
            for (int64_t i = 0; i < n; ++i) {
              if (!columns[i])
                continue;
              const float *a = left.data() + (h * n + anchor) * d;
              const float *b = right.data() + (g * n + i) * d;
              std::vector<double> x(a, a + d), y(b, b + d);
              if (rotate) {
                x = turn(a, anchor);
                y = turn(b, i);
              }
              const double product =
                  std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
              sum += weight[i] = std::exp(product * scale);
            }
            for (int64_t i = 0; i < n; ++i)
              mean[i] += weight[i] / sum / static_cast<double>(count);
          }
          return mean;
        };
        const auto r = shares(q, k, true, .7F, heads);
        const auto m = shares(v, v, false, .4F, kvHeads);
        Floats score(n), given(n);
        ASSERT_TRUE(pf_flow_score(&flow, score.data(), given.data()));
        for (int64_t i = 0; i < n; ++i) {
          double size = 0;
          for (int64_t c = 0; c < d; ++c)
            size += std::abs((double(v[i * d + c]) + v[(n + i) * d + c]) / 2);
          EXPECT_NEAR(given[i], r[i], 1e-6);
          EXPECT_NEAR(score[i], columns[i] ? (r[i] + m[i]) * size / 2 : 0,
                      1e-6);
        }
      }
}

TEST(Flow, NoColumnsNoScore) {
  const Floats x(2 * 4, 1.0F);
  const std::vector<uint8_t> none(2);
  pf_flow flow{};
  flow.q = flow.k = flow.v = {x.data(), 0, 4};
  flow.n = 2;
  flow.heads = flow.kv_heads = 1;
  flow.d = 4;
  flow.scale = flow.value_scale = 1;
  flow.anchor = 1;
  flow.columns = none.data();
  Floats score = {9, 9}, shares = {9, 9};
  ASSERT_TRUE(pf_flow_score(&flow, score.data(), shares.data()));
  EXPECT_EQ(score, Floats(2));
  EXPECT_EQ(shares, Floats(2));
}

TEST(Rows, ColumnsStayUpToTheTarget) {
  const float nan = std::nanf("");
  const float score[] = {0, 1, 5, 2, 4, 3, 0, 9, 9, nan, 9, 0};
  const uint8_t columns[] = {0, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 0};
  uint8_t protect[] = {1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1};
  pf_row_set rows{};
  rows.b = 1;
  rows.n = 6;
  rows.segments = 1;
  uint8_t kept[12];
  auto keep = [&](int64_t target) {
    const int64_t count =
        pf_keep_columns(&rows, score, columns, protect, target, kept);
    std::string text;
    for (int64_t i = 0; i < rows.b * rows.n; ++i)
      text += kept[i] ? '1' : '0';
    for (int64_t b = 0; b < rows.b; ++b)
      EXPECT_EQ(std::count(kept + b * 6, kept + b * 6 + 6, 1), count);
    return text;
  };
  // 1 is protected and counts.
  EXPECT_EQ(keep(1), "110001");
  EXPECT_EQ(keep(2), "111001");
  EXPECT_EQ(keep(3), "111011");
  EXPECT_EQ(keep(9), "111111");
  // The second prompt has three of its own, and one more row that stays: the
  // first keeps another. No number stays; of equal scores the first does.
  rows.b = 2;
  EXPECT_EQ(keep(1), "111001"
                     "110101");
  EXPECT_EQ(keep(2), "111011"
                     "111101");
  rows.b = 0;
  EXPECT_EQ(pf_keep_columns(&rows, score, columns, protect, 1, kept), 0);
}

} // namespace
