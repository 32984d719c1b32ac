//===- Manifest.h - manifest.json: what was changed --------------*- C++ -*-==//
#ifndef PREFILL_LIB_DRIVER_MANIFEST_H
#define PREFILL_LIB_DRIVER_MANIFEST_H

#include "prefill/Driver/CompilerOptions.h"
#include "prefill/Driver/Outline.h"
#include "llvm/ADT/ArrayRef.h"

#include <string>

namespace prefill {
struct ChunkReport;
struct CudaLibrary;
struct LivenessReport;

/// An attention that stayed an onnx.node, and why.
struct DeclinedSite {
  std::string layer, reason;
};

/// The text of manifest.json. `cuda` is null without GPUs as targets.
std::string writeManifest(const CompilerOptions &options,
                          const OutlineResult &outlined,
                          llvm::ArrayRef<DeclinedSite> declined,
                          const LivenessReport &liveness,
                          const ChunkReport &chunk,
                          const CudaLibrary *cuda);

} // namespace prefill

#endif
