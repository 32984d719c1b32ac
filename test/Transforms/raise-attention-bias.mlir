// RUN: prefill-opt %s -raise-attention -split-input-file -verify-each | FileCheck %s

// Masks that are not proven to hide keys, or that would mean something else as
// an attribute, stay operands.

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// -10000, as old BERT exports add it, is a number like others: it stays a bias.
// CHECK-LABEL: graph_name = "small minimum"
// CHECK: %[[B:.*]] = onnx.node "Where"(%tril
// CHECK: prefill.attention %q, %k, %v bias(%[[B]] : tensor<3x3xf32>) {form
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t) attributes {graph_name = "small minimum", inputs = ["q", "k", "v"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<-1.0e+04> : tensor<f32>
    %scale = onnx.initializer "scale" : tensor<f32> = dense<0.25> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) attributes {output_names = ["raw"]} : (!t, !u) -> !u
    %s = onnx.node "Mul"(%raw, %scale) : (!u, tensor<f32>) -> !u
    %bias = onnx.node "Where"(%tril, %zero, %low) : (tensor<3x3xi1>, tensor<f32>, tensor<f32>) -> !u
    %m = onnx.node "Add"(%s, %bias) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} attributes {label = "the softmax", output_names = ["p"]} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// A mask that the caller gives: nothing is known about it. Kernels add it as the
// model does, rows of finite minima included; rows of -inf are NaN.
// CHECK-LABEL: graph_name = "given"
// CHECK: prefill.attention %q, %k, %v bias(%m0 : tensor<1x1x3x3xf32>) {form
// CHECK-SAME: masked_row = #prefill<masked_row nan>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t, %m0: tensor<1x1x3x3xf32>) attributes {graph_name = "given", inputs = ["q", "k", "v", "m0"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<-3.40282347E+38> : tensor<f32>
    %scale = onnx.initializer "scale" : tensor<f32> = dense<0.25> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) attributes {output_names = ["raw"]} : (!t, !u) -> !u
    %s = onnx.node "Mul"(%raw, %scale) : (!u, tensor<f32>) -> !u
    %m = onnx.node "Add"(%s, %m0) : (!u, tensor<1x1x3x3xf32>) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} attributes {label = "the softmax", output_names = ["p"]} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// A finite causal mask beside it: where the caller hides all keys that causality
// leaves, the original sees the others again. Both stay as they are.
// CHECK-LABEL: graph_name = "given and finite"
// CHECK: %[[W:.*]] = onnx.node "Where"(%tril
// CHECK: %[[B:.*]] = onnx.node "Add"(%m0, %[[W]])
// CHECK-NEXT: %{{.*}} = prefill.attention %q, %k, %v bias(%[[B]] : tensor<*xf32>) {form
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t, %m0: tensor<1x1x3x3xf32>) attributes {graph_name = "given and finite", inputs = ["q", "k", "v", "m0"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<-3.40282347E+38> : tensor<f32>
    %scale = onnx.initializer "scale" : tensor<f32> = dense<0.25> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) attributes {output_names = ["raw"]} : (!t, !u) -> !u
    %s = onnx.node "Mul"(%raw, %scale) : (!u, tensor<f32>) -> !u
    %bias = onnx.node "Where"(%tril, %zero, %low) : (tensor<3x3xi1>, tensor<f32>, tensor<f32>) -> !u
    %m1 = onnx.node "Add"(%s, %bias) : (!u, !u) -> !u
    %m = onnx.node "Add"(%m1, %m0) : (!u, tensor<1x1x3x3xf32>) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} attributes {label = "the softmax", output_names = ["p"]} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// With -inf there is no such row.
// CHECK-LABEL: graph_name = "given and infinite"
// CHECK: prefill.attention %q, %k, %v bias(%m0 : tensor<1x1x3x3xf32>) {causal
// CHECK-SAME: masked_row = #prefill<masked_row nan>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t, %m0: tensor<1x1x3x3xf32>) attributes {graph_name = "given and infinite", inputs = ["q", "k", "v", "m0"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<0xFF800000> : tensor<f32>
    %scale = onnx.initializer "scale" : tensor<f32> = dense<0.25> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) attributes {output_names = ["raw"]} : (!t, !u) -> !u
    %s = onnx.node "Mul"(%raw, %scale) : (!u, tensor<f32>) -> !u
    %bias = onnx.node "Where"(%tril, %zero, %low) : (tensor<3x3xi1>, tensor<f32>, tensor<f32>) -> !u
    %m1 = onnx.node "Add"(%s, %bias) : (!u, !u) -> !u
    %m = onnx.node "Add"(%m1, %m0) : (!u, tensor<1x1x3x3xf32>) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} attributes {label = "the softmax", output_names = ["p"]} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// Two finite minima add up to -inf where both hide: rows without a
