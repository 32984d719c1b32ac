// RUN: prefill-opt %s -assume-no-padding=drop-cache -verify-each | FileCheck %s

// An empty cache leaves what is put behind it; its rows are 0.

!i = tensor<?x?xi64, #onnx.dims<"B", "S">>
!m = tensor<?x?xi64, #onnx.dims<"B", "P + S">>
!p = tensor<?x?x?x8xf32, #onnx.dims<"B", "2", "P", "">>
!k = tensor<?x2x?x8xf32, #onnx.dims<"B", "", "S", "">>
!u = !onnx.unknown

// CHECK: onnx.graph @main(%input_ids: {{.*}}, %k: {{.*}}) attributes {inputs = ["input_ids", "k"]}
// CHECK: %[[ONES:.*]] = onnx.node "Expand"
// CHECK: %[[ROWS:.*]] = onnx.initializer {{.*}} = dense<0> : tensor<1xi64>
// CHECK: onnx.return %k, %[[ROWS]], %[[ONES]]
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i, %p: !p, %k: !k, %m: !m) attributes {inputs = ["input_ids", "past_key_values.0.key", "k", "attention_mask"]} {
    %c = onnx.node "Concat"(%p, %k) {axis = -2 : si64} : (!p, !k) -> !u
    %s = onnx.node "Shape"(%p) {start = 2 : si64, end = 3 : si64} : (!p) -> !u
    onnx.return %c, %s, %m : !u, !u, !m {output_names = ["present.0.key", "length", "mask"]}
  }
}
