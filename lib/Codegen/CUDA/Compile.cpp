//===- Compile.cpp - From a specification to a cubin ----------------------===//

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Target/LLVMIR/Dialect/Builtin/BuiltinToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Dialect/LLVMIR/LLVMToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Export.h"
#include "prefill/Codegen/CUDA/IndexKernels.h"
#include "prefill/Codegen/KernelBuilder.h"
#include "llvm/IR/Module.h"
#include <chrono>

using namespace mlir;
using namespace prefill;

CudaKernel::CudaKernel() = default;
CudaKernel::CudaKernel(CudaKernel &&) = default;
CudaKernel &CudaKernel::operator=(CudaKernel &&other) {
  // The module goes before the context that owns its types.
  module = std::move(other.module);
  context = std::move(other.context);
  name = std::move(other.name);
  ptx = std::move(other.ptx);
  cubin = std::move(other.cubin);
  report = std::move(other.report);
  return *this;
}
CudaKernel::~CudaKernel() = default;

namespace {

/// One compilation: a context whose first error becomes the message, and the
/// kernel on its way down.
class Compilation {
public:
  Compilation(const KernelSpec &spec, const CudaOptions &options,
              std::string &error)
      : spec(spec), options(options), error(error),
        context(makeRegistry(), MLIRContext::Threading::DISABLED),
        handler(&context, [&](Diagnostic &diagnostic) {
          if (diagnostic.getSeverity() == DiagnosticSeverity::Error &&
              error.empty())
            error = "kernel '" + spec.name + "': " + diagnostic.str();
          return success();
        }) {
    context.loadAllAvailableDialects();
  }

  bool build();
  bool toWarp();
  bool toNVVM();
  bool toLLVM(CudaKernel &kernel);
  std::string print() {
    std::string text;
    llvm::raw_string_ostream stream(text);
    module->print(stream);
    return text;
  }
  CudaSchedule schedule;
  int64_t sharedBytes = 0;

private:
  static DialectRegistry makeRegistry() {
    DialectRegistry registry;
    registerCudaDialects(registry);
    registerBuiltinDialectTranslation(registry);
    registerLLVMDialectTranslation(registry);
    return registry;
  }
  bool fail(const Twine &what) {
    if (error.empty())
      error = ("kernel '" + spec.name + "': " + what).str();
    return false;
  }
  bool run(llvm::function_ref<void(PassManager &)> add) {
    PassManager manager(&context);
    add(manager);
    return succeeded(manager.run(*module)) ||
           fail("cannot be lowered for GPUs");
  }

  KernelSpec spec;
  const CudaOptions &options;
  std::string &error;
  MLIRContext context;
  ScopedDiagnosticHandler handler;
  OwningOpRef<ModuleOp> module;
};

} // namespace

bool Compilation::build() {
  const bool sums = options.kind != CudaKernelKind::Attention;
  if (!(sums ? chooseSumsSchedule(spec, options.arch, schedule, error)
             : chooseCudaSchedule(spec, options.arch, options.lists, schedule,
                                  error)))
    return false;
  if (!sums && options.arch == 90 && options.archSpecific)
    schedule = chooseWarpgroupSchedule(spec, options.lists, options.tensorMaps,
                                       options.persistent);
  if (options.blockQ)
    schedule.blockQ = options.blockQ;
  if (options.blockK)
    schedule.blockK = options.blockK;
  if (options.warps)
    schedule.warps = options.warps;
  if (schedule.warpgroups)
    setRegisterBudgets(spec, schedule);
  if (options.stages)
    schedule.stages = options.stages;
  spec.blockQ = schedule.blockQ;
  spec.blockK = schedule.blockK;
  error = checkKernelSpec(spec);
  if (!error.empty())
    return false;
  module = ModuleOp::create(UnknownLoc::get(&context));
  OpBuilder builder = OpBuilder::atBlockEnd(module->getBody());
  if (sums) {
    tile::KernelOp kernel = options.kind == CudaKernelKind::RowSums
                                ? buildRowSumsKernel(builder, spec)
                                : buildLineSumsKernel(builder, spec);
    kernel.setName("prefill_" + kernel.getName().str() + "_" + schedule.chip());
    return true;
  }
  tile::KernelOp kernel = buildAttentionKernel(builder, spec);
  kernel.setName("prefill_" + getTileKey(spec) + "_" + schedule.chip() +
                 (schedule.persistent ? "_persistent" : "") +
                 (schedule.lists        ? "_lists"
                  : schedule.tensorMaps ? "_tma"
                                        : ""));
  return true;
}

bool Compilation::toWarp() {
  return run([&](PassManager &manager) { addCudaPasses(manager, schedule); });
}

bool Compilation::toNVVM() {
  return run(
      [](PassManager &manager) { manager.addPass(createConvertWarpToNVVM()); });
}

