// RUN: prefill-opt %s -prune-rows="prune=mustdrop:layers=1,global=0.01,individual=0.02 logits=last" -verify-each | FileCheck %s
// RUN: prefill-opt %s -prune-rows="prune=mustdrop:layers=1,individual=0" -verify-each | FileCheck %s --check-prefix=SAME
// RUN: not prefill-opt %s -prune-rows="prune=mustdrop:layers=1 logits=last protect=ids:1-2" 2>&1 | FileCheck %s --check-prefix=IDS

// RUN: prefill-opt %s -prune-rows="prune=flowcut:target=6,llm-layer=1 logits=last" -verify-each | FileCheck %s --check-prefix=FLOW

// The text after an image scores its rows, which a new input marks; what is no
// vision row is protected. The model takes embeddings.

!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>

// CHECK: onnx.graph @main(%inputs_embeds: {{.*}}, %vision_rows: tensor<?x?xi1, #onnx.dims<"B", "S">>)
// CHECK-DAG: %[[AFTER:.*]] = onnx.node "CumSum"({{.*}}) {reverse = 1 : si64}
// CHECK-DAG: %[[NONE:.*]] = onnx.node "Equal"(%[[AFTER]]
// CHECK-DAG: %[[ASKING:.*]] = onnx.node "And"(%{{.*}}, %[[NONE]])
// CHECK-DAG: %[[PROTECT:.*]] = prefill.protect_rows %{{.*}} wanted(%{{.*}}) only(%vision_rows : {{.*}}) bos 4 last 1
// CHECK-DAG: %{{.*}}, %[[SCORE:[^,]*]], %[[PEAK:.*]] = prefill.attention %{{.*}} score_rows(%[[ASKING]] : {{.*}}token_score : tensor<?x?xf32> token_peak : tensor<?x?xf32>
// CHECK-DAG: %[[ROWS:.*]] = prefill.select_rows %[[SCORE]] protect(%[[PROTECT]] : {{.*}}) peak(%[[PEAK]] : {{.*}}) columns(%vision_rows : {{.*}}) global 1.000000e-02 individual 2.000000e-02
// CHECK-DAG: onnx.node "GatherND"
// CHECK: output_names = ["logits", "prefill.rows.1"]

// SAME-NOT: vision_rows
// SAME-NOT: select_rows
// SAME: output_names = ["logits"]

// FlowCut: the last row reads the image's rows, and so many stay.

// FLOW: onnx.graph @main(%inputs_embeds: {{.*}}, %vision_rows: tensor<?x?xi1, #onnx.dims<"B", "S">>)
// FLOW-DAG: %[[PROTECT:.*]] = prefill.protect_rows %{{.*}} wanted(%{{.*}}) only(%vision_rows : {{.*}}) bos 4 last 1
// FLOW-DAG: %[[SCORE:.*]], %{{.*}} = prefill.flow_score %inputs_embeds, %inputs_embeds, %inputs_embeds columns(%vision_rows : {{.*}} heads = 2 : i64, {{.*}} value_scale = 0.353553385 : f32}
// FLOW-DAG: prefill.select_rows %[[SCORE]] protect(%[[PROTECT]] : {{.*}}) columns(%vision_rows : {{.*}}) target 6 :
// FLOW-NOT: token_score
// FLOW: output_names = ["logits", "prefill.rows.1"]

// IDS: -protect=ids: the model has no input 'input_ids'
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%e: !x) attributes {inputs = ["inputs_embeds"]} {
    %o = prefill.attention %e, %e, %e {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x = onnx.node "Add"(%e, %o) : (!x, !x) -> !x
    %o2 = prefill.attention %x, %x, %x {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %y = onnx.node "Add"(%x, %o2) : (!x, !x) -> !x
    onnx.return %y : !x {output_names = ["logits"]}
  }
}
