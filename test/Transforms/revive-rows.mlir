// RUN: prefill-opt %s -revive-rows="prune=lazyllm:layers=1,keep=0.6,aux=on protect=bos:2,last:1,system,ids:0-3 logits=last" -verify-each | FileCheck %s
// RUN: prefill-opt %s -revive-rows="prune=lazyllm:layers=1,keep=0.6,aux=on logits=rows" -verify-each | FileCheck %s --check-prefix=ASKED
// RUN: not prefill-opt %s -revive-rows="prune=lazyllm:layers=1,keep=0.6 logits=last" 2>&1 | FileCheck %s --check-prefix=PLAIN
// RUN: not prefill-opt %s -revive-rows="prune=lazyllm:layers=7,aux=on logits=last" 2>&1 | FileCheck %s --check-prefix=LAYER
// RUN: not prefill-opt %s -revive-rows="prune=lazyllm:layers=1,aux=on" 2>&1 | FileCheck %s --check-prefix=ALL

// PLAIN: revive-rows does lazyllm with aux=on
// LAYER: layer 7 is not there: the model has 2 layers
// ALL: the output 'logits' has a row for every token

// One model for a prompt and its decode steps: keys and values of all calls, and
// hidden states of the rows that layer 2 has not computed. Positions, and the
// rotary tables made of them, are those of the whole context; KV outputs go.

!u = !onnx.unknown
!n = tensor<?xi64>
!i = tensor<?x?xi64, #onnx.dims<"B", "S">>
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!t = tensor<?x8xf32, #onnx.dims<"S", "">>

// CHECK: onnx.graph @main(%input_ids: tensor<1x?xi64, #onnx.dims<"", "S">>, %prefill.past.ids: tensor<1x?xi64, #onnx.dims<"", "past_context">>, %protected_rows: tensor<1x?xi1, {{.*}}>, %prefill.past.protected_rows: tensor<1x?xi1, {{.*}}>, %prefill.past.waiting.1: tensor<?xi64, {{.*}}>, %prefill.past.hidden.1: tensor<1x?x16xf32, {{.*}}>, %prefill.past.rows.1: tensor<?xi64, {{.*}}>, %prefill.past.key.1: tensor<1x?x16xf32, #onnx.dims<"", "past_context", "">>, %prefill.past.key.2: tensor<1x?x16xf32, #onnx.dims<"", "past_cached_after_1", "">>)
// CHECK-DAG: %[[IDS:.*]] = onnx.node "Concat"(%prefill.past.ids, %input_ids) {axis = 1 : si64} : {{.*}} -> tensor<1x?xi64, #onnx.dims<"", "context">>
// CHECK-DAG: %[[GIVEN:.*]] = onnx.node "Concat"(%prefill.past.protected_rows, %protected_rows)
// CHECK-DAG: %[[PROTECT:.*]] = prefill.protect_rows %[[IDS]] given(%[[GIVEN]] : {{.*}}) bos 2 last 1 {id_ranges = array<i64: 0, 3>}
// The layers before the stage have all rows: the new ones ask, with their positions.
// CHECK-DAG: %[[K1:.*]] = onnx.node "Concat"(%prefill.past.key.1, %[[E:.*]]) {axis = 1 : si64}
// CHECK-DAG: %[[COS1:.*]] = onnx.node "Cos"(%{{.*}}) : {{.*}} -> tensor<?x8xf32, #onnx.dims<"context", "">>
// CHECK-DAG: %[[O:.*]], %[[SCORE:.*]] = prefill.attention %[[E]], %[[K1]], %[[K1]] rotary(%[[COS1]], %[[COS1]] : {{.*}}) q_positions(%{{.*}} : !onnx.unknown) {{.*}}alignment = #prefill<align operand>{{.*}} token_score : tensor<?x?xf32>
// CHECK-DAG: %[[X:.*]] = onnx.node "Add"(%[[E]], %[[O]])
// CHECK-DAG: %[[ROWS:.*]] = prefill.select_rows %[[SCORE]] protect(%[[PROTECT]] : {{.*}}) keep 6.000000e-01 : {{.*}} -> tensor<1x?xi64, #onnx.dims<"", "rows_after_1">>
// CHECK-DAG: %[[POOL:.*]] = onnx.node "Concat"(%prefill.past.hidden.1, %[[X]]) {axis = 1 : si64}
// CHECK-DAG: %[[X1:.*]] = onnx.node "Gather"(%[[POOL]], %{{.*}}) {axis = 1 : si64} : {{.*}} -> tensor<1x?x16xf32, #onnx.dims<"", "computed_after_1", "">>
// CHECK-DAG: %[[HIDDEN:.*]] = onnx.node "Gather"(%[[POOL]], %{{.*}}) {axis = 1 : si64} : {{.*}} -> tensor<1x?x16xf32, #onnx.dims<"", "left_after_1", "">>
// CHECK-DAG: %[[K2:.*]] = onnx.node "Concat"(%prefill.past.key.2, %[[X1]]) {axis = 1 : si64}
// CHECK-DAG: %[[KEYS:.*]] = onnx.node "Gather"(%[[K2]], %{{.*}}) {axis = 1 : si64} : {{.*}} -> tensor<1x?x16xf32, #onnx.dims<"", "rows_after_1", "">>
// CHECK-DAG: %[[COS2:.*]] = onnx.node "Gather"(%[[COS1]], %{{.*}}) {axis = 0 : si64} : {{.*}} -> tensor<?x8xf32, #onnx.dims<"rows_after_1", "">>
// CHECK-DAG: %[[O2:[^,]*]], %{{.*}} = prefill.attention %[[X1]], %[[KEYS]], %[[KEYS]] rotary(%[[COS2]], %{{.*}} : {{.*}}) q_positions(
// CHECK-DAG: %[[Y:.*]] = onnx.node "Add"(%[[X1]], %[[O2]])
// CHECK: %[[LOGITS:.*]] = onnx.node "Slice"(%[[Y]]
// CHECK: onnx.return %[[LOGITS]], %[[IDS]], %[[GIVEN]], {{.*}} {output_names = ["logits", "prefill.present.ids", "prefill.present.protected_rows", "prefill.present.waiting.1", "prefill.present.hidden.1", "prefill.present.rows.1", "prefill.rows.1", "prefill.present.key.1", "prefill.present.key.2"]}

