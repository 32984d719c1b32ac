//===- TileOps.cpp - Parsing and verification of tile ops -----------------===//

#include "mlir/Interfaces/FunctionImplementation.h"
#include "prefill/Dialect/Tile/Tile.h"

using namespace mlir;
using namespace prefill::tile;

#define GET_OP_CLASSES
#include "prefill/Dialect/Tile/TileOps.cpp.inc"

static RankedTensorType tileType(Value value) {
  return cast<RankedTensorType>(value.getType());
}

//===----------------------------------------------------------------------===//
// KernelOp
//===----------------------------------------------------------------------===//

ParseResult KernelOp::parse(OpAsmParser &parser, OperationState &result) {
  auto buildType = [](Builder &builder, ArrayRef<Type> inputs,
                      ArrayRef<Type> results,
                      function_interface_impl::VariadicFlag, std::string &) {
    return builder.getFunctionType(inputs, results);
  };
  return function_interface_impl::parseFunctionOp(
      parser, result, /*allowVariadic=*/false,
      getFunctionTypeAttrName(result.name), buildType,
      getArgAttrsAttrName(result.name), getResAttrsAttrName(result.name));
}

void KernelOp::print(OpAsmPrinter &printer) {
  function_interface_impl::printFunctionOp(
      printer, *this, /*isVariadic=*/false, getFunctionTypeAttrName(),
      getArgAttrsAttrName(), getResAttrsAttrName());
}

LogicalResult KernelOp::verify() {
  if (!getResultTypes().empty())
    return emitOpError("has no results; it stores to views");
  if (getAbi() != "attention" && getAbi() != "score" && getAbi() != "sums")
    return emitOpError("abi is \"attention\", \"score\" or \"sums\", not \"")
           << getAbi() << "\"";
  llvm::SmallDenseSet<StringRef> fields;
  int64_t indices = 0;
  for (auto [number, type] : llvm::enumerate(getArgumentTypes())) {
    auto field = getArgAttrOfType<StringAttr>(number, kFieldAttr);
    if (!field)
      return emitOpError("argument ") << number << " has no " << kFieldAttr;
    if (!fields.insert(field.getValue()).second)
      return emitOpError("two arguments are bound to field ") << field;
    indices += isa<KeyIndexType>(type);
    if (!isa<KeyIndexType, ViewType>(type) && !type.isIntOrFloat())
      return emitOpError("argument ")
             << number << " is neither a view, an index nor a number";
  }
  if (indices > 1)
    return emitOpError("has more than one index");
  return success();
}

//===----------------------------------------------------------------------===//
// ForTilesOp
//===----------------------------------------------------------------------===//

void ForTilesOp::build(OpBuilder &builder, OperationState &state, Value index,
                       ValueRange inits) {
  state.addOperands(index);
  state.addOperands(inits);
  state.addTypes(inits.getTypes());
  OpBuilder::InsertionGuard guard(builder);
  Block *body = builder.createBlock(state.addRegion());
  auto indexType = cast<KeyIndexType>(index.getType());
  body->addArgument(KeysType::get(builder.getContext(), indexType.getSize()),
                    state.location);
  for (Value init : inits)
    body->addArgument(init.getType(), init.getLoc());
}

ParseResult ForTilesOp::parse(OpAsmParser &parser, OperationState &result) {
  OpAsmParser::Argument keys;
  OpAsmParser::UnresolvedOperand index;
  SmallVector<OpAsmParser::Argument> args;
  SmallVector<OpAsmParser::UnresolvedOperand> inits;
  KeyIndexType indexType;
  SmallVector<Type> types;
  if (parser.parseArgument(keys) || parser.parseKeyword("in") ||
      parser.parseOperand(index))
    return failure();
  SMLoc loc = parser.getCurrentLocation();
  if (succeeded(parser.parseOptionalKeyword("iter_args")) &&
      parser.parseAssignmentList(args, inits))
    return failure();
  if (parser.parseColon() || parser.parseType(indexType))
    return failure();
  if (succeeded(parser.parseOptionalArrow()) &&
      (parser.parseLParen() || parser.parseTypeList(types) ||
       parser.parseRParen()))
    return failure();
  if (types.size() != args.size())
    return parser.emitError(loc, "as many types as carried values expected");
  if (parser.resolveOperand(index, indexType, result.operands) ||
      parser.resolveOperands(inits, types, loc, result.operands))
    return failure();
  result.addTypes(types);
  keys.type = KeysType::get(parser.getContext(), indexType.getSize());
  for (auto [arg, type] : llvm::zip(args, types))
    arg.type = type;
  args.insert(args.begin(), keys);
  return failure(parser.parseRegion(*result.addRegion(), args) ||
                 parser.parseOptionalAttrDictWithKeyword(result.attributes));
}

