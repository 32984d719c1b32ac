//===- ONNX.h - The onnx dialect and views on it ----------------*- C++ -*-===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//
//
// The ops, types and attributes of the `onnx` dialect, and what analyses and
// rewriters ask of them: names, opsets, constants, element types.
//
//===----------------------------------------------------------------------===//

#ifndef PREFILL_DIALECT_ONNX_ONNX_H
#define PREFILL_DIALECT_ONNX_ONNX_H

#include "mlir/Bytecode/BytecodeOpInterface.h"
#include "mlir/IR/Builders.h"
#include "mlir/IR/BuiltinAttributes.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/Dialect.h"
#include "mlir/IR/OpDefinition.h"
#include "mlir/IR/OpImplementation.h"
#include "mlir/IR/SymbolTable.h"
#include "mlir/IR/TensorEncoding.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"

#include "prefill/Dialect/ONNX/ONNXDialect.h.inc"

#define GET_TYPEDEF_CLASSES
#include "prefill/Dialect/ONNX/ONNXTypes.h.inc"

#define GET_ATTRDEF_CLASSES
#include "prefill/Dialect/ONNX/ONNXAttrs.h.inc"

namespace prefill::onnx {
class GraphOp;
class FunctionOp;
class NodeOp;
} // namespace prefill::onnx

#define GET_OP_CLASSES
#include "prefill/Dialect/ONNX/ONNXOps.h.inc"

namespace prefill::onnx {

//===----------------------------------------------------------------------===//
// Names and versions
//===----------------------------------------------------------------------===//

/// The ONNX name of `value`, or "" when it has none (an omitted input or
/// output, or a value that a rewriter made).
llvm::StringRef getValueName(mlir::Value value);

/// The name of an entry of `inputs`, `value_info` or `output_names`: a string
/// or `#onnx.value_info`.
mlir::StringAttr getEntryName(mlir::Attribute entry);

/// Whether `value` stands for an omitted input.
bool isAbsent(mlir::Value value);

/// The version of `domain` that applies to `op`: that of the enclosing
/// function, otherwise of the module; 0 when the model does not import the
/// domain. "" and "ai.onnx" are the same domain.
int64_t getOpsetVersion(mlir::Operation *op, llvm::StringRef domain = "");

/// The main graph of `module`, or null.
GraphOp getMainGraph(mlir::ModuleOp module);

/// The function that `node` calls, or null when its operator is not a
/// model-local function.
FunctionOp getCallee(NodeOp node);

/// The folder that the files of `#onnx.weight` are relative to.
llvm::StringRef getModelDir(mlir::Operation *op);

//===----------------------------------------------------------------------===//
// Types
//===----------------------------------------------------------------------===//

/// The element type of a tensor, ranked or not; null for other types.
mlir::Type getElementType(mlir::Type type);

/// The name of dimension `i` of `type`, or "".
llvm::StringRef getDimName(mlir::Type type, unsigned i);

/// A ranked tensor type; `names` (one a dimension, or none at all) become its
/// `#onnx.dims` when one of them is not empty.
mlir::RankedTensorType
getTensorType(llvm::ArrayRef<int64_t> shape, mlir::Type elementType,
              llvm::ArrayRef<llvm::StringRef> names = {});

/// Bits that an element takes in `raw_data`, packed without gaps; 0 when
/// elements have no fixed size (strings) or `type` is no element type.
unsigned getElementBits(mlir::Type elementType);

/// Bytes that the elements of `type` take in `raw_data` or a file; nothing
/// when the shape is not static, the size overflows or elements have no fixed
/// size.
std::optional<int64_t> getTensorBytes(mlir::Type type);

//===----------------------------------------------------------------------===//
// Constants
//===----------------------------------------------------------------------===//

/// The attribute behind wrappers: the value of `#onnx.verbatim` and
/// `#onnx.tensor`.
mlir::Attribute unwrap(mlir::Attribute attribute);

/// The tensor that `value` always is, as an elements attribute or
/// `#onnx.weight`, with the tensor's type: an initializer (one that is also a
/// graph input only before IR version 4), or a `Constant` node with a tensor.
/// Null when it is not a constant or another kind of `Constant`.
mlir::Attribute getConstantTensor(mlir::Value value,
                                  mlir::RankedTensorType &type);

/// The elements of a small constant.
struct ConstantElements {
  /// The type; its shape is always static.
  mlir::RankedTensorType type;
  /// The elements in row-major order if they are integers or booleans.
  llvm::SmallVector<int64_t> ints;
  /// The elements in row-major order if they are floats.
  llvm::SmallVector<double> floats;

  bool isFloat() const {
    return mlir::isa<mlir::FloatType>(type.getElementType());
  }
  size_t size() const { return isFloat() ? floats.size() : ints.size(); }
  /// Element `i` as a float, whatever it is.
  double asDouble(size_t i) const {
    return isFloat() ? floats[i] : static_cast<double>(ints[i]);
  }
};

/// The elements of `value` when it is a constant of at most `maxElements`
/// elements: an initializer, in-line or external (then the file is read), or a
/// `Constant` node with `value`, `value_int(s)` or `value_float(s)`. Nothing
/// for strings, complex numbers, and files that cannot be read.
std::optional<ConstantElements>
getConstantElements(mlir::Value value, int64_t maxElements = 65536);

/// The only element of an integer constant with one element.
std::optional<int64_t> getConstantInt(mlir::Value value);

/// The only element of a numeric constant with one element.
std::optional<double> getConstantFloat(mlir::Value value);

/// The elements of an integer constant with at most `maxElements` elements.
std::optional<llvm::SmallVector<int64_t>>
getConstantInts(mlir::Value value, int64_t maxElements = 65536);

//===----------------------------------------------------------------------===//
// Building
//===----------------------------------------------------------------------===//

/// A value for an omitted input, made at the insertion point.
mlir::Value createAbsent(mlir::OpBuilder &builder, mlir::Location loc);

/// Makes an `onnx.initializer` at the insertion point. Without a name the
/// exporter makes one up.
mlir::Value createInitializer(mlir::OpBuilder &builder, mlir::Location loc,
                              mlir::ElementsAttr elements,
                              llvm::StringRef name = "");

/// Makes a one-dimensional (or, with `scalar`, the only element's) i64
/// initializer at the insertion point.
mlir::Value createInts(mlir::OpBuilder &builder, mlir::Location loc,
                       llvm::ArrayRef<int64_t> values, bool scalar = false);

/// Attributes in the forms of `NodeOp::getAttrOfName`.
mlir::NamedAttribute intAttr(mlir::Builder &b, llvm::StringRef name, int64_t v);
mlir::NamedAttribute floatAttr(mlir::Builder &b, llvm::StringRef name, float v);
mlir::NamedAttribute stringAttr(mlir::Builder &b, llvm::StringRef name,
                                llvm::StringRef v);
mlir::NamedAttribute intsAttr(mlir::Builder &b, llvm::StringRef name,
                              llvm::ArrayRef<int64_t> v);

/// Prints and parses `{axis = 0 : si64}`, the attributes of a node.
void printAttrList(mlir::OpAsmPrinter &printer, mlir::Operation *op,
                   ListAttr attrs);
mlir::OptionalParseResult parseAttrList(mlir::OpAsmParser &parser,
                                        ListAttr &attrs);

} // namespace prefill::onnx

#endif // PREFILL_DIALECT_ONNX_ONNX_H
