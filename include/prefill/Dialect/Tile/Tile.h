//===- Tile.h - The tile dialect --------------------------------*- C++ -*-===//
#ifndef PREFILL_DIALECT_TILE_TILE_H
#define PREFILL_DIALECT_TILE_TILE_H

#include "mlir/Bytecode/BytecodeOpInterface.h"
#include "mlir/IR/Builders.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/Dialect.h"
#include "mlir/IR/OpDefinition.h"
#include "mlir/IR/OpImplementation.h"
#include "mlir/IR/SymbolTable.h"
#include "mlir/Interfaces/ControlFlowInterfaces.h"
#include "mlir/Interfaces/FunctionInterfaces.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"

#include "prefill/Dialect/Tile/TileDialect.h.inc"
#include "prefill/Dialect/Tile/TileEnums.h.inc"

#define GET_TYPEDEF_CLASSES
#include "prefill/Dialect/Tile/TileTypes.h.inc"
#define GET_OP_CLASSES
#include "prefill/Dialect/Tile/TileOps.h.inc"

namespace prefill::tile {
/// The argument attribute that names the field of the call's argument block.
inline constexpr llvm::StringLiteral kFieldAttr = "tile.field";
} // namespace prefill::tile

#endif
