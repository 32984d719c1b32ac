//===- RowRules.h - Operators that treat rows one by one ---------*- C++ -*-==//
//
// The table behind row liveness: for a result whose rows (tokens) lie along an
// axis, which operands have rows too, and where. An operator is in the table
// only if row i of its result depends on row i of these operands and on nothing
// else but the other operands as a whole.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_ANALYSIS_ROWRULES_H
#define PREFILL_ANALYSIS_ROWRULES_H

#include "prefill/Analysis/SymbolicAnalysis.h"

#include <string>

namespace prefill {

/// Where the rows of a value lie.
struct RowAxis {
  int64_t axis = 0;
  /// The axis (the first one) holds batch entries times rows, as after a
  /// Reshape of [b, s, d] to [b * s, d].
  bool merged = false;

  bool operator==(const RowAxis &other) const {
    return axis == other.axis && merged == other.merged;
  }
};

/// An operand that has rows.
struct RowOperand {
  unsigned operand;
  RowAxis rows;

  bool operator==(const RowOperand &other) const {
    return operand == other.operand && rows == other.rows;
  }
};

/// What the table says about a node: the operands with rows, or why the node is
/// not row by row.
struct RowRule {
  llvm::SmallVector<RowOperand, 2> operands;
  std::string refusal;
};

/// The rule for `node` when result `result` has `count` rows at `rows`. Shapes
/// are proven with `analysis`; what is not proven is refused.
RowRule findRowRule(SymbolicAnalysis &analysis, onnx::NodeOp node,
                    unsigned result, RowAxis rows, ExprRef count);

} // namespace prefill

#endif
