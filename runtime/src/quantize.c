/*===- quantize.c - Queries and keys in signed bytes --------------*- C -*-===*\
|*
|* See quantized.h. Everything here is elementwise or a sum in the order of the
|* keys: the bytes are the same on every machine and with any number of threads.
|*
\*===----------------------------------------------------------------------===*/
#include "quantized.h"
#include <math.h>
#include <string.h>

/* Rows whose elements all stay below this are zeros: the inverse must not
 * overflow. */
#define TINY 1e-30f

const pf_quantized_hot *pf_quantized_for(uint32_t isa) {
  if (isa >= PREFILL_ISA_X86_64_V4 && pf_cpu_vnni())
    return &pf_quantized_vnni;
  return isa >= PREFILL_ISA_X86_64_V3 ? &pf_quantized_v3 : &pf_quantized_v2;
}

int pf_quantized_limit(const prefill_head_plan *plan) {
  return plan->bits == 4 ? 7 : 127;
}

const pf_quantized_keys *pf_quantized_of(const pf_call *call,
                                         const prefill_head_plan *plan) {
  return &call->quantized[plan->bits == 4];
}

/* What the workers of pf_quantize_keys share. */
typedef struct pf_quantization {
  int64_t *kv_heads; /* b * hk + h of those to quantise */
  int64_t count;
  float *mean; /* [count][d] */
  int limit;
  const pf_quantized_keys *keys;
} pf_quantization;

static bool visible(const pf_batch *batch, int64_t j) {
  return j < batch->kv_len && (!batch->key_mask || batch->key_mask[j]);
}

static const char *key_row(const pf_call *call, int64_t kv_head, int64_t j) {
  return call->k.data + (kv_head / call->hk * call->k.batch +
                         kv_head % call->hk * call->k.head + j * call->k.row) *
                            call->element;
}

/* The mean of the visible keys of one KV head. */
static void mean_body(pf_call *call, void *worker, int64_t item) {
  (void)worker;
  const pf_quantization *x = call->quantization;
  const int64_t d = call->d, kv_head = x->kv_heads[item];
  const pf_batch *batch = &call->batch[kv_head / call->hk];
  float *mean = x->mean + item * d;
  memset(mean, 0, (size_t)d * sizeof(float));
  /* Softcaps are no function of differences of scores: nothing may be added. */
  if (call->desc->features & PREFILL_TILE_SOFTCAP && call->desc->softcap > 0)
    return;
  int64_t count = 0;
  for (int64_t j = 0; j < batch->kv_len; ++j)
    if (visible(batch, j)) {
      call->hot->accumulate(mean, key_row(call, kv_head, j), d,
                            call->desc->dtype);
      ++count;
    }
  const float inverse = count ? 1.0f / (float)count : 0.0f;
  for (int64_t c = 0; c < d; ++c)
    mean[c] *= inverse;
}

/* The inverse of the step between integers; *scale is the step. */
static float step_of(float largest, int limit, float *scale) {
  if (largest < TINY) {
    *scale = 0;
    return 0;
  }
  *scale = largest / (float)limit;
  if (largest - largest == 0)
    return (float)limit / largest;
  *scale = NAN;
  return 0;
}

/* One block of keys of one KV head. worker: [bk][d] floats. */
static void block_body(pf_call *call, void *worker, int64_t item) {
  const pf_quantization *x = call->quantization;
  const pf_quantized_hot *hot = call->quantized_hot;
  const int64_t d = call->d, bk = call->bk, width = x->keys->width;
  const int64_t index = item / call->blocks, block = item % call->blocks;
  const int64_t kv_head = x->kv_heads[index];
  const pf_batch *batch = &call->batch[kv_head / call->hk];
  const float *mean = x->mean + index * d;
  float *rows = worker;
  const int64_t begin = block * bk, end = pf_min(begin + bk, call->t);
  float most = 0;
  for (int64_t j = begin; j < end; ++j) {
    if (!visible(batch, j))
      continue;
    float *row = rows + (j - begin) * d;
    call->hot->to_float(row, key_row(call, kv_head, j), 1, d,
                        call->desc->dtype);
    const float largest = hot->largest(row, mean, d);
    if (!(largest <= most))
      most = largest;
    if (!(most - most == 0))
      break;
  }
  float scale;
  const float inverse = step_of(most, x->limit, &scale);
  x->keys->scale[kv_head * call->blocks + block] = scale;
  uint8_t *out = x->keys->bytes + (kv_head * call->blocks + block) * bk * width;
  memset(out, hot->key_flip, (size_t)(bk * width));
  if (inverse == 0)
    return;
  for (int64_t j = begin; j < end; ++j)
    if (visible(batch, j))
      hot->round(out + (j - begin) * width, rows + (j - begin) * d, mean,
                 inverse, d, hot->key_flip);
}

