//===- GraphImport.cpp - From graphs to regions ---------------------------===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#include "GraphImport.h"

using namespace mlir;
using namespace prefill;
using namespace prefill::onnx;

/// More subgraphs in one node than anyone has; looking for the one of a region
/// goes through all of them.
static constexpr int kMaxSubgraphs = 256;

/// The symbol of the main graph.
static constexpr StringLiteral kMainSymbol = "main";

bool GraphImporter::fail(const Twine &message) {
  if (!error.empty())
    return false;
  for (const std::string &place : where)
    error += place + ": ";
  error += message.str();
  return false;
}

/// How messages call a node.
static std::string describe(const ::onnx::NodeProto &node, int index) {
  std::string op = node.op_type();
  if (!node.domain().empty())
    op = node.domain() + "." + op;
  std::string name = node.name().empty() ? "#" + std::to_string(index)
                                         : "'" + node.name() + "'";
  return "node " + name + " (" + op + ")";
}

//===----------------------------------------------------------------------===//
// Names
//===----------------------------------------------------------------------===//

Value GraphImporter::Scope::lookup(StringRef name) const {
  for (const Scope *scope = this; scope; scope = scope->parent)
    if (Value value = scope->values.lookup(name))
      return value;
  return {};
}

bool GraphImporter::define(StringRef name, Value value, Scope &scope,
                           const char *what) {
  if (scope.values.try_emplace(name, value).second)
    return true;
  return fail(Twine(what) + " '" + name +
              "' has the name of an earlier value; every value needs a name "
              "of its own");
}

bool GraphImporter::failMissing(const Nodes &nodes, int index, StringRef name) {
  std::string node = describe(nodes[index], index);
  llvm::StringMap<int> producers;
  for (int i = 0; i < nodes.size(); ++i)
    for (const std::string &output : nodes[i].output())
      if (!output.empty())
        producers.try_emplace(output, i);
  auto producer = producers.find(name);
  if (producer == producers.end())
    return fail(node + ": input '" + name +
                "' is not an input, an initializer or an output of a node; "
                "the model is incomplete");
  // Does what makes the value need this node?
  SmallVector<int> pending{producer->second};
  std::vector<bool> seen(nodes.size(), false);
  while (!pending.empty()) {
    int at = pending.pop_back_val();
    if (at == index)
      return fail(node + ": input '" + name +
                  "' depends on the node's own output; an ONNX graph must not "
                  "have cycles");
    if (seen[at])
      continue;
    seen[at] = true;
    for (const std::string &input : nodes[at].input())
      if (auto it = producers.find(input); it != producers.end())
        pending.push_back(it->second);
  }
  return fail(node + ": input '" + name + "' is made by a later node, " +
              describe(nodes[producer->second], producer->second) +
              "; the nodes must be sorted topologically");
}

//===----------------------------------------------------------------------===//
// Declared values
//===----------------------------------------------------------------------===//

GraphImporter::Declared GraphImporter::getDeclared(const Infos &infos,
                                                   const Infos &outputs) {
  Declared declared;
  bool exact;
  for (const Infos *list : {&outputs, &infos})
    for (const ::onnx::ValueInfoProto &info : *list) {
      Type type = types.import(info.type(), exact);
      if (!isa<UnknownType>(type))
        declared.try_emplace(info.name(), type);
    }
  return declared;
}

ArrayAttr GraphImporter::importValueInfos(const Infos &infos,
                                          const Scope &scope) {
  SmallVector<Attribute> entries;
  for (const ::onnx::ValueInfoProto &info : infos) {
    Value value = scope.values.lookup(info.name());
    entries.push_back(importValueInfo(info, value ? value.getType() : Type(),
                                      value != nullptr, types, context));
  }
  return entries.empty() ? ArrayAttr() : builder.getArrayAttr(entries);
}

