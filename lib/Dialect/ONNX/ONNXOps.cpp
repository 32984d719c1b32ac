//===- ONNXOps.cpp - Graphs, functions, initializers ----------------------===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#include "mlir/IR/OpImplementation.h"
#include "prefill/Dialect/ONNX/ONNX.h"
#include "llvm/ADT/StringExtras.h"

using namespace mlir;
using namespace prefill::onnx;

#define GET_OP_CLASSES
#include "prefill/Dialect/ONNX/ONNXOps.cpp.inc"

//===----------------------------------------------------------------------===//
// Graphs and functions
//===----------------------------------------------------------------------===//

/// Makes an ONNX name a name for printed SSA values: "/model/MatMul_output_0"
/// would otherwise be printed with its slashes in hexadecimal.
static std::string toAsmName(StringRef name) {
  std::string result;
  for (char c : name.ltrim("/"))
    result += llvm::isAlnum(c) || c == '_' || c == '.' || c == '-' ? c : '_';
  if (!result.empty() && llvm::isDigit(result[0]))
    result.insert(result.begin(), 'v');
  return result;
}

static void nameArguments(Region &region, ArrayAttr inputs,
                          OpAsmSetValueNameFn setName) {
  if (region.empty() || !inputs)
    return;
  for (auto [argument, entry] : llvm::zip(region.getArguments(), inputs))
    if (StringAttr name = getEntryName(entry))
      if (!name.getValue().empty())
        setName(argument, toAsmName(name.getValue()));
}

void GraphOp::getAsmBlockArgumentNames(Region &region,
                                       OpAsmSetValueNameFn setName) {
  nameArguments(region, getInputs(), setName);
}

void FunctionOp::getAsmBlockArgumentNames(Region &region,
                                          OpAsmSetValueNameFn setName) {
  nameArguments(region, getInputs(), setName);
}

void NodeOp::getAsmBlockArgumentNames(Region &region,
                                      OpAsmSetValueNameFn setName) {
  if (!getAttrs())
    return;
  for (Value argument : region.getArguments())
    if (StringRef name = getValueName(argument); !name.empty())
      setName(argument, toAsmName(name));
}

void NodeOp::getAsmResultNames(OpAsmSetValueNameFn setName) {
  for (auto [i, result] : llvm::enumerate(getResults()))
    if (StringRef name = getOutputName(i); !name.empty())
      setName(result, toAsmName(name));
}

void InitializerOp::getAsmResultNames(OpAsmSetValueNameFn setName) {
  if (!getName().empty())
    setName(getResult(), toAsmName(getName()));
}

/// Parses `@symbol(%argument: type, ...) attributes {...} {body}`.
static ParseResult parseGraph(OpAsmParser &parser, OperationState &state) {
  StringAttr symbol;
  SmallVector<OpAsmParser::Argument> arguments;
  if (parser.parseSymbolName(symbol, SymbolTable::getSymbolAttrName(),
                             state.attributes) ||
      parser.parseArgumentList(arguments, OpAsmParser::Delimiter::Paren,
                               /*allowType=*/true) ||
      parser.parseOptionalAttrDictWithKeyword(state.attributes))
    return failure();
  return parser.parseRegion(*state.addRegion(), arguments);
}

static void printGraph(OpAsmPrinter &printer, Operation *op) {
  printer << ' ';
  printer.printSymbolName(SymbolTable::getSymbolName(op).getValue());
  printer << '(';
  Region &body = op->getRegion(0);
  llvm::interleaveComma(body.getArguments(), printer, [&](BlockArgument arg) {
    printer.printRegionArgument(arg);
  });
  printer << ')';
  printer.printOptionalAttrDictWithKeyword(op->getAttrs(),
                                           SymbolTable::getSymbolAttrName());
  printer << ' ';
  printer.printRegion(body, /*printEntryBlockArgs=*/false);
}

ParseResult GraphOp::parse(OpAsmParser &parser, OperationState &state) {
  return parseGraph(parser, state);
}
void GraphOp::print(OpAsmPrinter &printer) { printGraph(printer, *this); }

ParseResult FunctionOp::parse(OpAsmParser &parser, OperationState &state) {
  return parseGraph(parser, state);
}
void FunctionOp::print(OpAsmPrinter &printer) { printGraph(printer, *this); }

