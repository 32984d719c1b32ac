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
  /// How many blocks there are in x.
  mlir::Value blockCount();

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

  // sm_90a, in WarpgroupInstructions.cpp. Shared addresses are pointers.

  /// This warp's warpgroup, known to be the same in all lanes.
  mlir::Value warpgroup(mlir::Value thread);
  /// Registers of a thread from here on; all threads of a warpgroup.
  void setRegisters(int64_t count, bool more);
  /// Waits for, or only announces, `threads` threads at barrier `id` (1..15).
  void namedBarrier(mlir::Value id, int64_t threads, bool wait);

  void initBarrier(mlir::Value barrier, int64_t arrivals);
  /// After the first initBarriers: TMA and other threads see them.
  void fenceBarrierInit();
  void arrive(mlir::Value barrier);
  /// Arrives once all copies of this thread so far are there.
  void arriveAfterCopies(mlir::Value barrier);
  /// Arrives, and the phase ends when TMA has written `bytes` more.
  void arriveExpecting(mlir::Value barrier, int64_t bytes);
  /// TMA: starts to copy the box of a tensor map at `coordinates` (i32,
  /// innermost first) to `shared`; it counts its bytes at `barrier`.
  void copyBox(mlir::Value shared, mlir::Value map,
               llvm::ArrayRef<mlir::Value> coordinates, mlir::Value barrier);
  /// Until the phase of this parity (i32) is over.
  void waitBarrier(mlir::Value barrier, mlir::Value parity);
  /// What was written in the ordinary way is seen by wgmma and TMA.
  void fenceAsync();

  /// Values that are one register each from here on: nothing that computes
  /// them moves below this point.
  llvm::SmallVector<mlir::Value> pin(llvm::ArrayRef<mlir::Value> values);
  void fenceProducts();
  void commitProducts();
  /// Until at most `newer` groups of products run; gives what `values` became.
  llvm::SmallVector<mlir::Value>
  waitForProducts(int64_t newer, llvm::ArrayRef<mlir::Value> values);
  /// wgmma m64 n`columns` k16: `a` is a descriptor (i64) or four registers, `b`
  /// a descriptor. No `sums`: they begin at zero.
  llvm::SmallVector<mlir::Value>
  multiplyWarpgroup(llvm::ArrayRef<mlir::Value> a, mlir::Value right,
                    llvm::ArrayRef<mlir::Value> sums, int64_t columns,
                    mlir::Type element, bool transposeB);

private:
  mlir::Value i32(int64_t value);
  llvm::SmallVector<mlir::Value> assembly(llvm::StringRef text,
                                          llvm::StringRef constraints,
                                          llvm::ArrayRef<mlir::Value> operands,
                                          llvm::ArrayRef<mlir::Type> results);
  mlir::Value sharedAddress(mlir::Value pointer);
  mlir::Value intrinsic(llvm::StringRef name, mlir::Type type,
                        llvm::ArrayRef<mlir::Value> operands);
  llvm::SmallVector<mlir::Value> unpack(mlir::Value structure);

  mlir::OpBuilder &b;
  mlir::Location loc;
};

/// Makes a function a kernel of `threads` threads whose argument 0 is passed by
/// value. `alone`: one block a multiprocessor, which setmaxnreg needs.
void markKernel(mlir::Operation *function, int threads, bool alone = false);

/// Adds the nvvm dialect and its translation.
void registerNVVM(mlir::DialectRegistry &registry);

} // namespace prefill

#endif
