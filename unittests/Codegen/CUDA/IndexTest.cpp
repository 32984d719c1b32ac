//===- IndexTest.cpp - The device chooses what the runtime chooses --------===//
//
// The index kernels in the emulator against the CPU's runtime, given the same
// sums of the last rows.
//
//===----------------------------------------------------------------------===//

#include "DeviceIndex.h"
#include <algorithm>
#include <set>

using namespace prefill;
using namespace prefill::harness;
using namespace ref;

namespace {

/// Keys in the blocks and columns of a row of tiles.
std::set<int64_t> keysOf(const DeviceIndex::Row &row, int64_t block) {
  std::set<int64_t> keys(row.columns.begin(), row.columns.end());
  for (int64_t id : row.blocks)
    for (int64_t i = 0; i < block; ++i)
      keys.insert(id * block + i);
  return keys;
}

template <class P>
void check(P &p, const emu::Options &how = {}) {
  p.plan.dense_below = 0;
  Checked<P> checked(p);
  pf_call &call = checked.call;
  ASSERT_EQ(pf_build_index(&call), PREFILL_OK) << checked.context.message;
  ASSERT_NE(call.index, nullptr);
  DeviceIndex device;
  device.how = how;
  device.build(call);
  RuntimeSums sums(call, device.x);
  sums.give(device);
  ASSERT_EQ(device.launchPrepare(), "");
  ASSERT_EQ(device.launch("sums", device.x.heads, device.x.batch), "");
  ASSERT_EQ(device.launchRest(), "");
  EXPECT_EQ(*device.x.status, 0u);
  for (int64_t b = 0; b < call.b; ++b)
    for (int64_t h = 0; h < call.hq; ++h)
      for (int64_t tile = 0; tile < call.tiles; ++tile)
        ASSERT_EQ(device.row(b, h, tile), runtimeRow(call, b, h, tile))
            << "batch " << b << " head " << h << " tile " << tile;
}

template <int BQ, int BK, unsigned F = 0>
using Small = Problem<16, 16, BQ, BK, _Float16, Causal | F>;

template <class P>
void checkPlans(P &&p, std::vector<prefill_head_plan> heads) {
  p.heads = std::move(heads);
  p.hq = static_cast<int64_t>(p.heads.size());
  p.spread = 2;
  p.build(static_cast<uint64_t>(p.s + 3 * p.t));
  check(p);
}

std::vector<prefill_head_plan> relativePlans() {
  return {verticalSlash(40, 60, 16),
          verticalSlash(100, 120, 64),
          verticalSlash(0, 0, 16, 0.4f),
          verticalSlash(0, 0, 48, 0.6f),
          aShape(20, 70),
          triShape(8, 40, 50),
          strided(8, 30, 3),
          verticalSlash(400, 200, 5)};
}

TEST(DeviceIndex, Relative) {
  for (int64_t keys : {16, 65, 200, 500})
    for (int64_t past : {0, 5, 128}) {
      SCOPED_TRACE(testing::Message()
                   << keys << " rows, " << past << " before");
      Small<32, 16> p;
      p.s = keys, p.t = keys + past;
      checkPlans(p, relativePlans());
    }
}

TEST(DeviceIndex, Phases) {
  auto run = [](auto &&p) {
    p.s = 300, p.t = 310;
    checkPlans(p, relativePlans());
  };
  run(Small<16, 32>());
  run(Small<48, 32>());
  run(Small<128, 64>());
}

std::vector<prefill_head_plan> blockPlans() {
  return {blockSparse(4),
          blockSparse(1),
          blockSparse(0, 0.3f),
          blockTopP(0.5f),
          blockTopP(0.9f),
          blockTopP(1.0f),
          verticalSlash(40, 60, 16),
          aShape(20, 70)};
}

TEST(DeviceIndex, Blocks) {
  for (int64_t keys : {20, 200, 700})
    for (int64_t past : {0, 37}) {
      SCOPED_TRACE(testing::Message()
                   << keys << " rows, " << past << " before");
      Small<32, 16> p;
      p.s = keys, p.t = keys + past;
      checkPlans(p, blockPlans());
    }
  Small<16, 32> low;
  low.s = low.t = 300;
  checkPlans(low, blockPlans());
}

TEST(DeviceIndex, MasksWindowsLengths) {
  for (auto plans : {relativePlans(), blockPlans()}) {
    Small<32, 16, PREFILL_TILE_KEY_MASK | PREFILL_TILE_WINDOW> p;
    p.b = 3;
    p.s = p.t = 350;
    p.windowLeft = 170;
    p.heads = plans;
    p.hq = static_cast<int64_t>(p.heads.size());
    p.build();
    hideKeys(p);
    check(p);
  }
}

/// Equal sums: the lower index first. A query of zeros sees all keys alike.
TEST(DeviceIndex, Ties) {
  Small<32, 16> p;
  p.s = p.t = 400;
  p.heads = {verticalSlash(60, 130, 16), verticalSlash(0, 0, 16, 0.5f),
             blockSparse(5), blockTopP(0.5f)};
  p.spread = 0;
  p.build();
  check(p);
}

/// Sums that are no numbers say nothing: all is kept.
TEST(DeviceIndex, NotFinite) {
  Small<32, 16> p;
  p.s = p.t = 200;
  p.heads = {verticalSlash(40, 60, 16), verticalSlash(0, 0, 16, 0.4f),
             blockTopP(0.5f), blockSparse(3)};
  p.build();
  p.k(0, 0, 50, 3) = static_cast<_Float16>(INFINITY);
  p.k(0, 0, 50, 4) = static_cast<_Float16>(-INFINITY);
  check(p);
}

TEST(DeviceIndex, OtherPatternsAndShortPromptsAreDense) {
  Small<32, 16> p;
  p.s = p.t = 100;
  p.heads = {grid(64), verticalSlash(40, 60, 16)};
  p.hq = 2;
  p.build();
  Checked<Small<32, 16>> checked(p);
  p.plan.dense_below = 101;
  DeviceIndex device;
  device.build(checked.call);
  RuntimeSums sums(checked.call, device.x);
  sums.giveRows(device);
  ASSERT_EQ(device.launchPrepare(), "");
  ASSERT_EQ(device.launch("sums", 2, 1), "");
  ASSERT_EQ(device.launchRest(), "");
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t tile = 0; tile < 4; ++tile)
      EXPECT_EQ(device.row(0, h, tile), runtimeRow(checked.call, 0, h, tile));
}

