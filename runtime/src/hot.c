/*===- hot.c - Loops compiled once per instruction set ------------*- C -*-===*\
|*
|* CMake compiles this file three times, with -march=x86-64-v2, -v3 and -v4 and
|* PF_HOT naming the table. Vector types are the compiler's own; a vector of 16
|* floats is one register on v4, and the register blocks below fit that.
|* No libm: exp is a polynomial (degree 6 on [-0.5, 0.5], about 2 ulp).
|*
\*===----------------------------------------------------------------------===*/
#include "internal.h"
#include <string.h>
#if defined(__F16C__) || defined(__AVX512DQ__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define WIDTH 16
#define ISA PREFILL_ISA_X86_64_V4
#elif defined(__AVX2__)
#define WIDTH 8
#define ISA PREFILL_ISA_X86_64_V3
#else
#define WIDTH 4
#define ISA PREFILL_ISA_X86_64_V2
#endif

typedef float vector __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef int32_t ivector __attribute__((vector_size(4 * WIDTH), aligned(4)));

static inline vector load(const float *p) { return *(const vector *)p; }
static inline void store(float *p, vector v) { *(vector *)p = v; }
static inline vector splat(float x) {
  vector zero = {0};
  return zero + x;
}
static inline vector blend(ivector mask, vector a, vector b) {
  return (vector)(((ivector)a & mask) | ((ivector)b & ~mask));
}
static inline vector vmax(vector a, vector b) { return blend(a > b, a, b); }

/*===-- conversions ------------------------------------------------------===*/

static inline float bits_to_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
static inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

/* IEEE half to float, denormals and NaNs included; exact, and independent of
 * the flush-to-zero mode. */
static inline float half_to_float(uint16_t h) {
#if defined(__F16C__)
  return _cvtsh_ss(h);
#else
  uint32_t sign = (uint32_t)(h & 0x8000) << 16;
  uint32_t exponent = h >> 10 & 31, mantissa = h & 1023;
  if (exponent == 31)
    return bits_to_float(sign | 0x7f800000 | mantissa << 13);
  if (exponent)
    return bits_to_float(sign | (exponent + 112) << 23 | mantissa << 13);
  float small = (float)mantissa * 0x1p-24f; /* a normal float, or 0 */
  return sign ? -small : small;
#endif
}

/* Rounds to nearest even; overflow gives infinity. */
static inline uint16_t float_to_half(float x) {
#if defined(__F16C__)
  return (uint16_t)_cvtss_sh(x, 0);
#else
  uint32_t bits = float_to_bits(x), sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000)
    return (uint16_t)(sign | 0x7e00 | (bits >> 13 & 0x1ff));
  if (bits >= 0x477ff000) /* rounds past 65504 */
    return (uint16_t)(sign | 0x7c00);
  if (bits < 0x38800000) { /* denormal half: multiples of 2^-24 */
    float scaled = bits_to_float(bits) * 0x1p24f + 0x1p23f;
    return (uint16_t)(sign | (float_to_bits(scaled) & 0x7ff));
  }
  uint32_t rounded = bits + 0xfff + (bits >> 13 & 1);
  return (uint16_t)(sign | ((rounded >> 13) - (112u << 10)));
#endif
}

static inline float bfloat_to_float(uint16_t h) {
  return bits_to_float((uint32_t)h << 16);
}
static inline uint16_t float_to_bfloat(float x) {
  uint32_t bits = float_to_bits(x);
  if ((bits & 0x7fffffff) > 0x7f800000)
    return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void to_float(float *dst, const void *src, int64_t stride, int64_t n,
                     int dtype) {
  const uint16_t *s16 = src;
  const float *s32 = src;
  const uint8_t *s8 = src;
  switch (dtype) {
  case PREFILL_F32:
    if (stride == 1)
      memcpy(dst, src, (size_t)n * 4);
    else
      for (int64_t i = 0; i < n; ++i)
        dst[i] = s32[i * stride];
    return;
  case PREFILL_F16:
    if (stride == 1) {
      int64_t i = 0;
#if defined(__F16C__)
      for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128(
                                      (const __m128i *)(s16 + i))));
#endif
      for (; i < n; ++i)
        dst[i] = half_to_float(s16[i]);
    } else {
      for (int64_t i = 0; i < n; ++i)
        dst[i] = half_to_float(s16[i * stride]);
    }
    return;
  case PREFILL_BF16:
    if (stride == 1)
      for (int64_t i = 0; i < n; ++i)
        dst[i] = bfloat_to_float(s16[i]);
    else
      for (int64_t i = 0; i < n; ++i)
        dst[i] = bfloat_to_float(s16[i * stride]);
    return;
  default:
    if (stride == 1)
      for (int64_t i = 0; i < n; ++i)
        dst[i] = s8[i] ? 0.0f : PF_MINUS_INF;
    else
      for (int64_t i = 0; i < n; ++i)
        dst[i] = s8[i * stride] ? 0.0f : PF_MINUS_INF;
  }
}

