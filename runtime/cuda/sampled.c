/*===- sampled.c - The attention of every stride-th row -----------*- C -*-===*\
|*
|* runtime/src/estimate_sampled.c. A thread block takes as many tiles of query
|* rows as have up to 32 sampled ones, or a tile's sampled rows one part after
|* another; its warps share out the blocks of keys, 32 keys at a time.
|*
\*===----------------------------------------------------------------------===*/
#include "halves.h"
#include "mass.h"

/* Sampled rows under way, in memory of the thread block. `total` counts from
 * the first one of tile `tile`. */
typedef struct sampled_rows {
  row_shares shares; /* mass: of that tile; those of others follow */
  int64_t tile;
  int32_t stride, total, keys_end;
  row_range range; /* keys that a row sees */
  float most[WARPS * BYTE_ROWS], sum[WARPS * BYTE_ROWS]; /* of warps */
} sampled_rows;

/* Sets up the item's tiles of a head; false: there are none, or they need no
 * estimate. */
INLINE bool begin_sampled(const args *x, sampled_rows *w, int item) {
  const int heads = x->batch * x->heads, head = item % heads;
  const int b = head / x->heads, h = head % x->heads;
  const prefill_head_plan *plan = &x->plans[h];
  if (plan->pattern != PREFILL_PATTERN_SAMPLED || !is_sparse(x, b, plan))
    return false;
  const int per_tile = x->block_q / plan->stride;
  const int tiles = (int)most(1, BYTE_ROWS / per_tile);
  const int64_t tile = (x->tiles - 1 - item / heads) * (int64_t)tiles;
  if (tile >= x->tiles)
    return false;
  barrier(); /* all is read of the item before */
  if (thread() == 0) {
    const int64_t row = tile * x->block_q;
    const int64_t rows = least((int64_t)tiles * x->block_q, x->q_len - row);
    const int64_t position = position_of(x, b) + row, keys = keys_of(x, b);
    span s = {.end = ceil_div(least(keys, position + rows), x->block_k)};
    s.begin = least(s.end, most(0, position - x->window_left) / x->block_k);
    w->shares = (row_shares){
        .b = b,
        .h = h,
        .per_tile = per_tile,
        .s = s,
        .share = (pair *)x->share + (int64_t)block_x() * x->blocks * BYTE_ROWS,
        .mass = x->block_score + (head * (int64_t)x->tiles + tile) * x->blocks};
    w->tile = tile;
    w->stride = plan->stride;
    w->total = (int32_t)ceil_div(rows, plan->stride);
    w->keys_end = (int32_t)keys;
  }
  return true;
}

/* Rows shares.first and those after it, a warp a row; zeros where there are
 * none. */
INLINE void load_sampled(const args *x, sampled_rows *w, uint8_t *rows) {
  const row_shares *r = &w->shares;
  const uint16_t *q =
      (const uint16_t *)x->q + r->b * x->q_batch + r->h * x->q_head;
  for (int i = warp(); i < BYTE_ROWS; i += WARPS) {
    const int64_t row =
        least(w->tile * x->block_q + (r->first + i + 1) * (int64_t)w->stride,
              x->q_len) -
        1;
    copy_half_row(x, rows, i, i < r->live ? q + row * x->q_row : 0);
    if (lane() == 0 && i < r->live) {
      const int64_t position = position_of(x, r->b) + row;
      w->range.to[i] = (int32_t)position;
      w->range.from[i] = (int32_t)most(0, position - x->window_left);
    }
  }
}

/* Maxima and sums of exponentials of a block's keys, row by row. */
INLINE void score_block_halves(const args *x, const sampled_rows *w,
                               const uint8_t *rows, int32_t block,
                               float greatest[4], float sum[4]) {
  const row_shares *r = &w->shares;
  const int32_t begin = block * x->block_k;
  const int32_t end = (int32_t)least(begin + x->block_k, w->keys_end);
  const uint16_t *k =
      (const uint16_t *)x->k + r->b * x->k_batch + r->h / x->group * x->k_head;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    greatest[i] = HIDDEN_SCORE;
    sum[i] = 0;
  }
