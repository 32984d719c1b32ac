//===- OpFormsONNX.cpp - ai.onnx Attention --------------------------------===//
//
// Attention 23, 24 and 25. Causal means j <= i + offset, where the offset is
// the length of the past, nonpad_kv_seqlen - s, or 0 (not t - s). ONNX
// Runtime 1.32 and onnx's reference agree on everything that is raised here
// except where a comment says so; python/tests/op_forms/test_onnx_attention.py
// has the proof.
//
//===----------------------------------------------------------------------===//
#include "Rules.h"
#include "prefill/Analysis/MaskPredicate.h"
#include "prefill/Analysis/OpForms.h"

#include <cmath>

using namespace mlir;
using namespace prefill;

namespace {

/// The sizes of one Attention node.
struct Sizes {
  bool packed = false; ///< 3-D inputs
  int64_t qHeads = 0, kvHeads = 0, headDim = 0, vHeadDim = 0;
  unsigned rowAxis = 2;
};

} // namespace

/// Heads and head sizes, from shapes and attributes.
static Sizes readSizes(OpForm &form, Value q, Value k, Value v) {
  Sizes sizes;
  int64_t rank = form.rank(q);
  for (Value value : {q, k, v})
    if (form.rank(value) != rank || (rank != 3 && rank != 4)) {
      form.refuse("rank of an input is not known or not the same for Q, K, V",
                  value);
      return sizes;
    }
  int64_t qHeads = form.readInt("q_num_heads", 0);
  int64_t kvHeads = form.readInt("kv_num_heads", 0);
  sizes.packed = rank == 3;
  sizes.rowAxis = sizes.packed ? 1 : 2;
  if (sizes.packed) {
    if (qHeads <= 0 || kvHeads <= 0) {
      form.refuse("3-D inputs need q_num_heads and kv_num_heads");
      return sizes;
    }
    int64_t widths[] = {form.size(q, 2), form.size(k, 2), form.size(v, 2)};
    int64_t heads[] = {qHeads, kvHeads, kvHeads};
    Value values[] = {q, k, v};
    for (unsigned i = 0; i < 3; ++i)
      if (widths[i] <= 0 || widths[i] % heads[i] != 0) {
        form.refuse("hidden size is not known or not divisible by the heads",
                    values[i]);
        return sizes;
      }
    sizes.qHeads = qHeads;
    sizes.kvHeads = kvHeads;
    sizes.headDim = widths[0] / qHeads;
    sizes.vHeadDim = widths[2] / kvHeads;
    if (widths[1] / kvHeads != sizes.headDim)
      form.refuse("head sizes of Q and K differ", k);
  } else {
    sizes.qHeads = form.size(q, 1);
    sizes.kvHeads = form.size(k, 1);
    sizes.headDim = form.size(q, 3);
    sizes.vHeadDim = form.size(v, 3);
    if (sizes.headDim <= 0)
      sizes.headDim = form.size(k, 3);
    if (sizes.qHeads <= 0 || sizes.headDim <= 0)
      form.refuse("number or size of heads is not known", q);
    else if (sizes.kvHeads <= 0)
      form.refuse("number of heads is not known", k);
    else if (sizes.vHeadDim <= 0 || form.size(v, 1) != sizes.kvHeads)
      form.refuse("number or size of heads is not known or not that of K", v);
    else if ((qHeads && qHeads != sizes.qHeads) ||
             (kvHeads && kvHeads != sizes.kvHeads))
      form.refuse("q_num_heads or kv_num_heads is not what the shapes say");
  }
  if (!form.refused() && sizes.qHeads % sizes.kvHeads != 0)
    form.refuse(Twine(sizes.qHeads) + " query heads are not a multiple of " +
                Twine(sizes.kvHeads) + " KV heads");
  return sizes;
}

