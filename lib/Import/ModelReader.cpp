//===- ModelReader.cpp - Splits a model file ------------------------------===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#include "ModelReader.h"
#include "llvm/ADT/STLFunctionalExtras.h"
#include "llvm/ADT/StringRef.h"
#include <google/protobuf/io/coded_stream.h>

using namespace prefill;
using llvm::ArrayRef;

namespace {
/// One field of a message in wire format.
struct WireField {
  uint32_t number;
  bool hasBytes;
  /// The field as a whole, and what a length-delimited field contains.
  ArrayRef<char> all, bytes;
};
} // namespace

/// Reads a base-128 number from the front of `bytes`.
static bool readVarint(ArrayRef<char> &bytes, uint64_t &value) {
  value = 0;
  for (unsigned shift = 0; shift < 70 && !bytes.empty(); shift += 7) {
    uint8_t byte = bytes.front();
    bytes = bytes.drop_front();
    if (shift < 64)
      value |= uint64_t(byte & 0x7f) << shift;
    if (byte < 0x80)
      return true;
  }
  return false;
}

/// Calls `visit` for each field of a message; false when it is malformed.
static bool forEachField(ArrayRef<char> bytes,
                         llvm::function_ref<void(const WireField &)> visit) {
  while (!bytes.empty()) {
    const char *begin = bytes.data();
    uint64_t tag, length = 0;
    if (!readVarint(bytes, tag) || tag > UINT32_MAX || tag >> 3 == 0)
      return false;
    WireField field{static_cast<uint32_t>(tag >> 3), false, {}, {}};
    switch (tag & 7) {
    case 0:
      if (!readVarint(bytes, length))
        return false;
      length = 0;
      break;
    case 1:
      length = 8;
      break;
    case 2:
      field.hasBytes = true;
      if (!readVarint(bytes, length))
        return false;
      break;
    case 5:
      length = 4;
      break;
    default:
      // Groups: ONNX never had any.
      return false;
    }
    if (length > bytes.size())
      return false;
    field.bytes = bytes.take_front(length);
    bytes = bytes.drop_front(length);
    field.all = ArrayRef<char>(begin, bytes.data() - begin);
    visit(field);
  }
  return true;
}

template <typename Message>
static bool parse(const std::string &bytes, int maxDepth, Message &message) {
  google::protobuf::io::CodedInputStream stream(
      reinterpret_cast<const uint8_t *>(bytes.data()), bytes.size());
  stream.SetRecursionLimit(maxDepth);
  return message.MergeFromCodedStream(&stream) &&
         stream.ConsumedEntireMessage();
}

static void append(std::string &to, ArrayRef<char> bytes) {
  to.append(bytes.data(), bytes.size());
}

bool prefill::readModel(ArrayRef<char> bytes, int maxDepth, SplitModel &result,
                        std::string &error) {
  using ::onnx::GraphProto;
  using ::onnx::ModelProto;
  // Protobuf merges repeated occurrences of a message as if their contents had
  // been one; appending them does the same.
  std::string modelBytes, graphBytes;
  bool hasGraph = false, goodGraph = true;
  bool good = forEachField(bytes, [&](const WireField &field) {
    if (field.number != ModelProto::kGraphFieldNumber || !field.hasBytes)
      return append(modelBytes, field.all);
    hasGraph = true;
    goodGraph &= forEachField(field.bytes, [&](const WireField &inner) {
      if (inner.number == GraphProto::kInitializerFieldNumber && inner.hasBytes)
        result.initializers.push_back(inner.bytes);
      else
        append(graphBytes, inner.all);
    });
  });
  auto parseAll = [&](int depth) {
    result.model.Clear();
    return parse(modelBytes, depth, result.model) &&
           (!hasGraph ||
            parse(graphBytes, depth - 1, *result.model.mutable_graph()));
  };
  if (good && goodGraph && parseAll(maxDepth))
    return true;
  // Protobuf does not say which: is it only the nesting?
  if (good && goodGraph && parseAll(10 * maxDepth))
    error = "is nested deeper than " + std::to_string(maxDepth) +
            " levels (a subgraph is three); flatten its subgraphs";
  else
    error = "is no ONNX model, or is cut off or damaged; export or download it "
            "again";
  return false;
}

bool prefill::readInitializer(ArrayRef<char> bytes, ::onnx::TensorProto &proto,
                              std::optional<ArrayRef<char>> &raw) {
  std::string rest;
  bool good = forEachField(bytes, [&](const WireField &field) {
    // The last occurrence counts.
    if (field.number == ::onnx::TensorProto::kRawDataFieldNumber &&
        field.hasBytes)
      raw = field.bytes;
    else
      append(rest, field.all);
  });
  return good && proto.ParseFromString(rest);
}
