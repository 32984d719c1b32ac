//===- FlexPrefill.h - FlexPrefill in float64 ------------------*- C++ -*-===//
//
// The method again in float64, from the description at the top of
// estimate_flex.c; Mass.h compares.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_UNITTESTS_RUNTIME_FLEXPREFILL_H
#define PREFILL_UNITTESTS_RUNTIME_FLEXPREFILL_H

#include "Mass.h"
#include <numeric>

namespace ref {

/// Indices by falling value, equal ones ascending.
inline std::vector<size_t> falling(const std::vector<double> &x) {
  std::vector<size_t> order(x.size());
  std::iota(order.begin(), order.end(), size_t(0));
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return x[a] != x[b] ? x[a] > x[b] : a < b;
  });
  return order;
}

/// Smallest number of greatest values with more than gamma of the sum.
inline int64_t countTo(const std::vector<double> &x, double gamma) {
  const double total = std::accumulate(x.begin(), x.end(), 0.0);
  double sum = 0;
  int64_t count = 0;
  for (size_t i : falling(x)) {
    ++count;
    if ((sum += x[i]) > gamma * total)
      break;
  }
  return count;
}

inline std::vector<bool> greatest(const std::vector<double> &x, int64_t count) {
  std::vector<bool> chosen(x.size());
  const std::vector<size_t> order = falling(x);
  for (size_t i = 0; i < order.size() && static_cast<int64_t>(i) < count; ++i)
    chosen[order[i]] = true;
  return chosen;
}

/// What one head decides before its tiles.
struct Head {
  double distance = 0; ///< square root of the Jensen-Shannon divergence
  std::vector<double> columns, diagonals; // by key, by distance
  std::vector<double> byBlock, bySlash;   // by blocks of them
};

template <class P>
Head look(P &p, int64_t b, int64_t h, int64_t last) {
  using Of = BlocksOf<P>;
  Head head;
  int64_t rowEnd = 0, lastKey = 0;
  for (int64_t j = 0; j < p.t; ++j)
    if (unmasked(p, b, j))
      lastKey = j + 1;
  rowEnd = std::min(p.s, lastKey - p.position(b, 0));
  const int64_t rowBegin = std::max<int64_t>(0, rowEnd - last);
  head.columns.assign(static_cast<size_t>(lastKey), 0);
  head.diagonals = head.columns;
  for (int64_t i = rowBegin; i < rowEnd; ++i) {
    const std::vector<double> row = probabilities(p, b, h, i);
    for (size_t j = 0; j < row.size(); ++j)
      if (row[j] > 0) {
        head.columns[j] += row[j];
        head.diagonals[static_cast<size_t>(p.position(b, i)) - j] += row[j];
      }
  }
  const size_t bk = Of::keys;
  head.byBlock.assign((static_cast<size_t>(p.t) + bk - 1) / bk, 0);
  head.bySlash.assign(head.byBlock.size() + 2, 0);
  for (size_t j = 0; j < head.columns.size(); ++j)
    head.byBlock[j / bk] += head.columns[j];
  for (size_t j = 0; j < head.diagonals.size(); ++j)
    head.bySlash[j / bk] += head.diagonals[j];
  std::vector<bool> seen(head.byBlock.size());
  for (size_t block = 0; block < seen.size(); ++block)
    for (size_t j = block * bk; j < (block + 1) * bk; ++j)
      if (static_cast<int64_t>(j) < std::min(lastKey, p.position(b, rowEnd)) &&
          unmasked(p, b, static_cast<int64_t>(j)))
        seen[block] = true;
  const std::vector<double> pooled =
      pooledMass(p, b, h, rowBegin, rowEnd, seen);
  const double total =
      std::accumulate(head.byBlock.begin(), head.byBlock.end(), 0.0);
  double divergence = 0;
  for (size_t block = 0; block < seen.size(); ++block) {
    const double x = head.byBlock[block] / total, y = pooled[block];
    if (x > 0)
      divergence += x * std::log(2 * x / (x + y)) / 2;
    if (y > 0)
      divergence += y * std::log(2 * y / (x + y)) / 2;
  }
  head.distance = std::sqrt(divergence);
  return head;
}

/// Fails unless the tiles of a head keep what they should; kept(tile) says what
/// they do. tolerance: of a tile's mass.
template <class P, class Kept>
void expectFlex(P &p, int64_t b, int64_t h, Kept kept,
                double tolerance = 1e-4) {
  using Of = BlocksOf<P>;
  const prefill_head_plan &plan = p.heads[static_cast<size_t>(h)];
  Head head = look(p, b, h, plan.last);
  const double gamma = static_cast<double>(plan.top_p);
  const bool aware = head.distance < static_cast<double>(plan.threshold);
  const int64_t least = (plan.min_budget + Of::keys - 1) / Of::keys;
  int64_t columns = std::max<int64_t>(least, 1), slashes = columns;
  if (!aware) {
    columns = std::max(columns, countTo(head.columns, gamma) / Of::keys + 1);
    slashes = std::max(slashes, countTo(head.diagonals, gamma) / Of::keys + 1);
  }
  size_t first = 0;
  while (!unmasked(p, b, static_cast<int64_t>(first)))
    ++first;
  head.byBlock[first / Of::keys] = head.bySlash[0] = INFINITY;
  const std::vector<bool> column = greatest(head.byBlock, columns);
  const std::vector<bool> slash = greatest(head.bySlash, slashes);
  for (int64_t tile = 0; tile * Of::rows < p.s; ++tile) {
    SCOPED_TRACE(testing::Message() << "batch " << b << " head " << h
                                    << " tile " << tile << " aware " << aware);
    std::vector<bool> forced = forcedBlocks(p, b, tile);
    const std::vector<bool> visible = visibleBlocks(p, b, tile);
    const int64_t top = p.position(b, (tile + 1) * Of::rows - 1) / Of::keys;
    for (size_t block = 0; block < forced.size(); ++block) {
      const int64_t distance = top - static_cast<int64_t>(block);
      forced[block] =
          visible[block] &&
          (forced[block] || column[block] ||
           (distance >= 0 && distance < static_cast<int64_t>(slash.size()) &&
            slash[static_cast<size_t>(distance)]));
    }
    expectTopP(kept(tile), visible, forced,
               pooledMass(p, b, h, tile * Of::rows,
                          std::min(p.s, (tile + 1) * Of::rows), visible),
               aware ? gamma : 0, tolerance);
  }
}

} // namespace ref

#endif
