//===- KernelBuilder.h - Kernels at the tile level --------------*- C++ -*-===//
#ifndef PREFILL_CODEGEN_KERNELBUILDER_H
#define PREFILL_CODEGEN_KERNELBUILDER_H

#include "prefill/Codegen/KernelSpec.h"
#include "prefill/Dialect/Tile/Tile.h"

namespace prefill {

/// The PREFILL_TILE_* features (kernel_abi.h) that a tile function of this
/// kernel is compiled with.
uint32_t getTileFeatures(const KernelSpec &spec);

/// Why this kernel cannot be generated; empty when it can.
std::string checkKernelSpec(const KernelSpec &spec);

/// A C identifier that names everything that an attention tile function depends
/// on. Kernels with equal keys share generated code.
std::string getTileKey(const KernelSpec &spec);

/// The same for the score function.
std::string getScoreKey(const KernelSpec &spec);

/// Attention of one tile of query rows over an index (prefill_tile_fn).
///
/// Softmax runs online in base 2 over fp32. Visible scores may be as large as
/// fp32 allows; a NaN or +inf among a row's visible scores makes the row NaN, a
/// score below -2e38 (-3e38 with a bias, so any -inf there) is invisible. A row
/// without visible keys is 0 with log-sum-exp -inf. A sink counts in the
/// log-sum-exp.
tile::KernelOp buildAttentionKernel(mlir::OpBuilder &builder,
                                    const KernelSpec &spec);

/// Scaled products of one tile of query rows with a range of keys
/// (prefill_score_fn).
tile::KernelOp buildScoreKernel(mlir::OpBuilder &builder,
                                const KernelSpec &spec);

/// Maxima (base 2) and sums of exponentials of spec.blockQ query rows over a
/// chunk of keys, to `row_most` and `row_sum`; for vertical-slash on GPUs
/// (prefill/cuda_index.h).
tile::KernelOp buildRowSumsKernel(mlir::OpBuilder &builder,
                                  const KernelSpec &spec);

/// Column and diagonal sums of the same rows' probabilities 2^(score - `most`)
/// times `inverse` over a chunk of keys, to `column` and `diagonal`.
tile::KernelOp buildLineSumsKernel(mlir::OpBuilder &builder,
                                   const KernelSpec &spec);

} // namespace prefill

#endif
