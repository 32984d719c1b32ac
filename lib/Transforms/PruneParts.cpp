//===- PruneParts.cpp - What passes that prune rows share -----------------===//

#include "PrunePlan.h"

#include "mlir/Interfaces/SideEffectInterfaces.h"
#include "llvm/ADT/SetVector.h"

#include <cmath>

using namespace mlir;
using namespace prefill;

std::string prefill::nameOf(Operation *op) {
  if (auto attention = dyn_cast_or_null<AttentionOp>(op))
    return "attention '" + attention.getLayer().value_or("").str() + "': ";
  auto node = dyn_cast_or_null<onnx::NodeOp>(op);
  if (!node)
    return "";
  StringRef name =
      node.getNodeName().empty() ? node.getOutputName(0) : node.getNodeName();
  return (node.getOpType() + " '" + name + "': ").str();
}

/// The operations of the graph that its outputs need, or that do more than
/// giving results.
static llvm::DenseSet<Operation *> findNeeded(onnx::GraphOp graph) {
  llvm::DenseSet<Operation *> needed;
  Block &body = graph.getBody().front();
  SmallVector<Operation *> work;
  for (Operation &op : body)
    if (!wouldOpBeTriviallyDead(&op))
      work.push_back(&op);
  while (!work.empty()) {
    Operation *op = work.pop_back_val();
    if (!needed.insert(op).second)
      continue;
    // Also what is read inside of its subgraphs.
    op->walk([&](Operation *inner) {
      for (Value operand : inner->getOperands())
        if (Operation *from = operand.getDefiningOp())
          if (Operation *here = body.findAncestorOpInBlock(*from))
            work.push_back(here);
    });
  }
  return needed;
}

SmallVector<AttentionOp> prefill::getLiveAttentions(onnx::GraphOp graph) {
  llvm::DenseSet<Operation *> needed = findNeeded(graph);
  SmallVector<AttentionOp> live;
  for (AttentionOp op : graph.getBody().front().getOps<AttentionOp>())
    if (needed.contains(op))
      live.push_back(op);
  return live;
}

void prefill::eraseUnread(onnx::GraphOp graph) {
  for (Operation &op :
       llvm::make_early_inc_range(llvm::reverse(graph.getBody().front())))
    if (isOpTriviallyDead(&op))
      op.erase();
}

LogicalResult
prefill::runOnMainGraph(ModuleOp module,
                        function_ref<std::string(onnx::GraphOp)> work) {
  onnx::GraphOp graph = onnx::getMainGraph(module);
  if (!graph)
    return success();
  std::string error = work(graph);
  if (error.empty())
    return success();
  return emitError(UnknownLoc::get(module.getContext())) << error;
}

std::string prefill::checkNewInputs(onnx::GraphOp graph,
                                    ArrayRef<StringRef> added) {
  for (Attribute entry : graph.getInputs()) {
    StringRef name = onnx::getEntryName(entry).getValue();
    if (llvm::is_contained(added, name))
      return ("the model has an input '" + name + "' already").str();
  }
  return "";
}

void prefill::appendOutputs(onnx::GraphOp graph,
                            ArrayRef<std::pair<std::string, Value>> outputs) {
  auto ret = cast<onnx::ReturnOp>(graph.getBody().front().getTerminator());
  Builder builder(graph.getContext());
  SmallVector<Attribute> names(ret.getOutputNames().begin(),
                               ret.getOutputNames().end());
  for (const auto &[name, value] : outputs) {
    ret.getValuesMutable().append(value);
    names.push_back(builder.getStringAttr(name));
  }
  ret.setOutputNamesAttr(builder.getArrayAttr(names));
}

void prefill::eraseDeadShapes(const PrunePlan &plan) {
  llvm::SetVector<Operation *> dead;
  for (onnx::NodeOp shape : plan.shapes)
    dead.insert(shape);
  while (!dead.empty()) {
    Operation *op = dead.pop_back_val();
    if (!op->use_empty())
      continue;
    for (Value operand : op->getOperands())
      if (auto from = operand.getDefiningOp<onnx::NodeOp>())
        dead.insert(from);
    op->erase();
  }
}

std::string prefill::findClassToken(const PruneSpec &spec,
                                    std::optional<int64_t> rows, bool &cls) {
  cls = spec.anchor == PruneSpec::Anchor::Cls;
  if (spec.anchor != PruneSpec::Anchor::Auto)
    return "";
  auto isSquare = [](int64_t number) {
    auto root = static_cast<int64_t>(std::llround(std::sqrt(number)));
    return root * root == number;
  };
  cls = rows && isSquare(*rows - 1);
  if (cls || (rows && isSquare(*rows)))
    return "";
  return "whether the first of " + (rows ? std::to_string(*rows) : "its") +
         " rows is a class token cannot be told; say anchor=cls or anchor=mean";
}

FlowScoreOp prefill::createFlowScore(OpBuilder &builder, AttentionOp op,
                                     Value previous, bool cls) {
  Type scores =
      onnx::getTensorType({ShapedType::kDynamic, ShapedType::kDynamic},
                          builder.getF32Type(), {"", ""});
  return FlowScoreOp::create(
      builder, op.getLoc(), scores, scores, op.getQ(), op.getK(), op.getV(),
      previous, /*columns=*/Value(), /*alive=*/Value(), /*cos=*/Value(),
      /*sin=*/Value(), op.getQHeadsAttr(), op.getKvHeadsAttr(),
      op.getHeadDimAttr(), op.getScaleAttr(), builder.getF32FloatAttr(1),
      cls ? builder.getUnitAttr() : UnitAttr(),
      RotaryKindAttr::get(builder.getContext(), RotaryKind::None),
      builder.getI64IntegerAttr(0), op.getQLayoutAttr(), op.getKLayoutAttr(),
      op.getVLayoutAttr());
}
