/*===- relative.c - Distances, vertical blocks, columns -----------*- C -*-===*\
|*
|* The selections and index of runtime/src/estimate_relative.c and index.c.
|*
\*===----------------------------------------------------------------------===*/
#include "lines.h"
#include "select.h"

/*===-- by MInference's token counts -------------------------------------===*/

static float token_column(const void *context, int64_t key) {
  const lines *s = context;
  if (is_invisible(s, key))
    return MINUS_INF;
  return key < s->sinks ? __builtin_inff() : column_sum(s, key);
}
static float token_diagonal(const void *context, int64_t delta) {
  const lines *s = context;
  return delta < FORCED_DIAGONALS ? __builtin_inff() : diagonal_sum(s, delta);
}
static int64_t one(const void *context, int64_t i) {
  (void)context, (void)i;
  return 1;
}

/*===-- by a share of the dense blocks -----------------------------------===*/

/* Prices are in blocks / (4 block_k), so that they are whole numbers. */
INLINE int64_t distance_price(const lines *s, int64_t t) {
  const args *x = s->x;
  const int64_t above =
      most(0, ceil_div(most(0, t * x->block_k + 1 - position_of(x, s->b)),
                       x->block_q) -
                  1);
  return most(1, most(0, s->tiles - above)) * 4 * x->block_k;
}
INLINE int64_t column_price(const lines *s, int64_t key) {
  const int64_t row = key - position_of(s->x, s->b);
  const int64_t tiles = s->tiles - (row > 0 ? row / s->x->block_q : 0);
  return most(4 * tiles, s->tiles);
}
static float share_value(const void *context, int64_t i) {
  return ((const lines *)context)->value[i];
}
static int64_t share_price(const void *context, int64_t i) {
  const lines *s = context;
  return i < s->limit ? distance_price(s, i) : column_price(s, i - s->limit);
}

/* Share of the last rows' attention at distance t from a tile's top block, if
 * diagonals were as they are now in every row (estimate_relative.c). */
INLINE float distance_mass(const lines *s, const double *prefix, int64_t t) {
  const args *x = s->x;
  double sum = 0;
  for (int64_t phase = 0; phase < x->phases; ++phase) {
    const int64_t top_end = (top_block(x, s->b, phase) + 1) * x->block_k - 1;
    const int64_t first = position_of(x, s->b) + phase * x->block_q;
    for (int64_t row = 0; row < x->block_q; ++row) {
      const int64_t from = t * x->block_k - (top_end - first - row);
      sum += prefix[most(0, least(from + x->block_k, s->keys))] -
             prefix[most(0, least(from, s->keys))];
    }
  }
  return (float)(sum / (double)(x->phases * (int64_t)x->block_q));
}

/* Distances up to this one hold a tile's own positions, or follow on them. */
INLINE int64_t forced_distance(const lines *s) {
  int64_t forced = 0;
  for (int64_t phase = 0; phase < s->x->phases; ++phase)
    forced = most(forced, own_distance(s->x, s->b, phase) + 1);
  return forced;
}

