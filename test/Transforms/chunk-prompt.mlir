// RUN: prefill-opt %s -chunk-prompt=size=512 -split-input-file -verify-each | FileCheck %s
// RUN: prefill-opt %s -chunk-prompt=size=512 -eliminate-dead-rows -split-input-file -verify-each | FileCheck %s --check-prefix=ROWS
// RUN: prefill-opt %s -chunk-prompt -split-input-file | FileCheck %s --check-prefix=OFF

// Positions go on where the cache ends; K and V are appended to it. Without an
// output of K and V the model gets one.

!u = !onnx.unknown
!i = tensor<?x?xi64, #onnx.dims<"B", "S">>
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>

// CHECK: module attributes {onnx.metadata = ["prefill.chunk", "512"]
// CHECK: onnx.graph @main(%input_ids: {{.*}}, %rows: {{.*}}, %segment_starts: tensor<?xi64, #onnx.dims<"segments_and_one">>, %cache_slots: tensor<?x2xi64, #onnx.dims<"segments", "">>, %past_key_values.0.key: tensor<1x2x?x8xf32, #onnx.dims<"", "", "cache_rows", "">>, %past_key_values.0.value: tensor<1x2x?x8xf32, {{.*}}>)
// CHECK: %[[ALL:.*]] = onnx.node "Range"
// CHECK: %[[COLUMN:.*]] = onnx.node "Reshape"(%segment_starts, %{{.*}})
// CHECK: %[[BEGUN:.*]] = onnx.node "LessOrEqual"(%[[COLUMN]], %[[ALL]])
// CHECK: %[[COUNT:.*]] = onnx.node "ReduceSum"(%{{.*}}, %{{.*}}) {keepdims = 0
// CHECK: %[[SEGMENT:.*]] = onnx.node "Sub"(%[[COUNT]], %{{.*}})
// CHECK: %[[FIRST:.*]] = onnx.node "Slice"(%segment_starts,
// CHECK: %[[HELD:.*]] = onnx.node "Reshape"
// CHECK: %[[SHIFTS:.*]] = onnx.node "Sub"(%[[HELD]], %[[FIRST]])
// CHECK: %[[SHIFT:.*]] = onnx.node "Gather"(%[[SHIFTS]], %[[SEGMENT]]) {axis = 0
// CHECK: %[[POSITION:.*]] = onnx.node "Add"(%[[ALL]], %[[SHIFT]])
// CHECK: onnx.node "Gather"(%places, %[[POSITION]])
// CHECK: %[[O:.*]], %[[K:.*]], %[[V:.*]] = prefill.attention %{{.*}} segment_starts(%segment_starts : {{.*}}) cache(%past_key_values.0.key, %past_key_values.0.value, %cache_slots : {{.*}}) {causal{{.*}} present : tensor<1x2x?x8xf32
// CHECK: %[[Z:.*]] = onnx.node "Gather"(%[[O]], %rows) {axis = 1
// CHECK: onnx.return %[[Z]], %{{.*}}, %[[K]], %[[V]] {{.*}} {output_names = ["logits", "hidden", "present.0.key", "present.0.value"]}

// The queries of the selected rows, and the keys of all.
// ROWS: prefill.attention %{{.*}} q_positions(%{{.*}} : !onnx.unknown) segment_starts({{.*}}) cache({{.*}}) {alignment = #prefill<align operand>, causal

// OFF: module attributes {onnx.opset_imports
// OFF-NOT: segment_starts
// OFF: prefill.attention %{{.*}}, %{{.*}}, %{{.*}} {causal
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
    onnx.return %z, %x : !u, !x {output_names = ["logits", "hidden"]}
  }
}

// -----

// The model's own outputs of K (rotated) and V become the cache.

!i = tensor<?x?xi64, #onnx.dims<"B", "S">>
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!h = tensor<?x2x?x8xf32, #onnx.dims<"B", "", "S", "">>
!t = tensor<1x?x8xf32, #onnx.dims<"", "S", "">>

// CHECK: onnx.graph @main({{.*}}, %past.keys: tensor<1x2x?x8xf32, {{.*}}>, %past_key_values.0.value: {{.*}})
// CHECK: %[[O:.*]], %{{.*}}, %[[K:.*]], %[[V:.*]] = prefill.attention %{{.*}} cache(%past.keys, %past_key_values.0.value, %cache_slots
// CHECK: onnx.return %[[O]], %[[K]], %[[V]] : {{.*}} {output_names = ["logits", "keys", "present.0.value"]}
// OFF: onnx.return {{.*}} {output_names = ["logits", "keys", "present.0.value"]}
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i, %c: !t, %s: !t) attributes {inputs = ["input_ids", "cos", "sin"]} {
    %tokens = onnx.initializer "tokens" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %split = onnx.initializer "split" : tensor<4xi64> = dense<[0, -1, 2, 8]> : tensor<4xi64>
    %x = onnx.node "Gather"(%tokens, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, !i) -> !x
    %o, %k = prefill.attention %x, %x, %x rotary(%c, %s : !t, !t) {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, rotary = #prefill<rotary half>, rotary_dim = 8 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x rotated_k : !h
    %r = onnx.node "Reshape"(%x, %split) : (!x, tensor<4xi64>) -> tensor<?x?x2x8xf32, #onnx.dims<"B", "S", "", "">>
    %v = onnx.node "Transpose"(%r) {perm = array<i64: 0, 2, 1, 3>} : (tensor<?x?x2x8xf32, #onnx.dims<"B", "S", "", "">>) -> !h
    onnx.return %o, %k, %v : !x, !h, !h {output_names = ["logits", "keys", "present.0.value"]}
  }
}

// -----

// A model with a cache of its own stays as it is.

!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>

// CHECK: module attributes {onnx.metadata = ["prefill.chunk", "512"]
// CHECK: onnx.graph @main(%past_key_values.0.key: {{.*}}) attributes {inputs = ["past_key_values.0.key"]}
// CHECK: onnx.return %past_key_values.0.key
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%p: !x) attributes {inputs = ["past_key_values.0.key"]} {
    onnx.return %p : !x {output_names = ["present.0.key"]}
  }
}
