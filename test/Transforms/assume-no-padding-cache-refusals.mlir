// RUN: prefill-opt %s -assume-no-padding=drop-cache -split-input-file -verify-diagnostics

// Something else reads the cache.

!p = tensor<1x2x?x8xf32>

// expected-error @unknown {{the input 'past_key_values.0.key' is not understood as a KV cache}}
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%p: !p, %k: !p) attributes {inputs = ["past_key_values.0.key", "k"]} {
    %c = onnx.node "Concat"(%p, %k) {axis = 2 : si64} : (!p, !p) -> !p
    onnx.return %c, %p : !p, !p {output_names = ["o", "p"]}
  }
}

// -----

// New rows stand before it.

!p = tensor<1x2x?x8xf32>

// expected-error @unknown {{the input 'past_key_values.1.key' is not understood as a KV cache}}
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%p: !p, %k: !p) attributes {inputs = ["past_key_values.1.key", "k"]} {
    %c = onnx.node "Concat"(%k, %p) {axis = 2 : si64} : (!p, !p) -> !p
    onnx.return %c : !p {output_names = ["o"]}
  }
}
