/*===- estimate_keep.c - Which blocks stay ------------------------*- C -*-===*\
|*
|* From a mass per key block to the blocks that a tile of query rows visits, for
|* every pattern that scores blocks. Forced blocks come first and count; then
|* the others in order of falling mass, of equal ones the lower first, as long
|* as those before hold less than top_p of the sum: the block with which the
|* share is reached is one of them (XAttention's rule, arXiv:2503.16428). Blocks
|* that the guard keeps (estimate_guard.c) are kept besides.
|*
\*===----------------------------------------------------------------------===*/
#include "estimate.h"

/* Does the guard keep the block for every tile? */
static bool guarded(const pf_estimate *head, int64_t block) {
  return head->guard.keys && pf_get_bit(head->guard.keys, block);
}

int64_t pf_list_chosen(const pf_estimate *head, int64_t tile, bool all,
                       int64_t total) {
  const uint8_t *state = head->batch->state;
  pf_head_index *index = head->index;
  const pf_span span = pf_visible_span(head->call, head->b, tile);
  all |= head->guard.tiles && pf_get_bit(head->guard.tiles, tile);
  for (int64_t block = span.begin; block < span.end; ++block) {
    if (state && state[block] == PF_BLOCK_HIDDEN)
      continue;
    if (all || pf_get_bit(head->chosen, block - span.begin) ||
        guarded(head, block))
      index->id[total++] = (uint16_t)block;
  }
  index->row_begin[tile + 1] = total;
  return total;
}

int64_t pf_keep_blocks(const pf_estimate *head, const pf_keep *keep,
                       int64_t tile, float *mass, int64_t total) {
  const pf_call *call = head->call;
  const pf_batch *batch = head->batch;
  uint64_t *chosen = head->chosen;
  const pf_span span = pf_visible_span(call, head->b, tile);
  const int64_t own =
      pf_floor_div(batch->offset + tile * call->bq, call->bk) - keep->near;
  const int64_t n = span.end - span.begin;
  mass += span.begin;
  double budget = 0;
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t block = span.begin + i;
    if ((batch->state && batch->state[block] == PF_BLOCK_HIDDEN) ||
        guarded(head, block))
      mass[i] = 0;
    budget += (double)mass[i];
    finite &= mass[i] - mass[i] == 0;
  }
  budget *= keep->top_p;
  double used = 0;
#define FORCED(block)                                                          \
  ((block) < keep->first || (block) >= own ||                                  \
   (keep->forced && pf_get_bit(keep->forced, block)))
  for (int64_t i = 0; i < n; ++i)
    if (FORCED(span.begin + i)) {
      used += (double)mass[i];
      mass[i] = PF_MINUS_INF; /* not to be chosen again */
    }
  pf_select(mass, mass, n, budget - used, chosen);
  int64_t next = -1;
  for (int64_t i = 0; i < n; ++i)
    if (pf_get_bit(chosen, i))
      used += (double)mass[i];
    else if (mass[i] > 0 && (next < 0 || mass[i] > mass[next]))
      next = i;
  if (used < budget && next >= 0)
    pf_set_bit(chosen, next);
  for (int64_t i = 0; i < n; ++i)
    if (FORCED(span.begin + i))
      pf_set_bit(chosen, i);
#undef FORCED
  return pf_list_chosen(head, tile, !finite, total);
}
