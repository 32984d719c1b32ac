//===- OpFormsGQA.cpp - com.microsoft GroupQueryAttention -----------------===//
//
// What the operator does besides attention becomes ordinary nodes: packed QKV
// (Split), rotary embedding (RotaryEmbedding), the KV cache. ONNX Runtime 1.32
// (CPU) tells three cases apart at run time, and one graph serves them all:
//
//   first prompt  total == s           past 0, past buffer empty or ignored
//   growing cache total == P + s       P rows in the past buffer
//   fixed buffer  total <= P           rows at or past a batch's length are
//   stale
//
// With n[b] = seqlens_k[b] + 1 keys of batch b after the step and
// p[b] = total == s ? 0 : n[b] - s keys before it, present row j is past row j
// for j < p[b], new row j - p[b] for the next s rows, and 0 beyond; query row i
// stands at key p[b] + i, and keys at or past n[b] are invisible. Checked in
// python/tests/op_forms/test_group_query_attention.py.
//
//===----------------------------------------------------------------------===//
#include "prefill/Analysis/OpForms.h"

#include <cmath>

using namespace mlir;
using namespace prefill;

namespace {

enum Input : unsigned {
  Query,
  Key,
  ValueInput,
  PastKey,
  PastValue,
  SeqlensK,
  TotalLength,
  CosCache,
  SinCache,
  PositionIds,
  AttentionBias,
  HeadSink,
  KScale,
  VScale,
  QNormWeight,
  KNormWeight,
  QuerySeqlens,
  InputCount
};

/// Matches one node; the members are what its parts share.
class Matcher {
public:
  explicit Matcher(OpForm &form) : form(form), site(form.site) {}
  void run();

private:
  void readAttributes();
  void readSizes();
  void splitPacked();
  void planPositions();
  void rotate();
  void planCache();
  void setMasks();
  RankedTensorType ints(ArrayRef<int64_t> shape) { return form.ints(shape); }
  PlannedValue binary(StringRef op, PlannedValue a, PlannedValue b,
                      RankedTensorType type) {
    return site.plan(op, {a, b}, type);
  }
  PlannedValue where(PlannedValue c, PlannedValue a, PlannedValue b,
                     RankedTensorType type) {
    return site.plan("Where", {c, a, b}, type);
  }
  RankedTensorType flags(ArrayRef<int64_t> shape) {
    return form.tensor(shape, form.builder.getI1Type());
  }

  OpForm &form;
  AttentionSite &site;
  Type element;
  int64_t qHeads = 0, kvHeads = 0, headDim = 0;
  bool rotary = false, interleaved = false, smooth = false;
  Value pastKey;
  ExprRef batch = nullptr, rows = nullptr;
  PlannedValue q, k, v; ///< [b,s,h*d]
  // int64: s [1], total [1], n [b], p [b], whether total == s [1].
  PlannedValue rowCount, total, lengths, past, isPrompt;
};

} // namespace

void Matcher::readAttributes() {
  form.allowAttributes({"num_heads", "kv_num_heads", "scale", "softcap",
                        "local_window_size", "do_rotary", "rotary_interleaved",
                        "smooth_softmax", "causal", "qk_output", "k_quant_type",
                        "v_quant_type", "kv_cache_bit_width", "qk_norm_epsilon",
                        "q_norm_epsilon", "k_norm_epsilon",
                        "sliding_window_cache"});
  qHeads = form.readInt("num_heads", 0);
  kvHeads = form.readInt("kv_num_heads", 0);
  if (qHeads <= 0 || kvHeads <= 0 || qHeads % kvHeads != 0)
    return form.refuse("num_heads is not a positive multiple of kv_num_heads");
  site.causal = form.readBool("causal", true);
  rotary = form.readBool("do_rotary", false);
  interleaved = form.readBool("rotary_interleaved", false);
  int64_t smoothSoftmax = form.readInt("smooth_softmax", -1);
  if (smoothSoftmax < -1 || smoothSoftmax > 1)
    form.refuse("attribute 'smooth_softmax' is " + Twine(smoothSoftmax));
  smooth = smoothSoftmax == 1;
  int64_t window = form.readInt("local_window_size", -1);
  // 0 gives rows of zeros in ONNX Runtime 1.32; surely nobody means that.
  if (window != -1 && window <= 0)
    form.refuse("attribute 'local_window_size' is " + Twine(window));
  if (window > 0 && !site.causal)
    form.refuse("a local window that is not causal");
  if (window > 0)
    site.windowLeft = window - 1;
  double softcap = form.readFloat("softcap", 0);
  if (softcap < 0 || !std::isfinite(softcap))
    form.refuse("attribute 'softcap' is negative or not finite");
  if (softcap > 0)
    site.softcap = softcap;
  if (form.readInt("qk_output", 0) != 0)
    form.refuse("attribute 'qk_output' asks for the scores");
  if (form.readBool("sliding_window_cache", false))
    form.refuse("attribute 'sliding_window_cache': the cache is a ring");
  for (StringRef name : {"k_quant_type", "v_quant_type"})
    if (form.node.getString(name, "NONE") != "NONE")
      form.refuse("attribute '" + name + "': the cache is quantised");
  form.needAbsent(KScale, "k_scale");
  form.needAbsent(VScale, "v_scale");
  // ONNX Runtime's CPU provider does not run these.
  form.needAbsent(QNormWeight, "q_norm_weight");
  form.needAbsent(KNormWeight, "k_norm_weight");
  form.needAbsent(QuerySeqlens, "query_seqlens");
  form.needUnused(3, "output_qk");
  if (form.node.getNumOperands() > InputCount)
    form.refuse("more than " + Twine(unsigned(InputCount)) + " inputs");
  if (onnx::getOpsetVersion(form.node) < 13)
    form.refuse("opset below 13");
}

