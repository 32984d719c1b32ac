//===- prefill-opt.cpp - The command line ---------------------------------===//
//
// Fills CompilerOptions from flags; everything else is in lib/Driver. Two
// modes: driver mode for ONNX input or any driver flag, and opt mode
// (MlirOptMain, for .mlir files and passes) otherwise. `prefill-opt inspect
// model.onnx` reports, `prefill-opt cost` predicts; `prefill-opt calibrate`
// hands over to the Python package.
//
//===----------------------------------------------------------------------===//

#include "mlir/Debug/Counter.h"
#include "mlir/IR/AsmState.h"
#include "mlir/IR/DialectRegistry.h"
#include "mlir/IR/MLIRContext.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Support/Timing.h"
#include "mlir/Tools/mlir-opt/MlirOptMain.h"
#include "prefill/Driver/Driver.h"
#include "prefill/Transforms/Patterns.h"
#include "llvm/Support/CommandLine.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/InitLLVM.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/Process.h"
#include "llvm/Support/WithColor.h"

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <unistd.h>
#include <vector>

using namespace prefill;
namespace cl = llvm::cl;

/// What -help says of -sparsify; the patterns are those of the table.
static const char *sparsifyHelp() {
  static const std::string text = "auto (also without a value), " +
                                  patternNames(/*layered=*/true) +
                                  ", or config:FILE; dense is the default";
  return text.c_str();
}

static cl::OptionCategory category("prefill-opt options");

static cl::opt<std::string> input(cl::Positional, cl::cat(category),
                                  cl::desc("<model.onnx or file.mlir>"),
                                  cl::init("-"));
static cl::opt<std::string>
    output("o", cl::cat(category), cl::init("-"), cl::value_desc("PATH"),
           cl::desc("Output folder; with -emit and for .mlir a file"));
static cl::opt<std::string> sparsify("sparsify", cl::cat(category),
                                     cl::init("dense"), cl::ValueOptional,
                                     cl::value_desc("NAME[:option=value,...]"),
                                     cl::desc(sparsifyHelp()));
static cl::opt<std::string>
    modality("modality", cl::cat(category),
             cl::value_desc("NAME|token:ID[,ID...]"),
             cl::desc("What kind of token each key is, for q-boundary and "
                      "2d-boundary: an integer value of the model, or whether "
                      "input_ids are one of these"));
static cl::list<std::string>
    target("target", cl::cat(category), cl::CommaSeparated,
           cl::value_desc("cpu,sm_80,..."),
           cl::desc("What kernels are generated for: cpu (always), and NVIDIA "
                    "GPUs sm_80, sm_86, sm_89, sm_90, sm_90a"));
static cl::opt<std::string>
    ptxas("ptxas", cl::cat(category), cl::value_desc("PATH"),
          cl::desc("NVIDIA's assembler (default: of CUDA_HOME, PATH)"));
static cl::opt<bool>
    allowSpills("allow-spills", cl::cat(category),
                cl::desc("Take CUDA kernels that spill registers or that ptxas "
                         "warns about"));
static cl::opt<EmitKind> emit(
    "emit", cl::cat(category), cl::init(EmitKind::Artifacts),
    cl::desc("Stop at a level and print it:"),
    cl::values(
        clEnumValN(EmitKind::Artifacts, "artifacts",
                   "model.onnx, library, header, manifest (default)"),
        clEnumValN(EmitKind::ONNX, "onnx", "the model, written back unchanged"),
        clEnumValN(EmitKind::ONNXText, "onnx-text", "the onnx dialect"),
        clEnumValN(EmitKind::Prefill, "prefill", "after raising attention"),
        clEnumValN(EmitKind::Sparse, "sparse", "after sparsification"),
        clEnumValN(EmitKind::Tile, "tile", "the kernels on tiles"),
        clEnumValN(EmitKind::LLVM, "llvm", "the kernels as LLVM IR"),
        clEnumValN(EmitKind::Asm, "asm", "the kernels as assembly"),
        clEnumValN(EmitKind::Warp, "warp", "the CUDA kernels on warps"),
        clEnumValN(EmitKind::PTX, "ptx", "the CUDA kernels as PTX")));
