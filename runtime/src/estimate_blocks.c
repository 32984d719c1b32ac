/*===- estimate_blocks.c - Block-sparse heads ---------------------*- C -*-===*\
|*
|* Products of mean-pooled queries and keys choose the best blocks per tile of
|* query rows (MInference, Algorithm 3): as many as the plan says or as a share
|* of the dense blocks allows, or, with top_p, those whose softmax holds that
|* share of the tile's. A tile's own blocks are always visited; with top_p, so
|* is block 0.
|*
\*===----------------------------------------------------------------------===*/
#include "estimate.h"
#include <string.h>

static int64_t scratch(const pf_call *call, const prefill_head_plan *plan,
                       int64_t limit) {
  (void)plan, (void)limit;
  static char anchor[1];
  char *at = anchor;
  pf_take_pooled(call, &at);
  return at - anchor;
}

/* Blocks per tile that spend `share` of the dense blocks: the greatest k with
 * sum of min(k, visible) <= share * sum of visible, at least 1. Early tiles,
 * which see few blocks, keep them all. */
static int64_t blocks_for_share(const pf_call *call, int64_t b, double share,
                                double dense_blocks) {
  int64_t low = 1, high = pf_max(1, call->blocks);
  while (low < high) {
    const int64_t k = (low + high + 1) / 2;
    double sum = 0;
    for (int64_t tile = 0; tile < call->tiles; ++tile) {
      const pf_span span = pf_visible_span(call, b, tile);
      sum += (double)pf_min(k, span.end - span.begin);
    }
    if (sum <= share * dense_blocks)
      low = k;
    else
      high = k - 1;
  }
  return low;
}

static int64_t ids_of(const pf_call *call, const pf_grid *grid,
                      const prefill_head_plan *plan, const pf_work *dense) {
  const int64_t own = call->bq / call->bk + 2;
  if (plan->top_p > 0 || plan->similarity > 0)
    return dense->blocks;
  int64_t per_row = pf_min(pf_max(plan->top_k, own), grid->blocks);
  if (plan->density > 0) {
    const double share = (double)plan->density * (double)dense->blocks;
    return pf_min((int64_t)share, dense->blocks) + (own + 1) * grid->tiles;
  }
  return per_row * grid->tiles;
}

static void estimate(const pf_estimate *head) {
  const pf_call *call = head->call;
  const pf_batch *batch = head->batch;
  const prefill_head_plan *plan = head->plan;
  pf_head_index *index = head->index;
  const int64_t id_room = ids_of(call, &head->grid, plan, head->dense);
  pf_blocks_init(index, &head->grid, id_room, head->storage);
  char *at = head->scratch;
  pf_pooled pooled = pf_take_pooled(call, &at);
  pf_pool_keys(&pooled, head);
  int64_t total = 0;
  if (plan->top_p > 0) {
    const pf_keep keep = {.first = batch->first_key / call->bk + 1,
                          .top_p = (double)plan->top_p};
    for (int64_t tile = 0; tile < call->tiles; ++tile)
      total = pf_keep_blocks(head, &keep, tile, pf_pooled_mass(&pooled, tile),
                             total);
    return;
  }
  const int64_t per_row =
      plan->density > 0 ? blocks_for_share(call, head->b, (double)plan->density,
                                           (double)head->dense->blocks)
                        : pf_max(1, plan->top_k);
  for (int64_t tile = 0; tile < call->tiles; ++tile) {
    /* The sign of the scale matters for the order, its size does not. */
    float *score = pf_pooled_scores(&pooled, tile, call->scale < 0 ? -1 : 1);
    const pf_span span = pf_visible_span(call, head->b, tile);
    const int64_t own = pf_floor_div(batch->offset + tile * call->bq, call->bk);
    const int64_t n = span.end - span.begin;
    for (int64_t block = span.begin; block < span.end; ++block)
      if (batch->state && batch->state[block] == PF_BLOCK_HIDDEN)
        score[block] = PF_MINUS_INF;
      else if (block >= own)
        score[block] = __builtin_inff();
    const int64_t forced = pf_max(0, span.end - pf_max(own, span.begin));
    pf_select(score + span.begin, NULL, n, (double)pf_max(per_row, forced),
              head->chosen);
    total = pf_list_chosen(head, tile, false, total);
  }
}

const pf_pattern pf_pattern_block_sparse = {
    .ids = ids_of, .scratch = scratch, .estimate = estimate};
