//===- CompilerOptions.h - What the user asked for ---------------*- C++ -*-==//
#ifndef PREFILL_DRIVER_COMPILEROPTIONS_H
#define PREFILL_DRIVER_COMPILEROPTIONS_H

#include "prefill/Export/ONNXExport.h"

#include <cstdint>
#include <string>
#include <vector>

namespace prefill {

/// The level at which the compiler stops and writes what it has.
enum class EmitKind {
  Artifacts, ///< the folder: model.onnx, library, header, manifest
  ONNX,      ///< the imported model, written back as it was
  ONNXText,  ///< the onnx dialect
  Prefill,   ///< after raising
  Sparse,    ///< after sparsification
  Tile,      ///< one tile.kernel per distinct kernel
  LLVM,      ///< LLVM IR per kernel and instruction set
  Asm,       ///< assembly likewise
  Warp,      ///< one warp.kernel per kernel and GPU
  PTX,       ///< PTX likewise
};

/// All options of one compilation; plain data.
struct CompilerOptions {
  std::string input;
  std::string output; ///< folder for Artifacts, file ("-": stdout) otherwise
  EmitKind emit = EmitKind::Artifacts;
  std::string sparsify = "dense";
  std::string modality;       ///< a value's name or token:ID,...; empty: none
  bool rowLiveness = true;    ///< compute only the rows that reach the outputs
  std::string logits = "all"; ///< rows of the output `logits`: all, last, rows
  bool shareKV = false;       ///< -share-kv=detect
  std::string pack = "off";   ///< several prompts a sequence: off, ffd, exact
  bool noPadding = false;     ///< attention_mask is all ones
  std::string chunk = "off";  ///< rows of a chunk, with :tail=dynamic; or off
  std::string parallelEncode; ///< how contexts are encoded; empty: not at all
  std::string prune;    ///< rows to leave out of later layers; empty: none
  std::string protect;  ///< rows that stay; empty: the default
  std::string accuracy; ///< exact: refuse what is lossy; empty or lossy: do it
  /// cpu, and GPUs by findCudaTarget; there is CPU code in any case.
  std::vector<std::string> targets = {"cpu"};
  std::string ptxas;        ///< empty: CUDA_HOME, PATH
  bool allowSpills = false; ///< of CUDA kernels
  ExternalData externalData = ExternalData::Reference;
  std::string runtimeArchive; ///< libprefill_runtime.a
  std::string cacheDir;       ///< empty: the user's cache folder
  bool useCache = true;
  bool stats = false;            ///< density outputs in the model, for reports
  bool remarks = false;          ///< print why something was left as it was
  bool timing = false;           ///< print seconds per stage
  bool json = false;             ///< inspect, cost: JSON instead of a table
  std::string tokens;            ///< cost: lengths, separated by commas
  std::string device = "cpu";    ///< cost: NAME[:key=value,...]
  std::vector<std::string> dims; ///< cost: NAME=SIZE of further dimensions
  std::string contexts; ///< cost: of a prompt of parallelEncode; empty: 4
};

} // namespace prefill

#endif
