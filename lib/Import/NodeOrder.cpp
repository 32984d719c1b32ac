//===- NodeOrder.cpp - Nodes in an order in which they can run ------------===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#include "prefill/Import/ProtoCodec.h"
#include "llvm/ADT/STLFunctionalExtras.h"
#include "llvm/ADT/StringMap.h"
#include "llvm/ADT/StringSet.h"

#include <queue>

using namespace prefill;
using llvm::StringRef;
using Nodes = google::protobuf::RepeatedPtrField<::onnx::NodeProto>;

/// Calls `fn` with each graph in `node`'s attributes.
template <typename Node, typename Fn>
static void forEachSubgraph(Node &node, Fn fn) {
  for (int i = 0; i < node.attribute_size(); ++i) {
    auto &attribute = node.attribute(i);
    if (attribute.type() == ::onnx::AttributeProto::GRAPH)
      fn(attribute.g());
    for (const ::onnx::GraphProto &graph : attribute.graphs())
      fn(graph);
  }
}

/// Calls `fn` with the names from outside that `node` reads.
static void forEachRead(const ::onnx::NodeProto &node,
                        llvm::function_ref<void(StringRef)> fn) {
  for (const std::string &input : node.input())
    fn(input);
  llvm::SmallVector<const ::onnx::GraphProto *> graphs;
  auto add = [&](const ::onnx::GraphProto &graph) { graphs.push_back(&graph); };
  forEachSubgraph(node, add);
  llvm::StringSet<> read, made;
  for (size_t k = 0; k < graphs.size(); ++k) {
    const ::onnx::GraphProto &graph = *graphs[k];
    for (const auto &input : graph.input())
      made.insert(input.name());
    for (const auto &initializer : graph.initializer())
      made.insert(initializer.name());
    for (const auto &output : graph.output())
      read.insert(output.name());
    for (const ::onnx::NodeProto &inner : graph.node()) {
      for (const std::string &input : inner.input())
        read.insert(input);
      for (const std::string &output : inner.output())
        made.insert(output);
      forEachSubgraph(inner, add);
    }
  }
  for (const auto &name : read)
    if (!made.contains(name.getKey()))
      fn(name.getKey());
}

void prefill::sortNodes(Nodes &nodes) {
  llvm::StringMap<int> producers;
  for (int i = 0; i < nodes.size(); ++i)
    for (const std::string &output : nodes[i].output())
      if (!output.empty())
        producers.try_emplace(output, i);
  std::vector<std::vector<int>> readers(nodes.size());
  std::vector<int> missing(nodes.size(), 0);
  bool sorted = true;
  for (int i = 0; i < nodes.size(); ++i)
    forEachRead(nodes[i], [&](StringRef name) {
      auto producer = producers.find(name);
      if (producer == producers.end())
        return;
      readers[producer->second].push_back(i);
      ++missing[i];
      sorted &= producer->second < i;
    });
  if (sorted)
    return;
  // The first of those that can run, each time.
  std::priority_queue<int, std::vector<int>, std::greater<int>> ready;
  for (int i = 0; i < nodes.size(); ++i)
    if (missing[i] == 0)
      ready.push(i);
  std::vector<int> order;
  while (!ready.empty()) {
    order.push_back(ready.top());
    ready.pop();
    for (int reader : readers[order.back()])
      if (--missing[reader] == 0)
        ready.push(reader);
  }
  if (static_cast<int>(order.size()) != nodes.size())
    return;
  Nodes result;
  result.Reserve(nodes.size());
  for (int i : order)
    result.Add()->Swap(nodes.Mutable(i));
  nodes.Swap(&result);
}

static void sortAll(Nodes &nodes) {
  sortNodes(nodes);
  for (::onnx::NodeProto &node : nodes)
    for (::onnx::AttributeProto &attribute : *node.mutable_attribute()) {
      if (attribute.type() == ::onnx::AttributeProto::GRAPH)
        sortAll(*attribute.mutable_g()->mutable_node());
      for (::onnx::GraphProto &graph : *attribute.mutable_graphs())
        sortAll(*graph.mutable_node());
    }
}

void prefill::sortNodes(::onnx::ModelProto &model) {
  if (model.has_graph())
    sortAll(*model.mutable_graph()->mutable_node());
  for (::onnx::FunctionProto &function : *model.mutable_functions())
    sortAll(*function.mutable_node());
}
