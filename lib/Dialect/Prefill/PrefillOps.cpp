//===- PrefillOps.cpp - Verifiers of the prefill dialect ------------------===//

#include "prefill/Dialect/ONNX/ONNX.h"
#include "prefill/Dialect/Prefill/Prefill.h"

using namespace mlir;
using namespace prefill;

#define GET_OP_CLASSES
#include "prefill/Dialect/Prefill/PrefillOps.cpp.inc"

//===----------------------------------------------------------------------===//
// Attention
//===----------------------------------------------------------------------===//

/// Checks one of q, k, v, o: a float tensor whose known dimensions agree with
/// the head counts and the head dimension of the op.
static LogicalResult verifyRows(Operation *op, StringRef what, Type type,
                                TensorLayout layout, int64_t heads,
                                int64_t dim) {
  auto tensor = dyn_cast<TensorType>(type);
  if (!tensor)
    return success(); // An undeclared ONNX value; checked at run time.
  if (!tensor.getElementType().isF32() && !tensor.getElementType().isF16() &&
      !tensor.getElementType().isBF16())
    return op->emitOpError() << what << " must have f32, f16 or bf16 elements";
  if (!tensor.hasRank())
    return success();
  ArrayRef<int64_t> shape = tensor.getShape();
  auto differs = [](int64_t known, int64_t expected) {
    return !ShapedType::isDynamic(known) && known != expected;
  };
  if (shape.size() == 3) {
    if (layout != TensorLayout::BSHD)
      return op->emitOpError() << what << " of rank 3 needs the layout bshd";
    if (differs(shape[2], heads * dim))
      return op->emitOpError()
             << what << " has " << shape[2]
             << " elements a row, expected heads * dim = " << heads * dim;
    return success();
  }
  if (shape.size() != 4)
    return op->emitOpError() << what << " must have rank 3 or 4";
  int64_t headAxis = layout == TensorLayout::BHSD ? 1 : 2;
  if (differs(shape[headAxis], heads))
    return op->emitOpError() << what << " has " << shape[headAxis]
                             << " heads, expected " << heads;
  if (differs(shape[3], dim))
    return op->emitOpError() << what << " has head dimension " << shape[3]
                             << ", expected " << dim;
  return success();
}

/// Checks `contexts` and its two numbers.
template <typename OpTy>
static LogicalResult verifyContexts(OpTy op) {
  const bool contexts = static_cast<bool>(op.getContextSlots());
  for (auto [name, number] :
       {std::pair("context_temperature", op.getContextTemperature()),
        std::pair("context_scale", op.getContextScale())}) {
    if (contexts != number.has_value())
      return op.emitOpError("has ") << name << " exactly with contexts";
    if (number && !(number->isFiniteNonZero() && !number->isNegative()))
      return op.emitOpError() << name << " must be a positive number";
  }
  if (!contexts)
    return success();
  if (!op.getPastK() || !op.getCausal())
    return op.emitOpError("takes contexts only if causal and with a cache");
  if (op.getWindowLeft() || op.getSinks() || op.getLse())
    return op.emitOpError("takes contexts only without window_left, sinks and "
                          "lse");
  if (auto type = dyn_cast<RankedTensorType>(op.getContextSlots().getType());
      type && (type.getRank() != 2 || !type.getElementType().isInteger(64)))
    return op.emitOpError("contexts must be [n,2] of i64");
  return success();
}

