/*===- flex.c - FlexPrefill's heads -------------------------------*- C -*-===*\
|*
|* runtime/src/estimate_flex.c: from the last rows' column and diagonal sums and
|* the pooled scores of the same rows, whether a head is query-aware; then which
|* blocks of columns and which distances all of its tiles keep. pool.c has the
|* tiles' pooled masses, and lets the query-aware heads choose by them.
|*
\*===----------------------------------------------------------------------===*/
#include "../src/logarithm.h"
#include "lines.h"
#include "pool.h"

INLINE bool is_flex(const args *x, int b, int h) {
  return x->plans[h].pattern == PREFILL_PATTERN_FLEXPREFILL &&
         is_sparse(x, b, &x->plans[h]);
}

/* Sums that are no numbers count as 0. */
INLINE bool is_broken(const args *x, int64_t head) {
  return x->aware[head] & PREFILL_CUDA_BROKEN;
}
INLINE lines flex_sums(const args *x, int b, int h) {
  lines s = lines_of(x, b, h);
  if (is_broken(x, s.head))
    s.scored = 0;
  return s;
}

/* Sum of what all threads have, always added in the same order. */
INLINE double block_sum_double(double value) {
  SHARED double of_thread[THREADS];
  barrier();
  of_thread[thread()] = value;
  barrier();
  double sum = 0;
  for (int i = 0; i < THREADS; ++i)
    sum += of_thread[i];
  return sum;
}

/* x log(2 x / (x + y)), 0 where x is. */
INLINE double divergence(double x, double y) {
  return x > 1e-300 ? x * pf_logarithm(2 * x / (x + y)) : 0;
}

/* Is the Jensen-Shannon divergence of a / sum(a) and b / sum(b) below tau^2?
 * Also where it is no number. */
INLINE bool agree(const float *a, const float *b, int64_t n, double tau) {
  double a_sum = 0, b_sum = 0, sum = 0;
  for (int64_t i = thread(); i < n; i += THREADS) {
    a_sum += (double)a[i];
    b_sum += (double)b[i];
  }
  a_sum = block_sum_double(a_sum);
  b_sum = block_sum_double(b_sum);
  int64_t broken = 0;
  for (int64_t i = thread(); i < n; i += THREADS) {
    const double p = (double)a[i] / a_sum, q = (double)b[i] / b_sum;
    sum += (divergence(p, q) + divergence(q, p)) / 2;
    broken += p != p || q != q;
  }
  block_scan(broken, &broken);
  return broken || block_sum_double(sum) < tau * tau;
}

/* Grid: heads, batch. Sums by blocks of columns and by distances; whether the
 * head is query-aware. */
KERNEL prefill_index_flex(args x) {
  SHARED float mean[MAX_DIM];
  const int h = block_x(), b = block_y(), t = thread();
  if (!is_flex(&x, b, h))
    return;
  const lines s = flex_sums(&x, b, h);
  float *share = x.flex_share + s.head * x.blocks;
  float *pooled = x.flex_pooled + s.head * x.blocks;
  float *distance = x.flex_distance + s.head * x.distances * 32;
  const int64_t limit = least(distance_limit(&x, b), x.distances * 32);
  for (int64_t block = t; block < x.blocks; block += THREADS) {
    const int64_t begin = block * x.block_k;
    float sum = 0;
    for (int64_t key = begin; key < least(begin + x.block_k, s.keys); ++key)
      sum += column_sum(&s, key);
    share[block] = sum;
  }
  for (int64_t at = t; at < limit; at += THREADS) {
    const int64_t begin = at * x.block_k;
    /* The last one has what is further away. */
    const int64_t end =
        at == limit - 1 ? s.keys : least(begin + x.block_k, s.keys);
    float sum = 0;
    for (int64_t delta = begin; delta < end; ++delta)
      sum += diagonal_sum(&s, delta);
    distance[at] = sum;
  }
  /* The same rows, pooled. */
  int64_t row;
  const int64_t end = sums_rows(&x, b, h, &row);
  const uint16_t *q = (const uint16_t *)x.q + b * x.q_batch + h * x.q_head;
  for (int c = t; c < x.head_dim; c += THREADS)
    mean[c] = mean_query(&x, q, row, end, c, x.scale);
  barrier();
  const int64_t first = first_blocks(&x, b) - 1;
  const int64_t blocks =
      ceil_div(least(position_of(&x, b) + end, s.keys), x.block_k);
  const float *keys = x.key_mean + kv_number(&x, b, h) * x.head_dim * x.blocks;
  for (int64_t block = first + t; block < blocks; block += THREADS) {
    float sum = 0;
    for (int c = 0; c < x.head_dim; ++c)
      sum += mean[c] * keys[(int64_t)c * x.blocks + block];
    pooled[block] = sum;
  }
  pooled_softmax(&x, b, first, blocks - first, pooled + first);
  const bool aware = is_broken(&x, s.head) ||
                     agree(share + first, pooled + first, blocks - first,
                           (double)x.plans[h].threshold);
  if (t == 0)
    x.aware[s.head] |= aware ? PREFILL_CUDA_AWARE : 0;
}

