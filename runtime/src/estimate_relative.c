/*===- estimate_relative.c - Distances and columns of a head ------*- C -*-===*\
|*
|*   a-shape, tri-shape   no estimate (MInference, arXiv 2407.02490; the last
|*                        rows of tri-shape: TriangleMix).
|*   strided              a-shape and the blocks whose distance from a tile's
|*                        top block is a multiple of the stride (LongGen,
|*                        arXiv 2410.01485).
|*   vertical-slash       column sums of the last rows' attention choose single
|*                        keys, diagonal sums choose diagonals (MInference,
|*                        Algorithm 2).
|*
|* Budgets: in MInference's token counts, or as a share of the blocks that dense
|* attention visits. The share is spent on whatever explains most of the last
|* rows' attention per block of work: distances or columns.
|* A tile's own blocks are always visited.
|*
\*===----------------------------------------------------------------------===*/
#include "estimate.h"
#include <string.h>

/* The first keys and the nearest, and the blocks at every stride-th distance,
 * from parameters. */
static void estimate_static(const pf_estimate *head) {
  const pf_call *call = head->call;
  const prefill_head_plan *plan = head->plan;
  pf_head_index *index = head->index;
  uint64_t *diagonals = head->chosen;
  pf_relative_init(index, &head->grid, 0, head->storage);
  const bool strided = plan->pattern == PREFILL_PATTERN_STRIDED;
  const int64_t local = pf_max(1, pf_min(plan->local, call->t));
  memset(diagonals, 0, (size_t)pf_words(call->t) * 8);
  for (int64_t delta = 0; delta < local; ++delta)
    pf_set_bit(diagonals, delta);
  pf_relative_from_diagonals(index, &head->grid, diagonals, local,
                             strided ? plan->stride : 0, head->distances);
  /* The first keys that there are: left padding moves them. */
  const int64_t init = plan->init > 0 ? head->batch->first_key + plan->init : 0;
  pf_relative_set_columns(index, &head->grid, NULL, 0, INT64_MAX,
                          pf_min(init, call->t));
  if (plan->pattern == PREFILL_PATTERN_TRI_SHAPE && plan->last > 0)
    index->dense_tile = pf_max(0, call->s - plan->last) / call->bq;
}

/* Selection with MInference's token budgets. */
static void select_tokens(const pf_estimate *head, const pf_sums *sums) {
  const pf_batch *batch = head->batch;
  const prefill_head_plan *plan = head->plan;
  uint64_t *chosen = head->chosen;
  const int64_t n = batch->last_key;
  const int64_t vertical = pf_min(n, pf_max(plan->vertical, PF_FORCED_SINKS));
  const int64_t slash = pf_min(n, pf_max(plan->slash, 50));
  const int64_t sinks = pf_min(batch->first_key + PF_FORCED_SINKS, n);
  for (int64_t j = 0; j < n; ++j)
    if (j < batch->first_key || (batch->key_mask && !batch->key_mask[j]))
      sums->column[j] = PF_MINUS_INF;
    else if (j < sinks)
      sums->column[j] = __builtin_inff();
  for (int64_t delta = 0; delta < pf_min(PF_FORCED_DIAGONALS, n); ++delta)
    sums->diagonal[delta] = __builtin_inff();
  pf_select(sums->diagonal, NULL, n, (double)slash, chosen);
  pf_relative_from_diagonals(head->index, &head->grid, chosen, n, 0,
                             head->distances);
  pf_select(sums->column, NULL, n, (double)vertical, chosen);
  int64_t count = 0;
  for (int64_t j = 0; j < n; ++j)
    if (pf_get_bit(chosen, j))
      head->keys[count++] = (int32_t)j;
  pf_relative_set_columns(head->index, &head->grid, head->keys, count,
                          head->grid.bk * 3 / 4, 0);
}

/* Share of the last rows' attention at every distance from a tile's top block,
 * if diagonals were as they are now in every row: distance t of a row x of a
 * tile is floor((delta + w) / bk) with w uniform over the tile's rows. prefix:
 * t + 1 doubles of scratch. */
static void distance_mass(const pf_grid *grid, const float *diagonal, int64_t n,
                          int64_t limit, double *prefix, float *mass) {
  prefix[0] = 0;
  for (int64_t delta = 0; delta < n; ++delta)
    prefix[delta + 1] = prefix[delta] + diagonal[delta];
  const int64_t phases = pf_phases(grid);
  for (int64_t t = 0; t < limit; ++t) {
    double sum = 0;
    for (int64_t phase = 0; phase < phases; ++phase) {
      const int64_t top_end = (pf_top_block(grid, phase) + 1) * grid->bk - 1;
      const int64_t first = grid->offset + phase * grid->bq;
      for (int64_t x = 0; x < grid->bq; ++x) {
        const int64_t w = top_end - first - x;
        const int64_t from = t * grid->bk - w, to = from + grid->bk;
        sum += prefix[pf_max(0, pf_min(to, n))] -
               prefix[pf_max(0, pf_min(from, n))];
      }
    }
    mass[t] = (float)(sum / (double)(phases * grid->bq));
  }
}

/* Selection with a share of the dense blocks. Candidates are distances and
 * columns; each has a worth (attention of the last rows) and a price (blocks
 * over the whole head), and the best worth per price is taken first. */
