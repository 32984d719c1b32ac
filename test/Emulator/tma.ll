; TMA: boxes with out-of-bounds fill and swizzle, stores, what is forgotten around them.
; The map is a tensor of 6 rows x 32 halves; the box 4 rows x 32 halves begins at row 4.
; RUN: prefill-emu %s -kernel=load -block=64 -shared=1040 -buffer=i:f16x6x32:iota -buffer=o:f16x128:none -param=map:i,box=32x4 -param=buffer:o -param=i32:1 -param=i32:0 -print=o | FileCheck %s --check-prefix=LOAD
; RUN: prefill-emu %s -kernel=load -block=64 -shared=1040 -buffer=i:f16x6x32:iota -buffer=o:f16x128:none -param=map:i,box=32x4 -param=buffer:o -param=i32:1 -param=i32:0 -print=o -late -seed=3 | FileCheck %s --check-prefix=LOAD
; RUN: prefill-emu %s -kernel=load -block=64 -shared=1040 -buffer=i:f16x6x32:iota -buffer=o:f16x128:none -param=map:i,box=32x4,swizzle=64 -param=buffer:o -param=i32:1 -param=i32:0 -print=o | FileCheck %s --check-prefix=SWIZZLE
; RUN: not prefill-emu %s -kernel=load -block=64 -shared=1040 -buffer=i:f16x6x32:iota -buffer=o:f16x128:none -param=map:i,box=32x4 -param=buffer:o -param=i32:0 -param=i32:0 | FileCheck %s --check-prefix=NOFENCE
; RUN: not prefill-emu %s -kernel=load -block=64 -shared=1040 -buffer=i:f16x6x32:iota -buffer=o:f16x128:none -param=map:i,box=32x4 -param=buffer:o -param=i32:1 -param=i32:1 | FileCheck %s --check-prefix=NOWAIT
; RUN: not prefill-emu %s -kernel=load -block=64 -shared=1040 -buffer=i:f16x6x32:iota -buffer=o:f16x128:none -param=map:i,box=32x8 -param=buffer:o -param=i32:1 -param=i32:0 | FileCheck %s --check-prefix=BYTES
; RUN: not prefill-emu %s -kernel=load -block=64 -shared=1040 -buffer=i:f16x6x48:iota -buffer=o:f16x128:none -param=map:i,box=48x4,swizzle=64 -param=buffer:o -param=i32:1 -param=i32:0 2>&1 | FileCheck %s --check-prefix=BOX
; RUN: prefill-emu %s -kernel=store -block=32 -shared=256 -buffer=o:i32x4x32:none -param=map:o,box=32x2 -param=i32:3 -param=i32:1 -param=i32:1 -print=o:97 | FileCheck %s --check-prefix=STORE
; RUN: prefill-emu %s -kernel=store -block=32 -shared=256 -buffer=o:i32x4x32:none -param=map:o,box=32x2 -param=i32:3 -param=i32:1 -param=i32:1 -print=o:97 -late | FileCheck %s --check-prefix=STORE
; RUN: not prefill-emu %s -kernel=store -block=32 -shared=256 -buffer=o:i32x4x32:none -param=map:o,box=32x2 -param=i32:3 -param=i32:0 -param=i32:1 | FileCheck %s --check-prefix=PROXY
; RUN: not prefill-emu %s -kernel=store -block=32 -shared=256 -buffer=o:i32x4x32:none -param=map:o,box=32x2 -param=i32:3 -param=i32:1 -param=i32:0 | FileCheck %s --check-prefix=LEFT
target triple = "nvptx64-nvidia-cuda"
@smem = external addrspace(3) global [0 x i8], align 1024

declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
declare void @llvm.nvvm.barrier.cta.sync.aligned.all(i32)
declare void @llvm.nvvm.bar.warp.sync(i32)
declare void @llvm.nvvm.mbarrier.init.shared(ptr addrspace(3), i32)
declare i64 @llvm.nvvm.mbarrier.arrive.expect.tx.scope.cta.space.cta(ptr addrspace(3), i32)
declare void @llvm.nvvm.fence.mbarrier_init.release.cluster()
declare void @llvm.nvvm.fence.proxy.async.shared_cta()
declare void @llvm.nvvm.cp.async.bulk.tensor.g2s.tile.2d(ptr addrspace(7), ptr addrspace(3), ptr, i32, i32, i16, i64, i1, i1, i32)
declare void @llvm.nvvm.cp.async.bulk.tensor.s2g.tile.2d(ptr addrspace(3), ptr, i32, i32, i64, i1)
declare void @llvm.nvvm.cp.async.bulk.commit.group()
declare void @llvm.nvvm.cp.async.bulk.wait.group.read(i32)

