// RUN: prefill-opt %s -split-input-file -verify-diagnostics -tile-to-tensor-cores -convert-tile-to-warp

tile.kernel @wide(%q: !tile.view<?x64xf32> {tile.field = "q"}, %k: !tile.view<?x64xf32> {tile.field = "k"}, %out: !tile.view<64x?xf32> {tile.field = "out"}, %keys: !tile.index<64> {tile.field = "keys"}) attributes {abi = "attention"} {
  %a = tile.load %q : !tile.view<?x64xf32> -> tensor<64x64xf32>
  tile.for_tiles %t in %keys : !tile.index<64> {
    %b = tile.load %k[%t] : !tile.view<?x64xf32>[!tile.keys<64>] -> tensor<64x64xf32>
    // expected-error@+1 {{right operand holds 'f32', tensor cores multiply f16 or bf16}}
    %s = tile.dot %a, %b transpose_b : tensor<64x64xf32>, tensor<64x64xf32> -> tensor<64x64xf32>
    tile.store %s, %out[%t] : tensor<64x64xf32>, !tile.view<64x?xf32>[!tile.keys<64>]
    tile.yield
  }
  tile.return
}

// -----

tile.kernel @odd(%q: !tile.view<?x72xf16> {tile.field = "q"}, %k: !tile.view<?x72xf16> {tile.field = "k"}, %out: !tile.view<64x?xf32> {tile.field = "out"}, %keys: !tile.index<64> {tile.field = "keys"}) attributes {abi = "attention"} {
  %a = tile.load %q : !tile.view<?x72xf16> -> tensor<64x72xf16>
  tile.for_tiles %t in %keys : !tile.index<64> {
    // expected-error@+1 {{tensor cores take multiples of 16}}
    %b = tile.load %k[%t] : !tile.view<?x72xf16>[!tile.keys<64>] -> tensor<64x72xf16>
    %s = tile.dot %a, %b transpose_b : tensor<64x72xf16>, tensor<64x72xf16> -> tensor<64x64xf32>
    tile.store %s, %out[%t] : tensor<64x64xf32>, !tile.view<64x?xf32>[!tile.keys<64>]
    tile.yield
  }
  tile.return
}

// -----

tile.kernel @stages(%q: !tile.view<?x64xf16> {tile.field = "q"}, %k: !tile.view<?x64xf16> {tile.field = "k"}, %out: !tile.view<64x?xf32> {tile.field = "out"}, %keys: !tile.index<64> {tile.field = "keys"}) attributes {abi = "attention"} {
  %a = tile.load %q : !tile.view<?x64xf16> -> tensor<64x64xf16>
  // expected-error@+1 {{with one product needs two stages}}
  tile.for_tiles %t in %keys : !tile.index<64> {
    %b = tile.load %k[%t] : !tile.view<?x64xf16>[!tile.keys<64>] -> tensor<64x64xf16>
    %s = tile.dot %a, %b transpose_b : tensor<64x64xf16>, tensor<64x64xf16> -> tensor<64x64xf32>
    tile.store %s, %out[%t] : tensor<64x64xf32>, !tile.view<64x?xf32>[!tile.keys<64>]
    tile.yield
  }
  tile.return
}

// -----

tile.kernel @skip(%q: !tile.view<?x64xf16> {tile.field = "q"}, %index: !tile.index<64> {tile.field = "keys"}) attributes {abi = "attention"} {
  %zero = arith.constant dense<0.0> : tensor<64xf32>
  tile.for_tiles %keys in %index : !tile.index<64> {
    // expected-error@+1 {{'tile.need' op is not supported on GPUs}}
    tile.need %zero : tensor<64xf32>
    tile.yield
  }
  tile.return
}
