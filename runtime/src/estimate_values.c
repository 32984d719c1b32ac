/*===- estimate_values.c - Masses that know of the values ---------*- C -*-===*\
|*
|* Leaving out keys that hold the share m of a row's attention moves its output
|* o by m / (1 - m) times (o - u), u being their mean value: keys of large mass
|* whose values are those of the row anyway may go, others of small mass may
|* not. So a block's share of a row is weighed by |o - u|, with the mean of the
|* block's values for u, and for o what shares and means of blocks add up to.
|* (To first order; ours. On SmolLM2 it reaches the perplexity of plain shares
|* with a fifth fewer blocks, and dividing by 1 - m undoes that:
|* docs/SparseDefaults.md. But a block that is all of a row's attention must
|* count: hence LEAST_APART.)
|*
|* Two products with one value a block: 2 / bk of the products of Q and K.
|*
\*===----------------------------------------------------------------------===*/
#include "estimate.h"
#include <string.h>

/* The least distance that counts, as a part of the lengths of o and u. */
#define LEAST_APART 0.03125f

pf_values pf_take_values(const pf_call *call, int64_t lanes, char **at) {
  const int64_t f = sizeof(float);
  pf_values x = {.call = call, .lanes = lanes};
  x.mean = pf_take(at, call->blocks * call->e, f);
  x.across = pf_take(at, call->blocks * call->e, f);
  x.square = pf_take(at, call->blocks, f);
  x.output = pf_take(at, call->e * lanes, f);
  x.norm = pf_take(at, lanes, f);
  x.products = pf_take(at, call->blocks * lanes, f);
  return x;
}

void pf_load_values(pf_values *x, int64_t b, int64_t h) {
  const pf_call *call = x->call;
  const pf_batch *batch = &call->batch[b];
  const int64_t e = call->e;
  const char *v =
      call->v.data +
      (b * call->v.batch + h / call->group * call->v.head) * call->element;
  for (int64_t block = 0; block < call->blocks; ++block) {
    float *mean = x->mean + block * e;
    memset(mean, 0, (size_t)e * sizeof(float));
    int64_t count = 0;
    const int64_t end = pf_min((block + 1) * call->bk, batch->kv_len);
    for (int64_t j = block * call->bk; j < end; ++j)
      if (!batch->key_mask || batch->key_mask[j]) {
        call->hot->accumulate(mean, v + j * call->v.row * call->element, e,
                              call->desc->dtype);
        ++count;
      }
    const float inverse = count ? 1 / (float)count : 0;
    float square = 0;
    for (int64_t c = 0; c < e; ++c) {
      mean[c] *= inverse;
      square += mean[c] * mean[c];
      x->across[c * call->blocks + block] = mean[c];
    }
    x->square[block] = square;
  }
}

void pf_weigh_shares(pf_values *x, float *shares, int64_t first, int64_t end) {
  const pf_call *call = x->call;
  const int64_t lanes = x->lanes, e = call->e, count = end - first;
  shares += first * lanes;
  call->hot->score(x->output, shares, lanes, count, x->across + first,
                   call->blocks, e, PREFILL_F32);
  call->hot->score(x->products, x->output, lanes, e, x->mean + first * e, e,
                   count, PREFILL_F32);
  memset(x->norm, 0, (size_t)lanes * sizeof(float));
  for (int64_t c = 0; c < e; ++c)
    for (int64_t i = 0; i < lanes; ++i)
      x->norm[i] += x->output[c * lanes + i] * x->output[c * lanes + i];
  for (int64_t block = 0; block < count; ++block)
    for (int64_t i = 0; i < lanes; ++i) {
      float *share = &shares[block * lanes + i];
      const float sizes = x->norm[i] + x->square[first + block];
      /* Of a row with one block that is nothing but rounding. NaN stays. */
      const float apart = sizes - 2 * x->products[block * lanes + i];
      const float least = sizes * (LEAST_APART * LEAST_APART);
      *share *= __builtin_sqrtf(apart < least ? least : apart);
    }
}
