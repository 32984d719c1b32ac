; wgmma: pending accumulators, fences, commits and waits. A is 64x16, B 8x16, all ones,
; in shared memory without swizzle; the product is 16 everywhere.
; RUN: prefill-emu %s -kernel=good -block=128 -shared=2304 -buffer=o:f32x128:none -param=buffer:o -print=o:4 -counts | FileCheck %s --check-prefix=GOOD
; RUN: prefill-emu %s -kernel=good -block=128 -shared=2304 -buffer=o:f32x128:none -param=buffer:o -print=o:4 -late -seed=11 | FileCheck %s --check-prefix=GOOD
; RUN: not prefill-emu %s -kernel=early_use -block=128 -shared=2304 -buffer=o:f32x128:none -param=buffer:o | FileCheck %s --check-prefix=EARLY
; RUN: not prefill-emu %s -kernel=no_fence -block=128 -shared=2304 -buffer=o:f32x128:none -param=buffer:o | FileCheck %s --check-prefix=NOFENCE
; RUN: not prefill-emu %s -kernel=no_commit -block=128 -shared=2304 -buffer=o:f32x128:none -param=buffer:o | FileCheck %s --check-prefix=NOCOMMIT
; RUN: not prefill-emu %s -kernel=overwrite -block=128 -shared=2304 -buffer=o:f32x128:none -param=buffer:o | FileCheck %s --check-prefix=OVERWRITE
; RUN: not prefill-emu %s -kernel=no_proxy -block=128 -shared=2304 -buffer=o:f32x128:none -param=buffer:o | FileCheck %s --check-prefix=PROXY
; RUN: prefill-emu %s -kernel=untied -block=128 -shared=2304 -buffer=o:f32x128:none -param=buffer:o -print=o:4 | FileCheck %s --check-prefix=GOOD
; RUN: not prefill-emu %s -kernel=differs -block=128 -shared=2304 -buffer=o:f32x128:none -param=buffer:o | FileCheck %s --check-prefix=DIFFERS
target triple = "nvptx64-nvidia-cuda"
@smem = external addrspace(3) global [0 x i8], align 1024

declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
declare void @llvm.nvvm.barrier.cta.sync.aligned.all(i32)
declare void @llvm.nvvm.fence.proxy.async.shared_cta()
declare void @llvm.nvvm.wgmma.fence.sync.aligned()
declare void @llvm.nvvm.wgmma.commit_group.sync.aligned()
declare void @llvm.nvvm.wgmma.wait_group.sync.aligned(i64)

; Ones to A (2048 bytes) and B (256), 16 and 2 bytes a thread.
define internal void @fill() alwaysinline {
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %p = getelementptr <8 x half>, ptr addrspace(3) @smem, i32 %tid
  store <8 x half> splat (half 1.0), ptr addrspace(3) %p
  %b = getelementptr i8, ptr addrspace(3) @smem, i32 2048
  %q = getelementptr half, ptr addrspace(3) %b, i32 %tid
  store half 1.0, ptr addrspace(3) %q
  ret void
}

; 0x400 >> 4 = 64, B at 0xc00 >> 4 = 192. Core matrices of 128 bytes: leading (along k)
; 128 << 16, stride (along rows) 256 << 32, each in units of 16.
define internal { float, float, float, float } @product({ float, float, float, float } %c, i64 %more) alwaysinline {
  %c0 = extractvalue { float, float, float, float } %c, 0
  %c1 = extractvalue { float, float, float, float } %c, 1
  %c2 = extractvalue { float, float, float, float } %c, 2
  %c3 = extractvalue { float, float, float, float } %c, 3
  %da = add i64 68720001088, %more
  %r = call { float, float, float, float } asm sideeffect "{ .reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {$0, $1, $2, $3}, $8, $9, p, 1, 1, 0, 0; }", "=f,=f,=f,=f,0,1,2,3,l,l"(float %c0, float %c1, float %c2, float %c3, i64 %da, i64 68720001216)
  ret { float, float, float, float } %r
}

define internal { float, float, float, float } @wait({ float, float, float, float } %c) alwaysinline {
  %c0 = extractvalue { float, float, float, float } %c, 0
  %c1 = extractvalue { float, float, float, float } %c, 1
  %c2 = extractvalue { float, float, float, float } %c, 2
  %c3 = extractvalue { float, float, float, float } %c, 3
  %r = call { float, float, float, float } asm sideeffect "wgmma.wait_group.sync.aligned 0;", "=f,=f,=f,=f,0,1,2,3"(float %c0, float %c1, float %c2, float %c3)
  ret { float, float, float, float } %r
}

define internal void @put(ptr addrspace(1) %o, { float, float, float, float } %c) alwaysinline {
  %v = extractvalue { float, float, float, float } %c, 3
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %p = getelementptr float, ptr addrspace(1) %o, i32 %tid
  store float %v, ptr addrspace(1) %p
  ret void
}

; GOOD: o: 32 32 32 32
define ptx_kernel void @good(ptr addrspace(1) %o) {
  call void @fill()
  call void @llvm.nvvm.fence.proxy.async.shared_cta()
  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)
  call void @llvm.nvvm.wgmma.fence.sync.aligned()
  %a = call { float, float, float, float } @product({ float, float, float, float } zeroinitializer, i64 0)
  %b = call { float, float, float, float } @product({ float, float, float, float } %a, i64 0)
  call void @llvm.nvvm.wgmma.commit_group.sync.aligned()
  %r = call { float, float, float, float } @wait({ float, float, float, float } %b)
  call void @put(ptr addrspace(1) %o, { float, float, float, float } %r)
  ret void
}

