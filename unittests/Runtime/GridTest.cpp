//===- GridTest.cpp - The grid pattern against its definition -------------===//
//
// Of a given stride, the phase is that of the keys which get most of the last
// rows' attention; a row sees the first keys, keys at distances that are
// multiples of the stride and keys of the phase; rows of the phase and the last
// rows see everything. Results are those of attention over just these keys, so
// none is left out or counted twice.
//
//===----------------------------------------------------------------------===//
#include "Mass.h"
#include "Plans.h"

using namespace ref;

namespace {

int64_t keysOf(const std::vector<bool> &unmasked, bool last) {
  int64_t found = last ? 0 : static_cast<int64_t>(unmasked.size());
  for (size_t j = 0; j < unmasked.size(); ++j)
    if (unmasked[j]) {
      if (!last)
        return static_cast<int64_t>(j);
      found = static_cast<int64_t>(j) + 1;
    }
  return found;
}

/// One head's lines.
template <class P>
struct Lines {
  using Of = BlocksOf<P>;
  int64_t stride, phase = 0, sink, dense;
  const prefill_head_plan &plan;
  P &p;
  int64_t b;

  Lines(P &p, int64_t b, int64_t h)
      : plan(p.heads[static_cast<size_t>(h)]), p(p), b(b) {
    stride = plan.stride;
    std::vector<bool> usable;
    for (int64_t j = 0; j < p.t; ++j)
      usable.push_back(unmasked(p, b, j));
    const int64_t end = keysOf(usable, true);
    sink = std::min(keysOf(usable, false) + plan.init, end);
    dense = std::max<int64_t>(0, p.s - plan.last) / Of::rows * Of::rows;
    const int64_t rows =
        std::max<int64_t>(0, std::min(p.s, end - p.position(b, 0)));
    std::map<int64_t, double> mass;
    for (int64_t i = std::max<int64_t>(0, rows - plan.last); i < rows; ++i) {
      const std::vector<double> x = probabilities(p, b, h, i);
      for (size_t j = static_cast<size_t>(sink); j < x.size(); ++j)
        mass[static_cast<int64_t>(j) % stride] += x[j];
    }
    double most = -1;
    for (const auto &[each, sum] : mass)
      if (sum > most + 1e-9) {
        most = sum;
        phase = each;
      }
    // Off where the cost function, the driver or the estimate leave it dense.
    if (p.s <= 1 || p.position(b, 0) < 0 || p.position(b, 0) >= end ||
        stride <= 1)
      dense = 0;
  }

