//===- KernelLowering.h - One tile.kernel to scf and vector -----*- C++ -*-===//
#ifndef PREFILL_CODEGEN_CPU_KERNELLOWERING_H
#define PREFILL_CODEGEN_CPU_KERNELLOWERING_H

#include "Schedule.h"
#include "VectorEmitter.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"

namespace prefill {

inline mlir::RankedTensorType tileType(mlir::Value value) {
  return mlir::cast<mlir::RankedTensorType>(value.getType());
}

/// A view argument, with addresses in bytes.
struct BoundView {
  mlir::Type element;
  mlir::Value base;
  mlir::Value rowBytes;    ///< from row to row; null for one-dimensional views
  mlir::Value rows;        ///< rows that exist; null where keys select the rows
  mlir::Value keyBytes;    ///< from key to key where keys select columns
  mlir::Value packed;      ///< copies of gathered keys; null if there are none
  int64_t packedBytes = 0; ///< from copy to copy
  bool nullable = false;
};

/// One round of a loop over the index.
struct KeyTile {
  mlir::Value isBlock; ///< else gathered columns
  mlir::Value first;   ///< number of the first key, or of the first column
  mlir::Value live;    ///< keys from here on that exist
  mlir::Value next;    ///< first key of the next round's block; or any other
  mlir::Value masked;  ///< some key may be invisible to some row
  /// Groups of `CpuTarget::trimVectors` see less than there is. Null where
  /// groups of query rows are no larger than that anyway.
  mlir::Value trims;
  bool isMasked = false; ///< known to be masked here
  bool isRanged = false; ///< keys outside of a group's range are left out
};

/// Keys of a tile that some row of a group may see: [begin, end).
struct KeyRange {
  mlir::Value begin, end;
};

/// Vectors of one piece of a tile: `rows` columns of the tile (rows of its
/// transposed copy) by `vectors` groups of query rows.
struct Piece {
  Piece(mlir::Value row, int64_t rows, mlir::Value lane, int64_t vectors)
      : row(row), rows(rows), lane(lane), vectors(vectors) {}
  mlir::Value row; ///< number of the first transposed row
  int64_t rows;
  mlir::Value lane; ///< number of the first query row
  int64_t vectors;
  /// rows * vectors values each.
  llvm::DenseMap<mlir::Value, llvm::SmallVector<mlir::Value>> squares;
};

class KernelLowering {
public:
  KernelLowering(tile::KernelOp kernel, const CpuTarget &target)
      : kernel(kernel), target(target), builder(kernel->getContext()),
        e(builder, kernel.getLoc(), target), b(builder), loc(kernel.getLoc()) {}

  mlir::LogicalResult run();

private:
  using Vectors = llvm::SmallVector<mlir::Value>;
  using RowCache = llvm::DenseMap<mlir::Value, Vectors>;

  //===--- LowerKernel.cpp
  //--------------------------------------------------===//
  mlir::LogicalResult bindArguments();
  mlir::Value field(size_t offset, mlir::Type type);
  mlir::LogicalResult lowerBlock(mlir::Block &block);
  mlir::LogicalResult lowerLoop(tile::ForTilesOp loop);
  mlir::LogicalResult lowerRows(const Step &step);
  void lowerRowLoad(tile::LoadOp load);
  mlir::Value emitPositions();
  /// Finds out what the loop's mask says about whole groups of query rows.
  /// False if keys that it hides could have an effect.
  bool findBounds(tile::ForTilesOp loop);
  KeyRange keyRange(mlir::Value lane, int64_t rows);
  /// Where the last vector of a group begins to be the only one that sees keys;
  /// null where groups are not told apart that far.
  mlir::Value sharedEnd(mlir::Value lane, int64_t vectors);
  int64_t groupVectors(int64_t vectors) const;
  void assignSlots(mlir::Block &block, const Schedule &schedule);
  int64_t allocate(int64_t bytes);
  mlir::Value workspace(int64_t offset) { return e.at(memory, offset); }
  /// Asks for a tile's rows.
  void prefetchRows(const BoundView &view, mlir::Value tile);
  void copySlot(mlir::Value from, mlir::Value to);
  mlir::Value scalar(mlir::Value value) { return scalars.lookup(value); }

