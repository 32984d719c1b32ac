// RUN: split-file %s %t
// RUN: prefill-opt %t/projector.mlir -prune-rows="prune=flowcut:target=6" -verify-each | FileCheck %s
// RUN: prefill-opt %t/unread.mlir -prune-rows="prune=flowcut:target=6" -verify-each | FileCheck %s --check-prefix=UNREAD
// RUN: not prefill-opt %t/projector.mlir -prune-rows="prune=flowcut:target=6,anchor=mean" 2>&1 | FileCheck %s --check-prefix=FIRST
// RUN: not prefill-opt %t/table.mlir -prune-rows="prune=flowcut:target=6" 2>&1 | FileCheck %s --check-prefix=TABLE
// RUN: not prefill-opt %t/mixed.mlir -prune-rows="prune=flowcut:target=6" 2>&1 | FileCheck %s --check-prefix=MIXED

// The class token is cut off, and what follows has one row less. Targets of
// Reshapes count what is left of them.

// CHECK: %[[ROWS:.*]] = prefill.select_rows {{.*}} target 6 left 0 skip 1
// CHECK-DAG: %[[CUT:.*]] = onnx.node "GatherND"
// CHECK-DAG: %[[COUNT:.*]] = onnx.node "Gather"
// CHECK-DAG: %[[FEWER:.*]] = onnx.node "Sub"(%[[COUNT]]
// CHECK-DAG: %[[TARGET:.*]] = onnx.node "Concat"(%{{.*}}, %[[FEWER]], %{{.*}})
// CHECK-DAG: %[[PATCHES:.*]] = onnx.node "Slice"({{.*}}) attributes {{{.*}}output_names = ["patches"]} : {{.*}} -> tensor<?x?x24xf32, #onnx.dims<"B", "", "">>
// CHECK-DAG: onnx.node "Mul"(%[[PATCHES]], %[[PATCHES]])
// CHECK-DAG: onnx.node "Reshape"(%{{.*}}, %[[TARGET]])
// CHECK: output_names = ["features", "prefill.rows.2"]

// The third layer, which nobody reads, is none: rows leave after the first.

// UNREAD: = prefill.attention
// UNREAD: prefill.select_rows {{.*}} target 6 left 0 skip 1
// UNREAD: = prefill.attention
// UNREAD-NOT: = prefill.attention
// UNREAD: output_names = ["features", "prefill.rows.1"]

// FIRST: -prune: Slice 'patches': it takes all rows but the first, which is no class token and may go
// TABLE: -prune: Add 'with_table': an operand of it has a row for every patch, and is not computed from those that are left
// MIXED: -prune: CumSum 'sum': it is not known to treat rows one by one

