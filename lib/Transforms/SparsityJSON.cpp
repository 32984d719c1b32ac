//===- SparsityJSON.cpp - Configuration files -----------------------------===//

#include "SparsityFiles.h"
#include "prefill/Transforms/Patterns.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/JSON.h"

#include <limits>

using namespace prefill;
using llvm::StringRef;

HeadPlan prefill::minferenceFallback() {
  PlanReader reader(*findPattern("vertical-slash"));
  std::string none;
  reader.set("vertical", 1000, none);
  return reader.plan();
}

/// MInference: `["vertical_and_slash", vertical, slash, score]`.
static std::optional<HeadPlan> parseListHead(const llvm::json::Array &list,
                                             std::string &error) {
  std::optional<StringRef> type =
      list.empty() ? std::nullopt : list.front().getAsString();
  const PatternInfo *info = type ? findPattern(*type) : nullptr;
  bool slash = info && info->pattern == SparsePattern::VerticalSlash;
  bool blocks = info && info->pattern == SparsePattern::BlockSparse;
  if (!info || !(slash || blocks || info->pattern == SparsePattern::AShape)) {
    error =
        "the first entry of a head must be vertical_and_slash, stream_llm or "
        "block_sparse";
    return std::nullopt;
  }
  if (blocks) // The numbers of a block_sparse head have no meaning there.
    return defaultPlan(*info);
  std::optional<double> first, second;
  if (list.size() >= 3) {
    first = list[1].getAsNumber();
    second = list[2].getAsNumber();
  }
  if (!first || !second) {
    error = "a head needs [type, number, number, ...]";
    return std::nullopt;
  }
  PlanReader reader(*info);
  if (!reader.set(slash ? "vertical" : "init", *first, error) ||
      !reader.set(slash ? "slash" : "local", *second, error))
    return std::nullopt;
  return reader.plan();
}

/// Ours: `{"type": "vertical_and_slash", "vertical": 1000, ...}`; numbers that
/// only inform (recall, ms, measured_density) are skipped.
static std::optional<HeadPlan> parseObjectHead(const llvm::json::Object &object,
                                               std::string &error) {
  std::optional<StringRef> type = object.getString("type");
  const PatternInfo *info = type ? findPattern(*type) : nullptr;
  if (!info) {
    error = "a head needs a \"type\" that is one of " + patternNames();
    return std::nullopt;
  }
  PlanReader reader(*info);
  for (const auto &[key, value] : object) {
    StringRef name = key;
    if (name == "type" || name == "recall" || name == "ms" || name == "score" ||
        name == "measured_density")
      continue;
    std::optional<double> number = value.getAsNumber();
    if (!number) {
      error = "\"" + name.str() + "\" must be a number";
      return std::nullopt;
    }
    if (!reader.set(name, *number, error))
      return std::nullopt;
  }
  return reader.plan();
}

bool prefill::parseHeads(const llvm::json::Object &heads,
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
  config.fallback = minferenceFallback();
  std::string problem;
  if (std::optional<bool> known = parseForeign(*root, config, problem)) {
    if (*known)
      return config;
    return fail(problem);
  }

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
