/*===- estimate_grid.c - Lines at a regular distance --------------*- C -*-===*\
|*
|* MMInference's grid heads (arXiv:2504.16083). Tokens of a video that stand at
|* the same place of their frames attend to each other: with frames of `stride`
|* tokens, a row attends to keys at distances that are multiples of it (slash),
|* and all rows to the keys of one phase (vertical lines), whose own rows attend
|* to everything (horizontal lines). The last rows are dense.
|*
|* Stride and phase come from the attention of the last rows: for every stride
|* the phase whose keys get the most of it. The paper takes the candidate of the
|* largest mass; as the lines of a stride are among those of its divisors, here
|* it is the cheapest that keeps a share `top_p`, and visits no more than half
of
|* what dense attention does; if there is none the head is dense.
|*
\*===----------------------------------------------------------------------===*/
#include "estimate.h"
#include "views.h"
#include <string.h>

/* The paper's search space ends there. */
enum { MAX_STRIDE = 1024 };

typedef struct search {
  const pf_estimate *head;
  const pf_sums *sums;
  int64_t n;                   /* keys */
  int64_t rows;                /* that the grid is for */
  double other, minimum;       /* mass of the first keys; mass to keep */
  float *phase_mass;           /* [min(stride, n)] of the stride at hand */
  int64_t stride, phase, cost; /* the best so far; stride 0: none */
} search;

/* Tile functions' blocks for a stride, were all views of one length. */
static int64_t cost_of(const search *x, int64_t stride) {
  const prefill_head_plan *plan = x->head->plan;
  const pf_grid *grid = &x->head->grid;
  const int64_t views = pf_min(stride, x->rows);
  const int64_t rows = pf_ceil_div(x->rows, stride);
  const int64_t past = pf_ceil_div(grid->offset, stride);
  int64_t view = 0, line = 0;
  for (int64_t done = 0; done < rows; done += grid->bq) {
    const int64_t end = pf_min(done + grid->bq, rows);
    const int64_t seen = past + end;
    view += pf_ceil_div(plan->slash ? seen : grid->bq, grid->bk);
    view += pf_ceil_div((plan->vertical ? seen : 0) + plan->init, grid->bk);
    line += pf_ceil_div(grid->offset + pf_min(end * stride, x->rows), grid->bk);
  }
  return plan->horizontal ? view * (views - 1) + line : view * views;
}

/* Looks at one stride; phase_mass is its own. */
static void consider(search *x, int64_t stride) {
  const prefill_head_plan *plan = x->head->plan;
  int64_t phase = 0;
  for (int64_t p = 1; p < pf_min(stride, x->n); ++p)
    if (x->phase_mass[p] > x->phase_mass[phase])
      phase = p;
  double kept = x->other;
  if (plan->vertical)
    kept += (double)x->phase_mass[phase];
  for (int64_t delta = 0; delta < x->n; delta += stride) {
    kept += (double)x->sums->diagonal[delta];
    if (!plan->slash)
      break;
  }
  if (kept < x->minimum)
    return;
  const int64_t cost = cost_of(x, stride);
  if (!plan->stride && 2 * cost > x->head->dense->blocks)
    return;
  if (x->stride && (cost > x->cost || (cost == x->cost && stride > x->stride)))
    return;
  x->stride = stride;
  x->phase = phase;
  x->cost = cost;
}

/* Sums the columns of each phase. */
static void sum_phases(search *x, int64_t stride) {
  const pf_call *call = x->head->call;
  const int64_t width = pf_min(stride, x->n);
  memset(x->phase_mass, 0, (size_t)width * sizeof(float));
  for (int64_t j = 0; j < x->n; j += stride)
    call->hot->accumulate(x->phase_mass, x->sums->column + j,
                          pf_min(stride, x->n - j), PREFILL_F32);
}

/* All strides: those of the upper half from the columns, their halves, and the
 * halves of these, by adding up phases. */
static void search_strides(search *x) {
  const int64_t limit = pf_min(MAX_STRIDE, x->n / 4);
  for (int64_t top = limit / 2 + 1; top <= limit; ++top) {
    sum_phases(x, top);
    for (int64_t stride = top; stride > 1;) {
      consider(x, stride);
      if (stride % 2)
        break;
      stride /= 2;
      for (int64_t p = 0; p < stride; ++p)
        x->phase_mass[p] += x->phase_mass[p + stride];
    }
  }
}

static void estimate_grid(const pf_estimate *head) {
  const pf_call *call = head->call;
  const pf_batch *batch = head->batch;
  const prefill_head_plan *plan = head->plan;
  const int64_t n = batch->last_key;
  const int64_t sink = pf_min(batch->first_key + plan->init, n);
  const pf_sums sums = pf_estimate_sums_from(call, head->b, head->h, plan->last,
                                             sink, head->scratch);
  char *at = head->scratch + pf_sums_bytes(call);
  pf_head_index *index = head->index;
  search x = {.head = head, .sums = &sums, .n = n};
  x.phase_mass = pf_take(&at, call->t, sizeof(float));
  const int64_t dense_tile = pf_max(0, call->s - plan->last) / call->bq;
  x.rows = dense_tile * call->bq;
  const double rows = (double)(sums.end_position - sums.first_position);
  double mass = 0;
  for (int64_t j = 0; j < n; ++j)
    mass += (double)sums.column[j];
  if (!sums.finite || dense_tile == 0) /* keep everything */
    return;
  x.other = rows - mass;
  x.minimum = (double)plan->top_p * rows;
  if (plan->stride > 0) {
    sum_phases(&x, plan->stride);
    consider(&x, plan->stride);
  } else {
    search_strides(&x);
  }
  if (x.stride <= 1) /* none, or every key */
    return;
  pf_relative_init(index, &head->grid, head->columns, head->storage);
  index->mode = PF_HEAD_VIEWS;
  index->dense_tile = dense_tile;
  index->stride = x.stride;
  index->phase = x.phase;
  index->slash = plan->slash != 0;
  index->horizontal = plan->horizontal != 0;
  for (int64_t j = batch->first_key; j < n; ++j)
    if ((j < sink || (plan->vertical && j % x.stride == x.phase)) &&
        !(batch->key_mask && !batch->key_mask[j]))
      index->column[index->columns++] = (int32_t)j;
}

/* Windows count tokens, not rows of a view. */
static bool grid_fits(const pf_call *call, const prefill_head_plan *plan) {
  (void)plan;
  return !call->window;
}

static int64_t columns_of(const pf_call *call, const prefill_head_plan *plan) {
  (void)plan;
  return call->t;
}

static int64_t scratch_of(const pf_call *call, const prefill_head_plan *plan,
                          int64_t limit) {
  (void)plan, (void)limit;
  return pf_max(pf_strip_keys_bytes(call),
                pf_sums_bytes(call) + pf_round_up(call->t * 4, 64));
}

const pf_pattern pf_pattern_grid = {.fits = grid_fits,
                                    .columns = columns_of,
                                    .scratch = scratch_of,
                                    .estimate = estimate_grid};
