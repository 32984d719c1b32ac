//===- Plans.h - Plans of heads, and what tests of estimators share -*- C++
//-*-===//
//
// Plans of every pattern; problems with masks, rotary tables and numbers that
// are none; a checked call, for functions that take one.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_UNITTESTS_RUNTIME_PLANS_H
#define PREFILL_UNITTESTS_RUNTIME_PLANS_H

#include "Reference.h"
#include "internal.h"
#include "gtest/gtest.h"
#include <utility>

namespace ref {

constexpr unsigned Causal = PREFILL_TILE_CAUSAL;

// --- Plans ------------------------------------------------------------------

inline prefill_head_plan aShape(int32_t init, int32_t local) {
  prefill_head_plan plan{};
  plan.pattern = PREFILL_PATTERN_A_SHAPE;
  plan.init = init;
  plan.local = local;
  return plan;
}
inline prefill_head_plan triShape(int32_t init, int32_t local, int32_t last) {
  prefill_head_plan plan = aShape(init, local);
  plan.pattern = PREFILL_PATTERN_TRI_SHAPE;
  plan.last = last;
  return plan;
}
inline prefill_head_plan strided(int32_t init, int32_t local, int32_t stride) {
  prefill_head_plan plan = aShape(init, local);
  plan.pattern = PREFILL_PATTERN_STRIDED;
  plan.stride = stride;
  return plan;
}
inline prefill_head_plan verticalSlash(int32_t vertical, int32_t slash,
                                       int32_t last = 16, float density = 0) {
  prefill_head_plan plan{};
  plan.pattern = PREFILL_PATTERN_VERTICAL_SLASH;
  plan.vertical = vertical;
  plan.slash = slash;
  plan.last = last;
  plan.density = density;
  return plan;
}
inline prefill_head_plan blockSparse(int32_t topK, float density = 0) {
  prefill_head_plan plan{};
  plan.pattern = PREFILL_PATTERN_BLOCK_SPARSE;
  plan.top_k = topK;
  plan.density = density;
  return plan;
}
inline prefill_head_plan blockTopP(float topP, float similarity = 0) {
  prefill_head_plan plan{};
  plan.pattern = PREFILL_PATTERN_BLOCK_SPARSE;
  plan.top_p = topP;
  plan.similarity = similarity;
  return plan;
}
inline prefill_head_plan xAttention(int32_t stride, float topP) {
  prefill_head_plan plan{};
  plan.pattern = PREFILL_PATTERN_XATTENTION;
  plan.stride = stride;
  plan.top_p = topP;
  return plan;
}
inline prefill_head_plan sampled(int32_t stride, float topP, int32_t local = 0,
                                 int32_t values = 0) {
  prefill_head_plan plan = xAttention(stride, topP);
  plan.pattern = PREFILL_PATTERN_SAMPLED;
  plan.local = local;
  plan.values = values;
  return plan;
}
inline prefill_head_plan flexPrefill(float gamma, float tau,
                                     int32_t minBudget = 20, int32_t last = 0) {
  prefill_head_plan plan{};
  plan.pattern = PREFILL_PATTERN_FLEXPREFILL;
  plan.top_p = gamma;
  plan.threshold = tau;
  plan.min_budget = minBudget;
  plan.last = last;
  return plan;
}
inline prefill_head_plan grid(int32_t stride, int32_t init = 4,
                              int32_t last = 8, bool vertical = true,
                              bool slash = true, bool horizontal = true) {
  prefill_head_plan plan{};
  plan.pattern = PREFILL_PATTERN_GRID;
  plan.stride = stride;
  plan.init = init;
  plan.last = last;
  plan.vertical = vertical;
  plan.slash = slash;
  plan.horizontal = horizontal;
  return plan;
}
inline prefill_head_plan boundary(bool pairs, int32_t vertical, int32_t slash,
                                  int32_t last = 8) {
  prefill_head_plan plan{};
  plan.pattern =
      pairs ? PREFILL_PATTERN_2D_BOUNDARY : PREFILL_PATTERN_Q_BOUNDARY;
  plan.vertical = vertical;
  plan.slash = slash;
  plan.init = 3;
  plan.local = 5;
  plan.last = last;
  return plan;
}
inline prefill_head_plan infLLM(int32_t topK, int32_t init = 8,
                                int32_t local = 20) {
  prefill_head_plan plan{};
  plan.pattern = PREFILL_PATTERN_INFLLM_V2;
  plan.top_k = topK;
  plan.init = init;
  plan.local = local;
  return plan;
}
inline prefill_head_plan sale(float threshold, int32_t bits = 8,
                              int32_t init = 8, int32_t local = 24,
                              int32_t stride = 0) {
  prefill_head_plan plan{};
  plan.pattern = PREFILL_PATTERN_SALE;
  plan.threshold = threshold;
  plan.bits = bits;
  plan.init = init;
  plan.local = local;
  plan.stride = stride;
  return plan;
}
inline prefill_head_plan saleMass(float topP, int32_t bits = 8,
                                  int32_t stride = 0, int32_t init = 8,
                                  int32_t local = 24) {
  prefill_head_plan plan = sale(0, bits, init, local, stride);
  plan.top_p = topP;
  return plan;
}

// --- Problems ---------------------------------------------------------------

/// Three masks for a batch of three and, where there is one, lengths: scattered
/// holes, padding on the left, padding on the right.
template <class P>
void hideKeys(P &p) {
  if (!(p.desc.features & PREFILL_TILE_KEY_MASK))
    return;
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

/// Rotary tables of `rows` positions and four pairs: turn(position, pair) is
/// (cosine, sine).
template <class P, class Turn>
void rotaryTables(P &p, int64_t rows, Turn turn) {
  Tensor &cosine = p.in[PREFILL_IN_COS], &sine = p.in[PREFILL_IN_SIN];
  cosine.make({rows, 4}, kDLFloat, 32);
  sine.make({rows, 4}, kDLFloat, 32);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < 4; ++c)
      std::tie(cosine.at<float>({i, c}), sine.at<float>({i, c})) = turn(i, c);
}

/// Fails unless `r`, whose rows are rotated by the call, keeps the blocks that
/// `p` keeps, whose rows are the same but rotated before. Quarter turns: exact.
template <class P>
void expectRotatedRows(P &p, P &r) {
  r.rotary = 1;
  r.rotaryDim = 8;
  p.build();
  r.build();
  p.plan.dense_below = r.plan.dense_below = 0;
  auto turn = [](int64_t i, int64_t c) {
    const float cosine[] = {1, 0, -1, 0}, sine[] = {0, 1, 0, -1};
    const int64_t quarter = (i * (c + 1)) % 4;
    return std::pair(cosine[quarter], sine[quarter]);
  };
  rotaryTables(r, p.t, turn);
  for (int64_t i = 0; i < p.t; ++i)
    for (int64_t c = 0; c < 4; ++c) {
      auto rotate = [&](float &a, float &b) {
        const auto [cosine, sine] = turn(i, c);
        const float x = a, y = b;
        a = x * cosine - y * sine;
        b = y * cosine + x * sine;
      };
      for (int64_t h = 0; h < p.hq; ++h)
        rotate(p.q(0, h, i, c), p.q(0, h, i, c + 4));
      for (int64_t h = 0; h < p.hk; ++h)
        rotate(p.k(0, h, i, c), p.k(0, h, i, c + 4));
    }
  p.wantStatistics();
  r.wantStatistics();
  ASSERT_EQ(p.run(), PREFILL_OK);
  ASSERT_EQ(r.run(), PREFILL_OK) << r.context.message;
  EXPECT_EQ(p.out[PREFILL_OUT_BLOCK_MAP].bytes,
            r.out[PREFILL_OUT_BLOCK_MAP].bytes);
}

/// Builds a problem of 200 rows and keys; element 3 of key 90 of the first KV
/// head is `bad`. Queries are positive: scores of that key have one sign.
template <class P>
void buildWithBadKey(P &p, float bad) {
  p.s = p.t = 200;
  p.build();
  p.plan.dense_below = 0;
  p.wantStatistics();
  for (int64_t h = 0; h < p.hq; ++h)
    for (int64_t c = 0; c < 8; ++c)
      for (int64_t i = 0; i < p.s; ++i)
        p.q(0, h, i, c) = std::fabs(p.q(0, h, i, c)) + 0.1f;
  p.k(0, 0, 90, 3) = bad;
}

/// Runs a problem with several numbers of threads: the same bits.
template <class P>
void expectThreadsAgree(P &p) {
  ASSERT_EQ(p.run(), PREFILL_OK);
  auto &bytes = p.out[PREFILL_OUT_O].bytes;
  const auto o = bytes;
  for (size_t threads : {2, 3, 5, 7}) {
    prefill_pool *pool = prefill_pool_create(threads);
    p.context.host = pool;
    p.context.parallel_for = prefill_pool_parallel_for;
    std::fill(bytes.begin(), bytes.end(), 0);
    ASSERT_EQ(p.run(), PREFILL_OK);
    // Elements; past them there are guards that the fill has cleared.
    const int64_t count = p.b * p.hq * p.s * p.desc.v_head_dim;
    const size_t size = static_cast<size_t>(count) * sizeof(p.o(0, 0, 0, 0));
    EXPECT_EQ(memcmp(o.data(), bytes.data(), size), 0) << threads;
    prefill_pool_destroy(pool);
  }
}

/// A score function as generated code has one.
template <int D, int BQ>
void referenceScore(const prefill_score_args *a) {
  const float *q = static_cast<const float *>(a->q);
  const float *k = static_cast<const float *>(a->k);
  for (int64_t j = a->key_begin; j < a->key_end; ++j)
    for (int64_t i = 0; i < BQ; ++i) {
      float x = 0;
      for (int c = 0; i < a->rows && c < D; ++c)
        x += q[i * a->q_stride + c] * k[j * a->k_stride + c];
      a->out[(j - a->key_begin) * BQ + i] = x * a->scale;
    }
}

/// Turns spying on for a test.
struct Spying {
  Spying() { spy().reset(true); }
  ~Spying() { spy().reset(false); }
};

/// Runs a problem and checks what holds for every pattern.
template <class P>
void checkSparse(P &p, double tolerance = 2e-6) {
  Spying spying;
  p.wantStatistics();
  ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
  EXPECT_EQ(spy().violations, 0);
  auto keys = [&](int64_t b, int64_t h, int64_t i) -> std::multiset<int64_t> & {
    return spy().visited[&p.o(b, h, i, 0)];
  };
  int64_t visits = 0;
  std::vector<double> row;
  for (int64_t b = 0; b < p.b; ++b)
    for (int64_t h = 0; h < p.hq; ++h)
      for (int64_t i = 0; i < p.s; ++i) {
        const std::multiset<int64_t> &seen = keys(b, h, i);
        visits += static_cast<int64_t>(seen.size());
        for (int64_t j : seen) {
          ASSERT_EQ(seen.count(j), 1u) << "key visited twice";
          ASSERT_TRUE(p.visible(b, i, j));
        }
        const int64_t own = p.position(b, i);
        if (own >= 0 && p.visible(b, i, own))
          ASSERT_EQ(seen.count(own), 1u) << b << " " << h << " " << i;
        double lse;
        p.expectedRow(b, h, i, row, lse);
        EXPECT_LE(p.out[PREFILL_OUT_LSE].template at<float>({b, h, i}),
                  lse + 1e-5);
      }
  EXPECT_GT(visits, 0);
  EXPECT_LT(p.error([&](int64_t b, int64_t h, int64_t i, int64_t j) {
    return keys(b, h, i).count(j) != 0;
  }),
            tolerance);
}

/// A checked call, for functions that take one.
template <class P>
struct Checked {
  pf_call call{};
  prefill_context context{};
  explicit Checked(P &p) {
    call.desc = &p.desc;
    call.context = &context;
    const DLTensor *inputs[PREFILL_IN_COUNT];
    DLTensor *outputs[PREFILL_OUT_COUNT];
    for (int i = 0; i < PREFILL_IN_COUNT; ++i)
      inputs[i] = p.in[i].get();
    for (int i = 0; i < PREFILL_OUT_COUNT; ++i)
      outputs[i] = p.out[i].get();
    EXPECT_EQ(
        pf_check(&call, inputs, PREFILL_IN_COUNT, outputs, PREFILL_OUT_COUNT),
        PREFILL_OK)
        << context.message;
  }
  ~Checked() { pf_release_all(&call); }
};

} // namespace ref

#endif