/// Too little memory is said, and nothing is written past it.
TEST(DeviceIndex, Room) {
  Small<32, 16> p;
  p.s = p.t = 400;
  p.heads = {aShape(20, 70), verticalSlash(100, 60, 16)};
  p.hq = 2;
  p.build();
  p.plan.dense_below = 0;
  Checked<Small<32, 16>> checked(p);
  for (auto [ids, columns, kept, status] :
       {std::tuple(30, 10000, 416, PREFILL_CUDA_BLOCKS_FULL),
        std::tuple(10000, 40, 416, PREFILL_CUDA_COLUMNS_FULL)}) {
    DeviceIndex device;
    device.build(checked.call);
    RuntimeSums sums(checked.call, device.x);
    sums.give(device);
    device.x.block_room = ids, device.x.col_room = columns;
    device.x.column_room = kept;
    ASSERT_EQ(device.launchPrepare(), "");
    ASSERT_EQ(device.launch("sums", 2, 1), "");
    ASSERT_EQ(device.launchRest(), "");
    EXPECT_EQ(*device.x.status, static_cast<uint32_t>(status));
    const int64_t rows = 2 * device.x.tiles;
    EXPECT_LE(device.x.block_begin[rows], ids);
    EXPECT_LE(device.x.col_begin[rows], columns);
  }
}

