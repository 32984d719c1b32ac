//===- Outline.cpp - Attention ops to kernels -----------------------------===//

#include "prefill/Driver/Outline.h"
#include "prefill/Dialect/ONNX/ONNX.h"
#include "prefill/Dialect/Prefill/HeadPlan.h"
#include "prefill/Dialect/Prefill/Prefill.h"
#include "prefill/Transforms/PlanIR.h"
#include "prefill/prefill.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"

using namespace mlir;
using namespace prefill;

/// The element type of kernels for `type`, if there is one.
static std::optional<DType> dtypeOf(Type type) {
  auto tensor = dyn_cast<TensorType>(type);
  if (!tensor)
    return std::nullopt;
  if (tensor.getElementType().isF32())
    return DType::F32;
  if (tensor.getElementType().isF16())
    return DType::F16;
  if (tensor.getElementType().isBF16())
    return DType::BF16;
  return std::nullopt;
}

//===----------------------------------------------------------------------===//
// Index ops to head plans
//===----------------------------------------------------------------------===//

/// Plans of all `heads` query heads.
static bool readPlans(Value index, int64_t heads,
                      std::vector<HeadPlan> &plans) {
  if (auto perHead = index.getDefiningOp<IndexPerHeadOp>()) {
    for (int64_t choice : perHead.getHeads()) {
      std::optional<HeadPlan> plan = readIndex(perHead.getChoices()[choice]);
      if (!plan)
        return false;
      plans.push_back(*plan);
    }
    return true;
  }
  std::optional<HeadPlan> plan = readIndex(index);
  if (!plan)
    return false;
  plans.assign(heads, *plan);
  return true;
}

//===----------------------------------------------------------------------===//
// Specs
//===----------------------------------------------------------------------===//

template <typename OpTy>
static bool buildSpec(OpTy op, KernelSpec &spec, std::string &error) {
  std::optional<DType> dtype = dtypeOf(op.getQ().getType());
  if (!dtype)
    dtype = dtypeOf(op.getO().getType());
  if (!dtype) {
    error = "attention of layer '" + op.getLayer().value_or("?").str() +
            "': the element type of its inputs is not float32, float16 or "
            "bfloat16";
    return false;
  }
  spec.dtype = *dtype;
  spec.qLayout = static_cast<Layout>(op.getQLayout());
  spec.kLayout = static_cast<Layout>(op.getKLayout());
  spec.vLayout = static_cast<Layout>(op.getVLayout());
  spec.oLayout = static_cast<Layout>(op.getOLayout());
  spec.oRank = cast<RankedTensorType>(op.getO().getType()).getRank();
  spec.qHeads = op.getQHeads();
  spec.kvHeads = op.getKvHeads();
  spec.headDim = op.getHeadDim();
  spec.vHeadDim = op.getVHeadDim();
  spec.causal = op.getCausal();
  if (auto left = op.getWindowLeft())
    spec.windowLeft = *left;
  if (auto right = op.getWindowRight())
    spec.windowRight = *right;
  if (spec.causal)
    spec.windowRight = 0;
  spec.scale = op.getScale().convertToFloat();
  if (auto softcap = op.getSoftcap())
    spec.softcap = softcap->convertToFloat();
  spec.hasBias = static_cast<bool>(op.getBias());
  spec.hasKeyMask = static_cast<bool>(op.getKeyMask());
  spec.hasSink = static_cast<bool>(op.getSinks());
  spec.hasSegments = static_cast<bool>(op.getQSegment());
  spec.maskedRow = static_cast<MaskedRow>(op.getMaskedRow());
  spec.alignment = static_cast<Alignment>(op.getAlignment());
  spec.rotary = static_cast<Rotary>(op.getRotary());
  spec.rotaryDim = op.getRotaryDim();
  std::optional<APFloat> temperature = op.getContextTemperature(),
                         scale = op.getContextScale();
  if (op.getContextSlots() && temperature && scale) {
    spec.contextTemperature = temperature->convertToFloat();
    spec.contextScale = scale->convertToFloat();
  }
  return true;
}

/// Gives `spec` the name of an equal one, or adds it under a new one.
static void internSpec(KernelSpec &spec, std::vector<KernelSpec> &specs) {
  auto known = llvm::find_if(
      specs, [&](const KernelSpec &other) { return other.isSame(spec); });
  if (known != specs.end()) {
    spec.name = known->name;
    return;
  }
  spec.name = "prefill_attention_" + std::to_string(specs.size());
  specs.push_back(spec);
}

