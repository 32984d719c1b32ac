/*===- select.h - The most valuable items within a budget ---------*- C -*-===*\
|*
|* The rule of runtime/src/select.c by a thread block: radix selection, four
|* passes over the bits of the values, one more that collects in order. Costs
are
|* integers, so that sums do not depend on the order of the threads.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_CUDA_SELECT_H
#define PREFILL_RUNTIME_CUDA_SELECT_H

#include "device.h"

typedef float (*value_fn)(const void *context, int64_t i);
typedef int64_t (*cost_fn)(const void *context, int64_t i);

/* Order-preserving bits; 0 for -inf and NaN. */
INLINE uint32_t order_of(float value) {
  uint32_t bits = float_to_bits(value);
  if ((bits & 0x7fffffff) > 0x7f800000 || bits == 0xff800000)
    return 0;
  if (bits == 0x80000000) /* -0 is 0 */
    bits = 0;
  return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

/* Sets in chosen (n / 32 + 1 words, all written) the items of greatest value
 * whose costs together stay within budget: in order of falling value, of equal
 * ones the lower index first, up to the first that does not fit; `crossing`:
 * and that one, if the budget is not spent before it. -inf and NaN are never
 * chosen. */
INLINE void select_items(value_fn value, cost_fn cost, const void *context,
                         int64_t n, int64_t budget, bool crossing,
                         uint32_t *chosen) {
  SHARED int64_t of_digit[256];
  SHARED int64_t found_used, of_warp[WARPS];
  SHARED uint32_t found_digit;
  const int t = thread();
  uint32_t threshold = 0; /* the digits found so far */
  int64_t used = 0;       /* cost of everything above them */
  for (int shift = 24; shift >= 0; shift -= 8) {
    of_digit[t] = 0;
    barrier();
    for (int64_t i = t; i < n; i += THREADS) {
      const uint32_t order = order_of(value(context, i));
      if (order && (shift == 24 || order >> (shift + 8) == threshold))
        __atomic_fetch_add(&of_digit[order >> shift & 255], cost(context, i),
                           __ATOMIC_RELAXED);
    }
    barrier();
    /* Thread t has digit 255 - t; the budget ends in the first that does not
     * fit, or in 0. */
    const int64_t here = of_digit[255 - t];
    int64_t all;
    const int64_t above = used + block_scan(here, &all);
    const bool first = t == 0 || above <= budget;
    if (first && (above + here > budget || t == 255)) {
      found_digit = 255 - (uint32_t)t;
      found_used = above;
    }
    barrier();
    threshold = threshold << 8 | found_digit;
    used = found_used;
  }
  /* Each warp collects a run of words; costs of the equal ones before it first.
   */
  const int64_t words = n / 32 + 1, share = ceil_div(words, WARPS);
  const int64_t begin = warp() * share, end = least(words, begin + share);
  int64_t equal = 0;
  for (int64_t word = begin; word < end; ++word) {
    const int64_t i = word * 32 + lane();
    if (i < n && threshold && order_of(value(context, i)) == threshold)
      equal += cost(context, i);
  }
  equal = warp_sum(equal);
  if (lane() == 0)
    of_warp[warp()] = equal;
  barrier();
  for (int w = 0; w < warp(); ++w)
    used += of_warp[w];
  for (int64_t word = begin; word < end; ++word) {
    const int64_t i = word * 32 + lane();
    const uint32_t order = i < n ? order_of(value(context, i)) : 0;
    bool take = order > threshold;
    if (ballot(order && order == threshold)) {
      const bool is_equal = order && order == threshold;
      const int64_t price = is_equal ? cost(context, i) : 0;
      const int64_t until = used + warp_scan(price);
      take |=
          is_equal && (until <= budget || (crossing && until - price < budget));
      used = shuffle_l(until, 31);
    }
    const uint32_t bits = ballot(take);
    if (lane() == 0)
      chosen[word] = bits;
  }
  barrier();
}

#endif
