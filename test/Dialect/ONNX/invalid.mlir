// RUN: prefill-opt %s -split-input-file -verify-diagnostics

// expected-error @+1 {{'onnx.graph' op has 1 block arguments, but 0 names in 'inputs'}}
onnx.graph @main(%x: !onnx.unknown) attributes {inputs = []} {
  onnx.return {output_names = []}
}

// -----

// expected-error @+1 {{'onnx.graph' op has a key without a value in 'metadata'}}
onnx.graph @main() attributes {inputs = [], metadata = ["k"]} {
  onnx.return {output_names = []}
}

// -----

// expected-error @+1 {{'onnx.graph' op must end with onnx.return}}
onnx.graph @main() attributes {inputs = []} {
  %0 = onnx.absent
}

// -----

// expected-error @+1 {{attribute 'inputs' failed to satisfy constraint: names of values}}
onnx.graph @main() attributes {inputs = [1]} {
  onnx.return {output_names = []}
}

// -----

onnx.graph @main(%x: !onnx.unknown) attributes {inputs = ["x"]} {
  // expected-error @+1 {{'onnx.return' op has 1 operands, but 0 names in 'output_names'}}
  onnx.return %x : !onnx.unknown {output_names = []}
}

// -----

onnx.graph @main() attributes {inputs = []} {
  // expected-error @+1 {{'onnx.node' op has 1 results, but 2 names in 'output_names'}}
  %0 = onnx.node "A"() attributes {output_names = ["a", "b"]} : () -> !onnx.unknown
  onnx.return {output_names = []}
}

// -----

onnx.graph @main() attributes {inputs = []} {
  // expected-error @+1 {{'onnx.node' op has a key without a value in 'metadata'}}
  onnx.node "A"() attributes {metadata = ["k"]} : () -> ()
  onnx.return {output_names = []}
}

// -----

onnx.graph @main() attributes {inputs = []} {
  // expected-error @+1 {{has attribute 'a' twice}}
  onnx.node "A"() {a = 1 : si64, a = 2 : si64} : () -> ()
  onnx.return {output_names = []}
}

// -----

onnx.graph @main() attributes {inputs = []} {
  // expected-error @+1 {{'onnx.node' op has an attribute for region 0, which does not exist}}
  onnx.node "A"() {g = #onnx.subgraph<0, {inputs = []}>} : () -> ()
  onnx.return {output_names = []}
}

// -----

onnx.graph @main() attributes {inputs = []} {
  // expected-error @+1 {{'onnx.node' op has an attribute for region 0, which another attribute has}}
  onnx.node "A"() {g = #onnx.subgraph<0, {inputs = []}>, h = #onnx.subgraph<0, {inputs = []}>} : () -> () subgraphs {
    onnx.return {output_names = []}
  }
  onnx.return {output_names = []}
}

// -----

onnx.graph @main() attributes {inputs = []} {
  // expected-error @+1 {{'onnx.node' op has no attribute for region 0}}
  onnx.node "A"() : () -> () subgraphs {
    onnx.return {output_names = []}
  }
  onnx.return {output_names = []}
}

// -----

onnx.graph @main() attributes {inputs = []} {
  // expected-error @+1 {{'onnx.initializer' op needs elements, #onnx.weight, #onnx.tensor or #onnx.sparse_tensor as its value}}
  %w = onnx.initializer "w" : tensor<2xf32> = "text"
  onnx.return {output_names = []}
}

// -----

onnx.graph @main() attributes {inputs = []} {
  // expected-error @+1 {{'onnx.initializer' op has elements of type 'tensor<3xf32>', but type 'tensor<2xf32>'}}
  %w = onnx.initializer "w" : tensor<2xf32> = dense<0.0> : tensor<3xf32>
  onnx.return {output_names = []}
}

// -----

onnx.graph @main() attributes {inputs = []} {
  // expected-error @+1 {{'onnx.initializer' op has a value of type 'tensor<3xf32>', but type 'tensor<2xf32>'}}
  %w = onnx.initializer "w" : tensor<2xf32> = #onnx.tensor<dense<0.0> : tensor<3xf32>, tensor<3xf32>, true, "">
  onnx.return {output_names = []}
}

// -----

onnx.graph @main() attributes {inputs = []} {
  // expected-error @+1 {{'onnx.initializer' op has 9 bytes, which is not the size of 'tensor<2xf32>'}}
  %w = onnx.initializer "w" : tensor<2xf32> = #onnx.weight<"f", 0, 9>
  onnx.return {output_names = []}
}

// -----

onnx.graph @main() attributes {inputs = []} {
  %w = onnx.initializer "w" : tensor<1xf32> = dense<0.0> : tensor<1xf32>
  // expected-error @+1 {{'onnx.default' op must be of an input of its own graph}}
  onnx.default %w : tensor<1xf32> = dense<0.0> : tensor<1xf32>
  onnx.return {output_names = []}
}

// -----

// expected-error @+1 {{has 2 dimensions, but 1 names of dimensions}}
onnx.graph @main(%x: tensor<?x?xf32, #onnx.dims<"n">>) attributes {inputs = ["x"]} {
  onnx.return {output_names = []}
}

// -----

// expected-error @+1 {{names a dimension of fixed size: 'n'}}
onnx.graph @main(%x: tensor<3xf32, #onnx.dims<"n">>) attributes {inputs = ["x"]} {
  onnx.return {output_names = []}
}
