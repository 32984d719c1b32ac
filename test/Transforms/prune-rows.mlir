// RUN: prefill-opt %s -prune-rows="prune=lazyllm:layers=1,keep=0.6 protect=bos:2,last:1,system,ids:0-3 logits=last" -verify-each | FileCheck %s
// RUN: prefill-opt %s -prune-rows="prune=lazyllm:layers=1,keep=1" -verify-each | FileCheck %s --check-prefix=SAME

// After layer 1 rows go: later layers get those that are left, with their rows of
// the rotary tables; outputs say which.

!u = !onnx.unknown
!i = tensor<?x?xi64, #onnx.dims<"B", "S">>
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!t = tensor<1x?x8xf32, #onnx.dims<"", "S", "">>

// CHECK: onnx.graph @main(%input_ids: {{.*}}, %cos: {{.*}}, %protected_rows: tensor<?x?xi1, #onnx.dims<"B", "S">>)
// CHECK-DAG: %[[PROTECT:.*]] = prefill.protect_rows %input_ids given(%protected_rows : {{.*}}) wanted(%{{.*}} : tensor<1xi64>) bos 2 last 1 {id_ranges = array<i64: 0, 3>}
// CHECK-DAG: %[[O:.*]], %[[SCORE:.*]] = prefill.attention %{{.*}} rotary(%cos, %cos : {{.*}}token_score : tensor<?x?xf32>
// CHECK-DAG: %[[X:.*]] = onnx.node "Add"(%{{.*}}, %[[O]])
// CHECK-DAG: %[[ROWS:.*]] = prefill.select_rows %[[SCORE]] protect(%[[PROTECT]] : {{.*}}) keep 6.000000e-01 {{.*}} -> tensor<?x?xi64, #onnx.dims<"", "rows_after_1">>
// CHECK-DAG: %[[INDEX:.*]] = onnx.node "Unsqueeze"(%[[ROWS]]
// CHECK-DAG: %[[LEFT:.*]] = onnx.node "GatherND"(%[[X]], %{{.*}}) {batch_dims = 1 : si64} : {{.*}} -> tensor<?x?x16xf32, #onnx.dims<"B", "rows_after_1", "">>
// CHECK-DAG: %[[ALL:.*]] = onnx.node "Squeeze"(%cos
// CHECK-DAG: %[[COS:.*]] = onnx.node "Gather"(%[[ALL]], %[[ROWS]]) {axis = 0 : si64}
// CHECK: %[[O2:.*]] = prefill.attention %[[LEFT]], %[[LEFT]], %[[LEFT]] rotary(%[[COS]], %[[COS]]
// CHECK: %[[Y:.*]] = onnx.node "Add"(%[[LEFT]], %[[O2]])
// CHECK: %[[LOGITS:.*]] = onnx.node "Slice"(%[[Y]]
// CHECK: onnx.return %[[LOGITS]], %{{.*}}, %[[ROWS]] {{.*}} {output_names = ["logits", "cache", "prefill.rows.1"]}

// SAME-NOT: token_score
// SAME-NOT: select_rows
// SAME: output_names = ["logits", "cache"]
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i, %cos: !t) attributes {inputs = ["input_ids", "cos"]} {
    %tokens = onnx.initializer "tokens" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %e = onnx.node "Gather"(%tokens, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, !i) -> !x
    %o = prefill.attention %e, %e, %e rotary(%cos, %cos : !t, !t) {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, rotary = #prefill<rotary half>, rotary_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x = onnx.node "Add"(%e, %o) : (!x, !x) -> !x
    %o2 = prefill.attention %x, %x, %x rotary(%cos, %cos : !t, !t) {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, rotary = #prefill<rotary half>, rotary_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %y = onnx.node "Add"(%x, %o2) : (!x, !x) -> !x
    onnx.return %y, %x : !x, !x {output_names = ["logits", "cache"]}
  }
}
