/*===- infllm.c - InfLLM v2's estimate ----------------------------*- C -*-===*\
|*
|* runtime/src/estimate_compressed.c: softmax of all query rows of a KV head's
|* query heads over the means of 32 keys, one every 16. Means are kept as the
sum
|* of two 16-bit numbers, so that products are by mma.sync and good to 16 bits
|* (bf16) or more. A thread block takes the rows of a tile, 32 at a time, all of
|* its query heads; scores are computed twice, for the rows' sums and for those
|* of the means.
|*
\*===----------------------------------------------------------------------===*/
#include "halves.h"
#include "keep.h"

enum { MEAN = PREFILL_CUDA_MEAN_KEYS, STEP = PREFILL_CUDA_MEAN_STEP };

INLINE bool wants_means(const args *x, int b, int h) {
  return x->plans[h].pattern == PREFILL_PATTERN_INFLLM_V2 &&
         is_sparse(x, b, &x->plans[h]);
}
/* Do scores decide which of the tile's blocks the head keeps? */
INLINE bool wants_scores(const args *x, int b, int h, int64_t tile) {
  const span s = span_of(x, b, tile);
  return wants_means(x, b, h) && s.end - s.begin > x->plans[h].top_k;
}
/* Number of the first mean of KV head b * KV heads + KV head. */
INLINE int64_t first_mean(const args *x, int64_t number) {
  return number * x->means;
}

/* A number rounded to nearest even. */
INLINE uint16_t narrow(const args *x, float value) {
  uint16_t bits;
  if (x->dtype == PREFILL_BF16) {
    const uint32_t wide = float_to_bits(value);
    bits = (uint16_t)(value == value ? (wide + 0x7fff + (wide >> 16 & 1)) >> 16
                                     : wide >> 16 | 0x40);
  } else {
    const _Float16 half = (_Float16)value;
    __builtin_memcpy(&bits, &half, 2);
  }
  return bits;
}

/* Grid: means / 16, KV heads, batch. Means of the visible keys, in two parts.
 */
KERNEL prefill_index_mean_keys(args x) {
  const int head = block_y(), b = block_z();
  const int64_t number = (int64_t)b * (x.heads / x.group) + head;
  const int64_t begin = (int64_t)block_x() * PREFILL_CUDA_MEANS;
  const int64_t count = means_of(&x, b);
  const uint16_t *k = (const uint16_t *)x.k + b * x.k_batch + head * x.k_head;
  for (int i = thread(); i < PREFILL_CUDA_MEANS * x.head_dim; i += THREADS) {
    const int64_t mean = begin + i / x.head_dim;
    const int c = i % x.head_dim;
    if (mean >= count)
      break;
    float sum = 0;
    int keys = 0;
#pragma unroll 4
    for (int64_t key = mean * STEP; key < mean * STEP + MEAN; ++key)
      if (!is_hidden(&x, b, key)) {
        sum += widen(&x, k + key * x.k_row, c);
        ++keys;
      }
    const float value = keys ? sum / (float)keys : 0;
    const int64_t at = (first_mean(&x, number) + mean) * x.head_dim + c;
    const uint16_t high = narrow(&x, value);
    const float rest = value - widen(&x, &high, 0);
    x.mean_high[at] = high;
    x.mean_low[at] = narrow(&x, rest - rest == 0 ? rest : 0);
    if (c == 0)
      x.mean_seen[first_mean(&x, number) + mean] = keys > 0;
  }
}

/* Query rows under way, in memory of the thread block. */
typedef struct group_rows {
  int32_t b, number; /* batch entry, KV head of all */
  int64_t tile;
  int32_t rows, total; /* of the tile, of all heads */
  int32_t first, live;
  int32_t means;   /* that the last row sees */
  int32_t broken;  /* a score is no number */
  row_range range; /* means that a row sees */
  float most[WARPS * BYTE_ROWS], sum[WARPS * BYTE_ROWS]; /* of warps */
  float top[BYTE_ROWS], inverse[BYTE_ROWS];
} group_rows;

/* Sets up a tile of a KV head; false: none of its heads needs an estimate. */
INLINE bool begin_group(const args *x, group_rows *w, int item) {
  const int kv_heads = x->heads / x->group, count = x->batch * kv_heads;
  const int number = item % count, b = number / kv_heads;
  const int64_t tile = x->tiles - 1 - item / count;
  bool wanted = false;
  for (int h = 0; h < x->group; ++h)
    wanted |= wants_scores(x, b, number % kv_heads * x->group + h, tile);
  if (!wanted)
    return false;
  barrier(); /* all is read of the item before */
  if (thread() == 0) {
    const int64_t row = tile * x->block_q;
    const int64_t rows = least(x->block_q, x->q_len - row);
    const int64_t last = position_of(x, b) + row + rows - 1;
    w->b = b;
    w->number = number;
    w->tile = tile;
    w->rows = (int32_t)rows;
    w->total = (int32_t)(rows * x->group);
    w->means = (int32_t)most(
        0, least(means_of(x, b), floor_div(last - MEAN + 1, STEP) + 1));
    w->broken = 0;
  }
  return true;
}

