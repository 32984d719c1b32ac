//===- Manifest.cpp - manifest.json: what was changed ---------------------===//

#include "Manifest.h"
#include "prefill/Codegen/CUDA/Images.h"
#include "prefill/Transforms/ParallelEncode.h"
#include "prefill/Transforms/Passes.h"
#include "prefill/Transforms/Patterns.h"
#include "prefill/Transforms/Pruning.h"
#include "llvm/Support/JSON.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/raw_ostream.h"

using namespace prefill;
namespace json = llvm::json;

static json::Object describe(const KernelSpec &spec) {
  static const char *const types[] = {"float32", "float16", "bfloat16"};
  static const char *const layouts[] = {"bhsd", "bshd"};
  auto layout = [](Layout l) { return layouts[static_cast<int>(l)]; };
  json::Object object{
      {"name", spec.name},
      {"dtype", types[static_cast<int>(spec.dtype)]},
      {"q_heads", spec.qHeads},
      {"kv_heads", spec.kvHeads},
      {"head_dim", spec.headDim},
      {"v_head_dim", spec.vHeadDim},
      {"layout", json::Object{{"q", layout(spec.qLayout)},
                              {"k", layout(spec.kLayout)},
                              {"v", layout(spec.vLayout)},
                              {"o", layout(spec.oLayout)},
                              {"o_rank", spec.oRank}}},
      {"causal", spec.causal},
      {"scale", spec.scale},
      {"block_q", spec.blockQ},
      {"block_k", spec.blockK},
      {"exact", spec.heads.empty()},
  };
  if (spec.windowLeft != KernelSpec::Unbounded)
    object["window_left"] = spec.windowLeft;
  if (!spec.causal && spec.windowRight != KernelSpec::Unbounded)
    object["window_right"] = spec.windowRight;
  if (spec.softcap != 0)
    object["softcap"] = spec.softcap;
  if (spec.heads.empty())
    return object;
  json::Array heads;
  for (const HeadPlan &plan : spec.heads)
    heads.push_back(planToJSON(plan));
  object["heads"] = std::move(heads);
  if (spec.denseBelow >= 0)
    object["dense_below"] = spec.denseBelow;
  return object;
}

/// Which rows are computed; nothing of it changes a number.
static json::Object describe(const LivenessReport &liveness) {
  json::Array selections;
  for (const LivenessReport::Selection &selection : liveness.selections) {
    json::Array layers;
    for (const std::string &layer : selection.layers)
      layers.push_back(layer);
    selections.push_back(json::Object{{"before", selection.node},
                                      {"rows", selection.rows},
                                      {"nodes", selection.nodes},
                                      {"queries", std::move(layers)}});
  }
  json::Object object{{"exact", true},
                      {"attentions", liveness.attentions},
                      {"selections", std::move(selections)}};
  // The contents of an output changed: not what the model gave.
  if (!liveness.logits.empty())
    object["logits"] = liveness.logits == "last"
                           ? "last row only (was: all rows)"
                           : "rows of the input logits_rows (was: all rows)";
  return object;
}

/// How a prompt is taken in chunks. Sparse estimates see one chunk at a time.
static json::Object describe(const ChunkReport &chunk, llvm::StringRef option,
                             bool dense) {
  json::Array caches;
  for (const auto &[past, present] : chunk.caches)
    caches.push_back(json::Object{{"past", past}, {"present", present}});
  json::Object object{{"exact", dense},
                      {"size", std::stoll(option.split(':').first.str())},
                      {"tail", "dynamic"},
                      {"order", "chunk"},
                      {"cache", chunk.inPlace ? "in place" : "the model's own"},
                      {"caches", std::move(caches)}};
  if (!dense)
    object["estimates"] = "of every chunk's rows";
  return object;
}

/// A kernel's code for GPUs, and the targets that have none.
static json::Object describe(const CudaLibrary &cuda, const KernelSpec &spec) {
  json::Array images, declined;
  if (auto found = cuda.kernels.find(spec.name); found != cuda.kernels.end())
    for (size_t number : found->second) {
      const CudaImage &image = cuda.images[number];
      json::Object object{{"target", image.target},
                          {"format", image.isPtx ? "ptx" : "cubin"},
                          {"function", image.function},
                          {"block_q", image.blockQ},
                          {"block_k", image.blockK},
                          {"threads", image.threads},
                          {"shared_bytes", image.sharedBytes},
                          {"stages", image.stages},
                          {"bytes", int64_t(image.size)},
                          {"compressed_bytes", int64_t(image.data.size())}};
      if (!image.isPtx) {
        object["registers"] = image.registers;
        object["spill_bytes"] = image.spillBytes;
      }
      if (!image.note.empty())
        object["note"] = image.note;
      images.push_back(std::move(object));
    }
  for (const CudaRefusal &refusal : cuda.refusals)
    if (refusal.kernel == spec.name)
      declined.push_back(
          json::Object{{"target", refusal.target}, {"reason", refusal.reason}});
  json::Object object{{"images", std::move(images)},
                      {"declined", std::move(declined)}};
  json::Array dense;
  for (auto [number, head] : llvm::enumerate(spec.heads))
    if (head.pattern != SparsePattern::Dense && !isSparseOnGpu(spec, head))
      dense.push_back(int64_t(number));
  if (!dense.empty())
    object["dense_heads"] = std::move(dense);
  return object;
}

