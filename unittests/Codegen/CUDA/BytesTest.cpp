//===- BytesTest.cpp - Heads that are scored in bytes, on the device ------===//
//
// SALE's kernels in the emulator. What they keep is compared with an estimate
// that goes key by key in float64, and with the CPU's runtime, which may differ
// where a choice hangs on a rounding.
//
//===----------------------------------------------------------------------===//

#include "DeviceIndex.h"
#include "Sale.h"

using namespace prefill;
using namespace prefill::harness;
using namespace ref;

namespace {

template <int BQ, int BK, unsigned F = 0, class T = _Float16>
using Small = Problem<16, 16, BQ, BK, T, Causal | F>;

prefill_head_plan valued(prefill_head_plan plan) {
  plan.values = 1;
  return plan;
}

/// Builds the index on the device; `exact`: what it keeps is the runtime's in
/// all rows, else in all but a few.
template <class P>
void check(P &p, bool exact = false, const emu::Options &how = {}) {
  p.plan.dense_below = 0;
  Checked<P> checked(p);
  pf_call &call = checked.call;
  ASSERT_EQ(pf_build_index(&call), PREFILL_OK) << checked.context.message;
  ASSERT_NE(call.index, nullptr);
  DeviceIndex device;
  device.how = how;
  device.build(call);
  ASSERT_EQ(device.launchPrepare(), "");
  ASSERT_EQ(device.launchRest(), "");
  EXPECT_EQ(*device.x.status, 0u);
  const int64_t bq = call.bq, bk = call.bk;
  int64_t rows = 0, others = 0, doubts = 0, total = 0;
  for (int64_t b = 0; b < call.b; ++b)
    for (int64_t h = 0; h < call.hq; ++h) {
      const prefill_head_plan &plan = p.heads[size_t(h)];
      ExpectedSale<P> expected(p, b, h);
      for (int64_t tile = 0; tile < call.tiles; ++tile) {
        const DeviceIndex::Row row = device.row(b, h, tile);
        ++rows;
        others += !(row == runtimeRow(call, b, h, tile));
        EXPECT_TRUE(row.columns.empty());
        if (exact || plan.values || plan.pattern != PREFILL_PATTERN_SALE)
          continue;
        const auto verdicts = expected.tile(tile);
        const std::set<int64_t> kept(row.blocks.begin(), row.blocks.end());
        for (size_t block = 0; block < verdicts.size(); ++block) {
          ++total;
          if (verdicts[block] == ExpectedSale<P>::Doubt)
            ++doubts;
          else
            ASSERT_EQ(kept.count(int64_t(block)) == 1,
                      verdicts[block] == ExpectedSale<P>::Kept)
                << "batch " << b << " head " << h << " tile " << tile
                << " block " << block << " of " << bq << " x " << bk;
        }
      }
    }
  EXPECT_LE(others, exact ? 0 : rows / 25) << rows;
  EXPECT_LE(doubts, total / 50 + 1);
}

std::vector<prefill_head_plan> salePlans() {
  return {saleMass(0.8f),
          saleMass(0.9f, 4, 8),
          valued(saleMass(0.9f, 8, 4)),
          valued(saleMass(0.8f, 4)),
          sale(0.05f),
          sale(0.03f, 4, 20, 40, 4),
          saleMass(0.5f, 0, 3, 0, 0),
          sale(0.05f, 0, 0, 0)};
}

template <class P>
void checkPlans(P &&p, std::vector<prefill_head_plan> heads) {
  p.heads = std::move(heads);
  p.hq = static_cast<int64_t>(p.heads.size());
  p.hk = p.hq % 2 ? 1 : 2;
  p.spread = 2;
  p.build(static_cast<uint64_t>(p.s + 3 * p.t));
  check(p);
}

TEST(DeviceSale, KeepsTheBlocksItShould) {
  for (auto [rows, past] : {std::pair(2, 40), std::pair(65, 0),
                            std::pair(150, 37), std::pair(16, 0)}) {
    SCOPED_TRACE(testing::Message() << rows << " rows, " << past << " before");
    Small<32, 16> p;
    p.s = rows, p.t = rows + past;
    checkPlans(p, salePlans());
  }
}

/// More rows than are scored at once; blocks of more keys than are scored at
/// once; keys that all rows see without a mask.
TEST(DeviceSale, TilesAndTypes) {
  auto run = [](auto &&p) {
    p.s = 270, p.t = 281;
    checkPlans(p, salePlans());
  };
  run(Small<64, 64>());
  run(Small<16, 32, 0, bf16>());
  Problem<80, 48, 128, 64, _Float16, Causal> wide;
  wide.s = wide.t = 300;
  checkPlans(wide, {saleMass(0.8f), valued(saleMass(0.9f, 8, 4, 8, 64)),
                    sale(0.01f, 8, 8, 24, 4)});
}

TEST(DeviceSale, MasksWindowsSoftcaps) {
  Small<32, 32, PREFILL_TILE_KEY_MASK | PREFILL_TILE_WINDOW> p;
  p.b = 3;
  p.s = p.t = 270;
  p.windowLeft = 130;
  p.heads = salePlans();
  p.hq = static_cast<int64_t>(p.heads.size());
  p.spread = 2;
  p.build();
  hideKeys(p);
  check(p);
  Small<32, 32, PREFILL_TILE_SOFTCAP> capped;
  capped.s = capped.t = 200;
  capped.softcap = 3;
  checkPlans(capped, salePlans());
}

/// Scores that are no numbers, or might not be, say nothing: all is kept.
TEST(DeviceSale, NotFinite) {
  for (bool inKeys : {false, true}) {
    Small<32, 16> p;
    p.hq = 2, p.hk = 1;
    p.s = p.t = 130;
    p.heads = {saleMass(0.2f), sale(0.3f)};
    p.build();
    for (int64_t h = 0; h < (inKeys ? 1 : 2); ++h)
      (inKeys ? p.k(0, h, 70, 1) : p.q(0, h, 70, 1)) =
          static_cast<_Float16>(inKeys ? NAN : INFINITY);
    check(p, true);
  }
  Small<32, 16> values;
  values.hq = 2, values.hk = 1;
  values.s = values.t = 130;
  values.heads.assign(2, valued(saleMass(0.2f, 8, 4)));
  values.build();
  values.v(0, 0, 20, 1) = static_cast<_Float16>(NAN);
  check(values, true);
}

/// Equal masses: the lower block first. No mass at all: all that is not forced.
TEST(DeviceSale, Ties) {
  Small<32, 16> p;
  p.s = p.t = 200;
  p.heads = {saleMass(0.5f, 8, 0, 0, 0), sale(0.01f), saleMass(0.3f, 4, 4)};
  p.hq = 3, p.hk = 1;
  p.spread = 0;
  p.build();
  check(p, true);
}

/// Whatever the order of threads.
TEST(DeviceSale, Shuffled) {
  Small<32, 32> p;
  p.s = p.t = 140;
  p.heads = {valued(saleMass(0.8f, 8, 4)), sale(0.05f)};
  p.hq = 2, p.hk = 1;
  p.spread = 2;
  p.build();
  emu::Options how;
  how.late = true;
  how.seed = 17;
  check(p, false, how);
}

} // namespace
