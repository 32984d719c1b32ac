/*===- mass.h - From scores to masses of blocks -------------------*- C -*-===*\
|*
|* The maxima and sums of exponentials of 32 query rows, block by block, become
|* shares of the rows' softmax and are added up: runtime/src/estimate_shares.c
|* and the second half of estimate_values.c.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_CUDA_MASS_H
#define PREFILL_RUNTIME_CUDA_MASS_H

#include "bytes.h"

/* The least distance of values that counts, as a part of their lengths. */
#define LEAST_APART 0.03125f
enum { STAGED_BLOCKS = 32, OUTPUT_PITCH = BYTE_ROWS + 1 };
/* Memory of the thread block, for one thing after another: query rows in bytes,
 * then shares of some blocks and what the rows' outputs are. */
enum { MASS_BYTES = (MAX_DIM * OUTPUT_PITCH + STAGED_BLOCKS * BYTE_ROWS) * 4 };

/* Scores of BYTE_ROWS rows with the blocks of `s`. */
typedef struct row_shares {
  int b, h, live;      /* rows that there are */
  int first, per_tile; /* number of row 0, rows of a tile */
  span s;
  pair *
      share; /* [blocks][BYTE_ROWS]: maximum, sum relative to it; of the span */
  float *mass; /* [tiles][blocks] of the tile of row number 0 and those after */
} row_shares;

INLINE pair *share_at(const row_shares *r, int64_t block) {
  return r->share + block * BYTE_ROWS + lane();
}

/* share[..].x becomes a lane's part of its row's softmax, times the sum;
 * returns that sum, or what divides by it. of_warp: [WARPS][BYTE_ROWS] of the
 * thread block. top: the greatest maximum of row lane(). */
INLINE float weigh_rows(const row_shares *r, float top, float *of_warp) {
  float total = 0;
  for (int64_t block = r->s.begin + warp(); block < r->s.end; block += WARPS) {
    pair *share = share_at(r, block);
    const pair at = *share;
    float weight = 0;
    if (at.y != 0 && lane() < r->live) /* NaN stays */
      weight = at.y * power((at.x - top) * LOG2E);
    share->x = weight;
    total += weight;
  }
  barrier();
  of_warp[warp() * BYTE_ROWS + lane()] = total;
  barrier();
  total = 0;
  for (int w = 0; w < WARPS; ++w)
    total += of_warp[w * BYTE_ROWS + lane()];
  return total == 0 ? 0 : 1 / total;
}

/* Tiles that rows belong to. */
typedef struct row_tiles {
  int low, high, mine; /* first, last, that of the lane's row */
} row_tiles;
INLINE row_tiles tiles_of(const row_shares *r) {
  return (row_tiles){r->first / r->per_tile,
                     (r->first + r->live - 1) / r->per_tile,
                     (r->first + lane()) / r->per_tile};
}
/* mass[tile][block] = what the tile's rows have, added to that of rows before
 * number r->first. */
INLINE void add_mass(const args *x, const row_shares *r, const row_tiles *t,
                     int64_t block, float part) {
  for (int tile = t->low; tile <= t->high; ++tile) {
    const float mass =
        warp_sum_f(lane() < r->live && tile == t->mine ? part : 0);
    float *to = r->mass + tile * (int64_t)x->blocks + block;
    if (lane() == 0)
      *to = r->first == 0 ? mass : *to + mass;
  }
}

/* Adds the rows' shares to masses; those of rows in `unsound` are infinite. */
INLINE void add_shares(const args *x, const row_shares *r, float inverse,
                       uint32_t unsound) {
  const row_tiles tiles = tiles_of(r);
  for (int64_t block = r->s.begin + warp(); block < r->s.end; block += WARPS) {
    const float share = share_at(r, block)->x * inverse;
    add_mass(x, r, &tiles, block,
             unsound >> lane() & 1 ? __builtin_inff() : share);
  }
}

/* The same with every share times how far the row's output lies from the mean
 * value of the block. memory: MASS_BYTES of the thread block. */
INLINE void add_weighed_shares(const args *x, const row_shares *r,
                               float inverse, char *memory) {
  const int dim = x->v_head_dim, t = thread();
  const int64_t number = kv_number(x, r->b, r->h) * x->blocks;
  const float *values = x->value_mean + number * dim;
  const float *square = x->value_square + number;
  float *output = (float *)memory;                 /* [dim][OUTPUT_PITCH] */
  float *staged = output + MAX_DIM * OUTPUT_PITCH; /* [STAGED][BYTE_ROWS] */
  enum { ITEMS = MAX_DIM * BYTE_ROWS / 8 / THREADS };
  /* Item t + THREADS i is a channel and eight rows. */
  float sum[ITEMS][8];
#pragma unroll
  for (int i = 0; i < 8 * ITEMS; ++i)
    sum[i / 8][i % 8] = 0;
  for (int64_t base = r->s.begin; base < r->s.end; base += STAGED_BLOCKS) {
    const int count = (int)least(STAGED_BLOCKS, r->s.end - base);
    barrier();
    for (int i = warp(); i < count; i += WARPS)
      staged[i * BYTE_ROWS + lane()] = share_at(r, base + i)->x * inverse;
    barrier();
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      const int item = t + THREADS * i;
      if (item >= dim * (BYTE_ROWS / 8))
        continue;
      const float *value = values + base * dim + item % dim;
      const float *part = staged + item / dim * 8;
#pragma nounroll
      for (int at = 0; at < count; ++at) {
        const float mean = value[(int64_t)at * dim];
#pragma unroll
        for (int row = 0; row < 8; ++row)
          sum[i][row] =
              __builtin_fmaf(part[at * BYTE_ROWS + row], mean, sum[i][row]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) {
    const int item = t + THREADS * i;
    if (item < dim * (BYTE_ROWS / 8))
#pragma unroll
      for (int row = 0; row < 8; ++row)
        output[item % dim * OUTPUT_PITCH + item / dim * 8 + row] = sum[i][row];
  }
  barrier();
  float norm = 0;
  for (int c = 0; c < dim; ++c) {
    const float at = output[c * OUTPUT_PITCH + lane()];
    norm = __builtin_fmaf(at, at, norm);
  }
  const row_tiles tiles = tiles_of(r);
  /* Four blocks a warp at a time, so that outputs are read for all of them. */
  typedef float four __attribute__((ext_vector_type(4)));
  for (int64_t base = r->s.begin + warp() * 4; base < r->s.end;
       base += 4 * WARPS) {
    float product[4] = {0, 0, 0, 0};
#pragma nounroll
    for (int c = 0; c < dim; c += 4) {
      float at[4];
#pragma unroll
      for (int e = 0; e < 4; ++e)
        at[e] = output[(c + e) * OUTPUT_PITCH + lane()];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t block = least(base + i, r->s.end - 1);
        const four mean = *(const four *)(values + block * dim + c);
#pragma unroll
        for (int e = 0; e < 4; ++e)
          product[i] = __builtin_fmaf(at[e], mean[e], product[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t block = base + i;
      if (block >= r->s.end)
        break;
      const float sizes = norm + square[block];
      /* Of a row with one block that is nothing but rounding. NaN stays. */
      const float apart = sizes - 2 * product[i];
      const float nearest = sizes * (LEAST_APART * LEAST_APART);
      const float share =
          lane() < r->live ? share_at(r, block)->x * inverse : 0;
      add_mass(x, r, &tiles, block,
               share * __builtin_sqrtf(apart < nearest ? nearest : apart));
    }
  }
}

#endif
