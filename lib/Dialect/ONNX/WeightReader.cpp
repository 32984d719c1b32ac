//===- WeightReader.cpp - Bytes of external weights -----------------------===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#include "prefill/Dialect/ONNX/WeightReader.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"

using namespace mlir;
using namespace prefill::onnx;

llvm::Expected<std::string> prefill::onnx::resolveWeightPath(StringRef modelDir,
                                                             StringRef file) {
  auto refuse = [&](StringRef why) {
    return llvm::createStringError("external data file '" + file + "' " + why);
  };
  if (file.empty())
    return llvm::createStringError("external data without a file name");
  if (file.contains('\0'))
    return llvm::createStringError("external data file name with a zero byte");
  if (llvm::sys::path::is_absolute(file))
    return refuse("is an absolute path; it must be relative to the model's "
                  "folder");
  for (StringRef part : llvm::make_range(llvm::sys::path::begin(file),
                                         llvm::sys::path::end(file)))
    if (part == "..")
      return refuse("leaves the model's folder; it must lie inside");
  SmallString<256> path(modelDir);
  llvm::sys::path::append(path, file);
  return std::string(path);
}

llvm::Expected<ArrayRef<char>> WeightReader::read(WeightAttr weight) {
  StringRef file = weight.getFile().getValue();
  std::unique_ptr<llvm::MemoryBuffer> &buffer = files[file];
  if (!buffer) {
    llvm::Expected<std::string> path = resolveWeightPath(modelDir, file);
    if (!path)
      return path.takeError();
    auto opened = llvm::MemoryBuffer::getFile(*path, /*IsText=*/false,
                                              /*RequiresNullTerminator=*/false);
    if (!opened)
      return llvm::createStringError("cannot read external data file '" +
                                     *path +
                                     "': " + opened.getError().message());
    buffer = std::move(*opened);
  }
  int64_t offset = weight.getOffset(), size = weight.getSize();
  int64_t available = buffer->getBufferSize();
  if (offset < 0 || size < 0 || offset > available || size > available - offset)
    return llvm::createStringError(
        "external data file '" + file + "' has " + Twine(available) +
        " bytes, but bytes " + Twine(offset) + " to " +
        Twine(static_cast<uint64_t>(offset) + static_cast<uint64_t>(size)) +
        " are asked for");
  return ArrayRef<char>(buffer->getBufferStart() + offset, size);
}
