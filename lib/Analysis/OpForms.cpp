//===- OpForms.cpp - Fused attention operators: common parts --------------===//
#include "prefill/Analysis/OpForms.h"
#include "Rules.h"
#include "prefill/Analysis/MaskPredicate.h"

#include "llvm/ADT/APFloat.h"
#include "llvm/ADT/STLExtras.h"

#include <cmath>

using namespace mlir;
using namespace prefill;

OpForm::OpForm(onnx::NodeOp node, SymbolicAnalysis &analysis,
               AttentionSite &site)
    : node(node), analysis(analysis), site(site), exprs(analysis.expressions()),
      context(node.getContext()), builder(context) {
  site.core = node;
}

void OpForm::refuse(const Twine &reason, Value value) {
  (void)site.refuse(node, reason, value);
}

//===----------------------------------------------------------------------===//
// Attributes and inputs
//===----------------------------------------------------------------------===//

void OpForm::allowAttributes(ArrayRef<StringRef> known) {
  onnx::ListAttr attrs = node.getAttrsAttr();
  if (!attrs)
    return;
  for (NamedAttribute entry : attrs.getEntries())
    if (!llvm::is_contained(known, entry.getName().getValue()))
      return refuse("attribute '" + entry.getName().getValue() +
                    "' is not known");
}

int64_t OpForm::readInt(StringRef name, int64_t otherwise) {
  Attribute attr = node.getAttrOfName(name);
  if (attr && !isa<IntegerAttr>(attr))
    refuse("attribute '" + name + "' is not an integer");
  return node.getInt(name, otherwise);
}

double OpForm::readFloat(StringRef name, double otherwise) {
  Attribute attr = node.getAttrOfName(name);
  if (attr && !isa<FloatAttr>(attr))
    refuse("attribute '" + name + "' is not a float");
  return node.getFloat(name, otherwise);
}

bool OpForm::readBool(StringRef name, bool otherwise) {
  int64_t value = readInt(name, otherwise);
  if (value != 0 && value != 1)
    refuse("attribute '" + name + "' is " + Twine(value) + ", neither 0 nor 1");
  return value == 1;
}

void OpForm::needAbsent(unsigned i, StringRef name) {
  if (Value value = input(i))
    refuse("input " + Twine(i) + " (" + name + ") is not supported", value);
}

bool OpForm::isUsed(unsigned i) {
  Value value = node.getOutput(i);
  return value && !value.use_empty();
}

void OpForm::needUnused(unsigned i, StringRef name) {
  if (isUsed(i))
    refuse("output " + Twine(i) + " (" + name + ") is used", node.getOutput(i));
}

//===----------------------------------------------------------------------===//
// Shapes and types
//===----------------------------------------------------------------------===//

int64_t OpForm::rank(Value value) {
  const TensorFacts &facts = analysis.facts(value);
  return facts.ranked ? static_cast<int64_t>(facts.shape.size()) : -1;
}

ExprRef OpForm::dim(Value value, int64_t axis) {
  return analysis.dim(value, axis);
}

int64_t OpForm::staticSize(ExprRef e) {
  std::optional<int64_t> size = e ? e->asInt() : std::nullopt;
  return size ? *size : ShapedType::kDynamic;
}

int64_t OpForm::size(Value value, int64_t axis) {
  int64_t size = staticSize(dim(value, axis));
  return ShapedType::isDynamic(size) ? -1 : size;
}

bool OpForm::provablyEqual(ExprRef a, ExprRef b) {
  return a && b && exprs.proveEqual(a, b);
}

Type OpForm::elementType(Value value) {
  if (Type type = analysis.facts(value).elementType)
    return type;
  return onnx::getElementType(value.getType());
}

