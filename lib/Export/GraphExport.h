//===- GraphExport.h - From regions to graphs -------------------*- C++ -*-===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#ifndef PREFILL_LIB_EXPORT_GRAPHEXPORT_H
#define PREFILL_LIB_EXPORT_GRAPHEXPORT_H

#include "ModelWriter.h"
#include "Naming.h"
#include "prefill/Import/ProtoCodec.h"

namespace prefill {

/// Writes the graph and the functions of a module as protobuf messages.
class GraphExporter {
public:
  explicit GraphExporter(mlir::ModuleOp module)
      : names(module), types(module.getContext()) {}

  bool exportMainGraph(onnx::GraphOp graph, ModelParts &parts);
  bool exportFunction(onnx::FunctionOp function, ::onnx::FunctionProto &proto);
  const std::string &getError() const { return error; }

private:
  /// Writes a graph whose facts are the attributes in `facts`. Initializers of
  /// the main graph go to `parts`.
  bool exportGraph(mlir::Region &region, mlir::DictionaryAttr facts,
                   ::onnx::GraphProto &proto, ModelParts *parts);
  bool exportNode(onnx::NodeOp node, ::onnx::NodeProto &proto);
  bool exportInitializer(mlir::Attribute value, mlir::Type type,
                         llvm::StringRef name, ::onnx::GraphProto &proto,
                         ModelParts *parts);
  /// Writes `entries` for `values`, which are null for values that are gone.
  template <typename Infos>
  bool exportInfos(mlir::ArrayAttr entries,
                   llvm::function_ref<mlir::Value(llvm::StringRef)> lookup,
                   Infos &infos);
  /// Adds nodes for outputs that are not made under their names.
  void
  addIdentities(onnx::ReturnOp op,
                google::protobuf::RepeatedPtrField<::onnx::NodeProto> &nodes);
  /// What a region's names stand for.
  llvm::StringMap<mlir::Value> getNamedValues(mlir::Region &region);
  bool fail(mlir::Operation *op, const llvm::Twine &message);

  ValueNames names;
  TypeImporter types;
  std::string error;
};

} // namespace prefill

#endif // PREFILL_LIB_EXPORT_GRAPHEXPORT_H
