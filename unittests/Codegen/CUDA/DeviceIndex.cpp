//===- DeviceIndex.cpp - Index kernels in the emulator --------------------===//

#include "DeviceIndex.h"

using namespace prefill;
using namespace prefill::harness;

emu::Program *harness::indexKernels(std::string &error) {
  static CudaKernel kernels;
  static std::unique_ptr<emu::Program> program;
  if (program)
    return program.get();
  CudaOptions options;
  options.runPtxas = false;
  if (!compileCudaIndex(options, kernels, error))
    return nullptr;
  auto compiled = emu::Program::compile(*kernels.module);
  if (!compiled) {
    error = llvm::toString(compiled.takeError());
    return nullptr;
  }
  program = std::move(*compiled);
  return program.get();
}

void DeviceIndex::build(const pf_call &call) {
  x.q = call.q.data, x.k = call.k.data, x.v = call.v.data;
  x.q_batch = call.q.batch, x.q_head = call.q.head, x.q_row = call.q.row;
  x.k_batch = call.k.batch, x.k_head = call.k.head, x.k_row = call.k.row;
  x.v_batch = call.v.batch, x.v_head = call.v.head, x.v_row = call.v.row;
  x.position = call.t - call.s;
  x.window_left = call.window ? call.window_left : PF_UNBOUNDED;
  x.q_len = static_cast<int32_t>(call.s);
  x.kv_len = static_cast<int32_t>(call.t);
  x.batch = static_cast<int32_t>(call.b);
  x.heads = static_cast<int32_t>(call.hq);
  x.group = static_cast<int32_t>(call.group);
  x.head_dim = static_cast<int32_t>(call.d);
  x.v_head_dim = static_cast<int32_t>(call.e);
  x.dtype = call.desc->dtype;
  x.block_q = static_cast<int32_t>(call.bq);
  x.block_k = static_cast<int32_t>(call.bk);
  x.scale = call.scale;
  x.softcap =
      call.desc->features & PREFILL_TILE_SOFTCAP ? call.desc->softcap : 0;
  x.dense_below = call.desc->plan->dense_below;
  for (int64_t b = 0; b < call.b; ++b) {
    lengths.push_back(static_cast<int32_t>(call.batch[b].kv_len));
    positions.push_back(call.batch[b].offset);
  }
  x.kv_lengths = lengths.data(), x.positions = positions.data();
  // All batch entries have a mask, or none.
  x.key_mask = call.batch[0].key_mask;
  x.key_mask_batch = call.t;
  x.plans = call.desc->plan->heads;
  prefill_cuda_index_rooms(&x, call.t);
  patterns = prefill_cuda_index_needs(x.plans, x.heads);
  memory.resize(prefill_cuda_index_layout(&x, patterns, nullptr) + 256);
  char *aligned = reinterpret_cast<char *>(
      (reinterpret_cast<uintptr_t>(memory.data()) + 255) / 256 * 256);
  prefill_cuda_index_layout(&x, patterns, aligned);
  device.addOutput(memory.data(), memory.size(), "workspace");
  const int64_t bytes = call.element;
  input(x.q,
        ((call.b - 1) * x.q_batch + (call.hq - 1) * x.q_head +
         (call.s - 1) * x.q_row + call.d) *
            bytes,
        "q");
  input(x.k,
        ((call.b - 1) * x.k_batch + (call.hk - 1) * x.k_head +
         (call.t - 1) * x.k_row + call.d) *
            bytes,
        "k");
  if (patterns & PREFILL_CUDA_NEEDS_VALUES)
    input(x.v,
          ((call.b - 1) * x.v_batch + (call.hk - 1) * x.v_head +
           (call.t - 1) * x.v_row + call.e) *
              bytes,
          "v");
  input(lengths.data(), lengths.size() * 4, "kv_lengths");
  input(positions.data(), positions.size() * 8, "positions");
  input(x.plans, call.hq * sizeof(prefill_head_plan), "plans");
  if (x.key_mask)
    input(x.key_mask, call.b * call.t, "key_mask");
}

std::string DeviceIndex::launch(llvm::StringRef name, uint32_t gridX,
                                uint32_t gridY, uint32_t gridZ) {
  std::string error;
  emu::Program *program = indexKernels(error);
  if (!program)
    return error;
  emu::Launch launch;
  launch.kernel = ("prefill_index_" + name).str();
  launch.grid.x = gridX, launch.grid.y = gridY, launch.grid.z = gridZ;
  launch.block.x = PREFILL_CUDA_INDEX_THREADS;
  launch.addScalar(x);
  llvm::Expected<emu::Report> report = program->run(device, launch, how);
  if (!report)
    return llvm::toString(report.takeError());
  return report->clean() ? "" : report->str();
}

