//===- SparsityConfig.h - What -sparsify= asks for ---------------*- C++ -*-==//
#ifndef PREFILL_TRANSFORMS_SPARSITYCONFIG_H
#define PREFILL_TRANSFORMS_SPARSITYCONFIG_H

#include "prefill/Dialect/Prefill/HeadPlan.h"
#include "llvm/ADT/StringRef.h"

#include <map>
#include <optional>
#include <string>
#include <vector>

namespace prefill {

/// The choice for each layer and query head.
struct SparsityConfig {
  struct Layer {
    bool dense = false;
    std::map<int64_t, HeadPlan> heads;
  };
  /// For every head that `layers` does not name.
  HeadPlan fallback;
  /// In order of the attentions in the graph; empty: `fallback` everywhere.
  std::vector<Layer> layers;
  /// Prompts with fewer keys run dense; -1: the library's cost function
  /// decides.
  int64_t denseBelow = -1;

  /// The plan of one query head.
  const HeadPlan &plan(int64_t layer, int64_t head) const;
};

/// Parses `NAME[:option=value,...]` or `config:FILE` (see docs/CLI.md). The
/// file is JSON as MInference ships it (a list over layers of `{"head": [type,
/// v, s, score]}`) or our extended form (an object with `layers`). On failure
/// `error` is one line that says what to change.
std::optional<SparsityConfig> parseSparsity(llvm::StringRef spec,
                                            std::string &error);

/// The same for the text of a configuration file; `name` is for messages.
std::optional<SparsityConfig> parseSparsityJSON(llvm::StringRef text,
                                                llvm::StringRef name,
                                                std::string &error);

} // namespace prefill

#endif