prefill_status pf_quantize_keys(pf_call *call, const int64_t *heads,
                                int64_t count) {
  const int64_t kv_heads = call->b * call->hk;
  call->quantized_hot = pf_quantized_for(call->hot->isa);
  pf_quantization x = {.kv_heads = pf_alloc(call, kv_heads, sizeof(int64_t)),
                       .mean = pf_alloc(call, kv_heads * call->d, 4)};
  if (!x.kv_heads || !x.mean)
    return PREFILL_OUT_OF_MEMORY;
  for (int four = 0; four < 2; ++four) {
    x.count = 0;
    for (int64_t i = 0; i < count; ++i) { /* heads ascend, so do KV heads */
      const int64_t h = heads[i] % call->hq;
      const prefill_head_plan *plan = &call->desc->plan->heads[h];
      const int64_t kv_head = heads[i] / call->hq * call->hk + h / call->group;
      if ((plan->bits == 4) != four ||
          (x.count && x.kv_heads[x.count - 1] == kv_head))
        continue;
      x.limit = pf_quantized_limit(plan);
      x.kv_heads[x.count++] = kv_head;
    }
    if (!x.count)
      continue;
    pf_quantized_keys *keys = &call->quantized[four];
    keys->width = pf_round_up(call->d, 4);
    keys->bytes =
        pf_alloc(call, kv_heads * call->blocks * call->bk, keys->width);
    keys->scale = pf_alloc(call, kv_heads * call->blocks, sizeof(float));
    if (!keys->bytes || !keys->scale)
      return PREFILL_OUT_OF_MEMORY;
    x.keys = keys;
    call->quantization = &x;
    const double elements = (double)x.count * (double)call->t * (double)call->d;
    prefill_status status = pf_parallel(call, x.count, elements, 0, mean_body);
    if (!status)
      status = pf_parallel(call, x.count * call->blocks, 4 * elements,
                           call->bk * call->d * 4, block_body);
    call->quantization = NULL;
    if (status)
      return status;
  }
  return PREFILL_OK;
}

void pf_quantize_query(const pf_call *call, pf_quantized_rows *rows,
                       int64_t lane, const float *row, int64_t n, int limit,
                       const float *zeros, uint8_t *bytes) {
  const pf_quantized_hot *hot = call->quantized_hot;
  const int64_t groups = pf_ceil_div(n, 4);
  float scale;
  const float inverse = step_of(hot->largest(row, zeros, n), limit, &scale);
  if (inverse == 0)
    memset(bytes, 0, (size_t)n);
  else /* factors are not negative: the sign of the scale goes into the row */
    hot->round(bytes, row, zeros, call->scale < 0 ? -inverse : inverse, n, 0);
  int32_t sum = 0;
  for (int64_t c = 0; c < n; ++c)
    sum += (int8_t)bytes[c];
  for (int64_t g = 0; g < groups; ++g)
    memcpy(rows->q + (g * PF_QUANTIZED_LANES + lane) * 4, bytes + g * 4, 4);
  rows->q_sum[lane] = sum;
  rows->factor[lane] = scale * fabsf(call->scale);
}

float pf_largest_scale(const pf_call *call, const pf_quantized_keys *keys,
                       int64_t kv_head) {
  const float *scale = keys->scale + kv_head * call->blocks;
  float largest = 0;
  for (int64_t block = 0; block < call->blocks && largest == largest; ++block)
    if (!(scale[block] <= largest))
      largest = scale[block];
  return largest;
}
