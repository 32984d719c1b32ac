// RUN: prefill-opt %s -raise-attention -verify-each -split-input-file | FileCheck %s

// Queries and keys are rotated by position before the product. The rotation
// becomes part of the attention; the cache holds the rotated keys.

!u = !onnx.unknown
!t = tensor<?x2x?x8xf32, #onnx.dims<"B", "", "S", "">>
!w = tensor<1x?x8xf32, #onnx.dims<"", "S", "">>

// CHECK-LABEL: onnx.graph @both
// CHECK-NEXT: %[[O:.*]], %[[K:.*]] = prefill.attention %q, %k, %v rotary(%cos, %sin : {{.*}}) {form = "MatMul-Softmax-MatMul, RoPE"
// CHECK-SAME: rotary = #prefill<rotary half>, rotary_dim = 8
// CHECK-SAME: rotated_k : tensor<?x2x?x8xf32
// CHECK-NEXT: onnx.return %[[O]], %[[K]]
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @both(%q: !t, %k: !t, %v: !t, %cos: !w, %sin: !w) attributes {inputs = ["q", "k", "v", "cos", "sin"]} {
    %a0 = onnx.initializer "a0" : tensor<1xi64> = dense<0> : tensor<1xi64>
    %a1 = onnx.initializer "a1" : tensor<1xi64> = dense<1> : tensor<1xi64>
    %a3 = onnx.initializer "a3" : tensor<1xi64> = dense<3> : tensor<1xi64>
    %a4 = onnx.initializer "a4" : tensor<1xi64> = dense<4> : tensor<1xi64>
    %a8 = onnx.initializer "a8" : tensor<1xi64> = dense<8> : tensor<1xi64>
    %c = onnx.node "Unsqueeze"(%cos, %a1) : (!w, tensor<1xi64>) -> !u
    %s = onnx.node "Unsqueeze"(%sin, %a1) : (!w, tensor<1xi64>) -> !u
    %ql = onnx.node "Slice"(%q, %a0, %a4, %a3) : (!t, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>) -> !u
    %qh = onnx.node "Slice"(%q, %a4, %a8, %a3) : (!t, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>) -> !u
    %qn = onnx.node "Neg"(%qh) : (!u) -> !u
    %qt = onnx.node "Concat"(%qn, %ql) {axis = -1 : si64} : (!u, !u) -> !u
    %qc = onnx.node "Mul"(%q, %c) : (!t, !u) -> !u
    %qs = onnx.node "Mul"(%qt, %s) : (!u, !u) -> !u
    %qr = onnx.node "Add"(%qc, %qs) : (!u, !u) -> !u
    %kl = onnx.node "Slice"(%k, %a0, %a4, %a3) : (!t, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>) -> !u
    %kh = onnx.node "Slice"(%k, %a4, %a8, %a3) : (!t, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>) -> !u
    %kn = onnx.node "Neg"(%kh) : (!u) -> !u
    %kt = onnx.node "Concat"(%kn, %kl) {axis = -1 : si64} : (!u, !u) -> !u
    %kc = onnx.node "Mul"(%k, %c) : (!t, !u) -> !u
    %ks = onnx.node "Mul"(%kt, %s) : (!u, !u) -> !u
    %kr = onnx.node "Add"(%kc, %ks) : (!u, !u) -> !u
    %kx = onnx.node "Transpose"(%kr) {perm = array<i64: 0, 1, 3, 2>} : (!u) -> !u
    %x = onnx.node "MatMul"(%qr, %kx) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%x) {axis = -1 : si64} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o, %kr : !u, !u {output_names = ["o", "cache"]}
  }
}

// -----

// The keys are not rotated: the queries' rotation stays outside. (A cache that
// nothing reads gives no result either.)

!u = !onnx.unknown
!t = tensor<?x2x?x8xf32, #onnx.dims<"B", "", "S", "">>
!w = tensor<1x?x4xf32, #onnx.dims<"", "S", "">>

// CHECK-LABEL: onnx.graph @one
// CHECK: %[[Q:.*]] = onnx.node "RotaryEmbedding"(%q, %cos, %sin)
// CHECK: prefill.attention %[[Q]], %k, %v {form = "MatMul-Softmax-MatMul", head_dim
module attributes {onnx.opset_imports = [#onnx.opset<"", 23>]} {
  onnx.graph @one(%q: !t, %k: !t, %v: !t, %cos: !w, %sin: !w) attributes {inputs = ["q", "k", "v", "cos", "sin"]} {
    %qr = onnx.node "RotaryEmbedding"(%q, %cos, %sin) : (!t, !w, !w) -> !u
    %kx = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %x = onnx.node "MatMul"(%qr, %kx) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%x) {axis = -1 : si64} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

// Both by the node, with interleaved pairs; nothing else reads the keys.

!u = !onnx.unknown
!t = tensor<?x2x?x8xf32, #onnx.dims<"B", "", "S", "">>
!w = tensor<1x?x4xf32, #onnx.dims<"", "S", "">>

// CHECK-LABEL: onnx.graph @nodes
// CHECK-NEXT: prefill.attention %q, %k, %v rotary(%cos, %sin : {{.*}}) {
// CHECK-SAME: rotary = #prefill<rotary interleaved>
// CHECK-NOT: rotated_k
module attributes {onnx.opset_imports = [#onnx.opset<"", 23>]} {
  onnx.graph @nodes(%q: !t, %k: !t, %v: !t, %cos: !w, %sin: !w) attributes {inputs = ["q", "k", "v", "cos", "sin"]} {
    %qr = onnx.node "RotaryEmbedding"(%q, %cos, %sin) {interleaved = 1 : si64} : (!t, !w, !w) -> !u
    %kr = onnx.node "RotaryEmbedding"(%k, %cos, %sin) {interleaved = 1 : si64} : (!t, !w, !w) -> !u
    %kx = onnx.node "Transpose"(%kr) {perm = array<i64: 0, 1, 3, 2>} : (!u) -> !u
    %x = onnx.node "MatMul"(%qr, %kx) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%x) {axis = -1 : si64} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}
