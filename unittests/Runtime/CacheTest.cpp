//===- CacheTest.cpp - Prompts in chunks, beside others -------------------===//

#include "Reference.h"
#include "gtest/gtest.h"

using namespace ref;

namespace {

constexpr int D = 8, E = 4;
using Call = Problem<D, E, 16, 16, float,
                     PREFILL_TILE_CAUSAL | PREFILL_TILE_WINDOW>;

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
  Tensor other;
  refused({first}, "PAST_V: expected [1,2,30,4], got [1,2,29,4]", [&](Call &c) {
    other.make({1, 2, 29, E}, kDLFloat, 32);
    c.in[PREFILL_IN_PAST_V].dl = other.dl;
  });
  refused({first}, "expected the memory of PAST_K or other memory",
          [](Call &c) { c.out[PREFILL_OUT_PRESENT_K].dl.byte_offset = 4; });
}

} // namespace
