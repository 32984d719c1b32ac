/*===- prepare.c - Facts per batch entry from the small inputs ----*- C -*-===*\
|*
|* Key masks become bytes, and per block of keys the knowledge whether all, some
|* or none are visible; segment ids become int32 and per block their range, so
|* that tiles skip blocks without looking at single keys.
|*
\*===----------------------------------------------------------------------===*/
#include "views.h"
#include <string.h>

int64_t pf_read_int(const DLTensor *tensor, int64_t index) {
  const char *data = (const char *)tensor->data + tensor->byte_offset;
  switch (tensor->dtype.bits) {
  case 64:
    return ((const int64_t *)data)[index];
  case 32:
    return ((const int32_t *)data)[index];
  default:
    return ((const uint8_t *)data)[index];
  }
}

int64_t pf_stride_of(const DLTensor *tensor, int dim) {
  if (tensor->shape[dim] <= 1)
    return 0;
  if (tensor->strides)
    return tensor->strides[dim];
  return dim + 1 < tensor->ndim ? tensor->shape[dim + 1] : 1;
}

/* Entry b of a [b] or [] tensor. */
static int64_t read_per_batch(const DLTensor *tensor, int64_t b) {
  return pf_read_int(tensor, tensor->ndim ? b * pf_stride_of(tensor, 0) : 0);
}

/* Bytes 0 and 1, block states, and the first and last visible key. */
static prefill_status prepare_mask(pf_call *call, const DLTensor *mask,
                                   pf_batch *batch) {
  uint8_t *bytes = pf_alloc(call, call->b, call->t);
  uint8_t *states = bytes ? pf_alloc(call, call->b, call->blocks) : NULL;
  if (!states)
    return PREFILL_OUT_OF_MEMORY;
  const int64_t batch_stride = pf_stride_of(mask, 0),
                stride = pf_stride_of(mask, 1);
  for (int64_t b = 0; b < call->b; ++b) {
    uint8_t *row = bytes + b * call->t, *state = states + b * call->blocks;
    pf_batch *entry = &batch[b];
    for (int64_t j = 0; j < call->t; ++j)
      row[j] = pf_read_int(mask, b * batch_stride + j * stride) != 0;
    entry->first_key = entry->kv_len;
    entry->last_key = 0;
    for (int64_t block = 0; block < call->blocks; ++block) {
      /* Keys past kv_len do not count: they are cut off elsewhere. */
      int64_t begin = block * call->bk;
      int64_t end = pf_min(begin + call->bk, entry->kv_len), visible = 0;
      for (int64_t j = begin; j < end; ++j)
        if (row[j]) {
          ++visible;
          entry->first_key = pf_min(entry->first_key, j);
          entry->last_key = j + 1;
        }
      state[block] = visible <= 0             ? PF_BLOCK_HIDDEN
                     : visible == end - begin ? PF_BLOCK_ALL
                                              : PF_BLOCK_SOME;
    }
    entry->key_mask = row;
    entry->state = state;
  }
  return PREFILL_OK;
}

/* A [b, n] tensor of segment ids as int32. */
static prefill_status read_segments(pf_call *call, const DLTensor *tensor,
                                    const char *name, int64_t n, int32_t *out) {
  const int64_t batch_stride = pf_stride_of(tensor, 0);
  const int64_t stride = pf_stride_of(tensor, 1);
  for (int64_t b = 0; b < call->b; ++b)
    for (int64_t i = 0; i < n; ++i) {
      int64_t id = pf_read_int(tensor, b * batch_stride + i * stride);
      if (id < INT32_MIN || id > INT32_MAX)
        return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                       "input %s: expected ids of 32 bits, got %lld", name,
                       (long long)id);
      out[b * n + i] = (int32_t)id;
    }
  return PREFILL_OK;
}

static prefill_status prepare_segments(pf_call *call, const DLTensor *q,
                                       const DLTensor *k, pf_batch *batch) {
  int32_t *of_rows = pf_alloc(call, call->b, call->s * 4);
  int32_t *of_keys = of_rows ? pf_alloc(call, call->b, call->t * 4) : NULL;
  int32_t *ranges = of_keys ? pf_alloc(call, call->b, call->blocks * 8) : NULL;
  if (!ranges)
    return PREFILL_OUT_OF_MEMORY;
  prefill_status status = read_segments(call, q, "Q_SEGMENT", call->s, of_rows);
  if (status ||
      (status = read_segments(call, k, "K_SEGMENT", call->t, of_keys)))
    return status;
  for (int64_t b = 0; b < call->b; ++b) {
    const int32_t *keys = of_keys + b * call->t;
    int32_t *range = ranges + b * call->blocks * 2;
    for (int64_t block = 0; block < call->blocks; ++block) {
      int64_t begin = block * call->bk;
      int64_t end = pf_min(begin + call->bk, call->t);
      int32_t least = keys[begin], greatest = least;
      for (int64_t j = begin + 1; j < end; ++j) {
        least = keys[j] < least ? keys[j] : least;
        greatest = keys[j] > greatest ? keys[j] : greatest;
      }
      range[2 * block] = least;
      range[2 * block + 1] = greatest;
    }
    batch[b].q_segment = of_rows + b * call->s;
    batch[b].k_segment = keys;
    batch[b].block_segment = range;
  }
  return PREFILL_OK;
}

