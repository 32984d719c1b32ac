//===- ONNXNode.cpp - Views on nodes and names ----------------------------===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#include "prefill/Dialect/ONNX/ONNX.h"

using namespace mlir;
using namespace prefill::onnx;

//===----------------------------------------------------------------------===//
// NodeOp
//===----------------------------------------------------------------------===//

void NodeOp::build(OpBuilder &builder, OperationState &state, StringRef opType,
                   StringRef domain, ValueRange inputs, TypeRange results,
                   ArrayRef<NamedAttribute> attrs) {
  Properties &properties = state.getOrAddProperties<Properties>();
  properties.op_type = builder.getStringAttr(opType);
  if (!domain.empty())
    properties.op_domain = builder.getStringAttr(domain);
  if (!attrs.empty())
    properties.attrs = ListAttr::get(builder.getContext(), attrs);
  state.addOperands(inputs);
  state.addTypes(results);
}

StringRef NodeOp::getDomain() {
  StringRef domain = getOpDomain().value_or("");
  return domain == "ai.onnx" ? "" : domain;
}

StringRef NodeOp::getNodeName() { return getLabel().value_or(""); }

bool NodeOp::is(StringRef opType, StringRef domain) {
  return getOpType() == opType && getDomain() == domain;
}

Value NodeOp::getInput(unsigned i) {
  if (i >= getNumOperands() || isAbsent(getOperand(i)))
    return {};
  return getOperand(i);
}

Value NodeOp::getOutput(unsigned i) {
  return i < getNumResults() ? getResult(i) : Value();
}

StringRef NodeOp::getOutputName(unsigned i) {
  ArrayAttr names = getOutputNamesAttr();
  return names && i < names.size() ? cast<StringAttr>(names[i]).getValue() : "";
}

Attribute NodeOp::getAttrOfName(StringRef name) {
  ListAttr attrs = getAttrsAttr();
  Attribute value = attrs ? attrs.find(name) : Attribute();
  return value ? unwrap(value) : Attribute();
}

void NodeOp::setAttrOfName(StringRef name, Attribute value) {
  SmallVector<NamedAttribute> entries;
  if (ListAttr attrs = getAttrsAttr())
    llvm::append_range(entries, attrs.getEntries());
  auto *it = llvm::find_if(
      entries, [&](NamedAttribute entry) { return entry.getName() == name; });
  if (it != entries.end())
    it->setValue(value);
  else
    entries.emplace_back(StringAttr::get(getContext(), name), value);
  setAttrsAttr(ListAttr::get(getContext(), entries));
}

void NodeOp::removeAttrOfName(StringRef name) {
  SmallVector<NamedAttribute> entries;
  if (ListAttr attrs = getAttrsAttr())
    for (NamedAttribute entry : attrs.getEntries())
      if (entry.getName() != name)
        entries.push_back(entry);
  setAttrsAttr(entries.empty() ? ListAttr()
                               : ListAttr::get(getContext(), entries));
}

int64_t NodeOp::getInt(StringRef name, int64_t otherwise) {
  auto attr = dyn_cast_or_null<IntegerAttr>(getAttrOfName(name));
  return attr ? attr.getValue().getSExtValue() : otherwise;
}

double NodeOp::getFloat(StringRef name, double otherwise) {
  auto attr = dyn_cast_or_null<FloatAttr>(getAttrOfName(name));
  return attr ? attr.getValueAsDouble() : otherwise;
}

StringRef NodeOp::getString(StringRef name, StringRef otherwise) {
  auto attr = dyn_cast_or_null<StringAttr>(getAttrOfName(name));
  return attr ? attr.getValue() : otherwise;
}

std::optional<ArrayRef<int64_t>> NodeOp::getInts(StringRef name) {
  auto attr = dyn_cast_or_null<DenseI64ArrayAttr>(getAttrOfName(name));
  return attr ? std::optional(attr.asArrayRef()) : std::nullopt;
}

std::optional<ArrayRef<float>> NodeOp::getFloats(StringRef name) {
  auto attr = dyn_cast_or_null<DenseF32ArrayAttr>(getAttrOfName(name));
  return attr ? std::optional(attr.asArrayRef()) : std::nullopt;
}

Region *NodeOp::getSubgraph(StringRef name) {
  auto attr = dyn_cast_or_null<SubgraphAttr>(getAttrOfName(name));
  return attr && attr.getRegion() < getNumRegions()
             ? &getOperation()->getRegion(attr.getRegion())
             : nullptr;
}

void NodeOp::getEffects(
    SmallVectorImpl<SideEffects::EffectInstance<MemoryEffects::Effect>>
        &effects) {
  // ONNX operators are functions of their inputs, so unused ones may go. What
  // an unknown domain's operators do is unknown (print, assert, ...).
  StringRef domain = getDomain();
  if (domain.empty() || domain == "com.microsoft" ||
      domain.starts_with("ai.onnx."))
    return;
  effects.emplace_back(MemoryEffects::Write::get());
}

//===----------------------------------------------------------------------===//
// Names and versions
//===----------------------------------------------------------------------===//

StringAttr prefill::onnx::getEntryName(Attribute entry) {
  if (auto info = dyn_cast_or_null<ValueInfoAttr>(entry))
    return info.getName();
  return dyn_cast_or_null<StringAttr>(entry);
}

