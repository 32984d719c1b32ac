//===- SparsityConfig.h - What -sparsify= asks for ---------------*- C++ -*-==//
#ifndef PREFILL_TRANSFORMS_SPARSITYCONFIG_H
#define PREFILL_TRANSFORMS_SPARSITYCONFIG_H

#include "prefill/Dialect/Prefill/HeadPlan.h"
#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/StringRef.h"

#include <map>
#include <optional>
#include <string>
#include <vector>

namespace prefill {

/// What a configuration has to fit: one attention of the model.
struct LayerShape {
  int64_t queryHeads, kvHeads;
};

/// The choice for each layer and query head.
struct SparsityConfig {
  struct Layer {
    bool dense = false;
    std::map<int64_t, HeadPlan> heads;
    /// By KV head, for all query heads that share it; `heads` go first.
    std::map<int64_t, HeadPlan> groups;
    /// The numbers of heads that the file was made for; -1: any.
    int64_t queryHeads = -1, kvHeads = -1;
  };
  /// For every head that `layers` does not name.
  HeadPlan fallback;
  /// In order of the attentions in the graph; empty: `fallback` everywhere.
  std::vector<Layer> layers;
  /// Without `layers`: so many layers from the first on stay dense, and with
  /// `denseMiddle` the middle third of them.
  int64_t denseLayers = 0;
  bool denseMiddle = false;
  bool isLayered() const { return denseLayers > 0 || denseMiddle; }
  /// Prompts with fewer keys run dense; -1: the library's cost function
  /// decides.
  int64_t denseBelow = -1;

  /// Checks that this is for a model with these attentions, and writes out in
  /// `layers` what depends on their number. On failure `error` is one line.
  bool fit(llvm::ArrayRef<LayerShape> shapes, std::string &error);

  /// The plan of one query head, after fit().
  const HeadPlan &plan(int64_t layer, int64_t head) const;
};

/// Parses `NAME[:option=value,...]` or `config:FILE` (see docs/CLI.md). The
/// file is our JSON (an object with `layers`), or one that other projects ship:
/// MInference's list, vLLM's sparse_attention_config, MiniCPM4's sparse_config,
/// a table of XAttention's thresholds, DuoAttention's table of heads. On
/// failure `error` is one line that says what to change.
std::optional<SparsityConfig> parseSparsity(llvm::StringRef spec,
                                            std::string &error);

/// The same for the text of a configuration file; `name` is for messages.
std::optional<SparsityConfig> parseSparsityJSON(llvm::StringRef text,
                                                llvm::StringRef name,
                                                std::string &error);

} // namespace prefill

#endif
