//===- ModelWriter.cpp - Models as pieces of bytes ------------------------===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#include "ModelWriter.h"

using namespace prefill;
using ::onnx::GraphProto;
using ::onnx::ModelProto;
using ::onnx::TensorProto;

void ByteRope::add(std::string bytes) {
  total += bytes.size();
  if (!pieces.empty() && pieces.back().lent.empty())
    pieces.back().owned += bytes;
  else
    pieces.push_back({std::move(bytes), {}});
}

void ByteRope::addLent(llvm::ArrayRef<char> bytes) {
  total += bytes.size();
  pieces.push_back({{}, bytes});
}

void ByteRope::append(ByteRope &&other) {
  total += other.total;
  for (Piece &piece : other.pieces)
    pieces.push_back(std::move(piece));
}

void ByteRope::write(llvm::raw_ostream &os) const {
  for (const Piece &piece : pieces) {
    os << piece.owned;
    os.write(piece.lent.data(), piece.lent.size());
  }
}

/// The tag and the length of a length-delimited field.
static std::string makeHeader(uint32_t field, uint64_t length) {
  std::string bytes;
  for (uint64_t value : {uint64_t(field) << 3 | 2, length}) {
    for (; value >= 0x80; value >>= 7)
      bytes.push_back(static_cast<char>(value | 0x80));
    bytes.push_back(static_cast<char>(value));
  }
  return bytes;
}

/// The wire format of a tensor; `raw_data` (field 9) may be lent.
static ByteRope serialize(ModelParts::Initializer &initializer) {
  ByteRope rope;
  TensorProto &proto = initializer.proto;
  if (initializer.lent.empty()) {
    rope.add(proto.SerializeAsString());
    return rope;
  }
  // Fields with higher numbers follow; those for elements are empty.
  TensorProto after;
  after.GetReflection()->Swap(&after, &proto);
  TensorProto before;
  before.mutable_dims()->Swap(after.mutable_dims());
  if (after.has_data_type())
    before.set_data_type(after.data_type());
  if (after.has_segment())
    before.mutable_segment()->Swap(after.mutable_segment());
  if (after.has_name())
    before.set_name(after.name());
  after.clear_data_type();
  after.clear_segment();
  after.clear_name();
  rope.add(before.SerializeAsString());
  rope.add(
      makeHeader(TensorProto::kRawDataFieldNumber, initializer.lent.size()));
  rope.addLent(initializer.lent);
  rope.add(after.SerializeAsString());
  return rope;
}

ByteRope prefill::serialize(ModelParts &parts) {
  // The graph: nodes and name, initializers, the rest.
  GraphProto &graph = *parts.model.mutable_graph();
  GraphProto before;
  before.mutable_node()->Swap(graph.mutable_node());
  if (graph.has_name())
    before.set_name(graph.name());
  graph.clear_name();
  ByteRope graphRope;
  graphRope.add(before.SerializeAsString());
  before.Clear();
  for (ModelParts::Initializer &initializer : parts.initializers) {
    ByteRope tensor = ::serialize(initializer);
    graphRope.add(
        makeHeader(GraphProto::kInitializerFieldNumber, tensor.size()));
    graphRope.append(std::move(tensor));
  }
  graphRope.add(graph.SerializeAsString());

  // The model: fields below the graph's number, the graph, the rest.
  ModelProto &after = parts.model;
  after.clear_graph();
  ModelProto head;
  if (after.has_ir_version())
    head.set_ir_version(after.ir_version());
  if (after.has_producer_name())
    head.set_producer_name(after.producer_name());
  if (after.has_producer_version())
    head.set_producer_version(after.producer_version());
  if (after.has_domain())
    head.set_domain(after.domain());
  if (after.has_model_version())
    head.set_model_version(after.model_version());
  if (after.has_doc_string())
    head.set_doc_string(after.doc_string());
  after.clear_ir_version();
  after.clear_producer_name();
  after.clear_producer_version();
  after.clear_domain();
  after.clear_model_version();
  after.clear_doc_string();
  ByteRope rope;
  rope.add(head.SerializeAsString());
  rope.add(makeHeader(ModelProto::kGraphFieldNumber, graphRope.size()));
  rope.append(std::move(graphRope));
  rope.add(after.SerializeAsString());
  return rope;
}
