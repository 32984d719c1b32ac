//===- CostModel.h - FLOPs, bytes and seconds of a graph ---------*- C++ -*-==//
//
// Private to lib/Driver: what one run of a model's graph costs at given sizes.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_LIB_DRIVER_COSTMODEL_H
#define PREFILL_LIB_DRIVER_COSTMODEL_H

#include "prefill/Codegen/KernelSpec.h"
#include "prefill/Dialect/ONNX/ONNX.h"
#include "prefill/cost.h"
#include "llvm/ADT/StringMap.h"

namespace prefill {

/// A device with the number of its threads and rates that the user gave.
struct CostDevice {
  prefill_device rates{};
  int64_t threads = 1;
  double linear() const { return rates.linear * scale(); }
  /// Bytes a second of an operator that reads and writes `moved` bytes.
  double bytes(double moved) const {
    return (moved <= rates.cache ? rates.cached : rates.bytes) * scale();
  }
  double attention(int64_t headDim) const {
    return (headDim <= 64 ? rates.narrow : rates.attention) * scale();
  }

private:
  double scale() const { return rates.per_thread ? double(threads) : 1; }
};

/// Sizes that a model is run with.
struct CostSizes {
  int64_t batch = 1;
  int64_t tokens = 0; ///< rows of a sequence; 0: the model reads images
  std::vector<int64_t> segments; ///< of a pack: the prompts' lengths
  int64_t past = 0; ///< of a chunk: rows that the cache holds before it
  std::vector<int64_t> pasts; ///< the same by layer, where these differ
  int64_t contexts = 0; ///< of a chunk: rows of contexts that it sees as well
  std::optional<int64_t> logits; ///< rows of a chunk's; none: one a segment
  int64_t capacity = 0; ///< of a chunk: rows that the cache has room for
  llvm::StringMap<int64_t> given; ///< of dimensions, by -dim
  bool original = true; ///< the graph has all inputs that it came with
};

/// One attention of a graph.
struct AttentionCost {
  std::string layer;
  int64_t rows = 0, keys = 0; ///< of a batch entry
  double flops = 0;
  double visited = 1; ///< share of its visible blocks, mean of heads
  int64_t sparse = 0; ///< heads that run sparse
  int64_t asked = 0;  ///< heads that have a pattern
};

/// What one run costs. Bytes are read and written once by every operator.
struct GraphCost {
  double linear = 0, attention = 0, head = 0; ///< FLOPs
  double bytes = 0, kv = 0, weights = 0, peak = 0;
  double seconds = 0;
  double computing = 0; ///< seconds in which products, not memory, decide
  std::vector<AttentionCost> attentions;
  int64_t uncounted = 0;      ///< operators of which nothing is known
  std::string firstUncounted; ///< with the reason

  /// Adds `times` runs after one another.
  void add(const GraphCost &other, double times = 1);
  double flops() const { return linear + attention + head; }
};

/// The cost of `graph` with the sizes `sizes`. `kernels` has one specification
/// for every prefill.attention, in order: how it is made sparse. An error (a
/// size that cannot be known) is one line.
bool costOf(onnx::GraphOp graph, const CostSizes &sizes,
            llvm::ArrayRef<KernelSpec> kernels, const CostDevice &device,
            GraphCost &cost, std::string &error);

} // namespace prefill

#endif
