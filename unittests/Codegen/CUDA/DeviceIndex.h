//===- DeviceIndex.h - Index kernels in the emulator ------------*- C++ -*-===//
//
// A call of the CPU's runtime, and the same call's launches of
// prefill/cuda_index.h.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_UNITTESTS_CODEGEN_CUDA_DEVICEINDEX_H
#define PREFILL_UNITTESTS_CODEGEN_CUDA_DEVICEINDEX_H

#include "Plans.h"
#include "estimate.h"
#include "prefill/Codegen/CUDA/IndexKernels.h"
#include "prefill/Emulator/Emulator.h"
#include "prefill/cuda_index.h"
#include "llvm/IR/Module.h"

namespace prefill::harness {

/// The kernels, compiled once a process.
emu::Program *indexKernels(std::string &error);

/// Memory for a call's launches, which tests may point elsewhere.
struct DeviceIndex {
  prefill_cuda_index x = {};
  uint32_t patterns = 0;
  std::vector<char> memory;
  std::vector<int32_t> lengths;
  std::vector<int64_t> positions;
  emu::Device device;
  emu::Options how;

  /// Takes a checked call with 16-bit elements.
  void build(const pf_call &call);
  void input(const void *data, size_t bytes, llvm::StringRef name) {
    device.addInput(data, bytes, name);
  }
  /// Runs prefill_index_<name>; what is wrong, or nothing.
  std::string launch(llvm::StringRef name, uint32_t gridX, uint32_t gridY = 1,
                     uint32_t gridZ = 1);
  /// Everything up to the sums, and everything after them.
  std::string launchPrepare() { return launch("prepare", x.batch); }
  std::string launchRest();

  /// What the tile visits, in order.
  struct Row {
    int32_t full = 0;
    std::vector<int32_t> blocks, columns;
    bool operator==(const Row &other) const {
      return full == other.full && blocks == other.blocks &&
             columns == other.columns;
    }
  };
  Row row(int64_t b, int64_t h, int64_t tile) const;
};

/// The runtime's sums of the last rows in the device's layout, where the
/// tests' kernels find them: a diagonal's as one of its parts.
struct RuntimeSums {
  std::vector<float> most, sum, column, diagonal;

  RuntimeSums(const pf_call &call, prefill_cuda_index &x);

  /// Declares them as memory that kernels may read.
  void giveRows(DeviceIndex &device) const {
    device.input(most.data(), most.size() * 4, "row_most");
    device.input(sum.data(), sum.size() * 4, "row_sum");
  }
  void give(DeviceIndex &device) const {
    giveRows(device);
    device.input(column.data(), column.size() * 4, "column");
    device.input(diagonal.data(), diagonal.size() * 4, "diagonal");
  }
};

/// What the CPU's runtime visits there; its index is built.
DeviceIndex::Row runtimeRow(const pf_call &call, int64_t b, int64_t h,
                            int64_t tile);
void PrintTo(const DeviceIndex::Row &row, std::ostream *out);

} // namespace prefill::harness

#endif
