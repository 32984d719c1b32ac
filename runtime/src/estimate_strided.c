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
|* keeps the first visible block, its own blocks, and then the blocks of
|* greatest mass as long as those before hold less than top_p of all of it.
|*
|* The products are of signed bytes (quantized.h): keys as SALE's, less their
|* mean, with a scale a block, and one scale for the T rows of a strided query.
|* Keys that are hidden count as the mean key, rows past the last as zeros. Rows
|* and keys that are not finite keep everything.
|*
|* One T-th of the products of Q and K, one T*T-th of the exponentials.
|*
\*===----------------------------------------------------------------------===*/
#include "estimate.h"
#include "quantized.h"
#include <string.h>

enum { LANES = PF_QUANTIZED_LANES };
/* More would not fit an integer of 32 bits. */
enum { MOST_ELEMENTS = 64 * PF_QUANTIZED_WIDTH };

static bool fits(const pf_call *call, const prefill_head_plan *plan) {
  return plan->stride > 0 && plan->top_p > 0 && call->bq % plan->stride == 0 &&
         call->bk % plan->stride == 0 &&
         pf_round_up(call->d, 4) * plan->stride <= MOST_ELEMENTS;
}

/* What the estimate of one head works on. */
typedef struct strided {
  const pf_estimate *head;
  const uint8_t *bytes; /* of the KV head's keys */
  const float *scale;   /* of its blocks */
  int64_t stride;       /* T */
  int64_t width, count; /* a row with its padding, T of them */
  int64_t rows, keys;   /* strided ones */
  int64_t per_block;    /* strided keys of a block */

  pf_quantized_rows q;  /* the rows under way, by lane */
  uint64_t unsound;     /* those that keep everything */
  int32_t *dots;        /* [keys][LANES] */
  uint64_t *visible;    /* [per_block]: rows that see the key */
  float *most, *shares; /* [blocks][LANES] */
  float *mass;          /* [blocks] of the tile under way */
  char *rotated;        /* [T][d], type of q */
  float *rotary;
  float *row, *zeros; /* [count] */
  uint8_t *packed;    /* [count] */
} strided;

