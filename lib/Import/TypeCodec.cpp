//===- TypeCodec.cpp - Types and declared values --------------------------===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#include "prefill/Import/ProtoCodec.h"

using namespace mlir;
using namespace prefill;
using namespace prefill::onnx;
using ::onnx::TensorProto;

StringAttr prefill::toBytes(MLIRContext *context,
                            const google::protobuf::Message &message) {
  return StringAttr::get(context, message.SerializeAsString());
}

bool prefill::sameBytes(const google::protobuf::Message &a,
                        const google::protobuf::Message &b) {
  return a.ByteSizeLong() == b.ByteSizeLong() &&
         a.SerializeAsString() == b.SerializeAsString();
}

//===----------------------------------------------------------------------===//
// Element types
//===----------------------------------------------------------------------===//

Type prefill::importElementType(MLIRContext *context, int32_t dataType) {
  Builder b(context);
  auto unsignedType = [&](unsigned bits) {
    return b.getIntegerType(bits, /*isSigned=*/false);
  };
  switch (dataType) {
  case TensorProto::FLOAT:
    return b.getF32Type();
  case TensorProto::UINT8:
    return unsignedType(8);
  case TensorProto::INT8:
    return b.getI8Type();
  case TensorProto::UINT16:
    return unsignedType(16);
  case TensorProto::INT16:
    return b.getI16Type();
  case TensorProto::INT32:
    return b.getI32Type();
  case TensorProto::INT64:
    return b.getI64Type();
  case TensorProto::STRING:
    return StringType::get(context);
  case TensorProto::BOOL:
    return b.getI1Type();
  case TensorProto::FLOAT16:
    return b.getF16Type();
  case TensorProto::DOUBLE:
    return b.getF64Type();
  case TensorProto::UINT32:
    return unsignedType(32);
  case TensorProto::UINT64:
    return unsignedType(64);
  case TensorProto::COMPLEX64:
    return ComplexType::get(b.getF32Type());
  case TensorProto::COMPLEX128:
    return ComplexType::get(b.getF64Type());
  case TensorProto::BFLOAT16:
    return b.getBF16Type();
  case TensorProto::FLOAT8E4M3FN:
    return Float8E4M3FNType::get(context);
  case TensorProto::FLOAT8E4M3FNUZ:
    return Float8E4M3FNUZType::get(context);
  case TensorProto::FLOAT8E5M2:
    return Float8E5M2Type::get(context);
  case TensorProto::FLOAT8E5M2FNUZ:
    return Float8E5M2FNUZType::get(context);
  case TensorProto::UINT4:
    return unsignedType(4);
  case TensorProto::INT4:
    return b.getIntegerType(4);
  case TensorProto::FLOAT4E2M1:
    return Float4E2M1FNType::get(context);
  case TensorProto::FLOAT8E8M0:
    return Float8E8M0FNUType::get(context);
  case TensorProto::UINT2:
    return unsignedType(2);
  case TensorProto::INT2:
    return b.getIntegerType(2);
  // By number: onnx packages before IR version 14 have no names for them.
  case 27:
    return Float6E2M3FNType::get(context);
  case 28:
    return Float6E3M2FNType::get(context);
  default:
    return {};
  }
}

int32_t prefill::exportElementType(Type type) {
  if (!type)
    return TensorProto::UNDEFINED;
  if (auto integer = dyn_cast<IntegerType>(type)) {
    bool isUnsigned = integer.isUnsigned();
    switch (integer.getWidth()) {
    case 1:
      return TensorProto::BOOL;
    case 2:
      return isUnsigned ? TensorProto::UINT2 : TensorProto::INT2;
    case 4:
      return isUnsigned ? TensorProto::UINT4 : TensorProto::INT4;
    case 8:
      return isUnsigned ? TensorProto::UINT8 : TensorProto::INT8;
    case 16:
      return isUnsigned ? TensorProto::UINT16 : TensorProto::INT16;
    case 32:
      return isUnsigned ? TensorProto::UINT32 : TensorProto::INT32;
    case 64:
      return isUnsigned ? TensorProto::UINT64 : TensorProto::INT64;
    default:
      return TensorProto::UNDEFINED;
    }
  }
  if (auto complex = dyn_cast<ComplexType>(type)) {
    if (complex.getElementType().isF32())
      return TensorProto::COMPLEX64;
    return complex.getElementType().isF64() ? TensorProto::COMPLEX128
                                            : TensorProto::UNDEFINED;
  }
  return llvm::TypeSwitch<Type, int32_t>(type)
      .Case([](Float32Type) { return TensorProto::FLOAT; })
      .Case([](Float64Type) { return TensorProto::DOUBLE; })
      .Case([](Float16Type) { return TensorProto::FLOAT16; })
      .Case([](BFloat16Type) { return TensorProto::BFLOAT16; })
      .Case([](Float8E4M3FNType) { return TensorProto::FLOAT8E4M3FN; })
      .Case([](Float8E4M3FNUZType) { return TensorProto::FLOAT8E4M3FNUZ; })
      .Case([](Float8E5M2Type) { return TensorProto::FLOAT8E5M2; })
      .Case([](Float8E5M2FNUZType) { return TensorProto::FLOAT8E5M2FNUZ; })
      .Case([](Float8E8M0FNUType) { return TensorProto::FLOAT8E8M0; })
      .Case([](Float4E2M1FNType) { return TensorProto::FLOAT4E2M1; })
      .Case([](Float6E2M3FNType) { return 27; })
      .Case([](Float6E3M2FNType) { return 28; })
      .Case([](StringType) { return TensorProto::STRING; })
      .Default([](Type) { return TensorProto::UNDEFINED; });
}

