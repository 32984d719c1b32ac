// RUN: prefill-opt %s -split-input-file -verify-diagnostics

// expected-error @+1 {{abi is "attention", "score" or "sums", not "other"}}
tile.kernel @abi() attributes {abi = "other"} {
  tile.return
}

// -----

// expected-error @+1 {{argument 0 has no tile.field}}
tile.kernel @field(%q: f32) attributes {abi = "score"} {
  tile.return
}

// -----

// expected-error @+1 {{two arguments are bound to field "q"}}
tile.kernel @twice(%q: f32 {tile.field = "q"}, %r: f32 {tile.field = "q"})
    attributes {abi = "score"} {
  tile.return
}

// -----

// expected-error @+1 {{has more than one index}}
tile.kernel @indices(%q: !tile.index<4> {tile.field = "a"},
                     %r: !tile.index<4> {tile.field = "b"})
    attributes {abi = "score"} {
  tile.return
}

// -----

// expected-error @+1 {{argument 0 is neither a view, an index nor a number}}
tile.kernel @type(%q: tensor<4xf32> {tile.field = "a"})
    attributes {abi = "score"} {
  tile.return
}

// -----

// expected-error @+1 {{a view has one or two dimensions}}
func.func private @view(!tile.view<?x4x4xf32>)

// -----

// expected-error @+1 {{the number of keys in a tile is positive}}
func.func private @keys(!tile.keys<0>)

// -----

func.func @load_type(%v: !tile.view<?x64xf16>) {
  // expected-error @+1 {{tile and view differ in element type}}
  %0 = tile.load %v : !tile.view<?x64xf16> -> tensor<16x64xf32>
  return
}

// -----

func.func @load_shape(%v: !tile.view<?x64xf32>) {
  // expected-error @+1 {{dimension 1 of the tile is 32, of the view 64}}
  %0 = tile.load %v : !tile.view<?x64xf32> -> tensor<16x32xf32>
  return
}

// -----

func.func @load_keys(%v: !tile.view<?x64xf32>, %k: !tile.keys<8>) {
  // expected-error @+1 {{tile does not hold one entry a key}}
  %0 = tile.load %v[%k] : !tile.view<?x64xf32>[!tile.keys<8>] -> tensor<16x64xf32>
  return
}

// -----

func.func @load_static(%v: !tile.view<16x64xf32>, %k: !tile.keys<16>) {
  // expected-error @+1 {{keys select along a dynamic dimension}}
  %0 = tile.load %v[%k] : !tile.view<16x64xf32>[!tile.keys<16>] -> tensor<16x64xf32>
  return
}

// -----

func.func @store_rank(%v: !tile.view<?xf32>, %t: tensor<4x4xf32>) {
  // expected-error @+1 {{tile and view differ in rank}}
  tile.store %t, %v : tensor<4x4xf32>, !tile.view<?xf32>
  return
}

// -----

func.func @dot_inner(%a: tensor<16x64xf32>, %b: tensor<64x8xf32>) {
  // expected-error @+1 {{inner dimensions are 64 and 8}}
  %0 = tile.dot %a, %b transpose_b : tensor<16x64xf32>, tensor<64x8xf32> -> tensor<16x8xf32>
  return
}

// -----

func.func @dot_result(%a: tensor<16x64xf32>, %b: tensor<64x8xf32>) {
  // expected-error @+1 {{result is not of shape 16x8}}
  %0 = tile.dot %a, %b : tensor<16x64xf32>, tensor<64x8xf32> -> tensor<16x16xf32>
  return
}

// -----

func.func @dot_type(%a: tensor<16x64xf16>, %b: tensor<64x8xf16>) {
  // expected-error @+1 {{result is fp32}}
  %0 = tile.dot %a, %b : tensor<16x64xf16>, tensor<64x8xf16> -> tensor<16x8xf16>
  return
}

// -----

func.func @reduce(%a: tensor<16x64xf32>) {
  // expected-error @+1 {{gives one number a row}}
  %0 = tile.reduce_row sum %a : tensor<16x64xf32> -> tensor<64xf32>
  return
}

// -----

func.func @broadcast_dim(%a: tensor<16xf32>) {
  // expected-error @+1 {{source does not fit dimension 1 of the result}}
  %0 = tile.broadcast %a dims = [1] : tensor<16xf32> -> tensor<16x64xf32>
  return
}

// -----