INLINE void select_share(lines *s) {
  const args *x = s->x;
  const int64_t n = s->keys;
  double *prefix = x->line_prefix + s->head * ((int64_t)x->kv_len + 1);
  /* A run of diagonals a thread. */
  const int64_t run = ceil_div(n, THREADS);
  const int64_t begin = least(n, thread() * run), end = least(n, begin + run);
  double sum = 0;
  for (int64_t delta = begin; delta < end; ++delta)
    sum += (double)diagonal_sum(s, delta);
  sum = block_scan_double(sum);
  for (int64_t delta = begin; delta < end; ++delta) {
    prefix[delta] = sum;
    sum += (double)diagonal_sum(s, delta);
  }
  if (begin < end ? end == n : thread() == 0 && n == 0)
    prefix[n] = sum;
  barrier();
  const double unit = 4.0 * (double)x->block_k;
  const int64_t forced = forced_distance(s);
  int64_t spent = 0;
  for (int64_t t = 0; t <= forced && t < s->limit; ++t)
    spent += distance_price(s, t);
  for (int64_t t = thread(); t < s->limit; t += THREADS) {
    const float mass = distance_mass(s, prefix, t);
    const float price = (float)((double)distance_price(s, t) / unit);
    s->value[t] = t > forced && mass > 0 ? mass / price : MINUS_INF;
  }
  /* The keys nearest to the last rows say nothing about other rows. */
  const int64_t recent = s->first_position - FORCED_DIAGONALS;
  for (int64_t key = thread(); key < n; key += THREADS) {
    const float price = (float)((double)column_price(s, key) / unit),
                sum = column_sum(s, key);
    float value = sum > 0 ? sum / price : MINUS_INF;
    if (is_invisible(s, key) || (key >= recent && key >= s->sinks))
      value = MINUS_INF;
    else if (key < s->sinks)
      value = __builtin_inff();
    s->value[s->limit + key] = value;
  }
  const double dense = (double)x->facts[4 * s->b + 2];
  int64_t budget =
      (int64_t)((double)x->plans[s->h].density * dense * unit) - spent;
  budget = budget > 0 ? budget : 0;
  barrier();
  uint32_t *chosen =
      x->chosen_keys + s->head * (x->key_words + x->distances + 1);
  select_items(share_value, share_price, s, s->limit + n, budget, false,
               chosen);
}

/* Grid: 2 (columns, diagonals), heads, batch. */
KERNEL prefill_index_select_lines(args x) {
  const int h = block_y(), b = block_z();
  const prefill_head_plan *plan = &x.plans[h];
  lines s = lines_of(&x, b, h);
  if (plan->pattern != PREFILL_PATTERN_VERTICAL_SLASH ||
      x.head_mode[s.head] != PREFILL_CUDA_HEAD_RELATIVE)
    return;
  if (plan->density > 0) {
    if (block_x() == 0)
      select_share(&s);
    return;
  }
  if (block_x() == 0)
    select_items(token_column, one, &s, s.keys,
                 least(s.keys, most(plan->vertical, FORCED_SINKS)), false,
                 x.chosen_keys + s.head * (x.key_words + x.distances + 1));
  else
    select_items(token_diagonal, one, &s, s.keys,
                 least(s.keys, most(plan->slash, 50)), false,
                 x.chosen_diagonals + s.head * x.key_words);
}

/*===-- the index --------------------------------------------------------===*/

/* Does diagonal set [first, last] of the positions of a phase's tile touch the
 * block `t` below its top? */
INLINE bool is_touched(const args *x, const lines *s,
                       const prefill_head_plan *plan, int64_t phase,
                       int64_t t) {
  const int64_t first = position_of(x, s->b) + phase * x->block_q;
  const int64_t last = first + x->block_q - 1;
  if (t <= own_distance(x, s->b, phase))
    return true;
  const int64_t block = top_block(x, s->b, phase) - t;
  const int64_t begin = most(0, first - (block + 1) * x->block_k + 1);
  const int64_t end = last - block * x->block_k + 1;
  if (plan->pattern == PREFILL_PATTERN_VERTICAL_SLASH) {
    if (plan->density > 0)
      return t <= forced_distance(s) ||
             (t < s->limit &&
              get_bit(x->chosen_keys +
                          s->head * (x->key_words + x->distances + 1),
                      t));
    return any_bit(x->chosen_diagonals + s->head * x->key_words, begin,
                   least(end, s->keys));
  }
  const int64_t local = most(1, least(plan->local, x->kv_len));
  if (begin < least(end, local))
    return true;
  return plan->pattern == PREFILL_PATTERN_STRIDED && t % plan->stride == 0;
}

