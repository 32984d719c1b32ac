/*===- keep.c - The blocks of heads with masses -------------------*- C -*-===*/
#include "keep.h"

/* Grid: tiles, heads, batch. */
KERNEL prefill_index_select_mass(args x) {
  SHARED uint32_t chosen[MAX_BLOCKS / 32 + 2];
  const int64_t tile = block_x();
  const int h = block_y(), b = block_z();
  const prefill_head_plan *plan = &x.plans[h];
  const bool sale = plan->pattern == PREFILL_PATTERN_SALE;
  const bool sampled = plan->pattern == PREFILL_PATTERN_SAMPLED;
  if ((!sale && !sampled && plan->pattern != PREFILL_PATTERN_XATTENTION) ||
      !is_sparse(&x, b, plan))
    return;
  const int64_t row = ((int64_t)b * x.heads + h) * x.tiles + tile;
  const span s = span_of(&x, b, tile);
  float *mass = x.block_score + row * x.blocks + s.begin;
  mass_rule rule = {.first = first_blocks(&x, b),
                    .own = own_block(&x, b, tile),
                    .top_p = plan->top_p};
  if (sale) {
    rule.first = sale_until(&x, plan);
    rule.own = sale_from(&x, plan, b, tile);
  } else if (sampled) {
    rule.own -= ceil_div(most(plan->local, 0), x.block_k);
  }
  bool all = false;
  if (plan->top_p > 0) {
    all = keep_by_mass(&x, b, &s, &rule, mass, chosen);
  } else { /* those that a row wants */
    const int64_t n = s.end - s.begin;
    for (int64_t word = warp(); word < n / 32 + 1; word += WARPS) {
      const int64_t i = word * 32 + lane();
      const uint32_t bits = ballot(i < n && mass[i] > 0);
      if (lane() == 0)
        chosen[word] = bits;
    }
    barrier();
  }
  write_kept(&x, row, &s, &rule, all, chosen);
}
