/*===- rotary.c - Rotary position embedding of Q and K ------------*- C -*-===*\
|*
|* For kernels compiled with it (desc->rotary), Q and K arrive unrotated. K is
|* rotated once per KV head into the output ROTATED_K (workspace if it is not
|* asked for), Q tile by tile. Arithmetic is
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

/* Row `position` of a table as float32: in place, or converted to scratch. */
static const float *table_row(const pf_call *call, const pf_rows *table,
                              int64_t b, int64_t position, float *scratch) {
  const int bytes = call->rotary_dtype == PREFILL_F32 ? 4 : 2;
  const char *row =
      table->data + (b * table->batch + position * table->row) * bytes;
  if (call->rotary_dtype == PREFILL_F32)
    return (const float *)row;
  call->hot->to_float(scratch, row, 1, call->rotary_width, call->rotary_dtype);
  return scratch;
}

/* Rotates one row of d elements from source to out, which do not overlap. */
static void rotate_row(const pf_call *call, int64_t b, int64_t position,
                       const char *source, char *out, float *scratch) {
  const int64_t d = call->d, n = call->desc->rotary_dim, half = n / 2;
  const bool wide = call->rotary_width == n;
  const bool interleaved = call->desc->rotary == 2;
  const bool convert = call->desc->dtype != PREFILL_F32;
  const float *x = convert ? scratch : (const float *)source;
  float *y = convert ? scratch + d : (float *)out;
  const float *c = table_row(call, &call->cosine, b, position, scratch + 2 * d);
  const float *s = table_row(call, &call->sine, b, position,
                             scratch + 2 * d + call->rotary_width);
  const int64_t second = !wide ? 0 : interleaved ? 1 : half;
  if (convert)
    call->hot->to_float(scratch, source, 1, d, call->desc->dtype);
  call->hot->rotate(y, x, c, s, c + second, s + second, half,
                    wide && interleaved ? 2 : 1, interleaved);
  memcpy(y + n, x + n, (size_t)(d - n) * sizeof(float));
  if (convert)
    call->hot->from_float(out, y, d, call->desc->dtype);
}

void pf_rotate_queries(const pf_call *call, int64_t b, int64_t h, int64_t row,
                       int64_t rows, void *out, float *scratch) {
  const int64_t offset = call->batch[b].offset;
  for (int64_t i = 0; i < rows; ++i)
    rotate_row(call, b, call->table_row + offset + row + i,
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
      call->rotated_k.data +
      (b * call->rotated_k.batch + h * call->rotated_k.head) * call->element;
  for (int64_t j = begin; j < end; ++j)
    rotate_row(call, b, j,
               call->k.data +
                   (b * call->k.batch + h * call->k.head + j * call->k.row) *
                       call->element,
               out + j * call->rotated_k.row * call->element, worker);
}

prefill_status pf_rotate_keys(pf_call *call) {
  const int64_t heads = call->b * call->hk;
  if (!call->t || (!call->s && !call->rotated_k.data && !call->cache_slots))
    return PREFILL_OK;
  if (!call->rotated_k.data) {
    call->rotated_k = (pf_rows){
        .data = pf_alloc(call, heads * call->t, call->d * call->element),
        .batch = call->hk * call->t * call->d,
        .head = call->t * call->d,
        .row = call->d};
    if (!call->rotated_k.data)
      return PREFILL_OUT_OF_MEMORY;
  }
  prefill_status status = pf_parallel(
      call, heads * pf_ceil_div(call->t, KEYS_PER_ITEM),
      4.0 * (double)(heads * call->t) * (double)call->d,
      scratch_floats(call) * (int64_t)sizeof(float), rotate_keys_body);
  call->k = call->rotated_k;
  return status;
}
