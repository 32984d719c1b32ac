// RUN: prefill-opt %s -chunk-prompt="size=512 parts=true" -prune-groups="prune=quickprefill:topk=6,top-p=0.5,query=9 protect=bos:2,last:3,system,ids:0-3,rows:5-7" -verify-each | FileCheck %s
// RUN: prefill-opt %s -chunk-prompt=size=512 -verify-each | FileCheck %s --check-prefix=CHUNK

// A group's small keys stay in the cache: positions are no rows of it any more.

!u = !onnx.unknown
!i = tensor<?x?xi64, #onnx.dims<"B", "S">>
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>

// CHECK: module attributes {onnx.metadata = ["prefill.chunk", "512", "prefill.query", "9"]
// CHECK: onnx.graph @main(%input_ids: {{.*}}, %segment_starts: {{.*}}, %cache_slots: {{.*}}, %prompt_parts: tensor<?x2xi64, #onnx.dims<"segments", "">>, %past_key_values.0.key: {{.*}}, %protected_rows: tensor<?x?xi1, #onnx.dims<"B", "S">>)
// CHECK: %[[PROTECT:.*]] = prefill.protect_rows %input_ids given(%protected_rows : {{.*}}) segment_starts(%segment_starts : {{.*}}) parts(%prompt_parts : {{.*}}) bos 2 last 3 {id_ranges = array<i64: 0, 3>, row_ranges = array<i64: 5, 7>}
// CHECK: onnx.node "Slice"(%prompt_parts, %[[ZERO:.*]], %[[ONE:.*]], %{{.*}})
// CHECK: %[[SCORE:.*]] = prefill.key_norm %[[X:.*]] {k_layout = #prefill<layout bshd>} : {{.*}} -> tensor<1x?xf32>
// CHECK: %[[ROWS:.*]] = prefill.select_rows %[[SCORE]] protect(%[[PROTECT]] : {{.*}}) segment_starts(%segment_starts : {{.*}}) keep 5.000000e-01 {round_down, topk = 6 : i64} : {{.*}} -> tensor<1x?xi64, #onnx.dims<"", "kept_rows">>
// CHECK: prefill.attention %[[X]], %[[X]], %[[X]] segment_starts({{.*}}) cache(%past_key_values.0.key, %past_key_values.0.value, %cache_slots : {{.*}}) kept(%[[ROWS]] : {{.*}}) {causal
// CHECK: prefill.attention {{.*}} kept(%[[ROWS2:[^ ]+]] :
// CHECK: onnx.return {{.*}}%[[ROWS]], %[[ROWS2]] {{.*}} {output_names = ["logits", "present.0.key", "present.0.value", "present.1.key", "present.1.value", "prefill.kept.1", "prefill.kept.2"]}

// CHUNK-NOT: prompt_parts
// CHUNK-NOT: kept
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i) attributes {inputs = ["input_ids"]} {
    %tokens = onnx.initializer "tokens" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %places = onnx.initializer "places" : tensor<99x16xf32> = dense<1.0> : tensor<99x16xf32>
    %zero = onnx.initializer "zero" : tensor<i64> = dense<0> : tensor<i64>
    %one = onnx.initializer "one" : tensor<i64> = dense<1> : tensor<i64>
    %shape = onnx.node "Shape"(%ids) : (!i) -> !u
    %count = onnx.node "Gather"(%shape, %one) {axis = 0 : si64} : (!u, tensor<i64>) -> !u
    %all = onnx.node "Range"(%zero, %count, %one) : (tensor<i64>, !u, tensor<i64>) -> !u
    %e = onnx.node "Gather"(%tokens, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, !i) -> !u
    %p = onnx.node "Gather"(%places, %all) {axis = 0 : si64} : (tensor<99x16xf32>, !u) -> !u
    %x = onnx.node "Add"(%e, %p) : (!u, !u) -> !x
    %o = prefill.attention %x, %x, %x {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %o2 = prefill.attention %o, %o, %o {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    onnx.return %o2 : !x {output_names = ["logits"]}
  }
}
