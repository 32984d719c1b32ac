// RUN: not prefill-opt %s -sparsify-attention="pattern=zigzag" 2>&1 | FileCheck %s --check-prefix=NAME
// RUN: not prefill-opt %s -sparsify-attention="pattern=a-shape:slash=3" 2>&1 | FileCheck %s --check-prefix=OPTION
// RUN: not prefill-opt %s -sparsify-attention="pattern=vertical-slash:density=2" 2>&1 | FileCheck %s --check-prefix=RANGE
// RUN: not prefill-opt %s -sparsify-attention="pattern=vertical-slash:density=0.1,slash=5" 2>&1 | FileCheck %s --check-prefix=BOTH
// RUN: not prefill-opt %s -sparsify-attention="pattern=config:%t.none.json" 2>&1 | FileCheck %s --check-prefix=FILE
// RUN: not prefill-opt %s -sparsify-attention="pattern=config:%S/Inputs/two-layers.json" 2>&1 | FileCheck %s --check-prefix=LAYERS
// RUN: not prefill-opt %s -sparsify-attention="pattern=config:%S/Inputs/bad-type.json" 2>&1 | FileCheck %s --check-prefix=TYPE
// RUN: not prefill-opt %s -sparsify-attention="pattern=config:%S/Inputs/duo.tsv" 2>&1 | FileCheck %s --check-prefix=DUO
// RUN: not prefill-opt %s -sparsify-attention="pattern=duo:heads=%t.none.tsv" 2>&1 | FileCheck %s --check-prefix=FILE

// NAME: -sparsify=zigzag: unknown pattern 'zigzag'; there are auto, dense, a-shape
// OPTION: -sparsify=a-shape:slash=3: unknown option 'slash'; this pattern has init, local
// RANGE: density must be in (0, 1]
// BOTH: give either density or vertical and slash, not both
// FILE: cannot read {{.*}}none.{{json|tsv}}: No such file
// DUO: layer 0 has 1 KV heads in the file, the model has 2
// LAYERS: the file describes 2 layers, the model has 1 raised attentions
// TYPE: layer 0: head 3: the first entry of a head must be vertical_and_slash
func.func @causal(%q: tensor<1x2x?x64xf32>) -> tensor<1x2x?x64xf32> {
  %o = prefill.attention %q, %q, %q {causal, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 0.125 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32>
  return %o : tensor<1x2x?x64xf32>
}
