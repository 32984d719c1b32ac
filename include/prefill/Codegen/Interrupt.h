//===- Interrupt.h - Nothing is left behind by Ctrl-C -----------*- C++ -*-===//
#ifndef PREFILL_CODEGEN_INTERRUPT_H
#define PREFILL_CODEGEN_INTERRUPT_H

#include "llvm/ADT/StringRef.h"

namespace prefill {

/// While this lives, a signal that ends the process (SIGINT, SIGTERM, SIGHUP)
/// removes a folder first. Without one, nothing happens: who owns the folder
/// removes it. A few folders are watched at a time; more are not.
class FolderWatch {
public:
  FolderWatch() = default;
  FolderWatch(const FolderWatch &) = delete;
  FolderWatch &operator=(const FolderWatch &) = delete;
  ~FolderWatch();

  /// Begins to watch `path`, an absolute path: the folder and all in it or,
  /// with `ifEmpty`, the folder if nothing is in it. At most once.
  void watch(llvm::StringRef path, bool ifEmpty = false);

private:
  int slot = -1;
};

} // namespace prefill

#endif
