//===- SparsityFilesTest.cpp - Maps over layers, files of other projects --===//

#include "prefill/Transforms/SparsityConfig.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/raw_ostream.h"
#include "gtest/gtest.h"

using namespace prefill;
using P = SparsePattern;

/// A file that lives as long as the object.
struct TemporaryFile {
  explicit TemporaryFile(llvm::StringRef text) {
    llvm::SmallString<128> name;
    int descriptor;
    EXPECT_FALSE(
        llvm::sys::fs::createTemporaryFile("duo", "tsv", descriptor, name));
    llvm::raw_fd_ostream(descriptor, /*shouldClose=*/true) << text;
    path = name.str().str();
  }
  ~TemporaryFile() { llvm::sys::fs::remove(path); }
  std::string path;
};

/// Parses, and fits to `layers` attentions of 4 query and 2 KV heads.
static SparsityConfig fitted(const std::string &spec, size_t layers) {
  std::string error;
  std::optional<SparsityConfig> config = parseSparsity(spec, error);
  EXPECT_TRUE(config) << error;
  if (!config)
    return {};
  EXPECT_TRUE(config->fit(std::vector<LayerShape>(layers, {4, 2}), error))
      << error;
  return *config;
}

/// The error of parsing or fitting.
static std::string refuse(const std::string &spec, size_t layers = 2) {
  std::string error;
  std::optional<SparsityConfig> config = parseSparsity(spec, error);
  if (config)
    EXPECT_FALSE(config->fit(std::vector<LayerShape>(layers, {4, 2}), error))
        << spec;
  EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  return error;
}

static std::optional<SparsityConfig> parseText(llvm::StringRef text,
                                               std::string &error) {
  return parseSparsityJSON(text, "c.json", error);
}

static std::string refuseText(llvm::StringRef text) {
  std::string error;
  EXPECT_FALSE(parseText(text, error)) << text.str();
  return error;
}

/// The patterns of layer by layer, head by head.
static std::vector<P> patterns(const SparsityConfig &config, int64_t layers,
                               int64_t heads) {
  std::vector<P> all;
  for (int64_t layer = 0; layer < layers; ++layer)
    for (int64_t head = 0; head < heads; ++head)
      all.push_back(config.plan(layer, head).pattern);
  return all;
}

TEST(LayerMaps, TriangleMix) {
  SparsityConfig config = fitted("trianglemix:layers=2,local=256", 4);
  EXPECT_EQ(patterns(config, 4, 1),
            (std::vector<P>{P::Dense, P::Dense, P::TriShape, P::TriShape}));
  EXPECT_EQ(config.plan(3, 0).init, 8);
  EXPECT_EQ(config.plan(3, 0).local, 256);
  EXPECT_EQ(config.plan(3, 0).last, 128);
  // 16 by default; a model with fewer stays dense.
  EXPECT_EQ(fitted("trianglemix", 20).plan(15, 0).pattern, P::Dense);
  EXPECT_EQ(fitted("trianglemix", 20).plan(16, 0).pattern, P::TriShape);
  EXPECT_EQ(fitted("trianglemix", 3).plan(2, 0).pattern, P::Dense);
  EXPECT_EQ(fitted("trianglemix:layers=0", 1).plan(0, 0).pattern, P::TriShape);
  EXPECT_NE(refuse("trianglemix:layers=-1").find("layers must be"),
            std::string::npos);
  EXPECT_NE(refuse("trianglemix:layers=1.5").find("layers must be"),
            std::string::npos);
}

TEST(LayerMaps, LongGen) {
  EXPECT_EQ(patterns(fitted("longgen", 7), 7, 1),
            (std::vector<P>{P::Strided, P::Strided, P::Dense, P::Dense,
                            P::Dense, P::Strided, P::Strided}));
  EXPECT_EQ(fitted("longgen:stride=4", 6).plan(0, 3).stride, 4);
  EXPECT_EQ(fitted("longgen", 1).plan(0, 0).pattern, P::Dense);
  EXPECT_NE(refuse("longgen:stride=0").find("positive number of blocks"),
            std::string::npos);
  EXPECT_NE(refuse("longgen:layers=3").find("unknown option"),
            std::string::npos);
}

