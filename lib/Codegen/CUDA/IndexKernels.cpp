//===- IndexKernels.cpp - The device's part of the runtime ----------------===//

#include "prefill/Codegen/CUDA/IndexKernels.h"
#include "prefill/cuda_index.h"
#include "llvm/Bitcode/BitcodeReader.h"
#include "llvm/IR/LLVMContext.h"
#include "llvm/IR/Module.h"
#include "llvm/Support/MemoryBuffer.h"
#include <chrono>

using namespace prefill;

static const unsigned char kBitcode[] = {
#include "index_kernels.inc"
};

bool prefill::chooseSumsSchedule(KernelSpec &spec, int arch,
                                 CudaSchedule &schedule, std::string &error) {
  // Of the model's kernel, what decides about scores and visibility.
  spec.heads.clear();
  spec.hasSink = false;
  spec.vHeadDim = spec.headDim;
  spec.maskedRow = MaskedRow::Zero;
  error = checkCudaSpec(spec, arch);
  if (error.empty() && !spec.causal)
    error = "kernel '" + spec.name +
            "': sums of the last rows are for causal attention";
  if (!error.empty())
    return false;
  schedule = CudaSchedule();
  schedule.arch = arch;
  schedule.chunks = true;
  schedule.warps = 4;
  schedule.stages = 2;
  schedule.blockQ = PREFILL_CUDA_SUMS_ROWS;
  schedule.blockK = PREFILL_CUDA_SUMS_KEYS;
  return true;
}

static double now() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

bool prefill::compileCudaIndex(const CudaOptions &options, CudaKernel &kernels,
                               std::string &error) {
  error.clear();
  auto fail = [&](const std::string &what) {
    error =
        "index kernels for sm_" + std::to_string(options.arch) + ": " + what;
    return false;
  };
  if (getSharedLimit(options.arch) == 0)
    return fail("no such target; there are sm_80, sm_86, sm_89 and sm_90");
  const double start = now();
  kernels = CudaKernel();
  kernels.name = "prefill_index";
  kernels.context = std::make_unique<llvm::LLVMContext>();
  llvm::StringRef bytes(reinterpret_cast<const char *>(kBitcode),
                        sizeof(kBitcode));
  auto module = llvm::parseBitcodeFile(
      llvm::MemoryBufferRef(bytes, "index kernels"), *kernels.context);
  if (!module)
    return fail(llvm::toString(module.takeError()));
  kernels.module = std::move(*module);
  for (llvm::Function &function : *kernels.module) {
    // Those of the machine that code is emitted for count.
    function.removeFnAttr("target-cpu");
    function.removeFnAttr("target-features");
    // Without a number of blocks ptxas would rather spill than have fewer.
    if (function.getCallingConv() == llvm::CallingConv::PTX_Kernel) {
      function.addFnAttr("nvvm.minctasm", "2");
      function.addFnAttr("nvvm.maxntid",
                         std::to_string(PREFILL_CUDA_INDEX_THREADS));
    }
  }
  std::string why;
  if (!emitPTX(*kernels.module, options.arch, kernels.ptx, why))
    return fail(why);
  CudaReport &report = kernels.report;
  report.schedule.arch = options.arch;
  report.schedule.warps = PREFILL_CUDA_INDEX_THREADS / 32;
  report.threads = PREFILL_CUDA_INDEX_THREADS;
  if (options.runPtxas) {
    const std::string ptxas = findPtxas(options.ptxas);
    const double before = now();
    if (ptxas.empty())
      report.note = "no ptxas (-ptxas=, CUDA_HOME, PATH): the driver compiles "
                    "the index kernels' PTX when they are loaded";
    else if (!runPtxas(ptxas, kernels.ptx, options.arch, kernels.name,
                       options.allowSpills, kernels.cubin, report.ptxas, error))
      return false;
    else
      report.assembled = true;
    report.ptxasSeconds = now() - before;
  }
  report.seconds = now() - start;
  return true;
}