// visible key average over the others only. Both stay numbers.
// CHECK-LABEL: graph_name = "twice"
// CHECK: %[[B:.*]] = onnx.node "Add"(
// CHECK-NEXT: %{{.*}} = prefill.attention %q, %k, %v bias(%[[B]] : tensor<*xf32>) {form
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t, %pad: tensor<1x1x1x3xi1>) attributes {graph_name = "twice", inputs = ["q", "k", "v", "pad"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<-3.40282347E+38> : tensor<f32>
    %scale = onnx.initializer "scale" : tensor<f32> = dense<0.25> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) attributes {output_names = ["raw"]} : (!t, !u) -> !u
    %s = onnx.node "Mul"(%raw, %scale) : (!u, tensor<f32>) -> !u
    %bias = onnx.node "Where"(%tril, %zero, %low) : (tensor<3x3xi1>, tensor<f32>, tensor<f32>) -> !u
    %m1 = onnx.node "Add"(%s, %bias) : (!u, !u) -> !u
    %pad4 = onnx.node "Where"(%pad, %zero, %low) : (tensor<1x1x1x3xi1>, tensor<f32>, tensor<f32>) -> !u
    %m = onnx.node "Add"(%m1, %pad4) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} attributes {label = "the softmax", output_names = ["p"]} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// Keys strictly before the row: no attribute says that, and row 0 sees nothing.
// CHECK-LABEL: graph_name = "strict"
// CHECK: prefill.attention %q, %k, %v bias(%strict : tensor<3x3xi1>) {form
// CHECK-SAME: masked_row = #prefill<masked_row mean>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t) attributes {graph_name = "strict", inputs = ["q", "k", "v"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<-3.40282347E+38> : tensor<f32>
    %scale = onnx.initializer "scale" : tensor<f32> = dense<0.25> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) attributes {output_names = ["raw"]} : (!t, !u) -> !u
    %s = onnx.node "Mul"(%raw, %scale) : (!u, tensor<f32>) -> !u
    %strict = onnx.initializer "strict" : tensor<3x3xi1> = dense<[[false, false, false], [true, false, false], [true, true, false]]> : tensor<3x3xi1>
    %bias = onnx.node "Where"(%strict, %zero, %low) : (tensor<3x3xi1>, tensor<f32>, tensor<f32>) -> !u
    %m = onnx.node "Add"(%s, %bias) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} attributes {label = "the softmax", output_names = ["p"]} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// A bias of constants hides nothing: the causal mask is read beside it.
// CHECK-LABEL: graph_name = "alibi"
// CHECK: prefill.attention %q, %k, %v bias(%slopes : tensor<2x3x3xf32>) {causal
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t) attributes {graph_name = "alibi", inputs = ["q", "k", "v"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<-3.40282347E+38> : tensor<f32>
    %scale = onnx.initializer "scale" : tensor<f32> = dense<0.25> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) attributes {output_names = ["raw"]} : (!t, !u) -> !u
    %s = onnx.node "Mul"(%raw, %scale) : (!u, tensor<f32>) -> !u
    %slopes = onnx.initializer "slopes" : tensor<2x3x3xf32> = dense<[[[0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]], [[0.0, 0.5, 1.0], [0.0, 0.5, 1.0], [0.0, 0.5, 1.0]]]> : tensor<2x3x3xf32>
    %s2 = onnx.node "Add"(%slopes, %s) : (tensor<2x3x3xf32>, !u) -> !u
    %bias = onnx.node "Where"(%tril, %zero, %low) : (tensor<3x3xi1>, tensor<f32>, tensor<f32>) -> !u
    %m = onnx.node "Add"(%s2, %bias) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} attributes {label = "the softmax", output_names = ["p"]} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}
