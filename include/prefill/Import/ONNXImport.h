//===- ONNXImport.h - From ONNX files to the onnx dialect -------*- C++ -*-===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#ifndef PREFILL_IMPORT_ONNXIMPORT_H
#define PREFILL_IMPORT_ONNXIMPORT_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/OwningOpRef.h"
#include "llvm/Support/MemoryBuffer.h"
#include <memory>
#include <string>

namespace prefill {

/// How to import a model.
struct ImportOptions {
  /// Larger files are refused; protobuf cannot hold more than 2 GiB.
  uint64_t maxFileBytes = (uint64_t(1) << 31) - 1;
  /// How deep messages may be nested: a subgraph is three levels.
  int maxDepth = 100;
  /// Check that the files of external data exist and are large enough. Their
  /// contents are never read.
  bool checkExternalData = true;
};

/// Imports the ONNX model in file `path` into the `onnx` dialect, which is
/// loaded into `context`. On failure the result is null and `error` is one line
/// that names the file, the place in it and what to do.
mlir::OwningOpRef<mlir::ModuleOp> importONNX(llvm::StringRef path,
                                             mlir::MLIRContext *context,
                                             const ImportOptions &options,
                                             std::string &error);

/// Imports a model from memory. `name` stands for it in messages; its external
/// data is looked for in folder `modelDir`. The module keeps `buffer` alive as
/// long as it needs the bytes of large tensors.
mlir::OwningOpRef<mlir::ModuleOp>
importONNX(std::unique_ptr<llvm::MemoryBuffer> buffer, llvm::StringRef name,
           llvm::StringRef modelDir, mlir::MLIRContext *context,
           const ImportOptions &options, std::string &error);

} // namespace prefill

#endif // PREFILL_IMPORT_ONNXIMPORT_H