static cl::opt<ExternalData> externalData(
    "external-data", cl::cat(category), cl::init(ExternalData::Reference),
    cl::desc("What happens to the model's external data files:"),
    cl::values(clEnumValN(ExternalData::Reference, "reference",
                          "refer to the same files (default)"),
               clEnumValN(ExternalData::Copy, "copy", "copy them"),
               clEnumValN(ExternalData::Link, "link", "hard links")));
static cl::opt<std::string>
    cacheDir("kernel-cache", cl::cat(category), cl::value_desc("DIR"),
             cl::desc("Where compiled kernels are kept"));
static cl::opt<bool> noCache("no-kernel-cache", cl::cat(category),
                             cl::desc("Compile all kernels anew"));
static cl::opt<bool>
    stats("density-output", cl::cat(category),
          cl::desc("Give the model an output with the share of "
                   "blocks each head visits"));
static cl::opt<bool>
    verbose("explain", cl::cat(category),
            cl::desc("Say why an attention was left as it was"));
enum class Switch { Off, On };
static cl::opt<Switch>
    rowLiveness("row-liveness", cl::cat(category), cl::init(Switch::On),
                cl::desc("Compute only the rows that reach the outputs:"),
                cl::values(clEnumValN(Switch::On, "on", "default; exact"),
                           clEnumValN(Switch::Off, "off", "compute all rows")));
static cl::opt<std::string>
    shareKV("share-kv", cl::cat(category), cl::init("off"),
            cl::value_desc("detect|off"),
            cl::desc("Layers whose keys and values are another layer's read "
                     "these; exact"));
static cl::opt<std::string>
    packing("pack", cl::cat(category), cl::init("off"),
            cl::value_desc("ffd|exact|off"),
            cl::desc("Take several prompts in one sequence, by a new input "
                     "segment_starts; how the Python package packs them"));
enum class Padding { Any, None };
static cl::opt<Padding> padding(
    "padding", cl::cat(category), cl::init(Padding::Any),
    cl::desc("What the input attention_mask says:"),
    cl::values(clEnumValN(Padding::Any, "any", "default"),
               clEnumValN(Padding::None, "none", "ones; it is removed")));
static cl::opt<std::string>
    chunking("chunk", cl::cat(category), cl::init("off"),
             cl::value_desc("ROWS|off"),
             cl::desc("Take a prompt in chunks of so many rows, with a KV "
                      "cache; rows of other requests may stand beside them"));
static cl::opt<std::string> parallelEncode(
    "parallel-encode", cl::cat(category), cl::value_desc("ape[:T=0.9,S=0.9]"),
    cl::desc("Encode contexts independently of one another, so that each can "
             "be kept and used again; lossy"));
static cl::opt<std::string>
    logits("logits", cl::cat(category), cl::init("all"),
           cl::value_desc("all|last|rows"),
           cl::desc("Rows of the output 'logits': as the model gives them, the "
                    "last one, or those of a new input logits_rows"));
static cl::opt<std::string>
    prune("prune", cl::cat(category),
          cl::value_desc("lazyllm|mustdrop|flowcut[:option=value,...]"),
          cl::desc("Leave rows out of later layers; lossy"));
static cl::opt<std::string>
    protect("protect", cl::cat(category),
            cl::value_desc("bos:N,last:N,system,ids:A-B,rows:A-B"),
            cl::desc("Rows that -prune may not leave out; bos:4,last:1 is the "
                     "default"));
static cl::opt<std::string>
    accuracy("accuracy", cl::cat(category), cl::value_desc("exact|lossy"),
             cl::desc("exact: refuse every lossy option"));
static cl::opt<bool> timing("stage-timing", cl::cat(category),
                            cl::desc("Print seconds per stage"));
static cl::opt<bool> json("json", cl::cat(category),
                          cl::desc("inspect, cost: JSON instead of a table"));
