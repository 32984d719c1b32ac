//===- TestModels.cpp - Models in text form and what must hold ------------===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#include "TestModels.h"
#include "mlir/IR/Verifier.h"
#include "mlir/Parser/Parser.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"
#include <fstream>
#include <google/protobuf/text_format.h>
#include <google/protobuf/util/field_comparator.h>
#include <google/protobuf/util/message_differencer.h>

using namespace mlir;
using namespace prefill;

::onnx::ModelProto test::parseModel(StringRef text) {
  ::onnx::ModelProto model;
  EXPECT_TRUE(
      google::protobuf::TextFormat::ParseFromString(text.str(), &model));
  return model;
}

::onnx::ModelProto test::parseGraph(StringRef text) {
  return parseModel(("ir_version: 10 opset_import { domain: '' version: 21 } "
                     "graph { name: 'g' " +
                     text + " }")
                        .str());
}

OwningOpRef<ModuleOp> test::importModel(const ::onnx::ModelProto &model,
                                        MLIRContext &context,
                                        std::string &error, StringRef modelDir,
                                        ImportOptions options) {
  return importONNX(
      llvm::MemoryBuffer::getMemBufferCopy(model.SerializeAsString()), "test",
      modelDir, &context, options, error);
}

OwningOpRef<ModuleOp> test::importGood(const ::onnx::ModelProto &model,
                                       MLIRContext &context,
                                       StringRef modelDir) {
  std::string error;
  OwningOpRef<ModuleOp> module = importModel(model, context, error, modelDir);
  EXPECT_TRUE(module) << error;
  if (module) {
    EXPECT_TRUE(succeeded(verify(*module)));
  }
  return module;
}

::onnx::ModelProto test::exportGood(ModuleOp module) {
  ::onnx::ModelProto model;
  std::string bytes, error;
  EXPECT_TRUE(exportONNX(module, bytes, error)) << error;
  EXPECT_TRUE(model.ParseFromString(bytes));
  return model;
}

std::string test::compare(const ::onnx::ModelProto &a,
                          const ::onnx::ModelProto &b) {
  google::protobuf::util::MessageDifferencer differencer;
  google::protobuf::util::DefaultFieldComparator comparator;
  comparator.set_treat_nan_as_equal(true);
  differencer.set_field_comparator(&comparator);
  std::string report;
  differencer.ReportDifferencesToString(&report);
  if (differencer.Compare(a, b) &&
      a.SerializeAsString() == b.SerializeAsString())
    return "";
  return report.empty() ? "other bytes" : report;
}

void test::expectRoundTrip(const ::onnx::ModelProto &model,
                           StringRef modelDir) {
  MLIRContext context;
  OwningOpRef<ModuleOp> module = importGood(model, context, modelDir);
  ASSERT_TRUE(module);
  EXPECT_EQ(compare(model, exportGood(*module)), "");
  for (bool generic : {false, true}) {
    std::string text;
    llvm::raw_string_ostream os(text);
    OpPrintingFlags flags;
    module->print(os, generic ? flags.printGenericOpForm() : flags);
    MLIRContext other;
    other.loadDialect<onnx::ONNXDialect>();
    OwningOpRef<ModuleOp> parsed = parseSourceString<ModuleOp>(text, &other);
    ASSERT_TRUE(parsed) << text;
    EXPECT_EQ(compare(model, exportGood(*parsed)), "") << text;
  }
}

void test::expectError(const std::string &bytes, StringRef message) {
  MLIRContext context;
  std::string error;
  OwningOpRef<ModuleOp> module =
      importONNX(llvm::MemoryBuffer::getMemBufferCopy(bytes), "test", "",
                 &context, {}, error);
  EXPECT_FALSE(module) << "should fail: " << message.str();
  EXPECT_NE(error.find(message.str()), std::string::npos) << error;
  EXPECT_TRUE(StringRef(error).starts_with("'test': ")) << error;
  EXPECT_EQ(error.find('\n'), std::string::npos) << error;
}

void test::expectError(const ::onnx::ModelProto &model, StringRef message) {
  expectError(model.SerializeAsString(), message);
}

test::TemporaryFolder::TemporaryFolder() {
  SmallString<128> path;
  EXPECT_FALSE(llvm::sys::fs::createUniqueDirectory("prefill-test", path));
  root = std::string(path);
}

test::TemporaryFolder::~TemporaryFolder() {
  llvm::sys::fs::remove_directories(root);
}

std::string test::TemporaryFolder::path(StringRef name) const {
  SmallString<128> path(root);
  llvm::sys::path::append(path, name);
  return std::string(path);
}

void test::TemporaryFolder::write(StringRef name,
                                  const std::string &bytes) const {
  std::string file = path(name);
  llvm::sys::fs::create_directories(llvm::sys::path::parent_path(file));
  std::ofstream(file, std::ios::binary) << bytes;
}

void test::TemporaryFolder::writeData(StringRef name, size_t size) const {
  std::string bytes(size, 0);
  for (size_t i = 0; i < size; ++i)
    bytes[i] = i % 251;
  write(name, bytes);
}

std::vector<std::string> test::TemporaryFolder::list() const {
  std::vector<std::string> names;
  std::error_code code;
  for (llvm::sys::fs::recursive_directory_iterator it(root, code), end;
       it != end && !code; it.increment(code))
    names.push_back(it->path().substr(root.size() + 1));
  llvm::sort(names);
  return names;
}
