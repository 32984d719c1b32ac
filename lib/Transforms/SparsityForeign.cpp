//===- SparsityForeign.cpp - Configuration files of other projects --------===//

#include "SparsityFiles.h"
#include "prefill/Transforms/Patterns.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/SmallVector.h"
#include "llvm/ADT/StringExtras.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

using namespace prefill;
using llvm::StringRef;
namespace json = llvm::json;

//===----------------------------------------------------------------------===//
// MiniCPM4: sparse_config of its config.json
//===----------------------------------------------------------------------===//

/// Reads a whole number (or -1), or leaves the default.
static bool readNumber(const json::Object &object, StringRef key,
                       int64_t &value, std::string &error) {
  const json::Value *found = object.get(key);
  if (!found)
    return true;
  std::optional<int64_t> number = found->getAsInteger();
  if (!number || *number < -1 ||
      *number > std::numeric_limits<int32_t>::max()) {
    error = "\"" + key.str() + "\" must be a whole number";
    return false;
  }
  value = *number;
  return true;
}

static bool parseMiniCPM(const json::Object &object, SparsityConfig &config,
                         std::string &error) {
  int64_t kernel = 32, stride = 16, init = 1, block = 64, window = 2048,
          topK = 64, dense = 8192;
  if (!readNumber(object, "kernel_size", kernel, error) ||
      !readNumber(object, "kernel_stride", stride, error) ||
      !readNumber(object, "init_blocks", init, error) ||
      !readNumber(object, "block_size", block, error) ||
      !readNumber(object, "window_size", window, error) ||
      !readNumber(object, "topk", topK, error) ||
      !readNumber(object, "dense_len", dense, error))
    return false;
  if (kernel != 32 || stride != 16 || block != 64) {
    error = "only kernel_size 32, kernel_stride 16 and block_size 64 are "
            "supported";
    return false;
  }
  PlanReader reader(*findPattern("infllm-v2"));
  if (!reader.set("top-k", topK, error) ||
      !reader.set("init", init * block, error) ||
      !reader.set("window", window, error))
    return false;
  config.fallback = reader.plan();
  config.denseBelow = std::max<int64_t>(dense, 0); // -1: always sparse
  return true;
}

//===----------------------------------------------------------------------===//
// vLLM: sparse_attention_config of Qwen2.5-1M's config.json
//===----------------------------------------------------------------------===//

/// One layer of it.
static bool addLayer(int64_t index, const json::Value &value,
                     SparsityConfig &config, std::string &error) {
  const json::Object *heads = value.getAsObject();
  if (static_cast<int64_t>(config.layers.size()) <= index)
    config.layers.resize(index + 1);
  if (!heads)
    error = "must be an object";
  else if (parseHeads(*heads, config.layers[index], error))
    return true;
  error = "layer " + std::to_string(index) + ": " + error;
  return false;
}

/// `holder` is the object with sparse_attention_config and its companions; the
/// configuration is a list over layers or an object by layer number.
static bool parseVLLM(const json::Object &holder, SparsityConfig &config,
                      std::string &error) {
  int64_t below = 32768, last = 64;
  if (!readNumber(holder, "sparse_attention_threshold", below, error) ||
      !readNumber(holder, "sparse_attention_last_q", last, error))
    return false;
  config.denseBelow = std::max<int64_t>(below, 0);
  const json::Value &layers = *holder.get("sparse_attention_config");
  if (const json::Array *list = layers.getAsArray()) {
    for (const auto &[index, value] : llvm::enumerate(*list))
      if (!addLayer(index, value, config, error))
        return false;
  } else if (const json::Object *object = layers.getAsObject()) {
    for (const auto &[key, value] : *object) {
      int64_t index;
      // As many layers as the file names: no gaps, no giants.
      if (StringRef(key).getAsInteger(10, index) || index < 0 ||
          index >= static_cast<int64_t>(object->size())) {
        error = "'" + StringRef(key).str() + "' is not a layer's number";
        return false;
      }
      if (!addLayer(index, value, config, error))
        return false;
    }
  } else {
    error = "\"sparse_attention_config\" must be a list over layers";
    return false;
  }
  // Only to check its range.
  if (!PlanReader(*findPattern("vertical-slash")).set("last", last, error))
    return false;
  config.fallback.last = last;
  for (SparsityConfig::Layer &layer : config.layers)
    for (auto &[head, plan] : layer.heads)
      if (plan.pattern == SparsePattern::VerticalSlash)
        plan.last = last;
  return true;
}

//===----------------------------------------------------------------------===//
// XAttention: thresholds [layers][query heads]
//===----------------------------------------------------------------------===//

