//===- TileLowerToCpu.cpp - The pass and the targets ----------------------===//

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "prefill/Codegen/CPU.h"

namespace prefill {
#define GEN_PASS_DEF_TILELOWERTOCPU
#include "prefill/Codegen/Passes.h.inc"
} // namespace prefill

using namespace mlir;
using namespace prefill;

std::optional<CpuTarget> prefill::getCpuTarget(int level) {
  CpuTarget target;
  target.level = level;
  switch (level) {
  case 4:
    return target;
  case 3:
    target.lanes = 8;
    target.tileVectors = 2;
    target.hasScale = false;
    return target;
  case 2:
    target.lanes = 4;
    target.tileRows = 4;
    target.tileVectors = 2;
    target.hasFma = target.hasF16c = target.hasScale = false;
    return target;
  default:
    return std::nullopt;
  }
}

void prefill::registerCodegenDialects(DialectRegistry &registry) {
  registry.insert<tile::TileDialect, arith::ArithDialect, func::FuncDialect,
                  LLVM::LLVMDialect, math::MathDialect, scf::SCFDialect,
                  vector::VectorDialect>();
}

namespace {

struct TileLowerToCpu
    : public prefill::impl::TileLowerToCpuBase<TileLowerToCpu> {
  using TileLowerToCpuBase::TileLowerToCpuBase;

  void runOnOperation() override {
    std::optional<CpuTarget> target = getCpuTarget(level);
    if (!target) {
      getOperation().emitError("no CPU target x86-64-v") << level;
      return signalPassFailure();
    }
    if (tileRows > 0)
      target->tileRows = tileRows;
    if (tileVectors > 0)
      target->tileVectors = tileVectors;
    auto kernels = llvm::to_vector(getOperation().getOps<tile::KernelOp>());
    for (tile::KernelOp kernel : kernels)
      if (failed(lowerKernelToCpu(kernel, *target)))
        return signalPassFailure();
  }
};

} // namespace