static void from_float(void *dst, const float *src, int64_t n, int dtype) {
  uint16_t *d16 = dst;
  if (dtype == PREFILL_F32) {
    memcpy(dst, src, (size_t)n * 4);
  } else if (dtype == PREFILL_F16) {
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8)
      _mm_storeu_si128((__m128i *)(d16 + i),
                       _mm256_cvtps_ph(_mm256_loadu_ps(src + i), 0));
#endif
    for (; i < n; ++i)
      d16[i] = float_to_half(src[i]);
  } else {
    for (int64_t i = 0; i < n; ++i)
      d16[i] = float_to_bfloat(src[i]);
  }
}

static void accumulate(float *restrict dst, const void *restrict src, int64_t n,
                       int dtype) {
  const uint16_t *s16 = src;
  const float *s32 = src;
  if (dtype == PREFILL_F32)
    for (int64_t i = 0; i < n; ++i)
      dst[i] += s32[i];
  else if (dtype == PREFILL_F16)
    for (int64_t i = 0; i < n; ++i)
      dst[i] += half_to_float(s16[i]);
  else
    for (int64_t i = 0; i < n; ++i)
      dst[i] += bfloat_to_float(s16[i]);
}

/*===-- scores -----------------------------------------------------------===*/

/* out[j][lane0 .. lane0 + vectors * WIDTH) for `keys` rows of float32 K. The
 * numbers are constants at every call: the accumulators stay in registers. */
static inline __attribute__((always_inline)) void
score_block(float *out, const float *q, int64_t lanes, int64_t d,
            const float *k, int64_t k_stride, int keys, int vectors) {
  vector sum[8][4];
  for (int j = 0; j < keys; ++j)
    for (int x = 0; x < vectors; ++x)
      sum[j][x] = splat(0);
  for (int64_t c = 0; c < d; ++c) {
    vector row[4];
    for (int64_t x = 0; x < vectors; ++x)
      row[x] = load(q + c * lanes + x * WIDTH);
    for (int j = 0; j < keys; ++j) {
      vector value = splat(k[j * k_stride + c]);
      for (int x = 0; x < vectors; ++x)
        sum[j][x] += value * row[x];
    }
  }
  for (int j = 0; j < keys; ++j)
    for (int64_t x = 0; x < vectors; ++x)
      store(out + j * lanes + x * WIDTH, sum[j][x]);
}

#if WIDTH == 16
enum { KEYS = 6, VECTORS = 4 }; /* 24 accumulators of 32 registers */
#else
enum { KEYS = 4, VECTORS = 2 }; /* 8 accumulators of 16 registers */
#endif

static void score_float(float *out, const float *q, int64_t lanes, int64_t d,
                        const float *k, int64_t k_stride, int64_t n) {
  int64_t lane = 0;
  for (; lane + VECTORS * WIDTH <= lanes; lane += VECTORS * WIDTH) {
    int64_t j = 0;
    for (; j + KEYS <= n; j += KEYS)
      score_block(out + j * lanes + lane, q + lane, lanes, d, k + j * k_stride,
                  k_stride, KEYS, VECTORS);
    for (; j < n; ++j)
      score_block(out + j * lanes + lane, q + lane, lanes, d, k + j * k_stride,
                  k_stride, 1, VECTORS);
  }
  for (; lane + WIDTH <= lanes; lane += WIDTH)
    for (int64_t j = 0; j < n; ++j)
      score_block(out + j * lanes + lane, q + lane, lanes, d, k + j * k_stride,
                  k_stride, 1, 1);
  for (; lane < lanes; ++lane)
    for (int64_t j = 0; j < n; ++j) {
      float sum = 0;
      for (int64_t c = 0; c < d; ++c)
        sum += q[c * lanes + lane] * k[j * k_stride + c];
      out[j * lanes + lane] = sum;
    }
}

