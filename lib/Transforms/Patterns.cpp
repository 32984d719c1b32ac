//===- Patterns.cpp - Names and options of the patterns -------------------===//

#include "prefill/Transforms/Patterns.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/Format.h"
#include "llvm/Support/raw_ostream.h"

#include <cmath>
#include <limits>

using namespace prefill;
using llvm::StringRef;

//===----------------------------------------------------------------------===//
// The table
//===----------------------------------------------------------------------===//

using Unit = OptionUnit;

/// SpargeAttn's guard goes with every pattern that selects blocks.
static constexpr PatternOption similarity = {
    "similarity", "", nullptr, &HeadPlan::similarity, Unit::Fraction, 0};

/// What the kernel leaves out on the way goes with every pattern, dense too.
static constexpr PatternOption skip = {"skip",          "",           nullptr,
                                       &HeadPlan::skip, Unit::Below1, 0};

// MInference, models_patch.py.
static constexpr PatternOption aShape[] = {
    {"init", "n_init", &HeadPlan::init, nullptr, Unit::Tokens, 128},
    {"local", "n_local", &HeadPlan::local, nullptr, Unit::Tokens, 3968}};
static constexpr PatternOption triShape[] = {
    {"init", "n_init", &HeadPlan::init, nullptr, Unit::Tokens, 128},
    {"local", "n_local", &HeadPlan::local, nullptr, Unit::Tokens, 3968},
    {"last", "n_last", &HeadPlan::last, nullptr, Unit::Tokens, 100}};
// DuoAttention's deployed sizes.
static constexpr PatternOption streaming[] = {
    {"init", "n_init", &HeadPlan::init, nullptr, Unit::Tokens, 64},
    {"local", "n_local", &HeadPlan::local, nullptr, Unit::Tokens, 256}};
// The density is measured (docs/SparseDefaults.md); the tokens are what
// MInference gives heads that its files do not name.
static constexpr PatternOption verticalSlash[] = {
    {"density", "", nullptr, &HeadPlan::density, Unit::Share, 0.25, 1},
    {"vertical", "", &HeadPlan::vertical, nullptr, Unit::Tokens, 1000, 2},
    {"slash", "", &HeadPlan::slash, nullptr, Unit::Tokens, 6096, 2},
    {"last", "", &HeadPlan::last, nullptr, Unit::Rows64, 64}};
static constexpr PatternOption blockTopK[] = {
    {"top-k", "", &HeadPlan::topK, nullptr, Unit::Blocks, 100, 1},
    {"density", "", nullptr, &HeadPlan::density, Unit::Share, 0.25, 2},
    similarity};
static constexpr PatternOption blockTopP[] = {
    {"threshold", "top-p", nullptr, &HeadPlan::topP, Unit::Share, 0.9, 1},
    similarity};
// The stride and threshold of the authors.
static constexpr PatternOption xattention[] = {
    {"stride", "", &HeadPlan::stride, nullptr, Unit::PowerOfTwo, 8},
    {"threshold", "tau", nullptr, &HeadPlan::topP, Unit::Share, 0.9, 1},
    similarity};
// Measured (docs/SparseDefaults.md).
static constexpr PatternOption sampled[] = {
    {"stride", "", &HeadPlan::stride, nullptr, Unit::PowerOfTwo, 8, 0, 1},
    {"threshold", "tau", nullptr, &HeadPlan::topP, Unit::Share, 0.9, 1},
    {"local", "", &HeadPlan::local, nullptr, Unit::Tokens, 64},
    {"values", "", &HeadPlan::values, nullptr, Unit::Switch, 1},
    similarity};
// SALE's regions. It calibrates a threshold per head from 0.008 down; one for
// all heads, and blocks of 64 x 64, want a larger one (docs/SparseDefaults.md).
static constexpr PatternOption sale[] = {
    {"threshold", "tau", nullptr, &HeadPlan::threshold, Unit::Share, 0.02, 1},
    {"top-p", "", nullptr, &HeadPlan::topP, Unit::Share, 0.9, 2},
    {"values", "", &HeadPlan::values, nullptr, Unit::Switch, 1, 2},
    {"bits", "", &HeadPlan::bits, nullptr, Unit::Bits, 8},
    {"stride", "", &HeadPlan::stride, nullptr, Unit::PowerOfTwo, 1, 0, 1},
    {"init", "", &HeadPlan::init, nullptr, Unit::Tokens, 32},
    {"local", "", &HeadPlan::local, nullptr, Unit::Tokens, 128},
    similarity};
