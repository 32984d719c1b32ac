//===- Pruning.h - What -prune= and -protect= say ----------------*- C++ -*-==//
//
// Token pruning leaves rows (tokens) out of later layers (LazyLLM), or out of
// the KV cache (QuickPrefill); lossy. The formulas
// are those of the papers named below, what they leave open is in
// docs/RowTransforms.md.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_TRANSFORMS_PRUNING_H
#define PREFILL_TRANSFORMS_PRUNING_H

#include "llvm/ADT/StringRef.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace prefill {

/// -prune=lazyllm:layers=9+19+28,keep=0.7 (LazyLLM, arXiv:2407.14057), or
/// -prune=mustdrop:layers=3+7+11+15,global=0.001,individual=0.001 (MustDrop,
/// arXiv:2411.10803), -prune=quickprefill:group=512,topk=64
/// (TIGER-AI-Lab/QuickVideo), or in a vision encoder -prune=flowcut:target=64
/// (FlowCut, arXiv:2505.19536) and -prune=mustdrop:vit-merge=3x3@0.8,key=0.08.
/// FlowCut's step in a language model is -prune=flowcut:target=64,llm-layer=1.
struct PruneSpec {
  enum class Method {
    LazyLLM,
    MustDrop,     ///< in a language model
    MergePatches, ///< MustDrop in a vision encoder
    FlowCut,      ///< in a vision encoder
    FlowCutText,  ///< FlowCut in a language model
    QuickPrefill
  } method = Method::LazyLLM;

  // LazyLLM and MustDrop.
  /// Layers after which rows go, from 1, ascending. Empty: LazyLLM's after
  /// 9/32, 19/32 and 28/32 of the layers, as the paper's figures draw it;
  /// MustDrop's after 3, 7, 11 and 15, which its authors count from 0.
  std::vector<int64_t> layers;

  // LazyLLM.
  /// Share of the rows still there that stays at each of them, in (0, 1].
  double keep = 0.7;
  /// Whether the model serves decode steps too, which bring rows back whose
  /// hidden states an auxiliary cache has.
  bool aux = false;

  // MustDrop: a vision row goes if it gets less than `global` of what the text
  // after the image gives to all vision rows, and from none of that text's rows
  // as much as `individual`. In [0, 1].
  double global = 0.001;
  double individual = 0.001;
  /// Whether the caches of the first of these layers, and of all after it, hold
  /// the rows that the last of them left, and no others.
  bool finalCaches = false;

  // MustDrop in a vision encoder: windows of height x width patches are merged
  // where the mean cosine between two different patches is at least
  // `similarity`, in [-1, 1]; 1 x 1: none. The share `key` of the patches left,
  // in [0, 1], is the key set; 0: none.
  int64_t windowHeight = 1, windowWidth = 1;
  double similarity = 0.8;
  double key = 0;

  // FlowCut.
  int64_t target = 0; ///< patches that are left in the end, at least 1

  // FlowCut and MustDrop in a vision encoder.
  /// The row whose attention counts: the class token, row 0, or the mean of all
  /// rows. Auto: by the number of tokens, a square and 1 more or a square.
  enum class Anchor { Auto, Cls, Mean } anchor = Anchor::Auto;

  // QuickPrefill: of a group of n rows min(topk, floor(topP n)) stay in the
  // cache of every layer, all of a group of at most topk rows.
  int64_t group = 512; ///< rows of a group, where the runner is given no list
  int64_t topk = 0;    ///< 0: no bound
  double topP = 1;     ///< share of a group's rows, in (0, 1]
  int64_t query = 0;   ///< rows of the question; 0: as many as -protect's last
  /// How topk and topP (those that are given) fall from layer to layer: in
  /// layer l of L, from 0, topk - floor(topk l / L) and topP (1 - l / L), or
  /// both times decay^l, decay in (0, 1]. At least one row, one millionth.
  bool linearDecay = false;
  double decay = 1;

  bool isMustDrop() const { return method == Method::MustDrop; }
  bool isMergePatches() const { return method == Method::MergePatches; }
  bool isFlowCut() const { return method == Method::FlowCut; }
  bool isFlowCutText() const { return method == Method::FlowCutText; }
  /// Whether the model is a vision encoder.
  bool isEncoder() const { return isFlowCut() || isMergePatches(); }
  /// Whether rows of an image go in a language model: vision_rows marks them.
  bool needsVisionRows() const { return isMustDrop() || isFlowCutText(); }
  /// Whether patches of a vision encoder are merged.
  bool merges() const { return windowHeight * windowWidth > 1; }
  bool isQuickPrefill() const { return method == Method::QuickPrefill; }
  /// Whether layers keep different numbers of rows.
  bool decays() const { return linearDecay || decay != 1; }
  /// topk and topP of layer `layer`, from 0, of `layers`.
  std::pair<int64_t, double> budgetOf(int64_t layer, int64_t layers) const;
  /// How many rows of a group of `rows` stay in that layer's cache, unless more
  /// are protected.
  int64_t keptOf(int64_t rows, int64_t layer, int64_t layers) const {
    auto [most, part] = budgetOf(layer, layers);
    if (most && rows <= most)
      return rows;
    auto share = static_cast<int64_t>(part * static_cast<double>(rows) + 1e-6);
    return most && most < share ? most : share;
  }
  /// Whether nothing ever goes, whatever the prompt is.
  bool keepsAll() const {
    if (isQuickPrefill())
      return !topk && topP == 1 && !decays();
    if (isMergePatches())
      return !merges();
    if (isMustDrop())
      return global == 0 || individual == 0;
    return method == Method::LazyLLM && keep == 1;
  }
};

/// -protect=bos:4,system,last:1,ids:A-B,rows:A-B: rows that never go.
struct ProtectSpec {
  int64_t bos = 4;     ///< first rows of a prompt: sinks of attention
  int64_t last = 1;    ///< last rows; at least the one that asks
  bool system = false; ///< an input `protected_rows` of the model says more
  std::vector<std::pair<int64_t, int64_t>> ids;  ///< token ids
  std::vector<std::pair<int64_t, int64_t>> rows; ///< row numbers in a prompt
};

/// Whether `text`, what is after `-prune=`, names QuickPrefill.
bool isQuickPrefill(llvm::StringRef text);

/// Whether `text`, what is after `-prune=`, is LazyLLM with aux=on.
bool revivesRows(llvm::StringRef text);

/// Reads the text after `-prune=`. False with one line in `error`.
bool parsePruneSpec(llvm::StringRef text, PruneSpec &spec, std::string &error);

/// Reads the text after `-protect=`; "" is the default. What is not given is
/// not protected, but for the last row.
bool parseProtectSpec(llvm::StringRef text, ProtectSpec &spec,
                      std::string &error);

/// Takes the default ends out of `spec`, which was read from `given`, for a
/// vision encoder: patches are all alike.
void protectNoEnds(llvm::StringRef given, ProtectSpec &spec);

/// Rows of the question, which QuickPrefill reads last and never prunes.
int64_t queryRows(const PruneSpec &spec, const ProtectSpec &protection);

/// The layers of `spec` for a model of `count` layers. False with an error
/// where one is out of range.
bool resolveLayers(const PruneSpec &spec, int64_t count,
                   std::vector<int64_t> &layers, std::string &error);

} // namespace prefill

#endif
