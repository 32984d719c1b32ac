//===- FragmentKinds.h - How tiles lie in registers -------------*- C++ -*-===//
#ifndef PREFILL_LIB_CODEGEN_CUDA_FRAGMENTKINDS_H
#define PREFILL_LIB_CODEGEN_CUDA_FRAGMENTKINDS_H

#include "mlir/IR/Builders.h"
#include "mlir/IR/IRMapping.h"
#include "prefill/Dialect/Warp/Warp.h"

namespace prefill {

/// Which tiles of a kernel hold one number a row and which one a column:
/// spreads what the ops say of some of them over element-wise ops and loops.
class FragmentKinds {
public:
  explicit FragmentKinds(tile::KernelOp kernel);
  /// The type of a tile as a fragment; other types as they are.
  mlir::Type convert(mlir::Value value) const;
  /// The op on fragments; its regions stay empty.
  mlir::Operation *clone(mlir::OpBuilder &b, mlir::Operation *op,
                         mlir::IRMapping &map) const;

private:
  llvm::DenseMap<mlir::Value, warp::FragKind> kinds;
};

} // namespace prefill

#endif
