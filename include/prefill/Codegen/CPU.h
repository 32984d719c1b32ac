//===- CPU.h - Kernels for x86-64 -------------------------------*- C++ -*-===//
//
// `tile.kernel` -> scf, vector and llvm ops -> LLVM dialect -> LLVM IR.
//
// The dataflow puts query rows into SIMD lanes: every two-dimensional tile of
// the kernel's arithmetic lies transposed in the workspace, so K and V are read
// as they lie in memory (one broadcast an element), and softmax needs no
// horizontal operations.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_CODEGEN_CPU_H
#define PREFILL_CODEGEN_CPU_H

#include "mlir/Pass/Pass.h"
#include "prefill/Dialect/Tile/Tile.h"
#include <optional>

namespace mlir {
class OpPassManager;
} // namespace mlir

namespace prefill {

/// One instruction set and the register tile that suits it.
struct CpuTarget {
  int level = 4;       ///< x86-64-v<level>, as PREFILL_ISA_*
  int lanes = 16;      ///< fp32 numbers in a vector
  int tileRows = 6;    ///< of a matrix product's register tile
  int tileVectors = 4; ///< vectors of query rows in the register tile
  /// The register tile where masks leave out much, such as on the diagonal:
  /// smaller groups of query rows leave out more.
  int trimRows = 8, trimVectors = 2;
  bool hasFma = true;   ///< else multiply and add
  bool hasF16c = true;  ///< else fp16 converts by integer operations
  bool hasScale = true; ///< instructions for the parts of a power of two
  unsigned vectorBytes() const { return lanes * sizeof(float); }
  /// "x86-64-v4" and so on, also LLVM's CPU name.
  std::string name() const { return "x86-64-v" + std::to_string(level); }
};

/// The register tiles used for x86-64-v2, v3, v4; nothing for other levels.
std::optional<CpuTarget> getCpuTarget(int level);

/// The attribute of a lowered kernel that holds its workspace's size.
inline constexpr llvm::StringLiteral kWorkspaceAttr = "prefill.workspace_bytes";

/// Lowers a kernel to a `func.func` of the same name, inserted before it, that
/// takes the argument block's address. Failures are reported on the kernel.
mlir::LogicalResult lowerKernelToCpu(tile::KernelOp kernel,
                                     const CpuTarget &target);

/// From the output of `tile-lower-to-cpu` to the LLVM dialect.
void addLowerToLLVMPasses(mlir::OpPassManager &manager);

/// Dialects that lowering creates ops of.
void registerCodegenDialects(mlir::DialectRegistry &registry);

#define GEN_PASS_DECL
#define GEN_PASS_REGISTRATION
#include "prefill/Codegen/Passes.h.inc"

/// Registers the passes above and the pipeline `prefill-cpu-to-llvm`.
void registerCodegenPassesAndPipelines();

} // namespace prefill

#endif
