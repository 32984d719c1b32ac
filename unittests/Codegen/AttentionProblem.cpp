//===- AttentionProblem.cpp - One head, its kernel and its truth ----------===//

#include "AttentionProblem.h"
#include "prefill/Codegen/KernelBuilder.h"
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <sys/mman.h>
#include <xmmintrin.h>

using namespace prefill;
using namespace prefill::harness;

namespace {

/// Memory that ends at a page that must not be touched.
class GuardedBuffer {
public:
  explicit GuardedBuffer(size_t bytes) : bytes(bytes) {
    const size_t page = 4096;
    mapped = (bytes + page - 1) / page * page + page;
    base = static_cast<char *>(mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base == MAP_FAILED ||
        mprotect(base + mapped - page, page, PROT_NONE) != 0)
      std::abort();
    start = base + mapped - page - bytes;
  }
  GuardedBuffer(const GuardedBuffer &) = delete;
  void fill(const void *from, size_t count) {
    if (count)
      std::memcpy(start, from, count);
  }
  ~GuardedBuffer() { munmap(base, mapped); }

  char *start;
  size_t bytes;

private:
  char *base;
  size_t mapped;
};

/// A matrix in a storage type, its last row ending at the gap.
class StoredMatrix {
public:
  StoredMatrix(const std::vector<float> &values, int64_t rows, int64_t columns,
               int64_t stride, DType type)
      : type(type), size(type == DType::F32 ? 4 : 2),
        buffer(rows ? ((rows - 1) * stride + columns) * size : 0) {
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t column = 0; column < (row + 1 < rows ? stride : columns);
           ++column)
        // Between the rows lies what would spoil every result.
        set(row * stride + column,
            column < columns ? values[row * columns + column] : NAN);
  }
  void set(int64_t index, float value) {
    char *address = buffer.start + index * size;
    uint16_t half = toStorage(value, type);
    std::memcpy(address, size == 4 ? static_cast<void *>(&value) : &half, size);
  }
  float get(int64_t index) const {
    const char *address = buffer.start + index * size;
    float value;
    uint16_t half;
    if (size == 4) {
      std::memcpy(&value, address, 4);
      return value;
    }
    std::memcpy(&half, address, 2);
    return fromStorage(half, type);
  }
  char *at(int64_t index) { return buffer.start + index * size; }

private:
  DType type;
  int64_t size;
  GuardedBuffer buffer;
};

struct Workspace {
  explicit Workspace(int64_t bytes)
      : memory(std::aligned_alloc(64, (bytes + 127) / 64 * 64)), bytes(bytes) {
    // Nothing may depend on what is there before.
    std::memset(memory, 0xff, (bytes + 127) / 64 * 64);
  }
  ~Workspace() { std::free(memory); }
  bool isIntact() const {
    for (int64_t i = bytes; i < (bytes + 127) / 64 * 64; ++i)
      if (static_cast<unsigned char *>(memory)[i] != 0xff)
        return false;
    return true;
  }
  void *memory;
  int64_t bytes;
};

constexpr int32_t skipped = std::numeric_limits<int32_t>::max();

} // namespace

Problem::Problem(const KernelSpec &spec, int64_t queries, int64_t keys,
                 unsigned seed)
    : spec(spec), queries(queries), keys(keys), position(keys - queries),
      qStride(spec.headDim + 3), kStride(spec.headDim + 5),
      vStride(spec.vHeadDim + 2), oStride(spec.vHeadDim + 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  auto fill = [&](std::vector<float> &values, int64_t count) {
    values.resize(count);
    for (float &value : values) {
      value = normal(random);
      if (spec.dtype != DType::F32)
        value = fromStorage(toStorage(value, spec.dtype), spec.dtype);
    }
  };
  fill(q, queries * spec.headDim);
  fill(k, keys * spec.headDim);
  fill(v, keys * spec.vHeadDim);
  if (spec.hasBias) {
    biasRowStride = keys;
    bias.resize(queries * keys);
    for (float &value : bias)
      value = normal(random);
  }
  if (spec.hasKeyMask) {
    keyMask.resize(keys);
    for (uint8_t &value : keyMask)
      value = random() % 4 != 0;
  }
  if (spec.hasSegments) {
    for (int64_t i = 0; i < queries; ++i)
      qSegment.push_back(int32_t((i + position) / 37));
    for (int64_t j = 0; j < keys; ++j)
      kSegment.push_back(int32_t(j / 37));
  }
  scale = 1.0f / std::sqrt(float(spec.headDim));
}