/// Scale, soft cap, windows and what is refused.
static void readAttributes(OpForm &form, int64_t opset, int64_t headDim) {
  AttentionSite &site = form.site;
  form.allowAttributes({"is_causal", "scale", "softcap", "softmax_precision",
                        "q_num_heads", "kv_num_heads", "qk_matmul_output_mode",
                        "left_window_size", "right_window_size"});
  site.causal = form.readBool("is_causal", false);
  site.scale = form.readFloat("scale", 1.0 / std::sqrt(double(headDim)));
  if (form.node.getAttrOfName("scale") && !(site.scale > 0))
    form.refuse("attribute 'scale' is not positive");
  // ONNX Runtime 1.32 ignores a negative cap before version 25 only.
  double softcap = form.readFloat("softcap", 0);
  if (softcap < 0 || !std::isfinite(softcap))
    form.refuse("attribute 'softcap' is negative or not finite");
  if (softcap > 0)
    site.softcap = softcap;
  // Kernels take the softmax in fp32, as ONNX Runtime does for lower
  // precisions; double differs from that by less than the result's own
  // rounding.
  int64_t precision = form.readInt("softmax_precision", 1);
  if (precision != 1 && precision != 10 && precision != 11 && precision != 16)
    form.refuse("attribute 'softmax_precision' is " + Twine(precision));
  int64_t left = form.readInt("left_window_size", -1);
  int64_t right = form.readInt("right_window_size", -1);
  if (left < -1 || right < -1 || (opset < 25 && (left >= 0 || right >= 0)))
    form.refuse("window attributes are below -1 or from a later version");
  if (left >= 0)
    site.windowLeft = left;
  // Nothing to the right is what causal means; anything else says less.
  if (right == 0)
    site.causal = true;
  if (right > 0 && !site.causal)
    site.windowRight = right;
  // Only what the 4th output holds depends on it.
  form.readInt("qk_matmul_output_mode", 0);
  form.needUnused(3, "qk_matmul_output");
}

/// Pads the last axis of the mask to `keys` (a planned [1] tensor): masked.
static PlannedValue padMask(OpForm &form, Value mask, int64_t rank,
                            PlannedValue keys) {
  Type type = form.elementType(mask);
  PlannedValue missing = form.site.plan(
      "Sub", {keys, form.planDim(mask, rank - 1)}, form.ints({1}));
  PlannedValue pads =
      rank == 1
          ? form.planConcat({form.site.planInts(form.context, {0}), missing}, 0,
                            form.ints({2}))
          : form.planConcat(
                {form.site.planInts(form.context,
                                    SmallVector<int64_t>(2 * rank - 1, 0)),
                 missing},
                0, form.ints({2 * rank}));
  PlannedValue fill;
  if (type.isInteger(1))
    fill = form.site.planConstant(
        DenseElementsAttr::get(form.tensor({}, type), {false}));
  else
    fill =
        form.constantFloats({}, type, -std::numeric_limits<double>::infinity());
  SmallVector<int64_t> shape;
  for (int64_t i = 0; i + 1 < rank; ++i)
    shape.push_back(form.size(mask, i));
  shape.push_back(-1);
  return form.site.plan("Pad", {mask, pads, fill}, form.tensor(shape, type));
}

