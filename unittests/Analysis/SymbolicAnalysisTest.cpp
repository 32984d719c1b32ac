//===- SymbolicAnalysisTest.cpp - Shapes and elements of graphs -----------===//

#include "Graphs.h"

using namespace mlir;
using namespace prefill;

namespace {

using SymbolicShape = Graphs;

#define NODE(name, op, inputs, attrs, types)                                   \
  "%" name " = onnx.node \"" op "\"(" inputs ") " attrs                        \
  " attributes {output_names = [\"" name "\"]} : " types "\n"

constexpr const char *x = "%x: tensor<?x?x64xf32, #onnx.dims<\"b\", \"s\", "
                          "\"\">>";
#define X "tensor<?x?x64xf32, #onnx.dims<\"b\", \"s\", \"\">>"

TEST_F(SymbolicShape, ComputedShapesOfATorchScriptExport) {
  load(x, "\"x\"",
       "%four = onnx.initializer \"four\" : tensor<1xi64> = dense<4> : "
       "tensor<1xi64>\n"
       "%d = onnx.initializer \"d\" : tensor<1xi64> = dense<-1> : "
       "tensor<1xi64>\n"
       "%i0 = onnx.initializer \"i0\" : tensor<i64> = dense<0> : tensor<i64>\n"
       "%i1 = onnx.initializer \"i1\" : tensor<i64> = dense<1> : tensor<i64>\n"
       "%a0 = onnx.initializer \"a0\" : tensor<1xi64> = dense<0> : "
       "tensor<1xi64>\n" NODE("sh", "Shape", "%x", "", "(" X ") -> !u") NODE(
           "n", "Gather", "%sh, %i0", "", "(!u, tensor<i64>) -> !u")
           NODE("m", "Gather", "%sh, %i1", "", "(!u, tensor<i64>) -> !u") NODE(
               "n1", "Unsqueeze", "%n, %a0", "", "(!u, tensor<1xi64>) -> !u")
               NODE("m1", "Unsqueeze", "%m, %a0", "",
                    "(!u, tensor<1xi64>) -> !u")
                   NODE("c", "Concat", "%n1, %m1, %four, %d",
                        "{axis = 0 : si64}",
                        "(!u, !u, tensor<1xi64>, tensor<1xi64>) -> !u")
                       NODE("r", "Reshape", "%x, %c", "", "(" X ", !u) -> !u")
                           NODE("t", "Transpose", "%r",
                                "{perm = array<i64: 0, 2, 3, 1>}", "(!u) -> !u")
                               NODE("q", "Mystery", "%t", "", "(!u) -> !u"));
  EXPECT_EQ(shape("sh"), "[3]");
  EXPECT_EQ(shape("r"), "[b, s, 4, 16]");
  EXPECT_EQ(shape("t"), "[b, 4, 16, s]");
  EXPECT_EQ(element("c"), "load(x0)"); // one of four, by index only
  // Unknown ops give unknown shapes.
  EXPECT_EQ(shape("q"), "unranked");
}

TEST_F(SymbolicShape, DeclaredShapesAreOnlyHints) {
  // The model says s for a size that is 2 * s, and a size where none is known.
  load(x, "\"x\"",
       NODE("c", "Concat", "%x, %x", "{axis = 1 : si64}",
            "(" X ", " X ") -> tensor<?x?x64xf32, #onnx.dims<\"b\", \"s\", "
            "\"\">>") NODE("q", "Mystery", "%c", "",
                           "(tensor<?x?x64xf32, #onnx.dims<\"b\", \"s\", "
                           "\"\">>) -> tensor<?x7xf32, #onnx.dims<\"b\", "
                           "\"\">>"));
  EXPECT_EQ(shape("c"), "[b, 2*s, 64]");
  EXPECT_EQ(shape("q"), "[?, 7]");
}

TEST_F(SymbolicShape, ConcatAndProductsSayWhatIsEqual) {
  load("%p: tensor<?x2x?x16xf32, #onnx.dims<\"c\", \"\", \"p\", \"\">>, "
       "%k: tensor<?x2x?x16xf32, #onnx.dims<\"b\", \"\", \"s\", \"\">>",
       "\"p\", \"k\"",
       NODE("kk", "Concat", "%p, %k", "{axis = -2 : si64}",
            "(tensor<?x2x?x16xf32, #onnx.dims<\"c\", \"\", \"p\", \"\">>, "
            "tensor<?x2x?x16xf32, #onnx.dims<\"b\", \"\", \"s\", \"\">>) -> "
            "!u"));
  EXPECT_TRUE(analysis->expressions().proveEqual(analysis->dim(value("p"), 0),
                                                 analysis->dim(value("k"), 0)));
  EXPECT_EQ(analysis->expressions().str(analysis->dim(value("kk"), 2)),
            "p + s");
}

TEST_F(SymbolicShape, WhatIsReadIsThere) {
  // Positions 0 ... s are read of a mask: it has at least s + 1 elements, and a
  // sum with s + 1 others has as many as the mask.
  auto loadWith = [&](const char *start) {
    load("%m: tensor<?xi64, #onnx.dims<\"t\">>, %x: tensor<?xf32, "
         "#onnx.dims<\"s\">>",
         "\"m\", \"x\"",
         std::string("%start = onnx.initializer \"start\" : tensor<i64> = "
                     "dense<") +
             start +
             "> : tensor<i64>\n"
             "%i1 = onnx.initializer \"i1\" : tensor<i64> = dense<1> : "
             "tensor<i64>\n" NODE("n", "Size", "%x", "",
                                  "(tensor<?xf32, #onnx.dims<\"s\">>) -> !u")
                 NODE("n1", "Add", "%n, %i1", "", "(!u, tensor<i64>) -> !u")
                     NODE("r", "Range", "%start, %n1, %i1", "",
                          "(tensor<i64>, !u, tensor<i64>) -> !u")
                         NODE("before", "Add", "%r, %m", "",
                              "(!u, tensor<?xi64, #onnx.dims<\"t\">>) -> !u")
                             NODE("g", "Gather", "%m, %r", "",
                                  "(tensor<?xi64, #onnx.dims<\"t\">>, !u) -> "
                                  "!u") NODE("y", "Add", "%r, %m", "",
                                             "(!u, tensor<?xi64, "
                                             "#onnx.dims<\"t\">>) -> !u"));
  };
  loadWith("0");
  EXPECT_EQ(shape("g"), "[s + 1]");
  EXPECT_EQ(shape("before"), "[?]");
  EXPECT_EQ(shape("y"), "[t]");
  // Of no positions nothing follows: there may be none from 1 on.
  loadWith("1");
  EXPECT_EQ(shape("g"), "[s]");
  EXPECT_EQ(shape("y"), "[?]");
}

TEST_F(SymbolicShape, SlicesClip) {
  load("%m: tensor<256x256xi1>, %x: tensor<?xf32, #onnx.dims<\"s\">>",
       "\"m\", \"x\"",
       "%a = onnx.initializer \"a\" : tensor<1xi64> = dense<0> : "
       "tensor<1xi64>\n"
       "%last = onnx.initializer \"last\" : tensor<1xi64> = "
       "dense<9223372036854775807> : tensor<1xi64>\n"
       "%first = onnx.initializer \"first\" : tensor<1xi64> = "
       "dense<-9223372036854775808> : tensor<1xi64>\n"
       "%two = onnx.initializer \"two\" : tensor<1xi64> = dense<2> : "
       "tensor<1xi64>\n"
       "%back = onnx.initializer \"back\" : tensor<1xi64> = dense<-3> : "
       "tensor<1xi64>\n" NODE("n", "Shape", "%x", "",
                              "(tensor<?xf32, #onnx.dims<\"s\">>) -> !u")
           NODE("c", "Slice", "%m, %a, %n, %a", "",
                "(tensor<256x256xi1>, tensor<1xi64>, !u, tensor<1xi64>) -> !u")
               NODE("e", "Slice", "%m, %two, %last, %a", "",
                    "(tensor<256x256xi1>, tensor<1xi64>, tensor<1xi64>, "
                    "tensor<1xi64>) -> !u")
                   NODE("f", "Slice", "%m, %first, %back, %a", "",
                        "(tensor<256x256xi1>, tensor<1xi64>, tensor<1xi64>, "
                        "tensor<1xi64>) -> !u"));
  EXPECT_EQ(shape("c"), "[min(256, s), 256]");
  EXPECT_EQ(shape("e"), "[254, 256]");
  EXPECT_EQ(shape("f"), "[253, 256]");
}

TEST_F(SymbolicShape, MaskElements) {
  load(
      "%pad: tensor<?x?xi64, #onnx.dims<\"b\", \"t\">>", "\"pad\"",
      "%i0 = onnx.initializer \"i0\" : tensor<i64> = dense<0> : tensor<i64>\n"
      "%i1 = onnx.initializer \"i1\" : tensor<i64> = dense<1> : tensor<i64>\n"
      "%n1 = onnx.initializer \"n1\" : tensor<1xi64> = dense<1> : "
      "tensor<1xi64>\n"
      "%tril = onnx.initializer \"tril\" : tensor<3x3xf32> = dense<[[0.0, "
      "-9.0, -9.0], [0.0, 0.0, -9.0], [0.0, 0.0, 0.0]]> : tensor<3x3xf32>\n"
      "%odd = onnx.initializer \"odd\" : tensor<2x2xi64> = dense<[[1, 2], [3, "
      "4]]> : tensor<2x2xi64>\n"
      "%arange = onnx.initializer \"arange\" : tensor<1x4xi64> = dense<[[3, 5, "
      "7, 9]]> : tensor<1x4xi64>\n" NODE(
          "sh", "Shape", "%pad", "{start = 1 : si64}",
          "(tensor<?x?xi64, #onnx.dims<\"b\", \"t\">>) -> !u")
          NODE("n", "Squeeze", "%sh", "",
               "(!u) -> !u") NODE("r", "Range", "%i0, %n, %i1", "",
                                  "(tensor<i64>, !u, tensor<i64>) -> !u")
              NODE("col", "Unsqueeze", "%r, %n1", "",
                   "(!u, tensor<1xi64>) -> !u")
                  NODE("le", "LessOrEqual", "%r, %col", "", "(!u, !u) -> !u")
                      NODE("bool", "Cast", "%pad", "{to = 9 : si64}",
                           "(tensor<?x?xi64, #onnx.dims<\"b\", "
                           "\"t\">>) -> !u")
                          NODE("f", "Cast", "%le", "{to = 1 : si64}",
                               "(!u) -> !u")
                              NODE("tri", "Trilu", "%f", "{upper = 0 : si64}",
                                   "(!u) -> !u"));
  EXPECT_EQ(shape("le"), "[t, t]");
  EXPECT_EQ(element("le"), "0 <= (x0 - x1)");
  EXPECT_EQ(element("bool"), "not (0 == (load(x0, x1)))");
  EXPECT_EQ(element("f"), "select(0 <= (x0 - x1), 1, 0)");
  EXPECT_EQ(element("tri"), "select(0 <= (x0 - x1), 1, 0)");
  EXPECT_EQ(element("tril"), "select(0 <= (x0 - x1), 0, -9)");
  EXPECT_EQ(element("arange"), "2*x1 + 3");
  EXPECT_EQ(element("odd"), "load(x0, x1)");
}

TEST_F(SymbolicShape, Pads) {
  load(
      x, "\"x\"",
      R"(%pads = onnx.initializer "pads" : tensor<2xi64> = dense<[1, 2]> : tensor<2xi64>
          %none = onnx.initializer "none" : tensor<2xi64> = dense<0> : tensor<2xi64>
          %axis = onnx.initializer "axis" : tensor<1xi64> = dense<-1> : tensor<1xi64>
          %fill = onnx.initializer "fill" : tensor<f32> = dense<5.0> : tensor<f32>
          %row = onnx.initializer "row" : tensor<3xf32> = dense<7.0> : tensor<3xf32>
       )" NODE("a", "Pad", "%row, %pads, %fill, %axis", "",
               "(tensor<3xf32>, tensor<2xi64>, tensor<f32>, tensor<1xi64>) "
               "-> !u")
          NODE("b", "Pad", "%row, %none, %fill, %axis", "",
               "(tensor<3xf32>, tensor<2xi64>, tensor<f32>, tensor<1xi64>) "
               "-> !u") NODE("c", "Pad", "%row, %pads", "{mode = \"edge\"}",
                             "(tensor<3xf32>, tensor<2xi64>) -> !u"));
  EXPECT_EQ(shape("a"), "[6]");
  EXPECT_EQ(element("a"), "select((0 <= (x0 - 1) and 0 <= (-x0 + 3)), 7, 5)");
  EXPECT_EQ(element("b"), "7");
  EXPECT_EQ(shape("c"), "[6]");
  EXPECT_EQ(element("c"), "load(x0)");
}

