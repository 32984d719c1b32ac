// RUN: prefill-opt %s -chunk-prompt=size=512 -encode-contexts=method=ape:T=0.5,S=2 -split-input-file -verify-each | FileCheck %s
// RUN: prefill-opt %s -chunk-prompt=size=512 -encode-contexts=method=ape -eliminate-dead-rows -split-input-file -verify-each | FileCheck %s --check-prefix=ROWS

// Rows see the contexts' rows of the cache by a softmax of their own; positions
// are counted from slots that hold `position_shifts` more.

!u = !onnx.unknown
!i = tensor<?x?xi64, #onnx.dims<"B", "S">>
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>

// CHECK: module attributes {onnx.metadata = ["prefill.chunk", "512", "prefill.parallel-encode", "ape:T=0.5,S=2", "prefill.model", "{{[0-9a-f]+}}", "prefill.positions", "99"]
// CHECK: onnx.graph @main({{.*}}, %segment_starts: {{.*}}, %cache_slots: tensor<?x2xi64, {{.*}}>, %past_key_values.0.key: {{.*}}, %context_slots: tensor<?x2xi64, #onnx.dims<"segments", "">>, %position_shifts: tensor<?xi64, #onnx.dims<"segments">>)
// CHECK: %[[COLUMN:.*]] = onnx.node "Reshape"(%position_shifts, %{{.*}})
// CHECK: %[[MOVED:.*]] = onnx.node "Add"(%cache_slots, %[[COLUMN]])
// CHECK: onnx.node "Slice"(%[[MOVED]],
// CHECK: prefill.attention %{{.*}} cache(%past_key_values.0.key, %past_key_values.0.value, %cache_slots : {{.*}}) contexts(%context_slots : {{.*}}) {causal, context_scale = 2.000000e+00 : f32, context_temperature = 5.000000e-01 : f32

// ROWS: prefill.attention %{{.*}} q_positions(%{{.*}} : !onnx.unknown) segment_starts({{.*}}) cache({{.*}}) contexts(%context_slots : {{.*}}) {alignment = #prefill<align operand>, causal, context_scale = 0.899999976 : f32, context_temperature = 0.899999976 : f32
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i, %rows: tensor<?xi64, #onnx.dims<"R">>) attributes {inputs = ["input_ids", "rows"]} {
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
    %z = onnx.node "Gather"(%o, %rows) {axis = 1 : si64} : (!x, tensor<?xi64, #onnx.dims<"R">>) -> !u
    onnx.return %z : !u {output_names = ["logits"]}
  }
}

// -----

// Without positions that the model counts there is nothing to shift, and no
// table of them.

!i = tensor<?x?xi64, #onnx.dims<"B", "S">>
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>

// CHECK: "prefill.model", "{{[0-9a-f]+}}"], onnx.opset_imports
// CHECK: onnx.graph @main({{.*}}, %context_slots: tensor<?x2xi64, {{.*}}>) attributes
// CHECK-NOT: position_shifts
// CHECK: prefill.attention %{{.*}} contexts(%context_slots
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i) attributes {inputs = ["input_ids"]} {
    %tokens = onnx.initializer "tokens" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %x = onnx.node "Gather"(%tokens, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, !i) -> !x
    %o = prefill.attention %x, %x, %x {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    onnx.return %o : !x {output_names = ["logits"]}
  }
}
