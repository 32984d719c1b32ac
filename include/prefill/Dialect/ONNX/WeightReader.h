//===- WeightReader.h - Bytes of external weights ---------------*- C++ -*-===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//
//
// The only way to the bytes behind `#onnx.weight`: files beside the model are
// mapped, never loaded as a whole, and paths that leave the model's folder are
// refused.
//
//===----------------------------------------------------------------------===//

#ifndef PREFILL_DIALECT_ONNX_WEIGHTREADER_H
#define PREFILL_DIALECT_ONNX_WEIGHTREADER_H

#include "prefill/Dialect/ONNX/ONNX.h"
#include "llvm/ADT/StringMap.h"
#include "llvm/Support/Error.h"
#include "llvm/Support/MemoryBuffer.h"

namespace prefill::onnx {

/// Checks that `file`, the location of external data, is a relative path
/// inside the model's folder and gives the path to open. Absolute paths and
/// `..` are refused. Symbolic links may point anywhere, as those of download
/// caches do: the user's file system made them, not the model.
llvm::Expected<std::string> resolveWeightPath(llvm::StringRef modelDir,
                                              llvm::StringRef file);

/// Reads weights; keeps the files that it has opened mapped until it dies.
class WeightReader {
public:
  explicit WeightReader(llvm::StringRef modelDir) : modelDir(modelDir) {}
  /// The weights of the module around `op`.
  explicit WeightReader(mlir::Operation *op) : modelDir(getModelDir(op)) {}

  /// The bytes of `weight`, valid as long as this reader. Reads no page before
  /// it is touched.
  llvm::Expected<llvm::ArrayRef<char>> read(WeightAttr weight);

private:
  std::string modelDir;
  llvm::StringMap<std::unique_ptr<llvm::MemoryBuffer>> files;
};

} // namespace prefill::onnx

#endif // PREFILL_DIALECT_ONNX_WEIGHTREADER_H
