//===- FlexIndexTest.cpp - FlexPrefill's blocks, on the device ------------===//
//
// The kernels in the emulator, given the runtime's sums of the last rows
// (SumsTest.cpp has the device's). What they keep is compared with the method
// in float64, and with the CPU's runtime, which may differ where a choice hangs
// on a rounding.
//
//===----------------------------------------------------------------------===//

#include "DeviceIndex.h"
#include "FlexPrefill.h"

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
  RuntimeSums sums(call, device.x);
  sums.give(device);
  ASSERT_EQ(device.launchPrepare(), "");
  ASSERT_EQ(device.launch("sums", device.x.heads, device.x.batch), "");
  ASSERT_EQ(device.launchRest(), "");
  EXPECT_EQ(*device.x.status, 0u);
  int64_t rows = 0, others = 0;
  for (int64_t b = 0; b < call.b; ++b)
    for (int64_t h = 0; h < call.hq; ++h) {
      const bool dense =
          !call.index || call.index[b * call.hq + h].mode == PF_HEAD_DENSE;
      const prefill_head_plan &plan = p.heads[size_t(h)];
      const bool same =
          exact || dense || plan.pattern != PREFILL_PATTERN_FLEXPREFILL;
      for (int64_t tile = 0; tile < call.tiles; ++tile) {
        const DeviceIndex::Row row = device.row(b, h, tile);
        const DeviceIndex::Row expected = runtimeRow(call, b, h, tile);
        ++rows;
        others += !(row == expected);
        if (same)
          ASSERT_EQ(row, expected) << b << " " << h << " " << tile;
        else
          EXPECT_TRUE(row.columns.empty());
      }
      if (!same)
        expectFlex(
            p, b, h,
            [&](int64_t tile) {
              std::vector<bool> kept(size_t(call.blocks));
              for (int32_t block : device.row(b, h, tile).blocks)
                kept[size_t(block)] = true;
              return kept;
            },
            3e-4);
    }
  EXPECT_LE(others, rows / 50) << rows;
}

std::vector<prefill_head_plan> plans() {
  return {flexPrefill(0.5f, 0, 0, 16),    flexPrefill(0.9f, 1, 0, 16),
          flexPrefill(0.7f, 0.3f, 40, 7), flexPrefill(0.3f, 0, 33, 32),
          flexPrefill(0.2f, 1, 64, 16),   flexPrefill(0.95f, 0.35f, 16, 16)};
}

template <class P>
void checkPlans(P &&p, std::vector<prefill_head_plan> heads) {
  p.heads = std::move(heads);
  p.hq = static_cast<int64_t>(p.heads.size());
  p.hk = p.hq % 2 ? 1 : 2;
  p.spread = 4;
  p.build(static_cast<uint64_t>(p.s + 3 * p.t));
  check(p);
}

TEST(DeviceFlexPrefill, KeepsTheBlocksItShould) {
  for (auto [rows, past] :
       {std::pair(2, 40), std::pair(65, 0), std::pair(150, 37),
        std::pair(16, 0), std::pair(500, 5), std::pair(1, 100)}) {
    SCOPED_TRACE(testing::Message() << rows << " rows, " << past << " before");
    Small<32, 16> p;
    p.s = rows, p.t = rows + past;
    checkPlans(p, plans());
  }
}

TEST(DeviceFlexPrefill, TilesAndTypes) {
  auto run = [](auto &&p) {
    p.s = 300, p.t = 337;
    checkPlans(p, plans());
  };
  run(Small<16, 32>());
  run(Small<48, 32, 0, bf16>());
  run(Small<128, 64>());
  Problem<80, 16, 64, 64, bf16, Causal> wide;
  run(wide);
}

/// Heads just on both sides of tau.
TEST(DeviceFlexPrefill, TheDistanceDecides) {
  Small<32, 16> p;
  p.s = 200, p.t = 233;
  p.spread = 3;
  p.heads.assign(4, flexPrefill(0.8f, 1, 16, 16));
  p.build();
  for (double side : {0.999, 1.001}) {
    for (int64_t h = 0; h < 4; ++h)
      p.heads[size_t(h)].threshold =
          static_cast<float>(look(p, 0, h, 16).distance * side);
    SCOPED_TRACE(side);
    check(p);
  }
}