//===----------------------------------------------------------------------===//
// Rewriting
//===----------------------------------------------------------------------===//

/// The node that runs `kernel`; its inputs are the op's operands in the order
/// of prefill_attention_input, omitted ones absent, trailing ones left out.
template <typename OpTy>
static onnx::NodeOp createNode(OpBuilder &builder, OpTy op,
                               const KernelSpec &kernel, size_t site,
                               bool stats) {
  Value absent, modality;
  if constexpr (std::is_same_v<OpTy, SparseAttentionOp>)
    modality = readModality(op.getIndex());
  SmallVector<Value> inputs;
  for (Value operand : {op.getQ(),          op.getK(),
                        op.getV(),          op.getBias(),
                        op.getKeyMask(),    op.getKvLengths(),
                        op.getSinks(),      op.getQSegment(),
                        op.getKSegment(),   op.getQOffset(),
                        op.getCos(),        op.getSin(),
                        op.getQPositions(), op.getSegmentStarts(),
                        modality,           op.getPastK(),
                        op.getPastV(),      op.getCacheSlots(),
                        op.getScoreRows(),  op.getContextSlots(),
                        op.getKeptRows()}) {
    if (!operand && !absent)
      absent = onnx::createAbsent(builder, op.getLoc());
    inputs.push_back(operand ? operand : absent);
  }
  while (inputs.back() == absent)
    inputs.pop_back();
  if (absent && !llvm::is_contained(inputs, absent))
    absent.getDefiningOp()->erase();

  // Results in the order of prefill_attention_output; one that nothing uses has
  // no name in the model.
  Type unknown = onnx::UnknownType::get(builder.getContext());
  SmallVector<Type> results(PREFILL_OUT_COUNT, unknown);
  results[PREFILL_OUT_O] = op.getO().getType();
  size_t count = 1;
  if (op.getLse() && !op.getLse().use_empty()) {
    results[PREFILL_OUT_LSE] = op.getLse().getType();
    count = PREFILL_OUT_LSE + 1;
  }
  if (stats) {
    results[PREFILL_OUT_DENSITY] = RankedTensorType::get(
        {ShapedType::kDynamic, static_cast<int64_t>(op.getQHeads())},
        builder.getF32Type());
    count = PREFILL_OUT_DENSITY + 1;
  }
  if (op.getRotatedK() && !op.getRotatedK().use_empty()) {
    results[PREFILL_OUT_ROTATED_K] = op.getRotatedK().getType();
    count = PREFILL_OUT_ROTATED_K + 1;
  }
  if (op.getPresentK()) {
    results[PREFILL_OUT_PRESENT_K] = op.getPresentK().getType();
    results[PREFILL_OUT_PRESENT_V] = op.getPresentV().getType();
    count = PREFILL_OUT_PRESENT_V + 1;
  }
  if (op.getTokenScore() && !op.getTokenScore().use_empty()) {
    results[PREFILL_OUT_TOKEN_SCORE] = op.getTokenScore().getType();
    count = PREFILL_OUT_TOKEN_SCORE + 1;
  }
  if (op.getTokenPeak() && !op.getTokenPeak().use_empty()) {
    results[PREFILL_OUT_TOKEN_PEAK] = op.getTokenPeak().getType();
    count = PREFILL_OUT_TOKEN_PEAK + 1;
  }
  results.resize(count);
  auto node = onnx::NodeOp::create(
      builder, op.getLoc(), "Attention", "prefill.opt", inputs, results,
      {onnx::stringAttr(builder, "kernel", kernel.name),
       onnx::stringAttr(builder, "digest", llvm::utohexstr(kernel.digest())),
       onnx::stringAttr(builder, "site", std::to_string(site))});
  // The exporter names those that are used.
  SmallVector<StringRef> unnamed(results.size());
  node.setOutputNamesAttr(builder.getStrArrayAttr(unnamed));
  return node;
}

/// Removes index, select and score ops that nothing uses any more.
static void eraseDead(Value value) {
  Operation *op = value ? value.getDefiningOp() : nullptr;
  if (!op || !op->use_empty() || !isa<PrefillDialect>(op->getDialect()))
    return;
  SmallVector<Value> operands(op->getOperands());
  op->erase();
  for (Value operand : llvm::SetVector<Value>(operands.begin(), operands.end()))
    eraseDead(operand);
}

