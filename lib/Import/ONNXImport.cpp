//===- ONNXImport.cpp - From ONNX files to the onnx dialect ---------------===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#include "prefill/Import/ONNXImport.h"
#include "GraphImport.h"
#include "prefill/Dialect/ONNX/WeightReader.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"
#include <google/protobuf/stubs/logging.h>

using namespace mlir;
using namespace prefill;
using namespace prefill::onnx;

namespace {
/// Checks that external data lies inside the model's folder and exists; looks
/// at each file once.
class ExternalFiles {
public:
  ExternalFiles(StringRef modelDir, bool checkFiles)
      : modelDir(modelDir), checkFiles(checkFiles) {}

  std::string check(StringRef file, int64_t offset, int64_t size) {
    auto [it, isNew] = files.try_emplace(file);
    File &entry = it->second;
    if (isNew) {
      llvm::Expected<std::string> path = resolveWeightPath(modelDir, file);
      if (!path)
        entry.problem = "has " + llvm::toString(path.takeError());
      else if (checkFiles)
        look(*path, entry);
    }
    if (!entry.problem.empty() || !checkFiles)
      return entry.problem;
    if (offset > entry.size || size > entry.size - offset)
      return ("has external data at byte " + Twine(offset) + " of '" + file +
              "', " + Twine(size) + " bytes long, but the file has only " +
              Twine(entry.size) + " bytes; it is cut off or of another model")
          .str();
    return "";
  }

private:
  struct File {
    int64_t size = 0;
    std::string problem;
  };

  static void look(StringRef path, File &entry) {
    llvm::sys::fs::file_status status;
    std::error_code code = llvm::sys::fs::status(path, status);
    if (code)
      entry.problem = ("has external data in '" + path +
                       "', which cannot be "
                       "read: " +
                       code.message() + "; put the file beside the model")
                          .str();
    else if (!llvm::sys::fs::is_regular_file(status))
      entry.problem =
          ("has external data in '" + path + "', which is not a file").str();
    else
      entry.size = status.getSize();
  }

  std::string modelDir;
  bool checkFiles;
  llvm::StringMap<File> files;
};

/// Sets the module's attributes from the fields of `model` and clears them.
class ModelFacts {
public:
  ModelFacts(ModuleOp module, ::onnx::ModelProto &model)
      : module(module), model(model), b(module.getContext()) {}

  void run(ArrayAttr opsets, StringRef modelDir) {
    module->setAttr(ONNXDialect::kIrVersion,
                    b.getI64IntegerAttr(model.ir_version()));
    module->setAttr(ONNXDialect::kOpsetImports, opsets);
    set(ONNXDialect::kProducerName, model.has_producer_name(),
        model.producer_name());
    set(ONNXDialect::kProducerVersion, model.has_producer_version(),
        model.producer_version());
    set(ONNXDialect::kModelDomain, model.has_domain(), model.domain());
    set(ONNXDialect::kDocString, model.has_doc_string(), model.doc_string());
    if (model.has_model_version())
      module->setAttr(ONNXDialect::kModelVersion,
                      b.getI64IntegerAttr(model.model_version()));
    if (ArrayAttr metadata =
            importMetadata(b.getContext(), model.metadata_props())) {
      module->setAttr(ONNXDialect::kMetadata, metadata);
      model.clear_metadata_props();
    }
    set(ONNXDialect::kModelDir, !modelDir.empty(), modelDir.str());
    model.clear_ir_version();
    model.clear_opset_import();
    model.clear_producer_name();
    model.clear_producer_version();
    model.clear_domain();
    model.clear_doc_string();
    model.clear_model_version();
    model.clear_graph();
    model.clear_functions();
    if (model.ByteSizeLong() != 0)
      module->setAttr(ONNXDialect::kExtra, toBytes(b.getContext(), model));
  }

private:
  void set(StringRef name, bool has, const std::string &text) {
    if (has)
      module->setAttr(name, b.getStringAttr(text));
  }

