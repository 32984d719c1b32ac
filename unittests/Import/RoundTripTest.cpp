//===- RoundTripTest.cpp - What is imported is exported again -------------===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#include "TestModels.h"
#include "mlir/IR/DialectResourceBlobManager.h"
#include "llvm/Support/FileSystem.h"

using namespace mlir;
using namespace prefill;
using namespace prefill::test;

namespace {

TEST(RoundTrip, ModelFields) {
  expectRoundTrip(parseModel(R"(
    ir_version: 13 producer_name: 'p' producer_version: '' domain: 'd'
    model_version: -3 doc_string: 'two\nlines'
    opset_import { version: 21 } opset_import { domain: 'x' version: 1 }
    opset_import { domain: '' version: 22 }
    metadata_props { key: 'b' value: '1' } metadata_props { key: 'a' value: '' }
    metadata_props { key: 'b' value: '2' }
    training_info { initialization { name: 'i' } algorithm { name: 'a' }
                    update_binding { key: 'k' value: 'v' } }
    configuration { name: 'c' num_devices: 2 device: 'x' device: 'y' }
    graph { })"));
}

TEST(RoundTrip, MetadataWithoutValue) {
  expectRoundTrip(parseModel(R"(ir_version: 8 graph { name: 'g' }
    metadata_props { key: 'b' } metadata_props { value: 'a' })"));
}

TEST(RoundTrip, GraphFields) {
  expectRoundTrip(parseGraph(R"(
    doc_string: '' metadata_props { key: 'k' value: 'v' }
    input { name: 'x' type { tensor_type { elem_type: 1 } } }
    output { name: 'y' type { tensor_type { elem_type: 1 } } doc_string: 'd'
             metadata_props { key: 'k' value: 'v' } }
    output { name: 'x' }
    node { input: 'x' output: 'z' op_type: 'Relu' }
    node { input: 'z' output: 'y' op_type: 'Relu' }
    value_info { name: 'z' type { tensor_type { elem_type: 1 } } }
    value_info { name: 'nothing' type { tensor_type { elem_type: 7 } } }
    value_info { name: 'y' type { tensor_type { elem_type: 1 shape { } } } }
    value_info { name: 'x' doc_string: 'of an input' }
    value_info { name: 'z' type { tensor_type { elem_type: 1 } } }
    quantization_annotation { tensor_name: 'z'
      quant_parameter_tensor_names { key: 'SCALE_TENSOR' value: 's' } })"));
}

TEST(RoundTrip, Types) {
  std::string text;
  int count = 0;
  auto add = [&](const std::string &type) {
    text += "input { name: 'i" + std::to_string(count++) + "' " + type + " }";
  };
  for (int elementType = 0; elementType <= 29; ++elementType)
    add("type { tensor_type { elem_type: " + std::to_string(elementType) +
        " shape { dim { dim_value: 2 } } } }");
  add("");
  add("type { }");
  add("type { tensor_type { } }");
  add("type { tensor_type { elem_type: 1 shape { } } }");
  add("type { denotation: 'IMAGE' tensor_type { elem_type: 1 shape { "
      "dim { dim_param: 'N' denotation: 'DATA_BATCH' } dim { } } } }");
  add("type { tensor_type { elem_type: 1 shape { dim { dim_param: '' } "
      "dim { dim_value: -1 } dim { dim_value: 0 } dim { dim_param: 'a + b' } "
      "dim { dim_value: -9223372036854775808 } } } }");
  add("type { tensor_type { elem_type: 1 shape { "
      "dim { dim_value: 9223372036854775807 } "
      "dim { dim_value: 9223372036854775807 } } } }");
  add("type { sequence_type { elem_type { tensor_type { elem_type: 8 } } } }");
  add("type { sequence_type { } }");
  add("type { sequence_type { elem_type { } } }");
  add("type { map_type { key_type: 7 value_type { sequence_type { elem_type { "
      "tensor_type { elem_type: 10 shape { dim { dim_param: 'n' } } } } } } } "
      "}");
  add("type { map_type { } }");
  add("type { optional_type { elem_type { tensor_type { elem_type: 1 } } } }");
  add("type { sparse_tensor_type { elem_type: 1 shape { dim { dim_value: 3 } } "
      "} }");
  add("type { opaque_type { domain: 'd' name: 'n' } }");
  add("type { opaque_type { } }");
  // Found by the fuzzer: no element type, in all kinds of types.
  add("type { sparse_tensor_type { shape { dim { dim_param: 'w' } } } }");
  add("type { optional_type { elem_type { sparse_tensor_type { } } } }");
  expectRoundTrip(parseGraph(text));
}

TEST(RoundTrip, NodeFields) {
  expectRoundTrip(parseGraph(R"(
    input { name: 'x' }
    node { input: 'x' input: '' input: 'x' input: ''
           output: '' output: 'y' output: '' op_type: 'Odd "op"\n'
           domain: 'my.domain' name: '' overload: 'o' doc_string: 'd'
           metadata_props { key: 'k' value: 'v' }
           device_configurations { configuration_id: 'c' pipeline_stage: 1
             sharding_spec { tensor_name: 'x' device: 0 device: -1
               index_to_device_group_map { key: 1 value: 2 }
               sharded_dim { axis: 0 simple_sharding { dim_param: 'n'
                                                       num_shards: 2 } } } } }
    node { op_type: 'NoInputsNoOutputs' domain: '' }
    node { output: 'x 1' op_type: 'Spaces' name: 'a b' }
    node { input: 'x 1' output: '%0' op_type: 'Percent' }
    node { input: '%0' output: '0' op_type: 'Digit' }
    node { input: '0' output: '/a/b' op_type: 'Slash' }
    node { input: '/a/b' output: 'a/b' op_type: 'Slash' })"));
}

TEST(RoundTrip, Attributes) {
  expectRoundTrip(parseGraph(R"(
    node { op_type: 'A' output: 'y'
      attribute { name: 'z' type: FLOAT f: 1.5 }
      attribute { name: 'nan' type: FLOAT f: nan }
      attribute { name: 'inf' type: FLOAT f: -inf }
      attribute { name: 'zero' type: FLOAT f: -0.0 }
      attribute { name: 'i' type: INT i: -9223372036854775808 }
      attribute { name: 's' type: STRING s: '\000\377"\n' }
      attribute { name: 'empty' type: STRING s: '' }
      attribute { name: 'fs' type: FLOATS floats: 0.1 floats: nan floats: inf
                  floats: -0.0 floats: 1e-45 }
      attribute { name: 'fs0' type: FLOATS }
      attribute { name: 'is' type: INTS ints: 1 ints: -1 }
      attribute { name: 'is0' type: INTS }
      attribute { name: 'ss' type: STRINGS strings: '' strings: 'b' strings: 'a' }
      attribute { name: 'ss0' type: STRINGS }
      attribute { name: 'ts0' type: TENSORS }
      attribute { name: 'gs0' type: GRAPHS }
      attribute { name: 'tps0' type: TYPE_PROTOS }
      attribute { name: 'sps0' type: SPARSE_TENSORS }
      attribute { name: 'doc' type: INT i: 1 doc_string: 'why' }
      attribute { name: 'a b' type: INT i: 1 }
      attribute { name: 'default' type: INT }
      attribute { name: 'both' type: INT i: 1 f: 2 ints: 3
                  g { name: 'stray' } t { data_type: 1 } }
      attribute { name: 'old' i: 3 }
      attribute { name: 'olds' floats: 3 }
      attribute { name: 'undefined' type: UNDEFINED s: 'x' }
      attribute { name: 'tp' type: TYPE_PROTO
                  tp { tensor_type { elem_type: 1 } } }
      attribute { name: 'tp_odd' type: TYPE_PROTO tp { denotation: 'd' } }
      attribute { name: 'tps' type: TYPE_PROTOS type_protos { }
                  type_protos { sequence_type { elem_type { } } } }
      attribute { name: 'sp' type: SPARSE_TENSOR sparse_tensor {
        values { dims: 1 data_type: 1 float_data: 2 }
        indices { dims: 1 data_type: 7 int64_data: 4 } dims: 5 } }
      attribute { name: 'sps' type: SPARSE_TENSORS sparse_tensors { dims: 1 }
                  sparse_tensors { } }
    })"));
}

TEST(RoundTrip, TensorAttributes) {
  expectRoundTrip(parseGraph(R"(
    node { op_type: 'A' output: 'y'
      attribute { name: 'raw' type: TENSOR
                  t { dims: 2 data_type: 7 raw_data: '\001\000\000\000\000\000\000\000\377\377\377\377\377\377\377\377' } }
      attribute { name: 'named' type: TENSOR doc_string: 'd'
                  t { name: 'n' data_type: 1 raw_data: '\000\000\300\177' doc_string: 't' } }
      attribute { name: 'emptyname' type: TENSOR
                  t { name: '' data_type: 9 raw_data: '\001' } }
      attribute { name: 'typed' type: TENSOR
                  t { dims: 2 data_type: 1 float_data: 1 float_data: 2 } }
      attribute { name: 'list' type: TENSORS
                  tensors { dims: 0 data_type: 1 }
                  tensors { dims: 0 data_type: 1 raw_data: '' }
                  tensors { dims: 1 data_type: 8 string_data: 'x' name: 't' } }
      attribute { name: 'external' type: TENSOR
                  t { dims: 2 data_type: 1 data_location: EXTERNAL
                      external_data { key: 'location' value: 'w' }
                      external_data { key: 'offset' value: '16' }
                      external_data { key: 'length' value: '8' } } }
    })"),
                  [] {
                    static TemporaryFolder folder;
                    folder.writeData("w", 24);
                    return folder.path("");
                  }());
}

TEST(RoundTrip, Subgraphs) {
  expectRoundTrip(parseGraph(R"(
    input { name: 'c' type { tensor_type { elem_type: 9 shape { } } } }
    input { name: 'x' type { tensor_type { elem_type: 1 } } }
    initializer { name: 'w' data_type: 1 float_data: 3 }
    node { input: 'c' output: 'y' op_type: 'If' name: 'if'
      attribute { name: 'then_branch' type: GRAPH g {
        name: 'then' doc_string: 'd' metadata_props { key: 'k' value: 'v' }
        node { input: 'x' input: 'w' output: 't' op_type: 'Add' }
        value_info { name: 't' type { tensor_type { elem_type: 1 } } }
        output { name: 't' type { tensor_type { elem_type: 1 } } } } }
      attribute { name: 'else_branch' type: GRAPH doc_string: 'e' g {
        initializer { name: 'w2' data_type: 1 raw_data: '\000\000\000\000' }
        sparse_initializer { dims: 4
          values { name: 'sp' dims: 1 data_type: 1 float_data: 1 }
          indices { dims: 1 data_type: 7 int64_data: 2 } }
        node { input: 'w2' input: '' output: 't' op_type: 'Add' }
        node { input: 'c' output: 'deep' op_type: 'If'
          attribute { name: 'then_branch' type: GRAPH g { output { name: 'x' } } }
          attribute { name: 'else_branch' type: GRAPH g {
            node { input: 'sp' output: 'q' op_type: 'Neg' }
            output { name: 'q' } } } }
        output { name: 'deep' doc_string: 'o' } } } }
    node { input: 'x' input: 'c' input: 'x' output: 'l0' output: '' op_type: 'Loop'
      attribute { name: 'body' type: GRAPH g { name: 'body'
        input { name: 'i' type { tensor_type { elem_type: 7 shape { } } } }
        input { name: 'cond' doc_string: 'd' }
        input { name: 'v' }
        node { input: 'v' input: 'y' output: 'v2' op_type: 'Add' }
        output { name: 'cond' } output { name: 'v2' } output { name: 'v2' } } } }
    node { output: 'g' op_type: 'Many' domain: 'x'
      attribute { name: 'n' type: INT i: 1 }
      attribute { name: 'graphs' type: GRAPHS
        graphs { input { name: 'a' } output { name: 'a' } }
        graphs { name: '' } }
      attribute { name: 'last' type: GRAPH g { } } }
    output { name: 'y' })"));
}

TEST(RoundTrip, OutputsThatNoNodeMakes) {
  expectRoundTrip(parseGraph(R"(
    input { name: 'x' } input { name: 'd' }
    initializer { name: 'w' data_type: 1 float_data: 1 }
    initializer { name: 'd' data_type: 1 float_data: 1 }
    sparse_initializer { dims: 4
      values { name: 's' dims: 1 data_type: 1 float_data: 1 }
      indices { dims: 1 data_type: 7 int64_data: 2 } }
    node { op_type: 'If' output: 'n' attribute { name: 'b' type: GRAPH g {
      initializer { name: 'v' data_type: 1 float_data: 1 }
      output { name: 'v' } output { name: 'w' } output { name: 'x' } } } }
    output { name: 'w' } output { name: 's' } output { name: 'd' }
    output { name: 'x' } output { name: 'w' } output { name: 'n' })"));
}

TEST(RoundTrip, Functions) {
  expectRoundTrip(parseModel(R"(
    ir_version: 10 opset_import { version: 18 } opset_import { domain: 'f' version: 1 }
    graph { name: 'g' input { name: 'x' }
            node { input: 'x' output: 'y' op_type: 'F' domain: 'f' overload: 'o' }
            output { name: 'y' } }
    functions { name: 'F' domain: 'f' overload: 'o' doc_string: 'd'
      input: 'a' input: 'b' output: 'c' output: 'a'
      attribute: 'alpha' attribute: ''
      attribute_proto { name: 'beta' type: FLOAT f: 2 }
      attribute_proto { name: 'g' type: GRAPH g { name: 'q' } }
      opset_import { version: 17 }
      metadata_props { key: 'k' value: 'v' }
      node { input: 'a' input: 'b' output: 'c' op_type: 'LeakyRelu'
             attribute { name: 'alpha' ref_attr_name: 'alpha' type: FLOAT }
             attribute { name: 'x' ref_attr_name: 'y' }
             attribute { name: 'z' ref_attr_name: 'beta' type: TENSORS doc_string: 'd' } }
      value_info { name: 'c' type { tensor_type { elem_type: 1 } } }
      value_info { name: 'a' type { tensor_type { elem_type: 1 } } } }
    functions { name: 'F' domain: 'f' input: 'a' input: '' input: '' }
    functions { name: 'b' domain: 'f.F' }
    functions { name: 'F.b' domain: 'f' })"));
}

TEST(RoundTrip, InitializerThatIsAnInput) {
  expectRoundTrip(parseGraph(R"(
    input { name: 'x' type { tensor_type { elem_type: 1 shape { dim { dim_value: 2 } } } } }
    input { name: 'y' type { tensor_type { elem_type: 1 shape { dim { dim_param: 'n' } } } } }
    input { name: 'z' }
    initializer { name: 'y' dims: 2 data_type: 1 float_data: 1 float_data: 2 }
    initializer { name: 'w' dims: 1 data_type: 1 raw_data: '\001\002\003\004' doc_string: 'd'
                  metadata_props { key: 'k' value: 'v' } segment { begin: 1 end: 2 } }
    initializer { name: 'x' dims: 2 data_type: 1 raw_data: '\001\002\003\004\001\002\003\004' }
    initializer { name: 'z' data_type: 8 string_data: 's' }
    sparse_initializer { dims: 2 dims: 3
      values { name: 's' dims: 1 data_type: 11 double_data: 1 }
      indices { dims: 1 data_type: 7 int64_data: 5 } }
    node { input: 'x' input: 'y' input: 's' output: 'o' op_type: 'Sum' }
    value_info { name: 'w' type { tensor_type { elem_type: 1 shape { dim { dim_value: 1 } } } } }
    value_info { name: 's' type { tensor_type { elem_type: 11 } } })"));
}

/// Every element type in every encoding, as small and as large tensors.
TEST(RoundTrip, TensorEncodings) {
  struct Case {
    int dataType;
    unsigned bits;
    const char *field;
  };
  const Case cases[] = {{1, 32, "float_data"},   {2, 8, "int32_data"},
                        {3, 8, "int32_data"},    {4, 16, "int32_data"},
                        {5, 16, "int32_data"},   {6, 32, "int32_data"},
                        {7, 64, "int64_data"},   {9, 8, "int32_data"},
                        {10, 16, "int32_data"},  {11, 64, "double_data"},
                        {12, 32, "uint64_data"}, {13, 64, "uint64_data"},
                        {14, 64, "float_data"},  {15, 128, "double_data"},
                        {16, 16, "int32_data"},  {17, 8, "int32_data"},
                        {18, 8, "int32_data"},   {19, 8, "int32_data"},
                        {20, 8, "int32_data"},   {21, 4, "int32_data"},
                        {22, 4, "int32_data"},   {23, 4, "int32_data"},
                        {24, 8, "int32_data"},   {25, 2, "int32_data"},
                        {26, 2, "int32_data"},   {27, 6, "int32_data"},
                        {28, 6, "int32_data"}};
  for (const Case &c : cases)
    for (int64_t count : {0, 1, 3, 5, 5000}) {
      SCOPED_TRACE("data type " + std::to_string(c.dataType) + ", " +
                   std::to_string(count) + " elements");
      ::onnx::ModelProto model = parseGraph("");
      size_t bytes = (count * c.bits + 7) / 8;
      for (bool bool01 : {false, true}) {
        ::onnx::TensorProto &raw = *model.mutable_graph()->add_initializer();
        raw.set_name(bool01 ? "bool" : "raw");
        raw.add_dims(count);
        raw.set_data_type(c.dataType);
        std::string data(bytes, 0);
        for (size_t i = 0; i < bytes; ++i)
          data[i] = bool01 ? i % 2 : i * 7 + 3;
        raw.set_raw_data(data);
      }
      // The same number in every entry, in range and (for the narrow types) out
      // of it.
      for (int value : {1, -1, 300, 0}) {
        ::onnx::TensorProto &typed = *model.mutable_graph()->add_initializer();
        typed.set_name("typed" + std::to_string(value));
        typed.add_dims(count);
        typed.set_data_type(c.dataType);
        bool isComplex = c.dataType == 14 || c.dataType == 15;
        int64_t entries = isComplex     ? 2 * count
                          : c.bits == 6 ? count
                          : c.bits < 8  ? int64_t(bytes)
                                        : count;
        const auto *field = typed.GetDescriptor()->FindFieldByName(c.field);
        const auto *reflection = typed.GetReflection();
        for (int64_t i = 0; i < entries; ++i) {
          if (!strcmp(c.field, "float_data"))
            reflection->AddFloat(&typed, field, value);
          else if (!strcmp(c.field, "double_data"))
            reflection->AddDouble(&typed, field, value);
          else if (!strcmp(c.field, "int64_data"))
            reflection->AddInt64(&typed, field, value);
          else if (!strcmp(c.field, "uint64_data"))
            reflection->AddUInt64(&typed, field, value);
          else
            reflection->AddInt32(&typed, field, value);
        }
      }
      expectRoundTrip(model);
    }
}

TEST(RoundTrip, StringTensors) {
  expectRoundTrip(parseGraph(R"(
    initializer { name: 'a' dims: 2 dims: 1 data_type: 8 string_data: '' string_data: '\000\377' }
    initializer { name: 'b' dims: 0 data_type: 8 }
    initializer { name: 'c' data_type: 8 string_data: 's' doc_string: 'd' }
    initializer { name: 'd' dims: 3 data_type: 8
                  string_data: 'x' string_data: 'x' string_data: 'x' })"));
}

TEST(RoundTrip, UnknownFields) {
  // What a newer version of ONNX may add, at every level.
  ::onnx::ModelProto model = parseGraph(R"(
    input { name: 'x' type { tensor_type { elem_type: 1 shape { dim { } } } } }
    initializer { name: 'w' dims: 1 data_type: 1 raw_data: '\001\002\003\004' }
    node { input: 'x' output: 'y' op_type: 'A'
           attribute { name: 'i' type: INT i: 1 }
           attribute { name: 't' type: TENSOR t { data_type: 1 float_data: 1 } }
           attribute { name: 'g' type: GRAPH g { } } }
    output { name: 'y' }
    value_info { name: 'y' })");
  auto add = [](google::protobuf::Message *message) {
    message->GetReflection()->MutableUnknownFields(message)->AddVarint(777, 5);
    message->GetReflection()->MutableUnknownFields(message)->AddLengthDelimited(
        778, "abc");
  };
  auto *graph = model.mutable_graph();
  auto *node = graph->mutable_node(0);
  add(&model);
  add(graph);
  add(node);
  add(graph->mutable_input(0));
  add(graph->mutable_input(0)->mutable_type());
  add(graph->mutable_input(0)
          ->mutable_type()
          ->mutable_tensor_type()
          ->mutable_shape()
          ->mutable_dim(0));
  add(graph->mutable_output(0));
  add(graph->mutable_value_info(0));
  add(graph->mutable_initializer(0));
  add(node->mutable_attribute(0));
  add(node->mutable_attribute(1));
  add(node->mutable_attribute(1)->mutable_t());
  add(node->mutable_attribute(2));
  add(node->mutable_attribute(2)->mutable_g());
  expectRoundTrip(model);
}

TEST(RoundTrip, GraphInPieces) {
  // Protobuf merges repeated occurrences of a field.
  ::onnx::ModelProto first = parseGraph(R"(
    node { output: 'a' op_type: 'A' }
    initializer { name: 'w' dims: 1 data_type: 2 raw_data: 'x' })");
  ::onnx::ModelProto second = parseModel(R"(graph { name: 'h'
    node { input: 'a' input: 'w' output: 'b' op_type: 'B' }
    initializer { name: 'v' dims: 2 data_type: 2 raw_data: 'xy' } })");
  std::string bytes = first.SerializeAsString() + second.SerializeAsString();
  MLIRContext context;
  std::string error;
  OwningOpRef<ModuleOp> module =
      importONNX(llvm::MemoryBuffer::getMemBufferCopy(bytes), "test", "",
                 &context, {}, error);
  ASSERT_TRUE(module) << error;
  ::onnx::ModelProto merged;
  ASSERT_TRUE(merged.ParseFromString(bytes));
  EXPECT_EQ(compare(merged, exportGood(*module)), "");
}

TEST(RoundTrip, LargeTensorsStayInTheFile) {
  // Not copied: the elements of the import are bytes of the buffer.
  ::onnx::ModelProto model = parseGraph("");
  auto *tensor = model.mutable_graph()->add_initializer();
  tensor->set_name("w");
  tensor->add_dims(1 << 20);
  tensor->set_data_type(2);
  tensor->set_raw_data(std::string(1 << 20, 'x'));
  auto buffer = llvm::MemoryBuffer::getMemBufferCopy(model.SerializeAsString());
  StringRef bytes = buffer->getBuffer();
  MLIRContext context;
  std::string error;
  OwningOpRef<ModuleOp> module =
      importONNX(std::move(buffer), "test", "", &context, {}, error);
  ASSERT_TRUE(module) << error;
  auto op = *prefill::onnx::getMainGraph(*module)
                 .getOps<prefill::onnx::InitializerOp>()
                 .begin();
  auto blob = cast<DenseResourceElementsAttr>(op.getValue());
  ArrayRef<char> data = blob.getRawHandle().getBlob()->getData();
  EXPECT_GE(data.data(), bytes.begin());
  EXPECT_LE(data.end(), bytes.end());
  EXPECT_EQ(compare(model, exportGood(*module)), "");
}

/// The models that exporters wrote, where they are at hand.
TEST(RoundTrip, SharedModels) {
  const char *folder = getenv("PREFILL_TEST_MODELS");
  if (!folder)
    folder = PREFILL_SHARED_MODELS;
  std::error_code code;
  int count = 0;
  for (llvm::sys::fs::directory_iterator it(folder, code), end;
       it != end && !code; it.increment(code)) {
    if (!StringRef(it->path()).ends_with(".onnx"))
      continue;
    SCOPED_TRACE(it->path());
    MLIRContext context;
    std::string error, bytes;
    OwningOpRef<ModuleOp> module = importONNX(it->path(), &context, {}, error);
    ASSERT_TRUE(module) << error;
    ASSERT_TRUE(exportONNX(*module, bytes, error)) << error;
    auto original = llvm::MemoryBuffer::getFile(it->path());
    ASSERT_TRUE(original);
    EXPECT_TRUE((*original)->getBuffer() == bytes);
    ++count;
  }
  if (count == 0)
    GTEST_SKIP() << "no models in " << folder;
}

} // namespace
