//===- ModelWriter.h - Models as pieces of bytes ----------------*- C++ -*-===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#ifndef PREFILL_LIB_EXPORT_MODELWRITER_H
#define PREFILL_LIB_EXPORT_MODELWRITER_H

#include "onnx/onnx-ml.pb.h"
#include "llvm/ADT/ArrayRef.h"
#include "llvm/Support/raw_ostream.h"
#include <string>
#include <vector>

namespace prefill {

/// Bytes in pieces, some of them owned by others: large weights go from the
/// imported file to the exported one without a copy in memory.
class ByteRope {
public:
  void add(std::string bytes);
  /// Adds bytes that live longer than the rope.
  void addLent(llvm::ArrayRef<char> bytes);
  void append(ByteRope &&other);
  uint64_t size() const { return total; }
  void write(llvm::raw_ostream &os) const;

private:
  struct Piece {
    std::string owned;
    llvm::ArrayRef<char> lent;
  };
  std::vector<Piece> pieces;
  uint64_t total = 0;
};

/// A model to be written: its initializers, whose large data may be lent, are
/// apart from its graph.
struct ModelParts {
  ::onnx::ModelProto model;
  struct Initializer {
    ::onnx::TensorProto proto;
    llvm::ArrayRef<char> lent;
  };
  std::vector<Initializer> initializers;
};

/// The wire format of `parts`, fields in the order in which protobuf writes
/// them. Consumes `parts`.
ByteRope serialize(ModelParts &parts);

} // namespace prefill

#endif // PREFILL_LIB_EXPORT_MODELWRITER_H
