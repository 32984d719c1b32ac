//===- CostSizes.h - Shapes of a graph as numbers ----------------*- C++ -*-==//
//
// Private to lib/Driver.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_LIB_DRIVER_COSTSIZES_H
#define PREFILL_LIB_DRIVER_COSTSIZES_H

#include "CostModel.h"
#include "prefill/Analysis/SymbolicAnalysis.h"

namespace prefill {

using Shape = std::optional<llvm::SmallVector<int64_t>>;

/// Expressions over the dimensions of a graph as numbers.
class Sizes {
public:
  explicit Sizes(SymbolicAnalysis &analysis) : analysis(analysis) {}

  /// Gives every dimension of the graph's inputs a size. False with a one-line
  /// error where one cannot be known.
  bool bind(const CostSizes &given, std::string &error);

  /// The number that `e` is, if its symbols are known.
  std::optional<int64_t> eval(ExprRef e);
  /// The sizes of `value`, if all are known.
  Shape shape(mlir::Value value);

  SymbolicAnalysis &analysis;
  llvm::DenseMap<ExprRef, int64_t> symbols;
};

} // namespace prefill

#endif
