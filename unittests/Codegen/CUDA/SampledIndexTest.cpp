//===- SampledIndexTest.cpp - The attention of some rows, on the device ---===//
//
// The kernel in the emulator. What it keeps is compared with softmaxes in
// float64, and with the CPU's runtime, which may differ where a choice hangs on
// a rounding.
//
//===----------------------------------------------------------------------===//

#include "DeviceIndex.h"
#include "Sampled.h"

using namespace prefill;
using namespace prefill::harness;
using namespace ref;

namespace {

template <int BQ, int BK, unsigned F = 0, class T = _Float16>
using Small = Problem<16, 16, BQ, BK, T, Causal | F>;

/// Builds the index on both sides; what is kept is the runtime's in all rows of
/// tiles, or, unless `exact`, the float64 oracle's and the runtime's in all but
/// a few.
template <class P>
void check(P &p, bool exact = false, const emu::Options &how = {}) {
  p.plan.dense_below = 0;
  Checked<P> checked(p);
  pf_call &call = checked.call;
  ASSERT_EQ(pf_build_index(&call), PREFILL_OK) << checked.context.message;
  DeviceIndex device;
  device.how = how;
  device.build(call);
  ASSERT_EQ(device.launchPrepare(), "");
  ASSERT_EQ(device.launchRest(), "");
  EXPECT_EQ(*device.x.status, 0u);
  int64_t rows = 0, others = 0;
  for (int64_t b = 0; b < call.b; ++b)
    for (int64_t h = 0; h < call.hq; ++h)
      for (int64_t tile = 0; tile < call.tiles; ++tile) {
        SCOPED_TRACE(testing::Message()
                     << "batch " << b << " head " << h << " tile " << tile);
        const DeviceIndex::Row row = device.row(b, h, tile);
        const DeviceIndex::Row expected = runtimeRow(call, b, h, tile);
        ++rows;
        others += !(row == expected);
        const prefill_head_plan &plan = p.heads[size_t(h)];
        if (exact || !call.index ||
            call.index[b * call.hq + h].mode == PF_HEAD_DENSE) {
          ASSERT_EQ(row, expected);
          continue;
        }
        EXPECT_TRUE(row.columns.empty());
        const std::vector<bool> visible = visibleBlocks(p, b, tile);
        const std::vector<double> mass = sampledMass(p, b, h, tile, plan);
        std::vector<bool> kept(visible.size());
        for (int32_t block : row.blocks)
          kept[size_t(block)] = true;
        if (mass.empty())
          EXPECT_EQ(kept, visible);
        else
          expectTopP(
              kept, visible,
              forcedBlocks(p, b, tile, (plan.local + call.bk - 1) / call.bk),
              mass, double(plan.top_p), 3e-4);
      }
  EXPECT_LE(others, rows / 50) << rows;
}

std::vector<prefill_head_plan> plans() {
  return {sampled(2, 0.5f), sampled(4, 0.8f, 20, 1), sampled(8, 0.95f),
          sampled(16, 0.3f, 1), sampled(1, 0.7f, 0, 1)};
}

template <class P>
void checkPlans(P &&p, std::vector<prefill_head_plan> heads) {
  p.heads = std::move(heads);
  p.hq = static_cast<int64_t>(p.heads.size());
  p.hk = p.hq % 2 ? 1 : 2;
  p.spread = 3;
  p.build(static_cast<uint64_t>(p.s + 3 * p.t));
  check(p);
}

TEST(DeviceSampled, KeepsTheBlocksItShould) {
  for (auto [rows, past] :
       {std::pair(2, 40), std::pair(65, 0), std::pair(150, 37),
        std::pair(16, 0), std::pair(333, 5), std::pair(1, 100)}) {
    SCOPED_TRACE(testing::Message() << rows << " rows, " << past << " before");
    Small<32, 16> p;
    p.s = rows, p.t = rows + past;
    checkPlans(p, plans());
  }
}

/// Several tiles at a time, a tile in several parts, strides that do not fit.
TEST(DeviceSampled, TilesAndTypes) {
  auto run = [](auto &&p, std::vector<prefill_head_plan> heads) {
    p.s = 270, p.t = 281;
    checkPlans(p, std::move(heads));
  };
  run(Small<16, 32>(), plans());
  run(Small<48, 32, 0, bf16>(), plans());
  run(Small<24, 16>(), {sampled(8, 0.6f), sampled(16, 0.6f)});
  run(Small<128, 64>(), {sampled(2, 0.5f), sampled(64, 0.4f, 0, 1)});
  Problem<80, 48, 128, 64, bf16, Causal> odd;
  run(odd, {sampled(8, 0.8f, 64, 1), sampled(2, 0.6f, 0, 1)});
  Problem<128, 256, 64, 32, _Float16, Causal> wide;
  run(wide, {sampled(8, 0.7f, 0, 1)});
  Problem<256, 16, 64, 48, bf16, Causal> widest;
  run(widest, {sampled(16, 0.7f)});
}

TEST(DeviceSampled, MasksWindowsLengths) {
  Small<32, 32,
        PREFILL_TILE_KEY_MASK | PREFILL_TILE_WINDOW | PREFILL_TILE_SOFTCAP>
      p;
  p.b = 3;
  p.s = p.t = 270;
  p.windowLeft = 130;
  p.heads = plans();
  p.hq = 5, p.hk = 1;
  p.spread = 3;
  p.build();
  hideKeys(p);
  check(p);
  Small<32, 16, PREFILL_TILE_KEY_MASK> masked;
  masked.b = 3;
  masked.s = 220, masked.t = 270;
  masked.heads = plans();
  masked.hq = 5, masked.hk = 5;
  masked.spread = 3;
  masked.build();
  hideKeys(masked);
  check(masked);
}

/// Rows that are looked at see nothing, others do: all is kept.
TEST(DeviceSampled, SeeingNothingKeepsEverything) {
  Small<16, 16, PREFILL_TILE_KEY_MASK | PREFILL_TILE_WINDOW> p;
  p.s = p.t = 200;
  p.windowLeft = 3;
  p.heads = {sampled(16, 0.5f), sampled(8, 0.5f), sampled(16, 0.5f, 0, 1),
             sampled(4, 0.5f)};
  p.build();
  Tensor &mask = p.in[PREFILL_IN_KEY_MASK];
  mask.make({1, 200}, kDLUInt, 8);
  for (int64_t j = 0; j < 200; ++j)
    mask.at<uint8_t>({0, j}) = j % 40 == 5;
  check(p);
  Small<32, 16, PREFILL_TILE_KEY_MASK> none;
  none.b = 2;
  none.s = none.t = 100;
  none.heads = plans();
  none.hq = 5, none.hk = 1;
  none.build();
  Tensor &empty = none.in[PREFILL_IN_KEY_MASK];
  empty.make({2, 100}, kDLUInt, 8);
  for (int64_t j = 0; j < 100; ++j) {
    empty.at<uint8_t>({0, j}) = 0;
    empty.at<uint8_t>({1, j}) = 1;
  }
  check(none);
}

/// Scores that are no numbers say nothing: all is kept, by the tiles whose rows
/// are looked at and see them.
TEST(DeviceSampled, NotFinite) {
  for (float bad : {NAN, INFINITY, -INFINITY})
    for (bool inKeys : {false, true}) {
      Small<32, 16, 0, bf16> p;
      p.hq = 3, p.hk = 1;
      p.s = p.t = 230;
      p.heads = {sampled(4, 0.2f), sampled(8, 0.3f, 0, 1), sampled(1, 0.2f)};
      p.build();
      for (int64_t h = 0; h < p.hq; ++h)
        for (int64_t i = 0; i < p.s; ++i)
          narrow(1.0, p.q(0, h, i, 1));
      narrow(double(bad), inKeys ? p.k(0, 0, 70, 1) : p.q(0, 1, 71, 1));
      SCOPED_TRACE(testing::Message() << bad << " in keys " << inKeys);
      check(p, true);
    }
  Small<32, 16> values;
  values.hq = 2, values.hk = 1;
  values.s = values.t = 130;
  values.heads.assign(2, sampled(4, 0.2f, 0, 1));
  values.build();
  values.v(0, 0, 20, 1) = static_cast<_Float16>(NAN);
  check(values, true);
}

/// Scores far apart, and none: equal masses, the lower block first.
TEST(DeviceSampled, TiesAndHugeScores) {
  Small<32, 16> p;
  p.s = p.t = 260;
  p.heads = plans();
  p.hq = 5, p.hk = 1;
  for (double spread : {0.0, 0.01, 1e3}) {
    SCOPED_TRACE(spread);
    p.spread = spread;
    p.build();
    check(p);
  }
}

/// Beside heads of other patterns, with mean values of their own.
TEST(DeviceSampled, BesideOthers) {
  Small<32, 16> p;
  p.s = p.t = 200;
  p.heads = {sampled(4, 0.6f, 0, 1), saleMass(0.8f, 4),   aShape(8, 20),
             sampled(8, 0.6f),       xAttention(4, 0.6f), sampled(3, 0.6f)};
  p.heads.push_back(sampled(4, 0.6f));
  p.heads.back().similarity = 0.3f;
  p.hq = 7, p.hk = 1;
  p.spread = 3;
  p.build();
  p.plan.dense_below = 0;
  Checked<Small<32, 16>> checked(p);
  ASSERT_EQ(pf_build_index(&checked.call), PREFILL_OK);
  DeviceIndex device;
  device.build(checked.call);
  ASSERT_EQ(device.launchPrepare(), "");
  ASSERT_EQ(device.launchRest(), "");
  for (int64_t h = 0; h < 7; ++h) {
    EXPECT_EQ(device.x.head_mode[h] == PREFILL_CUDA_HEAD_DENSE, h >= 5) << h;
    for (int64_t tile = 0; h < 6 && tile < checked.call.tiles; ++tile)
      EXPECT_EQ(device.row(0, h, tile), runtimeRow(checked.call, 0, h, tile))
          << h << " " << tile;
  }
}

/// Whatever the order of threads.
TEST(DeviceSampled, Shuffled) {
  Small<32, 32> p;
  p.s = p.t = 140;
  p.heads = plans();
  p.hq = 5, p.hk = 1;
  p.spread = 3;
  p.build();
  emu::Options how;
  how.late = true;
  how.seed = 17;
  check(p, false, how);
}

} // namespace
