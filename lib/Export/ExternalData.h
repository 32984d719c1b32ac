//===- ExternalData.h - Files of external data ------------------*- C++ -*-===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#ifndef PREFILL_LIB_EXPORT_EXTERNALDATA_H
#define PREFILL_LIB_EXPORT_EXTERNALDATA_H

#include "prefill/Export/ONNXExport.h"
#include "llvm/ADT/STLFunctionalExtras.h"
#include "llvm/Support/raw_ostream.h"
#include <vector>

namespace prefill {

/// Files that appear together: each is prepared under another name in its
/// folder, and `commit` gives all of them their own, or none: if one cannot
/// have its name, older files with the others' names come back. (Not if the
/// process is killed amid these renames.) Whatever is not committed is removed.
class FileBatch {
public:
  ~FileBatch();

  /// Prepares file `path` with the bytes that `write` produces.
  bool write(llvm::StringRef path,
             llvm::function_ref<void(llvm::raw_ostream &)> write,
             std::string &error);
  /// Prepares file `path` as a hard link to or a copy of `source`.
  bool place(llvm::StringRef source, llvm::StringRef path, ExternalData how,
             std::string &error);
  /// Prepares file `path` as the file `source` of the same file system, which
  /// moves there.
  bool move(llvm::StringRef source, llvm::StringRef path, std::string &error);
  bool commit(std::string &error);

private:
  struct Pending {
    std::string temporary, path;
    std::string old; ///< in `commit`: what had the name before, if anything
  };
  std::vector<Pending> pending;
  /// Folders made for `pending`, outermost first.
  std::vector<std::string> folders;

  bool makeFolder(llvm::StringRef folder, std::string &error);
};

} // namespace prefill

#endif // PREFILL_LIB_EXPORT_EXTERNALDATA_H
