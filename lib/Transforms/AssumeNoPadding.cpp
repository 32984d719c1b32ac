//===- AssumeNoPadding.cpp - Prompts without padding ----------------------===//
//
// Takes the input attention_mask [batch, tokens] for what it is without
// padding, ones, and removes it:
//
//   %m = onnx.node "Expand"(%one, %shape_of_input_ids)
//
// Raising then proves that attention is plainly causal, and packs and chunks
// need no mask. The caller promises it (-padding=none); a mask that is given
// all the same is an input that the model does not have.
//
//===----------------------------------------------------------------------===//

#include "prefill/Dialect/ONNX/ONNX.h"
#include "prefill/Transforms/Passes.h"

namespace prefill {
#define GEN_PASS_DEF_ASSUMENOPADDING
#include "prefill/Transforms/Passes.h.inc"
} // namespace prefill

using namespace mlir;
using namespace prefill;

namespace {
struct AssumeNoPaddingPass final
    : prefill::impl::AssumeNoPaddingBase<AssumeNoPaddingPass> {
  using Base::Base;

  void runOnOperation() override {
    onnx::GraphOp graph = onnx::getMainGraph(getOperation());
    if (!graph)
      return;
    std::string error = remove(graph);
    if (error.empty())
      return;
    emitError(UnknownLoc::get(&getContext())) << "-padding=none: " << error;
    signalPassFailure();
  }

private:
  /// Returns an error or "". A model without the input stays as it is.
  static std::string remove(onnx::GraphOp graph) {
    Block &body = graph.getBody().front();
    Value ids;
    std::optional<unsigned> mask;
    SmallVector<Attribute> names;
    for (auto [i, name] : llvm::enumerate(graph.getInputs())) {
      StringRef text = onnx::getEntryName(name).getValue();
      if (text == "attention_mask") {
        mask = i;
        continue;
      }
      names.push_back(name);
      if (text == "input_ids")
        ids = body.getArgument(i);
      else if (text.contains("past"))
        return ("the model has a KV cache ('" + text +
                "'): its attention_mask is longer than the prompt")
            .str();
    }
    if (!mask)
      return "";
    Value argument = body.getArgument(*mask);
    auto type = dyn_cast<RankedTensorType>(argument.getType());
    if (!ids || !type || type.getRank() != 2)
      return "the model has no inputs 'input_ids' and 'attention_mask' "
             "[batch, tokens]";
    Type element = type.getElementType();
    if (!element.isSignlessInteger(64) && !element.isSignlessInteger(32) &&
        !element.isSignlessInteger(1) && !element.isF32())
      return "attention_mask is not of type int64, int32, bool or float32";
    OpBuilder builder = OpBuilder::atBlockBegin(&body);
    Location loc = graph.getLoc();
    Type unknown = onnx::UnknownType::get(graph.getContext());
    auto node = [&](StringRef op, ValueRange inputs,
                    ArrayRef<NamedAttribute> attributes = {}) {
      return onnx::NodeOp::create(builder, loc, op, "", inputs, unknown,
                                  attributes)
          .getResult(0);
    };
    Value ones = node(
        "Expand", {onnx::createInts(builder, loc, {1}), node("Shape", ids)});
    if (!element.isInteger(64))
      ones = node("Cast", ones,
                  {onnx::intAttr(builder, "to",
                                 element.isInteger(32)  ? 6
                                 : element.isInteger(1) ? 9
                                                        : 1)});
    argument.replaceAllUsesWith(ones);
    body.eraseArgument(*mask);
    graph.setInputsAttr(builder.getArrayAttr(names));
    return "";
  }
};
} // namespace