template <typename OpTy>
static LogicalResult verifyAttention(OpTy op) {
  if (op.getQHeads() % op.getKvHeads() != 0)
    return op.emitOpError("kv_heads must divide q_heads");
  if (failed(verifyRows(op, "q", op.getQ().getType(), op.getQLayout(),
                        op.getQHeads(), op.getHeadDim())) ||
      failed(verifyRows(op, "k", op.getK().getType(), op.getKLayout(),
                        op.getKvHeads(), op.getHeadDim())) ||
      failed(verifyRows(op, "v", op.getV().getType(), op.getVLayout(),
                        op.getKvHeads(), op.getVHeadDim())) ||
      failed(verifyRows(op, "o", op.getO().getType(), op.getOLayout(),
                        op.getQHeads(), op.getVHeadDim())))
    return failure();
  // The result is what the kernel writes: its form must be known.
  auto result = dyn_cast<RankedTensorType>(op.getO().getType());
  if (!result || (result.getRank() != 3 && result.getRank() != 4))
    return op.emitOpError("o must be a tensor of rank 3 or 4");
  if (static_cast<bool>(op.getQSegment()) !=
      static_cast<bool>(op.getKSegment()))
    return op.emitOpError("needs both segment operands or none");
  if (op.getQOffset() && op.getQPositions())
    return op.emitOpError("takes q_offset or q_positions, not both");
  if ((op.getAlignment() == QueryAlignment::Operand) !=
      static_cast<bool>(op.getQOffset() ? op.getQOffset() : op.getQPositions()))
    return op.emitOpError(
        "needs q_offset or q_positions exactly with alignment operand");
  if (op.getSegmentStarts() &&
      (op.getBias() || op.getKeyMask() || op.getKvLengths() ||
       op.getQSegment() || op.getQOffset()))
    return op.emitOpError("takes segment_starts only without bias, key_mask, "
                          "kv_lengths, segments and q_offset");
  if (op.getPastK() && !op.getSegmentStarts())
    return op.emitOpError("takes a cache only with segment_starts");
  if (static_cast<bool>(op.getPastK()) != static_cast<bool>(op.getPresentK()))
    return op.emitOpError("has present exactly with a cache");
  if (op.getPastK())
    for (auto [past, present, name, width] :
         {std::tuple(op.getPastK(), op.getPresentK(), "past_k",
                     op.getHeadDim()),
          std::tuple(op.getPastV(), op.getPresentV(), "past_v",
                     op.getVHeadDim())}) {
      if (failed(verifyRows(op, name, past.getType(), TensorLayout::BHSD,
                            op.getKvHeads(), width)))
        return failure();
      if (past.getType() != present.getType())
        return op.emitOpError("present must have the types of the cache");
    }
  if (failed(verifyContexts(op)))
    return failure();
  if (op.getKeptRows() && !op.getPastK())
    return op.emitOpError("takes kept rows only with a cache");
  if ((op.getRotary() != RotaryKind::None) != static_cast<bool>(op.getCos()) ||
      static_cast<bool>(op.getCos()) != static_cast<bool>(op.getSin()))
    return op.emitOpError("needs cos and sin exactly with rotary");
  if (op.getRotary() != RotaryKind::None &&
      (op.getRotaryDim() <= 0 || op.getRotaryDim() % 2 != 0 ||
       op.getRotaryDim() > op.getHeadDim()))
    return op.emitOpError(
        "rotary_dim must be even, positive and at most head_dim");
  if (op.getRotatedK()) {
    if (op.getRotary() == RotaryKind::None)
      return op.emitOpError("has rotated_k only with rotary");
    if (failed(verifyRows(op, "rotated_k", op.getRotatedK().getType(),
                          TensorLayout::BHSD, op.getKvHeads(),
                          op.getHeadDim())))
      return failure();
  }
  if (op.getTokenScore()) {
    if (!op.getCausal() || op.getBias() || op.getSinks() || op.getQSegment() ||
        op.getPastK() || (op.getQPositions() && op.getSegmentStarts()))
      return op.emitOpError("has token_score only if causal and without bias, "
                            "sinks, segments and a cache, and with q_positions "
                            "only without segment_starts");
    if (auto type = dyn_cast<RankedTensorType>(op.getTokenScore().getType());
        type && (type.getRank() != 2 || !type.getElementType().isF32()))
      return op.emitOpError("token_score must be [b,t] of f32");
  }
  if (static_cast<bool>(op.getScoreRows()) !=
          static_cast<bool>(op.getTokenPeak()) ||
      (op.getTokenPeak() && !op.getTokenScore()))
    return op.emitOpError(
        "has score_rows exactly with token_score and token_peak");
  if (op.getScoreRows() && (op.getSegmentStarts() || op.getQPositions()))
    return op.emitOpError(
        "has score_rows only without segment_starts and q_positions");
  // The getters of I64Attr are unsigned.
  auto negative = [](std::optional<uint64_t> value) {
    return value && static_cast<int64_t>(*value) < 0;
  };
  if (negative(op.getWindowLeft()))
    return op.emitOpError("window_left must not be negative");
  if (negative(op.getWindowRight()))
    return op.emitOpError("window_right must not be negative");
  if (op.getCausal() && op.getWindowRight())
    return op.emitOpError("causal already says window_right = 0");
  if (op.getSoftcap() && !op.getSoftcap()->isNormal())
    return op.emitOpError("softcap must be a positive number");
  if (op.getSoftcap() && op.getSoftcap()->isNegative())
    return op.emitOpError("softcap must be a positive number");
  if (!op.getScale().isFinite())
    return op.emitOpError("scale must be finite");
  return success();
}

