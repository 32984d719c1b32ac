/*===- exact.c - Rows whose biases are below all scores -----------*- C -*-===*\
|*
|* Masks are often added as the least finite number instead of -inf. Tile
|* functions take both for invisible: they differ only in rows where nothing
|* else is left, and there float32 softmax gives the mean over the keys with the
|* greatest score, be it -3.4e38, and ignores those with -inf. Such rows come
|* back from the tile function as rows without keys and are computed here, by
|* the model's own arithmetic.
|*
|* No exponential is needed: numbers below PF_BIAS_HIDES are 2e31 apart, so that
|* keys either have the greatest score, and all of them the same weight, or the
|* weight 0. The same holds for the sink.
|*
\*===----------------------------------------------------------------------===*/
#include "internal.h"
#include <string.h>

/* Rows that are computed together, and the multiple that pf_hot's loops like.
 */
enum { ROWS = 64, ROWS_STEP = 16 };

typedef struct exact_memory {
  float *q;       /* [d][lanes], scaled */
  float *scores;  /* [bk][lanes] */
  float *row;     /* [max(bk, d)] */
  float *total;   /* [lanes][e]: sum of the values of the greatest keys */
  float *partial; /* [e]: of one block */
  uint8_t *equal, *equal_before; /* [bk]: keys with the greatest score */
  int64_t bytes;
} exact_memory;

static exact_memory lay_out(const pf_call *call, void *base) {
  exact_memory m;
  uintptr_t at = (uintptr_t)base;
#define PART(field, count)                                                     \
  m.field = (void *)at;                                                        \
  at += (uintptr_t)pf_round_up((int64_t)sizeof(*m.field) * (count), 64)
  PART(q, call->d * ROWS);
  PART(scores, call->bk * ROWS);
  PART(row, pf_max(call->bk, call->d));
  PART(total, call->e * ROWS);
  PART(partial, call->e);
  PART(equal, call->bk);
  PART(equal_before, call->bk);
#undef PART
  m.bytes = (int64_t)(at - (uintptr_t)base);
  return m;
}

int64_t pf_exact_bytes(const pf_call *call) {
  return lay_out(call, NULL).bytes;
}

/* The biases of a block's keys for row i of the tile, -inf where another mask
 * hides the key. False if all are -inf. */
static bool visible_biases(const pf_call *call, const prefill_tile_args *args,
                           int64_t i, int64_t block, float *out) {
  const int64_t begin = block * call->bk;
  const int64_t end = pf_min(begin + call->bk, args->kv_len);
  const int64_t position = args->position + i;
  const float *bias = args->bias + i * args->bias_row_stride;
  int64_t low = begin, high = end;
  if (call->window)
    low = pf_max(low, position - call->window_left);
  if (call->causal)
    high = pf_min(high, position + call->window_right + 1);
  bool any = false;
  for (int64_t j = begin; j < end; ++j) {
    const bool visible =
        j >= low && j < high && !(args->key_mask && !args->key_mask[j]) &&
        !(args->q_segment && args->q_segment[i] != args->k_segment[j]);
    const float x = visible ? bias[j * args->bias_key_stride] : PF_MINUS_INF;
    out[j - begin] = x;
    any |= x > PF_MINUS_INF;
  }
  return any;
}

/* `count` rows of the tile, at most ROWS. */
static void compute_rows(const pf_call *call, const prefill_tile_args *args,
                         const int64_t *rows, int64_t count,
                         const exact_memory *m) {
  const int64_t lanes = pf_round_up(count, ROWS_STEP), e = call->e;
  const int dtype = call->desc->dtype;
  float most[ROWS];
  int64_t keys[ROWS]; /* with a score of most */
  memset(m->q, 0, (size_t)(call->d * lanes) * sizeof(float));
  for (int64_t lane = 0; lane < count; ++lane) {
    most[lane] = PF_MINUS_INF;
    keys[lane] = 0;
    call->hot->to_float(m->row,
                        (const char *)args->q +
                            rows[lane] * args->q_stride * call->element,
                        1, call->d, dtype);
    for (int64_t c = 0; c < call->d; ++c)
      m->q[c * lanes + lane] = m->row[c] * args->scale;
  }
  for (int64_t x = 0; x < args->block_count; ++x) {
    const int64_t block = args->blocks[x], begin = block * call->bk;
    const int64_t n = pf_min(call->bk, args->kv_len - begin);
    call->hot->score(m->scores, m->q, lanes, call->d,
                     (const char *)args->k +
                         begin * args->k_stride * call->element,
                     args->k_stride, n, dtype);
    if ((call->desc->features & PREFILL_TILE_SOFTCAP) && args->softcap > 0)
      call->hot->softcap(m->scores, args->softcap, n * lanes);
    /* Rows often have the same keys in common: their sum is kept. */
    memset(m->equal_before, 0, (size_t)n);
    memset(m->partial, 0, (size_t)e * sizeof(float));
    for (int64_t lane = 0; lane < count; ++lane) {
      float *total = m->total + lane * e;
      if (!visible_biases(call, args, rows[lane], block, m->row))
        continue;
      float greatest = PF_MINUS_INF;
      for (int64_t j = 0; j < n; ++j) {
        m->row[j] += m->scores[j * lanes + lane];
        greatest = m->row[j] > greatest ? m->row[j] : greatest;
      }
      if (greatest > most[lane]) {
        most[lane] = greatest;
        keys[lane] = 0;
        memset(total, 0, (size_t)e * sizeof(float));
      }
      int64_t found = 0;
      for (int64_t j = 0; j < n; ++j)
        found += m->equal[j] =
            m->row[j] > PF_MINUS_INF && m->row[j] == most[lane];
      if (!found)
        continue;
      if (memcmp(m->equal, m->equal_before, (size_t)n) != 0) {
        memcpy(m->equal_before, m->equal, (size_t)n);
        memset(m->partial, 0, (size_t)e * sizeof(float));
        for (int64_t j = 0; j < n; ++j)
          if (m->equal[j])
            call->hot->accumulate(m->partial,
                                  (const char *)args->v + (begin + j) *
                                                              args->v_stride *
                                                              call->element,
                                  e, dtype);
      }
      call->hot->accumulate(total, m->partial, e, PREFILL_F32);
      keys[lane] += found;
    }
  }
  for (int64_t lane = 0; lane < count; ++lane) {
    if (!keys[lane] || args->sink > most[lane])
      continue; /* as the tile function left it */
    float *total = m->total + lane * e;
    const float weights = (float)(keys[lane] + (args->sink == most[lane]));
    for (int64_t c = 0; c < e; ++c)
      total[c] /= weights;
    call->hot->from_float((char *)args->o +
                              rows[lane] * args->o_stride * call->element,
                          total, e, dtype);
    /* The logarithm of their number is lost in most's last digit. */
    args->lse[rows[lane]] = most[lane];
  }
}

void pf_exact_rows(const pf_call *call, const prefill_tile_args *args,
                   void *memory) {
  const exact_memory m = lay_out(call, memory);
  int64_t rows[ROWS], count = 0;
  for (int64_t i = 0; i < args->rows; ++i) {
    if (!(args->lse[i] < PF_BIAS_HIDES))
      continue;
    bool any = false;
    for (int64_t x = 0; x < args->block_count && !any; ++x)
      any = visible_biases(call, args, i, args->blocks[x], m.row);
    if (!any)
      continue;
    rows[count++] = i;
    if (count == ROWS) {
      compute_rows(call, args, rows, count, &m);
      count = 0;
    }
  }
  if (count)
    compute_rows(call, args, rows, count, &m);
}
