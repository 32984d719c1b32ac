//===- Cost.cpp - prefill-opt cost: what a prefill will take --------------===//
//
// Runs the passes that the options ask for one after the other and prints what
// a run costs after each: CostModel.cpp on the graph, runtime/src/cost.c for
// attention.
//
//===----------------------------------------------------------------------===//

#include "Compositions.h"
#include "CostReport.h"
#include "DriverParts.h"
#include "prefill/Analysis/AttentionSite.h"
#include "prefill/Driver/Driver.h"
#include "prefill/Driver/Outline.h"
#include "prefill/Transforms/Passes.h"
#include "prefill/Transforms/Pruning.h"
#include "prefill/pack.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/Format.h"
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

namespace {
/// What a prompt of -parallel-encode consists of: `count` contexts of about the
/// same length between `prefix` and `query` rows.
struct Contexts {
  int64_t count = 4, prefix = 32, query = 64;
};
} // namespace

/// `4` or `4:prefix=32,query=64`.
static bool parseContexts(StringRef text, Contexts &contexts,
                          std::string &error) {
  if (text.empty())
    return true;
  auto [count, options] = text.split(':');
  bool good = !count.getAsInteger(10, contexts.count);
  SmallVector<StringRef> parts;
  options.split(parts, ',', -1, /*KeepEmpty=*/false);
  for (StringRef part : parts) {
    auto [key, value] = part.split('=');
    int64_t *number = key == "prefix"  ? &contexts.prefix
                      : key == "query" ? &contexts.query
                                       : nullptr;
    good = good && number && !value.getAsInteger(10, *number);
  }
  for (int64_t number : {contexts.count, contexts.prefix, contexts.query})
    good = good && number >= 1 && number <= (int64_t(1) << 30);
  if (!good)
    error = "-contexts=" + text.str() +
            ": expected their number, and with it the rows of prefix and "
            "question, as in 4:prefix=32,query=64";
  return good;
}

//===----------------------------------------------------------------------===//
// Stages
//===----------------------------------------------------------------------===//

namespace {
class Predictor : public CostReport {
public:
  Predictor(const CompilerOptions &options, MLIRContext &context,
            ModuleOp module)
      : options(options), context(context), module(module) {}

  CostSizes sizes;
  std::vector<int64_t> tokens;
  int64_t chunk = 0;                ///< rows; 0: off
  std::optional<PruneSpec> groups;  ///< QuickPrefill
  int64_t query = 0;                ///< its question's rows
  std::optional<Contexts> contexts; ///< of -parallel-encode

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
  bool stored = false; ///< the contexts

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
      const std::string name =
          groups     ? "-prune=" + options.prune
          : contexts ? "-parallel-encode=" + options.parallelEncode
                     : "-chunk=" + options.chunk;
      if (!step(only) || !measure(name))
        return false;
      rest.chunk = "off";
      rest.parallelEncode.clear();
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
    if (!step(rest) ||
        (options.rowLiveness &&
         !measure("row liveness" + (options.logits == "all"
                                        ? ""
                                        : ", -logits=" + options.logits))))
      return false;
    stored = true;
    return !contexts || measure("all contexts from the store");
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

  /// A prompt whose contexts are encoded one by one behind its prefix, if they
  /// are not `stored`, and then its question. Keys and values of prefix and
  /// contexts are copied to their places in the cache.
  bool costContexts(int64_t length, ArrayRef<KernelSpec> specs,
                    GraphCost &total) {
    const int64_t ours = contexts->prefix + contexts->query;
    const int64_t read = length - ours;
    if (read < contexts->count) {
      fail("-tokens=" + std::to_string(length) + ": a prefix of " +
           std::to_string(contexts->prefix) + ", a question of " +
           std::to_string(contexts->query) + " and " +
           std::to_string(contexts->count) +
           " contexts take more; give others with -contexts");
      return false;
    }
    CostSizes at = sizes;
    at.capacity = length;
    auto run = [&](int64_t past, int64_t rows, bool asks) {
      for (int64_t begin = 0; begin < rows; begin += chunk) {
        at.past = past + begin;
        at.tokens = std::min(chunk, rows - begin);
        at.segments = {at.tokens};
        at.contexts = asks ? read : 0;
        at.logits = int64_t(asks && begin + at.tokens == rows);
        GraphCost piece;
        if (!costAt(at, specs, piece))
          return false;
        join(piece, total, 1);
      }
      return true;
    };
    if (!stored && contexts->prefix && !run(0, contexts->prefix, false))
      return false;
    for (int64_t i = 0; !stored && i < contexts->count; ++i)
      if (!run(contexts->prefix, (read + i) / contexts->count, false))
        return false;
    if (!run(contexts->prefix, contexts->query, true))
      return false;
    const double copied =
        2 * total.kv * double(length - contexts->query) / double(length);
    total.bytes += copied;
    total.seconds += copied / device.bytes(copied);
    return true;
  }

