//===- GraphImport.h - From graphs to regions -------------------*- C++ -*-===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#ifndef PREFILL_LIB_IMPORT_GRAPHIMPORT_H
#define PREFILL_LIB_IMPORT_GRAPHIMPORT_H

#include "ModelReader.h"
#include "prefill/Import/ProtoCodec.h"
#include "llvm/ADT/StringSet.h"

namespace prefill {

/// Imports graphs, subgraphs and the bodies of functions into regions. The
/// messages it is given are consumed.
class GraphImporter {
public:
  GraphImporter(mlir::MLIRContext *context, ExternalCheck check,
                BytesOwner owner)
      : context(context), builder(context), types(context), check(check),
        owner(std::move(owner)) {}

  /// Imports the main graph, whose initializers have been cut out.
  bool importMainGraph(SplitModel &model, mlir::ModuleOp module);
  /// Imports a model-local function.
  bool importFunction(::onnx::FunctionProto &proto, mlir::ModuleOp module);

  /// What went wrong, without the file's name.
  const std::string &getError() const { return error; }

  /// Imports opset imports; null on failure.
  mlir::ArrayAttr importOpsets(
      const google::protobuf::RepeatedPtrField<::onnx::OperatorSetIdProto>
          &imports);

private:
  /// The values that names stand for, in a graph and around it.
  struct Scope {
    const Scope *parent;
    llvm::StringMap<mlir::Value> values;

    mlir::Value lookup(llvm::StringRef name) const;
  };

  using Nodes = google::protobuf::RepeatedPtrField<::onnx::NodeProto>;
  using Infos = google::protobuf::RepeatedPtrField<::onnx::ValueInfoProto>;
  using Declared = llvm::StringMap<mlir::Type>;

  /// Imports a graph into the empty `region`; appends its facts to `facts`.
  /// The initializers of the main graph are in `split`.
  bool importGraph(::onnx::GraphProto &proto,
                   llvm::ArrayRef<llvm::ArrayRef<char>> split,
                   mlir::Region &region, const Scope *parent,
                   mlir::NamedAttrList &facts);
  /// Makes the arguments of `region` and their entries of `inputs`.
  bool importInputs(const Infos &inputs, mlir::Region &region, Scope &scope,
                    mlir::NamedAttrList &facts);
  bool importInitializer(::onnx::TensorProto &proto,
                         std::optional<llvm::ArrayRef<char>> raw, Scope &scope);
  bool importSparseInitializer(::onnx::SparseTensorProto &proto, Scope &scope);
  bool importNodes(Nodes &nodes, Scope &scope, const Declared &declared);
  bool importNode(Nodes &nodes, int index, Scope &scope,
                  const Declared &declared);
  bool importAttributes(::onnx::NodeProto &proto, mlir::OperationState &state,
                        const Scope &scope, mlir::Attribute &list);
  /// The entries of `value_info`.
  mlir::ArrayAttr importValueInfos(const Infos &infos, const Scope &scope);

  /// Defines `name`; fails when it is taken.
  bool define(llvm::StringRef name, mlir::Value value, Scope &scope,
              const char *what);
  /// Explains why input `name` of node `index` has no value.
  bool failMissing(const Nodes &nodes, int index, llvm::StringRef name);
  /// The type of the values named in `infos`, `outputs` first.
  Declared getDeclared(const Infos &infos, const Infos &outputs);

  mlir::Value getAbsent(mlir::Block *block);
  void
  addMetadata(google::protobuf::RepeatedPtrField<::onnx::StringStringEntryProto>
                  &metadata,
              mlir::NamedAttrList &facts);
  bool fail(const llvm::Twine &message);

  mlir::MLIRContext *context;
  mlir::OpBuilder builder;
  TypeImporter types;
  ExternalCheck check;
  BytesOwner owner;
  /// The symbols of the module.
  llvm::StringSet<> symbols;
  /// The subgraphs around the place that is imported, outermost first.
  std::vector<std::string> where;
  std::string error;
};

} // namespace prefill

#endif // PREFILL_LIB_IMPORT_GRAPHIMPORT_H
