/*===- estimate_flex.c - FlexPrefill's estimate -------------------*- C -*-===*\
|*
|* FlexPrefill (arXiv:2502.20766), head by head. The last rows' attention gives
|* column and diagonal sums. Pooled scores of the same rows estimate the share
|* of every block; where they agree with the column sums (the square root of the
|* Jensen-Shannon divergence is below tau) pooled scores are trusted, and
|* the head is query-aware: every tile takes the blocks with gamma of its pooled
|* softmax. Else as many blocks of columns and of diagonals are taken as columns
|* and diagonals reach gamma of the last rows' attention. Either has
|* min_budget tokens' worth of both.
|*
|* Where this differs from the authors' code:
|*   - blocks are the kernel's (64, there 128), and so is the divisor that makes
|*     a number of blocks from a number of columns (128 there);
|*   - gamma of a query-aware head holds for every tile, by the rule of
|*     estimate_keep.c; there for all tiles together;
|*   - equal values: the lower index first;
|*   - a distance is counted from the block of a tile's last row.
|*
\*===----------------------------------------------------------------------===*/
#include "estimate.h"
#include <string.h>

typedef struct flex {
  pf_pooled pooled;
  float *share;     /* [blocks]: pooled column sums, then softmax */
  float *distance;  /* [most distances]: diagonal sums by distance */
  uint64_t *column; /* chosen blocks of columns */
  uint64_t *slash;  /* chosen distances */
  uint64_t *forced; /* blocks of a tile */
  char *sums;
} flex;

static flex lay_out(const pf_call *call, int64_t limit, char **at) {
  flex x = {.pooled = pf_take_pooled(call, at)};
  const int64_t n = pf_max(limit, call->blocks) + 1;
  x.share = pf_take(at, n, sizeof(float));
  x.distance = pf_take(at, n, sizeof(float));
  x.column = pf_take(at, pf_words(n), sizeof(uint64_t));
  x.slash = pf_take(at, pf_words(n), sizeof(uint64_t));
  x.forced = pf_take(at, pf_words(n), sizeof(uint64_t));
  x.sums = pf_take(at, pf_sums_bytes(call), 1);
  return x;
}

static int64_t scratch(const pf_call *call, const prefill_head_plan *plan,
                       int64_t limit) {
  (void)plan;
  static char anchor[1];
  char *at = anchor;
  lay_out(call, limit, &at);
  return at - anchor;
}

/* x log(2 x / (x + y)), 0 where x is. */
static double divergence(double x, double y) {
  return x > 1e-300 ? x * pf_logarithm(2 * x / (x + y)) : 0;
}

/* Is the Jensen-Shannon divergence of a / sum(a) and b / sum(b) below tau^2?
 * Also where it is no number. */
static bool agree(const float *a, const float *b, int64_t n, double tau) {
  double a_sum = 0, b_sum = 0, js = 0;
  for (int64_t i = 0; i < n; ++i) {
    a_sum += (double)a[i];
    b_sum += (double)b[i];
  }
  for (int64_t i = 0; i < n; ++i) {
    const double p = (double)a[i] / a_sum, q = (double)b[i] / b_sum;
    js += (divergence(p, q) + divergence(q, p)) / 2;
    if (p != p || q != q)
      return true;
  }
  return js < tau * tau;
}

/* How many of the greatest values stay within gamma of the sum, and one. */
static int64_t count_to(const pf_estimate *head, const float *value, int64_t n,
                        double gamma) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i)
    sum += (double)value[i];
  pf_select(value, value, n, gamma * sum, head->chosen);
  int64_t count = 1;
  for (int64_t word = 0; word < pf_words(n); ++word)
    count += __builtin_popcountll(head->chosen[word]);
  return pf_min(count, n);
}

static void estimate(const pf_estimate *head) {
  const pf_call *call = head->call;
  const pf_batch *batch = head->batch;
  const prefill_head_plan *plan = head->plan;
  const pf_grid *grid = &head->grid;
  const int64_t bk = call->bk, limit = pf_max_distance(grid) + 1;
  char *at = head->scratch;
  flex x = lay_out(call, limit, &at);
  pf_blocks_init(head->index, grid, head->dense->blocks, head->storage);
  pf_pool_keys(&x.pooled, head);
  const int64_t last = plan->last > 0 ? plan->last : call->bq;
  const pf_sums sums = pf_estimate_sums(call, head->b, head->h, last, x.sums);
  const int64_t n = batch->last_key;
  const int64_t blocks = pf_ceil_div(pf_min(sums.end_position, n), bk);
  const int64_t first = batch->first_key / bk;

  /* Columns and diagonals by blocks. */
  memset(x.share, 0, (size_t)call->blocks * sizeof(float));
  memset(x.distance, 0, (size_t)limit * sizeof(float));
  for (int64_t j = 0; j < n; ++j)
    x.share[j / bk] += sums.column[j];
  for (int64_t delta = 0; delta < n; ++delta)
    x.distance[pf_min(delta / bk, limit - 1)] += sums.diagonal[delta];
  const float *pooled =
      pf_pooled_rows(&x.pooled, sums.first_position - batch->offset,
                     sums.end_position - sums.first_position, first, blocks);
  const bool aware =
      !sums.finite || agree(x.share + first, pooled + first, blocks - first,
                            (double)plan->threshold);
  const int64_t least = pf_ceil_div(pf_max(plan->min_budget, 1), bk);
  int64_t columns = least, slashes = least;
  if (!aware) {
    const double gamma = (double)plan->top_p;
    columns = pf_max(least, count_to(head, sums.column, n, gamma) / bk + 1);
    slashes = pf_max(least, count_to(head, sums.diagonal, n, gamma) / bk + 1);
  }
  x.share[first] = x.distance[0] = __builtin_inff();
  pf_select(x.share, NULL, call->blocks, (double)columns, x.column);
  pf_select(x.distance, NULL, limit, (double)slashes, x.slash);

  const pf_keep keep = {.first = first + 1,
                        .top_p = aware ? (double)plan->top_p : 0,
                        .forced = x.forced};
  int64_t total = 0;
  for (int64_t tile = 0; tile < call->tiles; ++tile) {
    const pf_span span = pf_visible_span(call, head->b, tile);
    const int64_t top = pf_top_block(grid, tile);
    memcpy(x.forced, x.column, (size_t)pf_words(call->blocks) * 8);
    for (int64_t block = span.begin; block < span.end; ++block)
      if (top - block >= 0 && top - block < limit &&
          pf_get_bit(x.slash, top - block))
        pf_set_bit(x.forced, block);
    total = pf_keep_blocks(head, &keep, tile, pf_pooled_mass(&x.pooled, tile),
                           total);
  }
}

const pf_pattern pf_pattern_flexprefill = {
    .ids = pf_all_ids, .scratch = scratch, .estimate = estimate};