bool GraphImporter::importInputs(const Infos &inputs, Region &region,
                                 Scope &scope, NamedAttrList &facts) {
  Block &block = region.emplaceBlock();
  SmallVector<Attribute> entries;
  bool exact;
  for (const ::onnx::ValueInfoProto &info : inputs) {
    if (info.name().empty())
      return fail("graph input #" + Twine(entries.size()) + " has no name");
    Type type = types.import(info.type(), exact);
    Value argument = block.addArgument(type, builder.getUnknownLoc());
    if (!define(info.name(), argument, scope, "graph input"))
      return false;
    entries.push_back(importValueInfo(info, type, true, types, context));
  }
  facts.set("inputs", builder.getArrayAttr(entries));
  return true;
}

void GraphImporter::addMetadata(
    google::protobuf::RepeatedPtrField<::onnx::StringStringEntryProto>
        &metadata,
    NamedAttrList &facts) {
  if (ArrayAttr attr = importMetadata(context, metadata)) {
    facts.set("metadata", attr);
    metadata.Clear();
  }
}

Value GraphImporter::getAbsent(Block *block) {
  // One a block, before everything else, so that it dominates its uses.
  if (!block->empty())
    if (auto absent = dyn_cast<AbsentOp>(block->front()))
      return absent;
  OpBuilder::InsertionGuard guard(builder);
  builder.setInsertionPointToStart(block);
  return createAbsent(builder, builder.getUnknownLoc());
}

//===----------------------------------------------------------------------===//
// Initializers
//===----------------------------------------------------------------------===//

bool GraphImporter::importInitializer(::onnx::TensorProto &proto,
                                      std::optional<ArrayRef<char>> raw,
                                      Scope &scope) {
  std::string name = proto.name(), problem;
  if (name.empty())
    return fail("an initializer has no name");
  ImportedTensor tensor = importTensor(context, proto, raw, owner,
                                       /*nameElsewhere=*/true, check, problem);
  if (!tensor.value)
    return fail("initializer '" + name + "' " + problem);
  Location loc = NameLoc::get(builder.getStringAttr(name));
  // The default of a graph input.
  auto argument = dyn_cast_or_null<BlockArgument>(scope.values.lookup(name));
  if (argument && argument.getOwner() == builder.getInsertionBlock()) {
    for (Operation *user : argument.getUsers())
      if (isa<DefaultOp>(user))
        return fail("initializer '" + name + "' is there twice");
    DefaultOp::create(builder, loc, argument, tensor.value,
                      argument.getType() == tensor.type
                          ? TypeAttr()
                          : TypeAttr::get(tensor.type));
    return true;
  }
  auto op =
      InitializerOp::create(builder, loc, tensor.type, name, tensor.value);
  return define(name, op, scope, "initializer");
}

bool GraphImporter::importSparseInitializer(::onnx::SparseTensorProto &proto,
                                            Scope &scope) {
  std::string name = proto.values().name();
  if (name.empty())
    return fail("a sparse initializer has no name");
  Type element = importElementType(context, proto.values().data_type());
  if (!element)
    return fail("sparse initializer '" + name + "' has data type " +
                Twine(proto.values().data_type()) +
                ", which this version does not know");
  SmallVector<int64_t> shape;
  int64_t elements = 1;
  for (int64_t size : proto.dims()) {
    if (size < 0 || (size > 0 && llvm::MulOverflow(elements, size, elements)))
      return fail("sparse initializer '" + name +
                  "' has dimensions that no tensor can have");
    shape.push_back(size);
  }
  Location loc = NameLoc::get(builder.getStringAttr(name));
  Type type = SparseType::get(context, RankedTensorType::get(shape, element));
  auto op = InitializerOp::create(
      builder, loc, type, name,
      SparseTensorAttr::get(context, toBytes(context, proto)));
  return define(name, op, scope, "sparse initializer");
}

//===----------------------------------------------------------------------===//
// Nodes
//===----------------------------------------------------------------------===//

