//===- SparsityConfig.cpp - Parsing of -sparsify= -------------------------===//

#include "prefill/Transforms/SparsityConfig.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/SmallVector.h"
#include "llvm/ADT/StringSwitch.h"
#include "llvm/Support/JSON.h"
#include "llvm/Support/MemoryBuffer.h"

#include <cmath>
#include <limits>

using namespace prefill;
using llvm::StringRef;

const HeadPlan &SparsityConfig::plan(int64_t layer, int64_t head) const {
  static const HeadPlan dense;
  if (layer >= static_cast<int64_t>(layers.size()))
    return fallback;
  const Layer &entry = layers[layer];
  if (entry.dense)
    return dense;
  auto it = entry.heads.find(head);
  return it == entry.heads.end() ? fallback : it->second;
}

/// A pattern's defaults. The token budgets are the papers'; the density of
/// vertical-slash is measured (docs/SparseDefaults.md).
static std::optional<HeadPlan> defaultPlan(StringRef name) {
  HeadPlan plan;
  if (name == "dense")
    return plan;
  if (name == "a-shape") { // MInference, models_patch: 128 / 3968.
    plan.pattern = SparsePattern::AShape;
    plan.init = 128;
    plan.local = 3968;
    return plan;
  }
  if (name == "tri-shape") {
    plan.pattern = SparsePattern::TriShape;
    plan.init = 128;
    plan.local = 3968;
    plan.last = 100;
    return plan;
  }
  if (name == "vertical-slash") {
    plan.pattern = SparsePattern::VerticalSlash;
    plan.last = 64;
    plan.density = 0.25f;
    return plan;
  }
  if (name == "block-sparse") {
    plan.pattern = SparsePattern::BlockSparse;
    plan.topK = 100;
    return plan;
  }
  if (name == "xattention") { // Its authors' stride and threshold.
    plan.pattern = SparsePattern::XAttention;
    plan.stride = 8;
    plan.topP = 0.9f;
    return plan;
  }
  return std::nullopt;
}

/// The option names of a pattern, for messages.
static StringRef optionNames(SparsePattern pattern) {
  switch (pattern) {
  case SparsePattern::Dense:
    return "none";
  case SparsePattern::AShape:
    return "init, local";
  case SparsePattern::TriShape:
    return "init, local, last";
  case SparsePattern::VerticalSlash:
    return "vertical, slash, last, density";
  case SparsePattern::BlockSparse:
    return "top-k, density";
  case SparsePattern::XAttention:
    return "stride, threshold";
  }
  return "none";
}

/// The integer option `key` of `plan`, or null when the pattern has none.
static int32_t *integerOption(HeadPlan &plan, StringRef key) {
  bool shape = plan.pattern == SparsePattern::AShape ||
               plan.pattern == SparsePattern::TriShape;
  if (key == "init" && shape)
    return &plan.init;
  if (key == "local" && shape)
    return &plan.local;
  if (key == "last" && (plan.pattern == SparsePattern::TriShape ||
                        plan.pattern == SparsePattern::VerticalSlash))
    return &plan.last;
  if (key == "vertical" && plan.pattern == SparsePattern::VerticalSlash)
    return &plan.vertical;
  if (key == "slash" && plan.pattern == SparsePattern::VerticalSlash)
    return &plan.slash;
  if ((key == "top-k" || key == "top_k") &&
      plan.pattern == SparsePattern::BlockSparse)
    return &plan.topK;
  return nullptr;
}

static bool hasDensity(const HeadPlan &plan) {
  return plan.pattern == SparsePattern::VerticalSlash ||
         plan.pattern == SparsePattern::BlockSparse;
}

/// Sets one option from a number; false with a one-line error when it is not
/// one of the pattern's or out of range.
static bool setOption(HeadPlan &plan, StringRef key, double value,
                      std::string &error) {
  if (key == "density" && hasDensity(plan)) {
    if (!(value > 0) || value > 1) {
      error = "density must be in (0, 1]";
      return false;
    }
    plan.density = static_cast<float>(value);
    return true;
  }
  if (plan.pattern == SparsePattern::XAttention) {
    if (key == "threshold" || key == "tau") {
      if (!(value > 0) || value > 1) {
        error = key.str() + " must be in (0, 1]";
        return false;
      }
      plan.topP = static_cast<float>(value);
      return true;
    }
    if (key == "stride") {
      if (!llvm::is_contained({2.0, 4.0, 8.0, 16.0, 32.0, 64.0}, value)) {
        error = "stride must be 2, 4, 8, 16, 32 or 64";
        return false;
      }
      plan.stride = static_cast<int32_t>(value);
      return true;
    }
  }
  int32_t *slot = integerOption(plan, key);
  if (!slot) {
    error = "unknown option '" + key.str() + "'; this pattern has " +
            optionNames(plan.pattern).str();
    return false;
  }
  bool positive =
      slot == &plan.last && plan.pattern == SparsePattern::VerticalSlash;
  if (value != std::trunc(value) || value < (positive ? 1 : 0) ||
      value > std::numeric_limits<int32_t>::max()) {
    error = key.str() + " must be a " + (positive ? "positive" : "whole") +
            " number of " + (slot == &plan.topK ? "blocks" : "tokens");
    return false;
  }
  if (positive && value > 64) {
    error = "last must be at most 64 query rows";
    return false;
  }
  // An explicit token budget replaces the default density.
  if (slot == &plan.vertical || slot == &plan.slash || slot == &plan.topK)
    plan.density = 0;
  *slot = static_cast<int32_t>(value);
  return true;
}

