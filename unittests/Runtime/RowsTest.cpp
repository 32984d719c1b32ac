//===- RowsTest.cpp - Which rows stay -------------------------------------===//
//
// rows.c against its rules, and TOKEN_SCORE against its definition.
//
//===----------------------------------------------------------------------===//

#include "rows.h"
#include "Reference.h"
#include "flow.h"
#include "gtest/gtest.h"

#include <algorithm>
#include <cmath>
#include <limits>

using namespace ref;

namespace {
using Bytes = std::vector<uint8_t>;
using Ints = std::vector<int64_t>;

pf_row_set rowSet(int64_t b, int64_t n) {
  pf_row_set rows{};
  rows.b = b;
  rows.n = n;
  rows.segments = 1;
  return rows;
}

/// The rows that stay of the first entry.
Ints keep(const pf_row_set &rows, const std::vector<float> &score,
          const Bytes &protect, double share, Ints *counts = nullptr,
          int64_t topk = 0, bool down = false) {
  Bytes kept(rows.b * rows.n, 7);
  Ints segments(rows.segments);
  pf_keep_rule rule{};
  rule.ppm = std::llround(share * 1e6);
  rule.topk = topk;
  rule.down = down;
  int64_t count = pf_keep_rows(&rows, score.data(), protect.data(), &rule,
                               kept.data(), segments.data());
  Ints found;
  for (int64_t i = 0; i < rows.n; ++i)
    if (kept[i])
      found.push_back(i);
  for (int64_t b = 0; b < rows.b; ++b)
    EXPECT_EQ(count, std::count(kept.begin() + b * rows.n,
                                kept.begin() + (b + 1) * rows.n, 1));
  if (counts)
    *counts = segments;
  return found;
}
} // namespace

