// RUN: prefill-opt %s -sparsify-attention="pattern=q-boundary modality=kinds" | FileCheck %s --check-prefix=NAME
// RUN: prefill-opt %s -sparsify-attention="pattern=2d-boundary:vertical=7,last=16 modality=token:5,9" | FileCheck %s --check-prefix=TOKEN
// RUN: not prefill-opt %s -sparsify-attention="pattern=q-boundary" 2>&1 | FileCheck %s --check-prefix=NONE
// RUN: not prefill-opt %s -sparsify-attention="pattern=2d-boundary" 2>&1 | FileCheck %s --check-prefix=NONE
// RUN: not prefill-opt %s -sparsify-attention="pattern=sampled modality=kinds" 2>&1 | FileCheck %s --check-prefix=UNUSED
// RUN: not prefill-opt %s -sparsify-attention="pattern=q-boundary modality=nothing" 2>&1 | FileCheck %s --check-prefix=UNKNOWN
// RUN: not prefill-opt %s -sparsify-attention="pattern=q-boundary modality=q" 2>&1 | FileCheck %s --check-prefix=TYPE
// RUN: not prefill-opt %s -sparsify-attention="pattern=q-boundary modality=late" 2>&1 | FileCheck %s --check-prefix=LATE
// RUN: not prefill-opt %s -sparsify-attention="pattern=q-boundary modality=token:5,x" 2>&1 | FileCheck %s --check-prefix=NUMBER

// NONE: q-boundary and 2d-boundary need to know what kind of token each key is: give -modality=NAME
// UNUSED: -modality=kinds: no pattern of -sparsify=sampled asks for it
// UNKNOWN: -modality=nothing: the model has no value of this name
// TYPE: -modality=q: expected an integer or boolean tensor [batch, keys] or [keys], got tensor<1x2x?x64xf32>
// LATE: -modality=late: it is computed after the first attention
// NUMBER: -modality=token:5,x: 'x' is not a token's number

module attributes {onnx.ir_version = 10 : i64, onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%input_ids: tensor<?x?xi64>, %kinds: tensor<?x?xi64>, %q: tensor<1x2x?x64xf32>)
      attributes {inputs = ["input_ids", "kinds", "q"]} {
    // NAME: %[[C:.*]], %[[D:.*]] = prefill.score.boundary %q, %q modality(%kinds : tensor<?x?xi64>) rows 64 :
    // NAME-DAG: %[[SC:.*]] = prefill.select %[[C]] {forced = 30 : i64, top_k = 1000 : i64}
    // NAME-DAG: %[[SD:.*]] = prefill.select %[[D]] {forced = 100 : i64, top_k = 1024 : i64}
    // NAME: %[[I:.*]] = prefill.index.boundary %[[SC]], %[[SD]] modality(%kinds : tensor<?x?xi64>)
    // NAME: prefill.sparse_attention %q, %q, %q, %[[I]]

    // TOKEN-DAG: %[[FIVE:.*]] = onnx.initializer {{.*}}dense<5>
    // TOKEN-DAG: %[[NINE:.*]] = onnx.initializer {{.*}}dense<9>
    // TOKEN-DAG: %[[A:.*]] = onnx.node "Equal"(%input_ids, %[[FIVE]])
    // TOKEN-DAG: %[[B:.*]] = onnx.node "Equal"(%input_ids, %[[NINE]])
    // TOKEN: %[[M:.*]] = onnx.node "Or"(%[[A]], %[[B]])
    // TOKEN: prefill.score.boundary %q, %q modality(%[[M]] : tensor<?x?xi1>) rows 16 pairs
    // TOKEN: prefill.index.boundary {{.*}} modality(%[[M]] : tensor<?x?xi1>)
    %o = prefill.attention %q, %q, %q {causal, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 0.125 : f32}
      : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32>
    %late = onnx.node "Neg"(%kinds) attributes {label = "n", output_names = ["late"]} : (tensor<?x?xi64>) -> tensor<?x?xi64>
    onnx.return %o, %late : tensor<1x2x?x64xf32>, tensor<?x?xi64> {output_names = ["o", "late"]}
  }
}
