// RUN: prefill-opt %s | prefill-opt | FileCheck %s
// RUN: prefill-opt %s -mlir-print-op-generic | prefill-opt | FileCheck %s

// CHECK: module attributes {onnx.ir_version = 10 : i64, onnx.opset_imports = [#onnx.opset<"", 21>, #onnx.opset<17>, #onnx.opset<"com.microsoft", 1>]}
module attributes {onnx.ir_version = 10 : i64,
                   onnx.opset_imports = [#onnx.opset<"", 21>, #onnx.opset<17>,
                                         #onnx.opset<"com.microsoft", 1>]} {
  // CHECK: onnx.graph @main(%input_ids: tensor<?x?xi64, #onnx.dims<"batch", "">>, %c: tensor<i1>) attributes {extra = "\0A", graph_name = "g", inputs = ["input_ids", #onnx.value_info<"c", "\0A\01c", true, false>], metadata = ["k", "v"], value_info = ["_a.b", #onnx.value_info<"gone", "", false, false>]}
  onnx.graph @main(%ids: tensor<?x?xi64, #onnx.dims<"batch", "">>, %c: tensor<i1>)
      attributes {inputs = ["input_ids", #onnx.value_info<"c", "\0A\01c", true, false>],
                  graph_name = "g", metadata = ["k", "v"], extra = "\0A",
                  value_info = ["_a.b", #onnx.value_info<"gone", "", false, false>]} {
    // CHECK: %w = onnx.initializer "w" : tensor<9x4xf32> = #onnx.weight<"m.data", 16, 144>
    %w = onnx.initializer "w" : tensor<9x4xf32> = #onnx.weight<"m.data", 16, 144>
    // CHECK: %small = onnx.initializer "small" : tensor<2xi64> = dense<[1, -1]> : tensor<2xi64>
    %small = onnx.initializer "small" : tensor<2xi64> = dense<[1, -1]> : tensor<2xi64>
    // CHECK: onnx.initializer "typed" : tensor<f16> = #onnx.tensor<dense<1.000000e+00> : tensor<f16>, tensor<f16>, true, "x">
    %typed = onnx.initializer "typed" : tensor<f16> = #onnx.tensor<dense<1.0> : tensor<f16>, tensor<f16>, true, "x">
    // CHECK: onnx.initializer "s" : !onnx.sparse<tensor<4xf32>> = #onnx.sparse_tensor<"b">
    %s = onnx.initializer "s" : !onnx.sparse<tensor<4xf32>> = #onnx.sparse_tensor<"b">
    // CHECK: onnx.initializer "text" : tensor<2x!onnx.string> = dense<["a", "b"]> : tensor<2x!onnx.string>
    %text = onnx.initializer "text" : tensor<2x!onnx.string> = dense<["a", "b"]> : tensor<2x!onnx.string>
    // CHECK: onnx.default %c : tensor<i1> = dense<true> : tensor<i1>
    onnx.default %c : tensor<i1> = dense<true> : tensor<i1>
    // CHECK: %[[NONE:.*]] = onnx.absent
    %none = onnx.absent
    // CHECK: %v0 = onnx.node "Gather"(%w, %input_ids) {axis = 0 : si64} attributes {label = "n", output_names = ["0"]} : (tensor<9x4xf32>, tensor<?x?xi64, #onnx.dims<"batch", "">>) -> tensor<?x?x4xf32, #onnx.dims<"batch", "", "">>
    %0 = onnx.node "Gather"(%w, %ids) {axis = 0 : si64} attributes {label = "n", output_names = ["0"]}
        : (tensor<9x4xf32>, tensor<?x?xi64, #onnx.dims<"batch", "">>) -> tensor<?x?x4xf32, #onnx.dims<"batch", "", "">>
    // The order of attributes is kept, and so are all kinds.
    // CHECK: %a.b:2 = onnx.node "Odd \22op\22"(%v0, %[[NONE]]) {z = 1.500000e+00 : f32, "a b" = "text", is = array<i64: 1, 2>, fs = array<f32>, ss = ["x"], t = dense<0> : tensor<i64>, w = #onnx.tensor<#onnx.weight<"f", 0, 4>, tensor<1xf32>, false, "">, tp = !onnx.seq<tensor<*xf32>>, ref = #onnx.ref<"alpha", 1>, v = #onnx.verbatim<1 : si64, "bytes">}
    %1:2 = onnx.node "Odd \22op\22"(%0, %none)
        {z = 1.5 : f32, "a b" = "text", is = array<i64: 1, 2>, fs = array<f32>, ss = ["x"], t = dense<0> : tensor<i64>,
         w = #onnx.tensor<#onnx.weight<"f", 0, 4>, tensor<1xf32>, false, "">, tp = !onnx.seq<tensor<*xf32>>,
         ref = #onnx.ref<"alpha", 1>, v = #onnx.verbatim<1 : si64, "bytes">}
        attributes {op_domain = "d", op_overload = "o", doc_string = "", metadata = [], extra = "", output_names = ["/a.b", ""]}
        : (tensor<?x?x4xf32, #onnx.dims<"batch", "", "">>, none) -> (!onnx.optional<!onnx.map<i64, !onnx.string>>, !onnx.unknown)
    // A node that a rewriter made has no names, and one without attributes no braces.
    // CHECK: onnx.node "Relu"(%v0) : (tensor<?x?x4xf32, #onnx.dims<"batch", "", "">>) -> !onnx.opaque<"d", "n">
    %2 = onnx.node "Relu"(%0) : (tensor<?x?x4xf32, #onnx.dims<"batch", "", "">>) -> !onnx.opaque<"d", "n">
    // CHECK: onnx.node "If"(%c)
    // CHECK-SAME: {then_branch = #onnx.subgraph<0, {inputs = []}>, else_branch = #onnx.subgraph<1, {graph_name = "e", inputs = ["i"]}>}
    // CHECK-SAME: : (tensor<i1>) -> !onnx.unknown subgraphs {
    // CHECK-NEXT: onnx.return %small : tensor<2xi64> {output_names = ["small"]}
    // CHECK-NEXT: }, {
    // CHECK-NEXT: ^bb0(%i: !onnx.unknown):
    // CHECK-NEXT: onnx.return %i : !onnx.unknown {output_names = ["i"]}
    %3 = onnx.node "If"(%c) {then_branch = #onnx.subgraph<0, {inputs = []}>,
                            else_branch = #onnx.subgraph<1, {inputs = ["i"], graph_name = "e"}>}
        : (tensor<i1>) -> !onnx.unknown subgraphs {
      onnx.return %small : tensor<2xi64> {output_names = ["small"]}
    }, {
    ^bb0(%i: !onnx.unknown):
      onnx.return %i : !onnx.unknown {output_names = ["i"]}
    }
    // CHECK: onnx.return %v0, %{{.*}} : tensor<?x?x4xf32, #onnx.dims<"batch", "", "">>, !onnx.unknown {output_names = ["0", "y"]}
    onnx.return %0, %3 : tensor<?x?x4xf32, #onnx.dims<"batch", "", "">>, !onnx.unknown {output_names = ["0", "y"]}
  }
  // CHECK: onnx.function @f.F(%a: !onnx.unknown) attributes {function_domain = "f", function_name = "F", inputs = ["a"], opset_imports = [#onnx.opset<17>], parameters = ["alpha"]}
  onnx.function @f.F(%a: !onnx.unknown)
      attributes {function_domain = "f", function_name = "F", inputs = ["a"],
                  opset_imports = [#onnx.opset<17>], parameters = ["alpha"]} {
    // CHECK: onnx.return %a : !onnx.unknown {output_names = ["a"]}
    onnx.return %a : !onnx.unknown {output_names = ["a"]}
  }
}
