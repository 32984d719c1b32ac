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
  const char *q = call->q.data +
                  (b * call->q.batch + h * call->q.head + row * call->q.row) *
                      call->element;
  int64_t stride = call->q.row;
  if (call->rotary) {
    pf_rotate_queries(call, b, h, row, rows, x->rotated, x->rotary);
    q = x->rotated;
    stride = d;
  }
  memset(x->mean, 0, (size_t)d * sizeof(float));
  for (int64_t i = 0; i < rows; ++i)
    call->hot->accumulate(x->mean, q + i * stride * call->element, d,
                          call->desc->dtype);
  for (int64_t c = 0; c < d; ++c)
    x->q_mean[c * LANES + lane] = x->mean[c] * factor / (float)rows;
}

float *pf_pooled_scores(pf_pooled *x, int64_t tile, float factor) {
  const pf_call *call = x->head->call;
  const pf_batch *batch = x->head->batch;
  if (x->first != tile / LANES * LANES) {
    x->first = tile / LANES * LANES;
    memset(x->q_mean, 0, (size_t)(LANES * call->d) * sizeof(float));
    for (int64_t lane = 0; lane < LANES; ++lane) {
      const int64_t row = (x->first + lane) * call->bq;
      if (row < call->s)
        pool_rows(x, row, pf_min(call->bq, call->s - row), factor, lane);
    }
    call->hot->score(x->scores, x->q_mean, LANES, call->d, x->k_mean, call->d,
                     call->blocks, PREFILL_F32);
  }
  const pf_span span = pf_visible_span(call, x->head->b, tile);
  for (int64_t block = span.begin; block < span.end; ++block)
    x->row[block] = batch->state && batch->state[block] == PF_BLOCK_HIDDEN
                        ? PF_HIDDEN_SCORE
                        : x->scores[block * LANES + tile - x->first];
  return x->row;
}

float *pf_pooled_mass(pf_pooled *x, int64_t tile) {
  const pf_call *call = x->head->call;
  float *row = pf_pooled_scores(x, tile, call->scale);
  const pf_span span = pf_visible_span(call, x->head->b, tile);
  const int64_t n = span.end - span.begin;
  row += span.begin;
  if (call->desc->features & PREFILL_TILE_SOFTCAP && call->desc->softcap > 0)
    for (int64_t i = 0; i < n; ++i)
      if (row[i] > PF_HIDDEN_SCORE)
        call->hot->softcap(row + i, call->desc->softcap, 1);
  float most = PF_HIDDEN_SCORE;
  for (int64_t i = 0; i < n; ++i)
    most = row[i] > most ? row[i] : most;
  for (int64_t i = 0; i < n; ++i)
    x->most[i] = most;
  call->hot->block_sums(x->mass + span.begin, x->most, row, n, 1);
  return x->mass;
}
