/*===- cache.c - Keys and values of earlier calls -----------------*- C -*-===*\
|*
|* A call with CACHE_SLOTS has the keys and values of its segments' earlier rows
|* in a cache: one buffer for all requests, in which every segment has rows of
|* its own (chunked prefill and hybrid batches, SARATHI, arXiv:2308.16369). The
|* new rows are written behind them, and attention reads nothing but the cache.
|* Where the host binds input and output to the same memory, a call costs its
|* new rows and not the cache. KEPT_ROWS takes some of the new rows out again
|* when the call is done (QuickPrefill).
|*
\*===----------------------------------------------------------------------===*/
#include "internal.h"
#include <string.h>

static int64_t slot_entry(const pf_call *call, int64_t segment, int column) {
  const DLTensor *tensor = call->cache_slots;
  return pf_read_int(tensor, segment * pf_stride_of(tensor, 0) +
                                 column * pf_stride_of(tensor, 1));
}

pf_slot pf_slot_of(const pf_call *call, int64_t segment) {
  const int64_t begin = pf_segment_start(call, segment);
  return (pf_slot){.row = slot_entry(call, segment, 0),
                   .held = slot_entry(call, segment, 1),
                   .added = pf_segment_start(call, segment + 1) - begin};
}

prefill_status pf_check_cache_rows(const pf_call *call, const char *input,
                                   int64_t segment, int64_t row,
                                   int64_t count) {
  if (row >= 0 && count >= 0 && row <= call->cache_rows &&
      count <= call->cache_rows - row)
    return PREFILL_OK;
  return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                 "input %s: segment %lld: expected rows of a cache with %lld, "
                 "got %lld from row %lld on",
                 input, (long long)segment, (long long)call->cache_rows,
                 (long long)count, (long long)row);
}

static prefill_status check_slots(const pf_call *call) {
  const int64_t count = call->segment_starts->shape[0] - 1;
  for (int64_t i = 0; i < count; ++i) {
    const pf_slot slot = pf_slot_of(call, i);
    const prefill_status status =
        pf_check_cache_rows(call, "CACHE_SLOTS", i, slot.row, slot.held);
    if (status)
      return status;
    if (slot.added > call->cache_rows - slot.row - slot.held)
      return pf_fail(
          call, PREFILL_INVALID_ARGUMENT,
          "input CACHE_SLOTS: segment %lld: its %lld new rows do not "
          "fit: %lld rows from row %lld on, the cache has %lld",
          (long long)i, (long long)slot.added,
          (long long)(slot.held + slot.added), (long long)slot.row,
          (long long)call->cache_rows);
    for (int64_t j = 0; j < i; ++j) {
      const pf_slot other = pf_slot_of(call, j);
      if (slot.row < other.row + other.held + other.added &&
          other.row < slot.row + slot.held + slot.added)
        return pf_fail(
            call, PREFILL_INVALID_ARGUMENT,
            "input CACHE_SLOTS: segments %lld and %lld share rows of "
            "the cache",
            (long long)j, (long long)i);
    }
  }
  return PREFILL_OK;
}

/* Where a tensor's elements begin and end. */
static void extent(const pf_call *call, const pf_rows *rows, int64_t width,
                   uintptr_t *begin, uintptr_t *end) {
  const int64_t last = (call->hk - 1) * rows->head +
                       pf_max(call->cache_rows - 1, 0) * rows->row + width;
  *begin = (uintptr_t)rows->data;
  *end = *begin + (uintptr_t)(last * call->element);
}

