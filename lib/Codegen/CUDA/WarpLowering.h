//===- WarpLowering.h - One SSA value a register ----------------*- C++ -*-===//
//
// What the parts of `convert-warp-to-nvvm` share. Every value of a warp.kernel
// becomes a list of scalars (`Lanes`): those that one thread holds.
//
//   acc fragment  f32, i32, i1: ((m N/8 + j) 2 + r) 2 + e, 16-bit: pairs as
//   i32,
//                 (m N/8 + j) 2 + r; for group of 16 rows m, 8 columns j, row
//                 g + 8 r, column 2 t + e
//   row fragment  2 m + r
//   col fragment  2 j + e
//   view          address (global), elements between rows, number of rows
//   keys          first key or column, whether masks are needed, whether
//   columns ring          bytes from the start of shared memory are in `rings`
//   smem          address (shared)
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_LIB_CODEGEN_CUDA_WARPLOWERING_H
#define PREFILL_LIB_CODEGEN_CUDA_WARPLOWERING_H

#include "Instructions.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "prefill/Dialect/Warp/Warp.h"

namespace prefill {

class WarpLowering {
public:
  using Value = mlir::Value;
  using Lanes = llvm::SmallVector<Value, 4>;

  explicit WarpLowering(warp::KernelOp kernel);
  /// Replaces the kernel by an `llvm.func` of the same name.
  mlir::LogicalResult run();

private:
  // LowerMemory.cpp
  mlir::LogicalResult bindArguments();
  /// What is known of query tile `tile` of `head` and `batch`, and the kernel's
  /// arguments, or what stands for them.
  mlir::LogicalResult bindTile(llvm::ArrayRef<mlir::BlockArgument> args);
  Value countQueryTiles();
  mlir::LogicalResult bindArgument(mlir::BlockArgument arg,
                                   llvm::StringRef field);
  void bindIndex();
  /// The batch's entry of an array with `size` bytes an entry, or the field
  /// where there is no array. Both fields by their offset in the arguments.
  Value perBatch(int64_t array, int64_t field, mlir::Type type, int64_t size);
  mlir::LogicalResult lower(warp::KeysOp op);
  mlir::LogicalResult lower(warp::AllocOp op);
  Value slotAddress(Value ring, Value number);
  mlir::LogicalResult lower(warp::CopyOp op);
  mlir::LogicalResult lower(tile::StoreOp op);
  mlir::LogicalResult lower(tile::LoadOp op);
  /// The key numbers of rows `row` of a tile of keys; past every key where
  /// there is none.
  llvm::SmallVector<Value> keyNumbers(Value keys, llvm::ArrayRef<Value> rows);

  // LowerSums.cpp
  mlir::LogicalResult bindSums();
  mlir::LogicalResult lower(tile::StoreSumsOp op);

  // LowerProducts.cpp
  mlir::LogicalResult lower(warp::MmaOp op);
  llvm::SmallVector<Value> loadLeft(Value a, int64_t group, int64_t step);

  // LowerWarpgroups.cpp
  mlir::LogicalResult lower(warp::RolesOp op);
  mlir::LogicalResult lower(warp::ForWorkOp op);
  void findTile(Value round);
  Value placeInRound(Value round);
  mlir::LogicalResult lower(warp::OrderWaitOp op);
  mlir::LogicalResult lower(warp::OrderPassOp op);
  mlir::LogicalResult lower(warp::FullTilesOp op);
  mlir::LogicalResult lower(warp::MmaIssueOp op);
  mlir::LogicalResult lower(warp::MmaWaitOp op);
  mlir::LogicalResult copyByTMA(warp::CopyOp op);
  void acquireStage(Value ring, Value number);
  void commitStage(Value ring, Value number);
  void waitForStage(Value ring, Value number);
  void releaseStage(Value ring, Value number);
  /// The barrier "full" or "empty" of a tile's stage.
  Value stageBarrier(Value ring, Value number, bool empty);
  /// How often a ring has come round before a tile, modulo 2.
  Value stageParity(Value ring, Value number);
  /// wgmma's descriptor of a swizzled tile; the address is in bytes.
  Value descriptor(Value address, int64_t leadingBytes);

