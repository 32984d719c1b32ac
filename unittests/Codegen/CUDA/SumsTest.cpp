//===- SumsTest.cpp - From Q and K to attention on the device -------------===//
//
// The sums kernels against float64, then selection, lists and attention: all
// launches of a sparse call, one after the other, without the host.
//
//===----------------------------------------------------------------------===//

#include "DeviceIndex.h"
#include "prefill/cuda_abi.h"

using namespace prefill;
using namespace prefill::harness;
using namespace ref;

namespace {

struct Loaded {
  CudaKernel kernel;
  std::unique_ptr<emu::Program> program;

  Loaded(const KernelSpec &spec, CudaKernelKind kind, bool lists = false) {
    CudaOptions options;
    options.kind = kind;
    options.lists = lists;
    options.runPtxas = false;
    std::string error;
    EXPECT_TRUE(compileCuda(spec, options, kernel, error)) << error;
    if (!kernel.module)
      return;
    auto compiled = emu::Program::compile(*kernel.module);
    if (compiled)
      program = std::move(*compiled);
    else
      ADD_FAILURE() << llvm::toString(compiled.takeError());
  }
  template <class Args>
  std::string run(DeviceIndex &device, const Args &args, uint32_t x, uint32_t y,
                  uint32_t z) {
    if (!program)
      return "not compiled";
    emu::Launch launch;
    launch.kernel = kernel.name;
    launch.grid.x = x, launch.grid.y = y, launch.grid.z = z;
    launch.block.x = kernel.report.threads;
    launch.dynamicSharedBytes = kernel.report.sharedBytes;
    launch.addScalar(args);
    auto report = program->run(device.device, launch, device.how);
    if (!report)
      return llvm::toString(report.takeError());
    return report->clean() ? "" : report->str();
  }
};

template <class P>
KernelSpec specOf(const P &p) {
  KernelSpec spec;
  spec.name = "layer0";
  spec.dtype = p.desc.dtype == PREFILL_BF16 ? DType::BF16 : DType::F16;
  spec.headDim = p.desc.head_dim;
  spec.vHeadDim = p.desc.v_head_dim;
  spec.qHeads = static_cast<int32_t>(p.hq);
  spec.kvHeads = static_cast<int32_t>(p.hk);
  spec.causal = true;
  spec.softcap = p.softcap;
  if (p.windowLeft < Unbounded)
    spec.windowLeft = p.windowLeft;
  spec.hasKeyMask = p.desc.features & PREFILL_TILE_KEY_MASK;
  return spec;
}

/// Score of a visible key in float64.
template <class P>
double scoreOf(P &p, int64_t b, int64_t h, int64_t i, int64_t j) {
  double x = 0;
  for (int64_t c = 0; c < p.desc.head_dim; ++c)
    x += widen(p.q(b, h, i, c)) * widen(p.k(b, h / (p.hq / p.hk), j, c));
  x /= std::sqrt(static_cast<double>(p.desc.head_dim));
  return p.softcap > 0 ? p.softcap * std::tanh(x / p.softcap) : x;
}

/// All launches of a call up to its lists.
template <class P>
void launchIndex(P &p, DeviceIndex &device) {
  prefill_cuda_index &x = device.x;
  static std::map<std::string, std::unique_ptr<Loaded>> kernels;
  auto kernel = [&](CudaKernelKind kind) -> Loaded & {
    const KernelSpec spec = specOf(p);
    std::string key = std::to_string(int(kind)) + " " +
                      std::to_string(int(spec.dtype)) + " " +
                      std::to_string(spec.headDim) + " " +
                      std::to_string(p.desc.features);
    auto &entry = kernels[key];
    if (!entry)
      entry = std::make_unique<Loaded>(spec, kind);
    return *entry;
  };
  ASSERT_EQ(device.launchPrepare(), "");
  ASSERT_EQ(kernel(CudaKernelKind::RowSums)
                .run(device, x, x.sums_chunks, x.heads, x.batch),
            "");
  ASSERT_EQ(device.launch("sums", x.heads, x.batch), "");
  ASSERT_EQ(kernel(CudaKernelKind::LineSums)
                .run(device, x, x.sums_chunks, x.heads, x.batch),
            "");
}

/// Column and diagonal sums against float64.
template <class P>
void checkSums(P &p, const DeviceIndex &device) {
  const prefill_cuda_index &x = device.x;
  constexpr int64_t rows = PREFILL_CUDA_SUMS_ROWS,
                    tile = PREFILL_CUDA_SUMS_KEYS;
  for (int64_t b = 0; b < p.b; ++b)
    for (int64_t h = 0; h < p.hq; ++h) {
      if (!(PREFILL_CUDA_SUMMED >> p.heads[h].pattern & 1))
        continue;
      const int64_t head = b * p.hq + h;
      int64_t lastKey = 0;
      for (int64_t j = 0; j < p.t; ++j)
        if (p.visible(b, p.s - 1, j) || p.visible(b, 0, j))
          lastKey = j + 1;
      const int64_t end =
          std::max<int64_t>(0, std::min(p.s, lastKey - p.position(b, 0)));
      const int64_t begin = std::max<int64_t>(
          0, end - std::min<int64_t>(std::max(p.heads[h].last, 1), rows));
      std::vector<double> column(p.t), diagonal(p.t), got(p.t);
      for (int64_t i = begin; i < end; ++i) {
        std::vector<double> scores(p.t, MinusInf);
        double most = MinusInf, sum = 0;
        for (int64_t j = 0; j < p.t; ++j)
          if (p.visible(b, i, j))
            most = std::max(most, scores[j] = scoreOf(p, b, h, i, j));
        for (double score : scores)
          sum += most > MinusInf ? std::exp(score - most) : 0;
        for (int64_t j = 0; j < p.t && sum > 0; ++j) {
          const double share = std::exp(scores[j] - most) / sum;
          column[j] += share;
          if (p.position(b, i) >= j)
            diagonal[p.position(b, i) - j] += share;
        }
      }
      const int64_t first = p.position(b, begin);
      const int64_t seen = std::min(p.position(b, 0) + end, p.kvLen(b));
      for (int64_t block = 0; block * tile < seen; ++block)
        for (int64_t u = 0; u < rows + tile - 1; ++u) {
          // Row r and column c of the tile have u = r - c + tile - 1.
          const int64_t delta = first + u - (tile - 1) - block * tile;
          const float part =
              x.diagonal[(head * x.sums_tiles + block) * 2 * rows + u];
          if (delta >= 0 && delta < p.t)
            got[delta] += part;
          else
            ASSERT_EQ(part, 0) << block << " " << u;
        }
      for (int64_t j = 0; j < seen; ++j) {
        ASSERT_NEAR(x.column[head * x.kv_len + j], column[j], 2e-5)
            << "head " << h << " key " << j;
        ASSERT_NEAR(got[j], diagonal[j], 2e-5)
            << "head " << h << " diagonal " << j;
      }
    }
}

template <int D, class T, unsigned F = 0>
using Wide = Problem<D, D, 128, 64, T, Causal | F>;

/// Sums against float64, the lists against the CPU's runtime.
template <class P>
void check(P &p, const emu::Options &how = {}) {
  p.plan.dense_below = 0;
  Checked<P> checked(p);
  ASSERT_EQ(pf_build_index(&checked.call), PREFILL_OK);
  DeviceIndex device;
  device.how = how;
  device.build(checked.call);
  launchIndex(p, device);
  if (testing::Test::HasFatalFailure())
    return;
  checkSums(p, device);
  ASSERT_EQ(device.launchRest(), "");
  EXPECT_EQ(*device.x.status, 0u);
  for (int64_t b = 0; b < p.b; ++b)
    for (int64_t h = 0; h < p.hq; ++h)
      for (int64_t tile = 0; tile < checked.call.tiles; ++tile)
        ASSERT_EQ(device.row(b, h, tile), runtimeRow(checked.call, b, h, tile))
            << "batch " << b << " head " << h << " tile " << tile;
}

std::vector<prefill_head_plan> plans() {
  return {verticalSlash(60, 60, 64), verticalSlash(100, 130, 20),
          verticalSlash(0, 0, 64, 0.6f), blockTopP(0.7f)};
}

TEST(DeviceSums, Lengths) {
  for (int64_t rows : {30, 64, 300, 700})
    for (int64_t past : {0, 70}) {
      SCOPED_TRACE(testing::Message()
                   << rows << " rows, " << past << " before");
      Wide<64, _Float16> p;
      p.s = rows, p.t = rows + past;
      p.heads = plans();
      p.spread = 2;
      p.build(static_cast<uint64_t>(rows + past));
      check(p);
    }
}

TEST(DeviceSums, Types) {
  Wide<128, bf16> p;
  p.s = p.t = 200;
  p.heads = plans();
  p.build();
  check(p);
  Wide<80, _Float16> odd;
  odd.s = odd.t = 200;
  odd.heads = plans();
  odd.build();
  check(odd);
}

TEST(DeviceSums, MasksWindowsLengths) {
  Wide<64, _Float16,
       PREFILL_TILE_KEY_MASK | PREFILL_TILE_WINDOW | PREFILL_TILE_SOFTCAP>
      p;
  p.b = 3;
  p.s = p.t = 400;
  p.windowLeft = 170;
  p.heads = plans();
  p.build();
  hideKeys(p);
  check(p);
}

/// FlexPrefill from the same sums, of 64 rows unless the plan says otherwise.
TEST(DeviceSums, FlexPrefill) {
  Wide<64, _Float16> p;
  p.s = 500, p.t = 570;
  p.heads = {flexPrefill(0.6f, 0, 128, 64), flexPrefill(0.8f, 1, 64, 20),
             flexPrefill(0.7f, 0.3f, 64, 64), verticalSlash(60, 60, 64)};
  p.spread = 2;
  p.build();
  check(p);
}

/// A score that is no number: its heads visit everything.
TEST(DeviceSums, NotFinite) {
  Wide<64, _Float16> p;
  p.s = p.t = 300;
  p.heads = plans();
  p.build();
  p.k(0, 0, 130, 3) = static_cast<_Float16>(INFINITY);
  p.plan.dense_below = 0;
  Checked<Wide<64, _Float16>> checked(p);
  DeviceIndex device;
  device.build(checked.call);
  launchIndex(p, device);
  ASSERT_EQ(device.launchRest(), "");
  for (int64_t h = 0; h < 2; ++h)
    EXPECT_EQ(device.x.head_mode[h], PREFILL_CUDA_HEAD_DENSE);
  EXPECT_EQ(device.x.head_mode[2], PREFILL_CUDA_HEAD_RELATIVE);
}

TEST(DeviceSums, LateAndShuffled) {
  Wide<64, _Float16> p;
  p.s = p.t = 300;
  p.heads = plans();
  p.build();
  for (uint64_t seed : {0, 7}) {
    emu::Options how;
    how.late = true;
    how.seed = seed;
    check(p, how);
  }
}

/// Estimate, selection, lists, attention: every row is the softmax over what
/// the lists say.
TEST(DeviceSums, Attention) {
  using P = Wide<64, _Float16>;
  P p;
  p.s = p.t = 500;
  p.heads = plans();
  p.spread = 2;
  p.build(5);
  p.plan.dense_below = 0;
  Checked<P> checked(p);
  DeviceIndex device;
  device.how.late = true;
  device.build(checked.call);
  launchIndex(p, device);
  ASSERT_EQ(device.launchRest(), "");
  const prefill_cuda_index &x = device.x;
  std::vector<_Float16> o(p.hq * p.s * 64);
  prefill_cuda_attention args = {};
  args.q = x.q, args.k = x.k, args.v = x.v, args.o = o.data();
  args.q_batch = x.q_batch, args.q_head = x.q_head, args.q_row = x.q_row;
  args.k_batch = x.k_batch, args.k_head = x.k_head, args.k_row = x.k_row;
  args.v_batch = x.v_batch, args.v_head = x.v_head, args.v_row = x.v_row;
  args.o_head = p.s * 64, args.o_row = 64;
  args.window_left = args.window_right = Unbounded;
  args.window_right = 0;
  args.q_len = x.q_len, args.kv_len = x.kv_len;
  args.heads = x.heads, args.group = x.group;
  args.scale = x.scale;
  args.block_rows = x.tiles;
  args.block_begin = x.block_begin, args.full_count = x.full_count;
  args.block_ids = x.block_ids;
  args.col_begin = x.col_begin, args.col_pos = x.col_pos;
  device.input(x.v, p.hk * p.t * 64 * 2, "v");
  device.device.addOutput(o.data(), o.size() * 2, "o");
  Loaded attention(specOf(p), CudaKernelKind::Attention, /*lists=*/true);
  ASSERT_EQ(attention.kernel.report.schedule.blockQ, x.block_q);
  ASSERT_EQ(attention.run(device, args, x.tiles, x.heads, 1), "");
  int64_t left = 0;
  for (int64_t h = 0; h < p.hq; ++h)
    for (int64_t i = 0; i < p.s; ++i) {
      const DeviceIndex::Row row = device.row(0, h, i / x.block_q);
      std::vector<char> kept(p.t);
      for (int32_t block : row.blocks)
        for (int64_t j = block * 64;
             j < std::min<int64_t>(p.t, block * 64 + 64); ++j)
          kept[j] = true;
      for (int32_t column : row.columns)
        kept[column] = true;
      double sum = 0;
      std::vector<double> want(64);
      for (int64_t j = 0; j <= i; ++j) {
        left += !kept[j];
        if (!kept[j])
          continue;
        const double weight = std::exp(scoreOf(p, 0, h, i, j));
        sum += weight;
        for (int64_t c = 0; c < 64; ++c)
          want[c] += weight * widen(p.v(0, h / 2, j, c));
      }
      for (int64_t c = 0; c < 64; ++c)
        ASSERT_NEAR(widen(o[(h * p.s + i) * 64 + c]), want[c] / sum, 4e-3)
            << "head " << h << " row " << i;
    }
  EXPECT_GT(left, 10000);
}

TEST(DeviceSums, AssembleAndRefuse) {
  KernelSpec spec;
  spec.name = "layer0";
  spec.dtype = DType::BF16;
  spec.causal = true;
  for (auto kind : {CudaKernelKind::RowSums, CudaKernelKind::LineSums}) {
    CudaOptions options;
    options.kind = kind;
    CudaKernel kernel;
    std::string error;
    spec.causal = false;
    EXPECT_FALSE(compileCuda(spec, options, kernel, error));
    EXPECT_NE(error.find("causal"), std::string::npos) << error;
    spec.causal = true;
    for (int headDim : {64, 128, 256}) {
      if (findPtxas("").empty())
        break;
      spec.headDim = spec.vHeadDim = headDim;
      spec.softcap = headDim == 256 ? 30 : 0;
      spec.hasKeyMask = headDim == 64;
      for (int arch : {80, 90}) {
        options.arch = arch;
        EXPECT_TRUE(compileCuda(spec, options, kernel, error)) << error;
      }
    }
  }
}

} // namespace
