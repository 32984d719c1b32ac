//===- ModalityInput.cpp - The value of -modality -------------------------===//

#include "ModalityInput.h"
#include "mlir/IR/Dominance.h"
#include "prefill/Dialect/ONNX/ONNX.h"

using namespace mlir;
using namespace prefill;

/// The block of the values that can be named, or null.
static Block *scopeOf(ModuleOp module, Operation *user) {
  if (onnx::GraphOp graph = onnx::getMainGraph(module))
    return &graph->getRegion(0).front();
  // Tests of passes have functions for graphs.
  for (Operation *op = user; op; op = op->getParentOp())
    if (op->getParentOp() && isa<ModuleOp>(op->getParentOp()))
      return op->getNumRegions() ? &op->getRegion(0).front() : nullptr;
  return nullptr;
}

static Value findValue(Block &block, StringRef name) {
  for (BlockArgument argument : block.getArguments())
    if (onnx::getValueName(argument) == name ||
        name == "arg" + std::to_string(argument.getArgNumber()))
      return argument;
  for (Operation &op : block)
    for (Value result : op.getResults())
      if (onnx::getValueName(result) == name)
        return result;
  return Value();
}

/// Why values of `type` are no modality, or empty.
static std::string refusal(Type type) {
  Type element = onnx::getElementType(type);
  auto shaped = dyn_cast<RankedTensorType>(type);
  const bool integer = !element || element.isInteger(64) ||
                       element.isInteger(32) || element.isInteger(1) ||
                       element.isUnsignedInteger(8);
  if (integer && (!shaped || shaped.getRank() == 1 || shaped.getRank() == 2))
    return "";
  std::string text;
  llvm::raw_string_ostream(text) << type;
  return "expected an integer or boolean tensor [batch, keys] or [keys], got " +
         text;
}

bool prefill::isVisibleAt(Value value, Operation *user) {
  Block *block = value.getParentBlock();
  Operation *ancestor = block->findAncestorOpInBlock(*user);
  if (!ancestor)
    return false;
  // Functions of the model see none of the graph's values.
  for (Operation *op = user->getParentOp(); op && op != block->getParentOp();
       op = op->getParentOp())
    if (op->hasTrait<OpTrait::IsIsolatedFromAbove>())
      return false;
  Operation *source = value.getDefiningOp();
  return !source || source->isBeforeInBlock(ancestor);
}

/// Which of input_ids are one of `ids`: Equal and Or nodes at the block's
/// start.
static Value makeModality(Block &block, ArrayRef<int64_t> ids,
                          std::string &error) {
  Value tokens = findValue(block, "input_ids");
  Type element = tokens ? onnx::getElementType(tokens.getType()) : Type();
  if (!tokens || !isa<BlockArgument>(tokens) || !element ||
      !(element.isInteger(64) || element.isInteger(32))) {
    error = "the model has no integer input input_ids; give -modality=NAME";
    return Value();
  }
  OpBuilder builder = OpBuilder::atBlockBegin(&block);
  Location loc = builder.getUnknownLoc();
  auto type = cast<TensorType>(tokens.getType());
  Type boolean =
      isa<RankedTensorType>(type)
          ? Type(cast<RankedTensorType>(type).clone(builder.getI1Type()))
          : Type(UnrankedTensorType::get(builder.getI1Type()));
  auto node = [&](StringRef kind, Value a, Value b) {
    auto made =
        onnx::NodeOp::create(builder, loc, kind, "", ValueRange{a, b},
                             TypeRange{boolean}, ArrayRef<NamedAttribute>{});
    made.setOutputNamesAttr(builder.getStrArrayAttr({StringRef()}));
    return made.getResult(0);
  };
  Value result;
  for (int64_t id : ids) {
    auto scalar = RankedTensorType::get({}, element);
    auto number =
        DenseElementsAttr::get(scalar, builder.getIntegerAttr(element, id));
    Value same =
        node("Equal", tokens, onnx::createInitializer(builder, loc, number));
    result = result ? node("Or", result, same) : same;
  }
  return result;
}

Value prefill::findModality(ModuleOp module, Operation *user, StringRef spec,
                            std::string &error) {
  auto fail = [&](const Twine &what) {
    error = ("-modality=" + spec + ": " + what).str();
    return Value();
  };
  Block *block = scopeOf(module, user);
  if (!block)
    return fail("the model has no graph");
  StringRef list = spec;
  if (list.consume_front("token:")) {
    SmallVector<int64_t> ids;
    SmallVector<StringRef> parts;
    list.split(parts, ',');
    for (StringRef part : parts) {
      int64_t id;
      if (part.getAsInteger(10, id) || id < 0)
        return fail("'" + part + "' is not a token's number");
      ids.push_back(id);
    }
    std::string why;
    Value value = makeModality(*block, ids, why);
    return value ? value : fail(why);
  }
  Value value = findValue(*block, spec);
  if (!value)
    return fail("the model has no value of this name");
  if (std::string why = refusal(value.getType()); !why.empty())
    return fail(why);
  if (!isVisibleAt(value, user))
    return fail(
        "it is computed after the first attention, or not where that is");
  return value;
}
