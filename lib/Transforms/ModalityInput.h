//===- ModalityInput.h - The value of -modality ------------------*- C++ -*-==//
#ifndef PREFILL_LIB_TRANSFORMS_MODALITYINPUT_H
#define PREFILL_LIB_TRANSFORMS_MODALITYINPUT_H

#include "mlir/IR/BuiltinOps.h"

#include <string>

namespace prefill {

/// The value that `spec` names: of the main graph of `module` (of the function
/// of `user` where there is none), by its ONNX name or the number of a
/// function's argument; or for `token:ID[,ID...]` a new one that says which of
/// input_ids are one of these. It comes before `user`. Null, with a one-line
/// `error`, if there is no such value.
mlir::Value findModality(mlir::ModuleOp module, mlir::Operation *user,
                         llvm::StringRef spec, std::string &error);

/// Can `user` have `value` as an operand?
bool isVisibleAt(mlir::Value value, mlir::Operation *user);

} // namespace prefill

#endif