//--- projector.mlir
!x = tensor<?x17x24xf32, #onnx.dims<"B", "", "">>
!y = tensor<?x16x24xf32, #onnx.dims<"B", "", "">>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%pixels: !x) attributes {inputs = ["pixels"]} {
    %one = onnx.initializer "one" : tensor<1xi64> = dense<1> : tensor<1xi64>
    %end = onnx.initializer "end" : tensor<1xi64> = dense<9223372036854775807> : tensor<1xi64>
    %o = prefill.attention %pixels, %pixels, %pixels {head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x = onnx.node "Add"(%pixels, %o) : (!x, !x) -> !x
    %o2 = prefill.attention %x, %x, %x {head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x2 = onnx.node "Add"(%x, %o2) : (!x, !x) -> !x
    %o3 = prefill.attention %x2, %x2, %x2 {head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x3 = onnx.node "Add"(%x2, %o3) : (!x, !x) -> !x
    %p = onnx.node "Slice"(%x3, %one, %end, %one) attributes {output_names = ["patches"]} : (!x, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>) -> !y
    %m = onnx.node "Mul"(%p, %p) : (!y, !y) -> !y
    %shape = onnx.initializer "shape" : tensor<4xi64> = dense<[-1, 16, 2, 12]> : tensor<4xi64>
    %f = onnx.node "Reshape"(%m, %shape) : (!y, tensor<4xi64>) -> tensor<?x16x2x12xf32, #onnx.dims<"B", "", "", "">>
    onnx.return %f : tensor<?x16x2x12xf32, #onnx.dims<"B", "", "", "">> {output_names = ["features"]}
  }
}
//--- unread.mlir
!x = tensor<?x17x24xf32, #onnx.dims<"B", "", "">>
!y = tensor<?x16x24xf32, #onnx.dims<"B", "", "">>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%pixels: !x) attributes {inputs = ["pixels"]} {
    %one = onnx.initializer "one" : tensor<1xi64> = dense<1> : tensor<1xi64>
    %end = onnx.initializer "end" : tensor<1xi64> = dense<9223372036854775807> : tensor<1xi64>
    %o = prefill.attention %pixels, %pixels, %pixels {head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x = onnx.node "Add"(%pixels, %o) : (!x, !x) -> !x
    %o2 = prefill.attention %x, %x, %x {head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x2 = onnx.node "Add"(%x, %o2) : (!x, !x) -> !x
    %o3 = prefill.attention %x2, %x2, %x2 {head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x3 = onnx.node "Add"(%x2, %o3) : (!x, !x) -> !x
    %p = onnx.node "Slice"(%x2, %one, %end, %one) attributes {output_names = ["patches"]} : (!x, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>) -> !y
    onnx.return %p : !y {output_names = ["features"]}
  }
}
//--- table.mlir
!x = tensor<?x17x24xf32, #onnx.dims<"B", "", "">>
!y = tensor<?x16x24xf32, #onnx.dims<"B", "", "">>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%pixels: !x) attributes {inputs = ["pixels"]} {
    %one = onnx.initializer "one" : tensor<1xi64> = dense<1> : tensor<1xi64>
    %end = onnx.initializer "end" : tensor<1xi64> = dense<9223372036854775807> : tensor<1xi64>
    %o = prefill.attention %pixels, %pixels, %pixels {head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x = onnx.node "Add"(%pixels, %o) : (!x, !x) -> !x
    %o2 = prefill.attention %x, %x, %x {head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x2 = onnx.node "Add"(%x, %o2) : (!x, !x) -> !x
    %o3 = prefill.attention %x2, %x2, %x2 {head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x3 = onnx.node "Add"(%x2, %o3) : (!x, !x) -> !x
    %p = onnx.node "Slice"(%x3, %one, %end, %one) attributes {output_names = ["patches"]} : (!x, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>) -> !y
    %table = onnx.initializer "table" : tensor<16x24xf32> = dense<1.0> : tensor<16x24xf32>
    %f = onnx.node "Add"(%p, %table) attributes {output_names = ["with_table"]} : (!y, tensor<16x24xf32>) -> !y
    onnx.return %f : !y {output_names = ["features"]}
  }
}
//--- mixed.mlir
!x = tensor<?x17x24xf32, #onnx.dims<"B", "", "">>
!y = tensor<?x16x24xf32, #onnx.dims<"B", "", "">>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%pixels: !x) attributes {inputs = ["pixels"]} {
    %one = onnx.initializer "one" : tensor<1xi64> = dense<1> : tensor<1xi64>
    %end = onnx.initializer "end" : tensor<1xi64> = dense<9223372036854775807> : tensor<1xi64>
    %o = prefill.attention %pixels, %pixels, %pixels {head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x = onnx.node "Add"(%pixels, %o) : (!x, !x) -> !x
    %o2 = prefill.attention %x, %x, %x {head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x2 = onnx.node "Add"(%x, %o2) : (!x, !x) -> !x
    %o3 = prefill.attention %x2, %x2, %x2 {head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x3 = onnx.node "Add"(%x2, %o3) : (!x, !x) -> !x
    %p = onnx.node "Slice"(%x3, %one, %end, %one) attributes {output_names = ["patches"]} : (!x, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>) -> !y
    %axis = onnx.initializer "axis" : tensor<i64> = dense<1> : tensor<i64>
    %f = onnx.node "CumSum"(%p, %axis) attributes {output_names = ["sum"]} : (!y, tensor<i64>) -> !y
    onnx.return %f : !y {output_names = ["features"]}
  }
}
