// RUN: prefill-opt %s -raise-attention -split-input-file -verify-each | FileCheck %s

// Fused attention operators. What they compute is tested with numbers in
// python/tests/op_forms.

!u = !onnx.unknown
!q = tensor<?x4x?x8xf32, #onnx.dims<"b", "", "s", "">>
!k = tensor<?x2x?x8xf32, #onnx.dims<"b", "", "s", "">>

// Grouped heads, causal; without a past and with as many keys as rows, the last
// key belongs to the last row.
// CHECK-LABEL: graph_name = "causal"
// CHECK: %[[O:.*]] = prefill.attention %q, %k, %v {causal, form = "Attention-23", head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 4 : i64, scale = 0.353553385 : f32, v_head_dim = 8 : i64} : {{.*}} -> tensor<?x4x?x8xf32>
// CHECK-NOT: onnx.node
// CHECK: onnx.return %[[O]]
module attributes {onnx.opset_imports = [#onnx.opset<"", 23>]} {
  onnx.graph @main(%q: !q, %k: !k, %v: !k) attributes {graph_name = "causal", inputs = ["q", "k", "v"]} {
    %y = onnx.node "Attention"(%q, %k, %v) {is_causal = 1 : si64} : (!q, !k, !k) -> !u
    onnx.return %y : !u {output_names = ["y"]}
  }
}

// -----

!u = !onnx.unknown
!q = tensor<?x4x?x8xf32, #onnx.dims<"b", "", "s", "">>
!k = tensor<?x2x?x8xf32, #onnx.dims<"b", "", "t", "">>

// Cross attention: row i sees keys 0 to i, however many keys there are. Without
// `is_causal` and windows, where rows stand does not matter.
// CHECK-LABEL: graph_name = "start"
// CHECK: prefill.attention %q, %k, %v {alignment = #prefill<align start>, causal, form
// CHECK: prefill.attention %q, %k, %v {form
// CHECK: prefill.attention %q, %k, %v {alignment = #prefill<align start>, form = "Attention-25"
// CHECK-SAME: window_left = 2 : i64, window_right = 1 : i64
module attributes {onnx.opset_imports = [#onnx.opset<"", 25>]} {
  onnx.graph @main(%q: !q, %k: !k, %v: !k) attributes {graph_name = "start", inputs = ["q", "k", "v"]} {
    %y0 = onnx.node "Attention"(%q, %k, %v) {is_causal = 1 : si64} : (!q, !k, !k) -> !u
    %y1 = onnx.node "Attention"(%q, %k, %v) {softcap = 0.0 : f32} : (!q, !k, !k) -> !u
    %y2 = onnx.node "Attention"(%q, %k, %v) {left_window_size = 2 : si64, right_window_size = 1 : si64} : (!q, !k, !k) -> !u
    onnx.return %y0, %y1, %y2 : !u, !u, !u {output_names = ["y0", "y1", "y2"]}
  }
}

// -----

!u = !onnx.unknown
!x = tensor<?x?x32xf32, #onnx.dims<"b", "s", "">>
!y = tensor<?x?x16xf32, #onnx.dims<"b", "t", "">>
!p = tensor<?x2x?x8xf32, #onnx.dims<"b", "", "p", "">>

// 3-D inputs with a past: query row i stands at key p + i, whatever t is. The
// present outputs are the concatenations.
// CHECK-LABEL: graph_name = "past"
// CHECK: %[[K:.*]] = onnx.node "Concat"(%pk, {{.*}} {axis = 2 : si64}
// CHECK: %[[V:.*]] = onnx.node "Concat"(%pv, {{.*}} {axis = 2 : si64}
// CHECK: %[[S:.*]] = onnx.node "Shape"(%pk)
// CHECK: %[[P:.*]] = onnx.node "Gather"(%[[S]],
// CHECK: %[[O:.*]] = prefill.attention %q, %[[K]], %[[V]] q_offset(%[[P]] : tensor<i64>) {alignment = #prefill<align operand>, causal, {{.*}}o_layout = #prefill<layout bshd>, {{.*}}q_layout = #prefill<layout bshd>{{.*}} -> tensor<?x?x32xf32>
// CHECK: onnx.return %[[O]], %[[K]], %[[V]]
module attributes {onnx.opset_imports = [#onnx.opset<"", 24>]} {
  onnx.graph @main(%q: !x, %k: !y, %v: !y, %pk: !p, %pv: !p) attributes {graph_name = "past", inputs = ["q", "k", "v", "pk", "pv"]} {
    %none = onnx.absent
    %y:3 = onnx.node "Attention"(%q, %k, %v, %none, %pk, %pv) {is_causal = 1 : si64, q_num_heads = 4 : si64, kv_num_heads = 2 : si64} : (!x, !y, !y, none, !p, !p) -> (!u, !u, !u)
    onnx.return %y#0, %y#1, %y#2 : !u, !u, !u {output_names = ["y", "k2", "v2"]}
  }
}

// -----

!u = !onnx.unknown
!q = tensor<?x4x?x8xf32, #onnx.dims<"b", "", "s", "">>
!k = tensor<?x2x?x8xf32, #onnx.dims<"b", "", "t", "">>

// A cache kept outside: lengths, and rows that end where the keys end. A mask
// with fewer columns than there are keys is padded.
// CHECK-LABEL: graph_name = "lengths"
// CHECK: %[[P:.*]] = onnx.node "Sub"(%n, {{.*}}) : {{.*}} -> tensor<?xi64>
// CHECK: %[[M:.*]] = onnx.node "Pad"(%m,
// CHECK: prefill.attention %q, %k, %v bias(%[[M]] : {{.*}}) kv_lengths(%n : {{.*}}) q_offset(%[[P]] : tensor<?xi64>) {alignment = #prefill<align operand>, causal
module attributes {onnx.opset_imports = [#onnx.opset<"", 24>]} {
  onnx.graph @main(%q: !q, %k: !k, %v: !k, %m: tensor<?x?xi1, #onnx.dims<"s", "m">>, %n: tensor<?xi64, #onnx.dims<"b">>) attributes {graph_name = "lengths", inputs = ["q", "k", "v", "m", "n"]} {
    %none = onnx.absent
    %y = onnx.node "Attention"(%q, %k, %v, %m, %none, %none, %n) {is_causal = 1 : si64} : (!q, !k, !k, tensor<?x?xi1, #onnx.dims<"s", "m">>, none, none, tensor<?xi64, #onnx.dims<"b">>) -> !u
    onnx.return %y : !u {output_names = ["y"]}
  }
}

// -----

!u = !onnx.unknown
!x = tensor<?x?x32xf32, #onnx.dims<"b", "s", "">>
!k = tensor<?x2x?x8xf32, #onnx.dims<"b", "", "s", "">>

// Repeated heads before the operator and transposes around it go away.
// CHECK-LABEL: graph_name = "folded"
// CHECK: %[[O:.*]] = prefill.attention %x, %k, %k {causal, {{.*}}kv_heads = 2 : i64, o_layout = #prefill<layout bshd>, {{.*}}q_layout = #prefill<layout bshd>
// CHECK-NEXT: onnx.return %[[O]] : tensor<?x?x4x8xf32>
module attributes {onnx.opset_imports = [#onnx.opset<"", 23>]} {
  onnx.graph @main(%x: !x, %k: !k) attributes {graph_name = "folded", inputs = ["x", "k"]} {
    %split = onnx.initializer "split" : tensor<4xi64> = dense<[0, 0, 4, 8]> : tensor<4xi64>
    %two = onnx.initializer "two" : tensor<1xi64> = dense<2> : tensor<1xi64>
    %expand = onnx.initializer "expand" : tensor<5xi64> = dense<[1, 1, 2, 1, 1]> : tensor<5xi64>
    %join = onnx.initializer "join" : tensor<4xi64> = dense<[0, 4, -1, 8]> : tensor<4xi64>
    %x4 = onnx.node "Reshape"(%x, %split) : (!x, tensor<4xi64>) -> !u
    %q = onnx.node "Transpose"(%x4) {perm = array<i64: 0, 2, 1, 3>} : (!u) -> !u
    %k5 = onnx.node "Unsqueeze"(%k, %two) : (!k, tensor<1xi64>) -> !u
    %e = onnx.node "Expand"(%k5, %expand) : (!u, tensor<5xi64>) -> !u
    %k4 = onnx.node "Reshape"(%e, %join) : (!u, tensor<4xi64>) -> !u
    %y = onnx.node "Attention"(%q, %k4, %k4) {is_causal = 1 : si64} : (!u, !u, !u) -> !u
    %t = onnx.node "Transpose"(%y) {perm = array<i64: 0, 2, 1, 3>} : (!u) -> !u
    onnx.return %t : !u {output_names = ["y"]}
  }
}

// -----

!u = !onnx.unknown
!x = tensor<?x?x64xf32, #onnx.dims<"b", "s", "">>
!n = tensor<?xi32, #onnx.dims<"b">>

// Packed QKV without a past: a first prompt. Positions count from 0.
// CHECK-LABEL: graph_name = "gqa prompt"
// CHECK: %[[X:.*]]:3 = onnx.node "Split"(%x, {{.*}}) {axis = -1 : si64}
// CHECK: %[[N:.*]] = onnx.node "Add"
// CHECK: %[[START:.*]] = onnx.initializer "" : tensor<1xi64> = dense<0>
// CHECK: %[[Q:.*]] = onnx.node "RotaryEmbedding"(%[[X]]#0, %[[START]], %cos, %sin) {interleaved = 0 : si64, num_heads = 4 : si64} attributes {op_domain = "com.microsoft"}
// CHECK: %[[K:.*]] = onnx.node "RotaryEmbedding"(%[[X]]#1, %[[START]], %cos, %sin) {interleaved = 0 : si64, num_heads = 2 : si64}
// CHECK: prefill.attention %[[Q]], %[[K]], %[[X]]#2 kv_lengths(%[[N]] : tensor<?xi64>) {causal, form = "GroupQueryAttention", {{.*}}k_layout = #prefill<layout bshd>, {{.*}}softcap = 5.000000e+01 : f32, {{.*}}window_left = 15 : i64
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>, #onnx.opset<"com.microsoft", 1>]} {
  onnx.graph @main(%x: !x, %n: !n, %t: tensor<i32>, %cos: tensor<64x4xf32>, %sin: tensor<64x4xf32>) attributes {graph_name = "gqa prompt", inputs = ["x", "n", "t", "cos", "sin"]} {
    %none = onnx.absent
    %y = onnx.node "GroupQueryAttention"(%x, %none, %none, %none, %none, %n, %t, %cos, %sin) {num_heads = 4 : si64, kv_num_heads = 2 : si64, do_rotary = 1 : si64, local_window_size = 16 : si64, softcap = 50.0 : f32} attributes {op_domain = "com.microsoft"} : (!x, none, none, none, none, !n, tensor<i32>, tensor<64x4xf32>, tensor<64x4xf32>) -> !u
    onnx.return %y : !u {output_names = ["y"]}
  }
}

// -----

!u = !onnx.unknown
!x = tensor<?x?x32xf32, #onnx.dims<"b", "s", "">>
!y = tensor<?x?x16xf32, #onnx.dims<"b", "s", "">>
!p = tensor<?x2x?x8xf32, #onnx.dims<"b", "", "p", "">>
!n = tensor<?xi32, #onnx.dims<"b">>

// With a past: new rows go behind each batch's own keys, which may be fewer than
// the buffer holds. `head_sink` joins the softmax.
// CHECK-LABEL: graph_name = "gqa past"
// CHECK: %[[P:.*]] = onnx.node "Where"
// CHECK: %[[INDEX:.*]] = onnx.node "Expand"
// CHECK: %[[KS:.*]] = onnx.node "Concat"(%pk, {{.*}}, %{{.*}}) {axis = 2 : si64}
// CHECK: %[[K:.*]] = onnx.node "GatherND"(%[[KS]], %[[INDEX]]) {batch_dims = 2 : si64}
// CHECK: %[[VS:.*]] = onnx.node "Concat"(%pv,
// CHECK: %[[V:.*]] = onnx.node "GatherND"(%[[VS]], %[[INDEX]]) {batch_dims = 2 : si64}
// CHECK: %[[O:.*]] = prefill.attention %q, %[[K]], %[[V]] kv_lengths(%{{.*}}) sinks(%sink : tensor<4xf32>) q_offset(%[[P]] : tensor<?xi64>) {alignment = #prefill<align operand>, causal
// CHECK: onnx.return %[[O]], %[[K]], %[[V]]
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>, #onnx.opset<"com.microsoft", 1>]} {
  onnx.graph @main(%q: !x, %k: !y, %v: !y, %pk: !p, %pv: !p, %n: !n, %t: tensor<i32>, %sink: tensor<4xf32>) attributes {graph_name = "gqa past", inputs = ["q", "k", "v", "pk", "pv", "n", "t", "sink"]} {
    %none = onnx.absent
    %y:3 = onnx.node "GroupQueryAttention"(%q, %k, %v, %pk, %pv, %n, %t, %none, %none, %none, %none, %sink) {num_heads = 4 : si64, kv_num_heads = 2 : si64} attributes {op_domain = "com.microsoft"} : (!x, !y, !y, !p, !p, !n, tensor<i32>, none, none, none, none, tensor<4xf32>) -> (!u, !u, !u)
    onnx.return %y#0, %y#1, %y#2 : !u, !u, !u {output_names = ["y", "k2", "v2"]}
  }
}

// -----

!u = !onnx.unknown
!x = tensor<?x?x32xf32, #onnx.dims<"b", "s", "">>
!m = tensor<?x?xi32, #onnx.dims<"b", "s">>

// A padding mask adds mask_filter_value; it does not hide keys.
// CHECK-LABEL: graph_name = "mha"
// CHECK: %[[Q:.*]] = onnx.node "Add"(%q,
// CHECK: %[[K:.*]] = onnx.node "Add"(%k,
// CHECK: %[[V:.*]] = onnx.node "Add"(%v,
// CHECK: %[[SEEN:.*]] = onnx.node "Greater"(%m,
// CHECK: %[[WIDE:.*]] = onnx.node "Unsqueeze"(%[[SEEN]],
// CHECK: dense<-1.000000e+04>
// CHECK: %[[BIAS:.*]] = onnx.node "Where"(%[[WIDE]],
// CHECK: prefill.attention %[[Q]], %[[K]], %[[V]] bias(%[[BIAS]] : {{.*}}) {causal, form = "MultiHeadAttention"
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>, #onnx.opset<"com.microsoft", 1>]} {
  onnx.graph @main(%q: !x, %k: !x, %v: !x, %b: tensor<96xf32>, %m: !m) attributes {graph_name = "mha", inputs = ["q", "k", "v", "b", "m"]} {
    %y = onnx.node "MultiHeadAttention"(%q, %k, %v, %b, %m) {num_heads = 4 : si64, unidirectional = 1 : si64} attributes {op_domain = "com.microsoft"} : (!x, !x, !x, tensor<96xf32>, !m) -> !u
    onnx.return %y : !u {output_names = ["y"]}
  }
}

// -----

!u = !onnx.unknown
!x = tensor<?x?x20xf32, #onnx.dims<"b", "s", "">>
!w = tensor<20x96xf32>

// Packed weights become a product and a split.
// CHECK-LABEL: graph_name = "packed weights"
// CHECK: %[[P:.*]] = onnx.node "MatMul"(%x, %w)
// CHECK: %[[B:.*]] = onnx.node "Add"(%[[P]], %b)
// CHECK: %[[S:.*]]:3 = onnx.node "Split"(%[[B]], {{.*}}) {axis = -1 : si64}
// CHECK: prefill.attention %[[S]]#0, %[[S]]#1, %[[S]]#2 {form = "com.microsoft.Attention"
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>, #onnx.opset<"com.microsoft", 1>]} {
  onnx.graph @main(%x: !x, %w: !w, %b: tensor<96xf32>) attributes {graph_name = "packed weights", inputs = ["x", "w", "b"]} {
    %y = onnx.node "Attention"(%x, %w, %b) {num_heads = 4 : si64} attributes {op_domain = "com.microsoft"} : (!x, !w, tensor<96xf32>) -> !u
    onnx.return %y : !u {output_names = ["y"]}
  }
}

// -----

!u = !onnx.unknown
!past = tensor<?x2x?x8xf32, #onnx.dims<"b", "", "p", "">>
!other = tensor<?x2x?x8xf32, #onnx.dims<"b", "", "r", "">>
!ids = tensor<?x?xi64, #onnx.dims<"b", "s">>
!n = tensor<i64>
!l = tensor<1xi64>

// The mask's keys are counted with the first layer's cache, whose length has
// another name: before version 24 a mask has all keys.
// CHECK-LABEL: graph_name = "mask of another layer's length"
// CHECK: prefill.attention {{.*}} {causal, form = "Attention-23"
module attributes {onnx.opset_imports = [#onnx.opset<"", 23>]} {
  onnx.graph @main(%ids: !ids, %first: !past, %pk: !other, %pv: !other) attributes {graph_name = "mask of another layer's length", inputs = ["ids", "first", "pk", "pv"]} {
    %table = onnx.initializer "table" : tensor<9x16xf32> = dense<0.5> : tensor<9x16xf32>
    %heads = onnx.initializer "heads" : tensor<4xi64> = dense<[0, 0, 2, 8]> : tensor<4xi64>
    %zero = onnx.initializer "zero" : !n = dense<0> : !n
    %one = onnx.initializer "one" : !n = dense<1> : !n
    %axis = onnx.initializer "axis" : !l = dense<1> : !l
    %x = onnx.node "Gather"(%table, %ids) : (tensor<9x16xf32>, !ids) -> !u
    %x4 = onnx.node "Reshape"(%x, %heads) : (!u, tensor<4xi64>) -> !u
    %q = onnx.node "Transpose"(%x4) {perm = array<i64: 0, 2, 1, 3>} : (!u) -> !u
    %k = onnx.node "Concat"(%pk, %q) {axis = 2 : si64} : (!other, !u) -> !u
    %v = onnx.node "Concat"(%pv, %q) {axis = 2 : si64} : (!other, !u) -> !u
    %p1 = onnx.node "Shape"(%first) {start = 2 : si64, end = 3 : si64} : (!past) -> !u
    %p = onnx.node "Squeeze"(%p1) : (!u) -> !u
    %s1 = onnx.node "Shape"(%ids) {start = 1 : si64, end = 2 : si64} : (!ids) -> !u
    %s = onnx.node "Squeeze"(%s1) : (!u) -> !u
    %t = onnx.node "Add"(%p, %s) : (!u, !u) -> !u
    %columns = onnx.node "Range"(%zero, %t, %one) : (!n, !u, !n) -> !u
    %rows = onnx.node "Range"(%zero, %s, %one) : (!n, !u, !n) -> !u
    %at = onnx.node "Add"(%rows, %p) : (!u, !u) -> !u
    %column = onnx.node "Unsqueeze"(%at, %axis) : (!u, !l) -> !u
    %see = onnx.node "LessOrEqual"(%columns, %column) : (!u, !u) -> !u
    %y = onnx.node "Attention"(%q, %k, %v, %see) : (!u, !u, !u, !u) -> !u
    onnx.return %y : !u {output_names = ["y"]}
  }
}
