//===- Passes.h - Passes on onnx and prefill IR ------------------*- C++ -*-==//
#ifndef PREFILL_TRANSFORMS_PASSES_H
#define PREFILL_TRANSFORMS_PASSES_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/Pass/Pass.h"

#include <memory>
#include <vector>

namespace prefill {
struct SiteReport;

#define GEN_PASS_DECL
#define GEN_PASS_REGISTRATION
#include "prefill/Transforms/Passes.h.inc"

/// What token pruning did, for the manifest.
struct PruneReport {
  std::vector<int64_t> layers; ///< after which rows go, from 1
  int64_t attentions = 0;      ///< of the model
  bool changed = false;        ///< false: nothing ever goes
};

/// What row liveness and detect-kv-sharing did, for the manifest.
struct LivenessReport {
  struct Selection {
    std::string node;                ///< the node that selected the rows
    std::string rows;                ///< which: "last rows", or what says so
    int64_t nodes;                   ///< with fewer rows
    std::vector<std::string> layers; ///< attentions with fewer query rows
  };
  std::vector<Selection> selections;
  struct SharedKV {
    std::string layer, from; ///< whose keys and values it reads
    bool merged;             ///< they were computed twice before
  };
  std::vector<SharedKV> shared; ///< by detect-kv-sharing
  int64_t attentions = 0;       ///< of the model
  std::string logits;           ///< how the output `logits` changed, or ""
  PruneReport pruning;          ///< what was left out before
};

/// The KV cache of a model that takes a prompt in chunks, for the manifest.
struct ChunkReport {
  /// Inputs, and the output that is each one's next value.
  std::vector<std::pair<std::string, std::string>> caches;
  bool inPlace = false; ///< ours; otherwise the model had it
};

/// chunk-prompt that also tells what it did. `report` must outlive the pass.
std::unique_ptr<mlir::Pass> createChunkPrompt(ChunkPromptOptions options,
                                              ChunkReport &report);

/// prune-rows that also tells what it did. `report` must outlive the pass.
std::unique_ptr<mlir::Pass> createPruneRows(PruneRowsOptions options,
                                            PruneReport &report);

/// merge-patches that also tells what it did. `report` must outlive the pass.
std::unique_ptr<mlir::Pass> createMergePatches(MergePatchesOptions options,
                                               PruneReport &report);

/// revive-rows that also tells what it did. `report` must outlive the pass.
std::unique_ptr<mlir::Pass> createReviveRows(ReviveRowsOptions options,
                                             PruneReport &report);

/// prune-groups that also tells what it did. `report` must outlive the pass.
std::unique_ptr<mlir::Pass> createPruneGroups(PruneGroupsOptions options,
                                              PruneReport &report);

/// row-liveness that also tells what it did. `report` must outlive the pass.
std::unique_ptr<mlir::Pass> createRowLiveness(RowLivenessOptions options,
                                              LivenessReport &report);

/// detect-kv-sharing that also tells what it found. `report` must outlive the
/// pass.
std::unique_ptr<mlir::Pass> createShareKV(LivenessReport &report);

/// raise-attention that also tells what it found, attention by attention.
/// `reports` must outlive the pass.
std::unique_ptr<mlir::Pass>
createRaiseAttention(std::vector<SiteReport> &reports);

} // namespace prefill

#endif
