// RUN: prefill-opt %s -sparsify-attention="pattern=vertical-slash" | FileCheck %s --check-prefix=VS
// RUN: prefill-opt %s -sparsify-attention="pattern=vertical-slash:vertical=1000,slash=6096" | FileCheck %s --check-prefix=TOKENS
// RUN: prefill-opt %s -sparsify-attention="pattern=a-shape" | FileCheck %s --check-prefix=A
// RUN: prefill-opt %s -sparsify-attention="pattern=tri-shape:local=512" | FileCheck %s --check-prefix=TRI
// RUN: prefill-opt %s -sparsify-attention="pattern=block-sparse" | FileCheck %s --check-prefix=BLOCK
// RUN: prefill-opt %s -sparsify-attention="pattern=xattention:stride=16" | FileCheck %s --check-prefix=X
// RUN: prefill-opt %s -sparsify-attention="pattern=config:%S/Inputs/minference.json" | FileCheck %s --check-prefix=CONFIG
// RUN: prefill-opt %s -sparsify-attention="pattern=config:%S/Inputs/extended.json" | FileCheck %s --check-prefix=EXTENDED

func.func @causal(%q: tensor<1x2x?x64xf32>) -> tensor<1x2x?x64xf32> {
  // VS: %[[C:.*]], %[[D:.*]] = prefill.score.last_rows %arg0, %arg0 rows 64
  // VS-DAG: %[[SC:.*]] = prefill.select %[[C]] {density = 2.500000e-01 : f32, forced = 30 : i64}
  // VS-DAG: %[[SD:.*]] = prefill.select %[[D]] {density = 2.500000e-01 : f32, forced = 100 : i64}
  // VS: %[[I:.*]] = prefill.index.relative %[[SC]], %[[SD]]
  // VS: prefill.sparse_attention %arg0, %arg0, %arg0, %[[I]] {causal

  // TOKENS-DAG: prefill.select {{.*}} top_k = 1000
  // TOKENS-DAG: prefill.select {{.*}} top_k = 6096

  // A: %[[I:.*]] = prefill.index.a_shape init 128 local 3968
  // A: prefill.sparse_attention %arg0, %arg0, %arg0, %[[I]]

  // TRI: prefill.index.tri_shape init 128 local 512 last 100

  // BLOCK: prefill.score.pooled
  // BLOCK: prefill.select {{.*}} {top_k = 100
  // BLOCK: prefill.index.blocks

  // X: %[[S:.*]] = prefill.score.antidiagonal %arg0, %arg0 stride 16
  // X: %[[K:.*]] = prefill.select %[[S]] {forced = 1 : i64, top_p = 0.899999976 : f32}
  // X: prefill.index.blocks %[[K]]

  // CONFIG: prefill.select {{.*}} top_k = 30
  // CONFIG: prefill.select {{.*}} top_k = 800
  // CONFIG: %[[V:.*]] = prefill.index.relative
  // CONFIG: %[[S:.*]] = prefill.index.a_shape init 100 local 800
  // CONFIG: prefill.index.per_head %[[V]], %[[S]] heads [0, 1]

  // EXTENDED: %[[D:.*]] = prefill.index.dense
  // EXTENDED: %[[B:.*]] = prefill.index.blocks
  // EXTENDED: prefill.index.per_head %[[D]], %[[B]] heads [0, 1]
  // EXTENDED: prefill.sparse_attention {{.*}}prefill.dense_below = 4096
  %o = prefill.attention %q, %q, %q {causal, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 0.125 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32>
  return %o : tensor<1x2x?x64xf32>
}
