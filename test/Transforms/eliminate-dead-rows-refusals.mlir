// RUN: prefill-opt %s -eliminate-dead-rows -verify-each -split-input-file | FileCheck %s
// RUN: prefill-opt %s -eliminate-dead-rows -split-input-file --remarks-filter-missed=row-liveness 2>&1 >/dev/null | FileCheck %s --check-prefix=WHY

// What is not proven stops the rows; a selection that saves nothing stays as it
// is, and so does the graph around it.

!u = !onnx.unknown
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>

// Another output reads all rows.
// WHY: all rows are computed before Gather '{{.*}}MatMul 'product': all of its result is read elsewhere
// CHECK-LABEL: onnx.graph @read_elsewhere
// CHECK: %[[Y:.*]] = onnx.node "MatMul"(%x, %w)
// CHECK-NEXT: onnx.node "Gather"(%[[Y]], %rows)
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @read_elsewhere(%x: !x, %rows: tensor<?xi64>) attributes {inputs = ["x", "rows"]} {
    %w = onnx.initializer "w" : tensor<16x16xf32> = dense<1.0> : tensor<16x16xf32>
    %y = onnx.node "MatMul"(%x, %w) attributes {label = "product"} : (!x, tensor<16x16xf32>) -> !u
    %z = onnx.node "Gather"(%y, %rows) {axis = 1 : si64} : (!u, tensor<?xi64>) -> !u
    onnx.return %z, %y : !u, !u {output_names = ["z", "y"]}
  }
}

// -----

!u = !onnx.unknown
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>

// Every row depends on those before it.
// WHY: CumSum 'sum': it is not known to treat rows one by one
// CHECK-LABEL: onnx.graph @not_row_by_row
// CHECK: onnx.node "MatMul"(%x, %w)
// CHECK: onnx.node "CumSum"
// CHECK-NEXT: onnx.node "Gather"
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @not_row_by_row(%x: !x, %rows: tensor<?xi64>) attributes {inputs = ["x", "rows"]} {
    %w = onnx.initializer "w" : tensor<16x16xf32> = dense<1.0> : tensor<16x16xf32>
    %one = onnx.initializer "one" : tensor<i64> = dense<1> : tensor<i64>
    %y = onnx.node "MatMul"(%x, %w) : (!x, tensor<16x16xf32>) -> !x
    %c = onnx.node "CumSum"(%y, %one) attributes {label = "sum"} : (!x, tensor<i64>) -> !x
    %z = onnx.node "Gather"(%c, %rows) {axis = 1 : si64} : (!x, tensor<?xi64>) -> !u
    onnx.return %z : !u {output_names = ["z"]}
  }
}

// -----

!u = !onnx.unknown
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>

// Over the rows, not along them.
// WHY: Softmax 'over rows': it mixes rows
// CHECK-LABEL: onnx.graph @mixes
// CHECK: onnx.node "MatMul"(%x, %w)
// CHECK-NEXT: onnx.node "Softmax"
// CHECK-NEXT: onnx.node "Gather"
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @mixes(%x: !x, %rows: tensor<?xi64>) attributes {inputs = ["x", "rows"]} {
    %w = onnx.initializer "w" : tensor<16x16xf32> = dense<1.0> : tensor<16x16xf32>
    %y = onnx.node "MatMul"(%x, %w) : (!x, tensor<16x16xf32>) -> !x
    %c = onnx.node "Softmax"(%y) {axis = 1 : si64} attributes {label = "over rows"} : (!x) -> !x
    %z = onnx.node "Gather"(%c, %rows) {axis = 1 : si64} : (!x, tensor<?xi64>) -> !u
    onnx.return %z : !u {output_names = ["z"]}
  }
}

// -----

!u = !onnx.unknown
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>

// A row of its own for every batch entry (the last token before its padding):
// no one list of rows says that.
// CHECK-LABEL: onnx.graph @one_per_batch
// CHECK: onnx.node "MatMul"(%x, %w)
// CHECK-NEXT: onnx.node "GatherND"
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @one_per_batch(%x: !x, %rows: tensor<?x1xi64, #onnx.dims<"B", "">>) attributes {inputs = ["x", "rows"]} {
    %w = onnx.initializer "w" : tensor<16x16xf32> = dense<1.0> : tensor<16x16xf32>
    %y = onnx.node "MatMul"(%x, %w) : (!x, tensor<16x16xf32>) -> !x
    %z = onnx.node "GatherND"(%y, %rows) {batch_dims = 1 : si64} : (!x, tensor<?x1xi64, #onnx.dims<"B", "">>) -> !u
    onnx.return %z : !u {output_names = ["z"]}
  }
}

// -----

!u = !onnx.unknown
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>
!other = tensor<?x?x16xf32, #onnx.dims<"B", "P", "">>

// The other summand may have one row or all of them.
// WHY: Add 'sum': an operand is not proven to have all rows
// CHECK-LABEL: onnx.graph @unknown_rows
// CHECK: onnx.node "MatMul"(%x, %w)
// CHECK-NEXT: onnx.node "Add"
// CHECK-NEXT: onnx.node "Gather"
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @unknown_rows(%x: !x, %other: !other, %rows: tensor<?xi64>) attributes {inputs = ["x", "other", "rows"]} {
    %w = onnx.initializer "w" : tensor<16x16xf32> = dense<1.0> : tensor<16x16xf32>
    %y = onnx.node "MatMul"(%x, %w) : (!x, tensor<16x16xf32>) -> !x
    %c = onnx.node "Add"(%y, %other) attributes {label = "sum"} : (!x, !other) -> !u
    %z = onnx.node "Gather"(%c, %rows) {axis = 1 : si64} : (!u, tensor<?xi64>) -> !u
    onnx.return %z : !u {output_names = ["z"]}
  }
}

// -----

!u = !onnx.unknown
!x = tensor<?x?x16xf32, #onnx.dims<"B", "S", "">>

// A Gather along features, and rows that no product waits for: nothing to save.
// CHECK-LABEL: onnx.graph @nothing
// CHECK-NEXT: onnx.node "Relu"(%x)
// CHECK-NEXT: onnx.node "Gather"
// CHECK-NEXT: onnx.return
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @nothing(%x: !x, %rows: tensor<?xi64>) attributes {inputs = ["x", "rows"]} {
    %y = onnx.node "Relu"(%x) : (!x) -> !x
    %z = onnx.node "Gather"(%y, %rows) {axis = 1 : si64} : (!x, tensor<?xi64>) -> !u
    onnx.return %z : !u {output_names = ["z"]}
  }
}
