//===- GpuProblem.cpp - Launches kernels in the emulator ------------------===//

#include "GpuProblem.h"
#include "KernelHarness.h"
#include "prefill/cuda_abi.h"
#include "llvm/IR/Module.h"
#include <cmath>
#include <map>
#include <random>

using namespace prefill;
using namespace prefill::harness;

namespace {

struct Loaded {
  CudaKernel kernel;
  std::unique_ptr<emu::Program> program;
};

/// One matrix [batch][heads][rows][size] with gaps of NaN between rows.
struct Matrix {
  Matrix(int batch, int heads, int rows, int size, bool bshd) {
    const int padded = size + 8;
    row = bshd ? int64_t(heads) * padded : padded;
    head = bshd ? padded : int64_t(rows) * padded;
    this->batch = int64_t(heads) * rows * padded;
    data.assign(this->batch * batch, 0x7fff); // NaN in both formats
  }
  size_t at(int b, int h, int r, int c) const {
    return b * batch + h * head + r * row + c;
  }
  int64_t batch, head, row;
  std::vector<uint16_t> data;
};

constexpr int32_t kNoKey = std::numeric_limits<int32_t>::max();

} // namespace

/// Compiled once a process.
static Loaded *loadCuda(const KernelSpec &spec, const CudaOptions &options,
                        std::string &error) {
  static std::map<std::string, std::unique_ptr<Loaded>> kernels;
  auto loaded = std::make_unique<Loaded>();
  CudaOptions plain = options;
  plain.runPtxas = false;
  if (!compileCuda(spec, plain, loaded->kernel, error))
    return nullptr;
  std::string key = loaded->kernel.name + "_w" +
                    std::to_string(loaded->kernel.report.schedule.warps) +
                    "_s" +
                    std::to_string(loaded->kernel.report.schedule.stages);
  auto it = kernels.find(key);
  if (it != kernels.end())
    return it->second.get();
  auto program = emu::Program::compile(*loaded->kernel.module);
  if (!program) {
    error = llvm::toString(program.takeError());
    return nullptr;
  }
  loaded->program = std::move(*program);
  return kernels.emplace(key, std::move(loaded)).first->second.get();
}