// Its README's values.
static constexpr PatternOption flexPrefill[] = {
    {"gamma", "", nullptr, &HeadPlan::topP, Unit::Share, 0.9, 1},
    {"tau", "", nullptr, &HeadPlan::threshold, Unit::Fraction, 0.1},
    {"min-budget", "", &HeadPlan::minBudget, nullptr, Unit::Tokens, 512}};
// MiniCPM4's config.json.
static constexpr PatternOption infLLM[] = {
    {"top-k", "", &HeadPlan::topK, nullptr, Unit::Blocks, 64},
    {"init", "", &HeadPlan::init, nullptr, Unit::Tokens, 64},
    {"window", "local", &HeadPlan::local, nullptr, Unit::Tokens, 2048},
    similarity};
static constexpr PatternOption strided[] = {
    {"init", "", &HeadPlan::init, nullptr, Unit::Tokens, 64},
    {"local", "", &HeadPlan::local, nullptr, Unit::Tokens, 1024},
    {"stride", "", &HeadPlan::stride, nullptr, Unit::PositiveBlocks, 8}};
// MMInference's lines; one share for all heads instead of its search.
static constexpr PatternOption grid[] = {
    {"threshold", "tau", nullptr, &HeadPlan::topP, Unit::Share, 0.9, 1},
    {"stride", "", &HeadPlan::stride, nullptr, Unit::PositiveTokens, 64, 2},
    {"init", "", &HeadPlan::init, nullptr, Unit::Tokens, 64},
    {"last", "", &HeadPlan::last, nullptr, Unit::Rows64, 64},
    {"vline", "", &HeadPlan::vertical, nullptr, Unit::Switch, 1},
    {"hline", "", &HeadPlan::horizontal, nullptr, Unit::Switch, 1},
    {"slash", "", &HeadPlan::slash, nullptr, Unit::Switch, 1}};
// MMInference's smallest budget, with what vertical-slash always keeps.
static constexpr PatternOption boundary[] = {
    {"vertical", "", &HeadPlan::vertical, nullptr, Unit::Tokens, 1000},
    {"slash", "", &HeadPlan::slash, nullptr, Unit::Tokens, 1024},
    {"init", "", &HeadPlan::init, nullptr, Unit::Tokens, 30},
    {"local", "", &HeadPlan::local, nullptr, Unit::Tokens, 100},
    {"last", "", &HeadPlan::last, nullptr, Unit::Rows64, 64}};

llvm::ArrayRef<PatternInfo> prefill::patternTable() {
  using P = SparsePattern;
  // Below 2,048 keys the default budgets lose passkeys
  // (docs/SparseDefaults.md); SALE and InfLLM v2 name their own lengths; below
  // 8,192 looking for a grid in vain costs more than 7 % of dense attention.
  static const PatternInfo table[] = {
      {"dense", "", "dense", P::Dense, {}},
      {"a-shape", "stream_llm", "a_shape", P::AShape, aShape},
      {"streaming", "", "streaming", P::AShape, streaming},
      {"tri-shape", "", "tri_shape", P::TriShape, triShape},
      {"strided", "", "strided", P::Strided, strided},
      {"vertical-slash", "vertical-and-slash", "vertical_and_slash",
       P::VerticalSlash, verticalSlash, 2048},
      {"block-topk", "block-sparse", "block_sparse", P::BlockSparse, blockTopK},
      {"block-topp", "", "block_topp", P::BlockSparse, blockTopP, 2048},
      {"xattention", "", "xattention", P::XAttention, xattention, 2048},
      {"sampled", "", "sampled", P::Sampled, sampled, 2048},
      {"sale", "", "sale", P::SALE, sale, 1024},
      {"flexprefill", "", "flexprefill", P::FlexPrefill, flexPrefill, 2048},
      {"infllm-v2", "", "infllm_v2", P::InfLLMv2, infLLM, 8192, true},
      {"grid", "", "grid", P::Grid, grid, 8192},
      {"q-boundary", "", "q_boundary", P::QBoundary, boundary},
      {"2d-boundary", "", "2d_boundary", P::TwoDBoundary, boundary},
  };
  return table;
}