// Rows of the call are asked for: their numbers in the context, among those computed.
// ASKED: onnx.node "Where"
// ASKED: prefill.protect_rows %{{.*}} wanted(%{{.*}} : !onnx.unknown)
// ASKED: onnx.node "FindRows"
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i) attributes {inputs = ["input_ids"]} {
    %tokens = onnx.initializer "tokens" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %rates = onnx.initializer "rates" : tensor<1x8xf32> = dense<0.5> : tensor<1x8xf32>
    %zero = onnx.initializer "zero" : tensor<i64> = dense<0> : tensor<i64>
    %one = onnx.initializer "one" : tensor<i64> = dense<1> : tensor<i64>
    %minus = onnx.initializer "minus" : tensor<1xi64> = dense<-1> : tensor<1xi64>
    %s = onnx.node "Shape"(%ids) : (!i) -> tensor<2xi64>
    %c = onnx.node "Gather"(%s, %one) {axis = 0 : si64} : (tensor<2xi64>, tensor<i64>) -> tensor<i64>
    %p = onnx.node "Range"(%zero, %c, %one) : (tensor<i64>, tensor<i64>, tensor<i64>) -> !n
    %f = onnx.node "Cast"(%p) {to = 1 : si64} : (!n) -> tensor<?xf32>
    %col = onnx.node "Unsqueeze"(%f, %minus) : (tensor<?xf32>, tensor<1xi64>) -> tensor<?x1xf32>
    %a = onnx.node "MatMul"(%col, %rates) : (tensor<?x1xf32>, tensor<1x8xf32>) -> !t
    %cos = onnx.node "Cos"(%a) : (!t) -> !t
    %e = onnx.node "Gather"(%tokens, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, !i) -> !x
    %o = prefill.attention %e, %e, %e rotary(%cos, %cos : !t, !t) {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, rotary = #prefill<rotary half>, rotary_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x = onnx.node "Add"(%e, %o) : (!x, !x) -> !x
    %o2, %k2 = prefill.attention %x, %x, %x rotary(%cos, %cos : !t, !t) {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, rotary = #prefill<rotary half>, rotary_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x rotated_k : tensor<?x2x?x8xf32>
    %y = onnx.node "Add"(%x, %o2) : (!x, !x) -> !x
    onnx.return %y, %k2 : !x, tensor<?x2x?x8xf32> {output_names = ["logits", "present.1.key"]}
  }
}
