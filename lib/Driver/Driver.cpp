//===- Driver.cpp - From options to artifacts -----------------------------===//

#include "prefill/Driver/Driver.h"
#include "Artifacts.h"
#include "Compositions.h"
#include "DriverParts.h"
#include "mlir/IR/AsmState.h"
#include "mlir/IR/Remarks.h"
#include "mlir/Parser/Parser.h"
#include "prefill/Analysis/AttentionSite.h"
#include "prefill/Codegen/CUDA/Images.h"
#include "prefill/Driver/Outline.h"
#include "prefill/Import/ONNXImport.h"
#include "prefill/Transforms/Passes.h"
#include "prefill/Transforms/Pruning.h"
#include "prefill/Transforms/SparsityConfig.h"
#include "llvm/ADT/StringSet.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Format.h"
#include "llvm/Support/JSON.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/ToolOutputFile.h"
#include "llvm/Support/WithColor.h"

#include <chrono>

using namespace mlir;
using namespace prefill;

//===----------------------------------------------------------------------===//
// Messages
//===----------------------------------------------------------------------===//

int prefill::fail(const llvm::Twine &what) {
  llvm::WithColor::error(llvm::errs(), "prefill-opt") << what << "\n";
  return 1;
}

/// Seconds per stage, printed with -stage-timing.
namespace {
class Stopwatch {
public:
  explicit Stopwatch(bool enabled) : enabled(enabled) {}
  void lap(const char *stage) {
    auto now = std::chrono::steady_clock::now();
    if (enabled)
      llvm::errs() << llvm::format(
          "%-10s %7.3f s\n", stage,
          std::chrono::duration<double>(now - last).count());
    last = now;
  }

private:
  bool enabled;
  std::chrono::steady_clock::time_point last = std::chrono::steady_clock::now();
};
} // namespace

/// The name of the node that a diagnostic is about, for the start of its line.
static std::string nodeName(Location loc) {
  if (auto name = dyn_cast<NameLoc>(loc))
    return name.getName().str() + ": ";
  return "";
}

namespace {
/// Prints each remark as one line.
struct RemarkPrinter final : remark::detail::MLIRRemarkStreamerBase {
  void streamOptimizationRemark(const remark::detail::Remark &remark) override {
    std::string text = nodeName(remark.getLocation());
    for (const auto &arg : remark.getArgs())
      text += arg.val;
    llvm::WithColor::remark(llvm::errs(), "prefill-opt") << text << "\n";
  }
};
} // namespace

/// Prints errors as one line each, and remarks if asked.
static void installDiagnostics(MLIRContext &context, bool remarks) {
  context.getDiagEngine().registerHandler([](Diagnostic &diagnostic) {
    if (diagnostic.getSeverity() == DiagnosticSeverity::Error)
      fail(nodeName(diagnostic.getLocation()) + diagnostic.str());
    return success();
  });
  if (remarks)
    (void)remark::enableOptimizationRemarks(
        context, std::make_unique<RemarkPrinter>(),
        std::make_unique<remark::RemarkEmittingPolicyAll>(),
        remark::RemarkCategories{{}, ".*", ".*", {}, {}});
}

std::unique_ptr<MLIRContext>
prefill::makeContext(const CompilerOptions &options) {
  DialectRegistry registry;
  registerDialects(registry);
  auto context =
      std::make_unique<MLIRContext>(registry, MLIRContext::Threading::DISABLED);
  installDiagnostics(*context, options.remarks);
  return context;
}

//===----------------------------------------------------------------------===//
// Input and textual output
//===----------------------------------------------------------------------===//

bool prefill::looksLikeONNX(StringRef path) {
  // A ModelProto starts with the field ir_version: tag 8, then a small number.
  char start[2];
  auto file = llvm::sys::fs::openNativeFileForRead(path);
  if (!file) {
    llvm::consumeError(file.takeError());
    return false;
  }
  auto count = llvm::sys::fs::readNativeFile(*file, {start, 2});
  (void)llvm::sys::fs::closeFile(*file);
  if (!count) {
    llvm::consumeError(count.takeError());
    return false;
  }
  return *count == 2 && start[0] == 8 && start[1] > 0 && start[1] < 64;
}