void Matcher::readSizes() {
  Value query = form.input(Query), key = form.input(Key),
        value = form.input(ValueInput), pastValue = form.input(PastValue);
  pastKey = form.input(PastKey);
  if (!query || !form.input(SeqlensK) || !form.input(TotalLength))
    return form.refuse("query, seqlens_k or total_sequence_length is missing");
  if (!key != !value)
    return form.refuse("key and value need each other", key ? key : value);
  if (!pastKey != !pastValue)
    return form.refuse("past_key and past_value need each other",
                       pastKey ? pastKey : pastValue);
  SmallVector<Value> data{query};
  if (key)
    data.append({key, value});
  if (pastKey)
    data.append({pastKey, pastValue});
  element = form.commonType(data);
  if (form.refused())
    return;
  batch = form.dim(query, 0);
  rows = form.dim(query, 1);
  int64_t width = form.rank(query) == 3 ? form.size(query, 2) : -1;
  int64_t parts = key ? qHeads : qHeads + 2 * kvHeads;
  if (!batch || !rows || width <= 0 || width % parts != 0)
    return form.refuse("hidden size is not known or not divisible by the heads",
                       query);
  headDim = width / parts;
  for (Value x : {key, value})
    if (x && (form.rank(x) != 3 || form.size(x, 2) != kvHeads * headDim))
      return form.refuse(
          "not known to be [b, s, " + Twine(kvHeads * headDim) + "]", x);
  // With a past the number of new keys may differ from s (cross attention).
  if (key && !form.provablyEqual(form.dim(key, 1), rows)) {
    if (pastKey)
      return form.refuse("key is not known to have as many rows as query", key);
    // Without one, ONNX Runtime demands it.
    form.exprs.assumeEqual(form.dim(key, 1), rows);
  }
  if (value && !form.provablyEqual(form.dim(value, 1), rows)) {
    if (pastKey)
      return form.refuse("value is not known to have as many rows as query",
                         value);
    form.exprs.assumeEqual(form.dim(value, 1), rows);
  }
  for (Value x : {pastKey, pastValue})
    if (x && form.rank(x) != 4)
      return form.refuse("past is not known to be 4-D", x);
  // Attention sinks and the rotary tables: sizes that the rewrite relies on.
  if (Value sink = form.input(HeadSink))
    if (form.rank(sink) != 1 || form.size(sink, 0) != qHeads ||
        form.elementType(sink) != element)
      form.refuse("head_sink is not known to be [" + Twine(qHeads) +
                      "] of the type of query",
                  sink);
  double scale = form.readFloat("scale", 0);
  site.scale = scale == 0 ? 1.0 / std::sqrt(double(headDim)) : scale;
  if (!std::isfinite(site.scale))
    form.refuse("attribute 'scale' is not finite");
  site.qHeads = qHeads;
  site.kvHeads = kvHeads;
  site.headDim = site.vHeadDim = headDim;
}

void Matcher::splitPacked() {
  Value query = form.input(Query);
  if (Value key = form.input(Key)) {
    q = form.use(query);
    k = form.use(key);
    v = form.use(form.input(ValueInput));
    return;
  }
  SmallVector<PlannedValue> parts = form.planSplit(
      form.use(query), {qHeads * headDim, kvHeads * headDim, kvHeads * headDim},
      element);
  q = parts[0];
  k = parts[1];
  v = parts[2];
}

