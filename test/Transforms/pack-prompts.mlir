// RUN: prefill-opt %s -pack-prompts -verify-each | FileCheck %s
// RUN: prefill-opt %s -pack-prompts -eliminate-dead-rows -verify-each | FileCheck %s --check-prefix=ROWS

// Positions begin anew at every start; attention keeps to its prompt.

!u = !onnx.unknown
!i = tensor<?x?xi64, #onnx.dims<"B", "S">>
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>

// CHECK: onnx.graph @main(%input_ids: {{.*}}, %rows: {{.*}}, %segment_starts: tensor<?xi64, #onnx.dims<"segments_and_one">>)
// CHECK: %[[ALL:.*]] = onnx.node "Range"
// CHECK: %[[COLUMN:.*]] = onnx.node "Reshape"(%segment_starts, %{{.*}})
// CHECK: %[[BEGUN:.*]] = onnx.node "LessOrEqual"(%[[COLUMN]], %[[ALL]])
// CHECK: %[[OWN:.*]] = onnx.node "Where"(%[[BEGUN]], %[[COLUMN]], %{{.*}})
// CHECK: %[[START:.*]] = onnx.node "ReduceMax"(%[[OWN]], %{{.*}}) {keepdims = 0
// CHECK: %[[POSITION:.*]] = onnx.node "Sub"(%[[ALL]], %[[START]])
// CHECK: onnx.node "Gather"(%places, %[[POSITION]])
// CHECK: prefill.attention %{{.*}} segment_starts(%segment_starts : {{.*}}) {causal
// CHECK: onnx.node "Gather"(%{{.*}}, %rows) {axis = 1

// The queries of the selected rows: positions through the pack.
// ROWS: prefill.attention %{{.*}} q_positions(%{{.*}} : !onnx.unknown) segment_starts(%segment_starts : {{.*}}) {alignment = #prefill<align operand>, causal
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
    onnx.return %z, %x : !u, !x {output_names = ["logits", "cache"]}
  }
}
