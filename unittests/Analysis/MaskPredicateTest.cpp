//===- MaskPredicateTest.cpp - What masks do to scores --------------------===//

#include "prefill/Analysis/MaskPredicate.h"

#include "Graphs.h"

using namespace mlir;
using namespace prefill;

namespace {

/// Masks over 3 rows and 5 keys, stored as bytes: row i sits at key i + 2.
struct MaskPredicate : Graphs {
  /// What applyMask makes of a bool mask given as rows of 0 and 1.
  AttentionSite read(llvm::StringRef rows, int64_t rowCount = 3,
                     int64_t keyCount = 5) {
    std::string text;
    for (char c : rows) {
      if (c == '/') {
        text += "], [";
        continue;
      }
      text += text.empty() || text.back() == '[' ? "" : ", ";
      text += c == '1' ? "true" : "false";
    }
    std::string type = "tensor<" + std::to_string(rowCount) + "x" +
                       std::to_string(keyCount) + "xi1>";
    load("%q: tensor<?x4x3x16xf32, #onnx.dims<\"b\", \"\", \"\", \"\">>",
         "\"q\"",
         "%m = onnx.initializer \"m\" : " + type + " = dense<[[" + text +
             "]]> : " + type + "\n");
    AttentionSite site;
    site.core = value("m").getDefiningOp();
    site.q = value("q");
    ExprContext &ctx = analysis->expressions();
    MaskDims dims{ctx.getSymbol("b"), ctx.getInt(4), ctx.getInt(rowCount),
                  ctx.getInt(keyCount)};
    EXPECT_TRUE(
        succeeded(applyMask(*analysis, site, value("m"), dims, neverEmpty)));
    return site;
  }
  bool neverEmpty = false;
};

TEST_F(MaskPredicate, CausalFromTheEnd) {
  AttentionSite site = read("11100/11110/11111");
  EXPECT_EQ(site.maskText(), "causal");
  EXPECT_EQ(site.alignment, QueryAlignment::End);
  EXPECT_TRUE(neverEmpty);
}

TEST_F(MaskPredicate, CausalFromTheStart) {
  AttentionSite site = read("10000/11000/11100");
  EXPECT_EQ(site.maskText(), "causal from key 0");
  EXPECT_TRUE(neverEmpty);
}

TEST_F(MaskPredicate, Windows) {
  EXPECT_EQ(read("01100/00110/00011").maskText(), "causal, window 1 back");
  EXPECT_TRUE(neverEmpty);
  AttentionSite both = read("01110/00111/00011");
  EXPECT_EQ(both.maskText(), "window 1 back, window 1 ahead");
  EXPECT_FALSE(both.causal);
  EXPECT_EQ(read("00100/00010/00001").maskText(), "causal, window 0 back");
}

TEST_F(MaskPredicate, NothingHidden) {
  EXPECT_EQ(read("11111/11111/11111").maskText(), "none");
  EXPECT_TRUE(neverEmpty);
}

TEST_F(MaskPredicate, NearMissesStayTensors) {
  for (const char *rows : {"11000/11100/10110",    // one bit flipped
                           "11100/11110/11110",    // one key short at the end
                           "00000/10000/11000",    // strictly before the start
                           "00011/00001/00000",    // after
                           "10100/01010/10101"}) { // parity
    AttentionSite site = read(rows);
    EXPECT_FALSE(site.causal) << rows;
    EXPECT_EQ(site.maskText(), "bias") << rows;
    EXPECT_FALSE(neverEmpty) << rows;
  }
}

TEST_F(MaskPredicate, WhatTheOpSaysStays) {
  read("11100/11110/11111");
  AttentionSite site;
  site.core = value("m").getDefiningOp();
  site.q = value("q");
  site.causal = true; // aligned with the start, as ONNX's is_causal
  site.alignment = QueryAlignment::Start;
  ExprContext &ctx = analysis->expressions();
  MaskDims dims{ctx.getSymbol("b"), ctx.getInt(4), ctx.getInt(3),
                ctx.getInt(5)};
  ASSERT_TRUE(
      succeeded(applyMask(*analysis, site, value("m"), dims, neverEmpty)));
  // j <= i + 2 says nothing more.
  EXPECT_EQ(site.maskText(), "causal from key 0");
}

TEST_F(MaskPredicate, NumbersThatHide) {
  Type f32 = Float32Type::get(&context), f16 = Float16Type::get(&context);
  double inf = std::numeric_limits<double>::infinity();
  EXPECT_TRUE(MaskBuilder::hides(-inf, f32, true));
  EXPECT_TRUE(MaskBuilder::hides(-3.4e38, f32, true));
  EXPECT_TRUE(MaskBuilder::hides(-65504, f16, true));
  EXPECT_FALSE(MaskBuilder::hides(-10000, f16, true));
  // Added, -1e9 leaves the scores readable; put in their place, it hides them.
  EXPECT_FALSE(MaskBuilder::hides(-1e9, f32, true));
  EXPECT_TRUE(MaskBuilder::hides(-1e9, f32, false));
  EXPECT_FALSE(MaskBuilder::hides(-10000, f32, false));
  EXPECT_FALSE(MaskBuilder::hides(inf, f32, true));
  EXPECT_FALSE(MaskBuilder::hides(std::nan(""), f32, true));
  EXPECT_FALSE(MaskBuilder::hides(0, f32, true));
}

} // namespace
