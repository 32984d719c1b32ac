/*===- token_score.c - What some rows read of every key -----------*- C -*-===*\
|*
|* TOKEN_SCORE: the probabilities of the last visible row, averaged over the
|* query heads. LazyLLM (arXiv:2407.14057) drops the rows with the lowest ones.
|* One row's scores a head, no rows times keys.
|*
|* With SCORE_ROWS the sum of these averages over the rows that are marked, and
|* in TOKEN_PEAK the greatest of them: MustDrop (arXiv:2411.10803). First the
|* maximum and the sum of the exponentials of every such row and head, then,
|* tile of keys by tile of keys, their scores once more: the greatest average is
|* known only where all heads of a row and key meet. Again no rows times keys.
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

/*===-- rows that are marked ---------------------------------------------===*/

/* Keys whose scores are looked at together. */
enum { KEYS = 64 };

/* What the marked rows' softmax is divided by. */
typedef struct row_scores {
  float *most, *inverse; /* [b * hq][tiles * bq] */
  bool *finite;          /* [b * hq] */
  int64_t chunks;        /* of keys */
} row_scores;

static bool is_marked(const pf_call *call, int64_t b, int64_t row) {
  return call->score_rows
             .data[b * call->score_rows.batch + row * call->score_rows.row] !=
         0;
}

/* Whether one of the rows of a tile is marked. */
static bool has_marked(const pf_call *call, int64_t b, int64_t tile) {
  const int64_t end = pf_min(call->s, (tile + 1) * call->bq);
  for (int64_t row = tile * call->bq; row < end; ++row)
    if (is_marked(call, b, row))
      return true;
  return false;
}

static void measure_head(pf_call *call, void *worker, int64_t item) {
  const row_scores *work = call->token_work;
  const int64_t b = item / call->hq, h = item % call->hq;
  work->finite[item] = true;
  for (int64_t tile = 0; tile < call->tiles && work->finite[item]; ++tile) {
    const int64_t row = tile * call->bq;
    const int64_t at = item * call->tiles * call->bq + row;
    if (has_marked(call, b, tile))
      work->finite[item] =
          pf_measure_rows(call, b, h, row, pf_min(call->bq, call->s - row),
                          work->most + at, work->inverse + at, worker);
  }
}

/* Memory to sum up the scores of some keys. */
typedef struct chunk_memory {
  pf_lanes lanes;
  float *scores, *mean; /* [KEYS][bq] */
  float *inverse;       /* [bq] */
} chunk_memory;

static chunk_memory lay_out_chunk(const pf_call *call, int64_t b, int64_t h,
                                  char **at) {
  chunk_memory m = {.lanes = pf_take_lanes(call, b, h, false, at)};
  const int64_t f = sizeof(float);
  m.scores = pf_take(at, KEYS * call->bq, f);
  m.mean = pf_take(at, KEYS * call->bq, f);
  m.inverse = pf_take(at, call->bq, f);
  return m;
}

/* Adds the probabilities of a tile's rows in one head to `mean`. */
static void add_head(const pf_call *call, const row_scores *work, int64_t b,
                     int64_t h, int64_t tile, int64_t begin, int64_t end,
                     char *worker) {
  const int64_t row = tile * call->bq, lanes = call->bq;
  const int64_t at = (b * call->hq + h) * call->tiles * lanes + row;
  chunk_memory m = lay_out_chunk(call, b, h, &worker);
  pf_load_lanes(&m.lanes, row, 1, pf_min(lanes, call->s - row));
  const int64_t low = pf_max(begin, m.lanes.begin);
  const int64_t high = pf_min(end, m.lanes.end);
  if (low >= high)
    return;
  pf_score_lanes(&m.lanes, low, high, m.scores);
  for (int64_t j = low; j < high; ++j) {
    /* += inverse * exp(score - most) */
    memcpy(m.inverse, work->inverse + at, (size_t)lanes * sizeof(float));
    call->hot->rescale(m.mean + (j - begin) * lanes, m.inverse,
                       m.scores + (j - low) * lanes, work->most + at, lanes);
  }
}

static void score_keys(pf_call *call, void *worker, int64_t item) {
  const row_scores *work = call->token_work;
  const int64_t b = item / work->chunks, begin = item % work->chunks * KEYS;
  const int64_t end = pf_min(begin + KEYS, call->t), lanes = call->bq;
  char *memory = worker;
  const chunk_memory m = lay_out_chunk(call, b, 0, &memory);
  const float share = 1.0f / (float)call->hq;
  double sum[KEYS] = {0};
  float peak[KEYS] = {0};
  for (int64_t tile = 0; tile < call->tiles; ++tile) {
    const int64_t rows = pf_min(lanes, call->s - tile * lanes);
    if (!has_marked(call, b, tile))
      continue;
    memset(m.mean, 0, (size_t)(KEYS * lanes) * sizeof(float));
    for (int64_t h = 0; h < call->hq; ++h)
      add_head(call, work, b, h, tile, begin, end, worker);
    for (int64_t j = 0; j < end - begin; ++j)
      for (int64_t i = 0; i < rows; ++i)
        if (is_marked(call, b, tile * lanes + i)) {
          const float p = m.mean[j * lanes + i] * share;
          sum[j] += (double)p;
          peak[j] = p > peak[j] ? p : peak[j];
        }
  }
  bool finite = true;
  for (int64_t h = 0; h < call->hq; ++h)
    finite &= work->finite[b * call->hq + h];
  float *score = (float *)call->token_score.data + b * call->token_score.batch;
  float *most = (float *)call->token_peak.data + b * call->token_peak.batch;
  for (int64_t j = begin; j < end; ++j) {
    score[j * call->token_score.row] =
        finite ? (float)sum[j - begin] : __builtin_nanf("");
    most[j * call->token_peak.row] =
        finite ? peak[j - begin] : __builtin_nanf("");
  }
}

static prefill_status score_marked(pf_call *call) {
  const int64_t heads = call->b * call->hq;
  const int64_t rows = call->tiles * call->bq;
  row_scores work = {
      .most = pf_alloc(call, heads, rows * (int64_t)sizeof(float)),
      .inverse = pf_alloc(call, heads, rows * (int64_t)sizeof(float)),
      .finite = pf_alloc(call, heads, sizeof(bool)),
      .chunks = pf_ceil_div(call->t, KEYS)};
  if (!work.most || !work.inverse || !work.finite)
    return PREFILL_OUT_OF_MEMORY;
  static char anchor[1];
  char *end = anchor;
  lay_out_chunk(call, 0, 0, &end);
  const double flops =
      2.0 * (double)heads * (double)call->s * (double)call->t * (double)call->d;
  call->token_work = &work;
  prefill_status status =
      pf_parallel(call, heads, flops, pf_sums_bytes(call), measure_head);
  if (!status)
    status = pf_parallel(call, call->b * work.chunks, flops, end - anchor,
                         score_keys);
  call->token_work = NULL;
  return status;
}

prefill_status pf_score_tokens(pf_call *call) {
  const int64_t heads = call->b * call->hq;
  if (!call->t || !call->s)
    return PREFILL_OK;
  if (call->score_rows.data)
    return score_marked(call);
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