TEST_F(SymbolicShape, TheLastOfAStoredVector) {
  // From max(0, 512 - n): the slice is min(n, 512) long.
  load(
      "%x: tensor<?xf32, #onnx.dims<\"n\">>, %w: tensor<512xf32>",
      "\"x\", \"w\"",
      R"(%stored = onnx.initializer "stored" : tensor<1xi64> = dense<512> : tensor<1xi64>
          %zero = onnx.initializer "zero" : tensor<1xi64> = dense<0> : tensor<1xi64>
          %end = onnx.initializer "end" : tensor<1xi64> = dense<9223372036854775807> : tensor<1xi64>
       )" NODE("n", "Shape", "%x", "",
               "(tensor<?xf32, #onnx.dims<\"n\">>) -> !u")
          NODE("d", "Sub", "%stored, %n", "", "(tensor<1xi64>, !u) -> !u")
              NODE("m", "Max", "%d, %zero", "", "(!u, tensor<1xi64>) -> !u")
                  NODE("s", "Slice", "%w, %m, %end", "",
                       "(tensor<512xf32>, !u, tensor<1xi64>) -> !u"));
  EXPECT_EQ(shape("s"), "[min(n, 512)]");
}

TEST_F(SymbolicShape, RepeatedHeadsAreSeenThrough) {
  load(
      "%k: tensor<?x2x?x16xf32, #onnx.dims<\"b\", \"\", \"t\", \"\">>", "\"k\"",
      "%a = onnx.initializer \"a\" : tensor<1xi64> = dense<2> : tensor<1xi64>\n"
      "%rep = onnx.initializer \"rep\" : tensor<5xi64> = dense<[1, 1, 3, 1, "
      "1]> : tensor<5xi64>\n"
      "%join = onnx.initializer \"join\" : tensor<4xi64> = dense<[0, 6, -1, "
      "16]> : tensor<4xi64>\n" NODE("u1", "Unsqueeze", "%k, %a", "",
                                    "(tensor<?x2x?x16xf32, #onnx.dims<\"b\", "
                                    "\"\", \"t\", \"\">>, tensor<1xi64>) -> "
                                    "!u") NODE("e", "Expand", "%u1, %rep", "",
                                               "(!u, tensor<5xi64>) -> !u")
          NODE("r", "Reshape", "%e, %join", "", "(!u, tensor<4xi64>) -> !u"));
  EXPECT_EQ(shape("r"), "[b, 6, t, 16]");
  Value r = value("r");
  auto chain = analysis->viewChain(r, analysis->indexVariables(r, "x"));
  ASSERT_EQ(chain.back().value, value("k"));
  EXPECT_EQ(analysis->expressions().str(chain.back().indices[1]),
            "(x1 floordiv 3)");
}

