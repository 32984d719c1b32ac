//===- Library.h - Kernel specifications to a shared library ----*- C++ -*-===//
//
// Every kernel is compiled ahead of time for several x86-64 levels; the objects
// are linked with the C runtime into one shared library that depends on the C
// library alone. Neither a compiler nor a linker need be installed.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_CODEGEN_LIBRARY_H
#define PREFILL_CODEGEN_LIBRARY_H

#include "prefill/Codegen/KernelSpec.h"
#include "llvm/ADT/ArrayRef.h"
#include <string>
#include <vector>

namespace prefill {
struct CudaLibrary;

struct LibraryOptions {
  std::string output; ///< the shared library
  std::string header; ///< a C header that declares the kernels; empty: none
  /// x86-64 levels to compile for.
  std::vector<int> levels{4, 3, 2};
  /// libprefill_runtime.a.
  std::vector<std::string> runtimeArchives;
  /// Compiled kernels are kept here; empty: the user's cache folder. The
  /// environment variable PREFILL_CACHE moves it, PREFILL_CACHE=off disables
  /// it.
  std::string cacheDir;
  bool useCache = true;
  unsigned threads = 0; ///< 0: as many as the machine has
  const CudaLibrary *cuda = nullptr; ///< code for GPUs that goes in, too
};

/// What compileLibrary did, for -v and the manifest.
struct LibraryReport {
  int compiledKernels = 0; ///< distinct kernels x instruction sets
  int cachedKernels = 0;
  double compileSeconds = 0, linkSeconds = 0;
};

/// Writes the library and the header, or neither. `error` is one line.
bool compileLibrary(llvm::ArrayRef<KernelSpec> specs,
                    const LibraryOptions &options, std::string &error,
                    LibraryReport *report = nullptr);

enum class KernelText { Tile, LLVM, Assembly };

/// The distinct kernels of a library as text, for the first of `levels`.
bool printKernels(llvm::ArrayRef<KernelSpec> specs, KernelText what,
                  const LibraryOptions &options, std::string &text,
                  std::string &error);

} // namespace prefill

#endif
