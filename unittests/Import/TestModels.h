//===- TestModels.h - Models in text form and what must hold ----*- C++ -*-===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#ifndef PREFILL_UNITTESTS_IMPORT_TESTMODELS_H
#define PREFILL_UNITTESTS_IMPORT_TESTMODELS_H

#include "mlir/IR/OwningOpRef.h"
#include "onnx/onnx-ml.pb.h"
#include "prefill/Dialect/ONNX/ONNX.h"
#include "prefill/Export/ONNXExport.h"
#include "prefill/Import/ONNXImport.h"
#include "gtest/gtest.h"

namespace prefill::test {

/// A model from protobuf's text format; fails the test if it has mistakes.
::onnx::ModelProto parseModel(llvm::StringRef text);

/// A model with the given contents of its graph.
::onnx::ModelProto parseGraph(llvm::StringRef text);

/// Imports a model from memory.
mlir::OwningOpRef<mlir::ModuleOp> importModel(const ::onnx::ModelProto &model,
                                              mlir::MLIRContext &context,
                                              std::string &error,
                                              llvm::StringRef modelDir = "",
                                              ImportOptions options = {});

/// Imports a model that must be good.
mlir::OwningOpRef<mlir::ModuleOp> importGood(const ::onnx::ModelProto &model,
                                             mlir::MLIRContext &context,
                                             llvm::StringRef modelDir = "");

/// Exports a module that must be exportable.
::onnx::ModelProto exportGood(mlir::ModuleOp module);

/// Checks that `model` comes back equal: from the IR, and from the IR printed
/// and parsed in both forms. The imported module must verify.
void expectRoundTrip(const ::onnx::ModelProto &model,
                     llvm::StringRef modelDir = "");

/// Checks that the import of `bytes` fails with one line that has `message`.
void expectError(const std::string &bytes, llvm::StringRef message);
void expectError(const ::onnx::ModelProto &model, llvm::StringRef message);

/// Differences of two models, or "".
std::string compare(const ::onnx::ModelProto &a, const ::onnx::ModelProto &b);

/// A folder that goes with the test.
class TemporaryFolder {
public:
  TemporaryFolder();
  ~TemporaryFolder();
  std::string path(llvm::StringRef name) const;
  /// Writes a file of `size` bytes 0, 1, 2, ... 250, 0, ...
  void writeData(llvm::StringRef name, size_t size) const;
  void write(llvm::StringRef name, const std::string &bytes) const;
  /// The names of all files and folders inside, sorted.
  std::vector<std::string> list() const;

private:
  std::string root;
};

} // namespace prefill::test

#endif // PREFILL_UNITTESTS_IMPORT_TESTMODELS_H
