//===- KernelText.cpp - Print or compile one CUDA kernel ------------------===//
//
// prefill-cuda-kernel [--level=tile|warp|nvvm|llvm|ptx|report]
// [--dtype=bf16|f16]
//   [--head-dim=N] [--value-dim=N] [--causal] [--window=N] [--softcap] [--sink]
//   [--key-mask] [--lists] [--tma] [--persistent] [--block-q=N] [--block-k=N]
//   [--warps=N]
//   [--stages=N]
//   [--arch=80|86|89|90|90a] [--allow-spills]
//
//===----------------------------------------------------------------------===//

#include "prefill/Codegen/CUDA/CUDA.h"
#include "llvm/IR/Module.h"
#include "llvm/Support/CommandLine.h"
#include "llvm/Support/Format.h"
#include "llvm/Support/raw_ostream.h"

using namespace prefill;
namespace cl = llvm::cl;

static cl::opt<std::string> level("level", cl::init("report"));
static cl::opt<std::string> dtype("dtype", cl::init("bf16"));
static cl::opt<int> headDim("head-dim", cl::init(128)), valueDim("value-dim");
static cl::opt<int> window("window");
static cl::opt<bool> causal("causal"), softcap("softcap"), sink("sink"),
    keyMask("key-mask"), lists("lists"), tensorMaps("tma"),
    persistent("persistent"), allowSpills("allow-spills");
static cl::opt<int> blockQ("block-q"), blockK("block-k"), warps("warps"),
    stages("stages");
static cl::opt<std::string> arch("arch", cl::init("80"));

int main(int argc, char **argv) {
  cl::ParseCommandLineOptions(argc, argv);
  KernelSpec spec;
  spec.name = "kernel";
  spec.dtype = dtype == "f16"    ? DType::F16
               : dtype == "bf16" ? DType::BF16
                                 : DType::F32;
  spec.headDim = headDim;
  spec.vHeadDim = valueDim ? valueDim : headDim;
  spec.causal = causal;
  if (window)
    spec.windowLeft = window;
  spec.softcap = softcap ? 30 : 0;
  spec.hasSink = sink;
  spec.hasKeyMask = keyMask;
  CudaOptions options;
  llvm::StringRef number = arch;
  options.archSpecific = number.consume_back("a");
  if (number.getAsInteger(10, options.arch)) {
    llvm::errs() << "error: --arch=" << arch << ": 80, 90a, ... expected\n";
    return 1;
  }
  options.lists = lists;
  options.tensorMaps = tensorMaps;
  options.persistent = persistent;
  options.allowSpills = allowSpills;
  options.blockQ = blockQ;
  options.blockK = blockK;
  options.warps = warps;
  options.stages = stages;
  std::string error, text;
  bool good;
  if (level == "report") {
    CudaKernel kernel;
    good = compileCuda(spec, options, kernel, error);
    const CudaReport &report = kernel.report;
    llvm::outs() << kernel.name << ": " << report.schedule.blockQ << "x"
                 << report.schedule.blockK << ", " << report.schedule.warps
                 << " warps, " << report.schedule.stages << " stages, "
                 << report.sharedBytes << " bytes shared, "
                 << report.ptxas.registers << " registers, "
                 << report.ptxas.spillStores << " bytes spilled, cubin "
                 << kernel.cubin.size() << " bytes, "
                 << llvm::format("%.2f s, of which ptxas %.2f s",
                                 report.seconds, report.ptxasSeconds)
                 << (report.note.empty() ? "" : "; " + report.note) << "\n";
  } else {
    CudaText what = level == "tile"   ? CudaText::Tile
                    : level == "warp" ? CudaText::Warp
                    : level == "nvvm" ? CudaText::NVVM
                    : level == "llvm" ? CudaText::LLVM
                                      : CudaText::PTX;
    good = printCuda(spec, options, what, text, error);
    llvm::outs() << text;
  }
  if (!good)
    llvm::errs() << "error: " << error << "\n";
  return good ? 0 : 1;
}
