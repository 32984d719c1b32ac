//===- GraphExport.cpp - From regions to graphs ---------------------------===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#include "GraphExport.h"

using namespace mlir;
using namespace prefill;
using namespace prefill::onnx;

bool GraphExporter::fail(Operation *op, const Twine &message) {
  if (!error.empty())
    return false;
  if (auto node = dyn_cast_or_null<NodeOp>(op))
    error = ("node '" + node.getNodeName() + "' (" + node.getOpType() + ") " +
             message)
                .str();
  else
    error = message.str();
  return false;
}

/// Parses the bytes of attribute `name` of `facts` into `proto`.
static bool parseExtra(Attribute extra, google::protobuf::Message &proto) {
  auto bytes = dyn_cast_or_null<StringAttr>(extra);
  return !bytes || proto.ParseFromString(bytes.str());
}

//===----------------------------------------------------------------------===//
// Nodes
//===----------------------------------------------------------------------===//

bool GraphExporter::exportNode(NodeOp node, ::onnx::NodeProto &proto) {
  if (!parseExtra(node.getExtraAttr(), proto))
    return fail(node, "has damaged extra bytes");
  for (Value input : node.getInputs())
    proto.add_input(names.get(input).str());
  for (Value output : node.getOutputs())
    proto.add_output(names.get(output).str());
  proto.set_op_type(node.getOpType().str());
  if (auto domain = node.getOpDomain())
    proto.set_domain(domain->str());
  if (auto overload = node.getOpOverload())
    proto.set_overload(overload->str());
  if (auto label = node.getLabel())
    proto.set_name(label->str());
  if (auto text = node.getDocString())
    proto.set_doc_string(text->str());
  exportMetadata(node.getMetadataAttr(), *proto.mutable_metadata_props());
  auto subgraph = [&](SubgraphAttr attr, ::onnx::GraphProto &graph) {
    if (attr.getRegion() >= node->getNumRegions() ||
        node->getRegion(attr.getRegion()).empty())
      return fail(node, "has a graph attribute without a region");
    return exportGraph(node->getRegion(attr.getRegion()), attr.getFacts(),
                       graph, nullptr);
  };
  if (ListAttr attrs = node.getAttrsAttr())
    for (NamedAttribute entry : attrs.getEntries()) {
      std::string problem;
      if (!exportAttribute(entry.getName(), entry.getValue(),
                           *proto.add_attribute(), subgraph, problem))
        return fail(node, "attribute '" + entry.getName().getValue() + "' " +
                              problem);
    }
  return true;
}

void GraphExporter::addIdentities(
    ReturnOp op, google::protobuf::RepeatedPtrField<::onnx::NodeProto> &nodes) {
  llvm::StringSet<> made;
  for (unsigned i = 0; i < op.getNumOperands(); ++i) {
    StringRef name = names.getOutputName(op, i);
    if (!names.needsIdentity(op, i) || !made.insert(name).second)
      continue;
    ::onnx::NodeProto &node = *nodes.Add();
    node.set_op_type("Identity");
    node.add_input(names.get(op.getOperand(i)).str());
    node.add_output(name.str());
  }
}

//===----------------------------------------------------------------------===//
// Graphs
//===----------------------------------------------------------------------===//

bool GraphExporter::exportInitializer(Attribute value, Type type,
                                      StringRef name, ::onnx::GraphProto &proto,
                                      ModelParts *parts) {
  if (auto sparse = dyn_cast<SparseTensorAttr>(value)) {
    ::onnx::SparseTensorProto &tensor = *proto.add_sparse_initializer();
    if (!tensor.ParseFromString(sparse.getBytes().str()))
      return fail(nullptr, "sparse initializer '" + name + "' is damaged");
    if (tensor.values().name() != name)
      tensor.mutable_values()->set_name(name.str());
    return true;
  }
  std::string problem;
  ArrayRef<char> lent;
  ::onnx::TensorProto tensor;
  if (!exportTensor(value, type, tensor, parts ? &lent : nullptr, problem))
    return fail(nullptr, "initializer '" + name + "' " + problem);
  tensor.set_name(name.str());
  if (parts)
    parts->initializers.push_back({std::move(tensor), lent});
  else
    *proto.add_initializer() = std::move(tensor);
  return true;
}

llvm::StringMap<Value> GraphExporter::getNamedValues(Region &region) {
  llvm::StringMap<Value> values;
  Block &block = region.front();
  for (Value argument : block.getArguments())
    values[names.get(argument)] = argument;
  for (Operation &op : block)
    for (Value result : op.getResults())
      values[names.get(result)] = result;
  values.erase("");
  return values;
}

template <typename Infos>
bool GraphExporter::exportInfos(ArrayAttr entries,
                                llvm::function_ref<Value(StringRef)> lookup,
                                Infos &infos) {
  if (!entries)
    return true;
  for (Attribute entry : entries) {
    StringAttr name = getEntryName(entry);
    if (!name)
      return fail(nullptr, "'value_info' has an entry that is no name");
    Value value = lookup(name.getValue());
    auto verbatim = dyn_cast<ValueInfoAttr>(entry);
    // A value that a pass removed takes its declaration with it.
    if (!value && (!verbatim || verbatim.getBound()))
      continue;
    if (!exportValueInfo(entry, name.getValue(),
                         value ? value.getType() : Type(), *infos.Add(), types))
      return fail(nullptr, "value '" + name.getValue() +
                               "' has a type that ONNX does not have");
  }
  return true;
}