static cl::opt<std::string> tokens("tokens", cl::cat(category),
                                   cl::value_desc("N[,N...]"),
                                   cl::desc("cost: lengths of the prompts"));
static cl::opt<std::string>
    device("device", cl::cat(category), cl::init("cpu"),
           cl::value_desc("NAME[:key=value,...]"),
           cl::desc("cost: cpu, h100 (sm_90a) or a100 (sm_80); threads, and "
                    "gflops and gbps measured on another machine"));
static cl::list<std::string>
    dims("dim", cl::cat(category), cl::value_desc("NAME=N"),
         cl::desc("cost: the size of a further dimension of the inputs"));
static cl::opt<std::string> contexts(
    "contexts", cl::cat(category), cl::value_desc("N[:prefix=P,query=Q]"),
    cl::desc("cost: contexts of a prompt of -parallel-encode, and rows "
             "of its prefix and its question (default "
             "4:prefix=32,query=64)"));
static cl::opt<std::string> inputKind("x", cl::cat(category),
                                      cl::value_desc("onnx|mlir"),
                                      cl::desc("Kind of the input"));

/// The runtime's archive of the tool's own installation: ../lib.
static std::string runtimeArchive(const char *argv0) {
  std::string tool = llvm::sys::fs::getMainExecutable(
      argv0, reinterpret_cast<void *>(&runtimeArchive));
  llvm::SmallString<256> file(
      llvm::sys::path::parent_path(llvm::sys::path::parent_path(tool)));
  llvm::sys::path::append(file, "lib", "libprefill_runtime.a");
  return std::string(file);
}

/// What the interpreter runs for `calibrate`: one clear line where the package
/// is missing, and the package's own command otherwise.
static constexpr const char *calibrateProgram = R"(
import sys
try:
    from prefill_opt.calibrate.__main__ import main
except ImportError as error:
    sys.exit(f"prefill-opt: error: calibrate needs the Python package prefill_opt "
             f"in {sys.executable} ({error}); PREFILL_PYTHON names another interpreter")
sys.exit(main())
)";

/// Replaces this process by `python -m prefill_opt.calibrate` with the
/// arguments after `calibrate`. The interpreter is $PREFILL_PYTHON, else that
/// of the venv beside bin/, else python3. Returns only on failure.
static int calibrate(int argc, char **argv) {
  std::string tool = llvm::sys::fs::getMainExecutable(
      argv[0], reinterpret_cast<void *>(&calibrate));
  std::string python =
      llvm::sys::Process::GetEnv("PREFILL_PYTHON").value_or("");
  if (python.empty()) {
    llvm::SmallString<256> file(
        llvm::sys::path::parent_path(llvm::sys::path::parent_path(tool)));
    llvm::sys::path::append(file, "venv", "bin", "python");
    python = llvm::sys::fs::can_execute(file) ? std::string(file) : "python3";
  }
  // The package shall call this very compiler, not another one on the PATH.
  setenv("PREFILL_OPT", tool.c_str(), /*overwrite=*/0);
  std::vector<const char *> arguments = {python.c_str(), "-c",
                                         calibrateProgram};
  arguments.insert(arguments.end(), argv + 2, argv + argc);
  arguments.push_back(nullptr);
  execvp(python.c_str(), const_cast<char *const *>(arguments.data()));
  const char *why = std::strerror(errno);
  llvm::WithColor::error(llvm::errs(), "prefill-opt")
      << "calibrate cannot run " << python << ": " << why << "\n";
  return 1;
}

/// Every failure is one line on stderr.
static int complain(const llvm::Twine &what) {
  llvm::WithColor::error(llvm::errs(), "prefill-opt") << what << "\n";
  return 1;
}