LogicalResult AttentionOp::verify() { return verifyAttention(*this); }
LogicalResult SparseAttentionOp::verify() {
  if (getContextSlots())
    return emitOpError("takes no contexts: the weights of the two attentions "
                       "need the lse of all keys");
  if (auto perHead = getIndex().getDefiningOp<IndexPerHeadOp>())
    if (static_cast<int64_t>(perHead.getHeads().size()) !=
        static_cast<int64_t>(getQHeads()))
      return emitOpError() << "index chooses for " << perHead.getHeads().size()
                           << " heads, the attention has " << getQHeads();
  return verifyAttention(*this);
}

//===----------------------------------------------------------------------===//
// Score, select, index
//===----------------------------------------------------------------------===//

/// Checks that a scores or selection value runs along `axis`.
template <typename T>
static LogicalResult verifyAxis(Operation *op, StringRef what, T type,
                                ScoreAxis axis) {
  if (type.getAxis() == axis)
    return success();
  return op->emitOpError() << what << " must run along the "
                           << stringifyScoreAxis(axis) << " axis, got "
                           << stringifyScoreAxis(type.getAxis());
}

LogicalResult ScoreLastRowsOp::verify() {
  if (failed(verifyAxis(*this, "columns", getColumns().getType(),
                        ScoreAxis::Column)))
    return failure();
  return verifyAxis(*this, "diagonals", getDiagonals().getType(),
                    ScoreAxis::Diagonal);
}

LogicalResult ScoreBoundaryOp::verify() {
  if (failed(verifyAxis(*this, "columns", getColumns().getType(),
                        ScoreAxis::Column)))
    return failure();
  return verifyAxis(*this, "diagonals", getDiagonals().getType(),
                    ScoreAxis::Diagonal);
}

LogicalResult ScorePooledOp::verify() {
  return verifyAxis(*this, "scores", getScores().getType(), ScoreAxis::Block);
}

LogicalResult ScoreAntidiagonalOp::verify() {
  uint64_t stride = getStride();
  if (stride < 2 || stride > 64 || (stride & (stride - 1)))
    return emitOpError("stride must be 2, 4, 8, 16, 32 or 64");
  return verifyAxis(*this, "scores", getScores().getType(), ScoreAxis::Block);
}

/// Checks the stride of sampled rows: tiles must hold whole numbers of them.
template <typename OpTy>
static LogicalResult verifySampling(OpTy op) {
  uint64_t stride = op.getStride();
  if (stride > 64 || (stride & (stride - 1)))
    return op.emitOpError("stride must be 1, 2, 4, 8, 16, 32 or 64");
  return success();
}

LogicalResult ScoreSampledOp::verify() {
  if (failed(verifySampling(*this)))
    return failure();
  return verifyAxis(*this, "scores", getScores().getType(), ScoreAxis::Block);
}

LogicalResult ScoreQuantizedOp::verify() {
  if (getBits() != 4 && getBits() != 8)
    return emitOpError("bits must be 4 or 8");
  if (failed(verifySampling(*this)))
    return failure();
  if (getInit().has_value() != getLocal().has_value())
    return emitOpError("a reference needs both init and local");
  return verifyAxis(*this, "scores", getScores().getType(), ScoreAxis::Block);
}

LogicalResult ScoreCompressedOp::verify() {
  if (getEvery() > getKeys())
    return emitOpError("every must be at most keys, or keys are left out");
  return verifyAxis(*this, "scores", getScores().getType(), ScoreAxis::Block);
}

LogicalResult ScoreGridOp::verify() {
  return verifyAxis(*this, "scores", getScores().getType(), ScoreAxis::Grid);
}

/// Checks that an attribute is a share: in (0, 1].
static LogicalResult verifyShare(Operation *op, StringRef what,
                                 std::optional<APFloat> value) {
  if (!value)
    return success();
  float share = value->convertToFloat();
  if (!(share > 0) || share > 1)
    return op->emitOpError() << what << " must be in (0, 1]";
  return success();
}