//===----------------------------------------------------------------------===//
// Types
//===----------------------------------------------------------------------===//

Type TypeImporter::convertTensor(int32_t dataType, bool hasShape,
                                 const ::onnx::TensorShapeProto &proto) {
  Type element = importElementType(context, dataType);
  if (!element)
    return UnknownType::get(context);
  if (!hasShape)
    return UnrankedTensorType::get(element);
  SmallVector<int64_t> shape;
  SmallVector<StringRef> names;
  int64_t elements = 1;
  for (const auto &dim : proto.dim()) {
    // Some exporters write -1 for what they do not know.
    bool known = dim.has_dim_value() && dim.dim_value() >= 0;
    shape.push_back(known ? dim.dim_value() : ShapedType::kDynamic);
    names.push_back(dim.has_dim_param() ? StringRef(dim.dim_param()) : "");
    // A shape that no memory can hold must not reach anyone who multiplies.
    if (known && dim.dim_value() != 0 &&
        llvm::MulOverflow(elements, dim.dim_value(), elements))
      return UnrankedTensorType::get(element);
  }
  return getTensorType(shape, element, names);
}

Type TypeImporter::convert(const ::onnx::TypeProto &proto) {
  switch (proto.value_case()) {
  case ::onnx::TypeProto::kTensorType:
    return convertTensor(proto.tensor_type().elem_type(),
                         proto.tensor_type().has_shape(),
                         proto.tensor_type().shape());
  case ::onnx::TypeProto::kSparseTensorType:
    return SparseType::get(context,
                           convertTensor(proto.sparse_tensor_type().elem_type(),
                                         proto.sparse_tensor_type().has_shape(),
                                         proto.sparse_tensor_type().shape()));
  case ::onnx::TypeProto::kSequenceType:
    return SequenceType::get(context,
                             convert(proto.sequence_type().elem_type()));
  case ::onnx::TypeProto::kOptionalType:
    return OptionalType::get(context,
                             convert(proto.optional_type().elem_type()));
  case ::onnx::TypeProto::kMapType: {
    Type key = importElementType(context, proto.map_type().key_type());
    return MapType::get(context, key ? key : UnknownType::get(context),
                        convert(proto.map_type().value_type()));
  }
  case ::onnx::TypeProto::kOpaqueType:
    return prefill::onnx::OpaqueType::get(
        context, StringAttr::get(context, proto.opaque_type().domain()),
        StringAttr::get(context, proto.opaque_type().name()));
  case ::onnx::TypeProto::VALUE_NOT_SET:
    break;
  }
  return UnknownType::get(context);
}

Type TypeImporter::import(const ::onnx::TypeProto &proto, bool &exact) {
  auto [it, isNew] = seen.try_emplace(proto.SerializeAsString());
  if (isNew) {
    Type type = convert(proto);
    ::onnx::TypeProto back;
    it->second = {type, exportType(type, back) && sameBytes(proto, back)};
  }
  exact = it->second.second;
  return it->second.first;
}

/// Writes the element type and the shape of `type` to `proto`.
template <typename Proto>
static bool exportTensorType(Type type, Proto &proto) {
  Type element = getElementType(type);
  int32_t dataType = exportElementType(element);
  if (dataType == TensorProto::UNDEFINED)
    return false;
  proto.set_elem_type(dataType);
  if (auto ranked = dyn_cast<RankedTensorType>(type)) {
    auto *shape = proto.mutable_shape();
    for (auto [i, size] : llvm::enumerate(ranked.getShape())) {
      auto *dim = shape->add_dim();
      if (!ShapedType::isDynamic(size))
        dim->set_dim_value(size);
      else if (StringRef name = getDimName(type, i); !name.empty())
        dim->set_dim_param(name.str());
    }
  }
  return true;
}

