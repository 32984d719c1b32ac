/*===- modality.c - What kind of token each key is ----------------*- C -*-===*\
|*
|* The input MODALITY gives an id per key position, any numbers. Here they
|* become 0, 1, ... in ascending order, and the rows of a call are cut into
|* strips of at most bq adjacent rows of one modality (views.h).
|*
\*===----------------------------------------------------------------------===*/
#include "views.h"
#include <string.h>

/* Element (b, j) of a [n], [1, n] or [b, n] tensor. */
static int64_t id_of(const DLTensor *tensor, int64_t b, int64_t j) {
  const int last = tensor->ndim - 1;
  const int64_t batch = last > 0 ? pf_stride_of(tensor, 0) : 0;
  return pf_read_int(tensor, b * batch + j * pf_stride_of(tensor, last));
}

/* Collects the ids, ascending; false if there are more than fit. */
static bool collect_ids(const pf_call *call, const DLTensor *tensor,
                        int64_t *ids, int64_t *count) {
  *count = 0;
  for (int64_t b = 0; b < call->b; ++b)
    for (int64_t j = 0; j < call->t; ++j) {
      const int64_t id = id_of(tensor, b, j);
      int64_t at = 0;
      while (at < *count && ids[at] < id)
        ++at;
      if (at < *count && ids[at] == id)
        continue;
      if (*count == PF_MAX_MODALITIES)
        return false;
      memmove(ids + at + 1, ids + at, (size_t)(*count - at) * sizeof(*ids));
      ids[at] = id;
      ++*count;
    }
  return true;
}

/* Cuts the rows of a batch entry into strips; rows past the keys are of the
 * last key's modality. */
static void cut_rows(const pf_call *call, pf_batch *batch, int64_t *strip) {
  batch->strip = strip;
  int64_t last = -1;
  for (int64_t row = 0; row < call->s; ++row) {
    const int64_t position =
        pf_max(0, pf_min(batch->offset + row, call->t - 1));
    const int64_t kind = batch->modality[position];
    if (kind != last || row - strip[2 * (batch->strips - 1)] == call->bq) {
      strip[2 * batch->strips] = row;
      strip[2 * batch->strips++ + 1] = 0;
    }
    ++strip[2 * (batch->strips - 1) + 1];
    last = kind;
  }
}

prefill_status pf_prepare_modalities(pf_call *call, pf_batch *batch,
                                     const DLTensor *tensor) {
  const prefill_plan *plan = call->desc->plan;
  bool wanted = false;
  for (int64_t h = 0; plan && h < call->hq; ++h)
    wanted |= plan->heads[h].pattern == PREFILL_PATTERN_Q_BOUNDARY ||
              plan->heads[h].pattern == PREFILL_PATTERN_2D_BOUNDARY;
  if (!wanted)
    return PREFILL_OK;
  if (!tensor)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "input MODALITY: expected a tensor, got null");
  /* Of the rows alone: what the keys before them are is not known. */
  if (call->s <= 1 || tensor->shape[tensor->ndim - 1] != call->t)
    return PREFILL_OK;
  int64_t ids[PF_MAX_MODALITIES];
  if (!collect_ids(call, tensor, ids, &call->modalities))
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "input MODALITY: expected at most %d different ids",
                   PF_MAX_MODALITIES);
  uint8_t *kinds = pf_alloc(call, call->b, call->t);
  uint8_t *of_blocks = kinds ? pf_alloc(call, call->b, call->blocks) : NULL;
  int64_t *strips = of_blocks ? pf_alloc(call, call->b, call->s * 16) : NULL;
  if (!strips)
    return PREFILL_OUT_OF_MEMORY;
  memset(of_blocks, 0, (size_t)(call->b * call->blocks));
  for (int64_t b = 0; b < call->b; ++b) {
    batch[b].modality = kinds + b * call->t;
    batch[b].block_modalities = of_blocks + b * call->blocks;
    for (int64_t j = 0; j < call->t; ++j) {
      const int64_t id = id_of(tensor, b, j);
      uint8_t kind = 0;
      while (ids[kind] != id)
        ++kind;
      kinds[b * call->t + j] = kind;
      of_blocks[b * call->blocks + j / call->bk] |= (uint8_t)(1 << kind);
    }
    cut_rows(call, &batch[b], strips + b * call->s * 2);
  }
  return PREFILL_OK;
}
