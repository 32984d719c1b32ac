//===- PlanIR.cpp - Head plans as score, select and index ops -------------===//
//
// Writing and reading stand side by side: readIndex(buildIndex(plan)) == plan.
//
//===----------------------------------------------------------------------===//

#include "prefill/Transforms/PlanIR.h"
#include "prefill/Dialect/Prefill/Prefill.h"

using namespace mlir;
using namespace prefill;

// MInference always keeps the first 30 keys and the 100 shortest distances.
static constexpr int64_t forcedColumns = 30;
static constexpr int64_t forcedDiagonals = 100;
// InfLLM v2 scores means of 32 keys, one every 16 (MiniCPM4's config.json).
static constexpr int64_t compressedKeys = 32;
static constexpr int64_t compressedStride = 16;

//===----------------------------------------------------------------------===//
// Plans to ops
//===----------------------------------------------------------------------===//

namespace {
/// Everything that a select can say; what is unset stays out of the IR.
struct Selection {
  std::optional<int64_t> topK;
  float density = 0, topP = 0, threshold = 0;
  int64_t forced = 0, init = 0, near = 0, minTokens = 0;
};

class IndexBuilder {
public:
  IndexBuilder(OpBuilder &builder, Location loc, Value q, Value k, Value v,
               Value modality)
      : builder(builder), loc(loc), q(q), k(k), v(v), modality(modality) {}

  Value build(const HeadPlan &plan);

private:
  Type scores(ScoreAxis axis) {
    return ScoresType::get(builder.getContext(), axis);
  }
  Type index() { return SparseIndexType::get(builder.getContext()); }

  /// Selects from `from`.
  Value select(Value from, const Selection &how) {
    auto count = [&](std::optional<int64_t> value) {
      return value ? builder.getI64IntegerAttr(*value) : IntegerAttr();
    };
    auto share = [&](float value) {
      return value > 0 ? builder.getF32FloatAttr(value) : FloatAttr();
    };
    auto axis = cast<ScoresType>(from.getType()).getAxis();
    return SelectOp::create(
        builder, loc, SelectionType::get(builder.getContext(), axis), from,
        count(how.topK), share(how.density), share(how.topP),
        share(how.threshold), builder.getI64IntegerAttr(how.forced),
        builder.getI64IntegerAttr(how.init),
        builder.getI64IntegerAttr(how.near),
        builder.getI64IntegerAttr(how.minTokens));
  }

  /// The index of the selected blocks, with SpargeAttn's guard where asked for.
  Value blocks(Value from, const Selection &how, const HeadPlan &plan) {
    Value kept = select(from, how);
    if (plan.similarity > 0)
      kept = KeepDissimilarOp::create(builder, loc, kept.getType(), kept, q, k,
                                      builder.getF32FloatAttr(plan.similarity));
    return IndexBlocksOp::create(builder, loc, index(), kept);
  }

  /// Column and diagonal sums of the last rows.
  ScoreLastRowsOp lastRows(const HeadPlan &plan) {
    return ScoreLastRowsOp::create(builder, loc, scores(ScoreAxis::Column),
                                   scores(ScoreAxis::Diagonal), q, k,
                                   plan.last);
  }

  Value pooled(bool softmax) {
    return ScorePooledOp::create(builder, loc, scores(ScoreAxis::Block), q, k,
                                 softmax);
  }

  Value flexPrefill(const HeadPlan &plan);
  Value grid(const HeadPlan &plan);
  Value boundary(const HeadPlan &plan);

  OpBuilder &builder;
  Location loc;
  Value q, k, v, modality;
};
} // namespace

