//===- RotaryMatch.h - Rows rotated by their position ---------------------===//
//
// Private to lib/Analysis.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_LIB_ANALYSIS_ROTARYMATCH_H
#define PREFILL_LIB_ANALYSIS_ROTARYMATCH_H

#include "prefill/Analysis/AttentionSite.h"
#include "prefill/Analysis/SymbolicAnalysis.h"

namespace prefill {

/// Where the rows of q or k lie: `value` in `layout` is [batch, heads, rows,
/// width] ([batch, rows, heads, width] or with the last two joined).
struct RowsAt {
  mlir::Value value;
  TensorLayout layout = TensorLayout::BHSD;
  ExprRef b = nullptr, batch = nullptr; ///< index and size
  ExprRef row = nullptr, rows = nullptr;
  int64_t heads = 0, width = 0;
};

/// Rows that are those of `source`, rotated by position (RoFormer,
/// arXiv:2104.09864): `cos` and `sin` are [rows, w] or [batch or 1, rows, w], w
/// = dim / 2 or dim.
struct Rotation {
  mlir::Value source;
  TensorLayout layout = TensorLayout::BHSD;
  mlir::Value cos, sin;
  RotaryKind kind = RotaryKind::None;
  int64_t dim = 0;
};

/// The rotation that gives `rows`, or nothing when they are not proven to be
/// one. However it is written: with slices, splits, strides, stacks, over all
/// of a row or its first elements.
std::optional<Rotation> matchRotation(SymbolicAnalysis &analysis,
                                      const RowsAt &rows);

/// Takes a rotation of both q and k into `site`, which is proven: q and k
/// become the rows before it. Leaves the site as it is when there is none, when
/// q and k do not share tables, or when the keys are more than the new rows
/// (rows of a cache are rotated already).
void absorbRotation(SymbolicAnalysis &analysis, AttentionSite &site);

} // namespace prefill

#endif