bool Problem::isVisible(int64_t row, int64_t key) const {
  int64_t at = position + row;
  if (spec.causal && key > at)
    return false;
  if (key < at - spec.windowLeft)
    return false;
  if (!spec.causal && key > at + spec.windowRight)
    return false;
  if (spec.hasKeyMask && !keyMask[key])
    return false;
  return !spec.hasSegments || qSegment[row] == kSegment[key];
}

std::vector<uint32_t> Problem::visitedBlocks(int64_t tile) const {
  if (!blocks.empty())
    return blocks[tile];
  std::vector<uint32_t> all;
  int64_t last = std::min(queries, (tile + 1) * spec.blockQ) - 1;
  for (int64_t block = 0; block * spec.blockK < keys; ++block) {
    bool any = !spec.causal || block * spec.blockK <= position + last;
    if (any)
      all.push_back(uint32_t(block));
  }
  return all;
}

double Problem::score(int64_t row, int64_t key) const {
  double s = 0;
  for (int64_t i = 0; i < spec.headDim; ++i)
    s += double(q[row * spec.headDim + i]) * k[key * spec.headDim + i];
  s *= scale;
  if (spec.softcap != 0)
    s = spec.softcap * std::tanh(s / spec.softcap);
  if (spec.hasBias)
    s += bias[row * biasRowStride + key * biasKeyStride];
  return s;
}

/// Leaves out rounds without a score that any row needs.
void Problem::leaveOut(int64_t tile,
                       const std::vector<std::vector<int64_t>> &rounds) {
  const int64_t first = tile * spec.blockQ,
                rows = std::min<int64_t>(spec.blockQ, queries - first);
  std::vector<double> max(rows, spec.hasSink ? double(sink) : -3e38);
  for (const std::vector<int64_t> &keysOfRound : rounds) {
    std::vector<double> next = max;
    bool needed = false;
    for (int64_t row = 0; row < rows; ++row) {
      double most = -INFINITY;
      for (int64_t key : keysOfRound) {
        if (!isVisible(first + row, key))
          continue;
        double s = score(first + row, key);
        needed |= std::isnan(s);
        most = std::max(most, s);
      }
      needed |= most - max[row] >= std::log(double(skip));
      next[row] = std::max(max[row], most);
    }
    ++roundCount;
    if (needed) {
      max = next;
      continue;
    }
    ++leftOutCount;
    for (int64_t key : keysOfRound)
      leftOut.insert({tile, key});
  }
}

bool Problem::isVisited(int64_t tile, int64_t key) const {
  std::vector<uint32_t> list = visitedBlocks(tile);
  if (std::count(list.begin(), list.end(), uint32_t(key / spec.blockK)))
    return true;
  return !columns.empty() &&
         std::count(columns[tile].begin(), columns[tile].end(), int32_t(key));
}

