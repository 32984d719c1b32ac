; Deadlocks, too many arrivals, divergence: each kernel has one planted bug.
; RUN: not prefill-emu %s -kernel=no_arrival -block=64 -shared=8 | FileCheck %s --check-prefix=NOARRIVAL
; RUN: not prefill-emu %s -kernel=short_barrier -block=64 | FileCheck %s --check-prefix=SHORT
; RUN: not prefill-emu %s -kernel=crossed -block=64 | FileCheck %s --check-prefix=CROSSED
; RUN: not prefill-emu %s -kernel=mbarrier_twice -block=32 -shared=8 | FileCheck %s --check-prefix=TWICE
; RUN: not prefill-emu %s -kernel=arrive_twice -block=64 | FileCheck %s --check-prefix=NAMED
; RUN: not prefill-emu %s -kernel=half_shuffle -block=32 | FileCheck %s --check-prefix=HALF
; RUN: not prefill-emu %s -kernel=two_shuffles -block=32 -seed=3 | FileCheck %s --check-prefix=TWO
; RUN: not prefill-emu %s -kernel=endless -block=32 -max-iterations=1000 | FileCheck %s --check-prefix=ENDLESS
; RUN: not prefill-emu %s -kernel=registers -block=512 -registers=128 | FileCheck %s --check-prefix=REGISTERS
; RUN: not prefill-emu %s -kernel=not_initialised -block=32 -shared=8 | FileCheck %s --check-prefix=NOTINIT
; RUN: not prefill-emu %s -kernel=no_barrier_after_init -block=64 -shared=8 | FileCheck %s --check-prefix=NOSYNC
; RUN: prefill-emu %s -kernel=ping_pong -block=64 -seed=4 -counts | FileCheck %s --check-prefix=PINGPONG
target triple = "nvptx64-nvidia-cuda"
@smem = external addrspace(3) global [0 x i8], align 16

declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
declare i32 @llvm.nvvm.shfl.sync.idx.i32(i32, i32, i32, i32)
declare void @llvm.nvvm.barrier.cta.sync.aligned.all(i32)
declare void @llvm.nvvm.barrier.cta.sync.aligned.count(i32, i32)
declare void @llvm.nvvm.mbarrier.init.shared(ptr addrspace(3), i32)
declare i64 @llvm.nvvm.mbarrier.arrive.shared(ptr addrspace(3))
declare void @llvm.nvvm.setmaxnreg.inc.sync.aligned.u32(i32)

; NOARRIVAL: deadlock: kernel no_arrival, block (0,0,0), thread 0: no thread can go on: 64 threads (0..63) wait for phase 0 of mbarrier 0x400 (1 of 1 arrivals and 0 bytes missing in phase 0) at mbarrier.try_wait.parity.shared.b64
define ptx_kernel void @no_arrival() {
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %first = icmp eq i32 %tid, 0
  br i1 %first, label %init, label %wait
init:
  call void @llvm.nvvm.mbarrier.init.shared(ptr addrspace(3) @smem, i32 1)
  br label %wait
wait:
  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)
  call void asm sideeffect "{ .reg .pred P; L: mbarrier.try_wait.parity.shared.b64 P, [$0], $1; @P bra.uni D; bra.uni L; D: }", "r,r"(ptr addrspace(3) @smem, i32 0)
  ret void
}

; SHORT: deadlock: {{.*}}32 threads (0..31) wait at barrier 1 (32 of 64 threads arrived) at barrier.cta.sync.aligned.count, block %go; 32 exited
define ptx_kernel void @short_barrier() {
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %low = icmp ult i32 %tid, 32
  br i1 %low, label %go, label %out
go:
  call void @llvm.nvvm.barrier.cta.sync.aligned.count(i32 1, i32 64)
  br label %out
out:
  ret void
}

; CROSSED: deadlock: {{.*}}32 threads (0..31) wait at barrier 1 {{.*}}; 32 threads (32..63) wait at barrier 2
define ptx_kernel void @crossed() {
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %w = lshr i32 %tid, 5
  %id = add i32 %w, 1
  call void @llvm.nvvm.barrier.cta.sync.aligned.count(i32 %id, i32 64)
  ret void
}

; TWICE: over-arrival: kernel mbarrier_twice, block (0,0,0), thread 0: mbarrier 0x400 for 2 arrivals gets more in phase 0 (16 bytes are still to come); at mbarrier.arrive.shared, %c in block %init
define ptx_kernel void @mbarrier_twice() {
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %first = icmp eq i32 %tid, 0
  br i1 %first, label %init, label %out
init:
  call void @llvm.nvvm.mbarrier.init.shared(ptr addrspace(3) @smem, i32 2)
  call void asm sideeffect "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [$0], 16;", "r"(ptr addrspace(3) @smem)
  %a = call i64 @llvm.nvvm.mbarrier.arrive.shared(ptr addrspace(3) @smem)
  %b = call i64 @llvm.nvvm.mbarrier.arrive.shared(ptr addrspace(3) @smem)
  %c = call i64 @llvm.nvvm.mbarrier.arrive.shared(ptr addrspace(3) @smem)
  br label %out
out:
  ret void
}