void prefill::matchOnnxAttention(OpForm &form) {
  AttentionSite &site = form.site;
  int64_t opset = onnx::getOpsetVersion(form.node);
  site.form = ("Attention-" + Twine(opset >= 25 ? 25 : opset)).str();
  if (opset < 23)
    return form.refuse("opset " + Twine(opset) + " has no Attention");
  Value q = form.input(0), k = form.input(1), v = form.input(2);
  if (!q || !k || !v)
    return form.refuse("Q, K or V is missing");
  Value mask = form.input(3), pastK = form.input(4), pastV = form.input(5),
        nonpad = form.input(6);
  if (form.node.getNumOperands() > 7)
    return form.refuse("more than 7 inputs");
  if (!pastK != !pastV)
    return form.refuse("past_key and past_value need each other",
                       pastK ? pastK : pastV);
  if (nonpad && pastK)
    return form.refuse("nonpad_kv_seqlen together with past_key", nonpad);
  if (nonpad && opset < 24)
    return form.refuse("nonpad_kv_seqlen before version 24", nonpad);

  Sizes sizes = readSizes(form, q, k, v);
  readAttributes(form, opset, sizes.headDim ? sizes.headDim : 1);
  SmallVector<Value> data{q, k, v};
  if (pastK)
    data.append({pastK, pastV});
  Type element = form.commonType(data);
  if (form.refused())
    return;
  site.qHeads = sizes.qHeads;
  site.headDim = sizes.headDim;
  site.vHeadDim = sizes.vHeadDim;
  ExprRef batch = form.dim(q, 0), rows = form.dim(q, sizes.rowAxis),
          keys = form.dim(k, sizes.rowAxis);
  if (!batch || !rows || !keys)
    return form.refuse("sequence lengths are not known", q);
  // A valid model has one batch size and one number of keys.
  form.exprs.assumeEqual(form.dim(k, 0), batch);
  form.exprs.assumeEqual(form.dim(v, 0), batch);
  form.exprs.assumeEqual(form.dim(v, sizes.rowAxis), keys);
  bool square = form.provablyEqual(rows, keys);

  OpForm::Operand query =
      form.fold(q, sizes.qHeads, sizes.headDim, sizes.qHeads);
  site.q = query.value;
  site.qLayout = query.layout;

  // K and V with the past before them, heads first.
  bool needPresent = form.isUsed(1) || form.isUsed(2);
  PlannedValue presentK, presentV;
  if (pastK || (needPresent && sizes.packed)) {
    presentK = form.use(k);
    presentV = form.use(v);
    if (sizes.packed) {
      presentK =
          form.planHeadsFirst(presentK, sizes.kvHeads, sizes.headDim, element);
      presentV =
          form.planHeadsFirst(presentV, sizes.kvHeads, sizes.vHeadDim, element);
    }
  }
  if (pastK) {
    if (form.rank(pastK) != 4 || form.rank(pastV) != 4)
      return form.refuse("past_key and past_value are not known to be 4-D",
                         pastK);
    presentK = form.planConcat(
        {pastK, presentK}, 2,
        form.tensor({-1, sizes.kvHeads, -1, sizes.headDim}, element));
    presentV = form.planConcat(
        {pastV, presentV}, 2,
        form.tensor({-1, sizes.kvHeads, -1, sizes.vHeadDim}, element));
    keys = form.exprs.add(form.dim(pastK, 2), keys);
  } else if (needPresent && !sizes.packed) {
    presentK =
        site.plan("Identity", {k},
                  form.tensor({-1, sizes.kvHeads, -1, sizes.headDim}, element));
    presentV = site.plan(
        "Identity", {v},
        form.tensor({-1, sizes.kvHeads, -1, sizes.vHeadDim}, element));
  }
  if (pastK) {
    site.k = presentK;
    site.v = presentV;
    site.kvHeads = sizes.kvHeads;
  } else {
    form.setKeysAndValues(k, v, sizes.kvHeads, sizes.headDim, sizes.vHeadDim);
  }
  form.replace(1, presentK);
  form.replace(2, presentV);

  // Where query row 0 stands among the keys.
  bool positions = site.causal || site.windowLeft || site.windowRight;
  if (pastK && !square && positions) {
    site.alignment = QueryAlignment::Operand;
    site.qOffset = form.planDim(pastK, 2, /*scalar=*/true);
  } else if (nonpad && positions) {
    site.alignment = QueryAlignment::Operand;
    site.qOffset = site.plan(
        "Sub", {nonpad, form.planDim(q, sizes.rowAxis, /*scalar=*/true)},
        form.ints({form.size(nonpad, 0)}));
  } else if (!pastK && !square && positions) {
    site.alignment = QueryAlignment::Start;
  }
  if (nonpad)
    site.kvLengths = nonpad;

  if (mask) {
    int64_t rank = form.rank(mask);
    // Before version 24 it has all keys, or one for all: its length and the
    // keys' may be called by the caches of two layers. Later ones may be
    // shorter.
    if (opset < 24 && rank >= 1)
      (void)broadcastDim(form.exprs, form.dim(mask, -1), keys);
    MaskDims dims{batch, form.exprs.getInt(sizes.qHeads), rows, keys};
    OpForm::MaskRules rules;
    // All rows that see nothing give 0. Before version 25, ONNX Runtime takes
    // the lowest number for -inf in a row that sees nothing else (onnx's
    // reference does not); it is followed here.
    if (opset < 25)
      rules.lowestHides = true;
    rules.hard = positions || nonpad;
    // Offsets and windows of the operator are not combined with those of the
    // mask.
    rules.direct = site.windowLeft || site.windowRight ||
                   site.alignment == QueryAlignment::Operand;
    // From version 24 a mask may have fewer columns than there are keys.
    ExprRef columns = rank > 0 ? form.dim(mask, -1) : nullptr;
    if (opset >= 24 && columns && !form.provablyEqual(columns, keys)) {
      if (form.staticSize(columns) == 1)
        return form.refuse("mask has one column: padded or broadcast", mask);
      if (rank > 4)
        return form.refuse("mask has more than 4 dimensions", mask);
      Type type = form.elementType(mask);
      if (!type || (!type.isInteger(1) && type != element))
        return form.refuse("mask is neither bool nor of the type of Q", mask);
      PlannedValue total =
          pastK ? form.planDim(presentK, 2) : form.planDim(k, sizes.rowAxis);
      site.bias = padMask(form, mask, rank, total);
      if (rules.lowestHides && !type.isInteger(1))
        hideLowNumbers(form.analysis, site, lowestNumber(type));
    } else {
      form.setMask(mask, dims, rules);
    }
  }
  if (form.refused())
    return;
  form.setOutput(sizes.packed, batch, rows);
}
