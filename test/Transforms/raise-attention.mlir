// RUN: prefill-opt %s -raise-attention -split-input-file -verify-each | FileCheck %s

// Decomposed attention becomes prefill.attention: scale, mask and layout are
// proven from the graph, which declares no shape but those of its inputs.

!u = !onnx.unknown

// A causal mask built of ranges, with a cache: row i sits at key i + (T - S).
// CHECK-LABEL: graph_name = "causal"
// CHECK-NEXT: %[[O:.*]] = prefill.attention %q, %k, %v {causal,
// CHECK-SAME:   head_dim = 16 : i64, kv_heads = 4 : i64, masked_row = #prefill<masked_row mean>, q_heads = 4 : i64, scale = 2.500000e-01 : f32, v_head_dim = 16 : i64}
// CHECK-NEXT: onnx.return %[[O]]
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: tensor<?x4x?x16xf32, #onnx.dims<"B", "", "S", "">>, %k: tensor<?x4x?x16xf32, #onnx.dims<"B", "", "T", "">>, %v: tensor<?x4x?x16xf32, #onnx.dims<"B", "", "T", "">>) attributes {graph_name = "causal", inputs = ["q", "k", "v"]} {
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (tensor<?x4x?x16xf32, #onnx.dims<"B", "", "T", "">>) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) : (tensor<?x4x?x16xf32, #onnx.dims<"B", "", "S", "">>, !u) -> !u
    %factor = onnx.node "Constant"() {value_float = 2.500000e-01 : f32} : () -> !u
    %scaled = onnx.node "Mul"(%raw, %factor) : (!u, !u) -> !u
    %qs = onnx.node "Shape"(%q) {start = 2 : si64, end = 3 : si64} : (tensor<?x4x?x16xf32, #onnx.dims<"B", "", "S", "">>) -> !u
    %ks = onnx.node "Shape"(%k) {start = 2 : si64, end = 3 : si64} : (tensor<?x4x?x16xf32, #onnx.dims<"B", "", "T", "">>) -> !u
    %nil = onnx.node "Constant"() {value_int = 0 : si64} : () -> !u
    %one = onnx.node "Constant"() {value_int = 1 : si64} : () -> !u
    %flat = onnx.node "Constant"() {value_ints = array<i64: 0>} : () -> !u
    %first = onnx.node "Constant"() {value_ints = array<i64: 1>} : () -> !u
    %qn = onnx.node "Squeeze"(%qs) : (!u) -> !u
    %kn = onnx.node "Squeeze"(%ks) : (!u) -> !u
    %past = onnx.node "Sub"(%kn, %qn) : (!u, !u) -> !u
    %rows0 = onnx.node "Range"(%nil, %qn, %one) : (!u, !u, !u) -> !u
    %cols0 = onnx.node "Range"(%nil, %kn, %one) : (!u, !u, !u) -> !u
    %rows1 = onnx.node "Add"(%rows0, %past) : (!u, !u) -> !u
    %rows = onnx.node "Unsqueeze"(%rows1, %first) : (!u, !u) -> !u
    %cols = onnx.node "Unsqueeze"(%cols0, %flat) : (!u, !u) -> !u
    %see = onnx.node "LessOrEqual"(%cols, %rows) : (!u, !u) -> !u
    %zero = onnx.node "Constant"() {value_float = 0.000000e+00 : f32} : () -> !u
    %low = onnx.node "Constant"() {value_float = -3.40282347E+38 : f32} : () -> !u
    %bias = onnx.node "Where"(%see, %zero, %low) : (!u, !u, !u) -> !u
    %masked = onnx.node "Add"(%scaled, %bias) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%masked) {axis = -1 : si64} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, tensor<?x4x?x16xf32, #onnx.dims<"B", "", "T", "">>) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown

// Grouped heads: K and V are repeated by Expand; they are read as they lie
// before that. The scale is split over q and k, transposes are layouts, the
// mask is an initializer and a padding vector, and a NaN guard makes empty rows
// zero. Nothing is left of the masks.
// CHECK-LABEL: graph_name = "grouped"
// CHECK-NEXT: %[[O:.*]] = prefill.attention %x, %y, %y key_mask(%mask : tensor<?x?xi64, #onnx.dims<"B", "S">>) {causal,
// CHECK-SAME:   k_layout = #prefill<layout bshd>, kv_heads = 2 : i64, o_layout = #prefill<layout bshd>, q_heads = 4 : i64, q_layout = #prefill<layout bshd>, scale = 2.500000e-01 : f32, v_head_dim = 16 : i64, v_layout = #prefill<layout bshd>}
// CHECK-NEXT: onnx.return %[[O]]
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%x: tensor<?x?x64xf32, #onnx.dims<"B", "S", "">>, %y: tensor<?x?x32xf32, #onnx.dims<"B", "S", "">>, %mask: tensor<?x?xi64, #onnx.dims<"B", "S">>) attributes {graph_name = "grouped", inputs = ["x", "y", "mask"]} {
    %s4 = onnx.initializer "s4" : tensor<4xi64> = dense<[0, 0, 4, 16]> : tensor<4xi64>
    %s2 = onnx.initializer "s2" : tensor<4xi64> = dense<[0, 0, 2, 16]> : tensor<4xi64>
    %one = onnx.initializer "one" : tensor<1xi64> = dense<1> : tensor<1xi64>
    %two = onnx.initializer "two" : tensor<1xi64> = dense<2> : tensor<1xi64>
    %twelve = onnx.initializer "twelve" : tensor<2xi64> = dense<[1, 2]> : tensor<2xi64>
    %rep = onnx.initializer "rep" : tensor<5xi64> = dense<[1, 1, 2, 1, 1]> : tensor<5xi64>
    %merge = onnx.initializer "merge" : tensor<4xi64> = dense<[0, 4, -1, 16]> : tensor<4xi64>
    %back = onnx.initializer "back" : tensor<3xi64> = dense<[0, 0, -1]> : tensor<3xi64>
    %half = onnx.initializer "half" : tensor<f32> = dense<5.000000e-01> : tensor<f32>
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.000000e+00> : tensor<f32>
    %inf = onnx.initializer "inf" : tensor<f32> = dense<0xFF800000> : tensor<f32>
    %izero = onnx.initializer "izero" : tensor<i64> = dense<0> : tensor<i64>
    %ione = onnx.initializer "ione" : tensor<i64> = dense<1> : tensor<i64>
    %sh = onnx.node "Shape"(%x) {start = 1 : si64, end = 2 : si64} : (tensor<?x?x64xf32, #onnx.dims<"B", "S", "">>) -> !u
    %n = onnx.node "Squeeze"(%sh) : (!u) -> !u
    %q4 = onnx.node "Reshape"(%x, %s4) : (tensor<?x?x64xf32, #onnx.dims<"B", "S", "">>, tensor<4xi64>) -> !u
    %q = onnx.node "Transpose"(%q4) {perm = array<i64: 0, 2, 1, 3>} : (!u) -> !u
    %k4 = onnx.node "Reshape"(%y, %s2) : (tensor<?x?x32xf32, #onnx.dims<"B", "S", "">>, tensor<4xi64>) -> !u
    %k = onnx.node "Transpose"(%k4) {perm = array<i64: 0, 2, 1, 3>} : (!u) -> !u
    %k5 = onnx.node "Unsqueeze"(%k, %two) : (!u, tensor<1xi64>) -> !u
    %ke = onnx.node "Expand"(%k5, %rep) : (!u, tensor<5xi64>) -> !u
    %kr = onnx.node "Reshape"(%ke, %merge) : (!u, tensor<4xi64>) -> !u
    %kt = onnx.node "Transpose"(%kr) {perm = array<i64: 0, 1, 3, 2>} : (!u) -> !u
    %qh = onnx.node "Mul"(%q, %half) : (!u, tensor<f32>) -> !u
    %kh = onnx.node "Mul"(%half, %kt) : (tensor<f32>, !u) -> !u
    %s = onnx.node "MatMul"(%qh, %kh) : (!u, !u) -> !u
    %range = onnx.node "Range"(%izero, %n, %ione) : (tensor<i64>, !u, tensor<i64>) -> !u
    %row = onnx.node "Unsqueeze"(%range, %one) : (!u, tensor<1xi64>) -> !u
    %see = onnx.node "GreaterOrEqual"(%row, %range) : (!u, !u) -> !u
    %pad = onnx.node "Cast"(%mask) {to = 9 : si64} : (tensor<?x?xi64, #onnx.dims<"B", "S">>) -> !u
    %pad4 = onnx.node "Unsqueeze"(%pad, %twelve) : (!u, tensor<2xi64>) -> !u
    %all = onnx.node "And"(%see, %pad4) : (!u, !u) -> !u
    %bias = onnx.node "Where"(%all, %zero, %inf) : (!u, tensor<f32>, tensor<f32>) -> !u
    %m = onnx.node "Add"(%bias, %s) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%m) {axis = 3 : si64} : (!u) -> !u
    %nan = onnx.node "IsNaN"(%p) : (!u) -> !u
    %g = onnx.node "Where"(%nan, %zero, %p) : (!u, tensor<f32>, !u) -> !u
    %o = onnx.node "MatMul"(%g, %kr) : (!u, !u) -> !u
    %ot = onnx.node "Transpose"(%o) {perm = array<i64: 0, 2, 1, 3>} : (!u) -> !u
    %o3 = onnx.node "Reshape"(%ot, %back) : (!u, tensor<3xi64>) -> !u
    onnx.return %o3 : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown

// A sliding window (9 keys with the row's own), soft capping, and a mask that
// replaces scores.
// CHECK-LABEL: graph_name = "window"
// CHECK-NEXT: %[[O:.*]] = prefill.attention %q, %k, %v {causal,
// CHECK-SAME: scale = 5.000000e-01 : f32, softcap = 5.000000e+01 : f32,
// CHECK-SAME: window_left = 8 : i64}
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: tensor<2x4x32x16xf32>, %k: tensor<2x4x32x16xf32>, %v: tensor<2x4x32x16xf32>) attributes {graph_name = "window", inputs = ["q", "k", "v"]} {
    %nil = onnx.initializer "nil" : tensor<i64> = dense<0> : tensor<i64>
    %one = onnx.initializer "one" : tensor<i64> = dense<1> : tensor<i64>
    %nine = onnx.initializer "nine" : tensor<i64> = dense<9> : tensor<i64>
    %n = onnx.initializer "n" : tensor<i64> = dense<32> : tensor<i64>
    %axis = onnx.initializer "axis" : tensor<1xi64> = dense<1> : tensor<1xi64>
    %cap = onnx.initializer "cap" : tensor<f32> = dense<5.000000e+01> : tensor<f32>
    %two = onnx.initializer "half" : tensor<f32> = dense<2.000000e+00> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<-1.000000e+09> : tensor<f32>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (tensor<2x4x32x16xf32>) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) : (tensor<2x4x32x16xf32>, !u) -> !u
    %scaled = onnx.node "Div"(%raw, %two) : (!u, tensor<f32>) -> !u
    %c0 = onnx.node "Div"(%scaled, %cap) : (!u, tensor<f32>) -> !u
    %c1 = onnx.node "Tanh"(%c0) : (!u) -> !u
    %c2 = onnx.node "Mul"(%c1, %cap) : (!u, tensor<f32>) -> !u
    %key = onnx.node "Range"(%nil, %n, %one) : (tensor<i64>, tensor<i64>, tensor<i64>) -> !u
    %row = onnx.node "Unsqueeze"(%key, %axis) : (!u, tensor<1xi64>) -> !u
    %after = onnx.node "Greater"(%key, %row) : (!u, !u) -> !u
    %distance = onnx.node "Sub"(%row, %key) : (!u, !u) -> !u
    %far = onnx.node "GreaterOrEqual"(%distance, %nine) : (!u, tensor<i64>) -> !u
    %hidden = onnx.node "Or"(%after, %far) : (!u, !u) -> !u
    %m = onnx.node "Where"(%hidden, %low, %c2) : (!u, tensor<f32>, !u) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, tensor<2x4x32x16xf32>) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown

// Batch and heads in one axis, sinks beside the scores, a mask stored as bytes.
// CHECK-LABEL: graph_name = "sinks"
// CHECK: prefill.attention %q, %k, %k sinks(%sink : tensor<2xf32>) {causal,
// CHECK-SAME: kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.000000e+00 : f32
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: tensor<?x2x3x8xf32, #onnx.dims<"B", "", "", "">>, %k: tensor<?x2x3x8xf32, #onnx.dims<"B", "", "", "">>) attributes {graph_name = "sinks", inputs = ["q", "k"]} {
    %sink = onnx.initializer "sink" : tensor<2xf32> = dense<[1.0, 2.0]> : tensor<2xf32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<-3.40282347E+38> : tensor<f32>
    %three = onnx.initializer "three" : tensor<3xi64> = dense<[-1, 3, 8]> : tensor<3xi64>
    %four = onnx.initializer "four" : tensor<4xi64> = dense<[-1, 2, 3, 3]> : tensor<4xi64>
    %shape = onnx.initializer "shape" : tensor<4xi64> = dense<[1, 2, 1, 1]> : tensor<4xi64>
    %last = onnx.initializer "last" : tensor<1xi64> = dense<-1> : tensor<1xi64>
    %start = onnx.initializer "start" : tensor<1xi64> = dense<0> : tensor<1xi64>
    %one = onnx.initializer "one" : tensor<1xi64> = dense<1> : tensor<1xi64>
    %q3 = onnx.node "Reshape"(%q, %three) : (tensor<?x2x3x8xf32, #onnx.dims<"B", "", "", "">>, tensor<3xi64>) -> !u
    %k3 = onnx.node "Reshape"(%k, %three) : (tensor<?x2x3x8xf32, #onnx.dims<"B", "", "", "">>, tensor<3xi64>) -> !u
    %kt = onnx.node "Transpose"(%k3) {perm = array<i64: 0, 2, 1>} : (!u) -> !u
    %s3 = onnx.node "MatMul"(%q3, %kt) : (!u, !u) -> !u
    %s = onnx.node "Reshape"(%s3, %four) : (!u, tensor<4xi64>) -> !u
    %bias = onnx.node "Where"(%tril, %zero, %low) : (tensor<3x3xi1>, tensor<f32>, tensor<f32>) -> !u
    %m = onnx.node "Add"(%s, %bias) : (!u, !u) -> !u
    %sink4 = onnx.node "Reshape"(%sink, %shape) : (tensor<2xf32>, tensor<4xi64>) -> !u
    %ms = onnx.node "Shape"(%q) : (tensor<?x2x3x8xf32, #onnx.dims<"B", "", "", "">>) -> !u
    %lead = onnx.node "Slice"(%ms, %start, %last) : (!u, tensor<1xi64>, tensor<1xi64>) -> !u
    %wide = onnx.node "Concat"(%lead, %one) {axis = 0 : si64} : (!u, tensor<1xi64>) -> !u
    %sinks = onnx.node "Expand"(%sink4, %wide) : (!u, !u) -> !u
    %both = onnx.node "Concat"(%m, %sinks) {axis = -1 : si64} : (!u, !u) -> !u
    %max = onnx.node "ReduceMax"(%both, %last) {keepdims = 1 : si64} : (!u, tensor<1xi64>) -> !u
    %sub = onnx.node "Sub"(%both, %max) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%sub) {axis = -1 : si64} : (!u) -> !u
    %pk = onnx.node "Slice"(%p, %start, %last, %last) : (!u, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>) -> !u
    %o = onnx.node "MatMul"(%pk, %k) : (!u, tensor<?x2x3x8xf32, #onnx.dims<"B", "", "", "">>) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// A factor of each head, as of cosine attention, is one of the queries.
// CHECK-LABEL: graph_name = "head factor"
// CHECK: %[[Q:.*]] = onnx.node "Mul"(%q, %f)
// CHECK: prefill.attention %[[Q]], %k, %v {causal{{.*}}form = {{.*}}scaled rows
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t, %f: tensor<2x1x1xf32>) attributes {graph_name = "head factor", inputs = ["q", "k", "v", "f"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<-3.40282347E+38> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) attributes {output_names = ["raw"]} : (!t, !u) -> !u
    %bias = onnx.node "Where"(%tril, %zero, %low) : (tensor<3x3xi1>, tensor<f32>, tensor<f32>) -> !u
    %s = onnx.node "Mul"(%raw, %f) : (!u, tensor<2x1x1xf32>) -> !u
    %m = onnx.node "Add"(%s, %bias) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} attributes {label = "the softmax", output_names = ["p"]} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// So is one of each row, also where it divides.
// CHECK-LABEL: graph_name = "row factor"
// CHECK: %[[Q:.*]] = onnx.node "Div"(%q, %f)
// CHECK: prefill.attention %[[Q]], %k, %v {causal
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t, %f: tensor<1x1x3x1xf32>) attributes {graph_name = "row factor", inputs = ["q", "k", "v", "f"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<-3.40282347E+38> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) attributes {output_names = ["raw"]} : (!t, !u) -> !u
    %bias = onnx.node "Where"(%tril, %zero, %low) : (tensor<3x3xi1>, tensor<f32>, tensor<f32>) -> !u
    %s = onnx.node "Div"(%raw, %f) : (!u, tensor<1x1x3x1xf32>) -> !u
    %m = onnx.node "Add"(%s, %bias) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} attributes {label = "the softmax", output_names = ["p"]} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<1x2x3x8xf32>

// Relative positions: what the queries are multiplied with lies at row and key,
// so this product is a bias, whichever comes first. What it hides is not known:
// the causal mask stays a part of it.
// CHECK-LABEL: graph_name = "relative positions"
// CHECK: %[[B:.*]] = onnx.node "Einsum"(%q, %r)
// CHECK: %[[S:.*]] = onnx.node "Add"({{.*}}, %[[B]])
// CHECK: prefill.attention %q, %k, %v bias(%[[S]] : {{.*}}) {form
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t, %r: tensor<3x3x8xf32>) attributes {graph_name = "relative positions", inputs = ["q", "k", "v", "r"]} {
    %zero = onnx.initializer "zero" : tensor<f32> = dense<0.0> : tensor<f32>
    %low = onnx.initializer "low" : tensor<f32> = dense<-3.40282347E+38> : tensor<f32>
    %tril = onnx.initializer "tril" : tensor<3x3xi1> = dense<[[true, false, false], [true, true, false], [true, true, true]]> : tensor<3x3xi1>
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %raw = onnx.node "MatMul"(%q, %kt) attributes {output_names = ["raw"]} : (!t, !u) -> !u
    %bias = onnx.node "Where"(%tril, %zero, %low) : (tensor<3x3xi1>, tensor<f32>, tensor<f32>) -> !u
    %rel = onnx.node "Einsum"(%q, %r) {equation = "bhid,ijd->bhij"} : (!t, tensor<3x3x8xf32>) -> !u
    %s = onnx.node "Add"(%rel, %raw) : (!u, !u) -> !u
    %m = onnx.node "Add"(%s, %bias) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} attributes {label = "the softmax", output_names = ["p"]} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!q = tensor<?x4x?x16xf32, #onnx.dims<"B", "", "S", "">>
!past = tensor<?x4x?x16xf32, #onnx.dims<"B", "", "P", "">>

// Both branches of an If: what stands before it is known in them, and constants
// are made where they are read.
// CHECK-LABEL: graph_name = "branches"
// CHECK: onnx.node "If"(%c)
// CHECK: %[[K:.*]] = onnx.node "Concat"(%past, %k)
// CHECK-NEXT: %[[O:.*]] = prefill.attention %q, %[[K]], %[[K]] {form = {{.*}}, head_dim = 16 : i64, kv_heads = 4 : i64
// CHECK-NEXT: onnx.return %[[O]]
// CHECK: }, {
// CHECK-NEXT: %[[E:.*]] = prefill.attention %q, %k, %k {form = {{.*}}, head_dim = 16 : i64, kv_heads = 4 : i64
// CHECK-NEXT: onnx.return %[[E]]
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%c: tensor<i1>, %q: !q, %k: !q, %past: !past) attributes {graph_name = "branches", inputs = ["c", "q", "k", "past"]} {
    %factor = onnx.node "Constant"() {value_float = 2.500000e-01 : f32} : () -> !u
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!q) -> !u
    %o = onnx.node "If"(%c) {then_branch = #onnx.subgraph<0, {inputs = []}>, else_branch = #onnx.subgraph<1, {inputs = []}>} : (tensor<i1>) -> !u
    subgraphs {
      %kk = onnx.node "Concat"(%past, %k) {axis = 2 : si64} : (!past, !q) -> !u
      %t = onnx.node "Transpose"(%kk) {perm = array<i64: 0, 1, 3, 2>} : (!u) -> !u
      %raw = onnx.node "MatMul"(%q, %t) : (!q, !u) -> !u
      %s = onnx.node "Mul"(%raw, %factor) : (!u, !u) -> !u
      %p = onnx.node "Softmax"(%s) {axis = -1 : si64} : (!u) -> !u
      %y = onnx.node "MatMul"(%p, %kk) : (!u, !u) -> !u
      onnx.return %y : !u {output_names = ["y"]}
    }, {
      %raw = onnx.node "MatMul"(%q, %kt) : (!q, !u) -> !u
      %s = onnx.node "Mul"(%raw, %factor) : (!u, !u) -> !u
      %p = onnx.node "Softmax"(%s) {axis = -1 : si64} : (!u) -> !u
      %z = onnx.node "MatMul"(%p, %k) : (!u, !q) -> !u
      onnx.return %z : !u {output_names = ["z"]}
    }
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<2x2x3x8xf16>

// float16's least number, added, leaves the scores of a row that sees nothing;
// put in place of them it does not.
// CHECK-LABEL: graph_name = "least number of float16"
// CHECK: prefill.attention %q, %k, %v key_mask(%pad : tensor<2x3xi1>) {
// CHECK-SAME: masked_row = #prefill<masked_row scores>
// CHECK: prefill.attention %q, %k, %v key_mask(%pad : tensor<2x3xi1>) {
// CHECK-SAME: masked_row = #prefill<masked_row mean>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t, %pad: tensor<2x3xi1>) attributes {graph_name = "least number of float16", inputs = ["q", "k", "v", "pad"]} {
    %zero = onnx.initializer "zero" : tensor<f16> = dense<0.0> : tensor<f16>
    %low = onnx.initializer "low" : tensor<f16> = dense<-6.550400e+04> : tensor<f16>
    %axes = onnx.initializer "axes" : tensor<2xi64> = dense<[1, 2]> : tensor<2xi64>
    %see = onnx.node "Unsqueeze"(%pad, %axes) : (tensor<2x3xi1>, tensor<2xi64>) -> !u
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %s = onnx.node "MatMul"(%q, %kt) : (!t, !u) -> !u
    %bias = onnx.node "Where"(%see, %zero, %low) : (!u, tensor<f16>, tensor<f16>) -> !u
    %m = onnx.node "Add"(%s, %bias) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    %s2 = onnx.node "MatMul"(%q, %kt) : (!t, !u) -> !u
    %m2 = onnx.node "Where"(%see, %s2, %low) : (!u, !u, tensor<f16>) -> !u
    %p2 = onnx.node "Softmax"(%m2) {axis = -1 : si64} : (!u) -> !u
    %o2 = onnx.node "MatMul"(%p2, %v) : (!u, !t) -> !u
    onnx.return %o, %o2 : !u, !u {output_names = ["o", "o2"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<2x2x3x8xf16>
!k = tensor<2x1x3x8xf16>

// Heads that are repeated in float16 and multiplied in float32: cast before they
// are repeated, so that the groups remain.
// CHECK-LABEL: graph_name = "repeated, then cast"
// CHECK-DAG: %[[K:.*]] = onnx.node "Cast"(%k) {to = 1 : si64} : (tensor<2x1x3x8xf16>) -> tensor<2x1x3x8xf32>
// CHECK-DAG: %[[V:.*]] = onnx.node "Cast"(%v) {to = 1 : si64} : (tensor<2x1x3x8xf16>) -> tensor<2x1x3x8xf32>
// CHECK: prefill.attention %{{.*}}, %[[K]], %[[V]] {
// CHECK-SAME: kv_heads = 1 : i64
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !k, %v: !k) attributes {graph_name = "repeated, then cast", inputs = ["q", "k", "v"]} {
    %shape = onnx.initializer "shape" : tensor<4xi64> = dense<[2, 2, 3, 8]> : tensor<4xi64>
    %kk = onnx.node "Expand"(%k, %shape) : (!k, tensor<4xi64>) -> !u
    %vv = onnx.node "Expand"(%v, %shape) : (!k, tensor<4xi64>) -> !u
    %kt = onnx.node "Transpose"(%kk) {perm = array<i64: 0, 1, 3, 2>} : (!u) -> !u
    %qw = onnx.node "Cast"(%q) {to = 1 : si64} : (!t) -> !u
    %kw = onnx.node "Cast"(%kt) {to = 1 : si64} : (!u) -> !u
    %vw = onnx.node "Cast"(%vv) {to = 1 : si64} : (!u) -> !u
    %s = onnx.node "MatMul"(%qw, %kw) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%s) {axis = -1 : si64} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %vw) : (!u, !u) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}

// -----

!u = !onnx.unknown
!t = tensor<2x2x3x8xf16>

// A mask of float16's least number and a bias: added up in float32, where
// neither swallows the other.
// CHECK-LABEL: graph_name = "float16 mask and bias"
// CHECK-DAG: onnx.node "Cast"(%other) {to = 1 : si64}
// CHECK: %[[B:.*]] = onnx.node "Add"(%{{.*}}, %{{.*}}) : (tensor<*xf32>, tensor<*xf32>) -> tensor<*xf32>
// CHECK: prefill.attention %q, %k, %v bias(%[[B]] :
// CHECK-NOT: masked_row scores
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%q: !t, %k: !t, %v: !t, %pad: tensor<2x3xi1>, %other: tensor<2x3x3xf16>) attributes {graph_name = "float16 mask and bias", inputs = ["q", "k", "v", "pad", "other"]} {
    %zero = onnx.initializer "zero" : tensor<f16> = dense<0.0> : tensor<f16>
    %low = onnx.initializer "low" : tensor<f16> = dense<-6.550400e+04> : tensor<f16>
    %axes = onnx.initializer "axes" : tensor<2xi64> = dense<[1, 2]> : tensor<2xi64>
    %see = onnx.node "Unsqueeze"(%pad, %axes) : (tensor<2x3xi1>, tensor<2xi64>) -> !u
    %kt = onnx.node "Transpose"(%k) {perm = array<i64: 0, 1, 3, 2>} : (!t) -> !u
    %s = onnx.node "MatMul"(%q, %kt) : (!t, !u) -> !u
    %bias = onnx.node "Where"(%see, %zero, %low) : (!u, tensor<f16>, tensor<f16>) -> !u
    %s2 = onnx.node "Add"(%s, %other) : (!u, tensor<2x3x3xf16>) -> !u
    %m = onnx.node "Add"(%s2, %bias) : (!u, !u) -> !u
    %p = onnx.node "Softmax"(%m) {axis = -1 : si64} : (!u) -> !u
    %o = onnx.node "MatMul"(%p, %v) : (!u, !t) -> !u
    onnx.return %o : !u {output_names = ["o"]}
  }
}
