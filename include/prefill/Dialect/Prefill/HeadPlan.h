//===- HeadPlan.h - How one query head is made sparse ------------*- C++ -*-==//
//
// Plain data shared by the sparsity configuration, the kernel specifications
// and (as prefill_head_plan) the runtime.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_DIALECT_PREFILL_HEADPLAN_H
#define PREFILL_DIALECT_PREFILL_HEADPLAN_H

#include <cstdint>
#include <tuple>

namespace prefill {

enum class SparsePattern : int32_t {
  Dense = 0,
  AShape = 1,
  TriShape = 2,
  VerticalSlash = 3,
  BlockSparse = 4,
  XAttention = 5,
  Sampled = 6,
  SALE = 7,
  FlexPrefill = 8,
  InfLLMv2 = 9,
  Strided = 10,
  Grid = 11,
  QBoundary = 12,
  TwoDBoundary = 13
};

/// Does the pattern ask what kind of token each key is?
inline bool needsModality(SparsePattern pattern) {
  return pattern == SparsePattern::QBoundary ||
         pattern == SparsePattern::TwoDBoundary;
}

/// How one query head is made sparse (prefill_head_plan).
struct HeadPlan {
  SparsePattern pattern = SparsePattern::Dense;
  int32_t init = 0, local = 0, last = 64;
  int32_t vertical = 0, slash = 0;
  int32_t topK = 0;
  float density = 0;
  int32_t stride = 0;
  float topP = 0;
  float threshold = 0;
  int32_t minBudget = 0;
  int32_t bits = 0;
  int32_t values = 0;
  float similarity = 0;
  int32_t horizontal = 0;
  float skip = 0;

  /// Every field, for comparisons.
  auto fields() const {
    return std::tie(pattern, init, local, last, vertical, slash, topK, density,
                    stride, topP, threshold, minBudget, bits, values,
                    similarity, horizontal, skip);
  }
  bool operator==(const HeadPlan &other) const {
    return fields() == other.fields();
  }
};

} // namespace prefill

#endif
