/*===- estimate_scores.c - Scores of some query rows --------------*- C -*-===*\
|*
|* What estimators that look at single query rows share: up to block_q rows of a
|* head side by side, one lane each, and their scores against a range of keys
|* with everything hidden that a row does not see.
|*
\*===----------------------------------------------------------------------===*/
#include "estimate.h"
#include <string.h>

pf_lanes pf_take_lanes(const pf_call *call, int64_t b, int64_t h,
                       bool transpose, char **at) {
  const int64_t lanes = call->bq, d = call->d, f = sizeof(float);
  pf_lanes x = {.call = call, .batch = &call->batch[b], .b = b, .h = h};
  x.transpose = transpose || !call->variant->score;
  x.position = pf_take(at, lanes, sizeof(int64_t));
  x.q = pf_take(at, lanes * d, call->element);
  x.transposed = pf_take(at, x.transpose ? lanes * d : 0, f);
  x.row = pf_take(at, x.transpose ? d : 0, f);
  x.rotary = pf_take(at, call->rotary ? 2 * (d + call->rotary_width) : 0, f);
  x.workspace = pf_take(at, (int64_t)call->variant->workspace_bytes, 1);
  return x;
}

void pf_load_lanes(pf_lanes *x, int64_t row, int64_t step, int64_t rows) {
  const pf_call *call = x->call;
  const pf_batch *batch = x->batch;
  const int64_t lanes = call->bq, d = call->d, bytes = d * call->element;
  const char *q = call->q.data +
                  (x->b * call->q.batch + x->h * call->q.head) * call->element;
  x->rows = rows;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t at = pf_min(row + i * step, call->s - 1);
    char *out = x->q + i * bytes;
    x->position[i] = batch->offset + at;
    if (call->rotary)
      pf_rotate_queries(call, x->b, x->h, at, 1, out, x->rotary);
    else
      memcpy(out, q + at * call->q.row * call->element, (size_t)bytes);
  }
  x->begin = batch->first_key;
  if (call->window)
    x->begin = pf_max(x->begin, x->position[0] - call->window_left);
  x->end = pf_min(batch->last_key, x->position[rows - 1] + 1);
  if (!x->transpose)
    return;
  if (rows < lanes)
    memset(x->transposed, 0, (size_t)(lanes * d) * sizeof(float));
  for (int64_t i = 0; i < rows; ++i) {
    call->hot->to_float(x->row, x->q + i * bytes, 1, d, call->desc->dtype);
    for (int64_t c = 0; c < d; ++c)
      x->transposed[c * lanes + i] = x->row[c] * call->scale;
  }
}

/* Hides lanes [from, to) of one key. */
static void hide(float *score, int64_t from, int64_t to) {
  for (int64_t i = from; i < to; ++i)
    score[i] = PF_HIDDEN_SCORE;
}

void pf_score_lanes(const pf_lanes *x, int64_t begin, int64_t end, float *out) {
  const pf_call *call = x->call;
  const int64_t lanes = call->bq;
  const char *k = call->k.data +
                  (x->b * call->k.batch + x->h / call->group * call->k.head) *
                      call->element;
  if (call->variant->score) {
    const prefill_score_args args = {.q = x->q,
                                     .k = k,
                                     .q_stride = call->d,
                                     .k_stride = call->k.row,
                                     .rows = x->rows,
                                     .key_begin = begin,
                                     .key_end = end,
                                     .scale = call->scale,
                                     .out = out,
                                     .workspace = x->workspace};
    call->variant->score(&args);
  } else {
    call->hot->score(out, x->transposed, lanes, call->d,
                     k + begin * call->k.row * call->element, call->k.row,
                     end - begin, call->desc->dtype);
  }
  if (call->desc->features & PREFILL_TILE_SOFTCAP && call->desc->softcap > 0)
    call->hot->softcap(out, call->desc->softcap, (end - begin) * lanes);
  const uint8_t *mask = x->batch->key_mask;
  if (mask)
    for (int64_t j = begin; j < end; ++j)
      if (!mask[j])
        hide(out + (j - begin) * lanes, 0, lanes);
  /* Causal: rows at positions below a key do not see it. */
  int64_t before = 0;
  for (int64_t j = pf_max(begin, x->position[0] + 1); j < end; ++j) {
    while (before < x->rows && x->position[before] < j)
      ++before;
    hide(out + (j - begin) * lanes, 0, before);
  }
  /* Window: nor do rows further than window_left past it. */
  if (call->window)
    for (int64_t j = begin, past = 0; j < end; ++j) {
      while (past < x->rows && x->position[past] - call->window_left <= j)
        ++past;
      hide(out + (j - begin) * lanes, past, x->rows);
      if (past == x->rows)
        break;
    }
}
