//===- IndexTest.cpp - The sparse index: golden vectors and properties
//-----===//
#include "index.h"
#include "sparse.h"
#include "gtest/gtest.h"
#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <vector>

namespace {

/// A relative index with the memory it lives in.
struct Relative {
  pf_grid grid;
  std::vector<char> storage;
  std::vector<uint64_t> scratch;
  pf_head_index index;

  Relative(pf_grid g, const std::vector<int64_t> &diagonals,
           const std::vector<int32_t> &keys, int64_t promote = INT64_MAX,
           int64_t init = 0)
      : grid(g) {
    int64_t keyCount = static_cast<int64_t>(keys.size());
    storage.resize(static_cast<size_t>(pf_relative_bytes(&grid, keyCount)));
    pf_relative_init(&index, &grid, keyCount, storage.data());
    int64_t bits = grid.offset + grid.tiles * grid.bq + 64;
    std::vector<uint64_t> set(static_cast<size_t>(bits / 64 + 1));
    for (int64_t delta : diagonals)
      set[static_cast<size_t>(delta / 64)] |= uint64_t(1) << (delta % 64);
    scratch.resize(static_cast<size_t>(pf_max_distance(&grid) / 64 + 2));
    pf_relative_from_diagonals(&index, &grid, set.data(), bits, 0, scratch.data());
    pf_relative_set_columns(&index, &grid, keys.data(), keyCount, promote,
                            init);
  }
  std::vector<int> distances(int64_t phase = 0) const {
    return {index.distance + index.distance_begin[phase],
            index.distance + index.distance_begin[phase + 1]};
  }
  /// Causal visible blocks of a tile.
  int64_t end(int64_t tile, int64_t keys) const {
    int64_t last = grid.offset + (tile + 1) * grid.bq - 1;
    return std::min(keys - 1, last) / grid.bk + 1;
  }
  std::vector<uint64_t> bitmap(int64_t tile, int64_t keys) const {
    std::vector<uint64_t> kept(static_cast<size_t>(grid.blocks / 64 + 1));
    pf_index_row(&index, &grid, tile, 0, end(tile, keys), kept.data());
    return kept;
  }
  std::vector<int> row(int64_t tile, int64_t keys) const {
    auto kept = bitmap(tile, keys);
    std::vector<int> ids;
    for (int64_t i = 0; i < grid.blocks; ++i)
      if (kept[static_cast<size_t>(i / 64)] >> (i % 64) & 1)
        ids.push_back(static_cast<int>(i));
    return ids;
  }
  std::vector<int> columns(int64_t tile, int64_t keys) const {
    auto kept = bitmap(tile, keys);
    std::vector<int32_t> out(static_cast<size_t>(index.columns + 2 * grid.bk),
                             -7);
    int64_t first;
    int64_t count = pf_index_columns(&index, &grid, 0, end(tile, keys),
                                     kept.data(), out.data(), &first);
    EXPECT_EQ(first % grid.bk, 0);
    std::vector<int> live;
    for (int64_t i = 0; i < count; ++i) {
      int32_t position = out[static_cast<size_t>(i)];
      if (position == INT32_MAX)
        continue;
      EXPECT_EQ(position, index.column[first + i]);
      live.push_back(position);
    }
    for (int64_t i = count; i % grid.bk; ++i)
      EXPECT_EQ(out[static_cast<size_t>(i)], INT32_MAX);
    return live;
  }
};

using Ints = std::vector<int>;

// The golden vectors of reference/sparse-patterns.md, part (b).
TEST(Index, GoldenVectors) {
  Relative r({64, 64, 0, 8, 8}, {0, 1, 64, 200, 210, 330},
             {0, 5, 70, 130, 300});
  EXPECT_EQ(r.distances(), (Ints{0, 1, 3, 4, 5, 6}));
  const std::vector<Ints> blocks = {{0},
                                    {0, 1},
                                    {1, 2},
                                    {0, 2, 3},
                                    {0, 1, 3, 4},
                                    {0, 1, 2, 4, 5},
                                    {0, 1, 2, 3, 5, 6},
                                    {1, 2, 3, 4, 6, 7}};
  const std::vector<Ints> columns = {{},    {}, {0, 5}, {70},
                                     {130}, {}, {300},  {0, 5}};
  for (int tile = 0; tile < 8; ++tile) {
    EXPECT_EQ(r.row(tile, 512), blocks[static_cast<size_t>(tile)]) << tile;
    EXPECT_EQ(r.columns(tile, 512), columns[static_cast<size_t>(tile)]) << tile;
  }
}

TEST(Index, PromotesFullBlocksOfColumns) {
  std::vector<int32_t> keys;
  for (int32_t j = 64; j < 64 + 48; ++j)
    keys.push_back(j);
  keys.push_back(200);
  Relative r({64, 64, 0, 8, 8}, {0}, keys, 48);
  EXPECT_EQ(r.index.verticals, 1);
  EXPECT_EQ(r.index.columns, 1);
  EXPECT_EQ(r.row(7, 512), (Ints{1, 7}));
  EXPECT_EQ(r.columns(7, 512), (Ints{200}));
  EXPECT_EQ(r.columns(3, 512), (Ints{})); // in its own block
}

TEST(Index, InitBlocks) {
  Relative r({64, 64, 0, 8, 8}, {0}, {}, INT64_MAX, 65);
  EXPECT_EQ(r.row(5, 512), (Ints{0, 1, 5}));
  EXPECT_EQ(r.row(0, 512), (Ints{0}));
}

TEST(Index, DeadLeadingTilesAreLeftOut) {
  // 64 columns in block 0, which tile 1 keeps and tile 3 does not; then one.
  std::vector<int32_t> keys;
  for (int32_t j = 0; j < 64; ++j)
    keys.push_back(j);
  keys.push_back(70);
  Relative r({64, 64, 0, 8, 8}, {0, 128, 191}, keys);
  // Distances: 0, 2, 3. Tile 3 keeps 0, 1, 3; tile 2 keeps 0 and 2.
  EXPECT_EQ(r.distances(), (Ints{0, 2, 3}));
  auto kept = r.bitmap(2, 512);
  std::vector<int32_t> out(256);
  int64_t first;
  EXPECT_EQ(pf_index_columns(&r.index, &r.grid, 0, 3, kept.data(), out.data(),
                             &first),
            1);
  EXPECT_EQ(first, 64);
  EXPECT_EQ(out[0], 70);
  EXPECT_EQ(out[1], INT32_MAX);
}

struct Shape {
  int64_t bq, bk, offset;
};
class Properties : public testing::TestWithParam<Shape> {};

// Kept ⊇ every chosen diagonal and column; no key twice; every row has its own
// position.
TEST_P(Properties, CoverDiagonalsAndColumns) {
  const Shape shape = GetParam();
  std::mt19937_64 engine(5);
  auto below = [&](int64_t n) {
    return std::uniform_int_distribution<int64_t>(0, n - 1)(engine);
  };
  for (int repeat = 0; repeat < 20; ++repeat) {
    const int64_t rows = shape.bq * 5 + below(shape.bq) + 1;
    const int64_t keys = shape.offset + rows;
    pf_grid grid{shape.bq, shape.bk, shape.offset,
                 (rows + shape.bq - 1) / shape.bq,
                 (keys + shape.bk - 1) / shape.bk};
    std::set<int64_t> diagonals;
    std::set<int32_t> columns;
    for (int64_t i = below(12); i > 0; --i)
      diagonals.insert(below(keys));
    for (int64_t i = below(40); i > 0; --i)
      columns.insert(static_cast<int32_t>(below(keys)));
    Relative r(grid, {diagonals.begin(), diagonals.end()},
               {columns.begin(), columns.end()}, shape.bk / 2);
    for (int64_t tile = 0; tile < grid.tiles; ++tile) {
      const Ints ids = r.row(tile, keys);
      EXPECT_TRUE(std::is_sorted(ids.begin(), ids.end()));
      std::vector<int> times(static_cast<size_t>(keys));
      for (int id : ids)
        for (int64_t j = id * shape.bk; j < std::min(keys, (id + 1) * shape.bk);
             ++j)
          ++times[static_cast<size_t>(j)];
      for (int j : r.columns(tile, keys))
        ++times[static_cast<size_t>(j)];
      EXPECT_LE(*std::max_element(times.begin(), times.end()), 1);
      for (int64_t i = tile * shape.bq;
           i < std::min(rows, (tile + 1) * shape.bq); ++i) {
        const int64_t p = shape.offset + i;
        EXPECT_EQ(times[static_cast<size_t>(p)], 1) << "own position " << p;
        for (int64_t delta : diagonals)
          if (delta <= p) {
            EXPECT_EQ(times[static_cast<size_t>(p - delta)], 1)
                << p << " - " << delta;
          }
        for (int32_t j : columns)
          if (j <= p) {
            EXPECT_EQ(times[static_cast<size_t>(j)], 1);
          }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Index, Properties,
                         testing::Values(Shape{64, 64, 0}, Shape{64, 64, 17},
                                         Shape{64, 64, 128}, Shape{128, 64, 0},
                                         Shape{128, 64, 33}, Shape{32, 64, 0},
                                         Shape{32, 64, 40}, Shape{48, 32, 5},
                                         Shape{64, 16, 3}));

// A tile needs no block that no chosen diagonal of one of its rows touches:
// the relative form is exact, not only a superset.
TEST(Index, NoSuperfluousBlocks) {
  for (int64_t offset : {0, 17, 40}) {
    pf_grid grid{64, 64, offset, 8, (8 * 64 + offset + 63) / 64};
    const std::vector<int64_t> diagonals = {0, 1, 64, 200, 210, 330};
    Relative r(grid, diagonals, {});
    for (int64_t tile = 0; tile < 8; ++tile) {
      std::set<int> want;
      for (int64_t i = tile * 64; i < (tile + 1) * 64; ++i)
        for (int64_t delta : diagonals)
          if (delta <= offset + i)
            want.insert(static_cast<int>((offset + i - delta) / 64));
      EXPECT_EQ(r.row(tile, offset + 512), Ints(want.begin(), want.end()));
    }
  }
}

// --- select.c ---------------------------------------------------------------

std::vector<int> select(const std::vector<float> &value,
                        const std::vector<float> &cost, double budget) {
  const int64_t n = static_cast<int64_t>(value.size());
  std::vector<uint64_t> chosen(value.size() / 64 + 1, ~uint64_t(0));
  pf_select(value.data(), cost.empty() ? nullptr : cost.data(), n, budget,
            chosen.data());
  std::vector<int> ids;
  for (int64_t i = 0; i < n; ++i)
    if (chosen[static_cast<size_t>(i / 64)] >> (i % 64) & 1)
      ids.push_back(static_cast<int>(i));
  return ids;
}

TEST(Select, TopK) {
  EXPECT_EQ(select({3, 1, 4, 1, 5}, {}, 2), (Ints{2, 4}));
  EXPECT_EQ(select({3, 1, 4, 1, 5}, {}, 4), (Ints{0, 1, 2, 4}));
  EXPECT_EQ(select({3, 1, 4, 1, 5}, {}, 9), (Ints{0, 1, 2, 3, 4}));
  EXPECT_EQ(select({3, 1, 4, 1, 5}, {}, 0), (Ints{}));
  EXPECT_EQ(select({}, {}, 3), (Ints{}));
}
TEST(Select, TiesGoToTheLowerIndex) {
  EXPECT_EQ(select({2, 2, 2, 2}, {}, 2), (Ints{0, 1}));
  EXPECT_EQ(select({0.0f, -0.0f, 0.0f}, {}, 2), (Ints{0, 1}));
}
TEST(Select, SpecialValues) {
  const float inf = INFINITY;
  EXPECT_EQ(select({-1, inf, -inf, NAN, -2, inf}, {}, 3), (Ints{0, 1, 5}));
  EXPECT_EQ(select({-1, inf, -inf, NAN, -2, inf}, {}, 6), (Ints{0, 1, 4, 5}));
}
TEST(Select, Costs) {
  EXPECT_EQ(select({5, 4, 3, 2}, {2, 3, 1, 1}, 5), (Ints{0, 1}));
  // The list ends at the first that does not fit.
  EXPECT_EQ(select({5, 4, 3, 2}, {2, 4, 1, 1}, 5), (Ints{0}));
}
TEST(Select, AgainstSorting) {
  std::mt19937_64 engine(3);
  for (int repeat = 0; repeat < 200; ++repeat) {
    const size_t n = 1 + engine() % 500;
    std::vector<float> value(n), cost(n);
    for (size_t i = 0; i < n; ++i) {
      value[i] =
          static_cast<float>(static_cast<int64_t>(engine() % 2001) - 1000) *
          (repeat % 2 ? 1e-3f : 1e30f);
      cost[i] = static_cast<float>(1 + engine() % 4);
    }
    const double budget = static_cast<double>(engine() % (2 * n));
    std::vector<int> order(n);
    for (size_t i = 0; i < n; ++i)
      order[i] = static_cast<int>(i);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      return value[static_cast<size_t>(a)] > value[static_cast<size_t>(b)];
    });
    std::vector<int> want;
    double used = 0;
    for (int i : order) {
      used += static_cast<double>(cost[static_cast<size_t>(i)]);
      if (used > budget)
        break;
      want.push_back(i);
    }
    std::sort(want.begin(), want.end());
    EXPECT_EQ(select(value, cost, budget), want);
  }
}

} // namespace