std::string DeviceIndex::launchRest() {
  prefill_cuda_index_launch launches[PREFILL_CUDA_INDEX_LAUNCHES];
  const int count = prefill_cuda_index_launches(&x, patterns, launches);
  bool rest = false;
  for (const prefill_cuda_index_launch &next :
       llvm::ArrayRef(launches).take_front(count)) {
    llvm::StringRef name = next.kernel ? next.kernel : "";
    name.consume_front("prefill_index_");
    // What comes after the sums.
    rest |= name == "select_lines" || name == "relative";
    if (!rest)
      continue;
    std::string error = launch(name, next.grid[0], next.grid[1], next.grid[2]);
    if (!error.empty())
      return name.str() + ": " + error;
  }
  return "";
}

harness::RuntimeSums::RuntimeSums(const pf_call &call, prefill_cuda_index &x) {
  constexpr int64_t keys = PREFILL_CUDA_SUMS_KEYS;
  const int64_t heads = call.b * call.hq, width = 2 * PREFILL_CUDA_SUMS_ROWS;
  most.assign(heads * x.sums_chunks * PREFILL_CUDA_SUMS_ROWS, 0);
  sum.assign(most.size(), 1);
  column.assign(heads * x.kv_len, 0);
  diagonal.assign(heads * x.sums_tiles * width, 0);
  std::vector<char> memory(pf_sums_bytes(&call) + 64);
  void *aligned = reinterpret_cast<void *>(
      (reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
  for (int64_t head = 0; head < heads; ++head) {
    const prefill_head_plan &plan = call.desc->plan->heads[head % call.hq];
    const bool open =
        plan.pattern == PREFILL_PATTERN_FLEXPREFILL && plan.last <= 0;
    const int64_t last = open ? call.bq : plan.last;
    const pf_sums sums =
        pf_estimate_sums(&call, head / call.hq, head % call.hq, last, aligned);
    if (!sums.finite)
      sum[head * x.sums_chunks * PREFILL_CUDA_SUMS_ROWS] = NAN;
    for (int64_t j = 0; j < call.t; ++j) {
      column[head * x.kv_len + j] = sums.column[j];
      const int64_t start = sums.first_position - j;
      int64_t tile = pf_floor_div(start, keys);
      tile += tile < 0;
      const int64_t index = tile * keys - start + keys - 1;
      if (tile >= 0 && tile < x.sums_tiles && index < width)
        diagonal[(head * x.sums_tiles + tile) * width + index] =
            sums.diagonal[j];
    }
  }
  x.row_most = most.data(), x.row_sum = sum.data();
  x.column = column.data(), x.diagonal = diagonal.data();
}

DeviceIndex::Row DeviceIndex::row(int64_t b, int64_t h, int64_t tile) const {
  const int64_t r = (b * x.heads + h) * x.tiles + tile;
  Row result;
  result.full = x.full_count[r];
  result.blocks.assign(x.block_ids + x.block_begin[r],
                       x.block_ids + x.block_begin[r + 1]);
  result.columns.assign(x.col_pos + x.col_begin[r],
                        x.col_pos + x.col_begin[r + 1]);
  // Padding is at the end only, and less than a tile.
  for (int i = 1; i < x.block_k && !result.columns.empty() &&
                  result.columns.back() == INT32_MAX;
       ++i)
    result.columns.pop_back();
  return result;
}

DeviceIndex::Row harness::runtimeRow(const pf_call &call, int64_t b, int64_t h,
                                     int64_t tile) {
  static const pf_head_index dense = {};
  const pf_head_index *index =
      call.index ? &call.index[b * call.hq + h] : &dense;
  const pf_grid grid = pf_grid_of(&call, b);
  const pf_span span = pf_visible_span(&call, b, tile);
  std::vector<uint64_t> kept(call.blocks / 64 + 1);
  pf_index_row(index, &grid, tile, span.begin, span.end, kept.data());
  std::vector<uint32_t> ids(call.blocks);
  const int64_t row = tile * call.bq;
  int64_t full = 0;
  const int64_t count =
      pf_list_blocks(&call, b, row, std::min(call.bq, call.s - row), &span,
                     kept.data(), nullptr, ids.data(), &full);
  DeviceIndex::Row result;
  result.full = static_cast<int32_t>(full);
  result.blocks.assign(ids.begin(), ids.begin() + count);
  if (index->mode != PF_HEAD_RELATIVE || tile >= index->dense_tile)
    return result;
  std::vector<int32_t> columns(index->columns + call.bk + 1);
  int64_t first = 0;
  const int64_t found = pf_index_columns(index, &grid, span.begin, span.end,
                                         kept.data(), columns.data(), &first);
  for (int64_t i = 0; i < found; ++i)
    if (columns[i] != INT32_MAX)
      result.columns.push_back(columns[i]);
  return result;
}

void harness::PrintTo(const DeviceIndex::Row &row, std::ostream *out) {
  *out << row.full << " full of";
  for (int32_t block : row.blocks)
    *out << ' ' << block;
  *out << "; columns";
  for (int32_t column : row.columns)
    *out << ' ' << column;
}