/// Plans the numbers that say where everything stands.
void Matcher::planPositions() {
  // [b] or [b,1], int32.
  lengths =
      binary("Add",
             form.planReshape(form.planCast(form.input(SeqlensK), ints({-1})),
                              {-1}, ints({-1})),
             site.planInts(form.context, {1}), ints({-1}));
  if (!pastKey)
    return;
  rowCount = form.planDim(form.input(Query), 1);
  total = form.planReshape(form.planCast(form.input(TotalLength), ints({-1})),
                           {1}, ints({1}));
  isPrompt = binary("Equal", total, rowCount, flags({1}));
  past = where(isPrompt, site.planInts(form.context, {0}),
               binary("Sub", lengths, rowCount, ints({-1})), ints({-1}));
}

/// Rotary embedding of q and k.
void Matcher::rotate() {
  if (!rotary)
    return;
  Value cos = form.input(CosCache), sin = form.input(SinCache),
        ids = form.input(PositionIds);
  if (!cos || !sin)
    return form.refuse("do_rotary without cos_cache or sin_cache");
  for (Value table : {cos, sin})
    if (form.rank(table) != 2 || form.elementType(table) != element)
      return form.refuse("rotary table is not known to be 2-D of the type of "
                         "query",
                         table);
  int64_t half = form.size(cos, 1);
  if (half <= 0 || form.size(sin, 1) != half || 2 * half > headDim)
    return form.refuse("width of the rotary tables is not known or too large",
                       cos);
  // Row positions: one number, the position of row 0, or [b,s].
  PlannedValue start = site.planInts(form.context, {0}), positions;
  if (ids) {
    // A first prompt counts from the first number of all; other rows are not
    // even read.
    ExprRef zero = form.exprs.getInt(0);
    int64_t idsRank = form.rank(ids);
    if (idsRank != 2)
      return form.refuse("position_ids is not known to be 2-D", ids);
    ExprRef first = form.analysis.element(ids, {zero, zero});
    if (!first || !first->isInt(0))
      start = site.plan("Gather",
                        {form.planReshape(ids, {-1}, ints({-1})),
                         site.planInts(form.context, {0})},
                        ints({1}));
  }
  if (!pastKey) {
    positions = start;
  } else {
    PlannedValue count = site.plan("Range",
                                   {form.constantInt(0),
                                    form.planDim(form.input(Query), 1, true),
                                    form.constantInt(1)},
                                   ints({-1}));
    if (ids)
      positions = where(isPrompt, binary("Add", start, count, ints({-1})), ids,
                        ints({-1, -1}));
    else
      positions = binary("Add", form.planReshape(past, {-1, 1}, ints({-1, 1})),
                         count, ints({-1, -1}));
  }
  auto embed = [&](PlannedValue x, int64_t heads) {
    SmallVector<NamedAttribute> attrs{
        onnx::intAttr(form.builder, "interleaved", interleaved),
        onnx::intAttr(form.builder, "num_heads", heads)};
    if (2 * half != headDim)
      attrs.push_back(
          onnx::intAttr(form.builder, "rotary_embedding_dim", 2 * half));
    return site.plan("RotaryEmbedding", {x, positions, cos, sin},
                     form.tensor({-1, -1, heads * headDim}, element), attrs,
                     "com.microsoft");
  };
  q = embed(q, qHeads);
  k = embed(k, kvHeads);
}