LogicalResult SelectOp::verify() {
  if (getTopK().has_value() + getDensity().has_value() + getTopP().has_value() +
          getThreshold().has_value() !=
      1)
    return emitOpError(
        "needs exactly one of top_k, density, top_p and threshold");
  if (getTopK() && static_cast<int64_t>(*getTopK()) < 0)
    return emitOpError("top_k must not be negative");
  if (failed(verifyShare(*this, "density", getDensity())) ||
      failed(verifyShare(*this, "top_p", getTopP())) ||
      failed(verifyShare(*this, "threshold", getThreshold())))
    return failure();
  const bool blocks = getScores().getType().getAxis() == ScoreAxis::Block;
  if (auto pooled = getScores().getDefiningOp<ScorePooledOp>();
      pooled && !pooled.getSoftmax() && (getTopP() || getThreshold()))
    return emitOpError("top_p and threshold need scores that are shares of "
                       "mass; these products are not (softmax)");
  if (auto quantized = getScores().getDefiningOp<ScoreQuantizedOp>())
    if (getThreshold().has_value() != quantized.getInit().has_value())
      return emitOpError(
          "threshold goes with quantised scores that have a reference, other "
          "rules with those that have none");
  if (!blocks && (getThreshold() || getInit() || getNear()))
    return emitOpError("threshold, init and near need block scores");
  const bool grid = getScores().getType().getAxis() == ScoreAxis::Grid;
  if ((blocks || grid) && getMinTokens())
    return emitOpError("min_tokens needs column or diagonal scores");
  if (grid && (getForced() || (getTopK() && *getTopK() != 1) || getDensity()))
    return emitOpError("one of grid scores is kept, by top_k = 1 or top_p");
  return verifyAxis(*this, "selection", getSelection().getType(),
                    getScores().getType().getAxis());
}

LogicalResult KeepDissimilarOp::verify() {
  if (failed(verifyShare(*this, "below", getBelow())) ||
      failed(
          verifyAxis(*this, "blocks", getBlocks().getType(), ScoreAxis::Block)))
    return failure();
  return verifyAxis(*this, "selection", getSelection().getType(),
                    ScoreAxis::Block);
}

LogicalResult IndexRelativeOp::verify() {
  if (failed(verifyAxis(*this, "columns", getColumns().getType(),
                        ScoreAxis::Column)))
    return failure();
  return verifyAxis(*this, "diagonals", getDiagonals().getType(),
                    ScoreAxis::Diagonal);
}

LogicalResult IndexBlocksOp::verify() {
  return verifyAxis(*this, "blocks", getBlocks().getType(), ScoreAxis::Block);
}

LogicalResult IndexBoundaryOp::verify() {
  if (failed(verifyAxis(*this, "columns", getColumns().getType(),
                        ScoreAxis::Column)))
    return failure();
  return verifyAxis(*this, "diagonals", getDiagonals().getType(),
                    ScoreAxis::Diagonal);
}

LogicalResult IndexGridOp::verify() {
  return verifyAxis(*this, "grid", getGrid().getType(), ScoreAxis::Grid);
}

LogicalResult IndexSkipOp::verify() {
  const float below = getBelow().convertToFloat();
  if (!(below > 0 && below < 1))
    return emitOpError("below is not between 0 and 1");
  return success();
}

LogicalResult IndexAgreeingOp::verify() {
  float below = getBelow().convertToFloat();
  if (!(below >= 0) || below > 1)
    return emitOpError("below must be in [0, 1]");
  if (failed(verifyAxis(*this, "columns", getColumns().getType(),
                        ScoreAxis::Column)))
    return failure();
  return verifyAxis(*this, "blocks", getBlocks().getType(), ScoreAxis::Block);
}

LogicalResult IndexPerHeadOp::verify() {
  for (int64_t choice : getHeads())
    if (choice < 0 || choice >= static_cast<int64_t>(getChoices().size()))
      return emitOpError() << "head choice " << choice << " is not one of the "
                           << getChoices().size() << " operands";
  return success();
}

//===----------------------------------------------------------------------===//
// Rows
//===----------------------------------------------------------------------===//

/// Pairs low, high.
static LogicalResult verifyRanges(Operation *op, StringRef what,
                                  ArrayRef<int64_t> ranges) {
  if (ranges.size() % 2)
    return op->emitOpError() << what << " must be pairs of low and high";
  for (size_t i = 0; i < ranges.size(); i += 2)
    if (ranges[i] < 0 || ranges[i] > ranges[i + 1])
      return op->emitOpError()
             << what << " must be from 0 on and ascending, got " << ranges[i]
             << " to " << ranges[i + 1];
  return success();
}

