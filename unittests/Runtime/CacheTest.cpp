//===- CacheTest.cpp - Prompts in chunks, beside others -------------------===//

#include "Reference.h"
#include "internal.h"
#include "gtest/gtest.h"

using namespace ref;

namespace {

constexpr int D = 8, E = 4;
using Call =
    Problem<D, E, 16, 16, float, PREFILL_TILE_CAUSAL | PREFILL_TILE_WINDOW>;

double angle(int64_t position, int64_t i) {
  return static_cast<double>(position) *
         std::pow(100.0, -0.25 * static_cast<double>(i));
}

/// The tables of rows at `positions`.
void setTables(Call &call, const std::vector<int64_t> &positions) {
  const int64_t n = static_cast<int64_t>(positions.size());
  for (int slot : {PREFILL_IN_COS, PREFILL_IN_SIN}) {
    Tensor &table = call.in[slot];
    table.make({n, D / 2}, kDLFloat, 32);
    for (int64_t r = 0; r < n; ++r)
      for (int64_t i = 0; i < D / 2; ++i) {
        double a = angle(positions[static_cast<size_t>(r)], i);
        narrow(slot == PREFILL_IN_COS ? std::cos(a) : std::sin(a),
               table.at<float>({r, i}));
      }
  }
}

void setInts(Tensor &tensor, std::vector<int64_t> shape,
             const std::vector<int64_t> &values) {
  tensor.make(std::move(shape), kDLInt, 64);
  std::copy(values.begin(), values.end(), tensor.data<int64_t>());
}

/// A prompt, computed as a whole.
struct Whole : Call {
  Whole(int64_t n, uint64_t seed, bool bshd, int64_t window = Unbounded) {
    s = t = n;
    windowLeft = window;
    rotary = 1;
    rotaryDim = D;
    if (bshd)
      qLayout = kLayout = vLayout = oLayout = PREFILL_BSHD;
    build(seed);
    std::vector<int64_t> positions;
    for (int64_t i = 0; i < n; ++i)
      positions.push_back(i);
    setTables(*this, positions);
    out[PREFILL_OUT_ROTATED_K].make({1, hk, n, D}, kDLFloat, 32);
    EXPECT_EQ(run(), PREFILL_OK) << context.message;
  }
};

/// The cache of several prompts, in one memory or handed from one to the other.
struct Cache {
  int64_t rows;
  Tensor k[2], v[2];
  bool inPlace;
  int now = 0;

