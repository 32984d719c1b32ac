// RUN: prefill-opt %s -tile-to-tensor-cores | FileCheck %s --check-prefix=FORM
// RUN: prefill-opt %s -tile-to-tensor-cores -convert-tile-to-warp="warps=4 stages=2" | FileCheck %s --check-prefix=WARP
// RUN: prefill-opt %s -tile-to-tensor-cores -convert-tile-to-warp="warps=4 stages=2" -convert-warp-to-nvvm | FileCheck %s --check-prefix=NVVM
// RUN: prefill-opt %s -tile-to-tensor-cores -convert-tile-to-warp="warps=4 stages=2" -convert-warp-to-nvvm -prefill-nvvm-to-llvm | FileCheck %s --check-prefix=LLVM

// The causal kernel as the kernel builder writes it, level by level.

// The factor of q moves behind the product; P is rounded for its product.
// FORM: %[[Q:.*]] = tile.load %{{.*}} : <?x64xf16> -> tensor<128x64xf16>
// FORM-NOT: arith.extf
// FORM: tile.for_tiles
// FORM: %[[K:.*]] = tile.load
// FORM: %[[S:.*]] = tile.dot %[[Q]], %[[K]] transpose_b : tensor<128x64xf16>, tensor<64x64xf16> -> tensor<128x64xf32>
// FORM: %[[C:.*]] = tile.broadcast %{{.*}} dims = [] : f32
// FORM: arith.mulf %[[S]], %[[C]]
// FORM: %[[P:.*]] = arith.truncf %{{.*}} : tensor<128x64xf32> to tensor<128x64xf16>
// FORM: tile.dot %[[P]]

// Q once, K(0), V(0), K(1) before the loop; in it V(i + 1) when all warps wait for
// K(i), and K(i + 2) when they wait for V(i).
// WARP: warp.kernel @attention
// WARP-SAME: #warp.schedule<arch = 80, warps = 4, index = dense>
// WARP: %[[VR:.*]] = warp.alloc : <2, 64x64xf16>
// WARP: %[[KR:.*]] = warp.alloc : <2, 64x64xf16>
// WARP: %[[QR:.*]] = warp.alloc : <1, 128x64xf16>
// WARP: warp.copy %arg0 to
// WARP: warp.commit %[[QR]]
// WARP: %[[N:.*]] = warp.count
// WARP: warp.copy %arg1[
// WARP: warp.commit %[[KR]]
// WARP: warp.copy %arg2[
// WARP: warp.commit %[[VR]]
// WARP: warp.copy %arg1[
// WARP: warp.commit %[[KR]]
// WARP: %[[QS:.*]] = warp.wait %[[QR]][%{{.*}}] newer = 3
// WARP: scf.for %[[I:.*]] = %{{.*}} to %[[N]]
// WARP: %[[KS:.*]] = warp.wait %[[KR]][%[[I]]] newer = 2
// WARP: %[[J:.*]] = arith.addi %[[I]], %c1
// WARP: arith.cmpi slt, %[[J]], %[[N]]
// WARP: scf.if
// WARP: warp.acquire %[[VR]][%[[J]]]
// WARP: warp.commit %[[VR]][%[[J]]]
// WARP: warp.mma %[[QS]], %[[KS]] transpose_b
// WARP: warp.release %[[KR]][%[[I]]]
// WARP: tile.mask
// WARP: tile.reduce_row max {{.*}} -> tensor<128xf32, #warp.frag<row>>
// WARP: %[[VS:.*]] = warp.wait %[[VR]][%[[I]]] newer = 2
// WARP: %[[J:.*]] = arith.addi %[[I]], %c2
// WARP: warp.acquire %[[KR]][%[[J]]]
// WARP: warp.mma %{{.*}}, %[[VS]] acc
// WARP: warp.release %[[VR]][%[[I]]]
// WARP: scf.yield

