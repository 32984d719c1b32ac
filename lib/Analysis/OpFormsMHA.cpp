//===- OpFormsMHA.cpp - com.microsoft MultiHeadAttention and Attention ----===//
//
// Padding masks of these operators do not hide keys: they add mask_filter_value
// (-10000 unless given) to the scores. So they become a bias, which is exact
// also for rows that are masked wholly; `unidirectional` does hide. Checked in
// python/tests/op_forms/test_multi_head_attention.py.
//
//===----------------------------------------------------------------------===//
#include "prefill/Analysis/OpForms.h"

#include <cmath>

using namespace mlir;
using namespace prefill;

/// Inserts axes of size 1. The axes became an input with opset 13.
static PlannedValue planUnsqueeze(OpForm &form, PlannedValue value,
                                  ArrayRef<int64_t> axes,
                                  RankedTensorType type) {
  if (onnx::getOpsetVersion(form.node) >= 13)
    return form.site.plan(
        "Unsqueeze", {value, form.site.planInts(form.context, axes)}, type);
  return form.site.plan("Unsqueeze", {value}, type,
                        {onnx::intsAttr(form.builder, "axes", axes)});
}

/// The scale of both operators: 0 is the default.
static double readScale(OpForm &form, int64_t headDim) {
  double scale = form.readFloat("scale", 0);
  if (!std::isfinite(scale))
    form.refuse("attribute 'scale' is not finite");
  return scale == 0 ? 1.0 / std::sqrt(double(headDim)) : scale;
}

/// The bias that a padding mask means: [b,1,1,t] or [b,1,s,t] of the type
/// `element`. `keys` is a planned scalar, needed for lengths only.
static PlannedValue planPadding(OpForm &form, Value mask, Type element,
                                double filter, ExprRef batch,
                                llvm::function_ref<PlannedValue()> keys) {
  AttentionSite &site = form.site;
  Type boolType = form.builder.getI1Type();
  // The operators allow no other type.
  Type maskType = form.builder.getI32Type();
  if (Type known = form.elementType(mask); known && known != maskType) {
    form.refuse("padding mask is not int32", mask);
    return {};
  }
  PlannedValue visible;
  int64_t rank = form.rank(mask);
  if (rank == 1) {
    // Lengths [b], or exclusive ends and inclusive starts [2*b].
    ExprRef count = form.dim(mask, 0);
    bool lengths = form.provablyEqual(count, batch);
    bool ranges = form.provablyEqual(count, form.exprs.scale(batch, 2)) &&
                  form.node.is("Attention", "com.microsoft");
    if (!lengths && !ranges) {
      form.refuse("1-D padding mask is not known to have a length a batch",
                  mask);
      return {};
    }
    PlannedValue j =
        site.plan("Range", {form.constantInt(0), keys(), form.constantInt(1)},
                  form.ints({-1}));
    RankedTensorType flags = form.tensor({-1, -1}, boolType);
    PlannedValue wide = form.planCast(mask, form.ints({form.size(mask, 0)}));
    if (lengths) {
      PlannedValue column = form.planReshape(wide, {-1, 1}, form.ints({-1, 1}));
      visible = site.plan("Less", {j, column}, flags);
    } else {
      PlannedValue column =
          form.planReshape(wide, {2, -1, 1}, form.ints({2, -1, 1}));
      PlannedValue end = site.plan("Gather", {column, form.constantInt(0)},
                                   form.ints({-1, 1}));
      PlannedValue start = site.plan("Gather", {column, form.constantInt(1)},
                                     form.ints({-1, 1}));
      PlannedValue below = site.plan("Less", {j, end}, flags);
      PlannedValue outside = site.plan("Less", {j, start}, flags);
      visible =
          site.plan("And", {below, site.plan("Not", {outside}, flags)}, flags);
    }
    rank = 2;
  } else if (rank == 2 || rank == 3) {
    PlannedValue zero = site.planConstant(
        DenseElementsAttr::get(form.tensor({}, maskType),
                               form.builder.getI32IntegerAttr(0).getValue()));
    SmallVector<int64_t> shape;
    for (int64_t i = 0; i < rank; ++i)
      shape.push_back(form.size(mask, i));
    visible = site.plan("Greater", {mask, zero}, form.tensor(shape, boolType));
  } else {
    form.refuse("padding mask is not known to have 1, 2 or 3 dimensions", mask);
    return {};
  }
  visible = rank == 2 ? planUnsqueeze(form, visible, {1, 2},
                                      form.tensor({-1, 1, 1, -1}, boolType))
                      : planUnsqueeze(form, visible, {1},
                                      form.tensor({-1, 1, -1, -1}, boolType));
  return site.plan("Where",
                   {visible, form.constantFloats({}, element),
                    form.constantFloats({}, element, filter)},
                   form.tensor({-1, 1, -1, -1}, element));
}

