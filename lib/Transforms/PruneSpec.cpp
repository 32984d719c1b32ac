//===- PruneSpec.cpp - Parsing of -prune= and -protect= -------------------===//

#include "prefill/Transforms/Pruning.h"
#include "llvm/ADT/SmallVector.h"
#include "llvm/ADT/Twine.h"

#include <cmath>
#include <limits>

using namespace prefill;
using llvm::StringRef;

/// A whole number that 32 bits hold.
static bool wholeNumber(StringRef text, int64_t &value) {
  return !text.getAsInteger(10, value) && value >= 0 &&
         value <= std::numeric_limits<int32_t>::max();
}

/// `9+19+28`.
static bool parseLayers(StringRef text, std::vector<int64_t> &layers,
                        std::string &error) {
  llvm::SmallVector<StringRef> parts;
  text.split(parts, '+');
  for (StringRef part : parts) {
    int64_t layer;
    if (!wholeNumber(part, layer) || layer < 1 ||
        (!layers.empty() && layer <= layers.back())) {
      error = ("layers=" + text +
               ": expected ascending layer numbers from 1 on, as in 9+19+28")
                  .str();
      return false;
    }
    layers.push_back(layer);
  }
  return true;
}

/// A share in (0, 1]. The runtime counts in millionths, so that every machine
/// rounds alike.
static bool parseShare(StringRef key, StringRef value, double &share,
                       std::string &error) {
  if (value.getAsDouble(share) || !(share > 0) || share > 1)
    error = (key + "=" + value +
             ": expected the share of rows that stays, above 0 and at most 1")
                .str();
  else if (share < 1e-6)
    error = (key + "=" + value + ": expected at least 0.000001").str();
  return error.empty();
}

/// `group=512,topk=64,top-p=0.5,query=32`.
static bool parseQuickPrefill(StringRef options, PruneSpec &spec,
                              std::string &error) {
  spec.method = PruneSpec::Method::QuickPrefill;
  bool hasBudget = false;
  while (!options.empty()) {
    auto [part, rest] = options.split(',');
    options = rest;
    auto [key, value] = part.split('=');
    int64_t *number = key == "group"   ? &spec.group
                      : key == "topk"  ? &spec.topk
                      : key == "query" ? &spec.query
                                       : nullptr;
    hasBudget |= key == "topk" || key == "top-p";
    if (number) {
      if (!wholeNumber(value, *number) || *number < 1)
        error = ("'" + part + "': expected a number of rows, at least 1").str();
      if (key == "group" && value.starts_with("frames"))
        error += "; the compiler does not know frames: give the lengths of "
                 "groups to run_quickprefill";
    } else if (key == "top-p") {
      parseShare(key, value, spec.topP, error);
    } else if (key == "score") {
      if (value != "key-norm-small")
        error = ("score=" + value + ": expected key-norm-small").str();
    } else if (key == "decay") {
      spec.linearDecay = value == "linear";
      spec.decay = 1;
      if (value != "none" && value != "linear" &&
          (value.getAsDouble(spec.decay) || !(spec.decay > 0) ||
           spec.decay > 1))
        error = ("decay=" + value +
                 ": expected none, linear, or the factor from layer to layer, "
                 "above 0 and at most 1")
                    .str();
    } else {
      error = ("unknown option '" + part +
               "': expected group, topk, top-p, query, score, decay")
                  .str();
    }
    if (!error.empty())
      return false;
  }
  if (!hasBudget)
    spec.topk = 64;
  return true;
}

std::pair<int64_t, double> PruneSpec::budgetOf(int64_t layer,
                                               int64_t layers) const {
  const double factor = linearDecay ? double(layers - layer) / double(layers)
                                    : std::pow(decay, double(layer));
  int64_t most = linearDecay ? topk - topk * layer / layers
                             : int64_t(double(topk) * factor + 1e-9);
  // A share of 1 beside topk is none. The runtime counts in millionths.
  const bool hasShare = topP < 1 || !topk;
  return {topk ? std::max<int64_t>(1, most) : 0,
          hasShare ? std::max(1e-6, topP * factor) : topP};
}

bool prefill::revivesRows(StringRef text) {
  PruneSpec spec;
  std::string error;
  return !text.empty() && parsePruneSpec(text, spec, error) && spec.aux;
}

bool prefill::isQuickPrefill(StringRef text) {
  return text.split(':').first == "quickprefill";
}

/// `cls` or `mean`.
static bool parseAnchor(StringRef value, PruneSpec &spec, std::string &error) {
  const bool cls = value == "cls";
  spec.anchor = cls ? PruneSpec::Anchor::Cls : PruneSpec::Anchor::Mean;
  if (!cls && value != "mean")
    error = ("anchor=" + value + ": expected cls or mean").str();
  return error.empty();
}

