/*===- estimate_guard.c - Blocks that one mean does not stand for -*- C -*-===*\
|*
|* SpargeAttn's guard (arXiv:2502.18137). The mean cosine of all pairs of a
|* block's rows, each with itself included, is |sum of x / |x||^2 / n^2, where
|* the mean of all visible keys is subtracted from keys first: what they share
|* is no likeness. Blocks of keys below `similarity` stay for every tile, tiles
|* of queries below it visit everything; what selects among the others leaves
|* those out.
|*
\*===----------------------------------------------------------------------===*/
#include "estimate.h"
#include <string.h>

/* Rows of one block, one after the other. */
typedef struct rows {
  const pf_call *call;
  float *sum, *row, *mean, *rotary;
  char *rotated;
  int64_t count;
} rows;

static rows lay_out(const pf_call *call, char **at) {
  rows x = {.call = call};
  x.sum = pf_take(at, call->d, sizeof(float));
  x.row = pf_take(at, call->d, sizeof(float));
  x.mean = pf_take(at, call->d, sizeof(float));
  x.rotated = pf_take(at, call->rotary ? call->d : 0, call->element);
  x.rotary = pf_take(at, call->rotary ? 2 * (call->d + call->rotary_width) : 0,
                     sizeof(float));
  return x;
}

int64_t pf_guard_bytes(const pf_call *call) {
  static char anchor[1];
  char *at = anchor;
  pf_take(&at, pf_words(call->blocks), sizeof(uint64_t));
  pf_take(&at, pf_words(call->tiles), sizeof(uint64_t));
  lay_out(call, &at);
  return at - anchor;
}

/* Adds a row, less x->mean. */
static void add(rows *x, const char *source) {
  const int64_t d = x->call->d;
  x->call->hot->to_float(x->row, source, 1, d, x->call->desc->dtype);
  float square = 0;
  for (int64_t c = 0; c < d; ++c) {
    x->row[c] -= x->mean[c];
    square += x->row[c] * x->row[c];
  }
  /* A row of zeros is like nothing. */
  const float inverse = square == 0 ? 0 : 1 / __builtin_sqrtf(square);
  for (int64_t c = 0; c < d; ++c)
    x->sum[c] += x->row[c] * inverse;
  ++x->count;
}

/* Is the block less alike than that? Also where it is no number. */
static bool differs(const rows *x, float similarity) {
  float square = 0;
  for (int64_t c = 0; c < x->call->d; ++c)
    square += x->sum[c] * x->sum[c];
  const float count = (float)x->count;
  return x->count && !(square / (count * count) >= similarity);
}

pf_guard pf_guard_of(const pf_call *call, int64_t b, int64_t h,
                     float similarity, char *memory) {
  const pf_batch *batch = &call->batch[b];
  char *at = memory;
  uint64_t *keys = pf_take(&at, pf_words(call->blocks), sizeof(uint64_t));
  uint64_t *tiles = pf_take(&at, pf_words(call->tiles), sizeof(uint64_t));
  rows x = lay_out(call, &at);
  const int64_t bytes = call->d * (int64_t)sizeof(float);
  memset(keys, 0, (size_t)pf_words(call->blocks) * 8);
  memset(tiles, 0, (size_t)pf_words(call->tiles) * 8);
  const char *k =
      call->k.data +
      (b * call->k.batch + h / call->group * call->k.head) * call->element;
  const int64_t step = call->k.row * call->element;
  memset(x.mean, 0, (size_t)bytes);
  for (int64_t j = 0; j < batch->kv_len; ++j)
    if (!batch->key_mask || batch->key_mask[j]) {
      call->hot->accumulate(x.mean, k + j * step, call->d, call->desc->dtype);
      ++x.count;
    }
  for (int64_t c = 0; c < call->d && x.count; ++c)
    x.mean[c] /= (float)x.count;
  for (int64_t block = 0; block < call->blocks; ++block) {
    memset(x.sum, 0, (size_t)bytes);
    x.count = 0;
    const int64_t end = pf_min((block + 1) * call->bk, batch->kv_len);
    for (int64_t j = block * call->bk; j < end; ++j)
      if (!batch->key_mask || batch->key_mask[j])
        add(&x, k + j * step);
    if (differs(&x, similarity))
      pf_set_bit(keys, block);
  }
  memset(x.mean, 0, (size_t)bytes);
  const char *q =
      call->q.data + (b * call->q.batch + h * call->q.head) * call->element;
  for (int64_t tile = 0; tile < call->tiles; ++tile) {
    memset(x.sum, 0, (size_t)bytes);
    x.count = 0;
    const int64_t end = pf_min((tile + 1) * call->bq, call->s);
    for (int64_t i = tile * call->bq; i < end; ++i) {
      if (call->rotary)
        pf_rotate_queries(call, b, h, i, 1, x.rotated, x.rotary);
      add(&x, call->rotary ? x.rotated : q + i * call->q.row * call->element);
    }
    if (differs(&x, similarity))
      pf_set_bit(tiles, tile);
  }
  return (pf_guard){.keys = keys, .tiles = tiles};
}
