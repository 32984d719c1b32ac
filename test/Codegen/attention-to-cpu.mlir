// RUN: prefill-opt %s -tile-lower-to-cpu | FileCheck %s

// The causal kernel as the kernel builder writes it (-emit=tile): which ops share
// a loop, and what lies in the workspace.

// Packed q, scores, outputs and a buffer for V of gathered columns are 16 KB each;
// probabilities overwrite scores, outputs are updated in place. The rest is
// numbers a row.
// CHECK: prefill.workspace_bytes = 68928

// q's rows are on their way before they are read; packed and scaled in one go.
// CHECK: scf.for
// CHECK: llvm.intr.prefetch
// CHECK: scf.for {{.*}} step %c16_i64
// CHECK: vector.shuffle
// CHECK: arith.mulf
// CHECK: llvm.store

// The output's rows.
// CHECK: llvm.intr.prefetch

// One round of the index: this and the next block's number, whether the first 32
// rows see less than a whole tile, key numbers only where masked, then nothing
// more if no key is left.
// CHECK: scf.if %{{.*}} -> (i64, i64)
// CHECK: %[[LESS:.*]] = arith.cmpi slt, %{{.*}}, %c64_i64
// CHECK: %[[TRIMS:.*]] = arith.ori %[[LESS]]
// CHECK: %[[ANY:.*]] = scf.if %[[MASKED:[^ ]*]] -> (i1)
// CHECK: scf.for
// CHECK: scf.if %[[ANY]] {

// Scores on the diagonal: groups of 32 rows, keys in pieces of 8 from the first
// to the last one that a group sees, those past what its first 16 rows see for
// the other 16 only; all of them are masked.
// CHECK: scf.if %[[TRIMS]] {
// CHECK: scf.for {{.*}} step %c32_i64
// CHECK: arith.maxsi
// CHECK: arith.minsi
// CHECK: scf.for {{.*}} step %c8_i64{{.*}} iter_args({{.*}}) -> (vector<16xf32>, vector<16xf32>)
// CHECK: scf.for {{.*}} iter_args
// CHECK-NOT: llvm.intr.prefetch
// CHECK-COUNT-16: vector.fma
// CHECK-NOT: vector.fma
// CHECK-NOT: scf.if
// CHECK: arith.cmpi sle, {{.*}} : vector<16xi32>
// CHECK: scf.for {{.*}} iter_args({{.*}}) -> (vector<16xf32>) : i64
// CHECK: scf.for {{.*}} iter_args
// CHECK-COUNT-8: vector.fma
// CHECK-NOT: vector.fma
// CHECK: arith.cmpi sle, {{.*}} : vector<16xi32>
// CHECK: } else {

// Elsewhere: every round asks for a line of the next block, the mask is behind a
// branch in the epilogue of the register tile, and the row maxima are carried
// beside it.
// CHECK: scf.for {{.*}} iter_args({{.*}}) -> (vector<16xf32>, vector<16xf32>, vector<16xf32>, vector<16xf32>)
// CHECK: scf.for {{.*}} iter_args
// CHECK: llvm.intr.prefetch
// CHECK-COUNT-24: vector.fma
// CHECK: scf.if %[[MASKED]] -> (vector<16xf32>
// CHECK: arith.cmpi sle, {{.*}} : vector<16xi32>
// CHECK: llvm.store {{.*}} : vector<16xf32>
// CHECK: arith.cmpf ogt, {{.*}} : vector<16xf32>

// Exponentials.
// CHECK: scf.if %[[TRIMS]] {
// CHECK: avx512.mask.scalef
// CHECK: } else {
// CHECK: avx512.mask.scalef

// Outputs, where masked: are all values finite? Two rows of 64 at a time, eight
// sums. If not, what a row does not see is left out of its sums.
// CHECK: %[[UNSOUND:.*]] = scf.if %[[MASKED]] -> (i1) {
// CHECK: scf.for {{.*}} step %c2_i64 iter_args
// CHECK-COUNT-8: vector.fma
// CHECK-NOT: vector.fma
// CHECK: arith.cmpf uno
// CHECK: vector.reduction <or>
// CHECK: scf.if %[[UNSOUND]] {
// CHECK: scf.for {{.*}} iter_args
// CHECK: %[[VISIBLE:.*]] = arith.andi {{.*}} : vector<16xi1>
// CHECK: %[[MORE:.*]] = vector.fma
// CHECK: arith.select %[[VISIBLE]], %[[MORE]], %{{.*}} : vector<16xi1>
// CHECK: } else {

