/*===- estimate_sampled.c - The attention of every stride-th row --*- C -*-===*\
|*
|* The last row of every run of `stride` query rows gets its exact softmax over
|* all keys that it sees. A block's mass is what the sampled rows of a tile give
|* it together: no pooling, no quantisation, only fewer rows. (Ours; the last
|* rows of a prompt alone are what MInference looks at, arXiv:2407.02490.)
|*
|* A tile keeps the block of the first visible key, its own blocks and those of
|* the `local` keys before it, and then the blocks of greatest mass as long as
|* those before hold less than top_p of all of it. With plan->values the mass is
|* weighed by what the block's values would change (estimate_values.c).
|*
|* Rows of `stride` tiles are scored together, and every key once: a block
|* leaves its sum of exponentials relative to the maximum of its row so far;
|* when the row is through, the sums are brought to the last maximum. One
|* stride-th of the products of Q and K and of the exponentials; O(t) floats.
|*
\*===----------------------------------------------------------------------===*/
#include "estimate.h"
#include <string.h>

/* Keys scored at a time, rounded to whole blocks. */
enum { CHUNK = 256 };

static bool fits(const pf_call *call, const prefill_head_plan *plan) {
  return plan->stride > 0 && plan->top_p > 0 && call->bq % plan->stride == 0;
}

static int64_t chunk_of(const pf_call *call) {
  return pf_max(CHUNK / call->bk, 1) * call->bk;
}

typedef struct sampled {
  const pf_estimate *head;
  pf_lanes lanes;
  pf_values values; /* with plan->values */
  float *scores;    /* [chunk][bq] */
  float *sums;      /* [blocks][bq]: of exponentials relative to `most` */
  float *most;      /* [blocks][bq]: the rows' maxima up to the block's end */
  float *total;     /* [bq] */
  float *mass;      /* [blocks] of the tile under way */
} sampled;

static sampled lay_out(const pf_call *call, const prefill_head_plan *plan,
                       int64_t b, int64_t h, char **at) {
  const int64_t lanes = call->bq, f = sizeof(float);
  sampled x = {.lanes = pf_take_lanes(call, b, h, false, at)};
  x.scores = pf_take(at, chunk_of(call) * lanes, f);
  x.sums = pf_take(at, call->blocks * lanes, f);
  x.most = pf_take(at, call->blocks * lanes, f);
  x.total = pf_take(at, lanes, f);
  x.mass = pf_take(at, call->blocks, f);
  if (plan->values)
    x.values = pf_take_values(call, lanes, at);
  return x;
}

static int64_t scratch(const pf_call *call, const prefill_head_plan *plan,
                       int64_t limit) {
  (void)limit;
  static char anchor[1];
  char *at = anchor;
  lay_out(call, plan, 0, 0, &at);
  return at - anchor;
}

/* sums[block] = the part of the block in every lane's softmax, for the blocks
 * [first, end), which are all that the lanes see. Lanes that see nothing get 0,
 * lanes with scores that are no numbers NaN. */
static void share_out(const sampled *x, int64_t first, int64_t end) {
  const pf_call *call = x->head->call;
  const int64_t lanes = call->bq, chunk = chunk_of(call);
  float *most = x->most + first * lanes;
  for (int64_t i = 0; i < lanes; ++i)
    most[i] = PF_HIDDEN_SCORE;
  for (int64_t at = first * call->bk; at < end * call->bk; at += chunk) {
    const int64_t stop = pf_min(at + chunk, end * call->bk);
    const int64_t from = pf_max(at, x->lanes.begin);
    const int64_t to = pf_min(stop, x->lanes.end);
    pf_score_lanes(&x->lanes, from, to, x->scores);
    for (int64_t key = at; key < stop; key += call->bk) {
      const int64_t block = key / call->bk;
      const int64_t low = pf_max(key, from), high = pf_min(key + call->bk, to);
      most = x->most + block * lanes;
      if (block > first)
        memcpy(most, most - lanes, (size_t)lanes * sizeof(float));
      call->hot->block_sums(x->sums + block * lanes, most,
                            x->scores + (low - from) * lanes, lanes,
                            high - low);
    }
  }
  memset(x->total, 0, (size_t)lanes * sizeof(float));
  for (int64_t block = first; block < end; ++block)
    call->hot->rescale(x->total, x->sums + block * lanes,
                       x->most + block * lanes, most, lanes);
  for (int64_t i = 0; i < lanes; ++i)
    x->total[i] = most[i] > PF_HIDDEN_SCORE || x->total[i] != x->total[i]
                      ? 1 / x->total[i]
                      : 0;
  for (int64_t block = first; block < end; ++block)
    for (int64_t i = 0; i < lanes; ++i)
      x->sums[block * lanes + i] *= x->total[i];
}

static void estimate(const pf_estimate *head) {
  const pf_call *call = head->call;
  const int64_t stride = head->plan->stride, lanes = call->bq;
  const int64_t rows = pf_ceil_div(call->s, stride), per_tile = lanes / stride;
  char *at = head->scratch;
  sampled x = lay_out(call, head->plan, head->b, head->h, &at);
  x.head = head;
  pf_blocks_init(head->index, &head->grid, head->dense->blocks, head->storage);
  const pf_keep keep = {.first = head->batch->first_key / call->bk + 1,
                        .near =
                            pf_ceil_div(pf_max(head->plan->local, 0), call->bk),
                        .top_p = (double)head->plan->top_p};
  if (head->plan->values)
    pf_load_values(&x.values, head->b, head->h);
  int64_t total = 0;
  for (int64_t group = 0; group < rows; group += lanes) {
    const int64_t live = pf_min(lanes, rows - group);
    pf_load_lanes(&x.lanes, group * stride + stride - 1, stride, live);
    const int64_t first = x.lanes.begin / call->bk;
    const int64_t end = pf_ceil_div(x.lanes.end, call->bk);
    if (first < end) {
      share_out(&x, first, end);
      if (head->plan->values)
        pf_weigh_shares(&x.values, x.sums, first, end);
    }
    for (int64_t lane = 0; lane < live; lane += per_tile) {
      const int64_t count = pf_min(per_tile, live - lane);
      bool any = false;
      for (int64_t i = lane; first < end && i < lane + count; ++i)
        any |= x.total[i] != 0;
      for (int64_t block = 0; block < call->blocks; ++block) {
        float sum = 0;
        if (block >= first && block < end)
          for (int64_t i = lane; i < lane + count; ++i)
            sum += x.sums[block * lanes + i];
        /* Rows between the sampled ones may see keys where those see none. */
        x.mass[block] = any ? sum : __builtin_nanf("");
      }
      total =
          pf_keep_blocks(head, &keep, (group + lane) / per_tile, x.mass, total);
    }
  }
}

const pf_pattern pf_pattern_sampled = {
    .fits = fits, .ids = pf_all_ids, .scratch = scratch, .estimate = estimate};