std::string GpuProblem::check(const emu::Options &how) {
  std::string error;
  Loaded *loaded = loadCuda(spec, options, error);
  if (!loaded)
    return error;
  const CudaSchedule &schedule = loaded->kernel.report.schedule;
  const int blockQ = schedule.blockQ, blockK = schedule.blockK;
  const int d = spec.headDim, e = spec.vHeadDim, heads = spec.qHeads;
  const int groupSize = heads / spec.kvHeads;
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  auto chance = [&](double share) {
    return std::uniform_real_distribution<>(0, 1)(random) < share;
  };

  Matrix q(batch, heads, queries, d, bshd),
      k(batch, spec.kvHeads, keys, d, bshd),
      v(batch, spec.kvHeads, keys, e, bshd), o(batch, heads, queries, e, bshd);
  auto fill = [&](Matrix &matrix, int count, int rows, int size, float scale) {
    for (int b = 0; b < batch; ++b)
      for (int h = 0; h < count; ++h)
        for (int r = 0; r < rows; ++r)
          for (int c = 0; c < size; ++c)
            matrix.data[matrix.at(b, h, r, c)] =
                toStorage(normal(random) * scale, spec.dtype);
  };
  fill(q, heads, queries, d, amplitude);
  fill(k, spec.kvHeads, keys, d, 1);
  fill(v, spec.kvHeads, keys, e, 1);
  std::vector<float> lse(size_t(batch) * heads * queries);
  std::vector<float> sinks(heads);
  for (float &sink : sinks)
    sink = normal(random);
  std::vector<uint8_t> keyMask(size_t(batch) * keys);
  for (uint8_t &bit : keyMask)
    bit = chance(0.8);

  auto keyLength = [&](int b) {
    return keyLengths.empty() ? keys : keyLengths[b];
  };
  auto isVisible = [&](int b, int row, int key) {
    const int64_t position = int64_t(keyLength(b)) - queries + row;
    if (key >= keyLength(b) || (spec.causal && key > position) ||
        key < position - spec.windowLeft ||
        (!spec.causal && key > position + spec.windowRight))
      return false;
    return !spec.hasKeyMask || keyMask[size_t(b) * keys + key];
  };

  // The lists: which keys a tile visits.
  const int tiles = (queries + blockQ - 1) / blockQ;
  std::vector<int32_t> blockBegin{0}, fullCount, blockIds, colBegin{0}, colPos;
  std::vector<std::vector<bool>> visited;
  for (int b = 0; b < batch && options.lists; ++b)
    for (int h = 0; h < heads; ++h)
      for (int tile = 0; tile < tiles; ++tile) {
        std::vector<bool> here(keys);
        std::vector<int32_t> full, partial, columns;
        for (int block = 0; block * blockK < keys; ++block) {
          const int begin = block * blockK, end = begin + blockK;
          if (!chance(blockShare)) {
            for (int key = begin; key < std::min(end, keys); ++key)
              if (chance(columnShare)) {
                columns.push_back(key);
                here[key] = true;
              }
            continue;
          }
          bool whole = end <= keys;
          for (int key = begin; key < std::min(end, keys); ++key) {
            here[key] = true;
            for (int row = tile * blockQ;
                 row < std::min((tile + 1) * blockQ, queries); ++row)
              whole = whole && isVisible(b, row, key);
          }
          (whole ? full : partial).push_back(block);
        }
        std::shuffle(columns.begin(), columns.end(), random);
        // Skipped columns anywhere, and padding.
        if (!columns.empty())
          columns.insert(columns.begin() + columns.size() / 2, kNoKey);
        while (columns.size() % blockK)
          columns.push_back(kNoKey);
        fullCount.push_back(full.size());
        blockIds.insert(blockIds.end(), full.begin(), full.end());
        blockIds.insert(blockIds.end(), partial.begin(), partial.end());
        blockBegin.push_back(blockIds.size());
        colPos.insert(colPos.end(), columns.begin(), columns.end());
        colBegin.push_back(colPos.size());
        visited.push_back(here);
      }
  // Empty lists have addresses, too.
  if (blockIds.empty())
    blockIds.push_back(0);
  if (colPos.empty())
    colPos.push_back(kNoKey);
  auto isVisited = [&](int b, int h, int row, int key) {
    return !options.lists ||
           visited[(size_t(b) * heads + h) * tiles + row / blockQ][key];
  };

  prefill_cuda_attention args = {};
  args.q = q.data.data();
  args.k = k.data.data();
  args.v = v.data.data();
  args.o = o.data.data();
  args.lse = wantLse ? lse.data() : nullptr;
  args.q_batch = q.batch, args.q_head = q.head, args.q_row = q.row;
  args.k_batch = k.batch, args.k_head = k.head, args.k_row = k.row;
  args.v_batch = v.batch, args.v_head = v.head, args.v_row = v.row;
  args.o_batch = o.batch, args.o_head = o.head, args.o_row = o.row;
  args.lse_batch = int64_t(heads) * queries, args.lse_head = queries;
  args.position = int64_t(keys) - queries;
  args.window_left = spec.windowLeft;
  args.window_right = spec.causal ? 0 : spec.windowRight;
  args.q_len = queries, args.kv_len = keys;
  args.heads = heads, args.group = groupSize;
  const float scale =
      std::isnan(spec.scale) ? 1 / std::sqrt(float(d)) : spec.scale;
  args.scale = scale;
  args.softcap = spec.softcap;
  args.block_rows = tiles;
  args.sink = sinks.data();
  std::vector<int64_t> positions;
  if (!keyLengths.empty()) {
    for (int32_t length : keyLengths)
      positions.push_back(int64_t(length) - queries);
    args.kv_lengths = keyLengths.data();
    args.positions = positions.data();
  }
  args.block_begin = blockBegin.data(), args.full_count = fullCount.data();
  args.block_ids = blockIds.data();
  args.col_begin = colBegin.data(), args.col_pos = colPos.data();
  args.key_mask = keyMask.data(), args.key_mask_batch = keys;
  args.batch = batch, args.heads_together = headsTogether;

  emu::Device device;
  auto input = [&](const auto &values, llvm::StringRef name) {
    if (!values.empty())
      device.addInput(values.data(), values.size() * sizeof(values[0]), name);
  };
  input(q.data, "q"), input(k.data, "k"), input(v.data, "v");
  input(sinks, "sink"), input(keyMask, "key_mask");
  input(keyLengths, "kv_lengths"), input(positions, "positions");
  input(blockBegin, "block_begin"), input(fullCount, "full_count");
  input(blockIds, "block_ids"), input(colBegin, "col_begin");
  input(colPos, "col_pos");
  device.addOutput(o.data.data(), o.data.size() * 2, "o");
  device.addOutput(lse.data(), lse.size() * 4, "lse");

  emu::Launch launch;
  launch.kernel = loaded->kernel.name;
  launch.grid.x = tiles, launch.grid.y = heads, launch.grid.z = batch;
  if (schedule.persistent)
    launch.grid = {uint32_t(blocks)};
  launch.block.x = loaded->kernel.report.threads;
  launch.dynamicSharedBytes = loaded->kernel.report.sharedBytes;
  launch.addScalar(args);
  if (schedule.tensorMaps) {
    prefill_cuda_tensor_maps maps;
    auto encode = [&](uint8_t *to, Matrix &matrix, int size, int rows,
                      int count, int boxRows) {
      emu::TensorMap map;
      map.base = matrix.data.data();
      map.dims = {uint64_t(size), uint64_t(rows), uint64_t(count),
                  uint64_t(batch)};
      map.strides = {uint64_t(matrix.row) * 2, uint64_t(matrix.head) * 2,
                     uint64_t(matrix.batch) * 2};
      map.box = {64, uint32_t(boxRows), 1, 1};
      auto bytes = emu::encodeTensorMap(map);
      if (!bytes)
        return llvm::toString(bytes.takeError());
      llvm::copy(*bytes, to);
      return std::string();
    };
    for (std::string problem :
         {encode(maps.q, q, d, queries, heads, blockQ),
          encode(maps.k, k, d, keys, spec.kvHeads, blockK),
          encode(maps.v, v, e, keys, spec.kvHeads, blockK)})
      if (!problem.empty())
        return problem;
    launch.addScalar(maps);
  }
  llvm::Expected<emu::Report> report =
      loaded->program->run(device, launch, how);
  if (!report)
    return llvm::toString(report.takeError());
  if (!report->clean())
    return report->str();
  products = 0;
  for (const auto &[name, count] : report->instructions)
    if (llvm::StringRef(name).contains("mma"))
      products += count;

  // P is rounded to 16 bits, and so is the output.
  const double unit = spec.dtype == DType::BF16 ? 1.0 / 256 : 1.0 / 2048;
  const double allowed = tolerance ? tolerance : 2 * unit;
  for (int b = 0; b < batch; ++b)
    for (int h = 0; h < heads; ++h)
      for (int row = 0; row < queries; ++row) {
        const int kvHead = h / groupSize;
        auto where = [&] {
          return "batch " + std::to_string(b) + " head " + std::to_string(h) +
                 " row " + std::to_string(row);
        };
        std::vector<std::pair<int, double>> scores;
        double max = spec.hasSink ? sinks[h] : -INFINITY;
        for (int key = 0; key < keys; ++key) {
          if (!isVisible(b, row, key) || !isVisited(b, h, row, key))
            continue;
          double score = 0;
          for (int c = 0; c < d; ++c)
            score +=
                double(fromStorage(q.data[q.at(b, h, row, c)], spec.dtype)) *
                fromStorage(k.data[k.at(b, kvHead, key, c)], spec.dtype);
          score *= scale;
          if (spec.softcap)
            score = spec.softcap * std::tanh(score / spec.softcap);
          scores.push_back({key, score});
          max = std::max(max, score);
        }
        double sum = spec.hasSink ? std::exp(sinks[h] - max) : 0, largest = 0;
        std::vector<double> want(e);
        for (auto [key, score] : scores) {
          const double p = std::exp(score - max);
          sum += p;
          for (int c = 0; c < e; ++c) {
            const double value =
                fromStorage(v.data[v.at(b, kvHead, key, c)], spec.dtype);
            want[c] += p * value;
            largest = std::max(largest, std::fabs(value));
          }
        }
        for (int c = 0; c < e; ++c) {
          const double expected = sum > 0 ? want[c] / sum : 0;
          const double got =
              fromStorage(o.data[o.at(b, h, row, c)], spec.dtype);
          if (!(std::fabs(got - expected) <= allowed * std::max(largest, 1e-3)))
            return where() + " column " + std::to_string(c) + ": " +
                   std::to_string(got) + ", expected " +
                   std::to_string(expected);
        }
        if (!wantLse)
          continue;
        const double expected = sum > 0 ? max + std::log(sum) : -INFINITY;
        const double got = lse[(size_t(b) * heads + h) * queries + row];
        const bool good = std::isinf(expected)
                              ? got == expected
                              : std::fabs(got - expected) <=
                                    5e-5 + 1e-5 * std::fabs(expected);
        if (!good)
          return where() + ": log-sum-exp " + std::to_string(got) +
                 ", expected " + std::to_string(expected);
      }
  return "";
}
