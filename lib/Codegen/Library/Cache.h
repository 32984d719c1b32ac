//===- Cache.h - Compiled kernels by content --------------------*- C++ -*-===//
#ifndef PREFILL_CODEGEN_LIBRARY_CACHE_H
#define PREFILL_CODEGEN_LIBRARY_CACHE_H

#include "prefill/Codegen/Emit.h"

namespace prefill {

/// A folder of compiled kernels. Entries are checked when read: a damaged one
/// is as good as none. Failures to write are not errors.
class KernelCache {
public:
  /// An empty folder disables the cache.
  explicit KernelCache(std::string folder) : folder(std::move(folder)) {}

  /// As LibraryOptions::cacheDir and the environment say.
  static KernelCache open(const std::string &requested, bool enabled);

  /// Names everything that a kernel's machine code depends on.
  static std::string makeKey(llvm::StringRef tileText, const CpuTarget &target);
  /// The same for other code: `text` and this compiler.
  static std::string makeKey(llvm::StringRef text);

  bool lookup(llvm::StringRef key, EmittedKernel &kernel) const;
  void insert(llvm::StringRef key, const EmittedKernel &kernel) const;
  bool lookup(llvm::StringRef key, std::string &body) const;
  void insert(llvm::StringRef key, llvm::StringRef body) const;

private:
  std::string pathOf(llvm::StringRef key) const;
  std::string folder;
};

} // namespace prefill

#endif
