/*===- rotary.c - Rotary position embedding of Q and K ------------*- C -*-===*\
|*
|* For kernels compiled with it (desc->rotary), Q and K arrive unrotated. K is
|* rotated once per KV head into workspace, Q tile by tile. Arithmetic is
|* float32, results are rounded to the kernel's type as the separate operator
|* would do it. Row p of a table belongs to key position p. With n = rotary_dim
|* and tables of width n / 2, for i < n / 2:
|*   halves:      y[i] = x[i] c[i] - x[i + n/2] s[i]
|*                y[i + n/2] = x[i + n/2] c[i] + x[i] s[i]
|*   interleaved: the same for x[2 i] and x[2 i + 1].
|* Tables of width n give each of the two outputs an entry of its own.
|* Elements past rotary_dim stay as they are. (Su et al., 2021, RoFormer.)
|*
\*===----------------------------------------------------------------------===*/
#include "internal.h"
#include <string.h>

/* Floats that rotate_row needs. */
static int64_t scratch_floats(const pf_call *call) {
  return 2 * (call->d + call->rotary_width);
}

/* Rotates one row of d elements from source to out. */
static void rotate_row(const pf_call *call, int64_t b, int64_t position,
                       const char *source, char *out, float *scratch) {
  const int64_t d = call->d, n = call->desc->rotary_dim, half = n / 2;
  const int64_t width = call->rotary_width;
  const int table_bytes = call->rotary_dtype == PREFILL_F32 ? 4 : 2;
  float *x = scratch, *y = x + d, *c = y + d, *s = c + width;
  call->hot->to_float(x, source, 1, d, call->desc->dtype);
  call->hot->to_float(
      c,
      call->cosine.data +
          (b * call->cosine.batch + position * call->cosine.row) * table_bytes,
      1, width, call->rotary_dtype);
  call->hot->to_float(s,
                      call->sine.data +
                          (b * call->sine.batch + position * call->sine.row) *
                              table_bytes,
                      1, width, call->rotary_dtype);
  memcpy(y, x, (size_t)d * sizeof(float));
  if (call->desc->rotary == 1) {
    const float *c1 = width == n ? c + half : c;
    const float *s1 = width == n ? s + half : s;
    for (int64_t i = 0; i < half; ++i) {
      y[i] = x[i] * c[i] - x[i + half] * s[i];
      y[i + half] = x[i + half] * c1[i] + x[i] * s1[i];
    }
  } else {
    const int64_t step = width == n ? 2 : 1, other = width == n ? 1 : 0;
    for (int64_t i = 0; i < half; ++i) {
      y[2 * i] = x[2 * i] * c[step * i] - x[2 * i + 1] * s[step * i];
      y[2 * i + 1] =
          x[2 * i + 1] * c[step * i + other] + x[2 * i] * s[step * i + other];
    }
  }
  call->hot->from_float(out, y, d, call->desc->dtype);
}

void pf_rotate_queries(const pf_call *call, int64_t b, int64_t h, int64_t row,
                       int64_t rows, void *out, float *scratch) {
  const int64_t offset = call->batch[b].offset;
  for (int64_t i = 0; i < rows; ++i)
    rotate_row(call, b, offset + row + i,
               call->q.data + (b * call->q.batch + h * call->q.head +
                               (row + i) * call->q.row) *
                                  call->element,
               (char *)out + i * call->d * call->element, scratch);
}

/* Rows of K that one item rotates. */
enum { KEYS_PER_ITEM = 512 };

static void rotate_keys_body(pf_call *call, void *worker, int64_t item) {
  const int64_t chunks = pf_ceil_div(call->t, KEYS_PER_ITEM);
  const int64_t head = item / chunks, b = head / call->hk, h = head % call->hk;
  const int64_t begin = item % chunks * KEYS_PER_ITEM;
  const int64_t end = pf_min(begin + KEYS_PER_ITEM, call->t);
  char *out =
      (char *)call->rotated_k + head * call->t * call->d * call->element;
  for (int64_t j = begin; j < end; ++j)
    rotate_row(call, b, j,
               call->k.data +
                   (b * call->k.batch + h * call->k.head + j * call->k.row) *
                       call->element,
               out + j * call->d * call->element, worker);
}

prefill_status pf_rotate_keys(pf_call *call) {
  const int64_t heads = call->b * call->hk;
  if (!call->t || !call->s)
    return PREFILL_OK;
  call->rotated_k = pf_alloc(call, heads * call->t, call->d * call->element);
  if (!call->rotated_k)
    return PREFILL_OUT_OF_MEMORY;
  prefill_status status = pf_parallel(
      call, heads * pf_ceil_div(call->t, KEYS_PER_ITEM),
      4.0 * (double)(heads * call->t) * (double)call->d,
      scratch_floats(call) * (int64_t)sizeof(float), rotate_keys_body);
  call->k = (pf_rows){.data = call->rotated_k,
                      .batch = call->hk * call->t * call->d,
                      .head = call->t * call->d,
                      .row = call->d};
  return status;
}