TEST(DeviceFlexPrefill, MasksWindowsLengths) {
  Small<32, 16,
        PREFILL_TILE_KEY_MASK | PREFILL_TILE_WINDOW | PREFILL_TILE_SOFTCAP>
      p;
  p.b = 3;
  p.s = p.t = 350;
  p.windowLeft = 170;
  p.heads = plans();
  p.hq = 6, p.hk = 2;
  p.spread = 4;
  p.build();
  hideKeys(p);
  check(p);
  Small<32, 32, PREFILL_TILE_KEY_MASK> masked;
  masked.b = 3;
  masked.s = 280, masked.t = 350;
  masked.heads = plans();
  masked.hq = 6, masked.hk = 3;
  masked.spread = 4;
  masked.build();
  hideKeys(masked);
  check(masked);
}

/// Sums that are no numbers, pooled scores that are none: as the CPU has it.
TEST(DeviceFlexPrefill, NotFinite) {
  for (float tau : {0.0f, 1.0f})
    for (float bad : {NAN, INFINITY, -INFINITY})
      for (bool inKeys : {false, true})
        for (int64_t at : {70, 225}) { // far from the last rows, and among them
          Small<32, 16, 0, bf16> p;
          p.hq = 2, p.hk = 1;
          p.s = p.t = 230;
          p.heads.assign(2, flexPrefill(0.1f, tau, 0, 16));
          p.build();
          narrow(double(bad), inKeys ? p.k(0, 0, at, 1) : p.q(0, 1, at, 1));
          SCOPED_TRACE(testing::Message()
                       << bad << " in keys " << inKeys << " tau " << tau);
          check(p, true);
        }
}

/// A query of zeros sees all keys alike; scores far apart.
TEST(DeviceFlexPrefill, TiesAndHugeScores) {
  Small<32, 16> p;
  p.s = p.t = 260;
  p.heads = plans();
  p.hq = 6, p.hk = 2;
  for (double spread : {0.0, 1e3}) {
    SCOPED_TRACE(spread);
    p.spread = spread;
    p.build();
    check(p, true);
  }
}

/// A batch entry without a visible key.
TEST(DeviceFlexPrefill, EverythingMasked) {
  Small<32, 16, PREFILL_TILE_KEY_MASK> p;
  p.b = 2;
  p.s = p.t = 100;
  p.heads = plans();
  p.hq = 6, p.hk = 2;
  p.build();
  Tensor &mask = p.in[PREFILL_IN_KEY_MASK];
  mask.make({2, 100}, kDLUInt, 8);
  for (int64_t j = 0; j < 100; ++j) {
    mask.at<uint8_t>({0, j}) = 0;
    mask.at<uint8_t>({1, j}) = 1;
  }
  check(p);
}

/// Beside heads of other patterns, and one with a guard, which is dense here.
TEST(DeviceFlexPrefill, BesideOthers) {
  Small<32, 16> p;
  p.s = p.t = 200;
  p.heads = {flexPrefill(0.6f, 0, 0, 16), verticalSlash(40, 60, 16),
             blockTopP(0.5f), aShape(8, 20), flexPrefill(0.5f, 1, 0, 16)};
  p.hq = 5, p.hk = 1;
  p.build();
  check(p);
  for (bool others : {true, false}) {
    p.heads = {others ? verticalSlash(40, 60, 16) : aShape(8, 20),
               flexPrefill(0.6f, 0, 0, 16)};
    p.heads[1].similarity = 0.3f;
    p.hq = 2;
    p.build();
    p.plan.dense_below = 0;
    Checked<Small<32, 16>> checked(p);
    DeviceIndex device;
    device.build(checked.call);
    RuntimeSums sums(checked.call, device.x);
    if (others)
      sums.give(device);
    ASSERT_EQ(device.launchPrepare(), "");
    if (others)
      ASSERT_EQ(device.launch("sums", 2, 1), "");
    ASSERT_EQ(device.launchRest(), "");
    EXPECT_EQ(device.x.head_mode[0], PREFILL_CUDA_HEAD_RELATIVE);
    EXPECT_EQ(device.x.head_mode[1], PREFILL_CUDA_HEAD_DENSE);
  }
}

/// Whatever the order of threads.
TEST(DeviceFlexPrefill, Shuffled) {
  Small<32, 32> p;
  p.s = p.t = 140;
  p.heads = plans();
  p.hq = 6, p.hk = 2;
  p.spread = 4;
  p.build();
  emu::Options how;
  how.late = true;
  how.seed = 17;
  check(p, false, how);
}

} // namespace
