//===- Patterns.h - Names and options of the patterns ------------*- C++ -*-==//
//
// One table says what every pattern is called, which options it has, their
// defaults, ranges and units. The command line (SparsitySpec.cpp),
// configuration files (SparsityJSON.cpp) and the manifest all read it.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_TRANSFORMS_PATTERNS_H
#define PREFILL_TRANSFORMS_PATTERNS_H

#include "prefill/Dialect/Prefill/HeadPlan.h"
#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/Support/JSON.h"

#include <optional>
#include <string>

namespace prefill {

/// What an option's number counts, which also says what it may be.
enum class OptionUnit {
  Tokens,         // a whole number
  PositiveTokens, // at least one
  Blocks,         // a whole number of key blocks
  PositiveBlocks, // at least one
  Rows64,         // 1 .. 64 query rows
  PowerOfTwo,     // of a tile's rows: least .. 64
  Bits,           // 4 or 8
  Switch,         // 0 or 1
  Share,          // in (0, 1]
  Fraction,       // in [0, 1]
  Below1          // in [0, 1)
};

/// One option of a pattern: a field of its plan.
struct PatternOption {
  llvm::StringRef name;       // as on the command line
  llvm::StringRef alias;      // another name for it, or empty
  int32_t HeadPlan::*integer; // the field, or null
  float HeadPlan::*real;      // the field, or null
  OptionUnit unit;
  double value; // the default, where its budget is the one in use
  /// Options of different nonzero budgets exclude each other; 1 is the one in
  /// use when none is given, and the others' fields are then 0.
  int budget = 0;
  int least = 2; // PowerOfTwo
};

/// A pattern as the user sees it; some are one runtime pattern with different
/// options.
struct PatternInfo {
  llvm::StringRef name;  // on the command line
  llvm::StringRef alias; // another name for it, or empty
  llvm::StringRef type;  // in JSON
  SparsePattern pattern;
  llvm::ArrayRef<PatternOption> options;
  /// Prompts with fewer keys run dense unless dense-below is given: always, or
  /// only while no option of a budget is given (-1: the cost function says).
  int32_t denseBelow = -1;
  bool denseBelowAlways = false;
};

/// Every pattern that one head can have, in the order of the manual.
llvm::ArrayRef<PatternInfo> patternTable();

/// The patterns that differ from layer to layer or head to head: only on the
/// command line. Their options are those of the heads that they make sparse.
llvm::ArrayRef<PatternInfo> layeredPatternTable();

/// The pattern called `name`, with '-' or '_', by any of its names; or null.
const PatternInfo *findPattern(llvm::StringRef name);
const PatternInfo *findLayeredPattern(llvm::StringRef name);

/// "dense, a-shape, ..."; with those of layeredPatternTable() if asked for.
std::string patternNames(bool layered = false);

/// Reads options of one head's pattern, one after another.
class PlanReader {
public:
  explicit PlanReader(const PatternInfo &info);
  /// Sets one option; false with a one-line `error` if there is no such one,
  /// the value is out of range or excludes an earlier one.
  bool set(llvm::StringRef name, double value, std::string &error);
  /// The plan with defaults for what was not given.
  HeadPlan plan() const;
  /// True when an option that says how much is kept was given.
  bool hasBudget() const { return budget != 0; }

private:
  const PatternInfo &info;
  HeadPlan result;
  uint32_t given = 0; // one bit per option of the table
  int budget = 0;     // of the options given
};

/// A pattern's plan with nothing but defaults.
HeadPlan defaultPlan(const PatternInfo &info);

/// `plan` as an object of a configuration file, which reads back to an equal
/// plan.
llvm::json::Object planToJSON(const HeadPlan &plan);

} // namespace prefill

#endif
