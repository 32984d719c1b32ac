// RUN: prefill-opt %s -raise-attention -split-input-file -verify-each --remarks-filter-missed=raise-attention 2>&1 >%t | FileCheck %s
// RUN: FileCheck %s --check-prefix=IR < %t

// What is not proven, or means something else, stays as it was and says why.
// IR-NOT: prefill.attention

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// Softmax over the queries.
// CHECK: Softmax 'the softmax': it runs along axis 2, not along the keys that the product with the values sums over
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t) attributes {graph_name = "axis", inputs = ["q", "k", "v"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<-3.40282347E+38> : tensor<f32>
    %scale = onnx.initializer "scale" : tensor<f32> = dense<0.25> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) attributes {output_names = ["raw"]} : (!t, !u) -> !u
    %s = onnx.node "Mul"(%raw, %scale) : (!u, tensor<f32>) -> !u
    %bias = onnx.node "Where"(%tril, %zero, %low) : (tensor<3x3xi1>, tensor<f32>, tensor<f32>) -> !u
    %m = onnx.node "Add"(%s, %bias) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%m) {axis = 2 : si64} attributes {label = "the softmax", output_names = ["p"]} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// Before opset 13 the default axis is 1.
// CHECK: Softmax 'the softmax': it runs over all axes from 1 on, not along the keys alone
module attributes {onnx.opset_imports = [#onnx.opset<"", 11>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t) attributes {graph_name = "old axis", inputs = ["q", "k", "v"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<-3.40282347E+38> : tensor<f32>
    %scale = onnx.initializer "scale" : tensor<f32> = dense<0.25> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) attributes {output_names = ["raw"]} : (!t, !u) -> !u
    %s = onnx.node "Mul"(%raw, %scale) : (!u, tensor<f32>) -> !u
    %bias = onnx.node "Where"(%tril, %zero, %low) : (tensor<3x3xi1>, tensor<f32>, tensor<f32>) -> !u
    %m = onnx.node "Add"(%s, %bias) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%m) attributes {label = "the softmax", output_names = ["p"]} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// The probabilities are a result too.
// CHECK: Softmax 'the softmax': its probabilities are used outside of the product with the values (value 'p')
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t) attributes {graph_name = "probabilities", inputs = ["q", "k", "v"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<-3.40282347E+38> : tensor<f32>
    %scale = onnx.initializer "scale" : tensor<f32> = dense<0.25> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) attributes {output_names = ["raw"]} : (!t, !u) -> !u
    %s = onnx.node "Mul"(%raw, %scale) : (!u, tensor<f32>) -> !u
    %bias = onnx.node "Where"(%tril, %zero, %low) : (tensor<3x3xi1>, tensor<f32>, tensor<f32>) -> !u
    %m = onnx.node "Add"(%s, %bias) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} attributes {label = "the softmax", output_names = ["p"]} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o, %p : !u, !u {output_names = ["o", "p"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// The scores are used elsewhere.
// CHECK: MatMul 'raw': its result is also used outside of the attention (value 'raw')
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t) attributes {graph_name = "scores", inputs = ["q", "k", "v"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<-3.40282347E+38> : tensor<f32>
    %scale = onnx.initializer "scale" : tensor<f32> = dense<0.25> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) attributes {output_names = ["raw"]} : (!t, !u) -> !u
    %s = onnx.node "Mul"(%raw, %scale) : (!u, tensor<f32>) -> !u
    %bias = onnx.node "Where"(%tril, %zero, %low) : (tensor<3x3xi1>, tensor<f32>, tensor<f32>) -> !u
    %m = onnx.node "Add"(%s, %bias) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} attributes {label = "the softmax", output_names = ["p"]} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o, %raw : !u, !u {output_names = ["o", "raw"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// Masked scores become a number that scores may reach.
// CHECK: Where 'm': what masked scores become is neither -inf nor so large a negative number that no score reaches it
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t) attributes {graph_name = "small", inputs = ["q", "k", "v"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<-1.0e+04> : tensor<f32>
    %scale = onnx.initializer "scale" : tensor<f32> = dense<0.25> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) attributes {output_names = ["raw"]} : (!t, !u) -> !u
    %s = onnx.node "Mul"(%raw, %scale) : (!u, tensor<f32>) -> !u
    %m = onnx.node "Where"(%tril, %s, %low) attributes {output_names = ["m"]} : (tensor<3x3xi1>, !u, tensor<f32>) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} attributes {label = "the softmax", output_names = ["p"]} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// The mask multiplies the scores.
// CHECK: Mul 'm': scores are multiplied neither by a number nor by a factor that is the same for all keys
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t) attributes {graph_name = "multiplied", inputs = ["q", "k", "v"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<-3.40282347E+38> : tensor<f32>
    %scale = onnx.initializer "scale" : tensor<f32> = dense<0.25> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) attributes {output_names = ["raw"]} : (!t, !u) -> !u
    %s = onnx.node "Mul"(%raw, %scale) : (!u, tensor<f32>) -> !u
    %mask = onnx.node "Cast"(%tril) {to = 1 : si64} : (tensor<3x3xi1>) -> !u
    %m = onnx.node "Mul"(%s, %mask) attributes {output_names = ["m"]} : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} attributes {label = "the softmax", output_names = ["p"]} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// The scale is a tensor that the caller gives, of another number for each key.
// CHECK: Mul 'm': scores are multiplied neither by a number nor by a factor that is the same for all keys (value 'f')
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t, %f: tensor<3xf32>) attributes {graph_name = "scale", inputs = ["q", "k", "v", "f"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<-3.40282347E+38> : tensor<f32>
    %scale = onnx.initializer "scale" : tensor<f32> = dense<0.25> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) attributes {output_names = ["raw"]} : (!t, !u) -> !u
    %s = onnx.node "Mul"(%raw, %scale) : (!u, tensor<f32>) -> !u
    %m = onnx.node "Mul"(%s, %f) attributes {output_names = ["m"]} : (!u, tensor<3xf32>) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} attributes {label = "the softmax", output_names = ["p"]} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// The mask goes through the cap.
