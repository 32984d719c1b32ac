/*===- estimate_blocks.c - Block-sparse heads ---------------------*- C -*-===*\
|*
|* Products of mean-pooled queries and keys choose the best blocks per tile of
|* query rows (MInference, Algorithm 3), as many as the plan says or as a share
|* of the dense blocks allows. A tile's own blocks are always visited.
|*
\*===----------------------------------------------------------------------===*/
#include "estimate.h"
#include <string.h>

/* Lanes of pooled queries that are scored together. */
enum { POOL_LANES = 64 };

static int64_t scratch(const pf_call *call, const prefill_head_plan *plan,
                       int64_t limit) {
  (void)plan, (void)limit;
  const int64_t f = sizeof(float);
  return pf_round_up(call->blocks * call->d * f, 64) +
         pf_round_up(POOL_LANES * call->d * f, 64) +
         pf_round_up(call->blocks * POOL_LANES * f, 64) +
         pf_round_up(call->blocks * f, 64) + pf_round_up(call->d * f, 64) +
         pf_round_up(call->rotary ? call->bq * call->d * call->element : 0,
                     64) +
         pf_round_up(call->rotary ? 2 * (call->d + call->rotary_width) * f : 0,
                     64);
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
  const int64_t b = head->b, h = head->h;
  pf_head_index *index = head->index;
  uint64_t *chosen = head->chosen;
  const pf_hot *hot = call->hot;
  const int64_t d = call->d, f = sizeof(float);
  const int dtype = call->desc->dtype;
  const int64_t id_room = ids_of(call, &head->grid, plan, head->dense);
  pf_blocks_init(index, &head->grid, id_room, head->storage);
  const int64_t per_row = plan->density > 0
                              ? blocks_for_share(call, b, (double)plan->density,
                                                 (double)head->dense->blocks)
                              : pf_max(1, plan->top_k);
  char *at = head->scratch;
  float *k_mean = pf_take(&at, call->blocks * d, f);
  float *q_mean = pf_take(&at, POOL_LANES * d, f);
  float *scores = pf_take(&at, call->blocks * POOL_LANES, f);
  float *row_scores = pf_take(&at, call->blocks, f);
  float *mean = pf_take(&at, d, f);
  char *rotated = pf_take(&at, call->rotary ? call->bq * d : 0, call->element);
  float *rotary =
      pf_take(&at, call->rotary ? 2 * (d + call->rotary_width) : 0, f);

  const char *k =
      call->k.data +
      (b * call->k.batch + h / call->group * call->k.head) * call->element;
  for (int64_t block = 0; block < call->blocks; ++block) {
    float *out = k_mean + block * d;
    int64_t count = 0;
    memset(out, 0, (size_t)d * sizeof(float));
    const int64_t end = pf_min((block + 1) * call->bk, batch->kv_len);
    for (int64_t j = block * call->bk; j < end; ++j)
      if (!batch->key_mask || batch->key_mask[j]) {
        hot->accumulate(out, k + j * call->k.row * call->element, d, dtype);
        ++count;
      }
    const float inverse = count ? 1.0f / (float)count : 0.0f;
    for (int64_t c = 0; c < d; ++c)
      out[c] *= inverse;
  }
  int64_t total = 0;
  for (int64_t tile = 0; tile < call->tiles; ++tile) {
    if (tile % POOL_LANES == 0) {
      memset(q_mean, 0, (size_t)(POOL_LANES * d) * sizeof(float));
      for (int64_t lane = 0; lane < POOL_LANES; ++lane) {
        const int64_t row = (tile + lane) * call->bq;
        if (row >= call->s)
          break;
        const int64_t rows = pf_min(call->bq, call->s - row);
        const char *q = call->q.data + (b * call->q.batch + h * call->q.head +
                                        row * call->q.row) *
                                           call->element;
        int64_t stride = call->q.row;
        if (call->rotary) {
          pf_rotate_queries(call, b, h, row, rows, rotated, rotary);
          q = rotated;
          stride = d;
        }
        memset(mean, 0, (size_t)d * sizeof(float));
        for (int64_t i = 0; i < rows; ++i)
          hot->accumulate(mean, q + i * stride * call->element, d, dtype);
        /* The sign of the scale matters for the order, its size does not. */
        const float factor = (call->scale < 0 ? -1.0f : 1.0f) / (float)rows;
        for (int64_t c = 0; c < d; ++c)
          q_mean[c * POOL_LANES + lane] = mean[c] * factor;
      }
      hot->score(scores, q_mean, POOL_LANES, d, k_mean, d, call->blocks,
                 PREFILL_F32);
    }
    const int64_t row = tile * call->bq;
    const pf_span span = pf_visible_span(call, b, tile);
    const int64_t own =
        pf_floor_div(batch->offset + row, call->bk); /* first own block */
    const int64_t n = span.end - span.begin;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t block = span.begin + i;
      if (batch->state && batch->state[block] == PF_BLOCK_HIDDEN)
        row_scores[i] = PF_MINUS_INF;
      else if (block >= own)
        row_scores[i] = __builtin_inff();
      else
        row_scores[i] = scores[block * POOL_LANES + tile % POOL_LANES];
    }
    const int64_t forced = pf_max(0, span.end - pf_max(own, span.begin));
    pf_select(row_scores, NULL, n, (double)pf_max(per_row, forced), chosen);
    for (int64_t i = 0; i < n && total < id_room; ++i)
      if (pf_get_bit(chosen, i))
        index->id[total++] = (uint16_t)(span.begin + i);
    index->row_begin[tile + 1] = total;
  }
}

const pf_pattern pf_pattern_block_sparse = {
    .ids = ids_of, .scratch = scratch, .estimate = estimate};
