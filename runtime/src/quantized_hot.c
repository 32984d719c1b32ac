/*===- quantized_hot.c - Products of signed bytes -----------------*- C -*-===*\
|*
|* CMake compiles this file for x86-64-v2, -v3, and -v4 with AVX-512 VNNI,
|* PF_QUANTIZED naming the table. All three give the same integers:
|*
|*   VNNI    dpbusd takes unsigned times signed bytes; keys are stored + 128,
|*           and sums begin at -128 times the query's sum.
|*   others  pmaddubsw adds two products in 16 bits with saturation. As |q|
|*           times (k with the sign of q) they are at most 2 * 127 * 127 =
|*           32258: never saturated.
|*
|* Keys are broadcast four bytes at a time from where they lie, queries fill the
|* lanes of vectors; a register block of keys x vectors of queries runs over the
|* width.
|*
\*===----------------------------------------------------------------------===*/
#include "quantized.h"
#include <immintrin.h>
#include <string.h>

#if defined(__AVX512VNNI__)
#define WIDTH 16
enum { KEYS = 6, VECTORS = 4, FLIP = 0x80 }; /* 24 sums of 32 registers */
typedef __m512i ivector;
typedef __m512 vector;
#define SPLAT(x) _mm512_set1_epi32(x)
#define LOAD(p) _mm512_loadu_si512(p)
#define STORE(p, v) _mm512_storeu_si512(p, v)
#define MAX(a, b) _mm512_max_epi32(a, b)
#define SUBTRACT(a, b) _mm512_sub_epi32(a, b)
#define TO_FLOAT(a) _mm512_cvtepi32_ps(a)
#define TO_INT(a) _mm512_cvtps_epi32(a)
static inline ivector dot(ivector sum, ivector q, ivector k) {
  return _mm512_dpbusd_epi32(sum, k, q);
}
#elif defined(__AVX2__)
#define WIDTH 8
enum { KEYS = 4, VECTORS = 2, FLIP = 0 }; /* 8 sums of 16 registers */
typedef __m256i ivector;
typedef __m256 vector;
#define SPLAT(x) _mm256_set1_epi32(x)
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define STORE(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define MAX(a, b) _mm256_max_epi32(a, b)
#define SUBTRACT(a, b) _mm256_sub_epi32(a, b)
#define TO_FLOAT(a) _mm256_cvtepi32_ps(a)
#define TO_INT(a) _mm256_cvtps_epi32(a)
static inline ivector dot(ivector sum, ivector q, ivector k) {
  const ivector pairs =
      _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(k, q));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#else
#define WIDTH 4
enum { KEYS = 4, VECTORS = 2, FLIP = 0 };
typedef __m128i ivector;
typedef __m128 vector;
#define SPLAT(x) _mm_set1_epi32(x)
#define LOAD(p) _mm_loadu_si128((const __m128i *)(p))
#define STORE(p, v) _mm_storeu_si128((__m128i *)(p), v)
#define MAX(a, b) _mm_max_epi32(a, b)
#define SUBTRACT(a, b) _mm_sub_epi32(a, b)
#define TO_FLOAT(a) _mm_cvtepi32_ps(a)
#define TO_INT(a) _mm_cvtps_epi32(a)
static inline ivector dot(ivector sum, ivector q, ivector k) {
  const ivector pairs = _mm_maddubs_epi16(_mm_abs_epi8(q), _mm_sign_epi8(k, q));
  return _mm_add_epi32(sum, _mm_madd_epi16(pairs, _mm_set1_epi16(1)));
}
#endif

enum { LANES = PF_QUANTIZED_LANES };

static inline ivector four_bytes(const uint8_t *p) {
  int32_t bytes;
  memcpy(&bytes, p, 4);
  return SPLAT(bytes);
}

/*===-- products ---------------------------------------------------------===*/

/* keys x VECTORS registers of sums. The number of keys is a constant at every
 * call: they stay in registers. */
static inline __attribute__((always_inline)) void
dot_block(int32_t *out, int32_t *most, const int8_t *q, const int32_t *q_sum,
          const uint8_t *k, int64_t groups, int keys) {
  ivector sum[KEYS][VECTORS];
  for (int64_t x = 0; x < VECTORS; ++x) {
    ivector begin = SPLAT(0);
#if defined(__AVX512VNNI__)
    begin = SUBTRACT(begin, _mm512_slli_epi32(LOAD(q_sum + x * WIDTH), 7));
#else
    (void)q_sum;
#endif
    for (int j = 0; j < keys; ++j)
      sum[j][x] = begin;
  }
  for (int64_t g = 0; g < groups; ++g) {
    ivector row[VECTORS];
    for (int64_t x = 0; x < VECTORS; ++x)
      row[x] = LOAD(q + (g * LANES + x * WIDTH) * 4);
    for (int64_t j = 0; j < keys; ++j) {
      const ivector key = four_bytes(k + (j * groups + g) * 4);
      for (int x = 0; x < VECTORS; ++x)
        sum[j][x] = dot(sum[j][x], row[x], key);
    }
  }
  for (int64_t x = 0; x < VECTORS; ++x) {
    ivector greatest = LOAD(most + x * WIDTH);
    for (int j = 0; j < keys; ++j)
      greatest = MAX(greatest, sum[j][x]);
    STORE(most + x * WIDTH, greatest);
  }
  if (out)
    for (int64_t j = 0; j < keys; ++j)
      for (int64_t x = 0; x < VECTORS; ++x)
        STORE(out + j * LANES + x * WIDTH, sum[j][x]);
}

/* The same with out NULL or not known to the compiler. */
static inline __attribute__((always_inline)) void
dot_lanes(int32_t *out, int32_t *most, const int8_t *q, const int32_t *q_sum,
          const uint8_t *k, int64_t groups, int64_t n) {
  for (int64_t lane = 0; lane < LANES; lane += VECTORS * WIDTH) {
    int64_t j = 0;
#define BLOCK(keys)                                                            \
  dot_block(out ? out + j *LANES + lane : NULL, most + lane, q + lane * 4,     \
            q_sum + lane, k + j * groups * 4, groups, keys)
    for (; j + KEYS <= n; j += KEYS)
      BLOCK(KEYS);
    for (; j + 2 <= n; j += 2)
      BLOCK(2);
    if (j < n)
      BLOCK(1);
#undef BLOCK
  }
}

static void dots(int32_t *out, int32_t *most, const int8_t *q,
                 const int32_t *q_sum, const uint8_t *k, int64_t groups,
                 int64_t n) {
  if (out)
    dot_lanes(out, most, q, q_sum, k, groups, n);
  else
    dot_lanes(NULL, most, q, q_sum, k, groups, n);
}

/*===-- softmax ----------------------------------------------------------===*/

typedef float fvector __attribute__((vector_size(4 * WIDTH)));
typedef int32_t bits __attribute__((vector_size(4 * WIDTH)));

/* 2^y for y <= 0, exact at 0, relative error 1e-4; below -125 about 2e-38 or
 * less. */
static inline fvector exp2_of(fvector y) {
#if WIDTH == 16
  const fvector f = (fvector)_mm512_reduce_ps((vector)y, 1); /* y - floor(y) */
  fvector p = f * 0.0770670474f + 0.227644995f;
  p = p * f + 0.695116758f;
  p = p * f + 1.0f;
  return (fvector)_mm512_scalef_ps((vector)p, (vector)y);
#else
  const fvector least = (fvector){0} - 125.0f;
  const bits high = y > least;
  y = (fvector)(((bits)y & high) | ((bits)least & ~high));
  const fvector t = y + 12582912.0f; /* 1.5 * 2^23: rounds to an integer */
  const fvector f = y - (t - 12582912.0f);
  fvector p = f * 0.0550089292f + 0.242210954f;
  p = p * f + 0.693282902f;
  p = p * f + 1.0f;
  return (fvector)((bits)p + ((bits)t << 23));
#endif
}

/* Vectors of rows that are worked on together. */
enum { ACROSS = 2 };

/* Which rows of a vector see a key: all bits, or none. */
static inline bits rows_of(uint64_t visible, int64_t lane) {
  bits bit;
  for (int i = 0; i < WIDTH; ++i)
    bit[i] = 1 << i;
  return (((bits){0} + (int32_t)(uint32_t)(visible >> lane & 0xffff)) & bit) !=
         0;
}
static inline ivector choose(bits mask, ivector a, ivector b) {
  return (ivector)(((bits)a & mask) | ((bits)b & ~mask));
}

static inline __attribute__((always_inline)) void
exp_sum_of(float *sum, const int32_t *dot, const int32_t *most,
           const float *factor, const uint64_t *visible, int64_t n) {
  for (int64_t lane = 0; lane < LANES; lane += ACROSS * WIDTH) {
    ivector top[ACROSS];
    fvector scale[ACROSS], total[ACROSS] = {{0}};
    for (int64_t x = 0; x < ACROSS; ++x) {
      top[x] = LOAD(most + lane + x * WIDTH);
      memcpy(&scale[x], factor + lane + x * WIDTH, sizeof(fvector));
      scale[x] *= 1.44269504088896341f;
    }
    for (int64_t j = 0; j < n; ++j)
      for (int64_t x = 0; x < ACROSS; ++x) {
        const ivector below =
            SUBTRACT(LOAD(dot + j * LANES + lane + x * WIDTH), top[x]);
        fvector p = exp2_of((fvector)TO_FLOAT(below) * scale[x]);
        if (visible)
          p = (fvector)((bits)p & rows_of(visible[j], lane + x * WIDTH));
        total[x] += p;
      }
    for (int64_t x = 0; x < ACROSS; ++x)
      memcpy(sum + lane + x * WIDTH, &total[x], sizeof(fvector));
  }
}

static void exp_sum(float *sum, const int32_t *dot, const int32_t *most,
                    const float *factor, int64_t n) {
  exp_sum_of(sum, dot, most, factor, NULL, n);
}

static void masked_exp_sum(float *sum, int32_t *most, const int32_t *dot,
                           const float *factor, const uint64_t *visible,
                           int64_t n) {
  for (int64_t lane = 0; lane < LANES; lane += WIDTH) {
    ivector top = SPLAT(INT32_MIN);
    for (int64_t j = 0; j < n; ++j)
      top = MAX(top, choose(rows_of(visible[j], lane),
                            LOAD(dot + j * LANES + lane), SPLAT(INT32_MIN)));
    STORE(most + lane, top);
  }
  if (sum)
    exp_sum_of(sum, dot, most, factor, visible, n);
}

static uint64_t above(const int32_t *most, const float *factor, float scale,
                      const float *bound) {
  uint64_t lanes = 0;
  for (int64_t lane = 0; lane < LANES; lane += WIDTH) {
    fvector f, b;
    memcpy(&f, factor + lane, sizeof f);
    memcpy(&b, bound + lane, sizeof b);
    const vector s =
        (vector)((fvector)TO_FLOAT(LOAD(most + lane)) * (f * scale));
    uint64_t bits;
#if WIDTH == 16
    bits = _mm512_cmp_ps_mask(s, (vector)b, _CMP_NLE_UQ);
#elif WIDTH == 8
    bits =
        (uint64_t)_mm256_movemask_ps(_mm256_cmp_ps(s, (vector)b, _CMP_NLE_UQ));
#else
    bits = (uint64_t)_mm_movemask_ps(_mm_cmpnle_ps(s, (vector)b));
#endif
    lanes |= bits << lane;
  }
  return lanes;
}

/*===-- quantisation -----------------------------------------------------===*/

static float largest(const float *x, const float *mean, int64_t n) {
  /* As bits: positive floats are ordered as integers, NaN above infinity. */
  uint32_t most = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float value = x[i] - mean[i];
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits &= 0x7fffffff;
    most = bits > most ? bits : most;
  }
  float result;
  memcpy(&result, &most, 4);
  return result;
}

static void round_bytes(uint8_t *out, const float *x, const float *mean,
                        float inverse, int64_t n, uint8_t flip) {
  int64_t i = 0;
  for (; i + WIDTH <= n; i += WIDTH) {
    fvector value, shift;
    memcpy(&value, x + i, sizeof value);
    memcpy(&shift, mean + i, sizeof shift);
    const ivector rounded = TO_INT((vector)((value - shift) * inverse));
    int32_t lane[WIDTH];
    STORE(lane, rounded);
    for (int c = 0; c < WIDTH; ++c)
      out[i + c] = (uint8_t)lane[c] ^ flip;
  }
  for (; i < n; ++i)
    out[i] =
        (uint8_t)_mm_cvtss_si32(_mm_set_ss((x[i] - mean[i]) * inverse)) ^ flip;
}

const pf_quantized_hot PF_QUANTIZED = {.key_flip = FLIP,
                                       .dots = dots,
                                       .exp_sum = exp_sum,
                                       .masked_exp_sum = masked_exp_sum,
                                       .above = above,
                                       .largest = largest,
                                       .round = round_bytes};
