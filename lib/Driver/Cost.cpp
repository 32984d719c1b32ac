//===- Cost.cpp - prefill-opt cost: what a prefill will take --------------===//
//
// Runs the passes that the options ask for one after the other and prints what
// a run costs after each: CostModel.cpp on the graph, runtime/src/cost.c for
// attention.
//
//===----------------------------------------------------------------------===//

#include "Compositions.h"
#include "CostModel.h"
#include "DriverParts.h"
#include "prefill/Analysis/AttentionSite.h"
#include "prefill/Driver/Driver.h"
#include "prefill/Driver/Outline.h"
#include "prefill/Transforms/Passes.h"
#include "prefill/Transforms/Pruning.h"
#include "prefill/pack.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/Format.h"
#include "llvm/Support/JSON.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/Threading.h"

using namespace mlir;
using namespace prefill;

//===----------------------------------------------------------------------===//
// Options
//===----------------------------------------------------------------------===//

static bool parseTokens(StringRef text, std::vector<int64_t> &tokens,
                        std::string &error) {
  SmallVector<StringRef> parts;
  text.split(parts, ',');
  for (StringRef part : parts) {
    int64_t value = 0;
    // A prompt of more tokens than this fits no runtime.
    if (part.trim().getAsInteger(10, value) || value < 1 ||
        value > (int64_t(1) << 30)) {
      error = text.empty() ? "cost needs the lengths of prompts: -tokens=1024"
                           : "-tokens=" + text.str() +
                                 ": expected positive numbers of tokens, "
                                 "separated by commas";
      return false;
    }
    tokens.push_back(value);
  }
  return true;
}

static bool parseDevice(StringRef text, CostDevice &device,
                        std::string &error) {
  auto [name, options] = text.split(':');
  std::string names;
  const prefill_device *found = nullptr;
  for (size_t i = 0; const prefill_device *known = prefill_device_at(i); ++i) {
    if (name == known->name || (known->other && name == known->other))
      found = known;
    names += (i ? ", " : "") + std::string(known->name);
    if (known->other)
      names += " (" + std::string(known->other) + ")";
  }
  if (!found) {
    error = "-device=" + text.str() + ": unknown device; known are " + names;
    return false;
  }
  device.rates = *found;
  if (found->per_thread)
    device.threads =
        std::max(1u, llvm::hardware_concurrency().compute_thread_count());
  SmallVector<StringRef> parts;
  options.split(parts, ',', -1, /*KeepEmpty=*/false);
  for (StringRef part : parts) {
    auto [key, value] = part.split('=');
    double number = 0;
    bool known = key == "gflops" || key == "gbps" ||
                 (key == "threads" && found->per_thread);
    if (!known || value.getAsDouble(number) || !(number > 0) || number > 1e12) {
      error = "-device=" + text.str() + ": expected " +
              (found->per_thread ? "threads=N, gflops=N" : "gflops=N") +
              " or gbps=N with positive numbers, got '" + part.str() + "'";
      return false;
    }
    // Attention keeps its ratio to linear layers.
    if (key == "gflops") {
      double factor = number * 1e9 / device.rates.linear;
      device.rates.linear *= factor;
      device.rates.attention *= factor;
      device.rates.narrow *= factor;
    } else if (key == "gbps") {
      device.rates.bytes = number * 1e9;
    } else {
      device.threads = std::max<int64_t>(1, int64_t(number));
    }
  }
  return true;
}

static bool parseDims(ArrayRef<std::string> dims, CostSizes &sizes,
                      std::string &error) {
  for (StringRef dim : dims) {
    auto [name, value] = dim.rsplit('=');
    int64_t size = 0;
    if (name.empty() || value.getAsInteger(10, size) || size < 0) {
      error = "-dim=" + dim.str() + ": expected NAME=N";
      return false;
    }
    sizes.given[name] = size;
  }
  return true;
}

//===----------------------------------------------------------------------===//
// Stages
//===----------------------------------------------------------------------===//

namespace {
/// One row of the table.
struct Row {
  std::string tokens, transform;
  GraphCost cost;
};

class Predictor {
public:
  Predictor(const CompilerOptions &options, MLIRContext &context,
            ModuleOp module)
      : options(options), context(context), module(module) {}

