//===- PlanIR.h - Head plans as score, select and index ops ------*- C++ -*-==//
#ifndef PREFILL_TRANSFORMS_PLANIR_H
#define PREFILL_TRANSFORMS_PLANIR_H

#include "mlir/IR/Builders.h"
#include "prefill/Dialect/Prefill/HeadPlan.h"

#include <optional>

namespace prefill {

/// Writes the composition of ops that `plan` stands for; q and k are those of
/// the attention that uses the index, modality says what kind of token each key
/// is, for patterns that ask. Returns the index.
mlir::Value buildIndex(mlir::OpBuilder &builder, mlir::Location loc,
                       mlir::Value q, mlir::Value k, mlir::Value v,
                       const HeadPlan &plan, mlir::Value modality = {});

/// The plan that an index (not a per_head one) stands for; none if it is no
/// composition that the runtime has an estimator for.
std::optional<HeadPlan> readIndex(mlir::Value index);

/// The modality that an index (a per_head one too) asks for, or null.
mlir::Value readModality(mlir::Value index);

} // namespace prefill

#endif