void ForTilesOp::print(OpAsmPrinter &printer) {
  printer << " " << getKeys() << " in " << getIndex();
  if (!getInits().empty()) {
    printer << " iter_args(";
    llvm::interleaveComma(
        llvm::zip(getIterArgs(), getInits()), printer, [&](auto pair) {
          printer << std::get<0>(pair) << " = " << std::get<1>(pair);
        });
    printer << ")";
  }
  printer << " : " << getIndex().getType();
  if (!getInits().empty()) {
    printer << " -> (";
    llvm::interleaveComma(getResultTypes(), printer);
    printer << ")";
  }
  printer << " ";
  printer.printRegion(getBody(), /*printEntryBlockArgs=*/false);
  printer.printOptionalAttrDictWithKeyword((*this)->getAttrs());
}

LogicalResult ForTilesOp::verify() {
  if (getBody().getNumArguments() != getInits().size() + 1 ||
      getInits().size() != getNumResults())
    return emitOpError("carried values, block arguments and results differ in "
                       "number");
  auto keys = dyn_cast<KeysType>(getKeys().getType());
  if (!keys || keys.getSize() != getIndex().getType().getSize())
    return emitOpError("keys and index differ in tile size");
  auto yield = dyn_cast<YieldOp>(getYield());
  if (!yield || yield.getNumOperands() != getNumResults())
    return emitOpError("must end in a tile.yield of the carried values");
  for (auto [init, arg, value, result] :
       llvm::zip(getInits(), getIterArgs(), yield.getValues(), getResults()))
    if (init.getType() != arg.getType() || arg.getType() != value.getType() ||
        value.getType() != result.getType())
      return emitOpError("carried value changes its type from ")
             << init.getType() << " to " << value.getType();
  return success();
}

//===----------------------------------------------------------------------===//
// Memory
//===----------------------------------------------------------------------===//

static LogicalResult verifyAccess(Operation *op, RankedTensorType tile,
                                  ViewType view, Value keys) {
  if (tile.getElementType() != view.getElementType())
    return op->emitOpError("tile and view differ in element type");
  if (tile.getRank() != view.getRank())
    return op->emitOpError("tile and view differ in rank");
  int64_t keyDim = view.getKeyDim();
  if (keys && keyDim < 0)
    return op->emitOpError("keys select along a dynamic dimension; ")
           << view << " has none";
  for (int64_t dim = 0; dim < tile.getRank(); ++dim) {
    int64_t have = tile.getDimSize(dim), want = view.getShape()[dim];
    if (!ShapedType::isDynamic(want) && have != want)
      return op->emitOpError("dimension ")
             << dim << " of the tile is " << have << ", of the view " << want;
    if (keys && dim == keyDim &&
        have != cast<KeysType>(keys.getType()).getSize())
      return op->emitOpError("tile does not hold one entry a key");
  }
  return success();
}

LogicalResult LoadOp::verify() {
  return verifyAccess(*this, tileType(getResult()), getView().getType(),
                      getKeys());
}

LogicalResult StoreOp::verify() {
  return verifyAccess(*this, tileType(getValue()), getView().getType(),
                      getKeys());
}

LogicalResult StoreSumsOp::verify() {
  RankedTensorType value = tileType(getValue());
  ViewType columns = getColumns().getType(),
           diagonals = getDiagonals().getType();
  if (value.getRank() != 2 || !value.getElementType().isF32())
    return emitOpError("sums a two-dimensional fp32 tile, not ") << value;
  const int64_t keys = getKeys().getType().getSize();
  if (value.getDimSize(1) != keys)
    return emitOpError("has ")
           << value.getDimSize(1) << " columns for " << keys << " keys";
  if (columns.getRank() != 1 || !columns.getElementType().isF32())
    return emitOpError("columns are a one-dimensional fp32 view");
  const int64_t least = value.getDimSize(0) + keys - 1;
  if (diagonals.getRank() != 2 || !diagonals.getElementType().isF32() ||
      diagonals.getShape()[1] < least)
    return emitOpError("diagonals are a fp32 view with rows of at least ")
           << least << " elements";
  return success();
}

