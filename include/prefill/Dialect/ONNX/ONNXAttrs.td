//===- ONNXAttrs.td - Attributes of the onnx dialect -------*- tablegen -*-===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#ifndef PREFILL_DIALECT_ONNX_ONNXATTRS_TD
#define PREFILL_DIALECT_ONNX_ONNXATTRS_TD

include "mlir/IR/AttrTypeBase.td"
include "mlir/IR/TensorEncoding.td"
include "prefill/Dialect/ONNX/ONNXDialect.td"

class ONNX_Attr<string name, string attrMnemonic, list<Trait> traits = []>
    : AttrDef<ONNX_Dialect, name, traits> {
  let mnemonic = attrMnemonic;
}

def ONNX_DimsAttr : ONNX_Attr<"Dims", "dims",
    [DeclareAttrInterfaceMethods<VerifiableTensorEncoding>]> {
  let summary = "Names of a tensor's dimensions, \"\" where there is none";
  let description = [{
    The encoding of a ranked tensor type, present when a dimension has a name:
    `tensor<?x?xi64, #onnx.dims<"batch", "seq">>`. Only dynamic dimensions have
    names.
  }];
  let parameters = (ins ArrayRefParameter<"::mlir::StringAttr">:$names);
  let assemblyFormat = "`<` $names `>`";
}

def ONNX_WeightAttr : ONNX_Attr<"Weight", "weight"> {
  let summary = "Bytes in a file beside the model";
  let description = [{
    `file` is relative to the model's folder (`onnx.model_dir` of the module).
    The bytes are read only through `WeightReader`.
  }];
  let parameters = (ins "::mlir::StringAttr":$file, "int64_t":$offset,
                        "int64_t":$size);
  let assemblyFormat = "`<` $file `,` $offset `,` $size `>`";
}

def ONNX_TensorAttr : ONNX_Attr<"Tensor", "tensor"> {
  let summary = "A tensor with more to say than its type and its elements";
  let description = [{
    `value` is an elements attribute or `#onnx.weight`. `type` is the tensor
    type where `value` has none. `typed` says that the elements were in
    `float_data`, `int32_data` and so on instead of `raw_data`. `extra` is the
    serialised `TensorProto` without its shape, element type, elements and, for
    an initializer, its name.
  }];
  let parameters = (ins "::mlir::Attribute":$value, "::mlir::Type":$type,
                        "bool":$typed, "::mlir::StringAttr":$extra);
  let assemblyFormat = "`<` $value `,` $type `,` $typed `,` $extra `>`";
}

def ONNX_SparseTensorAttr : ONNX_Attr<"SparseTensor", "sparse_tensor"> {
  let summary = "A sparse tensor, as a serialised `SparseTensorProto`";
  let parameters = (ins "::mlir::StringAttr":$bytes);
  let assemblyFormat = "`<` $bytes `>`";
}

def ONNX_OpsetAttr : ONNX_Attr<"Opset", "opset"> {
  let summary = "The version in which a domain's ops are meant";
  let description = [{
    `#onnx.opset<"com.microsoft", 1>`. `#onnx.opset<18>` is the default domain
    in a model that leaves its name out.
  }];
  let parameters = (ins OptionalParameter<"::mlir::StringAttr">:$domain,
                        "int64_t":$version);
  let hasCustomAssemblyFormat = 1;
  let extraClassDeclaration = [{
    /// The domain; "" is the default domain.
    llvm::StringRef getDomainName() const {
      return getDomain() ? getDomain().getValue() : llvm::StringRef();
    }
  }];
}

def ONNX_ListAttr : ONNX_Attr<"List", "list"> {
  let summary = "The attributes of a node, in the model's order";
  let description = [{
    `#onnx.list<{b = 1 : si64, a = "x"}>`: unlike a dictionary, it keeps the
    order. Names are unique.
  }];
  let parameters = (ins ArrayRefParameter<"::mlir::NamedAttribute">:$entries);
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    /// The attribute called `name`, or null.
    ::mlir::Attribute find(llvm::StringRef name) const;
  }];
}

def ONNX_SubgraphAttr : ONNX_Attr<"Subgraph", "subgraph"> {
  let summary = "A graph attribute of a node: one of the node's regions";
  let description = [{
    `facts` holds what an `onnx.graph` has in attributes of its own: `inputs`,
    `graph_name`, `doc_string`, `metadata`, `value_info`, `extra`.
  }];
  let parameters = (ins "unsigned":$region, "::mlir::DictionaryAttr":$facts);
  let assemblyFormat = "`<` $region `,` $facts `>`";
}

def ONNX_RefAttr : ONNX_Attr<"Ref", "ref"> {
  let summary = "An attribute of a function's node that the call provides";
  let description = [{
    `name` is an attribute of the enclosing function and `kind` its
    `AttributeProto.AttributeType`.
  }];
  let parameters = (ins "::mlir::StringAttr":$name, "int32_t":$kind);
  let assemblyFormat = "`<` $name `,` $kind `>`";
}

def ONNX_VerbatimAttr : ONNX_Attr<"Verbatim", "verbatim"> {
  let summary = "An attribute with more to say than its value";
  let description = [{
    `value` is what analyses see. `bytes` is the serialised `AttributeProto`
    (without subgraphs, and without a tensor that `value` holds) that the
    exporter starts from: it has a doc string, a kind that `value` does not
    tell, or an unusual encoding.
  }];
  let parameters = (ins "::mlir::Attribute":$value, "::mlir::StringAttr":$bytes);
  let assemblyFormat = "`<` $value `,` $bytes `>`";
}

def ONNX_ValueInfoAttr : ONNX_Attr<"ValueInfo", "value_info"> {
  let summary = "A declared value with more to say than its name and type";
  let description = [{
    `bytes` is the serialised `ValueInfoProto`. `bound` says that the model had
    a value of that name, so that the entry goes when the value goes; `follows`
    that its type was the value's, so that the entry changes when it changes.
  }];
  let parameters = (ins "::mlir::StringAttr":$name, "::mlir::StringAttr":$bytes,
                        "bool":$bound, "bool":$follows);
  let assemblyFormat = "`<` $name `,` $bytes `,` $bound `,` $follows `>`";
}

#endif // PREFILL_DIALECT_ONNX_ONNXATTRS_TD
