//===- Instructions.h - GPU instructions as nvvm ops ------------*- C++ -*-===//
//
// The only door to the nvvm dialect, whose header takes long to compile.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_LIB_CODEGEN_CUDA_INSTRUCTIONS_H
#define PREFILL_LIB_CODEGEN_CUDA_INSTRUCTIONS_H

#include "mlir/IR/Builders.h"
#include "mlir/IR/BuiltinTypes.h"

namespace prefill {

/// Creates one instruction a call, where the builder stands.
class Instructions {
public:
  Instructions(mlir::OpBuilder &builder, mlir::Location loc)
      : b(builder), loc(loc) {}

  mlir::Value threadId();
  /// The block's number: 0 (x), 1 (y), 2 (z).
  mlir::Value blockId(int dimension);

  /// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l %
  /// 8 of matrix l / 8. i32 each.
  llvm::SmallVector<mlir::Value> loadMatrices(mlir::Value address,
                                              bool transpose);
  /// mma.sync m16n8k16: 4 registers of A, 2 of B (i32), 4 accumulators (f32).
  llvm::SmallVector<mlir::Value> multiply(llvm::ArrayRef<mlir::Value> a,
                                          llvm::ArrayRef<mlir::Value> b,
                                          llvm::ArrayRef<mlir::Value> c,
                                          mlir::Type element);

  /// cp.async of 16 bytes, of which `bytes` (i32) are read and the rest is
  /// zero.
  void copyAsync(mlir::Value shared, mlir::Value global, mlir::Value bytes);
  void commitCopies();
  /// Until at most `newer` groups of this thread's copies are under way.
  void waitForCopies(int64_t newer);
  void barrier();

  /// The value of the lane whose number differs by `mask`.
  mlir::Value shuffleXor(mlir::Value value, int mask);

  mlir::Value exp2(mlir::Value x);
  mlir::Value log2(mlir::Value x);
  mlir::Value reciprocal(mlir::Value x);
  /// Two f32 rounded to 16 bits, as i32; `low` in the low half.
  mlir::Value pack(mlir::Value low, mlir::Value high, mlir::Type element);

private:
  mlir::Value i32(int64_t value);
  mlir::Value intrinsic(llvm::StringRef name, mlir::Type type,
                        llvm::ArrayRef<mlir::Value> operands);
  llvm::SmallVector<mlir::Value> unpack(mlir::Value structure);

  mlir::OpBuilder &b;
  mlir::Location loc;
};

/// Makes a function a kernel of `threads` threads whose argument 0 is passed by
/// value.
void markKernel(mlir::Operation *function, int threads);

/// Adds the nvvm dialect and its translation.
void registerNVVM(mlir::DialectRegistry &registry);

} // namespace prefill

#endif
