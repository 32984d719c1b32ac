//===- Passes.td - Passes of the code generator ------------*- tablegen -*-===//
#ifndef PREFILL_CODEGEN_PASSES_TD
#define PREFILL_CODEGEN_PASSES_TD

include "mlir/Pass/PassBase.td"

def TileLowerToCpu : Pass<"tile-lower-to-cpu", "::mlir::ModuleOp"> {
  let summary = "Lower tile.kernel to scf and vector ops for one x86-64 level";
  let description = [{
    Every `tile.kernel` becomes a `func.func` that takes the address of its
    argument block (runtime/include/prefill/kernel_abi.h). Tiles lie transposed in
    the workspace, query rows in SIMD lanes; element-wise ops and row reductions
    are fused into the register tiles of the matrix product before them.
  }];
  let options = [
    Option<"level", "level", "int", "4", "x86-64-v2, v3 or v4">,
    Option<"tileRows", "tile-rows", "int", "0",
           "rows of the register tile (0: as the level suggests)">,
    Option<"tileVectors", "tile-vectors", "int", "0",
           "vectors of the register tile (0: as the level suggests)">];
  let dependentDialects = ["::mlir::arith::ArithDialect",
                           "::mlir::func::FuncDialect",
                           "::mlir::LLVM::LLVMDialect",
                           "::mlir::math::MathDialect",
                           "::mlir::scf::SCFDialect",
                           "::mlir::vector::VectorDialect"];
}

#endif
