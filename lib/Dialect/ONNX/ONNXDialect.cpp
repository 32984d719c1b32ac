//===- ONNXDialect.cpp - Types and attributes of the onnx dialect ---------===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#include "mlir/IR/DialectImplementation.h"
#include "prefill/Dialect/ONNX/ONNX.h"
#include "llvm/ADT/StringSet.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace prefill::onnx;

#include "prefill/Dialect/ONNX/ONNXDialect.cpp.inc"

#define GET_TYPEDEF_CLASSES
#include "prefill/Dialect/ONNX/ONNXTypes.cpp.inc"

#define GET_ATTRDEF_CLASSES
#include "prefill/Dialect/ONNX/ONNXAttrs.cpp.inc"

void ONNXDialect::initialize() {
  addTypes<
#define GET_TYPEDEF_LIST
#include "prefill/Dialect/ONNX/ONNXTypes.cpp.inc"
      >();
  addAttributes<
#define GET_ATTRDEF_LIST
#include "prefill/Dialect/ONNX/ONNXAttrs.cpp.inc"
      >();
  addOperations<
#define GET_OP_LIST
#include "prefill/Dialect/ONNX/ONNXOps.cpp.inc"
      >();
}

LogicalResult
DimsAttr::verifyEncoding(ArrayRef<int64_t> shape, Type elementType,
                         function_ref<InFlightDiagnostic()> emitError) const {
  if (getNames().size() != shape.size())
    return emitError() << "has " << shape.size() << " dimensions, but "
                       << getNames().size() << " names of dimensions";
  for (auto [size, name] : llvm::zip(shape, getNames()))
    if (!ShapedType::isDynamic(size) && !name.getValue().empty())
      return emitError() << "names a dimension of fixed size: '"
                         << name.getValue() << "'";
  return success();
}

//===----------------------------------------------------------------------===//
// OpsetAttr
//===----------------------------------------------------------------------===//

void OpsetAttr::print(AsmPrinter &printer) const {
  printer << '<';
  if (getDomain())
    printer << getDomain() << ", ";
  printer << getVersion() << '>';
}

Attribute OpsetAttr::parse(AsmParser &parser, Type) {
  std::string domain;
  int64_t version;
  if (parser.parseLess())
    return {};
  bool hasDomain = succeeded(parser.parseOptionalString(&domain));
  if ((hasDomain && parser.parseComma()) || parser.parseInteger(version) ||
      parser.parseGreater())
    return {};
  MLIRContext *context = parser.getContext();
  return get(context,
             hasDomain ? StringAttr::get(context, domain) : StringAttr(),
             version);
}

//===----------------------------------------------------------------------===//
// ListAttr
//===----------------------------------------------------------------------===//

Attribute ListAttr::find(StringRef name) const {
  for (NamedAttribute entry : getEntries())
    if (entry.getName() == name)
      return entry.getValue();
  return {};
}

LogicalResult ListAttr::verify(function_ref<InFlightDiagnostic()> emitError,
                               ArrayRef<NamedAttribute> entries) {
  llvm::StringSet<> names;
  for (NamedAttribute entry : entries)
    if (!names.insert(entry.getName().getValue()).second)
      return emitError() << "has attribute '" << entry.getName().getValue()
                         << "' twice";
  return success();
}

static void printEntries(AsmPrinter &printer,
                         ArrayRef<NamedAttribute> entries) {
  printer << '{';
  llvm::interleaveComma(entries, printer, [&](NamedAttribute entry) {
    printer.printKeywordOrString(entry.getName().getValue());
    printer << " = " << entry.getValue();
  });
  printer << '}';
}

static ParseResult parseEntry(AsmParser &parser,
                              SmallVectorImpl<NamedAttribute> &entries) {
  std::string name;
  Attribute value;
  if (parser.parseKeywordOrString(&name) || parser.parseEqual() ||
      parser.parseAttribute(value))
    return failure();
  entries.emplace_back(StringAttr::get(parser.getContext(), name), value);
  return success();
}

