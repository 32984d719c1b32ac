//===- InfLLMIndexTest.cpp - InfLLM v2's blocks, on the device ------------===//
//
// The kernels in the emulator. What they keep is compared with the method in
// float64, and with the CPU's runtime, which may differ where a choice hangs on
// a rounding.
//
//===----------------------------------------------------------------------===//

#include "DeviceIndex.h"
#include "InfLLM.h"

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
        const DeviceIndex::Row row = device.row(b, h, tile);
        const DeviceIndex::Row expected = runtimeRow(call, b, h, tile);
        ++rows;
        others += !(row == expected);
        if (exact)
          ASSERT_EQ(row, expected) << b << " " << h << " " << tile;
        EXPECT_TRUE(row.columns.empty());
      }
  EXPECT_LE(others, rows / 50) << rows;
  if (!exact && call.index)
    expectInfLLM(
        p,
        [&](int64_t b, int64_t h, int64_t tile) {
          std::vector<bool> kept(size_t(call.blocks));
          for (int32_t block : device.row(b, h, tile).blocks)
            kept[size_t(block)] = true;
          return kept;
        },
        1e-4);
}

std::vector<prefill_head_plan> plans() {
  return {infLLM(5, 16, 32), infLLM(5, 16, 32), infLLM(8, 0, 0),
          infLLM(3, 20, 7)};
}

template <class P>
void checkPlans(P &&p, std::vector<prefill_head_plan> heads, int64_t kvHeads) {
  p.heads = std::move(heads);
  p.hq = static_cast<int64_t>(p.heads.size());
  p.hk = kvHeads;
  p.spread = 4;
  p.build(static_cast<uint64_t>(p.s + 3 * p.t));
  check(p);
}

/// From fewer keys than a mean has to several pieces of 32 means a warp.
TEST(DeviceInfLLM, KeepsTheBestBlocksOfAGroup) {
  for (auto [rows, past] :
       {std::pair(2, 10), std::pair(31, 0), std::pair(65, 0),
        std::pair(150, 37), std::pair(16, 0), std::pair(2, 500),
        std::pair(1, 100)}) {
    SCOPED_TRACE(testing::Message() << rows << " rows, " << past << " before");
    Small<32, 16> p;
    p.s = rows, p.t = rows + past;
    checkPlans(p, plans(), 2);
  }
  Small<16, 32> deep;
  deep.s = 20, deep.t = 5000;
  checkPlans(deep, {infLLM(9, 8, 20)}, 1);
}

TEST(DeviceInfLLM, TilesAndTypes) {
  auto run = [](auto &&p) {
    p.s = 200, p.t = 237;
    checkPlans(p, plans(), 1);
  };
  run(Small<16, 32>());
  run(Small<48, 32, 0, bf16>());
  Problem<80, 16, 64, 64, bf16, Causal> odd;
  run(odd);
  Problem<128, 16, 128, 64, _Float16, Causal> wide;
  wide.s = 130, wide.t = 700;
  checkPlans(wide, {infLLM(4, 8, 20), infLLM(5, 8, 20)}, 2);
  Problem<256, 16, 64, 64, bf16, Causal> widest;
  widest.s = 70, widest.t = 400;
  checkPlans(widest, {infLLM(3, 8, 20)}, 1);
}

TEST(DeviceInfLLM, MasksWindowsLengths) {
  Small<32, 16,
        PREFILL_TILE_KEY_MASK | PREFILL_TILE_WINDOW | PREFILL_TILE_SOFTCAP>
      p;
  p.b = 3;
  p.s = p.t = 270;
  p.windowLeft = 130;
  p.heads = plans();
  p.spread = 4;
  p.build();
  hideKeys(p);
  check(p);
  Small<32, 32, PREFILL_TILE_KEY_MASK> masked;
  masked.b = 3;
  masked.s = 220, masked.t = 270;
  masked.heads = plans();
  masked.spread = 4;
  masked.build();
  hideKeys(masked);
  // A mean without a visible key.
  for (int64_t j = 96; j < 160; ++j)
    masked.in[PREFILL_IN_KEY_MASK].at<uint8_t>({0, j}) = 0;
  check(masked);
}

/// Scores that are no numbers say nothing: the tiles of all heads of the KV
/// head keep everything.
TEST(DeviceInfLLM, NotFinite) {
  for (float bad : {NAN, INFINITY, -INFINITY, 3e38f})
    for (bool inKeys : {false, true}) {
      Small<32, 16, 0, bf16> p;
      p.s = p.t = 230;
      p.heads.assign(4, infLLM(2, 0, 0));
      p.build();
      for (int64_t h = 0; h < p.hq; ++h)
        for (int64_t i = 0; i < p.s; ++i)
          narrow(1.0, p.q(0, h, i, 1));
      narrow(double(bad), inKeys ? p.k(0, 0, 90, 1) : p.q(0, 1, 90, 1));
      SCOPED_TRACE(testing::Message() << bad << " in keys " << inKeys);
      check(p, true);
    }
}

/// Equal scores: the lower block first. Scores far apart.
TEST(DeviceInfLLM, TiesAndHugeScores) {
  Small<32, 16> p;
  p.s = p.t = 260;
  p.heads = plans();
  p.spread = 1e3;
  p.build();
  check(p);
  p.spread = 0;
  p.build();
  check(p, true);
}

/// A batch entry without a visible key.
TEST(DeviceInfLLM, EverythingMasked) {
  Small<32, 16, PREFILL_TILE_KEY_MASK> p;
  p.b = 2;
  p.s = p.t = 100;
  p.heads = plans();
  p.build();
  Tensor &mask = p.in[PREFILL_IN_KEY_MASK];
  mask.make({2, 100}, kDLUInt, 8);
  for (int64_t j = 0; j < 100; ++j) {
    mask.at<uint8_t>({0, j}) = 0;
    mask.at<uint8_t>({1, j}) = 1;
  }
  check(p);
}

/// Heads of a group with other patterns vote, too; one with a guard, or without
/// blocks to choose, is dense.
TEST(DeviceInfLLM, BesideOthers) {
  Small<32, 16> p;
  p.s = p.t = 200;
  p.hq = 6, p.hk = 2;
  p.heads = {infLLM(4),         aShape(8, 20), infLLM(0),
             saleMass(0.8f, 4), infLLM(6),     infLLM(4)};
  p.spread = 3;
  p.build();
  check(p, true);
  p.heads[5].similarity = 0.3f;
  p.build();
  p.plan.dense_below = 0;
  Checked<Small<32, 16>> checked(p);
  DeviceIndex device;
  device.build(checked.call);
  ASSERT_EQ(device.launchPrepare(), "");
  ASSERT_EQ(device.launchRest(), "");
  for (int64_t h = 0; h < 6; ++h)
    EXPECT_EQ(device.x.head_mode[h] == PREFILL_CUDA_HEAD_DENSE,
              h == 2 || h == 5)
        << h;
}

/// Whatever the order of threads.
TEST(DeviceInfLLM, Shuffled) {
  Small<32, 32> p;
  p.s = p.t = 140;
  p.heads = plans();
  p.spread = 4;
  p.build();
  emu::Options how;
  how.late = true;
  how.seed = 17;
  check(p, false, how);
}

} // namespace