bool prefill::exportType(Type type, ::onnx::TypeProto &proto) {
  return llvm::TypeSwitch<Type, bool>(type)
      .Case([&](TensorType tensor) {
        return exportTensorType(tensor, *proto.mutable_tensor_type());
      })
      .Case([&](SparseType sparse) {
        return exportTensorType(sparse.getTensorType(),
                                *proto.mutable_sparse_tensor_type());
      })
      .Case([&](SequenceType sequence) {
        return exportType(sequence.getElementType(),
                          *proto.mutable_sequence_type()->mutable_elem_type());
      })
      .Case([&](OptionalType optional) {
        return exportType(optional.getElementType(),
                          *proto.mutable_optional_type()->mutable_elem_type());
      })
      .Case([&](MapType map) {
        proto.mutable_map_type()->set_key_type(
            exportElementType(map.getKeyType()));
        return exportType(map.getValueType(),
                          *proto.mutable_map_type()->mutable_value_type());
      })
      .Case([&](prefill::onnx::OpaqueType opaque) {
        proto.mutable_opaque_type()->set_domain(opaque.getDomain().str());
        proto.mutable_opaque_type()->set_name(opaque.getName().str());
        return true;
      })
      .Case([](UnknownType) { return true; })
      .Default([](Type) { return false; });
}

//===----------------------------------------------------------------------===//
// Values
//===----------------------------------------------------------------------===//

ArrayAttr prefill::importMetadata(
    MLIRContext *context,
    const google::protobuf::RepeatedPtrField<::onnx::StringStringEntryProto>
        &entries) {
  SmallVector<Attribute> strings;
  for (const auto &entry : entries) {
    if (!entry.has_key() || !entry.has_value() ||
        !entry.unknown_fields().empty())
      return {};
    strings.push_back(StringAttr::get(context, entry.key()));
    strings.push_back(StringAttr::get(context, entry.value()));
  }
  return strings.empty() ? ArrayAttr() : ArrayAttr::get(context, strings);
}

void prefill::exportMetadata(
    ArrayAttr metadata,
    google::protobuf::RepeatedPtrField<::onnx::StringStringEntryProto>
        &entries) {
  if (!metadata)
    return;
  for (size_t i = 0; i + 1 < metadata.size(); i += 2) {
    auto *entry = entries.Add();
    entry->set_key(cast<StringAttr>(metadata[i]).str());
    entry->set_value(cast<StringAttr>(metadata[i + 1]).str());
  }
}

void prefill::exportOpsets(
    ArrayAttr opsets,
    google::protobuf::RepeatedPtrField<::onnx::OperatorSetIdProto> &imports) {
  for (Attribute entry : opsets)
    if (auto opset = dyn_cast<OpsetAttr>(entry)) {
      auto *import = imports.Add();
      if (opset.getDomain())
        import->set_domain(opset.getDomain().str());
      import->set_version(opset.getVersion());
    }
}

/// Writes the plain form of a declared value; false when ONNX has no such type.
static bool exportPlain(StringRef name, Type type,
                        ::onnx::ValueInfoProto &info) {
  info.set_name(name.str());
  if (isa<UnknownType>(type))
    return true;
  return exportType(type, *info.mutable_type());
}

Attribute prefill::importValueInfo(const ::onnx::ValueInfoProto &info,
                                   Type type, bool bound, TypeImporter &types,
                                   MLIRContext *context) {
  auto name = StringAttr::get(context, info.name());
  ::onnx::ValueInfoProto plain;
  if (bound && exportPlain(info.name(), type, plain) && sameBytes(info, plain))
    return name;
  bool exact;
  bool follows = bound && types.import(info.type(), exact) == type;
  return ValueInfoAttr::get(context, name, toBytes(context, info), bound,
                            follows);
}

bool prefill::exportValueInfo(Attribute entry, StringRef name, Type type,
                              ::onnx::ValueInfoProto &info,
                              TypeImporter &types) {
  auto verbatim = dyn_cast<ValueInfoAttr>(entry);
  if (!verbatim)
    return exportPlain(name, type, info);
  if (!info.ParseFromString(verbatim.getBytes().str()))
    return false;
  if (info.name() != name)
    info.set_name(name.str());
  // Only a type that a pass has changed is written anew: the bytes may say more
  // (denotations) than the type does.
  bool exact;
  if (!verbatim.getFollows() || !type || isa<UnknownType>(type) ||
      types.import(info.type(), exact) == type)
    return true;
  info.clear_type();
  return exportType(type, *info.mutable_type());
}