/// What leaves rows out, by name and with its parameters.
static json::Object describePruning(const CompilerOptions &options,
                                    const PruneReport &report) {
  PruneSpec spec;
  ProtectSpec protection;
  std::string error; // The options were read before.
  (void)parsePruneSpec(options.prune, spec, error);
  (void)parseProtectSpec(options.protect, protection, error);
  if (spec.isEncoder())
    protectNoEnds(options.protect, protection);
  auto ranges = [](llvm::ArrayRef<std::pair<int64_t, int64_t>> list) {
    json::Array array;
    for (auto [low, high] : list)
      array.push_back(json::Array{low, high});
    return array;
  };
  json::Object object{
      {"exact", !report.changed},
      {"of_layers", report.attentions},
      {"positions", "preserve"},
      {"protect", json::Object{{"bos", protection.bos},
                               {"last", protection.last},
                               {"system", protection.system},
                               {"ids", ranges(protection.ids)},
                               {"rows", ranges(protection.rows)}}}};
  if (spec.isQuickPrefill()) {
    object["method"] = "quickprefill";
    object["group"] = spec.group;
    if (spec.topk)
      object["topk"] = spec.topk;
    object["top_p"] = spec.topP;
    object["score"] = "key-norm-small";
    object["decay"] = spec.linearDecay ? json::Value("linear")
                      : spec.decays()  ? json::Value(spec.decay)
                                       : json::Value("none");
    object["query"] = queryRows(spec, protection);
    return object;
  }
  json::Array layers;
  for (int64_t layer : report.layers)
    layers.push_back(layer);
  object["layers"] = std::move(layers);
  if (spec.isFlowCut() || spec.isFlowCutText()) {
    object["method"] = "flowcut";
    object["target"] = spec.target;
    if (spec.isFlowCutText())
      object["llm_layer"] = spec.layers.front();
  } else if (spec.isMergePatches()) {
    object["method"] = "mustdrop";
    if (spec.merges())
      object["vit_merge"] = json::Object{{"height", spec.windowHeight},
                                         {"width", spec.windowWidth},
                                         {"similarity", spec.similarity}};
    object["key"] = spec.key;
  } else if (spec.isMustDrop()) {
    object["method"] = "mustdrop";
    object["global"] = spec.global;
    object["individual"] = spec.individual;
    object["kv"] = spec.finalCaches ? "final" : "layer";
  } else {
    object["method"] = "lazyllm";
    object["keep"] = spec.keep;
    object["aux"] = spec.aux;
  }
  return object;
}

/// How contexts are encoded, by name and with its parameters.
static json::Object describeParallelEncode(const CompilerOptions &options) {
  ParallelEncodeSpec spec;
  std::string error; // The option was read before.
  (void)parseParallelEncode(options.parallelEncode, spec, error);
  return json::Object{{"method", "ape"},
                      {"exact", false},
                      {"T", spec.temperature},
                      {"S", spec.scale},
                      {"input", "context_slots"}};
}

std::string prefill::writeManifest(const CompilerOptions &options,
                                   const OutlineResult &outlined,
                                   llvm::ArrayRef<DeclinedSite> declined,
                                   const LivenessReport &liveness,
                                   const ChunkReport &chunk,
                                   const CudaLibrary *cuda) {
  bool exact = !liveness.pruning.changed;
  json::Array kernels, attentions, left;
  for (const KernelSpec &spec : outlined.kernels) {
    exact &= spec.heads.empty();
    json::Object kernel = describe(spec);
    if (cuda)
      kernel["cuda"] = describe(*cuda, spec);
    kernels.push_back(std::move(kernel));
  }
  for (const OutlinedAttention &attention : outlined.attentions)
    attentions.push_back(json::Object{{"layer", attention.layer},
                                      {"form", attention.form},
                                      {"kernel", attention.kernel}});
  for (const DeclinedSite &site : declined)
    left.push_back(
        json::Object{{"layer", site.layer}, {"reason", site.reason}});
  json::Array targets;
  for (const std::string &target : options.targets)
    targets.push_back(target);
  json::Object root{
      {"format", 1},
      {"compiler", "prefill-opt " PREFILL_VERSION},
      {"model", llvm::sys::path::filename(options.input)},
      {"sparsify", options.sparsify},
      {"exact", exact},
      {"targets", std::move(targets)},
      {"kernels", std::move(kernels)},
      {"attention", std::move(attentions)},
      {"left_as_it_was", std::move(left)},
  };
  if (options.pack != "off")
    root["pack"] = json::Object{{"exact", true},
                                {"algorithm", options.pack},
                                {"input", "segment_starts"}};
  if (options.noPadding)
    root["padding"] = "none: attention_mask was removed, as if it were ones";
  if (!chunk.caches.empty())
    root["chunk"] = describe(chunk, options.chunk, exact);
  if (!options.parallelEncode.empty()) {
    root["exact"] = false;
    root["parallel_encode"] = describeParallelEncode(options);
  }
  if (options.shareKV) {
    json::Array shared;
    for (const LivenessReport::SharedKV &pair : liveness.shared)
      shared.push_back(json::Object{{"layer", pair.layer},
                                    {"reads", pair.from},
                                    {"computed_twice_before", pair.merged}});
    root["share_kv"] =
        json::Object{{"exact", true}, {"layers", std::move(shared)}};
  }
  if (options.rowLiveness)
    root["row_liveness"] = describe(liveness);
  if (!options.prune.empty())
    root["prune"] = describePruning(options, liveness.pruning);
  std::string text;
  llvm::raw_string_ostream os(text);
  os << llvm::formatv("{0:2}", json::Value(std::move(root))) << "\n";
  return text;
}