// Outputs: the decay of what was summed so far goes into the accumulators.
// CHECK: scf.if %[[TRIMS]] {
// CHECK: arith.mulf
// CHECK: scf.for {{.*}} iter_args
// CHECK-COUNT-16: vector.fma
// CHECK: scf.for {{.*}} iter_args
// CHECK-COUNT-8: vector.fma
// CHECK-NOT: vector.fma
// CHECK: } else {
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
tile.kernel @attention_f32_d64_e64_q64_k64_x1(%arg0: !tile.view<?x64xf32> {tile.field = "q"}, %arg1: !tile.view<?x64xf32> {tile.field = "k"}, %arg2: !tile.view<?x64xf32> {tile.field = "v"}, %arg3: !tile.view<?x64xf32> {tile.field = "o"}, %arg4: !tile.view<?xf32> {tile.field = "lse"}, %arg5: !tile.index<64> {tile.field = "keys"}, %arg6: f32 {tile.field = "scale"}, %arg7: i64 {tile.field = "position"}, %arg8: i64 {tile.field = "window_right"}) attributes {abi = "attention"} {
  %0 = arith.addi %arg7, %arg8 : i64
  %c2147418111_i64 = arith.constant 2147418111 : i64
  %1 = arith.minsi %0, %c2147418111_i64 : i64
  %c-2147418111_i64 = arith.constant -2147418111 : i64
  %2 = arith.maxsi %1, %c-2147418111_i64 : i64
  %3 = arith.trunci %2 : i64 to i32
  %4 = tile.rows : tensor<64xi32>
  %5 = tile.broadcast %3 dims = [] : i32 -> tensor<64xi32>
  %6 = arith.addi %4, %5 : tensor<64xi32>
  %cst = arith.constant 1.44269502 : f32
  %7 = arith.mulf %arg6, %cst : f32
  %8 = tile.load %arg0 : <?x64xf32> -> tensor<64x64xf32>
  %9 = tile.broadcast %7 dims = [] : f32 -> tensor<64x64xf32>
  %10 = arith.mulf %8, %9 : tensor<64x64xf32>
  %cst_0 = arith.constant dense<-3.000000e+38> : tensor<64xf32>
  %cst_1 = arith.constant dense<0.000000e+00> : tensor<64xf32>
  %cst_2 = arith.constant dense<0.000000e+00> : tensor<64x64xf32>
  %11:3 = tile.for_tiles %arg9 in %arg5 iter_args(%arg10 = %cst_0, %arg11 = %cst_1, %arg12 = %cst_2) : !tile.index<64> -> (tensor<64xf32>, tensor<64xf32>, tensor<64x64xf32>) {
    %20 = tile.load %arg1[%arg9] : <?x64xf32>[!tile.keys<64>] -> tensor<64x64xf32>
    %21 = tile.dot %10, %20 transpose_b : tensor<64x64xf32>, tensor<64x64xf32> -> tensor<64x64xf32>
    %22 = tile.mask %21, %arg9 : tensor<64x64xf32>, <64> {
      %38 = tile.positions %arg9 : <64> -> tensor<64xi32>
      %39 = tile.broadcast %38 dims = [1] : tensor<64xi32> -> tensor<64x64xi32>
      %40 = tile.broadcast %6 dims = [0] : tensor<64xi32> -> tensor<64x64xi32>
      %41 = arith.cmpi sle, %39, %40 : tensor<64x64xi32>
      tile.yield %41 : tensor<64x64xi1>
    }
    %23 = tile.reduce_row max %22 : tensor<64x64xf32> -> tensor<64xf32>
    %24 = arith.cmpf ogt, %23, %arg10 : tensor<64xf32>
    %25 = arith.select %24, %23, %arg10 : tensor<64xi1>, tensor<64xf32>
    %26 = arith.subf %arg10, %25 : tensor<64xf32>
    %27 = math.exp2 %26 : tensor<64xf32>
    %28 = tile.broadcast %25 dims = [0] : tensor<64xf32> -> tensor<64x64xf32>
    %29 = arith.subf %22, %28 : tensor<64x64xf32>
    %30 = math.exp2 %29 : tensor<64x64xf32>
    %31 = tile.reduce_row sum %30 : tensor<64x64xf32> -> tensor<64xf32>
    %32 = arith.mulf %arg11, %27 : tensor<64xf32>
    %33 = arith.addf %32, %31 : tensor<64xf32>
    %34 = tile.broadcast %27 dims = [0] : tensor<64xf32> -> tensor<64x64xf32>
    %35 = arith.mulf %arg12, %34 : tensor<64x64xf32>
    %36 = tile.load %arg2[%arg9] : <?x64xf32>[!tile.keys<64>] -> tensor<64x64xf32>
    %37 = tile.dot %30, %36 acc %35 : tensor<64x64xf32> : tensor<64x64xf32>, tensor<64x64xf32> -> tensor<64x64xf32>
    tile.yield %25, %33, %37 : tensor<64xf32>, tensor<64xf32>, tensor<64x64xf32>
  }
  %cst_3 = arith.constant dense<0.000000e+00> : tensor<64xf32>
  %12 = arith.cmpf oeq, %11#1, %cst_3 : tensor<64xf32>
  %cst_4 = arith.constant dense<1.000000e+00> : tensor<64xf32>
  %13 = arith.divf %cst_4, %11#1 : tensor<64xf32>
  %14 = arith.select %12, %cst_3, %13 : tensor<64xi1>, tensor<64xf32>
  %15 = tile.broadcast %14 dims = [0] : tensor<64xf32> -> tensor<64x64xf32>
  %16 = arith.mulf %11#2, %15 : tensor<64x64xf32>
  tile.store %16, %arg3 : tensor<64x64xf32>, <?x64xf32>
  %17 = math.log2 %11#1 : tensor<64xf32>
  %18 = arith.addf %11#0, %17 : tensor<64xf32>
  %cst_5 = arith.constant dense<0.693147182> : tensor<64xf32>
  %19 = arith.mulf %18, %cst_5 : tensor<64xf32>
  tile.store %19, %arg4 : tensor<64xf32>, <?xf32>
  tile.return
}