/* Rows w->first and those after it, a warp a row; zeros where there are none.
 */
INLINE void load_group(const args *x, group_rows *w, uint8_t *rows) {
  const int h = w->number % (x->heads / x->group) * x->group;
  for (int i = warp(); i < BYTE_ROWS; i += WARPS) {
    const int at = w->first + i;
    const int64_t row = w->tile * x->block_q + at % w->rows;
    const uint16_t *q = (const uint16_t *)x->q + w->b * x->q_batch +
                        (h + at / w->rows) * x->q_head + row * x->q_row;
    copy_half_row(x, rows, i, i < w->live ? q : 0);
    if (lane() == 0 && i < w->live) {
      /* Means whose last key lies in the row's reach. */
      const int64_t position = position_of(x, w->b) + row - MEAN + 1;
      const int64_t low = position - x->window_left;
      w->range.to[i] = (int32_t)floor_div(position, STEP);
      w->range.from[i] = low > 0 ? (int32_t)ceil_div(low, STEP) : 0;
    }
  }
}

/* Scores of the rows with the means from `base` on. */
INLINE void score_means(const args *x, const group_rows *w, const uint8_t *rows,
                        int32_t base, float c[2][KEY_TILES][4]) {
  const int count = w->means - base < BYTE_KEYS ? w->means - base : BYTE_KEYS;
  const int64_t mean = first_mean(x, w->number) + base;
  clear_products(c);
#pragma nounroll
  for (int part = 0; part < 2; ++part)
    multiply_half_rows(x, c, rows, w->live > 16,
                       (part ? x->mean_low : x->mean_high) + mean * x->head_dim,
                       x->head_dim, count);
  const int32_t key = base + (lane() & 3) * 2;
  int there = keys_up_to(w->means - 1 - key);
  if (x->key_mask)
#pragma nounroll
    for (int n = 0; n < 2 * KEY_TILES; ++n) {
      const int32_t at = key + n / 2 * 8 + n % 2;
      if (at < w->means && !x->mean_seen[mean - base + at])
        there &= ~(1 << n);
    }
  int sees[4];
  keys_in_range(&w->range, w->live, key, there, sees);
  score_products(x, c, sees);
}

/* Maxima of the rows and inverses of their sums, in w; 0 of those that see
 * nothing. */
INLINE void measure_group(const args *x, group_rows *w, const uint8_t *rows) {
  const int l = lane();
  float greatest[4], sum[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    greatest[i] = HIDDEN_SCORE;
    sum[i] = 0;
  }
#pragma nounroll
  for (int32_t base = warp() * BYTE_KEYS; base < w->means;
       base += WARPS * BYTE_KEYS) {
    float c[2][KEY_TILES][4];
    score_means(x, w, rows, base, c);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      add_scores(c, i, &greatest[i], &sum[i]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    merge_scores(&greatest[i], &sum[i]);
    if ((l & 3) == 0) {
      w->most[warp() * BYTE_ROWS + (l >> 2) + 8 * i] = greatest[i];
      w->sum[warp() * BYTE_ROWS + (l >> 2) + 8 * i] = sum[i];
    }
  }
  barrier();
  if (warp() == 0) {
    float top = HIDDEN_SCORE, total = 0;
    for (int i = 0; i < WARPS; ++i) {
      const float value = w->most[i * BYTE_ROWS + l];
      top = value > top ? value : top;
    }
    for (int i = 0; i < WARPS; ++i)
      total += w->sum[i * BYTE_ROWS + l] *
               power((w->most[i * BYTE_ROWS + l] - top) * LOG2E);
    if (ballot(l < w->live && total - total != 0) && l == 0)
      w->broken = 1;
    w->top[l] = top;
    w->inverse[l] = l < w->live && total > 0 ? 1 / total : 0;
  }
  barrier();
}

/* Adds the rows' probabilities to those of the means, in column. */
INLINE void add_group(const args *x, const group_rows *w, const uint8_t *rows,
                      float *column) {
  const int l = lane();
#pragma nounroll
  for (int32_t base = warp() * BYTE_KEYS; base < w->means;
       base += WARPS * BYTE_KEYS) {
    float c[2][KEY_TILES][4], sum[2 * KEY_TILES];
    score_means(x, w, rows, base, c);
#pragma unroll
    for (int n = 0; n < 2 * KEY_TILES; ++n)
      sum[n] = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float top = w->top[(l >> 2) + 8 * i];
      const float inverse = w->inverse[(l >> 2) + 8 * i];
#pragma unroll
      for (int n = 0; n < 2 * KEY_TILES; ++n)
        sum[n] +=
            power((c[i / 2][n / 2][i % 2 * 2 + n % 2] - top) * LOG2E) * inverse;
    }
#pragma unroll
    for (int n = 0; n < 2 * KEY_TILES; ++n) {
      for (int mask = 4; mask < 32; mask *= 2)
        sum[n] += shuffle_xor_f(sum[n], mask);
      const int32_t at = base + n / 2 * 8 + (l & 3) * 2 + n % 2;
      if (l < 4 && at < w->means)
        column[at] = w->first == 0 ? sum[n] : column[at] + sum[n];
    }
  }
}

