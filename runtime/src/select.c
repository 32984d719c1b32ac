/*===- select.c - The most valuable items within a budget ---------*- C -*-===*\
|*
|* Radix selection: three or four passes over the bits of the values find the
|* value at which the budget ends, one more collects. Deterministic, no sorting.
|*
\*===----------------------------------------------------------------------===*/
#include "sparse.h"
#include <string.h>

/* Order-preserving bits; 0 for -inf and NaN. */
static uint32_t key_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000 || bits == 0xff800000)
    return 0;
  if (bits == 0x80000000) /* -0 is 0 */
    bits = 0;
  return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

void pf_select(const float *value, const float *cost, int64_t n, double budget,
               uint64_t *chosen) {
  memset(chosen, 0, (size_t)(n / 64 + 1) * 8);
  /* Fewer passes for many items, smaller tables for few. */
  static const struct {
    int passes, shift[4], bits[4];
  } schemes[2] = {{4, {24, 16, 8, 0}, {8, 8, 8, 8}},
                  {3, {21, 10, 0, 0}, {11, 11, 10, 0}}};
  const int scheme = n >= 2048;
  uint32_t threshold = 0; /* the digits found so far */
  double used = 0;        /* cost of everything above them */
  for (int pass = 0; pass < schemes[scheme].passes; ++pass) {
    const int shift = schemes[scheme].shift[pass];
    const int bits = schemes[scheme].bits[pass];
    double of_digit[2048];
    memset(of_digit, 0, ((size_t)1 << bits) * sizeof(double));
    for (int64_t i = 0; i < n; ++i) {
      uint32_t key = key_of(value[i]);
      if (key && (pass == 0 || key >> (shift + bits) == threshold))
        of_digit[key >> shift & ((1u << bits) - 1)] +=
            cost ? (double)cost[i] : 1.0;
    }
    int digit = (1 << bits) - 1;
    while (digit > 0 && used + of_digit[digit] <= budget)
      used += of_digit[digit--];
    threshold = threshold << bits | (uint32_t)digit;
  }
  for (int64_t i = 0; i < n; ++i) {
    uint32_t key = key_of(value[i]);
    if (!key || key < threshold)
      continue;
    if (key == threshold) {
      double next = used + (cost ? (double)cost[i] : 1.0);
      if (next > budget) {
        used = budget + 1; /* the first that does not fit ends the list */
        continue;
      }
      used = next;
    }
    chosen[i / 64] |= (uint64_t)1 << (i % 64);
  }
}
