//===- AttributeCodec.cpp - Attributes of nodes ---------------------------===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#include "prefill/Import/ProtoCodec.h"

using namespace mlir;
using namespace prefill;
using namespace prefill::onnx;
using ::onnx::AttributeProto;

//===----------------------------------------------------------------------===//
// Import
//===----------------------------------------------------------------------===//

static Attribute importFloat(MLIRContext *context, float value) {
  // Through its bits: a NaN keeps its payload.
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return FloatAttr::get(Float32Type::get(context),
                        APFloat(APFloat::IEEEsingle(), APInt(32, bits)));
}

/// The kind of an attribute that does not say it, as very old models' do not.
static int guessKind(const AttributeProto &proto) {
  if (proto.has_f())
    return AttributeProto::FLOAT;
  if (proto.has_i())
    return AttributeProto::INT;
  if (proto.has_s())
    return AttributeProto::STRING;
  if (proto.has_t())
    return AttributeProto::TENSOR;
  if (proto.has_g())
    return AttributeProto::GRAPH;
  if (proto.floats_size())
    return AttributeProto::FLOATS;
  if (proto.ints_size())
    return AttributeProto::INTS;
  if (proto.strings_size())
    return AttributeProto::STRINGS;
  if (proto.tensors_size())
    return AttributeProto::TENSORS;
  if (proto.graphs_size())
    return AttributeProto::GRAPHS;
  return AttributeProto::UNDEFINED;
}

static Attribute importSparse(MLIRContext *context,
                              const ::onnx::SparseTensorProto &proto) {
  return SparseTensorAttr::get(context, toBytes(context, proto));
}

namespace {
/// The parts of an attribute that are not compared as bytes.
struct Payload {
  std::unique_ptr<::onnx::TensorProto> tensor;
  std::unique_ptr<::onnx::GraphProto> graph;
  google::protobuf::RepeatedPtrField<::onnx::TensorProto> tensors;
  google::protobuf::RepeatedPtrField<::onnx::GraphProto> graphs;
};
} // namespace

static Attribute importValue(MLIRContext *context, const AttributeProto &proto,
                             int kind, Payload &payload, TypeImporter &types,
                             SubgraphImport subgraph, ExternalCheck check,
                             std::string &error) {
  Builder b(context);
  bool exact;
  auto importOne = [&](::onnx::TensorProto &tensor) {
    return importTensor(context, tensor, std::nullopt, nullptr,
                        /*nameElsewhere=*/false, check, error)
        .value;
  };
  SmallVector<Attribute> list;
  auto collect = [&](auto &&entries, auto import) -> Attribute {
    for (auto &entry : entries) {
      list.push_back(import(entry));
      if (!list.back())
        return {};
    }
    return b.getArrayAttr(list);
  };
  auto importTypeAttr = [&](const ::onnx::TypeProto &type) -> Attribute {
    return TypeAttr::get(types.import(type, exact));
  };
  switch (kind) {
  case AttributeProto::FLOAT:
    return importFloat(context, proto.f());
  case AttributeProto::INT:
    return b.getIntegerAttr(b.getIntegerType(64, /*isSigned=*/true), proto.i());
  case AttributeProto::STRING:
    return b.getStringAttr(proto.s());
  case AttributeProto::TENSOR:
    if (payload.tensor)
      return importOne(*payload.tensor);
    error = "is a tensor, but has none";
    return {};
  case AttributeProto::GRAPH:
    if (payload.graph)
      return subgraph(*payload.graph);
    error = "is a graph, but has none";
    return {};
  case AttributeProto::FLOATS:
    return b.getDenseF32ArrayAttr(
        {proto.floats().data(), static_cast<size_t>(proto.floats_size())});
  case AttributeProto::INTS:
    return DenseI64ArrayAttr::get(
        context, {reinterpret_cast<const int64_t *>(proto.ints().data()),
                  static_cast<size_t>(proto.ints_size())});
  case AttributeProto::STRINGS:
    return collect(proto.strings(), [&](const std::string &s) -> Attribute {
      return b.getStringAttr(s);
    });
  case AttributeProto::TENSORS:
    return collect(payload.tensors, importOne);
  case AttributeProto::GRAPHS:
    return collect(payload.graphs, subgraph);
  case AttributeProto::TYPE_PROTO:
    return importTypeAttr(proto.tp());
  case AttributeProto::TYPE_PROTOS:
    return collect(proto.type_protos(), importTypeAttr);
  case AttributeProto::SPARSE_TENSOR:
    return importSparse(context, proto.sparse_tensor());
  case AttributeProto::SPARSE_TENSORS:
    return collect(proto.sparse_tensors(),
                   [&](const ::onnx::SparseTensorProto &tensor) {
                     return importSparse(context, tensor);
                   });
  default:
    error = "has no type and no value";
    return {};
  }
}

