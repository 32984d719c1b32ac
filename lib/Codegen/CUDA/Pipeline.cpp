//===- Pipeline.cpp - The order of passes ---------------------------------===//

#include "Instructions.h"
#include "mlir/Conversion/ArithToLLVM/ArithToLLVM.h"
#include "mlir/Conversion/ControlFlowToLLVM/ControlFlowToLLVM.h"
#include "mlir/Conversion/ReconcileUnrealizedCasts/ReconcileUnrealizedCasts.h"
#include "mlir/Conversion/SCFToControlFlow/SCFToControlFlow.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Pass/PassRegistry.h"
#include "mlir/Transforms/Passes.h"
#include "prefill/Codegen/CUDA/CUDA.h"

using namespace mlir;
using namespace prefill;

void prefill::addCudaPasses(OpPassManager &manager,
                            const CudaSchedule &schedule) {
  manager.addPass(createTileToTensorCores());
  if (schedule.warpgroups) {
    if (schedule.foldScale)
      manager.addPass(createFoldScoreScale());
    ScheduleWarpgroupsOptions options;
    options.warpgroups = schedule.warps / 4;
    options.stages = schedule.stages;
    options.copyRegisters = schedule.copyRegisters;
    options.computeRegisters = schedule.computeRegisters;
    options.takeTurns = schedule.takeTurns;
    options.lists = schedule.lists;
    options.tensorMaps = schedule.tensorMaps;
    options.persistent = schedule.persistent;
    manager.addPass(createScheduleWarpgroups(options));
    return;
  }
  ConvertTileToWarpOptions options;
  // One schedule serves all targets: later GPUs run sm_80's instructions.
  options.arch = 80;
  options.warps = schedule.warps;
  options.stages = schedule.stages;
  options.lists = schedule.lists;
  options.chunks = schedule.chunks;
  manager.addPass(createConvertTileToWarp(options));
}

void prefill::addCudaToLLVMPasses(OpPassManager &manager) {
  manager.addPass(createCSEPass());
  manager.addPass(createSCFToControlFlowPass());
  manager.addPass(createArithToLLVMConversionPass());
  manager.addPass(createConvertControlFlowToLLVMPass());
  manager.addPass(createReconcileUnrealizedCastsPass());
}

void prefill::registerCudaDialects(DialectRegistry &registry) {
  registry.insert<warp::WarpDialect, tile::TileDialect, arith::ArithDialect,
                  LLVM::LLVMDialect, math::MathDialect, scf::SCFDialect>();
  registerNVVM(registry);
}

void prefill::registerCudaPassesAndPipelines() {
  registerPrefillCudaPasses();
  PassPipelineRegistration<>(
      "prefill-nvvm-to-llvm",
      "Lower the output of convert-warp-to-nvvm to the LLVM and NVVM dialects",
      addCudaToLLVMPasses);
}
