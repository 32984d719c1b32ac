/*===- estimate_strided.c - XAttention's estimate -----------------*- C -*-===*\
|*
|* XAttention (arXiv:2503.16428). T = stride rows of Q and of K make one strided
|* row each:
|*
|*   X[i, j] = scale / T * sum over t < T of Q[i T + T - 1 - t] . K[j T + t]
|*
|* so that every query and key takes part in one product of T. The softmax of X
|* over the visible j, summed over the strided rows of a tile and the strided
|* keys of a block, estimates the block's share of the tile's attention. A tile
|* keeps block 0, its own blocks, and then the blocks of greatest mass as long
as
|* those before hold less than top_p of all of it.
|*
|* One T-th of the products of Q and K, one T*T-th of the exponentials.
|*
\*===----------------------------------------------------------------------===*/
#include "estimate.h"
#include <string.h>

/* Strided rows that are scored together, and strided keys that are packed. */
enum { LANES = 64, PACKED_KEYS = 64 };

static bool fits(const pf_call *call, const prefill_head_plan *plan) {
  return plan->stride > 0 && plan->top_p > 0 && call->bq % plan->stride == 0 &&
         call->bk % plan->stride == 0;
}

/* What the estimate of one head works on. */
typedef struct strided {
  const pf_estimate *head;
  int64_t stride, width; /* T, T * d */
  int64_t rows, keys;    /* strided ones */
  float *q;              /* [width][LANES], scaled */
  float *packed;         /* [PACKED_KEYS][width] */
  float *scores;         /* [keys][LANES] */
  float *shares;         /* [blocks][LANES]: sums of exponentials */
  float *mass;           /* [blocks] of the tile under way */
  char *rotated;         /* [LANES * T][d], type of q */
  float *rotary;
  float *row; /* [d] */
} strided;

static strided lay_out(const pf_call *call, const prefill_head_plan *plan,
                       char **at) {
  const int64_t f = sizeof(float), d = call->d, stride = plan->stride;
  strided x = {.stride = stride,
               .width = stride * d,
               .rows = pf_ceil_div(call->s, stride),
               .keys = pf_ceil_div(call->t, stride)};
  x.q = pf_take(at, x.width * LANES, f);
  x.packed = pf_take(at, x.width * PACKED_KEYS, f);
  x.scores = pf_take(at, x.keys * LANES, f);
  x.shares = pf_take(at, call->blocks * LANES, f);
  x.mass = pf_take(at, call->blocks, f);
  x.rotated = pf_take(at, call->rotary ? LANES * stride * d : 0, call->element);
  x.rotary = pf_take(at, call->rotary ? 2 * (d + call->rotary_width) : 0, f);
  x.row = pf_take(at, d, f);
  return x;
}

static int64_t scratch(const pf_call *call, const prefill_head_plan *plan,
                       int64_t limit) {
  (void)limit;
  static char anchor[1];
  char *at = anchor;
  lay_out(call, plan, &at);
  return at - anchor;
}

/* Strided rows [first, first + LANES) of Q, transposed. */
static void pack_queries(strided *x, int64_t first) {
  const pf_call *call = x->head->call;
  const int64_t b = x->head->b, h = x->head->h, d = call->d, T = x->stride;
  const float factor = call->scale / (float)T;
  const int64_t begin = first * T, count = pf_min(LANES * T, call->s - begin);
  const char *q = call->q.data +
                  (b * call->q.batch + h * call->q.head + begin * call->q.row) *
                      call->element;
  int64_t step = call->q.row * call->element;
  if (call->rotary) {
    pf_rotate_queries(call, b, h, begin, count, x->rotated, x->rotary);
    q = x->rotated;
    step = d * call->element;
  }
  /* t outside: what the lanes write to stays in the first cache. */
  for (int64_t t = 0; t < T; ++t)
    for (int64_t lane = 0; lane < LANES; ++lane) {
      const int64_t i = lane * T + T - 1 - t;
      float *out = x->q + t * d * LANES + lane;
      if (i >= count) {
        for (int64_t c = 0; c < d; ++c)
          out[c * LANES] = 0;
        continue;
      }
      call->hot->to_float(x->row, q + i * step, 1, d, call->desc->dtype);
      for (int64_t c = 0; c < d; ++c)
        out[c * LANES] = x->row[c] * factor;
    }
}

/* Scores of the packed queries with strided keys [0, keys). */
static void score_keys(strided *x, int64_t keys) {
  const pf_call *call = x->head->call;
  const pf_batch *batch = x->head->batch;
  const int64_t d = call->d, T = x->stride;
  const char *k = call->k.data + (x->head->b * call->k.batch +
                                  x->head->h / call->group * call->k.head) *
                                     call->element;
  /* Rows that lie one after the other are strided rows already. */
  const int64_t whole =
      call->desc->dtype == PREFILL_F32 && call->k.row == d && !batch->key_mask
          ? pf_min(keys, batch->kv_len / T)
          : 0;
  call->hot->score(x->scores, x->q, LANES, x->width, k, x->width, whole,
                   PREFILL_F32);
  for (int64_t j = whole; j < keys; j += PACKED_KEYS) {
    const int64_t count = pf_min(PACKED_KEYS, keys - j);
    for (int64_t i = 0; i < count * T; ++i) {
      const int64_t key = j * T + i;
      float *out = x->packed + i * d;
      if (key < batch->kv_len && (!batch->key_mask || batch->key_mask[key]))
        call->hot->to_float(out, k + key * call->k.row * call->element, 1, d,
                            call->desc->dtype);
      else
        memset(out, 0, (size_t)d * sizeof(float));
    }
    call->hot->score(x->scores + j * LANES, x->q, LANES, x->width, x->packed,
                     x->width, count, PREFILL_F32);
  }
}