/* Is a key a single column before blocks are promoted? */
INLINE bool is_column(const args *x, const lines *s,
                      const prefill_head_plan *plan, int64_t key) {
  const uint32_t *chosen =
      x->chosen_keys + s->head * (x->key_words + x->distances + 1);
  if (plan->pattern != PREFILL_PATTERN_VERTICAL_SLASH || key >= s->keys)
    return false;
  if (plan->density > 0)
    return get_bit(chosen, s->limit + key) ||
           (key < s->sinks && !is_invisible(s, key));
  return get_bit(chosen, key);
}

/* Grid: heads, batch. Also decides the mode of every head but those of
 * vertical-slash, whose sums have. */
KERNEL prefill_index_relative(args x) {
  const int h = block_x(), b = block_y(), t = thread();
  const prefill_head_plan *plan = &x.plans[h];
  const lines s = lines_of(&x, b, h);
  const int64_t head = s.head;
  const bool estimated = plan->pattern == PREFILL_PATTERN_VERTICAL_SLASH;
  int32_t mode = PREFILL_CUDA_HEAD_DENSE;
  if (estimated)
    mode = x.head_mode[head];
  else if (is_sparse(&x, b, plan))
    mode = selects_blocks(plan) ? PREFILL_CUDA_HEAD_BLOCKS
                                : PREFILL_CUDA_HEAD_RELATIVE;
  if (t == 0) {
    const bool tri = plan->pattern == PREFILL_PATTERN_TRI_SHAPE;
    x.dense_tile[head] =
        tri && plan->last > 0
            ? (int32_t)(most(0, x.q_len - plan->last) / x.block_q)
            : x.tiles;
    if (!estimated)
      x.head_mode[head] = mode;
  }
  if (mode != PREFILL_CUDA_HEAD_RELATIVE)
    return;
  const int64_t limit = least(distance_limit(&x, b), x.distances * 32);
  for (int64_t phase = 0; phase < x.phases; ++phase) {
    uint32_t *out = x.distance + (head * x.phases + phase) * x.distances;
    for (int64_t word = warp(); word < x.distances; word += WARPS) {
      const int64_t distance = word * 32 + lane();
      const uint32_t bits =
          ballot(distance < limit && is_touched(&x, &s, plan, phase, distance));
      if (lane() == 0)
        out[word] = bits;
    }
  }
  /* The first keys that there are: left padding moves them. */
  const int64_t init =
      !estimated && plan->init > 0
          ? ceil_div(least(first_key(&x, b) + plan->init, x.kv_len), x.block_k)
          : 0;
  int64_t total = 0, kept = 0;
  for (int64_t base = 0; base < x.blocks; base += THREADS) {
    const int64_t block = base + t, begin = block * x.block_k;
    const int64_t end = least(begin + x.block_k, s.keys);
    int count = 0;
    for (int64_t key = begin; key < end; ++key)
      count += is_column(&x, &s, plan, key);
    /* Past that its columns cost more than all of it. */
    bool vertical = block < x.blocks &&
                    (block < init || (estimated && count >= x.block_k * 3 / 4));
    count = vertical ? 0 : count;
    int64_t all;
    const int64_t before = total + block_scan(count, &all);
    total += all;
    /* From the first block on whose columns have no room, blocks with columns
     * are visited whole: nothing that was chosen is left out. */
    if (count && before + count > x.column_room) {
      vertical = true;
      count = 0;
    }
    int64_t at = kept + block_scan(count, &all);
    kept += all;
    if (block < x.blocks) {
      int32_t *out = x.columns + head * x.column_room;
      x.column_begin[head * (x.blocks + 1) + block] = (int32_t)at;
      for (int64_t key = begin; count && key < end; ++key)
        if (is_column(&x, &s, plan, key))
          out[at++] = (int32_t)key;
    }
    const uint32_t bits = ballot(vertical);
    if (lane() == 0 && block < x.blocks)
      x.vertical[head * x.words + block / 32] = bits;
  }
  if (t == 0)
    x.column_begin[head * (x.blocks + 1) + x.blocks] = (int32_t)kept;
}