/// What is wrong with `-option=value` if `argument` is that and `value` none of
/// the option's; LLVM says of it neither what there is nor the project's words.
template <typename T>
static std::string badValue(cl::opt<T> &option, llvm::StringRef argument) {
  auto [name, value] = argument.ltrim('-').split('=');
  if (!argument.starts_with("-") || name != option.ArgStr || value.empty())
    return "";
  std::string text = ("-" + option.ArgStr + "=" + value + ": expected").str();
  auto &parser = option.getParser();
  for (unsigned i = 0, e = parser.getNumOptions(); i < e; ++i) {
    if (parser.getOption(i) == value)
      return "";
    text += i == 0 ? " " : i + 1 < e ? ", " : " or ";
    text += parser.getOption(i);
  }
  return text;
}

/// What LLVM's parser says, of which every complaint is a line or two that
/// begin with the program's name, as one line.
static std::string oneLine(llvm::StringRef program, llvm::StringRef said) {
  llvm::SmallVector<llvm::StringRef> lines;
  said.split(lines, '\n', /*MaxSplit=*/-1, /*KeepEmpty=*/false);
  std::string text;
  for (llvm::StringRef line : lines) {
    if (line.consume_front(program))
      line.consume_front(": ");
    llvm::StringRef argument = line;
    if (argument.consume_front("Unknown command line argument '"))
      text += (text.empty() ? "" : "; ") +
              ("unknown option '" + argument.split("'").first + "'").str();
    else if (argument.consume_front("Did you mean '"))
      text += (": did you mean '" + argument.split("'").first + "'?").str();
    else if (line != "Too many positional arguments specified!")
      text += (text.empty() ? "" : "; ") + line.str();
    else
      text += "more than one input";
    if (line.starts_with("Too many positional"))
      break;
  }
  return text + " (prefill-opt --help lists all)";
}

/// True when a driver flag was given.
static bool hasDriverFlag() {
  return sparsify.getNumOccurrences() || modality.getNumOccurrences() ||
         target.getNumOccurrences() || emit.getNumOccurrences() ||
         externalData.getNumOccurrences() || cacheDir.getNumOccurrences() ||
         rowLiveness.getNumOccurrences() || logits.getNumOccurrences() ||
         packing.getNumOccurrences() || chunking.getNumOccurrences() ||
         padding.getNumOccurrences() || shareKV.getNumOccurrences() ||
         prune.getNumOccurrences() || parallelEncode.getNumOccurrences() ||
         protect.getNumOccurrences() || accuracy.getNumOccurrences() ||
         ptxas.getNumOccurrences() || allowSpills || noCache || stats ||
         verbose || timing || json;
}

