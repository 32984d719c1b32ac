/*===- estimate_pool.c - Mean queries against mean keys -----------*- C -*-===*\
|*
|* Scores of a tile's mean query with every block's mean key, for the patterns
|* that take means for their members.
|*
\*===----------------------------------------------------------------------===*/
#include "estimate.h"
#include <string.h>

/* Tiles that are scored together. */
enum { LANES = 64 };

pf_pooled pf_take_pooled(const pf_call *call, char **at) {
  const int64_t f = sizeof(float), d = call->d;
  pf_pooled x = {.first = -1};
  x.k_mean = pf_take(at, call->blocks * d, f);
  x.q_mean = pf_take(at, LANES * d, f);
  x.scores = pf_take(at, call->blocks * LANES, f);
  x.row = pf_take(at, call->blocks, f);
  x.most = pf_take(at, call->blocks, f);
  x.mass = pf_take(at, call->blocks, f);
  x.mean = pf_take(at, d, f);
  x.rotated = pf_take(at, call->rotary ? call->bq * d : 0, call->element);
  x.rotary = pf_take(at, call->rotary ? 2 * (d + call->rotary_width) : 0, f);
  return x;
}

void pf_pool_keys(pf_pooled *x, const pf_estimate *head) {
  const pf_call *call = head->call;
  const pf_batch *batch = head->batch;
  const int64_t d = call->d;
  const char *k = call->k.data + (head->b * call->k.batch +
                                  head->h / call->group * call->k.head) *
                                     call->element;
  x->head = head;
  for (int64_t block = 0; block < call->blocks; ++block) {
    float *out = x->k_mean + block * d;
    int64_t count = 0;
    memset(out, 0, (size_t)d * sizeof(float));
    const int64_t end = pf_min((block + 1) * call->bk, batch->kv_len);
    for (int64_t j = block * call->bk; j < end; ++j)
      if (!batch->key_mask || batch->key_mask[j]) {
        call->hot->accumulate(out, k + j * call->k.row * call->element, d,
                              call->desc->dtype);
        ++count;
      }
    const float inverse = count ? 1.0f / (float)count : 0.0f;
    for (int64_t c = 0; c < d; ++c)
      out[c] *= inverse;
  }
}

/* The mean of rows [row, row + rows) of Q, times factor, as lane `lane`. */
static void pool_rows(pf_pooled *x, int64_t row, int64_t rows, float factor,
                      int64_t lane) {
  const pf_call *call = x->head->call;
  const int64_t b = x->head->b, h = x->head->h, d = call->d;
  memset(x->mean, 0, (size_t)d * sizeof(float));
  for (int64_t at = row; at < row + rows; at += call->bq) {
    const int64_t count = pf_min(call->bq, row + rows - at);
    const char *q = call->q.data +
                    (b * call->q.batch + h * call->q.head + at * call->q.row) *
                        call->element;
    int64_t stride = call->q.row;
    if (call->rotary) {
      pf_rotate_queries(call, b, h, at, count, x->rotated, x->rotary);
      q = x->rotated;
      stride = d;
    }
    for (int64_t i = 0; i < count; ++i)
      call->hot->accumulate(x->mean, q + i * stride * call->element, d,
                            call->desc->dtype);
  }
  for (int64_t c = 0; c < d; ++c)
    x->q_mean[c * LANES + lane] = x->mean[c] * factor / (float)rows;
}

static void score(const pf_pooled *x) {
  const pf_call *call = x->head->call;
  call->hot->score(x->scores, x->q_mean, LANES, call->d, x->k_mean, call->d,
                   call->blocks, PREFILL_F32);
}

/* Copies lane `lane` of the scores of blocks [begin, end). */
static void copy_scores(pf_pooled *x, int64_t lane, int64_t begin,
                        int64_t end) {
  const uint8_t *state = x->head->batch->state;
  for (int64_t block = begin; block < end; ++block)
    x->row[block] = state && state[block] == PF_BLOCK_HIDDEN
                        ? PF_HIDDEN_SCORE
                        : x->scores[block * LANES + lane];
}

float *pf_pooled_scores(pf_pooled *x, int64_t tile, float factor) {
  const pf_call *call = x->head->call;
  if (x->first != tile / LANES * LANES) {
    x->first = tile / LANES * LANES;
    memset(x->q_mean, 0, (size_t)(LANES * call->d) * sizeof(float));
    for (int64_t lane = 0; lane < LANES; ++lane) {
      const int64_t row = (x->first + lane) * call->bq;
      if (row < call->s)
        pool_rows(x, row, pf_min(call->bq, call->s - row), factor, lane);
    }
    score(x);
  }
  const pf_span span = pf_visible_span(call, x->head->b, tile);
  copy_scores(x, tile - x->first, span.begin, span.end);
  return x->row;
}

/* Softmax of row[begin .. end), not divided by its sum. */
static float *exponentials(pf_pooled *x, int64_t begin, int64_t end) {
  const pf_call *call = x->head->call;
  const float cap = call->desc->softcap;
  float most = PF_HIDDEN_SCORE;
  for (int64_t block = begin; block < end; ++block) {
    float *value = x->row + block;
    if (call->desc->features & PREFILL_TILE_SOFTCAP && cap > 0 &&
        *value != PF_HIDDEN_SCORE)
      call->hot->softcap(value, cap, 1);
    most = *value > most ? *value : most;
  }
  for (int64_t block = begin; block < end; ++block)
    x->most[block] = most;
  if (begin < end)
    call->hot->block_sums(x->mass + begin, x->most + begin, x->row + begin,
                          end - begin, 1);
  return x->mass;
}

float *pf_pooled_mass(pf_pooled *x, int64_t tile) {
  const pf_call *call = x->head->call;
  const pf_span span = pf_visible_span(call, x->head->b, tile);
  pf_pooled_scores(x, tile, call->scale);
  return exponentials(x, span.begin, span.end);
}

const float *pf_pooled_rows(pf_pooled *x, int64_t row, int64_t rows,
                            int64_t begin, int64_t end) {
  memset(x->q_mean, 0, (size_t)(LANES * x->head->call->d) * sizeof(float));
  if (rows > 0)
    pool_rows(x, row, rows, x->head->call->scale, 0);
  x->first = -1;
  score(x);
  copy_scores(x, 0, begin, end);
  return exponentials(x, begin, end);
}