/// The names of the arguments of `region`, the body of a graph, a function or
/// a subgraph.
static ArrayAttr getInputNames(Region *region) {
  Operation *parent = region->getParentOp();
  if (auto graph = dyn_cast_or_null<GraphOp>(parent))
    return graph.getInputs();
  if (auto function = dyn_cast_or_null<FunctionOp>(parent))
    return function.getInputs();
  auto node = dyn_cast_or_null<NodeOp>(parent);
  if (!node || !node.getAttrs())
    return {};
  auto find = [&](Attribute attr) -> ArrayAttr {
    auto subgraph = dyn_cast<SubgraphAttr>(unwrap(attr));
    return subgraph && subgraph.getRegion() == region->getRegionNumber()
               ? subgraph.getFacts().getAs<ArrayAttr>("inputs")
               : ArrayAttr();
  };
  for (NamedAttribute entry : node.getAttrs()->getEntries()) {
    Attribute value = unwrap(entry.getValue());
    if (ArrayAttr names = find(value))
      return names;
    if (auto list = dyn_cast<ArrayAttr>(value))
      for (Attribute element : list)
        if (ArrayAttr names = find(element))
          return names;
  }
  return {};
}

StringRef prefill::onnx::getValueName(Value value) {
  if (!value)
    return "";
  if (auto argument = dyn_cast<BlockArgument>(value)) {
    ArrayAttr names = getInputNames(argument.getOwner()->getParent());
    if (!names || argument.getArgNumber() >= names.size())
      return "";
    StringAttr name = getEntryName(names[argument.getArgNumber()]);
    return name ? name.getValue() : "";
  }
  auto result = cast<OpResult>(value);
  if (auto node = dyn_cast<NodeOp>(result.getOwner()))
    return node.getOutputName(result.getResultNumber());
  if (auto initializer = dyn_cast<InitializerOp>(result.getOwner()))
    return initializer.getName();
  return "";
}

bool prefill::onnx::isAbsent(Value value) {
  return value && value.getDefiningOp<AbsentOp>();
}

int64_t prefill::onnx::getOpsetVersion(Operation *op, StringRef domain) {
  auto find = [&](ArrayAttr imports) -> int64_t {
    bool isDefault = domain.empty() || domain == "ai.onnx";
    if (imports)
      for (Attribute entry : imports)
        if (auto opset = dyn_cast<OpsetAttr>(entry)) {
          StringRef name = opset.getDomainName();
          if (name == domain ||
              (isDefault && (name.empty() || name == "ai.onnx")))
            return opset.getVersion();
        }
    return 0;
  };
  for (; op; op = op->getParentOp()) {
    if (auto function = dyn_cast<FunctionOp>(op))
      if (int64_t version = find(function.getOpsetImportsAttr()))
        return version;
    if (auto imports = op->getAttrOfType<ArrayAttr>(ONNXDialect::kOpsetImports))
      return find(imports);
  }
  return 0;
}

GraphOp prefill::onnx::getMainGraph(ModuleOp module) {
  auto graphs = module.getOps<GraphOp>();
  return graphs.empty() ? GraphOp() : *graphs.begin();
}

FunctionOp prefill::onnx::getCallee(NodeOp node) {
  auto module = node->getParentOfType<ModuleOp>();
  if (!module)
    return {};
  for (FunctionOp function : module.getOps<FunctionOp>())
    if (function.getFunctionName() == node.getOpType() &&
        function.getFunctionDomain().value_or("") ==
            node.getOpDomain().value_or("") &&
        function.getFunctionOverload().value_or("") ==
            node.getOpOverload().value_or(""))
      return function;
  return {};
}

StringRef prefill::onnx::getModelDir(Operation *op) {
  for (; op; op = op->getParentOp())
    if (auto dir = op->getAttrOfType<StringAttr>(ONNXDialect::kModelDir))
      return dir.getValue();
  return "";
}

//===----------------------------------------------------------------------===//
// Building
//===----------------------------------------------------------------------===//

Value prefill::onnx::createAbsent(OpBuilder &builder, Location loc) {
  return AbsentOp::create(builder, loc, builder.getType<NoneType>());
}

Value prefill::onnx::createInitializer(OpBuilder &builder, Location loc,
                                       ElementsAttr elements, StringRef name) {
  return InitializerOp::create(builder, loc, elements.getShapedType(), name,
                               elements);
}

Value prefill::onnx::createInts(OpBuilder &builder, Location loc,
                                ArrayRef<int64_t> values, bool scalar) {
  SmallVector<int64_t> shape;
  if (!scalar)
    shape.push_back(values.size());
  auto type = RankedTensorType::get(shape, builder.getI64Type());
  return createInitializer(builder, loc, DenseElementsAttr::get(type, values));
}

NamedAttribute prefill::onnx::intAttr(Builder &b, StringRef name, int64_t v) {
  return b.getNamedAttr(
      name, b.getIntegerAttr(b.getIntegerType(64, /*isSigned=*/true), v));
}
NamedAttribute prefill::onnx::floatAttr(Builder &b, StringRef name, float v) {
  return b.getNamedAttr(name, b.getF32FloatAttr(v));
}
NamedAttribute prefill::onnx::stringAttr(Builder &b, StringRef name,
                                         StringRef v) {
  return b.getNamedAttr(name, b.getStringAttr(v));
}
NamedAttribute prefill::onnx::intsAttr(Builder &b, StringRef name,
                                       ArrayRef<int64_t> v) {
  return b.getNamedAttr(name, b.getDenseI64ArrayAttr(v));
}
