/*===- pool.c - Block-sparse heads --------------------------------*- C -*-===*\
|*
|* Products of mean queries and mean keys, and the blocks of each tile of query
|* rows that they choose: runtime/src/estimate_pool.c, estimate_blocks.c,
|* estimate_keep.c.
|*
\*===----------------------------------------------------------------------===*/
#include "pool.h"

enum { POOL = PREFILL_CUDA_POOL_TILES };

/* Grid: blocks, KV heads, batch. Keys that the key mask hides do not count. */
KERNEL prefill_index_pool_keys(args x) {
  const int64_t block = block_x();
  const int head = block_y(), b = block_z();
  const uint16_t *k = (const uint16_t *)x.k + b * x.k_batch + head * x.k_head;
  const int64_t begin = block * x.block_k;
  const int64_t end = least(begin + x.block_k, keys_of(&x, b));
  float *out =
      x.key_mean +
      ((int64_t)b * (x.heads / x.group) + head) * x.head_dim * x.blocks + block;
  for (int c = thread(); c < x.head_dim; c += THREADS) {
    float sum = 0;
    int count = 0;
    for (int64_t key = begin; key < end; ++key)
      if (!is_hidden(&x, b, key)) {
        sum += widen(&x, k + key * x.k_row, c);
        ++count;
      }
    out[(int64_t)c * x.blocks] = count ? sum * (1.0f / (float)count) : 0;
  }
}

/* Grid: tiles / 16, heads, batch. */
KERNEL prefill_index_pool_scores(args x) {
  SHARED float mean[POOL * MAX_DIM];
  const int h = block_y(), b = block_z();
  const prefill_head_plan *plan = &x.plans[h];
  const bool flex = plan->pattern == PREFILL_PATTERN_FLEXPREFILL;
  if (plan->pattern != PREFILL_PATTERN_BLOCK_SPARSE && !flex)
    return;
  const int64_t head = (int64_t)b * x.heads + h;
  const int64_t first = (int64_t)block_x() * POOL;
  const uint16_t *q = (const uint16_t *)x.q + b * x.q_batch + h * x.q_head;
  /* For an order, the sign of the scale is enough. */
  const float factor = flex || plan->top_p > 0 ? x.scale : x.scale < 0 ? -1 : 1;
  for (int i = thread(); i < POOL * x.head_dim; i += THREADS) {
    const int c = i % x.head_dim;
    const int64_t row = (first + i / x.head_dim) * x.block_q;
    const int64_t end = least(row + x.block_q, x.q_len);
    mean[i] = mean_query(&x, q, row, end, c, factor);
  }
  barrier();
  const float *keys = x.key_mean + kv_number(&x, b, h) * x.head_dim * x.blocks;
  /* No tile sees blocks past those of the last. */
  const int64_t last = least(first + POOL, x.tiles) - 1;
  const int64_t blocks = span_of(&x, b, last).end;
  for (int64_t block = thread(); block < blocks; block += THREADS) {
    float sum[POOL];
    for (int tile = 0; tile < POOL; ++tile)
      sum[tile] = 0;
    for (int c = 0; c < x.head_dim; ++c) {
      const float key = keys[(int64_t)c * x.blocks + block];
#pragma unroll
      for (int tile = 0; tile < POOL; ++tile)
        sum[tile] += mean[tile * x.head_dim + c] * key;
    }
    float *out = x.block_score + (head * x.tiles + first) * x.blocks + block;
#pragma unroll
    for (int tile = 0; tile < POOL; ++tile)
      if (first + tile < x.tiles)
        out[(int64_t)tile * x.blocks] = sum[tile];
  }
}

/* Blocks per tile that spend `share` of the dense blocks: the greatest k with
 * sum of min(k, visible) <= share * sum of visible, at least 1. */
INLINE int64_t blocks_for_share(const args *x, int b, double share) {
  const double budget = share * (double)x->facts[4 * b + 2];
  int64_t low = 1, high = most(1, x->blocks);
  while (low < high) {
    const int64_t k = (low + high + 1) / 2;
    int64_t sum = 0, all;
    for (int64_t tile = thread(); tile < x->tiles; tile += THREADS) {
      const span s = span_of(x, b, tile);
      sum += least(k, s.end - s.begin);
    }
    block_scan(sum, &all);
    if ((double)all <= budget)
      low = k;
    else
      high = k - 1;
  }
  return low;
}

/* Grid: tiles, heads, batch. */
KERNEL prefill_index_select_blocks(args x) {
  SHARED uint32_t chosen[MAX_BLOCKS / 32 + 2];
  const int64_t tile = block_x();
  const int h = block_y(), b = block_z();
  const prefill_head_plan *plan = &x.plans[h];
  const bool flex = plan->pattern == PREFILL_PATTERN_FLEXPREFILL;
  if ((plan->pattern != PREFILL_PATTERN_BLOCK_SPARSE && !flex) ||
      !is_sparse(&x, b, plan))
    return;
  const int64_t row = ((int64_t)b * x.heads + h) * x.tiles + tile;
  const span s = span_of(&x, b, tile);
  const int64_t n = s.end - s.begin;
  const int64_t own = own_block(&x, b, tile);
  float *score = x.block_score + row * x.blocks + s.begin;
  bool all = false;
  mass_rule rule = {.own = s.end};
  if (flex || plan->top_p > 0) {
    pooled_softmax(&x, b, s.begin, n, score);
    rule.first = first_blocks(&x, b);
    rule.own = own;
    rule.top_p = plan->top_p;
    if (flex) {
      const int64_t head = (int64_t)b * x.heads + h;
      if (!(x.aware[head] & PREFILL_CUDA_AWARE))
        rule.top_p = 0;
      rule.blocks = x.vertical + head * x.words;
      rule.distances = flex_distances(&x, head);
      rule.top = top_block(&x, b, tile);
      rule.limit = distance_limit(&x, b);
    }
    all = keep_by_mass(&x, b, &s, &rule, score, chosen);
  } else {
    const int64_t per_row = plan->density > 0
                                ? blocks_for_share(&x, b, (double)plan->density)
                                : most(1, plan->top_k);
    force_blocks(&x, b, &s, 0, own, score);
    barrier();
    const int64_t forced = most(0, s.end - most(own, s.begin));
    select_items(value_of_mass, one_block, &(row_masses){.mass = score}, n,
                 most(per_row, forced), false, chosen);
  }
  write_kept(&x, row, &s, &rule, all, chosen);
}
