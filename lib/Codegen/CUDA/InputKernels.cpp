//===- InputKernels.cpp - Kernels beside attention ------------------------===//
//
// runtime/cuda/inputs.c for an architecture. It is the same for every model.
//
//===----------------------------------------------------------------------===//

#include "prefill/Codegen/CUDA/CUDA.h"
#include "prefill/Codegen/CUDA/Images.h"
#include "prefill/cuda_abi.h"
#include "llvm/Bitcode/BitcodeReader.h"
#include "llvm/IR/LLVMContext.h"
#include "llvm/IR/Module.h"
#include "llvm/Support/MemoryBuffer.h"

using namespace prefill;

static const unsigned char bitcode[] = {
#include "input_kernels.inc"
};

bool prefill::compileCudaInputs(const CudaOptions &options, CudaKernel &kernels,
                                std::string &error) {
  error.clear();
  kernels = CudaKernel();
  kernels.name = "prefill_inputs";
  kernels.context = std::make_unique<llvm::LLVMContext>();
  llvm::StringRef bytes(reinterpret_cast<const char *>(bitcode),
                        sizeof(bitcode));
  auto module = llvm::parseBitcodeFile(
      llvm::MemoryBufferRef(bytes, "input kernels"), *kernels.context);
  if (!module) {
    error = "input kernels: " + llvm::toString(module.takeError());
    return false;
  }
  kernels.module = std::move(*module);
  for (llvm::Function &function : *kernels.module) {
    // Those of the machine that code is emitted for count.
    function.removeFnAttr("target-cpu");
    function.removeFnAttr("target-features");
    if (function.getCallingConv() == llvm::CallingConv::PTX_Kernel)
      function.addFnAttr("nvvm.maxntid",
                         std::to_string(PREFILL_CUDA_INPUT_THREADS));
  }
  if (!emitPTX(*kernels.module, options.arch, kernels.ptx, error,
               options.archSpecific)) {
    error = "input kernels: " + error;
    return false;
  }
  CudaReport &report = kernels.report;
  report.schedule.arch = options.arch;
  report.schedule.blockQ = report.schedule.blockK = 0;
  report.threads = PREFILL_CUDA_INPUT_THREADS;
  if (!options.runPtxas)
    return true;
  const std::string ptxas = findPtxas(options.ptxas);
  if (ptxas.empty())
    return true;
  report.assembled = runPtxas(ptxas, kernels.ptx, options.arch, kernels.name,
                              options.allowSpills, kernels.cubin, report.ptxas,
                              error, options.archSpecific);
  return report.assembled;
}
