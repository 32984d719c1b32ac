// RUN: prefill-opt %s -eliminate-dead-rows -verify-each -split-input-file | FileCheck %s

// Rows that the caller chooses: the residual, the queries and all between shrink;
// keys and values keep all rows. Positions are the chosen rows.

!u = !onnx.unknown
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>

// CHECK-LABEL: onnx.graph @chosen
// CHECK: %[[ROWS:.*]] = onnx.node "Reshape"(%rows, %{{.*}})
// CHECK-DAG: %[[X:.*]] = onnx.node "Gather"(%x, %[[ROWS]]) {axis = 1 : si64} {{.*}} -> tensor<?x?x16xf32, #onnx.dims<"B", "", "">>
// CHECK-DAG: %[[WIDE:.*]] = onnx.node "Cast"(%[[ROWS]]) {to = 7 : si64}
// CHECK-DAG: %[[POSITIONS:.*]] = onnx.node "Where"(%{{.*}}, %{{.*}}, %[[WIDE]])
// CHECK: %[[Q:.*]] = onnx.node "MatMul"(%[[X]], %wq)
// CHECK: %[[O:.*]] = prefill.attention %[[Q]], %k, %v q_positions(%[[POSITIONS]] : !onnx.unknown) {alignment = #prefill<align operand>, causal
// CHECK: %[[P:.*]] = onnx.node "MatMul"(%[[O]], %wq)
// CHECK: %[[Y:.*]] = onnx.node "Add"(%[[X]], %[[P]])
// CHECK-NOT: axis = 1
// CHECK: onnx.node "MatMul"(%[[Y]], %wv)
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @chosen(%x: !x, %rows: tensor<?xi64, #onnx.dims<"R">>) attributes {inputs = ["x", "rows"]} {
    %wq = onnx.initializer "wq" : tensor<16x16xf32> = dense<1.0> : tensor<16x16xf32>
    %wv = onnx.initializer "wv" : tensor<16x99xf32> = dense<1.0> : tensor<16x99xf32>
    %q = onnx.node "MatMul"(%x, %wq) : (!x, tensor<16x16xf32>) -> !x
    %k = onnx.node "MatMul"(%x, %wq) attributes {output_names = ["k"]} : (!x, tensor<16x16xf32>) -> !x
    %v = onnx.node "MatMul"(%x, %wq) attributes {output_names = ["v"]} : (!x, tensor<16x16xf32>) -> !x
    %o = prefill.attention %q, %k, %v {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %p = onnx.node "MatMul"(%o, %wq) : (!x, tensor<16x16xf32>) -> !x
    %y = onnx.node "Add"(%x, %p) : (!x, !x) -> !x
    %z = onnx.node "Gather"(%y, %rows) {axis = 1 : si64} : (!x, tensor<?xi64, #onnx.dims<"R">>) -> !u
    %l = onnx.node "MatMul"(%z, %wv) : (!u, tensor<16x99xf32>) -> !u
    onnx.return %l, %k, %v : !u, !x, !x {output_names = ["l", "k", "v"]}
  }
}

// -----

// Provably the last rows, aligned at the end: no positions are needed. The keys
// of a cache are rotated in full.

!u = !onnx.unknown
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!h = tensor<?x2x?x8xf32, #onnx.dims<"B", "", "S", "">>
!w = tensor<1x?x8xf32, #onnx.dims<"", "S", "">>

// CHECK-LABEL: onnx.graph @last
// CHECK: %[[Q:.*]] = onnx.node "Slice"(%x, %minus, %big, %{{.*}})
// CHECK: %[[I:.*]] = onnx.node "Identity"(%[[Q]])
// CHECK: %[[O:.*]], %[[K:.*]] = prefill.attention %[[I]], %x, %x rotary(%cos, %sin : {{.*}}) {causal
// CHECK-NOT: q_positions
// CHECK: %[[P:.*]] = onnx.node "MatMul"(%[[O]], %wq)
// CHECK: onnx.return %[[P]], %[[K]]
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @last(%x: !x, %cos: !w, %sin: !w) attributes {inputs = ["x", "cos", "sin"]} {
    %wq = onnx.initializer "wq" : tensor<16x16xf32> = dense<1.0> : tensor<16x16xf32>
    %minus = onnx.initializer "minus" : tensor<1xi64> = dense<-2> : tensor<1xi64>
    %big = onnx.initializer "big" : tensor<1xi64> = dense<9223372036854775807> : tensor<1xi64>
    %one = onnx.initializer "one" : tensor<1xi64> = dense<1> : tensor<1xi64>
    %o0 = onnx.node "Identity"(%x) : (!x) -> !x
    %o, %k = prefill.attention %o0, %x, %x rotary(%cos, %sin : !w, !w) {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>, rotary = #prefill<rotary half>, rotary_dim = 8 : i64} : !x, !x, !x -> !x rotated_k : !h
    %p = onnx.node "MatMul"(%o, %wq) : (!x, tensor<16x16xf32>) -> !x
    %z = onnx.node "Slice"(%p, %minus, %big, %one) : (!x, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>) -> !u
    onnx.return %z, %k : !u, !h {output_names = ["z", "k"]}
  }
}

// -----

// Slices that are not the last rows get positions: from a Range, sliced alike.
// Queries against a longer cache are that much further on.

!u = !onnx.unknown
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!c = tensor<?x?x16xf32, #onnx.dims<"B", "T", "">>

// CHECK-LABEL: onnx.graph @first_of_a_cache
// CHECK-DAG: %[[ALL:.*]] = onnx.node "Range"
// CHECK-DAG: %[[ROWS:.*]] = onnx.node "Slice"(%[[ALL]], %zero, %one, %{{.*}})
// CHECK-DAG: %[[BEFORE:.*]] = onnx.node "Sub"
// CHECK-DAG: %[[AT:.*]] = onnx.node "Add"(%[[BEFORE]], %[[ROWS]])
// CHECK: prefill.attention %{{.*}}, %k, %k q_positions(%[[AT]] :
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @first_of_a_cache(%x: !x, %k: !c) attributes {inputs = ["x", "k"]} {
    %zero = onnx.initializer "zero" : tensor<1xi64> = dense<0> : tensor<1xi64>
    %one = onnx.initializer "one" : tensor<1xi64> = dense<1> : tensor<1xi64>
    %o = prefill.attention %x, %k, %k {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !c, !c -> !x
    %z = onnx.node "Slice"(%o, %zero, %one, %one) : (!x, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>) -> !u
    onnx.return %z : !u {output_names = ["z"]}
  }
}

// -----

// Rows in an axis of their own, merged with the batch for a Gemm: the target of
// the Reshape back is written for fewer rows. What asks for the shape of a value
// that shrinks asks the input instead.

!u = !onnx.unknown
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>

// CHECK-LABEL: onnx.graph @merged
// CHECK-DAG: %[[X:.*]] = onnx.node "Gather"(%x, %[[ROWS:[^)]*]]) {axis = 1
// CHECK-DAG: %[[NEW:.*]] = onnx.node "Shape"(%[[ROWS]])
// CHECK: prefill.attention %[[X]], %x, %x
// CHECK: %[[FLAT:.*]] = onnx.node "Reshape"
// CHECK: %[[G:.*]] = onnx.node "Gemm"(%[[FLAT]], %w)
// CHECK: %[[TARGET:.*]] = onnx.node "Concat"(%{{.*}}, %[[NEW]], %{{.*}}) {axis = 0
// CHECK: onnx.node "Reshape"(%[[G]], %[[TARGET]])
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @merged(%x: !x, %row: tensor<i64>) attributes {inputs = ["x", "row"]} {
    %w = onnx.initializer "w" : tensor<16x16xf32> = dense<1.0> : tensor<16x16xf32>
    %flat = onnx.initializer "flat" : tensor<2xi64> = dense<[-1, 16]> : tensor<2xi64>
    %o = prefill.attention %x, %x, %x {head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %shape = onnx.node "Shape"(%o) : (!x) -> tensor<3xi64>
    %f = onnx.node "Reshape"(%o, %flat) : (!x, tensor<2xi64>) -> !u
    %g = onnx.node "Gemm"(%f, %w) : (!u, tensor<16x16xf32>) -> !u
    %r = onnx.node "Reshape"(%g, %shape) : (!u, tensor<3xi64>) -> !u
    %z = onnx.node "Gather"(%r, %row) {axis = 1 : si64} : (!u, tensor<i64>) -> !u
    onnx.return %z : !u {output_names = ["z"]}
  }
}
