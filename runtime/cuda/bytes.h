/*===- bytes.h - Scores of queries and keys in signed bytes -------*- C -*-===*\
|*
|* What runtime/src/quantized.h and quantize.c are to the CPU: rows become
|* integers of up to +-127 (or +-7) with a scale a query row and one a block of
|* keys, and their products are exact. mma.sync m16n8k32 makes them, 32 query
|* rows against 32 keys a warp; a lane has four of the rows.
|*
|* In 64 bytes of a row, the instruction's k is permuted: lane q of four reads
|* bytes 16 q to 16 q + 15 in one piece, words 0 and 1 for one product, 2 and 3
|* for the next. Rows and keys agree in it, so the sums are the same.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_CUDA_BYTES_H
#define PREFILL_RUNTIME_CUDA_BYTES_H

#include "keep.h"

enum {
  BYTE_ROWS = PREFILL_CUDA_BYTE_ROWS,
  KEY_TILES = 4,
  BYTE_KEYS = 8 * KEY_TILES,
  /* Bytes between rows in shared memory beyond those of the row, of which there
   * are a multiple of 128: 16-byte reads of two rows take all banks. */
  ROW_GAP = 64,
  ROW_PITCH = MAX_DIM + ROW_GAP
};
/* A score of the least value, in integers: of keys that a row does not see. */
#define HIDDEN_DOT (-0x40000000)
/* The same in floats, where differences are taken. */
#define HIDDEN_MOST (-1e30f)
/* Scores are finite as long as a score of 1 in bytes is below this. */
#define LARGEST_STEP 1e22f
/* Rows whose elements all stay below this are zeros. */
#define TINY 1e-30f

typedef uint32_t piece __attribute__((ext_vector_type(4)));
typedef float pair __attribute__((ext_vector_type(2)));

