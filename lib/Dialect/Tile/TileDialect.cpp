//===- TileDialect.cpp - Registration and types of the tile dialect -------===//

#include "prefill/Dialect/Tile/Tile.h"

using namespace mlir;
using namespace prefill::tile;

#include "prefill/Dialect/Tile/TileDialect.cpp.inc"
#include "prefill/Dialect/Tile/TileEnums.cpp.inc"
#define GET_TYPEDEF_CLASSES
#include "prefill/Dialect/Tile/TileTypes.cpp.inc"

void TileDialect::initialize() {
  addTypes<
#define GET_TYPEDEF_LIST
#include "prefill/Dialect/Tile/TileTypes.cpp.inc"
      >();
  addOperations<
#define GET_OP_LIST
#include "prefill/Dialect/Tile/TileOps.cpp.inc"
      >();
}

//===----------------------------------------------------------------------===//
// Types
//===----------------------------------------------------------------------===//

Type ViewType::parse(AsmParser &parser) {
  SmallVector<int64_t> shape;
  Type elementType;
  SMLoc loc = parser.getCurrentLocation();
  if (parser.parseLess() || parser.parseDimensionList(shape) ||
      parser.parseType(elementType) || parser.parseGreater())
    return {};
  return parser.getChecked<ViewType>(loc, parser.getContext(), shape,
                                     elementType);
}

void ViewType::print(AsmPrinter &printer) const {
  printer << "<";
  for (int64_t size : getShape()) {
    if (ShapedType::isDynamic(size))
      printer << "?x";
    else
      printer << size << "x";
  }
  printer << getElementType() << ">";
}

LogicalResult ViewType::verify(function_ref<InFlightDiagnostic()> emitError,
                               ArrayRef<int64_t> shape, Type elementType) {
  if (shape.empty() || shape.size() > 2)
    return emitError() << "a view has one or two dimensions";
  if (!elementType || !elementType.isIntOrFloat())
    return emitError() << "a view's elements are integers or floats";
  for (int64_t size : shape)
    if (!ShapedType::isDynamic(size) && size <= 0)
      return emitError() << "a view's dimensions are positive";
  return success();
}

int64_t ViewType::getKeyDim() const {
  for (int64_t dim = getRank() - 1; dim >= 0; --dim)
    if (ShapedType::isDynamic(getShape()[dim]))
      return dim;
  return -1;
}

static LogicalResult verifySize(function_ref<InFlightDiagnostic()> emitError,
                                int64_t size) {
  if (size <= 0)
    return emitError() << "the number of keys in a tile is positive";
  return success();
}

LogicalResult KeyIndexType::verify(function_ref<InFlightDiagnostic()> emitError,
                                   int64_t size) {
  return verifySize(emitError, size);
}

LogicalResult KeysType::verify(function_ref<InFlightDiagnostic()> emitError,
                               int64_t size) {
  return verifySize(emitError, size);
}