std::string Problem::check(const CpuTarget &target) {
  std::string error;
  const LoadedKernel *kernel = getKernel(spec, target, error);
  if (!kernel)
    return error;
  const int64_t d = spec.headDim, e = spec.vHeadDim, bq = spec.blockQ,
                bk = spec.blockK;
  StoredMatrix storedQ(q, queries, d, qStride, spec.dtype);
  StoredMatrix storedK(k, keys, d, kStride, spec.dtype);
  StoredMatrix storedV(v, keys, e, vStride, spec.dtype);
  std::vector<float> nothing(queries * e, -77.0f);
  StoredMatrix storedO(nothing, queries, e, oStride, spec.dtype);
  StoredMatrix storedBias(bias, bias.empty() ? 0 : 1, bias.size(), bias.size(),
                          DType::F32);
  GuardedBuffer storedMask(keyMask.size());
  storedMask.fill(keyMask.data(), keyMask.size());
  GuardedBuffer storedQSegment(qSegment.size() * 4),
      storedKSegment(kSegment.size() * 4);
  storedQSegment.fill(qSegment.data(), qSegment.size() * 4);
  storedKSegment.fill(kSegment.data(), kSegment.size() * 4);
  lse.assign(queries + 1, -77.0f);
  o.assign(queries * e, 0.0f);
  leftOut.clear();
  roundCount = leftOutCount = 0;

  for (int64_t tile = 0; tile * bq < queries; ++tile) {
    int64_t first = tile * bq, rows = std::min(bq, queries - first);
    std::vector<uint32_t> list = visitedBlocks(tile);
    // Wholly visible blocks come first, as the runtime orders them.
    int64_t full = 0;
    auto isFull = [&](uint32_t block) {
      if (!useFullBlocks || (block + 1) * bk > keys)
        return false;
      for (int64_t row = first; row < first + rows; ++row)
        for (int64_t key = block * bk; key < (block + 1) * bk; ++key)
          if (!isVisible(row, key))
            return false;
      return true;
    };
    while (full < int64_t(list.size()) && isFull(list[full]))
      ++full;
    std::vector<int32_t> positions;
    if (!columns.empty())
      positions = columns[tile];
    int64_t columnCount = positions.size();
    positions.resize((columnCount + bk - 1) / bk * bk, skipped);
    // What skipped columns hold must not matter.
    std::vector<float> packedK(positions.size() * d, NAN),
        packedV(positions.size() * e, NAN);
    for (int64_t c = 0; c < columnCount; ++c) {
      if (positions[c] == skipped)
        continue;
      std::copy_n(&k[positions[c] * d], d, &packedK[c * d]);
      std::copy_n(&v[positions[c] * e], e, &packedV[c * e]);
    }
    StoredMatrix columnK(packedK, positions.size(), d, d, spec.dtype);
    StoredMatrix columnV(packedV, positions.size(), e, e, spec.dtype);
    GuardedBuffer blockIds(list.size() * 4);
    blockIds.fill(list.data(), list.size() * 4);
    Workspace workspace(kernel->attentionWorkspace);
    prefill_tile_args args;
    std::memset(&args, 0, sizeof(args));
    args.q = storedQ.at(first * qStride);
    args.k = storedK.at(0);
    args.v = storedV.at(0);
    args.o = storedO.at(first * oStride);
    args.lse = &lse[first];
    args.q_stride = qStride;
    args.k_stride = kStride;
    args.v_stride = vStride;
    args.o_stride = oStride;
    args.rows = rows;
    args.position = position + first;
    args.kv_len = keys;
    args.window_left = spec.windowLeft;
    args.window_right = spec.causal ? 0 : spec.windowRight;
    args.scale = scale;
    args.softcap = spec.softcap;
    args.sink = sink;
    args.skip = skip > 0 ? std::log2(skip) : -INFINITY;
    std::vector<std::vector<int64_t>> rounds;
    for (uint32_t block : list) {
      rounds.emplace_back();
      for (int64_t key = block * bk; key < std::min((block + 1) * bk, keys);
           ++key)
        rounds.back().push_back(key);
    }
    for (size_t c = 0; c < positions.size(); ++c) {
      if (c % bk == 0)
        rounds.emplace_back();
      if (positions[c] != skipped)
        rounds.back().push_back(positions[c]);
    }
    if (skip > 0)
      leaveOut(tile, rounds);
    args.blocks =
        list.empty() ? nullptr : reinterpret_cast<uint32_t *>(blockIds.start);
    args.block_count = list.size();
    args.full_count = full;
    if (columnCount) {
      args.col_k = columnK.at(0);
      args.col_v = columnV.at(0);
      args.col_pos = positions.data();
      args.col_count = columnCount;
    }
    if (spec.hasKeyMask)
      args.key_mask = reinterpret_cast<uint8_t *>(storedMask.start);
    if (spec.hasBias) {
      args.bias =
          reinterpret_cast<float *>(storedBias.at(first * biasRowStride));
      args.bias_row_stride = biasRowStride;
      args.bias_key_stride = biasKeyStride;
    }
    if (spec.hasSegments) {
      args.q_segment =
          reinterpret_cast<int32_t *>(storedQSegment.start) + first;
      args.k_segment = reinterpret_cast<int32_t *>(storedKSegment.start);
    }
    args.workspace = workspace.memory;
    unsigned control = _mm_getcsr();
    kernel->attention(&args);
    if ((_mm_getcsr() & ~0x3fu) != (control & ~0x3fu))
      return "the control word of the caller is changed";
    if (!workspace.isIntact())
      return "memory past the workspace is written";
    // Without lse nothing else changes.
    std::vector<float> lseBefore = lse;
    args.lse = nullptr;
    kernel->attention(&args);
    if (std::memcmp(lse.data(), lseBefore.data(), lse.size() * 4) != 0)
      return "lse is written where none is wanted";
  }
  if (lse[queries] != -77.0f)
    return "lse is written past the last row";
  if (queries > 1 && spec.dtype == DType::F32 && !std::isnan(storedO.get(e)))
    return "output is written between rows";

  double allowed = tolerance;
  if (allowed == 0)
    allowed = spec.dtype == DType::F32   ? 2e-5
              : spec.dtype == DType::F16 ? 2e-3
                                         : 1.5e-2;
  for (int64_t row = 0; row < queries; ++row) {
    int64_t tile = row / bq;
    std::vector<std::pair<int64_t, double>> scores;
    double max = -INFINITY;
    for (int64_t key = 0; key < keys; ++key) {
      if (!isVisited(tile, key) || !isVisible(row, key) ||
          leftOut.count({tile, key}))
        continue;
      const double s = score(row, key);
      if (s == -INFINITY)
        continue;
      scores.push_back({key, s});
      max = std::isnan(s) ? max : std::max(max, s);
    }
    if (spec.hasSink)
      max = std::max(max, double(sink));
    std::vector<double> want(e, 0.0);
    double sum = spec.hasSink && sink != -INFINITY ? std::exp(sink - max) : 0;
    for (auto [key, s] : scores) {
      double p = std::exp(s - max);
      sum += p;
      for (int64_t i = 0; i < e; ++i)
        want[i] += p * v[key * e + i];
    }
    double wantLse = sum == 0 ? -INFINITY : max + std::log(sum);
    double error2 = 0, norm2 = 0;
    bool bad = false;
    for (int64_t i = 0; i < e; ++i) {
      double truth = sum == 0 ? 0.0 : want[i] / sum;
      double got = o[row * e + i] = storedO.get(row * oStride + i);
      if (std::isnan(truth) || std::isnan(got)) {
        bad |= std::isnan(truth) != std::isnan(got);
        continue;
      }
      error2 += (got - truth) * (got - truth);
      norm2 += truth * truth;
    }
    auto describe = [&](const std::string &what) {
      return what + " of row " + std::to_string(row) + " is wrong (" +
             std::to_string(queries) + " queries, " + std::to_string(keys) +
             " keys, d " + std::to_string(d) + ", e " + std::to_string(e) + ")";
    };
    if (bad || std::sqrt(error2) > allowed * std::max(std::sqrt(norm2), 1e-2))
      return describe("output") + " by " + std::to_string(std::sqrt(error2)) +
             " of " + std::to_string(std::sqrt(norm2));
    double got = lse[row];
    bool sameLse =
        std::isnan(wantLse)
            ? std::isnan(got)
            : got == wantLse || std::fabs(got - wantLse) <=
                                    2e-5 * std::max(1.0, std::fabs(wantLse));
    if (!sameLse)
      return describe("lse") + ": " + std::to_string(got) + " for " +
             std::to_string(wantLse);
  }
  return "";
}

