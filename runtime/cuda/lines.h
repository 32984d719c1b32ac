/*===- lines.h - Column and diagonal sums of the last rows --------*- C -*-===*\
|*
|* As the sums kernels leave them.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_CUDA_LINES_H
#define PREFILL_RUNTIME_CUDA_LINES_H

#include "device.h"

typedef struct lines {
  const args *x;
  int b, h;
  int64_t head, keys, sinks, scored; /* keys below `scored` have sums */
  int64_t first_position, tiles;     /* of the rows that are summed; grid's */
  int64_t limit;                     /* distances before the keys, by share */
  float *value;
} lines;

INLINE lines lines_of(const args *x, int b, int h) {
  lines s = {.x = x, .b = b, .h = h, .head = (int64_t)b * x->heads + h};
  int64_t begin;
  const int64_t end = sums_rows(x, b, h, &begin);
  s.keys = last_key(x, b);
  s.sinks = least(first_key(x, b) + FORCED_SINKS, s.keys);
  s.scored = least(position_of(x, b) + end, keys_of(x, b));
  s.first_position = position_of(x, b) + begin;
  s.tiles = x->tiles;
  s.limit = share_limit(x, b);
  s.value = x->line_value + s.head * ((int64_t)x->distances * 32 + x->kv_len);
  return s;
}

INLINE bool is_invisible(const lines *s, int64_t key) {
  return key < first_key(s->x, s->b) || is_hidden(s->x, s->b, key);
}
INLINE float column_sum(const lines *s, int64_t key) {
  return key < s->scored ? s->x->column[s->head * s->x->kv_len + key] : 0;
}
/* A diagonal crosses two tiles of keys, which hold its elements in turn. */
INLINE float diagonal_sum(const lines *s, int64_t delta) {
  enum { KEYS = PREFILL_CUDA_SUMS_KEYS, ROWS = PREFILL_CUDA_SUMS_ROWS };
  const float *sums = s->x->diagonal + s->head * s->x->sums_tiles * 2 * ROWS;
  /* Row r of the estimate and key c of a tile: tile * KEYS + c = first + r -
   * delta, and r - c + KEYS - 1 is the index. */
  const int64_t start = s->first_position - delta;
  float sum = 0;
  for (int64_t tile = floor_div(start, KEYS);
       tile <= floor_div(start + ROWS - 1, KEYS); ++tile) {
    const int64_t index = tile * KEYS - start + KEYS - 1;
    if (tile >= 0 && tile * KEYS < s->scored && index >= 0 &&
        index < ROWS + KEYS - 1)
      sum += sums[tile * 2 * ROWS + index];
  }
  return sum;
}

#endif