//===----------------------------------------------------------------------===//
// Computation
//===----------------------------------------------------------------------===//

LogicalResult DotOp::verify() {
  RankedTensorType a = tileType(getA()), b = tileType(getB()),
                   result = tileType(getResult());
  if (a.getRank() != 2 || b.getRank() != 2 || result.getRank() != 2)
    return emitOpError("operands and result are two-dimensional");
  int64_t k = getTransposeB() ? 1 : 0;
  if (a.getDimSize(1) != b.getDimSize(k))
    return emitOpError("inner dimensions are ")
           << a.getDimSize(1) << " and " << b.getDimSize(k);
  if (result.getDimSize(0) != a.getDimSize(0) ||
      result.getDimSize(1) != b.getDimSize(1 - k))
    return emitOpError("result is not of shape ")
           << a.getDimSize(0) << "x" << b.getDimSize(1 - k);
  if (!result.getElementType().isF32())
    return emitOpError("result is fp32");
  if (getAcc() && getAcc().getType() != result)
    return emitOpError("accumulator and result differ in type");
  return success();
}

LogicalResult NeedOp::verify() {
  RankedTensorType value = tileType(getValue());
  if (value.getRank() != 1 || !value.getElementType().isF32())
    return emitOpError("wants one fp32 number a row");
  return success();
}

LogicalResult ReduceRowOp::verify() {
  RankedTensorType value = tileType(getValue()), result = tileType(getResult());
  if (value.getRank() != 2 || result.getRank() != 1 ||
      result.getDimSize(0) != value.getDimSize(0) ||
      result.getElementType() != value.getElementType())
    return emitOpError("gives one number a row");
  return success();
}

LogicalResult BroadcastOp::verify() {
  auto result = tileType(getResult());
  auto source = dyn_cast<RankedTensorType>(getSource().getType());
  Type element = source ? source.getElementType() : getSource().getType();
  if (element != result.getElementType())
    return emitOpError("source and result differ in element type");
  if (!source)
    return getDims().empty() ? success()
                             : emitOpError("a scalar has no dimensions");
  if (source.getRank() != 1 || result.getRank() != 2 || getDims().size() != 1)
    return emitOpError("repeats a scalar or a vector");
  int64_t dim = getDims()[0];
  if (dim < 0 || dim > 1 || source.getDimSize(0) != result.getDimSize(dim))
    return emitOpError("source does not fit dimension ")
           << dim << " of the result";
  return success();
}

static LogicalResult verifyNumbers(Operation *op, Value result) {
  RankedTensorType type = tileType(result);
  if (type.getRank() != 1 || !type.getElementType().isInteger(32))
    return op->emitOpError("gives a vector of i32");
  return success();
}

LogicalResult RowsOp::verify() { return verifyNumbers(*this, getResult()); }

LogicalResult PositionsOp::verify() {
  if (failed(verifyNumbers(*this, getResult())))
    return failure();
  if (tileType(getResult()).getDimSize(0) != getKeys().getType().getSize())
    return emitOpError("gives one number a key");
  return success();
}

LogicalResult MaskOp::verify() {
  RankedTensorType scores = tileType(getScores());
  if (scores != getResult().getType())
    return emitOpError("scores and result differ in type");
  if (scores.getRank() != 2 ||
      scores.getDimSize(1) != getKeys().getType().getSize())
    return emitOpError("scores do not have one column a key");
  auto yield = dyn_cast<YieldOp>(getPredicate().front().getTerminator());
  auto wanted = RankedTensorType::get(scores.getShape(),
                                      IntegerType::get(getContext(), 1),
                                      scores.getEncoding());
  if (!yield || yield.getNumOperands() != 1 ||
      yield.getOperand(0).getType() != wanted)
    return emitOpError("the predicate yields one ") << wanted;
  return success();
}