  CostDevice device;
  CostSizes sizes;
  std::vector<int64_t> tokens;
  int64_t chunk = 0;               ///< rows; 0: off
  std::optional<PruneSpec> groups; ///< QuickPrefill
  int64_t query = 0;               ///< its question's rows
  std::vector<Row> rows;
  std::vector<std::string> notes;

  /// False after an error was printed.
  bool run() {
    std::vector<SiteReport> sites;
    if (!measure("as exported"))
      return false;
    sizes.original = false;
    if (!raise(context, module, options, sites))
      return false;
    size_t raised = llvm::count_if(
        sites, [](const SiteReport &site) { return site.raised; });
    if (raised < sites.size())
      notes.push_back(std::to_string(sites.size() - raised) + " of " +
                      std::to_string(sites.size()) +
                      " attentions stay as exported: prefill-opt inspect");
    size_t exported = rows.size();
    if (!measure("attention raised"))
      return false;
    // The cache that the model needs does not depend on how it was written.
    for (size_t i = 0; i < exported; ++i)
      rows[i].cost.kv = rows[exported + i].cost.kv;
    if (!runRows())
      return false;
    if (options.sparsify == "dense")
      return true;
    // Sizes are read off the dense graph, patterns off the sparse one.
    OwningOpRef<ModuleOp> sparse(module.clone());
    if (!runPasses(context, *sparse, [&](OpPassManager &pm) {
          buildSparsifyPipeline(pm, options);
        }))
      return false;
    return measure("-sparsify=" + options.sparsify, *sparse);
  }

private:
  const CompilerOptions &options;
  MLIRContext &context;
  ModuleOp module;

  /// The transforms of rows, one by one as far as they are passes of their own.
  bool runRows() {
    LivenessReport report;
    ChunkReport chunks;
    auto step = [&](const CompilerOptions &now) {
      return runPasses(context, module, [&](OpPassManager &pm) {
        buildRowPipeline(pm, now, report, chunks);
      });
    };
    CompilerOptions rest = options;
    if (options.shareKV) {
      CompilerOptions only = options;
      only.rowLiveness = false;
      only.pack = only.chunk = "off";
      only.prune.clear();
      if (!step(only) || !measure("-share-kv=detect"))
        return false;
      rest.shareKV = false;
    }
    if (options.pack != "off") {
      CompilerOptions only = rest;
      only.rowLiveness = false;
      if (!step(only) || !measure("-pack=" + options.pack))
        return false;
      rest.pack = "off";
    }
    if (chunk) {
      CompilerOptions only = rest;
      only.rowLiveness = false;
      if (!step(only) || !measure(groups ? "-prune=" + options.prune
                                         : "-chunk=" + options.chunk))
        return false;
      rest.chunk = "off";
      if (groups)
        rest.prune.clear();
    }
    if (!rest.prune.empty()) {
      CompilerOptions only = rest;
      only.rowLiveness = false;
      if (!step(only) || !measure("-prune=" + options.prune))
        return false;
      rest.prune.clear();
      rest.logits = "all"; // They are selected already.
    }
    return step(rest) &&
           (!options.rowLiveness ||
            measure("row liveness" + (options.logits == "all"
                                          ? ""
                                          : ", -logits=" + options.logits)));
  }

  /// Specifications of the kernels of all attentions of `from`, in order.
  bool specsOf(ModuleOp from, std::vector<KernelSpec> &specs) {
    OwningOpRef<ModuleOp> copy(from.clone());
    OutlineResult outlined;
    std::string error;
    if (!outlineAttention(*copy, /*stats=*/false, outlined, error)) {
      fail(options.input + ": " + error);
      return false;
    }
    for (const OutlinedAttention &attention : outlined.attentions)
      for (const KernelSpec &spec : outlined.kernels)
        if (spec.name == attention.kernel)
          specs.push_back(spec);
    return true;
  }

  bool hasInput(StringRef name) {
    return llvm::any_of(onnx::getMainGraph(module).getInputs(),
                        [&](Attribute entry) {
                          return onnx::getEntryName(entry).getValue() == name;
                        });
  }

