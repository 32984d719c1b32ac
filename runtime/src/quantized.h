/*===- quantized.h - Queries and keys in signed bytes -------------*- C -*-===*\
|*
|* For estimates at full resolution (SALE, arXiv:2505.24179): every query row
|* gets a scale, every block of keys another, elements become integers of up to
|* +-127 (8 bits) or +-7 (4 bits, in bytes as well), and a score is
|*
|*   q . k * scale + constant of the row  =  dot * row_scale * block_scale.
|*
|* The constant comes of keys from which their mean is subtracted (smoothing:
|* what all keys share takes no bits); a softmax does not see it.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_QUANTIZED_H
#define PREFILL_RUNTIME_QUANTIZED_H

#include "internal.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Query rows that are scored together. */
enum { PF_QUANTIZED_LANES = 64 };
/* Widest heads: integer scores stay below 2^24, exact as float32, and those of
 * 64 rows in one within 32 bits. */
enum { PF_QUANTIZED_WIDTH = 1024 };
/* Stands for minus infinity where differences are taken. */
#define PF_QUANTIZED_HIDDEN (-1e30f)
/* Scores are smaller than that as long as a score of 1 in bytes is below
 * this. */
#define PF_LARGEST_STEP 1e22f

/* Bits [begin, end) of a word with one for every row; 0 <= begin. */
static inline uint64_t pf_lane_bits(int64_t begin, int64_t end) {
  if (begin >= end)
    return 0;
  const uint64_t below =
      end == PF_QUANTIZED_LANES ? ~(uint64_t)0 : ((uint64_t)1 << end) - 1;
  return below >> begin << begin;
}

/*===-- quantized_hot.c: loops compiled once per instruction set ---------===*/

/* Rows are padded with zeros to groups of four elements. Keys lie row after
 * row, each byte xor key_flip. Queries lie as q[groups][LANES][4]; q_sum[lane]
 * is the sum of a lane's elements. */
typedef struct pf_quantized_hot {
  uint8_t key_flip;
  /* For n keys: most[lane] = max(most[lane], dot), and unless out is NULL
   * out[j * LANES + lane] = dot. Exact, the same in every build. */
  void (*dots)(int32_t *out, int32_t *most, const int8_t *q,
               const int32_t *q_sum, const uint8_t *k, int64_t groups,
               int64_t n);
  /* sum[lane] = sum over n keys of exp((dot - most[lane]) * factor[lane]), to
   * 1.1e-4; factors are not negative. */
  void (*exp_sum)(float *sum, const int32_t *dot, const int32_t *most,
                  const float *factor, int64_t n);
  /* The same of the keys that a row sees, bit `lane` of visible[j]; also finds
   * their maxima: INT32_MIN, and a sum of 0, where there is none. sum may be
   * NULL. */
  void (*masked_exp_sum)(float *sum, int32_t *most, const int32_t *dot,
                         const float *factor, const uint64_t *visible,
                         int64_t n);
  /* Bit `lane` unless most[lane] * factor[lane] * scale <= bound[lane]; set
   * where one of them is NaN. */
  uint64_t (*above)(const int32_t *most, const float *factor, float scale,
                    const float *bound);
  /* The largest |x[i] - mean[i]| of n elements; infinity or NaN if one is. */
  float (*largest)(const float *x, const float *mean, int64_t n);
  /* out[i] = (x[i] - mean[i]) * inverse rounded to nearest even, xor flip. */
  void (*round)(uint8_t *out, const float *x, const float *mean, float inverse,
                int64_t n, uint8_t flip);
} pf_quantized_hot;

extern const pf_quantized_hot pf_quantized_v2,
    pf_quantized_v3,   /* SSSE3, AVX2 */
    pf_quantized_vnni; /* AVX-512 */
/* The best table for an instruction set level of this machine. */
const pf_quantized_hot *pf_quantized_for(uint32_t isa);

/*===-- quantize.c -------------------------------------------------------===*/

typedef struct pf_quantized_keys pf_quantized_keys; /* internal.h */

/* Quantises the keys for heads[0 .. count) (b * hq + h), once per KV head and
 * number of bits that their plans ask for, into call->quantized. */
prefill_status pf_quantize_keys(pf_call *call, const int64_t *heads,
                                int64_t count);
/* Keys of a head's plan. */
const pf_quantized_keys *pf_quantized_of(const pf_call *call,
                                         const prefill_head_plan *plan);
/* 127 or 7. */
int pf_quantized_limit(const prefill_head_plan *plan);

/* Up to LANES query rows. */
typedef struct pf_quantized_rows {
  int8_t *q;                         /* [width / 4][LANES][4] */
  int32_t q_sum[PF_QUANTIZED_LANES]; /* sums of the elements */
  float factor[PF_QUANTIZED_LANES];  /* of a dot; NaN: the row is not finite */
} pf_quantized_rows;
/* Quantises one row of n elements (float32, without mean), times the call's
 * scale, into a lane. bytes: n rounded up to 4 bytes of scratch, zero past n.
 */
void pf_quantize_query(const pf_call *call, pf_quantized_rows *rows,
                       int64_t lane, const float *row, int64_t n, int limit,
                       const float *zeros, uint8_t *bytes);
/* The largest scale of the keys of a KV head (b * hk + h); NaN if one is. */
float pf_largest_scale(const pf_call *call, const pf_quantized_keys *keys,
                       int64_t kv_head);

#ifdef __cplusplus
}
#endif
#endif
