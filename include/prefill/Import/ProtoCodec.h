//===- ProtoCodec.h - Types, tensors, attributes <-> protobuf ---*- C++ -*-===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//
//
// Both directions of everything smaller than a node, side by side: the importer
// asks the exporting half whether a message would come back as it was, and
// keeps the message's bytes where it would not. So nothing is lost, whatever a
// model contains.
//
//===----------------------------------------------------------------------===//

#ifndef PREFILL_IMPORT_PROTOCODEC_H
#define PREFILL_IMPORT_PROTOCODEC_H

#include "onnx/onnx-ml.pb.h"
#include "prefill/Dialect/ONNX/ONNX.h"
#include "llvm/ADT/StringMap.h"
#include <memory>

namespace prefill {

/// Keeps bytes alive that attributes refer to.
using BytesOwner = std::shared_ptr<const void>;

/// The serialised form of `message`, as an attribute.
mlir::StringAttr toBytes(mlir::MLIRContext *context,
                         const google::protobuf::Message &message);

/// Whether two messages have the same serialised form.
bool sameBytes(const google::protobuf::Message &a,
               const google::protobuf::Message &b);

//===----------------------------------------------------------------------===//
// Types
//===----------------------------------------------------------------------===//

/// The element type for a `TensorProto.DataType`, or null.
mlir::Type importElementType(mlir::MLIRContext *context, int32_t dataType);

/// The `TensorProto.DataType` of an element type, or UNDEFINED.
int32_t exportElementType(mlir::Type type);

/// Imports types; remembers those it has seen.
class TypeImporter {
public:
  explicit TypeImporter(mlir::MLIRContext *context) : context(context) {}

  /// The type for `proto`; `exact` tells whether `exportType` gives it back.
  /// What a builtin type cannot say is left out.
  mlir::Type import(const ::onnx::TypeProto &proto, bool &exact);

private:
  mlir::Type convert(const ::onnx::TypeProto &proto);
  mlir::Type convertTensor(int32_t elementType, bool hasShape,
                           const ::onnx::TensorShapeProto &shape);

  mlir::MLIRContext *context;
  llvm::StringMap<std::pair<mlir::Type, bool>> seen;
};

/// Writes `type` to `proto`, which is empty; false when ONNX has no such type.
bool exportType(mlir::Type type, ::onnx::TypeProto &proto);

//===----------------------------------------------------------------------===//
// Values
//===----------------------------------------------------------------------===//

/// Metadata as alternating keys and values; null when it cannot be said so.
mlir::ArrayAttr importMetadata(
    mlir::MLIRContext *context,
    const google::protobuf::RepeatedPtrField<::onnx::StringStringEntryProto>
        &entries);
void exportMetadata(
    mlir::ArrayAttr metadata,
    google::protobuf::RepeatedPtrField<::onnx::StringStringEntryProto>
        &entries);

/// Writes opset imports.
void exportOpsets(
    mlir::ArrayAttr opsets,
    google::protobuf::RepeatedPtrField<::onnx::OperatorSetIdProto> &imports);

/// An entry of `inputs`, `value_info` or `output_names` for a value of type
/// `type`: its name, or `#onnx.value_info` where that would lose something.
mlir::Attribute importValueInfo(const ::onnx::ValueInfoProto &info,
                                mlir::Type type, bool bound,
                                TypeImporter &types,
                                mlir::MLIRContext *context);

/// Writes `entry` under `name`, with `type` if the value's type is not what the
/// entry said (null: as the entry says); false when ONNX has no such type.
bool exportValueInfo(mlir::Attribute entry, llvm::StringRef name,
                     mlir::Type type, ::onnx::ValueInfoProto &info,
                     TypeImporter &types);

//===----------------------------------------------------------------------===//
// Tensors
//===----------------------------------------------------------------------===//

/// Checks the file of external data; returns what is wrong with it, or "".
using ExternalCheck = llvm::function_ref<std::string(
    llvm::StringRef file, int64_t offset, int64_t size)>;

/// An imported tensor.
struct ImportedTensor {
  /// Elements, `#onnx.weight` or `#onnx.tensor`.
  mlir::Attribute value;
  mlir::RankedTensorType type;
};

/// Imports `proto`. `raw` replaces its `raw_data` when the bytes are kept alive
/// elsewhere, by `owner`; otherwise large data is moved out of `proto`.
/// `nameElsewhere` says that the name is kept by the caller. On failure the
/// value is null and `error` says why, without naming the tensor.
ImportedTensor importTensor(mlir::MLIRContext *context,
                            ::onnx::TensorProto &proto,
                            std::optional<llvm::ArrayRef<char>> raw,
                            BytesOwner owner, bool nameElsewhere,
                            ExternalCheck check, std::string &error);

/// Writes a tensor of type `type` to the empty `proto`. If `lent` is given,
/// large data is left out and handed back through it. False, with `error`,
/// when ONNX has no such tensor.
bool exportTensor(mlir::Attribute value, mlir::Type type,
                  ::onnx::TensorProto &proto, llvm::ArrayRef<char> *lent,
                  std::string &error);

//===----------------------------------------------------------------------===//
// Attributes
//===----------------------------------------------------------------------===//

/// Imports graph number `graph` of an attribute and gives its region.
using SubgraphImport =
    llvm::function_ref<mlir::Attribute(::onnx::GraphProto &graph)>;
/// Writes a subgraph.
using SubgraphExport = llvm::function_ref<bool(onnx::SubgraphAttr attr,
                                               ::onnx::GraphProto &graph)>;

/// Imports the value of `proto`, whose tensors and graphs are consumed. Null on
/// failure, with `error` unless a subgraph failed.
mlir::Attribute importAttribute(mlir::MLIRContext *context,
                                ::onnx::AttributeProto &proto,
                                TypeImporter &types, SubgraphImport subgraph,
                                ExternalCheck check, std::string &error);

/// Writes attribute `name` to the empty `proto`. False on failure, with `error`
/// unless a subgraph failed.
bool exportAttribute(llvm::StringRef name, mlir::Attribute value,
                     ::onnx::AttributeProto &proto, SubgraphExport subgraph,
                     std::string &error);

//===----------------------------------------------------------------------===//
// Order
//===----------------------------------------------------------------------===//

/// Moves nodes that stand before one whose output they read, themselves or in
/// a subgraph, behind it. ONNX demands that order; ONNX Runtime does not, and
/// its converter to float16 does not write it. The order is kept where it can
/// be, and wholly where there is a cycle.
void sortNodes(google::protobuf::RepeatedPtrField<::onnx::NodeProto> &nodes);
/// Sorts the nodes of all graphs and functions, as the importer does.
void sortNodes(::onnx::ModelProto &model);

} // namespace prefill

#endif // PREFILL_IMPORT_PROTOCODEC_H
