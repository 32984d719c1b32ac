/*===- logarithm.c - exp without a math library -------------------*- C -*-===*/
#include "internal.h"
#include <string.h>

double pf_exponential(double x) {
  if (x != x || x < -708)
    return x < -708 ? 0 : x;
  /* x = exponent ln 2 + rest, |rest| < 0.35; ln 2 in two parts. */
  const int64_t exponent = (int64_t)(x * 1.44269504088896341 - 0.5);
  const double rest = (x - (double)exponent * 0.693147180369123816490) -
                      (double)exponent * 1.90821492927058770002e-10;
  double sum = 1;
  for (int n = 14; n > 0; --n)
    sum = 1 + sum * rest / n;
  const uint64_t bits = (uint64_t)(exponent + 1023) << 52;
  double power;
  memcpy(&power, &bits, 8);
  return sum * power;
}