static strided lay_out(const pf_call *call, const prefill_head_plan *plan,
                       char **at) {
  const int64_t f = sizeof(float), d = call->d, stride = plan->stride;
  strided x = {.stride = stride,
               .width = pf_round_up(d, 4),
               .rows = pf_ceil_div(call->s, stride),
               .keys = pf_ceil_div(call->t, stride),
               .per_block = call->bk / stride};
  x.count = stride * x.width;
  x.q.q = pf_take(at, x.count * LANES, 1);
  x.dots = pf_take(at, x.keys * LANES, sizeof(int32_t));
  x.visible = pf_take(at, x.per_block, sizeof(uint64_t));
  x.most = pf_take(at, call->blocks * LANES, f);
  x.shares = pf_take(at, call->blocks * LANES, f);
  x.mass = pf_take(at, call->blocks, f);
  x.rotated = pf_take(at, call->rotary ? stride * d : 0, call->element);
  x.rotary = pf_take(at, call->rotary ? 2 * (d + call->rotary_width) : 0, f);
  x.row = pf_take(at, x.count, f);
  x.zeros = pf_take(at, x.count, f);
  x.packed = pf_take(at, x.count, 1);
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

/* Quantises strided rows [first, first + live). */
static void pack_queries(strided *x, int64_t first, int64_t live,
                         float largest_scale) {
  const pf_call *call = x->head->call;
  const int64_t b = x->head->b, h = x->head->h, d = call->d, T = x->stride;
  if (live < LANES) {
    memset(x->q.q, 0, (size_t)(x->count * LANES));
    memset(x->q.q_sum, 0, sizeof x->q.q_sum);
    memset(x->q.factor, 0, sizeof x->q.factor);
  }
  x->unsound = 0;
  for (int64_t lane = 0; lane < live; ++lane) {
    const int64_t begin = (first + lane) * T,
                  count = pf_min(T, call->s - begin);
    const char *q = call->q.data + (b * call->q.batch + h * call->q.head +
                                    begin * call->q.row) *
                                       call->element;
    int64_t step = call->q.row * call->element;
    if (call->rotary) {
      pf_rotate_queries(call, b, h, begin, count, x->rotated, x->rotary);
      q = x->rotated;
      step = d * call->element;
    }
    for (int64_t i = 0; i < T; ++i) {
      float *out = x->row + (T - 1 - i) * x->width;
      if (i < count)
        call->hot->to_float(out, q + i * step, 1, d, call->desc->dtype);
      else
        memset(out, 0, (size_t)d * sizeof(float));
    }
    pf_quantize_query(call, &x->q, lane, x->row, x->count,
                      pf_quantized_limit(x->head->plan), x->zeros, x->packed);
    float *factor = &x->q.factor[lane];
    *factor /= (float)T;
    if (!(*factor * largest_scale < PF_LARGEST_STEP)) {
      x->unsound |= (uint64_t)1 << lane;
      *factor = 0;
    }
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

/* Which of the strided rows from `first` on see strided key j: those whose last
 * position is its first key or later, and whose window reaches its last one. */
static uint64_t rows_that_see(const strided *x, int64_t j, int64_t first) {
  const pf_call *call = x->head->call;
  const int64_t T = x->stride, offset = x->head->batch->offset;
  if (!any_visible(x, j))
    return 0;
  const int64_t begin =
      pf_max(0, pf_ceil_div(j * T - offset - (T - 1), T) - first);
  int64_t end = LANES;
  if (call->window)
    end =
        pf_floor_div(j * T + T - 1 + call->window_left - offset, T) + 1 - first;
  return pf_lane_bits(begin, pf_min(end, LANES));
}

/* x->shares: every block's part of the rows' softmax, for strided rows from
 * `first` on and strided keys before `keys`. */
static void share_out(strided *x, int64_t first, int64_t keys,
                      const pf_span *span) {
  const pf_call *call = x->head->call;
  const pf_quantized_hot *hot = call->quantized_hot;
  int32_t greatest[LANES];
  float factor[LANES], top[LANES];
  for (int64_t lane = 0; lane < LANES; ++lane) {
    greatest[lane] = INT32_MIN;
    top[lane] = PF_QUANTIZED_HIDDEN;
  }
  const int64_t from = span->begin * x->per_block;
  hot->dots(x->dots + from * LANES, greatest, x->q.q, x->q.q_sum,
            x->bytes + from * x->count, x->count / 4, keys - from);
  for (int64_t block = span->begin; block < span->end; ++block) {
    float *most = x->most + block * LANES;
    const int64_t begin = block * x->per_block;
    const int64_t count = pf_min(x->per_block, keys - begin);
    for (int64_t j = 0; j < count; ++j)
      x->visible[j] = rows_that_see(x, begin + j, first);
    for (int64_t lane = 0; lane < LANES; ++lane)
      factor[lane] = x->q.factor[lane] * x->scale[block];
    hot->masked_exp_sum(x->shares + block * LANES, greatest,
                        x->dots + begin * LANES, factor, x->visible, count);
    for (int64_t lane = 0; lane < LANES; ++lane)
      most[lane] = greatest[lane] == INT32_MIN
                       ? PF_QUANTIZED_HIDDEN
                       : (float)greatest[lane] * factor[lane];
    call->hot->row_max(top, most, LANES, 1);
  }
  pf_finish_shares(call, x->shares, x->most, top, span);
}

static void estimate(const pf_estimate *head) {
  const pf_call *call = head->call;
  char *at = head->scratch;
  strided x = lay_out(call, head->plan, &at);
  const pf_quantized_keys *keys = pf_quantized_of(call, head->plan);
  const int64_t kv_head = head->b * call->hk + head->h / call->group;
  x.head = head;
  x.bytes = keys->bytes + kv_head * call->blocks * call->bk * x.width;
  x.scale = keys->scale + kv_head * call->blocks;
  const float largest_scale = pf_largest_scale(call, keys, kv_head);
  pf_blocks_init(head->index, &head->grid, head->dense->blocks, head->storage);
  const pf_keep keep = {.first = head->batch->first_key / call->bk + 1,
                        .top_p = (double)head->plan->top_p};
  const int64_t per_tile = call->bq / x.stride;
  int64_t total = 0;
  memset(x.zeros, 0, (size_t)x.count * sizeof(float));
  memset(x.row, 0, (size_t)x.count * sizeof(float));
  memset(x.packed, 0, (size_t)x.count);
  memset(x.mass, 0, (size_t)call->blocks * sizeof(float));
  for (int64_t first = 0; first < x.rows; first += LANES) {
    const int64_t live = pf_min(LANES, x.rows - first);
    /* Strided keys that the last of the rows sees, and their blocks. */
    const int64_t last = head->batch->offset + (first + live) * x.stride - 1;
    const int64_t seen =
        pf_min(pf_ceil_div(head->batch->kv_len, x.stride), last / x.stride + 1);
    pf_span span = {.end = pf_ceil_div(seen, x.per_block)};
    if (call->window) /* and the first one */
      span.begin =
          pf_min(span.end, pf_max(0, head->batch->offset + first * x.stride -
                                         call->window_left) /
                               call->bk);
    pack_queries(&x, first, live, largest_scale);
    share_out(&x, first, seen, &span);
    for (int64_t begin = 0, end; begin < live; begin = end) {
      const int64_t tile = (first + begin) / per_tile;
      end = pf_min((tile + 1) * per_tile - first, live);
      if (x.unsound & pf_lane_bits(begin, end)) /* not finite: all is kept */
        for (int64_t block = 0; block < call->blocks; ++block)
          x.mass[block] = __builtin_inff();
      else
        pf_add_shares(x.mass, x.shares, &span, begin, end);
      if ((first + end) % per_tile && first + end < x.rows)
        break; /* the tile goes on */
      total = pf_keep_blocks(head, &keep, tile, x.mass, total);
      memset(x.mass, 0, (size_t)call->blocks * sizeof(float));
    }
  }
}

const pf_pattern pf_pattern_xattention = {.fits = fits,
                                          .ids = pf_all_ids,
                                          .scratch = scratch,
                                          .prepare = pf_quantize_keys,
                                          .estimate = estimate};
