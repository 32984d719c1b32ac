//===- Compositions.cpp - Options that do not go together -----------------===//

#include "Compositions.h"
#include "prefill/Transforms/ParallelEncode.h"
#include "prefill/Transforms/Pruning.h"

using namespace prefill;

/// Reads -parallel-encode and refuses what does not go with it.
static bool checkParallelEncode(const CompilerOptions &options,
                                std::string &error) {
  const std::string name = "-parallel-encode=" + options.parallelEncode;
  auto fail = [&](const std::string &what) {
    error = what;
    return false;
  };
  ParallelEncodeSpec spec;
  if (!parseParallelEncode(options.parallelEncode, spec, error))
    return fail(name + ": " + error);
  if (options.accuracy == "exact")
    return fail("-accuracy=exact refuses " + name +
                ": contexts that do not see one another change the result");
  if (options.sparsify != "dense")
    return fail(name + " with -sparsify=" + options.sparsify +
                ": contexts and query are weighed by the sums of all their "
                "scores, and keys that are left out have no part in these");
  if (!options.prune.empty())
    return fail(name + " with -prune: rows are scored by the query, and a "
                       "context is encoded before there is one");
  if (options.logits == "last")
    return fail(name + " with -logits=last would be the last request's only: "
                       "take -logits=rows");
  if (options.pack != "off")
    return fail(name + " with -pack: a pack has no cache, and contexts are "
                       "read from one");
  for (const std::string &target : options.targets)
    if (target != "cpu")
      return fail(name + " with -target=" + target +
                  ": kernels for GPUs take no KV cache yet");
  return true;
}

bool prefill::checkCompositions(const CompilerOptions &options,
                                std::string &error) {
  auto fail = [&](const std::string &what) {
    error = what;
    return false;
  };
  if (!options.parallelEncode.empty() && !checkParallelEncode(options, error))
    return false;
  const bool prunes = !options.prune.empty();
  PruneSpec prune;
  ProtectSpec protection;
  if (prunes && !parsePruneSpec(options.prune, prune, error))
    return fail("-prune=" + options.prune + ": " + error);
  if (!parseProtectSpec(options.protect, protection, error))
    return fail("-protect=" + options.protect + ": " + error);
  if (!options.protect.empty() && !prunes)
    return fail("-protect=" + options.protect +
                " protects rows from -prune, which is not given");

  if (!options.accuracy.empty() && options.accuracy != "exact" &&
      options.accuracy != "lossy")
    return fail("-accuracy=" + options.accuracy + ": expected exact or lossy");
  if (options.accuracy == "exact") {
    if (prunes && !prune.keepsAll())
      return fail("-accuracy=exact refuses -prune=" + options.prune +
                  ": rows that are left out change the result");
    if (options.sparsify != "dense")
      return fail("-accuracy=exact refuses -sparsify=" + options.sparsify +
                  ": keys that are left out change the result");
  }

  const bool groups = prunes && prune.isQuickPrefill();
  if (groups && options.pack != "off")
    return fail("-prune=quickprefill with -pack: a pack has no cache, and is "
                "read at once; several prompts are segments of one call");
  if (groups && options.chunk != "off")
    return fail("-prune=quickprefill with -chunk: it reads the prompt in "
                "chunks itself, of group=ROWS rows");
  if (groups && options.logits == "last")
    return fail("-logits=last with -prune=quickprefill would be the last "
                "request's only: take -logits=rows");
  if (prunes && options.pack != "off")
    return fail(
        "-prune with -pack: after pruning a prompt's keys and values do "
        "not lie where its tokens do, and run_packed would hand out "
        "those of its neighbour");
  if (prune.isEncoder() && options.logits != "all")
    return fail("-prune=" + options.prune +
                " with -logits: it is for a vision encoder, which gives none");
  if (prunes && options.chunk != "off")
    return fail("-prune with -chunk: rows are scored by the prompt's last "
                "rows, which only the last chunk has; the chunks before it "
                "would run with all rows");
  for (const std::string &target : options.targets)
    if (groups && target != "cpu")
      return fail("-prune=quickprefill with -target=" + target +
                  ": kernels for GPUs have no KV cache to take rows out of");
    else if (prunes && target != "cpu")
      return fail("-prune with -target=" + target +
                  ": kernels for GPUs do not give the scores of tokens yet");
  return true;
}

void prefill::applyPruning(CompilerOptions &options) {
  PruneSpec prune;
  std::string error;
  if (parsePruneSpec(options.prune, prune, error) && prune.isQuickPrefill())
    options.chunk = std::to_string(prune.group);
}