// Its authors' script: prompts attend densely in the first 16 layers.
static constexpr PatternOption triangleMix[] = {
    {"init", "", &HeadPlan::init, nullptr, Unit::Tokens, 8},
    {"local", "", &HeadPlan::local, nullptr, Unit::Tokens, 512},
    {"last", "", &HeadPlan::last, nullptr, Unit::Tokens, 128}};

llvm::ArrayRef<PatternInfo> prefill::layeredPatternTable() {
  using P = SparsePattern;
  static const PatternInfo table[] = {
      {"duo", "", "", P::AShape, streaming},
      {"trianglemix", "", "", P::TriShape, triangleMix},
      {"longgen", "", "", P::Strided, strided},
  };
  return table;
}

/// Equal, '-' and '_' being the same.
static bool sameName(StringRef a, StringRef b) {
  return a.size() == b.size() && llvm::all_of(llvm::zip(a, b), [](auto pair) {
           auto [x, y] = pair;
           return x == y || ((x == '-' || x == '_') && (y == '-' || y == '_'));
         });
}

static const PatternInfo *find(llvm::ArrayRef<PatternInfo> table,
                               StringRef name) {
  for (const PatternInfo &info : table)
    if (!name.empty() &&
        (sameName(name, info.name) || sameName(name, info.alias) ||
         sameName(name, info.type)))
      return &info;
  return nullptr;
}

const PatternInfo *prefill::findPattern(StringRef name) {
  return find(patternTable(), name);
}

const PatternInfo *prefill::findLayeredPattern(StringRef name) {
  return find(layeredPatternTable(), name);
}

std::string prefill::patternNames(bool layered) {
  std::string names;
  auto add = [&](llvm::ArrayRef<PatternInfo> table) {
    for (const PatternInfo &info : table)
      names += (names.empty() ? "" : ", ") + info.name.str();
  };
  add(patternTable());
  if (layered)
    add(layeredPatternTable());
  return names;
}

//===----------------------------------------------------------------------===//
// Options
//===----------------------------------------------------------------------===//

static void store(HeadPlan &plan, const PatternOption &option, double value) {
  if (option.integer)
    plan.*option.integer = static_cast<int32_t>(value);
  else
    plan.*option.real = static_cast<float>(value);
}

/// What a value of `option` must be, when `value` is not.
static std::string outOfRange(const PatternOption &option, double value) {
  auto whole = [&](double least, double most) {
    return value == std::trunc(value) && value >= least && value <= most;
  };
  const double most = std::numeric_limits<int32_t>::max();
  switch (option.unit) {
  case Unit::Tokens:
    return whole(0, most) ? "" : "a whole number of tokens";
  case Unit::Blocks:
    return whole(0, most) ? "" : "a whole number of blocks";
  case Unit::PositiveTokens:
    return whole(1, most) ? "" : "a positive number of tokens";
  case Unit::PositiveBlocks:
    return whole(1, most) ? "" : "a positive number of blocks";
  case Unit::Rows64:
    if (!whole(1, most))
      return "a positive number of query rows";
    return value <= 64 ? "" : "at most 64 query rows";
  case Unit::PowerOfTwo: {
    std::string list;
    for (int power = option.least; power <= 64; power *= 2) {
      if (value == power)
        return "";
      list += (power == option.least ? ""
               : power == 64         ? " or "
                                     : ", ") +
              std::to_string(power);
    }
    return list;
  }
  case Unit::Bits:
    return value == 4 || value == 8 ? "" : "4 or 8";
  case Unit::Switch:
    return value == 0 || value == 1 ? "" : "0 or 1";
  case Unit::Share:
    // The plan holds floats: what would be 0 there is no share.
    return static_cast<float>(value) > 0 && value <= 1 ? "" : "in (0, 1]";
  case Unit::Fraction:
    return value >= 0 && value <= 1 ? "" : "in [0, 1]";
  case Unit::Below1:
    return value >= 0 && static_cast<float>(value) < 1 ? "" : "in [0, 1)";
  }
  return "";
}

PlanReader::PlanReader(const PatternInfo &info) : info(info) {}