  Cache(int64_t rows, bool inPlace) : rows(rows), inPlace(inPlace) {
    for (int i = 0; i < 2; ++i) {
      k[i].make({1, 2, rows, D}, kDLFloat, 32);
      v[i].make({1, 2, rows, E}, kDLFloat, 32);
      // Nobody may read what was never written.
      std::fill_n(k[i].data<float>(), 2 * rows * D, NAN);
      std::fill_n(v[i].data<float>(), 2 * rows * E, NAN);
    }
  }
};

/// Rows [begin, end) of a prompt, whose keys begin at row `slot` of the cache.
struct Work {
  Whole *prompt;
  int64_t slot, begin, end;
};

/// Makes the call that computes them; `asked`: query rows, empty for all.
void prepare(Call &call, Cache &cache, const std::vector<Work> &work,
             const std::vector<int64_t> &asked = {}) {
  std::vector<int64_t> starts{0}, slots, positions;
  for (const Work &w : work) {
    starts.push_back(starts.back() + w.end - w.begin);
    slots.insert(slots.end(), {w.slot, w.begin});
    for (int64_t i = w.begin; i < w.end; ++i)
      positions.push_back(i);
  }
  const Call &first = *work.front().prompt;
  call.t = starts.back();
  call.s = asked.empty() ? call.t : static_cast<int64_t>(asked.size());
  call.windowLeft = first.windowLeft;
  call.qLayout = call.kLayout = call.vLayout = call.oLayout = first.qLayout;
  call.rotary = 1;
  call.rotaryDim = D;
  call.build();
  int64_t row = 0;
  auto place = [&](int64_t at) {
    for (size_t i = 0; i < asked.size(); ++i)
      if (asked[i] == at)
        return static_cast<int64_t>(i);
    return asked.empty() ? at : -1;
  };
  for (const Work &w : work)
    for (int64_t i = w.begin; i < w.end; ++i, ++row)
      for (int64_t h = 0; h < call.hq; ++h)
        for (int c = 0; c < D; ++c) {
          if (int64_t q = place(row); q >= 0)
            call.q(0, h, q, c) = w.prompt->q(0, h, i, c);
          if (h < call.hk)
            call.k(0, h, row, c) = w.prompt->k(0, h, i, c);
          if (h < call.hk && c < E)
            call.v(0, h, row, c) = w.prompt->v(0, h, i, c);
        }
  setTables(call, positions);
  setInts(call.in[PREFILL_IN_SEGMENT_STARTS],
          {static_cast<int64_t>(starts.size())}, starts);
  setInts(call.in[PREFILL_IN_CACHE_SLOTS],
          {static_cast<int64_t>(work.size()), 2}, slots);
  if (!asked.empty())
    setInts(call.in[PREFILL_IN_Q_POSITIONS], {call.s}, asked);
  auto share = [&](Tensor &tensor, Tensor &memory) {
    tensor.dl = memory.dl;
    tensor.absent = false;
  };
  const int next = cache.inPlace ? cache.now : 1 - cache.now;
  share(call.in[PREFILL_IN_PAST_K], cache.k[cache.now]);
  share(call.in[PREFILL_IN_PAST_V], cache.v[cache.now]);
  share(call.out[PREFILL_OUT_PRESENT_K], cache.k[next]);
  share(call.out[PREFILL_OUT_PRESENT_V], cache.v[next]);
  cache.now = next;
}

/// Runs it; results must be those of the whole prompts, bit by bit: the tile
/// function sees the same rows and keys.
void expectEqual(Cache &cache, const std::vector<Work> &work,
                 const std::vector<int64_t> &asked = {}) {
  Call call;
  prepare(call, cache, work, asked);
  ASSERT_EQ(call.run(), PREFILL_OK) << call.context.message;
  int64_t row = 0;
  for (const Work &w : work)
    for (int64_t i = w.begin; i < w.end; ++i, ++row) {
      for (size_t a = 0; a < (asked.empty() ? 1 : asked.size()); ++a) {
        if (!asked.empty() && asked[a] != row)
          continue;
        const int64_t at = asked.empty() ? row : static_cast<int64_t>(a);
        for (int64_t h = 0; h < call.hq; ++h)
          for (int c = 0; c < E; ++c)
            ASSERT_NEAR(call.o(0, h, at, c), w.prompt->o(0, h, i, c), 1e-6)
                << "row " << i;
      }
      for (int64_t h = 0; h < call.hk; ++h)
        for (int c = 0; c < D; ++c) {
          ASSERT_EQ(
              cache.k[cache.now].at<float>({0, h, w.slot + i, c}),
              w.prompt->out[PREFILL_OUT_ROTATED_K].at<float>({0, h, i, c}));
          if (c < E)
            ASSERT_EQ(cache.v[cache.now].at<float>({0, h, w.slot + i, c}),
                      w.prompt->v(0, h, i, c));
        }
    }
}

TEST(Cache, ChunksOfAnySize) {
  for (bool bshd : {false, true})
    for (int64_t window : {Unbounded, int64_t(11)})
      for (int64_t size : {1, 7, 16, 49, 50, 51})
        for (bool inPlace : {true, false}) {
          Whole prompt(50, 3, bshd, window);
          Cache cache(64, inPlace);
          for (int64_t begin = 0; begin < 50; begin += size)
            expectEqual(cache, {{&prompt, 9, begin,
                                 std::min(begin + size, int64_t(50))}});
        }
}

TEST(Cache, RowsOfSeveralRequests) {
  for (bool inPlace : {true, false}) {
    Whole a(50, 3, false), b(23, 4, false), c(5, 5, false);
    Cache cache(80, inPlace);
    expectEqual(cache, {{&a, 27, 0, 20}, {&b, 0, 0, 5}});
    expectEqual(cache, {{&a, 27, 20, 21}, {&b, 0, 5, 22}, {&c, 24, 0, 3}});
    expectEqual(cache, {{&c, 24, 3, 3}, {&b, 0, 22, 23}, {&a, 27, 21, 50}});
  }
}

TEST(Cache, ChosenRows) {
  Whole a(50, 3, false), b(23, 4, false);
  Cache cache(80, true);
  expectEqual(cache, {{&a, 27, 0, 20}, {&b, 0, 0, 5}}, {24});
  expectEqual(cache, {{&a, 27, 20, 50}, {&b, 0, 5, 23}}, {47, 29, 0});
}

TEST(Cache, KeysOfRowsThatNobodyAsksFor) {
  Whole a(20, 3, false);
  Cache cache(20, true);
  Call call;
  prepare(call, cache, {{&a, 0, 0, 12}}, {11});
  call.in[PREFILL_IN_Q].make({1, call.hq, 0, D}, kDLFloat, 32);
  call.out[PREFILL_OUT_O].make({1, call.hq, 0, E}, kDLFloat, 32);
  setInts(call.in[PREFILL_IN_Q_POSITIONS], {0}, {});
  ASSERT_EQ(call.run(), PREFILL_OK) << call.context.message;
  expectEqual(cache, {{&a, 0, 12, 20}});
}

TEST(Cache, NeighboursDoNotMatter) {
  Whole a(30, 3, false), b(9, 4, false);
  Cache cache(40, true);
  expectEqual(cache, {{&b, 30, 0, 9}});
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t j = 30; j < 39; ++j)
      for (int c = 0; c < D; ++c) {
        cache.k[0].at<float>({0, h, j, c}) = NAN;
        cache.v[0].at<float>({0, h, j, c % E}) = NAN;
      }
  expectEqual(cache, {{&a, 0, 0, 17}});
  expectEqual(cache, {{&a, 0, 17, 30}});
}