  bool costAt(const CostSizes &at, ArrayRef<KernelSpec> specs,
              GraphCost &total) {
    GraphCost cost;
    std::string error;
    if (!costOf(onnx::getMainGraph(module), at, specs, device, cost, error)) {
      fail(options.input + ": " + error);
      return false;
    }
    total.add(cost);
    return true;
  }

  /// Adds `times` runs of a chunk to `total`: one cache, and one attention a
  /// layer.
  static void join(GraphCost &piece, GraphCost &total, double times) {
    std::vector<AttentionCost> attentions = std::move(piece.attentions);
    piece.attentions.clear();
    total.kv = 0;
    total.add(piece, times);
    if (total.attentions.empty()) {
      total.attentions = attentions;
      for (AttentionCost &mine : total.attentions) {
        mine.rows = 0;
        mine.flops = mine.visited = 0;
      }
    }
    for (auto [mine, more] : llvm::zip_equal(total.attentions, attentions)) {
      double before = double(mine.rows), added = times * double(more.rows);
      mine.visited = (mine.visited * before + more.visited * added) /
                     std::max(1.0, before + added);
      mine.rows += int64_t(added);
      mine.keys = std::max(mine.keys, more.keys);
      mine.flops += times * more.flops;
      mine.sparse = std::max(mine.sparse, more.sparse);
    }
  }

  /// A prompt of `length` tokens, in chunks where the model takes them. Of very
  /// many chunks some stand for their neighbours.
  bool costPrompt(int64_t length, ArrayRef<KernelSpec> specs,
                  GraphCost &total) {
    CostSizes at = sizes;
    at.tokens = length;
    if (!hasInput("cache_slots"))
      return costAt(at, specs, total);
    // QuickPrefill's question is the last chunk; of the others rows go.
    const int64_t query = groups ? std::min(length, this->query) : 0;
    auto held = [&](int64_t rows) {
      return groups ? groups->keptOf(rows) : rows;
    };
    const int64_t read = length - query;
    int64_t whole = read / chunk, group = std::max<int64_t>(1, whole / 64);
    const int64_t rest = read % chunk, before = whole * held(chunk);
    at.capacity = before + held(rest) + query;
    auto one = [&](int64_t begin, int64_t rows, double times) {
      at.past = begin;
      at.tokens = rows;
      at.segments = {rows};
      GraphCost piece;
      if (!costAt(at, specs, piece))
        return false;
      join(piece, total, times);
      return true;
    };
    for (int64_t i = 0; i < whole; i += group) {
      int64_t here = std::min(group, whole - i);
      if (!one((i + here / 2) * held(chunk), chunk, double(here)))
        return false;
    }
    return (rest == 0 || one(before, rest, 1)) &&
           (query == 0 || one(before + held(rest), query, 1));
  }

  bool measure(const std::string &transform, ModuleOp patterns = {}) {
    std::vector<KernelSpec> specs;
    if (!specsOf(patterns ? patterns : module, specs))
      return false;
    if (options.pack != "off")
      return measureBatch(transform, specs);
    for (int64_t length : tokens) {
      Row row{std::to_string(length), transform, {}};
      if (!costPrompt(length, specs, row.cost))
        return false;
      tellSparse(row);
      rows.push_back(std::move(row));
    }
    return true;
  }

  /// With -pack the lengths are prompts of one batch: padded to the longest
  /// before the pass, in packs after it.
  bool measureBatch(const std::string &transform, ArrayRef<KernelSpec> specs) {
    Row row{std::to_string(tokens.size()) + " prompts", transform, {}};
    CostSizes at = sizes;
    if (!hasInput("segment_starts")) {
      at.batch = tokens.size();
      at.tokens = *llvm::max_element(tokens);
      row.transform += ", padded batch";
      if (!costAt(at, specs, row.cost))
        return false;
      rows.push_back(std::move(row));
      return true;
    }
    prefill_context host{};
    prefill_pack_options how{};
    how.algorithm =
        options.pack == "exact" ? PREFILL_PACK_EXACT : PREFILL_PACK_FFD;
    std::vector<int64_t> prompts(tokens.size()), starts(tokens.size() + 1);
    prefill_pack_result plan{prompts.data(), starts.data(), 0, 1};
    if (prefill_pack_plan(&host, tokens.data(), tokens.size(), &how, &plan) !=
        PREFILL_OK) {
      fail("-pack=" + options.pack + ": " + host.message);
      return false;
    }
    for (size_t pack = 0; pack < plan.packs; ++pack) {
      at.segments.clear();
      at.tokens = 0;
      for (int64_t i = starts[pack]; i < starts[pack + 1]; ++i) {
        at.segments.push_back(tokens[prompts[i]]);
        at.tokens += at.segments.back();
      }
      if (!costAt(at, specs, row.cost))
        return false;
    }
    if (rows.size() && rows.back().transform != transform && notes.empty())
      notes.push_back(packNote(plan));
    tellSparse(row);
    rows.push_back(std::move(row));
    return true;
  }