  bool allows(int64_t i, int64_t j) const {
    const int64_t own = p.position(b, i);
    if (i >= dense || j < sink || (plan.horizontal && own % stride == phase) ||
        (plan.vertical && j % stride == phase))
      return true;
    if (j % stride != own % stride)
      return false;
    // Without a slash, the blocks of the rows of a view's tile.
    const int64_t first =
        p.position(b, i % stride + i / stride / Of::rows * Of::rows * stride);
    return plan.slash || j / stride >= first / stride / Of::keys * Of::keys;
  }
};

template <class P>
void check(P &p, double tolerance = 2e-6) {
  p.plan.dense_below = 0;
  p.wantStatistics();
  ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
  std::vector<Lines<P>> lines;
  for (int64_t b = 0; b < p.b; ++b)
    for (int64_t h = 0; h < p.hq; ++h)
      lines.emplace_back(p, b, h);
  EXPECT_LT(p.error([&](int64_t b, int64_t h, int64_t i, int64_t j) {
    return lines[static_cast<size_t>(b * p.hq + h)].allows(i, j);
  }),
            tolerance);
}

TEST(Grid, KeepsWhatItSays) {
  for (int64_t s : {2, 16, 100, 333})
    for (int64_t past : {0, 5, 64, 100}) {
      Problem<8, 4, 16, 16, float, Causal> p;
      p.b = 2;
      p.hq = 8;
      p.hk = 4;
      p.s = s;
      p.t = s + past;
      p.spread = 3;
      p.heads = {grid(4),
                 grid(7, 0, 1),
                 grid(1),
                 grid(3, 20, 16),
                 grid(50, 4, 8, false),
                 grid(5, 4, 8, true, false),
                 grid(6, 4, 8, true, true, false),
                 grid(2000, 0, 8, false, false, false)};
      p.build(static_cast<uint64_t>(s + past));
      SCOPED_TRACE(testing::Message() << "s " << s << " past " << past);
      check(p);
    }
}

template <class P>
void checkShape(double tolerance) {
  P p;
  p.s = 300;
  p.t = 337;
  p.spread = 3;
  p.heads = {grid(4), grid(9, 0, 3), grid(30, 40, 8, true, false),
             grid(6, 4, 8, false)};
  p.build();
  check(p, tolerance);
}

TEST(Grid, TilesBlocksAndTypes) {
  checkShape<Problem<8, 4, 32, 16, float, Causal>>(2e-6);
  checkShape<Problem<8, 4, 16, 32, float, Causal>>(2e-6);
  checkShape<Problem<8, 4, 48, 32, float, Causal>>(2e-6);
  checkShape<Problem<8, 4, 64, 64, float, Causal>>(2e-6);
  checkShape<Problem<8, 4, 16, 16, _Float16, Causal>>(4e-3);
}

TEST(Grid, LayoutsAndThreads) {
  Problem<8, 4, 16, 16, float, Causal> p;
  p.qLayout = p.kLayout = p.vLayout = p.oLayout = PREFILL_BSHD;
  p.pad = 3;
  p.s = p.t = 300;
  p.heads = {grid(4), grid(9), grid(30), grid(6)};
  p.build();
  check(p);
}

TEST(Grid, PaddingMasksSinksAndLengths) {
  constexpr unsigned F =
      Causal | PREFILL_TILE_KEY_MASK | PREFILL_TILE_SOFTCAP | PREFILL_TILE_SINK;
  for (int masked :
       {PREFILL_MASKED_ZERO, PREFILL_MASKED_MEAN, PREFILL_MASKED_SCORES}) {
    Problem<8, 4, 16, 16, float, F> p;
    p.b = 4;
    p.s = p.t = 250;
    p.maskedRow = masked;
    p.spread = 3;
    p.heads = {grid(4), grid(9, 0, 3), grid(30, 40),
               grid(6, 4, 8, true, false)};
    p.build();
    Tensor &mask = p.in[PREFILL_IN_KEY_MASK];
    mask.make({4, 250}, kDLInt, 64);
    for (int64_t j = 0; j < 250; ++j) {
      mask.at<int64_t>({0, j}) = 1;
      mask.at<int64_t>({1, j}) = j >= 77;
      mask.at<int64_t>({2, j}) = j < 200;
      mask.at<int64_t>({3, j}) = j % 7 != 3;
    }
    Tensor &lengths = p.in[PREFILL_IN_KV_LENGTHS];
    lengths.make({4}, kDLInt, 64);
    for (int64_t b = 0; b < 4; ++b)
      lengths.at<int64_t>({b}) = b == 3 ? 211 : 250;
    check(p);
  }
}

TEST(Grid, OneKeyThatIsNoNumberKeepsEverything) {
  Problem<8, 4, 16, 16, float, Causal> p;
  p.s = p.t = 200;
  p.heads = {grid(4), grid(9), grid(0), grid(6)};
  p.heads[2].top_p = 0.1f;
  p.build();
  p.plan.dense_below = 0;
  p.wantStatistics();
  p.k(0, 0, 50, 0) = NAN;
  p.k(0, 1, 50, 0) = NAN;
  ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
  for (int64_t h = 0; h < 4; ++h)
    EXPECT_EQ(p.out[PREFILL_OUT_DENSITY].at<float>({0, h}), 1.0f);
}

TEST(Grid, WindowsRunDense) {
  Problem<8, 4, 16, 16, float, Causal | PREFILL_TILE_WINDOW> p;
  p.s = p.t = 200;
  p.windowLeft = 100;
  p.heads = {grid(4), grid(9), grid(30), grid(6)};
  p.build();
  p.plan.dense_below = 0;
  p.wantStatistics();
  ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
  EXPECT_LT(p.error(), 2e-6);
}

} // namespace
