//===- SymbolicExprParts.h - Inside of expressions ---------------*- C++ -*-==//
//
// Private to SymbolicExpr*.cpp.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_LIB_ANALYSIS_SYMBOLICEXPRPARTS_H
#define PREFILL_LIB_ANALYSIS_SYMBOLICEXPRPARTS_H

#include "prefill/Analysis/SymbolicExpr.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/MathExtras.h"

namespace prefill {

namespace expr_limits {
// Larger sums and products become opaque, so that hostile graphs cannot make
// expressions explode.
inline constexpr size_t maxTerms = 24;
inline constexpr size_t maxDegree = 6;
inline constexpr unsigned maxProofDepth = 8;
inline constexpr unsigned maxProofSteps = 128;
inline constexpr unsigned maxDepth = 64;
inline constexpr unsigned maxHeight = 40;
} // namespace expr_limits

/// A polynomial under construction: monomials (an atom or a Product) with
/// coefficients.
struct ExprContext::Terms {
  int64_t constant = 0;
  llvm::SmallVector<std::pair<ExprRef, int64_t>, 8> list;
  bool overflow = false;

  void add(ExprRef monomial, int64_t coefficient) {
    for (auto &[m, c] : list)
      if (m == monomial) {
        overflow |= llvm::AddOverflow(c, coefficient, c);
        return;
      }
    list.push_back({monomial, coefficient});
    overflow |= list.size() > 4 * expr_limits::maxTerms;
  }
  void addConstant(int64_t c) {
    overflow |= llvm::AddOverflow(constant, c, constant);
  }
};

/// The atoms of a monomial.
inline llvm::ArrayRef<ExprRef> atomsOf(const ExprRef &monomial) {
  return monomial->is(Expr::Kind::Product) ? monomial->operands
                                           : llvm::ArrayRef<ExprRef>(monomial);
}

} // namespace prefill

#endif
