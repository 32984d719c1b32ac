// RUN: prefill-opt %s -detect-kv-sharing -verify-each -split-input-file --remarks-filter-missed=kv-sharing -o %t.mlir 2>&1 | FileCheck %s --check-prefix=WHY
// RUN: FileCheck %s < %t.mlir
// Nothing found, nothing changed:
// RUN: prefill-opt %s -split-input-file -o %t.before && diff %t.before %t.mlir

// The same weights on another input (tied layers): each has its own keys.

!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!a = tensor<16x16xf32>

// WHY: attention '1' has the key weights of '0', but its keys or values are not proven to be the same
// CHECK-LABEL: onnx.graph @tied
// CHECK: %[[K:.*]] = onnx.node "MatMul"(%x, %w)
// CHECK: prefill.attention %x, %[[K]], %[[K]]
// CHECK: %[[K2:.*]] = onnx.node "MatMul"(%{{.*}}, %w)
// CHECK: prefill.attention %{{.*}}, %[[K2]], %[[K2]]
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @tied(%x: !x) attributes {inputs = ["x"]} {
    %w = onnx.initializer "w" : !a = dense<1.0> : !a
    %k = onnx.node "MatMul"(%x, %w) : (!x, !a) -> !x
    %o = prefill.attention %x, %k, %k {layer = "0", causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %k2 = onnx.node "MatMul"(%o, %w) : (!x, !a) -> !x
    %p = prefill.attention %o, %k2, %k2 {layer = "1", causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    onnx.return %p : !x {output_names = ["y"]}
  }
}

// -----

// Random operators, operators of unknown domains and other weights are not the
// same twice; nor are keys that are rotated by other tables.

!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!a = tensor<2x2xf32>
!w = tensor<1x?x8xf32, #onnx.dims<"", "S", "">>

// CHECK-LABEL: onnx.graph @different
// CHECK-COUNT-2: onnx.node "RandomNormalLike"
// CHECK-COUNT-2: onnx.node "Mystery"
// CHECK-COUNT-2: onnx.node "Add"
// CHECK: prefill.attention %x, %[[R:.*]], %[[R]] rotary(%cos, %sin
// CHECK: prefill.attention %x, %[[R]], %[[R]] rotary(%sin, %cos
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>, #onnx.opset<"strange", 1>]} {
  onnx.graph @different(%x: !x, %cos: !w, %sin: !w) attributes {inputs = ["x", "cos", "sin"]} {
    %one = onnx.initializer "one" : !a = dense<[[1.0, 2.0], [3.0, 4.0]]> : !a
    %two = onnx.initializer "two" : !a = dense<[[1.0, 2.0], [3.0, 5.0]]> : !a
    %r1 = onnx.node "RandomNormalLike"(%x) : (!x) -> !x
    %r2 = onnx.node "RandomNormalLike"(%x) : (!x) -> !x
    %o1 = prefill.attention %x, %r1, %r1 {layer = "0", causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %o2 = prefill.attention %x, %r2, %r2 {layer = "1", causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %m1 = onnx.node "Mystery"(%x) attributes {op_domain = "strange"} : (!x) -> !x
    %m2 = onnx.node "Mystery"(%x) attributes {op_domain = "strange"} : (!x) -> !x
    %o3 = prefill.attention %x, %m1, %m1 {layer = "2", causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %o4 = prefill.attention %x, %m2, %m2 {layer = "3", causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %a1 = onnx.node "Add"(%x, %one) : (!x, !a) -> !x
    %a2 = onnx.node "Add"(%x, %two) : (!x, !a) -> !x
    %o5 = prefill.attention %x, %a1, %a1 {layer = "4", causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %o6 = prefill.attention %x, %a2, %a2 {layer = "5", causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %k1 = onnx.node "Relu"(%x) : (!x) -> !x
    %o7 = prefill.attention %x, %k1, %k1 rotary(%cos, %sin : !w, !w) {layer = "6", causal, rotary = #prefill<rotary half>, rotary_dim = 8 : i64, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %o8 = prefill.attention %x, %k1, %k1 rotary(%sin, %cos : !w, !w) {layer = "7", causal, rotary = #prefill<rotary half>, rotary_dim = 8 : i64, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    onnx.return %o1, %o2, %o3, %o4, %o5, %o6, %o7, %o8 : !x, !x, !x, !x, !x, !x, !x, !x {output_names = ["1", "2", "3", "4", "5", "6", "7", "8"]}
  }
}