OwningOpRef<ModuleOp> prefill::load(MLIRContext &context, StringRef path) {
  if (path.ends_with(".mlir") || path.ends_with(".mlirbc"))
    return parseSourceFile<ModuleOp>(path, &context);
  std::string error;
  OwningOpRef<ModuleOp> module = importONNX(path, &context, {}, error);
  if (!module)
    fail(error);
  return module;
}

int prefill::writeText(StringRef path,
                       llvm::function_ref<void(raw_ostream &)> text) {
  if (path.empty() || path == "-") {
    text(llvm::outs());
    return 0;
  }
  std::error_code ec;
  llvm::ToolOutputFile file(path, ec, llvm::sys::fs::OF_None);
  if (ec)
    return fail(path + ": cannot write: " + ec.message());
  text(file.os());
  file.os().flush();
  if (file.os().has_error()) {
    std::string message = file.os().error().message();
    file.os().clear_error();
    return fail(path + ": cannot write: " + message);
  }
  file.keep();
  return 0;
}

static int printModule(ModuleOp module, const CompilerOptions &options) {
  return writeText(options.output, [&](raw_ostream &os) {
    module.print(os, OpPrintingFlags().elideLargeElementsAttrs(64));
    os << "\n";
  });
}

//===----------------------------------------------------------------------===//
// Compilation
//===----------------------------------------------------------------------===//

std::optional<int64_t> prefill::parseChunk(StringRef text, std::string &error) {
  if (text == "off")
    return 0;
  auto [number, options] = text.split(':');
  int64_t rows;
  if (number.getAsInteger(10, rows) || rows < 1 || rows > INT32_MAX) {
    error = ("-chunk=" + text +
             ": expected off or a number of rows, at least 1, as in -chunk=512")
                .str();
    return std::nullopt;
  }
  if (!options.empty() && options != "tail=dynamic") {
    error = ("-chunk=" + text +
             ": expected no option but tail=dynamic: the last "
             "chunk has the rows that are left, none of them padding, and "
             "all layers run on a chunk before the next one")
                .str();
    return std::nullopt;
  }
  return rows;
}

bool prefill::validate(const CompilerOptions &options, std::string &error) {
  bool forGpu = false;
  for (StringRef target : options.targets) {
    if (target == "cpu")
      continue;
    forGpu = true;
    if (!findCudaTarget(target)) {
      error = "-target=" + target.str() + ": unknown target; there are cpu, " +
              cudaTargetNames();
      return false;
    }
  }
  if (!forGpu &&
      (options.emit == EmitKind::Warp || options.emit == EmitKind::PTX)) {
    error = "-emit=warp and -emit=ptx need a GPU as target, say -target=sm_80";
    return false;
  }
  if (!parseSparsity(options.sparsify, error) ||
      !checkCompositions(options, error))
    return false;
  if (options.logits != "all" && options.logits != "last" &&
      options.logits != "rows") {
    error = "-logits=" + options.logits + ": expected all, last or rows";
    return false;
  }
  if (options.pack != "off" && options.pack != "ffd" &&
      options.pack != "exact") {
    error = "-pack=" + options.pack + ": expected ffd, exact or off";
    return false;
  }
  std::optional<int64_t> chunk = parseChunk(options.chunk, error);
  if (!chunk)
    return false;
  if (*chunk && options.pack != "off") {
    error =
        "-chunk and -pack are not given together: a model with -chunk takes "
        "several prompts as well";
    return false;
  }
  if (*chunk && options.logits == "last") {
    error = "-logits=last with -chunk would be the last request's only: take "
            "-logits=rows";
    return false;
  }
  if (options.logits != "all" && !options.rowLiveness) {
    error = "-logits=" + options.logits + " needs -row-liveness=on";
    return false;
  }
  bool isFile = options.emit == EmitKind::ONNX;
  bool isFolder = options.emit == EmitKind::Artifacts;
  if ((isFile || isFolder) &&
      (options.output.empty() || options.output == "-")) {
    error = isFile ? "-emit=onnx needs -o FILE.onnx"
                   : "an output folder is needed: -o out/";
    return false;
  }
  llvm::sys::fs::file_status status;
  if (isFolder && !llvm::sys::fs::status(options.output, status) &&
      status.type() != llvm::sys::fs::file_type::directory_file) {
    error = options.output + ": exists and is not a folder";
    return false;
  }
  return true;
}