/// Vertical-slash budgets in tokens come in pairs: the one that is not given
/// keeps MInference's value.
static void completeTokens(HeadPlan &plan, bool vertical, bool slash) {
  if (plan.pattern != SparsePattern::VerticalSlash || !(vertical || slash))
    return;
  if (!vertical)
    plan.vertical = 1000;
  if (!slash)
    plan.slash = 6096;
}

std::optional<SparsityConfig> prefill::parseSparsity(StringRef spec,
                                                     std::string &error) {
  auto fail = [&](const llvm::Twine &what) {
    error = ("-sparsify=" + spec + ": " + what).str();
    return std::nullopt;
  };
  auto [name, options] = spec.split(':');
  if (name == "config") {
    auto buffer = llvm::MemoryBuffer::getFile(options, /*IsText=*/true);
    if (!buffer)
      return fail("cannot read " + options + ": " +
                  buffer.getError().message());
    return parseSparsityJSON((*buffer)->getBuffer(), options, error);
  }
  std::optional<HeadPlan> plan = defaultPlan(name);
  if (!plan)
    return fail("unknown pattern '" + name +
                "'; there are dense, a-shape, tri-shape, vertical-slash, "
                "block-sparse, xattention and config:FILE");
  SparsityConfig config;
  bool vertical = false, slash = false, density = false, tokens = false;
  bool threshold = false;
  llvm::SmallVector<StringRef> parts;
  options.split(parts, ',', -1, /*KeepEmpty=*/false);
  for (StringRef part : parts) {
    auto [key, text] = part.split('=');
    double value;
    if (key == "dense-below") {
      if (text.getAsInteger(10, config.denseBelow) || config.denseBelow < 0 ||
          config.denseBelow > std::numeric_limits<int32_t>::max())
        return fail("dense-below must be a whole number of tokens");
      continue;
    }
    if (text.empty() || text.getAsDouble(value))
      return fail("'" + part + "' is not option=number");
    std::string why;
    if (!setOption(*plan, key, value, why))
      return fail(why);
    vertical |= key == "vertical";
    slash |= key == "slash";
    density |= key == "density";
    threshold |= key == "threshold" || key == "tau";
    tokens |=
        key == "vertical" || key == "slash" || key == "top-k" || key == "top_k";
  }
  if (density && tokens)
    return fail("give either a density or token budgets, not both");
  // The default budgets lose passkeys below this (docs/SparseDefaults.md).
  bool byDefault =
      (plan->pattern == SparsePattern::VerticalSlash && !density && !tokens) ||
      (plan->pattern == SparsePattern::XAttention && !threshold);
  if (byDefault && config.denseBelow < 0)
    config.denseBelow = 2048;
  completeTokens(*plan, vertical, slash);
  config.fallback = *plan;
  return config;
}

//===----------------------------------------------------------------------===//
// Configuration files
//===----------------------------------------------------------------------===//

/// The pattern that a configuration's `type` names; both spellings in use.
static std::optional<HeadPlan> planOfType(StringRef type) {
  StringRef name = llvm::StringSwitch<StringRef>(type)
                       .Case("vertical_and_slash", "vertical-slash")
                       .Case("vertical_slash", "vertical-slash")
                       .Case("stream_llm", "a-shape")
                       .Case("a_shape", "a-shape")
                       .Case("tri_shape", "tri-shape")
                       .Case("block_sparse", "block-sparse")
                       .Default(type);
  return defaultPlan(name);
}

/// MInference: `["vertical_and_slash", vertical, slash, score]`.
static std::optional<HeadPlan> parseListHead(const llvm::json::Array &list,
                                             std::string &error) {
  std::optional<StringRef> type =
      list.empty() ? std::nullopt : list.front().getAsString();
  std::optional<HeadPlan> plan = type ? planOfType(*type) : std::nullopt;
  if (!plan) {
    error =
        "the first entry of a head must be vertical_and_slash, stream_llm or "
        "block_sparse";
    return std::nullopt;
  }
  if (plan->pattern == SparsePattern::BlockSparse ||
      plan->pattern == SparsePattern::Dense)
    return plan; // The numbers of a block_sparse head have no meaning there.
  std::optional<double> first, second;
  if (list.size() >= 3) {
    first = list[1].getAsNumber();
    second = list[2].getAsNumber();
  }
  if (!first || !second) {
    error = "a head needs [type, number, number, ...]";
    return std::nullopt;
  }
  bool slash = plan->pattern == SparsePattern::VerticalSlash;
  if (!setOption(*plan, slash ? "vertical" : "init", *first, error) ||
      !setOption(*plan, slash ? "slash" : "local", *second, error))
    return std::nullopt;
  return plan;
}

