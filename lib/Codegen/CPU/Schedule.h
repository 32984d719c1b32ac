//===- Schedule.h - Which tile ops share a loop -----------------*- C++ -*-===//
//
// Orders the ops of a kernel's body, or of its loop over the index, into steps.
// A step is one nest of loops over a tile (anchored at a matrix product, a
// transposing load or store, or at nothing) with the element-wise ops and row
// reductions that can ride along, or a group of ops on one number a row.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_CODEGEN_CPU_SCHEDULE_H
#define PREFILL_CODEGEN_CPU_SCHEDULE_H

#include "prefill/Dialect/Tile/Tile.h"
#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/DenseSet.h"

namespace prefill {

/// What a value of a kernel is to the CPU lowering.
enum class ValueKind {
  Scalar,
  Row,    ///< one number a query row: vectors, in the workspace between steps
  Key,    ///< one number a key: computed where it is used
  Square, ///< query rows x something: transposed, in the workspace between
          ///< steps
  Operand ///< rows of memory that a matrix product reads as they lie
};

struct Step {
  enum Kind {
    Rows,   ///< ops on one number a row
    Dot,    ///< anchored at a matrix product
    Pack,   ///< anchored at a load that puts query rows into lanes
    Map,    ///< element-wise ops and reductions only
    Unpack, ///< anchored at a store
    Need,   ///< tile.need: later steps run only where there is need of them
    Loop    ///< tile.for_tiles
  };
  Kind kind;
  mlir::Operation *anchor = nullptr;
  /// In program order, without the anchor.
  llvm::SmallVector<mlir::Operation *> ops;
};

struct Schedule {
  llvm::SmallVector<mlir::Operation *> scalars;
  llvm::SmallVector<Step> steps;
  /// The step that computes a value. Values computed where they are used
  /// (constants, broadcasts, a product's accumulator, a store's input), values
  /// of enclosing blocks and carried values have none.
  llvm::DenseMap<mlir::Value, unsigned> stepOf;
};

/// Classifies all values of a kernel.
llvm::DenseMap<mlir::Value, ValueKind> classifyValues(tile::KernelOp kernel);

/// Fails, with a diagnostic, on ops that the CPU lowering does not know.
mlir::FailureOr<Schedule>
scheduleBlock(mlir::Block &block,
              const llvm::DenseMap<mlir::Value, ValueKind> &kinds);

} // namespace prefill

#endif