// CHECK: Add 'm0': scores are capped, negated or scaled row by row after a mask or bias is added
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t) attributes {graph_name = "cap", inputs = ["q", "k", "v"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<-3.40282347E+38> : tensor<f32>
    %scale = onnx.initializer "scale" : tensor<f32> = dense<0.25> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) attributes {output_names = ["raw"]} : (!t, !u) -> !u
    %s = onnx.node "Mul"(%raw, %scale) : (!u, tensor<f32>) -> !u
    %bias = onnx.node "Where"(%tril, %zero, %low) : (tensor<3x3xi1>, tensor<f32>, tensor<f32>) -> !u
    %m0 = onnx.node "Add"(%s, %bias) attributes {output_names = ["m0"]} : (!u, !u) -> !u
    %m = onnx.node "Tanh"(%m0) : (!u) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} attributes {label = "the softmax", output_names = ["p"]} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// The guard puts ones where the rows are empty.
// CHECK: Where 'g': what stands in place of probabilities is not 0
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t) attributes {graph_name = "guard", inputs = ["q", "k", "v"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<-3.40282347E+38> : tensor<f32>
    %scale = onnx.initializer "scale" : tensor<f32> = dense<0.25> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) attributes {output_names = ["raw"]} : (!t, !u) -> !u
    %s = onnx.node "Mul"(%raw, %scale) : (!u, tensor<f32>) -> !u
    %bias = onnx.node "Where"(%tril, %zero, %low) : (tensor<3x3xi1>, tensor<f32>, tensor<f32>) -> !u
    %m = onnx.node "Add"(%s, %bias) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} attributes {label = "the softmax", output_names = ["p"]} : (!u) -> !u
    %nan = onnx.node "IsNaN"(%p) : (!u) -> !u
    %one = onnx.initializer "one" : tensor<f32> = dense<1.0> : tensor<f32>
    %g = onnx.node "Where"(%nan, %one, %p) attributes {output_names = ["g"]} : (!u, tensor<f32>, !u) -> !u
    %o = onnx.node "MatMul"(%g, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// Keys and rows change places before the values are multiplied.
// CHECK: Softmax 'the softmax': its probabilities are multiplied with the values in another order
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t) attributes {graph_name = "turned", inputs = ["q", "k", "v"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<-3.40282347E+38> : tensor<f32>
    %scale = onnx.initializer "scale" : tensor<f32> = dense<0.25> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) attributes {output_names = ["raw"]} : (!t, !u) -> !u
    %s = onnx.node "Mul"(%raw, %scale) : (!u, tensor<f32>) -> !u
    %bias = onnx.node "Where"(%tril, %zero, %low) : (tensor<3x3xi1>, tensor<f32>, tensor<f32>) -> !u
    %m = onnx.node "Add"(%s, %bias) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} attributes {label = "the softmax", output_names = ["p"]} : (!u) -> !u
    %pt = onnx.node "Transpose"(%p) {perm = array<i64: 0, 1, 3, 2>} : (!u) -> !u
    %o = onnx.node "MatMul"(%pt, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf64>

// No kernels for f64.
// CHECK: q, k, v and the result are not all of one type f32, f16 or bf16
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t) attributes {graph_name = "f64", inputs = ["q", "k", "v"]} {
    %zero = onnx.initializer "zero" : tensor<f64> = dense<0.0> : tensor<f64>
    %low = onnx.initializer "low" : tensor<f64> = dense<-3.40282347E+38> : tensor<f64>
    %scale = onnx.initializer "scale" : tensor<f64> = dense<0.25> : tensor<f64>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) attributes {output_names = ["raw"]} : (!t, !u) -> !u
    %s = onnx.node "Mul"(%raw, %scale) : (!u, tensor<f64>) -> !u
    %bias = onnx.node "Where"(%tril, %zero, %low) : (tensor<3x3xi1>, tensor<f64>, tensor<f64>) -> !u
    %m = onnx.node "Add"(%s, %bias) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} attributes {label = "the softmax", output_names = ["p"]} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// A mask the wrong way up.