  std::string packNote(const prefill_pack_result &plan) {
    std::string text;
    llvm::raw_string_ostream os(text);
    if (plan.gain < PREFILL_PACK_MIN_GAIN)
      os << llvm::format("packing is refused: a padded batch has only %.3f "
                         "times the rows (%g is the least gain)",
                         plan.gain, PREFILL_PACK_MIN_GAIN);
    else
      os << llvm::format("%zu packs; a padded batch has %.2f times the rows",
                         plan.packs, plan.gain);
    return text;
  }

  /// Says where patterns are refused because they would not pay.
  void tellSparse(const Row &row) {
    int64_t asked = 0, sparse = 0;
    for (const AttentionCost &attention : row.cost.attentions) {
      asked += attention.asked;
      sparse += attention.sparse;
    }
    if (sparse < asked)
      notes.push_back(row.tokens + ": " + std::to_string(asked - sparse) +
                      " of " + std::to_string(asked) +
                      " heads run dense, where the pattern would not pay");
  }
};
} // namespace

//===----------------------------------------------------------------------===//
// Report
//===----------------------------------------------------------------------===//

static void printTable(raw_ostream &os, const Predictor &p,
                       const CompilerOptions &options) {
  std::vector<std::array<std::string, 11>> cells = {
      {"tokens", "transform", "linear", "attention", "head", "moved", "KV",
       "peak", "time", "", "visited"}};
  cells.push_back({"", "", "GFLOP", "GFLOP", "GFLOP", "GB", "MB", "MB",
                   "seconds", "bound", "blocks"});
  auto number = [](double value, int digits) {
    std::string text;
    llvm::raw_string_ostream(text) << llvm::format("%.*f", digits, value);
    return text;
  };
  std::string uncounted;
  for (const Row &row : p.rows) {
    const GraphCost &c = row.cost;
    double visited = 0, total = 0;
    for (const AttentionCost &attention : c.attentions) {
      double weight = double(attention.rows) * double(attention.keys);
      visited += attention.visited * weight;
      total += weight;
    }
    cells.push_back(
        {row.tokens, row.transform, number(c.linear / 1e9, 2),
         number(c.attention / 1e9, 2), number(c.head / 1e9, 2),
         number(c.bytes / 1e9, 2), number(c.kv / 1e6, 1),
         number(c.peak / 1e6, 0), number(c.seconds, c.seconds < 0.1 ? 4 : 2),
         c.computing * 2 >= c.seconds ? "compute" : "memory",
         total > 0 ? number(100 * visited / total, 1) + " %" : "-"});
    if (c.uncounted && uncounted.empty())
      uncounted = row.transform + ": " + std::to_string(c.uncounted) +
                  " operators are not counted, the first " + c.firstUncounted;
  }
  std::array<size_t, 11> widths{};
  for (const auto &row : cells)
    for (size_t i = 0; i < row.size(); ++i)
      widths[i] = std::max(widths[i], row[i].size());
  os << llvm::sys::path::filename(options.input) << " on "
     << p.device.rates.name;
  if (p.device.rates.per_thread)
    os << ", " << p.device.threads << " threads";
  os << " (" << p.device.rates.source << ")\n";
  for (const auto &row : cells) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      bool left = i < 2 || i == 9;
      std::string pad(widths[i] - row[i].size(), ' ');
      line += (i ? "  " : "") + (left ? row[i] + pad : pad + row[i]);
    }
    os << StringRef(line).rtrim() << "\n";
  }
  for (const std::string &note : p.notes)
    os << note << "\n";
  if (!uncounted.empty())
    os << uncounted << "\n";
}