  /// A prompt of `length` tokens, in chunks where the model takes them. Of very
  /// many chunks some stand for their neighbours.
  bool costPrompt(int64_t length, ArrayRef<KernelSpec> specs,
                  GraphCost &total) {
    CostSizes at = sizes;
    at.tokens = length;
    if (!hasInput("cache_slots"))
      return costAt(at, specs, total);
    if (hasInput("context_slots"))
      return costContexts(length, specs, total);
    // QuickPrefill's question is the last chunk; of the others rows go.
    const int64_t query = groups ? std::min(length, this->query) : 0;
    const auto layers = static_cast<int64_t>(specs.size());
    auto held = [&](int64_t rows, int64_t layer) {
      return groups ? groups->keptOf(rows, layer, layers) : rows;
    };
    const int64_t read = length - query;
    int64_t whole = read / chunk, group = std::max<int64_t>(1, whole / 64);
    const int64_t rest = read % chunk;
    at.capacity = whole * held(chunk, 0) + held(rest, 0) + query;
    // `rows` rows behind so many groups, and behind the rest if that is `read`.
    auto one = [&](int64_t groupsBefore, bool behindRest, int64_t rows,
                   double times) {
      auto before = [&](int64_t layer) {
        return groupsBefore * held(chunk, layer) +
               (behindRest ? held(rest, layer) : 0);
      };
      at.past = before(0);
      if (groups && groups->decays()) {
        at.pasts.clear();
        for (int64_t layer = 0; layer < layers; ++layer)
          at.pasts.push_back(before(layer));
      }
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
      if (!one(i + here / 2, false, chunk, double(here)))
        return false;
    }
    return (rest == 0 || one(whole, false, rest, 1)) &&
           (query == 0 || one(whole, true, query, 1));
  }

  bool measure(const std::string &transform, ModuleOp patterns = {}) {
    std::vector<KernelSpec> specs;
    if (!specsOf(patterns ? patterns : module, specs))
      return false;
    if (options.pack != "off")
      return measureBatch(transform, specs);
    for (int64_t length : tokens) {
      CostRow row{length ? std::to_string(length) : "image", transform, {}};
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
    CostRow row{std::to_string(tokens.size()) + " prompts", transform, {}};
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
  void tellSparse(const CostRow &row) {
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

/// Whether the model is a vision encoder: it takes images and no tokens.
static bool readsImages(onnx::GraphOp graph) {
  bool any = false;
  for (Value input : graph.getBody().front().getArguments()) {
    auto type = dyn_cast<RankedTensorType>(input.getType());
    if (!type || type.getRank() == 2 || type.getRank() == 3)
      return false;
    any |= type.getRank() == 4;
  }
  return any;
}

int prefill::cost(const CompilerOptions &given) {
  CompilerOptions options = given;
  options.emit = EmitKind::Sparse; // No output folder is asked for.
  takeCalibratedPlan(options);
  if (!options.parallelEncode.empty() && options.chunk == "off")
    options.chunk = "512"; // as when it is compiled
  std::string error;
  std::vector<int64_t> tokens;
  Contexts contexts;
  CostDevice device;
  CostSizes sizes;
  if (!validate(options, error) ||
      !parseDevice(options.device, device, error) ||
      !parseDims(options.dims, sizes, error) ||
      !parseContexts(options.contexts, contexts, error))
    return fail(error);
  if (options.parallelEncode.empty() && !options.contexts.empty())
    return fail("-contexts=" + options.contexts +
                " is for -parallel-encode, which is not given");
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
  if (!readsImages(onnx::getMainGraph(*module))) {
    if (!parseTokens(options.tokens, tokens, error))
      return fail(error);
  } else if (!options.tokens.empty()) {
    return fail("-tokens=" + options.tokens +
                ": the model reads images, sizes "
                "of its inputs are given by -dim=NAME=N");
  } else {
    tokens = {0};
  }
  Predictor predictor(options, *context, *module);
  predictor.device = device;
  predictor.sizes = sizes;
  predictor.tokens = tokens;
  if (revives)
    predictor.notes.push_back("aux=on: the prompt alone, without the copies of "
                              "its state");
  if (!options.parallelEncode.empty())
    predictor.contexts = contexts;
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
      printCostJSON(os, predictor, options);
    else
      printCostTable(os, predictor, options);
  });
}
