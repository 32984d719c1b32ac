/*===- token_score.c - What the last row reads of every key -------*- C -*-===*\
|*
|* TOKEN_SCORE: the probabilities of the last visible row, averaged over the
|* query heads. LazyLLM (arXiv:2407.14057) drops the rows with the lowest ones.
|* One row's scores a head, no rows times keys.
|*
\*===----------------------------------------------------------------------===*/
#include "estimate.h"
#include <string.h>

/* Where the heads leave their rows. */
typedef struct head_scores {
  float *score; /* [b * hq][t] */
  bool *finite; /* [b * hq] */
} head_scores;

static void score_head(pf_call *call, void *worker, int64_t item) {
  const head_scores *out = call->token_work;
  const pf_sums sums = pf_estimate_sums(call, item / call->hq, item % call->hq,
                                        /*last=*/1, worker);
  memcpy(out->score + item * call->t, sums.column,
         (size_t)call->t * sizeof(float));
  out->finite[item] = sums.finite;
}

prefill_status pf_score_tokens(pf_call *call) {
  const int64_t heads = call->b * call->hq;
  if (!call->t || !call->s)
    return PREFILL_OK;
  head_scores work = {
      .score = pf_alloc(call, heads, call->t * (int64_t)sizeof(float)),
      .finite = pf_alloc(call, heads, sizeof(bool))};
  if (!work.score || !work.finite)
    return PREFILL_OUT_OF_MEMORY;
  call->token_work = &work;
  prefill_status status = pf_parallel(call, heads,
                                      2.0 * (double)(heads * call->bq) *
                                          (double)call->t * (double)call->d,
                                      pf_sums_bytes(call), score_head);
  call->token_work = NULL;
  if (status)
    return status;
  /* In the order of the heads: the same sums on any number of threads. */
  const float share = 1.0f / (float)call->hq;
  for (int64_t b = 0; b < call->b; ++b) {
    bool finite = true;
    for (int64_t h = 0; h < call->hq; ++h)
      finite &= work.finite[b * call->hq + h];
    float *out = (float *)call->token_score.data + b * call->token_score.batch;
    for (int64_t j = 0; j < call->t; ++j) {
      float sum = 0;
      for (int64_t h = 0; h < call->hq; ++h)
        sum += work.score[(b * call->hq + h) * call->t + j];
      out[j * call->token_score.row] =
          finite ? sum * share : __builtin_nanf("");
    }
  }
  return PREFILL_OK;
}
