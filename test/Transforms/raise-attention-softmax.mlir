// RUN: prefill-opt %s -raise-attention -split-input-file -verify-each 2>/dev/null | FileCheck %s
// RUN: prefill-opt %s -raise-attention -split-input-file --remarks-filter-missed=raise-attention 2>&1 >/dev/null | FileCheck %s --check-prefix=WHY

// Softmax in other spellings and other places.

!u = !onnx.unknown

// Exponentials divided by their sums, the maximum subtracted.
// CHECK-LABEL: graph_name = "exponentials"
// CHECK: prefill.attention %q, %k, %v
// CHECK-NEXT: onnx.return
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: tensor<2x4x8x16xf32>, %k: tensor<2x4x8x16xf32>, %v: tensor<2x4x8x16xf32>) attributes {graph_name = "exponentials", inputs = ["q", "k", "v"]} {
    %last = onnx.initializer "last" : tensor<1xi64> = dense<-1> : tensor<1xi64>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (tensor<2x4x8x16xf32>) -> !u
    %s = onnx.node "MatMul"(%q, %kt) : (tensor<2x4x8x16xf32>, !u) -> !u
    %m = onnx.node "ReduceMax"(%s, %last) : (!u, tensor<1xi64>) -> !u
    %d = onnx.node "Sub"(%s, %m) : (!u, !u) -> !u
    %e = onnx.node "Exp"(%d) : (!u) -> !u
    %n = onnx.node "ReduceSum"(%e, %last) : (!u, tensor<1xi64>) -> !u
    %p = onnx.node "Div"(%e, %n) : (!u, !u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, tensor<2x4x8x16xf32>) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown

// The division comes after the product with the values.
// CHECK-LABEL: graph_name = "divided later"
// CHECK: prefill.attention %q, %k, %v
// CHECK-NEXT: onnx.return
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: tensor<2x4x8x16xf32>, %k: tensor<2x4x8x16xf32>, %v: tensor<2x4x8x16xf32>) attributes {graph_name = "divided later", inputs = ["q", "k", "v"]} {
    %last = onnx.initializer "last" : tensor<1xi64> = dense<-1> : tensor<1xi64>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (tensor<2x4x8x16xf32>) -> !u
    %s = onnx.node "MatMul"(%q, %kt) : (tensor<2x4x8x16xf32>, !u) -> !u
    %e = onnx.node "Exp"(%s) : (!u) -> !u
    %n = onnx.node "ReduceSum"(%e, %last) : (!u, tensor<1xi64>) -> !u
    %w = onnx.node "MatMul"(%e, %v) : (!u, tensor<2x4x8x16xf32>) -> !u
    %o = onnx.node "Div"(%w, %n) : (!u, !u) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown

// ... by the sums of something else.
// WHY: Exp {{.*}}the exponentials of its scores are not divided by their sums in a way that is known
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: tensor<2x4x8x16xf32>, %k: tensor<2x4x8x16xf32>, %v: tensor<2x4x8x16xf32>) attributes {graph_name = "divided by others", inputs = ["q", "k", "v"]} {
    %last = onnx.initializer "last" : tensor<1xi64> = dense<-1> : tensor<1xi64>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (tensor<2x4x8x16xf32>) -> !u
    %s = onnx.node "MatMul"(%q, %kt) : (tensor<2x4x8x16xf32>, !u) -> !u
    %e = onnx.node "Exp"(%s) attributes {output_names = ["e"]} : (!u) -> !u
    %e2 = onnx.node "Mul"(%e, %e) : (!u, !u) -> !u
    %n = onnx.node "ReduceSum"(%e2, %last) : (!u, tensor<1xi64>) -> !u
    %w = onnx.node "MatMul"(%e, %v) : (!u, tensor<2x4x8x16xf32>) -> !u
    %o = onnx.node "Div"(%w, %n) : (!u, !u) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown

// Scores with the keys as rows.
// CHECK-LABEL: graph_name = "keys first"
// CHECK: prefill.attention %q, %k, %v
// CHECK-NEXT: onnx.return
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: tensor<2x4x8x16xf32>, %k: tensor<2x4x8x16xf32>, %v: tensor<2x4x8x16xf32>) attributes {graph_name = "keys first", inputs = ["q", "k", "v"]} {
    %qt = onnx.node "Transpose"(%q) {perm = array<i64: 0, 1, 3, 2>} : (tensor<2x4x8x16xf32>) -> !u
    %s = onnx.node "MatMul"(%k, %qt) : (tensor<2x4x8x16xf32>, !u) -> !u
    %p = onnx.node "Softmax"(%s) {axis = -2 : si64} : (!u) -> !u
    %pt = onnx.node "Transpose"(%p) {perm = array<i64: 0, 1, 3, 2>} : (!u) -> !u
    %o = onnx.node "MatMul"(%pt, %v) : (!u, tensor<2x4x8x16xf32>) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown

// Einsum with any order of axes: scores [b, i, j, h], a result [b, i, h, d].
// CHECK-LABEL: graph_name = "heads last"
// CHECK: prefill.attention %q, %k, %v
// CHECK-SAME: k_layout = #prefill<layout bshd>, kv_heads = 4 : i64, o_layout = #prefill<layout bshd>
// CHECK-NEXT: onnx.return
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: tensor<?x?x4x16xf32, #onnx.dims<"B", "S", "", "">>, %k: tensor<?x?x4x16xf32, #onnx.dims<"B", "S", "", "">>, %v: tensor<?x?x4x16xf32, #onnx.dims<"B", "S", "", "">>) attributes {graph_name = "heads last", inputs = ["q", "k", "v"]} {
    %s = onnx.node "Einsum"(%q, %k) {equation = "bihd,bjhd->bijh"} : (tensor<?x?x4x16xf32, #onnx.dims<"B", "S", "", "">>, tensor<?x?x4x16xf32, #onnx.dims<"B", "S", "", "">>) -> !u
    %p = onnx.node "Softmax"(%s) {axis = 2 : si64} : (!u) -> !u
    %o = onnx.node "Einsum"(%p, %v) {equation = "bijh,bjhd->bihd"} : (!u, tensor<?x?x4x16xf32, #onnx.dims<"B", "S", "", "">>) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown

// Before opset 13, axis 1 of two is the keys.
// CHECK-LABEL: graph_name = "flattened"
// CHECK: prefill.attention %q, %k, %v
// CHECK-NEXT: onnx.return
module attributes {onnx.opset_imports = [#onnx.opset<"", 11>]} {
  onnx.graph @main(%q: tensor<2x4x8x16xf32>, %k: tensor<2x4x8x16xf32>, %v: tensor<2x4x8x16xf32>) attributes {graph_name = "flattened", inputs = ["q", "k", "v"]} {
    %two = onnx.initializer "two" : tensor<2xi64> = dense<[64, 8]> : tensor<2xi64>
    %four = onnx.initializer "four" : tensor<4xi64> = dense<[2, 4, 8, 8]> : tensor<4xi64>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (tensor<2x4x8x16xf32>) -> !u
    %s = onnx.node "MatMul"(%q, %kt) : (tensor<2x4x8x16xf32>, !u) -> !u
    %f = onnx.node "Reshape"(%s, %two) : (!u, tensor<2xi64>) -> !u
    %g = onnx.node "Softmax"(%f) : (!u) -> !u
    %p = onnx.node "Reshape"(%g, %four) : (!u, tensor<4xi64>) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, tensor<2x4x8x16xf32>) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown

// Zeros in rows whose largest bias is -inf.
// CHECK-LABEL: graph_name = "guarded"
// CHECK: prefill.attention %q, %k, %v
// CHECK-NOT: onnx.node
// CHECK: onnx.return
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: tensor<2x4x8x16xf32>, %k: tensor<2x4x8x16xf32>, %v: tensor<2x4x8x16xf32>, %bias: tensor<2x1x8x8xf32>) attributes {graph_name = "guarded", inputs = ["q", "k", "v", "bias"]} {
    %last = onnx.initializer "last" : tensor<1xi64> = dense<-1> : tensor<1xi64>
    %low = onnx.initializer "low" : tensor<f32> = dense<0xFF800000> : tensor<f32>
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (tensor<2x4x8x16xf32>) -> !u
    %s = onnx.node "MatMul"(%q, %kt) : (tensor<2x4x8x16xf32>, !u) -> !u
    %m = onnx.node "Add"(%s, %bias) : (!u, tensor<2x1x8x8xf32>) -> !u
    %p = onnx.node "Softmax"(%m) : (!u) -> !u
    %t = onnx.node "ReduceMax"(%bias, %last) : (tensor<2x1x8x8xf32>, tensor<1xi64>) -> !u
    %bad = onnx.node "Equal"(%t, %low) : (!u, tensor<f32>) -> !u
    %g = onnx.node "Where"(%bad, %zero, %p) attributes {output_names = ["g"]} : (!u, tensor<f32>, !u) -> !u
    %o = onnx.node "MatMul"(%g, %v) : (!u, tensor<2x4x8x16xf32>) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown

// ... whose largest of another tensor is.
// WHY: Where 'g': which rows its zeros are put in is not proven
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: tensor<2x4x8x16xf32>, %k: tensor<2x4x8x16xf32>, %v: tensor<2x4x8x16xf32>, %bias: tensor<2x1x8x8xf32>, %other: tensor<2x1x8x8xf32>) attributes {graph_name = "guarded by others", inputs = ["q", "k", "v", "bias", "other"]} {
    %last = onnx.initializer "last" : tensor<1xi64> = dense<-1> : tensor<1xi64>
    %low = onnx.initializer "low" : tensor<f32> = dense<0xFF800000> : tensor<f32>
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (tensor<2x4x8x16xf32>) -> !u
    %s = onnx.node "MatMul"(%q, %kt) : (tensor<2x4x8x16xf32>, !u) -> !u
    %m = onnx.node "Add"(%s, %bias) : (!u, tensor<2x1x8x8xf32>) -> !u
    %p = onnx.node "Softmax"(%m) : (!u) -> !u
    %t = onnx.node "ReduceMax"(%other, %last) : (tensor<2x1x8x8xf32>, tensor<1xi64>) -> !u
    %bad = onnx.node "Equal"(%t, %low) : (!u, tensor<f32>) -> !u
    %g = onnx.node "Where"(%bad, %zero, %p) attributes {output_names = ["g"]} : (!u, tensor<f32>, !u) -> !u
    %o = onnx.node "MatMul"(%g, %v) : (!u, tensor<2x4x8x16xf32>) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown

// Masked in fp16, soft-maxed in fp32: -65504 hides.
// CHECK-LABEL: graph_name = "half"
// CHECK: prefill.attention %q, %k, %v {causal
// CHECK-NOT: onnx.node
// CHECK: onnx.return
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: tensor<2x4x8x16xf16>, %k: tensor<2x4x8x16xf16>, %v: tensor<2x4x8x16xf16>) attributes {graph_name = "half", inputs = ["q", "k", "v"]} {
    %up = onnx.initializer "up" : tensor<i64> = dense<1> : tensor<i64>
    %low = onnx.initializer "low" : tensor<8x8xf16> = dense<-65504.0> : tensor<8x8xf16>
    %mask = onnx.node "Trilu"(%low, %up) {upper = 1 : si64} : (tensor<8x8xf16>, tensor<i64>) -> !u
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (tensor<2x4x8x16xf16>) -> !u
    %s = onnx.node "MatMul"(%q, %kt) : (tensor<2x4x8x16xf16>, !u) -> !u
    %m = onnx.node "Add"(%s, %mask) : (!u, !u) -> !u
    %w = onnx.node "Cast"(%m) {to = 1 : si64} : (!u) -> !u
    %p = onnx.node "Softmax"(%w) {axis = -1 : si64} : (!u) -> !u
    %h = onnx.node "Cast"(%p) {to = 10 : si64} : (!u) -> !u
    %o = onnx.node "MatMul"(%h, %v) : (!u, tensor<2x4x8x16xf16>) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown

// Scores are rounded on the way.
// WHY: scores or probabilities are rounded to another type
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: tensor<2x4x8x16xf32>, %k: tensor<2x4x8x16xf32>, %v: tensor<2x4x8x16xf32>) attributes {graph_name = "rounded", inputs = ["q", "k", "v"]} {
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (tensor<2x4x8x16xf32>) -> !u
    %s = onnx.node "MatMul"(%q, %kt) : (tensor<2x4x8x16xf32>, !u) -> !u
    %c = onnx.node "Cast"(%s) {to = 10 : si64} : (!u) -> !u
    %d = onnx.node "Cast"(%c) {to = 1 : si64} : (!u) -> !u
    %p = onnx.node "Softmax"(%d) : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, tensor<2x4x8x16xf32>) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown

// What no matcher knows is still listed.
// WHY: Clip 'c': probabilities go through Clip
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: tensor<2x4x8x16xf32>, %k: tensor<2x4x8x16xf32>, %v: tensor<2x4x8x16xf32>) attributes {graph_name = "clipped", inputs = ["q", "k", "v"]} {
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (tensor<2x4x8x16xf32>) -> !u
    %s = onnx.node "MatMul"(%q, %kt) : (tensor<2x4x8x16xf32>, !u) -> !u
    %p = onnx.node "Softmax"(%s) : (!u) -> !u
    %c = onnx.node "Clip"(%p) attributes {output_names = ["c"]} : (!u) -> !u
    %o = onnx.node "MatMul"(%c, %v) : (!u, tensor<2x4x8x16xf32>) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown

// ... and so are quantised products.
// WHY: Softmax 'p': there are steps between its scores and the product of queries and keys that are not known
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%a: tensor<2x4x8x16xui8>, %b: tensor<2x4x16x8xui8>, %v: tensor<2x4x8x16xf32>) attributes {graph_name = "quantised", inputs = ["a", "b", "v"]} {
    %f = onnx.initializer "f" : tensor<f32> = dense<0.01> : tensor<f32>
    %i = onnx.node "MatMulInteger"(%a, %b) : (tensor<2x4x8x16xui8>, tensor<2x4x16x8xui8>) -> !u
    %c = onnx.node "Cast"(%i) {to = 1 : si64} : (!u) -> !u
    %s = onnx.node "Mul"(%c, %f) : (!u, tensor<f32>) -> !u
    %p = onnx.node "Softmax"(%s) attributes {output_names = ["p"]} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, tensor<2x4x8x16xf32>) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}
