//===- Link.h - Shared libraries without a compiler -------------*- C++ -*-===//
#ifndef PREFILL_CODEGEN_LINK_H
#define PREFILL_CODEGEN_LINK_H

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/StringRef.h"
#include <string>

namespace prefill {

struct LinkOptions {
  std::string output;
  std::string soname;
  llvm::ArrayRef<std::string> objects;  ///< files
  llvm::ArrayRef<std::string> archives; ///< files, taken whole
};

/// Links a shared library that depends on the C library alone. The output
/// appears complete or not at all.
bool linkSharedLibrary(const LinkOptions &options, std::string &error);

/// Writes a file beside its destination and renames it into place.
bool writeFileAtomically(llvm::StringRef path, llvm::StringRef contents,
                         std::string &error);

} // namespace prefill

#endif
