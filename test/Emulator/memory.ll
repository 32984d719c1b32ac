; Accesses of global and shared memory: out of range, misaligned, uninitialised, racing.
; RUN: not prefill-emu %s -kernel=store -block=64 -buffer=o:i32x48:none -param=buffer:o -param=i32:0 | FileCheck %s --check-prefix=RANGE
; RUN: not prefill-emu %s -kernel=store -block=32 -buffer=o:i32x48:none -param=buffer:o -param=i32:2 | FileCheck %s --check-prefix=ALIGN
; RUN: not prefill-emu %s -kernel=store -block=32 -buffer=o:i32x48:zero:ro -param=buffer:o -param=i32:0 | FileCheck %s --check-prefix=READONLY
; RUN: not prefill-emu %s -kernel=load -block=32 -buffer=i:i32x32:none -buffer=o:i32x32:none -param=buffer:i -param=buffer:o | FileCheck %s --check-prefix=UNINIT
; RUN: prefill-emu %s -kernel=load -block=32 -buffer=i:i32x32:iota -buffer=o:i32x32:none -param=buffer:i -param=buffer:o -print=o:4 | FileCheck %s --check-prefix=LOAD
; RUN: not prefill-emu %s -kernel=exchange -block=64 -shared=256 -buffer=o:i32x64:none -param=buffer:o -param=i32:0 -param=i32:32 | FileCheck %s --check-prefix=RACE
; RUN: not prefill-emu %s -kernel=exchange -block=64 -shared=256 -buffer=o:i32x64:none -param=buffer:o -param=i32:0 -param=i32:1 -seed=2 | FileCheck %s --check-prefix=LANES
; RUN: prefill-emu %s -kernel=exchange -block=64 -shared=256 -buffer=o:i32x64:none -param=buffer:o -param=i32:1 -param=i32:32 -print=o:2 | FileCheck %s --check-prefix=ORDERED
; RUN: not prefill-emu %s -kernel=exchange -block=64 -shared=128 -buffer=o:i32x64:none -param=buffer:o -param=i32:1 -param=i32:32 | FileCheck %s --check-prefix=SHAREDRANGE
; RUN: not prefill-emu %s -kernel=unwritten -block=32 -shared=128 -buffer=o:i32x32:none -param=buffer:o | FileCheck %s --check-prefix=UNWRITTEN
; RUN: prefill-emu %s -kernel=count -grid=5 -block=64 -buffer=o:i32x1:zero -param=buffer:o -print=o | FileCheck %s --check-prefix=COUNT
; RUN: prefill-emu %s -kernel=generic -block=32 -buffer=o:i32x32:none -param=buffer:o -print=o:4 | FileCheck %s --check-prefix=GENERIC
target triple = "nvptx64-nvidia-cuda"
@smem = external addrspace(3) global [0 x i8], align 16
@static = internal addrspace(3) global [32 x i32] poison, align 16
@table = internal addrspace(4) constant [4 x i32] [i32 5, i32 6, i32 7, i32 8]

declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
declare void @llvm.nvvm.barrier.cta.sync.aligned.all(i32)

; RANGE: out-of-range: kernel store, block (0,0,0), thread 48: 4 bytes at global address 0x{{[0-9a-f]+}}; nearest buffer: 'o' of 192 bytes, offset 192; at st.global, block
; RANGE-NEXT: 15 more findings
; ALIGN: misaligned: kernel store, {{.*}}: offset 2 of 'o' is not a multiple of 4; at st.global
; READONLY: out-of-range: kernel store, {{.*}}: writes offset 0 of the read-only 'o'
define ptx_kernel void @store(ptr addrspace(1) %o, i32 %offset) {
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %p = getelementptr i32, ptr addrspace(1) %o, i32 %tid
  %q = getelementptr i8, ptr addrspace(1) %p, i32 %offset
  store i32 %tid, ptr addrspace(1) %q
  ret void
}

; UNINIT: uninitialised: kernel load, block (0,0,0), thread 0: 4 bytes at offset 0 of 'i' hold no value; at ld.global, %v in block
; LOAD: o: 5 7 9 11
define ptx_kernel void @load(ptr addrspace(1) %i, ptr addrspace(1) %o) {
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %p = getelementptr i32, ptr addrspace(1) %i, i32 %tid
  %v = load i32, ptr addrspace(1) %p
  %m = and i32 %tid, 3
  %t = getelementptr i32, ptr addrspace(4) @table, i32 %m
  %w = load i32, ptr addrspace(4) %t
  %s = add i32 %v, %w
  %q = getelementptr i32, ptr addrspace(1) %o, i32 %tid
  store i32 %s, ptr addrspace(1) %q
  ret void
}

; Every thread reads what thread tid ^ distance wrote, with a barrier or without. The
; dynamic shared memory lies behind the static one.
; RACE: race: kernel exchange, block (0,0,0), thread 32: reads shared address 0x480, which warp 0, lane 0 wrote without synchronisation in between; at ld.shared
; LANES: race: kernel exchange, {{.*}}, thread [[#%u,T:]]: reads shared address {{.*}}, which warp {{[01]}}, lane {{[0-9]+}} wrote without
; ORDERED: o: 32 33
; SHAREDRANGE: out-of-range: kernel exchange, {{.*}}, thread 32: 4 bytes at shared address 0x500; shared memory is 0x400..0x500; at st.shared
define ptx_kernel void @exchange(ptr addrspace(1) %o, i32 %barrier, i32 %distance) {
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %p = getelementptr i32, ptr addrspace(3) @smem, i32 %tid
  store i32 %tid, ptr addrspace(3) %p
  %sync = icmp ne i32 %barrier, 0
  br i1 %sync, label %wait, label %read
wait:
  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)
  br label %read
read:
  %other = xor i32 %tid, %distance
  %q = getelementptr i32, ptr addrspace(3) @smem, i32 %other
  %v = load i32, ptr addrspace(3) %q
  %r = getelementptr i32, ptr addrspace(1) %o, i32 %tid
  store i32 %v, ptr addrspace(1) %r
  ret void
}

; UNWRITTEN: uninitialised: kernel unwritten, {{.*}}: 4 bytes at shared address 0x480 hold no value; at ld.shared
define ptx_kernel void @unwritten(ptr addrspace(1) %o) {
  %v = load i32, ptr addrspace(3) @smem
  store i32 %v, ptr addrspace(1) %o
  ret void
}

; COUNT: o: 320
define ptx_kernel void @count(ptr addrspace(1) %o) {
  %old = atomicrmw add ptr addrspace(1) %o, i32 1 monotonic
  ret void
}

; Shared and private memory through generic addresses.
; GENERIC: o: 0 1 2 3
define ptx_kernel void @generic(ptr addrspace(1) %o) {
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %local = alloca i32
  %p = getelementptr i32, ptr addrspacecast (ptr addrspace(3) @static to ptr), i32 %tid
  store i32 %tid, ptr %p
  %v = load i32, ptr %p
  store i32 %v, ptr %local
  %w = load i32, ptr %local
  %g = addrspacecast ptr addrspace(1) %o to ptr
  %q = getelementptr i32, ptr %g, i32 %tid
  store i32 %w, ptr %q
  ret void
}