bool prefill::runPasses(MLIRContext &context, ModuleOp module,
                        llvm::function_ref<void(OpPassManager &)> build) {
  PassManager pm(&context);
  build(pm);
  return succeeded(pm.run(module));
}

bool prefill::raise(MLIRContext &context, ModuleOp module,
                    const CompilerOptions &options,
                    std::vector<SiteReport> &sites) {
  return runPasses(context, module, [&](OpPassManager &pm) {
    if (options.noPadding)
      pm.addPass(createAssumeNoPadding(
          {options.chunk != "off" || revivesRows(options.prune)}));
    buildRaisePipeline(pm, sites);
  });
}

void prefill::takeCalibratedPlan(CompilerOptions &options) {
  if (options.sparsify != "auto")
    return;
  llvm::SmallString<128> plan(options.input);
  llvm::sys::path::replace_extension(plan, ".prefill.json");
  if (!llvm::sys::fs::exists(plan))
    return;
  options.sparsify = ("config:" + plan).str();
  llvm::WithColor::note(llvm::errs(), "prefill-opt")
      << "-sparsify=auto takes the calibrated " << plan << "\n";
}

/// A line each about what -share-kv found and what row liveness saved.
static void tellRows(const CompilerOptions &options,
                     const LivenessReport &report) {
  if (options.shareKV) {
    auto merged = llvm::count_if(report.shared,
                                 [](const auto &pair) { return pair.merged; });
    llvm::WithColor::note(llvm::errs(), "prefill-opt")
        << "KV sharing: " << report.shared.size()
        << " attentions read another one's keys and values, " << merged
        << " of them computed these again\n";
  }
  if (report.selections.empty())
    return;
  int64_t nodes = 0;
  std::vector<std::string> rows;
  llvm::StringSet<> layers;
  for (const LivenessReport::Selection &selection : report.selections) {
    nodes += selection.nodes;
    if (!llvm::is_contained(rows, selection.rows))
      rows.push_back(selection.rows);
    for (const std::string &layer : selection.layers)
      layers.insert(layer);
  }
  llvm::WithColor::note(llvm::errs(), "prefill-opt")
      << "row liveness: " << llvm::join(rows, ", ") << " only in " << nodes
      << " nodes and " << layers.size() << " of " << report.attentions
      << " attentions\n";
}

