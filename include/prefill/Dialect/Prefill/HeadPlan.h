//===- HeadPlan.h - How one query head is made sparse ------------*- C++ -*-==//
//
// Plain data shared by the sparsity configuration, the kernel specifications and
// (as prefill_head_plan) the runtime.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_DIALECT_PREFILL_HEADPLAN_H
#define PREFILL_DIALECT_PREFILL_HEADPLAN_H

#include <cstdint>

namespace prefill {

enum class SparsePattern : int32_t {
  Dense = 0,
  AShape = 1,
  TriShape = 2,
  VerticalSlash = 3,
  BlockSparse = 4,
  XAttention = 5
};

/// How one query head is made sparse (prefill_head_plan).
struct HeadPlan {
  SparsePattern pattern = SparsePattern::Dense;
  int32_t init = 0, local = 0, last = 64;
  int32_t vertical = 0, slash = 0;
  int32_t topK = 0;
  float density = 0;
  int32_t stride = 0;
  float topP = 0;
};

} // namespace prefill

#endif
