//===- SparsityConfigTest.cpp - Parsing of -sparsify= ---------------------===//

#include "prefill/Transforms/SparsityConfig.h"
#include "prefill/Transforms/Patterns.h"
#include "gtest/gtest.h"

using namespace prefill;

static SparsityConfig parse(llvm::StringRef spec) {
  std::string error;
  std::optional<SparsityConfig> config = parseSparsity(spec, error);
  EXPECT_TRUE(config) << error;
  return config.value_or(SparsityConfig());
}

static std::string refuse(llvm::StringRef spec) {
  std::string error;
  EXPECT_FALSE(parseSparsity(spec, error)) << spec.str();
  return error;
}

static std::string refuseJSON(llvm::StringRef text) {
  std::string error;
  EXPECT_FALSE(parseSparsityJSON(text, "c.json", error)) << text.str();
  return error;
}

TEST(SparsityConfig, PatternsAndOptions) {
  EXPECT_EQ(parse("dense").plan(3, 1).pattern, SparsePattern::Dense);
  HeadPlan plan =
      parse("vertical-slash:vertical=1000,slash=6096,last=32").plan(0, 0);
  EXPECT_EQ(plan.pattern, SparsePattern::VerticalSlash);
  EXPECT_EQ(plan.vertical, 1000);
  EXPECT_EQ(plan.slash, 6096);
  EXPECT_EQ(plan.last, 32);
  EXPECT_EQ(plan.density, 0.0f);
}

TEST(SparsityConfig, TokenBudgetReplacesDefaultDensity) {
  HeadPlan plan = parse("vertical-slash:vertical=30").plan(0, 0);
  EXPECT_EQ(plan.density, 0.0f);
  EXPECT_EQ(plan.vertical, 30);
  EXPECT_EQ(plan.slash, 6096);
  EXPECT_GT(parse("vertical-slash:last=16").plan(0, 0).density, 0.0f);
  EXPECT_EQ(parse("block-sparse:top-k=7").plan(0, 0).topK, 7);
}

TEST(SparsityConfig, XAttention) {
  HeadPlan plan = parse("xattention").plan(0, 0);
  EXPECT_EQ(plan.pattern, SparsePattern::XAttention);
  EXPECT_EQ(plan.stride, 8);
  EXPECT_EQ(plan.topP, 0.9f);
  plan = parse("xattention:stride=16,threshold=0.95").plan(0, 0);
  EXPECT_EQ(plan.stride, 16);
  EXPECT_EQ(plan.topP, 0.95f);
  EXPECT_NE(refuse("xattention:stride=12").find("stride must be 2, 4, 8"),
            std::string::npos);
  EXPECT_NE(refuse("xattention:threshold=0").find("in (0, 1]"),
            std::string::npos);
  EXPECT_NE(refuse("xattention:density=0.5").find("stride, threshold"),
            std::string::npos);
  std::string error;
  auto config = parseSparsityJSON(
      R"({"layers": [{"heads": {"0": {"type": "xattention", "stride": 4, "tau": 0.8}}}]})",
      "file", error);
  ASSERT_TRUE(config) << error;
  EXPECT_EQ(config->plan(0, 0).stride, 4);
  EXPECT_EQ(config->plan(0, 0).topP, 0.8f);
}