std::string Problem::checkScores(const CpuTarget &target) {
  std::string error;
  const LoadedKernel *kernel = getKernel(spec, target, error);
  if (!kernel)
    return error;
  const int64_t d = spec.headDim, bq = spec.blockQ;
  StoredMatrix storedQ(q, queries, d, qStride, spec.dtype);
  StoredMatrix storedK(k, keys, d, kStride, spec.dtype);
  const int64_t begin = keys / 3;
  for (int64_t first = 0; first < queries; first += bq) {
    int64_t rows = std::min(bq, queries - first);
    GuardedBuffer out((keys - begin) * bq * 4);
    Workspace workspace(kernel->scoreWorkspace);
    prefill_score_args args;
    std::memset(&args, 0, sizeof(args));
    args.q = storedQ.at(first * qStride);
    args.k = storedK.at(0);
    args.q_stride = qStride;
    args.k_stride = kStride;
    args.rows = rows;
    args.key_begin = begin;
    args.key_end = keys;
    args.scale = scale;
    args.out = reinterpret_cast<float *>(out.start);
    args.workspace = workspace.memory;
    kernel->score(&args);
    if (!workspace.isIntact())
      return "memory past the workspace is written";
    for (int64_t key = begin; key < keys; ++key)
      for (int64_t row = 0; row < bq; ++row) {
        double s = 0, size = 0;
        for (int64_t i = 0; row < rows && i < d; ++i) {
          double term = double(q[(first + row) * d + i]) * k[key * d + i];
          s += term;
          size += std::fabs(term);
        }
        if (std::fabs(args.out[(key - begin) * bq + row] - s * scale) >
            1e-5 * scale * size)
          return "score of row " + std::to_string(first + row) + ", key " +
                 std::to_string(key) + " is wrong";
      }
  }
  return "";
}