bool GraphImporter::importAttributes(::onnx::NodeProto &proto,
                                     OperationState &state, const Scope &scope,
                                     Attribute &list) {
  SmallVector<NamedAttribute> entries;
  llvm::StringSet<> names;
  for (::onnx::AttributeProto &attribute : *proto.mutable_attribute()) {
    const std::string &name = attribute.name();
    if (name.empty())
      return fail("an attribute has no name");
    if (!names.insert(name).second)
      return fail("attribute '" + name + "' is there twice");
    auto subgraph = [&](::onnx::GraphProto &graph) -> Attribute {
      if (state.regions.size() >= kMaxSubgraphs) {
        fail("more than " + Twine(kMaxSubgraphs) + " subgraphs");
        return {};
      }
      unsigned index = state.regions.size();
      where.push_back("attribute '" + name + "'");
      NamedAttrList facts;
      OpBuilder::InsertionGuard guard(builder);
      if (!importGraph(graph, {}, *state.addRegion(), &scope, facts))
        return {};
      where.pop_back();
      return SubgraphAttr::get(context, index, facts.getDictionary(context));
    };
    std::string problem;
    Attribute value =
        importAttribute(context, attribute, types, subgraph, check, problem);
    if (!value)
      return fail("attribute '" + name + "' " + problem);
    entries.emplace_back(builder.getStringAttr(name), value);
  }
  list = entries.empty() ? ListAttr() : ListAttr::get(context, entries);
  return true;
}

bool GraphImporter::importNode(Nodes &nodes, int index, Scope &scope,
                               const Declared &declared) {
  ::onnx::NodeProto &proto = nodes[index];
  if (proto.op_type().empty())
    return fail("node #" + Twine(index) + " '" + proto.name() +
                "' has no op_type");
  StringRef label = !proto.name().empty() || proto.output().empty()
                        ? StringRef(proto.name())
                        : StringRef(proto.output(0));
  Location loc = label.empty() ? Location(builder.getUnknownLoc())
                               : NameLoc::get(builder.getStringAttr(label));
  OperationState state(loc, NodeOp::getOperationName());
  auto &properties = state.getOrAddProperties<NodeOp::Properties>();
  properties.op_type = builder.getStringAttr(proto.op_type());

  Block *block = builder.getInsertionBlock();
  for (const std::string &name : proto.input()) {
    Value value = name.empty() ? getAbsent(block) : scope.lookup(name);
    if (!value)
      return failMissing(nodes, index, name);
    state.operands.push_back(value);
  }
  SmallVector<Attribute> outputs;
  for (const std::string &name : proto.output()) {
    Type type = name.empty() ? Type() : declared.lookup(name);
    state.types.push_back(type ? type : UnknownType::get(context));
    outputs.push_back(builder.getStringAttr(name));
  }
  properties.output_names = builder.getArrayAttr(outputs);
  proto.clear_input();
  std::vector<std::string> outputNames(proto.output().begin(),
                                       proto.output().end());

  where.push_back(describe(proto, index));
  Attribute attrs;
  if (!importAttributes(proto, state, scope, attrs))
    return false;
  properties.attrs = cast_or_null<ListAttr>(attrs);
  proto.clear_attribute();

  auto take = [&](bool has, const std::string &text) {
    return has ? builder.getStringAttr(text) : StringAttr();
  };
  properties.op_domain = take(proto.has_domain(), proto.domain());
  properties.op_overload = take(proto.has_overload(), proto.overload());
  properties.label = take(proto.has_name(), proto.name());
  properties.doc_string = take(proto.has_doc_string(), proto.doc_string());
  properties.metadata = importMetadata(context, proto.metadata_props());
  if (properties.metadata)
    proto.clear_metadata_props();
  proto.clear_output();
  proto.clear_op_type();
  proto.clear_domain();
  proto.clear_overload();
  proto.clear_name();
  proto.clear_doc_string();
  if (proto.ByteSizeLong() != 0)
    properties.extra = toBytes(context, proto);

  Operation *op = builder.create(state);
  for (auto [result, name] : llvm::zip(op->getResults(), outputNames))
    if (!name.empty() && !define(name, result, scope, "output"))
      return false;
  where.pop_back();
  return true;
}