bool Compilation::toLLVM(CudaKernel &kernel) {
  for (auto function : module->getOps<LLVM::LLVMFuncOp>()) {
    if (auto bytes = function->getAttrOfType<IntegerAttr>(kSharedBytesAttr)) {
      kernel.name = function.getName();
      sharedBytes = bytes.getInt();
    }
  }
  if (!run([](PassManager &manager) { addCudaToLLVMPasses(manager); }))
    return false;
  kernel.context = std::make_unique<llvm::LLVMContext>();
  kernel.module =
      translateModuleToLLVMIR(*module, *kernel.context, kernel.name);
  if (!kernel.module)
    return fail("cannot be translated to LLVM IR");
  std::string why;
  return emitPTX(*kernel.module, schedule.arch, kernel.ptx, why,
                 schedule.archSpecific) ||
         fail(why);
}

static double now() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

static bool compileOne(const KernelSpec &spec, const CudaOptions &options,
                       CudaKernel &kernel, std::string &error) {
  error.clear();
  kernel.module.reset();
  const double start = now();
  Compilation compilation(spec, options, error);
  if (!compilation.build() || !compilation.toWarp() || !compilation.toNVVM() ||
      !compilation.toLLVM(kernel))
    return false;
  CudaReport &report = kernel.report;
  report = CudaReport();
  report.schedule = compilation.schedule;
  report.threads = compilation.schedule.threads();
  report.sharedBytes = compilation.sharedBytes;
  const int limit = getSharedLimit(report.schedule.arch);
  if (report.sharedBytes > limit) {
    error = "kernel '" + spec.name + "': needs " +
            std::to_string(report.sharedBytes) + " bytes of shared memory, " +
            compilation.schedule.chip() + " has " + std::to_string(limit) +
            ": fewer stages or smaller tiles are needed";
    return false;
  }
  if (options.runPtxas) {
    const std::string ptxas = findPtxas(options.ptxas);
    const double before = now();
    if (ptxas.empty())
      report.note = "no ptxas (-ptxas=, CUDA_HOME, PATH): the driver compiles "
                    "the kernel's PTX when it is loaded";
    else if (!runPtxas(ptxas, kernel.ptx, report.schedule.arch, kernel.name,
                       options.allowSpills, kernel.cubin, report.ptxas, error,
                       report.schedule.archSpecific))
      return false;
    else
      report.assembled = true;
    report.ptxasSeconds = now() - before;
  }
  report.seconds = now() - start;
  return true;
}

/// Scores of fewer keys need fewer registers: sm_90a's kernel with the most
/// keys a tile that ptxas has registers for, down to half of the table's.
/// `error` says that there are too few for these.
static bool compileSmaller(const KernelSpec &spec, const CudaOptions &options,
                           CudaKernel &kernel, const std::string &error) {
  if (!StringRef(error).contains(": ptxas s")) // spills, says (C75xx)
    return false;
  const int keys =
      chooseWarpgroupSchedule(spec, /*lists=*/false, options.tensorMaps,
                              /*persistent=*/false)
          .blockK;
  CudaOptions smaller = options;
  for (smaller.blockK = keys - 16; 2 * smaller.blockK >= keys;
       smaller.blockK -= 16) {
    std::string another;
    if (!compileOne(spec, smaller, kernel, another))
      continue;
    kernel.report.note =
        "has " + std::to_string(smaller.blockK) + " keys a tile; " + error;
    return true;
  }
  return false;
}

bool prefill::compileCuda(const KernelSpec &spec, const CudaOptions &options,
                          CudaKernel &kernel, std::string &error) {
  if (compileOne(spec, options, kernel, error))
    return true;
  // What the schedule for sm_90a cannot do, the one for all GPUs may. Who asks
  // for sizes wants these.
  if (options.arch != 90 || !options.archSpecific || options.blockQ ||
      options.blockK || options.warps || options.stages)
    return false;
  const std::string why = error;
  // Lists name tiles of the table's size, and a persistent kernel with smaller
  // ones has no advantage.
  if (!options.lists && !options.persistent &&
      compileSmaller(spec, options, kernel, why)) {
    error.clear();
    return true;
  }
  CudaOptions plain = options;
  if (options.persistent)
    plain.persistent = false;
  else
    plain.archSpecific = false;
  if (!(options.persistent ? compileCuda(spec, plain, kernel, error)
                           : compileOne(spec, plain, kernel, error)))
    return false;
  std::string &note = kernel.report.note;
  note = (options.persistent ? "is not persistent; " : "runs sm_90's code; ") +
         why + (note.empty() ? "" : "; " + note);
  return true;
}

bool prefill::printCuda(const KernelSpec &spec, const CudaOptions &options,
                        CudaText level, std::string &text, std::string &error) {
  error.clear();
  Compilation compilation(spec, options, error);
  if (!compilation.build())
    return false;
  if (level > CudaText::Tile && !compilation.toWarp())
    return false;
  if (level > CudaText::Warp && !compilation.toNVVM())
    return false;
  if (level <= CudaText::NVVM) {
    text += compilation.print();
    return true;
  }
  CudaKernel kernel;
  if (!compilation.toLLVM(kernel))
    return false;
  if (level == CudaText::PTX) {
    text += kernel.ptx;
    return true;
  }
  llvm::raw_string_ostream stream(text);
  kernel.module->print(stream, nullptr);
  return true;
}
