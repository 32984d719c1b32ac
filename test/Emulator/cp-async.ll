; cp.async: a missing wait, a missing barrier, fewer source bytes, arrival on an mbarrier.
; RUN: prefill-emu %s -kernel=copy -block=32 -shared=512 -buffer=i:i32x128:iota -buffer=o:i32x128:none -param=buffer:i -param=buffer:o -param=i32:0 -param=i32:16 -print=o:8 | FileCheck %s --check-prefix=COPY
; RUN: prefill-emu %s -kernel=copy -block=32 -shared=512 -buffer=i:i32x128:iota -buffer=o:i32x128:none -param=buffer:i -param=buffer:o -param=i32:0 -param=i32:8 -print=o:8 -late -seed=1 | FileCheck %s --check-prefix=ZFILL
; RUN: not prefill-emu %s -kernel=copy -block=32 -shared=512 -buffer=i:i32x128:iota -buffer=o:i32x128:none -param=buffer:i -param=buffer:o -param=i32:1 -param=i32:16 -print=o:8 | FileCheck %s --check-prefixes=NOWAIT,EAGER
; RUN: not prefill-emu %s -kernel=copy -block=32 -shared=512 -buffer=i:i32x128:iota -buffer=o:i32x128:none -param=buffer:i -param=buffer:o -param=i32:1 -param=i32:16 -print=o:8 -late | FileCheck %s --check-prefixes=NOWAIT,LATE
; Without the check, late mode alone shows it.
; RUN: prefill-emu %s -kernel=copy -block=32 -shared=512 -buffer=i:i32x128:iota -buffer=o:i32x128:none -param=buffer:i -param=buffer:o -param=i32:1 -param=i32:16 -print=o:8 -late -no-races | FileCheck %s --check-prefix=LATE
; RUN: not prefill-emu %s -kernel=neighbour -block=64 -shared=1024 -buffer=i:i32x256:iota -buffer=o:i32x64:none -param=buffer:i -param=buffer:o | FileCheck %s --check-prefix=NOBARRIER
; RUN: prefill-emu %s -kernel=signal -block=64 -shared=1040 -buffer=i:i32x256:iota -buffer=o:i32x64:none -param=buffer:i -param=buffer:o -print=o:2 -late -seed=9 | FileCheck %s --check-prefix=SIGNAL
; RUN: not prefill-emu %s -kernel=copy -block=32 -shared=512 -buffer=i:i32x100:iota -buffer=o:i32x128:none -param=buffer:i -param=buffer:o -param=i32:0 -param=i32:16 | FileCheck %s --check-prefix=RANGE
target triple = "nvptx64-nvidia-cuda"
@smem = external addrspace(3) global [0 x i8], align 16

declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
declare void @llvm.nvvm.barrier.cta.sync.aligned.all(i32)
declare void @llvm.nvvm.bar.warp.sync(i32)
declare void @llvm.nvvm.cp.async.cg.shared.global.16.s(ptr addrspace(3), ptr addrspace(1), i32)
declare void @llvm.nvvm.cp.async.cg.shared.global.16(ptr addrspace(3), ptr addrspace(1))
declare void @llvm.nvvm.cp.async.commit.group()
declare void @llvm.nvvm.cp.async.wait.group(i32)
declare void @llvm.nvvm.cp.async.mbarrier.arrive.noinc.shared(ptr addrspace(3))
declare void @llvm.nvvm.mbarrier.init.shared(ptr addrspace(3), i32)

