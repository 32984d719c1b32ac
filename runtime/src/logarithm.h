/*===- logarithm.h - ln without a math library --------------------*- C -*-===*\
|*
|* The same on the CPU and in the kernels of runtime/cuda.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_LOGARITHM_H
#define PREFILL_RUNTIME_LOGARITHM_H

#include <stdint.h>

/* ln(x) of a positive normal number, to about 1e-15; the runtime needs no
 * math library. */
static inline double pf_logarithm(double x) {
  uint64_t bits;
  __builtin_memcpy(&bits, &x, 8);
  int64_t exponent = (int64_t)(bits >> 52) - 1023;
  bits = (bits & 0xfffffffffffff) | (uint64_t)1023 << 52;
  __builtin_memcpy(&x, &bits, 8);
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

#endif