int64_t pf_clamp_offset(const pf_call *call, int64_t offset) {
  int64_t left = call->window ? call->window_left : 0;
  int64_t right = call->causal ? call->window_right : 0;
  int64_t lowest = -(call->s + right + 1), highest = call->t + left + 1;
  return pf_max(lowest, pf_min(offset, highest));
}

prefill_status pf_prepare_batches(pf_call *call, const DLTensor *key_mask,
                                  const DLTensor *kv_lengths,
                                  const DLTensor *q_segment,
                                  const DLTensor *k_segment,
                                  const DLTensor *q_offset,
                                  const DLTensor *modality) {
  const prefill_attention_desc *desc = call->desc;
  pf_batch *batch = pf_alloc(call, call->b, sizeof(pf_batch));
  if (!batch)
    return PREFILL_OUT_OF_MEMORY;
  memset(batch, 0, (size_t)call->b * sizeof(pf_batch));
  call->batch = batch;
  bool negative = false;
  for (int64_t b = 0; b < call->b; ++b) {
    int64_t offset =
        desc->alignment == PREFILL_ALIGN_END ? call->t - call->s : 0;
    if (q_offset)
      offset = read_per_batch(q_offset, b);
    if (call->q_positions || call->segment_starts)
      offset = 0; /* Every piece gets its own. */
    else if (call->rotary && call->s > 0 &&
             (offset < 0 || offset > call->rotary_rows - call->s))
      return pf_fail(call, PREFILL_INVALID_SHAPE,
                     "input COS: has %lld rows, query rows are at positions "
                     "%lld to %lld",
                     (long long)call->rotary_rows, (long long)offset,
                     (long long)(offset + call->s - 1));
    batch[b].offset = pf_clamp_offset(call, offset);
    negative |= batch[b].offset + call->window_right < 0;
    batch[b].kv_len =
        kv_lengths ? pf_max(0, pf_min(read_per_batch(kv_lengths, b), call->t))
                   : call->t;
    batch[b].first_key = 0;
    batch[b].last_key = batch[b].kv_len;
  }
  prefill_status status;
  if (key_mask && (status = prepare_mask(call, key_mask, batch)))
    return status;
  if (q_segment &&
      (status = prepare_segments(call, q_segment, k_segment, batch)))
    return status;
  if ((status = pf_prepare_modalities(call, batch, modality)))
    return status;
  if ((desc->features & PREFILL_TILE_KEY_MASK) &&
      (!key_mask || desc->masked_row == PREFILL_MASKED_SCORES)) {
    const int64_t keys = pf_max(call->t, call->cache_rows);
    uint8_t *ones = pf_alloc(call, keys, 1);
    if (!ones)
      return PREFILL_OUT_OF_MEMORY;
    memset(ones, 1, (size_t)keys);
    call->ones = ones;
  }
  if ((desc->features & PREFILL_TILE_SEGMENTS) && !q_segment) {
    int64_t count = pf_max(call->s, pf_max(call->t, call->cache_rows));
    int32_t *zeros = pf_alloc(call, count, sizeof(int32_t));
    if (!zeros)
      return PREFILL_OUT_OF_MEMORY;
    memset(zeros, 0, (size_t)count * sizeof(int32_t));
    call->zeros = zeros;
  }
  call->may_mask_rows = desc->masked_row != PREFILL_MASKED_ZERO &&
                        call->t > 0 &&
                        (key_mask || kv_lengths || q_segment ||
                         call->bias.data || negative || call->window);
  return PREFILL_OK;
}

/*===-- mean of the values -----------------------------------------------===*/

/* One (batch, KV head): float32 sums in blocks, so that rounding stays small
 * for long sequences. */
static void mean_body(pf_call *call, void *worker, int64_t item) {
  const int64_t b = item / call->hk, h = item % call->hk;
  const char *v =
      call->v.data + (b * call->v.batch + h * call->v.head) * call->element;
  float *mean = (float *)call->value_mean + item * call->e;
  float *partial = worker;
  memset(mean, 0, (size_t)call->e * sizeof(float));
  for (int64_t begin = 0; begin < call->t; begin += 256) {
    const int64_t end = pf_min(begin + 256, call->t);
    memset(partial, 0, (size_t)call->e * sizeof(float));
    for (int64_t j = begin; j < end; ++j)
      call->hot->accumulate(partial, v + j * call->v.row * call->element,
                            call->e, call->desc->dtype);
    call->hot->accumulate(mean, partial, call->e, PREFILL_F32);
  }
  for (int64_t c = 0; c < call->e; ++c)
    mean[c] /= (float)call->t;
}

prefill_status pf_prepare_value_mean(pf_call *call) {
  if (!call->may_mask_rows || call->desc->masked_row != PREFILL_MASKED_MEAN)
    return PREFILL_OK;
  const int64_t heads = call->b * call->hk;
  call->value_mean = pf_alloc(call, heads, call->e * (int64_t)sizeof(float));
  if (!call->value_mean)
    return PREFILL_OUT_OF_MEMORY;
  return pf_parallel(call, heads, (double)heads * (double)(call->t * call->e),
                     call->e * (int64_t)sizeof(float), mean_body);
}
