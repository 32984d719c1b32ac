//===- ONNXConstants.cpp - Elements of small constants --------------------===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#include "mlir/IR/DialectResourceBlobManager.h"
#include "prefill/Dialect/ONNX/ONNX.h"
#include "prefill/Dialect/ONNX/WeightReader.h"

using namespace mlir;
using namespace prefill::onnx;

Attribute prefill::onnx::unwrap(Attribute attribute) {
  if (auto verbatim = dyn_cast_or_null<VerbatimAttr>(attribute))
    attribute = verbatim.getValue();
  if (auto tensor = dyn_cast_or_null<TensorAttr>(attribute))
    attribute = tensor.getValue();
  return attribute;
}

/// The type of tensor attribute `value`, or null when only its context knows.
static RankedTensorType getTypeOf(Attribute value) {
  if (auto verbatim = dyn_cast_or_null<VerbatimAttr>(value))
    value = verbatim.getValue();
  if (auto tensor = dyn_cast_or_null<TensorAttr>(value))
    return dyn_cast<RankedTensorType>(tensor.getType());
  if (auto elements = dyn_cast_or_null<ElementsAttr>(value))
    return dyn_cast<RankedTensorType>(elements.getShapedType());
  return {};
}

Attribute prefill::onnx::getConstantTensor(Value value,
                                           RankedTensorType &type) {
  if (!value)
    return {};
  Attribute tensor;
  type = dyn_cast<RankedTensorType>(value.getType());
  if (auto initializer = value.getDefiningOp<InitializerOp>()) {
    tensor = initializer.getValue();
  } else if (auto node = value.getDefiningOp<NodeOp>()) {
    // The type of a Constant's result is declared elsewhere, or nowhere.
    if (node.is("Constant") && node.getAttrs())
      tensor = node.getAttrs()->find("value");
  } else if (auto argument = dyn_cast<BlockArgument>(value)) {
    auto module =
        argument.getOwner()->getParentOp()->getParentOfType<ModuleOp>();
    auto irVersion =
        module ? module->getAttrOfType<IntegerAttr>(ONNXDialect::kIrVersion)
               : IntegerAttr();
    if (!irVersion || irVersion.getInt() >= 4)
      return {};
    for (Operation *user : value.getUsers())
      if (auto constant = dyn_cast<DefaultOp>(user)) {
        tensor = constant.getValue();
        if (constant.getValueType())
          type = dyn_cast<RankedTensorType>(*constant.getValueType());
      }
  }
  if (!tensor)
    return {};
  if (RankedTensorType own = getTypeOf(tensor))
    type = own;
  tensor = unwrap(tensor);
  if (!type || !type.hasStaticShape() || !isa<ElementsAttr, WeightAttr>(tensor))
    return {};
  return tensor;
}

/// Decodes `count` elements of `type` from bytes as they are in `raw_data`.
static bool decode(ArrayRef<char> bytes, Type type, int64_t count,
                   ConstantElements &result) {
  unsigned bits = getElementBits(type);
  if (bits == 0 || bits > 64 || isa<ComplexType>(type))
    return false;
  auto bitsAt = [&](int64_t i) {
    uint64_t value = 0;
    if (bits % 8 == 0) {
      memcpy(&value, bytes.data() + i * (bits / 8), bits / 8);
      return value;
    }
    // Packed without gaps, lowest bits first.
    for (unsigned b = 0; b < bits; ++b) {
      int64_t at = i * bits + b;
      value |= uint64_t(bytes[at / 8] >> (at % 8) & 1) << b;
    }
    return value;
  };
  if (auto real = dyn_cast<FloatType>(type)) {
    result.floats.reserve(count);
    for (int64_t i = 0; i < count; ++i) {
      APFloat value(real.getFloatSemantics(), APInt(bits, bitsAt(i)));
      bool lost;
      value.convert(APFloat::IEEEdouble(), APFloat::rmNearestTiesToEven, &lost);
      result.floats.push_back(value.convertToDouble());
    }
    return true;
  }
  auto integer = cast<IntegerType>(type);
  result.ints.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    uint64_t value = bitsAt(i);
    if (integer.getWidth() == 1)
      result.ints.push_back(value != 0);
    else
      result.ints.push_back(integer.isUnsigned()
                                ? static_cast<int64_t>(value)
                                : llvm::SignExtend64(value, bits));
  }
  return true;
}