/// Sets the masks of both operators: padding, then bias.
static void setMasks(OpForm &form, Type element, Value padding, Value bias,
                     double filter, const MaskDims &dims,
                     llvm::function_ref<PlannedValue()> keys) {
  AttentionSite &site = form.site;
  if (bias && form.elementType(bias) != element)
    return form.refuse("attention_bias is not of the type of query", bias);
  if (bias && form.rank(bias) != 4)
    return form.refuse("attention_bias is not known to be 4-D", bias);
  // -inf for a whole row gives NaN, finite numbers are added as they are. With
  // `unidirectional`, ONNX Runtime lets a row that -inf leaves nothing see
  // later keys; it gives 0 here.
  OpForm::MaskRules rules;
  if (!site.causal)
    rules.infinite = MaskedRowRule::NaN;
  rules.hard = site.causal;
  if (bias && !padding)
    return form.setMask(bias, dims, rules);
  if (!padding)
    return;
  PlannedValue added =
      planPadding(form, padding, element, filter, dims.batch, keys);
  if (form.refused())
    return;
  if (bias) {
    added = site.plan("Add", {form.use(bias), added},
                      form.tensor({-1, -1, -1, -1}, element));
    site.maskedRow = rules.infinite;
  }
  site.bias = added;
}

//===----------------------------------------------------------------------===//
// MultiHeadAttention
//===----------------------------------------------------------------------===//

