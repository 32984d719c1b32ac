/*===- estimate_sums.c - Attention of the last query rows ---------*- C -*-===*\
|*
|* Softmax of the last rows' scores over all keys that they see, summed by
|* column and by diagonal: what vertical-slash selects from (MInference,
|* Algorithm 2).
|*
\*===----------------------------------------------------------------------===*/
#include "estimate.h"
#include <string.h>

/* Keys scored at a time: with 64 queries the scores take 64 KB. */
enum { CHUNK = 256 };
/* Scores of a whole row group are kept when they take no more than this;
 * beyond, they are computed twice. */
enum { RESIDENT_BYTES = 8 << 20 };
typedef struct sums_memory {
  pf_lanes lanes;
  float *column, *diagonal_base, *scores;
  float *most, *sum, *inverse, *factor, *fresh;
} sums_memory;

static bool scores_resident(const pf_call *call) {
  return call->t * call->bq * (int64_t)sizeof(float) <= RESIDENT_BYTES;
}

static sums_memory lay_out_sums(const pf_call *call, int64_t b, int64_t h,
                                char *base, int64_t *bytes) {
  char *at = base;
  sums_memory m = {.lanes = pf_take_lanes(call, b, h, false, &at)};
  const int64_t lanes = call->bq, f = sizeof(float);
  m.column = pf_take(&at, call->t, f);
  /* Rows past the end and keys in the future write below 0 and past t. */
  m.diagonal_base = pf_take(&at, call->t + 2 * lanes, f);
  m.scores = pf_take(&at, (scores_resident(call) ? call->t : CHUNK) * lanes, f);
  m.most = pf_take(&at, lanes, f);
  m.sum = pf_take(&at, lanes, f);
  m.inverse = pf_take(&at, lanes, f);
  m.factor = pf_take(&at, lanes, f);
  m.fresh = pf_take(&at, lanes, f);
  *bytes = at - base;
  return m;
}

int64_t pf_sums_bytes(const pf_call *call) {
  static char anchor[1];
  int64_t bytes;
  lay_out_sums(call, 0, 0, anchor, &bytes);
  return bytes;
}

/* Row maxima, and the inverse of the sums of exponentials, of the rows that the
 * lanes hold; 0 for rows that see nothing. False: a score that one of them sees
 * is no number. */
static bool measure_group(const sums_memory *m) {
  const pf_call *call = m->lanes.call;
  const pf_hot *hot = call->hot;
  const int64_t lanes = call->bq;
  const bool resident = scores_resident(call);
  const int64_t begin = m->lanes.begin, end = m->lanes.end;
  for (int64_t i = 0; i < lanes; ++i) {
    m->most[i] = PF_HIDDEN_SCORE;
    m->sum[i] = 0;
  }
  /* Row maxima and sums of exponentials, chunk by chunk. */
  for (int64_t j = begin; j < end; j += CHUNK) {
    const int64_t n = pf_min(CHUNK, end - j);
    float *scores = m->scores + (resident ? (j - begin) * lanes : 0);
    pf_score_lanes(&m->lanes, j, j + n, scores);
    memcpy(m->fresh, m->most, (size_t)lanes * sizeof(float));
    hot->row_max(m->fresh, scores, lanes, n);
    memset(m->factor, 0, (size_t)lanes * sizeof(float));
    hot->exp_sum(m->factor, m->most, m->fresh, lanes, 1);
    for (int64_t i = 0; i < lanes; ++i)
      m->sum[i] *= m->factor[i];
    memcpy(m->most, m->fresh, (size_t)lanes * sizeof(float));
    hot->exp_sum(m->sum, scores, m->most, lanes, n);
  }
  for (int64_t i = 0; i < m->lanes.rows; ++i)
    if (m->sum[i] - m->sum[i] != 0 || m->most[i] - m->most[i] != 0)
      return false;
  for (int64_t i = 0; i < lanes; ++i)
    m->inverse[i] = i < m->lanes.rows && m->most[i] > PF_HIDDEN_SCORE
                        ? 1.0f / m->sum[i]
                        : 0.0f;
  return true;
}

/* Adds the sums of these rows, which are adjacent, of keys from `from` on. */
static bool add_group(const sums_memory *m, int64_t from) {
  const pf_call *call = m->lanes.call;
  const pf_hot *hot = call->hot;
  const int64_t lanes = call->bq;
  const bool resident = scores_resident(call);
  const int64_t begin = m->lanes.begin, end = m->lanes.end;
  if (!measure_group(m))
    return false;
  for (int64_t j = pf_max(begin, from); j < end; j += CHUNK) {
    const int64_t n = pf_min(CHUNK, end - j);
    float *scores = m->scores + (resident ? (j - begin) * lanes : 0);
    if (!resident)
      pf_score_lanes(&m->lanes, j, j + n, scores);
    hot->sums(m->column + j,
              m->diagonal_base + lanes + (m->lanes.position[0] - j), scores,
              m->most, m->inverse, lanes, n);
  }
  return true;
}

bool pf_measure_rows(const pf_call *call, int64_t b, int64_t h, int64_t row,
                     int64_t rows, float *most, float *inverse, void *memory) {
  int64_t bytes;
  sums_memory m = lay_out_sums(call, b, h, memory, &bytes);
  pf_load_lanes(&m.lanes, row, 1, rows);
  if (!measure_group(&m))
    return false;
  memcpy(most, m.most, (size_t)call->bq * sizeof(float));
  memcpy(inverse, m.inverse, (size_t)call->bq * sizeof(float));
  return true;
}

pf_sums pf_estimate_sums(const pf_call *call, int64_t b, int64_t h,
                         int64_t last, void *memory) {
  return pf_estimate_sums_from(call, b, h, last, 0, memory);
}

pf_sums pf_estimate_sums_from(const pf_call *call, int64_t b, int64_t h,
                              int64_t last, int64_t from, void *memory) {
  int64_t bytes;
  sums_memory m = lay_out_sums(call, b, h, memory, &bytes);
  const pf_batch *batch = &call->batch[b];
  memset(m.column, 0, (size_t)call->t * sizeof(float));
  memset(m.diagonal_base, 0, (size_t)(call->t + 2 * call->bq) * sizeof(float));
  /* Rows at or past last_key are padding. */
  const int64_t row_end =
      pf_max(0, pf_min(call->s, batch->last_key - batch->offset));
  const int64_t row_begin = pf_max(0, row_end - pf_max(last, 1));
  bool finite = true;
  for (int64_t row = row_begin; row < row_end; row += call->bq) {
    pf_load_lanes(&m.lanes, row, 1, pf_min(call->bq, row_end - row));
    finite &= add_group(&m, from);
  }
  return (pf_sums){.column = m.column,
                   .diagonal = m.diagonal_base + call->bq,
                   .first_position = batch->offset + row_begin,
                   .end_position = batch->offset + row_end,
                   .finite = finite};
}
