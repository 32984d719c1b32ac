//===- Outline.h - Attention ops to kernels ----------------------*- C++ -*-==//
#ifndef PREFILL_DRIVER_OUTLINE_H
#define PREFILL_DRIVER_OUTLINE_H

#include "mlir/IR/BuiltinOps.h"
#include "prefill/Codegen/KernelSpec.h"

#include <string>
#include <vector>

namespace prefill {

/// One attention of the model and the kernel that computes it.
struct OutlinedAttention {
  std::string layer;  ///< where it stood, for reports
  std::string form;   ///< the form that was raised
  std::string kernel; ///< KernelSpec::name
};

struct OutlineResult {
  std::vector<KernelSpec> kernels; ///< distinct ones
  std::vector<OutlinedAttention> attentions;
};

/// Replaces every prefill.attention and prefill.sparse_attention of `module` by
/// an onnx.node "Attention" of domain prefill.opt that names its kernel. With
/// `stats` every node gets the density output, and the graph one output
/// `prefill.density.<i>` each. False with a one-line error when an op cannot be
/// compiled.
bool outlineAttention(mlir::ModuleOp module, bool stats, OutlineResult &result,
                      std::string &error);

/// Replaces every prefill.protect_rows and prefill.select_rows of `module` by
/// an onnx.node of domain prefill.opt (runtime/src/ort_rows.c).
void outlineRows(mlir::ModuleOp module);

} // namespace prefill

#endif
