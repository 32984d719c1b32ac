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
// With -chunk the inputs past_key_values.* of a KV cache go too: an empty cache
// leaves what is concatenated to it. chunk-prompt then gives the model another
// one, which is written in place.
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

/// A dimension of `type`, also where its name is the number; -1 if neither.
static int64_t sizeOf(RankedTensorType type, unsigned axis) {
  if (!type.isDynamicDim(axis))
    return type.getDimSize(axis);
  int64_t size = -1;
  auto names = dyn_cast_or_null<onnx::DimsAttr>(type.getEncoding());
  if (!names || names.getNames()[axis].getValue().getAsInteger(10, size))
    return -1;
  return size;
}

/// What an op reads of a cache that is an input: it is put before new rows.
static bool isAppend(OpOperand &use) {
  auto node = dyn_cast<onnx::NodeOp>(use.getOwner());
  if (!node || !node.is("Concat") || node.getInputs().size() != 2)
    return false;
  int64_t axis = node.getInt("axis", 0);
  return use.getOperandNumber() == 0 && (axis == 2 || axis == -2);
}

/// Whether `past` [batch, heads, rows, d] is put before new rows, and otherwise
/// asked for its shape.
static bool isCache(Value past) {
  auto type = dyn_cast<RankedTensorType>(past.getType());
  if (!type || type.getRank() != 4 || sizeOf(type, 1) < 0 ||
      sizeOf(type, 3) < 0 || !llvm::any_of(past.getUses(), isAppend))
    return false;
  return llvm::all_of(past.getUses(), [](OpOperand &use) {
    auto node = dyn_cast<onnx::NodeOp>(use.getOwner());
    return isAppend(use) || (node && node.is("Shape"));
  });
}

/// Takes the cache `past` for [batch of ids, heads, 0, d].
static void makeEmpty(Value past, Value ids) {
  auto type = cast<RankedTensorType>(past.getType());
  const int64_t shape[] = {1, sizeOf(type, 1), 0, sizeOf(type, 3)};
  for (OpOperand &use : llvm::make_early_inc_range(past.getUses())) {
    auto node = cast<onnx::NodeOp>(use.getOwner());
    Value by;
    if (isAppend(use)) {
      by = node.getInput(1);
    } else {
      auto bound = [&](StringRef name, int64_t otherwise) {
        int64_t value = node.getInt(name, otherwise);
        return std::clamp<int64_t>(value < 0 ? value + 4 : value, 0, 4);
      };
      int64_t begin = bound("start", 0);
      int64_t count = std::max<int64_t>(bound("end", 4) - begin, 0);
      OpBuilder builder(node);
      Location loc = node.getLoc();
      if (begin == 0 && count) {
        Type unknown = onnx::UnknownType::get(node.getContext());
        Value all =
            onnx::NodeOp::create(builder, loc, "Shape", "", ids, unknown)
                .getResult(0);
        Value batch =
            onnx::NodeOp::create(builder, loc, "Slice", "",
                                 {all, onnx::createInts(builder, loc, {0}),
                                  onnx::createInts(builder, loc, {1})},
                                 unknown)
                .getResult(0);
        Value rest = onnx::createInts(
            builder, loc, ArrayRef<int64_t>(shape).slice(1, count - 1));
        by = onnx::NodeOp::create(builder, loc, "Concat", "", {batch, rest},
                                  unknown, {onnx::intAttr(builder, "axis", 0)})
                 .getResult(0);
      } else {
        by = onnx::createInts(builder, loc,
                              ArrayRef<int64_t>(shape).slice(begin, count));
      }
    }
    node->getResult(0).replaceAllUsesWith(by);
    node.erase();
  }
}

/// Puts ones in the place of `mask`; returns an error or "".
static std::string replaceMask(onnx::GraphOp graph, Value mask, Value ids) {
  auto type = dyn_cast<RankedTensorType>(mask.getType());
  if (!ids || !type || type.getRank() != 2)
    return "the model has no inputs 'input_ids' and 'attention_mask' "
           "[batch, tokens]";
  Type element = type.getElementType();
  if (!element.isSignlessInteger(64) && !element.isSignlessInteger(32) &&
      !element.isSignlessInteger(1) && !element.isF32())
    return "attention_mask is not of type int64, int32, bool or float32";
  OpBuilder builder = OpBuilder::atBlockBegin(&graph.getBody().front());
  Location loc = graph.getLoc();
  Type unknown = onnx::UnknownType::get(graph.getContext());
  auto node = [&](StringRef op, ValueRange inputs,
                  ArrayRef<NamedAttribute> attributes = {}) {
    return onnx::NodeOp::create(builder, loc, op, "", inputs, unknown,
                                attributes)
        .getResult(0);
  };
  Value one = onnx::createInts(builder, loc, {1});
  Value ones = node("Expand", {one, node("Shape", ids)});
  if (!element.isInteger(64))
    ones = node("Cast", ones,
                {onnx::intAttr(builder, "to",
                               element.isInteger(32)  ? 6
                               : element.isInteger(1) ? 9
                                                      : 1)});
  mask.replaceAllUsesWith(ones);
  return "";
}

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
  /// Returns an error or "". A model without such inputs stays as it is.
  std::string remove(onnx::GraphOp graph) {
    Block &body = graph.getBody().front();
    Value ids, mask;
    SmallVector<unsigned> gone;
    SmallVector<Attribute> names;
    for (auto [i, name] : llvm::enumerate(graph.getInputs())) {
      StringRef text = onnx::getEntryName(name).getValue();
      Value argument = body.getArgument(i);
      if (text == "attention_mask") {
        mask = argument;
      } else if (text.contains("past")) {
        if (!dropCache)
          return ("the model has a KV cache ('" + text +
                  "'): its attention_mask is longer than the prompt. With "
                  "-chunk it gets another one")
              .str();
        if (!isCache(argument))
          return ("the input '" + text +
                  "' is not understood as a KV cache [batch, heads, rows, d] "
                  "that new rows are concatenated to")
              .str();
      } else {
        if (text == "input_ids")
          ids = argument;
        names.push_back(name);
        continue;
      }
      gone.push_back(i);
    }
    if (!ids && !gone.empty())
      return "the model has no input 'input_ids'";
    if (mask)
      if (std::string error = replaceMask(graph, mask, ids); !error.empty())
        return error;
    for (unsigned i : llvm::reverse(gone)) {
      if (body.getArgument(i) != mask)
        makeEmpty(body.getArgument(i), ids);
      body.eraseArgument(i);
    }
    graph.setInputsAttr(Builder(graph.getContext()).getArrayAttr(names));
    return "";
  }
};
} // namespace
