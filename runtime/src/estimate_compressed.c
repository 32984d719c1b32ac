/*===- estimate_compressed.c - InfLLM v2's estimate ---------------*- C -*-===*\
|*
|* InfLLM v2 (MiniCPM4, arXiv:2506.07900). The mean of every 32 keys, one mean
|* every 16: softmax of each query row over the means that lie wholly at or
|* before it, summed over the query heads of a KV head, which all visit the same
|* blocks. A block's score is the greatest of the means that touch it. A tile
|* keeps top_k blocks: those of the first `init` tokens, its own and those of
|* the `local` tokens before it, which count, then those of greatest score, the
|* lower first.
|*
|* Where this differs from the authors' kernels: they select for every query
|* row, here the rows of a tile have one list, by the sum of their
|* probabilities; and the softmax is exact, where they divide by an estimate of
|* its sum.
|*
\*===----------------------------------------------------------------------===*/
#include "estimate.h"
#include <string.h>

/* Keys of a mean, and from one mean to the next. */
enum { MEAN = 32, STEP = 16 };

static bool fits(const pf_call *call, const prefill_head_plan *plan) {
  return plan->top_k > 0 && call->bk % STEP == 0;
}

typedef struct compressed {
  const pf_estimate *head;
  int64_t means;
  pf_lanes lanes;
  float *mean;       /* [means][d] */
  uint8_t *seen;     /* [means]: any key of it is visible */
  float *scores;     /* [means][bq] */
  float *column;     /* [means]: probabilities summed over rows and heads */
  float *unused;     /* [means + bq]: diagonal sums */
  float *most, *sum; /* [bq] */
  float *value;      /* [blocks] */
} compressed;

static compressed lay_out(const pf_call *call, int64_t b, int64_t h,
                          char **at) {
  const int64_t f = sizeof(float), lanes = call->bq;
  compressed x = {.lanes = pf_take_lanes(call, b, h, true, at),
                  .means = call->t < MEAN ? 0 : (call->t - MEAN) / STEP + 1};
  x.mean = pf_take(at, x.means * call->d, f);
  x.seen = pf_take(at, x.means, 1);
  x.scores = pf_take(at, x.means * lanes, f);
  x.column = pf_take(at, x.means, f);
  x.unused = pf_take(at, x.means + lanes, f);
  x.most = pf_take(at, lanes, f);
  x.sum = pf_take(at, lanes, f);
  x.value = pf_take(at, call->blocks, f);
  return x;
}

static int64_t scratch(const pf_call *call, const prefill_head_plan *plan,
                       int64_t limit) {
  (void)plan, (void)limit;
  static char anchor[1];
  char *at = anchor;
  lay_out(call, 0, 0, &at);
  return at - anchor;
}

/* Means of the visible keys; those with keys past kv_len are left out. */
static void pool_keys(compressed *x) {
  const pf_call *call = x->head->call;
  const pf_batch *batch = x->head->batch;
  const int64_t d = call->d;
  const char *k = call->k.data + (x->head->b * call->k.batch +
                                  x->head->h / call->group * call->k.head) *
                                     call->element;
  if (batch->kv_len < MEAN)
    x->means = 0;
  else
    x->means = pf_min(x->means, (batch->kv_len - MEAN) / STEP + 1);
  for (int64_t m = 0; m < x->means; ++m) {
    float *out = x->mean + m * d;
    int64_t count = 0;
    memset(out, 0, (size_t)d * sizeof(float));
    for (int64_t j = m * STEP; j < m * STEP + MEAN; ++j)
      if (!batch->key_mask || batch->key_mask[j]) {
        call->hot->accumulate(out, k + j * call->k.row * call->element, d,
                              call->desc->dtype);
        ++count;
      }
    x->seen[m] = count > 0;
    for (int64_t c = 0; c < d && count; ++c)
      out[c] /= (float)count;
  }
}

/* Adds the probabilities of a tile's rows of query head h to x->column; returns
 * the number of means that any of them sees. */
