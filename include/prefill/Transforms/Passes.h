//===- Passes.h - Passes on onnx and prefill IR ------------------*- C++ -*-==//
#ifndef PREFILL_TRANSFORMS_PASSES_H
#define PREFILL_TRANSFORMS_PASSES_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/Pass/Pass.h"

#include <memory>
#include <vector>

namespace prefill {
struct SiteReport;

#define GEN_PASS_DECL
#define GEN_PASS_REGISTRATION
#include "prefill/Transforms/Passes.h.inc"

/// raise-attention that also tells what it found, attention by attention.
/// `reports` must outlive the pass.
std::unique_ptr<mlir::Pass>
createRaiseAttention(std::vector<SiteReport> &reports);

} // namespace prefill

#endif
