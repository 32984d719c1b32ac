//===- ONNXExport.h - From the onnx dialect to ONNX files -------*- C++ -*-===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#ifndef PREFILL_EXPORT_ONNXEXPORT_H
#define PREFILL_EXPORT_ONNXEXPORT_H

#include "mlir/IR/BuiltinOps.h"
#include <string>
#include <utility>
#include <vector>

namespace prefill {

/// What becomes of the files with external data when a model is written. In the
/// folder of the imported model every choice uses them where they are.
enum class ExternalData {
  /// The same bytes, under the same name beside the new model: a hard link, or
  /// a copy where the file system cannot link. (ONNX Runtime refuses external
  /// data outside the model's folder, through `..` and symbolic links alike.)
  Reference,
  /// A copy of the files that are still used. The onnx Python package loads
  /// models only with these: it refuses links of both kinds.
  Copy,
  /// A hard link, or an error.
  Link,
};

/// How to export a model.
struct ExportOptions {
  ExternalData externalData = ExternalData::Reference;
  /// Files, of the same file system, and the names they get together with the
  /// model and before it: all of them or, on failure, none.
  std::vector<std::pair<std::string, std::string>> companions;
};

/// Writes the model in `module` to the ONNX file `path` and puts its external
/// data beside it. All files appear complete or not at all, and older ones with
/// their names stay until then. On failure the result is false and `error` is
/// one line.
bool exportONNX(mlir::ModuleOp module, llvm::StringRef path,
                const ExportOptions &options, std::string &error);

/// Writes the model to memory; external data stays where it is.
bool exportONNX(mlir::ModuleOp module, std::string &bytes, std::string &error);

} // namespace prefill

#endif // PREFILL_EXPORT_ONNXEXPORT_H