void prefill::matchMultiHeadAttention(OpForm &form) {
  AttentionSite &site = form.site;
  site.form = "MultiHeadAttention";
  form.allowAttributes(
      {"num_heads", "scale", "mask_filter_value", "unidirectional"});
  int64_t heads = form.readInt("num_heads", 0);
  double filter = form.readFloat("mask_filter_value", -10000.0);
  site.causal = form.readBool("unidirectional", false);
  form.needAbsent(8, "past_sequence_length");
  form.needAbsent(9, "cache_indirection");
  form.needUnused(3, "qk");
  if (form.node.getNumOperands() > 10)
    form.refuse("more than 10 inputs");
  Value query = form.input(0), key = form.input(1), value = form.input(2),
        inputBias = form.input(3), padding = form.input(4),
        bias = form.input(5), pastK = form.input(6), pastV = form.input(7);
  if (!query || !key || !value)
    return form.refuse("query, key or value is missing or packed", query);
  if (!pastK != !pastV)
    return form.refuse("past_key and past_value need each other",
                       pastK ? pastK : pastV);
  if (heads <= 0)
    return form.refuse("attribute 'num_heads' is not positive");
  SmallVector<Value> data{query, key, value};
  for (Value x : {inputBias, pastK, pastV})
    if (x)
      data.push_back(x);
  Type element = form.commonType(data);
  if (form.refused())
    return;

  // Query [b,s,h*d]; key and value [b,t,h*d], or [b,h,t,d] (cross attention:
  // they are used as they are, without bias).
  int64_t keyRank = form.rank(key);
  bool cross = keyRank == 4;
  if (form.rank(query) != 3 || (keyRank != 3 && keyRank != 4) ||
      form.rank(value) != keyRank)
    return form.refuse("inputs are not known to be 3-D, or key and value 4-D",
                       form.rank(query) != 3 ? query : key);
  int64_t width = form.size(query, 2);
  int64_t vWidth = cross ? form.size(value, 3) * heads : form.size(value, 2);
  if (width <= 0 || width % heads != 0 || vWidth <= 0 || vWidth % heads != 0)
    return form.refuse("hidden size is not known or not divisible by the heads",
                       width <= 0 ? query : value);
  int64_t headDim = width / heads, vHeadDim = vWidth / heads;
  if (cross ? form.size(key, 3) != headDim || form.size(key, 1) != heads ||
                  form.size(value, 1) != heads
            : form.size(key, 2) != width)
    return form.refuse("key is not known to have the head size of query", key);
  if (cross && pastK)
    return form.refuse("4-D key together with past_key", key);
  site.qHeads = heads;
  site.headDim = headDim;
  site.vHeadDim = vHeadDim;
  site.scale = readScale(form, headDim);

  ExprRef batch = form.dim(query, 0), rows = form.dim(query, 1),
          keys = form.dim(key, cross ? 2 : 1);
  if (!batch || !rows || !keys)
    return form.refuse("sequence lengths are not known", query);
  // ONNX Runtime leaves keys past row s visible when there are more keys than
  // rows; nobody can mean that.
  if (site.causal && !form.provablyEqual(rows, keys))
    return form.refuse("unidirectional, and key is not known to have as many "
                       "rows as query",
                       key);

  PlannedValue q = form.use(query), k = form.use(key), v = form.use(value);
  if (inputBias) {
    if (form.rank(inputBias) != 1 ||
        form.size(inputBias, 0) != 2 * width + vWidth)
      return form.refuse("bias is not known to have " +
                             Twine(2 * width + vWidth) + " elements",
                         inputBias);
    auto add = [&](PlannedValue x, int64_t begin, int64_t size) {
      return site.plan(
          "Add", {x, form.planSlice(inputBias, begin, begin + size, element)},
          form.tensor({-1, -1, size}, element));
    };
    q = add(q, 0, width);
    if (!cross) {
      k = add(k, width, width);
      v = add(v, 2 * width, vWidth);
    }
  }
  if (inputBias) {
    site.q = q;
    site.qLayout = TensorLayout::BSHD;
  } else {
    OpForm::Operand operand = form.fold(query, heads, headDim, heads);
    site.q = operand.value;
    site.qLayout = operand.layout;
  }

  bool needPresent = form.isUsed(1) || form.isUsed(2);
  if (pastK || needPresent || inputBias) {
    site.kLayout = site.vLayout =
        cross ? TensorLayout::BHSD : TensorLayout::BSHD;
    if (!cross && (pastK || needPresent)) {
      k = form.planHeadsFirst(k, heads, headDim, element);
      v = form.planHeadsFirst(v, heads, vHeadDim, element);
      site.kLayout = site.vLayout = TensorLayout::BHSD;
    } else if (cross && needPresent) {
      k = site.plan("Identity", {k},
                    form.tensor({-1, heads, -1, headDim}, element));
      v = site.plan("Identity", {v},
                    form.tensor({-1, heads, -1, vHeadDim}, element));
    }
    if (pastK) {
      if (form.rank(pastK) != 4 || form.rank(pastV) != 4)
        return form.refuse("past is not known to be 4-D", pastK);
      k = form.planConcat({form.use(pastK), k}, 2,
                          form.tensor({-1, heads, -1, headDim}, element));
      v = form.planConcat({form.use(pastV), v}, 2,
                          form.tensor({-1, heads, -1, vHeadDim}, element));
      keys = form.exprs.add(form.dim(pastK, 2), keys);
    }
    site.k = k;
    site.v = v;
    site.kvHeads = heads;
    form.replace(1, k);
    form.replace(2, v);
  } else {
    form.setKeysAndValues(key, value, heads, headDim, vHeadDim);
  }

  MaskDims dims{batch, form.exprs.getInt(heads), rows, keys};
  setMasks(form, element, padding, bias, filter, dims, [&] {
    if (pastK)
      return form.planDim(k, 2, /*scalar=*/true);
    return form.planDim(key, cross ? 2 : 1, /*scalar=*/true);
  });
  if (form.refused())
    return;
  form.setOutput(/*packed=*/true, batch, rows);
}

//===----------------------------------------------------------------------===//
// Attention
//===----------------------------------------------------------------------===//