static void score(float *out, const float *q, int64_t lanes, int64_t d,
                  const void *k, int64_t k_stride, int64_t n, int dtype) {
  if (dtype == PREFILL_F32) {
    score_float(out, q, lanes, d, k, k_stride, n);
    return;
  }
  /* A few rows at a time as float32 on the stack. */
  enum { BUFFER = 4096 };
  float rows[BUFFER];
  const uint16_t *source = k;
  int64_t at_once = BUFFER / d;
  if (at_once < 1) { /* wider than any model's heads: one element at a time */
    for (int64_t j = 0; j < n; ++j)
      for (int64_t i = 0; i < lanes; ++i) {
        float sum = 0, value;
        for (int64_t c = 0; c < d; ++c) {
          to_float(&value, source + j * k_stride + c, 1, 1, dtype);
          sum += q[c * lanes + i] * value;
        }
        out[j * lanes + i] = sum;
      }
    return;
  }
  for (int64_t j = 0; j < n; j += at_once) {
    int64_t count = pf_min(at_once, n - j);
    for (int64_t r = 0; r < count; ++r)
      to_float(rows + r * d, source + (j + r) * k_stride, 1, d, dtype);
    score_float(out + j * lanes, q, lanes, d, rows, d, count);
  }
}

/*===-- softmax and sums -------------------------------------------------===*/

#if !defined(__AVX512DQ__)
/* exp(x) for x <= 0; below -86 about 2e-38. */
static inline vector exponential_of_number(vector x) {
  vector y = vmax(x * 1.44269504088896341f, splat(-125.0f));
  vector t = y + 12582912.0f; /* 1.5 * 2^23: the integer lands in low bits */
  vector f = y - (t - 12582912.0f);
  vector p = splat(1.535336188319500e-4f); /* Cephes, exp2f */
  p = p * f + 1.339887440266574e-3f;
  p = p * f + 9.618437357674640e-3f;
  p = p * f + 5.550332471162809e-2f;
  p = p * f + 2.402264791363012e-1f;
  p = p * f + 6.931472028550421e-1f;
  p = p * f + 1.0f;
  return (vector)((ivector)p + ((ivector)t << 23));
}
#endif

/* exp(x) for x <= 0, where NaN stays NaN: what is no number must show. */
static inline vector exponential(vector x) {
#if defined(__AVX512DQ__)
  const vector y = x * 1.44269504088896341f;
  /* 2^(y - floor(y)) by a minimax polynomial (relative error 8e-8). */
  const vector f = (vector)_mm512_reduce_ps((__m512)y, 9);
  vector p = splat(1.877576675178903e-3f);
  p = p * f + 8.989340090521493e-3f;
  p = p * f + 5.582631805327807e-2f;
  p = p * f + 2.401536170443785e-1f;
  p = p * f + 6.931530732001692e-1f;
  p = p * f + 0.99999992506352623f;
  return (vector)_mm512_scalef_ps((__m512)p, (__m512)y);
#else
  return blend(x == x, exponential_of_number(x), x);
#endif
}
static inline float exponential1(float x) { return exponential(splat(x))[0]; }

static void row_max(float *m, const float *s, int64_t lanes, int64_t n) {
  int64_t i = 0;
  for (; i + WIDTH <= lanes; i += WIDTH) {
    vector most = load(m + i);
    for (int64_t j = 0; j < n; ++j)
      most = vmax(most, load(s + j * lanes + i));
    store(m + i, most);
  }
  for (; i < lanes; ++i)
    for (int64_t j = 0; j < n; ++j)
      m[i] = s[j * lanes + i] > m[i] ? s[j * lanes + i] : m[i];
}

static void exp_sum(float *l, const float *s, const float *m, int64_t lanes,
                    int64_t n) {
  int64_t i = 0;
  for (; i + WIDTH <= lanes; i += WIDTH) {
    vector most = load(m + i), sum = splat(0), sum1 = splat(0);
    int64_t j = 0;
    for (; j + 2 <= n; j += 2) {
      sum += exponential(load(s + j * lanes + i) - most);
      sum1 += exponential(load(s + (j + 1) * lanes + i) - most);
    }
    if (j < n)
      sum += exponential(load(s + j * lanes + i) - most);
    store(l + i, load(l + i) + (sum + sum1));
  }
  for (; i < lanes; ++i)
    for (int64_t j = 0; j < n; ++j)
      l[i] += exponential1(s[j * lanes + i] - m[i]);
}

static inline __attribute__((always_inline)) void
block_sums_of(float *restrict sum, float *restrict m, const float *restrict s,
              int64_t lanes, int64_t n, int vectors) {
  vector most[4], total[4];
  for (int x = 0; x < vectors; ++x) {
    most[x] = load(m + x * WIDTH);
    total[x] = splat(0);
  }
  for (int64_t j = 0; j < n; ++j)
    for (int x = 0; x < vectors; ++x)
      most[x] = vmax(load(s + j * lanes + x * WIDTH), most[x]);
  for (int64_t j = 0; j < n; ++j)
    for (int x = 0; x < vectors; ++x)
      total[x] += exponential(load(s + j * lanes + x * WIDTH) - most[x]);
  for (int x = 0; x < vectors; ++x) {
    store(m + x * WIDTH, most[x]);
    store(sum + x * WIDTH, total[x]);
  }
}

