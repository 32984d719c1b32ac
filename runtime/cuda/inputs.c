/*===- inputs.c - Inputs as attention kernels read them -----------*- C -*-===*\
|*
|* The kernels of prefill/cuda_abi.h that are no attention, in C for clang's
|* nvptx64 target: no CUDA headers. Compiled to LLVM bitcode when prefill-opt is
|* built, and for an architecture when a model is (lib/Codegen/CUDA).
|*
\*===----------------------------------------------------------------------===*/
#include "prefill/cuda_abi.h"
#include <stdbool.h>

#define KERNEL __attribute__((nvptx_kernel)) void

static inline float load(const void *data, int64_t i, int element) {
  if (element == PREFILL_CUDA_F32)
    return ((const float *)data)[i];
  if (element == PREFILL_CUDA_F16)
    return (float)((const _Float16 *)data)[i];
  const uint32_t bits = (uint32_t)((const uint16_t *)data)[i] << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

/* Rounds to nearest even. */
static inline void store(void *data, int64_t i, int element, float value) {
  if (element == PREFILL_CUDA_F16) {
    ((_Float16 *)data)[i] = (_Float16)value;
    return;
  }
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  ((uint16_t *)data)[i] =
      (uint16_t)(value == value ? rounded : bits >> 16 | 0x40);
}

static inline int64_t thread_in_row(void) {
  return (int64_t)__nvvm_read_ptx_sreg_ctaid_x() * PREFILL_CUDA_INPUT_THREADS +
         __nvvm_read_ptx_sreg_tid_x();
}

/* One thread a pair of elements. */
KERNEL prefill_rotate(prefill_cuda_rotate a) {
  const int pairs = a.dim / 2, half = a.rotary_dim / 2;
  const int64_t item = thread_in_row();
  if (item >= (int64_t)a.rows * pairs)
    return;
  const int64_t row = item / pairs, b = __nvvm_read_ptx_sreg_ctaid_z(),
                h = __nvvm_read_ptx_sreg_ctaid_y();
  const int i = (int)(item % pairs);
  const int64_t x = b * a.x_batch + h * a.x_head + row * a.x_row;
  const int64_t y = b * a.y_batch + h * a.y_head + row * a.y_row;
  if (i >= half) { /* not rotated */
    const int64_t first = 2 * (int64_t)i, words = 2;
    for (int64_t c = first; c < first + words; ++c)
      ((uint16_t *)a.y)[y + c] = ((const uint16_t *)a.x)[x + c];
    return;
  }
  int64_t p = (a.positions ? a.positions[b] : a.position) + row;
  p = p < 0 ? 0 : p < a.table_rows ? p : a.table_rows - 1;
  const bool wide = a.width == a.rotary_dim;
  const int at = wide && a.interleaved ? 2 * i : i;
  const int other = at + (!wide ? 0 : a.interleaved ? 1 : half);
  const int64_t c = b * a.cosine_batch + p * a.cosine_row;
  const int64_t s = b * a.sine_batch + p * a.sine_row;
  const int64_t first = a.interleaved ? 2 * i : i;
  const int64_t second = a.interleaved ? 2 * i + 1 : i + half;
  const float x0 = load(a.x, x + first, a.element);
  const float x1 = load(a.x, x + second, a.element);
  store(a.y, y + first, a.element,
        x0 * load(a.cosine, c + at, a.table_element) -
            x1 * load(a.sine, s + at, a.table_element));
  store(a.y, y + second, a.element,
        x1 * load(a.cosine, c + other, a.table_element) +
            x0 * load(a.sine, s + other, a.table_element));
}

KERNEL prefill_convert(prefill_cuda_convert a) {
  const int64_t column = thread_in_row();
  if (column >= a.columns)
    return;
  const int64_t row = __nvvm_read_ptx_sreg_ctaid_y();
  const int64_t from = row * a.source_row + column;
  const int64_t to = row * a.columns + column;
  if (a.to == PREFILL_CUDA_F32) {
    ((float *)a.target)[to] = load(a.source, from, a.from);
    return;
  }
  bool set = true;
  if (a.source)
    set = a.from == PREFILL_CUDA_I64   ? ((const int64_t *)a.source)[from] != 0
          : a.from == PREFILL_CUDA_I32 ? ((const int32_t *)a.source)[from] != 0
                                       : ((const uint8_t *)a.source)[from] != 0;
  ((uint8_t *)a.target)[to] = set;
}

#include "fill.c"