/// Two prompts' rows that see contexts: with T = S = 1 it is one softmax over
/// all, with other numbers the formula of kernel_abi.h.
TEST(Contexts, TwoSoftmaxes) {
  for (auto [temperature, factor] :
       {std::pair(1.0, 1.0), std::pair(0.7, 1.3), std::pair(2.0, 0.1)})
    for (bool inPlace : {true, false}) {
      Whole context(37, 5, false), a(20, 3, false), b(23, 4, false);
      Cache cache(90, inPlace);
      expectEqual(cache, {{&context, 3, 0, 37}, {&a, 40, 0, 11}});
      const std::vector<Work> work = {
          {&a, 40, 11, 20}, {&b, 60, 0, 23}, {&a, 84, 0, 2}};
      // Of b: nine rows of the contexts; the third prompt has none.
      const std::vector<int64_t> slots = {3, 37, 8, 9, 0, 0};
      Call call;
      prepare(call, cache, work);
      call.desc.context_temperature = static_cast<float>(temperature);
      call.desc.context_scale = static_cast<float>(factor);
      setInts(call.in[PREFILL_IN_CONTEXT_SLOTS], {3, 2}, slots);
      ASSERT_EQ(call.run(), PREFILL_OK) << call.context.message;
      // In float64 from the cache; q of the whole prompt is not rotated.
      const double scale = 1 / std::sqrt(double(D));
      auto key = [&](int64_t h, int64_t j, int c) {
        return double(cache.k[cache.now].at<float>({0, h, j, c}));
      };
      int64_t row = 0;
      for (size_t w = 0; w < work.size(); ++w)
        for (int64_t i = work[w].begin; i < work[w].end; ++i, ++row)
          for (int64_t h = 0; h < call.hq; ++h) {
            const int64_t g = h / (call.hq / call.hk);
            double q[D];
            for (int c = 0; c < D / 2; ++c) {
              const double x = work[w].prompt->q(0, h, i, c);
              const double y = work[w].prompt->q(0, h, i, c + D / 2);
              const double t = angle(i, c);
              q[c] = x * std::cos(t) - y * std::sin(t);
              q[c + D / 2] = y * std::cos(t) + x * std::sin(t);
            }
            auto attend = [&](int64_t begin, int64_t count, double by,
                              double *o) {
              double sum = 0;
              std::fill_n(o, E, 0.0);
              for (int64_t j = begin; j < begin + count; ++j) {
                double s = 0;
                for (int c = 0; c < D; ++c)
                  s += q[c] * key(g, j, c);
                const double p = std::exp(s * by);
                sum += p;
                for (int c = 0; c < E; ++c)
                  o[c] +=
                      p * double(cache.v[cache.now].at<float>({0, g, j, c}));
              }
              for (int c = 0; c < E; ++c)
                o[c] /= sum;
              return std::log(sum);
            };
            double own[E], seen[E];
            const double l = attend(work[w].slot, i + 1, scale, own);
            double weight = 0;
            if (slots[2 * w + 1]) {
              const double lc = attend(slots[2 * w], slots[2 * w + 1],
                                       scale / temperature, seen);
              weight = 1 / (1 + std::exp(l - factor * temperature * lc));
            }
            for (int c = 0; c < E; ++c)
              ASSERT_NEAR(
                  call.o(0, h, row, c),
                  weight * (weight ? seen[c] : 0) + (1 - weight) * own[c], 2e-6)
                  << "row " << row;
          }
    }
}