void prefill::matchPackedWeightAttention(OpForm &form) {
  AttentionSite &site = form.site;
  site.form = "com.microsoft.Attention";
  form.allowAttributes({"num_heads", "unidirectional", "qkv_hidden_sizes",
                        "do_rotary", "rotary_embedding_dim", "scale",
                        "mask_filter_value", "past_present_share_buffer"});
  int64_t heads = form.readInt("num_heads", 0);
  double filter = form.readFloat("mask_filter_value", -10000.0);
  site.causal = form.readBool("unidirectional", false);
  // ONNX Runtime's CPU provider runs neither.
  if (form.readBool("do_rotary", false))
    form.refuse("attribute 'do_rotary' is 1");
  if (form.readBool("past_present_share_buffer", false))
    form.refuse("attribute 'past_present_share_buffer' is 1");
  form.readInt("rotary_embedding_dim", 0);
  form.needAbsent(6, "past_sequence_length");
  if (form.node.getNumOperands() > 7)
    form.refuse("more than 7 inputs");
  Value x = form.input(0), weights = form.input(1), inputBias = form.input(2),
        padding = form.input(3), past = form.input(4), bias = form.input(5);
  if (!x || !weights)
    return form.refuse("input or weights is missing");
  if (heads <= 0)
    return form.refuse("attribute 'num_heads' is not positive");
  SmallVector<Value> data{x, weights};
  for (Value extra : {inputBias, past})
    if (extra)
      data.push_back(extra);
  Type element = form.commonType(data);
  if (form.refused())
    return;
  int64_t total = form.rank(weights) == 2 ? form.size(weights, 1) : -1;
  if (total <= 0 || form.rank(x) != 3)
    return form.refuse("shape of input or weights is not known",
                       total <= 0 ? weights : x);
  SmallVector<int64_t> widths(3, total / 3);
  if (Attribute attr = form.node.getAttrOfName("qkv_hidden_sizes")) {
    std::optional<ArrayRef<int64_t>> sizes =
        form.node.getInts("qkv_hidden_sizes");
    if (!sizes || sizes->size() != 3)
      return form.refuse("attribute 'qkv_hidden_sizes' is not 3 integers");
    widths.assign(sizes->begin(), sizes->end());
  }
  for (int64_t width : widths)
    if (width <= 0 || width % heads != 0)
      return form.refuse("hidden sizes are not positive multiples of num_heads",
                         weights);
  if (widths[0] != widths[1] || widths[0] + widths[1] + widths[2] != total)
    return form.refuse("hidden sizes of Q and K differ or do not add up to " +
                           Twine(total),
                       weights);
  // ONNX Runtime rejects it, so what it means is not settled.
  if (past && bias)
    return form.refuse("past together with attention_bias", bias);
  if (past && form.rank(past) != 5)
    return form.refuse("past is not known to be 5-D", past);
  int64_t headDim = widths[0] / heads, vHeadDim = widths[2] / heads;
  if (past && headDim != vHeadDim)
    return form.refuse("past with different sizes of K and V", past);
  site.qHeads = site.kvHeads = heads;
  site.headDim = headDim;
  site.vHeadDim = vHeadDim;
  site.scale = readScale(form, headDim);

  RankedTensorType packedType =
      form.tensor({form.size(x, 0), form.size(x, 1), total}, element);
  PlannedValue packed = site.plan("MatMul", {form.use(x), weights}, packedType);
  if (inputBias)
    packed = site.plan("Add", {packed, inputBias}, packedType);
  SmallVector<PlannedValue> parts = form.planSplit(packed, widths, element);
  site.q = parts[0];
  site.k = parts[1];
  site.v = parts[2];
  site.qLayout = site.kLayout = site.vLayout = TensorLayout::BSHD;
  ExprRef batch = form.dim(x, 0), rows = form.dim(x, 1);
  if (!batch || !rows)
    return form.refuse("sequence length is not known", x);
  ExprRef keys = rows;
  bool needPresent = form.isUsed(1);
  if (past || needPresent) {
    site.k = form.planHeadsFirst(site.k, heads, headDim, element);
    site.v = form.planHeadsFirst(site.v, heads, vHeadDim, element);
    site.kLayout = site.vLayout = TensorLayout::BHSD;
  }
  if (past) {
    RankedTensorType type = form.tensor({-1, heads, -1, headDim}, element);
    auto append = [&](int64_t which, PlannedValue fresh) {
      PlannedValue old =
          site.plan("Gather", {form.use(past), form.constantInt(which)}, type,
                    {onnx::intAttr(form.builder, "axis", 0)});
      return form.planConcat({old, fresh}, 2, type);
    };
    site.k = append(0, site.k);
    site.v = append(1, site.v);
    keys = form.exprs.add(form.dim(past, 3), rows);
  }
  if (needPresent) {
    RankedTensorType type = form.tensor({1, -1, heads, -1, headDim}, element);
    form.replace(1, form.planConcat(
                        {planUnsqueeze(form, site.k, {0}, type),
                         planUnsqueeze(form, site.v, {0}, type)},
                        0, form.tensor({2, -1, heads, -1, headDim}, element)));
  }
  if (needPresent && headDim != vHeadDim)
    return form.refuse("present with different sizes of K and V",
                       form.node.getOutput(1));
  MaskDims dims{batch, form.exprs.getInt(heads), rows, keys};
  setMasks(form, element, padding, bias, filter, dims, [&] {
    if (past)
      return form.planDim(site.k, 2, /*scalar=*/true);
    return form.planDim(x, 1, /*scalar=*/true);
  });
  if (form.refused())
    return;
  form.setOutput(/*packed=*/true, batch, rows);
}