func.func @broadcast_scalar(%a: f32) {
  // expected-error @+1 {{a scalar has no dimensions}}
  %0 = tile.broadcast %a dims = [0] : f32 -> tensor<16x64xf32>
  return
}

// -----

func.func @rows() {
  // expected-error @+1 {{gives a vector of i32}}
  %0 = tile.rows : tensor<16xf32>
  return
}

// -----

func.func @positions(%k: !tile.keys<8>) {
  // expected-error @+1 {{gives one number a key}}
  %0 = tile.positions %k : !tile.keys<8> -> tensor<16xi32>
  return
}

// -----

func.func @mask(%s: tensor<16x8xf32>, %k: !tile.keys<8>, %c: tensor<16x8xi32>) {
  // expected-error @+1 {{the predicate yields one 'tensor<16x8xi1>'}}
  %0 = tile.mask %s, %k : tensor<16x8xf32>, !tile.keys<8> {
    tile.yield %c : tensor<16x8xi32>
  }
  return
}

// -----

func.func @mask_keys(%s: tensor<16x16xf32>, %k: !tile.keys<8>, %c: tensor<16x16xi1>) {
  // expected-error @+1 {{scores do not have one column a key}}
  %0 = tile.mask %s, %k : tensor<16x16xf32>, !tile.keys<8> {
    tile.yield %c : tensor<16x16xi1>
  }
  return
}

// -----

func.func @carried(%i: !tile.index<8>, %s: tensor<16xf32>, %t: tensor<8xf32>) {
  // expected-error @+1 {{carried value changes its type from 'tensor<16xf32>' to 'tensor<8xf32>'}}
  %0 = tile.for_tiles %k in %i iter_args(%a = %s) : !tile.index<8> -> (tensor<16xf32>) {
    tile.yield %t : tensor<8xf32>
  }
  return
}

// -----

func.func @need_outside(%a: tensor<16xf32>) {
  // expected-error @+1 {{'tile.need' op expects parent op 'tile.for_tiles'}}
  tile.need %a : tensor<16xf32>
  return
}

// -----

tile.kernel @need_of_tiles(%index: !tile.index<64> {tile.field = "keys"}) attributes {abi = "attention"} {
  %zero = arith.constant dense<0.0> : tensor<16x64xf32>
  tile.for_tiles %keys in %index : !tile.index<64> {
    // expected-error @+1 {{wants one fp32 number a row}}
    tile.need %zero : tensor<16x64xf32>
    tile.yield
  }
  tile.return
}

// -----

func.func @sums_keys(%a: tensor<64x32xf32>, %c: !tile.view<?xf32>, %d: !tile.view<?x128xf32>, %k: !tile.keys<64>) {
  // expected-error @+1 {{has 32 columns for 64 keys}}
  tile.store_sums %a, %c, %d[%k] : tensor<64x32xf32>, !tile.view<?xf32>, !tile.view<?x128xf32>[!tile.keys<64>]
  return
}

// -----

func.func @sums_columns(%a: tensor<64x64xf32>, %c: !tile.view<?x8xf32>, %d: !tile.view<?x128xf32>, %k: !tile.keys<64>) {
  // expected-error @+1 {{columns are a one-dimensional fp32 view}}
  tile.store_sums %a, %c, %d[%k] : tensor<64x64xf32>, !tile.view<?x8xf32>, !tile.view<?x128xf32>[!tile.keys<64>]
  return
}

// -----

func.func @sums_diagonals(%a: tensor<64x64xf32>, %c: !tile.view<?xf32>, %d: !tile.view<?x64xf32>, %k: !tile.keys<64>) {
  // expected-error @+1 {{diagonals are a fp32 view with rows of at least 127 elements}}
  tile.store_sums %a, %c, %d[%k] : tensor<64x64xf32>, !tile.view<?xf32>, !tile.view<?x64xf32>[!tile.keys<64>]
  return
}

// -----

func.func @sums_type(%a: tensor<64x64xf16>, %c: !tile.view<?xf32>, %d: !tile.view<?x128xf32>, %k: !tile.keys<64>) {
  // expected-error @+1 {{sums a two-dimensional fp32 tile, not 'tensor<64x64xf16>'}}
  tile.store_sums %a, %c, %d[%k] : tensor<64x64xf16>, !tile.view<?xf32>, !tile.view<?x128xf32>[!tile.keys<64>]
  return
}
