// RUN: prefill-opt %s -tile-lower-to-cpu=level=4 | FileCheck %s --check-prefixes=CHECK,V4
// RUN: prefill-opt %s -tile-lower-to-cpu=level=3 | FileCheck %s --check-prefixes=CHECK,V3
// RUN: prefill-opt %s -tile-lower-to-cpu=level=2 | FileCheck %s --check-prefixes=CHECK,V2
// RUN: prefill-opt %s -tile-lower-to-cpu="level=4 tile-rows=2" | FileCheck %s --check-prefix=ROWS2
// RUN: prefill-opt %s -tile-lower-to-cpu -prefill-cpu-to-llvm | FileCheck %s --check-prefix=LLVM

// Scores of one tile of query rows: q is packed into lanes, each product's piece
// stays in registers and is stored from there.

// CHECK: llvm.mlir.global internal constant @prefill_tile_zeros
// CHECK-LABEL: func.func @scores(
// CHECK-SAME:    %[[ARGS:.*]]: !llvm.ptr)
// CHECK-SAME:    attributes {prefill.workspace_bytes = {{[0-9]+}} : i64}
// CHECK: llvm.call_intrinsic "llvm.x86.sse.stmxcsr"
// CHECK: llvm.call_intrinsic "llvm.x86.sse.ldmxcsr"

// The pack: rows that do not exist are read from the zeros; shuffles transpose.
// CHECK: scf.for
// V4: arith.select
// V4: vector.shuffle {{.*}} : vector<16xf32>, vector<16xf32>
// V3: vector.shuffle {{.*}} : vector<8xf32>, vector<8xf32>
// V2: vector.shuffle {{.*}} : vector<4xf32>, vector<4xf32>

// The product: 6 keys by 4 vectors, 4 keys by 2 vectors without FMA.
// V4: scf.for {{.*}} -> (vector<16xf32>, vector<16xf32>, vector<16xf32>, vector<16xf32>,
// V4-COUNT-24: vector.fma
// V4-NOT: vector.fma
// V4: scf.yield
// V3-COUNT-12: vector.fma
// V3-NOT: vector.fma
// V3: scf.yield
// V2-NOT: vector.fma
// V2: arith.mulf {{.*}} : vector<4xf32>
// V2: arith.addf {{.*}} : vector<4xf32>
// ROWS2-COUNT-8: vector.fma
// ROWS2-NOT: vector.fma
// ROWS2: scf.yield
// CHECK: llvm.call_intrinsic "llvm.x86.sse.ldmxcsr"
// CHECK: return

// LLVM: llvm.func @scores(%{{.*}}: !llvm.ptr)
// LLVM-NOT: builtin.unrealized_conversion_cast
// LLVM: llvm.intr.fmuladd
// LLVM-NOT: vector.
tile.kernel @scores(
    %q: !tile.view<?x64xf32> {tile.field = "q"},
    %k: !tile.view<?x64xf32> {tile.field = "k"},
    %out: !tile.view<64x?xf32> {tile.field = "out"},
    %range: !tile.index<64> {tile.field = "range"}) attributes {abi = "score"} {
  %rows = tile.load %q : !tile.view<?x64xf32> -> tensor<64x64xf32>
  tile.for_tiles %keys in %range : !tile.index<64> {
    %kt = tile.load %k[%keys] : !tile.view<?x64xf32>[!tile.keys<64>] -> tensor<64x64xf32>
    %s = tile.dot %rows, %kt transpose_b : tensor<64x64xf32>, tensor<64x64xf32> -> tensor<64x64xf32>
    tile.store %s, %out[%keys] : tensor<64x64xf32>, !tile.view<64x?xf32>[!tile.keys<64>]
    tile.yield
  }
  tile.return
}
