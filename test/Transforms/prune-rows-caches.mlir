// RUN: split-file %s %t
// RUN: prefill-opt %t/caches.mlir -prune-rows="prune=mustdrop:layers=1+2,global=0.01,individual=0.02,kv=final" -verify-each | FileCheck %s
// RUN: prefill-opt %t/caches.mlir -prune-rows="prune=mustdrop:layers=2,global=0.01,individual=0.02,kv=final" -verify-each | FileCheck %s --check-prefix=ONE
// RUN: prefill-opt %t/caches.mlir -prune-rows="prune=mustdrop:layers=1+2,individual=0,kv=final" -verify-each | FileCheck %s --check-prefix=SAME
// RUN: not prefill-opt %t/states.mlir -prune-rows="prune=mustdrop:layers=1,kv=final" 2>&1 | FileCheck %s --check-prefix=STATES
// RUN: not prefill-opt %t/none.mlir -prune-rows="prune=mustdrop:layers=1,kv=final" 2>&1 | FileCheck %s --check-prefix=NONE

// With kv=final the caches hold what is left in the end: the first stage's own
// layer computed all rows, the next one those of its stage, and the last one has
// them already.

// CHECK: %[[R1:[a-z_0-9]*]] = prefill.select_rows
// CHECK: %[[R2:[a-z_0-9]*]] = prefill.select_rows
// CHECK: %[[BOTH:.*]] = onnx.node "GatherElements"(%[[R1]], %[[R2]])
// CHECK-DAG: %[[FLAT1:.*]] = onnx.node "Reshape"(%[[BOTH]],
// CHECK-DAG: %[[K1:.*]] = onnx.node "Gather"(%[[ALL:.*]], %[[FLAT1]]) {axis = 2 : si64} : (tensor<?x2x?x8xf32, #onnx.dims<"B", "", "S", "">>
// CHECK-DAG: %[[FLAT2:.*]] = onnx.node "Reshape"(%[[R2]],
// CHECK-DAG: %[[K2:.*]] = onnx.node "Gather"(%[[FEWER:.*]], %[[FLAT2]]) {axis = 2 : si64} : (tensor<?x2x?x8xf32, #onnx.dims<"B", "", "rows_after_1", "">>
// CHECK: %{{.*}} = prefill.attention %{{[0-9]*}}, %[[K3:[0-9]*]], %{{[0-9]*}} {causal
// CHECK: onnx.return %{{.*}}, %[[K1]], %[[K2]], %[[K3]], %[[R1]], %[[BOTH]] {{.*}}output_names = ["logits", "present.0.key", "present.1.key", "present.2.key", "prefill.rows.1", "prefill.rows.2"]

// The layer before the first stage keeps all rows.

// ONE: %[[K1:.*]] = onnx.node "Transpose"
// ONE: %[[K2:.*]] = onnx.node "Transpose"
// ONE: %[[R:[a-z_0-9]*]] = prefill.select_rows
// ONE: %[[FLAT:.*]] = onnx.node "Reshape"(%[[R]],
// ONE: %[[CUT:.*]] = onnx.node "Gather"(%[[K2]], %[[FLAT]]) {axis = 2 : si64}
// ONE: onnx.return %{{.*}}, %[[K1]], %[[CUT]], %{{.*}}, %[[R]] :

// SAME-NOT: select_rows
// SAME: output_names = ["logits", "present.0.key", "present.1.key", "present.2.key"]

// STATES: -prune: kv=final: the output 'states' has a row for every token and is not known to be a KV cache
// NONE: -prune: kv=final: the model gives no KV cache of layer 1 or a later one

//--- caches.mlir
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!h = tensor<?x?x2x8xf32, #onnx.dims<"B", "S", "", "">>
!k = tensor<?x2x?x8xf32, #onnx.dims<"B", "", "S", "">>
!l = tensor<?x1x16xf32, #onnx.dims<"B", "", "">>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%e: !x) attributes {inputs = ["inputs_embeds"]} {
    %heads = onnx.initializer "heads" : tensor<4xi64> = dense<[0, 0, 2, 8]> : tensor<4xi64>
    %last = onnx.initializer "last" : tensor<1xi64> = dense<-1> : tensor<1xi64>
    %h1 = onnx.node "Reshape"(%e, %heads) : (!x, tensor<4xi64>) -> !h
    %k1 = onnx.node "Transpose"(%h1) {perm = [0 : si64, 2 : si64, 1 : si64, 3 : si64]} : (!h) -> !k
    %o = prefill.attention %e, %k1, %e {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !k, !x -> !x
    %x = onnx.node "Add"(%e, %o) : (!x, !x) -> !x
    %h2 = onnx.node "Reshape"(%x, %heads) : (!x, tensor<4xi64>) -> !h
    %k2 = onnx.node "Transpose"(%h2) {perm = [0 : si64, 2 : si64, 1 : si64, 3 : si64]} : (!h) -> !k
    %o2 = prefill.attention %x, %k2, %x {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !k, !x -> !x
    %x2 = onnx.node "Add"(%x, %o2) : (!x, !x) -> !x
    %h3 = onnx.node "Reshape"(%x2, %heads) : (!x, tensor<4xi64>) -> !h
    %k3 = onnx.node "Transpose"(%h3) {perm = [0 : si64, 2 : si64, 1 : si64, 3 : si64]} : (!h) -> !k
    %o3 = prefill.attention %x2, %k3, %x2 {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !k, !x -> !x
    %x3 = onnx.node "Add"(%x2, %o3) : (!x, !x) -> !x
    %y = onnx.node "Gather"(%x3, %last) {axis = 1 : si64} : (!x, tensor<1xi64>) -> !l
    onnx.return %y, %k1, %k2, %k3 : !l, !k, !k, !k {output_names = ["logits", "present.0.key", "present.1.key", "present.2.key"]}
  }
}
//--- states.mlir
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!l = tensor<?x1x16xf32, #onnx.dims<"B", "", "">>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%e: !x) attributes {inputs = ["inputs_embeds"]} {
    %last = onnx.initializer "last" : tensor<1xi64> = dense<-1> : tensor<1xi64>
    %o = prefill.attention %e, %e, %e {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x = onnx.node "Add"(%e, %o) : (!x, !x) -> !x
    %o2 = prefill.attention %x, %x, %x {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x2 = onnx.node "Add"(%x, %o2) : (!x, !x) -> !x
    %y = onnx.node "Gather"(%x2, %last) {axis = 1 : si64} : (!x, tensor<1xi64>) -> !l
    onnx.return %y, %x : !l, !x {output_names = ["logits", "states"]}
  }
}
//--- none.mlir
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!l = tensor<?x1x16xf32, #onnx.dims<"B", "", "">>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%e: !x) attributes {inputs = ["inputs_embeds"]} {
    %last = onnx.initializer "last" : tensor<1xi64> = dense<-1> : tensor<1xi64>
    %o = prefill.attention %e, %e, %e {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x = onnx.node "Add"(%e, %o) : (!x, !x) -> !x
    %o2 = prefill.attention %x, %x, %x {causal, head_dim = 8 : i64, kv_heads = 2 : i64, q_heads = 2 : i64, scale = 1.0 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x2 = onnx.node "Add"(%x, %o2) : (!x, !x) -> !x
    %y = onnx.node "Gather"(%x2, %last) {axis = 1 : si64} : (!x, tensor<1xi64>) -> !l
    onnx.return %y : !l {output_names = ["logits"]}
  }
}