static bool decode(Attribute tensor, Operation *op, ConstantElements &result) {
  Type type = result.type.getElementType();
  int64_t count = result.type.getNumElements();
  if (auto weight = dyn_cast<WeightAttr>(tensor)) {
    WeightReader reader(op);
    llvm::Expected<ArrayRef<char>> bytes = reader.read(weight);
    if (!bytes) {
      llvm::consumeError(bytes.takeError());
      return false;
    }
    std::optional<int64_t> expected = getTensorBytes(result.type);
    return expected && *expected == static_cast<int64_t>(bytes->size()) &&
           decode(*bytes, type, count, result);
  }
  if (auto resource = dyn_cast<DenseResourceElementsAttr>(tensor)) {
    AsmResourceBlob *blob = resource.getRawHandle().getBlob();
    std::optional<int64_t> expected = getTensorBytes(result.type);
    return blob && expected &&
           *expected == static_cast<int64_t>(blob->getData().size()) &&
           decode(blob->getData(), type, count, result);
  }
  auto dense = dyn_cast<DenseElementsAttr>(tensor);
  if (!dense)
    return false;
  if (isa<FloatType>(type)) {
    for (APFloat value : dense.getValues<APFloat>()) {
      bool lost;
      value.convert(APFloat::IEEEdouble(), APFloat::rmNearestTiesToEven, &lost);
      result.floats.push_back(value.convertToDouble());
    }
    return true;
  }
  auto integer = dyn_cast<IntegerType>(type);
  if (!integer)
    return false;
  for (const APInt &value : dense.getValues<APInt>())
    result.ints.push_back(integer.isUnsigned() || integer.getWidth() == 1
                              ? value.getZExtValue()
                              : value.getSExtValue());
  return true;
}

std::optional<ConstantElements>
prefill::onnx::getConstantElements(Value value, int64_t maxElements) {
  ConstantElements result;
  if (Attribute tensor = getConstantTensor(value, result.type)) {
    std::optional<int64_t> bytes = getTensorBytes(result.type);
    if (!bytes || result.type.getNumElements() > maxElements)
      return std::nullopt;
    Operation *op = value.getDefiningOp();
    if (!op)
      op = cast<BlockArgument>(value).getOwner()->getParentOp();
    return decode(tensor, op, result) ? std::optional(std::move(result))
                                      : std::nullopt;
  }
  auto node = value ? value.getDefiningOp<NodeOp>() : NodeOp();
  if (!node || !node.is("Constant"))
    return std::nullopt;
  Builder b(value.getContext());
  auto take = [&](auto &to, auto values, Type type, bool scalar) {
    SmallVector<int64_t, 1> shape;
    if (!scalar)
      shape.push_back(values.size());
    to.assign(values.begin(), values.end());
    result.type = RankedTensorType::get(shape, type);
  };
  if (auto one = dyn_cast_or_null<IntegerAttr>(node.getAttrOfName("value_int")))
    take(result.ints, ArrayRef<int64_t>{one.getValue().getSExtValue()},
         b.getI64Type(), true);
  else if (auto some = node.getInts("value_ints"))
    take(result.ints, *some, b.getI64Type(), false);
  else if (auto one =
               dyn_cast_or_null<FloatAttr>(node.getAttrOfName("value_float")))
    take(result.floats, ArrayRef<double>{one.getValueAsDouble()},
         b.getF32Type(), true);
  else if (auto some = node.getFloats("value_floats"))
    take(result.floats, *some, b.getF32Type(), false);
  else
    return std::nullopt;
  if (static_cast<int64_t>(result.size()) > maxElements)
    return std::nullopt;
  return result;
}

std::optional<int64_t> prefill::onnx::getConstantInt(Value value) {
  std::optional<ConstantElements> elements = getConstantElements(value, 1);
  if (!elements || elements->ints.size() != 1)
    return std::nullopt;
  return elements->ints[0];
}

std::optional<double> prefill::onnx::getConstantFloat(Value value) {
  std::optional<ConstantElements> elements = getConstantElements(value, 1);
  if (!elements || elements->size() != 1)
    return std::nullopt;
  return elements->asDouble(0);
}

std::optional<SmallVector<int64_t>>
prefill::onnx::getConstantInts(Value value, int64_t maxElements) {
  std::optional<ConstantElements> elements =
      getConstantElements(value, maxElements);
  if (!elements || elements->isFloat())
    return std::nullopt;
  return std::move(elements->ints);
}
