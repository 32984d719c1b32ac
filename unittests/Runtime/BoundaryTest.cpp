//===- BoundaryTest.cpp - Patterns of modalities --------------------------===//
//
// Properties of calls whose heads have columns and diagonals per modality; what
// exactly is selected is compared with NumPy in python/tests/test_kernels.py.
//
//===----------------------------------------------------------------------===//
#include "Plans.h"

using namespace ref;

namespace {

enum Layout { One, Turns, Runs };

/// Fills MODALITY [b, t], shifted from entry to entry.
template <class P>
void setModality(P &p, Layout layout) {
  Tensor &kinds = p.in[PREFILL_IN_MODALITY];
  kinds.make({p.b, p.t}, kDLInt, 64);
  for (int64_t b = 0; b < p.b; ++b)
    for (int64_t j = 0; j < p.t; ++j) {
      const int64_t at = j + 13 * b;
      kinds.at<int64_t>({b, j}) = layout == One     ? 5
                                  : layout == Turns ? at % 2
                                                    : at / 37 % 3 * 7 - 7;
    }
}

template <class P>
void setPlans(P &p) {
  p.heads = {boundary(false, 10, 40), boundary(true, 10, 40),
             boundary(false, 0, 0, 1), boundary(true, 3, 90, 16)};
}

TEST(Boundary, IsAttentionOverWhatItVisits) {
  for (Layout layout : {One, Turns, Runs})
    for (int64_t s : {2, 16, 100, 333})
      for (int64_t past : {0, 5, 100}) {
        Problem<8, 4, 16, 16, float, Causal> p;
        p.b = 2;
        p.s = s;
        p.t = s + past;
        p.spread = 3;
        setPlans(p);
        p.build(static_cast<uint64_t>(s + past));
        p.plan.dense_below = 0;
        setModality(p, layout);
        SCOPED_TRACE(testing::Message()
                     << "layout " << layout << " s " << s << " past " << past);
        checkSparse(p);
      }
}

TEST(Boundary, TilesTypesWindowsAndMasks) {
  auto check = [](auto &p, double tolerance = 2e-6) {
    p.b = 3;
    p.s = 300;
    p.t = 337;
    p.spread = 3;
    setPlans(p);
    p.build();
    p.plan.dense_below = 0;
    setModality(p, Runs);
    if (p.desc.features & PREFILL_TILE_KEY_MASK) {
      Tensor &mask = p.in[PREFILL_IN_KEY_MASK];
      mask.make({p.b, p.t}, kDLUInt, 8);
      for (int64_t j = 0; j < p.t; ++j) {
        mask.at<uint8_t>({0, j}) = j % 7 != 3;
        mask.at<uint8_t>({1, j}) = j >= 100;
        mask.at<uint8_t>({2, j}) = j < 251;
      }
      p.in[PREFILL_IN_KV_LENGTHS].make({p.b}, kDLInt, 32);
      for (int64_t b = 0; b < p.b; ++b)
        p.in[PREFILL_IN_KV_LENGTHS].template at<int32_t>({b}) =
            static_cast<int32_t>(p.t - 41 * b);
    }
    checkSparse(p, tolerance);
  };
  Problem<8, 4, 32, 16, float, Causal> wide;
  check(wide);
  Problem<8, 4, 16, 32, float, Causal> tall;
  check(tall);
  Problem<8, 4, 16, 16, float, Causal | PREFILL_TILE_KEY_MASK> masked;
  check(masked);
  Problem<8, 4, 16, 16, float, Causal | PREFILL_TILE_WINDOW> window;
  window.windowLeft = 50;
  check(window);
  Problem<8, 4, 16, 16, _Float16, Causal> half;
  check(half, 4e-3);
}

TEST(Boundary, RunsThatCostMoreThanTheySaveRunDense) {
  for (Layout layout : {One, Turns}) {
    Problem<8, 4, 16, 16, float, Causal> p;
    p.s = p.t = 2048;
    p.heads = {boundary(false, 10, 40), boundary(true, 10, 40),
               boundary(false, 30, 60), boundary(true, 3, 90, 16)};
    p.build();
    p.plan.dense_below = -1; // as the cost function says
    setModality(p, layout);
    p.wantStatistics();
    ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
    // Where every row is a run of its own, a block of rows makes 16 calls.
    for (int64_t h = 0; h < 4; ++h) {
      const float density = p.out[PREFILL_OUT_DENSITY].at<float>({0, h});
      EXPECT_EQ(density == 1.0f, layout == Turns) << layout << " head " << h;
    }
  }
}

TEST(Boundary, OneKeyThatIsNoNumberKeepsEverything) {
  Problem<8, 4, 16, 16, float, Causal> p;
  p.s = p.t = 200;
  setPlans(p);
  p.build();
  p.plan.dense_below = 0;
  setModality(p, Runs);
  p.wantStatistics();
  p.k(0, 0, 5, 0) = NAN;
  p.k(0, 1, 5, 0) = NAN;
  ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
  for (int64_t h = 0; h < 4; ++h)
    EXPECT_EQ(p.out[PREFILL_OUT_DENSITY].at<float>({0, h}), 1.0f);
}

TEST(Boundary, WrongModalities) {
  Problem<8, 4, 16, 16, float, Causal> p;
  p.s = 100;
  p.t = 130;
  setPlans(p);
  p.build();
  p.plan.dense_below = 0;
  EXPECT_EQ(p.run(), PREFILL_INVALID_ARGUMENT);
  EXPECT_TRUE(strstr(p.context.message, "MODALITY")) << p.context.message;
  Tensor &kinds = p.in[PREFILL_IN_MODALITY];
  kinds.make({130}, kDLFloat, 32);
  EXPECT_EQ(p.run(), PREFILL_INVALID_TYPE) << p.context.message;
  for (std::vector<int64_t> shape :
       {std::vector<int64_t>{}, {129}, {2, 130}, {1, 1, 130}}) {
    kinds.make(shape, kDLInt, 32);
    EXPECT_EQ(p.run(), PREFILL_INVALID_SHAPE) << p.context.message;
  }
  kinds.make({1, 130}, kDLInt, 32);
  for (int64_t j = 0; j < 130; ++j)
    kinds.at<int32_t>({0, j}) = static_cast<int32_t>(j % 9);
  EXPECT_EQ(p.run(), PREFILL_INVALID_ARGUMENT) << p.context.message;
  EXPECT_TRUE(strstr(p.context.message, "at most 8")) << p.context.message;
  // Of the rows alone, with keys before them: dense.
  kinds.make({100}, kDLInt, 32);
  memset(kinds.data<char>(), 0, 400);
  p.wantStatistics();
  ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
  EXPECT_LT(p.error(), 2e-6);
}

} // namespace
