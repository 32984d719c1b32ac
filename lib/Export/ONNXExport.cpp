//===- ONNXExport.cpp - From the onnx dialect to ONNX files ---------------===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#include "prefill/Export/ONNXExport.h"
#include "ExternalData.h"
#include "GraphExport.h"
#include "prefill/Dialect/ONNX/WeightReader.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"
#include <google/protobuf/stubs/logging.h>

using namespace mlir;
using namespace prefill;
using namespace prefill::onnx;

/// Writes the module's attributes to the fields of `model`.
static bool exportFacts(ModuleOp module, ::onnx::ModelProto &model) {
  auto text = [&](StringRef name) {
    return module->getAttrOfType<StringAttr>(name);
  };
  if (StringAttr extra = text(ONNXDialect::kExtra))
    if (!model.ParseFromString(extra.str()))
      return false;
  if (auto version =
          module->getAttrOfType<IntegerAttr>(ONNXDialect::kIrVersion))
    model.set_ir_version(version.getInt());
  if (auto version =
          module->getAttrOfType<IntegerAttr>(ONNXDialect::kModelVersion))
    model.set_model_version(version.getInt());
  if (StringAttr name = text(ONNXDialect::kProducerName))
    model.set_producer_name(name.str());
  if (StringAttr version = text(ONNXDialect::kProducerVersion))
    model.set_producer_version(version.str());
  if (StringAttr domain = text(ONNXDialect::kModelDomain))
    model.set_domain(domain.str());
  if (StringAttr doc = text(ONNXDialect::kDocString))
    model.set_doc_string(doc.str());
  if (auto opsets =
          module->getAttrOfType<ArrayAttr>(ONNXDialect::kOpsetImports))
    exportOpsets(opsets, *model.mutable_opset_import());
  exportMetadata(module->getAttrOfType<ArrayAttr>(ONNXDialect::kMetadata),
                 *model.mutable_metadata_props());
  return true;
}

static bool exportModel(ModuleOp module, ModelParts &parts, ByteRope &rope,
                        std::string &error) {
  google::protobuf::LogSilencer silencer;
  GraphOp graph = getMainGraph(module);
  if (!graph || graph.getBody().empty()) {
    error = "cannot export: the module has no onnx.graph";
    return false;
  }
  if (!exportFacts(module, parts.model)) {
    error = "cannot export: attribute onnx.extra of the module is damaged";
    return false;
  }
  GraphExporter exporter(module);
  bool good = exporter.exportMainGraph(graph, parts);
  for (FunctionOp function : module.getOps<FunctionOp>())
    good =
        good && exporter.exportFunction(function, *parts.model.add_functions());
  if (!good) {
    error = "cannot export: " + exporter.getError();
    // Names may have line breaks; an error is one line.
    llvm::for_each(error, [](char &c) {
      if (static_cast<unsigned char>(c) < ' ')
        c = ' ';
    });
    return false;
  }
  rope = serialize(parts);
  if (rope.size() >= uint64_t(1) << 31) {
    error = "cannot export: the model would have " +
            std::to_string(rope.size()) +
            " bytes, but a protobuf file can have 2 GiB; weights of this size "
            "must be external data";
    return false;
  }
  return true;
}

bool prefill::exportONNX(ModuleOp module, std::string &bytes,
                         std::string &error) {
  ModelParts parts;
  ByteRope rope;
  if (!exportModel(module, parts, rope, error))
    return false;
  bytes.clear();
  bytes.reserve(rope.size());
  llvm::raw_string_ostream os(bytes);
  rope.write(os);
  return true;
}

/// The files of external data that the model still uses, each once.
static llvm::SetVector<StringAttr> getWeightFiles(ModuleOp module) {
  llvm::SetVector<StringAttr> files;
  AttrTypeWalker walker;
  walker.addWalk([&](WeightAttr weight) { files.insert(weight.getFile()); });
  module.walk([&](Operation *op) { walker.walk(op->getAttrDictionary()); });
  return files;
}

bool prefill::exportONNX(ModuleOp module, StringRef path,
                         const ExportOptions &options, std::string &error) {
  ModelParts parts;
  ByteRope rope;
  if (!exportModel(module, parts, rope, error))
    return false;
  StringRef folder = llvm::sys::path::parent_path(path);
  FileBatch batch;
  for (const auto &[source, target] : options.companions)
    if (!batch.move(source, target, error))
      return false;
  for (StringAttr file : getWeightFiles(module)) {
    llvm::Expected<std::string> source =
        resolveWeightPath(getModelDir(module), file.getValue());
    if (!source) {
      error = "cannot export: " + llvm::toString(source.takeError());
      return false;
    }
    SmallString<256> target(folder);
    llvm::sys::path::append(target, file.getValue());
    // Either the weights that the model uses, or their place beside it.
    bool overwrites = false;
    if ((!llvm::sys::fs::equivalent(*source, path, overwrites) && overwrites) ||
        target == path) {
      error = ("cannot write '" + path +
               "': the model's own weights are in this file")
                  .str();
      return false;
    }
    if (!batch.place(*source, target, options.externalData, error))
      return false;
  }
  return batch.write(
             path, [&](raw_ostream &os) { rope.write(os); }, error) &&
         batch.commit(error);
}
