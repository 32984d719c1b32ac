; Special registers, shuffles, votes, reductions, arithmetic and inline PTX; the result
; does not depend on the order of threads.
; RUN: prefill-emu %s -kernel=lanes -block=64 -grid=2 -buffer=o:i32x128:none -param=buffer:o -param=i32:3 -print=o | FileCheck %s --check-prefix=LANES
; RUN: prefill-emu %s -kernel=lanes -block=64 -grid=2 -buffer=o:i32x128:none -param=buffer:o -param=i32:3 -print=o -late -seed=5 | FileCheck %s --check-prefix=LANES
; RUN: prefill-emu %s -kernel=ptx -block=32 -buffer=o:i32x32:none -param=buffer:o -print=o:8 -counts | FileCheck %s --check-prefix=PTX
; RUN: prefill-emu %s -kernel=pack -block=1 -buffer=o:bf16x2:none -param=buffer:o -print=o | FileCheck %s --check-prefix=PACK
target triple = "nvptx64-nvidia-cuda"

declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
declare i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
declare i32 @llvm.nvvm.read.ptx.sreg.ntid.x()
declare i32 @llvm.nvvm.shfl.sync.bfly.i32(i32, i32, i32, i32)
declare i32 @llvm.nvvm.vote.ballot.sync(i32, i1)
declare i32 @llvm.nvvm.redux.sync.umax(i32, i32)
declare <2 x bfloat> @llvm.nvvm.ff2bf16x2.rn(float, float)

; LANES: o: 4 3 6 5 8 7 {{.*}} 66 65 68 67 {{.*}} 130 129{{$}}
define ptx_kernel void @lanes(ptr addrspace(1) %o, i32 %add) {
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %cta = call i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
  %ntid = call i32 @llvm.nvvm.read.ptx.sreg.ntid.x()
  %base = mul i32 %cta, %ntid
  %i = add i32 %base, %tid
  %other = call i32 @llvm.nvvm.shfl.sync.bfly.i32(i32 -1, i32 %i, i32 1, i32 31)
  %v = add i32 %other, %add
  %p = getelementptr i32, ptr addrspace(1) %o, i32 %i
  store i32 %v, ptr addrspace(1) %p
  ret void
}

; Lanes below 4 vote; lane i: ballot * 2 if i is odd, else the maximum, 31.
; PTX: o: 31 30 31 30 31 30 31 30
; PTX-DAG: 1 redux.sync.umax
; PTX-DAG: 1 vote.ballot.sync
define ptx_kernel void @ptx(ptr addrspace(1) %o) {
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %low = icmp ult i32 %tid, 4
  %ballot = call i32 @llvm.nvvm.vote.ballot.sync(i32 -1, i1 %low)
  %max = call i32 @llvm.nvvm.redux.sync.umax(i32 %tid, i32 -1)
  %odd = and i32 %tid, 1
  %r = call i32 asm sideeffect "{ .reg .pred p; .reg .b32 t; setp.ne.b32 p, $1, 0; mov.u32 $0, $3; shl.b32 t, $2, 1; @p mov.b32 $0, t; }", "=r,r,r,r"(i32 %odd, i32 %ballot, i32 %max)
  %p = getelementptr i32, ptr addrspace(1) %o, i32 %tid
  store i32 %r, ptr addrspace(1) %p
  ret void
}

; The first operand is the upper half.
; PACK: o: 0.5 3
define ptx_kernel void @pack(ptr addrspace(1) %o) {
  %v = call <2 x bfloat> @llvm.nvvm.ff2bf16x2.rn(float 3.0, float 0.5)
  store <2 x bfloat> %v, ptr addrspace(1) %o
  ret void
}