/// Checks what graphs, functions and subgraphs share: names for the arguments,
/// metadata in pairs, `onnx.return` at the end.
static LogicalResult verifyBody(Operation *op, Region &body, ArrayAttr inputs,
                                ArrayAttr metadata) {
  if (!inputs || inputs.size() != body.getNumArguments())
    return op->emitOpError("has ")
           << body.getNumArguments() << " block arguments, but "
           << (inputs ? inputs.size() : 0) << " names in 'inputs'";
  if (metadata && metadata.size() % 2)
    return op->emitOpError("has a key without a value in 'metadata'");
  if (body.front().empty() || !isa<ReturnOp>(body.front().back()))
    return op->emitOpError("must end with onnx.return");
  return success();
}

LogicalResult GraphOp::verify() {
  return verifyBody(*this, getBody(), getInputs(), getMetadataAttr());
}

LogicalResult FunctionOp::verify() {
  return verifyBody(*this, getBody(), getInputs(), getMetadataAttr());
}

LogicalResult NodeOp::verify() {
  if (ArrayAttr names = getOutputNamesAttr();
      names && names.size() != getNumResults())
    return emitOpError("has ") << getNumResults() << " results, but "
                               << names.size() << " names in 'output_names'";
  if (ArrayAttr metadata = getMetadataAttr(); metadata && metadata.size() % 2)
    return emitOpError("has a key without a value in 'metadata'");
  // Each region belongs to exactly one attribute.
  SmallVector<bool> used(getNumRegions(), false);
  auto check = [&](Attribute attr) -> LogicalResult {
    auto subgraph = dyn_cast<SubgraphAttr>(unwrap(attr));
    if (!subgraph)
      return success();
    unsigned index = subgraph.getRegion();
    if (index >= used.size() || used[index])
      return emitOpError("has an attribute for region ")
             << index << ", which "
             << (index >= used.size() ? "does not exist"
                                      : "another attribute has");
    used[index] = true;
    DictionaryAttr facts = subgraph.getFacts();
    return verifyBody(*this, getRegion(index), facts.getAs<ArrayAttr>("inputs"),
                      facts.getAs<ArrayAttr>("metadata"));
  };
  if (getAttrs())
    for (NamedAttribute entry : getAttrs()->getEntries()) {
      Attribute value = unwrap(entry.getValue());
      if (auto list = dyn_cast<ArrayAttr>(value)) {
        for (Attribute element : list)
          if (failed(check(element)))
            return failure();
      } else if (failed(check(value))) {
        return failure();
      }
    }
  for (auto [i, seen] : llvm::enumerate(used))
    if (!seen)
      return emitOpError("has no attribute for region ") << i;
  return success();
}

//===----------------------------------------------------------------------===//
// Constants and outputs
//===----------------------------------------------------------------------===//

/// Checks that `value` can be the tensor of an initializer of type `type`.
static LogicalResult verifyTensor(Operation *op, Attribute value, Type type) {
  if (isa<SparseTensorAttr>(value))
    return success();
  Attribute inner = unwrap(value);
  if (!isa<ElementsAttr, WeightAttr>(inner))
    return op->emitOpError("needs elements, #onnx.weight, #onnx.tensor or "
                           "#onnx.sparse_tensor as its value");
  if (auto tensor = dyn_cast<TensorAttr>(value);
      tensor && tensor.getType() != type)
    return op->emitOpError("has a value of type ")
           << tensor.getType() << ", but type " << type;
  auto elements = dyn_cast<ElementsAttr>(inner);
  if (elements && elements.getShapedType() != type)
    return op->emitOpError("has elements of type ")
           << elements.getShapedType() << ", but type " << type;
  if (auto weight = dyn_cast<WeightAttr>(inner)) {
    std::optional<int64_t> bytes = getTensorBytes(type);
    if (!bytes || *bytes != weight.getSize())
      return op->emitOpError("has ")
             << weight.getSize() << " bytes, which is not the size of " << type;
  }
  return success();
}

LogicalResult InitializerOp::verify() {
  return verifyTensor(*this, getValue(), getResult().getType());
}

LogicalResult DefaultOp::verify() {
  auto argument = dyn_cast<BlockArgument>(getInput());
  if (!argument || argument.getOwner() != (*this)->getBlock())
    return emitOpError("must be of an input of its own graph");
  // The declared type of an input may be less precise than its default.
  Type type = getValueType().value_or(getInput().getType());
  return verifyTensor(*this, getValue(), type);
}

LogicalResult ReturnOp::verify() {
  if (getOutputNames().size() != getNumOperands())
    return emitOpError("has ")
           << getNumOperands() << " operands, but " << getOutputNames().size()
           << " names in 'output_names'";
  return success();
}
