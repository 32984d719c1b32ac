//===- SymbolicExpr.h - Expressions over dimensions and indices --*- C++ -*-==//
//
// Scalars as hash-consed expressions: integers as polynomials over dimension
// symbols and index variables, booleans as formulas over comparisons of them,
// floats as trees. Two expressions that are the same pointer have the same
// value; different pointers say nothing. Everything is built through
// ExprContext, which simplifies, and gives up (an opaque atom) rather than grow
// without bound.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_ANALYSIS_SYMBOLICEXPR_H
#define PREFILL_ANALYSIS_SYMBOLICEXPR_H

#include "mlir/IR/Value.h"
#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/DenseSet.h"
#include "llvm/ADT/FoldingSet.h"
#include "llvm/ADT/SmallVector.h"
#include "llvm/Support/Allocator.h"
#include "llvm/Support/raw_ostream.h"

#include <optional>
#include <string>
#include <utility>

namespace prefill {

/// A scalar expression. Immutable and unique in its context.
class Expr : public llvm::FoldingSetNode {
public:
  enum class Kind : uint8_t {
    // Integers.
    Int,      ///< integer
    Symbol,   ///< a named dimension, >= 0
    Index,    ///< an index variable, 0 <= x < operand 0
    Sum,      ///< integer + sum of coefficients[i] * operand i
    Product,  ///< product of operands (sorted, repeats allowed)
    FloorDiv, ///< floor(operand 0 / operand 1), operand 1 > 0
    Mod,      ///< operand 0 - operand 1 * FloorDiv
    Min,      ///< of two
    Max,      ///< of two
    // Booleans.
    Bool, ///< integer 0 or 1
    Ge0,  ///< operand 0 >= 0 (integer)
    Eq0,  ///< operand 0 == 0 (integer)
    And,
    Or,
    Not,
    // Floats.
    Float,   ///< number
    ToFloat, ///< an integer as a float
    // Any.
    Load,   ///< element [operands] of value
    Select, ///< operand 0 ? operand 1 : operand 2
    Apply,  ///< op `name` of operands, not understood
    Deep    ///< an expression that grew too tall; may depend on anything
  };

  Kind kind;
  int64_t integer = 0;
  double number = 0;
  mlir::Value value;
  llvm::StringRef name;
  llvm::ArrayRef<const Expr *> operands;
  llvm::ArrayRef<int64_t> coefficients;
  unsigned id = 0;     ///< order of creation; sorts operands
  unsigned height = 0; ///< of the tree

  bool is(Kind k) const { return kind == k; }
  bool isInt(int64_t v) const { return kind == Kind::Int && integer == v; }
  bool isTrue() const { return kind == Kind::Bool && integer; }
  bool isFalse() const { return kind == Kind::Bool && !integer; }
  /// The value of an Int, or nothing.
  std::optional<int64_t> asInt() const;
  /// The value of an Int, Bool or Float as a number, or nothing.
  std::optional<double> asNumber() const;

  void Profile(llvm::FoldingSetNodeID &id) const;
};

using ExprRef = const Expr *;

/// Makes and compares expressions.
class ExprContext {
public:
  ExprContext();

  // Leaves.
  ExprRef getInt(int64_t value);
  ExprRef getBool(bool value);
  ExprRef getFloat(double value);
  /// The dimension called `name`: one name, one symbol.
  ExprRef getSymbol(llvm::StringRef name);
  /// A dimension of which nothing is known.
  ExprRef freshSymbol(llvm::StringRef hint);
  ExprRef getIndex(llvm::StringRef name, ExprRef bound);
  ExprRef getLoad(mlir::Value value, llvm::ArrayRef<ExprRef> indices);

  // Integers.
  ExprRef add(ExprRef a, ExprRef b);
  ExprRef sub(ExprRef a, ExprRef b);
  ExprRef mul(ExprRef a, ExprRef b);
  ExprRef scale(ExprRef a, int64_t factor);
  /// floor(a / b) for b > 0.
  ExprRef floorDiv(ExprRef a, ExprRef b);
  ExprRef mod(ExprRef a, ExprRef b);
  ExprRef min(ExprRef a, ExprRef b);
  ExprRef max(ExprRef a, ExprRef b);
  /// a / b where b divides a exactly whatever the symbols are, or null.
  ExprRef exactDiv(ExprRef a, ExprRef b);
  /// Parses a dimension name such as `past_len + 2*seq_len`; a name that is not
  /// an expression is a symbol.
  ExprRef parseDim(llvm::StringRef text);