TEST(SparsityConfig, NewPatterns) {
  HeadPlan plan = parse("sampled").plan(0, 0);
  EXPECT_EQ(plan.pattern, SparsePattern::Sampled);
  EXPECT_EQ(plan.stride, 8);
  EXPECT_EQ(plan.topP, 0.9f);
  EXPECT_EQ(plan.local, 64);
  EXPECT_EQ(plan.values, 1);
  plan = parse("sale").plan(0, 0);
  EXPECT_EQ(plan.pattern, SparsePattern::SALE);
  EXPECT_EQ(plan.threshold, 0.02f);
  EXPECT_EQ(plan.values, 0);
  EXPECT_EQ(plan.topP, 0.0f);
  EXPECT_EQ(plan.bits, 8);
  EXPECT_EQ(plan.stride, 1);
  EXPECT_EQ(plan.init, 32);
  EXPECT_EQ(plan.local, 128);
  EXPECT_EQ(parse("sale:tau=0.01").plan(0, 0).threshold, 0.01f);
  plan = parse("sale:top-p=0.95,bits=4,similarity=0.5").plan(0, 0);
  EXPECT_EQ(plan.threshold, 0.0f);
  EXPECT_EQ(plan.topP, 0.95f);
  EXPECT_EQ(plan.values, 1);
  EXPECT_EQ(plan.bits, 4);
  EXPECT_EQ(plan.similarity, 0.5f);
  for (const char *name : {"dense", "a-shape", "vertical-slash", "block-topk",
                           "sale", "infllm-v2", "longgen"}) {
    plan = parse(std::string(name) + ":skip=0.001").plan(0, 0);
    EXPECT_EQ(plan.skip, 0.001f) << name;
    const llvm::json::Object object = planToJSON(plan);
    EXPECT_EQ(object.getNumber("skip"), 0.001) << name;
    plan.skip = 0;
    EXPECT_FALSE(planToJSON(plan).getNumber("skip")) << name;
  }
  plan = parse("flexprefill:gamma=0.95").plan(0, 0);
  EXPECT_EQ(plan.pattern, SparsePattern::FlexPrefill);
  EXPECT_EQ(plan.topP, 0.95f);
  EXPECT_EQ(plan.threshold, 0.1f);
  EXPECT_EQ(plan.minBudget, 512);
  EXPECT_EQ(plan.last, 64);
  plan = parse("infllm-v2").plan(0, 0);
  EXPECT_EQ(plan.pattern, SparsePattern::InfLLMv2);
  EXPECT_EQ(plan.topK, 64);
  EXPECT_EQ(plan.init, 64);
  EXPECT_EQ(plan.local, 2048);
  plan = parse("block-topp").plan(0, 0);
  EXPECT_EQ(plan.pattern, SparsePattern::BlockSparse);
  EXPECT_EQ(plan.topK, 0);
  EXPECT_EQ(plan.topP, 0.9f);
  EXPECT_EQ(parse("block-topk").plan(0, 0), parse("block-sparse").plan(0, 0));
  EXPECT_EQ(parse("streaming").plan(0, 0),
            parse("a-shape:init=64,local=256").plan(0, 0));
  // Without a name: the automatic choice.
  EXPECT_EQ(parse("").plan(0, 0), parse("auto").plan(0, 0));
  EXPECT_EQ(parse("auto").denseBelow, 1024);
  EXPECT_EQ(parse("auto:top-p=0.8,dense-below=0").denseBelow, 0);
  EXPECT_EQ(parse("auto:top-p=0.8").plan(0, 0).topP, 0.8f);
  EXPECT_EQ(parse("auto:top-p=0.8").plan(0, 0).stride, 4);
  EXPECT_NE(refuse("auto:nosuch=1").find("unknown option"), std::string::npos);
}

TEST(SparsityConfig, DenseBelow) {
  EXPECT_EQ(parse("infllm-v2:top-k=16").denseBelow, 8192);
  EXPECT_EQ(parse("sale").denseBelow, 1024);
  EXPECT_EQ(parse("sale:tau=0.001").denseBelow, -1);
  EXPECT_EQ(parse("sampled:stride=16").denseBelow, 2048);
  EXPECT_EQ(parse("sampled:threshold=0.9").denseBelow, -1);
  // The default budgets are known to need it.
  EXPECT_EQ(parse("vertical-slash").denseBelow, 2048);
  EXPECT_EQ(parse("vertical-slash:dense-below=512").denseBelow, 512);
  EXPECT_EQ(parse("vertical-slash:density=0.5").denseBelow, -1);
  EXPECT_EQ(parse("xattention:stride=16").denseBelow, 2048);
  EXPECT_EQ(parse("xattention:threshold=0.9").denseBelow, -1);
  EXPECT_EQ(parse("a-shape").denseBelow, -1);
  EXPECT_EQ(parse("a-shape:dense-below=2048").denseBelow, 2048);
  EXPECT_NE(refuse("a-shape:dense-below=-2").find("dense-below"),
            std::string::npos);
}

