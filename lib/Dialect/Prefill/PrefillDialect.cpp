//===- PrefillDialect.cpp - Registration of the prefill dialect -----------===//

#include "mlir/IR/DialectImplementation.h"
#include "prefill/Dialect/Prefill/Prefill.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace prefill;

#include "prefill/Dialect/Prefill/PrefillDialect.cpp.inc"
#include "prefill/Dialect/Prefill/PrefillEnums.cpp.inc"
#define GET_ATTRDEF_CLASSES
#include "prefill/Dialect/Prefill/PrefillAttrs.cpp.inc"
#define GET_TYPEDEF_CLASSES
#include "prefill/Dialect/Prefill/PrefillTypes.cpp.inc"

void PrefillDialect::initialize() {
  addAttributes<
#define GET_ATTRDEF_LIST
#include "prefill/Dialect/Prefill/PrefillAttrs.cpp.inc"
      >();
  addTypes<
#define GET_TYPEDEF_LIST
#include "prefill/Dialect/Prefill/PrefillTypes.cpp.inc"
      >();
  addOperations<
#define GET_OP_LIST
#include "prefill/Dialect/Prefill/PrefillOps.cpp.inc"
      >();
}
