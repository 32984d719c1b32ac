//===- Warp.h - The warp dialect --------------------------------*- C++ -*-===//
#ifndef PREFILL_DIALECT_WARP_WARP_H
#define PREFILL_DIALECT_WARP_WARP_H

#include "prefill/Dialect/Tile/Tile.h"

#include "prefill/Dialect/Warp/WarpDialect.h.inc"
#include "prefill/Dialect/Warp/WarpEnums.h.inc"

#define GET_ATTRDEF_CLASSES
#include "prefill/Dialect/Warp/WarpAttrs.h.inc"
#define GET_TYPEDEF_CLASSES
#include "prefill/Dialect/Warp/WarpTypes.h.inc"
#define GET_OP_CLASSES
#include "prefill/Dialect/Warp/WarpOps.h.inc"

namespace prefill::warp {
/// How a tensor lies in registers; nothing when it is no fragment.
std::optional<FragKind> getFragKind(mlir::Type type);
/// The same tile as a fragment.
mlir::RankedTensorType getFragment(mlir::RankedTensorType tile, FragKind kind);
} // namespace prefill::warp

#endif