/// A row of which no key is visible has weight 0, whatever its values are.
TEST(Contexts, MergeOfNothing) {
  const pf_hot *hot = pf_hot_for(pf_cpu_isa());
  const float inf = INFINITY;
  float a[5][1] = {{1}, {NAN}, {3}, {4}, {5}};
  float b[5][1] = {{NAN}, {20}, {30}, {NAN}, {50}};
  float la[5] = {0, -inf, 0, -inf, NAN}, lb[5] = {-inf, 0, 0, -inf, 0};
  float scratch[12];
  pf_rows mine = {reinterpret_cast<char *>(a), 0, 0, 1};
  pf_rows other = {reinterpret_cast<char *>(b), 0, 0, 1};
  pf_merge_lse(hot, &mine, la, &other, lb, 1.0f, 5, 1, PREFILL_F32, scratch);
  EXPECT_EQ(a[0][0], 1);
  EXPECT_EQ(a[1][0], 20);
  EXPECT_FLOAT_EQ(a[2][0], 16.5f);
  EXPECT_EQ(a[3][0], 4);
  EXPECT_TRUE(std::isnan(a[4][0]));
}

TEST(Contexts, WrongInputs) {
  Whole a(20, 3, false);
  auto refused = [&](const std::vector<int64_t> &slots, const char *message,
                     const std::function<void(Call &)> &change = nullptr) {
    Cache cache(30, true);
    Call call;
    prepare(call, cache, {{&a, 10, 0, 10}});
    call.desc.context_temperature = call.desc.context_scale = 1;
    setInts(call.in[PREFILL_IN_CONTEXT_SLOTS],
            {static_cast<int64_t>(slots.size() / 2), 2}, slots);
    if (change)
      change(call);
    EXPECT_NE(call.run(), PREFILL_OK);
    EXPECT_NE(std::string(call.context.message).find(message),
              std::string::npos)
        << call.context.message;
  };
  refused({-1, 2}, "segment 0: expected rows of a cache with 30, got 2 from "
                   "row -1 on");
  refused({25, 6}, "got 6 from row 25 on");
  refused({0, -1}, "got -1 from row 0 on");
  refused({0, INT64_MAX}, "got 9223372036854775807 from row 0 on");
  refused({5, 6}, "the contexts of segment 0 are rows that segment 0 writes");
  refused({19, 2}, "the contexts of segment 0 are rows that segment 0 writes");
  refused({0, 1, 2, 1}, "input CONTEXT_SLOTS: expected [1,2], got [2,2]");
  refused({0, 1}, "the kernel is not one for parallel encoding",
          [](Call &c) { c.desc.context_scale = 0; });
  refused({0, 1}, "the kernel is not one for parallel encoding",
          [](Call &c) { c.desc.context_temperature = NAN; });
  refused({0, 1}, "dense and causal without a window",
          [](Call &c) { c.desc.window_left = 3; });
  refused({0, 1}, "not together with the output LSE", [](Call &c) {
    c.out[PREFILL_OUT_LSE].make({1, c.hq, c.s}, kDLFloat, 32);
  });
  refused({0, 1}, "only together with CACHE_SLOTS", [](Call &c) {
    for (int slot :
         {PREFILL_IN_PAST_K, PREFILL_IN_PAST_V, PREFILL_IN_CACHE_SLOTS})
      c.in[slot].absent = true;
    c.out[PREFILL_OUT_PRESENT_K].absent = true;
    c.out[PREFILL_OUT_PRESENT_V].absent = true;
  });
}

/// Rows that do not stay: the call sees them, the cache afterwards does not
/// have them.
TEST(Cache, SomeRowsStay) {
  for (bool bshd : {false, true})
    for (bool inPlace : {false, true}) {
      Whole a(20, 3, bshd), b(9, 4, bshd);
      Cache cache(40, inPlace);
      Call call, second;
      prepare(call, cache, {{&a, 20, 0, 12}, {&b, 0, 0, 9}});
      setInts(call.in[PREFILL_IN_KEPT_ROWS], {1, 6}, {0, 5, 11, 13, 14, 20});
      ASSERT_EQ(call.run(), PREFILL_OK) << call.context.message;
      for (int64_t h = 0; h < call.hq; ++h)
        for (int c = 0; c < E; ++c) {
          ASSERT_NEAR(call.o(0, h, 11, c), a.o(0, h, 11, c), 1e-6);
          ASSERT_NEAR(call.o(0, h, 20, c), b.o(0, h, 8, c), 1e-6);
        }
      auto expectRow = [&](int64_t row, Whole &from, int64_t source) {
        for (int64_t h = 0; h < call.hk; ++h)
          for (int c = 0; c < D; ++c) {
            ASSERT_EQ(
                cache.k[cache.now].at<float>({0, h, row, c}),
                from.out[PREFILL_OUT_ROTATED_K].at<float>({0, h, source, c}));
            if (c < E)
              ASSERT_EQ(cache.v[cache.now].at<float>({0, h, row, c}),
                        from.v(0, h, source, c));
          }
      };
      for (auto [place, source] : {std::pair(0, 0), {1, 5}, {2, 11}})
        expectRow(20 + place, a, source);
      for (auto [place, source] : {std::pair(0, 1), {1, 2}, {2, 8}})
        expectRow(place, b, source);
      // The next call goes on behind them, and may keep nothing.
      prepare(second, cache, {{&a, 20, 12, 20}});
      setInts(second.in[PREFILL_IN_CACHE_SLOTS], {1, 2}, {20, 3});
      setInts(second.in[PREFILL_IN_KEPT_ROWS], {1}, {7});
      ASSERT_EQ(second.run(), PREFILL_OK) << second.context.message;
      expectRow(22, a, 11);
      expectRow(23, a, 19);
    }
}

