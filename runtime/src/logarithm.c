/*===- logarithm.c - ln without a math library --------------------*- C -*-===*/
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