/// `3x3@0.8`: the sides of a window, and how much alike its patches are.
static bool parseWindow(StringRef value, PruneSpec &spec, std::string &error) {
  auto [sides, similarity] = value.split('@');
  auto [height, width] = sides.split('x');
  if (wholeNumber(height, spec.windowHeight) && spec.windowHeight > 0 &&
      wholeNumber(width, spec.windowWidth) && spec.windowWidth > 0 &&
      !similarity.getAsDouble(spec.similarity) && spec.similarity >= -1 &&
      spec.similarity <= 1)
    return true;
  error = ("vit-merge=" + value +
           ": expected the sides of a window of patches and the cosine from "
           "which on they are alike, from -1 to 1, as in 3x3@0.8")
              .str();
  return false;
}

/// Reads one option of MustDrop, in the language model or in the vision
/// encoder, and says which.
static bool parseMustDrop(StringRef key, StringRef value, PruneSpec &spec,
                          std::string &error) {
  if (key == "vit-merge" || key == "key" || key == "anchor")
    spec.method = PruneSpec::Method::MergePatches;
  if (key == "vit-merge")
    return parseWindow(value, spec, error);
  if (key == "anchor")
    return parseAnchor(value, spec, error);
  if (key == "key") {
    if (!value.getAsDouble(spec.key) && spec.key >= 0 && spec.key <= 1 &&
        (spec.key == 0 || spec.key >= 1e-6))
      return true;
    error = (key + "=" + value +
             ": expected the share of patches that is the key set, 0 (none) or "
             "from 0.000001 to 1")
                .str();
  } else if (key == "global" || key == "individual") {
    double &threshold = key == "global" ? spec.global : spec.individual;
    // The runtime counts in 10^-12, so that every machine rounds alike.
    if (!value.getAsDouble(threshold) && threshold >= 0 && threshold <= 1 &&
        (threshold == 0 || threshold >= 1e-12))
      return true;
    error = (key + "=" + value +
             ": expected 0 (nothing goes) or a share of attention from 1e-12 "
             "to 1")
                .str();
  } else if (key == "kv") {
    spec.finalCaches = value == "final";
    if (spec.finalCaches || value == "layer")
      return true;
    error = ("kv=" + value +
             ": expected layer (a cache holds the rows that its layer had) or "
             "final (those that are left in the end)")
                .str();
  } else if (key == "positions" && value == "preserve") {
    return true;
  } else if (key == "positions") {
    error = ("positions=" + value +
             ": expected preserve (rows that are left keep their positions; to "
             "renumber them is a loss of its own)")
                .str();
  } else {
    error =
        ("unknown option '" + key +
         "': expected layers, global, individual, kv, positions; of a vision "
         "encoder vit-merge, key, anchor")
            .str();
  }
  return false;
}

/// Reads one option of FlowCut.
static bool parseFlowCut(StringRef key, StringRef value, PruneSpec &spec,
                         std::string &error) {
  if (key == "target") {
    if (wholeNumber(value, spec.target) && spec.target > 0)
      return true;
    error = ("target=" + value +
             ": expected the number of patches that stay, "
             "from 1 on")
                .str();
  } else if (key == "anchor") {
    return parseAnchor(value, spec, error);
  } else if (key == "llm-layer") {
    spec.method = PruneSpec::Method::FlowCutText;
    int64_t layer;
    if (wholeNumber(value, layer) && layer > 0) {
      spec.layers = {layer};
      return true;
    }
    error = ("llm-layer=" + value +
             ": expected the layer of the language model after which vision "
             "rows go, from 1 on")
                .str();
  } else {
    error = ("unknown option '" + key + "': expected target, anchor, llm-layer")
                .str();
  }
  return false;
}

bool prefill::parsePruneSpec(StringRef text, PruneSpec &spec,
                             std::string &error) {
  auto [method, options] = text.split(':');
  error.clear();
  auto fail = [&](const llvm::Twine &what) {
    error = what.str();
    return false;
  };
  if (method == "quickprefill")
    return parseQuickPrefill(options, spec, error);
  if (method == "mustdrop")
    spec.method = PruneSpec::Method::MustDrop;
  else if (method == "flowcut")
    spec.method = PruneSpec::Method::FlowCut;
  else if (method != "lazyllm")
    return fail("unknown method '" + method +
                "': expected lazyllm, mustdrop, flowcut, quickprefill");
  const char *language = "layers, global, individual, kv and positions";
  bool forLanguage = false, forPatches = false;
  if (spec.isFlowCut() && options.empty())
    return fail("expected target=, the number of patches that stay");
  while (!options.empty()) {
    auto [part, rest] = options.split(',');
    options = rest;
    auto [key, value] = part.split('=');
    if (method == "flowcut") {
      if (!parseFlowCut(key, value, spec, error))
        return false;
    } else if (method == "mustdrop" && key != "layers") {
      forLanguage |= key != "vit-merge" && key != "key" && key != "anchor";
      forPatches |= key == "vit-merge" || key == "key";
      if (!parseMustDrop(key, value, spec, error))
        return false;
    } else if (key == "layers") {
      forLanguage = true;
      if (!parseLayers(value, spec.layers, error))
        return false;
    } else if (key == "keep") {
      if (!parseShare(key, value, spec.keep, error))
        return false;
    } else if (key == "aux") {
      if (value != "on" && value != "off")
        return fail("aux=" + value + ": expected on or off");
      spec.aux = value == "on";
    } else if (key == "positions") {
      if (value != "preserve")
        return fail("positions=" + value +
                    ": expected preserve (LazyLLM's rows keep their positions; "
                    "to renumber them is a loss of its own)");
    } else {
      return fail("unknown option '" + part +
                  "': expected layers, keep, aux, positions");
    }
  }
  if (method == "flowcut" && !spec.target)
    return fail("expected target=, the number of patches that stay");
  if (spec.isFlowCutText() && spec.anchor != PruneSpec::Anchor::Auto)
    return fail("anchor is for the vision encoder, llm-layer for the language "
                "model: compile each with its own");
  if (spec.isMergePatches() && forLanguage)
    return fail("vit-merge, key and anchor are for the vision encoder, " +
                llvm::Twine(language) +
                " for the language model: compile each with its own");
  if (spec.isMergePatches() && !forPatches)
    return fail("anchor is nothing alone: expected vit-merge= or key=");
  return true;
}

