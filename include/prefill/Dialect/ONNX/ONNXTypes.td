//===- ONNXTypes.td - Types of the onnx dialect ------------*- tablegen -*-===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#ifndef PREFILL_DIALECT_ONNX_ONNXTYPES_TD
#define PREFILL_DIALECT_ONNX_ONNXTYPES_TD

include "mlir/IR/AttrTypeBase.td"
include "prefill/Dialect/ONNX/ONNXDialect.td"

class ONNX_Type<string name, string typeMnemonic, list<Trait> traits = []>
    : TypeDef<ONNX_Dialect, name, traits> {
  let mnemonic = typeMnemonic;
}

def ONNX_StringType : ONNX_Type<"String", "string"> {
  let summary = "An element of a string tensor";
}

def ONNX_UnknownType : ONNX_Type<"Unknown", "unknown"> {
  let summary = "A value of which the model declares nothing";
}

def ONNX_SequenceType : ONNX_Type<"Sequence", "seq"> {
  let summary = "A sequence of values of one type";
  let parameters = (ins "::mlir::Type":$elementType);
  let assemblyFormat = "`<` $elementType `>`";
}

def ONNX_MapType : ONNX_Type<"Map", "map"> {
  let summary = "A map from integers or strings to values of one type";
  let parameters = (ins "::mlir::Type":$keyType, "::mlir::Type":$valueType);
  let assemblyFormat = "`<` $keyType `,` $valueType `>`";
}

def ONNX_OptionalType : ONNX_Type<"Optional", "optional"> {
  let summary = "A value that may be missing";
  let parameters = (ins "::mlir::Type":$elementType);
  let assemblyFormat = "`<` $elementType `>`";
}

def ONNX_SparseType : ONNX_Type<"Sparse", "sparse"> {
  let summary = "A sparse tensor of the shape and element type of a tensor type";
  let parameters = (ins "::mlir::Type":$tensorType);
  let assemblyFormat = "`<` $tensorType `>`";
}

def ONNX_OpaqueType : ONNX_Type<"Opaque", "opaque"> {
  let summary = "A type that only its domain understands";
  let parameters = (ins "::mlir::StringAttr":$domain, "::mlir::StringAttr":$name);
  let assemblyFormat = "`<` $domain `,` $name `>`";
}

#endif // PREFILL_DIALECT_ONNX_ONNXTYPES_TD