/* Copies the cache where it is to be in other memory. */
static prefill_status move_cache(const pf_call *call, const pf_rows *past,
                                 const pf_rows *present, int64_t width,
                                 const char *name) {
  if (past->data == present->data && past->head == present->head &&
      past->row == present->row)
    return PREFILL_OK;
  uintptr_t begin, end, to_begin, to_end;
  extent(call, past, width, &begin, &end);
  extent(call, present, width, &to_begin, &to_end);
  if (begin < to_end && to_begin < end)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "output PRESENT_%s: expected the memory of PAST_%s or other "
                   "memory, got some of it",
                   name, name);
  for (int64_t h = 0; h < call->hk; ++h)
    for (int64_t j = 0; j < call->cache_rows; ++j)
      memcpy(present->data +
                 (h * present->head + j * present->row) * call->element,
             past->data + (h * past->head + j * past->row) * call->element,
             (size_t)(width * call->element));
  return PREFILL_OK;
}

/* Copies the new rows of a segment behind those it holds. */
static void append(const pf_call *call, const pf_rows *added, int64_t begin,
                   const pf_slot *slot, const pf_rows *present, int64_t width) {
  for (int64_t h = 0; h < call->hk; ++h)
    for (int64_t j = 0; j < slot->added; ++j)
      memcpy(present->data + (h * present->head +
                              (slot->row + slot->held + j) * present->row) *
                                 call->element,
             added->data +
                 (h * added->head + (begin + j) * added->row) * call->element,
             (size_t)(width * call->element));
}

static int64_t kept_count(const pf_call *call) {
  return call->kept_rows->shape[call->kept_rows->ndim - 1];
}

static int64_t kept_row(const pf_call *call, int64_t i) {
  const DLTensor *tensor = call->kept_rows;
  return pf_read_int(tensor, i * pf_stride_of(tensor, tensor->ndim - 1));
}

static prefill_status check_kept(const pf_call *call) {
  int64_t last = -1;
  for (int64_t i = 0; call->kept_rows && i < kept_count(call); ++i) {
    const int64_t row = kept_row(call, i);
    if (row <= last || row >= call->t)
      return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                     "input KEPT_ROWS: expected ascending rows from 0 to %lld, "
                     "got %lld at place %lld",
                     (long long)(call->t - 1), (long long)row, (long long)i);
    last = row;
  }
  return PREFILL_OK;
}

/* Moves new row `from` of a segment to the place of its new row `to`, which is
 * not behind it. */
static void move_up(const pf_call *call, const pf_slot *slot, int64_t from,
                    int64_t to, const pf_rows *present, int64_t width) {
  const int64_t first = slot->row + slot->held;
  for (int64_t h = 0; h < call->hk && to != from; ++h) {
    char *head = present->data + h * present->head * call->element;
    memcpy(head + (first + to) * present->row * call->element,
           head + (first + from) * present->row * call->element,
           (size_t)(width * call->element));
  }
}

void pf_keep_in_cache(const pf_call *call) {
  const int64_t count = call->segment_starts->shape[0] - 1;
  int64_t i = 0;
  for (int64_t segment = 0; segment < count; ++segment) {
    const pf_slot slot = pf_slot_of(call, segment);
    const int64_t begin = pf_segment_start(call, segment);
    for (int64_t to = 0;
         i < kept_count(call) && kept_row(call, i) < begin + slot.added;
         ++i, ++to) {
      const int64_t from = kept_row(call, i) - begin;
      move_up(call, &slot, from, to, &call->present_k, call->d);
      move_up(call, &slot, from, to, &call->present_v, call->e);
    }
  }
}

prefill_status pf_append_to_cache(pf_call *call) {
  prefill_status status = check_slots(call);
  if (status || (status = check_kept(call)) ||
      (status =
           move_cache(call, &call->past_k, &call->present_k, call->d, "K")) ||
      (status =
           move_cache(call, &call->past_v, &call->present_v, call->e, "V")))
    return status;
  const int64_t count = call->segment_starts->shape[0] - 1;
  for (int64_t i = 0; i < count; ++i) {
    const pf_slot slot = pf_slot_of(call, i);
    const int64_t begin = pf_segment_start(call, i);
    append(call, &call->k, begin, &slot, &call->present_k, call->d);
    append(call, &call->v, begin, &slot, &call->present_v, call->e);
  }
  call->k = call->present_k;
  call->v = call->present_v;
  return PREFILL_OK;
}
