// RUN: split-file %s %t
// RUN: not prefill-opt %t/window.mlir -chunk-prompt="size=9 parts=true" -prune-groups 2>&1 | FileCheck %s --check-prefix=WINDOW
// RUN: not prefill-opt %t/window.mlir -prune-groups 2>&1 | FileCheck %s --check-prefix=FIRST
// RUN: not prefill-opt %t/window.mlir -prune-groups=prune=lazyllm:layers=1 2>&1 | FileCheck %s --check-prefix=METHOD
// RUN: not prefill-opt %t/window.mlir -prune-groups=prune=quickprefill:topk=0 2>&1 | FileCheck %s --check-prefix=TOPK
// RUN: not prefill-opt %t/window.mlir -prune-rows=prune=quickprefill 2>&1 | FileCheck %s --check-prefix=ROWS
// RUN: not prefill-opt %t/bias.mlir -chunk-prompt="size=9 parts=true" 2>&1 | FileCheck %s --check-prefix=BIAS
// RUN: not prefill-opt %t/cache.mlir -chunk-prompt="size=9 parts=true" 2>&1 | FileCheck %s --check-prefix=CACHE
// RUN: not prefill-opt %t/taken.mlir -chunk-prompt="size=9 parts=true" 2>&1 | FileCheck %s --check-prefix=TAKEN

// WINDOW: -prune=quickprefill: attention 'b': it has a window, which counts positions
// FIRST: -prune=quickprefill: the model has no input 'prompt_parts': chunk-prompt with parts comes first
// METHOD: prune-groups does quickprefill
// TOPK: 'topk=0': expected a number of rows, at least 1
// ROWS: prune-rows does lazyllm without aux=on, flowcut, and mustdrop in a language model
// BIAS: -prune=quickprefill: {{.*}}it has a mask or bias of its own: of attention_mask, position_ids or ALiBi
// CACHE: -prune=quickprefill: the model has a KV cache of its own, whose rows are its positions
// TAKEN: the model has an input 'prompt_parts' already

//--- window.mlir
!i = tensor<?x?xi64, #onnx.dims<"B", "S">>
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i) attributes {inputs = ["input_ids"]} {
    %tokens = onnx.initializer "tokens" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %e = onnx.node "Gather"(%tokens, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, !i) -> !x
    %o = prefill.attention %e, %e, %e {layer = "a", causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %o2 = prefill.attention %o, %o, %o {layer = "b", causal, window_left = 9 : i64, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    onnx.return %o2 : !x {output_names = ["logits"]}
  }
}
//--- bias.mlir
!i = tensor<?x?xi64, #onnx.dims<"B", "S">>
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i, %b: tensor<2x?x?xf32>) attributes {inputs = ["input_ids", "b"]} {
    %tokens = onnx.initializer "tokens" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %e = onnx.node "Gather"(%tokens, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, !i) -> !x
    %o = prefill.attention %e, %e, %e bias(%b : tensor<2x?x?xf32>) {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    onnx.return %o : !x {output_names = ["logits"]}
  }
}
//--- cache.mlir
!i = tensor<?x?xi64, #onnx.dims<"B", "S">>
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i, %k: !x) attributes {inputs = ["input_ids", "past_key_values.0.key"]} {
    %tokens = onnx.initializer "tokens" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %e = onnx.node "Gather"(%tokens, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, !i) -> !x
    %o = prefill.attention %e, %e, %e {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    onnx.return %o, %k : !x, !x {output_names = ["logits", "present.0.key"]}
  }
}
//--- taken.mlir
!i = tensor<?x?xi64, #onnx.dims<"B", "S">>
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i, %parts: tensor<?x2xi64>) attributes {inputs = ["input_ids", "prompt_parts"]} {
    %tokens = onnx.initializer "tokens" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %e = onnx.node "Gather"(%tokens, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, !i) -> !x
    %o = prefill.attention %e, %e, %e {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    onnx.return %o : !x {output_names = ["logits"]}
  }
}
