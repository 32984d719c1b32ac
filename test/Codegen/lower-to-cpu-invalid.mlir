// RUN: prefill-opt %s -split-input-file -tile-lower-to-cpu -verify-diagnostics

// expected-error @+1 {{argument 0: no field 'nothing' of type 'f32' in the attention block}}
tile.kernel @field(%q: f32 {tile.field = "nothing"},
                   %o: !tile.view<?x16xf32> {tile.field = "o"})
    attributes {abi = "attention"} {
  %0 = arith.constant dense<0.0> : tensor<16x16xf32>
  tile.store %0, %o : tensor<16x16xf32>, !tile.view<?x16xf32>
  tile.return
}

// -----

// expected-error @+1 {{argument 0: no field 'scale' of type 'i64' in the attention block}}
tile.kernel @type(%q: i64 {tile.field = "scale"},
                  %o: !tile.view<?x16xf32> {tile.field = "o"})
    attributes {abi = "attention"} {
  %0 = arith.constant dense<0.0> : tensor<16x16xf32>
  tile.store %0, %o : tensor<16x16xf32>, !tile.view<?x16xf32>
  tile.return
}

// -----

// expected-error @+1 {{needs tiles of a multiple of 16 rows}}
tile.kernel @rows(%o: !tile.view<?x16xf32> {tile.field = "o"})
    attributes {abi = "attention"} {
  %0 = arith.constant dense<0.0> : tensor<12x16xf32>
  tile.store %0, %o : tensor<12x16xf32>, !tile.view<?x16xf32>
  tile.return
}

// -----

tile.kernel @differ(%o: !tile.view<?x16xf32> {tile.field = "o"})
    attributes {abi = "attention"} {
  %0 = arith.constant dense<0.0> : tensor<16x16xf32>
  // expected-error @+1 {{has 32 rows where others have 16}}
  %1 = arith.constant dense<0.0> : tensor<32x16xf32>
  tile.store %0, %o : tensor<16x16xf32>, !tile.view<?x16xf32>
  tile.return
}

// -----

tile.kernel @operand(%q: !tile.view<?x16xf32> {tile.field = "q"},
                     %o: !tile.view<?x16xf32> {tile.field = "o"})
    attributes {abi = "attention"} {
  %0 = tile.load %q : !tile.view<?x16xf32> -> tensor<16x16xf32>
  %1 = tile.load %q : !tile.view<?x16xf32> -> tensor<16x16xf32>
  // expected-error @+1 {{needs rows of keys as its second operand}}
  %2 = tile.dot %0, %1 : tensor<16x16xf32>, tensor<16x16xf32> -> tensor<16x16xf32>
  tile.store %2, %o : tensor<16x16xf32>, !tile.view<?x16xf32>
  tile.return
}

// -----

tile.kernel @unknown(%q: !tile.view<?x16xf32> {tile.field = "q"},
                     %o: !tile.view<?x16xf32> {tile.field = "o"})
    attributes {abi = "attention"} {
  %0 = tile.load %q : !tile.view<?x16xf32> -> tensor<16x16xf32>
  // expected-error @+1 {{has no vector form in the CPU lowering}}
  %1 = math.sin %0 : tensor<16x16xf32>
  %2 = arith.addf %1, %1 : tensor<16x16xf32>
  tile.store %2, %o : tensor<16x16xf32>, !tile.view<?x16xf32>
  tile.return
}

// -----

tile.kernel @permutes(%o: !tile.view<?x16xf32> {tile.field = "o"},
                      %i: !tile.index<64> {tile.field = "keys"})
    attributes {abi = "attention"} {
  %0 = arith.constant dense<0.0> : tensor<16x16xf32>
  %r:2 = tile.for_tiles %keys in %i iter_args(%a = %0, %b = %0)
      : !tile.index<64> -> (tensor<16x16xf32>, tensor<16x16xf32>) {
    // expected-error @+1 {{permutes carried values}}
    tile.yield %b, %a : tensor<16x16xf32>, tensor<16x16xf32>
  }
  tile.store %r#0, %o : tensor<16x16xf32>, !tile.view<?x16xf32>
  tile.return
}