/// The keys and values of the attention and the present outputs.
void Matcher::planCache() {
  bool needPresent = form.isUsed(1) || form.isUsed(2);
  RankedTensorType cacheType = form.tensor({-1, kvHeads, -1, headDim}, element);
  site.kLayout = site.vLayout = TensorLayout::BSHD;
  site.k = k;
  site.v = v;
  site.kvLengths = lengths;
  // Lengths that are provably s say nothing.
  ExprRef b = form.exprs.getIndex("b", batch);
  if (!pastKey && form.rank(form.input(SeqlensK)) == 1)
    if (ExprRef length = form.analysis.element(form.input(SeqlensK), {b}))
      if (form.provablyEqual(form.exprs.add(length, form.exprs.getInt(1)),
                             rows))
        site.kvLengths = PlannedValue();
  if (!pastKey && !needPresent)
    return;
  PlannedValue newK = form.planHeadsFirst(k, kvHeads, headDim, element);
  PlannedValue newV = form.planHeadsFirst(v, kvHeads, headDim, element);
  site.kLayout = site.vLayout = TensorLayout::BHSD;
  if (!pastKey) {
    site.k = newK;
    site.v = newV;
    form.replace(1, newK);
    form.replace(2, newV);
    return;
  }
  // Row j of present: of [past; new; 0], row j, or P + j - p, or the last.
  PlannedValue buffer = form.planDim(pastKey, 2);
  PlannedValue length = site.plan("Max", {buffer, total}, ints({1}));
  PlannedValue scalar = form.planReshape(length, {}, ints({}));
  PlannedValue j = site.plan(
      "Range", {form.constantInt(0), scalar, form.constantInt(1)}, ints({-1}));
  PlannedValue fresh = binary(
      "Sub", j, form.planReshape(past, {-1, 1}, ints({-1, 1})), ints({-1, -1}));
  PlannedValue clamped = site.plan("Min", {fresh, rowCount}, ints({-1, -1}));
  PlannedValue moved = binary("Add", buffer, clamped, ints({-1, -1}));
  PlannedValue isOld =
      binary("Less", fresh, site.planInts(form.context, {0}), flags({-1, -1}));
  PlannedValue index = where(isOld, j, moved, ints({-1, -1}));
  index = form.planReshape(index, {0, 1, -1, 1}, ints({-1, 1, -1, 1}));
  index = site.plan("Expand",
                    {index, site.planInts(form.context, {1, kvHeads, 1, 1})},
                    ints({-1, kvHeads, -1, 1}));
  PlannedValue zeroShape =
      form.planConcat({form.planDim(pastKey, 0),
                       site.planInts(form.context, {kvHeads, 1, headDim})},
                      0, ints({4}));
  PlannedValue zero =
      site.plan("Expand", {form.constantFloats({}, element), zeroShape},
                form.tensor({-1, kvHeads, 1, headDim}, element));
  auto append = [&](Value old, PlannedValue x) {
    PlannedValue all = form.planConcat({form.use(old), x, zero}, 2, cacheType);
    return site.plan("GatherND", {all, index}, cacheType,
                     {onnx::intAttr(form.builder, "batch_dims", 2)});
  };
  site.k = append(pastKey, newK);
  site.v = append(form.input(PastValue), newV);
  form.replace(1, site.k);
  form.replace(2, site.v);
  site.alignment = QueryAlignment::Operand;
  site.qOffset = past;
  // The bias has `total` columns, the buffer may be longer.
  if (form.input(AttentionBias)) {
    auto cut = [&](PlannedValue x) {
      return site.plan("Slice",
                       {x, site.planInts(form.context, {0}), total,
                        site.planInts(form.context, {2})},
                       cacheType);
    };
    site.k = cut(site.k);
    site.v = cut(site.v);
  }
}

void Matcher::setMasks() {
  if (Value sink = form.input(HeadSink))
    site.sinks = form.use(sink);
  else if (smooth)
    site.sinks = form.constantFloats({qHeads}, element);
  Value bias = form.input(AttentionBias);
  if (!bias)
    return;
  if (form.elementType(bias) != element)
    return form.refuse("attention_bias is not of the type of query", bias);
  // ONNX Runtime takes the softmax of causal attention over the visible keys
  // only, and a row of -inf or of lowest numbers gives 0 there. Without
  // `causal`, rows of -inf give NaN and rows of lowest numbers the mean.
  OpForm::MaskRules rules;
  if (site.causal)
    rules.lowestHides = true;
  else
    rules.infinite = MaskedRowRule::NaN;
  rules.hard = site.causal || site.kvLengths;
  // With a past, the number of keys is not an expression.
  rules.direct = static_cast<bool>(pastKey) || site.windowLeft.has_value();
  MaskDims dims{batch, form.exprs.getInt(qHeads), rows, rows};
  if (pastKey)
    dims.keys = form.dim(bias, -1);
  form.setMask(bias, dims, rules);
}

void Matcher::run() {
  readAttributes();
  if (form.refused())
    return;
  readSizes();
  if (form.refused())
    return;
  splitPacked();
  planPositions();
  rotate();
  if (form.refused())
    return;
  site.q = q;
  site.qLayout = TensorLayout::BSHD;
  planCache();
  setMasks();
  if (form.refused())
    return;
  form.setOutput(/*packed=*/true, batch, rows);
}

void prefill::matchGroupQueryAttention(OpForm &form) {
  form.site.form = "GroupQueryAttention";
  Matcher(form).run();
}