/// Vertical-slash, or blocks of pooled products for heads whose two estimates
/// of the last rows agree.
Value IndexBuilder::flexPrefill(const HeadPlan &plan) {
  ScoreLastRowsOp score = lastRows(plan);
  Value coarse = pooled(/*softmax=*/true);
  Selection share;
  share.topP = plan.topP;
  share.minTokens = plan.minBudget;
  Value relative = IndexRelativeOp::create(builder, loc, index(),
                                           select(score.getColumns(), share),
                                           select(score.getDiagonals(), share));
  Selection pairs;
  pairs.topP = plan.topP;
  Value aware =
      IndexBlocksOp::create(builder, loc, index(), select(coarse, pairs));
  return IndexAgreeingOp::create(
      builder, loc, index(), score.getColumns(), coarse,
      builder.getF32FloatAttr(plan.threshold), aware, relative);
}

/// The cheapest lines with a share of the mass, or those of one stride.
Value IndexBuilder::grid(const HeadPlan &plan) {
  auto stride =
      plan.stride ? builder.getI64IntegerAttr(plan.stride) : IntegerAttr();
  Value score =
      ScoreGridOp::create(builder, loc, scores(ScoreAxis::Grid), q, k,
                          builder.getI64IntegerAttr(plan.last),
                          builder.getI64IntegerAttr(plan.init), stride,
                          plan.vertical ? builder.getUnitAttr() : UnitAttr(),
                          plan.slash ? builder.getUnitAttr() : UnitAttr());
  Selection how;
  how.topP = plan.topP;
  if (plan.stride)
    how.topK = 1;
  return IndexGridOp::create(builder, loc, index(), select(score, how),
                             builder.getI64IntegerAttr(plan.last),
                             plan.horizontal ? builder.getUnitAttr()
                                             : UnitAttr());
}

/// Vertical-slash for each modality of rows, or pair of one with one of keys.
Value IndexBuilder::boundary(const HeadPlan &plan) {
  const bool pairs = plan.pattern == SparsePattern::TwoDBoundary;
  auto score = ScoreBoundaryOp::create(
      builder, loc, scores(ScoreAxis::Column), scores(ScoreAxis::Diagonal), q,
      k, modality, builder.getI64IntegerAttr(plan.last),
      pairs ? builder.getUnitAttr() : UnitAttr());
  Selection columns, diagonals;
  columns.topK = plan.vertical;
  columns.forced = plan.init;
  diagonals.topK = plan.slash;
  diagonals.forced = plan.local;
  return IndexBoundaryOp::create(
      builder, loc, index(), select(score.getColumns(), columns),
      select(score.getDiagonals(), diagonals), modality);
}

