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
/* Stands for minus infinity where differences are taken. */
#define HIDDEN (-1e30f)

typedef struct sums_memory {
  float *column, *diagonal_base, *scores, *q;
  float *most, *sum, *inverse, *factor, *fresh;
  char *rotated;
  float *rotary;
  void *workspace;
} sums_memory;

static bool scores_resident(const pf_call *call) {
  return call->t * call->bq * (int64_t)sizeof(float) <= RESIDENT_BYTES;
}

static sums_memory lay_out_sums(const pf_call *call, char *base,
                                int64_t *bytes) {
  sums_memory m;
  char *at = base;
  const int64_t lanes = call->bq, f = sizeof(float);
  m.column = pf_take(&at, call->t, f);
  /* Rows past the end and keys in the future write below 0 and past t. */
  m.diagonal_base = pf_take(&at, call->t + 2 * lanes, f);
  m.scores = pf_take(&at, (scores_resident(call) ? call->t : CHUNK) * lanes, f);
  m.q = pf_take(&at, call->d * lanes, f);
  m.most = pf_take(&at, lanes, f);
  m.sum = pf_take(&at, lanes, f);
  m.inverse = pf_take(&at, lanes, f);
  m.factor = pf_take(&at, lanes, f);
  m.fresh = pf_take(&at, lanes, f);
  m.rotated = pf_take(&at, call->rotary ? lanes * call->d : 0, call->element);
  m.rotary =
      pf_take(&at, call->rotary ? 2 * (call->d + call->rotary_width) : 0, f);
  m.workspace = pf_take(&at, (int64_t)call->variant->workspace_bytes, 1);
  *bytes = at - base;
  return m;
}

int64_t pf_sums_bytes(const pf_call *call) {
  static char anchor[1];
  int64_t bytes;
  lay_out_sums(call, anchor, &bytes);
  return bytes;
}

/* A group of up to bq query rows. */
typedef struct group {
  const pf_call *call;
  const pf_batch *batch;
  int64_t rows, position; /* of the first row */
  const char *q, *k;
  int64_t q_stride;
  bool softcap;
} group;

/* Scores against keys [begin, end) into out; what a row may not see becomes
 * HIDDEN. Key-major, bq lanes. */
static void masked_scores(const group *g, const sums_memory *m, int64_t begin,
                          int64_t end, float *out) {
  const pf_call *call = g->call;
  const int64_t lanes = call->bq;
  if (call->variant->score) {
    const prefill_score_args args = {.q = g->q,
                                     .k = g->k,
                                     .q_stride = g->q_stride,
                                     .k_stride = call->k.row,
                                     .rows = g->rows,
                                     .key_begin = begin,
                                     .key_end = end,
                                     .scale = call->scale,
                                     .out = out,
                                     .workspace = m->workspace};
    call->variant->score(&args);
  } else {
    call->hot->score(out, m->q, lanes, call->d,
                     g->k + begin * call->k.row * call->element, call->k.row,
                     end - begin, call->desc->dtype);
  }
  if (g->softcap)
    call->hot->softcap(out, call->desc->softcap, (end - begin) * lanes);
  const uint8_t *mask = g->batch->key_mask;
  if (mask)
    for (int64_t j = begin; j < end; ++j)
      if (!mask[j])
        for (int64_t i = 0; i < lanes; ++i)
          out[(j - begin) * lanes + i] = HIDDEN;
  /* Causal: key j is hidden from rows at positions below j. */
  for (int64_t j = pf_max(begin, g->position + 1); j < end; ++j)
    for (int64_t i = 0; i < pf_min(lanes, j - g->position); ++i)
      out[(j - begin) * lanes + i] = HIDDEN;
  /* Window: key j is hidden from rows past j + window_left. */
  if (call->window)
    for (int64_t j = begin; j < end; ++j) {
      int64_t from = j + call->window_left - g->position + 1;
      if (from >= lanes)
        break;
      for (int64_t i = pf_max(from, 0); i < lanes; ++i)
        out[(j - begin) * lanes + i] = HIDDEN;
    }
}

