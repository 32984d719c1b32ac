// RUN: prefill-opt %s -chunk-prompt="size=512 parts=true" -prune-groups="prune=quickprefill:topk=9,top-p=0.5,decay=linear" -verify-each | FileCheck %s
// RUN: prefill-opt %s -chunk-prompt="size=512 parts=true" -prune-groups="prune=quickprefill:topk=9,decay=0.1" -verify-each | FileCheck %s --check-prefix=FACTOR
// RUN: prefill-opt %s -chunk-prompt="size=512 parts=true" -prune-groups="prune=quickprefill:topk=9,decay=1" -verify-each | FileCheck %s --check-prefix=NONE

// Each layer keeps another number of rows, and has slots of its own.

!u = !onnx.unknown
!i = tensor<?x?xi64, #onnx.dims<"B", "S">>
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>

// CHECK: %cache_slots: tensor<2x?x2xi64, #onnx.dims<"", "segments", "">>
// CHECK: %[[FIRST:.*]] = onnx.node "Gather"(%cache_slots, %{{.*}}) {axis = 0 : si64} : {{.*}} -> tensor<?x2xi64, #onnx.dims<"segments", "">>
// CHECK: prefill.select_rows {{.*}} keep 5.000000e-01 {round_down, topk = 9 : i64}
// CHECK: prefill.attention {{.*}} cache(%past_key_values.0.key, %past_key_values.0.value, %[[FIRST]] :
// CHECK: %[[SECOND:.*]] = onnx.node "Gather"(%cache_slots, %{{.*}}) {axis = 0 : si64}
// CHECK: prefill.select_rows {{.*}} keep 2.500000e-01 {round_down, topk = 5 : i64} : {{.*}} -> tensor<1x?xi64, #onnx.dims<"", "kept_rows_2">>
// CHECK: prefill.attention {{.*}} cache(%past_key_values.1.key, %past_key_values.1.value, %[[SECOND]] :

// FACTOR: keep 1.000000e+00 {round_down, topk = 9 : i64}
// FACTOR: keep 1.000000e+00 {round_down, topk = 1 : i64}

// NONE: %cache_slots: tensor<?x2xi64
// NONE-NOT: onnx.node "Gather"(%cache_slots
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i) attributes {inputs = ["input_ids"]} {
    %tokens = onnx.initializer "tokens" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %x = onnx.node "Gather"(%tokens, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, !i) -> !x
    %o = prefill.attention %x, %x, %x {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %o2 = prefill.attention %o, %o, %o {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    onnx.return %o2 : !x {output_names = ["logits"]}
  }
}
