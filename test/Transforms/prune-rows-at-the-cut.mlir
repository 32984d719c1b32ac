// RUN: prefill-opt %s -prune-rows="prune=lazyllm:layers=1,keep=0.5 logits=last" -verify-each | FileCheck %s

// A row is asked for of the very value that rows leave: its number is looked up
// among those that are left, and taken of these.

!i = tensor<?x?xi64, #onnx.dims<"B", "S">>
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!r = tensor<?x1x16xf32, #onnx.dims<"B", "", "">>

// CHECK-DAG: %[[X:.*]] = onnx.node "Add"({{.*}}) attributes {{{.*}}output_names = ["layer"]}
// CHECK-DAG: %[[LEFT:.*]] = onnx.node "GatherND"(%[[X]], %{{.*}}) {batch_dims = 1 : si64}
// CHECK-DAG: %[[FOUND:.*]] = onnx.node "FindRows"
// CHECK-DAG: onnx.node "Gather"(%[[LEFT]], %[[FOUND]]) {axis = 1 : si64} attributes {{{.*}}output_names = ["middle"]}
// CHECK-NOT: onnx.node "Gather"(%[[X]]
// CHECK: output_names = ["logits", "middle", "prefill.rows.1"]
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i, %which: tensor<1xi64>) attributes {inputs = ["input_ids", "which"]} {
    %tokens = onnx.initializer "tokens" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %e = onnx.node "Gather"(%tokens, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, !i) -> !x
    %o = prefill.attention %e, %e, %e {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x = onnx.node "Add"(%e, %o) attributes {output_names = ["layer"]} : (!x, !x) -> !x
    %o2 = prefill.attention %x, %x, %x {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %y = onnx.node "Add"(%x, %o2) : (!x, !x) -> !x
    %m = onnx.node "Gather"(%x, %which) {axis = 1 : si64} attributes {output_names = ["middle"]} : (!x, tensor<1xi64>) -> !r
    onnx.return %y, %m : !x, !r {output_names = ["logits", "middle"]}
  }
}