static void block_sums(float *sum, float *m, const float *s, int64_t lanes,
                       int64_t n) {
  int64_t i = 0;
  for (; i + 4 * WIDTH <= lanes; i += 4 * WIDTH)
    block_sums_of(sum + i, m + i, s + i, lanes, n, 4);
  for (; i + WIDTH <= lanes; i += WIDTH)
    block_sums_of(sum + i, m + i, s + i, lanes, n, 1);
  for (; i < lanes; ++i) {
    for (int64_t j = 0; j < n; ++j)
      m[i] = s[j * lanes + i] > m[i] ? s[j * lanes + i] : m[i];
    sum[i] = 0;
    for (int64_t j = 0; j < n; ++j)
      sum[i] += exponential1(s[j * lanes + i] - m[i]);
  }
}

static void rescale(float *total, float *sum, const float *m, const float *last,
                    int64_t lanes) {
  int64_t i = 0;
  for (; i + WIDTH <= lanes; i += WIDTH) {
    const vector scaled =
        load(sum + i) * exponential(load(m + i) - load(last + i));
    store(sum + i, scaled);
    store(total + i, load(total + i) + scaled);
  }
  for (; i < lanes; ++i) {
    sum[i] *= exponential1(m[i] - last[i]);
    total[i] += sum[i];
  }
}

static inline float horizontal_sum(vector v) {
  float sum[WIDTH];
  store(sum, v);
  for (int width = WIDTH / 2; width; width /= 2)
    for (int i = 0; i < width; ++i)
      sum[i] += sum[i + width];
  return sum[0];
}

static void sums(float *column, float *diagonal, const float *s, const float *m,
                 const float *inv_l, int64_t lanes, int64_t n) {
  for (int64_t j = 0; j < n; ++j, --diagonal) {
    const float *row = s + j * lanes;
    vector sum = splat(0);
    int64_t i = 0;
    for (; i + WIDTH <= lanes; i += WIDTH) {
      const vector inverse = load(inv_l + i);
      vector p = exponential(load(row + i) - load(m + i)) * inverse;
      p = (vector)((ivector)p & (inverse != 0));
      sum += p;
      store(diagonal + i, load(diagonal + i) + p);
    }
    float total = horizontal_sum(sum);
    for (; i < lanes; ++i) {
      float p = inv_l[i] != 0 ? exponential1(row[i] - m[i]) * inv_l[i] : 0.0f;
      total += p;
      diagonal[i] += p;
    }
    column[j] += total;
  }
}

static void softcap(float *s, float cap, int64_t n) {
  /* tanh(x) = sign(x) * (1 - e) / (1 + e) with e = exp(-2 |x|). */
  const float inverse = 1.0f / cap;
  for (int64_t i = 0; i < n; i += WIDTH) {
    vector x = splat(0);
    int64_t count = pf_min(WIDTH, n - i);
    memcpy(&x, s + i, (size_t)count * 4);
    x *= inverse;
    ivector sign = (ivector)x & INT32_MIN;
    vector magnitude = (vector)((ivector)x & INT32_MAX);
    vector e = exponential(magnitude * -2.0f);
    vector t = (1.0f - e) / (1.0f + e) * cap;
    t = (vector)((ivector)t | sign);
    memcpy(s + i, &t, (size_t)count * 4);
  }
}

static void rotate(float *restrict y, const float *restrict x, const float *c,
                   const float *s, const float *c1, const float *s1,
                   int64_t half, int64_t step, int interleaved) {
  if (interleaved) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      y[2 * i] = a * c[step * i] - b * s[step * i];
      y[2 * i + 1] = b * c1[step * i] + a * s1[step * i];
    }
    return;
  }
  int64_t i = 0;
  for (; i + WIDTH <= half; i += WIDTH) {
    const vector a = load(x + i), b = load(x + half + i);
    store(y + i, a * load(c + i) - b * load(s + i));
    store(y + half + i, b * load(c1 + i) + a * load(s1 + i));
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    y[i] = a * c[i] - b * s[i];
    y[half + i] = b * c1[i] + a * s1[i];
  }
}

const pf_hot PF_HOT = {
    .isa = ISA,
    .to_float = to_float,
    .from_float = from_float,
    .accumulate = accumulate,
    .score = score,
    .row_max = row_max,
    .exp_sum = exp_sum,
    .block_sums = block_sums,
    .rescale = rescale,
    .sums = sums,
    .softcap = softcap,
    .rotate = rotate,
};
