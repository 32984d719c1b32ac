/*===- estimate_quantized.c - SALE's estimate ---------------------*- C -*-===*\
|*
|* SALE (arXiv:2505.24179), with blocks of the kernel's size: all scores, but of
|* queries and keys in signed bytes (quantized.h). The first `init` keys and,
|* for every row, the `local` keys up to its own position are what it attends
|* to in any case; their scores have a maximum m and a sum l of exp(s - m). A
|* block between stays if one score of one row has exp(s - m) / l > threshold:
|* a compare with m + ln(threshold l), no exponential.
|*
|* With top_p instead of a threshold, the scores of all visible keys make a
|* softmax, whose sums over a tile's rows are the masses of the blocks, and
|* blocks are kept in order of falling mass (estimate_keep.c). It costs an
|* exponential a score, and knows more. With plan->values the shares are weighed
|* by what the block's values would change (estimate_values.c).
|*
|* Blocks with one of the `init` or `local` keys and a tile's own are always
|* kept. stride > 1: only the last of every `stride` rows of a tile is looked
|* at. Rows and keys that are not finite, or whose scores might not be, keep
|* everything.
|*
\*===----------------------------------------------------------------------===*/
#include "estimate.h"
#include "quantized.h"
#include <string.h>

enum { LANES = PF_QUANTIZED_LANES };
#define HIDDEN PF_QUANTIZED_HIDDEN
/* A threshold up to this keeps everything (SALE's marker of dense heads). */
#define LEAST_THRESHOLD 1e-5f

static bool fits(const pf_call *call, const prefill_head_plan *plan) {
  return (plan->bits == 0 || plan->bits == 4 || plan->bits == 8) &&
         (plan->top_p > 0 || plan->threshold > LEAST_THRESHOLD) &&
         call->d <= PF_QUANTIZED_WIDTH;
}

/* What the estimate of one head works on. */
typedef struct quantized {
  const pf_estimate *head;
  const uint8_t *keys; /* of the KV head */
  const float *scale;  /* of its blocks */
  int64_t width, block_bytes;
  int64_t init, local, stride;
  bool softcap;

  /* The rows under way, by lane; positions ascend. */
  int64_t live;
  pf_quantized_rows rows;
  int64_t position[LANES], tile[LANES];
  uint64_t unsound; /* rows that keep everything */
  float bound[LANES];

  int32_t *dots;     /* [bk][LANES] */
  float *scores;     /* [bk][LANES], for softcaps */
  uint64_t *visible; /* [bk]: rows that see the key */
  float *most, *sum; /* [blocks][LANES]: maxima, sums of exponentials */
  uint64_t *hits;    /* [blocks]: rows that want the block */
  float *mass;       /* [blocks] of the tile under way */
  pf_values values;  /* with plan->values */
  char *rotated;     /* [d], type of q */
  float *rotary, *row, *zeros;
  uint8_t *bytes; /* of one row */
} quantized;