Value IndexBuilder::build(const HeadPlan &plan) {
  Selection how;
  how.density = plan.density;
  how.topP = plan.topP;
  switch (plan.pattern) {
  case SparsePattern::Dense:
    return IndexDenseOp::create(builder, loc, index());
  case SparsePattern::AShape:
    return IndexAShapeOp::create(builder, loc, index(), plan.init, plan.local);
  case SparsePattern::TriShape:
    return IndexTriShapeOp::create(builder, loc, index(), plan.init, plan.local,
                                   plan.last);
  case SparsePattern::Strided:
    return IndexStridedOp::create(builder, loc, index(), plan.init, plan.local,
                                  plan.stride);
  case SparsePattern::VerticalSlash: {
    ScoreLastRowsOp score = lastRows(plan);
    Selection columns = how, diagonals = how;
    if (plan.density <= 0) {
      columns.topK = plan.vertical;
      diagonals.topK = plan.slash;
    }
    columns.forced = forcedColumns;
    diagonals.forced = forcedDiagonals;
    Value keys = select(score.getColumns(), columns);
    Value distances = select(score.getDiagonals(), diagonals);
    return IndexRelativeOp::create(builder, loc, index(), keys, distances);
  }
  case SparsePattern::BlockSparse:
    if (plan.topP > 0)
      how.forced = 1;
    else if (plan.density <= 0)
      how.topK = plan.topK;
    return blocks(pooled(/*softmax=*/plan.topP > 0), how, plan);
  case SparsePattern::XAttention:
    how.forced = 1;
    return blocks(ScoreAntidiagonalOp::create(builder, loc,
                                              scores(ScoreAxis::Block), q, k,
                                              plan.stride),
                  how, plan);
  case SparsePattern::Sampled:
    how.forced = 1;
    how.near = plan.local;
    return blocks(ScoreSampledOp::create(builder, loc, scores(ScoreAxis::Block),
                                         q, k, plan.values ? v : Value(),
                                         plan.stride),
                  how, plan);
  case SparsePattern::SALE: {
    how.threshold = plan.threshold;
    how.init = plan.init;
    how.near = plan.local;
    // Shares of mass need no reference: the row itself is one.
    bool reference = plan.threshold > 0;
    auto region = [&](int64_t tokens) {
      return reference ? builder.getI64IntegerAttr(tokens) : IntegerAttr();
    };
    return blocks(
        ScoreQuantizedOp::create(builder, loc, scores(ScoreAxis::Block), q, k,
                                 plan.values ? v : Value(),
                                 builder.getI64IntegerAttr(plan.bits),
                                 builder.getI64IntegerAttr(plan.stride),
                                 region(plan.init), region(plan.local)),
        how, plan);
  }
  case SparsePattern::FlexPrefill:
    return flexPrefill(plan);
  case SparsePattern::Grid:
    return grid(plan);
  case SparsePattern::QBoundary:
  case SparsePattern::TwoDBoundary:
    return boundary(plan);
  case SparsePattern::InfLLMv2:
    how.topK = plan.topK;
    how.init = plan.init;
    how.near = plan.local;
    return blocks(ScoreCompressedOp::create(builder, loc,
                                            scores(ScoreAxis::Block), q, k,
                                            compressedKeys, compressedStride),
                  how, plan);
  }
  llvm_unreachable("unknown pattern");
}

Value prefill::buildIndex(OpBuilder &builder, Location loc, Value q, Value k,
                          Value v, const HeadPlan &plan, Value modality) {
  assert((modality || !needsModality(plan.pattern)) && "no modality");
  Value index = IndexBuilder(builder, loc, q, k, v, modality).build(plan);
  if (plan.skip > 0)
    index = IndexSkipOp::create(builder, loc, index.getType(), index,
                                builder.getF32FloatAttr(plan.skip));
  return index;
}

//===----------------------------------------------------------------------===//
// Ops to plans
//===----------------------------------------------------------------------===//

static float valueOf(std::optional<APFloat> value) {
  return value ? value->convertToFloat() : 0;
}

/// How many a select keeps, where it says so by one of the plan's fields.
static void readBudget(SelectOp select, int32_t &count, HeadPlan &plan) {
  if (auto top = select.getTopK())
    count = *top;
  plan.density = valueOf(select.getDensity());
}

static std::optional<HeadPlan> readRelative(IndexRelativeOp relative) {
  auto columns = relative.getColumns().getDefiningOp<SelectOp>();
  auto diagonals = relative.getDiagonals().getDefiningOp<SelectOp>();
  if (!columns || !diagonals || columns.getTopP() || diagonals.getTopP())
    return std::nullopt;
  auto score = columns.getScores().getDefiningOp<ScoreLastRowsOp>();
  if (!score || diagonals.getScores().getDefiningOp() != score)
    return std::nullopt;
  HeadPlan plan;
  plan.pattern = SparsePattern::VerticalSlash;
  plan.last = score.getRows();
  readBudget(columns, plan.vertical, plan);
  readBudget(diagonals, plan.slash, plan);
  return plan;
}