template <typename OpTy>
static bool outline(OpTy op, bool stats, OutlineResult &result,
                    SmallVectorImpl<Value> &densities, std::string &error) {
  KernelSpec spec;
  if (!buildSpec(op, spec, error))
    return false;
  Value index;
  if constexpr (std::is_same_v<OpTy, SparseAttentionOp>) {
    index = op.getIndex();
    if (!readPlans(index, op.getQHeads(), spec.heads)) {
      error = "attention of layer '" + op.getLayer().value_or("?").str() +
              "': its index is not one that kernels can build";
      return false;
    }
    if (auto below =
            op->template getAttrOfType<IntegerAttr>("prefill.dense_below"))
      spec.denseBelow = below.getInt();
  }
  internSpec(spec, result.kernels);
  result.attentions.push_back({op.getLayer().value_or("").str(),
                               op.getForm().value_or("").str(), spec.name});
  OpBuilder builder(op);
  onnx::NodeOp node =
      createNode(builder, op, spec, result.attentions.size(), stats);
  op.getO().replaceAllUsesWith(node.getResult(PREFILL_OUT_O));
  if (op.getLse() && !op.getLse().use_empty())
    op.getLse().replaceAllUsesWith(node.getResult(PREFILL_OUT_LSE));
  if (op.getRotatedK() && !op.getRotatedK().use_empty())
    op.getRotatedK().replaceAllUsesWith(node.getResult(PREFILL_OUT_ROTATED_K));
  if (op.getPresentK()) {
    op.getPresentK().replaceAllUsesWith(node.getResult(PREFILL_OUT_PRESENT_K));
    op.getPresentV().replaceAllUsesWith(node.getResult(PREFILL_OUT_PRESENT_V));
  }
  if (op.getTokenScore() && !op.getTokenScore().use_empty())
    op.getTokenScore().replaceAllUsesWith(
        node.getResult(PREFILL_OUT_TOKEN_SCORE));
  if (op.getTokenPeak() && !op.getTokenPeak().use_empty())
    op.getTokenPeak().replaceAllUsesWith(
        node.getResult(PREFILL_OUT_TOKEN_PEAK));
  if (stats)
    densities.push_back(node.getResult(PREFILL_OUT_DENSITY));
  op->erase();
  eraseDead(index);
  return true;
}

/// Adds the import of our own domain, once.
static void importDomain(ModuleOp module) {
  MLIRContext *context = module.getContext();
  SmallVector<Attribute> imports;
  if (auto known = module->getAttrOfType<ArrayAttr>("onnx.opset_imports"))
    imports.append(known.begin(), known.end());
  for (Attribute import : imports)
    if (auto opset = dyn_cast<onnx::OpsetAttr>(import);
        opset && opset.getDomainName() == "prefill.opt")
      return;
  imports.push_back(onnx::OpsetAttr::get(
      context, StringAttr::get(context, "prefill.opt"), 1));
  module->setAttr("onnx.opset_imports", ArrayAttr::get(context, imports));
}

bool prefill::outlineAttention(ModuleOp module, bool stats,
                               OutlineResult &result, std::string &error) {
  SmallVector<Operation *> ops;
  module.walk([&](Operation *op) {
    if (isa<AttentionOp, SparseAttentionOp>(op))
      ops.push_back(op);
  });
  if (ops.empty())
    return true;
  SmallVector<Value> densities;
  for (Operation *op : ops) {
    auto dense = dyn_cast<AttentionOp>(op);
    // Only the main graph's results can become outputs of the model.
    bool here = stats && isa<onnx::GraphOp>(op->getParentOp());
    if (dense ? !outline(dense, here, result, densities, error)
              : !outline(cast<SparseAttentionOp>(op), here, result, densities,
                         error))
      return false;
  }
  outlineRows(module);
  importDomain(module);
  if (densities.empty())
    return true;
  auto graph =
      densities.front().getDefiningOp()->getParentOfType<onnx::GraphOp>();
  auto ret = cast<onnx::ReturnOp>(graph.getBody().front().getTerminator());
  SmallVector<Attribute> names(ret.getOutputNames().begin(),
                               ret.getOutputNames().end());
  for (auto [i, density] : llvm::enumerate(densities)) {
    ret.getValuesMutable().append(density);
    names.push_back(StringAttr::get(module.getContext(),
                                    "prefill.density." + std::to_string(i)));
  }
  ret.setOutputNamesAttr(ArrayAttr::get(module.getContext(), names));
  return true;
}
