// RUN: prefill-opt %s -chunk-prompt=size=16 -split-input-file -verify-diagnostics

// What is not proven to be the same in chunks is refused with the reason.

!u = !onnx.unknown
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!k = tensor<?x?x16xf32, #onnx.dims<"B", "T", "">>

// expected-error @unknown {{-chunk: attention 'l': it is not causal}}
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: tensor<?x?xi64, #onnx.dims<"B", "S">>) attributes {inputs = ["input_ids"]} {
    %w = onnx.initializer "w" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %x = onnx.node "Gather"(%w, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, tensor<?x?xi64, #onnx.dims<"B", "S">>) -> !x
    %o = prefill.attention %x, %x, %x {layer = "l", head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    onnx.return %o : !x {output_names = ["logits"]}
  }
}

// -----

!u = !onnx.unknown
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!k = tensor<?x?x16xf32, #onnx.dims<"B", "T", "">>

// expected-error @unknown {{a KV cache is not packed}}
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: tensor<?x?xi64, #onnx.dims<"B", "S">>, %k: !k) attributes {inputs = ["input_ids", "k"]} {
    %w = onnx.initializer "w" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %x = onnx.node "Gather"(%w, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, tensor<?x?xi64, #onnx.dims<"B", "S">>) -> !x
    %o = prefill.attention %x, %k, %k {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !k, !k -> !x
    onnx.return %o : !x {output_names = ["logits"]}
  }
}

// -----

!u = !onnx.unknown
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!k = tensor<?x?x16xf32, #onnx.dims<"B", "T", "">>

// expected-error @unknown {{it has a mask or bias of its own}}
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: tensor<?x?xi64, #onnx.dims<"B", "S">>, %m: tensor<?x?xi64, #onnx.dims<"B", "S">>) attributes {inputs = ["input_ids", "m"]} {
    %w = onnx.initializer "w" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %x = onnx.node "Gather"(%w, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, tensor<?x?xi64, #onnx.dims<"B", "S">>) -> !x
    %o = prefill.attention %x, %x, %x key_mask(%m : tensor<?x?xi64, #onnx.dims<"B", "S">>) {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    onnx.return %o : !x {output_names = ["logits"]}
  }
}

// -----

!u = !onnx.unknown
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!k = tensor<?x?x16xf32, #onnx.dims<"B", "T", "">>

// expected-error @unknown {{-chunk: CumSum 'sum': it is not known to treat rows one by one}}
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: tensor<?x?xi64, #onnx.dims<"B", "S">>) attributes {inputs = ["input_ids"]} {
    %w = onnx.initializer "w" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %x = onnx.node "Gather"(%w, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, tensor<?x?xi64, #onnx.dims<"B", "S">>) -> !x
    %one = onnx.initializer "one" : tensor<i64> = dense<1> : tensor<i64>
    %y = prefill.attention %x, %x, %x {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %o = onnx.node "CumSum"(%y, %one) attributes {label = "sum"} : (!x, tensor<i64>) -> !x
    onnx.return %o : !x {output_names = ["logits"]}
  }
}

// -----

!u = !onnx.unknown
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!k = tensor<?x?x16xf32, #onnx.dims<"B", "T", "">>

// expected-error @unknown {{has an input 'segment_starts' already}}
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: tensor<?x?xi64, #onnx.dims<"B", "S">>, %s: tensor<?xi64>) attributes {inputs = ["input_ids", "segment_starts"]} {
    %w = onnx.initializer "w" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %x = onnx.node "Gather"(%w, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, tensor<?x?xi64, #onnx.dims<"B", "S">>) -> !x
    %o = prefill.attention %x, %x, %x {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    onnx.return %o : !x {output_names = ["logits"]}
  }
}

// -----

!u = !onnx.unknown
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!k = tensor<?x?x16xf32, #onnx.dims<"B", "T", "">>

// expected-error @unknown {{no attention was raised}}
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: tensor<?x?xi64, #onnx.dims<"B", "S">>) attributes {inputs = ["input_ids"]} {
    %w = onnx.initializer "w" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %x = onnx.node "Gather"(%w, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, tensor<?x?xi64, #onnx.dims<"B", "S">>) -> !x
    %o = onnx.node "Relu"(%x) : (!x) -> !x
    onnx.return %o : !x {output_names = ["logits"]}
  }
}

// -----

!u = !onnx.unknown
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>

// A factor that the number of tokens decides, as of some rotary tables.
// expected-error @unknown {{-chunk: Mul 'scaled': an operand of it is about the whole sequence}}
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: tensor<?x?xi64, #onnx.dims<"B", "S">>) attributes {inputs = ["input_ids"]} {
    %w = onnx.initializer "w" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %x = onnx.node "Gather"(%w, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, tensor<?x?xi64, #onnx.dims<"B", "S">>) -> !x
    %n = onnx.node "Size"(%ids) : (tensor<?x?xi64, #onnx.dims<"B", "S">>) -> tensor<i64>
    %f = onnx.node "Cast"(%n) {to = 1 : si64} : (tensor<i64>) -> tensor<f32>
    %y = onnx.node "Mul"(%x, %f) attributes {label = "scaled"} : (!x, tensor<f32>) -> !x
    %o = prefill.attention %y, %y, %y {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    onnx.return %o : !x {output_names = ["logits"]}
  }
}

// -----

!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!i = tensor<?x?xi64, #onnx.dims<"B", "S">>

// expected-error @unknown {{has an input 'cache_slots' already}}
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i, %s: tensor<?xi64>) attributes {inputs = ["input_ids", "cache_slots"]} {
    %w = onnx.initializer "w" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %x = onnx.node "Gather"(%w, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, !i) -> !x
    %o = prefill.attention %x, %x, %x {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    onnx.return %o : !x {output_names = ["logits"]}
  }
}

// -----

!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!i = tensor<?x?xi64, #onnx.dims<"B", "S">>

// expected-error @unknown {{an output 'present.0.key' of its own}}
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i) attributes {inputs = ["input_ids"]} {
    %w = onnx.initializer "w" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %x = onnx.node "Gather"(%w, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, !i) -> !x
    %o = prefill.attention %x, %x, %x {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    onnx.return %o, %x : !x, !x {output_names = ["logits", "present.0.key"]}
  }
}

// -----

!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!i = tensor<?x?xi64, #onnx.dims<"B", "S">>

// expected-error @unknown {{inputs of a KV cache, but not an output present* for each}}
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i, %s: !x) attributes {inputs = ["input_ids", "past_key_values.0.key"]} {
    %w = onnx.initializer "w" : tensor<9x16xf32> = dense<1.0> : tensor<9x16xf32>
    %x = onnx.node "Gather"(%w, %ids) {axis = 0 : si64} : (tensor<9x16xf32>, !i) -> !x
    %o = prefill.attention %x, %x, %x {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    onnx.return %o : !x {output_names = ["logits"]}
  }
}