static void printJSON(raw_ostream &out, const Predictor &p,
                      const CompilerOptions &options) {
  llvm::json::OStream os(out, 2);
  os.object([&] {
    os.attribute("model", llvm::sys::path::filename(options.input));
    os.attributeObject("device", [&] {
      os.attribute("name", p.device.rates.name);
      os.attribute("threads", p.device.threads);
      os.attribute("measured", p.device.rates.measured != 0);
      os.attribute("source", p.device.rates.source);
      os.attribute("linear_flops", p.device.linear());
      os.attribute("bytes_per_second", p.device.bytes(HUGE_VAL));
    });
    os.attributeArray("rows", [&] {
      for (const Row &row : p.rows)
        os.object([&] {
          const GraphCost &c = row.cost;
          // Of a pack it is the number of prompts, in words.
          if (int64_t tokens; !StringRef(row.tokens).getAsInteger(10, tokens))
            os.attribute("tokens", tokens);
          else
            os.attribute("batch", row.tokens);
          os.attribute("transform", row.transform);
          os.attributeObject("flops", [&] {
            os.attribute("linear", c.linear);
            os.attribute("attention", c.attention);
            os.attribute("head", c.head);
          });
          os.attribute("bytes", c.bytes);
          os.attribute("kv_bytes", c.kv);
          os.attribute("weight_bytes", c.weights);
          os.attribute("peak_bytes", c.peak);
          os.attribute("seconds", c.seconds);
          os.attribute("compute_seconds", c.computing);
          os.attribute("not_counted", c.uncounted);
          os.attributeArray("attentions", [&] {
            for (const AttentionCost &a : c.attentions)
              os.object([&] {
                os.attribute("layer", a.layer);
                os.attribute("rows", a.rows);
                os.attribute("keys", a.keys);
                os.attribute("flops", a.flops);
                os.attribute("visited", a.visited);
                os.attribute("sparse_heads", a.sparse);
              });
          });
        });
    });
    os.attributeArray("notes", [&] {
      for (const std::string &note : p.notes)
        os.value(note);
    });
  });
  out << "\n";
}

int prefill::cost(const CompilerOptions &given) {
  CompilerOptions options = given;
  options.emit = EmitKind::Sparse; // No output folder is asked for.
  takeCalibratedPlan(options);
  std::string error;
  if (!options.parallelEncode.empty())
    return fail("cost does not know -parallel-encode: its time depends on how "
                "many contexts there are and which are in a store");
  std::vector<int64_t> tokens;
  CostDevice device;
  CostSizes sizes;
  if (!validate(options, error) ||
      !parseTokens(options.tokens, tokens, error) ||
      !parseDevice(options.device, device, error) ||
      !parseDims(options.dims, sizes, error))
    return fail(error);
  applyPruning(options);
  // A prompt's rows are those of aux=off.
  const bool revives = revivesRows(options.prune);
  if (revives)
    options.prune.replace(options.prune.find("aux=on"), 6, "aux=off");
  std::unique_ptr<MLIRContext> context = makeContext(options);
  OwningOpRef<ModuleOp> module = load(*context, options.input);
  if (!module)
    return 1;
  if (!onnx::getMainGraph(*module))
    return fail(options.input + ": cost needs a model, this has no graph");
  Predictor predictor(options, *context, *module);
  predictor.device = device;
  predictor.sizes = sizes;
  predictor.tokens = tokens;
  if (revives)
    predictor.notes.push_back("aux=on: the prompt alone, without the copies of "
                              "its state");
  predictor.chunk = parseChunk(options.chunk, error).value_or(0);
  if (isQuickPrefill(options.prune)) {
    ProtectSpec protection;
    predictor.groups.emplace();
    (void)parsePruneSpec(options.prune, *predictor.groups, error);
    (void)parseProtectSpec(options.protect, protection, error);
    predictor.query = queryRows(*predictor.groups, protection);
  }
  if (!predictor.run())
    return 1;
  return writeText(options.output, [&](raw_ostream &os) {
    if (options.json)
      printJSON(os, predictor, options);
    else
      printTable(os, predictor, options);
  });
}