bool GraphImporter::importNodes(Nodes &nodes, Scope &scope,
                                const Declared &declared) {
  sortNodes(nodes);
  for (int i = 0; i < nodes.size(); ++i)
    if (!importNode(nodes, i, scope, declared))
      return false;
  return true;
}

//===----------------------------------------------------------------------===//
// Graphs and functions
//===----------------------------------------------------------------------===//

bool GraphImporter::importGraph(::onnx::GraphProto &proto,
                                ArrayRef<ArrayRef<char>> split, Region &region,
                                const Scope *parent, NamedAttrList &facts) {
  Scope scope{parent, {}};
  if (!importInputs(proto.input(), region, scope, facts))
    return false;
  Block &block = region.front();
  builder.setInsertionPointToEnd(&block);

  for (ArrayRef<char> bytes : split) {
    ::onnx::TensorProto tensor;
    std::optional<ArrayRef<char>> raw;
    if (!readInitializer(bytes, tensor, raw))
      return fail("an initializer is damaged; export or download the model "
                  "again");
    if (!importInitializer(tensor, raw, scope))
      return false;
  }
  for (::onnx::TensorProto &tensor : *proto.mutable_initializer())
    if (!importInitializer(tensor, std::nullopt, scope))
      return false;
  for (::onnx::SparseTensorProto &tensor : *proto.mutable_sparse_initializer())
    if (!importSparseInitializer(tensor, scope))
      return false;

  Declared declared = getDeclared(proto.value_info(), proto.output());
  if (!importNodes(*proto.mutable_node(), scope, declared))
    return false;

  SmallVector<Value> results;
  SmallVector<Attribute> names;
  for (const ::onnx::ValueInfoProto &info : proto.output()) {
    Value value = scope.lookup(info.name());
    if (!value)
      return fail("graph output '" + Twine(info.name()) +
                  "' is not made by any node; the model is incomplete");
    results.push_back(value);
    names.push_back(
        importValueInfo(info, value.getType(), true, types, context));
  }
  ReturnOp::create(builder, builder.getUnknownLoc(), results,
                   builder.getArrayAttr(names));

  if (ArrayAttr infos = importValueInfos(proto.value_info(), scope))
    facts.set("value_info", infos);
  if (proto.has_name())
    facts.set("graph_name", builder.getStringAttr(proto.name()));
  if (proto.has_doc_string())
    facts.set("doc_string", builder.getStringAttr(proto.doc_string()));
  addMetadata(*proto.mutable_metadata_props(), facts);
  proto.clear_input();
  proto.clear_initializer();
  proto.clear_sparse_initializer();
  proto.clear_node();
  proto.clear_output();
  proto.clear_value_info();
  proto.clear_name();
  proto.clear_doc_string();
  if (proto.ByteSizeLong() != 0)
    facts.set("extra", toBytes(context, proto));
  return true;
}

ArrayAttr GraphImporter::importOpsets(
    const google::protobuf::RepeatedPtrField<::onnx::OperatorSetIdProto>
        &imports) {
  SmallVector<Attribute> opsets;
  for (const ::onnx::OperatorSetIdProto &import : imports) {
    if (!import.has_version() || !import.unknown_fields().empty()) {
      fail("the opset import of domain '" + Twine(import.domain()) +
           (import.has_version()
                ? "' has fields that this version does not know"
                : "' has no version"));
      return {};
    }
    opsets.push_back(OpsetAttr::get(context,
                                    import.has_domain()
                                        ? builder.getStringAttr(import.domain())
                                        : StringAttr(),
                                    import.version()));
  }
  return builder.getArrayAttr(opsets);
}