/// Whether `op` stands for nothing in an ONNX graph by itself.
static bool isSilent(Operation &op) { return isa<AbsentOp, ReturnOp>(op); }

bool GraphExporter::exportGraph(Region &region, DictionaryAttr facts,
                                ::onnx::GraphProto &proto, ModelParts *parts) {
  if (!parseExtra(facts.get("extra"), proto))
    return fail(nullptr, "a graph has damaged extra bytes");
  Block &block = region.front();
  auto inputs = facts.getAs<ArrayAttr>("inputs");
  auto terminator =
      block.empty() ? ReturnOp() : dyn_cast<ReturnOp>(block.back());
  if (!terminator || !inputs || inputs.size() != block.getNumArguments())
    return fail(nullptr, "a graph has no onnx.return or no names of inputs");
  for (auto [entry, argument] : llvm::zip(inputs, block.getArguments()))
    if (!exportValueInfo(entry, names.get(argument), argument.getType(),
                         *proto.add_input(), types))
      return fail(nullptr, "input '" + names.get(argument) +
                               "' has a type that ONNX does not have");
  for (Operation &op : block) {
    if (auto node = dyn_cast<NodeOp>(op)) {
      if (!exportNode(node, *proto.add_node()))
        return false;
    } else if (auto initializer = dyn_cast<InitializerOp>(op)) {
      if (!exportInitializer(initializer.getValue(),
                             initializer.getResult().getType(),
                             names.get(initializer.getResult()), proto, parts))
        return false;
    } else if (auto value = dyn_cast<DefaultOp>(op)) {
      if (!exportInitializer(
              value.getValue(),
              value.getValueType().value_or(value.getInput().getType()),
              names.get(value.getInput()), proto, parts))
        return false;
    } else if (!isSilent(op)) {
      return fail(&op, "op '" + op.getName().getStringRef() +
                           "' is not an ONNX operator and cannot be exported");
    }
  }
  addIdentities(terminator, *proto.mutable_node());
  for (auto [i, entry] : llvm::enumerate(terminator.getOutputNames())) {
    Value value = terminator.getOperand(i);
    if (!exportValueInfo(entry, names.getOutputName(terminator, i),
                         value.getType(), *proto.add_output(), types))
      return fail(nullptr, "output '" + names.getOutputName(terminator, i) +
                               "' has a type that ONNX does not have");
  }
  if (auto infos = facts.getAs<ArrayAttr>("value_info")) {
    llvm::StringMap<Value> values = getNamedValues(region);
    if (!exportInfos(
            infos, [&](StringRef name) { return values.lookup(name); },
            *proto.mutable_value_info()))
      return false;
  }
  if (auto name = facts.getAs<StringAttr>("graph_name"))
    proto.set_name(name.str());
  if (auto text = facts.getAs<StringAttr>("doc_string"))
    proto.set_doc_string(text.str());
  exportMetadata(facts.getAs<ArrayAttr>("metadata"),
                 *proto.mutable_metadata_props());
  return true;
}

bool GraphExporter::exportMainGraph(GraphOp graph, ModelParts &parts) {
  return exportGraph(graph.getBody(), graph->getAttrDictionary(),
                     *parts.model.mutable_graph(), &parts);
}

bool GraphExporter::exportFunction(FunctionOp function,
                                   ::onnx::FunctionProto &proto) {
  if (!parseExtra(function.getExtraAttr(), proto))
    return fail(nullptr, "function '" + function.getFunctionName() +
                             "' has damaged extra bytes");
  Block &block = function.getBody().front();
  for (Value argument : block.getArguments())
    proto.add_input(names.get(argument).str());
  for (Operation &op : block) {
    auto node = dyn_cast<NodeOp>(op);
    if (!node && !isSilent(op))
      return fail(&op, "op '" + op.getName().getStringRef() +
                           "' cannot be in an ONNX function");
    if (node && !exportNode(node, *proto.add_node()))
      return false;
  }
  auto terminator = cast<ReturnOp>(block.back());
  addIdentities(terminator, *proto.mutable_node());
  for (unsigned i = 0; i < terminator.getNumOperands(); ++i)
    proto.add_output(names.getOutputName(terminator, i).str());
  if (ArrayAttr infos = function.getValueInfoAttr()) {
    llvm::StringMap<Value> values = getNamedValues(function.getBody());
    if (!exportInfos(
            infos, [&](StringRef name) { return values.lookup(name); },
            *proto.mutable_value_info()))
      return false;
  }
  proto.set_name(function.getFunctionName().str());
  if (auto domain = function.getFunctionDomain())
    proto.set_domain(domain->str());
  if (auto overload = function.getFunctionOverload())
    proto.set_overload(overload->str());
  if (auto text = function.getDocString())
    proto.set_doc_string(text->str());
  if (ArrayAttr parameters = function.getParametersAttr())
    for (Attribute parameter : parameters)
      proto.add_attribute(cast<StringAttr>(parameter).str());
  if (ArrayAttr opsets = function.getOpsetImportsAttr())
    exportOpsets(opsets, *proto.mutable_opset_import());
  exportMetadata(function.getMetadataAttr(), *proto.mutable_metadata_props());
  return true;
}
