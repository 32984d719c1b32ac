//===- MaskParts.h - What was found in the masks of a site ----------------===//
//
// Private to lib/Analysis.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_LIB_ANALYSIS_MASKPARTS_H
#define PREFILL_LIB_ANALYSIS_MASKPARTS_H

#include "prefill/Analysis/MaskPredicate.h"

namespace prefill {

/// What was found so far. Copied before a term is tried, so that a term that
/// fails half-way leaves nothing behind.
struct MaskBuilder::Parts {
  /// j <= i + upper, i - j <= back.
  ExprRef upper = nullptr, back = nullptr;
  llvm::SmallVector<PlannedValue> keyMasks;
  PlannedValue kvLengths, qSegment, kSegment, bias;
  bool biasIsBool = false;
  /// A bias of which nothing is known: it may hide keys itself.
  bool opaqueBias = false;
  /// Something hides keys of which no more is known.
  bool dataMask = false;
  llvm::SmallVector<double> hidden; ///< distinct values of masked scores
  unsigned addedFinite = 0;         ///< finite minima that can add up
  ExprRef visible = nullptr;
  llvm::SmallVector<PlannedNode> nodes; ///< all planned nodes of the site
  /// How a condition is read: taken apart, taken apart but for causality and
  /// windows, or as one bool tensor.
  enum class Reading { Parts, NoBand, Whole } reading = Reading::Parts;
  // Chosen by resolveBand.
  bool causal = false;
  std::optional<int64_t> windowLeft, windowRight;
  QueryAlignment alignment = QueryAlignment::End;
  PlannedValue qOffset;
  ExprRef offset = nullptr;

  void hide(double value) {
    if (!llvm::is_contained(hidden, value))
      hidden.push_back(value);
  }
};

/// Planned nodes on a list that may be thrown away.
struct MaskPlanner {
  llvm::SmallVector<PlannedNode> &nodes;
  mlir::MLIRContext *context;

  PlannedValue node(llvm::StringRef opType, llvm::ArrayRef<PlannedValue> inputs,
                    mlir::Type type,
                    llvm::ArrayRef<mlir::NamedAttribute> attributes = {});
  PlannedValue ints(llvm::ArrayRef<int64_t> values);
};

} // namespace prefill

#endif