Attribute prefill::importAttribute(MLIRContext *context, AttributeProto &proto,
                                   TypeImporter &types, SubgraphImport subgraph,
                                   ExternalCheck check, std::string &error) {
  Attribute value;
  Payload payload;
  if (proto.has_ref_attr_name()) {
    value =
        RefAttr::get(context, StringAttr::get(context, proto.ref_attr_name()),
                     static_cast<int32_t>(proto.type()));
  } else {
    int kind = proto.has_type() ? proto.type() : guessKind(proto);
    if (kind == AttributeProto::UNDEFINED)
      kind = guessKind(proto);
    // Tensors and graphs are not repeated in the bytes of the attribute. Stray
    // ones, in an attribute of another kind, are.
    if (kind == AttributeProto::TENSOR && proto.has_t())
      payload.tensor.reset(proto.release_t());
    if (kind == AttributeProto::GRAPH && proto.has_g())
      payload.graph.reset(proto.release_g());
    if (kind == AttributeProto::TENSORS)
      payload.tensors.Swap(proto.mutable_tensors());
    if (kind == AttributeProto::GRAPHS)
      payload.graphs.Swap(proto.mutable_graphs());
    value = importValue(context, proto, kind, payload, types, subgraph, check,
                        error);
    if (!value)
      return {};
  }

  // What comes back without tensors and graphs: their kinds are told by any of
  // them, by none of an empty list.
  AttributeProto back;
  std::string unused;
  if (payload.tensor || payload.graph || !payload.tensors.empty() ||
      !payload.graphs.empty()) {
    back.set_name(proto.name());
    back.set_type(payload.tensor             ? AttributeProto::TENSOR
                  : payload.graph            ? AttributeProto::GRAPH
                  : !payload.tensors.empty() ? AttributeProto::TENSORS
                                             : AttributeProto::GRAPHS);
  } else {
    exportAttribute(
        proto.name(), value, back,
        [](SubgraphAttr, ::onnx::GraphProto &) { return true; }, unused);
  }
  if (sameBytes(proto, back))
    return value;
  return VerbatimAttr::get(context, value, toBytes(context, proto));
}

//===----------------------------------------------------------------------===//
// Export
//===----------------------------------------------------------------------===//

static float exportFloat(FloatAttr attr) {
  APFloat value = attr.getValue();
  if (!attr.getType().isF32()) {
    bool lost;
    value.convert(APFloat::IEEEsingle(), APFloat::rmNearestTiesToEven, &lost);
  }
  uint32_t bits = value.bitcastToAPInt().getZExtValue();
  float result;
  memcpy(&result, &bits, sizeof(result));
  return result;
}

static int64_t exportInt(IntegerAttr attr) {
  // Booleans are 0 and 1, and so are unsigned numbers not negative.
  bool isUnsigned =
      attr.getType().isUnsignedInteger() || attr.getType().isInteger(1);
  return isUnsigned ? attr.getValue().getZExtValue()
                    : attr.getValue().getSExtValue();
}

static bool isTensor(Attribute value) {
  return isa<TensorAttr, WeightAttr>(value) ||
         (isa<ElementsAttr>(value) && !isa<DenseArrayAttr>(value));
}

static bool exportSparse(SparseTensorAttr attr,
                         ::onnx::SparseTensorProto &proto) {
  return proto.ParseFromString(attr.getBytes().str());
}

/// Writes a list, whose kind its first element tells.
static bool exportList(ArrayAttr list, AttributeProto &proto,
                       SubgraphExport subgraph, std::string &error) {
  Attribute first = list.empty() ? Attribute() : list[0];
  auto each = [&](auto kind, auto write) {
    proto.set_type(kind);
    for (Attribute entry : list)
      if (!write(entry)) {
        if (error.empty())
          error = "has elements of different kinds";
        return false;
      }
    return true;
  };
  if (!first || isa<StringAttr>(first))
    return each(AttributeProto::STRINGS, [&](Attribute entry) {
      auto text = dyn_cast<StringAttr>(entry);
      if (text)
        proto.add_strings(text.str());
      return text != nullptr;
    });
  if (isTensor(first))
    return each(AttributeProto::TENSORS, [&](Attribute entry) {
      return isTensor(entry) &&
             exportTensor(entry, {}, *proto.add_tensors(), nullptr, error);
    });
  if (isa<SubgraphAttr>(first))
    return each(AttributeProto::GRAPHS, [&](Attribute entry) {
      auto graph = dyn_cast<SubgraphAttr>(entry);
      return graph && subgraph(graph, *proto.add_graphs());
    });
  if (isa<TypeAttr>(first))
    return each(AttributeProto::TYPE_PROTOS, [&](Attribute entry) {
      auto type = dyn_cast<TypeAttr>(entry);
      return type && exportType(type.getValue(), *proto.add_type_protos());
    });
  if (isa<SparseTensorAttr>(first))
    return each(AttributeProto::SPARSE_TENSORS, [&](Attribute entry) {
      auto sparse = dyn_cast<SparseTensorAttr>(entry);
      return sparse && exportSparse(sparse, *proto.add_sparse_tensors());
    });
  if (isa<IntegerAttr>(first))
    return each(AttributeProto::INTS, [&](Attribute entry) {
      auto number = dyn_cast<IntegerAttr>(entry);
      if (number)
        proto.add_ints(exportInt(number));
      return number != nullptr;
    });
  if (isa<FloatAttr>(first))
    return each(AttributeProto::FLOATS, [&](Attribute entry) {
      auto number = dyn_cast<FloatAttr>(entry);
      if (number)
        proto.add_floats(exportFloat(number));
      return number != nullptr;
    });
  error = "has a value that an ONNX attribute cannot have";
  return false;
}

