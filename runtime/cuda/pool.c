/*===- pool.c - Block-sparse heads --------------------------------*- C -*-===*\
|*
|* Products of mean queries and mean keys, and the blocks of each tile of query
|* rows that they choose: runtime/src/estimate_pool.c, estimate_blocks.c,
|* estimate_keep.c.
|*
\*===----------------------------------------------------------------------===*/
#include "select.h"

enum { POOL = PREFILL_CUDA_POOL_TILES, MAX_DIM = 256 };

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
  if (plan->pattern != PREFILL_PATTERN_BLOCK_SPARSE)
    return;
  const int64_t head = (int64_t)b * x.heads + h;
  const int64_t first = (int64_t)block_x() * POOL;
  const uint16_t *q = (const uint16_t *)x.q + b * x.q_batch + h * x.q_head;
  /* For an order, the sign of the scale is enough. */
  const float factor = plan->top_p > 0 ? x.scale : x.scale < 0 ? -1 : 1;
  for (int i = thread(); i < POOL * x.head_dim; i += THREADS) {
    const int c = i % x.head_dim;
    const int64_t row = (first + i / x.head_dim) * x.block_q;
    const int64_t end = least(row + x.block_q, x.q_len);
    float sum = 0;
    for (int64_t at = row; at < end; ++at)
      sum += widen(&x, q + at * x.q_row, c);
    mean[i] = row < end ? sum * factor / (float)(end - row) : 0;
  }
  barrier();
  const float *keys =
      x.key_mean +
      ((int64_t)b * (x.heads / x.group) + h / x.group) * x.head_dim * x.blocks;
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

/* Masses are kept as multiples of 2^-40: their sums are the same in any order,
 * and 65,535 of at most 1 fit. */
#define MASS_UNIT 0x1p40f

typedef struct row_scores {
  float *score; /* of the first visible block */
} row_scores;
static float score_of(const void *context, int64_t i) {
  return ((const row_scores *)context)->score[i];
}
static int64_t one_block(const void *context, int64_t i) {
  (void)context, (void)i;
  return 1;
}
INLINE int64_t mass_units(float mass) {
  return mass > 0 ? (int64_t)(mass * MASS_UNIT) : 0;
}
static int64_t mass_of(const void *context, int64_t i) {
  return mass_units(score_of(context, i));
}

INLINE float block_max(float value) {
  SHARED float of_warp[WARPS];
  for (int mask = 16; mask; mask /= 2) {
    const float other = shuffle_xor_f(value, mask);
    value = other > value ? other : value;
  }
  barrier();
  if (lane() == 0)
    of_warp[warp()] = value;
  barrier();
  for (int w = 0; w < WARPS; ++w)
    value = of_warp[w] > value ? of_warp[w] : value;
  return value;
}
INLINE float soft_cap(const args *x, float score) {
  if (!(x->softcap > 0))
    return score;
  const float twice =
      power(score / x->softcap * (float)(2 * 1.4426950408889634));
  return x->softcap * (1 - 2 / (1 + twice));
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
  const int h = block_y(), b = block_z(), t = thread();
  const prefill_head_plan *plan = &x.plans[h];
  if (plan->pattern != PREFILL_PATTERN_BLOCK_SPARSE || !is_sparse(&x, b, plan))
    return;
  const int64_t row = ((int64_t)b * x.heads + h) * x.tiles + tile;
  const span s = span_of(&x, b, tile);
  const int64_t n = s.end - s.begin;
  const int64_t own =
      floor_div(position_of(&x, b) + tile * x.block_q, x.block_k);
  row_scores scores = {x.block_score + row * x.blocks + s.begin};
  bool all = false;
  int64_t forced_first = 0;
  if (plan->top_p > 0) {
    /* Softmax over the visible blocks, not divided by its sum. */
    float greatest = HIDDEN_SCORE;
    for (int64_t i = t; i < n; i += THREADS) {
      float score = HIDDEN_SCORE;
      if (state_of(&x, b, s.begin + i) != HIDDEN)
        score = soft_cap(&x, scores.score[i]);
      scores.score[i] = score;
      greatest = score > greatest ? score : greatest;
    }
    greatest = block_max(greatest);
    forced_first = first_key(&x, b) / x.block_k + 1;
    int64_t sum = 0, forced = 0, total;
    bool broken = false;
    for (int64_t i = t; i < n; i += THREADS) {
      const int64_t block = s.begin + i;
      float mass = power((scores.score[i] - greatest) * 1.4426950408889634f);
      if (state_of(&x, b, block) == HIDDEN)
        mass = 0;
      if (mass - mass != 0) {
        broken = true;
        mass = 0;
      }
      const int64_t units = mass_units(mass);
      sum += units;
      if (block < forced_first || block >= own) {
        forced += units;
        mass = MINUS_INF; /* not to be chosen again */
      }
      scores.score[i] = mass;
    }
    block_scan(broken, &total);
    all = total != 0;
    block_scan(sum, &sum);
    block_scan(forced, &forced);
    const int64_t budget = (int64_t)((double)sum * (double)plan->top_p);
    select_items(score_of, mass_of, &scores, n, budget - forced, true, chosen);
  } else {
    const int64_t per_row = plan->density > 0
                                ? blocks_for_share(&x, b, (double)plan->density)
                                : most(1, plan->top_k);
    for (int64_t i = t; i < n; i += THREADS) {
      const int64_t block = s.begin + i;
      if (state_of(&x, b, block) == HIDDEN)
        scores.score[i] = MINUS_INF;
      else if (block >= own)
        scores.score[i] = __builtin_inff();
    }
    barrier();
    const int64_t forced = most(0, s.end - most(own, s.begin));
    select_items(score_of, one_block, &scores, n, most(per_row, forced), false,
                 chosen);
  }
  for (int64_t word = warp(); word < x.words; word += WARPS) {
    const int64_t block = word * 32 + lane();
    bool keep = block >= s.begin && block < s.end;
    if (keep && !all)
      keep = get_bit(chosen, block - s.begin) ||
             (plan->top_p > 0 && (block < forced_first || block >= own));
    const uint32_t bits = ballot(keep);
    if (lane() == 0)
      x.kept[row * x.words + word] = bits;
  }
}
