/*===- logarithm.c - ln and exp without a math library ------------*- C -*-===*/
#include "internal.h"
#include <string.h>

double pf_logarithm(double x) {
  uint64_t bits;
  memcpy(&bits, &x, 8);
  int64_t exponent = (int64_t)(bits >> 52) - 1023;
  bits = (bits & 0xfffffffffffff) | (uint64_t)1023 << 52;
  memcpy(&x, &bits, 8);
  if (x > 1.41421356237309505) {
    x /= 2;
    ++exponent;
  }
  /* log(x) = 2 artanh(z), and |z| < 0.172. */
  const double z = (x - 1) / (x + 1), zz = z * z;
  double sum = 0;
  for (int n = 17; n > 0; n -= 2)
    sum = sum * zz + 1.0 / n;
  return 2 * z * sum + (double)exponent * 0.693147180559945309;
}

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
