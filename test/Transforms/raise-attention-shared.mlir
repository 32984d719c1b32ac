// RUN: prefill-opt %s -raise-attention -verify-each | FileCheck %s

// Two attentions share a mask. What is planned on it is made once; the mask
// itself goes but for what a result of the model still needs; nodes that were
// dead before stay.

!u = !onnx.unknown
!t = tensor<?x2x3x8xf32, #onnx.dims<"B", "", "", "">>
!m = tensor<?x1x1x3xi1, #onnx.dims<"B", "", "", "">>

// CHECK: %[[SEE:.*]] = onnx.node "And"(%tril, %pad)
// CHECK-NEXT: %[[DEAD:.*]] = onnx.node "Neg"(%q)
// CHECK: %[[M:.*]] = onnx.node "Squeeze"(%pad, %{{.*}}) : ({{.*}}) -> tensor<?x3xi1>
// CHECK-NEXT: %[[A:.*]] = prefill.attention %q, %k, %v key_mask(%[[M]] : tensor<?x3xi1>) {causal
// CHECK-NEXT: %[[B:.*]] = prefill.attention %[[A]], %k, %v key_mask(%[[M]] : tensor<?x3xi1>) {causal
// CHECK-NEXT: onnx.return %[[B]], %[[SEE]]
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t, %pad: !m) attributes {inputs = ["q", "k", "v", "pad"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<0xFF800000> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %see = onnx.node "And"(%tril, %pad) : (tensor<3x3xi1>, !m) -> !u
    %dead = onnx.node "Neg"(%q) : (!t) -> !u
    %bias = onnx.node "Where"(%see, %zero, %low) : (!u, tensor<f32>, tensor<f32>) -> !u
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %s1 = onnx.node "MatMul"(%q, %kt) : (!t, !u) -> !u
    %m1 = onnx.node "Add"(%s1, %bias) : (!u, !u) -> !u
    %p1 = onnx.node "Softmax"(%m1) {axis = -1 : si64} : (!u) -> !u
    %o1 = onnx.node "MatMul"(%p1, %v) : (!u, !t) -> !u
    %s2 = onnx.node "MatMul"(%o1, %kt) : (!u, !u) -> !u
    %m2 = onnx.node "Add"(%s2, %bias) : (!u, !u) -> !u
    %p2 = onnx.node "Softmax"(%m2) {axis = -1 : si64} : (!u) -> !u
    %o2 = onnx.node "MatMul"(%p2, %v) : (!u, !t) -> !u
    onnx.return %o2, %see : !u, !u {output_names = ["o", "see"]}
  }
}
