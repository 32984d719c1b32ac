/*===- pool.h - Mean queries against mean keys --------------------*- C -*-===*\
|*
|* runtime/src/estimate_pool.c.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_CUDA_POOL_H
#define PREFILL_RUNTIME_CUDA_POOL_H

#include "keep.h"

/* Element c of the mean of rows [row, end) of Q, times factor; 0 without rows.
 */
INLINE float mean_query(const args *x, const uint16_t *q, int64_t row,
                        int64_t end, int c, float factor) {
  float sum = 0;
  for (int64_t at = row; at < end; ++at)
    sum += widen(x, q + at * x->q_row, c);
  return row < end ? sum * factor / (float)(end - row) : 0;
}

/* score[i], of block begin + i, becomes its exponential relative to the
 * greatest one, capped as the model's scores are. All threads of the block take
 * part; each comes back to its own elements. */
INLINE void pooled_softmax(const args *x, int b, int64_t begin, int64_t n,
                           float *score) {
  float greatest = HIDDEN_SCORE;
  for (int64_t i = thread(); i < n; i += THREADS) {
    float capped = HIDDEN_SCORE;
    if (state_of(x, b, begin + i) != HIDDEN)
      capped = soft_cap(x, score[i]);
    score[i] = capped;
    greatest = capped > greatest ? capped : greatest;
  }
  greatest = block_max(greatest);
  for (int64_t i = thread(); i < n; i += THREADS)
    score[i] = power((score[i] - greatest) * LOG2E);
}

#endif
