/*===- prepare.c - Facts of a batch entry, row sums ---------------*- C -*-===*/
#include "device.h"

/* Grid: batch. First and last visible key, what the key mask leaves of every
 * block, dense blocks. */
KERNEL prefill_index_prepare(args x) {
  SHARED int first_of[THREADS], last_of[THREADS];
  const int b = block_x(), t = thread();
  const int64_t keys = keys_of(&x, b);
  int first = (int)keys, last = 0;
  if (b == 0 && t == 0)
    *x.status = 0;
  if (x.key_mask) {
    for (int64_t block = t; block < x.blocks; block += THREADS) {
      const int64_t begin = block * x.block_k;
      const int64_t end = least(begin + x.block_k, keys);
      int visible = 0;
      for (int64_t key = begin; key < end; ++key)
        if (!is_hidden(&x, b, key)) {
          ++visible;
          first = (int)least(first, key);
          last = (int)key + 1;
        }
      x.block_state[(int64_t)b * x.blocks + block] = visible == 0 ? HIDDEN
                                                     : visible == end - begin
                                                         ? ALL
                                                         : SOME;
    }
  } else {
    first = 0;
    last = (int)keys;
  }
  first_of[t] = first;
  last_of[t] = last;
  barrier(); /* states are written, too */
  for (int i = 0; i < THREADS; ++i) {
    first = first_of[i] < first ? first_of[i] : first;
    last = last_of[i] > last ? last_of[i] : last;
  }
  int64_t dense = 0, all;
  for (int64_t tile = t; tile < x.tiles; tile += THREADS) {
    const span s = span_of(&x, b, tile);
    dense += s.end - s.begin;
    for (int64_t block = s.begin; x.key_mask && block < s.end; ++block)
      dense -= state_of(&x, b, block) == HIDDEN;
  }
  block_scan(dense, &all);
  if (t == 0) {
    const int64_t position = position_of(&x, b);
    int32_t *facts = x.facts + 4 * b;
    facts[0] = first;
    facts[1] = last;
    facts[2] = (int32_t)least(all, INT32_MAX);
    facts[3] = position >= 0 && position < last && x.q_len > 1 &&
               last >= x.dense_below && x.blocks < MAX_BLOCKS &&
               distance_limit(&x, b) <= MAX_BLOCKS;
  }
}

/* Grid: heads, batch. Maxima and sums of the last rows, of all chunks of keys;
 * and whether the head is sparse. */
KERNEL prefill_index_sums(args x) {
  SHARED int broken;
  const int h = block_x(), b = block_y(), row = thread();
  const int64_t head = (int64_t)b * x.heads + h;
  enum { ROWS = PREFILL_CUDA_SUMS_ROWS };
  const prefill_head_plan *plan = &x.plans[h];
  const bool flex = plan->pattern == PREFILL_PATTERN_FLEXPREFILL;
  if (plan->pattern != PREFILL_PATTERN_VERTICAL_SLASH && !flex)
    return;
  int64_t begin;
  const int64_t end = sums_rows(&x, b, h, &begin);
  if (thread() == 0)
    broken = 0;
  barrier();
  if (row < ROWS) {
    const float *row_most = x.row_most + head * x.sums_chunks * ROWS;
    const float *row_sum = x.row_sum + head * x.sums_chunks * ROWS;
    float greatest = MINUS_INF, sum = 0;
    if (row < end - begin) {
      /* Chunks past the last row's position were not scored. */
      const int64_t seen = least(position_of(&x, b) + end, keys_of(&x, b));
      const int64_t chunks =
          ceil_div(seen, PREFILL_CUDA_SUMS_KEYS * PREFILL_CUDA_SUMS_CHUNK);
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const float value = row_most[chunk * ROWS + row];
        greatest = value > greatest ? value : greatest;
      }
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const float value = row_sum[chunk * ROWS + row];
        if (value != 0)
          sum += value * power(row_most[chunk * ROWS + row] - greatest);
      }
      if (sum - sum != 0 || greatest == __builtin_inff())
        __atomic_fetch_or(&broken, 1, __ATOMIC_RELAXED);
    }
    x.most[head * ROWS + row] = sum > 0 ? greatest : 0;
    x.inverse[head * ROWS + row] = sum > 0 ? 1.0f / sum : 0;
  }
  barrier();
  if (thread() == 0 && flex)
    x.aware[head] = broken ? PREFILL_CUDA_BROKEN : 0;
  else if (thread() == 0)
    x.head_mode[head] = is_sparse(&x, b, plan) && !broken
                            ? PREFILL_CUDA_HEAD_RELATIVE
                            : PREFILL_CUDA_HEAD_DENSE;
}
