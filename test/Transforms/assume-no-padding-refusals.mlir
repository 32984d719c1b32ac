// RUN: prefill-opt %s -assume-no-padding -split-input-file -verify-diagnostics

!i = tensor<?x?xi64, #onnx.dims<"B", "S">>

// expected-error @unknown {{the model has a KV cache ('past_key_values.0.key'): }}
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i, %m: !i, %p: !i) attributes {inputs = ["input_ids", "attention_mask", "past_key_values.0.key"]} {
    onnx.return %m : !i {output_names = ["o"]}
  }
}

// -----

!i = tensor<?x?xi64, #onnx.dims<"B", "S">>

// expected-error @unknown {{no inputs 'input_ids' and 'attention_mask' [batch, tokens]}}
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i, %m: tensor<?xi64>) attributes {inputs = ["input_ids", "attention_mask"]} {
    onnx.return %ids : !i {output_names = ["o"]}
  }
}

// -----

!i = tensor<?x?xi64, #onnx.dims<"B", "S">>

// expected-error @unknown {{not of type int64, int32, bool or float32}}
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i, %m: tensor<?x?xf16>) attributes {inputs = ["input_ids", "attention_mask"]} {
    onnx.return %ids : !i {output_names = ["o"]}
  }
}

// -----

!i = tensor<?x?xi64, #onnx.dims<"B", "S">>

// expected-error @unknown {{('past_key_values.1.key'): its attention_mask is longer than the prompt. With -chunk it gets another one}}
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i, %p: tensor<1x2x?x8xf32>) attributes {inputs = ["input_ids", "past_key_values.1.key"]} {
    onnx.return %p : tensor<1x2x?x8xf32> {output_names = ["o"]}
  }
}