static bool parseThresholds(const json::Array &table,
                            std::optional<double> stride,
                            SparsityConfig &config, std::string &error) {
  for (const auto &[index, row] : llvm::enumerate(table)) {
    const json::Array *values = row.getAsArray();
    std::string where = "layer " + std::to_string(index);
    if (!values || values->empty()) {
      error = where + ": must be a list of thresholds, one per query head";
      return false;
    }
    SparsityConfig::Layer &layer = config.layers.emplace_back();
    layer.queryHeads = static_cast<int64_t>(values->size());
    for (const auto &[head, value] : llvm::enumerate(*values)) {
      PlanReader reader(*findPattern("xattention"));
      std::optional<double> tau = value.getAsNumber();
      // The authors' tables hold zeros: nothing but the blocks always kept.
      if (tau && *tau == 0)
        tau = 1e-6;
      if (!tau)
        error = "a threshold must be a number";
      if (!tau || !reader.set("threshold", *tau, error) ||
          (stride && !reader.set("stride", *stride, error))) {
        error = where + ": head " + std::to_string(head) + ": " + error;
        return false;
      }
      layer.heads[head] = reader.plan();
    }
  }
  if (!config.layers.empty())
    return true;
  error = "a table of thresholds needs a row per layer";
  return false;
}

//===----------------------------------------------------------------------===//
// Which is it?
//===----------------------------------------------------------------------===//

std::optional<bool> prefill::parseForeign(const json::Value &root,
                                          SparsityConfig &config,
                                          std::string &error) {
  if (const json::Array *table = root.getAsArray()) {
    if (table->empty() || !table->front().getAsArray())
      return std::nullopt;
    return parseThresholds(*table, std::nullopt, config, error);
  }
  const json::Object *object = root.getAsObject();
  if (!object || object->get("layers"))
    return std::nullopt;
  for (StringRef key : {"tau", "threshold"})
    if (const json::Array *table = object->getArray(key))
      return parseThresholds(*table, object->getNumber("stride"), config,
                             error);
  if (const json::Object *sparse = object->getObject("sparse_config"))
    return parseMiniCPM(*sparse, config, error);
  if (object->get("topk") && object->get("window_size"))
    return parseMiniCPM(*object, config, error);
  if (object->get("sparse_attention_config"))
    return parseVLLM(*object, config, error);
  if (const json::Object *chunks =
          object->getObject("dual_chunk_attention_config"))
    if (chunks->get("sparse_attention_config"))
      return parseVLLM(*chunks, config, error);
  return std::nullopt;
}

//===----------------------------------------------------------------------===//
// DuoAttention: full_attention_heads.tsv
//===----------------------------------------------------------------------===//

bool prefill::parseDuoHeads(StringRef text, double sparsity,
                            const HeadPlan &streaming, const HeadPlan &rest,
                            SparsityConfig &config, std::string &error) {
  std::vector<double> scores;
  size_t width = 0;
  llvm::SmallVector<StringRef> lines, words;
  llvm::SplitString(text, lines, "\r\n");
  for (StringRef line : lines) {
    words.clear();
    llvm::SplitString(line, words, " \t,");
    if (words.empty() || words.front().starts_with("#"))
      continue;
    const std::string layer = "layer " + std::to_string(config.layers.size());
    if (config.layers.empty())
      width = words.size();
    if (words.size() != width) {
      error = layer + " has " + std::to_string(words.size()) +
              " KV heads, layer 0 has " + std::to_string(width);
      return false;
    }
    for (const auto &[head, word] : llvm::enumerate(words)) {
      double score;
      if (word.getAsDouble(score) || !(score >= 0) || score > 1) {
        error = layer + ", KV head " + std::to_string(head) + ": '" +
                word.take_front(40).str() + "' is not a number in [0, 1]";
        return false;
      }
      scores.push_back(score);
    }
    config.layers.emplace_back().kvHeads = static_cast<int64_t>(width);
  }
  if (scores.empty()) {
    error = "expected a line of numbers per layer";
    return false;
  }
  // Full are those at or above the quantile; of equal scores the earlier ones.
  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  llvm::stable_sort(order,
                    [&](size_t a, size_t b) { return scores[a] > scores[b]; });
  const double last = static_cast<double>(scores.size() - 1);
  const auto below = static_cast<size_t>(std::ceil(sparsity * last));
  const size_t full = sparsity >= 1 ? 0 : scores.size() - below;
  for (const auto &[place, item] : llvm::enumerate(order))
    config.layers[item / width].groups[item % width] =
        place < full ? rest : streaming;
  return true;
}