; The wait has no operands, as nvvm.wgmma.wait.group.
define ptx_kernel void @untied(ptr addrspace(1) %o) {
  call void @fill()
  call void @llvm.nvvm.fence.proxy.async.shared_cta()
  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)
  call void @llvm.nvvm.wgmma.fence.sync.aligned()
  %a = call { float, float, float, float } @product({ float, float, float, float } zeroinitializer, i64 0)
  %b = call { float, float, float, float } @product({ float, float, float, float } %a, i64 0)
  call void @llvm.nvvm.wgmma.commit_group.sync.aligned()
  call void @llvm.nvvm.wgmma.wait_group.sync.aligned(i64 0)
  call void @put(ptr addrspace(1) %o, { float, float, float, float } %b)
  ret void
}

; EARLY: pending-result: kernel early_use, block (0,0,0), thread {{[0-9]+}}: uses accumulator register 3 of a wgmma that has not been waited for; at store
define ptx_kernel void @early_use(ptr addrspace(1) %o) {
  call void @fill()
  call void @llvm.nvvm.fence.proxy.async.shared_cta()
  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)
  call void @llvm.nvvm.wgmma.fence.sync.aligned()
  %a = call { float, float, float, float } @product({ float, float, float, float } zeroinitializer, i64 0)
  call void @llvm.nvvm.wgmma.commit_group.sync.aligned()
  call void @put(ptr addrspace(1) %o, { float, float, float, float } %a)
  %r = call { float, float, float, float } @wait({ float, float, float, float } %a)
  ret void
}

; NOFENCE: missing-fence: kernel no_fence, {{.*}}: no wgmma.fence since the last commit_group; at wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16
define ptx_kernel void @no_fence(ptr addrspace(1) %o) {
  call void @fill()
  call void @llvm.nvvm.fence.proxy.async.shared_cta()
  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)
  %a = call { float, float, float, float } @product({ float, float, float, float } zeroinitializer, i64 0)
  call void @llvm.nvvm.wgmma.commit_group.sync.aligned()
  %r = call { float, float, float, float } @wait({ float, float, float, float } %a)
  call void @put(ptr addrspace(1) %o, { float, float, float, float } %r)
  ret void
}

; NOCOMMIT: pending-result: kernel no_commit, {{.*}}: uses accumulator register 0 of a wgmma that has not been waited for; at wgmma.wait_group.sync.aligned
; NOCOMMIT: missing-wait: kernel no_commit, {{.*}}: the thread exits with 1 wgmma operations that were not waited for
define ptx_kernel void @no_commit(ptr addrspace(1) %o) {
  call void @fill()
  call void @llvm.nvvm.fence.proxy.async.shared_cta()
  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)
  call void @llvm.nvvm.wgmma.fence.sync.aligned()
  %a = call { float, float, float, float } @product({ float, float, float, float } zeroinitializer, i64 0)
  %r = call { float, float, float, float } @wait({ float, float, float, float } %a)
  call void @put(ptr addrspace(1) %o, { float, float, float, float } %r)
  ret void
}

; The operands are written again before the wait.
; OVERWRITE: race: kernel overwrite, {{.*}}: writes shared address 0x{{.*}}, which a wgmma of warpgroup 0 reads and that has not been waited for; at st.shared
define ptx_kernel void @overwrite(ptr addrspace(1) %o) {
  call void @fill()
  call void @llvm.nvvm.fence.proxy.async.shared_cta()
  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)
  call void @llvm.nvvm.wgmma.fence.sync.aligned()
  %a = call { float, float, float, float } @product({ float, float, float, float } zeroinitializer, i64 0)
  call void @llvm.nvvm.wgmma.commit_group.sync.aligned()
  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)
  call void @fill()
  %r = call { float, float, float, float } @wait({ float, float, float, float } %a)
  call void @put(ptr addrspace(1) %o, { float, float, float, float } %r)
  ret void
}

; PROXY: missing-fence: kernel no_proxy, {{.*}}: reads shared address 0x400 through the async proxy; thread {{[0-9]+}} wrote it through the generic proxy and neither ran fence.proxy.async since; at wgmma
define ptx_kernel void @no_proxy(ptr addrspace(1) %o) {
  call void @fill()
  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)
  call void @llvm.nvvm.wgmma.fence.sync.aligned()
  %a = call { float, float, float, float } @product({ float, float, float, float } zeroinitializer, i64 0)
  call void @llvm.nvvm.wgmma.commit_group.sync.aligned()
  %r = call { float, float, float, float } @wait({ float, float, float, float } %a)
  call void @put(ptr addrspace(1) %o, { float, float, float, float } %r)
  ret void
}

; DIFFERS: collective: kernel differs, {{.*}}: descriptors or scale-d differ within the warpgroup; at wgmma
define ptx_kernel void @differs(ptr addrspace(1) %o) {
  call void @fill()
  call void @llvm.nvvm.fence.proxy.async.shared_cta()
  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)
  call void @llvm.nvvm.wgmma.fence.sync.aligned()
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %wide = zext i32 %tid to i64
  %a = call { float, float, float, float } @product({ float, float, float, float } zeroinitializer, i64 %wide)
  call void @llvm.nvvm.wgmma.commit_group.sync.aligned()
  %r = call { float, float, float, float } @wait({ float, float, float, float } %a)
  call void @put(ptr addrspace(1) %o, { float, float, float, float } %r)
  ret void
}
