//===- Mass.h - Block masses in float64, and what must be kept --*- C++ -*-===//
//
// What the tests of estimators that give blocks a mass share: the probabilities
// of a row, and a check of the blocks that a call kept against a mass. Masses
// of the runtime are float32, so the check allows for ties within a tolerance.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_UNITTESTS_RUNTIME_MASS_H
#define PREFILL_UNITTESTS_RUNTIME_MASS_H

#include "Reference.h"
#include "gtest/gtest.h"
#include <algorithm>

namespace ref {

template <class P>
struct BlocksOf;
template <int D, int E, int BQ, int BK, class T, unsigned F>
struct BlocksOf<Problem<D, E, BQ, BK, T, F>> {
  static constexpr int64_t dim = D, rows = BQ, keys = BK;
  static constexpr unsigned features = F;
};

/// Softmax of one row over all keys that it sees; empty when there are none.
template <class P>
std::vector<double> probabilities(P &p, int64_t b, int64_t h, int64_t i) {
  using Of = BlocksOf<P>;
  std::vector<double> x(static_cast<size_t>(p.t), MinusInf);
  double m = MinusInf, l = 0;
  for (int64_t j = 0; j < p.t; ++j) {
    if (!p.visible(b, i, j))
      continue;
    double s = 0;
    for (int64_t c = 0; c < Of::dim; ++c)
      s += p.element(true, b, h, i, c) *
           p.element(false, b, h / (p.hq / p.hk), j, c);
    s /= std::sqrt(static_cast<double>(Of::dim));
    if (Of::features & PREFILL_TILE_SOFTCAP)
      s = p.softcap * std::tanh(s / p.softcap);
    x[static_cast<size_t>(j)] = s;
    m = std::max(m, s);
  }
  if (m == MinusInf)
    return {};
  for (double &value : x)
    l += value = std::exp(value - m);
  for (double &value : x)
    value /= l;
  return x;
}

/// Does key j exist, as far as lengths and key masks go?
template <class P>
bool unmasked(P &p, int64_t b, int64_t j) {
  return j < p.kvLen(b) && (p.in[PREFILL_IN_KEY_MASK].absent ||
                            p.integer(PREFILL_IN_KEY_MASK, {b, j}));
}

/// Blocks that a tile may visit: in the reach of its rows, not wholly masked.
template <class P>
std::vector<bool> visibleBlocks(P &p, int64_t b, int64_t tile) {
  using Of = BlocksOf<P>;
  std::vector<bool> seen;
  const int64_t row = tile * Of::rows;
  const int64_t low = p.position(b, row) - p.windowLeft;
  const int64_t high = p.position(b, std::min(p.s, row + Of::rows) - 1);
  for (int64_t begin = 0; begin < p.t; begin += Of::keys) {
    const int64_t end = std::min({p.t, p.kvLen(b), begin + Of::keys});
    bool any = false;
    for (int64_t j = begin; j < end; ++j)
      any |= unmasked(p, b, j);
    seen.push_back(any && begin <= high && end > low);
  }
  return seen;
}

/// The softmax of the mean of query rows [row, end) over the mean keys of
/// visible blocks.
template <class P>
std::vector<double> pooledMass(P &p, int64_t b, int64_t h, int64_t row,
                               int64_t end, const std::vector<bool> &visible) {
  using Of = BlocksOf<P>;
  std::vector<double> mass(visible.size());
  double total = 0, most = MinusInf;
  for (size_t block = 0; block < visible.size(); ++block) {
    if (!visible[block])
      continue;
    const int64_t first = static_cast<int64_t>(block) * Of::keys;
    double product = 0, count = 0;
    for (int64_t j = first; j < std::min(p.t, first + Of::keys); ++j)
      count += unmasked(p, b, j);
    for (int64_t c = 0; c < Of::dim; ++c) {
      double q = 0, k = 0;
      for (int64_t i = row; i < end; ++i)
        q += p.element(true, b, h, i, c) / static_cast<double>(end - row);
      for (int64_t j = first; j < std::min(p.t, first + Of::keys); ++j)
        if (unmasked(p, b, j))
          k += p.element(false, b, h / (p.hq / p.hk), j, c) / count;
      product += q * k;
    }
    product /= std::sqrt(static_cast<double>(Of::dim));
    if (Of::features & PREFILL_TILE_SOFTCAP)
      product = p.softcap * std::tanh(product / p.softcap);
    mass[block] = product;
    most = std::max(most, product);
  }
  for (size_t block = 0; block < visible.size(); ++block)
    total += mass[block] = visible[block] ? std::exp(mass[block] - most) : 0;
  for (double &x : mass)
    x /= total;
  return mass;
}

/// The blocks that a call with wantStatistics() kept of a tile.
template <class P>
std::vector<bool> keptBlocks(P &p, int64_t b, int64_t h, int64_t tile) {
  using Of = BlocksOf<P>;
  std::vector<bool> kept;
  for (int64_t block = 0; block * Of::keys < p.t; ++block)
    kept.push_back(
        p.out[PREFILL_OUT_BLOCK_MAP].template at<uint8_t>({b, h, tile, block}));
  return kept;
}

/// The tile's own blocks and those of the first visible key and of `near`
/// blocks before the own ones.
template <class P>
std::vector<bool> forcedBlocks(P &p, int64_t b, int64_t tile,
                               int64_t near = 0) {
  using Of = BlocksOf<P>;
  std::vector<bool> forced = visibleBlocks(p, b, tile);
  const int64_t own = p.position(b, tile * Of::rows) / Of::keys - near;
  int64_t first = 0; // block of the first key that the masks leave
  while (first < p.t && !unmasked(p, b, first))
    ++first;
  for (size_t block = 0; block < forced.size(); ++block)
    if (static_cast<int64_t>(block) < own &&
        static_cast<int64_t>(block) > first / Of::keys)
      forced[block] = false;
  return forced;
}

/// Is `kept` what top-p leaves of `mass`: the forced blocks, then those of
/// greatest mass, the last of which is the one that reaches the share?
inline void expectTopP(const std::vector<bool> &kept,
                       const std::vector<bool> &visible,
                       const std::vector<bool> &forced,
                       const std::vector<double> &mass, double topP,
                       double tolerance = 1e-4) {
  double total = 0, used = 0, least = INFINITY, most = 0;
  for (size_t i = 0; i < kept.size(); ++i) {
    ASSERT_TRUE(visible[i] || !kept[i]) << "hidden block " << i;
    if (!visible[i])
      continue;
    total += mass[i];
    if (forced[i]) {
      ASSERT_TRUE(kept[i]) << "forced block " << i;
      used += mass[i];
    } else if (kept[i]) {
      used += mass[i];
      least = std::min(least, mass[i]);
    } else {
      most = std::max(most, mass[i]);
    }
  }
  const double slack = tolerance * total;
  EXPECT_GE(least, most - slack);
  if (most > slack)
    EXPECT_GE(used, topP * total - slack);
  if (least < INFINITY)
    EXPECT_LT(used - least, topP * total + slack);
}

} // namespace ref

#endif