static bool exportValue(Attribute value, AttributeProto &proto,
                        SubgraphExport subgraph, std::string &error) {
  if (auto list = dyn_cast<ArrayAttr>(value))
    return exportList(list, proto, subgraph, error);
  if (isTensor(value)) {
    proto.set_type(AttributeProto::TENSOR);
    return exportTensor(value, {}, *proto.mutable_t(), nullptr, error);
  }
  if (auto number = dyn_cast<IntegerAttr>(value)) {
    proto.set_type(AttributeProto::INT);
    proto.set_i(exportInt(number));
    return true;
  }
  if (auto number = dyn_cast<FloatAttr>(value)) {
    proto.set_type(AttributeProto::FLOAT);
    proto.set_f(exportFloat(number));
    return true;
  }
  if (auto text = dyn_cast<StringAttr>(value)) {
    proto.set_type(AttributeProto::STRING);
    proto.set_s(text.str());
    return true;
  }
  if (auto numbers = dyn_cast<DenseI64ArrayAttr>(value)) {
    proto.set_type(AttributeProto::INTS);
    for (int64_t number : numbers.asArrayRef())
      proto.add_ints(number);
    return true;
  }
  if (auto numbers = dyn_cast<DenseI32ArrayAttr>(value)) {
    proto.set_type(AttributeProto::INTS);
    for (int32_t number : numbers.asArrayRef())
      proto.add_ints(number);
    return true;
  }
  if (auto numbers = dyn_cast<DenseF32ArrayAttr>(value)) {
    proto.set_type(AttributeProto::FLOATS);
    for (float number : numbers.asArrayRef())
      proto.add_floats(number);
    return true;
  }
  if (auto graph = dyn_cast<SubgraphAttr>(value)) {
    proto.set_type(AttributeProto::GRAPH);
    return subgraph(graph, *proto.mutable_g());
  }
  if (auto type = dyn_cast<TypeAttr>(value)) {
    proto.set_type(AttributeProto::TYPE_PROTO);
    return exportType(type.getValue(), *proto.mutable_tp());
  }
  if (auto sparse = dyn_cast<SparseTensorAttr>(value)) {
    proto.set_type(AttributeProto::SPARSE_TENSOR);
    return exportSparse(sparse, *proto.mutable_sparse_tensor());
  }
  if (auto ref = dyn_cast<RefAttr>(value)) {
    proto.set_ref_attr_name(ref.getName().str());
    if (AttributeProto::AttributeType_IsValid(ref.getKind()))
      proto.set_type(static_cast<AttributeProto::AttributeType>(ref.getKind()));
    return true;
  }
  error = "has a value that an ONNX attribute cannot have";
  return false;
}

bool prefill::exportAttribute(StringRef name, Attribute value,
                              AttributeProto &proto, SubgraphExport subgraph,
                              std::string &error) {
  auto verbatim = dyn_cast<VerbatimAttr>(value);
  if (!verbatim) {
    proto.set_name(name.str());
    return exportValue(value, proto, subgraph, error);
  }
  if (!proto.ParseFromString(verbatim.getBytes().str())) {
    error = "has damaged verbatim bytes";
    return false;
  }
  // The bytes have everything but tensors and graphs.
  Attribute inner = verbatim.getValue();
  auto list = dyn_cast<ArrayAttr>(inner);
  Attribute first = list && !list.empty() ? list[0] : inner;
  if (!isTensor(first) && !isa<SubgraphAttr>(first))
    return true;
  AttributeProto payload;
  if (!exportValue(inner, payload, subgraph, error))
    return false;
  payload.clear_type();
  proto.MergeFrom(payload);
  return true;
}
