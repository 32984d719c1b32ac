//===- XAttentionIndexTest.cpp - XAttention's blocks, on the device -------===//
//
// The kernel in the emulator. What it keeps is compared with sums along
// antidiagonals in float64, and with the CPU's runtime, which may differ where
// a choice hangs on a rounding.
//
//===----------------------------------------------------------------------===//

#include "DeviceIndex.h"
#include "XAttention.h"

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
        if (exact || !call.index || call.bq % plan.stride ||
            call.bk % plan.stride ||
            call.index[b * call.hq + h].mode == PF_HEAD_DENSE) {
          ASSERT_EQ(row, expected);
          continue;
        }
        EXPECT_TRUE(row.columns.empty());
        const std::vector<bool> visible = visibleBlocks(p, b, tile);
        std::vector<double> mass = stridedMass(p, b, h, tile);
        std::vector<bool> kept(visible.size());
        for (int32_t block : row.blocks)
          kept[size_t(block)] = true;
        for (size_t block = 0; block < mass.size(); ++block)
          mass[block] = visible[block] ? mass[block] : 0;
        expectTopP(kept, visible, forcedBlocks(p, b, tile), mass,
                   double(plan.top_p), 3e-4);
      }
  EXPECT_LE(others, rows / 50) << rows;
}

std::vector<prefill_head_plan> plans() {
  return {xAttention(2, 0.5f), xAttention(4, 0.8f), xAttention(8, 0.95f),
          xAttention(16, 0.7f)};
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

TEST(DeviceXAttention, KeepsTheBlocksItShould) {
  for (auto [rows, past] :
       {std::pair(2, 40), std::pair(65, 0), std::pair(150, 37),
        std::pair(16, 0), std::pair(333, 5), std::pair(1, 100)}) {
    SCOPED_TRACE(testing::Message() << rows << " rows, " << past << " before");
    Small<32, 16> p;
    p.s = rows, p.t = rows + past;
    checkPlans(p, plans());
  }
}

/// Blocks of one strided key up to 64; tiles of one strided row up to 64, of
/// which a thread block has several, or a part at a time.
TEST(DeviceXAttention, TilesAndTypes) {
  auto run = [](auto &&p, std::vector<prefill_head_plan> heads) {
    p.s = 270, p.t = 281;
    checkPlans(p, std::move(heads));
  };
  run(Small<16, 32>(), plans());
  run(Small<48, 32, 0, bf16>(), plans());
  run(Small<24, 16>(), plans()); // 16 does not fit: dense
  run(Small<64, 64>(), {xAttention(2, 0.8f), xAttention(64, 0.8f)});
  run(Small<128, 128>(), {xAttention(2, 0.5f), xAttention(8, 0.5f)});
  run(Small<128, 16>(), {xAttention(2, 0.3f), xAttention(2, 0.5f)});
  Small<16, 128> tall;
  tall.s = 40, tall.t = 900;
  checkPlans(tall, {xAttention(2, 0.4f), xAttention(4, 0.6f)});
}

/// Strided rows of which memory has room for 16, 8 and 2.
TEST(DeviceXAttention, Wide) {
  Problem<128, 16, 64, 32, bf16, Causal> p;
  p.s = 200, p.t = 333;
  checkPlans(p, {xAttention(2, 0.8f), xAttention(16, 0.8f)});
  Problem<256, 16, 64, 64, _Float16, Causal> wide;
  wide.s = 200, wide.t = 333;
  checkPlans(wide, {xAttention(16, 0.8f), xAttention(64, 0.8f)});
  Problem<80, 48, 128, 64, _Float16, Causal> odd;
  odd.s = odd.t = 400;
  checkPlans(odd, {xAttention(8, 0.8f)});
}

TEST(DeviceXAttention, MasksWindowsLengths) {
  Small<32, 32, PREFILL_TILE_KEY_MASK | PREFILL_TILE_WINDOW> p;
  p.b = 3;
  p.s = p.t = 270;
  p.windowLeft = 130;
  p.heads = plans();
  p.spread = 3;
  p.build();
  hideKeys(p);
  check(p);
  Small<32, 16, PREFILL_TILE_KEY_MASK> masked;
  masked.b = 3;
  masked.s = 220, masked.t = 270;
  masked.heads = plans();
  masked.spread = 3;
  masked.build();
  hideKeys(masked);
  check(masked);
  Small<32, 32, PREFILL_TILE_SOFTCAP> capped;
  capped.s = capped.t = 200;
  capped.softcap = 3;
  checkPlans(capped, plans());
}

/// Scores that are no numbers, or might not be, say nothing: all is kept, for
/// all rows if it is a key's fault and else for the row's tile.
TEST(DeviceXAttention, NotFinite) {
  for (float bad : {NAN, INFINITY, -INFINITY, 1e38f, 1e30f})
    for (bool inKeys : {false, true}) {
      Small<32, 16, 0, bf16> p;
      p.hq = 2, p.hk = 1;
      p.s = p.t = 230;
      p.heads = {xAttention(4, 0.2f), xAttention(8, 0.3f)};
      p.build();
      narrow(double(bad), inKeys ? p.k(0, 0, 70, 1) : p.q(0, 1, 70, 1));
      SCOPED_TRACE(testing::Message() << bad << " in keys " << inKeys);
      check(p, true);
    }
}

/// Scores far apart, keys that are all alike, and no scores at all.
TEST(DeviceXAttention, HugeAndEqualScores) {
  Small<32, 16> p;
  p.s = p.t = 260;
  p.heads = plans();
  for (double spread : {0.0, 0.01, 2e3}) {
    SCOPED_TRACE(spread);
    p.spread = spread;
    p.build();
    check(p);
  }
  for (int64_t h = 0; h < p.hk; ++h)
    for (int64_t j = 0; j < p.t; ++j)
      for (int c = 0; c < 16; ++c)
        p.k(0, h, j, c) = _Float16(0.5f);
  check(p, true);
}

/// Beside heads of other patterns, with bytes of their own, and below the
/// length from which prompts are sparse.
TEST(DeviceXAttention, BesideOthers) {
  Small<32, 16> p;
  p.s = p.t = 200;
  p.hq = 4, p.hk = 2;
  p.heads = {xAttention(4, 0.6f), saleMass(0.8f, 4), aShape(8, 20),
             xAttention(8, 0.6f)};
  p.spread = 3;
  p.build();
  Checked<Small<32, 16>> checked(p);
  for (int32_t below : {200, 201}) {
    p.plan.dense_below = below;
    ASSERT_EQ(pf_build_index(&checked.call), PREFILL_OK);
    DeviceIndex device;
    device.build(checked.call);
    ASSERT_EQ(device.launchPrepare(), "");
    ASSERT_EQ(device.launchRest(), "");
    for (int64_t h : {0, 2, 3})
      EXPECT_EQ(device.x.head_mode[h] == PREFILL_CUDA_HEAD_DENSE, below == 201);
    for (int64_t h = 0; h < 4; ++h)
      for (int64_t tile = 0; tile < checked.call.tiles; ++tile)
        EXPECT_EQ(device.row(0, h, tile), runtimeRow(checked.call, 0, h, tile))
            << h << " " << tile;
    checked.call.index = nullptr;
  }
}

/// Whatever the order of threads.
TEST(DeviceXAttention, Shuffled) {
  Small<32, 32> p;
  p.s = p.t = 140;
  p.heads = plans();
  p.spread = 3;
  p.build();
  emu::Options how;
  how.late = true;
  how.seed = 17;
  check(p, false, how);
}

} // namespace
