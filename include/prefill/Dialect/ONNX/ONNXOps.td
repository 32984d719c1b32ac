//===- ONNXOps.td - Operations of the onnx dialect ---------*- tablegen -*-===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#ifndef PREFILL_DIALECT_ONNX_ONNXOPS_TD
#define PREFILL_DIALECT_ONNX_ONNXOPS_TD

include "mlir/IR/OpAsmInterface.td"
include "mlir/IR/SymbolInterfaces.td"
include "mlir/Interfaces/SideEffectInterfaces.td"
include "prefill/Dialect/ONNX/ONNXDialect.td"
include "prefill/Dialect/ONNX/ONNXTypes.td"
include "prefill/Dialect/ONNX/ONNXAttrs.td"

class ONNX_Op<string mnemonic, list<Trait> traits = []>
    : Op<ONNX_Dialect, mnemonic, traits>;

/// Names of values; an entry is a string, or `#onnx.value_info` where the model
/// says more about the value than its name and type.
def ONNX_ValueNames : TypedArrayAttrBase<AnyAttrOf<[StrAttr, ONNX_ValueInfoAttr]>,
                                         "names of values">;
def ONNX_Opsets : TypedArrayAttrBase<ONNX_OpsetAttr, "opset imports">;

def ONNX_GraphOp : ONNX_Op<"graph", [IsolatedFromAbove, Symbol, SingleBlock,
    HasParent<"::mlir::ModuleOp">,
    DeclareOpInterfaceMethods<OpAsmOpInterface, ["getAsmBlockArgumentNames"]>]> {
  let summary = "The main graph of a model";
  let description = [{
    Block argument i is graph input i; `inputs` names them. `value_info` lists,
    in the model's order, the names of the values whose type the model declares.
    `metadata` alternates keys and values. `extra` is a serialised `GraphProto`
    of what is not modelled (quantisation annotations).
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, ONNX_ValueNames:$inputs,
      OptionalAttr<StrAttr>:$graph_name, OptionalAttr<StrAttr>:$doc_string,
      OptionalAttr<StrArrayAttr>:$metadata,
      OptionalAttr<ONNX_ValueNames>:$value_info, OptionalAttr<StrAttr>:$extra);
  let regions = (region SizedRegion<1>:$body);
  let hasCustomAssemblyFormat = 1;
  let hasVerifier = 1;
}

def ONNX_FunctionOp : ONNX_Op<"function", [IsolatedFromAbove, Symbol, SingleBlock,
    HasParent<"::mlir::ModuleOp">,
    DeclareOpInterfaceMethods<OpAsmOpInterface, ["getAsmBlockArgumentNames"]>]> {
  let summary = "A model-local function";
  let description = [{
    Nodes whose domain, op type and overload are `function_domain`,
    `function_name` and `function_overload` call it. `extra` is a serialised
    `FunctionProto` of what is not modelled (attributes with defaults).
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, ONNX_ValueNames:$inputs,
      StrAttr:$function_name, OptionalAttr<StrAttr>:$function_domain,
      OptionalAttr<StrAttr>:$function_overload,
      OptionalAttr<StrArrayAttr>:$parameters,
      OptionalAttr<ONNX_Opsets>:$opset_imports,
      OptionalAttr<StrAttr>:$doc_string, OptionalAttr<StrArrayAttr>:$metadata,
      OptionalAttr<ONNX_ValueNames>:$value_info, OptionalAttr<StrAttr>:$extra);
  let regions = (region SizedRegion<1>:$body);
  let hasCustomAssemblyFormat = 1;
  let hasVerifier = 1;
}

def ONNX_NodeOp : ONNX_Op<"node", [SingleBlock,
    DeclareOpInterfaceMethods<MemoryEffectsOpInterface>,
    DeclareOpInterfaceMethods<OpAsmOpInterface, ["getAsmResultNames",
                                                 "getAsmBlockArgumentNames"]>]> {
  let summary = "Any ONNX operator";
  let description = [{
    Operand i is input i (an omitted one is a result of `onnx.absent`), result i
    is output i (an omitted one has the name "" and no use). `attrs` holds the
    operator's attributes; a subgraph is `#onnx.subgraph` there and a region
    here. `output_names` may be missing: the exporter then makes names up.

    ```mlir
    %y = onnx.node "Gather"(%w, %ids) {axis = 0 : si64}
        attributes {label = "n0", output_names = ["y"]}
        : (tensor<9x4xf32>, tensor<?xi64>) -> tensor<?x4xf32>
    ```
  }];
  let arguments = (ins StrAttr:$op_type, Variadic<AnyType>:$inputs,
      OptionalAttr<StrAttr>:$op_domain, OptionalAttr<StrAttr>:$op_overload,
      OptionalAttr<StrAttr>:$label, OptionalAttr<StrArrayAttr>:$output_names,
      OptionalAttr<ONNX_ListAttr>:$attrs, OptionalAttr<StrAttr>:$doc_string,
      OptionalAttr<StrArrayAttr>:$metadata, OptionalAttr<StrAttr>:$extra);
  let results = (outs Variadic<AnyType>:$outputs);
  let regions = (region VariadicRegion<SizedRegion<1>>:$subgraphs);
  let assemblyFormat = [{
    $op_type `(` $inputs `)` (custom<AttrList>($attrs)^)? attr-dict-with-keyword
    `:` functional-type($inputs, $outputs) (`subgraphs` $subgraphs^)?
  }];
  let hasVerifier = 1;
  let builders = [
    OpBuilder<(ins "::llvm::StringRef":$opType, "::llvm::StringRef":$domain,
                   "::mlir::ValueRange":$inputs, "::mlir::TypeRange":$results,
                   CArg<"::llvm::ArrayRef<::mlir::NamedAttribute>", "{}">:$attrs)>
  ];
  let extraClassDeclaration = [{
    /// The operator's domain; "" for the default domain, however it is spelt.
    llvm::StringRef getDomain();
    /// The node's name, or "".
    llvm::StringRef getNodeName();
    /// Whether this is operator `opType` of `domain`.
    bool is(llvm::StringRef opType, llvm::StringRef domain = "");
    /// Input `i`, or null when it is omitted or out of range.
    ::mlir::Value getInput(unsigned i);
    /// Output `i`, or null when it is out of range.
    ::mlir::Value getOutput(unsigned i);
    /// The name of output `i`, or "" when it is omitted or has none yet.
    llvm::StringRef getOutputName(unsigned i);

    /// The value of attribute `name`, or null when there is none: a si64
    /// IntegerAttr, an f32 FloatAttr, a StringAttr, a DenseI64ArrayAttr, a
    /// DenseF32ArrayAttr, an ArrayAttr of these, an ElementsAttr or
    /// `#onnx.weight` for a tensor, a TypeAttr, `#onnx.subgraph`,
    /// `#onnx.sparse_tensor` or `#onnx.ref`.
    ::mlir::Attribute getAttrOfName(llvm::StringRef name);
    /// Sets attribute `name`, at the end when it is new.
    void setAttrOfName(llvm::StringRef name, ::mlir::Attribute value);
    /// Removes attribute `name` if it is there.
    void removeAttrOfName(llvm::StringRef name);
    int64_t getInt(llvm::StringRef name, int64_t otherwise);
    double getFloat(llvm::StringRef name, double otherwise);
    llvm::StringRef getString(llvm::StringRef name, llvm::StringRef otherwise);
    /// The integers of attribute `name`, or nothing.
    std::optional<llvm::ArrayRef<int64_t>> getInts(llvm::StringRef name);
    /// The floats of attribute `name`, or nothing.
    std::optional<llvm::ArrayRef<float>> getFloats(llvm::StringRef name);
    /// The region of graph attribute `name`, or null.
    ::mlir::Region *getSubgraph(llvm::StringRef name);
  }];
}

def ONNX_InitializerOp : ONNX_Op<"initializer", [Pure,
    DeclareOpInterfaceMethods<OpAsmOpInterface, ["getAsmResultNames"]>]> {
  let summary = "A weight or another constant of a graph";
  let description = [{
    `value` is an elements attribute, `#onnx.weight`, `#onnx.tensor` or, for a
    sparse initializer, `#onnx.sparse_tensor`. The name may be empty on one that
    a rewriter made; the exporter then makes one up.
  }];
  let arguments = (ins StrAttr:$name, AnyAttr:$value);
  let results = (outs AnyType:$result);
  let assemblyFormat = "$name `:` type($result) `=` $value attr-dict";
  let hasVerifier = 1;
}

def ONNX_DefaultOp : ONNX_Op<"default", [ParentOneOf<["GraphOp", "NodeOp"]>]> {
  let summary = "The value of a graph input that the caller leaves out";
  let description = [{
    An initializer with the name of a graph input. Before IR version 4 every
    initializer was one, and was meant as a constant.
  }];
  let arguments = (ins AnyType:$input, AnyAttr:$value,
                       OptionalAttr<TypeAttr>:$value_type);
  let assemblyFormat = "$input `:` type($input) `=` $value attr-dict";
  let hasVerifier = 1;
}

def ONNX_AbsentOp : ONNX_Op<"absent", [Pure]> {
  let summary = "Stands for an omitted input";
  let results = (outs NoneType:$result);
  let assemblyFormat = "attr-dict";
}

def ONNX_ReturnOp : ONNX_Op<"return", [Pure, Terminator,
    ParentOneOf<["GraphOp", "FunctionOp", "NodeOp"]>]> {
  let summary = "The outputs of a graph or function";
  let description = [{
    `output_names` are the interface of the graph: rewriters replace operands
    and keep them; the exporter sees to it that the values get these names.
  }];
  let arguments = (ins Variadic<AnyType>:$values, ONNX_ValueNames:$output_names);
  let assemblyFormat = [{
    ($values^ `:` type($values))? attr-dict
  }];
  let hasVerifier = 1;
}

#endif // PREFILL_DIALECT_ONNX_ONNXOPS_TD
