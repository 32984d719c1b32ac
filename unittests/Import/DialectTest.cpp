//===- DialectTest.cpp - Views on imported models -------------------------===//
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

class Views : public ::testing::Test {
protected:
  void load(const ::onnx::ModelProto &model) {
    module = importGood(model, context);
    ASSERT_TRUE(module);
    module->walk([&](Operation *op) {
      for (Value result : op->getResults())
        if (!getValueName(result).empty())
          values[getValueName(result)] = result;
      for (Region &region : op->getRegions())
        for (Value argument : region.getArguments())
          values[getValueName(argument)] = argument;
    });
  }
  NodeOp node(StringRef output) {
    return values.lookup(output).getDefiningOp<NodeOp>();
  }
  MLIRContext context;
  OwningOpRef<ModuleOp> module;
  llvm::StringMap<Value> values;
};

TEST_F(Views, Nodes) {
  load(parseModel(R"(ir_version: 10
    opset_import { version: 21 } opset_import { domain: 'f' version: 3 }
    graph { input { name: 'x' }
      node { input: 'x' input: '' output: 'y' output: '' op_type: 'A' name: 'n'
             attribute { name: 'f' type: FLOAT f: 0.5 }
             attribute { name: 's' type: STRING s: 'text' }
             attribute { name: 'g' type: GRAPH g { input { name: 'inner' } } }
             attribute { name: 'fs' type: FLOATS floats: 2 } }
      node { input: 'x' output: 'z' op_type: 'F' domain: 'f' }
      node { input: 'x' output: 'q' op_type: 'A' domain: 'ai.onnx' } }
    functions { name: 'F' domain: 'f' input: 'a' output: 'r'
                opset_import { domain: 'ai.onnx' version: 17 }
                node { input: 'a' output: 'r' op_type: 'B' } })"));
  NodeOp a = node("y");
  EXPECT_TRUE(a.is("A"));
  EXPECT_TRUE(node("q").is("A"));
  EXPECT_FALSE(node("z").is("F"));
  EXPECT_TRUE(node("z").is("F", "f"));
  EXPECT_EQ(a.getNodeName(), "n");
  EXPECT_EQ(a.getInput(0), values["x"]);
  EXPECT_FALSE(a.getInput(1));
  EXPECT_FALSE(a.getInput(2));
  EXPECT_TRUE(isAbsent(a.getOperand(1)));
  EXPECT_EQ(a.getOutputName(1), "");
  EXPECT_EQ(a.getFloat("f", 1), 0.5);
  EXPECT_EQ(a.getFloat("s", 1), 1);
  EXPECT_EQ(a.getString("s", ""), "text");
  EXPECT_EQ((*a.getFloats("fs"))[0], 2);
  EXPECT_FALSE(a.getInts("fs"));
  ASSERT_TRUE(a.getSubgraph("g"));
  EXPECT_EQ(getValueName(a.getSubgraph("g")->getArgument(0)), "inner");
  EXPECT_EQ(getOpsetVersion(a), 21);
  EXPECT_EQ(getOpsetVersion(a, "ai.onnx"), 21);
  EXPECT_EQ(getOpsetVersion(a, "f"), 3);
  EXPECT_EQ(getOpsetVersion(a, "g"), 0);
  EXPECT_EQ(getOpsetVersion(node("r")), 17);
  ASSERT_TRUE(getCallee(node("z")));
  EXPECT_EQ(getCallee(node("z")).getFunctionName(), "F");
  EXPECT_FALSE(getCallee(a));
}

TEST_F(Views, Types) {
  load(parseGraph(R"(
    input { name: 'x' type { tensor_type { elem_type: 10 shape {
      dim { dim_param: 'batch' } dim { } dim { dim_value: 3 } } } } }
    input { name: 'y' type { tensor_type { elem_type: 22 } } }
    input { name: 'z' }
    input { name: 'odd' type { tensor_type { elem_type: 1 shape {
      dim { dim_value: -1 } dim { dim_value: -9223372036854775808 } } } } }
    input { name: 'huge' type { tensor_type { elem_type: 1 shape {
      dim { dim_value: 4611686018427387904 } dim { dim_value: 4 } } } } })"));
  // Sizes that no tensor has do not get through to whoever multiplies them.
  auto odd = cast<RankedTensorType>(values["odd"].getType());
  EXPECT_TRUE(odd.isDynamicDim(0));
  EXPECT_TRUE(odd.isDynamicDim(1));
  EXPECT_TRUE(isa<UnrankedTensorType>(values["huge"].getType()));
  Type x = values["x"].getType();
  EXPECT_EQ(getDimName(x, 0), "batch");
  EXPECT_EQ(getDimName(x, 1), "");
  EXPECT_EQ(getDimName(x, 9), "");
  EXPECT_TRUE(getElementType(x).isF16());
  EXPECT_FALSE(getTensorBytes(x));
  EXPECT_EQ(getElementBits(getElementType(values["y"].getType())), 4u);
  EXPECT_FALSE(getElementType(values["z"].getType()));
  Type f32 = Float32Type::get(&context);
  EXPECT_EQ(getTensorBytes(getTensorType({3, 5}, f32)), 60);
  EXPECT_EQ(getTensorBytes(getTensorType({3}, IntegerType::get(&context, 4))),
            2);
  EXPECT_EQ(getTensorBytes(getTensorType({1ll << 40, 1ll << 40}, f32)),
            std::nullopt);
}

TEST_F(Views, Constants) {
  load(parseGraph(R"(
    input { name: 'x' } input { name: 'd' }
    initializer { name: 'd' data_type: 7 int64_data: 1 }
    initializer { name: 'i64' dims: 2 data_type: 7 int64_data: 1 int64_data: -2 }
    initializer { name: 'raw' dims: 1 data_type: 1 raw_data: '\000\000\200\077' }
    initializer { name: 'u8' dims: 2 data_type: 2 raw_data: '\377\001' }
    initializer { name: 'i8' dims: 2 data_type: 3 raw_data: '\377\001' }
    initializer { name: 'i4' dims: 3 data_type: 22 raw_data: '\370\001' }
    initializer { name: 'u2' dims: 3 data_type: 25 raw_data: '\071' }
    initializer { name: 'bool' dims: 2 data_type: 9 raw_data: '\001\000' }
    initializer { name: 'odd' dims: 2 data_type: 9 raw_data: '\003\000' }
    initializer { name: 'f16' data_type: 10 int32_data: 15360 }
    initializer { name: 'bf16' data_type: 16 raw_data: '\200\277' }
    initializer { name: 'f8' data_type: 17 raw_data: '\070' }
    initializer { name: 's' data_type: 8 string_data: 'x' }
    initializer { name: 'c' data_type: 14 float_data: 1 float_data: 2 }
    initializer { name: 'u64' data_type: 13 uint64_data: 18446744073709551615 }
    node { output: 'tensor' op_type: 'Constant' attribute { name: 'value' type: TENSOR
           t { name: 'n' dims: 1 data_type: 6 int32_data: -7 } } }
    node { output: 'int' op_type: 'Constant' attribute { name: 'value_int' type: INT i: 4 doc_string: 'd' } }
    node { output: 'ints' op_type: 'Constant' attribute { name: 'value_ints' type: INTS ints: 4 ints: 5 } }
    node { output: 'float' op_type: 'Constant' attribute { name: 'value_float' type: FLOAT f: 0.5 } }
    node { output: 'floats' op_type: 'Constant' attribute { name: 'value_floats' type: FLOATS floats: 1 } }
    node { output: 'string' op_type: 'Constant' attribute { name: 'value_string' type: STRING s: 'x' } }
    node { output: 'other' op_type: 'Constant' domain: 'd' attribute { name: 'value_int' type: INT i: 4 } }
    node { output: 'relu' op_type: 'Relu' input: 'x' })"));
  using Ints = SmallVector<int64_t>;
  auto ints = [&](StringRef name) {
    return getConstantInts(values.lookup(name)).value_or(Ints{-999});
  };
  EXPECT_EQ(ints("i64"), (Ints{1, -2}));
  EXPECT_EQ(ints("u8"), (Ints{255, 1}));
  EXPECT_EQ(ints("i8"), (Ints{-1, 1}));
  EXPECT_EQ(ints("i4"), (Ints{-8, -1, 1}));
  EXPECT_EQ(ints("u2"), (Ints{1, 2, 3}));
  EXPECT_EQ(ints("bool"), (Ints{1, 0}));
  EXPECT_EQ(ints("odd"), (Ints{1, 0}));
  EXPECT_EQ(ints("u64"), (Ints{-1}));
  EXPECT_EQ(ints("tensor"), (Ints{-7}));
  EXPECT_EQ(ints("int"), (Ints{4}));
  EXPECT_EQ(ints("ints"), (Ints{4, 5}));
  EXPECT_EQ(getConstantInt(values["int"]), 4);
  EXPECT_EQ(getConstantElements(values["int"])->type.getRank(), 0);
  EXPECT_EQ(getConstantElements(values["ints"])->type.getRank(), 1);
  EXPECT_EQ(getConstantFloat(values["raw"]), 1.0);
  EXPECT_EQ(getConstantFloat(values["f16"]), 1.0);
  EXPECT_EQ(getConstantFloat(values["bf16"]), -1.0);
  EXPECT_EQ(getConstantFloat(values["f8"]), 1.0);
  EXPECT_EQ(getConstantFloat(values["float"]), 0.5);
  EXPECT_EQ(getConstantFloat(values["floats"]), 1.0);
  EXPECT_EQ(getConstantFloat(values["int"]), 4.0);
  EXPECT_FALSE(getConstantElements(values["i64"], 1));
  // A graph input's default is no constant: the caller may pass another value.
  for (const char *name : {"x", "d", "s", "c", "string", "other", "relu"})
    EXPECT_FALSE(getConstantElements(values.lookup(name))) << name;
  EXPECT_FALSE(getConstantElements(Value()));
}

TEST_F(Views, DefaultsWereConstantsOnce) {
  load(parseModel(R"(ir_version: 3 graph { input { name: 'd' }
    initializer { name: 'd' dims: 1 data_type: 7 int64_data: 8 } })"));
  EXPECT_EQ(getConstantInt(values["d"]), 8);
}

TEST_F(Views, LargeConstants) {
  ::onnx::ModelProto model = parseGraph("");
  auto *tensor = model.mutable_graph()->add_initializer();
  tensor->set_name("w");
  tensor->set_data_type(7);
  tensor->add_dims(1000);
  for (int i = 0; i < 1000; ++i)
    tensor->add_int64_data(i - 500);
  load(model);
  auto elements = getConstantInts(values["w"]);
  ASSERT_TRUE(elements);
  EXPECT_EQ((*elements)[3], -497);
}

} // namespace
