//===- ONNXDialect.td - The onnx dialect -------------------*- tablegen -*-===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#ifndef PREFILL_DIALECT_ONNX_ONNXDIALECT_TD
#define PREFILL_DIALECT_ONNX_ONNXDIALECT_TD

include "mlir/IR/OpBase.td"

def ONNX_Dialect : Dialect {
  let name = "onnx";
  let cppNamespace = "::prefill::onnx";
  let summary = "ONNX models, kept as they are";
  let description = [{
    A model is a `builtin.module` whose discardable attributes `onnx.*` hold
    the model-level facts. It holds one `onnx.graph` and any number of
    `onnx.function`s. Every ONNX operator, known or not, is the generic
    `onnx.node`; the dialect knows how models are built, not what ops mean.

    Nothing is lost: exporting an imported model gives an equal protobuf
    message. What analyses need is proper IR; the rest is kept as the bytes of
    the protobuf message that it came from, in attributes called `extra` or in
    `#onnx.verbatim`, `#onnx.value_info` and `#onnx.tensor`.
  }];
  let useDefaultTypePrinterParser = 1;
  let useDefaultAttributePrinterParser = 1;
  let extraClassDeclaration = [{
    /// Discardable attributes of the module: the facts of `ModelProto`.
    static constexpr llvm::StringLiteral kIrVersion = "onnx.ir_version";
    static constexpr llvm::StringLiteral kOpsetImports = "onnx.opset_imports";
    static constexpr llvm::StringLiteral kProducerName = "onnx.producer_name";
    static constexpr llvm::StringLiteral kProducerVersion =
        "onnx.producer_version";
    static constexpr llvm::StringLiteral kModelDomain = "onnx.domain";
    static constexpr llvm::StringLiteral kModelVersion = "onnx.model_version";
    static constexpr llvm::StringLiteral kDocString = "onnx.doc_string";
    static constexpr llvm::StringLiteral kMetadata = "onnx.metadata";
    static constexpr llvm::StringLiteral kExtra = "onnx.extra";
    /// The folder that `#onnx.weight` files are relative to.
    static constexpr llvm::StringLiteral kModelDir = "onnx.model_dir";
  }];
}

#endif // PREFILL_DIALECT_ONNX_ONNXDIALECT_TD
