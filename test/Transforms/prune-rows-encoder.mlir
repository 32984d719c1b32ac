// RUN: prefill-opt %s -prune-rows="prune=flowcut:target=6" -verify-each | FileCheck %s
// RUN: prefill-opt %s -prune-rows="prune=flowcut:target=16" -verify-each | FileCheck %s --check-prefix=SAME
// RUN: not prefill-opt %s -prune-rows="prune=flowcut:target=6,anchor=moon" 2>&1 | FileCheck %s --check-prefix=ANCHOR

// Of 17 rows the first is a class token, 16 are patches. They leave after the
// layer before the last one, and after every second one before it; every layer
// scores.

!x = tensor<?x17x24xf32, #onnx.dims<"B", "", "">>

// CHECK-DAG: %[[PROTECT:.*]] = prefill.protect_rows %{{.*}} bos 1 last 0
// CHECK-DAG: %[[C1:.*]], %[[S1:.*]] = prefill.flow_score %pixels, %pixels, %pixels {cls, head_dim = 8 : i64, heads = 3 : i64
// CHECK-DAG: %[[R1:.*]] = prefill.select_rows %[[C1]] protect(%[[PROTECT]] : {{.*}}) shares(%[[S1]] : {{.*}}) target 6 left 2 skip 1
// CHECK-DAG: %[[B1:.*]] = onnx.node "GatherElements"(%[[C1]], %[[R1]])
// CHECK-DAG: %[[C2:.*]], %{{.*}} = prefill.flow_score %[[X2:[^,]*]], %[[X2]], %[[X2]] previous(%[[B1]] : {{.*}} -> tensor<?x?xf32>
// CHECK-DAG: %[[C3:.*]], %[[S3:.*]] = prefill.flow_score {{.*}} previous(%[[C2]]
// CHECK-DAG: prefill.select_rows %[[C3]] {{.*}} shares(%[[S3]] : {{.*}}) target 6 left 0 skip 1
// CHECK: output_names = ["last_hidden_state", "prefill.rows.1", "prefill.rows.3"]

// SAME-NOT: select_rows
// SAME: output_names = ["last_hidden_state"]

// ANCHOR: anchor=moon: expected cls or mean
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%pixels: !x) attributes {inputs = ["pixels"]} {
    %o = prefill.attention %pixels, %pixels, %pixels {head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x = onnx.node "Add"(%pixels, %o) : (!x, !x) -> !x
    %o2 = prefill.attention %x, %x, %x {head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x2 = onnx.node "Add"(%x, %o2) : (!x, !x) -> !x
    %o3 = prefill.attention %x2, %x2, %x2 {head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x3 = onnx.node "Add"(%x2, %o3) : (!x, !x) -> !x
    %o4 = prefill.attention %x3, %x3, %x3 {head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x4 = onnx.node "Add"(%x3, %o4) : (!x, !x) -> !x
    onnx.return %x4 : !x {output_names = ["last_hidden_state"]}
  }
}