static void add_group(const group *g, const sums_memory *m) {
  const pf_call *call = g->call;
  const pf_hot *hot = call->hot;
  const int64_t lanes = call->bq;
  const bool resident = scores_resident(call);
  const int64_t last = g->position + g->rows - 1;
  int64_t begin = g->batch->first_key;
  if (call->window)
    begin = pf_max(begin, g->position - call->window_left);
  const int64_t end = pf_min(g->batch->last_key, last + 1);
  if (!call->variant->score) {
    /* Transposed and scaled, lanes past the end 0. */
    float *row = m->scores; /* free so far; at least CHUNK * lanes floats */
    memset(m->q, 0, (size_t)(call->d * lanes) * sizeof(float));
    for (int64_t i = 0; i < g->rows; ++i)
      for (int64_t c = 0; c < call->d; c += CHUNK) {
        int64_t count = pf_min(CHUNK, call->d - c);
        hot->to_float(row, g->q + (i * g->q_stride + c) * call->element, 1,
                      count, call->desc->dtype);
        for (int64_t x = 0; x < count; ++x)
          m->q[(c + x) * lanes + i] = row[x] * call->scale;
      }
  }
  for (int64_t i = 0; i < lanes; ++i) {
    m->most[i] = HIDDEN;
    m->sum[i] = 0;
  }
  /* Row maxima and sums of exponentials, chunk by chunk. */
  for (int64_t j = begin; j < end; j += CHUNK) {
    const int64_t n = pf_min(CHUNK, end - j);
    float *scores = m->scores + (resident ? (j - begin) * lanes : 0);
    masked_scores(g, m, j, j + n, scores);
    memcpy(m->fresh, m->most, (size_t)lanes * sizeof(float));
    hot->row_max(m->fresh, scores, lanes, n);
    memset(m->factor, 0, (size_t)lanes * sizeof(float));
    hot->exp_sum(m->factor, m->most, m->fresh, lanes, 1);
    for (int64_t i = 0; i < lanes; ++i)
      m->sum[i] *= m->factor[i];
    memcpy(m->most, m->fresh, (size_t)lanes * sizeof(float));
    hot->exp_sum(m->sum, scores, m->most, lanes, n);
  }
  for (int64_t i = 0; i < lanes; ++i)
    m->inverse[i] =
        i < g->rows && m->most[i] > HIDDEN ? 1.0f / m->sum[i] : 0.0f;
  for (int64_t j = begin; j < end; j += CHUNK) {
    const int64_t n = pf_min(CHUNK, end - j);
    float *scores = m->scores + (resident ? (j - begin) * lanes : 0);
    if (!resident)
      masked_scores(g, m, j, j + n, scores);
    hot->sums(m->column + j, m->diagonal_base + lanes + (g->position - j),
              scores, m->most, m->inverse, lanes, n);
  }
}

pf_sums pf_estimate_sums(const pf_call *call, int64_t b, int64_t h,
                         int64_t last, void *memory) {
  int64_t bytes;
  const sums_memory m = lay_out_sums(call, memory, &bytes);
  const pf_batch *batch = &call->batch[b];
  memset(m.column, 0, (size_t)call->t * sizeof(float));
  memset(m.diagonal_base, 0, (size_t)(call->t + 2 * call->bq) * sizeof(float));
  /* Rows at or past last_key are padding. */
  const int64_t row_end =
      pf_max(0, pf_min(call->s, batch->last_key - batch->offset));
  const int64_t row_begin = pf_max(0, row_end - pf_max(last, 1));
  const char *q_head =
      call->q.data + (b * call->q.batch + h * call->q.head) * call->element;
  group g = {.call = call, .batch = batch};
  g.softcap =
      (call->desc->features & PREFILL_TILE_SOFTCAP) && call->desc->softcap > 0;
  g.k = call->k.data +
        (b * call->k.batch + h / call->group * call->k.head) * call->element;
  for (int64_t row = row_begin; row < row_end; row += call->bq) {
    g.rows = pf_min(call->bq, row_end - row);
    g.position = batch->offset + row;
    if (call->rotary) {
      pf_rotate_queries(call, b, h, row, g.rows, m.rotated, m.rotary);
      g.q = m.rotated;
      g.q_stride = call->d;
    } else {
      g.q = q_head + row * call->q.row * call->element;
      g.q_stride = call->q.row;
    }
    add_group(&g, &m);
  }
  return (pf_sums){.column = m.column,
                   .diagonal = m.diagonal_base + call->bq,
                   .first_position = batch->offset + row_begin,
                   .end_position = batch->offset + row_end};
}