/// `A-B` or `A`.
static bool parseRange(StringRef text, std::pair<int64_t, int64_t> &range) {
  auto [low, high] = text.split('-');
  if (!wholeNumber(low, range.first))
    return false;
  if (!text.contains('-'))
    range.second = range.first;
  else if (!wholeNumber(high, range.second))
    return false;
  return range.first <= range.second;
}

bool prefill::parseProtectSpec(StringRef text, ProtectSpec &spec,
                               std::string &error) {
  if (text.empty())
    return true;
  spec = {0, 1, false, {}, {}};
  llvm::SmallVector<StringRef> parts;
  text.split(parts, ',');
  for (StringRef part : parts) {
    auto [key, value] = part.split(':');
    std::pair<int64_t, int64_t> range;
    bool good;
    if (part == "system") {
      spec.system = good = true;
    } else if (key == "bos") {
      good = wholeNumber(value, spec.bos);
    } else if (key == "last") {
      good = wholeNumber(value, spec.last) && spec.last > 0;
    } else if (key == "ids" || key == "rows") {
      good = parseRange(value, range);
      (key == "ids" ? spec.ids : spec.rows).push_back(range);
    } else if (part == "template") {
      error =
          "template: the compiler does not know the chat template; name its "
          "tokens with ids:A-B";
      return false;
    } else {
      error = ("'" + part +
               "': expected bos:N, last:N, system, ids:A-B or rows:A-B")
                  .str();
      return false;
    }
    if (!good) {
      error = ("'" + part + "': expected " +
               (key == "last"  ? "a number from 1 on: the last row is the one "
                                 "that asks"
                : key == "bos" ? "a number"
                               : "a number or two ascending ones, A-B"))
                  .str();
      return false;
    }
  }
  if (spec.ids.size() > 64 || spec.rows.size() > 64) {
    error = "at most 64 ranges of ids and 64 of rows";
    return false;
  }
  return true;
}

void prefill::protectNoEnds(StringRef given, ProtectSpec &spec) {
  if (given.empty())
    spec.bos = 0;
  if (!given.contains("last:"))
    spec.last = 0;
}

int64_t prefill::queryRows(const PruneSpec &spec,
                           const ProtectSpec &protection) {
  return spec.query ? spec.query : protection.last;
}

bool prefill::resolveLayers(const PruneSpec &spec, int64_t count,
                            std::vector<int64_t> &layers, std::string &error) {
  layers = spec.layers;
  // After every second layer, so that the last of them is the one before the
  // last layer.
  if (spec.isFlowCut())
    for (int64_t layer = (count - 1) % 2 ? 1 : 2; layer < count; layer += 2)
      layers.push_back(layer);
  else if (layers.empty() && spec.isMustDrop())
    layers = {3, 7, 11, 15};
  else if (layers.empty())
    for (int64_t part : {9, 19, 28}) {
      int64_t layer = (part * count + 16) / 32;
      if (layer >= 1 && layer < count &&
          (layers.empty() || layer > layers.back()))
        layers.push_back(layer);
    }
  if (layers.empty()) {
    error = "the model has " + std::to_string(count) +
            " layers, too few to leave rows out of";
    return false;
  }
  if (layers.back() > count) {
    error = "layer " + std::to_string(layers.back()) +
            " is not there: the model has " + std::to_string(count) +
            " layers" + (spec.layers.empty() ? "; name some with layers=" : "");
    return false;
  }
  if (layers.back() == count) {
    error = "layer " + std::to_string(count) +
            " is the last one: no layer after it computes fewer rows";
    return false;
  }
  return true;
}
