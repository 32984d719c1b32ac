// RUN: prefill-opt %s | prefill-opt | FileCheck %s
// RUN: prefill-opt %s --mlir-print-op-generic | prefill-opt | FileCheck %s

// CHECK-LABEL: tile.kernel @attention(
// CHECK-SAME:    %[[Q:.*]]: !tile.view<?x64xf16> {tile.field = "q"}
// CHECK-SAME:    %[[K:[^ ]*]]: !tile.view<?x64xf16> {tile.field = "k"}
// CHECK-SAME:    !tile.view<?x?xf32> {tile.field = "bias"}
// CHECK-SAME:    %[[INDEX:[^ ]*]]: !tile.index<32> {tile.field = "keys"}
// CHECK-SAME:    attributes {abi = "attention"}
tile.kernel @attention(
    %q: !tile.view<?x64xf16> {tile.field = "q"},
    %k: !tile.view<?x64xf16> {tile.field = "k"},
    %v: !tile.view<?x64xf16> {tile.field = "v"},
    %o: !tile.view<?x64xf32> {tile.field = "o"},
    %lse: !tile.view<?xf32> {tile.field = "lse"},
    %bias: !tile.view<?x?xf32> {tile.field = "bias"},
    %mask: !tile.view<?xi8> {tile.field = "key_mask"},
    %index: !tile.index<32> {tile.field = "keys"},
    %scale: f32 {tile.field = "scale"}) attributes {abi = "attention"} {
  // CHECK: tile.load %[[Q]] : <?x64xf16> -> tensor<16x64xf16>
  %rows = tile.load %q : !tile.view<?x64xf16> -> tensor<16x64xf16>
  // CHECK: tile.rows : tensor<16xi32>
  %numbers = tile.rows : tensor<16xi32>
  // CHECK: tile.broadcast %{{.*}} dims = [] : f32 -> tensor<16xf32>
  %start = tile.broadcast %scale dims = [] : f32 -> tensor<16xf32>
  %zero = arith.constant dense<0.0> : tensor<16x64xf32>
  // CHECK: %{{.*}}:2 = tile.for_tiles %[[KEYS:.*]] in %[[INDEX]]
  // CHECK-SAME: iter_args(%{{[^ ]*}} = %{{[^ ]*}}, %{{[^ ]*}} = %{{[^ ]*}})
  // CHECK-SAME: : !tile.index<32> -> (tensor<16xf32>, tensor<16x64xf32>) {
  %r:2 = tile.for_tiles %keys in %index iter_args(%m = %start, %acc = %zero)
      : !tile.index<32> -> (tensor<16xf32>, tensor<16x64xf32>) {
    // CHECK: tile.load %[[K]][%[[KEYS]]] : <?x64xf16>[!tile.keys<32>] -> tensor<32x64xf16>
    %kt = tile.load %k[%keys] : !tile.view<?x64xf16>[!tile.keys<32>] -> tensor<32x64xf16>
    // CHECK: tile.dot %{{.*}}, %{{.*}} transpose_b : tensor<16x64xf16>, tensor<32x64xf16> -> tensor<16x32xf32>
    %s = tile.dot %rows, %kt transpose_b : tensor<16x64xf16>, tensor<32x64xf16> -> tensor<16x32xf32>
    // CHECK: tile.load %{{.*}}[%[[KEYS]]] : <?x?xf32>[!tile.keys<32>] -> tensor<16x32xf32>
    %b = tile.load %bias[%keys] : !tile.view<?x?xf32>[!tile.keys<32>] -> tensor<16x32xf32>
    %t = arith.addf %s, %b : tensor<16x32xf32>
    // CHECK: tile.need %{{.*}} : tensor<16xf32>
    tile.need %m : tensor<16xf32>
    // CHECK: tile.mask %{{.*}}, %[[KEYS]] : tensor<16x32xf32>, <32> {
    %masked = tile.mask %t, %keys : tensor<16x32xf32>, !tile.keys<32> {
      // CHECK: tile.positions %[[KEYS]] : <32> -> tensor<32xi32>
      %pos = tile.positions %keys : !tile.keys<32> -> tensor<32xi32>
      // CHECK: tile.broadcast %{{.*}} dims = [1] : tensor<32xi32> -> tensor<16x32xi32>
      %key = tile.broadcast %pos dims = [1] : tensor<32xi32> -> tensor<16x32xi32>
      %row = tile.broadcast %numbers dims = [0] : tensor<16xi32> -> tensor<16x32xi32>
      %c = arith.cmpi sle, %key, %row : tensor<16x32xi32>
      // CHECK: tile.yield %{{.*}} : tensor<16x32xi1>
      tile.yield %c : tensor<16x32xi1>
    }
    // CHECK: tile.reduce_row max %{{.*}} : tensor<16x32xf32> -> tensor<16xf32>
    %max = tile.reduce_row max %masked : tensor<16x32xf32> -> tensor<16xf32>
    // CHECK: tile.reduce_row sum
    %sum = tile.reduce_row sum %masked : tensor<16x32xf32> -> tensor<16xf32>
    %next = arith.addf %max, %sum : tensor<16xf32>
    %vt = tile.load %v[%keys] : !tile.view<?x64xf16>[!tile.keys<32>] -> tensor<32x64xf16>
    // CHECK: tile.dot %{{.*}}, %{{.*}} acc %{{.*}} : tensor<16x64xf32> : tensor<16x32xf32>, tensor<32x64xf16> -> tensor<16x64xf32>
    %o2 = tile.dot %masked, %vt acc %acc : tensor<16x64xf32> : tensor<16x32xf32>, tensor<32x64xf16> -> tensor<16x64xf32>
    tile.yield %next, %o2 : tensor<16xf32>, tensor<16x64xf32>
  }
  // CHECK: tile.store %{{.*}}, %{{.*}} : tensor<16x64xf32>, {{.*}}<?x64xf32>
  tile.store %r#1, %o : tensor<16x64xf32>, !tile.view<?x64xf32>
  tile.store %r#0, %lse : tensor<16xf32>, !tile.view<?xf32>
  tile.return
}

// CHECK-LABEL: tile.kernel @empty_loop
tile.kernel @empty_loop(%index: !tile.index<64> {tile.field = "range"})
    attributes {abi = "score"} {
  // CHECK: tile.for_tiles %{{.*}} in %{{.*}} : !tile.index<64> {
  tile.for_tiles %keys in %index : !tile.index<64> {
    tile.yield
  }
  tile.return
}

// CHECK-LABEL: tile.kernel @sums(
tile.kernel @sums(%columns: !tile.view<?xf32> {tile.field = "column"},
                  %diagonals: !tile.view<?x128xf32> {tile.field = "diagonal"},
                  %index: !tile.index<64> {tile.field = "keys"}) attributes {abi = "sums"} {
  %p = arith.constant dense<1.0> : tensor<64x64xf32>
  tile.for_tiles %keys in %index : !tile.index<64> {
    // CHECK: tile.store_sums %{{.*}}, %{{.*}}, %{{.*}}[%{{.*}}] : tensor<64x64xf32>, <?xf32>, <?x128xf32>[<64>]
    tile.store_sums %p, %columns, %diagonals[%keys] : tensor<64x64xf32>, !tile.view<?xf32>, !tile.view<?x128xf32>[!tile.keys<64>]
    tile.yield
  }
  tile.return
}