Type OpForm::commonType(ArrayRef<Value> values) {
  Type common;
  for (Value value : values) {
    Type type = elementType(value);
    if (!type) {
      refuse("element type is not known", value);
      return {};
    }
    if (!type.isF32() && !type.isF16() && !type.isBF16()) {
      std::string text;
      llvm::raw_string_ostream(text) << type;
      refuse("no kernels for element type " + text, value);
      return {};
    }
    if (common && common != type) {
      refuse("inputs have different element types", value);
      return {};
    }
    common = type;
  }
  return common;
}

PlannedValue OpForm::use(Value value) {
  if (!isa<RankedTensorType>(value.getType()))
    if (Type type = analysis.inferredType(value))
      if (type != value.getType())
        site.types.emplace_back(value, type);
  return value;
}

//===----------------------------------------------------------------------===//
// Planned nodes
//===----------------------------------------------------------------------===//

RankedTensorType OpForm::tensor(ArrayRef<int64_t> shape, Type element) {
  SmallVector<int64_t> dims;
  for (int64_t size : shape)
    dims.push_back(size < 0 ? ShapedType::kDynamic : size);
  return RankedTensorType::get(dims, element);
}

PlannedValue OpForm::constantInt(int64_t value) {
  return site.planConstant(DenseElementsAttr::get(ints({}), {value}));
}

PlannedValue OpForm::constantFloats(ArrayRef<int64_t> shape, Type element,
                                    double value) {
  auto floatType = cast<FloatType>(element);
  APFloat number(value);
  bool inexact = false;
  number.convert(floatType.getFloatSemantics(), APFloat::rmNearestTiesToEven,
                 &inexact);
  return site.planConstant(DenseElementsAttr::get(tensor(shape, element),
                                                  ArrayRef<APFloat>(number)));
}

PlannedValue OpForm::planDim(PlannedValue value, int64_t axis, bool scalar) {
  if (value.kind == PlannedValue::Kind::Existing)
    if (ExprRef size = dim(value.value, axis)) {
      if (std::optional<int64_t> number = size->asInt())
        return scalar ? constantInt(*number)
                      : site.planInts(context, {*number});
      // All layers ask the same graph input, so that they share the nodes.
      onnx::GraphOp graph = analysis.getGraph();
      for (Value argument : graph.getBody().front().getArguments()) {
        const TensorFacts &facts = analysis.facts(argument);
        const auto *it = llvm::find(facts.shape, size);
        if (!facts.ranked || it == facts.shape.end())
          continue;
        value = argument;
        axis = it - facts.shape.begin();
        break;
      }
    }
  PlannedValue shape = site.plan("Shape", {value}, ints({-1}));
  PlannedValue index =
      scalar ? constantInt(axis) : site.planInts(context, {axis});
  RankedTensorType type = scalar ? ints({}) : ints({1});
  return site.plan("Gather", {shape, index}, type);
}

PlannedValue OpForm::planCast(PlannedValue value, RankedTensorType type) {
  // TensorProto.DataType of the types that are cast to here.
  Type element = type.getElementType();
  int64_t code = 7; // int64
  if (element.isInteger(32))
    code = 6;
  else if (element.isF32())
    code = 1;
  else if (element.isF16())
    code = 10;
  else if (element.isBF16())
    code = 16;
  else if (element.isInteger(1))
    code = 9;
  return site.plan("Cast", {value}, type, {onnx::intAttr(builder, "to", code)});
}

PlannedValue OpForm::planReshape(PlannedValue value, ArrayRef<int64_t> shape,
                                 RankedTensorType type) {
  return site.plan("Reshape", {value, site.planInts(context, shape)}, type);
}

PlannedValue OpForm::planHeadsFirst(PlannedValue value, int64_t heads,
                                    int64_t dim, Type element) {
  PlannedValue split = planReshape(value, {0, 0, heads, dim},
                                   tensor({-1, -1, heads, dim}, element));
  return site.plan("Transpose", {split}, tensor({-1, heads, -1, dim}, element),
                   {onnx::intsAttr(builder, "perm", {0, 2, 1, 3})});
}