LogicalResult ProtectRowsOp::verify() {
  if (getParts() && (!getSegmentStarts() || getAlive()))
    return emitOpError("takes parts only with segment_starts and no padding");
  if (failed(verifyRanges(*this, "id_ranges", getIdRanges())))
    return failure();
  return verifyRanges(*this, "row_ranges", getRowRanges());
}

LogicalResult FlowScoreOp::verify() {
  if (getHeads() % getKvHeads())
    return emitOpError("heads must be a multiple of kv_heads");
  const bool rotates = getRotary() != RotaryKind::None;
  if (rotates != static_cast<bool>(getCos()) ||
      rotates != static_cast<bool>(getSin()) || rotates != (getRotaryDim() > 0))
    return emitOpError("needs cos, sin and rotary_dim exactly with rotary");
  if (getRotaryDim() % 2 || getRotaryDim() > getHeadDim())
    return emitOpError("rotary_dim must be even and at most head_dim");
  if ((rotates || getAlive()) && !getColumns())
    return emitOpError(
        "has rotary and alive only with columns: the mean of all "
        "rows and a class token have no position");
  if (getColumns() && (getCls() || getPrevious()))
    return emitOpError("with columns is for a language model: no cls and no "
                       "layer before");
  return success();
}

LogicalResult MergeWindowsOp::verify() {
  if (!getProtect().getDefiningOp<ProtectRowsOp>())
    return emitOpError("protect must come from prefill.protect_rows");
  Type element = onnx::getElementType(getX().getType());
  if (!element || !(element.isF16() || element.isBF16() || element.isF32() ||
                    element.isF64()))
    return emitOpError("x must be of f16, bf16, f32 or f64");
  if (getGrid() % getHeight() || getGrid() % getWidth() ||
      getHeight() * getWidth() == 1)
    return emitOpError("needs windows of several patches that divide the grid");
  const double similarity = getSimilarity().convertToDouble();
  if (!(similarity >= -1) || similarity > 1)
    return emitOpError("similarity must be in [-1, 1]");
  return success();
}

LogicalResult SelectRowsOp::verify() {
  if (!getProtect())
    return emitOpError("needs protect: a selection without protected rows may "
                       "drop the system prompt");
  // Through what only takes the rows that are left.
  Value from = getProtect();
  while (auto node = from.getDefiningOp<onnx::NodeOp>()) {
    if (!node.is("GatherElements"))
      break;
    from = node.getInput(0);
  }
  auto protection = from.getDefiningOp<ProtectRowsOp>();
  if (!protection)
    return emitOpError("protect must come from prefill.protect_rows");
  if (!getShares() && protection.getLast() == 0)
    return emitOpError("needs the last row protected: it is the one that asks");
  if (getKeep().has_value() + getGlobal().has_value() +
              getTarget().has_value() !=
          1 ||
      getGlobal().has_value() != getIndividual().has_value() ||
      getLeft().has_value() != static_cast<bool>(getShares()) ||
      getSkip().has_value() != getLeft().has_value() ||
      (getLeft() && !getTarget()))
    return emitOpError("needs one rule: keep, or global and individual, or "
                       "target with columns, or target, left, skip and shares");
  if (!getKeep() && (getTopk() || getRoundDown()))
    return emitOpError("has topk and round_down only with keep");
  auto share = [](const APFloat &value) { return value.convertToDouble(); };
  if (getTarget()) {
    if (getPeak() || static_cast<bool>(getColumns()) == getLeft().has_value() ||
        getSegmentStarts() || getAlive())
      return emitOpError("with target is for images without padding, or for "
                         "columns of one prompt");
    return success();
  }
  if (getKeep()) {
    if (!(share(*getKeep()) > 0) || share(*getKeep()) > 1)
      return emitOpError("keep must be in (0, 1]");
    if (getPeak() || getColumns())
      return emitOpError("has peak and columns only with global");
    return success();
  }
  for (double value : {share(*getGlobal()), share(*getIndividual())})
    if (!(value >= 0) || value > 1)
      return emitOpError("global and individual must be in [0, 1]");
  if (!getPeak() || !getColumns() || getSegmentStarts() || getStarts())
    return emitOpError("needs peak and columns with global, and no "
                       "segment_starts");
  return success();
}
