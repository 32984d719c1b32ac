// RUN: prefill-opt %s | prefill-opt | FileCheck %s

// CHECK-LABEL: warp.kernel @scores
// CHECK-SAME: schedule = #warp.schedule<arch = 80, warps = 4, index = lists>
warp.kernel @scores(%q: !tile.view<?x64xf16> {tile.field = "q"},
                    %k: !tile.view<?x64xf16> {tile.field = "k"},
                    %keys: !tile.index<80> {tile.field = "keys"})
    attributes {schedule = #warp.schedule<arch = 80, warps = 4, index = lists>} {
  // CHECK: warp.alloc : <1, 64x64xf16>
  %qs = warp.alloc : !warp.ring<1, 64x64xf16>
  %ks = warp.alloc : !warp.ring<2, 80x64xf16>
  %c0 = arith.constant 0 : i32
  %c1 = arith.constant 1 : i32
  // CHECK: warp.count %{{.*}} : <80>
  %n = warp.count %keys : !tile.index<80>
  // CHECK: warp.acquire %{{.*}}[%{{.*}}] : <1, 64x64xf16> -> <64x64xf16, empty>
  %e = warp.acquire %qs[%c0] : !warp.ring<1, 64x64xf16> -> !warp.smem<64x64xf16, empty>
  // CHECK: warp.copy %{{.*}} to %{{.*}} : <?x64xf16> to <64x64xf16, empty>
  warp.copy %q to %e : !tile.view<?x64xf16> to !warp.smem<64x64xf16, empty>
  warp.commit %qs[%c0] : !warp.ring<1, 64x64xf16>
  // CHECK: warp.keys %{{.*}}[%{{.*}}] : <80> -> <80>
  %t = warp.keys %keys[%c0] : !tile.index<80> -> !tile.keys<80>
  %e2 = warp.acquire %ks[%c0] : !warp.ring<2, 80x64xf16> -> !warp.smem<80x64xf16, empty>
  // CHECK: warp.copy %{{.*}}[%{{.*}}] to
  warp.copy %k[%t] to %e2 : !tile.view<?x64xf16>[!tile.keys<80>] to !warp.smem<80x64xf16, empty>
  warp.commit %ks[%c0] : !warp.ring<2, 80x64xf16>
  // CHECK: warp.wait %{{.*}}[%{{.*}}] newer = 1 : <1, 64x64xf16> -> <64x64xf16, full>
  %a = warp.wait %qs[%c0] newer = 1 : !warp.ring<1, 64x64xf16> -> !warp.smem<64x64xf16, full>
  %b = warp.wait %ks[%c0] newer = 0 : !warp.ring<2, 80x64xf16> -> !warp.smem<80x64xf16, full>
  // CHECK: warp.mma %{{.*}}, %{{.*}} transpose_b : !warp.smem<64x64xf16, full>, <80x64xf16, full> -> tensor<64x80xf32, #warp.frag<acc>>
  %s = warp.mma %a, %b transpose_b : !warp.smem<64x64xf16, full>, !warp.smem<80x64xf16, full> -> tensor<64x80xf32, #warp.frag<acc>>
  // CHECK: warp.release
  warp.release %ks[%c0] : !warp.ring<2, 80x64xf16>
  warp.return
}

// CHECK-LABEL: warp.kernel @pending
warp.kernel @pending(%k: !tile.view<?x64xbf16> {tile.field = "k"})
    attributes {schedule = #warp.schedule<arch = 90, warps = 4, index = dense>} {
  %ks = warp.alloc : !warp.ring<2, 64x64xbf16>
  %c0 = arith.constant 0 : i32
  warp.commit %ks[%c0] : !warp.ring<2, 64x64xbf16>
  %b = warp.wait %ks[%c0] newer = 0 : !warp.ring<2, 64x64xbf16> -> !warp.smem<64x64xbf16, full>
  // CHECK: warp.mma_issue {{.*}} -> <tensor<64x64xf32, #warp.frag<acc>>>
  %p = warp.mma_issue %b, %b transpose_b : !warp.smem<64x64xbf16, full>, !warp.smem<64x64xbf16, full> -> !warp.pending<tensor<64x64xf32, #warp.frag<acc>>>
  %r = warp.mma_issue %b, %b transpose_b : !warp.smem<64x64xbf16, full>, !warp.smem<64x64xbf16, full> -> !warp.pending<tensor<64x64xf32, #warp.frag<acc>>>
  // CHECK: warp.mma_wait %{{.*}} newer = 1 : <tensor<64x64xf32, #warp.frag<acc>>> -> tensor<64x64xf32, #warp.frag<acc>>
  %s = warp.mma_wait %p newer = 1 : !warp.pending<tensor<64x64xf32, #warp.frag<acc>>> -> tensor<64x64xf32, #warp.frag<acc>>
  %t = warp.mma_wait %r newer = 0 : !warp.pending<tensor<64x64xf32, #warp.frag<acc>>> -> tensor<64x64xf32, #warp.frag<acc>>
  warp.return
}

// CHECK-LABEL: warp.kernel @persistent
warp.kernel @persistent(%q: !tile.view<?x64xf16> {tile.field = "q"})
    attributes {schedule = #warp.schedule<arch = 90, warps = 8, index = dense>} {
  %ring = warp.alloc : !warp.ring<1, 64x64xf16>
  warp.roles copy 40 {
    // CHECK: warp.for_work {
    // CHECK-NEXT: ^bb0(%[[WORK:.*]]: i32, %[[FIRST:.*]]: i32, %[[Q:.*]]: !tile.view<?x64xf16>):
    warp.for_work {
    ^bb0(%work: i32, %first: i32, %mine: !tile.view<?x64xf16>):
      %empty = warp.acquire %ring[%work] : !warp.ring<1, 64x64xf16> -> !warp.smem<64x64xf16, empty>
      // CHECK: warp.copy %[[Q]] to
      warp.copy %mine to %empty : !tile.view<?x64xf16> to !warp.smem<64x64xf16, empty>
      warp.commit %ring[%work] : !warp.ring<1, 64x64xf16>
      // CHECK: warp.next_work %[[FIRST]]
      warp.next_work %first
    }
  } compute 232 {
    warp.for_work {
    ^bb0(%work: i32, %first: i32, %mine: !tile.view<?x64xf16>):
      %full = warp.wait %ring[%work] newer = 0 : !warp.ring<1, 64x64xf16> -> !warp.smem<64x64xf16, full>
      warp.release %ring[%work] : !warp.ring<1, 64x64xf16>
      warp.next_work %first
    }
  }
  warp.return
}