void ListAttr::print(AsmPrinter &printer) const {
  printer << '<';
  printEntries(printer, getEntries());
  printer << '>';
}

Attribute ListAttr::parse(AsmParser &parser, Type) {
  SmallVector<NamedAttribute> entries;
  SMLoc loc = parser.getCurrentLocation();
  if (parser.parseLess() ||
      parser.parseCommaSeparatedList(
          AsmParser::Delimiter::Braces,
          [&] { return parseEntry(parser, entries); }) ||
      parser.parseGreater())
    return {};
  return getChecked([&] { return parser.emitError(loc); }, parser.getContext(),
                    entries);
}

void prefill::onnx::printAttrList(OpAsmPrinter &printer, Operation *,
                                  ListAttr attrs) {
  printEntries(printer, attrs.getEntries());
}

OptionalParseResult prefill::onnx::parseAttrList(OpAsmParser &parser,
                                                 ListAttr &attrs) {
  SMLoc loc = parser.getCurrentLocation();
  if (failed(parser.parseOptionalLBrace()))
    return std::nullopt;
  SmallVector<NamedAttribute> entries;
  if (failed(parser.parseOptionalRBrace()) &&
      (parser.parseCommaSeparatedList(
           [&] { return parseEntry(parser, entries); }) ||
       parser.parseRBrace()))
    return failure();
  attrs = ListAttr::getChecked([&] { return parser.emitError(loc); },
                               parser.getContext(), entries);
  return success(attrs != nullptr);
}

//===----------------------------------------------------------------------===//
// Types
//===----------------------------------------------------------------------===//

Type prefill::onnx::getElementType(Type type) {
  if (auto tensor = dyn_cast_or_null<TensorType>(type))
    return tensor.getElementType();
  return {};
}

StringRef prefill::onnx::getDimName(Type type, unsigned i) {
  auto tensor = dyn_cast_or_null<RankedTensorType>(type);
  if (!tensor)
    return "";
  auto dims = dyn_cast_or_null<DimsAttr>(tensor.getEncoding());
  return dims && i < dims.getNames().size() ? dims.getNames()[i].getValue()
                                            : "";
}

RankedTensorType prefill::onnx::getTensorType(ArrayRef<int64_t> shape,
                                              Type elementType,
                                              ArrayRef<StringRef> names) {
  MLIRContext *context = elementType.getContext();
  Attribute encoding;
  if (llvm::any_of(names, [](StringRef name) { return !name.empty(); })) {
    SmallVector<StringAttr> attrs;
    for (auto [i, name] : llvm::enumerate(names))
      attrs.push_back(StringAttr::get(
          context,
          i < shape.size() && ShapedType::isDynamic(shape[i]) ? name : ""));
    encoding = DimsAttr::get(context, attrs);
  }
  return RankedTensorType::get(shape, elementType, encoding);
}

unsigned prefill::onnx::getElementBits(Type type) {
  if (auto integer = dyn_cast_or_null<IntegerType>(type))
    return integer.getWidth() == 1 ? 8 : integer.getWidth();
  if (auto real = dyn_cast_or_null<FloatType>(type))
    return real.getWidth();
  if (auto complex = dyn_cast_or_null<ComplexType>(type))
    return 2 * getElementBits(complex.getElementType());
  return 0;
}

std::optional<int64_t> prefill::onnx::getTensorBytes(Type type) {
  auto tensor = dyn_cast_or_null<RankedTensorType>(type);
  unsigned bits = tensor ? getElementBits(tensor.getElementType()) : 0;
  if (bits == 0 || !tensor.hasStaticShape())
    return std::nullopt;
  // An empty tensor may have any other sizes.
  if (llvm::is_contained(tensor.getShape(), 0))
    return 0;
  int64_t elements = 1, allBits;
  for (int64_t size : tensor.getShape())
    if (llvm::MulOverflow(elements, size, elements))
      return std::nullopt;
  if (llvm::MulOverflow(elements, static_cast<int64_t>(bits), allBits) ||
      llvm::AddOverflow(allBits, int64_t(7), allBits))
    return std::nullopt;
  return allBits / 8;
}
