//===- HostileTest.cpp - Damaged and malicious models ---------------------===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#include "TestModels.h"
#include "prefill/Import/ProtoCodec.h"

using namespace mlir;
using namespace prefill;
using namespace prefill::test;

namespace {

TEST(Hostile, NoModel) {
  expectError(std::string(), "is empty");
  expectError(std::string("not a model at all"), "is no ONNX model");
  expectError(std::string(100, '\0'), "is no ONNX model");
  expectError(parseModel("ir_version: 8"), "has no graph");
  expectError(parseModel("graph { }"), "has no ir_version");
  expectError(
      parseModel("ir_version: 8 graph { } opset_import { domain: 'x' }"),
      "opset import of domain 'x' has no version");
}

TEST(Hostile, Files) {
  MLIRContext context;
  std::string error;
  EXPECT_FALSE(importONNX("/nowhere/x.onnx", &context, {}, error));
  EXPECT_EQ(error, "'/nowhere/x.onnx': cannot be read: "
                   "No such file or directory");
  TemporaryFolder folder;
  EXPECT_FALSE(importONNX(folder.path(""), &context, {}, error));
  EXPECT_NE(error.find("is a folder"), std::string::npos) << error;
  folder.write("big.onnx", std::string(100, 'x'));
  ImportOptions options;
  options.maxFileBytes = 99;
  EXPECT_FALSE(importONNX(folder.path("big.onnx"), &context, options, error));
  EXPECT_NE(error.find("has 100 bytes, more than the 99"), std::string::npos)
      << error;
}

/// A model with a bit of everything.
::onnx::ModelProto makeRich() {
  return parseModel(R"(
    ir_version: 10 producer_name: 'p' opset_import { domain: '' version: 21 }
    graph { name: 'g' doc_string: 'd'
      input { name: 'x' type { tensor_type { elem_type: 1 shape {
        dim { dim_param: 'n' } dim { dim_value: 3 } } } } }
      output { name: 'y' type { sequence_type { elem_type { tensor_type { elem_type: 1 } } } } }
      initializer { name: 'w' dims: 2 data_type: 1 raw_data: '\000\000\200\077\000\000\000\100' }
      initializer { name: 'v' dims: 2 data_type: 7 int64_data: 1 int64_data: 2 }
      initializer { name: 's' dims: 1 data_type: 8 string_data: 'text' }
      sparse_initializer { dims: 4
        values { name: 'sp' dims: 1 data_type: 1 float_data: 1 }
        indices { dims: 1 data_type: 7 int64_data: 2 } }
      node { input: 'x' input: '' input: 'w' output: 'a' output: '' op_type: 'A' domain: 'd'
        attribute { name: 'i' type: INT i: 1 }
        attribute { name: 'fs' type: FLOATS floats: 1 floats: 2 }
        attribute { name: 't' type: TENSOR t { dims: 1 data_type: 1 float_data: 1 } }
        attribute { name: 'g' type: GRAPH g {
          node { input: 'a0' op_type: 'B' output: 'b' }
          input { name: 'a0' } output { name: 'b' } } } }
      node { input: 'a' output: 'y' op_type: 'F' domain: 'f' }
      value_info { name: 'a' type { tensor_type { elem_type: 1 } } }
      quantization_annotation { tensor_name: 'a' } }
    functions { name: 'F' domain: 'f' input: 'a' output: 'b'
      node { input: 'a' output: 'b' op_type: 'Relu'
             attribute { name: 'q' ref_attr_name: 'r' type: INT } } }
    metadata_props { key: 'k' value: 'v' })");
}

/// Either a clear error, or a model that comes back equal.
void expectErrorOrRoundTrip(const std::string &bytes) {
  MLIRContext context(MLIRContext::Threading::DISABLED);
  std::string error;
  OwningOpRef<ModuleOp> module =
      importONNX(llvm::MemoryBuffer::getMemBufferCopy(bytes), "test", "",
                 &context, {}, error);
  if (!module) {
    EXPECT_TRUE(StringRef(error).starts_with("'test': ")) << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
    return;
  }
  ::onnx::ModelProto model;
  ASSERT_TRUE(model.ParseFromString(bytes));
  sortNodes(model);
  EXPECT_EQ(compare(model, exportGood(*module)), "");
}

TEST(Hostile, CutOffAnywhere) {
  std::string bytes = makeRich().SerializeAsString();
  for (size_t size = 0; size < bytes.size(); ++size)
    expectErrorOrRoundTrip(bytes.substr(0, size));
}

TEST(Hostile, AnyBitFlipped) {
  std::string bytes = makeRich().SerializeAsString();
  for (size_t i = 0; i < bytes.size() * 8; ++i) {
    std::string damaged = bytes;
    damaged[i / 8] ^= 1 << i % 8;
    expectErrorOrRoundTrip(damaged);
  }
}

TEST(Hostile, NodesOutOfOrder) {
  // ONNX Runtime takes them; 'c' reads 'y' in a subgraph, which has a 'd' of
  // its own. What can keep its place does.
  ::onnx::ModelProto model = parseModel(R"(ir_version: 10
    opset_import { domain: '' version: 21 }
    graph { name: 'g'
      node { output: 'p' op_type: 'P' }
      node { input: 'y' output: 'x' op_type: 'A' }
      node { output: 'c' op_type: 'If' attribute { name: 'g' type: GRAPH g {
        node { input: 'd' output: 'e' op_type: 'E' }
        node { input: 'y' output: 'd' op_type: 'D' }
        output { name: 'e' } } } }
      node { input: 'p' output: 'y' op_type: 'B' }
      node { output: 'd' op_type: 'F' } })");
  const std::string bytes = model.SerializeAsString();
  expectErrorOrRoundTrip(bytes);
  sortNodes(model);
  std::string order;
  for (const ::onnx::NodeProto &node : model.graph().node())
    order += node.op_type() + " ";
  EXPECT_EQ(order, "P B A If F ");
  const ::onnx::NodeProto &choice = model.graph().node(3);
  EXPECT_EQ(choice.attribute(0).g().node(0).op_type(), "D");
  MLIRContext context(MLIRContext::Threading::DISABLED);
  std::string error;
  EXPECT_TRUE(importONNX(llvm::MemoryBuffer::getMemBufferCopy(bytes), "test",
                         "", &context, {}, error))
      << error;
}

TEST(Hostile, Names) {
  expectError(parseGraph("node { input: 'x' op_type: 'Relu' name: 'n' }"),
              "node 'n' (Relu): input 'x' is not an input");
  expectError(parseGraph("node { input: 'x' op_type: 'A' domain: 'd' }"),
              "node #0 (d.A): input 'x'");
  expectError(parseGraph("node { input: 'x' output: 'x' op_type: 'A' }"),
              "must not have cycles");
  expectError(
      parseGraph("node { input: 'y' output: 'x' op_type: 'A' name: 'a' }"
                 "node { input: 'x' output: 'z' op_type: 'B' }"
                 "node { input: 'z' output: 'y' op_type: 'C' }"),
      "node 'a' (A): input 'y' depends on the node's own output");
  expectError(parseGraph("node { output: 'x' op_type: 'A' }"
                         "node { output: 'x' op_type: 'A' name: 'b' }"),
              "node 'b' (A): output 'x' has the name of an earlier value");
  expectError(parseGraph("node { output: 'x' output: 'x' op_type: 'A' }"),
              "output 'x' has the name of an earlier value");
  expectError(
      parseGraph("input { name: 'x' } node { output: 'x' op_type: 'A' }"),
      "output 'x' has the name of an earlier value");
  expectError(parseGraph("input { name: 'x' } input { name: 'x' }"),
              "graph input 'x' has the name of an earlier value");
  expectError(parseGraph("input { }"), "graph input #0 has no name");
  expectError(parseGraph("output { name: 'y' }"),
              "graph output 'y' is not made by any node");
  expectError(parseGraph("node { name: 'n' }"), "node #0 'n' has no op_type");
  expectError(parseGraph("node { op_type: 'A' attribute { type: INT } }"),
              "an attribute has no name");
  expectError(
      parseGraph("node { op_type: 'A' attribute { name: 'a' type: INT } "
                 "attribute { name: 'a' type: INT } }"),
      "attribute 'a' is there twice");
  // A name from inside a subgraph, seen from outside.
  expectError(parseGraph(R"(
    node { op_type: 'If' attribute { name: 'b' type: GRAPH
           g { node { op_type: 'A' output: 'inner' } } } }
    node { op_type: 'B' input: 'inner' name: 'n' })"),
              "node 'n' (B): input 'inner'");
  // An error inside says where.
  expectError(
      parseGraph(R"(
    node { op_type: 'If' name: 'if' attribute { name: 'then' type: GRAPH
           g { node { op_type: 'A' input: 'nothing' name: 'a' } } } })"),
      "node 'if' (If): attribute 'then': node 'a' (A): input 'nothing'");
  // One line, whatever names contain.
  expectError(parseGraph("node { input: 'a\\nb' op_type: 'Relu' }"),
              "input 'a b'");
}

TEST(Hostile, Functions) {
  expectError(parseModel("ir_version: 8 graph { } functions { name: 'f' } "
                         "functions { name: 'f' domain: '' }"),
              "function 'f' of domain '' is there twice");
  expectError(parseModel("ir_version: 8 graph { } functions { }"),
              "a function has no name");
  expectError(parseModel("ir_version: 8 graph { } functions { name: 'f' "
                         "domain: 'd' output: 'y' }"),
              "function 'd.f': output 'y' is not made");
  expectError(
      parseModel("ir_version: 8 graph { node { op_type: 'A' output: 'x' "
                 "} } functions { name: 'f' node { op_type: 'B' input: "
                 "'x' } }"),
      "function '.f': node #0 (B): input 'x'");
}

TEST(Hostile, Tensors) {
  auto expectTensorError = [](StringRef tensor, StringRef message) {
    expectError(parseGraph(("initializer { name: 'w' " + tensor + " }").str()),
                ("initializer 'w' " + message).str());
    // The same tensor as an attribute.
    expectError(parseGraph(("node { op_type: 'A' name: 'n' attribute { name: "
                            "'t' type: TENSOR t { " +
                            tensor + " } } }")
                               .str()),
                ("node 'n' (A): attribute 't' " + message).str());
  };
  expectTensorError("", "has data type 0, which this version does not know");
  expectTensorError("data_type: 99", "has data type 99");
  expectTensorError("data_type: -1", "has data type -1");
  expectTensorError("dims: -1 data_type: 1 raw_data: ''",
                    "has a negative dimension (-1)");
  expectTensorError("dims: 3 data_type: 1 raw_data: 'abcd'",
                    "has 4 bytes, but tensor<3xf32> needs 12");
  expectTensorError("dims: 1 data_type: 1 raw_data: 'abcdefgh'",
                    "has 8 bytes, but tensor<1xf32> needs 4");
  expectTensorError("dims: 2 data_type: 1 float_data: 1",
                    "has 4 bytes, but tensor<2xf32> needs 8");
  expectTensorError("dims: 2 data_type: 1 int64_data: 1",
                    "has 0 bytes, but tensor<2xf32> needs 8");
  expectTensorError("dims: 1 data_type: 1", "has 0 bytes");
  expectTensorError("dims: 3 data_type: 22 raw_data: 'a'",
                    "has 1 bytes, but tensor<3xi4> needs 2");
  expectTensorError("dims: 2 data_type: 8 string_data: 'x'",
                    "has 1 strings, but tensor<2x!onnx.string> needs 2");
  expectTensorError("dims: 1 data_type: 8 raw_data: 'x'", "has 0 strings");
  expectTensorError("dims: 1 data_type: 1 raw_data: 'abcd' float_data: 1",
                    "has its elements in more than one place");
  expectTensorError("dims: 4611686018427387904 dims: 4 data_type: 1",
                    "has more elements than memory can hold");
  // Elements that can be counted, but not in bits.
  expectTensorError("dims: 1099511627776 dims: 1048576 data_type: 11",
                    "has more elements than memory can hold");
  expectTensorError("dims: 4611686018427387904 data_type: 11",
                    "has more elements than memory can hold");
  expectTensorError("dims: 9223372036854775807 dims: 0 data_type: 1",
                    "has more elements than memory can hold");
  expectTensorError("dims: 72057594037927935 data_type: 15 raw_data: ''",
                    "has 0 bytes");
  expectError(parseGraph("initializer { data_type: 1 float_data: 1 }"),
              "an initializer has no name");
  expectError(
      parseGraph("initializer { name: 'w' data_type: 1 float_data: 1 }"
                 "initializer { name: 'w' data_type: 1 float_data: 1 }"),
      "initializer 'w' has the name of an earlier value");
  expectError(
      parseGraph("input { name: 'w' }"
                 "initializer { name: 'w' data_type: 1 float_data: 1 }"
                 "initializer { name: 'w' data_type: 1 float_data: 1 }"),
      "initializer 'w' is there twice");
  expectError(parseGraph("sparse_initializer { }"),
              "a sparse initializer has no name");
  expectError(parseGraph("sparse_initializer { values { name: 's' } }"),
              "sparse initializer 's' has data type 0");
  expectError(parseGraph("sparse_initializer { dims: -2 values { name: 's' "
                         "data_type: 1 } }"),
              "sparse initializer 's' has dimensions that no tensor can have");
}

TEST(Hostile, AttributesWithoutValue) {
  auto expectAttributeError = [](StringRef attribute, StringRef message) {
    expectError(parseGraph(("node { op_type: 'A' attribute { name: 'a' " +
                            attribute + " } }")
                               .str()),
                ("attribute 'a' " + message).str());
  };
  expectAttributeError("", "has no type and no value");
  expectAttributeError("type: UNDEFINED", "has no type and no value");
  expectAttributeError("type: TENSOR", "is a tensor, but has none");
  expectAttributeError("type: GRAPH", "is a graph, but has none");
}

TEST(Hostile, DeepNesting) {
  // Subgraphs in subgraphs, below and above the limit.
  for (int depth : {20, 30, 60, 5000}) {
    std::string graph, next;
    ::onnx::GraphProto inner;
    inner.set_name("leaf");
    std::string bytes = inner.SerializeAsString();
    auto wrap = [](uint32_t field, const std::string &bytes) {
      std::string out;
      for (uint64_t value :
           {uint64_t(field) << 3 | 2, uint64_t(bytes.size())}) {
        for (; value >= 0x80; value >>= 7)
          out.push_back(static_cast<char>(value | 0x80));
        out.push_back(static_cast<char>(value));
      }
      return out + bytes;
    };
    for (int i = 0; i < depth; ++i) {
      ::onnx::AttributeProto attribute;
      attribute.set_name("b");
      attribute.set_type(::onnx::AttributeProto::GRAPH);
      ::onnx::NodeProto node;
      node.set_op_type("If");
      bytes =
          wrap(1, node.SerializeAsString() +
                      wrap(5, attribute.SerializeAsString() + wrap(6, bytes)));
    }
    std::string model = "\x08\x0a" + wrap(7, bytes);
    if (depth <= 30)
      expectErrorOrRoundTrip(model);
    else
      expectError(model, depth < 300 ? "is nested deeper than 100 levels"
                                     : "is no ONNX model, or is cut off");
  }
  // Types in types.
  std::string type = "tensor_type { elem_type: 1 }";
  for (int i = 0; i < 40; ++i)
    type = "sequence_type { elem_type { " + type + " } }";
  expectRoundTrip(parseGraph("input { name: 'x' type { " + type + " } }"));
  for (int i = 0; i < 20; ++i)
    type = "sequence_type { elem_type { " + type + " } }";
  expectError(parseGraph("input { name: 'x' type { " + type + " } }"),
              "nested deeper than 100 levels");
}

TEST(Hostile, ManySubgraphs) {
  ::onnx::ModelProto model = parseGraph("node { op_type: 'A' }");
  auto *attribute = model.mutable_graph()->mutable_node(0)->add_attribute();
  attribute->set_name("gs");
  attribute->set_type(::onnx::AttributeProto::GRAPHS);
  for (int i = 0; i < 256; ++i)
    attribute->add_graphs();
  expectRoundTrip(model);
  attribute->add_graphs();
  expectError(model, "more than 256 subgraphs");
}

TEST(Hostile, ManyOfEverything) {
  // Time must grow with the size of the file only.
  ::onnx::ModelProto model = parseGraph("node { op_type: 'A' output: 'x' }");
  auto *graph = model.mutable_graph();
  auto *node = graph->add_node();
  node->set_op_type("Wide");
  for (int i = 0; i < 200000; ++i) {
    node->add_input("x");
    node->add_output("o" + std::to_string(i));
  }
  for (int i = 0; i < 20000; ++i) {
    auto *attribute = node->add_attribute();
    attribute->set_name("a" + std::to_string(i));
    attribute->set_type(::onnx::AttributeProto::INT);
    attribute->set_i(i);
    auto *dim = graph->add_value_info();
    dim->set_name("o" + std::to_string(i));
    dim->mutable_type()->mutable_tensor_type()->set_elem_type(1);
  }
  auto *shape = graph->add_input();
  shape->set_name("ranks");
  shape->mutable_type()->mutable_tensor_type()->set_elem_type(1);
  for (int i = 0; i < 100000; ++i)
    shape->mutable_type()
        ->mutable_tensor_type()
        ->mutable_shape()
        ->add_dim()
        ->set_dim_param("d" + std::to_string(i));
  MLIRContext context;
  OwningOpRef<ModuleOp> module = importGood(model, context);
  ASSERT_TRUE(module);
  EXPECT_EQ(compare(model, exportGood(*module)), "");
}

TEST(Hostile, ErrorsAreRepeatable) {
  // A failed import leaves nothing behind in the context.
  MLIRContext context;
  std::string error;
  EXPECT_FALSE(importModel(parseGraph("node { input: 'x' op_type: 'Relu' }"),
                           context, error));
  ::onnx::ModelProto good = parseGraph("node { op_type: 'A' output: 'x' }");
  OwningOpRef<ModuleOp> module = importGood(good, context);
  ASSERT_TRUE(module);
  EXPECT_EQ(compare(good, exportGood(*module)), "");
}

} // namespace