static void select_share(const pf_estimate *head, const pf_sums *sums,
                         char *scratch) {
  const pf_batch *batch = head->batch;
  const pf_grid *grid = &head->grid;
  uint64_t *chosen = head->chosen, *distances = head->distances;
  const int64_t n = batch->last_key;
  const int64_t limit = pf_min(pf_max_distance(grid) + 1, PF_MAX_INDEX_BLOCKS);
  char *at = scratch;
  float *value = pf_take(&at, limit + n, sizeof(float));
  float *price = pf_take(&at, limit + n, sizeof(float));
  double *prefix = pf_take(&at, n + 1, sizeof(double));
  distance_mass(grid, sums->diagonal, n, limit, prefix, value);

  double budget = (double)head->plan->density * (double)head->dense->blocks;
  /* Distances that hold a tile's own positions, and the next one. */
  int64_t forced = 0;
  for (int64_t phase = 0; phase < pf_phases(grid); ++phase)
    forced = pf_max(forced, pf_own_distance(grid, phase) + 1);
  memset(distances, 0, (size_t)pf_words(limit) * 8);
  for (int64_t t = 0; t < limit; ++t) {
    /* Tiles whose last position is in block t or later. */
    const int64_t above =
        pf_max(0, pf_ceil_div(t * grid->bk + 1 - grid->offset, grid->bq) - 1);
    const int64_t tiles = pf_max(0, grid->tiles - above);
    price[t] = (float)(tiles > 0 ? tiles : 1);
    if (t <= forced) {
      budget -= (double)price[t];
      pf_set_bit(distances, t);
      value[t] = PF_MINUS_INF;
    } else {
      value[t] = value[t] > 0 ? value[t] / price[t] : PF_MINUS_INF;
    }
  }
  /* Columns. The keys nearest to the last rows say nothing about other rows;
   * and a late key is not made attractive by the few tiles behind it. */
  const int64_t sinks = pf_min(batch->first_key + PF_FORCED_SINKS, n);
  const int64_t recent = sums->first_position - PF_FORCED_DIAGONALS;
  const double least = (double)grid->tiles / 4;
  for (int64_t j = 0; j < n; ++j) {
    const int64_t row = j - grid->offset; /* that has this key as its own */
    double tiles = (double)(grid->tiles - (row > 0 ? row / grid->bq : 0));
    tiles = tiles > least ? tiles : least;
    price[limit + j] = (float)(tiles / (double)grid->bk);
    const bool hidden =
        j < batch->first_key || (batch->key_mask && !batch->key_mask[j]);
    if (hidden || (j >= recent && j >= sinks))
      value[limit + j] = PF_MINUS_INF;
    else if (j < sinks)
      value[limit + j] = __builtin_inff();
    else
      value[limit + j] = sums->column[j] > 0
                             ? sums->column[j] / price[limit + j]
                             : PF_MINUS_INF;
  }
  pf_select(value, price, limit + n, budget > 0 ? budget : 0, chosen);
  for (int64_t t = 0; t < limit; ++t)
    if (pf_get_bit(chosen, t))
      pf_set_bit(distances, t);
  pf_relative_from_distances(head->index, grid, distances, limit);
  int64_t count = 0;
  for (int64_t j = 0; j < n && count < head->columns; ++j)
    if (pf_get_bit(chosen, limit + j) ||
        (j >= batch->first_key && j < sinks && value[limit + j] > 0))
      head->keys[count++] = (int32_t)j;
  pf_relative_set_columns(head->index, grid, head->keys, count,
                          grid->bk * 3 / 4, 0);
}

static void estimate_vertical_slash(const pf_estimate *head) {
  const pf_call *call = head->call;
  const pf_sums sums =
      pf_estimate_sums(call, head->b, head->h, head->plan->last, head->scratch);
  pf_relative_init(head->index, &head->grid, head->columns, head->storage);
  if (!sums.finite) /* they say nothing: all is kept */
    head->index->mode = PF_HEAD_DENSE;
  else if (head->plan->density > 0)
    select_share(head, &sums, head->scratch + pf_sums_bytes(call));
  else
    select_tokens(head, &sums);
}

static int64_t columns_of(const pf_call *call, const prefill_head_plan *plan) {
  const int64_t columns =
      plan->density > 0
          ? (int64_t)(4.0 * (double)plan->density * (double)call->t) +
                PF_FORCED_SINKS
          : pf_max(plan->vertical, PF_FORCED_SINKS);
  return pf_min(columns, call->t);
}

static int64_t scratch_of(const pf_call *call, const prefill_head_plan *plan,
                          int64_t limit) {
  (void)plan;
  return pf_sums_bytes(call) + 2 * pf_round_up((limit + call->t) * 4, 64) +
         pf_round_up((call->t + 1) * 8, 64);
}

static bool static_fits(const pf_call *call, const prefill_head_plan *plan) {
  (void)call;
  return plan->pattern != PREFILL_PATTERN_STRIDED || plan->stride > 0;
}

const pf_pattern pf_pattern_static = {.fits = static_fits,
                                      .estimate = estimate_static};

const pf_pattern pf_pattern_vertical_slash = {.columns = columns_of,
                                              .scratch = scratch_of,
                                              .estimate =
                                                  estimate_vertical_slash};
