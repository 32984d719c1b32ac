// RUN: prefill-opt %s -sparsify-attention="pattern=vertical-slash" | FileCheck %s --check-prefix=VS
// RUN: prefill-opt %s -sparsify-attention="pattern=vertical-slash:vertical=1000,slash=6096" | FileCheck %s --check-prefix=TOKENS
// RUN: prefill-opt %s -sparsify-attention="pattern=a-shape" | FileCheck %s --check-prefix=A
// RUN: prefill-opt %s -sparsify-attention="pattern=tri-shape:local=512" | FileCheck %s --check-prefix=TRI
// RUN: prefill-opt %s -sparsify-attention="pattern=block-sparse" | FileCheck %s --check-prefix=BLOCK
// RUN: prefill-opt %s -sparsify-attention="pattern=xattention:stride=16" | FileCheck %s --check-prefix=X
// RUN: prefill-opt %s -sparsify-attention="pattern=streaming" | FileCheck %s --check-prefix=STREAM
// RUN: prefill-opt %s -sparsify-attention="pattern=strided:stride=4" | FileCheck %s --check-prefix=STRIDED
// RUN: prefill-opt %s -sparsify-attention="pattern=block-topp:similarity=0.5" | FileCheck %s --check-prefix=TOPP
// RUN: prefill-opt %s -sparsify-attention="pattern=sampled" | FileCheck %s --check-prefix=SAMPLED
// RUN: prefill-opt %s -sparsify-attention="pattern=auto" | FileCheck %s --check-prefix=AUTO
// RUN: prefill-opt %s -sparsify-attention="pattern=sale" | FileCheck %s --check-prefix=SALE
// RUN: prefill-opt %s -sparsify-attention="pattern=sale:top-p=0.95,bits=4" | FileCheck %s --check-prefix=MASS
// RUN: prefill-opt %s -sparsify-attention="pattern=flexprefill" | FileCheck %s --check-prefix=FLEX
// RUN: prefill-opt %s -sparsify-attention="pattern=dense:skip=0.5" | FileCheck %s --check-prefix=SKIP
// RUN: prefill-opt %s -sparsify-attention="pattern=infllm-v2" | FileCheck %s --check-prefix=INFLLM
// RUN: prefill-opt %s -sparsify-attention="pattern=grid" | FileCheck %s --check-prefix=GRID
// RUN: prefill-opt %s -sparsify-attention="pattern=grid:stride=16,hline=0,slash=0" | FileCheck %s --check-prefix=GRID16
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

  // STREAM: prefill.index.a_shape init 64 local 256
  // STRIDED: prefill.index.strided init 64 local 1024 stride 4

  // SKIP: %[[D:.*]] = prefill.index.dense
  // SKIP: %[[I:.*]] = prefill.index.skip %[[D]] below 5.000000e-01
  // SKIP: prefill.sparse_attention %arg0, %arg0, %arg0, %[[I]]

  // TOPP: %[[S:.*]] = prefill.score.pooled %arg0, %arg0 {softmax}
  // TOPP: %[[K:.*]] = prefill.select %[[S]] {forced = 1 : i64, top_p = 0.899999976 : f32}
  // TOPP: %[[G:.*]] = prefill.keep_dissimilar %[[K]], %arg0, %arg0 below 5.000000e-01
  // TOPP: prefill.index.blocks %[[G]]

  // GRID: %[[S:.*]] = prefill.score.grid %arg0, %arg0 rows 64 init 64 vertical slash :
  // GRID: %[[K:.*]] = prefill.select %[[S]] {top_p = 0.899999976 : f32}
  // GRID: prefill.index.grid %[[K]] last 64 horizontal
  // GRID: prefill.sparse_attention {{.*}}prefill.dense_below = 8192

  // GRID16: %[[S:.*]] = prefill.score.grid %arg0, %arg0 rows 64 init 64 stride 16 vertical :
  // GRID16: %[[K:.*]] = prefill.select %[[S]] {top_k = 1 : i64}
  // GRID16: prefill.index.grid %[[K]] last 64 :

  // SAMPLED: %[[S:.*]] = prefill.score.sampled %arg0, %arg0 values(%arg0 : {{.*}}) stride 8
  // SAMPLED: %[[K:.*]] = prefill.select %[[S]] {forced = 1 : i64, near = 64 : i64, top_p = 0.899999976 : f32}
  // SAMPLED: prefill.index.blocks %[[K]]
  // SAMPLED: prefill.sparse_attention {{.*}}prefill.dense_below = 2048

  // SALE: %[[S:.*]] = prefill.score.quantized %arg0, %arg0 bits 8 reference(32, 128)
  // SALE: %[[K:.*]] = prefill.select %[[S]] {init = 32 : i64, near = 128 : i64, threshold = 2.000000e-02 : f32}
  // SALE: prefill.index.blocks %[[K]]

  // AUTO: %[[S:.*]] = prefill.score.quantized %arg0, %arg0 values(%arg0 : {{.*}}) bits 8 {stride = 4 : i64}
  // AUTO: %[[K:.*]] = prefill.select %[[S]] {init = 32 : i64, near = 64 : i64, top_p = 0.899999976 : f32}
  // AUTO: prefill.index.blocks %[[K]]
  // AUTO: prefill.sparse_attention {{.*}}prefill.dense_below = 1024

  // MASS: %[[S:.*]] = prefill.score.quantized %arg0, %arg0 values(%arg0 : {{.*}}) bits 4 :
  // MASS: prefill.select %[[S]] {init = 32 : i64, near = 128 : i64, top_p = 0.949999988 : f32}

  // FLEX: %[[C:.*]], %[[D:.*]] = prefill.score.last_rows %arg0, %arg0 rows 64
  // FLEX: %[[P:.*]] = prefill.score.pooled %arg0, %arg0 {softmax}
  // FLEX-DAG: %[[SC:.*]] = prefill.select %[[C]] {min_tokens = 512 : i64, top_p = 0.899999976 : f32}
  // FLEX-DAG: %[[SD:.*]] = prefill.select %[[D]] {min_tokens = 512 : i64, top_p = 0.899999976 : f32}
  // FLEX: %[[R:.*]] = prefill.index.relative %[[SC]], %[[SD]]
  // FLEX: %[[SP:.*]] = prefill.select %[[P]] {top_p = 0.899999976 : f32}
  // FLEX: %[[B:.*]] = prefill.index.blocks %[[SP]]
  // FLEX: prefill.index.agreeing %[[C]], %[[P]] below 1.000000e-01 ? %[[B]] : %[[R]]

  // INFLLM: %[[S:.*]] = prefill.score.compressed %arg0, %arg0 keys 32 every 16
  // INFLLM: %[[K:.*]] = prefill.select %[[S]] {init = 64 : i64, near = 2048 : i64, top_k = 64 : i64}
  // INFLLM: prefill.sparse_attention {{.*}}prefill.dense_below = 8192

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
