// RUN: prefill-opt %S/attention.mlir -tile-to-tensor-cores -schedule-warpgroups="warpgroups=2 stages=2" | FileCheck %s --check-prefix=WARP
// RUN: prefill-opt %S/attention.mlir -tile-to-tensor-cores -schedule-warpgroups="warpgroups=2 lists=true" | FileCheck %s --check-prefix=LISTS
// RUN: prefill-opt %S/attention.mlir -tile-to-tensor-cores -schedule-warpgroups="warpgroups=2" -convert-warp-to-nvvm | FileCheck %s --check-prefix=NVVM

// One warpgroup copies Q, then K and V tile by tile.
// WARP: warp.kernel @attention
// WARP-SAME: #warp.schedule<arch = 90, warps = 8, index = dense>
// WARP: %[[QR:.*]] = warp.alloc : <1, 128x64xf16>
// WARP: %[[KR:.*]] = warp.alloc : <2, 64x64xf16>
// WARP: %[[VR:.*]] = warp.alloc : <2, 64x64xf16>
// WARP: warp.roles copy 40 {
// WARP: warp.commit %[[QR]]
// WARP: scf.for
// WARP: warp.acquire %[[KR]]
// WARP: warp.commit %[[KR]]
// WARP: warp.acquire %[[VR]]
// WARP: warp.commit %[[VR]]
// The others compute; the scores of the first tile come before all loops.
// WARP: } compute 232 {
// WARP: warp.order_pass start
// WARP: %[[Q:.*]] = warp.wait %[[QR]]
// WARP: %[[K:.*]] = warp.wait %[[KR]]
// WARP: %[[S:.*]] = warp.mma_issue %[[Q]], %[[K]] transpose_b
// WARP: warp.mma_wait %[[S]] newer = 0
// WARP: warp.release %[[KR]]
// WARP: tile.mask
// The loops: QK of this tile and PV of the one before, in turn; exponentials
// over PV; P is rounded when the product does not read its registers any more.
// WARP: scf.for
// WARP: %[[BEFORE:.*]] = arith.subi
// WARP: warp.wait %[[KR]]
// WARP: warp.order_wait
// WARP: %[[S:.*]] = warp.mma_issue %[[Q]]
// WARP: %[[V:.*]] = warp.wait %[[VR]][%[[BEFORE]]]
// WARP: %[[O:.*]] = warp.mma_issue %{{.*}}, %[[V]] acc
// WARP: warp.order_pass
// WARP: warp.mma_wait %[[S]] newer = 1
// WARP: warp.release %[[KR]]
// WARP: tile.mask
// WARP: math.exp2 %{{.*}} : tensor<128x64xf32, #warp.frag<acc>>
// WARP: %[[SUM:.*]] = warp.mma_wait %[[O]] newer = 0
// WARP: warp.release %[[VR]][%[[BEFORE]]]
// WARP: arith.truncf
// WARP: arith.mulf %[[SUM]]
// WARP: scf.yield
// The same without a mask; then the last PV.
// WARP: scf.for
// WARP-NOT: tile.mask
// WARP: scf.yield
// WARP: %[[O:.*]] = warp.mma_issue
// WARP: warp.mma_wait %[[O]] newer = 0
// WARP: tile.store

// LISTS: index = lists
// LISTS: } compute
// LISTS: %[[BEGIN:.*]], %[[END:.*]], %[[COLUMNS:.*]] = warp.full_tiles
// LISTS: scf.for
// LISTS: warp.keys {{.*}} part block
// LISTS-NOT: tile.mask
// LISTS: scf.for
// LISTS: warp.keys {{.*}} masked part block
// LISTS: tile.mask
// LISTS: scf.for
// LISTS: warp.keys {{.*}} masked part columns
// LISTS: tile.mask

// A stage is full when 128 threads have copied, empty when 8 warps have read.
// NVVM: llvm.func @attention
// NVVM: %[[FULL:.*]] = llvm.mlir.constant(128 : i32) : i32
// NVVM: nvvm.mbarrier.init %{{.*}}, %[[FULL]]
// NVVM: %[[EMPTY:.*]] = llvm.mlir.constant(8 : i32) : i32
// NVVM: nvvm.mbarrier.init %{{.*}}, %[[EMPTY]]
// NVVM: nvvm.fence.mbarrier.init
// NVVM: nvvm.barrier
// NVVM: nvvm.setmaxregister decrease 40
// NVVM: nvvm.cp.async.shared.global
// NVVM: nvvm.cp.async.mbarrier.arrive %{{.*}} {noinc = true}
// NVVM: nvvm.setmaxregister increase 232
// What cp.async wrote is seen by wgmma after the proxy fence. Every group has
// its fence; the first step of QK reads no accumulators.
// NVVM: mbarrier.try_wait.parity
// NVVM: nvvm.fence.proxy
// NVVM: nvvm.wgmma.fence.aligned
// NVVM: llvm.inline_asm {{.*}}setp.ne.b32 p, 0, 0;{{.*}}wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16{{.*}}p, 1, 1, 0, 0;
// NVVM: setp.ne.b32 p, 1, 0;
// NVVM: nvvm.wgmma.commit.group.sync.aligned
// NVVM: wgmma.wait_group.sync.aligned 0;
// NVVM: nvvm.mbarrier.arrive
// PV: four registers of P, V transposed.
// NVVM: scf.for
// NVVM: nvvm.barrier id =
// NVVM: wgmma.mma_async{{.*}}m64n64k16{{.*}}p, 1, 1, 0, 0;
// NVVM: nvvm.wgmma.fence.aligned
// NVVM: wgmma.mma_async{{.*}}m64n64k16{{.*}}p, 1, 1, 1;
// NVVM: nvvm.wgmma.commit.group.sync.aligned
// NVVM: bar.arrive
// NVVM: wgmma.wait_group.sync.aligned 1;
// NVVM: nvvm.mbarrier.arrive
// NVVM: wgmma.wait_group.sync.aligned 0;