  // LowerTiles.cpp
  mlir::LogicalResult lowerElementwise(mlir::Operation *op);
  mlir::LogicalResult lower(mlir::arith::ConstantOp op);
  mlir::LogicalResult lower(tile::ReduceRowOp op);
  mlir::LogicalResult lower(warp::PartSumOp op);
  mlir::LogicalResult lower(warp::WholeSumOp op);
  mlir::LogicalResult lower(tile::BroadcastOp op);
  mlir::LogicalResult lower(tile::RowsOp op);
  mlir::LogicalResult lower(tile::PositionsOp op);
  mlir::LogicalResult lower(tile::MaskOp op);

  // ConvertWarpToNVVM.cpp
  mlir::LogicalResult lower(mlir::Operation *op);
  mlir::LogicalResult lowerBlock(mlir::Block &block);
  mlir::LogicalResult lower(mlir::scf::ForOp op);
  mlir::LogicalResult lower(mlir::scf::IfOp op);

  // Shorthands.
  Value i1(bool value);
  Value i32(int64_t value);
  Value i64(int64_t value);
  Value f32(double value);
  Value add(Value x, Value y);
  Value sub(Value x, Value y);
  Value mul(Value x, Value y);
  Value divide(Value x, Value y); ///< unsigned
  Value bitAnd(Value x, Value y);
  Value bitOr(Value x, Value y);
  Value shiftRight(Value x, int64_t bits);
  Value bitXor(Value x, Value y);
  Value select(Value condition, Value x, Value y);
  Value compare(mlir::arith::CmpIPredicate predicate, Value x, Value y);
  Value clamp(Value x, Value low, Value high); ///< signed
  Value wide(Value x);                         ///< i32 to i64, not negative
  Value narrow(Value x);                       ///< i64 to i32
  Value offset(Value pointer, Value bytes);
  Value offset(Value pointer, int64_t bytes);
  Value load(Value pointer, mlir::Type type);
  /// A field of the launch's argument block.
  Value parameter(int64_t bytes, mlir::Type type);
  mlir::Type globalPointer();
  mlir::Type sharedPointer();
  const Lanes &lanes(Value value) const;
  Value scalar(Value value) const { return lanes(value).front(); }
  /// Groups of 16 rows of a warp, for a fragment or stage of `rows` rows.
  int64_t groups(int64_t rows) const { return rows / (16 * warps); }

  warp::KernelOp kernel;
  mlir::Location loc;
  mlir::OpBuilder b;
  Instructions gpu;
  mlir::LLVM::LLVMFuncOp function;
  llvm::DenseMap<Value, Lanes> map;
  llvm::DenseMap<Value, int64_t> rings;    ///< offsets in shared memory
  llvm::DenseMap<Value, int64_t> barriers; ///< of rings: full, then empty
  int64_t sharedBytes = 0;
  int64_t warps, blockQ = 0, indexSize = 0;
  bool roles = false; ///< a warpgroup copies for the others
  bool hasKeyMask = false;
  Value warpgroup;  ///< with roles
  Value copyThread; ///< of those that copy
  int64_t copyThreads = 0;

  // What every thread knows.
  Value arguments, tensorMaps, shared, thread, lane, warpId;
  Value group, quad; ///< lane / 4, lane % 4
  Value head, kvHead, batch, tile, row0, rows, position, kvLength;
  Value windowLeft, windowRight; ///< null: unbounded
  struct {
    Value count;
    Value lastBlock, fullLow, fullHigh;                      ///< dense
    Value blocks, blockCount, fullCount, columns, positions; ///< lists
  } index;
};

} // namespace prefill

#endif