PlannedValue OpForm::planConcat(ArrayRef<PlannedValue> values, int64_t axis,
                                RankedTensorType type) {
  return site.plan("Concat", values, type,
                   {onnx::intAttr(builder, "axis", axis)});
}

SmallVector<PlannedValue>
OpForm::planSplit(PlannedValue value, ArrayRef<int64_t> sizes, Type element) {
  SmallVector<Type> types;
  for (int64_t size : sizes)
    types.push_back(tensor({-1, -1, size}, element));
  SmallVector<NamedAttribute> attrs{onnx::intAttr(builder, "axis", -1)};
  SmallVector<PlannedValue> inputs{value};
  // The sizes became an input with opset 13.
  if (onnx::getOpsetVersion(node) >= 13)
    inputs.push_back(site.planInts(context, sizes));
  else
    attrs.push_back(onnx::intsAttr(builder, "split", sizes));
  PlannedValue part = site.planMany("Split", inputs, types, attrs);
  SmallVector<PlannedValue> parts;
  for (unsigned i = 0; i < sizes.size(); ++i) {
    part.result = i;
    parts.push_back(part);
  }
  return parts;
}

PlannedValue OpForm::planSlice(PlannedValue value, int64_t begin, int64_t end,
                               Type element) {
  RankedTensorType type = tensor({end - begin}, element);
  if (onnx::getOpsetVersion(node) < 10)
    return site.plan("Slice", {value}, type,
                     {onnx::intsAttr(builder, "starts", {begin}),
                      onnx::intsAttr(builder, "ends", {end})});
  return site.plan(
      "Slice",
      {value, site.planInts(context, {begin}), site.planInts(context, {end})},
      type);
}

//===----------------------------------------------------------------------===//
// The attention
//===----------------------------------------------------------------------===//

OpForm::Operand OpForm::fold(Value value, int64_t heads, int64_t headDim,
                             int64_t fewestHeads) {
  bool packed = rank(value) == 3;
  Operand best{value, packed ? TensorLayout::BSHD : TensorLayout::BHSD, heads};
  ExprRef batch = dim(value, 0), rows = dim(value, packed ? 1 : 2);
  if (!batch || !rows)
    return best;
  ExprRef b = exprs.getIndex("b", batch);
  ExprRef h = exprs.getIndex("h", exprs.getInt(heads));
  ExprRef s = exprs.getIndex("s", rows);
  ExprRef d = exprs.getIndex("d", exprs.getInt(headDim));
  // Where element d of head `head` lies in the last axis of [b,s,h*d].
  auto inRow = [&](ExprRef head) {
    return exprs.add(exprs.scale(head, headDim), d);
  };
  SmallVector<ExprRef, 4> start{b, h, s, d};
  if (packed)
    start = {b, s, inRow(h)};

  Value found = value;
  for (const SymbolicAnalysis::ViewStep &step :
       analysis.viewChain(value, start)) {
    int64_t stepRank = rank(step.value);
    if (step.factor != 1 || (stepRank != 3 && stepRank != 4) ||
        static_cast<int64_t>(step.indices.size()) != stepRank)
      continue;
    auto matches = [&](unsigned headAxis, unsigned rowAxis) {
      int64_t width = size(step.value, stepRank == 3 ? 2 : headAxis);
      int64_t count = stepRank == 3 ? width / headDim : width;
      if (width <= 0 || count < fewestHeads || heads % count != 0 ||
          (stepRank == 3 && width % headDim != 0))
        return int64_t(0);
      ExprRef head = exprs.floorDiv(h, exprs.getInt(heads / count));
      // A slice of a longer tensor has the same indices but more rows.
      if (!provablyEqual(step.indices[0], b) ||
          !provablyEqual(dim(step.value, 0), batch) ||
          !provablyEqual(step.indices[rowAxis], s) ||
          !provablyEqual(dim(step.value, rowAxis), rows))
        return int64_t(0);
      if (stepRank == 3)
        return provablyEqual(step.indices[2], inRow(head)) ? count : 0;
      return provablyEqual(step.indices[headAxis], head) &&
                     provablyEqual(step.indices[3], d) &&
                     size(step.value, 3) == headDim
                 ? count
                 : 0;
    };
    TensorLayout layout = TensorLayout::BHSD;
    int64_t count = stepRank == 4 ? matches(1, 2) : 0;
    if (!count) {
      layout = TensorLayout::BSHD;
      count = matches(2, 1);
    }
    if (!count || count > best.heads)
      continue;
    found = step.value;
    best = {found, layout, count};
  }
  best.value = use(found);
  return best;
}