// One thread of the copying warpgroup fills all rings by TMA; its bytes complete
// the stage, and no proxy fence is needed behind the wait.
// RUN: prefill-opt %S/attention.mlir -tile-to-tensor-cores -schedule-warpgroups="tensor-maps=true copy-registers=24 compute-registers=240" -convert-warp-to-nvvm | FileCheck %s --check-prefix=TMA
// TMA: llvm.func @attention(%arg0: !llvm.ptr {{.*}}, %[[MAPS:.*]]: !llvm.ptr {{.*}}llvm.byval = !llvm.array<384 x i8>
// TMA: %[[ONE:.*]] = llvm.mlir.constant(1 : i32) : i32
// TMA: nvvm.mbarrier.init %{{.*}}, %[[ONE]]
// TMA: nvvm.setmaxregister decrease 24
// TMA: nvvm.mbarrier.arrive.expect_tx
// TMA: nvvm.cp.async.bulk.tensor.shared.cluster.global
// TMA-NOT: nvvm.fence.proxy

// Persistent: both sides go through the same tiles of query rows. Rings go on:
// their numbers begin where the tile before ended. Q is free after the last
// scores, before the last product; turns are given once.
// RUN: prefill-opt %S/attention.mlir -tile-to-tensor-cores -schedule-warpgroups="warpgroups=2 persistent=true" | FileCheck %s --check-prefix=WORK
// WORK: %[[QR:.*]] = warp.alloc
// WORK: %[[KR:.*]] = warp.alloc
// WORK: %[[VR:.*]] = warp.alloc
// WORK: warp.roles copy
// WORK-NEXT: warp.for_work {
// WORK-NEXT: ^bb0(%[[WORK:[^:]*]]: i32, %[[FIRST:[^:]*]]: i32, %[[Q:[^:]*]]: !tile.view
// WORK: %[[COUNT:.*]] = arith.maxsi
// WORK: warp.acquire %[[QR]][%[[WORK]]]
// WORK: warp.copy %[[Q]] to
// WORK: scf.for %[[I:.*]] =
// WORK: %[[STAGE:.*]] = arith.addi %[[FIRST]], %[[I]]
// WORK: warp.acquire %[[KR]][%[[STAGE]]]
// WORK: warp.acquire %[[VR]][%[[STAGE]]]
// WORK: %[[NEXT:.*]] = arith.addi %[[FIRST]], %[[COUNT]]
// WORK-NEXT: warp.next_work %[[NEXT]]
// WORK: compute
// WORK: warp.order_pass start
// WORK-NEXT: warp.for_work {
// WORK-NEXT: ^bb0(%[[WORK:[^:]*]]: i32, %[[FIRST:[^:]*]]: i32,
// WORK-NOT: start
// WORK: warp.wait %[[QR]][%[[WORK]]]
// WORK: scf.for
// WORK: scf.for
// WORK: scf.yield
// WORK: warp.release %[[QR]][%[[WORK]]]
// WORK: warp.mma_issue
// WORK: warp.mma_wait
// WORK: tile.store
// WORK: warp.next_work

// A block's tiles: every n-th of n blocks, back and forth.
// RUN: prefill-opt %S/attention.mlir -tile-to-tensor-cores -schedule-warpgroups="warpgroups=2 persistent=true" -convert-warp-to-nvvm | FileCheck %s --check-prefix=ROUNDS
// ROUNDS: nvvm.setmaxregister decrease
// ROUNDS: scf.for %[[ROUND:.*]] = {{.*}} iter_args
// ROUNDS: %[[BLOCKS:.*]] = nvvm.read.ptx.sreg.nctaid.x
// ROUNDS: %[[BEFORE:.*]] = arith.muli %[[ROUND]], %[[BLOCKS]]
// ROUNDS: %[[ODD:.*]] = arith.cmpi ne
// ROUNDS: %[[BLOCK:.*]] = nvvm.read.ptx.sreg.ctaid.x
// ROUNDS: %[[BACK:.*]] = arith.subi %{{.*}}, %[[BLOCK]]
// ROUNDS: %[[PLACE:.*]] = arith.select %[[ODD]], %[[BACK]], %[[BLOCK]]
// ROUNDS: arith.addi %[[BEFORE]], %[[PLACE]]
// The same where the others compute; where it is stored is found again.
// ROUNDS: nvvm.setmaxregister increase
// ROUNDS: scf.for %[[ROUND:.*]] = {{.*}} iter_args
// ROUNDS: arith.muli %[[ROUND]],
// ROUNDS: wgmma
// ROUNDS: %[[AGAIN:.*]] = llvm.inline_asm has_side_effects "", "=r,0" %[[ROUND]]
// ROUNDS: arith.muli %[[AGAIN]],
// ROUNDS: llvm.store
