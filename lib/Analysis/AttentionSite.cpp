//===- AttentionSite.cpp - Attention found in a model ---------------------===//

#include "prefill/Analysis/AttentionSite.h"
#include "AttentionMatch.h"
#include "RotaryMatch.h"
#include "SoftmaxForm.h"

#include "mlir/IR/Builders.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"

using namespace mlir;
using namespace prefill;

LogicalResult AttentionSite::refuse(Operation *node, const Twine &reason,
                                    Value value) {
  if (refusal.empty()) {
    refusal = reason.str();
    refusalNode = node ? node : core;
    refusalValue = value;
  }
  return failure();
}

PlannedValue AttentionSite::planMany(StringRef opType,
                                     ArrayRef<PlannedValue> inputs,
                                     ArrayRef<Type> resultTypes,
                                     ArrayRef<NamedAttribute> attributes,
                                     StringRef domain) {
  PlannedNode node;
  node.opType = opType.str();
  node.domain = domain.str();
  node.inputs.assign(inputs.begin(), inputs.end());
  node.attributes.assign(attributes.begin(), attributes.end());
  node.resultTypes.assign(resultTypes.begin(), resultTypes.end());
  PlannedValue result;
  result.kind = PlannedValue::Kind::Node;
  result.node = nodes.size();
  nodes.push_back(std::move(node));
  return result;
}

PlannedValue AttentionSite::plan(StringRef opType,
                                 ArrayRef<PlannedValue> inputs, Type resultType,
                                 ArrayRef<NamedAttribute> attributes,
                                 StringRef domain) {
  return planMany(opType, inputs, {resultType}, attributes, domain);
}

PlannedValue AttentionSite::planConstant(ElementsAttr value) {
  Builder builder(value.getContext());
  return plan("Constant", {}, value.getType(),
              {builder.getNamedAttr("value", value)});
}

PlannedValue AttentionSite::planInts(MLIRContext *context,
                                     ArrayRef<int64_t> values) {
  auto type = RankedTensorType::get({static_cast<int64_t>(values.size())},
                                    IntegerType::get(context, 64));
  return planConstant(DenseElementsAttr::get(type, values));
}

std::string AttentionSite::maskText() const {
  SmallVector<std::string> parts;
  if (causal)
    parts.push_back(alignment == QueryAlignment::Start ? "causal from key 0"
                    : alignment == QueryAlignment::Operand
                        ? "causal from offset"
                        : "causal");
  if (windowLeft)
    parts.push_back("window " + std::to_string(*windowLeft) + " back");
  if (windowRight)
    parts.push_back("window " + std::to_string(*windowRight) + " ahead");
  if (keyMask)
    parts.push_back("key padding");
  if (kvLengths)
    parts.push_back("lengths");
  if (qSegment)
    parts.push_back("segments");
  if (bias)
    parts.push_back("bias");
  return parts.empty() ? "none" : llvm::join(parts, ", ");
}

//===----------------------------------------------------------------------===//
// Names
//===----------------------------------------------------------------------===//

std::string prefill::layerName(Operation *op) {
  auto node = dyn_cast_or_null<onnx::NodeOp>(op);
  if (!node)
    return "";
  // dynamo: "a: Class/a.b: Class/a.b.self_attn: Class/op: aten.op.default".
  if (ArrayAttr metadata = node.getMetadataAttr()) {
    for (size_t i = 0; i + 1 < metadata.size(); i += 2) {
      auto key = dyn_cast<StringAttr>(metadata[i]);
      auto value = dyn_cast<StringAttr>(metadata[i + 1]);
      if (!key || !value || key.getValue() != "namespace")
        continue;
      SmallVector<StringRef> parts;
      value.getValue().split(parts, '/');
      for (StringRef part : llvm::reverse(parts)) {
        auto [path, kind] = part.split(": ");
        if (!path.empty() && !kind.trim().starts_with("aten.") &&
            path.contains('.'))
          return path.str();
      }
    }
  }
  // TorchScript: "/model/layers.0/self_attn/Softmax".
  StringRef name = node.getNodeName();
  if (!name.starts_with("/"))
    return "";
  std::string path = name.drop_front().rsplit('/').first.str();
  if (name.drop_front().count('/') == 0)
    return "";
  std::replace(path.begin(), path.end(), '/', '.');
  return path;
}

//===----------------------------------------------------------------------===//
// All sites of a module
//===----------------------------------------------------------------------===//

/// Whether `node` looks like an attention's core without any analysis: for
/// reports about places that are not analysed.
static bool looksLikeAttention(onnx::NodeOp node) {
  if (node.is("Attention") || node.is("Attention", "com.microsoft") ||
      node.is("GroupQueryAttention", "com.microsoft") ||
      node.is("MultiHeadAttention", "com.microsoft"))
    return true;
  if (node.getNumResults() != 1 || !(node.is("Softmax") || node.is("Exp")))
    return false;
  Operation *through = nullptr;
  return reachesProduct(node.getResult(0), through) &&
         (node.is("Softmax") || comesFromProduct(node.getInput(0)));
}

/// Attention of integers, as quantizers of whole graphs write it: listed, and
/// left as it is.
static bool matchQuantizedSoftmax(onnx::NodeOp node, AttentionSite &site) {
  Operation *through = nullptr;
  if (!node.is("QLinearSoftmax", "com.microsoft") ||
      node.getNumResults() != 1 || !reachesProduct(node.getResult(0), through))
    return false;
  (void)site.refuse(node, "its scores and probabilities are rounded to 8 bits",
                    node.getResult(0));
  return true;
}