static quantized lay_out(const pf_call *call, const prefill_head_plan *plan,
                         char **at) {
  const int64_t f = sizeof(float), d = call->d;
  const bool mass = plan->top_p > 0;
  quantized x = {.width = pf_round_up(d, 4),
                 .init = pf_max(plan->init, 0),
                 .local = pf_max(plan->local, 0),
                 .stride = pf_max(plan->stride, 1)};
  x.block_bytes = call->bk * x.width;
  x.rows.q = pf_take(at, x.width * LANES, 1);
  x.dots = pf_take(at, call->bk * LANES, sizeof(int32_t));
  x.scores = pf_take(at, call->bk * LANES, f);
  x.visible = pf_take(at, call->bk, sizeof(uint64_t));
  x.most = pf_take(at, mass ? call->blocks * LANES : 0, f);
  x.sum = pf_take(at, mass ? call->blocks * LANES : 0, f);
  x.hits = pf_take(at, mass ? 0 : call->blocks, sizeof(uint64_t));
  x.mass = pf_take(at, call->blocks, f);
  if (mass && plan->values)
    x.values = pf_take_values(call, LANES, at);
  x.rotated = pf_take(at, call->rotary ? d : 0, call->element);
  x.rotary = pf_take(at, call->rotary ? 2 * (d + call->rotary_width) : 0, f);
  x.row = pf_take(at, d, f);
  x.zeros = pf_take(at, d, f);
  x.bytes = pf_take(at, x.width, 1);
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

/*===-- rows -------------------------------------------------------------===*/

/* Quantises the next rows, from row `begin` on; returns where those after them
 * begin. */
static int64_t pack_rows(quantized *x, int64_t begin, float largest_scale) {
  const pf_estimate *head = x->head;
  const pf_call *call = head->call;
  const int64_t d = call->d;
  memset(x->rows.q, 0, (size_t)(x->width * LANES));
  memset(x->rows.q_sum, 0, sizeof x->rows.q_sum);
  memset(x->rows.factor, 0, sizeof x->rows.factor);
  x->unsound = 0;
  int64_t lane = 0;
  for (; lane < LANES && begin < call->s; ++lane) {
    const int64_t tile = begin / call->bq;
    const int64_t end =
        pf_min(pf_min((tile + 1) * call->bq, call->s), begin + x->stride);
    const int64_t row = end - 1;
    const char *q =
        call->q.data +
        (head->b * call->q.batch + head->h * call->q.head + row * call->q.row) *
            call->element;
    if (call->rotary) {
      pf_rotate_queries(call, head->b, head->h, row, 1, x->rotated, x->rotary);
      q = x->rotated;
    }
    call->hot->to_float(x->row, q, 1, d, call->desc->dtype);
    pf_quantize_query(call, &x->rows, lane, x->row, d,
                      pf_quantized_limit(head->plan), x->zeros, x->bytes);
    x->tile[lane] = tile;
    x->position[lane] = head->batch->offset + row;
    if (!(x->rows.factor[lane] * largest_scale < PF_LARGEST_STEP)) {
      x->unsound |= (uint64_t)1 << lane;
      x->rows.factor[lane] = 0;
    }
    begin = end;
  }
  x->live = lane;
  return begin;
}

/* Blocks that some row sees. */
static pf_span span_of_rows(const quantized *x) {
  pf_span all = {0};
  for (int64_t tile = x->tile[0]; tile <= x->tile[x->live - 1]; ++tile) {
    const pf_span span = pf_visible_span(x->head->call, x->head->b, tile);
    if (span.begin == span.end)
      continue;
    all.begin = all.end ? pf_min(all.begin, span.begin) : span.begin;
    all.end = pf_max(all.end, span.end);
  }
  return all;
}

/* Blocks [0, first) and from the result on are always kept by a tile. */
static int64_t forced_from(const quantized *x, int64_t tile) {
  const pf_estimate *head = x->head;
  const int64_t position = head->batch->offset + tile * head->call->bq;
  return pf_max(
      0, pf_floor_div(position - pf_max(x->local - 1, 0), head->call->bk));
}
static int64_t forced_until(const quantized *x) {
  return pf_ceil_div(x->init, x->head->call->bk);
}

/*===-- scores -----------------------------------------------------------===*/

static void factors_of(const quantized *x, int64_t block, float *factor) {
  for (int64_t lane = 0; lane < LANES; ++lane)
    factor[lane] = x->rows.factor[lane] * x->scale[block];
}

/* Integer scores of a block into x->dots, and their maxima. */
static void dot_block(quantized *x, int64_t block, int32_t *out,
                      int32_t *most) {
  for (int64_t lane = 0; lane < LANES; ++lane)
    most[lane] = INT32_MIN;
  x->head->call->quantized_hot->dots(out, most, x->rows.q, x->rows.q_sum,
                                     x->keys + block * x->block_bytes,
                                     x->width / 4, x->head->call->bk);
}

/* Is every key of the block visible to all rows? causal: asked for rows that
 * are known to lie past it otherwise. */
static bool all_visible(const quantized *x, int64_t block, bool causal) {
  const pf_call *call = x->head->call;
  const pf_batch *batch = x->head->batch;
  const int64_t begin = block * call->bk, end = begin + call->bk;
  return (!batch->state || batch->state[block] == PF_BLOCK_ALL) &&
         end <= batch->kv_len && (!causal || end - 1 <= x->position[0]) &&
         (!call->window ||
          begin >= x->position[x->live - 1] - call->window_left);
}

/* x->visible: which rows see the keys of a block. near: only the first `init`
 * keys and a row's `local` ones. */
static void find_visible(quantized *x, int64_t block, bool near) {
  const pf_call *call = x->head->call;
  const pf_batch *batch = x->head->batch;
  int64_t first = 0, end = 0, reach = -1;
  for (int64_t i = 0; i < call->bk; ++i) {
    const int64_t key = block * call->bk + i;
    x->visible[i] = 0;
    if (key >= batch->kv_len || (batch->key_mask && !batch->key_mask[key]))
      continue;
    int64_t wanted = call->window ? call->window_left : PF_UNBOUNDED;
    if (near && key >= x->init)
      wanted = pf_min(wanted, x->local - 1);
    if (wanted != reach) {
      reach = wanted;
      end = 0;
    }
    while (first < x->live && x->position[first] < key)
      ++first;
    while (end < x->live && x->position[end] - reach <= key)
      ++end;
    x->visible[i] = pf_lane_bits(pf_min(first, end), end);
  }
}

/* The maximum of a block's scores that x->visible leaves, HIDDEN if there is
 * none, and unless sum is NULL the sum of exponentials relative to it. */
static void visible_scores(quantized *x, int64_t block, bool softcap,
                           float *most, float *sum) {
  const pf_call *call = x->head->call;
  int32_t dot[LANES];
  float factor[LANES];
  dot_block(x, block, x->dots, dot);
  factors_of(x, block, factor);
  if (!softcap) {
    call->quantized_hot->masked_exp_sum(sum, dot, x->dots, factor, x->visible,
                                        call->bk);
    for (int64_t lane = 0; lane < LANES; ++lane)
      most[lane] =
          dot[lane] == INT32_MIN ? HIDDEN : (float)dot[lane] * factor[lane];
    return;
  }
  for (int64_t j = 0; j < call->bk; ++j)
    for (int64_t lane = 0; lane < LANES; ++lane)
      x->scores[j * LANES + lane] =
          (float)x->dots[j * LANES + lane] * factor[lane];
  call->hot->softcap(x->scores, call->desc->softcap, call->bk * LANES);
  for (int64_t j = 0; j < call->bk; ++j)
    for (int64_t lane = 0; lane < LANES; ++lane)
      if (!(x->visible[j] >> lane & 1))
        x->scores[j * LANES + lane] = HIDDEN;
  for (int64_t lane = 0; lane < LANES; ++lane)
    most[lane] = HIDDEN;
  call->hot->row_max(most, x->scores, LANES, call->bk);
  memset(sum, 0, LANES * sizeof(float));
  call->hot->exp_sum(sum, x->scores, most, LANES, call->bk);
  for (int64_t lane = 0; lane < LANES; ++lane)
    sum[lane] = most[lane] > HIDDEN ? sum[lane] : 0;
}

/*===-- by threshold -----------------------------------------------------===*/

/* x->bound: what a score has to exceed, before the softcap. */
static void find_bounds(quantized *x, const pf_span *span) {
  const pf_call *call = x->head->call;
  float most[LANES], highest[LANES], fresh[LANES];
  float sum[LANES] = {0}, part[LANES], weight[2][LANES];
  for (int64_t lane = 0; lane < LANES; ++lane)
    most[lane] = HIDDEN;
  const int64_t from = forced_from(x, x->tile[0]), until = forced_until(x);
  for (int64_t block = span->begin; block < span->end; ++block) {
    if (block >= until && block < from) {
      block = pf_min(from, span->end) - 1;
      continue;
    }
    find_visible(x, block, true);
    visible_scores(x, block, x->softcap, highest, part);
    /* Both sums relative to the greater maximum. */
    memcpy(fresh, most, sizeof most);
    call->hot->row_max(fresh, highest, LANES, 1);
    memset(weight, 0, sizeof weight);
    call->hot->exp_sum(weight[0], most, fresh, LANES, 1);
    call->hot->exp_sum(weight[1], highest, fresh, LANES, 1);
    for (int64_t lane = 0; lane < LANES; ++lane)
      sum[lane] = sum[lane] * weight[0][lane] + part[lane] * weight[1][lane];
    memcpy(most, fresh, sizeof most);
  }
  for (int64_t lane = 0; lane < LANES; ++lane) {
    x->bound[lane] = PF_MINUS_INF;
    if (!(most[lane] > HIDDEN))
      continue; /* nothing to compare with: all stays */
    double bound =
        (double)most[lane] +
        pf_logarithm((double)x->head->plan->threshold * (double)sum[lane]);
    if (x->softcap) {
      /* score > cap tanh(x / cap): x > cap atanh(score / cap). */
      const double cap = (double)call->desc->softcap, y = bound / cap;
      bound = y >= 1    ? (double)__builtin_inff()
              : y <= -1 ? (double)PF_MINUS_INF
                        : cap / 2 * pf_logarithm((1 + y) / (1 - y));
    }
    x->bound[lane] = (float)bound;
  }
}

/* x->hits of the blocks that are not forced for one of the rows. */
static void find_hits(quantized *x, const pf_span *span) {
  const pf_call *call = x->head->call;
  int32_t most[LANES];
  float highest[LANES];
  const int64_t from = forced_from(x, x->tile[x->live - 1]);
  for (int64_t block = pf_max(span->begin, forced_until(x));
       block < pf_min(span->end, from); ++block) {
    /* Rows of tiles that force it, to which it may be hidden, do not matter. */
    if (all_visible(x, block, false)) {
      dot_block(x, block, NULL, most);
      x->hits[block] = call->quantized_hot->above(most, x->rows.factor,
                                                  x->scale[block], x->bound);
      continue;
    }
    if (x->head->batch->state &&
        x->head->batch->state[block] == PF_BLOCK_HIDDEN)
      continue;
    find_visible(x, block, false);
    visible_scores(x, block, false, highest, NULL);
    x->hits[block] = 0;
    for (int64_t lane = 0; lane < LANES; ++lane)
      if (highest[lane] > HIDDEN && !(highest[lane] <= x->bound[lane]))
        x->hits[block] |= (uint64_t)1 << lane;
  }
}

/*===-- by mass ----------------------------------------------------------===*/

/* x->sum: every block's share of the rows' softmax. */
static void find_shares(quantized *x, const pf_span *span) {
  const pf_call *call = x->head->call;
  float top[LANES], factor[LANES];
  int32_t dot[LANES];
  for (int64_t lane = 0; lane < LANES; ++lane)
    top[lane] = HIDDEN;
  for (int64_t block = span->begin; block < span->end; ++block) {
    float *most = x->most + block * LANES, *sum = x->sum + block * LANES;
    if (!x->softcap && all_visible(x, block, true)) {
      dot_block(x, block, x->dots, dot);
      factors_of(x, block, factor);
      call->quantized_hot->exp_sum(sum, x->dots, dot, factor, call->bk);
      for (int64_t lane = 0; lane < LANES; ++lane)
        most[lane] = (float)dot[lane] * factor[lane];
    } else {
      find_visible(x, block, false);
      visible_scores(x, block, x->softcap, most, sum);
    }
    call->hot->row_max(top, most, LANES, 1);
  }
  pf_finish_shares(call, x->sum, x->most, top, span);
}

/*===-- tiles ------------------------------------------------------------===*/

/* Lists the blocks of a tile; mass holds what its rows have found. */
static int64_t keep(quantized *x, int64_t tile, int64_t total) {
  const pf_estimate *head = x->head;
  const pf_call *call = head->call;
  if (head->plan->top_p > 0) {
    const int64_t own =
        pf_floor_div(head->batch->offset + tile * call->bq, call->bk);
    const pf_keep rule = {.first = forced_until(x),
                          .near = own - forced_from(x, tile),
                          .top_p = (double)head->plan->top_p};
    return pf_keep_blocks(head, &rule, tile, x->mass, total);
  }
  const pf_span span = pf_visible_span(call, head->b, tile);
  const int64_t until = forced_until(x), from = forced_from(x, tile);
  memset(head->chosen, 0, (size_t)pf_words(call->blocks) * 8);
  for (int64_t block = span.begin; block < span.end; ++block)
    if (block < until || block >= from || x->mass[block] > 0)
      pf_set_bit(head->chosen, block - span.begin);
  return pf_list_chosen(head, tile, false, total);
}

static void estimate(const pf_estimate *head) {
  const pf_call *call = head->call;
  const bool by_mass = head->plan->top_p > 0;
  char *at = head->scratch;
  quantized x = lay_out(call, head->plan, &at);
  const pf_quantized_keys *keys = pf_quantized_of(call, head->plan);
  const int64_t kv_head = head->b * call->hk + head->h / call->group;
  x.head = head;
  x.keys = keys->bytes + kv_head * call->blocks * x.block_bytes;
  x.scale = keys->scale + kv_head * call->blocks;
  x.softcap =
      call->desc->features & PREFILL_TILE_SOFTCAP && call->desc->softcap > 0;
  memset(x.zeros, 0, (size_t)call->d * sizeof(float));
  memset(x.bytes, 0, (size_t)x.width);
  memset(x.mass, 0, (size_t)call->blocks * sizeof(float));
  const float largest_scale = pf_largest_scale(call, keys, kv_head);
  pf_blocks_init(head->index, &head->grid, head->dense->blocks, head->storage);
  if (by_mass && head->plan->values)
    pf_load_values(&x.values, head->b, head->h);
  int64_t total = 0;
  for (int64_t next = 0; next < call->s;) {
    next = pack_rows(&x, next, largest_scale);
    const pf_span span = span_of_rows(&x);
    if (by_mass) {
      find_shares(&x, &span);
      if (head->plan->values && span.begin < span.end)
        pf_weigh_shares(&x.values, x.sum, span.begin, span.end);
    } else {
      memset(x.hits, 0, (size_t)call->blocks * sizeof(uint64_t));
      find_bounds(&x, &span);
      find_hits(&x, &span);
    }
    for (int64_t begin = 0, end; begin < x.live; begin = end) {
      const int64_t tile = x.tile[begin];
      for (end = begin + 1; end < x.live && x.tile[end] == tile;)
        ++end;
      const uint64_t lanes = pf_lane_bits(begin, end);
      if (x.unsound & lanes) /* not finite: all is kept */
        for (int64_t block = 0; block < call->blocks; ++block)
          x.mass[block] = __builtin_inff();
      else if (by_mass)
        pf_add_shares(x.mass, x.sum, &span, begin, end);
      else
        for (int64_t block = 0; block < call->blocks; ++block)
          x.mass[block] += (x.hits[block] & lanes) != 0;
      if (end == x.live && next < call->s && next / call->bq == tile)
        break; /* the tile goes on */
      total = keep(&x, tile, total);
      memset(x.mass, 0, (size_t)call->blocks * sizeof(float));
    }
  }
}

const pf_pattern pf_pattern_sale = {.fits = fits,
                                    .ids = pf_all_ids,
                                    .scratch = scratch,
                                    .prepare = pf_quantize_keys,
                                    .estimate = estimate};
