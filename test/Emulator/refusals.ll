; What is not known is named; launches that a driver refuses are refused.
; RUN: split-file %s %t
; RUN: not prefill-emu %t/intrinsic.ll 2>&1 | FileCheck %s --check-prefix=INTRINSIC
; RUN: not prefill-emu %t/ptx.ll 2>&1 | FileCheck %s --check-prefix=OPCODE
; RUN: not prefill-emu %t/syntax.ll 2>&1 | FileCheck %s --check-prefix=SYNTAX
; RUN: not prefill-emu %t/external.ll 2>&1 | FileCheck %s --check-prefix=EXTERNAL
; RUN: not prefill-emu %t/host.ll 2>&1 | FileCheck %s --check-prefix=HOST
; RUN: not prefill-emu %t/good.ll -block=64 -param=i32:1 2>&1 | FileCheck %s --check-prefix=BLOCK
; RUN: not prefill-emu %t/good.ll -block=32 2>&1 | FileCheck %s --check-prefix=PARAMS
; RUN: not prefill-emu %t/good.ll -block=32 -param=i64:1 2>&1 | FileCheck %s --check-prefix=SIZE
; RUN: not prefill-emu %t/good.ll -block=32 -param=i32:1 -shared=300000 2>&1 | FileCheck %s --check-prefix=SHARED
; RUN: not prefill-emu %t/good.ll -kernel=other -param=i32:1 2>&1 | FileCheck %s --check-prefix=NAME
; RUN: not prefill-emu %t/good.ll -param=i32:x 2>&1 | FileCheck %s --check-prefix=PARAM
; RUN: prefill-emu %t/good.ll -param=i32:1 | count 0

; INTRINSIC: error: the emulator does not know the intrinsic 'llvm.nvvm.tcgen05.fence.before.thread.sync' in 'k'
; OPCODE: error: the emulator does not know the PTX instruction 'bfind.u32' in 'k'
; SYNTAX: error: the emulator cannot read this PTX: '+ ;' in 'add.s32 $0, + ;'
; EXTERNAL: error: the emulator does not know the function 'vprintf'
; HOST: error: the module is for 'x86_64-unknown-linux-gnu', not for nvptx64
; BLOCK: error: kernel 'k': a block of 64 threads, compiled for at most 32
; PARAMS: error: kernel 'k': 0 parameters given, it has 1
; SIZE: error: kernel 'k': parameter 0 has 4 bytes, 8 given
; SHARED: error: kernel 'k': 300000 bytes of shared memory; a block has at most 232448
; NAME: error: the module has no kernel 'other'; it has: k
; PARAM: error: -param=i32:x: TYPE:VALUE, buffer:NAME or map:NAME,box=.. is expected

;--- intrinsic.ll
target triple = "nvptx64-nvidia-cuda"
declare void @llvm.nvvm.tcgen05.fence.before.thread.sync()
define ptx_kernel void @k() {
  call void @llvm.nvvm.tcgen05.fence.before.thread.sync()
  ret void
}
;--- ptx.ll
target triple = "nvptx64-nvidia-cuda"
define ptx_kernel void @k() {
  %r = call i32 asm "bfind.u32 $0, $1;", "=r,r"(i32 5)
  ret void
}
;--- syntax.ll
target triple = "nvptx64-nvidia-cuda"
define ptx_kernel void @k() {
  %r = call i32 asm sideeffect "add.s32 $0, + ;", "=r"()
  ret void
}
;--- external.ll
target triple = "nvptx64-nvidia-cuda"
declare i32 @vprintf(ptr, ptr)
define ptx_kernel void @k() {
  %r = call i32 @vprintf(ptr null, ptr null)
  ret void
}
;--- host.ll
target triple = "x86_64-unknown-linux-gnu"
define void @k() {
  ret void
}
;--- good.ll
target triple = "nvptx64-nvidia-cuda"
define ptx_kernel void @k(i32 %n) "nvvm.maxntid"="32" {
  ret void
}