/// Ours: `{"type": "vertical_and_slash", "vertical": 1000, ...}`; numbers that
/// only inform (recall, ms, measured_density) are skipped.
static std::optional<HeadPlan> parseObjectHead(const llvm::json::Object &object,
                                               std::string &error) {
  std::optional<StringRef> type = object.getString("type");
  std::optional<HeadPlan> plan = type ? planOfType(*type) : std::nullopt;
  if (!plan) {
    error = "a head needs a \"type\" that is one of dense, a_shape, tri_shape, "
            "vertical_and_slash, block_sparse, xattention";
    return std::nullopt;
  }
  bool vertical = false, slash = false;
  for (const auto &[key, value] : object) {
    StringRef name = key;
    if (name == "type" || name == "recall" || name == "ms" || name == "score" ||
        name == "measured_density")
      continue;
    if (name == "n_init" || name == "n_local" || name == "n_last")
      name = name.drop_front(2);
    std::optional<double> number = value.getAsNumber();
    if (!number) {
      error = "\"" + name.str() + "\" must be a number";
      return std::nullopt;
    }
    if (!setOption(*plan, name, *number, error))
      return std::nullopt;
    vertical |= name == "vertical";
    slash |= name == "slash";
  }
  completeTokens(*plan, vertical, slash);
  return plan;
}

/// One layer's `{"0": head, "1": head, ...}`.
static bool parseHeads(const llvm::json::Object &heads,
                       SparsityConfig::Layer &layer, std::string &error) {
  for (const auto &[key, value] : heads) {
    int64_t head;
    if (StringRef(key).getAsInteger(10, head) || head < 0) {
      error = "'" + StringRef(key).str() + "' is not a query head's number";
      return false;
    }
    std::optional<HeadPlan> plan;
    if (const llvm::json::Array *list = value.getAsArray())
      plan = parseListHead(*list, error);
    else if (const llvm::json::Object *object = value.getAsObject())
      plan = parseObjectHead(*object, error);
    else
      error = "a head must be a list or an object";
    if (!plan) {
      error = "head " + std::to_string(head) + ": " + error;
      return false;
    }
    layer.heads[head] = *plan;
  }
  return true;
}

std::optional<SparsityConfig>
prefill::parseSparsityJSON(StringRef text, StringRef name, std::string &error) {
  auto fail = [&](const llvm::Twine &what) {
    error = (name + ": " + what).str();
    return std::nullopt;
  };
  llvm::Expected<llvm::json::Value> root = llvm::json::parse(text);
  if (!root) {
    std::string message = llvm::toString(root.takeError());
    return fail("not JSON: " + StringRef(message).rtrim());
  }
  SparsityConfig config;
  // What MInference does for a head that its list does not name.
  config.fallback = *defaultPlan("vertical-slash");
  config.fallback.density = 0;
  completeTokens(config.fallback, /*vertical=*/false, /*slash=*/true);
  config.fallback.slash = 6096;

  const llvm::json::Array *layers = root->getAsArray();
  bool extended = false;
  if (const llvm::json::Object *object = root->getAsObject()) {
    extended = true;
    layers = object->getArray("layers");
    config.fallback = HeadPlan();
    if (const llvm::json::Value *below = object->get("dense_below")) {
      std::optional<int64_t> number = below->getAsInteger();
      if (!number || *number < 0 ||
          *number > std::numeric_limits<int32_t>::max())
        return fail("\"dense_below\" must be a whole number of tokens");
      config.denseBelow = *number;
    }
  }
  if (!layers)
    return fail("expected a list over layers, or an object with a \"layers\" "
                "list");
  for (const auto &[index, value] : llvm::enumerate(*layers)) {
    const llvm::json::Object *object = value.getAsObject();
    if (!object)
      return fail("layer " + llvm::Twine(index) + " is not an object");
    SparsityConfig::Layer layer;
    const llvm::json::Object *heads = object;
    if (extended) {
      layer.dense = object->getBoolean("dense").value_or(false);
      heads = object->getObject("heads");
      if (!heads && !layer.dense)
        return fail("layer " + llvm::Twine(index) +
                    " has neither \"heads\" nor \"dense\": true");
    }
    std::string why;
    if (heads && !parseHeads(*heads, layer, why))
      return fail("layer " + llvm::Twine(index) + ": " + why);
    config.layers.push_back(std::move(layer));
  }
  return config;
}
