//===- ModelReader.h - Splits a model file ----------------------*- C++ -*-===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//
//
// Protobuf copies every byte of a message. To leave the weights of a model in
// the mapped file, the initializers of the main graph are cut out of its wire
// format first and are parsed one by one, without their `raw_data`.
//
//===----------------------------------------------------------------------===//

#ifndef PREFILL_LIB_IMPORT_MODELREADER_H
#define PREFILL_LIB_IMPORT_MODELREADER_H

#include "onnx/onnx-ml.pb.h"
#include "llvm/ADT/ArrayRef.h"
#include <optional>
#include <string>
#include <vector>

namespace prefill {

/// A model whose main graph's initializers stay where they are.
struct SplitModel {
  /// The model; its graph has no initializers.
  ::onnx::ModelProto model;
  /// The wire formats of the initializers, in order.
  std::vector<llvm::ArrayRef<char>> initializers;
};

/// Splits and parses a model. On failure, `error` is what is wrong with it.
bool readModel(llvm::ArrayRef<char> bytes, int maxDepth, SplitModel &result,
               std::string &error);

/// Parses an initializer without its `raw_data`, which `raw` gets.
bool readInitializer(llvm::ArrayRef<char> bytes, ::onnx::TensorProto &proto,
                     std::optional<llvm::ArrayRef<char>> &raw);

} // namespace prefill

#endif // PREFILL_LIB_IMPORT_MODELREADER_H
