// RUN: split-file %s %t
// RUN: not prefill-opt %t/window.mlir -prune-rows="prune=lazyllm:layers=1 logits=last" 2>&1 | FileCheck %s --check-prefix=WINDOW
// RUN: not prefill-opt %t/mixed.mlir -prune-rows="prune=lazyllm:layers=1 logits=last" 2>&1 | FileCheck %s --check-prefix=MIXED
// RUN: not prefill-opt %t/mixed.mlir -prune-rows="prune=lazyllm:layers=1" 2>&1 | FileCheck %s --check-prefix=LOGITS
// RUN: not prefill-opt %t/mixed.mlir -prune-rows="prune=lazyllm:layers=2 logits=last" 2>&1 | FileCheck %s --check-prefix=LAST
// RUN: not prefill-opt %t/bias.mlir -prune-rows="prune=lazyllm:layers=1 logits=last" 2>&1 | FileCheck %s --check-prefix=BIAS
// RUN: not prefill-opt %t/same.mlir -prune-rows="prune=flowcut:target=4" 2>&1 | FileCheck %s --check-prefix=SAME
// RUN: not prefill-opt %t/odd.mlir -prune-rows="prune=flowcut:target=4" 2>&1 | FileCheck %s --check-prefix=ODD
// RUN: not prefill-opt %t/pooled.mlir -prune-rows="prune=flowcut:target=4" 2>&1 | FileCheck %s --check-prefix=MIXES
// RUN: not prefill-opt %t/towers.mlir -prune-rows="prune=flowcut:target=4" 2>&1 | FileCheck %s --check-prefix=TOWERS
// RUN: not prefill-opt %t/towers.mlir -merge-patches="prune=mustdrop:vit-merge=2x2@0.5" 2>&1 | FileCheck %s --check-prefix=TOWERS
// RUN: not prefill-opt %t/towers.mlir -merge-patches="prune=mustdrop:key=0.1" 2>&1 | FileCheck %s --check-prefix=TOWERS
// RUN: not prefill-opt %t/encoder.mlir -prune-rows="prune=lazyllm:layers=2 logits=last" 2>&1 | FileCheck %s --check-prefix=ENCODER

// TOWERS: -prune: attention 'b': it does not read the attention before it (several towers in one file
// ENCODER: -prune: attention 'a': its queries are not the prompt's tokens (an encoder in the same file)
// SAME: -prune: attention 'a': it has as many rows as heads or features
// ODD: whether the first of 19 rows is a class token cannot be told; say anchor=cls or anchor=mean
// MIXES: -prune: ReduceMean 'pooled': it mixes rows
// WINDOW: -prune: attention 'b': it has a window
// MIXED: -prune: CumSum 'sum': it is not known to treat rows one by one
// LOGITS: the output 'logits' has a row for every token
// LAST: layer 2 is the last one
// BIAS: -prune: attention 'b': it has a bias

