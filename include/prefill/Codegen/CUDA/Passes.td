//===- Passes.td - Passes of the CUDA code generator -------*- tablegen -*-===//
#ifndef PREFILL_CODEGEN_CUDA_PASSES_TD
#define PREFILL_CODEGEN_CUDA_PASSES_TD

include "mlir/Pass/PassBase.td"

def TileToTensorCores : Pass<"tile-to-tensor-cores", "::mlir::ModuleOp"> {
  let summary = "Bring matrix products into the form tensor cores have";
  let description = [{
    Left operands of `tile.dot` become 16-bit: a scalar factor of a widened tile
    moves behind the product, other fp32 tiles are rounded. A positive factor
    then moves on behind masks and row maxima, so that it costs one multiply-add
    with the exponential's difference.
  }];
  let dependentDialects = ["::mlir::arith::ArithDialect"];
}

def ConvertTileToWarp : Pass<"convert-tile-to-warp", "::mlir::ModuleOp"> {
  let summary = "Schedule tile.kernel for a GPU";
  let description = [{
    Tiles that products read go to rings in shared memory, copies are placed so
    that a tile's stage is filled again right after the barrier that ends its last
    use, everything else becomes a fragment.
  }];
  let options = [
    Option<"arch", "arch", "int", "80", "architecture: 80">,
    Option<"warps", "warps", "int", "4", "warps that compute">,
    Option<"stages", "stages", "int", "1", "stages of rings that loops fill">,
    Option<"lists", "lists", "bool", "false",
           "the launch names the tiles to visit">,
    Option<"chunks", "chunks", "bool", "false",
           "a block visits a chunk of the keys (abi `sums`)">];
  let dependentDialects = ["::prefill::warp::WarpDialect",
                           "::mlir::scf::SCFDialect",
                           "::mlir::arith::ArithDialect"];
}

def FoldScoreScale : Pass<"fold-score-scale", "::mlir::ModuleOp"> {
  let summary = "The positive scale of scores as part of the exponential's argument";
  let description = [{
    A factor behind a loop's first product moves on behind masks and row maxima,
    where it is one multiply-add with the difference under the exponential. Scores
    beyond 2^28 stay right.
  }];
  let dependentDialects = ["::mlir::arith::ArithDialect",
                           "::mlir::math::MathDialect"];
}

def ScheduleWarpgroups : Pass<"schedule-warpgroups", "::mlir::ModuleOp"> {
  let summary = "Schedule tile.kernel for sm_90a: a copying and computing warpgroups";
  let description = [{
    For kernels with one loop over keys of two products, of which the second one
    reads what is computed from the first one. The first product of a tile runs
    while the exponentials and the second product of the one before do.
  }];
  let options = [
    Option<"warpgroups", "warpgroups", "int", "2", "warpgroups that compute">,
    Option<"stages", "stages", "int", "2", "stages of K's and of V's ring">,
    Option<"copyRegisters", "copy-registers", "int", "40",
           "registers of a thread that copies">,
    Option<"computeRegisters", "compute-registers", "int", "232",
           "registers of a thread that computes">,
    Option<"takeTurns", "take-turns", "bool", "true",
           "warpgroups start products in turn">,
    Option<"tensorMaps", "tensor-maps", "bool", "false",
           "copies are TMA's, by one thread">,
    Option<"persistent", "persistent", "bool", "false",
           "a block takes one tile of query rows after the other">,
    Option<"lists", "lists", "bool", "false",
           "the launch names the tiles to visit">];
  let dependentDialects = ["::prefill::warp::WarpDialect",
                           "::mlir::scf::SCFDialect",
                           "::mlir::arith::ArithDialect"];
}

def ConvertWarpToNVVM : Pass<"convert-warp-to-nvvm", "::mlir::ModuleOp"> {
  let summary = "One SSA value a register: warp.kernel to scf, llvm and nvvm ops";
  let dependentDialects = ["::mlir::arith::ArithDialect",
                           "::mlir::LLVM::LLVMDialect",
                           "::mlir::scf::SCFDialect"];
}

#endif