// 4 warps of 32 rows: 64 x 32 / 32 = 64 accumulators each of S and O, 4 numbers a
// row twice: maximum and sum.
// NVVM: llvm.mlir.global external @prefill_shared() {addr_space = 3 : i32
// NVVM: llvm.func @attention(%{{.*}}: !llvm.ptr {llvm.align = 8 : i64, llvm.byval = !llvm.array<296 x i8>
// NVVM-SAME: nvvm.kernel, nvvm.maxntid = array<i32: 128>, prefill.shared_bytes = 49152
// NVVM: nvvm.cp.async.shared.global {{.*}}, 16, cache = cg
// NVVM: nvvm.cp.async.commit.group
// NVVM: nvvm.cp.async.wait.group 3
// NVVM: nvvm.barrier
// NVVM: scf.for
// NVVM: nvvm.cp.async.wait.group 2
// NVVM: nvvm.barrier
// 4 steps of 16: 2 groups of rows, 8 of columns.
// NVVM-COUNT-2: nvvm.ldmatrix {{.*}}mma_layout<row>
// NVVM: nvvm.ldmatrix {{.*}}mma_layout<row>
// NVVM-COUNT-64: nvvm.mma.sync
// NVVM-NOT: nvvm.mma.sync
// NVVM: scf.if {{.*}} -> (f32, f32
// NVVM: arith.select
// NVVM: arith.maxnumf
// NVVM: nvvm.shfl.sync
// NVVM: llvm.nvvm.ex2.approx.ftz.f
// NVVM: llvm.nvvm.ff2f16x2.rn
// NVVM: nvvm.cp.async.wait.group 2
// NVVM: nvvm.barrier
// NVVM: nvvm.ldmatrix {{.*}}mma_layout<col>
// NVVM-COUNT-64: nvvm.mma.sync
// NVVM-NOT: nvvm.mma.sync
// NVVM: llvm.nvvm.rcp.approx.ftz.f
// NVVM: llvm.return

// LLVM-NOT: {{scf|arith|cf|unrealized}}.
// LLVM: llvm.cond_br

