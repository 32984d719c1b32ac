; Divisions that have no result, and code that nobody should reach: findings, not the end
; of the emulator's process.
; RUN: not prefill-emu %s -kernel=quotient -block=32 -buffer=o:i32x32:none -param=buffer:o -param=i32:0 -param=i32:0 | FileCheck %s --check-prefix=ZERO
; RUN: not prefill-emu %s -kernel=quotient -block=32 -buffer=o:i32x32:none -param=buffer:o -param=i32:-2147483648 -param=i32:-6 | FileCheck %s --check-prefix=LEAST
; RUN: prefill-emu %s -kernel=quotient -block=32 -buffer=o:i32x32:none -param=buffer:o -param=i32:70 -param=i32:7 -print=o:4 -counts | FileCheck %s --check-prefix=RIGHT
; RUN: not prefill-emu %s -kernel=unsigned -block=32 -buffer=o:i32x32:none -param=buffer:o -param=i32:-2147483648 -param=i32:-5 -print=o:4 | FileCheck %s --check-prefix=UNSIGNED
; RUN: not prefill-emu %s -kernel=vectors -block=32 -buffer=o:i32x64:iota -param=buffer:o | FileCheck %s --check-prefix=VECTORS
; RUN: not prefill-emu %s -kernel=nobody -block=32 -param=i32:1 | FileCheck %s --check-prefix=NOBODY
; RUN: prefill-emu %s -kernel=nobody -block=32 -param=i32:0 | count 0
target triple = "nvptx64-nvidia-cuda"

declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()

; ZERO: division: kernel quotient, block (0,0,0), thread 0: divides an integer by zero; at sdiv, %q in block %entry
; ZERO-NOT: division:
; LEAST: division: kernel quotient, block (0,0,0), thread 5: divides the least integer by -1; at sdiv, %q in block %entry
; LEAST-NOT: division:
; RIGHT: o: 10 8 7 7
; RIGHT: 32 sdiv
define ptx_kernel void @quotient(ptr addrspace(1) %o, i32 %dividend, i32 %add) {
entry:
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %divisor = add i32 %tid, %add
  %q = sdiv i32 %dividend, %divisor
  %p = getelementptr i32, ptr addrspace(1) %o, i32 %tid
  store i32 %q, ptr addrspace(1) %p
  ret void
}

; What is checked is the remainder; by a constant there is nothing to check. 2^31 over
; 2^32 - 1 is a quotient like others.
; UNSIGNED: division: kernel unsigned, block (0,0,0), thread 5: divides an integer by zero; at urem, %r in block %entry
; UNSIGNED-NOT: division:
; UNSIGNED: o: 1.07374e+09 1.07374e+09 1.07374e+09 1.07374e+09
define ptx_kernel void @unsigned(ptr addrspace(1) %o, i32 %dividend, i32 %add) {
entry:
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %divisor = add i32 %tid, %add
  %r = urem i32 %dividend, %divisor
  %half = udiv i32 %r, 2
  %p = getelementptr i32, ptr addrspace(1) %o, i32 %tid
  store i32 %half, ptr addrspace(1) %p
  ret void
}

; VECTORS: division: kernel vectors, block (0,0,0), thread 0: divides an integer by zero; at udiv, %q in block %entry
define ptx_kernel void @vectors(ptr addrspace(1) %o) {
entry:
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %p = getelementptr <2 x i32>, ptr addrspace(1) %o, i32 %tid
  %x = load <2 x i32>, ptr addrspace(1) %p
  %q = udiv <2 x i32> splat (i32 100), %x
  store <2 x i32> %q, ptr addrspace(1) %p
  ret void
}

; NOBODY: trap: kernel nobody, block (0,0,0), thread 0: the kernel goes on where its code says that nobody comes; at unreachable, block %never
define ptx_kernel void @nobody(i32 %which) {
entry:
  %there = icmp eq i32 %which, 1
  br i1 %there, label %never, label %out
never:
  unreachable
out:
  ret void
}
