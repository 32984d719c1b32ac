// RUN: prefill-opt %s -chunk-prompt=size=16 -split-input-file -verify-diagnostics

// Attention whose bias counts rows (ALiBi), and mixers that know no segments.


!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!i = tensor<?x?xi64, #onnx.dims<"B", "S">>

// expected-error @unknown {{-chunk: attention 'a': it has a mask or bias of its own}}
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i, %b: tensor<1x2x?x?xf32>) attributes {inputs = ["input_ids", "bias"]} {
    %w = onnx.initializer "w" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %x = onnx.node "Gather"(%w, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, !i) -> !x
    %o = prefill.attention %x, %x, %x bias(%b : tensor<1x2x?x?xf32>) {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>, layer = "a"} : !x, !x, !x -> !x
    onnx.return %o : !x {output_names = ["logits"]}
  }
}

// -----

!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!i = tensor<?x?xi64, #onnx.dims<"B", "S">>

// expected-error @unknown {{-chunk: Conv 'mixer': it is not known to treat rows one by one}}
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i) attributes {inputs = ["input_ids"]} {
    %w = onnx.initializer "w" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %x = onnx.node "Gather"(%w, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, !i) -> !x
    %y = prefill.attention %x, %x, %x {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %k = onnx.initializer "k" : tensor<16x16x3xf32> = dense<1.0> : tensor<16x16x3xf32>
    %t = onnx.node "Transpose"(%y) {perm = array<i64: 0, 2, 1>} : (!x) -> tensor<?x16x?xf32, #onnx.dims<"B", "", "S">>
    %c = onnx.node "Conv"(%t, %k) {pads = array<i64: 2, 0>} attributes {label = "mixer"} : (tensor<?x16x?xf32, #onnx.dims<"B", "", "S">>, tensor<16x16x3xf32>) -> tensor<?x16x?xf32, #onnx.dims<"B", "", "S">>
    %o = onnx.node "Transpose"(%c) {perm = array<i64: 0, 2, 1>} : (tensor<?x16x?xf32, #onnx.dims<"B", "", "S">>) -> !x
    onnx.return %o : !x {output_names = ["logits"]}
  }
}