static std::optional<HeadPlan> readFlexPrefill(IndexAgreeingOp index) {
  auto relative = index.getOtherwise().getDefiningOp<IndexRelativeOp>();
  auto blocks = index.getAgreeing().getDefiningOp<IndexBlocksOp>();
  if (!relative || !blocks)
    return std::nullopt;
  auto score = index.getColumns().getDefiningOp<ScoreLastRowsOp>();
  auto pooled = index.getBlocks().getDefiningOp<ScorePooledOp>();
  auto columns = relative.getColumns().getDefiningOp<SelectOp>();
  auto diagonals = relative.getDiagonals().getDefiningOp<SelectOp>();
  auto pairs = blocks.getBlocks().getDefiningOp<SelectOp>();
  if (!score || !pooled || !columns || !diagonals || !pairs ||
      columns.getScores() != score.getColumns() ||
      diagonals.getScores() != score.getDiagonals() ||
      pairs.getScores() != pooled.getScores())
    return std::nullopt;
  // One gamma and one budget for all three.
  HeadPlan plan;
  plan.pattern = SparsePattern::FlexPrefill;
  plan.last = score.getRows();
  plan.topP = valueOf(columns.getTopP());
  plan.threshold = index.getBelow().convertToFloat();
  plan.minBudget = columns.getMinTokens();
  if (plan.topP <= 0 || valueOf(diagonals.getTopP()) != plan.topP ||
      valueOf(pairs.getTopP()) != plan.topP ||
      diagonals.getMinTokens() != columns.getMinTokens())
    return std::nullopt;
  return plan;
}

static std::optional<HeadPlan> readGrid(IndexGridOp index) {
  auto select = index.getGrid().getDefiningOp<SelectOp>();
  auto score =
      select ? select.getScores().getDefiningOp<ScoreGridOp>() : nullptr;
  // The rows that are looked at are the dense ones; a lone stride is taken.
  if (!score || score.getRows() != index.getLast() || score.getRows() > 64 ||
      score.getStride().has_value() != select.getTopK().has_value())
    return std::nullopt;
  HeadPlan plan;
  plan.pattern = SparsePattern::Grid;
  plan.last = score.getRows();
  plan.init = score.getInit();
  plan.stride = score.getStride().value_or(0);
  plan.topP = valueOf(select.getTopP());
  plan.vertical = score.getVertical();
  plan.slash = score.getSlash();
  plan.horizontal = index.getHorizontal();
  return plan;
}

static std::optional<HeadPlan> readBoundary(IndexBoundaryOp index) {
  auto columns = index.getColumns().getDefiningOp<SelectOp>();
  auto diagonals = index.getDiagonals().getDefiningOp<SelectOp>();
  if (!columns || !diagonals || !columns.getTopK() || !diagonals.getTopK())
    return std::nullopt;
  auto score = columns.getScores().getDefiningOp<ScoreBoundaryOp>();
  if (!score || diagonals.getScores().getDefiningOp() != score ||
      score.getModality() != index.getModality() || score.getRows() > 64)
    return std::nullopt;
  HeadPlan plan;
  plan.pattern =
      score.getPairs() ? SparsePattern::TwoDBoundary : SparsePattern::QBoundary;
  plan.last = score.getRows();
  plan.vertical = *columns.getTopK();
  plan.slash = *diagonals.getTopK();
  plan.init = columns.getForced();
  plan.local = diagonals.getForced();
  return plan;
}

