// RUN: prefill-opt %s -detect-kv-sharing -verify-each -split-input-file | FileCheck %s

// A projection that was written out twice, with copies of its weights and of the
// reshape behind it: the second attention reads the first one's, the copies go,
// and both cache outputs are the same values.

!u = !onnx.unknown
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!w = tensor<16x16xf32>
!a = tensor<2x2xf32>

// CHECK-LABEL: onnx.graph @twice
// CHECK-DAG: %[[K:.*]] = onnx.node "MatMul"(%x, %wk)
// CHECK-DAG: %[[V:.*]] = onnx.node "MatMul"(%x, %wv)
// CHECK: prefill.attention %{{.*}}, %[[K]], %[[V]]
// CHECK-NOT: wk2
// CHECK-NOT: wv2
// CHECK: prefill.attention %{{.*}}, %[[K]], %[[V]]
// CHECK: onnx.return %{{.*}}, %[[K]], %[[V]], %[[K]], %[[V]]
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @twice(%x: !x) attributes {inputs = ["x"]} {
    %wk = onnx.initializer "wk" : !a = dense<[[1.0, 2.0], [3.0, 4.0]]> : !a
    %wv = onnx.initializer "wv" : !a = dense<[[1.0, 2.0], [3.0, 5.0]]> : !a
    %wk2 = onnx.initializer "wk2" : !a = dense<[[1.0, 2.0], [3.0, 4.0]]> : !a
    %wv2 = onnx.initializer "wv2" : !a = dense<[[1.0, 2.0], [3.0, 5.0]]> : !a
    %k = onnx.node "MatMul"(%x, %wk) attributes {label = "a", output_names = ["k"]} : (!x, !a) -> !x
    %v = onnx.node "MatMul"(%x, %wv) attributes {output_names = ["v"]} : (!x, !a) -> !x
    %o = prefill.attention %x, %k, %v {layer = "0", causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %k2 = onnx.node "MatMul"(%x, %wk2) attributes {label = "b", output_names = ["k2"]} : (!x, !a) -> !x
    %v2 = onnx.node "MatMul"(%x, %wv2) attributes {output_names = ["v2"]} : (!x, !a) -> !x
    %p = prefill.attention %o, %k2, %v2 {layer = "1", causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    onnx.return %p, %k, %v, %k2, %v2 : !x, !x, !x, !x, !x {output_names = ["y", "k", "v", "k2", "v2"]}
  }
}

// -----

// With rotary embeddings: the caches hold rotated keys, of the same tables.

!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!h = tensor<?x2x?x8xf32, #onnx.dims<"B", "", "S", "">>
!w = tensor<1x?x8xf32, #onnx.dims<"", "S", "">>

// CHECK-LABEL: onnx.graph @rotated
// CHECK: %[[O:.*]], %[[R:.*]] = prefill.attention
// CHECK: onnx.return %{{.*}}, %[[R]], %[[R]]
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @rotated(%x: !x, %cos: !w, %sin: !w) attributes {inputs = ["x", "cos", "sin"]} {
    %k = onnx.node "Relu"(%x) : (!x) -> !x
    %o, %r = prefill.attention %x, %k, %k rotary(%cos, %sin : !w, !w) {layer = "0", causal, rotary = #prefill<rotary half>, rotary_dim = 8 : i64, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x rotated_k : !h
    %k2 = onnx.node "Relu"(%x) : (!x) -> !x
    %p, %r2 = prefill.attention %o, %k2, %k2 rotary(%cos, %sin : !w, !w) {layer = "1", causal, rotary = #prefill<rotary half>, rotary_dim = 8 : i64, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x rotated_k : !h
    onnx.return %p, %r, %r2 : !x, !h, !h {output_names = ["y", "k", "k2"]}
  }
}