/* What a thread block of the next kernel chooses from. */
typedef struct flex_lines {
  const lines *s;
  bool diagonals;
  double unit;
} flex_lines;
static float value_of_line(const void *context, int64_t i) {
  const flex_lines *f = context;
  return f->diagonals ? diagonal_sum(f->s, i) : column_sum(f->s, i);
}
static int64_t cost_of_line(const void *context, int64_t i) {
  return mass_units(value_of_line(context, i),
                    ((const flex_lines *)context)->unit);
}

/* How many of the greatest column or diagonal sums stay within gamma of all,
 * and one. chosen: a bitmap of them, which nothing else reads. */
INLINE int64_t count_to(flex_lines *f, float gamma, uint32_t *chosen) {
  const int64_t n = f->s->keys;
  float greatest = 0;
  for (int64_t i = thread(); i < n; i += THREADS) {
    const float value = value_of_line(f, i);
    greatest = value > greatest ? value : greatest;
  }
  f->unit = mass_unit(block_max(greatest));
  int64_t sum = 0, count = 0;
  for (int64_t i = thread(); i < n; i += THREADS)
    sum += cost_of_line(f, i);
  block_scan(sum, &sum);
  select_items(value_of_line, cost_of_line, f, n,
               (int64_t)((double)sum * (double)gamma), false, chosen);
  for (int64_t word = thread(); word < n / 32 + 1; word += THREADS)
    count += __builtin_popcount(chosen[word]);
  block_scan(count, &count);
  return least(count + 1, n);
}

/* Grid: 2 (columns, diagonals), heads, batch. Blocks of columns and distances
 * that all tiles keep. */
KERNEL prefill_index_flex_lines(args x) {
  SHARED uint32_t chosen[MAX_BLOCKS / 32 + 2];
  const int h = block_y(), b = block_z(), t = thread();
  if (!is_flex(&x, b, h))
    return;
  const prefill_head_plan *plan = &x.plans[h];
  const lines s = flex_sums(&x, b, h);
  flex_lines f = {.s = &s, .diagonals = block_x() == 1};
  int64_t blocks = ceil_div(most(plan->min_budget, 1), x.block_k);
  if (!(x.aware[s.head] & PREFILL_CUDA_AWARE)) {
    uint32_t *lines_chosen =
        f.diagonals ? x.chosen_diagonals + s.head * x.key_words
                    : x.chosen_keys + s.head * (x.key_words + x.distances + 1);
    blocks =
        most(blocks, count_to(&f, plan->top_p, lines_chosen) / x.block_k + 1);
  }
  float *value;
  uint32_t *out;
  int64_t n, words, always;
  if (f.diagonals) {
    value = x.flex_distance + s.head * x.distances * 32;
    out = flex_distances(&x, s.head);
    n = least(distance_limit(&x, b), x.distances * 32);
    words = x.distances;
    always = 0;
  } else {
    value = x.flex_share + s.head * x.blocks;
    out = x.vertical + s.head * x.words;
    n = x.blocks;
    words = x.words;
    always = first_blocks(&x, b) - 1;
  }
  barrier();
  if (t == 0)
    value[always] = __builtin_inff();
  barrier();
  select_items(value_of_mass, one_block, &(row_masses){.mass = value}, n,
               blocks, false, chosen);
  for (int64_t word = t; word < words; word += THREADS)
    out[word] = word <= n / 32 ? chosen[word] : 0;
}