void OpForm::setKeysAndValues(Value k, Value v, int64_t heads, int64_t headDim,
                              int64_t vHeadDim) {
  Operand keys = fold(k, heads, headDim, 1);
  Operand values = fold(v, heads, vHeadDim, 1);
  if (keys.heads != values.heads) {
    int64_t shared = std::max(keys.heads, values.heads);
    keys = fold(k, heads, headDim, shared);
    values = fold(v, heads, vHeadDim, shared);
  }
  // Folding can stop at different numbers of heads only when one of them is
  // not reached on the way; then neither is folded.
  if (keys.heads != values.heads) {
    keys = fold(k, heads, headDim, heads);
    values = fold(v, heads, vHeadDim, heads);
  }
  site.k = keys.value;
  site.v = values.value;
  site.kLayout = keys.layout;
  site.vLayout = values.layout;
  site.kvHeads = keys.heads;
}

/// Whether a constant that `test` accepts occurs in `e`.
static bool mentions(ExprRef e, function_ref<bool(double)> test,
                     unsigned depth = 0) {
  if (!e || depth > 16)
    return false;
  if (e->is(Expr::Kind::Float))
    return test(e->number);
  return llvm::any_of(e->operands, [&](ExprRef operand) {
    return mentions(operand, test, depth + 1);
  });
}

void OpForm::setMask(Value mask, const MaskDims &dims, const MaskRules &rules) {
  int64_t maskRank = rank(mask);
  Type type = elementType(mask);
  if (maskRank < 0 || !type)
    return refuse("shape of the mask is not known", mask);
  if (maskRank > 4)
    return refuse("mask has more than 4 dimensions", mask);
  AttentionSite before = site;
  bool isBool = type.isInteger(1);
  Type scores = elementType(node.getInput(0));
  if (!isBool && type != scores)
    return refuse("mask is neither bool nor of the type of the scores", mask);
  if (!rules.direct) {
    bool neverEmpty = false;
    if (succeeded(applyMask(analysis, site, mask, dims, neverEmpty)) &&
        !site.refused()) {
      MaskedRowRule found = isBool ? before.maskedRow : site.maskedRow;
      if (!isBool) {
        // The numbers that mask, if the tensor says.
        SmallVector<ExprRef, 4> indices;
        for (int64_t i = 0; i < maskRank; ++i)
          indices.push_back(
              exprs.getIndex(("m" + Twine(i)).str(), dim(mask, i)));
        bool hasLowest =
            mentions(analysis.element(mask, indices), [&](double number) {
              return number <= lowestNumber(type) && std::isfinite(number);
            });
        if (found == MaskedRowRule::NaN ||
            (isAverage(found) && rules.lowestHides && hasLowest))
          found = rules.infinite;
      }
      // "Mean" is the mean of all values; with keys that are invisible for good
      // it would be the mean of the others. The tensor itself says it right.
      if (neverEmpty || !isAverage(found) || !rules.hard) {
        site.maskedRow = neverEmpty ? before.maskedRow : found;
        if (site.bias && !isBool && rules.lowestHides)
          hideLowNumbers(analysis, site, lowestNumber(type));
        return;
      }
    }
    site = before;
  }
  if (!provablyEqual(dim(mask, -1), dims.keys) && size(mask, -1) == 1)
    return refuse("mask has one column for all keys", mask);
  site.bias = use(mask);
  if (!isBool) {
    site.maskedRow = rules.infinite;
    if (rules.lowestHides)
      hideLowNumbers(analysis, site, lowestNumber(type));
  }
}