TEST(Cache, WrongInputs) {
  Whole a(20, 3, false), b(20, 4, false);
  auto refused = [&](const std::vector<Work> &work, const char *message,
                     const std::function<void(Call &)> &change = nullptr) {
    Cache cache(30, true);
    Call call;
    prepare(call, cache, work);
    if (change)
      change(call);
    EXPECT_NE(call.run(), PREFILL_OK);
    EXPECT_NE(std::string(call.context.message).find(message),
              std::string::npos)
        << call.context.message;
  };
  const Work first{&a, 0, 0, 10};
  refused({{&a, 11, 0, 20}}, "segment 0: its 20 new rows do not fit: 20 rows "
                             "from row 11 on, the cache has 30");
  refused({{&a, 20, 5, 11}}, "its 6 new rows do not fit");
  refused({{&a, -1, 0, 10}}, "got 0 from row -1 on");
  refused({{&a, 31, 0, 10}}, "got 0 from row 31 on");
  refused({first, {&b, 9, 0, 10}}, "segments 0 and 1 share rows");
  refused({first}, "input CACHE_SLOTS: expected [1,2], got [2,2]", [](Call &c) {
    setInts(c.in[PREFILL_IN_CACHE_SLOTS], {2, 2}, {0, 0, 10, 0});
  });
  refused({first}, "got 9223372036854775807 from row 0 on", [](Call &c) {
    setInts(c.in[PREFILL_IN_CACHE_SLOTS], {1, 2}, {0, INT64_MAX});
  });
  refused({first}, "a cache is PAST_K, PAST_V, CACHE_SLOTS",
          [](Call &c) { c.in[PREFILL_IN_PAST_V].absent = true; });
  refused({first}, "output PRESENT_K: expected a tensor, got null",
          [](Call &c) { c.out[PREFILL_OUT_PRESENT_K].absent = true; });
  refused({first}, "only together with SEGMENT_STARTS",
          [](Call &c) { c.in[PREFILL_IN_SEGMENT_STARTS].absent = true; });
  refused({first}, "BLOCK_MAP: not together with CACHE_SLOTS",
          [](Call &c) { c.wantStatistics(); });
  auto kept = [](std::vector<int64_t> rows) {
    return [rows](Call &c) {
      setInts(c.in[PREFILL_IN_KEPT_ROWS], {static_cast<int64_t>(rows.size())},
              rows);
    };
  };
  refused({first}, "KEPT_ROWS: expected ascending rows from 0 to 9, got 10 at",
          kept({3, 10}));
  refused({first}, "got 3 at place 1", kept({3, 3}));
  refused({first}, "got -1 at place 0", kept({-1}));
  refused({first}, "input KEPT_ROWS: expected [1,?], got [2,1]",
          [](Call &c) { setInts(c.in[PREFILL_IN_KEPT_ROWS], {2, 1}, {0, 1}); });
  refused({first}, "input KEPT_ROWS: only with a cache", [&](Call &c) {
    kept({0})(c);
    for (int i : {PREFILL_IN_PAST_K, PREFILL_IN_PAST_V, PREFILL_IN_CACHE_SLOTS})
      c.in[i].absent = true;
    for (int i : {PREFILL_OUT_PRESENT_K, PREFILL_OUT_PRESENT_V})
      c.out[i].absent = true;
  });
  Tensor other;
  refused({first}, "PAST_V: expected [1,2,30,4], got [1,2,29,4]", [&](Call &c) {
    other.make({1, 2, 29, E}, kDLFloat, 32);
    c.in[PREFILL_IN_PAST_V].dl = other.dl;
  });
  refused({first}, "expected the memory of PAST_K or other memory",
          [](Call &c) { c.out[PREFILL_OUT_PRESENT_K].dl.byte_offset = 4; });
}

} // namespace