/* The scores of the tile's blocks, for every head that wants them; infinity
 * where a score is no number. */
INLINE void write_group(const args *x, const group_rows *w,
                        const float *column) {
  const span s = span_of(x, w->b, w->tile);
  for (int64_t block = s.begin + thread(); block < s.end; block += THREADS) {
    const int64_t end = least(w->means, (block + 1) * x->block_k / STEP);
    float value = 0;
    for (int64_t mean = most(0, block * x->block_k / STEP - 1); mean < end;
         ++mean)
      value = column[mean] > value ? column[mean] : value;
    if (w->broken)
      value = __builtin_inff();
    for (int i = 0; i < x->group; ++i) {
      const int64_t head = (int64_t)w->number * x->group + i;
      if (wants_means(x, w->b, (int)(head % x->heads)))
        x->block_score[(head * x->tiles + w->tile) * x->blocks + block] = value;
    }
  }
}

/* Grid: PREFILL_CUDA_BYTE_SLOTS. */
KERNEL prefill_index_infllm(args x) {
  SHARED uint8_t __attribute__((aligned(16))) memory[HALVES_BYTES];
  SHARED group_rows w;
  uint8_t *rows = (uint8_t *)memory;
  float *column = x.mean_column + (int64_t)block_x() * x.means;
  for (int item = block_x(); item < x.batch * (x.heads / x.group) * x.tiles;
       item += PREFILL_CUDA_BYTE_SLOTS) {
    if (!begin_group(&x, &w, item))
      continue;
    barrier();
    for (int first = 0; first < w.total; first += BYTE_ROWS) {
      barrier(); /* all is read of the rows before */
      if (thread() == 0) {
        w.first = first;
        w.live = w.total - first < BYTE_ROWS ? w.total - first : BYTE_ROWS;
      }
      barrier();
      load_group(&x, &w, rows);
      barrier();
      measure_group(&x, &w, rows);
      add_group(&x, &w, rows, column);
    }
    barrier();
    write_group(&x, &w, column);
  }
}

/* Grid: tiles, heads, batch. */
KERNEL prefill_index_select_top(args x) {
  SHARED uint32_t chosen[MAX_BLOCKS / 32 + 2];
  const int64_t tile = block_x();
  const int h = block_y(), b = block_z();
  if (!wants_means(&x, b, h))
    return;
  const prefill_head_plan *plan = &x.plans[h];
  const int64_t row = ((int64_t)b * x.heads + h) * x.tiles + tile;
  const span s = span_of(&x, b, tile);
  const int64_t n = s.end - s.begin;
  const int64_t init =
      plan->init > 0 ? ceil_div(first_key(&x, b) + plan->init, x.block_k) : 0;
  const int64_t from =
      own_block(&x, b, tile) - ceil_div(most(plan->local, 0), x.block_k);
  const mass_rule rule = {.own = s.end};
  if (!wants_scores(&x, b, h, tile)) {
    write_kept(&x, row, &s, &rule, true, chosen);
    return;
  }
  float *score = x.block_score + row * x.blocks + s.begin;
  int64_t broken = 0, forced;
  for (int64_t i = thread(); i < n; i += THREADS)
    broken += score[i] - score[i] != 0;
  block_scan(broken, &broken);
  forced = force_blocks(&x, b, &s, init, from, score);
  block_scan(forced, &forced);
  select_items(value_of_mass, one_block, &(row_masses){.mass = score}, n,
               most(plan->top_k, forced), false, chosen);
  write_kept(&x, row, &s, &rule, broken != 0, chosen);
}