  // LowerSteps.cpp
  mlir::LogicalResult lowerStep(const Step &step);
  mlir::LogicalResult lowerMap(const Step &step);
  mlir::LogicalResult lowerPack(const Step &step);
  mlir::LogicalResult lowerKeyedPack(const Step &step);
  mlir::LogicalResult lowerUnpack(const Step &step);
  /// Opens a branch that what follows in the round is emitted into.
  mlir::LogicalResult lowerNeed(tile::NeedOp need);
  void storeRowVector(tile::StoreOp store);
  /// Loops over groups of query rows.
  void forLanes(int64_t vectors,
                llvm::function_ref<void(mlir::Value lane)> body);
  /// Loops over the transposed rows of a tile in pieces, carrying the
  /// accumulators of the step's row reductions. `overKeys`: the rows are keys.
  mlir::LogicalResult
  forPieces(const Step &step, int64_t rows, int64_t pieceRows, int64_t vectors,
            llvm::function_ref<mlir::LogicalResult(Piece &)> anchor,
            bool overKeys = false);
  /// Emits a step for the register tile, and where that pays once more for the
  /// smaller groups of query rows that leave out more of a masked tile.
  mlir::LogicalResult forShapes(
      llvm::function_ref<mlir::LogicalResult(int64_t rows, int64_t vectors)>
          emit);
  /// Evaluates the ops that ride on a step, and saves what later steps need.
  mlir::LogicalResult evaluate(const Step &step, Piece &piece);
  void save(mlir::Value value, Piece &piece);
  mlir::Value slotAddress(int64_t slot, mlir::Value row, mlir::Value lane);
  mlir::FailureOr<Vectors> square(mlir::Value value, Piece &piece);
  mlir::FailureOr<Vectors> rowVectors(mlir::Value value, mlir::Value lane,
                                      int64_t vectors);
  mlir::FailureOr<mlir::Value> keyScalar(mlir::Value value,
                                         mlir::Value position);
  mlir::FailureOr<mlir::Value>
  elementwise(mlir::Operation *op, llvm::ArrayRef<mlir::Value> operands);
  mlir::LogicalResult lowerMask(tile::MaskOp mask, Piece &piece);
  /// Which rows of a piece may see which of its keys, in a round that is
  /// masked.
  mlir::FailureOr<Vectors> visibleOf(tile::MaskOp mask, const Piece &piece);
  mlir::LogicalResult storeKeys(tile::StoreOp store, Piece &piece);

  // LowerProducts.cpp
  mlir::LogicalResult lowerDot(const Step &step);
  /// With `hiding` what this mask hides from a row is left out of its sums,
  /// whatever it is.
  mlir::LogicalResult productPiece(tile::DotOp dot, mlir::Value base,
                                   mlir::Value stride, Piece &piece,
                                   tile::MaskOp hiding = {});
  /// Whether one of the live rows of a masked round's operand holds an infinity
  /// or a NaN; false in other rounds.
  mlir::Value isUnsound(mlir::Value base, mlir::Value stride, int64_t width);
  /// Copies rows of keys to the workspace as fp32; dead columns become zero if
  /// `clearDead`.
  void copyOperand(mlir::Type element, int64_t width, mlir::Value base,
                   mlir::Value stride, bool clearDead);
  /// Asks for what the next round's block has in place of a piece of keys: all
  /// of it, or one line in every round of the piece's product.
  void prefetchNext(const Piece &piece, mlir::Value round = {},
                    int64_t rounds = 0);
  /// Where a product's second operand lies, as fp32 rows; converts 16-bit
  /// types.
  mlir::FailureOr<std::pair<mlir::Value, mlir::Value>>
  productOperand(tile::DotOp dot);

  tile::KernelOp kernel;
  const CpuTarget &target;
  mlir::OpBuilder builder;
  VectorEmitter e;
  mlir::OpBuilder &b;
  mlir::Location loc;

  llvm::DenseMap<mlir::Value, ValueKind> kinds;
  llvm::DenseMap<mlir::Value, mlir::Value> scalars;
  llvm::DenseMap<mlir::Value, BoundView> views;
  /// Values that live in the workspace, by offset.
  llvm::DenseMap<mlir::Value, int64_t> slots;
  /// Values that an enclosing step has already put into registers.
  RowCache rowCache;
  KeyTile keyTile;
  /// Last and first key that row 0 may see, growing by 1 a row; null if there
  /// is no such bound.
  mlir::Value highest, lowest;
  mlir::Value arguments, memory;
  mlir::Value blockCount, fullCount, blocks, columnCount, columnPositions,
      keyEnd, keyBegin, rowCount;
  mlir::Value zeros;
  int64_t queryRows = 0;
  int64_t keyTileSize = 0; ///< of the loop over the index
  int64_t used = 0;
  int64_t operandSlot = -1, positionSlot = -1, trashSlot = 0;
  bool needsPositions = false, positionsAlways = false;
};

} // namespace prefill

#endif