// CHECK: Where 'bias': the mask adds +inf or NaN (value 'bias')
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t) attributes {graph_name = "plus", inputs = ["q", "k", "v"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %inf = onnx.initializer "inf" : tensor<f32> = dense<0x7F800000> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %s = onnx.node "MatMul"(%q, %kt) : (!t, !u) -> !u
    %bias = onnx.node "Where"(%tril, %zero, %inf) attributes {output_names = ["bias"]} : (tensor<3x3xi1>, tensor<f32>, tensor<f32>) -> !u
    %m = onnx.node "Add"(%s, %bias) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// The body of a Loop has inputs of its own, which every turn may change.
// CHECK: Softmax 'inner': it is inside a subgraph that is no branch of an If
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%n: tensor<i64>, %c: tensor<i1>, %q: !t) attributes {graph_name = "loop", inputs = ["n", "c", "q"]} {
    %o = onnx.node "Loop"(%n, %c, %q) {body = #onnx.subgraph<0, {inputs = ["i", "go", "x"]}>} : (tensor<i64>, tensor<i1>, !t) -> !u
    subgraphs {
    ^bb0(%i: tensor<i64>, %go: tensor<i1>, %x: !t):
      %kt = onnx.node "Transpose"(%q) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
      %s = onnx.node "MatMul"(%x, %kt) : (!t, !u) -> !u
      %p = onnx.node "Softmax"(%s) {axis = -1 : si64} attributes {label = "inner"} : (!u) -> !u
      %y = onnx.node "MatMul"(%p, %q) : (!u, !t) -> !u
      onnx.return %go, %y : tensor<i1>, !u {output_names = ["go2", "y"]}
    }
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// Scores that are computed before an If belong to both of its branches.
// CHECK: MatMul 'shared': its result is also used outside of the attention
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%c: tensor<i1>, %q: !t, %k: !t) attributes {graph_name = "scores of both branches", inputs = ["c", "q", "k"]} {
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %s = onnx.node "MatMul"(%q, %kt) attributes {label = "shared"} : (!t, !u) -> !u
    %o = onnx.node "If"(%c) {then_branch = #onnx.subgraph<0, {inputs = []}>, else_branch = #onnx.subgraph<1, {inputs = []}>} : (tensor<i1>) -> !u
    subgraphs {
      %p = onnx.node "Softmax"(%s) {axis = -1 : si64} : (!u) -> !u
      %y = onnx.node "MatMul"(%p, %q) : (!u, !t) -> !u
      onnx.return %y : !u {output_names = ["y"]}
    }, {
      %z = onnx.node "MatMul"(%s, %q) : (!u, !t) -> !u
      onnx.return %z : !u {output_names = ["z"]}
    }
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// A factor of each head, but over a mask: -3.4e38 would become another number.
// CHECK: Add 'masked': scores are capped, negated or scaled row by row after a mask or bias is added
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t, %f: tensor<2x1x1xf32>) attributes {graph_name = "head factor over a mask", inputs = ["q", "k", "v", "f"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<-3.40282347E+38> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) attributes {output_names = ["raw"]} : (!t, !u) -> !u
    %bias = onnx.node "Where"(%tril, %zero, %low) : (tensor<3x3xi1>, tensor<f32>, tensor<f32>) -> !u
    %masked = onnx.node "Add"(%raw, %bias) attributes {output_names = ["masked"]} : (!u, !u) -> !u
    %m = onnx.node "Mul"(%masked, %f) attributes {output_names = ["m"]} : (!u, tensor<2x1x1xf32>) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} attributes {label = "the softmax", output_names = ["p"]} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// Two products of queries and keys: neither is a bias.
// CHECK: Add 'both': both operands come from products, or none
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t, %q2: !t) attributes {graph_name = "two products", inputs = ["q", "k", "v", "q2"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<-3.40282347E+38> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) attributes {output_names = ["raw"]} : (!t, !u) -> !u
    %bias = onnx.node "Where"(%tril, %zero, %low) : (tensor<3x3xi1>, tensor<f32>, tensor<f32>) -> !u
    %raw2 = onnx.node "MatMul"(%q2, %kt) : (!t, !u) -> !u
    %both = onnx.node "Add"(%raw, %raw2) attributes {output_names = ["both"]} : (!u, !u) -> !u
    %m = onnx.node "Add"(%both, %bias) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} attributes {label = "the softmax", output_names = ["p"]} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}