/* Is any key of a strided one visible as far as lengths and the mask go? */
static bool any_visible(const strided *x, int64_t j) {
  const pf_batch *batch = x->head->batch;
  const int64_t end = pf_min((j + 1) * x->stride, batch->kv_len);
  if (!batch->key_mask)
    return j * x->stride < end;
  for (int64_t key = j * x->stride; key < end; ++key)
    if (batch->key_mask[key])
      return true;
  return false;
}

/* Softmax of the scores of strided rows [first, first + LANES): shares[block]
 * = its part of every row's sum. */
static void share_out(strided *x, int64_t first, int64_t keys) {
  const pf_call *call = x->head->call;
  const pf_batch *batch = x->head->batch;
  const int64_t T = x->stride, per_block = call->bk / T;
  for (int64_t j = 0; j < keys; ++j) {
    float *row = x->scores + j * LANES;
    /* Row i sees the strided keys that begin at or before its last position. */
    const int64_t hidden = pf_ceil_div(j * T - batch->offset - (T - 1), T);
    int64_t above = any_visible(x, j) ? hidden - first : LANES;
    for (int64_t lane = 0; lane < pf_min(above, LANES); ++lane)
      row[lane] = PF_MINUS_INF;
    if (call->window) /* and end at or after its first one's window */
      for (int64_t lane = 0; lane < LANES; ++lane)
        if (j * T + T - 1 <
            batch->offset + (first + lane) * T - call->window_left)
          row[lane] = PF_MINUS_INF;
  }
  float most[LANES], sum[LANES] = {0};
  for (int lane = 0; lane < LANES; ++lane)
    most[lane] = PF_MINUS_INF;
  call->hot->row_max(most, x->scores, LANES, keys);
  for (int lane = 0; lane < LANES; ++lane)
    if (most[lane] == PF_MINUS_INF) /* -inf - -inf would be NaN */
      most[lane] = 0;
  const int64_t blocks = pf_ceil_div(keys, per_block);
  for (int64_t block = 0; block < blocks; ++block) {
    float *share = x->shares + block * LANES;
    memset(share, 0, LANES * sizeof(float));
    const int64_t begin = block * per_block;
    call->hot->exp_sum(share, x->scores + begin * LANES, most, LANES,
                       pf_min(per_block, keys - begin));
    for (int lane = 0; lane < LANES; ++lane)
      sum[lane] += share[lane];
  }
  for (int64_t block = 0; block < blocks; ++block)
    for (int lane = 0; lane < LANES; ++lane)
      x->shares[block * LANES + lane] /= sum[lane];
  if (blocks < call->blocks)
    memset(x->shares + blocks * LANES, 0,
           (size_t)((call->blocks - blocks) * LANES) * sizeof(float));
}

static void estimate(const pf_estimate *head) {
  const pf_call *call = head->call;
  char *at = head->scratch;
  strided x = lay_out(call, head->plan, &at);
  x.head = head;
  pf_blocks_init(head->index, &head->grid, head->dense->blocks, head->storage);
  const pf_keep keep = {.first = 1, .top_p = (double)head->plan->top_p};
  const int64_t per_tile = call->bq / x.stride;
  int64_t total = 0, in_tile = 0, tile = 0;
  memset(x.mass, 0, (size_t)call->blocks * sizeof(float));
  for (int64_t first = 0; first < x.rows; first += LANES) {
    const int64_t live = pf_min(LANES, x.rows - first);
    /* Strided keys that the last of the rows sees. */
    const int64_t last = head->batch->offset + (first + live) * x.stride - 1;
    const int64_t keys =
        pf_min(pf_ceil_div(head->batch->kv_len, x.stride), last / x.stride + 1);
    pack_queries(&x, first);
    score_keys(&x, keys);
    share_out(&x, first, keys);
    for (int64_t lane = 0; lane < live; ++lane) {
      for (int64_t block = 0; block < call->blocks; ++block)
        x.mass[block] += x.shares[block * LANES + lane];
      if (++in_tile < per_tile && first + lane + 1 < x.rows)
        continue;
      total = pf_keep_blocks(head, &keep, tile++, x.mass, total);
      memset(x.mass, 0, (size_t)call->blocks * sizeof(float));
      in_tile = 0;
    }
  }
}

const pf_pattern pf_pattern_xattention = {
    .fits = fits, .ids = pf_all_ids, .scratch = scratch, .estimate = estimate};
