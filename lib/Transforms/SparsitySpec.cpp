//===- SparsitySpec.cpp - Parsing of -sparsify= ---------------------------===//

#include "prefill/Transforms/Patterns.h"
#include "prefill/Transforms/SparsityConfig.h"
#include "llvm/ADT/SmallVector.h"
#include "llvm/Support/MemoryBuffer.h"

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

/// What -sparsify without a name stands for. To be replaced by what the
/// frontier benchmark finds best; nothing else depends on it.
static constexpr StringRef automatic =
    "sampled:stride=8,threshold=0.95,dense-below=2048";

std::optional<SparsityConfig> prefill::parseSparsity(StringRef spec,
                                                     std::string &error) {
  auto fail = [&](const llvm::Twine &what) {
    error = ("-sparsify=" + spec + ": " + what).str();
    return std::nullopt;
  };
  if (spec.empty() || spec == "auto")
    return parseSparsity(automatic, error);
  auto [name, options] = spec.split(':');
  if (name == "config") {
    auto buffer = llvm::MemoryBuffer::getFile(options, /*IsText=*/true);
    if (!buffer)
      return fail("cannot read " + options + ": " +
                  buffer.getError().message());
    return parseSparsityJSON((*buffer)->getBuffer(), options, error);
  }
  const PatternInfo *info = findPattern(name);
  if (!info)
    return fail("unknown pattern '" + name + "'; there are auto, " +
                patternNames() + " and config:FILE");
  SparsityConfig config;
  PlanReader reader(*info);
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
    if (!reader.set(key, value, why))
      return fail(why);
  }
  if (config.denseBelow < 0 && (info->denseBelowAlways || !reader.hasBudget()))
    config.denseBelow = info->denseBelow;
  config.fallback = reader.plan();
  return config;
}
