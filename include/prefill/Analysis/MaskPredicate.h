//===- MaskPredicate.h - What masks do to scores -----------------*- C++ -*-==//
//
// Masks are read as predicates: element (b, h, i, j) of a mask tensor as an
// expression in batch, head, row and key. What the expression proves becomes
// attributes (causal, windows) or small operands (key mask, segments); what it
// does not explain stays an operand as it is.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_ANALYSIS_MASKPREDICATE_H
#define PREFILL_ANALYSIS_MASKPREDICATE_H

#include "prefill/Analysis/AttentionSite.h"
#include "prefill/Analysis/SymbolicAnalysis.h"

namespace prefill {

/// The index variables of a score tensor and their bounds.
struct ScoreSpace {
  MaskDims dims;
  ExprRef b = nullptr, h = nullptr, i = nullptr, j = nullptr;

  ScoreSpace() = default;
  ScoreSpace(ExprContext &ctx, const MaskDims &dims);
  llvm::SmallVector<ExprRef, 4> variables() const { return {b, h, i, j}; }
  llvm::SmallVector<ExprRef, 4> shape() const {
    return {dims.batch, dims.heads, dims.rows, dims.keys};
  }
};

/// One thing that is done to the scores after scaling.
struct MaskTerm {
  enum class Kind {
    Visible, ///< bool: where false, the score becomes `hidden`
    Added    ///< a number is added
  };
  Kind kind = Kind::Added;
  /// Element (b, h, i, j), or null when it is not known.
  ExprRef element = nullptr;
  /// A tensor that holds it and broadcasts to the scores, or null.
  mlir::Value tensor;
  bool negated = false; ///< the tensor is false where visible
  bool minus = false;   ///< the tensor is subtracted, not added
  /// The tensor is [batch * heads, rows, keys] and must be split to be one.
  bool joined = false;
  double hidden = 0; ///< Visible only: -inf or a large negative number
  /// The scores are multiplied by this after the term: it counts that often.
  /// (`element` and `hidden` are before it.)
  double factor = 1;
};

/// The lowest finite number of a float type.
double lowestNumber(mlir::Type type);

/// Puts -inf in place of the bias's numbers from `limit` down. A bool bias
/// stays as it is.
void hideLowNumbers(SymbolicAnalysis &analysis, AttentionSite &site,
                    double limit);

/// Collects the terms of one attention and describes them in terms of a site.
class MaskBuilder {
public:
  MaskBuilder(SymbolicAnalysis &analysis, AttentionSite &site,
              const ScoreSpace &space, mlir::Type scoreType);

  /// Adds a term; the last one that the model applies comes first.
  void add(const MaskTerm &term);
  /// The scores were raised to at least this (a large negative number) after
  /// the masks, so that all masked scores are equal.
  void setFloor(double floor) { this->floor = floor; }

  /// Sets the masks of the site. Fails, with the site refused, when they cannot
  /// be expressed.
  mlir::LogicalResult finish();

  /// Every row provably sees a key.
  bool neverEmpty() const { return rowsNeverEmpty; }
  /// What an empty row gives, as far as the masks decide it.
  MaskedRowRule emptyRow() const { return rule; }
  /// Which keys are visible, as one expression; null when not all is known.
  ExprRef visible() const { return visibleAll; }

  /// Whether `value`, added to a score or put in its place, hides it: -inf, or
  /// so large that it swallows any score of `type`.
  static bool hides(double value, mlir::Type type, bool added);

private:
  struct Parts;
  bool explain(const MaskTerm &term, Parts &parts);
  bool explainAdded(ExprRef e, Parts &parts, unsigned depth);
  bool condition(ExprRef e, Parts &parts);
  bool conjunct(ExprRef e, Parts &parts);
  ExprRef withinSegments(ExprRef e, llvm::ArrayRef<ExprRef> others);
  bool countsBreaks(mlir::Value segments, mlir::Value positions);
  bool whole(const MaskTerm &term, Parts &parts);
  bool keyVector(ExprRef e, Parts &parts);
  bool segments(ExprRef e, Parts &parts);
  bool asTensor(ExprRef e, bool isBool, Parts &parts);
  bool joinBias(PlannedValue tensor, bool isBool, Parts &parts);
  PlannedValue asNumbers(PlannedValue visible, double hidden, Parts &parts);
  PlannedValue planNumber(double value, Parts &parts);
  PlannedValue splitHeads(mlir::Value tensor, Parts &parts);
  double times(double value, double factor);
  ExprRef times(ExprRef e, double factor);
  bool resolveBand(Parts &parts);
  bool fitBand(Parts &parts, QueryAlignment alignment, ExprRef offset);
  bool benign(ExprRef e, unsigned depth);
  bool benignConstant(mlir::Value value);
  bool provenNeverEmpty(const Parts &parts);
  bool commit(Parts &parts);
  bool depends(ExprRef e, ExprRef variable);
  mlir::Type typeOf(mlir::Type element, llvm::ArrayRef<ExprRef> shape);

  SymbolicAnalysis &analysis;
  ExprContext &ctx;
  AttentionSite &site;
  ScoreSpace space;
  mlir::Type scoreType;
  llvm::SmallVector<MaskTerm> terms;
  std::optional<double> floor;
  bool rowsNeverEmpty = false;
  MaskedRowRule rule = MaskedRowRule::Zero;
  ExprRef visibleAll = nullptr;
};

} // namespace prefill

#endif
