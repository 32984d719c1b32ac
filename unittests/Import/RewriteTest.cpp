//===- RewriteTest.cpp - Models that passes have changed ------------------===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#include "TestModels.h"

using namespace mlir;
using namespace prefill;
using namespace prefill::onnx;
using namespace prefill::test;

namespace {

class Rewrite : public ::testing::Test {
protected:
  void load(StringRef graph) {
    module = importGood(parseGraph(graph), context);
    ASSERT_TRUE(module);
    block = &getMainGraph(*module).getBody().front();
  }
  NodeOp node(StringRef opType) {
    NodeOp found;
    module->walk([&](NodeOp node) {
      if (node.getOpType() == opType)
        found = node;
    });
    EXPECT_TRUE(found) << opType.str();
    return found;
  }
  void expectGraph(StringRef graph) {
    ::onnx::ModelProto wanted = parseGraph(graph);
    EXPECT_EQ(compare(wanted, exportGood(*module)), "")
        << exportGood(*module).DebugString();
  }
  MLIRContext context;
  OwningOpRef<ModuleOp> module;
  Block *block = nullptr;
};

constexpr StringLiteral kChain = R"(
  input { name: 'x' }
  node { input: 'x' output: 'a' op_type: 'A' }
  node { input: 'a' output: 'b' op_type: 'B' }
  node { input: 'b' output: 'y' op_type: 'C' }
  output { name: 'y' type { tensor_type { elem_type: 1 } } }
  value_info { name: 'a' type { tensor_type { elem_type: 1 } } }
  value_info { name: 'b' type { tensor_type { elem_type: 1 } } doc_string: 'd' })";

TEST_F(Rewrite, ReplaceNode) {
  load(kChain);
  OpBuilder b(node("B"));
  NodeOp made = NodeOp::create(
      b, node("B").getLoc(), "New", "my.domain",
      ValueRange{node("B").getInput(0), createInts(b, b.getUnknownLoc(), {5})},
      TypeRange{node("B").getResult(0).getType()},
      {intAttr(b, "n", 1), stringAttr(b, "s", "t"), intsAttr(b, "is", {1, 2}),
       floatAttr(b, "f", 2)});
  node("B").getResult(0).replaceAllUsesWith(made.getResult(0));
  node("B").erase();
  // The new value gets a name, and no declaration; the old one's goes.
  expectGraph(R"(
    input { name: 'x' }
    initializer { name: 'constant_0' dims: 1 data_type: 7
                  raw_data: '\005\000\000\000\000\000\000\000' }
    node { input: 'x' output: 'a' op_type: 'A' }
    node { input: 'a' input: 'constant_0' output: 'New_0' op_type: 'New' domain: 'my.domain'
           attribute { name: 'n' type: INT i: 1 }
           attribute { name: 's' type: STRING s: 't' }
           attribute { name: 'is' type: INTS ints: 1 ints: 2 }
           attribute { name: 'f' type: FLOAT f: 2 } }
    node { input: 'New_0' output: 'y' op_type: 'C' }
    output { name: 'y' type { tensor_type { elem_type: 1 } } }
    value_info { name: 'a' type { tensor_type { elem_type: 1 } } })");
}

TEST_F(Rewrite, OutputsKeepTheirNames) {
  load(kChain);
  // The output is made by a new node: it gets the output's name.
  OpBuilder b(node("C"));
  auto made = NodeOp::create(b, b.getUnknownLoc(), "New", "",
                             ValueRange{node("B").getResult(0)},
                             TypeRange{node("C").getResult(0).getType()});
  node("C").getResult(0).replaceAllUsesWith(made.getResult(0));
  node("C").erase();
  expectGraph(R"(
    input { name: 'x' }
    node { input: 'x' output: 'a' op_type: 'A' }
    node { input: 'a' output: 'b' op_type: 'B' }
    node { input: 'b' output: 'y' op_type: 'New' }
    output { name: 'y' type { tensor_type { elem_type: 1 } } }
    value_info { name: 'a' type { tensor_type { elem_type: 1 } } }
    value_info { name: 'b' type { tensor_type { elem_type: 1 } } doc_string: 'd' })");
}

