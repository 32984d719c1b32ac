//===- Naming.cpp - Names for values --------------------------------------===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#include "Naming.h"
#include "mlir/Transforms/RegionUtils.h"

using namespace mlir;
using namespace prefill;
using namespace prefill::onnx;

ValueNames::ValueNames(ModuleOp module) {
  collect(module);
  for (Operation &op : *module.getBody())
    if (isa<GraphOp, FunctionOp>(op) && !op.getRegion(0).empty())
      assign(op.getRegion(0));
}

void ValueNames::collect(ModuleOp module) {
  auto addAll = [&](ArrayAttr entries) {
    if (entries)
      for (Attribute entry : entries)
        if (StringAttr name = getEntryName(entry))
          known.insert(name.getValue());
  };
  // Declared names count, even those of nothing: the declaration would be of
  // the fresh value.
  AttrTypeWalker subgraphs;
  subgraphs.addWalk([&](SubgraphAttr subgraph) {
    addAll(subgraph.getFacts().getAs<ArrayAttr>("value_info"));
  });
  module.walk([&](Operation *op) {
    if (auto node = dyn_cast<NodeOp>(op)) {
      addAll(node.getOutputNamesAttr());
      if (node.getNumRegions() != 0 && node.getAttrs())
        subgraphs.walk(*node.getAttrs());
    }
    if (auto initializer = dyn_cast<InitializerOp>(op))
      known.insert(initializer.getName());
    else if (auto terminator = dyn_cast<ReturnOp>(op))
      addAll(terminator.getOutputNames());
    else if (auto graph = dyn_cast<GraphOp>(op))
      addAll(graph.getValueInfoAttr());
    else if (auto function = dyn_cast<FunctionOp>(op))
      addAll(function.getValueInfoAttr());
    for (Region &region : op->getRegions())
      for (Value argument : region.getArguments())
        known.insert(getValueName(argument));
  });
}

StringRef ValueNames::makeFresh(StringRef stem) {
  unsigned &counter = counters[stem];
  while (true) {
    auto [it, isNew] = known.insert((stem + "_" + Twine(counter++)).str());
    if (isNew)
      return it->getKey();
  }
}

void ValueNames::claim(Value value, StringRef own, StringRef stem,
                       llvm::StringMap<Value> &claimed) {
  if (!own.empty()) {
    auto [it, isNew] = claimed.try_emplace(own, value);
    if (isNew || it->second == value) {
      names[value] = known.insert(own).first->getKey();
      return;
    }
  }
  names[value] = makeFresh(stem);
}

void ValueNames::nameOutputs(Block &block, llvm::StringMap<Value> &claimed) {
  auto op = dyn_cast_or_null<ReturnOp>(block.empty() ? nullptr : &block.back());
  if (!op)
    return;
  // Outputs keep their names, so they come before everything that a pass may
  // have given the same name: first the values that have the output's name
  // already, then those of nodes, which can take it. What is left will be an
  // Identity, under the output's name.
  enum { HasName, TakesName, NeedsIdentity };
  for (int step : {HasName, TakesName, NeedsIdentity})
    for (auto [value, entry] : llvm::zip(op.getValues(), op.getOutputNames())) {
      StringAttr name = getEntryName(entry);
      if (!name || name.empty())
        continue;
      Operation *maker = value.getDefiningOp();
      bool isLocal = maker && maker->getBlock() == &block;
      bool fits = step == HasName ? getValueName(value) == name.getValue()
                                  : isa_and_nonnull<NodeOp>(maker);
      if (step == NeedsIdentity)
        claimed.try_emplace(name.getValue(), Value());
      else if (isLocal && fits && !names.contains(value) &&
               claimed.try_emplace(name.getValue(), value).second)
        names[value] = known.insert(name.getValue()).first->getKey();
    }
}

void ValueNames::assign(Region &region) {
  llvm::StringMap<Value> claimed;
  // What a subgraph uses of the graphs around it must not be hidden.
  llvm::SetVector<Value> captured;
  getUsedValuesDefinedAbove(region, captured);
  for (Value value : captured)
    if (StringRef name = names.lookup(value); !name.empty())
      claimed[name] = value;

  Block &block = region.front();
  // An input without a name, of a function, is one that nothing uses.
  for (BlockArgument argument : block.getArguments())
    if (StringRef own = getValueName(argument);
        !own.empty() || !argument.use_empty())
      claim(argument, own, "input", claimed);

  nameOutputs(block, claimed);
  for (Operation &op : block) {
    for (OpResult result : op.getResults()) {
      if (names.contains(result) || isAbsent(result))
        continue;
      StringRef own = getValueName(result);
      auto node = dyn_cast<NodeOp>(op);
      // "" is an omitted output, unless a pass made the node or uses it.
      if (node && own.empty() && node.getOutputNamesAttr() &&
          result.use_empty())
        continue;
      claim(result, own, node ? node.getOpType() : "constant", claimed);
    }
    for (Region &inner : op.getRegions())
      if (!inner.empty())
        assign(inner);
  }
}

StringRef ValueNames::getOutputName(ReturnOp op, unsigned index) const {
  StringAttr name = getEntryName(op.getOutputNames()[index]);
  return name && !name.empty() ? name.getValue() : get(op.getOperand(index));
}

bool ValueNames::needsIdentity(ReturnOp op, unsigned index) const {
  return getOutputName(op, index) != get(op.getOperand(index));
}