TEST(Duo, HeadsByQuantile) {
  TemporaryFile file("0.9\t0.1\n0.2\t0.8\n");
  SparsityConfig config = fitted("duo:heads=" + file.path, 2);
  // Of each KV head both query heads.
  EXPECT_EQ(patterns(config, 2, 4),
            (std::vector<P>{P::Dense, P::Dense, P::AShape, P::AShape, P::AShape,
                            P::AShape, P::Dense, P::Dense}));
  EXPECT_EQ(config.plan(0, 2).init, 64);
  EXPECT_EQ(config.plan(0, 2).local, 256);
  EXPECT_EQ(config.denseBelow, -1);
  // The quantile 0.75 of four numbers lies above the third.
  config = fitted("duo:sparsity=0.75,init=32,heads=" + file.path, 2);
  EXPECT_EQ(patterns(config, 2, 4),
            (std::vector<P>{P::Dense, P::Dense, P::AShape, P::AShape, P::AShape,
                            P::AShape, P::AShape, P::AShape}));
  EXPECT_EQ(config.plan(1, 0).init, 32);
  EXPECT_EQ(patterns(fitted("duo:sparsity=1,heads=" + file.path, 2), 2, 4),
            std::vector<P>(8, P::AShape));
  EXPECT_EQ(patterns(fitted("duo:sparsity=0,heads=" + file.path, 2), 2, 4),
            std::vector<P>(8, P::Dense));
  // As a configuration file.
  EXPECT_EQ(patterns(fitted("config:" + file.path, 2), 2, 4),
            patterns(fitted("duo:heads=" + file.path, 2), 2, 4));
}

TEST(Duo, StaticAndDynamicHeads) {
  TemporaryFile file("1.000e+00 0.0\r\n\n# comment\n0 1\n");
  SparsityConfig config = fitted(
      "duo:heads=" + file.path + ",rest=xattention:stride=16,threshold=0.95",
      2);
  EXPECT_EQ(config.plan(0, 1).pattern, P::XAttention);
  EXPECT_EQ(config.plan(0, 1).stride, 16);
  EXPECT_EQ(config.plan(0, 1).topP, 0.95f);
  EXPECT_EQ(config.plan(0, 2).pattern, P::AShape);
  EXPECT_EQ(fitted("duo:heads=" + file.path + ",rest=auto", 2).denseBelow,
            1024);
  EXPECT_EQ(fitted("duo:dense-below=7,heads=" + file.path + ",rest=auto", 2)
                .denseBelow,
            7);
}

TEST(Duo, Refusals) {
  EXPECT_NE(refuse("duo").find("needs heads=FILE"), std::string::npos);
  EXPECT_NE(refuse("duo:heads=/nonexistent.tsv").find("No such file"),
            std::string::npos);
  auto bad = [](llvm::StringRef text, const char *expected,
                const char *options = "") {
    TemporaryFile file(text);
    std::string error = refuse("duo:heads=" + file.path + options);
    EXPECT_NE(error.find(expected), std::string::npos) << error;
  };
  bad("", "a line of numbers per layer");
  bad("0.1 x\n0 1", "layer 0, KV head 1: 'x' is not a number in [0, 1]");
  bad("0 1\n0 nan", "layer 1, KV head 1: 'nan'");
  bad("0 1\n0 1.5", "'1.5' is not");
  bad("0 1\n0 -0.5", "'-0.5' is not");
  bad("0 1\n0", "layer 1 has 1 KV heads, layer 0 has 2");
  bad("0 1\n0 1\n0 1", "describes 3 layers, the model has 2");
  bad("0 1 0\n0 1 0", "layer 0 has 3 KV heads in the file, the model has 2");
  bad("0 1\n0 1", "sparsity must be in", ",sparsity=2");
  bad("0 1\n0 1", "unknown pattern 'zigzag'", ",rest=zigzag");
  bad("0 1\n0 1", "one pattern for all heads", ",rest=longgen");
  bad("0 1\n0 1", "unknown option", ",layers=3");
}