//--- window.mlir
!i = tensor<?x?xi64, #onnx.dims<"B", "S">>
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i) attributes {inputs = ["input_ids"]} {
    %tokens = onnx.initializer "tokens" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %e = onnx.node "Gather"(%tokens, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, !i) -> !x
    %o = prefill.attention %e, %e, %e {layer = "a", causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x = onnx.node "Add"(%e, %o) : (!x, !x) -> !x
    %o2 = prefill.attention %x, %x, %x {layer = "b", causal, window_left = 9 : i64, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    onnx.return %o2 : !x {output_names = ["logits"]}
  }
}
//--- mixed.mlir
!i = tensor<?x?xi64, #onnx.dims<"B", "S">>
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i) attributes {inputs = ["input_ids"]} {
    %tokens = onnx.initializer "tokens" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %one = onnx.initializer "one" : tensor<i64> = dense<1> : tensor<i64>
    %e = onnx.node "Gather"(%tokens, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, !i) -> !x
    %o = prefill.attention %e, %e, %e {layer = "a", causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x = onnx.node "Add"(%e, %o) : (!x, !x) -> !x
    %o2 = prefill.attention %x, %x, %x {layer = "b", causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %y = onnx.node "CumSum"(%o2, %one) attributes {output_names = ["sum"]} : (!x, tensor<i64>) -> !x
    onnx.return %y : !x {output_names = ["logits"]}
  }
}
//--- bias.mlir
!i = tensor<?x?xi64, #onnx.dims<"B", "S">>
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!b = tensor<1x2x?x?xf32, #onnx.dims<"", "", "S", "S">>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i, %alibi: !b) attributes {inputs = ["input_ids", "alibi"]} {
    %tokens = onnx.initializer "tokens" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %e = onnx.node "Gather"(%tokens, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, !i) -> !x
    %o = prefill.attention %e, %e, %e {layer = "a", causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x = onnx.node "Add"(%e, %o) : (!x, !x) -> !x
    %o2 = prefill.attention %x, %x, %x bias(%alibi : !b) {layer = "b", causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    onnx.return %o2 : !x {output_names = ["logits"]}
  }
}
//--- same.mlir
!x = tensor<?x24x24xf32, #onnx.dims<"B", "", "">>
!p = tensor<?x24xf32, #onnx.dims<"B", "">>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%pixels: !x) attributes {inputs = ["pixels"]} {
    %o = prefill.attention %pixels, %pixels, %pixels {layer = "a", head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x = onnx.node "Add"(%pixels, %o) : (!x, !x) -> !x
    %o2 = prefill.attention %x, %x, %x {layer = "b", head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %y = onnx.node "Add"(%x, %o2) : (!x, !x) -> !x
    onnx.return %y : !x {output_names = ["rows"]}
  }
}
//--- odd.mlir
!x = tensor<?x19x24xf32, #onnx.dims<"B", "", "">>
!p = tensor<?x24xf32, #onnx.dims<"B", "">>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%pixels: !x) attributes {inputs = ["pixels"]} {
    %o = prefill.attention %pixels, %pixels, %pixels {layer = "a", head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x = onnx.node "Add"(%pixels, %o) : (!x, !x) -> !x
    %o2 = prefill.attention %x, %x, %x {layer = "b", head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %y = onnx.node "Add"(%x, %o2) : (!x, !x) -> !x
    onnx.return %y : !x {output_names = ["rows"]}
  }
}
//--- pooled.mlir
!x = tensor<?x17x24xf32, #onnx.dims<"B", "", "">>
!p = tensor<?x24xf32, #onnx.dims<"B", "">>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%pixels: !x) attributes {inputs = ["pixels"]} {
    %o = prefill.attention %pixels, %pixels, %pixels {layer = "a", head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x = onnx.node "Add"(%pixels, %o) : (!x, !x) -> !x
    %o2 = prefill.attention %x, %x, %x {layer = "b", head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %y = onnx.node "Add"(%x, %o2) : (!x, !x) -> !x
    %one = onnx.initializer "one" : tensor<1xi64> = dense<1> : tensor<1xi64>
    %z = onnx.node "ReduceMean"(%y, %one) {keepdims = 0 : si64} attributes {output_names = ["pooled"]} : (!x, tensor<1xi64>) -> !p
    onnx.return %z : !p {output_names = ["mean"]}
  }
}
//--- towers.mlir
!x = tensor<?x17x24xf32, #onnx.dims<"B", "", "">>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%pixels: !x) attributes {inputs = ["pixels"]} {
    %o = prefill.attention %pixels, %pixels, %pixels {layer = "a", head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x = onnx.node "Add"(%pixels, %o) : (!x, !x) -> !x
    %o2 = prefill.attention %pixels, %pixels, %pixels {layer = "b", head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %y = onnx.node "Add"(%pixels, %o2) : (!x, !x) -> !x
    onnx.return %x, %y : !x, !x {output_names = ["first", "second"]}
  }
}
//--- encoder.mlir
!p = tensor<?x17x24xf32, #onnx.dims<"B", "", "">>
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%pixels: !p, %e: !x) attributes {inputs = ["pixels", "inputs_embeds"]} {
    %i = prefill.attention %pixels, %pixels, %pixels {layer = "a", head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !p, !p, !p -> !p
    %o = prefill.attention %e, %e, %e {layer = "b", head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>, causal} : !x, !x, !x -> !x
    %x = onnx.node "Add"(%e, %o) : (!x, !x) -> !x
    %o2 = prefill.attention %x, %x, %x {layer = "c", head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>, causal} : !x, !x, !x -> !x
    %y = onnx.node "Add"(%x, %o2) : (!x, !x) -> !x
    onnx.return %y, %i : !x, !p {output_names = ["logits", "image"]}
  }
}