/// Notes the types of operands that the model does not declare: kernels need to
/// know what they read.
static void noteTypes(AttentionSite &site, SymbolicAnalysis &analysis) {
  for (const PlannedValue &x :
       {site.q, site.k, site.v, site.bias, site.keyMask, site.kvLengths,
        site.sinks, site.qSegment, site.kSegment, site.qOffset, site.cos,
        site.sin}) {
    if (x.kind != PlannedValue::Kind::Existing ||
        isa<RankedTensorType>(x.value.getType()) ||
        llvm::any_of(site.types,
                     [&](auto &known) { return known.first == x.value; }))
      continue;
    if (Type inferred = analysis.inferredType(x.value))
      site.types.emplace_back(x.value, inferred);
  }
}

/// Whether `block` is the graph's body, or of a branch of an If in it.
static bool isBodyOrBranch(Block *block, onnx::GraphOp graph) {
  while (block->getParentOp() != graph) {
    auto node = dyn_cast<onnx::NodeOp>(block->getParentOp());
    if (!node || !node.is("If") || block->getNumArguments() != 0)
      return false;
    block = node->getBlock();
  }
  return true;
}

static void findInGraph(onnx::GraphOp graph,
                        SmallVectorImpl<AttentionSite> &sites) {
  // Most graphs that are no transformers need no analysis at all. Each branch
  // has one of its own: what is assumed of valid executions of one says nothing
  // about the other.
  llvm::DenseMap<Block *, std::unique_ptr<SymbolicAnalysis>> analyses;
  Block *body = &graph.getBody().front();
  // walk is post-order: the model's order, but for subgraphs before their node.
  graph.walk([&](onnx::NodeOp node) {
    Block *block = node->getBlock();
    bool candidate = block == body
                         ? !node.getDomain().empty() || node.is("Softmax") ||
                               node.is("Exp") || node.is("Attention")
                         : looksLikeAttention(node);
    if (!candidate)
      return;
    AttentionSite site;
    site.core = node;
    site.layer = layerName(node);
    if (!isBodyOrBranch(block, graph)) {
      (void)site.refuse(node, "it is inside a subgraph that is no branch of an "
                              "If");
      sites.push_back(std::move(site));
      return;
    }
    auto &analysis = analyses[block];
    if (!analysis)
      analysis = std::make_unique<SymbolicAnalysis>(
          graph, block == body ? nullptr : block);
    bool found = matchOpForm(node, *analysis, site) ||
                 matchSoftmaxForm(node, *analysis, site) ||
                 matchQuantizedSoftmax(node, site);
    if (!found)
      return;
    if (!site.refused()) {
      absorbRotation(*analysis, site);
      noteTypes(site, *analysis);
      // Sizes of what others read, too, may be as assumed in this branch only.
      for (auto &[value, type] : site.types)
        if (auto known = dyn_cast<RankedTensorType>(type);
            known && value.getParentBlock() != block)
          type = RankedTensorType::get(
              SmallVector<int64_t>(known.getRank(), ShapedType::kDynamic),
              known.getElementType());
    }
    sites.push_back(std::move(site));
  });
}

SmallVector<AttentionSite, 0> prefill::findAttention(ModuleOp module) {
  SmallVector<AttentionSite, 0> sites;
  for (Operation &op : *module.getBody()) {
    if (auto graph = dyn_cast<onnx::GraphOp>(op)) {
      findInGraph(graph, sites);
    } else if (isa<onnx::FunctionOp>(op)) {
      op.walk([&](onnx::NodeOp node) {
        if (!looksLikeAttention(node))
          return;
        AttentionSite site;
        site.core = node;
        site.layer = layerName(node);
        (void)site.refuse(node, "it is inside a model-local function");
        sites.push_back(std::move(site));
      });
    }
  }
  return sites;
}

SiteReport prefill::reportSite(const AttentionSite &site) {
  SiteReport r;
  r.layer = site.layer;
  r.raised = !site.refused();
  if (auto node = dyn_cast_or_null<onnx::NodeOp>(site.core)) {
    r.node = node.getNodeName().str();
    if (r.node.empty())
      r.node = node.getOutputName(0).str();
    r.form = site.form.empty() ? node.getOpType().str() : site.form;
  }
  r.qHeads = site.qHeads;
  r.kvHeads = site.kvHeads;
  r.headDim = site.headDim;
  if (r.raised) {
    r.mask = site.maskText();
    return r;
  }
  r.reason = site.refusal;
  auto at = dyn_cast_or_null<onnx::NodeOp>(site.refusalNode);
  if (at && at != site.core)
    r.reason =
        (at.getOpType() + " " +
         (at.getNodeName().empty() ? at.getOutputName(0) : at.getNodeName()) +
         ": " + r.reason)
            .str();
  if (site.refusalValue)
    if (StringRef name = onnx::getValueName(site.refusalValue); !name.empty())
      r.reason += " (value '" + name.str() + "')";
  return r;
}

SmallVector<SiteReport> prefill::inspectAttention(ModuleOp module) {
  return llvm::map_to_vector(findAttention(module), reportSite);
}