/* c += a b: rows of 32 bytes, 16 of a and 8 of b. All lanes take part. */
INLINE void multiply(int32_t *c, uint32_t a0, uint32_t a1, uint32_t a2,
                     uint32_t a3, uint32_t b0, uint32_t b1) {
  __asm__ volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
                   "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                   "{%0, %1, %2, %3};"
                   : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                   : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* Sums of products of BYTE_ROWS rows and `count` keys, of which there are up to
 * BYTE_KEYS, and anything for others: c[r / 2][n][r % 2 * 2 + e] is that of row
 * lane / 4 + 8 r and key 8 n + lane % 4 * 2 + e. at[r]: where that row lies
 * from `rows` on, a multiple of 16 bytes. more: false: rows past the 16th do
 * not count, and have anything. width: bytes of a row, a multiple of 64. */
INLINE void multiply_rows(int32_t c[2][KEY_TILES][4], const uint8_t *rows,
                          const int32_t at[4], bool more, const uint8_t *keys,
                          int width, int count) {
  typedef const __attribute__((address_space(1))) uint8_t *global;
  typedef const __attribute__((address_space(1))) piece *global_piece;
#pragma unroll
  for (int i = 0; i < 8 * KEY_TILES; ++i)
    c[i / 4 / KEY_TILES][i / 4 % KEY_TILES][i % 4] = 0;
  /* A lane reads keys lane / 4 + 8 n, and the one before where that is past the
   * last. */
  const int first = lane() >> 2, mine = count - first;
  const uint8_t *a = rows + (lane() & 3) * 16;
  global b = (global)keys + (mine > 0 ? first : 0) * width + (lane() & 3) * 16;
  int left = width;
#pragma nounroll
  do {
    piece row[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      row[i] = *(const piece *)(a + at[i]);
    global next = b;
#pragma unroll
    for (int n = 0; n < KEY_TILES; ++n) {
      const piece key = *(global_piece)next;
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        if (m == 1 && !more)
          break;
        multiply(c[m][n], row[2 * m].x, row[2 * m + 1].x, row[2 * m].y,
                 row[2 * m + 1].y, key.x, key.y);
        multiply(c[m][n], row[2 * m].z, row[2 * m + 1].z, row[2 * m].w,
                 row[2 * m + 1].w, key.z, key.w);
      }
      if (8 * (n + 1) < mine)
        next += 8 * width;
    }
    a += 64;
    b += 64;
    left -= 64;
  } while (left > 0);
}

/* Element `i` of four by number, without memory. */
INLINE float one_of(const float *four, int i) {
  const float low = i & 1 ? four[1] : four[0];
  const float high = i & 1 ? four[3] : four[2];
  return i & 2 ? high : low;
}

/*===-- which keys count -------------------------------------------------===*/

/* A lane has keys 8 n + lane % 4 * 2 + e of BYTE_KEYS, bit 2 n + e of a word.
 * Those that lie up to `by` after its first one. */
INLINE int keys_up_to(int32_t by) {
  const int at = (by < -1 ? -1 : by > 63 ? 63 : by) + 1;
  return (1 << (at / 8 * 2 + (at % 8 < 2 ? at % 8 : 2))) - 1;
}

/* What each row sees, from the first to the last. */
typedef struct row_range {
  int32_t from[BYTE_ROWS], to[BYTE_ROWS];
} row_range;

/* Bits for hide_others of the lane's rows, of which `live` have a range: of
 * keys from `key` on, the lane's first, that are there and in the range. */
INLINE void keys_in_range(const row_range *range, int live, int32_t key,
                          int there, int sees[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = (int)least((lane() >> 2) + 8 * i, live - 1);
    sees[i] = pinned(there & keys_up_to(range->to[row] - key) &
                     ~keys_up_to(range->from[row] - 1 - key));
  }
}

/* Products of keys whose bit of sees[r] is 0 become HIDDEN_DOT in row r. */
INLINE void hide_others(int32_t c[2][KEY_TILES][4], const int sees[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int mask = pinned(sees[i]);
#pragma unroll
    for (int n = 0; n < 2 * KEY_TILES; ++n) {
      int32_t *dot = &c[i / 2][n / 2][i % 2 * 2 + n % 2];
      *dot = mask >> n & 1 ? *dot : HIDDEN_DOT;
    }
  }
}

/*===-- numbers to bytes -------------------------------------------------===*/

/* The inverse of the step between integers; *scale is the step: NaN where the
 * largest element is no number or infinite. */
INLINE float step_of(float largest, int limit, float *scale) {
  if (largest < TINY) {
    *scale = 0;
    return 0;
  }
  *scale = largest / (float)limit;
  if (largest - largest == 0)
    return (float)limit / largest;
  *scale = __builtin_nanf("");
  return 0;
}
/* |value| as bits, which are ordered as the numbers are, NaN above infinity. */
INLINE uint32_t size_of(float value) {
  return float_to_bits(value) & 0x7fffffff;
}
/* A number of up to 127 in size, rounded to nearest even, as a byte. */
INLINE uint32_t round_byte(float value) {
  return float_to_bits(value + 12582912.0f) & 0xff; /* 1.5 * 2^23 */
}
INLINE int limit_of(const prefill_head_plan *plan) {
  return plan->bits == 4 ? 7 : 127;
}

INLINE uint32_t warp_most(uint32_t value) {
  for (int mask = 16; mask; mask /= 2) {
    const uint32_t other = (uint32_t)shuffle_xor((int)value, mask);
    value = other > value ? other : value;
  }
  return value;
}
INLINE uint32_t block_most(uint32_t value) {
  SHARED uint32_t of_warp[WARPS];
  value = warp_most(value);
  barrier(); /* of_warp may still be read by the call before */
  if (lane() == 0)
    of_warp[warp()] = value;
  barrier();
  for (int w = 0; w < WARPS; ++w)
    value = of_warp[w] > value ? of_warp[w] : value;
  return value;
}
/* Always added in the same order. */
INLINE float warp_sum_f(float value) {
  for (int mask = 16; mask; mask /= 2)
    value += shuffle_xor_f(value, mask);
  return value;
}

/*===-- the keys ---------------------------------------------------------===*/

/* Of KV head b * KV heads + head, in the form that the plan asks for. */
typedef struct byte_keys {
  const uint8_t *bytes; /* [blocks * block_k][byte_width] */
  const float *scale;   /* [blocks] */
} byte_keys;
INLINE byte_keys keys_in_bytes(const args *x, const prefill_head_plan *plan,
                               int b, int h) {
  const int64_t number = kv_number(x, b, h);
  const int form = plan->bits == 4;
  const int64_t size = (int64_t)x->blocks * x->block_k * x->byte_width;
  return (byte_keys){x->key_bytes[form] + number * size,
                     x->key_scale[form] + number * x->blocks};
}

#endif
