/*===- halves.h - Scores of queries and keys as they are ----------*- C -*-===*\
|*
|* Products of 16-bit rows by mma.sync m16n8k16 with sums in float, 32 query
rows
|* against 32 keys a warp, laid out as those of bytes.h: a step of the
|* instruction is 32 bytes of a row in both, so the same permutation of k
serves.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_CUDA_HALVES_H
#define PREFILL_RUNTIME_CUDA_HALVES_H

#include "bytes.h"

/* Memory of the thread block for BYTE_ROWS query rows. */
enum { HALVES_BYTES = BYTE_ROWS * (2 * MAX_DIM + ROW_GAP) };

/* Bytes of a row that products read, and from one to the next: 16-byte reads of
 * two rows take all banks. */
INLINE int half_width(const args *x) {
  return (int)ceil_div(x->head_dim, 32) * 64;
}
INLINE int half_pitch(const args *x) { return half_width(x) / 128 * 128 + 64; }

/* Query row i becomes that of q, NULL: zeros. By one warp. */
INLINE void copy_half_row(const args *x, uint8_t *rows, int i,
                          const uint16_t *q) {
  uint8_t *to = rows + i * half_pitch(x);
  for (int at = lane(); at < half_width(x) / 16; at += 32) {
    piece value = 0;
    if (q && at * 8 < x->head_dim)
      value = *(const piece *)(q + at * 8);
    *(piece *)(to + at * 16) = value;
  }
}

/* c += a b: rows of 16 elements, 16 of a and 8 of b. All lanes take part. */
INLINE void multiply_halves(bool bf16, float *c, uint32_t a0, uint32_t a1,
                            uint32_t a2, uint32_t a3, uint32_t b0,
                            uint32_t b1) {
#define MULTIPLY(type)                                                         \
  __asm__ volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type      \
                   ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "       \
                   "{%0, %1, %2, %3};"                                         \
                   : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])            \
                   : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1))
  if (bf16)
    MULTIPLY("bf16");
  else
    MULTIPLY("f16");
#undef MULTIPLY
}

INLINE void add_products(const args *x, bool bf16, float c[2][KEY_TILES][4],
                         const uint8_t *rows, bool more, const uint16_t *keys,
                         int64_t stride, int count) {
  typedef const __attribute__((address_space(1))) uint8_t *global;
  typedef const __attribute__((address_space(1))) piece *global_piece;
  /* A lane reads keys lane / 4 + 8 n, and the one before where that is past the
   * last. */
  const int first = lane() >> 2, mine = count - first, pitch = half_pitch(x);
  const uint8_t *a = rows + first * pitch + (lane() & 3) * 16;
  global b =
      (global)(keys + (mine > 0 ? first : 0) * stride) + (lane() & 3) * 16;
  int left = 2 * x->head_dim;
#pragma nounroll
  do {
    piece row[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      row[i] = *(const piece *)(a + 8 * i * pitch);
    global next = b;
#pragma unroll
    for (int n = 0; n < KEY_TILES; ++n) {
      piece key = 0;
      if ((lane() & 3) * 16 < left)
        key = *(global_piece)next;
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        if (m == 1 && !more)
          break;
        multiply_halves(bf16, c[m][n], row[2 * m].x, row[2 * m + 1].x,
                        row[2 * m].y, row[2 * m + 1].y, key.x, key.y);
        multiply_halves(bf16, c[m][n], row[2 * m].z, row[2 * m + 1].z,
                        row[2 * m].w, row[2 * m + 1].w, key.z, key.w);
      }
      if (8 * (n + 1) < mine)
        next += 16 * stride;
    }
    a += 64;
    b += 64;
    left -= 64;
  } while (left > 0);
}

INLINE void clear_products(float c[2][KEY_TILES][4]) {
#pragma unroll
  for (int i = 0; i < 8 * KEY_TILES; ++i)
    c[i / 4 / KEY_TILES][i / 4 % KEY_TILES][i % 4] = 0;
}

/* Adds the products of BYTE_ROWS rows and `count` keys, of which there are up
 * to BYTE_KEYS, and anything for others; c as multiply_rows says. more: false:
 * rows past the 16th do not count. stride: elements from a key to the next. */
INLINE void multiply_half_rows(const args *x, float c[2][KEY_TILES][4],
                               const uint8_t *rows, bool more,
                               const uint16_t *keys, int64_t stride,
                               int count) {
  if (x->dtype == PREFILL_BF16)
    add_products(x, true, c, rows, more, keys, stride, count);
  else
    add_products(x, false, c, rows, more, keys, stride, count);
}

/* Products become scores, HIDDEN_SCORE where the bit of sees[r] is 0. */
INLINE void score_products(const args *x, float c[2][KEY_TILES][4],
                           const int sees[4]) {
  const float rate = x->softcap > 0 ? 2 * LOG2E / x->softcap : 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int mask = pinned(sees[i]);
#pragma unroll
    for (int n = 0; n < 2 * KEY_TILES; ++n) {
      float *score = &c[i / 2][n / 2][i % 2 * 2 + n % 2];
      float value = *score * x->scale;
      if (x->softcap > 0)
        value = cap_fast(x, value, rate);
      *score = mask >> n & 1 ? value : HIDDEN_SCORE;
    }
  }
}

/* Adds the lane's 8 scores of row i to a maximum and a sum of exponentials
 * relative to it, which is NaN from a score on that is NaN or infinite. While
 * all scores are hidden, sums hold numbers without meaning. */
INLINE void add_scores(float c[2][KEY_TILES][4], int i, float *greatest,
                       float *sum) {
  float top = *greatest;
#pragma unroll
  for (int n = 0; n < 2 * KEY_TILES; ++n) {
    const float score = c[i / 2][n / 2][i % 2 * 2 + n % 2];
    top = score > top ? score : top;
  }
  float total = *sum * power((*greatest - top) * LOG2E);
#pragma unroll
  for (int n = 0; n < 2 * KEY_TILES; ++n)
    total += power((c[i / 2][n / 2][i % 2 * 2 + n % 2] - top) * LOG2E);
  *greatest = top;
  *sum = total;
}
/* The same of the four lanes that have a row's scores, for each of them; 0 of a
 * row without a score. */
INLINE void merge_scores(float *greatest, float *sum) {
  float top = *greatest;
  for (int mask = 1; mask < 4; mask *= 2) {
    const float other = shuffle_xor_f(top, mask);
    top = other > top ? other : top;
  }
  float total = *sum * power((*greatest - top) * LOG2E);
  for (int mask = 1; mask < 4; mask *= 2)
    total += shuffle_xor_f(total, mask);
  *greatest = top;
  *sum = top > HIDDEN_SCORE || total != total ? total : 0;
}

#endif