static int64_t add_rows(compressed *x, int64_t h, int64_t tile) {
  const pf_call *call = x->head->call;
  const pf_hot *hot = call->hot;
  const int64_t lanes = call->bq, row = tile * call->bq;
  pf_lanes *rows = &x->lanes;
  rows->h = h;
  pf_load_lanes(rows, row, 1, pf_min(lanes, call->s - row));
  const int64_t last = rows->position[rows->rows - 1];
  const int64_t n =
      last < MEAN - 1 ? 0 : pf_min(x->means, (last - MEAN + 1) / STEP + 1);
  hot->score(x->scores, rows->transposed, lanes, call->d, x->mean, call->d, n,
             PREFILL_F32);
  if (call->desc->features & PREFILL_TILE_SOFTCAP && call->desc->softcap > 0)
    hot->softcap(x->scores, call->desc->softcap, n * lanes);
  for (int64_t m = 0; m < n; ++m) {
    const int64_t end = m * STEP + MEAN - 1; /* its last key */
    if (x->seen[m] && end <= rows->position[0] &&
        (!call->window || end >= last - call->window_left))
      continue;
    for (int64_t i = 0; i < rows->rows; ++i)
      if (!x->seen[m] || end > rows->position[i] ||
          (call->window && end < rows->position[i] - call->window_left))
        x->scores[m * lanes + i] = PF_HIDDEN_SCORE;
  }
  for (int64_t i = 0; i < lanes; ++i)
    x->most[i] = PF_HIDDEN_SCORE;
  hot->block_sums(x->sum, x->most, x->scores, lanes, n);
  for (int64_t i = 0; i < lanes; ++i) {
    const bool votes = x->most[i] > PF_HIDDEN_SCORE || x->sum[i] != x->sum[i];
    x->sum[i] = i < rows->rows && votes ? 1 / x->sum[i] : 0;
  }
  hot->sums(x->column, x->unused + n, x->scores, x->most, x->sum, lanes, n);
  return n;
}

static void estimate(const pf_estimate *head) {
  const pf_call *call = head->call;
  const pf_batch *batch = head->batch;
  const prefill_head_plan *plan = head->plan;
  const int64_t bk = call->bk, kv_head = head->h / call->group;
  char *at = head->scratch;
  compressed x = lay_out(call, head->b, head->h, &at);
  x.head = head;
  pf_blocks_init(head->index, &head->grid, head->dense->blocks, head->storage);
  bool pooled = false;
  memset(x.unused, 0, (size_t)(x.means + call->bq) * sizeof(float));
  const int64_t init =
      plan->init > 0 ? pf_ceil_div(batch->first_key + plan->init, bk) : 0;
  const int64_t near = pf_ceil_div(pf_max(plan->local, 0), bk);
  int64_t total = 0;
  for (int64_t tile = 0; tile < call->tiles; ++tile) {
    int64_t n = 0;
    memset(x.column, 0, (size_t)x.means * sizeof(float));
    const pf_span span = pf_visible_span(call, head->b, tile);
    if (span.end - span.begin > plan->top_k) { /* or scores decide nothing */
      if (!pooled)
        pool_keys(&x);
      pooled = true;
      for (int64_t h = kv_head * call->group; h < (kv_head + 1) * call->group;
           ++h)
        n = add_rows(&x, h, tile);
    }
    const int64_t own = pf_floor_div(batch->offset + tile * call->bq, bk);
    int64_t forced = 0;
    float sum = 0; /* a number unless one of them is none */
    for (int64_t m = 0; m < n; ++m)
      sum += x.column[m];
    for (int64_t block = span.begin; block < span.end; ++block) {
      float value = 0;
      const int64_t end = pf_min(n, (block + 1) * bk / STEP);
      for (int64_t m = pf_max(0, block * bk / STEP - 1); m < end; ++m)
        value = x.column[m] > value ? x.column[m] : value;
      if (batch->state && batch->state[block] == PF_BLOCK_HIDDEN) {
        value = PF_MINUS_INF;
      } else if (block < init || block >= own - near) {
        value = __builtin_inff();
        ++forced;
      }
      x.value[block] = value;
    }
    pf_select(x.value + span.begin, NULL, span.end - span.begin,
              (double)pf_max(plan->top_k, forced), head->chosen);
    total = pf_list_chosen(head, tile, sum - sum != 0, total);
  }
}

const pf_pattern pf_pattern_infllm = {.fits = fits,
                                      .ids = pf_all_ids,
                                      .scratch = scratch,
                                      .per_kv_head = true,
                                      .estimate = estimate};
