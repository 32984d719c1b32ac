// RUN: prefill-opt %s -sparsify-attention --remarks-filter-missed=sparsify-attention 2>&1 | FileCheck %s
// RUN: prefill-opt %s -sparsify-attention="pattern=dense" | FileCheck %s --check-prefix=DENSE

// Attention that the patterns are not defined for stays dense and says why.

// CHECK: attention stays dense: it is not causal
// CHECK: attention stays dense: its queries are aligned with the first keys
// CHECK: attention stays dense: it has an additive bias
// CHECK-NOT: prefill.sparse_attention
// DENSE-NOT: prefill.sparse_attention
func.func @full(%q: tensor<1x2x?x64xf32>) -> tensor<1x2x?x64xf32> {
  %o = prefill.attention %q, %q, %q {q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 0.125 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32>
  return %o : tensor<1x2x?x64xf32>
}

func.func @start(%q: tensor<1x2x?x64xf32>) -> tensor<1x2x?x64xf32> {
  %o = prefill.attention %q, %q, %q {causal, alignment = #prefill<align start>, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 0.125 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32>
  return %o : tensor<1x2x?x64xf32>
}

func.func @bias(%q: tensor<1x2x?x64xf32>, %b: tensor<1x1x?x?xf32>) -> tensor<1x2x?x64xf32> {
  %o = prefill.attention %q, %q, %q bias(%b : tensor<1x1x?x?xf32>) {causal, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 0.125 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32>
  return %o : tensor<1x2x?x64xf32>
}
