// RUN: prefill-opt %s -tile-lower-to-cpu | FileCheck %s

// The causal kernel as the kernel builder writes it (-emit=tile): which ops share
// a loop, and what lies in the workspace.

// Packed q, scores and outputs are 16 KB each; probabilities overwrite scores,
// outputs are updated in place. The rest is numbers a row.
// CHECK: prefill.workspace_bytes = 52544

// q is packed and scaled in one go.
// CHECK: scf.for {{.*}} step %c16_i64
// CHECK: vector.shuffle
// CHECK: arith.mulf
// CHECK: llvm.store

// One round of the index: block number, then key numbers only where masked.
// CHECK: scf.if %{{.*}} -> (i64)
// CHECK: scf.if %[[MASKED:[^ ]*]] {
// CHECK: scf.for

// Scores: the mask is behind a branch in the epilogue of the register tile, and
// the row maxima are carried beside it.
// CHECK: scf.for {{.*}} iter_args({{.*}}) -> (vector<16xf32>, vector<16xf32>, vector<16xf32>, vector<16xf32>)
// CHECK: scf.for {{.*}} iter_args
// CHECK-COUNT-24: vector.fma
// CHECK: scf.if %[[MASKED]] -> (vector<16xf32>
// CHECK: arith.cmpi sle, {{.*}} : vector<16xi32>
// CHECK: llvm.store {{.*}} : vector<16xf32>
// CHECK: arith.cmpf ogt, {{.*}} : vector<16xf32>

// Outputs: the decay of what was summed so far goes into the accumulators.
// CHECK: arith.mulf
// CHECK: scf.for {{.*}} iter_args
// CHECK-COUNT-24: vector.fma

// A row that saw no key is 0.
// CHECK: arith.cmpf oeq
// CHECK: arith.divf
// CHECK: arith.select

// The log-sum-exp is optional.
// CHECK: llvm.icmp "ne"
// CHECK: scf.if
tile.kernel @attention_f32_d64_e64_q64_k64_x1(%arg0: !tile.view<?x64xf32> {tile.field = "q"}, %arg1: !tile.view<?x64xf32> {tile.field = "k"}, %arg2: !tile.view<?x64xf32> {tile.field = "v"}, %arg3: !tile.view<?x64xf32> {tile.field = "o"}, %arg4: !tile.view<?xf32> {tile.field = "lse"}, %arg5: !tile.index<64> {tile.field = "keys"}, %arg6: f32 {tile.field = "scale"}, %arg7: i64 {tile.field = "position"}) attributes {abi = "attention"} {
  %c2147418111_i64 = arith.constant 2147418111 : i64
  %0 = arith.minsi %arg7, %c2147418111_i64 : i64
  %c-2147418111_i64 = arith.constant -2147418111 : i64
  %1 = arith.maxsi %0, %c-2147418111_i64 : i64
  %2 = arith.trunci %1 : i64 to i32
  %3 = tile.rows : tensor<64xi32>
  %4 = tile.broadcast %2 dims = [] : i32 -> tensor<64xi32>
  %5 = arith.addi %3, %4 : tensor<64xi32>
  %cst = arith.constant 1.44269502 : f32
  %6 = arith.mulf %arg6, %cst : f32
  %7 = tile.load %arg0 : <?x64xf32> -> tensor<64x64xf32>
  %8 = tile.broadcast %6 dims = [] : f32 -> tensor<64x64xf32>
  %9 = arith.mulf %7, %8 : tensor<64x64xf32>
  %cst_0 = arith.constant dense<-3.000000e+38> : tensor<64xf32>
  %cst_1 = arith.constant dense<0.000000e+00> : tensor<64xf32>
  %cst_2 = arith.constant dense<0.000000e+00> : tensor<64x64xf32>
  %10:3 = tile.for_tiles %arg8 in %arg5 iter_args(%arg9 = %cst_0, %arg10 = %cst_1, %arg11 = %cst_2) : !tile.index<64> -> (tensor<64xf32>, tensor<64xf32>, tensor<64x64xf32>) {
    %19 = tile.load %arg1[%arg8] : <?x64xf32>[!tile.keys<64>] -> tensor<64x64xf32>
    %20 = tile.dot %9, %19 transpose_b : tensor<64x64xf32>, tensor<64x64xf32> -> tensor<64x64xf32>
    %21 = tile.mask %20, %arg8 : tensor<64x64xf32>, <64> {
      %37 = tile.positions %arg8 : <64> -> tensor<64xi32>
      %38 = tile.broadcast %37 dims = [1] : tensor<64xi32> -> tensor<64x64xi32>
      %39 = tile.broadcast %5 dims = [0] : tensor<64xi32> -> tensor<64x64xi32>
      %40 = arith.cmpi sle, %38, %39 : tensor<64x64xi32>
      tile.yield %40 : tensor<64x64xi1>
    }
    %22 = tile.reduce_row max %21 : tensor<64x64xf32> -> tensor<64xf32>
    %23 = arith.cmpf ogt, %22, %arg9 : tensor<64xf32>
    %24 = arith.select %23, %22, %arg9 : tensor<64xi1>, tensor<64xf32>
    %25 = arith.subf %arg9, %24 : tensor<64xf32>
    %26 = math.exp2 %25 : tensor<64xf32>
    %27 = tile.broadcast %24 dims = [0] : tensor<64xf32> -> tensor<64x64xf32>
    %28 = arith.subf %21, %27 : tensor<64x64xf32>
    %29 = math.exp2 %28 : tensor<64x64xf32>
    %30 = tile.reduce_row sum %29 : tensor<64x64xf32> -> tensor<64xf32>
    %31 = arith.mulf %arg10, %26 : tensor<64xf32>
    %32 = arith.addf %31, %30 : tensor<64xf32>
    %33 = tile.broadcast %26 dims = [0] : tensor<64xf32> -> tensor<64x64xf32>
    %34 = arith.mulf %arg11, %33 : tensor<64x64xf32>
    %35 = tile.load %arg2[%arg8] : <?x64xf32>[!tile.keys<64>] -> tensor<64x64xf32>
    %36 = tile.dot %29, %35 acc %34 : tensor<64x64xf32> : tensor<64x64xf32>, tensor<64x64xf32> -> tensor<64x64xf32>
    tile.yield %24, %32, %36 : tensor<64xf32>, tensor<64xf32>, tensor<64x64xf32>
  }
  %cst_3 = arith.constant dense<0.000000e+00> : tensor<64xf32>
  %11 = arith.cmpf oeq, %10#1, %cst_3 : tensor<64xf32>
  %cst_4 = arith.constant dense<1.000000e+00> : tensor<64xf32>
  %12 = arith.divf %cst_4, %10#1 : tensor<64xf32>
  %13 = arith.select %11, %cst_3, %12 : tensor<64xi1>, tensor<64xf32>
  %14 = tile.broadcast %13 dims = [0] : tensor<64xf32> -> tensor<64x64xf32>
  %15 = arith.mulf %10#2, %14 : tensor<64x64xf32>
  tile.store %15, %arg3 : tensor<64x64xf32>, <?x64xf32>
  %16 = math.log2 %10#1 : tensor<64xf32>
  %17 = arith.addf %10#0, %16 : tensor<64xf32>
  %cst_5 = arith.constant dense<0.693147182> : tensor<64xf32>
  %18 = arith.mulf %17, %cst_5 : tensor<64xf32>
  tile.store %18, %arg4 : tensor<64xf32>, <?xf32>
  tile.return
}
