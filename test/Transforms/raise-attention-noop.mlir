// RUN: prefill-opt %s -raise-attention -split-input-file -verify-each > %t
// RUN: prefill-opt %s -split-input-file | diff - %t

// Nothing to raise: the pass leaves every op as it is, dead ones included.

!u = !onnx.unknown

// A classifier's softmax is no attention.
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%x: tensor<?x64xf32>, %y: tensor<?x64xf32>) attributes {inputs = ["x", "y"]} {
    %w = onnx.initializer "w" : tensor<64x10xf32> = dense<1.0> : tensor<64x10xf32>
    %unused = onnx.initializer "unused" : tensor<2xf32> = dense<1.0> : tensor<2xf32>
    %dead = onnx.node "Shape"(%x) : (tensor<?x64xf32>) -> !u
    %s = onnx.node "MatMul"(%x, %w) : (tensor<?x64xf32>, tensor<64x10xf32>) -> !u
    %p = onnx.node "Softmax"(%s) {axis = -1 : si64} : (!u) -> !u
    onnx.return %p : !u {output_names = ["p"]}
  }
}

// -----

!u = !onnx.unknown

// A router: the probabilities choose experts, they do not average values.
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%x: tensor<?x64xf32>, %y: tensor<64x?xf32>) attributes {inputs = ["x", "y"]} {
    %k = onnx.initializer "k" : tensor<1xi64> = dense<2> : tensor<1xi64>
    %s = onnx.node "MatMul"(%x, %y) : (tensor<?x64xf32>, tensor<64x?xf32>) -> !u
    %p = onnx.node "Softmax"(%s) {axis = -1 : si64} : (!u) -> !u
    %v, %i = onnx.node "TopK"(%p, %k) {axis = -1 : si64} : (!u, tensor<1xi64>) -> (!u, !u)
    onnx.return %v, %i : !u, !u {output_names = ["v", "i"]}
  }
}

// -----

// Raised before.
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: tensor<1x2x?x64xf32>) attributes {inputs = ["q"]} {
    %o = prefill.attention %q, %q, %q {causal, head_dim = 64 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.250000e-01 : f32, v_head_dim = 64 : i64} : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32>
    onnx.return %o : tensor<1x2x?x64xf32> {output_names = ["o"]}
  }
}