bool PlanReader::set(StringRef name, double value, std::string &error) {
  if (name == skip.name) {
    if (std::string range = outOfRange(skip, value); !range.empty()) {
      error = name.str() + " must be " + range;
      return false;
    }
    store(result, skip, value);
    return true;
  }
  for (const auto &[index, option] : llvm::enumerate(info.options)) {
    if (!sameName(name, option.name) &&
        (option.alias.empty() || !sameName(name, option.alias)))
      continue;
    if (std::string range = outOfRange(option, value); !range.empty()) {
      error = name.str() + " must be " + range;
      return false;
    }
    if (option.budget && budget && budget != option.budget) {
      auto names = [&](int group) {
        return llvm::join(
            llvm::map_range(
                llvm::make_filter_range(info.options,
                                        [=](const PatternOption &each) {
                                          return each.budget == group;
                                        }),
                [](const PatternOption &each) { return each.name.str(); }),
            " and ");
      };
      error = "give either " + names(1) + " or " + names(2) + ", not both";
      return false;
    }
    if (option.budget)
      budget = option.budget;
    given |= 1u << index;
    store(result, option, value);
    return true;
  }
  error = "unknown option '" + name.str() + "'; " +
          (info.options.empty()
               ? info.name.str() + " has none"
               : "this pattern has " +
                     llvm::join(llvm::map_range(info.options,
                                                [](const PatternOption &o) {
                                                  return o.name.str();
                                                }),
                                ", "));
  return false;
}

HeadPlan PlanReader::plan() const {
  HeadPlan plan = result;
  plan.pattern = info.pattern;
  for (const auto &[index, option] : llvm::enumerate(info.options))
    if (!(given >> index & 1) &&
        (!option.budget || option.budget == std::max(budget, 1)))
      store(plan, option, option.value);
  return plan;
}

HeadPlan prefill::defaultPlan(const PatternInfo &info) {
  return PlanReader(info).plan();
}

//===----------------------------------------------------------------------===//
// JSON
//===----------------------------------------------------------------------===//

/// The shortest decimal number that reads back as `value`.
static double shortest(float value) {
  for (int digits = 1; digits <= 9; ++digits) {
    std::string text;
    llvm::raw_string_ostream(text) << llvm::format("%.*g", digits, value);
    double decimal;
    if (!StringRef(text).getAsDouble(decimal) &&
        static_cast<float>(decimal) == value)
      return decimal;
  }
  return value;
}

/// True when `info` is the pattern that a user would call `plan`.
static bool describes(const PatternInfo &info, const HeadPlan &plan) {
  if (info.pattern != plan.pattern)
    return false;
  // Both kinds of block-sparse have a name; which it is shows in the budget.
  if (plan.pattern != SparsePattern::BlockSparse)
    return true;
  bool byShare = llvm::any_of(info.options, [](const PatternOption &option) {
    return option.real == &HeadPlan::topP;
  });
  return byShare == (plan.topP > 0);
}

llvm::json::Object prefill::planToJSON(const HeadPlan &plan) {
  const PatternInfo *info =
      llvm::find_if(patternTable(), [&](const PatternInfo &each) {
        return describes(each, plan);
      });
  llvm::json::Object object{{"type", info->type}};
  // Of alternative budgets the one in use; if all are 0 it is one that may be.
  int budget = 0;
  for (const PatternOption &option : info->options)
    if (option.budget && option.real && plan.*option.real != 0)
      budget = option.budget;
  for (const PatternOption &option : info->options)
    if (option.budget && option.integer && !budget)
      budget = option.budget;
  for (const PatternOption &option : info->options) {
    if (option.budget && option.budget != budget)
      continue;
    // The guard is off unless asked for.
    if (option.real == &HeadPlan::similarity && plan.similarity == 0)
      continue;
    // In files the papers' names are in use where they differ.
    bool paper = option.alias == "tau" || option.alias.starts_with("n_");
    std::string key = (paper ? option.alias : option.name).str();
    std::replace(key.begin(), key.end(), '-', '_');
    if (option.integer)
      object[key] = plan.*option.integer;
    else
      object[key] = shortest(plan.*option.real);
  }
  if (plan.skip != 0)
    object["skip"] = shortest(plan.skip);
  return object;
}
