// RUN: printf '0.9\t0.1\n0.2\t0.8\n0.7\t0.3\n' > %t.tsv
// RUN: prefill-opt %s -sparsify-attention="pattern=trianglemix:layers=2" | FileCheck %s --check-prefix=MIX
// RUN: prefill-opt %s -sparsify-attention="pattern=longgen" | FileCheck %s --check-prefix=LONGGEN
// RUN: prefill-opt %s -sparsify-attention="pattern=duo:heads=%t.tsv,rest=xattention" | FileCheck %s --check-prefix=DUO
// RUN: prefill-opt %s -sparsify-attention="pattern=duo:heads=%t.tsv" | FileCheck %s --check-prefix=HALF

// Patterns that differ from layer to layer: three attentions of 4 query heads
// that share 2 KV heads.

// MIX-LABEL: func @three
// MIX: prefill.attention
// MIX: prefill.attention
// MIX: prefill.index.tri_shape init 8 local 512 last 128
// MIX: prefill.sparse_attention

// LONGGEN-LABEL: func @three
// LONGGEN: prefill.index.strided init 64 local 1024 stride 8
// LONGGEN: prefill.sparse_attention
// LONGGEN: prefill.attention
// LONGGEN: prefill.index.strided
// LONGGEN: prefill.sparse_attention

// DUO-LABEL: func @three
// DUO: %[[X:.*]] = prefill.index.blocks
// DUO: %[[A:.*]] = prefill.index.a_shape init 64 local 256
// DUO: prefill.index.per_head %[[X]], %[[A]] heads [0, 0, 1, 1]
// DUO: prefill.dense_below = 2048
// DUO: prefill.index.per_head {{.*}} heads [0, 0, 1, 1]
// DUO: prefill.index.per_head {{.*}} heads [0, 0, 1, 1]

// HALF: prefill.index.dense
// HALF: prefill.index.a_shape init 64 local 256
func.func @three(%q: tensor<1x4x?x64xf32>, %k: tensor<1x2x?x64xf32>) -> tensor<1x4x?x64xf32> {
  %a1 = prefill.attention %q, %k, %k {causal, q_heads = 4 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 0.125 : f32}
    : tensor<1x4x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x4x?x64xf32>
  %a2 = prefill.attention %a1, %k, %k {causal, q_heads = 4 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 0.125 : f32}
    : tensor<1x4x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x4x?x64xf32>
  %a3 = prefill.attention %a2, %k, %k {causal, q_heads = 4 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 0.125 : f32}
    : tensor<1x4x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x4x?x64xf32>
  return %a3 : tensor<1x4x?x64xf32>
}