tile.kernel @attention(%arg0: !tile.view<?x64xf16> {tile.field = "q"}, %arg1: !tile.view<?x64xf16> {tile.field = "k"}, %arg2: !tile.view<?x64xf16> {tile.field = "v"}, %arg3: !tile.view<?x64xf16> {tile.field = "o"}, %arg4: !tile.view<?xf32> {tile.field = "lse"}, %arg5: !tile.index<64> {tile.field = "keys"}, %arg6: f32 {tile.field = "scale"}, %arg7: i64 {tile.field = "position"}, %arg8: i64 {tile.field = "window_right"}) attributes {abi = "attention"} {
  %0 = arith.addi %arg7, %arg8 : i64
  %c2147418111_i64 = arith.constant 2147418111 : i64
  %1 = arith.minsi %0, %c2147418111_i64 : i64
  %c-2147418111_i64 = arith.constant -2147418111 : i64
  %2 = arith.maxsi %1, %c-2147418111_i64 : i64
  %3 = arith.trunci %2 : i64 to i32
  %4 = tile.rows : tensor<128xi32>
  %5 = tile.broadcast %3 dims = [] : i32 -> tensor<128xi32>
  %6 = arith.addi %4, %5 : tensor<128xi32>
  %cst = arith.constant 1.44269502 : f32
  %7 = arith.mulf %arg6, %cst : f32
  %8 = tile.load %arg0 : <?x64xf16> -> tensor<128x64xf16>
  %9 = arith.extf %8 : tensor<128x64xf16> to tensor<128x64xf32>
  %10 = tile.broadcast %7 dims = [] : f32 -> tensor<128x64xf32>
  %11 = arith.mulf %9, %10 : tensor<128x64xf32>
  %cst_0 = arith.constant dense<-3.000000e+38> : tensor<128xf32>
  %cst_1 = arith.constant dense<0.000000e+00> : tensor<128xf32>
  %cst_2 = arith.constant dense<0.000000e+00> : tensor<128x64xf32>
  %12:3 = tile.for_tiles %arg9 in %arg5 iter_args(%arg10 = %cst_0, %arg11 = %cst_1, %arg12 = %cst_2) : !tile.index<64> -> (tensor<128xf32>, tensor<128xf32>, tensor<128x64xf32>) {
    %22 = tile.load %arg1[%arg9] : <?x64xf16>[!tile.keys<64>] -> tensor<64x64xf16>
    %23 = tile.dot %11, %22 transpose_b : tensor<128x64xf32>, tensor<64x64xf16> -> tensor<128x64xf32>
    %24 = tile.mask %23, %arg9 : tensor<128x64xf32>, <64> {
      %40 = tile.positions %arg9 : <64> -> tensor<64xi32>
      %41 = tile.broadcast %40 dims = [1] : tensor<64xi32> -> tensor<128x64xi32>
      %42 = tile.broadcast %6 dims = [0] : tensor<128xi32> -> tensor<128x64xi32>
      %43 = arith.cmpi sle, %41, %42 : tensor<128x64xi32>
      tile.yield %43 : tensor<128x64xi1>
    }
    %25 = tile.reduce_row max %24 : tensor<128x64xf32> -> tensor<128xf32>
    %26 = arith.cmpf ogt, %25, %arg10 : tensor<128xf32>
    %27 = arith.select %26, %25, %arg10 : tensor<128xi1>, tensor<128xf32>
    %28 = arith.subf %arg10, %27 : tensor<128xf32>
    %29 = math.exp2 %28 : tensor<128xf32>
    %30 = tile.broadcast %27 dims = [0] : tensor<128xf32> -> tensor<128x64xf32>
    %31 = arith.subf %24, %30 : tensor<128x64xf32>
    %32 = math.exp2 %31 : tensor<128x64xf32>
    %33 = tile.reduce_row sum %32 : tensor<128x64xf32> -> tensor<128xf32>
    %34 = arith.mulf %arg11, %29 : tensor<128xf32>
    %35 = arith.addf %34, %33 : tensor<128xf32>
    %36 = tile.broadcast %29 dims = [0] : tensor<128xf32> -> tensor<128x64xf32>
    %37 = arith.mulf %arg12, %36 : tensor<128x64xf32>
    %38 = tile.load %arg2[%arg9] : <?x64xf16>[!tile.keys<64>] -> tensor<64x64xf16>
    %39 = tile.dot %32, %38 acc %37 : tensor<128x64xf32> : tensor<128x64xf32>, tensor<64x64xf16> -> tensor<128x64xf32>
    tile.yield %27, %35, %39 : tensor<128xf32>, tensor<128xf32>, tensor<128x64xf32>
  }
  %cst_3 = arith.constant dense<0.000000e+00> : tensor<128xf32>
  %13 = arith.cmpf oeq, %12#1, %cst_3 : tensor<128xf32>
  %cst_4 = arith.constant dense<1.000000e+00> : tensor<128xf32>
  %14 = arith.divf %cst_4, %12#1 : tensor<128xf32>
  %15 = arith.select %13, %cst_3, %14 : tensor<128xi1>, tensor<128xf32>
  %16 = tile.broadcast %15 dims = [0] : tensor<128xf32> -> tensor<128x64xf32>
  %17 = arith.mulf %12#2, %16 : tensor<128x64xf32>
  %18 = arith.truncf %17 : tensor<128x64xf32> to tensor<128x64xf16>
  tile.store %18, %arg3 : tensor<128x64xf16>, <?x64xf16>
  %19 = math.log2 %12#1 : tensor<128xf32>
  %20 = arith.addf %12#0, %19 : tensor<128xf32>
  %cst_5 = arith.constant dense<0.693147182> : tensor<128xf32>
  %21 = arith.mulf %20, %cst_5 : tensor<128xf32>
  tile.store %21, %arg4 : tensor<128xf32>, <?xf32>
  tile.return
}
