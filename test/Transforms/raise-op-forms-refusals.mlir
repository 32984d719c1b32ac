// RUN: prefill-opt %s -raise-attention -split-input-file -verify-each --remarks-filter-missed=raise-attention 2>&1 >%t | FileCheck %s
// RUN: FileCheck %s --check-prefix=IR < %t

// Fused attention operators that stay as they were: each reason names the node
// and the attribute or the value.
// IR-NOT: prefill.attention

!u = !onnx.unknown
!q = tensor<?x4x?x8xf32, #onnx.dims<"b", "", "s", "">>
!k = tensor<?x2x?x8xf32, #onnx.dims<"b", "", "t", "">>
!n = tensor<?xi64, #onnx.dims<"b">>

// CHECK: Attention 'scale': attribute 'scale' is not positive
// CHECK: Attention 'cap': attribute 'softcap' is negative or not finite
// CHECK: Attention 'causal': attribute 'is_causal' is 2, neither 0 nor 1
// CHECK: Attention 'kind': attribute 'scale' is not a float
// CHECK: Attention 'unknown': attribute 'surprise' is not known
// CHECK: Attention 'window': window attributes are below -1 or from a later version
// CHECK: Attention 'scores': output 3 (qk_matmul_output) is used (value 'qk')
// CHECK: Attention 'column': mask has one column: padded or broadcast (value 'm1')
// CHECK: Attention 'mask type': mask is neither bool nor of the type of {{.*}} (value 'mi')
// CHECK: Attention 'heads': 4 query heads are not a multiple of 3 KV heads
// CHECK: Attention 'half a past': past_key and past_value need each other (value 'v')
// CHECK: Attention 'double': no kernels for element type f64 (value 'd')
// CHECK: Attention 'rank': rank of an input is not known or not the same for Q, K, V (value 'r')
module attributes {onnx.opset_imports = [#onnx.opset<"", 24>]} {
  onnx.graph @main(%q: !q, %k: !k, %v: !k, %m1: tensor<?x1xi1, #onnx.dims<"s", "">>, %mi: tensor<?x?xi64, #onnx.dims<"s", "t">>, %k3: tensor<?x3x?x8xf32>, %d: tensor<?x4x?x8xf64>, %r: tensor<*xf32>) attributes {inputs = ["q", "k", "v", "m1", "mi", "k3", "d", "r"]} {
    %none = onnx.absent
    %0 = onnx.node "Attention"(%q, %k, %v) {scale = 0.0 : f32} attributes {label = "scale"} : (!q, !k, !k) -> !u
    %1 = onnx.node "Attention"(%q, %k, %v) {softcap = -1.0 : f32} attributes {label = "cap"} : (!q, !k, !k) -> !u
    %2 = onnx.node "Attention"(%q, %k, %v) {is_causal = 2 : si64} attributes {label = "causal"} : (!q, !k, !k) -> !u
    %3 = onnx.node "Attention"(%q, %k, %v) {scale = 1 : si64} attributes {label = "kind"} : (!q, !k, !k) -> !u
    %4 = onnx.node "Attention"(%q, %k, %v) {surprise = 1 : si64} attributes {label = "unknown"} : (!q, !k, !k) -> !u
    %5 = onnx.node "Attention"(%q, %k, %v) {left_window_size = 1 : si64} attributes {label = "window"} : (!q, !k, !k) -> !u
    %6, %a, %b, %qk = onnx.node "Attention"(%q, %k, %v) attributes {label = "scores", output_names = ["y6", "a", "b", "qk"]} : (!q, !k, !k) -> (!u, !u, !u, !u)
    %7 = onnx.node "Attention"(%q, %k, %v, %m1) attributes {label = "column"} : (!q, !k, !k, tensor<?x1xi1, #onnx.dims<"s", "">>) -> !u
    %8 = onnx.node "Attention"(%q, %k, %v, %mi) attributes {label = "mask type"} : (!q, !k, !k, tensor<?x?xi64, #onnx.dims<"s", "t">>) -> !u
    %9 = onnx.node "Attention"(%q, %k3, %k3) attributes {label = "heads"} : (!q, tensor<?x3x?x8xf32>, tensor<?x3x?x8xf32>) -> !u
    %10 = onnx.node "Attention"(%q, %k, %v, %none, %v) attributes {label = "half a past"} : (!q, !k, !k, none, !k) -> !u
    %11 = onnx.node "Attention"(%d, %d, %d) attributes {label = "double"} : (tensor<?x4x?x8xf64>, tensor<?x4x?x8xf64>, tensor<?x4x?x8xf64>) -> !u
    %12 = onnx.node "Attention"(%r, %r, %r) attributes {label = "rank"} : (tensor<*xf32>, tensor<*xf32>, tensor<*xf32>) -> !u
    onnx.return %0, %1, %2, %3, %4, %5, %6, %qk, %7, %8, %9, %10, %11, %12 : !u, !u, !u, !u, !u, !u, !u, !u, !u, !u, !u, !u, !u, !u {output_names = ["0", "1", "2", "3", "4", "5", "6", "qk", "7", "8", "9", "10", "11", "12"]}
  }
}

// -----

!u = !onnx.unknown
!x = tensor<?x?x64xf32, #onnx.dims<"b", "s", "">>
!n = tensor<?xi32, #onnx.dims<"b">>

// CHECK: GroupQueryAttention 'window 0': attribute 'local_window_size' is 0
// CHECK: GroupQueryAttention 'window': a local window that is not causal
// CHECK: GroupQueryAttention 'ring': attribute 'sliding_window_cache': the cache is a ring
// CHECK: GroupQueryAttention 'quantised': attribute 'k_quant_type': the cache is quantised
// CHECK: GroupQueryAttention 'norm': input 14 (q_norm_weight) is not supported (value 'c')
// CHECK: GroupQueryAttention 'chunk': input 16 (query_seqlens) is not supported (value 'n')
// CHECK: GroupQueryAttention 'scores': attribute 'qk_output' asks for the scores
// CHECK: GroupQueryAttention 'tables': do_rotary without cos_cache or sin_cache
// CHECK: GroupQueryAttention 'wide': width of the rotary tables is not known or too large (value 'wide')
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>, #onnx.opset<"com.microsoft", 1>]} {
  onnx.graph @main(%x: !x, %n: !n, %t: tensor<i32>, %c: tensor<8xf32>, %wide: tensor<64x16xf32>) attributes {inputs = ["x", "n", "t", "c", "wide"]} {
    %e = onnx.absent
    %0 = onnx.node "GroupQueryAttention"(%x, %e, %e, %e, %e, %n, %t) {num_heads = 4 : si64, kv_num_heads = 2 : si64, local_window_size = 0 : si64} attributes {op_domain = "com.microsoft", label = "window 0"} : (!x, none, none, none, none, !n, tensor<i32>) -> !u
    %1 = onnx.node "GroupQueryAttention"(%x, %e, %e, %e, %e, %n, %t) {num_heads = 4 : si64, kv_num_heads = 2 : si64, local_window_size = 4 : si64, causal = 0 : si64} attributes {op_domain = "com.microsoft", label = "window"} : (!x, none, none, none, none, !n, tensor<i32>) -> !u
    %2 = onnx.node "GroupQueryAttention"(%x, %e, %e, %e, %e, %n, %t) {num_heads = 4 : si64, kv_num_heads = 2 : si64, local_window_size = 4 : si64, sliding_window_cache = 1 : si64} attributes {op_domain = "com.microsoft", label = "ring"} : (!x, none, none, none, none, !n, tensor<i32>) -> !u
    %3 = onnx.node "GroupQueryAttention"(%x, %e, %e, %e, %e, %n, %t) {num_heads = 4 : si64, kv_num_heads = 2 : si64, k_quant_type = "PER_TENSOR"} attributes {op_domain = "com.microsoft", label = "quantised"} : (!x, none, none, none, none, !n, tensor<i32>) -> !u
    %4 = onnx.node "GroupQueryAttention"(%x, %e, %e, %e, %e, %n, %t, %e, %e, %e, %e, %e, %e, %e, %c, %c) {num_heads = 4 : si64, kv_num_heads = 2 : si64} attributes {op_domain = "com.microsoft", label = "norm"} : (!x, none, none, none, none, !n, tensor<i32>, none, none, none, none, none, none, none, tensor<8xf32>, tensor<8xf32>) -> !u
    %5 = onnx.node "GroupQueryAttention"(%x, %e, %e, %e, %e, %n, %t, %e, %e, %e, %e, %e, %e, %e, %e, %e, %n) {num_heads = 4 : si64, kv_num_heads = 2 : si64} attributes {op_domain = "com.microsoft", label = "chunk"} : (!x, none, none, none, none, !n, tensor<i32>, none, none, none, none, none, none, none, none, none, !n) -> !u
    %6 = onnx.node "GroupQueryAttention"(%x, %e, %e, %e, %e, %n, %t) {num_heads = 4 : si64, kv_num_heads = 2 : si64, qk_output = 1 : si64} attributes {op_domain = "com.microsoft", label = "scores"} : (!x, none, none, none, none, !n, tensor<i32>) -> !u
    %7 = onnx.node "GroupQueryAttention"(%x, %e, %e, %e, %e, %n, %t) {num_heads = 4 : si64, kv_num_heads = 2 : si64, do_rotary = 1 : si64} attributes {op_domain = "com.microsoft", label = "tables"} : (!x, none, none, none, none, !n, tensor<i32>) -> !u
    %8 = onnx.node "GroupQueryAttention"(%x, %e, %e, %e, %e, %n, %t, %wide, %wide) {num_heads = 4 : si64, kv_num_heads = 2 : si64, do_rotary = 1 : si64} attributes {op_domain = "com.microsoft", label = "wide"} : (!x, none, none, none, none, !n, tensor<i32>, tensor<64x16xf32>, tensor<64x16xf32>) -> !u
    onnx.return %0, %1, %2, %3, %4, %5, %6, %7, %8 : !u, !u, !u, !u, !u, !u, !u, !u, !u {output_names = ["0", "1", "2", "3", "4", "5", "6", "7", "8"]}
  }
}

// -----

!u = !onnx.unknown
!x = tensor<?x?x32xf32, #onnx.dims<"b", "s", "">>
!y = tensor<?x?x32xf32, #onnx.dims<"b", "t", "">>
!m = tensor<?xi32, #onnx.dims<"n">>

// CHECK: MultiHeadAttention 'cross': unidirectional, and key is not known to have as many rows as query (value 'y')
// CHECK: MultiHeadAttention 'lengths': 1-D padding mask is not known to have a length a batch (value 'm')
// CHECK: MultiHeadAttention 'beams': input 9 (cache_indirection) is not supported
// CHECK: Attention 'rotary': attribute 'do_rotary' is 1
// CHECK: Attention 'sizes': hidden sizes of Q and K differ or do not add up to 96
// CHECK: SparseAttention 'sparse': the operator chooses keys itself
// CHECK: PackedMultiHeadAttention 'packed': packed or paged rows are not supported
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>, #onnx.opset<"com.microsoft", 1>]} {
  onnx.graph @main(%x: !x, %y: !y, %m: !m, %w: tensor<32x96xf32>) attributes {inputs = ["x", "y", "m", "w"]} {
    %e = onnx.absent
    %0 = onnx.node "MultiHeadAttention"(%x, %y, %y) {num_heads = 4 : si64, unidirectional = 1 : si64} attributes {op_domain = "com.microsoft", label = "cross"} : (!x, !y, !y) -> !u
    %1 = onnx.node "MultiHeadAttention"(%x, %y, %y, %e, %m) {num_heads = 4 : si64} attributes {op_domain = "com.microsoft", label = "lengths"} : (!x, !y, !y, none, !m) -> !u
    %2 = onnx.node "MultiHeadAttention"(%x, %y, %y, %e, %e, %e, %e, %e, %e, %m) {num_heads = 4 : si64} attributes {op_domain = "com.microsoft", label = "beams"} : (!x, !y, !y, none, none, none, none, none, none, !m) -> !u
    %3 = onnx.node "Attention"(%x, %w) {num_heads = 4 : si64, do_rotary = 1 : si64} attributes {op_domain = "com.microsoft", label = "rotary"} : (!x, tensor<32x96xf32>) -> !u
    %4 = onnx.node "Attention"(%x, %w) {num_heads = 4 : si64, qkv_hidden_sizes = array<i64: 32, 16, 48>} attributes {op_domain = "com.microsoft", label = "sizes"} : (!x, tensor<32x96xf32>) -> !u
    %5 = onnx.node "SparseAttention"(%x) {num_heads = 4 : si64} attributes {op_domain = "com.microsoft", label = "sparse"} : (!x) -> !u
    %6 = onnx.node "PackedMultiHeadAttention"(%x) {num_heads = 4 : si64} attributes {op_domain = "com.microsoft", label = "packed"} : (!x) -> !u
    onnx.return %0, %1, %2, %3, %4, %5, %6 : !u, !u, !u, !u, !u, !u, !u {output_names = ["0", "1", "2", "3", "4", "5", "6"]}
  }
}

// -----

!u = !onnx.unknown
!q = tensor<?x4x?x8xf32>

// A model-local function of that name is not the operator; before opset 23
// there is none; in a subgraph nothing is known.
// CHECK: Attention 'early': opset 22 has no Attention
module attributes {onnx.opset_imports = [#onnx.opset<"", 22>]} {
  onnx.graph @main(%q: !q) attributes {inputs = ["q"]} {
    %0 = onnx.node "Attention"(%q, %q, %q) attributes {label = "early"} : (!q, !q, !q) -> !u
    onnx.return %0 : !u {output_names = ["0"]}
  }
}

// -----

!u = !onnx.unknown
!p = tensor<1x4x3x3xui8>
!v = tensor<1x4x3x8xui8>

// A graph that was quantised as a whole; the second one gives no attention.
// CHECK: QLinearSoftmax 'bytes': its scores and probabilities are rounded to 8 bits
// CHECK-NOT: classes
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>, #onnx.opset<"com.microsoft", 1>]} {
  onnx.graph @main(%s: !p, %v: !v, %f: tensor<f32>, %z: tensor<ui8>) attributes {inputs = ["s", "v", "f", "z"]} {
    %0 = onnx.node "QLinearSoftmax"(%s, %f, %z, %f, %z) {opset = 18 : si64} attributes {op_domain = "com.microsoft", label = "bytes"} : (!p, tensor<f32>, tensor<ui8>, tensor<f32>, tensor<ui8>) -> !u
    %1 = onnx.node "QLinearMatMul"(%0, %f, %z, %v, %f, %z, %f, %z) : (!u, tensor<f32>, tensor<ui8>, !v, tensor<f32>, tensor<ui8>, tensor<f32>, tensor<ui8>) -> !u
    %2 = onnx.node "QLinearSoftmax"(%s, %f, %z, %f, %z) {opset = 18 : si64} attributes {op_domain = "com.microsoft", label = "classes"} : (!p, tensor<f32>, tensor<ui8>, tensor<f32>, tensor<ui8>) -> !u
    onnx.return %1, %2 : !u, !u {output_names = ["1", "2"]}
  }
}
