//===- RaggedTest.cpp - Chosen query rows and packs of prompts ------------===//

#include "Reference.h"
#include "gtest/gtest.h"

using namespace ref;

namespace {

constexpr unsigned Causal = PREFILL_TILE_CAUSAL;

/// Sets an int64 input of one dimension, or two with `batches`.
template <class P>
void setInts(P &p, int slot, const std::vector<int64_t> &values,
             int64_t batches = 0) {
  int64_t n = static_cast<int64_t>(values.size());
  if (!batches) {
    p.in[slot].make({n}, kDLInt, 64);
    for (int64_t i = 0; i < n; ++i)
      p.in[slot].template at<int64_t>({i}) = values[i];
    return;
  }
  p.in[slot].make({batches, n / batches}, kDLInt, 64);
  for (int64_t i = 0; i < n; ++i)
    p.in[slot].template at<int64_t>({i / (n / batches), i % (n / batches)}) =
        values[i];
}

/// Tables of `rows` positions; `element` of the reference rotates alike, with
/// the position that table row p stands for.
template <class P>
void rotate(P &p, int64_t rows, const std::function<double(int64_t)> &place) {
  Tensor &cosine = p.in[PREFILL_IN_COS], &sine = p.in[PREFILL_IN_SIN];
  cosine.make({rows, 4}, kDLFloat, 32);
  sine.make({rows, 4}, kDLFloat, 32);
  auto angle = [place](int64_t pos, int64_t i) {
    return place(pos) * std::pow(100.0, -0.25 * static_cast<double>(i));
  };
  for (int64_t pos = 0; pos < rows; ++pos)
    for (int64_t i = 0; i < 4; ++i) {
      narrow(std::cos(angle(pos, i)), cosine.at<float>({pos, i}));
      narrow(std::sin(angle(pos, i)), sine.at<float>({pos, i}));
    }
  p.element = [&p, angle](bool ofQuery, int64_t bi, int64_t h, int64_t n,
                          int64_t c) {
    auto x = [&](int64_t e) {
      return ofQuery ? widen(p.q(bi, h, n, e)) : widen(p.k(bi, h, n, e));
    };
    double a = angle(ofQuery ? p.position(bi, n) : n, c % 4);
    return x(c) * std::cos(a) + (c < 4 ? -x(c + 4) : x(c - 4)) * std::sin(a);
  };
}

template <class P>
void expectClose(P &p, double tolerance = 2e-5) {
  ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
  EXPECT_LT(p.error(), tolerance);
}

TEST(Ragged, PositionsInAnyOrder) {
  for (int layout : {PREFILL_BHSD, PREFILL_BSHD})
    for (int64_t b : {1, 2}) {
      Problem<8, 8, 16, 16, float, Causal> p;
      p.b = b;
      p.s = 24;
      p.t = 70;
      p.qLayout = p.oLayout = layout;
      p.rotary = 1;
      p.rotaryDim = 8;
      p.build();
      p.out[PREFILL_OUT_LSE].make({p.b, p.hq, p.s}, kDLFloat, 32);
      // A long run that crosses tiles, single rows, one twice, the last.
      std::vector<int64_t> rows;
      for (int64_t i = 0; i < 19; ++i)
        rows.push_back(30 + i);
      rows.insert(rows.end(), {5, 4, 4, 69, 0});
      setInts(p, PREFILL_IN_Q_POSITIONS, rows);
      rotate(p, 80, [](int64_t pos) { return static_cast<double>(pos); });
      expectClose(p);
      // The same, a list for every batch entry.
      std::vector<int64_t> lists;
      for (int64_t i = 0; i < b; ++i) {
        lists.insert(lists.end(), rows.begin(), rows.end());
        std::rotate(rows.begin(), rows.begin() + 7, rows.end());
      }
      setInts(p, PREFILL_IN_Q_POSITIONS, lists, b);
      expectClose(p);
    }
}

TEST(Ragged, PositionsBesideMasks) {
  Problem<8, 4, 16, 16, float,
          Causal | PREFILL_TILE_KEY_MASK | PREFILL_TILE_BIAS |
              PREFILL_TILE_SEGMENTS>
      p;
  p.b = 2;
  p.s = 5;
  p.t = 50;
  p.build();
  setInts(p, PREFILL_IN_Q_POSITIONS, {49, 3, 4, 20, 21});
  p.in[PREFILL_IN_KEY_MASK].make({2, 50}, kDLInt, 64);
  p.in[PREFILL_IN_BIAS].make({2, 1, 5, 50}, kDLFloat, 32);
  p.in[PREFILL_IN_Q_SEGMENT].make({2, 5}, kDLInt, 64);
  p.in[PREFILL_IN_K_SEGMENT].make({2, 50}, kDLInt, 64);
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t j = 0; j < 50; ++j) {
      p.in[PREFILL_IN_KEY_MASK].at<int64_t>({b, j}) = j > 2 * b || j == 0;
      p.in[PREFILL_IN_K_SEGMENT].at<int64_t>({b, j}) = j < 30;
      for (int64_t i = 0; i < 5; ++i) {
        p.in[PREFILL_IN_BIAS].at<float>({b, 0, i, j}) =
            static_cast<float>((i * 7 + j * 3 + b) % 11) / 4;
        p.in[PREFILL_IN_Q_SEGMENT].at<int64_t>({b, i}) = i != 0;
      }
    }
  expectClose(p);
}

