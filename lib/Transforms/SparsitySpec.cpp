//===- SparsitySpec.cpp - Parsing of -sparsify= ---------------------------===//

#include "SparsityFiles.h"
#include "prefill/Transforms/Patterns.h"
#include "llvm/Support/MemoryBuffer.h"

#include <limits>

using namespace prefill;
using llvm::StringRef;

/// What -sparsify without a name stands for: the best of what was measured on
/// SmolLM2 (docs/SparseDefaults.md). Nothing else depends on it.
static constexpr StringRef automatic =
    "sale:top-p=0.9,stride=4,local=64,dense-below=1024";

//===----------------------------------------------------------------------===//
// Options
//===----------------------------------------------------------------------===//

/// The text of a file, or null with an error.
static std::unique_ptr<llvm::MemoryBuffer> readFile(StringRef path,
                                                    std::string &error) {
  auto buffer = llvm::MemoryBuffer::getFile(path, /*IsText=*/true);
  if (buffer)
    return std::move(*buffer);
  error = ("cannot read " + path + ": " + buffer.getError().message()).str();
  return nullptr;
}

/// A whole number in the range of the runtime's plans.
static bool wholeNumber(StringRef text, int64_t &value) {
  return !text.getAsInteger(10, value) && value >= 0 &&
         value <= std::numeric_limits<int32_t>::max();
}

namespace {
/// What `key=value,...` says: options of the heads' pattern, and those of the
/// layered patterns.
struct SpecOptions {
  explicit SpecOptions(const PatternInfo &info) : info(info), reader(info) {}

  bool parse(StringRef text, SparsityConfig &config, std::string &error);

  const PatternInfo &info;
  PlanReader reader;
  StringRef heads, rest; // duo; empty: not given
  double sparsity = 0.5; // duo
  int64_t layers = 16;   // trianglemix
};
} // namespace

bool SpecOptions::parse(StringRef text, SparsityConfig &config,
                        std::string &error) {
  auto fail = [&](const llvm::Twine &what) {
    error = what.str();
    return false;
  };
  const bool duo = info.name == "duo";
  while (!text.empty()) {
    auto [part, after] = text.split(',');
    auto [key, value] = part.split('=');
    if (key == "rest" && duo) { // Has options of its own: up to the end.
      rest = text.drop_front(StringRef("rest=").size());
      return true;
    }
    text = after;
    if (part.empty())
      continue;
    if (key == "dense-below") {
      if (!wholeNumber(value, config.denseBelow))
        return fail("dense-below must be a whole number of tokens");
      continue;
    }
    if (key == "heads" && duo) {
      heads = value;
      continue;
    }
    double number;
    if (value.empty() || value.getAsDouble(number))
      return fail("'" + part + "' is not option=number");
    if (key == "sparsity" && duo) {
      if (!(number >= 0 && number <= 1))
        return fail("sparsity must be in [0, 1]");
      sparsity = number;
    } else if (key == "layers" && info.name == "trianglemix") {
      if (!wholeNumber(value, layers))
        return fail("layers must be a whole number of layers");
    } else if (!reader.set(key, number, error)) {
      if (StringRef(error).starts_with("unknown option"))
        error += duo                          ? ", heads, sparsity, rest"
                 : info.name == "trianglemix" ? ", layers"
                                              : "";
      return false;
    }
  }
  return true;
}

//===----------------------------------------------------------------------===//
// Patterns
//===----------------------------------------------------------------------===//

/// DuoAttention, and with `rest` LServe's union of static and dynamic heads.
static bool parseDuo(const SpecOptions &options, SparsityConfig &config,
                     std::string &error) {
  if (options.heads.empty()) {
    error = "needs heads=FILE, DuoAttention's full_attention_heads.tsv";
    return false;
  }
  HeadPlan rest;
  if (!options.rest.empty()) {
    std::optional<SparsityConfig> inner = parseSparsity(options.rest, error);
    if (!inner)
      return false;
    if (!inner->layers.empty() || inner->isLayered()) {
      error = "rest must be one pattern for all heads";
      return false;
    }
    rest = inner->fallback;
    if (config.denseBelow < 0)
      config.denseBelow = inner->denseBelow;
  }
  auto text = readFile(options.heads, error);
  if (!text)
    return false;
  if (parseDuoHeads(text->getBuffer(), options.sparsity, options.reader.plan(),
                    rest, config, error))
    return true;
  error = options.heads.str() + ": " + error;
  return false;
}

/// True for text that is a table of numbers rather than JSON.
static bool isTable(StringRef text) {
  text = text.ltrim();
  return !text.empty() && StringRef("0123456789.+-#").contains(text.front());
}

std::optional<SparsityConfig> prefill::parseSparsity(StringRef spec,
                                                     std::string &error) {
  auto fail = [&](const llvm::Twine &what) {
    error = ("-sparsify=" + spec + ": " + what).str();
    return std::nullopt;
  };
  auto [name, text] = spec.split(':');
  if (spec.empty() || name == "auto") // its options override ours
    return parseSparsity((automatic + "," + text).str(), error);
  std::string why;
  SparsityConfig config;
  if (name == "config") {
    if (text.empty())
      return fail("needs a file, as in config:model.prefill.json");
    auto buffer = readFile(text, why);
    if (!buffer)
      return fail(why);
    if (!isTable(buffer->getBuffer()))
      return parseSparsityJSON(buffer->getBuffer(), text, error);
    // DuoAttention's, with the options' defaults.
    SpecOptions duo(*findLayeredPattern("duo"));
    if (parseDuoHeads(buffer->getBuffer(), duo.sparsity, duo.reader.plan(),
                      HeadPlan(), config, why))
      return config;
    error = (text + ": " + why).str();
    return std::nullopt;
  }
  const PatternInfo *info = findPattern(name);
  if (!info)
    info = findLayeredPattern(name);
  if (!info)
    return fail("unknown pattern '" + name + "'; there are auto, " +
                patternNames(/*layered=*/true) + " and config:FILE");
  SpecOptions options(*info);
  if (!options.parse(text, config, why))
    return fail(why);
  if (config.denseBelow < 0 &&
      (info->denseBelowAlways || !options.reader.hasBudget()))
    config.denseBelow = info->denseBelow;
  if (info->name == "duo") // every head is named
    return parseDuo(options, config, why) ? std::optional(config) : fail(why);
  config.fallback = options.reader.plan();
  if (info->name == "trianglemix")
    config.denseLayers = options.layers;
  config.denseMiddle = info->name == "longgen";
  return config;
}