int main(int argc, char **argv) {
  llvm::InitLLVM init(argc, argv);
  // Past a limit on the size of files a write fails, which is reported.
  (void)signal(SIGXFSZ, SIG_IGN);
  if (argc > 1 && llvm::StringRef(argv[1]) == "calibrate")
    return calibrate(argc, argv);
  mlir::DialectRegistry registry;
  registerDialects(registry);
  registerPasses();
  // What registerAndParseCLIOptions registers; done here so that --help can
  // hide it (--help-hidden shows all).
  mlir::MlirOptMainConfig::registerCLOptions(registry);
  mlir::registerAsmPrinterCLOptions();
  mlir::registerMLIRContextCLOptions();
  mlir::registerPassManagerCLOptions();
  mlir::registerDefaultTimingManagerCLOptions();
  mlir::tracing::DebugCounter::registerCLOptions();
  cl::HideUnrelatedOptions(category);

  std::vector<char *> arguments(argv, argv + argc);
  bool inspecting = argc > 1 && llvm::StringRef(argv[1]) == "inspect";
  bool costing = argc > 1 && llvm::StringRef(argv[1]) == "cost";
  if (inspecting || costing)
    arguments.erase(arguments.begin() + 1);
  for (llvm::StringRef argument : arguments)
    for (const std::string &bad :
         {badValue(emit, argument), badValue(externalData, argument),
          badValue(rowLiveness, argument), badValue(padding, argument)})
      if (!bad.empty())
        return complain(bad);
  std::string said;
  llvm::raw_string_ostream errors(said);
  bool parsed = cl::ParseCommandLineOptions(
      arguments.size(), arguments.data(),
      "fast prompt processing for transformer models\n\n"
      "  prefill-opt model.onnx -sparsify=vertical-slash -o out/\n"
      "  prefill-opt inspect model.onnx\n"
      "  prefill-opt cost model.onnx -tokens=1024,8192\n"
      "  prefill-opt calibrate model.onnx --data=FILE -o plan.json\n"
      "  prefill-opt file.mlir -some-pass\n",
      &errors);
  // A misspelt command makes the model a second input, which is no input then.
  llvm::StringRef file = input, first = argc > 1 ? argv[1] : "-";
  if ((first == file || !parsed) && !first.starts_with("-") && !inspecting &&
      !costing && !first.contains('.') && !first.contains('/') &&
      !llvm::sys::fs::exists(first))
    return complain("'" + first +
                    "': neither a file nor a command; there are inspect, cost "
                    "and calibrate");
  // Of a value that is missing or no such one LLVM has told already.
  llvm::StringRef told = llvm::StringRef(said).trim();
  if (!parsed && told.empty())
    return 1;
  if (!parsed)
    return complain(oneLine(llvm::sys::path::filename(argv[0]), told));
  // Text of MLIR may come from stdin, but from no terminal.
  if (file.empty() ||
      (file == "-" && (inspecting || costing || hasDriverFlag() ||
                       (argc == 1 && isatty(STDIN_FILENO)))))
    return complain(llvm::Twine("no model is given: prefill-opt ") +
                    (inspecting ? "inspect model.onnx"
                     : costing  ? "cost model.onnx -tokens=1024"
                                : "model.onnx -o out/, or --help"));
  if (!inputKind.empty() && inputKind != "onnx" && inputKind != "mlir")
    return complain("-x=" + inputKind + ": expected onnx or mlir");
  bool onnx = inputKind == "onnx" ||
              (inputKind.empty() &&
               llvm::StringRef(input.getValue()).ends_with(".onnx"));
  if (!onnx && !inspecting && !costing && !hasDriverFlag()) {
    if (inputKind.empty() && input != "-" && looksLikeONNX(input))
      onnx = true;
    else
      return mlir::asMainReturnCode(
          mlir::MlirOptMain(argc, argv, input, output, registry));
  }

  CompilerOptions options;
  options.input = input;
  options.output = output;
  options.emit = emit;
  options.modality = modality;
  options.sparsify = sparsify.empty() ? "auto" : sparsify.getValue();
  if (!target.empty())
    options.targets.assign(target.begin(), target.end());
  options.ptxas = ptxas;
  options.allowSpills = allowSpills;
  options.rowLiveness = rowLiveness == Switch::On;
  options.logits = logits;
  options.pack = packing;
  options.chunk = chunking;
  options.noPadding = padding == Padding::None;
  if (shareKV != "detect" && shareKV != "off")
    return complain("-share-kv=" + shareKV + ": expected detect or off");
  options.shareKV = shareKV == "detect";
  options.parallelEncode = parallelEncode;
  if (parallelEncode.getNumOccurrences() && parallelEncode.empty())
    return complain("-parallel-encode=: expected ape[:T=0.9,S=0.9]");
  options.prune = prune;
  options.protect = protect;
  options.accuracy = accuracy;
  options.externalData = externalData;
  options.runtimeArchive = runtimeArchive(argv[0]);
  options.cacheDir = cacheDir;
  options.useCache = !noCache;
  options.stats = stats;
  options.remarks = verbose;
  options.timing = timing;
  options.json = json;
  options.tokens = tokens;
  options.device = device;
  options.dims.assign(dims.begin(), dims.end());
  options.contexts = contexts;
  if (costing)
    return cost(options);
  for (auto [name, given] :
       {std::pair("tokens", tokens.getNumOccurrences()),
        std::pair("device", device.getNumOccurrences()),
        std::pair("dim", dims.getNumOccurrences()),
        std::pair("contexts", contexts.getNumOccurrences())})
    if (given)
      return complain("-" + llvm::Twine(name) + " is for prefill-opt cost");
  return inspecting ? inspect(options) : compile(options);
}