TEST_F(Rewrite, OutputIsAnInput) {
  load(kChain);
  // Nothing is left between input and output: an Identity is.
  node("C").getResult(0).replaceAllUsesWith(block->getArgument(0));
  for (const char *op : {"C", "B", "A"})
    node(op).erase();
  MLIRContext other;
  ::onnx::ModelProto model = exportGood(*module);
  ASSERT_EQ(model.graph().node_size(), 1);
  EXPECT_EQ(model.graph().node(0).op_type(), "Identity");
  EXPECT_EQ(model.graph().node(0).input(0), "x");
  EXPECT_EQ(model.graph().node(0).output(0), "y");
  EXPECT_TRUE(importGood(model, other));
}

TEST_F(Rewrite, IdentityTakesAnInnerName) {
  load(kChain);
  // The input is returned as 'y', and what was 'y' is still used.
  auto ret = cast<ReturnOp>(block->getTerminator());
  OpBuilder b(ret);
  NodeOp::create(b, b.getUnknownLoc(), "Use", "",
                 ValueRange{node("C").getResult(0)}, TypeRange{});
  ret->setOperand(0, block->getArgument(0));
  ::onnx::ModelProto model = exportGood(*module);
  EXPECT_EQ(model.graph().node(2).output(0), "C_0");
  EXPECT_EQ(model.graph().node(4).op_type(), "Identity");
  EXPECT_EQ(model.graph().node(4).output(0), "y");
  MLIRContext other;
  EXPECT_TRUE(importGood(model, other));
}

TEST_F(Rewrite, OutputTakesAnInnerName) {
  load(kChain);
  // 'b' is returned as 'y', and what was 'y' is still used: it makes room.
  auto ret = cast<ReturnOp>(block->getTerminator());
  OpBuilder b(ret);
  NodeOp::create(b, b.getUnknownLoc(), "Use", "",
                 ValueRange{node("C").getResult(0)}, TypeRange{});
  ret->setOperand(0, node("B").getResult(0));
  ::onnx::ModelProto model = exportGood(*module);
  EXPECT_EQ(model.graph().node(1).output(0), "y");
  EXPECT_EQ(model.graph().node(2).input(0), "y");
  EXPECT_EQ(model.graph().node(2).output(0), "C_0");
  EXPECT_EQ(model.graph().node(3).input(0), "C_0");
  MLIRContext other;
  EXPECT_TRUE(importGood(model, other));
}

TEST_F(Rewrite, OneValueTwoOutputs) {
  load(R"(input { name: 'x' }
          node { input: 'x' output: 'a' op_type: 'A' }
          node { input: 'x' output: 'b' op_type: 'B' }
          output { name: 'a' } output { name: 'b' })");
  node("B").getResult(0).replaceAllUsesWith(node("A").getResult(0));
  node("B").erase();
  ::onnx::ModelProto model = exportGood(*module);
  ASSERT_EQ(model.graph().node_size(), 2);
  EXPECT_EQ(model.graph().node(1).op_type(), "Identity");
  EXPECT_EQ(model.graph().node(1).input(0), "a");
  EXPECT_EQ(model.graph().node(1).output(0), "b");
}

TEST_F(Rewrite, AddedOutput) {
  load(kChain);
  auto ret = cast<ReturnOp>(block->getTerminator());
  ret->insertOperands(1, node("A").getResult(0));
  Builder b(&context);
  ret.setOutputNamesAttr(
      b.getArrayAttr({ret.getOutputNames()[0], b.getStringAttr("density")}));
  ::onnx::ModelProto model = exportGood(*module);
  ASSERT_EQ(model.graph().output_size(), 2);
  EXPECT_EQ(model.graph().output(1).name(), "density");
  EXPECT_EQ(model.graph().node(0).output(0), "density");
  EXPECT_EQ(model.graph().node(1).input(0), "density");
}

TEST_F(Rewrite, ClonedNodesGetNamesOfTheirOwn) {
  load(kChain);
  OpBuilder b(node("B"));
  Operation *clone = b.clone(*node("B"));
  node("C")->insertOperands(1, clone->getResult(0));
  ::onnx::ModelProto model = exportGood(*module);
  MLIRContext other;
  EXPECT_TRUE(importGood(model, other));
  EXPECT_EQ(model.graph().node_size(), 4);
}