void OpForm::replace(unsigned output, PlannedValue value) {
  if (isUsed(output))
    site.replacements.emplace_back(node.getOutput(output), value);
}

void OpForm::setOutput(bool packed, ExprRef batch, ExprRef rows) {
  Type element = elementType(node.getInput(0));
  Value y = node.getOutput(0);
  int64_t b = staticSize(batch), s = staticSize(rows);
  int64_t h = site.qHeads, e = site.vHeadDim;
  if (packed) {
    site.oLayout = TensorLayout::BSHD;
    site.resultType = tensor({b, s, h * e}, element);
    return replace(0, PlannedValue::attention());
  }
  site.oLayout = TensorLayout::BHSD;
  site.resultType = tensor({b, h, s, e}, element);
  if (y.hasOneUse())
    if (auto next = dyn_cast<onnx::NodeOp>(*y.user_begin());
        next && next.is("Transpose") && next->getBlock() == node->getBlock()) {
      std::optional<ArrayRef<int64_t>> perm = next.getInts("perm");
      if (perm && *perm == ArrayRef<int64_t>{0, 2, 1, 3}) {
        site.oLayout = TensorLayout::BSHD;
        site.resultType = tensor({b, s, h, e}, element);
        site.replacements.emplace_back(next.getOutput(0),
                                       PlannedValue::attention());
        return;
      }
    }
  replace(0, PlannedValue::attention());
}

//===----------------------------------------------------------------------===//
// Dispatch
//===----------------------------------------------------------------------===//

bool prefill::matchOpForm(onnx::NodeOp node, SymbolicAnalysis &analysis,
                          AttentionSite &site) {
  // A model-local function of that name hides the operator.
  if (onnx::getCallee(node))
    return false;
  void (*match)(OpForm &) = nullptr;
  StringRef reason;
  constexpr StringLiteral microsoft = "com.microsoft";
  if (node.is("Attention"))
    match = matchOnnxAttention;
  else if (node.is("GroupQueryAttention", microsoft))
    match = matchGroupQueryAttention;
  else if (node.is("MultiHeadAttention", microsoft))
    match = matchMultiHeadAttention;
  else if (node.is("Attention", microsoft))
    match = matchPackedWeightAttention;
  else if (node.is("SparseAttention", microsoft) ||
           node.is("DynamicSparseAttention", microsoft) ||
           node.is("SparsePagedAttention", microsoft))
    reason = "the operator chooses keys itself";
  else if (node.is("PackedMultiHeadAttention", microsoft) ||
           node.is("PackedAttention", microsoft) ||
           node.is("PagedAttention", microsoft))
    reason = "packed or paged rows are not supported";
  else if (node.is("DecoderMaskedMultiHeadAttention", microsoft) ||
           node.is("DecoderMaskedSelfAttention", microsoft) ||
           node.is("DecoderAttention", microsoft))
    reason = "the operator decodes one token at a time";
  else if (node.is("QAttention", microsoft) ||
           node.is("LongformerAttention", microsoft) ||
           node.is("FlexAttention", "ai.onnx.preview"))
    reason = "the operator has no prefill.attention form";
  else
    return false;
  OpForm form(node, analysis, site);
  if (site.layer.empty())
    site.layer = layerName(node);
  site.form = node.getDomain().empty()
                  ? node.getOpType().str()
                  : (node.getDomain() + "." + node.getOpType()).str();
  if (!match) {
    form.refuse(reason);
    return true;
  }
  match(form);
  return true;
}