  // Booleans.
  ExprRef ge0(ExprRef a);
  ExprRef eq0(ExprRef a);
  ExprRef logicalAnd(ExprRef a, ExprRef b);
  ExprRef logicalOr(ExprRef a, ExprRef b);
  ExprRef logicalNot(ExprRef a);

  // Any.
  ExprRef toFloat(ExprRef a);
  ExprRef select(ExprRef condition, ExprRef a, ExprRef b);
  ExprRef apply(llvm::StringRef name, llvm::ArrayRef<ExprRef> operands);

  /// Whether a >= 0 (a > 0) is proven from the ranges of symbols and indices.
  bool proveNonNegative(ExprRef a);
  bool provePositive(ExprRef a) { return proveNonNegative(sub(a, getInt(1))); }
  /// Whether a == b under everything that is known (see `assumeEqual`).
  bool proveEqual(ExprRef a, ExprRef b);
  /// Records that a valid execution has a == b; later proofs may use it. Only
  /// facts that solve for a symbol are kept.
  void assumeEqual(ExprRef a, ExprRef b);
  /// Records that a valid execution has a >= 0. Only what bounds a symbol by
  /// symbols from below is kept, a few bounds each.
  void assumeNonNegative(ExprRef a);
  /// What a symbol is known not to be less than.
  llvm::ArrayRef<ExprRef> lowerBounds(ExprRef symbol) const;
  /// Remembers that `less` was stretched to `more`, which is known only not to
  /// be less.
  void noteStretched(ExprRef more, ExprRef less) {
    stretched.push_back({more, less});
  }
  /// What noteStretched was told; forgets it.
  llvm::SmallVector<std::pair<ExprRef, ExprRef>, 2> takeStretched() {
    return std::exchange(stretched, {});
  }
  /// Takes `min`, a minimum of `x` and something else, for `x`.
  void assumeMin(ExprRef min, ExprRef x);
  /// Records that `symbol` is at least 1 wherever it matters.
  void assumePositive(ExprRef symbol) { positive.insert(symbol); }
  bool isPositive(ExprRef symbol) const { return positive.contains(symbol); }
  /// `a` with everything replaced that `assumeEqual` solved.
  ExprRef resolve(ExprRef a);

  /// `a` with `from` (a symbol, index or other atom) replaced by `to`.
  ExprRef substitute(ExprRef a, ExprRef from, ExprRef to);
  /// Whether `atom` occurs in `a` (or may, in what was cut off).
  bool dependsOn(ExprRef a, ExprRef atom);
  /// a == coefficient * atom + rest, with an integer coefficient and a rest
  /// free of atom; nothing when a is not linear in it.
  std::optional<std::pair<int64_t, ExprRef>> splitLinear(ExprRef a,
                                                         ExprRef atom);

  std::string str(ExprRef a);

private:
  struct Terms;
  ExprRef intern(Expr::Kind kind, llvm::ArrayRef<ExprRef> operands,
                 llvm::ArrayRef<int64_t> coefficients = {}, int64_t integer = 0,
                 double number = 0, mlir::Value value = {},
                 llvm::StringRef name = {});
  ExprRef fromTerms(Terms &terms);
  bool addTerms(Terms &terms, ExprRef a, int64_t factor);
  ExprRef product(llvm::ArrayRef<ExprRef> atoms);
  ExprRef rebuild(ExprRef a, llvm::ArrayRef<ExprRef> operands);
  ExprRef substituteIn(ExprRef a, const llvm::DenseMap<ExprRef, ExprRef> &map,
                       llvm::DenseMap<ExprRef, ExprRef> &memo, unsigned level);
  void print(llvm::raw_ostream &os, ExprRef a, unsigned level);

  llvm::BumpPtrAllocator allocator;
  llvm::FoldingSet<Expr> set;
  unsigned nextId = 0;
  unsigned nextFresh = 0;
  unsigned proofDepth = 0, proofBudget = 0, splitDepth = 0;
  /// Symbols that are known to equal something else.
  llvm::DenseMap<ExprRef, ExprRef> solved;
  /// resolve() results under the present `solved`.
  llvm::DenseMap<ExprRef, ExprRef> resolved;
  llvm::DenseSet<ExprRef> positive;
  llvm::DenseMap<ExprRef, llvm::SmallVector<ExprRef, 1>> bounds;
  llvm::SmallVector<std::pair<ExprRef, ExprRef>, 2> stretched;
};

} // namespace prefill

#endif