TEST(ForeignFiles, MiniCPM) {
  std::string error;
  auto config = parseText(
      R"({"model_type": "minicpm", "sparse_config": {"kernel_size": 32,
          "kernel_stride": 16, "init_blocks": 2, "block_size": 64,
          "window_size": 1024, "topk": 48, "use_nope": false,
          "dense_len": 4096}})",
      error);
  ASSERT_TRUE(config) << error;
  EXPECT_EQ(config->plan(3, 1).pattern, P::InfLLMv2);
  EXPECT_EQ(config->plan(3, 1).topK, 48);
  EXPECT_EQ(config->plan(3, 1).init, 128);
  EXPECT_EQ(config->plan(3, 1).local, 1024);
  EXPECT_EQ(config->denseBelow, 4096);
  config =
      parseText(R"({"topk": 8, "window_size": 64, "dense_len": -1})", error);
  ASSERT_TRUE(config) << error;
  EXPECT_EQ(config->denseBelow, 0);
  EXPECT_NE(refuseText(R"({"sparse_config": {"kernel_size": 64}})")
                .find("only kernel_size 32"),
            std::string::npos);
  EXPECT_NE(refuseText(R"({"sparse_config": {"topk": "x"}})")
                .find("\"topk\" must be a whole number"),
            std::string::npos);
  EXPECT_NE(refuseText(R"({"sparse_config": {"topk": -1}})").find("blocks"),
            std::string::npos);
}

TEST(ForeignFiles, VLLM) {
  std::string error;
  for (const char *text :
       {R"({"dual_chunk_attention_config": {"chunk_size": 8192,
            "sparse_attention_last_q": 32, "sparse_attention_config": [
            {"0": ["vertical_and_slash", 100, 800, 1]},
            {"1": ["vertical_and_slash", 30, 900, 1]}]}})",
        R"({"sparse_attention_last_q": 32, "sparse_attention_config": {
            "1": {"1": ["vertical_and_slash", 30, 900, 1]},
            "0": {"0": ["vertical_and_slash", 100, 800, 1]}}})"}) {
    auto config = parseText(text, error);
    ASSERT_TRUE(config) << error;
    EXPECT_EQ(config->layers.size(), 2u);
    EXPECT_EQ(config->plan(0, 0).slash, 800);
    EXPECT_EQ(config->plan(1, 1).vertical, 30);
    EXPECT_EQ(config->plan(1, 1).last, 32);
    EXPECT_EQ(config->plan(1, 0).slash, 6096);
    EXPECT_EQ(config->plan(1, 0).last, 32);
    EXPECT_EQ(config->denseBelow, 32768);
  }
  auto config = parseText(
      R"({"sparse_attention_threshold": 1000, "sparse_attention_config": []})",
      error);
  ASSERT_TRUE(config) << error;
  EXPECT_EQ(config->denseBelow, 1000);
  EXPECT_NE(refuseText(R"({"sparse_attention_config": 3})").find("list"),
            std::string::npos);
  EXPECT_NE(refuseText(R"({"sparse_attention_config": {"7": {}}})")
                .find("'7' is not a layer's number"),
            std::string::npos);
  EXPECT_NE(refuseText(R"({"sparse_attention_config": [{"0": ["x"]}]})")
                .find("layer 0: head 0"),
            std::string::npos);
}

TEST(ForeignFiles, XAttentionThresholds) {
  std::string error;
  auto config = parseText("[[0.9, 0.8, 0.5, 0], [1, 0.7, 0.2, 0.3]]", error);
  ASSERT_TRUE(config) << error;
  EXPECT_EQ(config->plan(0, 1).pattern, P::XAttention);
  EXPECT_EQ(config->plan(0, 1).topP, 0.8f);
  EXPECT_EQ(config->plan(0, 1).stride, 8);
  EXPECT_GT(config->plan(0, 3).topP, 0.0f);
  EXPECT_LT(config->plan(0, 3).topP, 1e-5f);
  EXPECT_TRUE(config->fit(std::vector<LayerShape>(2, {4, 2}), error));
  EXPECT_FALSE(config->fit(std::vector<LayerShape>(2, {8, 2}), error));
  EXPECT_EQ(error, "layer 0 has 4 query heads in the file, the model has 8");
  config = parseText(R"({"stride": 16, "tau": [[0.9, 0.8]]})", error);
  ASSERT_TRUE(config) << error;
  EXPECT_EQ(config->plan(0, 0).stride, 16);
  EXPECT_NE(refuseText("[[0.9], [2]]").find("layer 1: head 0: threshold"),
            std::string::npos);
  EXPECT_NE(refuseText("[[0.9], 3]").find("layer 1: must be a list"),
            std::string::npos);
  EXPECT_NE(refuseText(R"([["x"]])").find("must be a number"),
            std::string::npos);
  EXPECT_NE(refuseText(R"({"tau": []})").find("a row per layer"),
            std::string::npos);
}