  ModuleOp module;
  ::onnx::ModelProto &model;
  Builder b;
};
} // namespace

OwningOpRef<ModuleOp>
prefill::importONNX(std::unique_ptr<llvm::MemoryBuffer> buffer, StringRef name,
                    StringRef modelDir, MLIRContext *context,
                    const ImportOptions &options, std::string &error) {
  // Protobuf would write its own opinion of damaged files to stderr.
  google::protobuf::LogSilencer silencer;
  context->loadDialect<ONNXDialect>();
  auto fail = [&](const Twine &message) -> OwningOpRef<ModuleOp> {
    error = ("'" + name + "': " + message).str();
    // Names in a model may have line breaks; an error is one line.
    llvm::for_each(error, [](char &c) {
      if (static_cast<unsigned char>(c) < ' ')
        c = ' ';
    });
    return nullptr;
  };

  std::shared_ptr<llvm::MemoryBuffer> shared(std::move(buffer));
  if (shared->getBufferSize() > options.maxFileBytes)
    return fail("has " + Twine(shared->getBufferSize()) +
                " bytes, more than the " + Twine(options.maxFileBytes) +
                " that a protobuf file can have; export the weights as "
                "external data");
  if (shared->getBufferSize() == 0)
    return fail("is empty; export or download it again");
  SplitModel split;
  std::string problem;
  if (!readModel({shared->getBufferStart(), shared->getBufferSize()},
                 options.maxDepth, split, problem))
    return fail(problem);
  ::onnx::ModelProto &model = split.model;
  if (!model.has_graph())
    return fail("has no graph; it is no ONNX model");
  if (!model.has_ir_version())
    return fail("has no ir_version; it is no ONNX model, or damaged");

  ExternalFiles files(modelDir, options.checkExternalData);
  auto check = [&](StringRef file, int64_t offset, int64_t size) {
    return files.check(file, offset, size);
  };
  GraphImporter importer(context, check, shared);
  OwningOpRef<ModuleOp> module =
      ModuleOp::create(NameLoc::get(StringAttr::get(context, name)));
  ArrayAttr opsets = importer.importOpsets(model.opset_import());
  if (!opsets || !importer.importMainGraph(split, *module))
    return fail(importer.getError());
  llvm::StringSet<> functions;
  for (::onnx::FunctionProto &function : *model.mutable_functions()) {
    // Unambiguous: names may contain anything but a zero byte.
    std::string key =
        function.domain() + '\0' + function.name() + '\0' + function.overload();
    if (!functions.insert(key).second)
      return fail("function '" + Twine(function.name()) + "' of domain '" +
                  function.domain() + "' is there twice");
    if (!importer.importFunction(function, *module))
      return fail(importer.getError());
  }
  ModelFacts(*module, model).run(opsets, modelDir);
  return module;
}

OwningOpRef<ModuleOp> prefill::importONNX(StringRef path, MLIRContext *context,
                                          const ImportOptions &options,
                                          std::string &error) {
  // Asked before it is opened: a folder opens, but does not read.
  llvm::sys::fs::file_status status;
  if (std::error_code code = llvm::sys::fs::status(path, status)) {
    error = ("'" + path + "': cannot be read: " + code.message()).str();
    return nullptr;
  }
  if (llvm::sys::fs::is_directory(status)) {
    error = ("'" + path + "': is a folder; name the .onnx file in it").str();
    return nullptr;
  }
  auto buffer = llvm::MemoryBuffer::getFile(path, /*IsText=*/false,
                                            /*RequiresNullTerminator=*/false);
  if (!buffer) {
    error = ("'" + path + "': cannot be read: " + buffer.getError().message())
                .str();
    return nullptr;
  }
  return importONNX(std::move(*buffer), path,
                    llvm::sys::path::parent_path(path), context, options,
                    error);
}