/// Blocks whose columns have no room are visited whole: no key is left out.
TEST(DeviceIndex, ColumnsWithoutRoom) {
  Small<32, 16> p;
  p.s = p.t = 400;
  p.heads = {verticalSlash(100, 60, 16), verticalSlash(50, 60, 16)};
  p.hq = 2;
  p.build();
  p.plan.dense_below = 0;
  Checked<Small<32, 16>> checked(p);
  std::vector<std::set<int64_t>> chosen;
  for (int64_t room : {416, 40, 16, 1, 0}) {
    DeviceIndex device;
    device.build(checked.call);
    RuntimeSums sums(checked.call, device.x);
    sums.give(device);
    device.x.column_room = room;
    ASSERT_EQ(device.launchPrepare(), "");
    ASSERT_EQ(device.launch("sums", 2, 1), "");
    ASSERT_EQ(device.launchRest(), "");
    EXPECT_EQ(*device.x.status, 0u);
    std::vector<std::set<int64_t>> visited;
    for (int64_t h = 0; h < 2; ++h)
      for (int64_t tile = 0; tile < device.x.tiles; ++tile)
        visited.push_back(keysOf(device.row(0, h, tile), 16));
    if (chosen.empty())
      chosen = visited;
    EXPECT_EQ(room == 416, visited == chosen);
    for (size_t i = 0; i < chosen.size(); ++i)
      EXPECT_TRUE(std::includes(visited[i].begin(), visited[i].end(),
                                chosen[i].begin(), chosen[i].end()))
          << "row " << i << ", room " << room;
  }
}

/// Whatever the order of threads.
TEST(DeviceIndex, Shuffled) {
  Small<32, 16> p;
  p.s = p.t = 200;
  p.heads = {verticalSlash(40, 60, 16), verticalSlash(0, 0, 16, 0.4f),
             blockTopP(0.5f), blockSparse(3)};
  p.build();
  for (uint64_t seed : {3, 17}) {
    emu::Options how;
    how.late = true;
    how.seed = seed;
    check(p, how);
  }
}

TEST(DeviceIndex, Pack) {
  Small<32, 16> p;
  p.s = p.t = 400;
  p.heads = {verticalSlash(100, 60, 16), aShape(20, 70),
             verticalSlash(50, 60, 16), blockSparse(3)};
  p.build();
  p.plan.dense_below = 0;
  Checked<Small<32, 16>> checked(p);
  DeviceIndex device;
  device.build(checked.call);
  RuntimeSums sums(checked.call, device.x);
  sums.give(device);
  device.input(device.x.v, p.hk * p.t * 32, "v");
  ASSERT_EQ(device.launchPrepare(), "");
  ASSERT_EQ(device.launch("sums", 4, 1), "");
  ASSERT_EQ(device.launchRest(), "");
  const int64_t room = device.x.column_room;
  std::vector<_Float16> k(4 * room * 16), v(4 * room * 16);
  device.x.packed_k = k.data(), device.x.packed_v = v.data();
  device.device.addOutput(k.data(), k.size() * 2, "packed_k");
  device.device.addOutput(v.data(), v.size() * 2, "packed_v");
  ASSERT_EQ(device.launch("pack", room / 16, 4, 1), "");
  for (int64_t h : {0, 2}) {
    const int32_t *columns = device.x.columns + h * room;
    const int64_t count =
        device.x.column_begin[h * (device.x.blocks + 1) + device.x.blocks];
    EXPECT_GT(count, 16);
    for (int64_t i = 0; i < (count + 15) / 16 * 16; ++i)
      for (int64_t c = 0; c < 16; ++c) {
        ASSERT_EQ(k[(h * room + i) * 16 + c],
                  i < count ? p.k(0, h / 2, columns[i], c) : _Float16(0));
        ASSERT_EQ(v[(h * room + i) * 16 + c],
                  i < count ? p.v(0, h / 2, columns[i], c) : _Float16(0));
      }
  }
}

/// One cubin an architecture, without spills.
TEST(DeviceIndex, Assembles) {
  if (findPtxas("").empty())
    GTEST_SKIP() << "no ptxas in CUDA_HOME or PATH";
  for (int arch : {80, 86, 89, 90}) {
    CudaOptions options;
    options.arch = arch;
    CudaKernel kernels;
    std::string error;
    ASSERT_TRUE(compileCudaIndex(options, kernels, error)) << error;
    EXPECT_TRUE(kernels.report.assembled);
    EXPECT_EQ(kernels.report.ptxas.spillStores, 0);
    EXPECT_NE(kernels.ptx.find(".target sm_" + std::to_string(arch)),
              std::string::npos);
    EXPECT_NE(kernels.ptx.find(".maxntid 256"), std::string::npos);
  }
  CudaOptions options;
  options.arch = 75;
  CudaKernel kernels;
  std::string error;
  EXPECT_FALSE(compileCudaIndex(options, kernels, error));
  EXPECT_NE(error.find("sm_75"), std::string::npos);
}

} // namespace