; Waits for all groups but %pending of the one there is.
; COPY: o: 0 1 2 3 4 5 6 7
; ZFILL: o: 0 1 0 0 4 5 0 0
; NOWAIT: missing-wait: kernel copy, block (0,0,0), thread 0: reads shared address 0x400, which a cp.async of warp 0 writes and that has not been waited for; at ld.shared, %v in block
; EAGER: o: 0 1 2 3 4 5 6 7
; LATE: o: -1 -1 -1 -1 -1 -1 -1 -1
; RANGE: out-of-range: kernel copy, {{.*}}, thread 25: 16 bytes at global address {{.*}}; nearest buffer: 'i' of 400 bytes, offset 400; at cp.async.cg.shared.global.16.s
define ptx_kernel void @copy(ptr addrspace(1) %i, ptr addrspace(1) %o, i32 %pending, i32 %bytes) {
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %at = mul i32 %tid, 16
  %from = getelementptr i8, ptr addrspace(1) %i, i32 %at
  %to = getelementptr i8, ptr addrspace(3) @smem, i32 %at
  call void @llvm.nvvm.cp.async.cg.shared.global.16.s(ptr addrspace(3) %to, ptr addrspace(1) %from, i32 %bytes)
  call void @llvm.nvvm.cp.async.commit.group()
  %all = icmp eq i32 %pending, 0
  br i1 %all, label %wait0, label %wait1
wait0:
  call void @llvm.nvvm.cp.async.wait.group(i32 0)
  br label %read
wait1:
  call void @llvm.nvvm.cp.async.wait.group(i32 1)
  br label %read
read:
  %v = load <4 x i32>, ptr addrspace(3) %to, align 16
  %out = getelementptr i8, ptr addrspace(1) %o, i32 %at
  store <4 x i32> %v, ptr addrspace(1) %out, align 16
  ret void
}

; The wait is for the thread's own copies: others' need a barrier.
; NOBARRIER: missing-wait: kernel neighbour, {{.*}}: reads shared address {{.*}}, which a cp.async of warp {{[01]}} writes and that has not been waited for
define ptx_kernel void @neighbour(ptr addrspace(1) %i, ptr addrspace(1) %o) {
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %at = mul i32 %tid, 16
  %from = getelementptr i8, ptr addrspace(1) %i, i32 %at
  %to = getelementptr i8, ptr addrspace(3) @smem, i32 %at
  call void @llvm.nvvm.cp.async.cg.shared.global.16(ptr addrspace(3) %to, ptr addrspace(1) %from)
  call void asm sideeffect "cp.async.wait_all;", ""()
  %other = xor i32 %at, 512
  %p = getelementptr i8, ptr addrspace(3) @smem, i32 %other
  %v = load i32, ptr addrspace(3) %p
  %out = getelementptr i32, ptr addrspace(1) %o, i32 %tid
  store i32 %v, ptr addrspace(1) %out
  ret void
}

; SIGNAL: o: 128 132
define ptx_kernel void @signal(ptr addrspace(1) %i, ptr addrspace(1) %o) {
  %bar = getelementptr i8, ptr addrspace(3) @smem, i32 1024
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %first = icmp eq i32 %tid, 0
  br i1 %first, label %init, label %go
init:
  call void @llvm.nvvm.mbarrier.init.shared(ptr addrspace(3) %bar, i32 64)
  br label %go
go:
  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)
  %at = mul i32 %tid, 16
  %from = getelementptr i8, ptr addrspace(1) %i, i32 %at
  %to = getelementptr i8, ptr addrspace(3) @smem, i32 %at
  call void asm sideeffect "cp.async.cg.shared.global [$0], [$1], 16;", "r,l"(ptr addrspace(3) %to, ptr addrspace(1) %from)
  call void @llvm.nvvm.cp.async.mbarrier.arrive.noinc.shared(ptr addrspace(3) %bar)
  call void asm sideeffect "{ .reg .pred P; L: mbarrier.try_wait.parity.shared.b64 P, [$0], $1; @P bra.uni D; bra.uni L; D: }", "r,r"(ptr addrspace(3) %bar, i32 0)
  %other = xor i32 %at, 512
  %p = getelementptr i8, ptr addrspace(3) @smem, i32 %other
  %v = load i32, ptr addrspace(3) %p
  %out = getelementptr i32, ptr addrspace(1) %o, i32 %tid
  store i32 %v, ptr addrspace(1) %out
  ret void
}