; NAMED: over-arrival: kernel arrive_twice, block (0,0,0), thread 0: arrives twice at barrier 1 before it completes
define ptx_kernel void @arrive_twice() {
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %low = icmp ult i32 %tid, 32
  br i1 %low, label %go, label %out
go:
  call void asm sideeffect "bar.arrive $0, $1;", "r,r"(i32 1, i32 64)
  call void asm sideeffect "bar.arrive $0, $1;", "r,r"(i32 1, i32 64)
  br label %out
out:
  ret void
}

; HALF: divergence: kernel half_shuffle, block (0,0,0), thread {{[0-9]+}}: lane {{[0-9]+}} exits while other lanes of the warp wait for it; at shfl.sync.idx.i32, %v in block %go
define ptx_kernel void @half_shuffle() {
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %low = icmp ult i32 %tid, 16
  br i1 %low, label %go, label %out
go:
  %v = call i32 @llvm.nvvm.shfl.sync.idx.i32(i32 -1, i32 %tid, i32 0, i32 31)
  br label %out
out:
  ret void
}

; TWO: divergence: kernel two_shuffles, {{.*}} of the warp are at shfl.sync.idx.i32, {{.*}}; at shfl.sync.idx.i32, %{{[ab]}} in block
define ptx_kernel void @two_shuffles() {
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %low = icmp ult i32 %tid, 16
  br i1 %low, label %go, label %else
go:
  %a = call i32 @llvm.nvvm.shfl.sync.idx.i32(i32 -1, i32 %tid, i32 0, i32 31)
  ret void
else:
  %b = call i32 @llvm.nvvm.shfl.sync.idx.i32(i32 -1, i32 %tid, i32 1, i32 31)
  ret void
}

; ENDLESS: endless: kernel endless, block (0,0,0), thread 0: went round its loops 1001 times; at loop, block %loop
define ptx_kernel void @endless() {
  br label %loop
loop:
  br label %loop
}

; 512 threads of 128 registers are all there is.
; REGISTERS: deadlock: {{.*}} threads {{.*}} wait for 4096 registers (0 free) at setmaxnreg.inc.sync.aligned.u32
define ptx_kernel void @registers() {
  call void @llvm.nvvm.setmaxnreg.inc.sync.aligned.u32(i32 256)
  ret void
}

; NOTINIT: barrier: kernel not_initialised, {{.*}}: no mbarrier was initialised at shared address 0x400; at mbarrier.arrive.shared
define ptx_kernel void @not_initialised() {
  %a = call i64 @llvm.nvvm.mbarrier.arrive.shared(ptr addrspace(3) @smem)
  ret void
}

; NOSYNC: race: kernel no_barrier_after_init, block (0,0,0), thread 32: mbarrier 0x400 was initialised by thread 0 without synchronisation in between
define ptx_kernel void @no_barrier_after_init() {
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %first = icmp eq i32 %tid, 0
  br i1 %first, label %init, label %arrive
init:
  call void @llvm.nvvm.mbarrier.init.shared(ptr addrspace(3) @smem, i32 64)
  br label %arrive
arrive:
  %a = call i64 @llvm.nvvm.mbarrier.arrive.shared(ptr addrspace(3) @smem)
  ret void
}

; Two warps take turns: sync on the own barrier, arrive on the other's.
; PINGPONG-NOT: kernel
; PINGPONG-DAG: 8 bar.arrive
; PINGPONG-DAG: 8 barrier.cta.sync.aligned.count
define ptx_kernel void @ping_pong() {
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %w = lshr i32 %tid, 5
  %mine = add i32 %w, 1
  %other = sub i32 3, %mine
  %second = icmp eq i32 %w, 1
  br i1 %second, label %start, label %head
start:
  call void asm sideeffect "bar.arrive $0, $1;", "r,r"(i32 1, i32 64)
  br label %head
head:
  %i = phi i32 [ 0, %0 ], [ 0, %start ], [ %j, %head.next ]
  call void @llvm.nvvm.barrier.cta.sync.aligned.count(i32 %mine, i32 64)
  %j = add i32 %i, 1
  %done = icmp eq i32 %j, 4
  %last = and i1 %done, %second
  br i1 %last, label %out, label %head.arrive
head.arrive:
  call void asm sideeffect "bar.arrive $0, $1;", "r,r"(i32 %other, i32 64)
  br label %head.next
head.next:
  br i1 %done, label %out, label %head
out:
  ret void
}
