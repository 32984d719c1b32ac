// RUN: prefill-opt %s -assume-no-padding -split-input-file | FileCheck %s
// RUN: prefill-opt %s -assume-no-padding=drop-cache -split-input-file | FileCheck %s
// RUN: prefill-opt %s -assume-no-padding -verify-each -split-input-file -o /dev/null

!i = tensor<?x?xi64, #onnx.dims<"B", "S">>

// CHECK: onnx.graph @main(%input_ids: {{.*}}, %x: {{.*}}) attributes {inputs = ["input_ids", "x"]}
// CHECK: %[[SHAPE:.*]] = onnx.node "Shape"(%input_ids)
// CHECK: %[[ONES:.*]] = onnx.node "Expand"(%{{.*}}, %[[SHAPE]])
// CHECK: onnx.node "Mul"(%[[ONES]], %x)
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i, %m: !i, %x: !i) attributes {inputs = ["input_ids", "attention_mask", "x"]} {
    %o = onnx.node "Mul"(%m, %x) : (!i, !i) -> !i
    onnx.return %o : !i {output_names = ["o"]}
  }
}

// -----

!i = tensor<?x?xi64, #onnx.dims<"B", "S">>
!b = tensor<?x?xi1, #onnx.dims<"B", "S">>

// CHECK: onnx.graph @main(%input_ids: {{.*}}) attributes {inputs = ["input_ids"]}
// CHECK: %[[ONES:.*]] = onnx.node "Cast"(%{{.*}}) {to = 9 : si64}
// CHECK: onnx.node "Not"(%[[ONES]])
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%m: !b, %ids: !i) attributes {inputs = ["attention_mask", "input_ids"]} {
    %o = onnx.node "Not"(%m) : (!b) -> !b
    onnx.return %o : !b {output_names = ["o"]}
  }
}

// -----

// Nothing to remove.

!i = tensor<?x?xi64, #onnx.dims<"B", "S">>

// CHECK: onnx.graph @main(%input_ids: {{.*}}) attributes {inputs = ["input_ids"]}
// CHECK-NEXT: onnx.return %input_ids
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%ids: !i) attributes {inputs = ["input_ids"]} {
    onnx.return %ids : !i {output_names = ["o"]}
  }
}