TEST_F(Rewrite, FreshNamesAreFresh) {
  load(
      R"(input { name: 'New_0' } initializer { name: 'New_1' data_type: 1 float_data: 1 }
          node { input: 'New_0' output: 'y' op_type: 'A'
            attribute { name: 'g' type: GRAPH g {
              node { op_type: 'B' output: 'New_2' input: 'New_0' } } } }
          output { name: 'y' } value_info { name: 'New_3' })");
  OpBuilder b(node("A"));
  auto made = NodeOp::create(b, b.getUnknownLoc(), "New", "",
                             ValueRange{block->getArgument(0)},
                             TypeRange{UnknownType::get(&context)});
  node("A")->insertOperands(1, made.getResult(0));
  EXPECT_EQ(exportGood(*module).graph().node(0).output(0), "New_4");
}

TEST_F(Rewrite, CapturedNamesAreNotHidden) {
  load(R"(input { name: 'x' }
          node { input: 'x' output: 'a' op_type: 'A' }
          node { input: 'a' output: 'y' op_type: 'If'
            attribute { name: 'g' type: GRAPH g {
              node { op_type: 'B' output: 't' input: 'x' }
              node { op_type: 'C' output: 'u' input: 't' }
              output { name: 'u' } } } }
          output { name: 'y' })");
  // A node inside takes the name of a value outside that another one uses.
  node("B").setOutputNamesAttr(Builder(&context).getStrArrayAttr({"a"}));
  node("C")->insertOperands(1, node("A").getResult(0));
  ::onnx::ModelProto model = exportGood(*module);
  const auto &inner = model.graph().node(1).attribute(0).g();
  EXPECT_EQ(inner.node(0).output(0), "B_0");
  EXPECT_EQ(inner.node(1).input(0), "B_0");
  EXPECT_EQ(inner.node(1).input(1), "a");
}

TEST_F(Rewrite, ChangedTypes) {
  load(kChain);
  auto type = getTensorType({ShapedType::kDynamic, 4},
                            Float16Type::get(&context), {"n"});
  for (const char *op : {"A", "B", "C"})
    node(op).getResult(0).setType(type);
  StringRef typed =
      "type { tensor_type { elem_type: 10 shape { dim { dim_param: "
      "'n' } dim { dim_value: 4 } } } }";
  expectGraph(
      ("input { name: 'x' } node { input: 'x' output: 'a' op_type: 'A' }"
       "node { input: 'a' output: 'b' op_type: 'B' }"
       "node { input: 'b' output: 'y' op_type: 'C' }"
       "output { name: 'y' " +
       typed +
       " }"
       "value_info { name: 'a' " +
       typed +
       " }"
       "value_info { name: 'b' " +
       typed + " doc_string: 'd' }")
          .str());
}

TEST_F(Rewrite, AttributesOfNodes) {
  load(R"(node { op_type: 'A' output: 'y'
            attribute { name: 'b' type: INT i: 1 doc_string: 'd' }
            attribute { name: 'a' type: INTS ints: 3 } })");
  NodeOp op = node("A");
  Builder b(&context);
  EXPECT_EQ(op.getInt("b", 7), 1);
  EXPECT_EQ(op.getInt("c", 7), 7);
  EXPECT_EQ(op.getInts("a")->size(), 1u);
  op.setAttrOfName("b", intAttr(b, "b", 2).getValue());
  op.setAttrOfName("c", b.getStringAttr("x"));
  op.removeAttrOfName("a");
  op.removeAttrOfName("nothing");
  expectGraph(R"(node { op_type: 'A' output: 'y'
            attribute { name: 'b' type: INT i: 2 }
            attribute { name: 'c' type: STRING s: 'x' } })");
}

TEST_F(Rewrite, OtherOpsCannotBeExported) {
  load(kChain);
  context.allowUnregisteredDialects();
  OpBuilder b(node("B"));
  b.create(OperationState(b.getUnknownLoc(), "some.op"));
  std::string bytes, error;
  EXPECT_FALSE(exportONNX(*module, bytes, error));
  EXPECT_EQ(error, "cannot export: op 'some.op' is not an ONNX operator and "
                   "cannot be exported");
}

} // namespace
