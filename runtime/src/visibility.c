/*===- visibility.c - Which key blocks a tile of rows visits ------*- C -*-===*\
|*
|* The masks that are functions of positions (causal, windows, number of keys)
|* are intervals of blocks per tile; key masks and segments are facts per block.
|*
\*===----------------------------------------------------------------------===*/
#include "internal.h"

pf_span pf_visible_span(const pf_call *call, int64_t b, int64_t tile) {
  const int64_t row = tile * call->bq, rows = pf_min(call->bq, call->s - row);
  const pf_batch *batch = &call->batch[b];
  const int64_t first = batch->offset + row, last = first + rows - 1;
  /* Keys seen by some row are in [low, high), by every row in
   * [all_low, all_high). */
  int64_t low = 0, high = batch->kv_len, all_low = 0, all_high = high;
  if (call->causal) {
    high = pf_min(high, last + call->window_right + 1);
    all_high = pf_min(all_high, first + call->window_right + 1);
  }
  if (call->window) {
    low = pf_max(0, first - call->window_left);
    all_low = pf_max(0, last - call->window_left);
  }
  pf_span span = {.position = first};
  if (high <= low)
    return span;
  span.begin = low / call->bk;
  span.end = pf_ceil_div(high, call->bk);
  span.full_begin = pf_ceil_div(all_low, call->bk);
  span.full_end = all_high > 0 ? all_high / call->bk : 0;
  return span;
}

int64_t pf_count_visible(const pf_call *call, int64_t b, const pf_span *span) {
  const uint8_t *state = call->batch[b].state;
  int64_t count = span->end - span->begin;
  if (state)
    for (int64_t block = span->begin; block < span->end; ++block)
      count -= state[block] == PF_BLOCK_HIDDEN;
  return count;
}

int64_t pf_list_blocks(const pf_call *call, int64_t b, int64_t row,
                       int64_t rows, const pf_span *span, const uint64_t *kept,
                       const uint8_t *bias_state, uint32_t *out,
                       int64_t *full_count) {
  const pf_batch *batch = &call->batch[b];
  const bool segments = batch->q_segment != NULL;
  /* A bias that is not known to be 0 or -inf has to be added everywhere. */
  const bool always_partial = call->bias.data && !bias_state;
  int32_t least = 0, greatest = 0;
  if (segments) {
    least = greatest = batch->q_segment[row];
    for (int64_t i = row + 1; i < row + rows; ++i) {
      int32_t id = batch->q_segment[i];
      least = id < least ? id : least;
      greatest = id > greatest ? id : greatest;
    }
  }
  int64_t full = 0, count = 0;
  for (int pass = 0; pass < 2; ++pass) {
    for (int64_t block = span->begin; block < span->end; ++block) {
      if (kept && !(kept[block / 64] >> (block % 64) & 1))
        continue;
      bool whole = block >= span->full_begin && block < span->full_end &&
                   !always_partial;
      if (batch->state) {
        if (batch->state[block] == PF_BLOCK_HIDDEN)
          continue;
        whole &= batch->state[block] == PF_BLOCK_ALL;
      }
      if (bias_state) {
        if (bias_state[block] == PF_BLOCK_HIDDEN)
          continue;
        whole &= bias_state[block] == PF_BLOCK_ALL;
      }
      if (segments) {
        int32_t low = batch->block_segment[2 * block];
        int32_t high = batch->block_segment[2 * block + 1];
        if (high < least || low > greatest)
          continue;
        whole &= low == high && least == greatest;
      }
      if (whole == (pass == 0))
        out[count++] = (uint32_t)block;
    }
    if (pass == 0)
      full = count;
  }
  *full_count = full;
  return count;
}