TEST(SparsityConfig, Refusals) {
  EXPECT_NE(refuse("vertical-slash:last=65").find("at most 64"),
            std::string::npos);
  EXPECT_NE(refuse("vertical-slash:last=0").find("positive"),
            std::string::npos);
  EXPECT_NE(refuse("a-shape:init=1.5").find("whole"), std::string::npos);
  EXPECT_NE(refuse("a-shape:init=-1").find("whole"), std::string::npos);
  EXPECT_NE(refuse("a-shape:init=nan").find("whole"), std::string::npos);
  EXPECT_NE(refuse("a-shape:init=1e99").find("whole"), std::string::npos);
  EXPECT_NE(refuse("a-shape:init").find("option=number"), std::string::npos);
  EXPECT_NE(refuse("vertical-slash:density=nan").find("(0, 1]"),
            std::string::npos);
  EXPECT_NE(refuse("zigzag").find("unknown pattern"), std::string::npos);
  EXPECT_NE(refuse(":last=3").find("unknown pattern"), std::string::npos);
  EXPECT_NE(refuse("sampled:stride=3").find("stride must be 1, 2, 4, 8"),
            std::string::npos);
  EXPECT_NE(refuse("sale:bits=6").find("bits must be 4 or 8"),
            std::string::npos);
  EXPECT_NE(refuse("sale:tau=0").find("tau must be in (0, 1]"),
            std::string::npos);
  EXPECT_NE(refuse("sale:top-p=0.9,tau=0.1").find("either threshold or top-p"),
            std::string::npos);
  EXPECT_NE(refuse("block-topk:top-k=3,density=0.1").find("either top-k or"),
            std::string::npos);
  EXPECT_NE(refuse("flexprefill:tau=1.5").find("in [0, 1]"), std::string::npos);
  EXPECT_NE(refuse("a-shape:similarity=0.5").find("unknown option"),
            std::string::npos);
  EXPECT_NE(refuse("sampled:skip=3").find("skip must be in [0, 1)"),
            std::string::npos);
  EXPECT_NE(refuse("dense:skip=1").find("in [0, 1)"), std::string::npos);
  EXPECT_NE(refuse("dense:init=3").find("dense has none"), std::string::npos);
  // What a float cannot hold is no share.
  EXPECT_NE(refuse("sale:tau=1e-60").find("in (0, 1]"), std::string::npos);
}

TEST(SparsityConfig, MInferenceList) {
  std::string error;
  auto config = parseSparsityJSON(
      R"([{"0": ["vertical_and_slash", 1000, 6096, 336],
           "1": ["stream_llm", 100, 800, 0.96],
           "2": ["block_sparse", 1000, 6096, 1]}, {}])",
      "c.json", error);
  ASSERT_TRUE(config) << error;
  EXPECT_EQ(config->plan(0, 0).slash, 6096);
  EXPECT_EQ(config->plan(0, 1).pattern, SparsePattern::AShape);
  EXPECT_EQ(config->plan(0, 1).local, 800);
  EXPECT_EQ(config->plan(0, 2).topK, 100);
  // A head that the list leaves out: MInference's own fallback.
  EXPECT_EQ(config->plan(1, 5).pattern, SparsePattern::VerticalSlash);
  EXPECT_EQ(config->plan(1, 5).vertical, 1000);
  EXPECT_EQ(config->plan(1, 5).slash, 6096);
}

TEST(SparsityConfig, Extended) {
  std::string error;
  auto config = parseSparsityJSON(
      R"({"version": 1, "dense_below": 4096, "layers": [{"dense": true},
          {"heads": {"0": {"type": "a_shape", "n_init": 64, "n_local": 256}}}]})",
      "c.json", error);
  ASSERT_TRUE(config) << error;
  EXPECT_EQ(config->denseBelow, 4096);
  EXPECT_EQ(config->plan(0, 0).pattern, SparsePattern::Dense);
  EXPECT_EQ(config->plan(1, 0).local, 256);
  EXPECT_EQ(config->plan(1, 1).pattern, SparsePattern::Dense);
}

TEST(SparsityConfig, BadFiles) {
  EXPECT_NE(refuseJSON("{").find("not JSON"), std::string::npos);
  EXPECT_NE(refuseJSON("3").find("list over layers"), std::string::npos);
  EXPECT_NE(refuseJSON("[3]").find("layer 0"), std::string::npos);
  EXPECT_NE(refuseJSON(R"([{"x": []}])").find("'x'"), std::string::npos);
  EXPECT_NE(refuseJSON(R"([{"0": ["stream_llm", 1]}])").find("head 0"),
            std::string::npos);
  EXPECT_NE(refuseJSON(R"([{"0": ["stream_llm", -5, 1, 1]}])").find("whole"),
            std::string::npos);
  EXPECT_NE(refuseJSON(R"({"layers": [{}]})").find("heads"), std::string::npos);
}
