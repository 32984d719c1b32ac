//===- ExternalDataTest.cpp - Weights in files beside the model -----------===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#include "TestModels.h"
#include "prefill/Dialect/ONNX/WeightReader.h"
#include "llvm/Support/FileSystem.h"
#include <csignal>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace mlir;
using namespace prefill;
using namespace prefill::test;

namespace {

/// A model with one external initializer of four floats.
::onnx::ModelProto makeExternal(StringRef entries) {
  return parseGraph(("initializer { name: 'w' dims: 4 data_type: 1 "
                     "data_location: EXTERNAL " +
                     entries + " }")
                        .str());
}

std::string entry(StringRef key, StringRef value) {
  return ("external_data { key: '" + key + "' value: '" + value + "' } ").str();
}

class External : public ::testing::Test {
protected:
  void SetUp() override { folder.writeData("w.bin", 100); }

  void expectGood(const std::string &entries) {
    expectRoundTrip(makeExternal(entries), folder.path(""));
  }
  void expectBad(const std::string &entries, StringRef message) {
    MLIRContext context;
    std::string error;
    EXPECT_FALSE(
        importModel(makeExternal(entries), context, error, folder.path("")));
    EXPECT_NE(error.find("initializer 'w' has " + message.str()),
              std::string::npos)
        << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  }
  std::string at(StringRef file, StringRef offset = "0",
                 StringRef length = "16") {
    return entry("location", file) + entry("offset", offset) +
           entry("length", length);
  }
  TemporaryFolder folder;
};

TEST_F(External, Encodings) {
  expectGood(at("w.bin"));
  expectGood(at("w.bin", "84"));
  expectGood(at("./w.bin"));
  expectGood(entry("location", "w.bin"));
  expectGood(entry("location", "w.bin") + entry("length", "16"));
  expectGood(entry("length", "16") + entry("location", "w.bin"));
  expectGood(at("w.bin", "007") + entry("checksum", "abc"));
  expectGood(at("w.bin") + "doc_string: 'd'");
  expectGood(at("w.bin") + "external_data { value: 'no key' }");
}

TEST_F(External, Reads) {
  MLIRContext context;
  OwningOpRef<ModuleOp> module =
      importGood(makeExternal(at("w.bin", "8")), context, folder.path(""));
  ASSERT_TRUE(module);
  auto op = *prefill::onnx::getMainGraph(*module)
                 .getOps<prefill::onnx::InitializerOp>()
                 .begin();
  auto weight = dyn_cast<prefill::onnx::WeightAttr>(op.getValue());
  ASSERT_TRUE(weight);
  EXPECT_EQ(weight.getFile(), "w.bin");
  EXPECT_EQ(weight.getOffset(), 8);
  EXPECT_EQ(weight.getSize(), 16);
  prefill::onnx::WeightReader reader(op);
  llvm::Expected<ArrayRef<char>> bytes = reader.read(weight);
  ASSERT_TRUE(static_cast<bool>(bytes));
  EXPECT_EQ((*bytes)[0], 8);
  EXPECT_EQ((*bytes)[15], 23);
  std::optional<prefill::onnx::ConstantElements> elements =
      prefill::onnx::getConstantElements(op);
  ASSERT_TRUE(elements);
  float expected;
  memcpy(&expected, bytes->data() + 4, 4);
  EXPECT_EQ(elements->floats[1], expected);
  EXPECT_FALSE(prefill::onnx::getConstantElements(op, 3));
}

TEST_F(External, Refused) {
  ASSERT_EQ(symlink("/", folder.path("loop").c_str()), 0);
  folder.write("sub/deep.bin", std::string(100, 'x'));
  expectBad(at("../w.bin"), "external data file '../w.bin' leaves the model's");
  expectBad(at("sub/../../w.bin"),
            "external data file 'sub/../../w.bin' leaves");
  expectBad(at("/etc/passwd"),
            "external data file '/etc/passwd' is an absolute");
  expectBad(at(""), "external data without a file name");
  expectBad(at("w.bin\\000"), "external data file name with a zero byte");
  expectBad("", "external data without a location");
  expectBad(at("missing.bin"), "external data in '");
  expectBad(at("sub"), "external data in '");
  expectBad(at("w.bin", "85"), "external data at byte 85 of 'w.bin', 16 bytes "
                               "long, but the file has only 100 bytes");
  expectBad(at("w.bin", "9223372036854775807"), "external data at byte 9223");
  expectBad(at("w.bin", "99999999999999999999"),
            "external data whose offset is not a number");
  expectBad(at("w.bin", "-1"), "external data whose offset is not a number");
  expectBad(at("w.bin", "0x10"), "external data whose offset is not a number");
  expectBad(at("w.bin", "0", "15"),
            "15 bytes of external data, but tensor<4xf32> needs 16");
  expectBad(at("w.bin") + entry("location", "x"),
            "external data with two entries 'location'");
  expectBad(at("w.bin") + entry("offset", "0"),
            "external data with two entries 'offset'");
  expectBad(at("w.bin") + "raw_data: 'abcdabcdabcdabcd'",
            "its elements in more than one place");
  // Textual IR is not checked when it is parsed, but when bytes are read.
  prefill::onnx::WeightReader reader(folder.path("sub"));
  MLIRContext context;
  context.loadDialect<prefill::onnx::ONNXDialect>();
  auto weight = prefill::onnx::WeightAttr::get(
      &context, StringAttr::get(&context, "../w.bin"), 0, 16);
  llvm::Expected<ArrayRef<char>> bytes = reader.read(weight);
  EXPECT_FALSE(static_cast<bool>(bytes));
  llvm::consumeError(bytes.takeError());
}

TEST_F(External, LargerThanMemory) {
  // 28 GB, of which nothing exists.
  int64_t size = int64_t(28) << 30;
  folder.write("huge.bin", "");
  ASSERT_EQ(truncate(folder.path("huge.bin").c_str(), size), 0);
  ::onnx::ModelProto model = makeExternal(
      entry("location", "huge.bin") +
      entry("offset", std::to_string(size - 16)) + entry("length", "16"));
  expectRoundTrip(model, folder.path(""));
}

/// Writes a model with external data to `model/`, imports it and exports it
/// to `to`.
class ExternalExport : public External {
protected:
  void SetUp() override {
    folder.writeData("model/sub/w.bin", 100);
    model = makeExternal(at("sub/w.bin", "8"));
    folder.write("model/m.onnx", model.SerializeAsString());
  }
  bool run(StringRef to, ExternalData how) {
    MLIRContext context;
    OwningOpRef<ModuleOp> module =
        importONNX(folder.path("model/m.onnx"), &context, {}, error);
    EXPECT_TRUE(module) << error;
    if (!module)
      return false;
    ExportOptions options;
    options.externalData = how;
    return exportONNX(*module, folder.path(to), options, error);
  }
  /// Whether two paths are the same file.
  bool same(StringRef a, StringRef b) {
    bool result = false;
    EXPECT_FALSE(
        llvm::sys::fs::equivalent(folder.path(a), folder.path(b), result));
    return result;
  }
  std::string read(StringRef name) {
    auto buffer = llvm::MemoryBuffer::getFile(folder.path(name));
    return buffer ? (*buffer)->getBuffer().str() : "missing";
  }
  ::onnx::ModelProto model;
  std::string error;
};

TEST_F(ExternalExport, OtherFolder) {
  for (ExternalData how :
       {ExternalData::Reference, ExternalData::Copy, ExternalData::Link}) {
    std::string to = "out" + std::to_string(static_cast<int>(how));
    // Twice: the second run finds the files of the first.
    for (int i = 0; i < 2; ++i) {
      ASSERT_TRUE(run(to + "/new/m.onnx", how)) << error;
      EXPECT_EQ(read(to + "/new/m.onnx"), model.SerializeAsString());
      EXPECT_EQ(read(to + "/new/sub/w.bin"), read("model/sub/w.bin"));
      EXPECT_EQ(same(to + "/new/sub/w.bin", "model/sub/w.bin"),
                how != ExternalData::Copy);
    }
    // From one kind to the other.
    ASSERT_TRUE(run(to + "/new/m.onnx", ExternalData::Copy)) << error;
    EXPECT_FALSE(same(to + "/new/sub/w.bin", "model/sub/w.bin"));
    EXPECT_EQ(read(to + "/new/sub/w.bin"), read("model/sub/w.bin"));
    llvm::sys::fs::remove_directories(folder.path(to));
  }
  // Only what belongs there: no temporary files.
  EXPECT_EQ(folder.list(),
            (std::vector<std::string>{"model", "model/m.onnx", "model/sub",
                                      "model/sub/w.bin"}));
}

TEST_F(ExternalExport, SameFolder) {
  std::string before = read("model/sub/w.bin");
  for (ExternalData how :
       {ExternalData::Reference, ExternalData::Copy, ExternalData::Link}) {
    ASSERT_TRUE(run("model/copy.onnx", how)) << error;
    ASSERT_TRUE(run("model/m.onnx", how)) << error;
    EXPECT_EQ(read("model/copy.onnx"), model.SerializeAsString());
    EXPECT_EQ(read("model/m.onnx"), model.SerializeAsString());
    EXPECT_EQ(read("model/sub/w.bin"), before);
  }
  EXPECT_EQ(folder.list().size(), 5u);
}

TEST_F(ExternalExport, DownloadCache) {
  // As Hugging Face lays it out: names are links to blobs elsewhere.
  folder.writeData("cache/blobs/b", 100);
  folder.write("cache/blobs/a", model.SerializeAsString());
  ASSERT_FALSE(
      llvm::sys::fs::create_directories(folder.path("cache/snapshots/r/sub")));
  ASSERT_EQ(
      symlink("../../blobs/a", folder.path("cache/snapshots/r/m.onnx").c_str()),
      0);
  ASSERT_EQ(symlink("../../../blobs/b",
                    folder.path("cache/snapshots/r/sub/w.bin").c_str()),
            0);
  MLIRContext context;
  OwningOpRef<ModuleOp> module =
      importONNX(folder.path("cache/snapshots/r/m.onnx"), &context, {}, error);
  ASSERT_TRUE(module) << error;
  ASSERT_TRUE(exportONNX(*module, folder.path("out/m.onnx"), {}, error))
      << error;
  // A link to the blob, not to the link: ONNX Runtime would refuse that.
  EXPECT_FALSE(llvm::sys::fs::is_symlink_file(folder.path("out/sub/w.bin")));
  EXPECT_TRUE(same("out/sub/w.bin", "cache/blobs/b"));
}

TEST_F(ExternalExport, NothingIsLeftOnFailure) {
  std::vector<std::string> before = folder.list();
  // The model's own weights are never overwritten.
  EXPECT_FALSE(run("model/sub/w.bin", ExternalData::Reference));
  EXPECT_NE(error.find("the model's own weights are in this file"),
            std::string::npos)
      << error;
  // A folder where a file should be.
  EXPECT_FALSE(run("model/sub", ExternalData::Reference));
  EXPECT_NE(error.find("it is a folder"), std::string::npos) << error;
  // A file where a folder should be.
  EXPECT_FALSE(run("model/m.onnx/x.onnx", ExternalData::Reference));
  EXPECT_NE(error.find("cannot write"), std::string::npos) << error;
  // The weights have gone since.
  {
    MLIRContext context;
    OwningOpRef<ModuleOp> module =
        importONNX(folder.path("model/m.onnx"), &context, {}, error);
    ASSERT_TRUE(module) << error;
    ASSERT_FALSE(llvm::sys::fs::rename(folder.path("model/sub/w.bin"),
                                       folder.path("model/sub/v.bin")));
    EXPECT_FALSE(
        exportONNX(*module, folder.path("out/deep/m.onnx"), {}, error));
    EXPECT_NE(error.find("cannot read external data"), std::string::npos)
        << error;
    ASSERT_FALSE(llvm::sys::fs::rename(folder.path("model/sub/v.bin"),
                                       folder.path("model/sub/w.bin")));
  }
  EXPECT_EQ(folder.list(), before);
}

TEST_F(ExternalExport, OldFilesStayOnFailure) {
  folder.write("staged/new", "new");
  folder.write("staged/library", "new library");
  folder.write("out/library", "old library");
  folder.write("out/m.onnx", "old model");
  folder.writeData("out/sub/w.bin", 7);
  std::vector<std::string> before = folder.list();
  MLIRContext context;
  OwningOpRef<ModuleOp> module =
      importONNX(folder.path("model/m.onnx"), &context, {}, error);
  ASSERT_TRUE(module) << error;
  ExportOptions options;
  options.companions = {
      {folder.path("staged/new"), folder.path("out/new")},
      {folder.path("staged/library"), folder.path("out/library")},
      {folder.path("staged/none"), folder.path("out/header")}};
  EXPECT_FALSE(exportONNX(*module, folder.path("out/m.onnx"), options, error));
  EXPECT_NE(error.find("out/header': No such file"), std::string::npos)
      << error;
  EXPECT_EQ(read("out/library"), "old library");
  EXPECT_EQ(read("out/m.onnx"), "old model");
  EXPECT_EQ(read("out/sub/w.bin").size(), 7u);
  EXPECT_EQ(read("out/new"), "missing");

  folder.write("staged/new", "new");
  folder.write("staged/library", "new library");
  EXPECT_EQ(folder.list(), before);
  options.companions.pop_back();
  ASSERT_TRUE(exportONNX(*module, folder.path("out/m.onnx"), options, error))
      << error;
  EXPECT_EQ(read("out/library"), "new library");
  EXPECT_EQ(read("out/new"), "new");
  EXPECT_EQ(read("out/m.onnx"), model.SerializeAsString());
  // Neither copies of the old files nor what was to be moved.
  EXPECT_EQ(folder.list().size(), before.size() - 1);
}

TEST_F(ExternalExport, ModelNamedLikeItsWeights) {
  folder.writeData("model/w", 100);
  folder.write("model/m.onnx", makeExternal(at("w")).SerializeAsString());
  EXPECT_FALSE(run("out/w", ExternalData::Copy));
  EXPECT_NE(error.find("the model's own weights are in this file"),
            std::string::npos)
      << error;
  folder.write("taken/w/file", "x");
  EXPECT_FALSE(run("taken/m.onnx", ExternalData::Copy));
  EXPECT_NE(error.find("w': it is a folder"), std::string::npos) << error;
  EXPECT_EQ(read("taken/m.onnx"), "missing");
}

TEST_F(ExternalExport, FullDisk) {
  // /dev/full cannot be renamed to, but a limit on the size of files stands in
  // for a full disk: writing fails in the middle.
  std::vector<std::string> before = folder.list();
  pid_t child = fork();
  if (child == 0) {
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit limit = {50, 50};
    setrlimit(RLIMIT_FSIZE, &limit);
    MLIRContext context(MLIRContext::Threading::DISABLED);
    OwningOpRef<ModuleOp> module =
        importONNX(folder.path("model/m.onnx"), &context, {}, error);
    ExportOptions options;
    options.externalData = ExternalData::Copy;
    bool good = module &&
                exportONNX(*module, folder.path("out/m.onnx"), options, error);
    bool goodAlone = module && exportONNX(*module, folder.path("model/n.onnx"),
                                          options, error);
    _exit(good || goodAlone || error.find("cannot write") == std::string::npos);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(folder.list(), before);
}

} // namespace