#pragma nounroll
  for (int32_t key = begin; key < end; key += BYTE_KEYS) {
    const int count = end - key < BYTE_KEYS ? end - key : BYTE_KEYS;
    float c[2][KEY_TILES][4];
    clear_products(c);
    multiply_half_rows(x, c, rows, r->live > 16, k + key * x->k_row, x->k_row,
                       count);
    const int32_t first = key + (lane() & 3) * 2;
    int there = keys_up_to(end - 1 - first);
    if (x->key_mask)
#pragma nounroll
      for (int n = 0; n < 2 * KEY_TILES; ++n) {
        const int32_t at = first + n / 2 * 8 + n % 2;
        if (at < end && is_hidden(x, r->b, at))
          there &= ~(1 << n);
      }
    int sees[4];
    keys_in_range(&w->range, r->live, first, there, sees);
    score_products(x, c, sees);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      add_scores(c, i, &greatest[i], &sum[i]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    merge_scores(&greatest[i], &sum[i]);
}

/* Shares of all blocks and the rows' greatest scores, of warps. */
INLINE void score_sampled(const args *x, sampled_rows *w, const uint8_t *rows) {
  const row_shares *r = &w->shares;
  const int l = lane(), row = (l >> 2) + 8 * (l & 3);
  float best = HIDDEN_SCORE;
#pragma nounroll
  for (int64_t block = r->s.begin + warp(); block < r->s.end; block += WARPS) {
    float greatest[4], sum[4];
    score_block_halves(x, w, rows, (int32_t)block, greatest, sum);
    const float here = one_of(greatest, l & 3);
    r->share[block * BYTE_ROWS + row] = (pair){here, one_of(sum, l & 3)};
    best = here > best ? here : best;
  }
  w->most[warp() * BYTE_ROWS + row] = best;
}

/* Tiles whose sampled rows saw nothing say nothing: all is kept. seen: rows
 * that did, of all parts of a tile if it has several. */
INLINE void mark_unseen(const args *x, const sampled_rows *w, uint32_t seen) {
  const row_shares *r = &w->shares;
  const int tiles = (int)ceil_div(w->total, r->per_tile);
  barrier(); /* masses are written */
  for (int tile = 0; tile < tiles; ++tile) {
    const uint32_t rows =
        tiles == 1 ? ~0u : ((1u << r->per_tile) - 1) << (tile * r->per_tile);
    if (seen & rows)
      continue;
    for (int64_t block = r->s.begin + thread(); block < r->s.end;
         block += THREADS)
      r->mass[tile * (int64_t)x->blocks + block] = __builtin_inff();
  }
}

/* Grid: PREFILL_CUDA_BYTE_SLOTS. Masses of the visible blocks of every tile; no
 * finite numbers where scores are none. */
KERNEL prefill_index_sampled(args x) {
  SHARED char __attribute__((aligned(16))) memory[MASS_BYTES];
  SHARED sampled_rows w;
  uint8_t *rows = (uint8_t *)memory;
  for (int item = block_x(); item < x.batch * x.heads * x.tiles;
       item += PREFILL_CUDA_BYTE_SLOTS) {
    if (!begin_sampled(&x, &w, item))
      continue;
    barrier();
    uint32_t seen = 0;
    for (int first = 0; first < w.total; first += BYTE_ROWS) {
      barrier(); /* all is read of the rows before */
      if (thread() == 0) {
        w.shares.first = first;
        w.shares.live =
            w.total - first < BYTE_ROWS ? w.total - first : BYTE_ROWS;
      }
      barrier();
      load_sampled(&x, &w, rows);
      barrier();
      score_sampled(&x, &w, rows);
      barrier();
      float greatest = HIDDEN_SCORE;
      for (int i = 0; i < WARPS; ++i) {
        const float value = w.most[i * BYTE_ROWS + lane()];
        greatest = value > greatest ? value : greatest;
      }
      const float inverse = weigh_rows(&w.shares, greatest, w.sum);
      seen |= ballot(lane() < w.shares.live && inverse != 0);
      if (x.plans[w.shares.h].values)
        add_weighed_shares(&x, &w.shares, inverse, memory);
      else
        add_shares(&x, &w.shares, inverse, 0);
    }
    mark_unseen(&x, &w, seen);
  }
}