TEST_F(SymbolicShape, HostileGraphsEnd) {
  // Each node uses the one before twice: 2^400 paths.
  std::string body =
      "%v0 = onnx.node \"Identity\"(%x) attributes {output_names = [\"v0\"]} : "
      "(tensor<?x?xi64, #onnx.dims<\"b\", \"s\">>) -> !u\n";
  for (int k = 1; k < 400; ++k) {
    std::string p = std::to_string(k - 1), n = std::to_string(k);
    body += "%v" + n + " = onnx.node \"" + (k % 3 ? "Mul" : "Concat") +
            "\"(%v" + p + ", %v" + p +
            ") {axis = 0 : si64} attributes {output_names = [\"v" + n +
            "\"]} : (!u, !u) -> !u\n";
  }
  load("%x: tensor<?x?xi64, #onnx.dims<\"b\", \"s\">>", "\"x\"", body);
  EXPECT_FALSE(element("v399").empty());
}

TEST_F(SymbolicShape, WrongAttributesGiveUnknownShapes) {
  load(x, "\"x\"",
       NODE("a", "Transpose", "%x", "{perm = array<i64: 0, 7, 1>}",
            "(" X ") -> !u") NODE("b", "Concat", "%x, %x", "{axis = 9 : si64}",
                                  "(" X ", " X ") -> !u")
           NODE("c", "Gather", "%x", "", "(" X ") -> !u")
               NODE("d", "Split", "%x", "{axis = -9 : si64}", "(" X ") -> !u")
                   NODE("e", "Softmax", "", "", "() -> !u"));
  for (const char *name : {"a", "b", "c", "d", "e"})
    EXPECT_EQ(shape(name), "unranked") << name;
}

} // namespace