int prefill::compile(const CompilerOptions &given) {
  CompilerOptions options = given;
  takeCalibratedPlan(options);
  // Contexts need a cache.
  if (!options.parallelEncode.empty() && options.chunk == "off")
    options.chunk = "512";
  std::string error;
  if (!validate(options, error))
    return fail(error);
  applyPruning(options);
  Stopwatch watch(options.timing);
  std::unique_ptr<MLIRContext> context = makeContext(options);
  OwningOpRef<ModuleOp> module = load(*context, options.input);
  if (!module)
    return 1;
  watch.lap("import");
  if (options.emit == EmitKind::ONNXText)
    return printModule(*module, options);
  if (options.emit == EmitKind::ONNX) {
    ExportOptions exportOptions;
    exportOptions.externalData = options.externalData;
    return exportONNX(*module, options.output, exportOptions, error)
               ? 0
               : fail(error);
  }

  std::vector<SiteReport> sites;
  if (!raise(*context, *module, options, sites))
    return 1;
  watch.lap("raise");
  std::vector<DeclinedSite> declined;
  for (const SiteReport &report : sites)
    if (!report.raised)
      declined.push_back({report.layer, report.reason});
  if (options.emit == EmitKind::Prefill)
    return printModule(*module, options);

  if (!options.prune.empty() && !declined.empty())
    return fail("-prune: layers are counted by their attention, and that of '" +
                declined.front().layer +
                "' was not understood: " + declined.front().reason);
  LivenessReport liveness;
  ChunkReport chunk;
  if (!runPasses(*context, *module, [&](OpPassManager &pm) {
        buildRowPipeline(pm, options, liveness, chunk);
      }))
    return 1;
  if (!options.remarks)
    tellRows(options, liveness);
  watch.lap("rows");
  if (!runPasses(*context, *module, [&](OpPassManager &pm) {
        buildSparsifyPipeline(pm, options);
      }))
    return 1;
  watch.lap("sparsify");
  if (options.emit == EmitKind::Sparse)
    return printModule(*module, options);

  OutlineResult outlined;
  if (!outlineAttention(*module, options.stats, outlined, error))
    return fail(options.input + ": " + error);
  if (options.emit != EmitKind::Artifacts) {
    std::string text;
    if (!emitKernelText(options, outlined.kernels, text, error))
      return fail(error);
    return writeText(options.output, [&](raw_ostream &os) { os << text; });
  }
  bool written = writeArtifacts(options, *module, outlined, declined, liveness,
                                chunk, error);
  watch.lap("generate");
  return written ? 0 : fail(error);
}

//===----------------------------------------------------------------------===//
// inspect
//===----------------------------------------------------------------------===//

static void printJSON(ArrayRef<SiteReport> reports, StringRef model) {
  llvm::json::OStream os(llvm::outs(), 2);
  os.object([&] {
    os.attribute("model", model);
    os.attributeArray("attention", [&] {
      for (const SiteReport &site : reports)
        os.object([&] {
          os.attribute("layer", site.layer);
          os.attribute("node", site.node);
          os.attribute("raised", site.raised);
          os.attribute("reason", site.reason);
          os.attribute("form", site.form);
          os.attribute("q_heads", site.qHeads);
          os.attribute("kv_heads", site.kvHeads);
          os.attribute("head_dim", site.headDim);
          os.attribute("mask", site.mask);
        });
    });
  });
  llvm::outs() << "\n";
}

static void printTable(ArrayRef<SiteReport> reports) {
  auto number = [](int64_t n) { return n ? std::to_string(n) : "?"; };
  std::vector<std::array<std::string, 6>> rows;
  rows.push_back({"layer", "heads", "KV heads", "head dim", "mask", "form"});
  for (const SiteReport &site : reports)
    rows.push_back({site.layer, number(site.qHeads), number(site.kvHeads),
                    number(site.headDim), site.raised ? site.mask : "",
                    site.raised ? site.form : "not raised: " + site.reason});
  std::array<size_t, 6> widths{};
  for (const auto &row : rows)
    for (size_t i = 0; i < row.size(); ++i)
      widths[i] = std::max(widths[i], row[i].size());
  for (const auto &row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      line += row[i];
      if (i + 1 < row.size())
        line.append(widths[i] - row[i].size() + 2, ' ');
    }
    llvm::outs() << line << "\n";
  }
}

int prefill::inspect(const CompilerOptions &options) {
  std::unique_ptr<MLIRContext> context = makeContext(options);
  OwningOpRef<ModuleOp> module = load(*context, options.input);
  if (!module)
    return 1;
  auto reports = inspectAttention(*module);
  if (options.json) {
    printJSON(reports, llvm::sys::path::filename(options.input));
    return 0;
  }
  if (reports.empty()) {
    llvm::outs() << "no attention found\n";
    return 0;
  }
  printTable(reports);
  size_t raised = llvm::count_if(
      reports, [](const SiteReport &site) { return site.raised; });
  llvm::outs() << raised << " of " << reports.size() << " can be raised\n";
  return 0;
}
