//===- InfLLM.h - InfLLM v2 in float64 ------------------------*- C++ -*-===//
//
// The method again in float64, from the description at the top of
// estimate_compressed.c.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_UNITTESTS_RUNTIME_INFLLM_H
#define PREFILL_UNITTESTS_RUNTIME_INFLLM_H

#include "Mass.h"
#include <array>
#include <functional>
#include <map>

namespace ref {

inline int64_t firstKey(int64_t t,
                        const std::function<bool(int64_t)> &visible) {
  int64_t first = 0;
  while (first < t && !visible(first))
    ++first;
  return first;
}

/// Scores of the blocks of a tile, for all heads of a KV head.
template <class P>
std::vector<double> blockScores(P &p, int64_t b, int64_t kv, int64_t tile) {
  using Of = BlocksOf<P>;
  const int64_t group = p.hq / p.hk, length = p.kvLen(b);
  const int64_t means = length < 32 ? 0 : (length - 32) / 16 + 1;
  std::vector<double> mass(static_cast<size_t>(means));
  const int64_t end = std::min(p.s, (tile + 1) * Of::rows);
  for (int64_t h = kv * group; h < (kv + 1) * group; ++h)
    for (int64_t i = tile * Of::rows; i < end; ++i) {
      std::vector<double> x(mass.size(), MinusInf);
      double most = MinusInf, total = 0;
      for (int64_t m = 0; m < means; ++m) {
        const int64_t last = m * 16 + 31, at = p.position(b, i);
        double count = 0, product = 0;
        for (int64_t j = m * 16; j <= last; ++j)
          count += unmasked(p, b, j);
        if (count == 0 || last > at || last < at - p.windowLeft)
          continue;
        for (int64_t j = m * 16; j <= last; ++j)
          for (int64_t c = 0; c < Of::dim && unmasked(p, b, j); ++c)
            product += p.element(true, b, h, i, c) *
                       p.element(false, b, kv, j, c) / count;
        product /= std::sqrt(static_cast<double>(Of::dim));
        if (Of::features & PREFILL_TILE_SOFTCAP)
          product = p.softcap * std::tanh(product / p.softcap);
        x[static_cast<size_t>(m)] = product;
        most = std::max(most, product);
      }
      if (most == MinusInf)
        continue;
      for (double &value : x)
        total += value = std::exp(value - most);
      for (size_t m = 0; m < mass.size(); ++m)
        mass[m] += x[m] / total;
    }
  std::vector<double> scores(
      static_cast<size_t>((p.t + Of::keys - 1) / Of::keys));
  // A mean touches every block that it has a key of.
  for (int64_t m = 0; m < means; ++m)
    for (int64_t block = m * 16 / Of::keys; block <= (m * 16 + 31) / Of::keys;
         ++block)
      if (static_cast<size_t>(block) < scores.size())
        scores[static_cast<size_t>(block)] = std::max(
            scores[static_cast<size_t>(block)], mass[static_cast<size_t>(m)]);
  return scores;
}

/// Fails unless the tiles of all heads keep what they should; kept(b, h, tile)
/// says what they do. tolerance: of a block's score.
template <class P, class Kept>
void expectInfLLM(P &p, Kept keptOf, double tolerance = 1e-5) {
  using Of = BlocksOf<P>;
  std::map<std::array<int64_t, 3>, std::vector<double>> of;
  for (int64_t b = 0; b < p.b; ++b)
    for (int64_t h = 0; h < p.hq; ++h) {
      const prefill_head_plan &plan = p.heads[static_cast<size_t>(h)];
      if (plan.pattern != PREFILL_PATTERN_INFLLM_V2)
        continue;
      for (int64_t tile = 0; tile * Of::rows < p.s; ++tile) {
        SCOPED_TRACE(testing::Message()
                     << "batch " << b << " head " << h << " tile " << tile);
        const int64_t group = p.hq / p.hk;
        std::vector<double> &scores = of[{b, h / group, tile}];
        if (scores.empty())
          scores = blockScores(p, b, h / group, tile);
        const std::vector<bool> visible = visibleBlocks(p, b, tile);
        const std::vector<bool> kept = keptOf(b, h, tile);
        const int64_t first =
            firstKey(p.t, [&](int64_t j) { return unmasked(p, b, j); });
        const int64_t near = p.position(b, tile * Of::rows) / Of::keys -
                             (plan.local + Of::keys - 1) / Of::keys;
        int64_t count = 0, room = 0, others = 0;
        double least = INFINITY, most = 0;
        for (size_t block = 0; block < kept.size(); ++block) {
          const int64_t id = static_cast<int64_t>(block);
          ASSERT_TRUE(visible[block] || !kept[block]) << block;
          room += visible[block];
          count += kept[block];
          if (!visible[block])
            continue;
          if (id >= near || (plan.init && id * Of::keys < first + plan.init)) {
            ASSERT_TRUE(kept[block]) << "forced " << block;
            ++others;
          } else if (kept[block]) {
            least = std::min(least, scores[block]);
          } else {
            most = std::max(most, scores[block]);
          }
        }
        EXPECT_EQ(count, std::min(room, std::max<int64_t>(plan.top_k, others)));
        EXPECT_GE(least, most - tolerance);
      }
    }
}

} // namespace ref

#endif
