//===- Protection.cpp - The rows that pruning never drops -----------------===//

#include "Protection.h"

using namespace mlir;
using namespace prefill;

Value prefill::addRowsInput(onnx::GraphOp graph, Value tokens, StringRef name) {
  Builder builder(graph.getContext());
  SmallVector<int64_t> sizes(2, ShapedType::kDynamic);
  SmallVector<StringRef> names(2);
  if (auto type = dyn_cast<RankedTensorType>(tokens.getType())) {
    sizes.assign(type.getShape().begin(), type.getShape().begin() + 2);
    names = {onnx::getDimName(type, 0), onnx::getDimName(type, 1)};
  }
  Value input = graph.getBody().front().addArgument(
      onnx::getTensorType(sizes, builder.getI1Type(), names), graph.getLoc());
  SmallVector<Attribute> inputs(graph.getInputs().begin(),
                                graph.getInputs().end());
  inputs.push_back(builder.getStringAttr(name));
  graph.setInputsAttr(builder.getArrayAttr(inputs));
  return input;
}

Value prefill::createProtection(OpBuilder &builder, Location loc, Value ids,
                                const ProtectSpec &spec,
                                const ProtectOperands &operands) {
  auto flat = [&](ArrayRef<std::pair<int64_t, int64_t>> ranges) {
    SmallVector<int64_t> numbers;
    for (auto [low, high] : ranges)
      numbers.append({low, high});
    return builder.getDenseI64ArrayAttr(numbers);
  };
  return ProtectRowsOp::create(
      builder, loc,
      onnx::getTensorType({ShapedType::kDynamic, ShapedType::kDynamic},
                          builder.getI1Type()),
      ids, operands.given, operands.alive, operands.starts, operands.wanted,
      operands.only, operands.parts, builder.getI64IntegerAttr(spec.bos),
      builder.getI64IntegerAttr(spec.last), flat(spec.ids), flat(spec.rows));
}