bool GraphImporter::importMainGraph(SplitModel &model, ModuleOp module) {
  NamedAttrList facts;
  OperationState state(builder.getUnknownLoc(), GraphOp::getOperationName());
  Region *region = state.addRegion();
  if (!importGraph(*model.model.mutable_graph(), model.initializers, *region,
                   nullptr, facts))
    return false;
  state.addAttributes(facts);
  state.addAttribute(SymbolTable::getSymbolAttrName(),
                     builder.getStringAttr(kMainSymbol));
  symbols.insert(kMainSymbol);
  builder.setInsertionPointToEnd(module.getBody());
  builder.create(state);
  return true;
}

bool GraphImporter::importFunction(::onnx::FunctionProto &proto,
                                   ModuleOp module) {
  std::string symbol = proto.domain() + "." + proto.name();
  if (!proto.overload().empty())
    symbol += "." + proto.overload();
  if (proto.name().empty())
    return fail("a function has no name");
  where.push_back("function '" + symbol + "'");

  OperationState state(builder.getUnknownLoc(), FunctionOp::getOperationName());
  Block &block = state.addRegion()->emplaceBlock();
  Scope scope{nullptr, {}};
  Declared declared = getDeclared(proto.value_info(), {});
  auto strings = [&](const auto &list) {
    SmallVector<Attribute> attrs;
    for (const std::string &text : list)
      attrs.push_back(builder.getStringAttr(text));
    return builder.getArrayAttr(attrs);
  };
  for (const std::string &name : proto.input()) {
    Type type = declared.lookup(name);
    Value argument = block.addArgument(type ? type : UnknownType::get(context),
                                       builder.getUnknownLoc());
    if (!name.empty() && !define(name, argument, scope, "input"))
      return false;
  }
  state.addAttribute("inputs", strings(proto.input()));
  builder.setInsertionPointToEnd(&block);
  if (!importNodes(*proto.mutable_node(), scope, declared))
    return false;
  SmallVector<Value> results;
  for (const std::string &name : proto.output()) {
    Value value = scope.lookup(name);
    if (!value)
      return fail("output '" + name + "' is not made by any node");
    results.push_back(value);
  }
  ReturnOp::create(builder, builder.getUnknownLoc(), results,
                   strings(proto.output()));

  NamedAttrList facts;
  if (ArrayAttr infos = importValueInfos(proto.value_info(), scope))
    facts.set("value_info", infos);
  facts.set("function_name", builder.getStringAttr(proto.name()));
  if (proto.has_domain())
    facts.set("function_domain", builder.getStringAttr(proto.domain()));
  if (proto.has_overload())
    facts.set("function_overload", builder.getStringAttr(proto.overload()));
  if (proto.has_doc_string())
    facts.set("doc_string", builder.getStringAttr(proto.doc_string()));
  if (proto.attribute_size() > 0)
    facts.set("parameters", strings(proto.attribute()));
  if (proto.opset_import_size() > 0) {
    ArrayAttr opsets = importOpsets(proto.opset_import());
    if (!opsets)
      return false;
    facts.set("opset_imports", opsets);
  }
  addMetadata(*proto.mutable_metadata_props(), facts);
  proto.clear_input();
  proto.clear_output();
  proto.clear_node();
  proto.clear_value_info();
  proto.clear_name();
  proto.clear_domain();
  proto.clear_overload();
  proto.clear_doc_string();
  proto.clear_attribute();
  proto.clear_opset_import();
  if (proto.ByteSizeLong() != 0)
    facts.set("extra", toBytes(context, proto));

  // "a.b" of domain "c" and "b" of domain "c.a" are different functions.
  std::string unique = symbol;
  for (int i = 1; !symbols.insert(unique).second; ++i)
    unique = symbol + "#" + std::to_string(i);
  facts.set(SymbolTable::getSymbolAttrName(), builder.getStringAttr(unique));
  state.addAttributes(facts);
  builder.setInsertionPointToEnd(module.getBody());
  builder.create(state);
  where.pop_back();
  return true;
}
