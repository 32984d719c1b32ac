//===- Prefill.h - The prefill dialect ---------------------------*- C++ -*-==//
#ifndef PREFILL_DIALECT_PREFILL_PREFILL_H
#define PREFILL_DIALECT_PREFILL_PREFILL_H

#include "mlir/Bytecode/BytecodeOpInterface.h"
#include "mlir/IR/Builders.h"
#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/Dialect.h"
#include "mlir/IR/OpDefinition.h"
#include "mlir/IR/OpImplementation.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"

#include "prefill/Dialect/Prefill/PrefillDialect.h.inc"
#include "prefill/Dialect/Prefill/PrefillEnums.h.inc"

#define GET_ATTRDEF_CLASSES
#include "prefill/Dialect/Prefill/PrefillAttrs.h.inc"
#define GET_TYPEDEF_CLASSES
#include "prefill/Dialect/Prefill/PrefillTypes.h.inc"
#define GET_OP_CLASSES
#include "prefill/Dialect/Prefill/PrefillOps.h.inc"

#endif