static std::optional<HeadPlan> readBlocks(IndexBlocksOp index) {
  HeadPlan plan;
  Value kept = index.getBlocks();
  if (auto guard = kept.getDefiningOp<KeepDissimilarOp>()) {
    plan.similarity = guard.getBelow().convertToFloat();
    kept = guard.getBlocks();
  }
  auto select = kept.getDefiningOp<SelectOp>();
  if (!select || select.getMinTokens())
    return std::nullopt;
  plan.topP = valueOf(select.getTopP());
  plan.threshold = valueOf(select.getThreshold());
  readBudget(select, plan.topK, plan);
  const bool share = plan.topP > 0, threshold = plan.threshold > 0;
  plan.init = select.getInit();
  plan.local = select.getNear();
  const bool regions = plan.init || plan.local;
  Operation *score = select.getScores().getDefiningOp();
  if (auto op = dyn_cast_or_null<ScoreAntidiagonalOp>(score)) {
    plan.pattern = SparsePattern::XAttention;
    plan.stride = op.getStride();
    return share && !regions ? std::optional(plan) : std::nullopt;
  }
  if (auto op = dyn_cast_or_null<ScoreSampledOp>(score)) {
    plan.pattern = SparsePattern::Sampled;
    plan.stride = op.getStride();
    plan.values = op.getV() != nullptr;
    return share && !plan.init ? std::optional(plan) : std::nullopt;
  }
  if (isa_and_nonnull<ScorePooledOp>(score)) {
    plan.pattern = SparsePattern::BlockSparse;
    return !threshold && !regions ? std::optional(plan) : std::nullopt;
  }
  if (auto op = dyn_cast_or_null<ScoreQuantizedOp>(score)) {
    plan.pattern = SparsePattern::SALE;
    plan.values = op.getV() != nullptr;
    plan.bits = op.getBits();
    plan.stride = op.getStride();
    // The regions that are always kept are those of the reference.
    if (threshold && (static_cast<int64_t>(*op.getInit()) != plan.init ||
                      static_cast<int64_t>(*op.getLocal()) != plan.local))
      return std::nullopt;
    return share || threshold ? std::optional(plan) : std::nullopt;
  }
  if (auto op = dyn_cast_or_null<ScoreCompressedOp>(score)) {
    plan.pattern = SparsePattern::InfLLMv2;
    if (!select.getTopK() || op.getKeys() != compressedKeys ||
        op.getEvery() != compressedStride)
      return std::nullopt;
    return plan;
  }
  return std::nullopt;
}

std::optional<HeadPlan> prefill::readIndex(Value index) {
  HeadPlan plan;
  Operation *op = index.getDefiningOp();
  if (auto skip = dyn_cast_or_null<IndexSkipOp>(op)) {
    // Once: the smaller of two would not be what either says.
    if (skip.getIndex().getDefiningOp<IndexSkipOp>())
      return std::nullopt;
    std::optional<HeadPlan> inner = readIndex(skip.getIndex());
    if (inner)
      inner->skip = skip.getBelow().convertToFloat();
    return inner;
  }
  if (isa_and_nonnull<IndexDenseOp>(op))
    return plan;
  if (auto shape = dyn_cast_or_null<IndexAShapeOp>(op)) {
    plan.pattern = SparsePattern::AShape;
    plan.init = shape.getInit();
    plan.local = shape.getLocal();
    return plan;
  }
  if (auto shape = dyn_cast_or_null<IndexTriShapeOp>(op)) {
    plan.pattern = SparsePattern::TriShape;
    plan.init = shape.getInit();
    plan.local = shape.getLocal();
    plan.last = shape.getLast();
    return plan;
  }
  if (auto shape = dyn_cast_or_null<IndexStridedOp>(op)) {
    plan.pattern = SparsePattern::Strided;
    plan.init = shape.getInit();
    plan.local = shape.getLocal();
    plan.stride = shape.getStride();
    return plan;
  }
  if (auto relative = dyn_cast_or_null<IndexRelativeOp>(op))
    return readRelative(relative);
  if (auto blocks = dyn_cast_or_null<IndexBlocksOp>(op))
    return readBlocks(blocks);
  if (auto grid = dyn_cast_or_null<IndexGridOp>(op))
    return readGrid(grid);
  if (auto boundary = dyn_cast_or_null<IndexBoundaryOp>(op))
    return readBoundary(boundary);
  if (auto agreeing = dyn_cast_or_null<IndexAgreeingOp>(op))
    return readFlexPrefill(agreeing);
  return std::nullopt;
}

Value prefill::readModality(Value index) {
  if (auto perHead = index.getDefiningOp<IndexPerHeadOp>()) {
    for (Value choice : perHead.getChoices())
      if (Value found = readModality(choice))
        return found;
    return Value();
  }
  auto boundary = index.getDefiningOp<IndexBoundaryOp>();
  return boundary ? boundary.getModality() : Value();
}
