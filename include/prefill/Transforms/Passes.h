//===- Passes.h - Passes on onnx and prefill IR ------------------*- C++ -*-==//
#ifndef PREFILL_TRANSFORMS_PASSES_H
#define PREFILL_TRANSFORMS_PASSES_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/Pass/Pass.h"

#include <memory>

namespace prefill {

#define GEN_PASS_DECL
#define GEN_PASS_REGISTRATION
#include "prefill/Transforms/Passes.h.inc"

} // namespace prefill

#endif