TEST(Rows, TheBestStay) {
  const std::vector<float> score = {.1f, .4f, .2f, .2f, .2f, 0};
  const Bytes none(6);
  EXPECT_EQ(keep(rowSet(1, 6), score, none, .5),
            (Ints{1, 2, 3})); // ties: first
  EXPECT_EQ(keep(rowSet(1, 6), score, none, 1), (Ints{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(keep(rowSet(1, 6), score, none, 1e-6), (Ints{1})); // one at least
  EXPECT_EQ(keep(rowSet(1, 0), {}, {}, .5), Ints{});
  // 0.7 of 10 is 7, not 8 by a rounding error.
  EXPECT_EQ(
      keep(rowSet(1, 10), std::vector<float>(10, 1), Bytes(10), .7).size(), 7u);
}

TEST(Rows, TopK) {
  const std::vector<float> score = {5, 1, 4, 2, 3, 0};
  const Bytes none(6), two = {0, 1, 0, 0, 0, 1};
  auto topk = [&](int64_t count, double share, const Bytes &protect) {
    return keep(rowSet(1, 6), score, protect, share, nullptr, count,
                /*down=*/true);
  };
  EXPECT_EQ(topk(2, 1, none), (Ints{0, 2}));
  EXPECT_EQ(topk(6, .1, none).size(), 6u); // no more rows than that: all
  EXPECT_EQ(topk(5, .4, none), (Ints{0, 2}));
  EXPECT_EQ(topk(1, .4, none), Ints{0});
  EXPECT_EQ(topk(0, .3, none), Ints{0}); // floor(1.8)
  EXPECT_EQ(topk(0, .1, none), Ints{});
  EXPECT_EQ(topk(3, 1, two), (Ints{0, 1, 5})); // protected ones count
  EXPECT_EQ(topk(1, 1, two), (Ints{1, 5}));    // and are never dropped
}

TEST(Rows, ScoresThatAreNoNumbers) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  constexpr float inf = std::numeric_limits<float>::infinity();
  const Bytes none(4);
  const std::vector<float> score = {-1, nan, -inf, -2};
  EXPECT_EQ(keep(rowSet(1, 4), score, none, 1, nullptr, 1, true), Ints{1});
  EXPECT_EQ(keep(rowSet(1, 4), score, none, 1, nullptr, 3, true),
            (Ints{0, 1, 3}));
  // As many as were asked for, or layers would keep different numbers.
  EXPECT_EQ(keep(rowSet(1, 4), {-inf, -inf, -inf, -inf}, none, .5),
            (Ints{0, 1}));
}

TEST(Rows, PartsOfPrompts) {
  pf_row_set rows = rowSet(1, 7);
  const Ints starts = {0, 3, 7}, parts = {2, 9, 0, 2};
  rows.starts = starts.data();
  rows.segments = 2;
  rows.parts = parts.data();
  pf_row_error error;
  ASSERT_TRUE(pf_check_row_set(&rows, &error));
  Bytes protect(7);
  pf_protect_ends(&rows, 3, 4, protect.data()); // rows 0..2 of a prompt
  EXPECT_EQ(protect, (Bytes{1, 0, 0, 1, 1, 1, 1}));
  protect.assign(7, 0);
  pf_protect_ends(&rows, 0, 4, protect.data()); // two follow the second part
  EXPECT_EQ(protect, (Bytes{0, 0, 0, 0, 0, 1, 1}));
  protect.assign(7, 0);
  const int64_t range[1][2] = {{3, 3}};
  pf_protect_rows(&rows, range, 1, protect.data());
  EXPECT_EQ(protect, (Bytes{0, 1, 0, 0, 0, 0, 1}));
  // What nothing follows is the question.
  const Ints last = {2, 0, INT64_MAX / 2, 1};
  rows.parts = last.data();
  protect.assign(7, 0);
  ASSERT_TRUE(pf_check_row_set(&rows, &error));
  pf_protect_ends(&rows, 1, 1, protect.data());
  EXPECT_EQ(protect, (Bytes{1, 1, 1, 0, 0, 0, 0}));
  for (int64_t bad : {int64_t(-1), INT64_MAX}) {
    const Ints wrong = {0, 0, 0, bad};
    rows.parts = wrong.data();
    EXPECT_FALSE(pf_check_row_set(&rows, &error));
    EXPECT_NE(std::string(error.text).find("segment 1"), std::string::npos);
  }
}

TEST(Rows, ProtectedRowsStayWhateverTheirScore) {
  const std::vector<float> score = {.1f, .4f, .3f, .2f, 0, -1};
  EXPECT_EQ(keep(rowSet(1, 6), score, {0, 0, 0, 0, 1, 1}, .5), (Ints{1, 4, 5}));
  EXPECT_EQ(keep(rowSet(1, 6), score, {0, 0, 1, 1, 1, 1}, .5),
            (Ints{2, 3, 4, 5})); // more than half
  EXPECT_EQ(keep(rowSet(1, 6), score, Bytes(6, 1), .1).size(), 6u);
}

TEST(Rows, WhatIsNoNumberStays) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(keep(rowSet(1, 4), {.1f, nan, .9f, .2f}, Bytes(4), .25), (Ints{1}));
}

TEST(Rows, PaddingDoesNotCountAndGoesFirst) {
  pf_row_set rows = rowSet(2, 6);
  const Bytes alive = {0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
  rows.alive = alive.data();
  const std::vector<float> score = {0, 0, 0, 0, .3f, .7f, 1, 2, 3, 4, 5, 6};
  // Entry 1 keeps 3 of 6; entry 0 keeps 1 of 2 and fills up with padding.
  EXPECT_EQ(keep(rows, score, Bytes(12), .5), (Ints{0, 1, 5}));
  Bytes protect(12);
  pf_protect_ends(&rows, /*bos=*/1, /*last=*/1, protect.data());
  EXPECT_EQ(protect, (Bytes{0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1}));
}

TEST(Rows, EverySegmentByItself) {
  pf_row_set rows = rowSet(1, 8);
  const Ints starts = {0, 3, 3, 8};
  rows.starts = starts.data();
  rows.segments = 3;
  pf_row_error error;
  ASSERT_TRUE(pf_check_row_set(&rows, &error));
  Bytes protect(8);
  pf_protect_ends(&rows, 0, 1, protect.data());
  EXPECT_EQ(protect, (Bytes{0, 0, 1, 0, 0, 0, 0, 1}));
  const int64_t second[1][2] = {{1, 1}};
  pf_protect_rows(&rows, second, 1, protect.data());
  EXPECT_EQ(protect, (Bytes{0, 1, 1, 0, 1, 0, 0, 1}));
  Ints counts;
  EXPECT_EQ(keep(rows, {9, 0, 0, 1, 2, 3, 4, 5}, {0, 0, 1, 0, 0, 0, 0, 1}, .5,
                 &counts),
            (Ints{0, 2, 5, 6, 7}));
  EXPECT_EQ(counts, (Ints{2, 0, 3}));
  const Ints wrong = {0, 4, 3, 8};
  rows.starts = wrong.data();
  EXPECT_FALSE(pf_check_row_set(&rows, &error));
  EXPECT_NE(std::string(error.text).find("expected ascending"),
            std::string::npos);
}

TEST(Rows, FoundWhereTheyAre) {
  const Ints rows = {0, 3, 5, 9, 0, 2, 5, 9};
  pf_row_error error;
  Ints index(2);
  const Ints wanted = {-1, 5};
  EXPECT_TRUE(pf_find_rows(rows.data(), 2, 4, 10, wanted.data(), 2,
                           index.data(), &error));
  EXPECT_EQ(index, (Ints{3, 2}));
  for (int64_t bad : {4, 3, 10, -11}) {
    EXPECT_FALSE(
        pf_find_rows(rows.data(), 2, 4, 10, &bad, 1, index.data(), &error));
    EXPECT_NE(error.text[0], '\0');
  }
}

TEST(Rows, ThresholdsDropWhatIsBelowBoth) {
  const float nan = std::nanf("");
  const float score[] = {5, .1F, .1F, .1F, nan, .1F, 1};
  const float peak[] = {.1F, .1F, .5F, .1F, .1F, .1F, .1F};
  const uint8_t columns[] = {1, 1, 1, 1, 0, 1, 0};
  const uint8_t protect[] = {0, 1, 0, 0, 0, 0, 1};
  const pf_row_set rows{1, 7, nullptr, nullptr, 1};
  uint8_t kept[7];
  auto keep = [&](double share, double most) {
    EXPECT_EQ(pf_keep_above(&rows, score, peak, columns, protect,
                            std::llround(share * 1e12),
                            std::llround(most * 1e12), kept),
              std::count(kept, kept + 7, 1));
    std::string text;
    for (uint8_t k : kept)
      text += k ? '1' : '0';
    return text;
  };
  // 0 has a great score, 2 a great peak, 4 no number, 1 and 6 are protected.
  EXPECT_EQ(keep(.1, .3), "1110101");
  EXPECT_EQ(keep(.1, .9), "1100101");
  EXPECT_EQ(keep(1, .9), "0100101");
  EXPECT_EQ(keep(0, 1), "1111111");
  EXPECT_EQ(keep(1, 0), "1111111");
}

TEST(Rows, PatchesGoAsTheirEntropySays) {
  const std::vector<float> even(16, 1.0F / 16);
  std::vector<float> one(16, 0.0F);
  one[5] = 1; // 0 ln 0 is 0
  for (int64_t left : {2, 4, 20}) {
    EXPECT_EQ(pf_flow_drop(even.data(), 16, 4, left), 0);
    EXPECT_EQ(pf_flow_drop(one.data(), 16, 4, left),
              std::llrint(12 / std::sqrt(static_cast<double>(left))));
  }
  EXPECT_EQ(pf_flow_drop(even.data(), 16, 4, 0), 12);
  EXPECT_EQ(pf_flow_drop(one.data(), 16, 16, 0), 0);
  EXPECT_EQ(pf_flow_drop(one.data(), 16, 17, 2), 0);
  EXPECT_EQ(pf_flow_drop(one.data(), 1, 1, 2), 0);
  std::vector<float> halves(16, 0.0F);
  halves[0] = halves[1] = .5F; // H = ln 2, ln 16 = 4 ln 2
  EXPECT_EQ(pf_flow_drop(halves.data(), 16, 0, 1), 15);
  const std::vector<float> nothing(16, std::nanf(""));
  EXPECT_EQ(pf_flow_drop(nothing.data(), 16, 4, 2), 0);
  EXPECT_EQ(pf_flow_drop(nothing.data(), 16, 4, 0), 12);
}

TEST(Rows, PatchesStayByScoreAndProtection) {
  const pf_row_set rows = rowSet(2, 6);
  const float score[] = {0, 1, 5, 2, 4, 3, 0, 5, 5, 5, 5, 9};
  const float shares[] = {0, .2F, .2F, .2F, .2F, .2F,
                          0, .2F, .2F, .2F, .2F, .2F};
  const uint8_t protect[] = {1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0};
  uint8_t kept[12];
  auto keep = [&](int64_t target, int64_t left) {
    std::string text;
    EXPECT_EQ(
        pf_keep_patches(&rows, score, shares, protect, target, left, 1, kept),
        std::count(kept, kept + 6, 1));
    for (uint8_t k : kept)
      text += k ? '1' : '0';
    return text;
  };
  EXPECT_EQ(keep(3, 0), "111010"
                        "111001"); // of equal ones the first
  EXPECT_EQ(keep(3, 2), "111111"
                        "111111");
  EXPECT_EQ(keep(9, 0), "111111"
                        "111111");
}

TEST(Rows, MarkedRowsScoreByTheirSumAndTheirGreatest) {
  Problem<8, 8, 16, 16, float, PREFILL_TILE_CAUSAL> p;
  p.b = 2;
  p.s = p.t = 150;
  p.build();
  p.out[PREFILL_OUT_TOKEN_SCORE].make({p.b, p.t}, kDLFloat, 32);
  p.out[PREFILL_OUT_TOKEN_PEAK].make({p.b, p.t}, kDLFloat, 32);
  p.in[PREFILL_IN_SCORE_ROWS].make({p.b, p.s}, kDLUInt, 8);
  for (int64_t b = 0; b < p.b; ++b)
    for (int64_t i = 0; i < p.s; ++i)
      p.in[PREFILL_IN_SCORE_ROWS].template at<uint8_t>({b, i}) =
          b == 1 && i >= 40 && i % 3 != 0;
  ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
  std::vector<double> sum(p.t), peak(p.t);
  for (int64_t i = 40; i < p.s; ++i) {
    std::vector<double> mean(p.t);
    for (int64_t h = 0; h < p.hq; ++h) {
      std::vector<double> weight(p.t);
      double total = 0;
      for (int64_t j = 0; j <= i; ++j) {
        for (int64_t c = 0; c < 8; ++c)
          weight[j] += static_cast<double>(p.q(1, h, i, c)) *
                       p.k(1, h / (p.hq / p.hk), j, c);
        total += weight[j] = std::exp(weight[j] / std::sqrt(8.0));
      }
      for (int64_t j = 0; j < p.t; ++j)
        mean[j] += weight[j] / total / static_cast<double>(p.hq);
    }
    for (int64_t j = 0; i % 3 != 0 && j < p.t; ++j) {
      sum[j] += mean[j];
      peak[j] = std::max(peak[j], mean[j]);
    }
  }
  for (int64_t j = 0; j < p.t; ++j) {
    EXPECT_EQ((p.out[PREFILL_OUT_TOKEN_SCORE].template at<float>({0, j})), 0);
    EXPECT_EQ((p.out[PREFILL_OUT_TOKEN_PEAK].template at<float>({0, j})), 0);
    EXPECT_NEAR((p.out[PREFILL_OUT_TOKEN_SCORE].template at<float>({1, j})),
                sum[j], 1e-5)
        << j;
    EXPECT_NEAR((p.out[PREFILL_OUT_TOKEN_PEAK].template at<float>({1, j})),
                peak[j], 1e-6)
        << j;
  }
  // Neither alone.
  p.out[PREFILL_OUT_TOKEN_PEAK].absent = true;
  EXPECT_EQ(p.run(), PREFILL_INVALID_ARGUMENT);
  EXPECT_NE(std::string(p.context.message).find("SCORE_ROWS: expected exactly"),
            std::string::npos)
      << p.context.message;
}

TEST(Rows, TokenScoreIsTheLastRowsAttention) {
  Problem<8, 8, 16, 16, float, PREFILL_TILE_CAUSAL> p;
  p.b = 2;
  p.s = p.t = 70;
  p.build();
  p.out[PREFILL_OUT_TOKEN_SCORE].make({p.b, p.t}, kDLFloat, 32);
  ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
  for (int64_t b = 0; b < p.b; ++b) {
    std::vector<double> expected(p.t);
    for (int64_t h = 0; h < p.hq; ++h) {
      std::vector<double> weight(p.t);
      double most = -INFINITY, sum = 0;
      for (int64_t j = 0; j < p.t; ++j) {
        for (int64_t c = 0; c < 8; ++c)
          weight[j] += static_cast<double>(p.q(b, h, p.s - 1, c)) *
                       p.k(b, h / (p.hq / p.hk), j, c);
        weight[j] /= std::sqrt(8.0);
        most = std::max(most, weight[j]);
      }
      for (double &w : weight)
        sum += w = std::exp(w - most);
      for (int64_t j = 0; j < p.t; ++j)
        expected[j] += weight[j] / sum / p.hq;
    }
    for (int64_t j = 0; j < p.t; ++j)
      EXPECT_NEAR((p.out[PREFILL_OUT_TOKEN_SCORE].template at<float>({b, j})),
                  expected[j], 1e-6)
          << b << " " << j;
  }
}

TEST(Rows, TokenScoreOfRowsAtPositions) {
  // Rows anywhere, the last one behind keys that it does not see.
  for (int64_t last : {0, 31, 68, 69}) {
    Problem<8, 8, 16, 16, float, PREFILL_TILE_CAUSAL> p;
    const std::vector<int64_t> positions = {3, 4, 5, 60, 61, 20, last};
    p.b = 2;
    p.s = static_cast<int64_t>(positions.size());
    p.t = 70;
    p.build();
    Tensor &given = p.in[PREFILL_IN_Q_POSITIONS];
    given.make({p.s}, kDLInt, 64);
    for (int64_t i = 0; i < p.s; ++i)
      given.at<int64_t>({i}) = positions[i];
    p.out[PREFILL_OUT_TOKEN_SCORE].make({p.b, p.t}, kDLFloat, 32);
    ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
    for (int64_t b = 0; b < p.b; ++b) {
      std::vector<double> expected(p.t);
      for (int64_t h = 0; h < p.hq; ++h) {
        std::vector<double> weight(p.t);
        double sum = 0;
        for (int64_t j = 0; j <= last; ++j) {
          for (int64_t c = 0; c < 8; ++c)
            weight[j] += static_cast<double>(p.q(b, h, p.s - 1, c)) *
                         p.k(b, h / (p.hq / p.hk), j, c);
          sum += weight[j] = std::exp(weight[j] / std::sqrt(8.0));
        }
        for (int64_t j = 0; j < p.t; ++j)
          expected[j] += weight[j] / sum / static_cast<double>(p.hq);
      }
      for (int64_t j = 0; j < p.t; ++j)
        EXPECT_NEAR((p.out[PREFILL_OUT_TOKEN_SCORE].template at<float>({b, j})),
                    expected[j], 1e-6)
            << last << " " << b << " " << j;
    }
    // Which row is the last one of several prompts is another matter.
    p.in[PREFILL_IN_SEGMENT_STARTS].make({2}, kDLInt, 64);
    p.in[PREFILL_IN_SEGMENT_STARTS].at<int64_t>({0}) = 0;
    p.in[PREFILL_IN_SEGMENT_STARTS].at<int64_t>({1}) = p.t;
    EXPECT_EQ(p.run(), PREFILL_INVALID_ARGUMENT);
    EXPECT_NE(std::string(p.context.message)
                  .find("TOKEN_SCORE: with input Q_POSITIONS only without"),
              std::string::npos)
        << p.context.message;
  }
}