TEST(Ragged, PacksArePromptsOfTheirOwn) {
  // Lengths around a tile, an empty prompt among them.
  const std::vector<int64_t> starts = {0, 1, 16, 33, 33, 35, 99, 100};
  Problem<8, 8, 16, 16, float, Causal> p;
  p.s = p.t = 100;
  p.rotary = 1;
  p.rotaryDim = 8;
  p.build();
  p.out[PREFILL_OUT_LSE].make({1, p.hq, p.s}, kDLFloat, 32);
  p.out[PREFILL_OUT_DENSITY].make({1, p.hq}, kDLFloat, 32);
  p.out[PREFILL_OUT_ROTATED_K].make({1, p.hk, p.t, 8}, kDLFloat, 32);
  p.out[PREFILL_OUT_BLOCK_MAP].make({1, p.hq, 7, 7}, kDLUInt, 8);
  setInts(p, PREFILL_IN_SEGMENT_STARTS, starts);
  auto place = [&](int64_t pos) {
    return pos < 100 ? static_cast<double>(pos - starts[p.segment(pos)]) : 0.0;
  };
  rotate(p, 100, place);
  expectClose(p);
  EXPECT_EQ(p.out[PREFILL_OUT_DENSITY].at<float>({0, 0}), 1.0f);
  // Every block with a visible pair; none of another prompt's alone.
  auto visited = [&](int64_t y, int64_t x) {
    return p.out[PREFILL_OUT_BLOCK_MAP].at<uint8_t>({0, 0, y, x});
  };
  for (int64_t i = 0; i < 100; ++i)
    for (int64_t j = 0; j <= i; ++j)
      if (p.visible(0, i, j))
        ASSERT_EQ(visited(i / 16, j / 16), 1) << i << " " << j;
  EXPECT_EQ(visited(6, 1), 0);
  EXPECT_EQ(visited(4, 0), 0);

  // The last row of every prompt that has one.
  std::vector<int64_t> rows;
  for (size_t i = 0; i + 1 < starts.size(); ++i)
    if (starts[i] < starts[i + 1])
      rows.push_back(starts[i + 1] - 1);
  Problem<8, 8, 16, 16, float, Causal> last;
  last.s = static_cast<int64_t>(rows.size());
  last.t = 100;
  last.build();
  setInts(last, PREFILL_IN_SEGMENT_STARTS, starts);
  setInts(last, PREFILL_IN_Q_POSITIONS, rows);
  expectClose(last);
}

TEST(Ragged, NothingCrossesFromAPrompt) {
  Problem<8, 4, 16, 16, float, Causal> p;
  p.s = p.t = 60;
  p.build();
  setInts(p, PREFILL_IN_SEGMENT_STARTS, {0, 21, 40, 60});
  ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
  std::vector<float> before;
  auto each = [&](auto &&body) {
    for (int64_t h = 0; h < p.hq; ++h)
      for (int64_t i = 0; i < 60; ++i)
        for (int c = 0; c < 4; ++c)
          if (i < 21 || i >= 40)
            body(p.o(0, h, i, c));
  };
  each([&](float x) { before.push_back(x); });
  for (int64_t j = 21; j < 40; ++j)
    for (int c = 0; c < 8; ++c) {
      for (int64_t h = 0; h < p.hk; ++h) {
        p.k(0, h, j, c) = NAN;
        p.v(0, h, j, c % 4) = NAN;
      }
      for (int64_t h = 0; h < p.hq; ++h)
        p.q(0, h, j, c) = NAN;
    }
  ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
  size_t at = 0;
  each([&](float x) { EXPECT_EQ(x, before[at++]); });
}

TEST(Ragged, WrongInputs) {
  auto run = [](const std::vector<int64_t> &starts,
                const std::vector<int64_t> &positions, int64_t b,
                const char *message) {
    Problem<8, 4, 16, 16, float, Causal> p;
    p.b = b;
    p.t = 20;
    p.s = positions.empty() ? 20 : static_cast<int64_t>(positions.size());
    p.build();
    if (!starts.empty())
      setInts(p, PREFILL_IN_SEGMENT_STARTS, starts);
    if (!positions.empty())
      setInts(p, PREFILL_IN_Q_POSITIONS, positions);
    EXPECT_NE(p.run(), PREFILL_OK);
    EXPECT_NE(std::string(p.context.message).find(message), std::string::npos)
        << p.context.message;
  };
  run({1, 20}, {}, 1, "from 0 to 20, got 1 at place 0");
  run({0, 9, 8, 20}, {}, 1, "got 8 at place 2");
  run({0, 9}, {}, 1, "expected to end at 20");
  run({0, 21}, {}, 1, "got 21 at place 1");
  run({0, 20}, {}, 2, "a pack is one sequence, got batch 2");
  run({0, 20}, {20}, 1, "positions from 0 to 19, got 20 for row 0");
  run({0, 20}, {-1}, 1, "got -1 for row 0");
  run({}, {int64_t(1) << 40}, 1, "input Q_POSITIONS: expected positions");
}

} // namespace
