//===- StridedTest.cpp - The strided pattern against its definition -------===//
//
// A tile keeps, of the blocks it sees: those with one of the first `init` keys,
// those with one of the last `local` keys before one of its rows (its own among
// them), and those whose distance from its top block is a multiple of `stride`.
//
//===----------------------------------------------------------------------===//
#include "Mass.h"
#include "Plans.h"

using namespace ref;

namespace {

/// Runs the problem and checks every tile of every head, block by block.
template <class P>
void check(P &p) {
  using Of = BlocksOf<P>;
  p.plan.dense_below = 0;
  p.wantStatistics();
  ASSERT_EQ(p.run(), PREFILL_OK) << p.context.message;
  for (int64_t b = 0; b < p.b; ++b)
    for (int64_t h = 0; h < p.hq; ++h)
      for (int64_t tile = 0; tile * Of::rows < p.s; ++tile) {
        const prefill_head_plan &plan = p.heads[static_cast<size_t>(h)];
        const std::vector<bool> visible = visibleBlocks(p, b, tile);
        const std::vector<bool> kept = keptBlocks(p, b, h, tile);
        int64_t sink = 0; // the first key that the masks leave
        while (sink < p.t && !unmasked(p, b, sink))
          ++sink;
        sink += plan.init;
        // Of a whole tile: rows past the end count as rows.
        const int64_t first = p.position(b, tile * Of::rows);
        const int64_t top = (first + Of::rows - 1) / Of::keys;
        const int64_t near = first - std::max(plan.local, 1) + 1;
        for (int64_t block = 0; block * Of::keys < p.t; ++block) {
          const bool initial = plan.init > 0 && block * Of::keys < sink;
          const bool local = (block + 1) * Of::keys > near;
          const bool multiple =
              plan.stride > 0 && (top - block) % plan.stride == 0;
          const bool expected =
              visible[static_cast<size_t>(block)] &&
              (initial || local || multiple || plan.stride <= 0 /* dense */);
          ASSERT_EQ(kept[static_cast<size_t>(block)], expected)
              << "batch " << b << " head " << h << " tile " << tile << " block "
              << block << " of " << top;
        }
      }
}

TEST(Strided, KeepsWhatItSays) {
  for (int64_t s : {2, 16, 100, 333, 700})
    for (int64_t past : {0, 5, 64, 100}) {
      Problem<8, 4, 16, 16, float, PREFILL_TILE_CAUSAL> p;
      p.b = 2;
      p.hq = 8;
      p.hk = 4;
      p.s = s;
      p.t = s + past;
      p.heads = {strided(16, 32, 4),  strided(0, 0, 3),
                 strided(20, 40, 1),  strided(1, 17, 7),
                 strided(0, 48, 64),  strided(0, 1, INT32_MAX),
                 strided(1000, 0, 5), strided(8, 8, 0)};
      p.build(static_cast<uint64_t>(s + past));
      SCOPED_TRACE(testing::Message() << "s " << s << " past " << past);
      check(p);
    }
}

template <class P>
void checkShape() {
  P p;
  p.s = 300;
  p.t = 337;
  p.heads = {strided(8, 30, 4), strided(0, 64, 3), strided(33, 0, 2),
             strided(0, 300, 5)};
  p.build();
  check(p);
}

TEST(Strided, TilesAndBlocksOfOtherSizes) {
  checkShape<Problem<8, 4, 32, 16, float, PREFILL_TILE_CAUSAL>>();
  checkShape<Problem<8, 4, 16, 32, float, PREFILL_TILE_CAUSAL>>();
  checkShape<Problem<8, 4, 48, 32, float, PREFILL_TILE_CAUSAL>>();
  checkShape<Problem<8, 4, 64, 64, float, PREFILL_TILE_CAUSAL>>();
}

TEST(Strided, PaddingMasksAndWindows) {
  constexpr unsigned F =
      PREFILL_TILE_CAUSAL | PREFILL_TILE_WINDOW | PREFILL_TILE_KEY_MASK;
  Problem<8, 4, 16, 16, float, F> p;
  p.b = 3;
  p.s = p.t = 250;
  p.windowLeft = 150;
  p.heads = {strided(8, 30, 4), strided(40, 1, 3), strided(0, 0, 2),
             strided(8, 50, 100)};
  p.build();
  Tensor &mask = p.in[PREFILL_IN_KEY_MASK];
  mask.make({3, 250}, kDLInt, 64);
  for (int64_t j = 0; j < 250; ++j) {
    mask.at<int64_t>({0, j}) = j >= 77; // padding on the left
    mask.at<int64_t>({1, j}) = j < 200; // and on the right
    mask.at<int64_t>({2, j}) = j % 7 != 3;
  }
  check(p);
}

} // namespace