; Rows 4 and 5, then zeros.
; LOAD: o: 128 129 130 {{.*}} 160 161 {{.*}} 190 191 0 0 {{.*}} 0{{$}}
; Two rows of 64 bytes a line of 128: the line's number moves the chunks of 8.
; SWIZZLE: o: 128 129 {{.*}} 159 160 {{.*}} 191 0
; NOFENCE: missing-fence: kernel load, {{.*}}: signals mbarrier 0x800, and thread 0 ran no fence.mbarrier_init or fence.proxy.async after initialising it; at cp.async.bulk.tensor.g2s.tile.2d
; NOWAIT: missing-wait: kernel load, {{.*}}: reads shared address {{.*}}, which a bulk (TMA) copy writes and that has not been waited for; at ld.shared
; BYTES: deadlock: {{.*}} wait for phase 0 of mbarrier 0x800 (0 of 1 arrivals and -256 bytes missing in phase 0)
; BOX: error: -param=map:i,box=48x4,swizzle=64: tensor map: the box is 96 bytes wide, more than the 64 bytes of the swizzle
define ptx_kernel void @load(ptr byval([128 x i8]) align 64 %map, ptr addrspace(1) %o, i32 %fence, i32 %early) {
  %bar = getelementptr i8, ptr addrspace(3) @smem, i32 1024
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %first = icmp eq i32 %tid, 0
  br i1 %first, label %init, label %go
init:
  call void @llvm.nvvm.mbarrier.init.shared(ptr addrspace(3) %bar, i32 1)
  %f = icmp ne i32 %fence, 0
  br i1 %f, label %fenced, label %issue
fenced:
  call void @llvm.nvvm.fence.mbarrier_init.release.cluster()
  br label %issue
issue:
  %a = call i64 @llvm.nvvm.mbarrier.arrive.expect.tx.scope.cta.space.cta(ptr addrspace(3) %bar, i32 256)
  %to = addrspacecast ptr addrspace(3) @smem to ptr addrspace(7)
  call void @llvm.nvvm.cp.async.bulk.tensor.g2s.tile.2d(ptr addrspace(7) %to, ptr addrspace(3) %bar, ptr %map, i32 0, i32 4, i16 0, i64 0, i1 false, i1 false, i32 0)
  br label %go
go:
  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)
  %e = icmp ne i32 %early, 0
  br i1 %e, label %read, label %wait
wait:
  call void asm sideeffect "{ .reg .pred P; L: mbarrier.try_wait.parity.shared::cta.b64 P, [$0], $1, 1000; @P bra.uni D; bra.uni L; D: }", "r,r"(ptr addrspace(3) %bar, i32 0)
  br label %read
read:
  %at = mul i32 %tid, 4
  %p = getelementptr i8, ptr addrspace(3) @smem, i32 %at
  %v = load i32, ptr addrspace(3) %p
  %q = getelementptr i8, ptr addrspace(1) %o, i32 %at
  store i32 %v, ptr addrspace(1) %q
  ret void
}

; Two rows of 32 words to row %row and, outside, the next one.
; STORE: o: {{.*}} -1 -1 -1 0
; PROXY: missing-fence: kernel store, {{.*}}, thread 0: reads shared address 0x400 through the async proxy; thread {{[0-9]+}} wrote it through the generic proxy and neither ran fence.proxy.async since; at cp.async.bulk.tensor.s2g.tile.2d
; LEFT: missing-wait: kernel store, {{.*}}, thread 0: the thread exits with 1 bulk stores that read shared memory and were not waited for
define ptx_kernel void @store(ptr byval([128 x i8]) align 64 %map, i32 %row, i32 %fence, i32 %wait) {
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %p = getelementptr i32, ptr addrspace(3) @smem, i32 %tid
  %q = getelementptr i8, ptr addrspace(3) %p, i32 128
  store i32 %tid, ptr addrspace(3) %p
  store i32 %tid, ptr addrspace(3) %q
  %f = icmp ne i32 %fence, 0
  br i1 %f, label %fenced, label %go
fenced:
  call void @llvm.nvvm.fence.proxy.async.shared_cta()
  br label %go
go:
  call void @llvm.nvvm.bar.warp.sync(i32 -1)
  %first = icmp eq i32 %tid, 0
  br i1 %first, label %issue, label %out
issue:
  call void @llvm.nvvm.cp.async.bulk.tensor.s2g.tile.2d(ptr addrspace(3) @smem, ptr %map, i32 0, i32 %row, i64 0, i1 false)
  call void @llvm.nvvm.cp.async.bulk.commit.group()
  %w = icmp ne i32 %wait, 0
  br i1 %w, label %finish, label %out
finish:
  call void @llvm.nvvm.cp.async.bulk.wait.group.read(i32 0)
  br label %out
out:
  ret void
}
