//===- WarpDialect.cpp - Registration, attributes and types ---------------===//

#include "mlir/IR/DialectImplementation.h"
#include "prefill/Dialect/Warp/Warp.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace prefill::warp;

#include "prefill/Dialect/Warp/WarpDialect.cpp.inc"
#include "prefill/Dialect/Warp/WarpEnums.cpp.inc"
#define GET_ATTRDEF_CLASSES
#include "prefill/Dialect/Warp/WarpAttrs.cpp.inc"
#define GET_TYPEDEF_CLASSES
#include "prefill/Dialect/Warp/WarpTypes.cpp.inc"

void WarpDialect::initialize() {
  addAttributes<
#define GET_ATTRDEF_LIST
#include "prefill/Dialect/Warp/WarpAttrs.cpp.inc"
      >();
  addTypes<
#define GET_TYPEDEF_LIST
#include "prefill/Dialect/Warp/WarpTypes.cpp.inc"
      >();
  addOperations<
#define GET_OP_LIST
#include "prefill/Dialect/Warp/WarpOps.cpp.inc"
      >();
}

std::optional<FragKind> prefill::warp::getFragKind(Type type) {
  auto tensor = dyn_cast<RankedTensorType>(type);
  auto frag =
      tensor ? dyn_cast_or_null<FragAttr>(tensor.getEncoding()) : FragAttr();
  if (!frag)
    return std::nullopt;
  return frag.getKind();
}

RankedTensorType prefill::warp::getFragment(RankedTensorType tile,
                                            FragKind kind) {
  return RankedTensorType::get(tile.getShape(), tile.getElementType(),
                               FragAttr::get(tile.getContext(), kind));
}

LogicalResult ScheduleAttr::verify(function_ref<InFlightDiagnostic()> emitError,
                                   int64_t arch, int64_t warps, KeyOrder) {
  if (arch < 80)
    return emitError() << "a schedule needs architecture 80 or later, not "
                       << arch;
  if (warps < 1 || warps > 32)
    return emitError() << "a block has 1 to 32 warps, not " << warps;
  return success();
}

//===----------------------------------------------------------------------===//
// Types
//===----------------------------------------------------------------------===//

/// 64x128xf16
static ParseResult parseShape(AsmParser &parser, int64_t &rows, int64_t &cols,
                              Type &elementType) {
  SmallVector<int64_t> shape;
  SMLoc loc = parser.getCurrentLocation();
  if (parser.parseDimensionList(shape, /*allowDynamic=*/false) ||
      parser.parseType(elementType))
    return failure();
  if (shape.size() != 2)
    return parser.emitError(loc, "two dimensions expected");
  rows = shape[0];
  cols = shape[1];
  return success();
}

static LogicalResult verifyTile(function_ref<InFlightDiagnostic()> emitError,
                                int64_t rows, int64_t cols, Type elementType) {
  // The swizzle repeats every 8 rows; 16-byte chunks hold 8 elements.
  if (rows <= 0 || rows % 8 || cols <= 0 || cols % 16)
    return emitError()
           << "a shared-memory tile has a multiple of 8 rows and of "
              "16 columns, not "
           << rows << "x" << cols;
  if (!elementType.isF16() && !elementType.isBF16())
    return emitError() << "a shared-memory tile holds f16 or bf16, not "
                       << elementType;
  return success();
}

Type SmemType::parse(AsmParser &parser) {
  int64_t rows, cols;
  Type elementType;
  StringRef keyword;
  SMLoc loc = parser.getCurrentLocation();
  if (parser.parseLess() || parseShape(parser, rows, cols, elementType) ||
      parser.parseComma() || parser.parseKeyword(&keyword))
    return {};
  std::optional<SlotState> state = symbolizeSlotState(keyword);
  if (!state) {
    parser.emitError(loc, "empty or full expected, not ") << keyword;
    return {};
  }
  if (parser.parseGreater())
    return {};
  return parser.getChecked<SmemType>(loc, parser.getContext(), rows, cols,
                                     elementType, *state);
}

void SmemType::print(AsmPrinter &printer) const {
  printer << "<" << getRows() << "x" << getCols() << "x" << getElementType()
          << ", " << stringifySlotState(getState()) << ">";
}

LogicalResult SmemType::verify(function_ref<InFlightDiagnostic()> emitError,
                               int64_t rows, int64_t cols, Type elementType,
                               SlotState) {
  return verifyTile(emitError, rows, cols, elementType);
}

Type RingType::parse(AsmParser &parser) {
  int64_t stages, rows, cols;
  Type elementType;
  SMLoc loc = parser.getCurrentLocation();
  if (parser.parseLess() || parser.parseInteger(stages) ||
      parser.parseComma() || parseShape(parser, rows, cols, elementType) ||
      parser.parseGreater())
    return {};
  return parser.getChecked<RingType>(loc, parser.getContext(), stages, rows,
                                     cols, elementType);
}

void RingType::print(AsmPrinter &printer) const {
  printer << "<" << getStages() << ", " << getRows() << "x" << getCols() << "x"
          << getElementType() << ">";
}

LogicalResult RingType::verify(function_ref<InFlightDiagnostic()> emitError,
                               int64_t stages, int64_t rows, int64_t cols,
                               Type elementType) {
  if (stages < 1 || stages > 8)
    return emitError() << "a ring has 1 to 8 stages, not " << stages;
  return verifyTile(emitError, rows, cols, elementType);
}
