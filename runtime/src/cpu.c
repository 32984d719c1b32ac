/*===- cpu.c - Which instruction set this machine has -------------*- C -*-===*\
|*
|* __builtin_cpu_supports would need libgcc or compiler-rt, which the in-process
|* linker of prefill-opt does not have, hence cpuid by hand. Levels are those of
|* the x86-64 psABI.
|*
\*===----------------------------------------------------------------------===*/
#include "internal.h"
#include <cpuid.h>
#include <stdatomic.h>

/* XCR0: which register states the operating system saves. Needs OSXSAVE. */
static uint64_t extended_control_register(void) {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

/* Beside the level in what detect gives. */
enum { KNOWN = 0x100, HAS_VNNI = 0x200 };

static uint32_t detect(void) {
  enum {
    /* Leaf 1, ecx. */
    SSE3 = 1 << 0,
    SSSE3 = 1 << 9,
    FMA = 1 << 12,
    CX16 = 1 << 13,
    SSE41 = 1 << 19,
    SSE42 = 1 << 20,
    MOVBE = 1 << 22,
    POPCNT = 1 << 23,
    OSXSAVE = 1 << 27,
    AVX = 1 << 28,
    F16C = 1 << 29,
    V2 = SSE3 | SSSE3 | CX16 | SSE41 | SSE42 | POPCNT,
    V3 = FMA | MOVBE | OSXSAVE | AVX | F16C,
    /* Leaf 7, ebx. */
    BMI1 = 1 << 3,
    AVX2 = 1 << 5,
    BMI2 = 1 << 8,
    /* Leaf 7, ecx. */
    VNNI_LEAF7 = 1 << 11,
    V3_LEAF7 = BMI1 | AVX2 | BMI2,
    /* Leaf 0x80000001, ecx. */
    LZCNT = 1 << 5,
  };
  /* Leaf 7, ebx: AVX-512 F, DQ, CD, BW, VL (bit 31 does not fit an enum). */
  const uint32_t v4 = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & V2) != V2)
    return 0;
  if ((c & V3) != V3)
    return PREFILL_ISA_X86_64_V2;
  uint64_t saved = extended_control_register();
  if ((saved & 0x6) != 0x6) /* xmm, ymm */
    return PREFILL_ISA_X86_64_V2;
  uint32_t b7, c7, c1;
  if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d) ||
      !__get_cpuid(0x80000001, &a, &b, &c1, &d))
    return PREFILL_ISA_X86_64_V2;
  if ((b7 & V3_LEAF7) != V3_LEAF7 || !(c1 & LZCNT))
    return PREFILL_ISA_X86_64_V2;
  if ((b7 & v4) != v4 || (saved & 0xe6) != 0xe6) /* opmask, zmm */
    return PREFILL_ISA_X86_64_V3;
  return PREFILL_ISA_X86_64_V4 | (c7 & VNNI_LEAF7 ? HAS_VNNI : 0);
}

static uint32_t known_features(void) {
  /* cpuid leaves the guest in a virtual machine (tens of microseconds for all
   * leaves), so the answer is kept. Every thread computes the same value:
   * this is a cache, not state. */
  static _Atomic uint32_t cache;
  uint32_t known = atomic_load_explicit(&cache, memory_order_relaxed);
  if (!known) {
    known = detect() | KNOWN;
    atomic_store_explicit(&cache, known, memory_order_relaxed);
  }
  return known;
}

uint32_t pf_cpu_isa(void) { return known_features() & 0xff; }
bool pf_cpu_vnni(void) { return known_features() & HAS_VNNI; }

const pf_hot *pf_hot_for(uint32_t isa) {
  if (isa >= PREFILL_ISA_X86_64_V4)
    return &pf_hot_v4;
  if (isa >= PREFILL_ISA_X86_64_V3)
    return &pf_hot_v3;
  return &pf_hot_v2;
}
