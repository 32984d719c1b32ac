/*===- keep.h - Which blocks stay, by their mass ------------------*- C -*-===*\
|*
|* runtime/src/estimate_keep.c by a thread block.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_CUDA_KEEP_H
#define PREFILL_RUNTIME_CUDA_KEEP_H

#include "select.h"

/* Blocks below `first` and from `own` on are always kept, and those of two
 * bitmaps, by number and by distance from block `top`; then others in order of
 * falling mass until top_p of it is reached. */
typedef struct mass_rule {
  int64_t first, own;
  float top_p;
  const uint32_t *blocks, *distances; /* NULL: none */
  int64_t top, limit;                 /* distances are below it */
} mass_rule;
INLINE bool is_forced(const mass_rule *rule, int64_t block) {
  if (block < rule->first || block >= rule->own)
    return true;
  const int64_t distance = rule->top - block;
  return rule->blocks && (get_bit(rule->blocks, block) ||
                          (distance >= 0 && distance < rule->limit &&
                           get_bit(rule->distances, distance)));
}

/* Masses of a row's visible blocks. As costs they are whole numbers, whose sums
 * are the same in any order: multiples of 1 / unit, a power of two by which the
 * greatest has 39 or 40 bits, so that 65,535 of them fit. */
typedef struct row_masses {
  const float *mass;
  double unit;
} row_masses;
static float value_of_mass(const void *context, int64_t i) {
  return ((const row_masses *)context)->mass[i];
}
INLINE int64_t mass_units(float mass, double unit) {
  return mass > 0 ? (int64_t)((double)mass * unit) : 0;
}
static int64_t cost_of_mass(const void *context, int64_t i) {
  const row_masses *m = context;
  return mass_units(m->mass[i], m->unit);
}
static int64_t one_block(const void *context, int64_t i) {
  (void)context, (void)i;
  return 1;
}
/* Values of a row's visible blocks for a choice of some: hidden ones are never
 * chosen, those below `first` and from `own` on before all others. Returns how
 * many the latter are of those that this thread looks at. */
INLINE int64_t force_blocks(const args *x, int b, const span *s, int64_t first,
                            int64_t own, float *value) {
  int64_t forced = 0;
  for (int64_t i = thread(); i < s->end - s->begin; i += THREADS) {
    const int64_t block = s->begin + i;
    if (state_of(x, b, block) == HIDDEN) {
      value[i] = MINUS_INF;
    } else if (block < first || block >= own) {
      value[i] = __builtin_inff();
      ++forced;
    }
  }
  return forced;
}
INLINE double mass_unit(float greatest) {
  const int exponent = (int)(float_to_bits(greatest) >> 23) - 126;
  const uint64_t bits = (uint64_t)(1023 + 40 - exponent) << 52;
  double unit;
  __builtin_memcpy(&unit, &bits, 8);
  return unit;
}

INLINE float block_max(float value) {
  SHARED float of_warp[WARPS];
  for (int mask = 16; mask; mask /= 2) {
    const float other = shuffle_xor_f(value, mask);
    value = other > value ? other : value;
  }
  barrier();
  if (lane() == 0)
    of_warp[warp()] = value;
  barrier();
  for (int w = 0; w < WARPS; ++w)
    value = of_warp[w] > value ? of_warp[w] : value;
  return value;
}

/* Sets in chosen, counted from s->begin, what goes by mass; true: a mass is no
 * finite number, which says nothing, and all is kept. mass: of block s->begin
 * and those after it, not negative; it is overwritten. */
INLINE bool keep_by_mass(const args *x, int b, const span *s,
                         const mass_rule *rule, float *mass, uint32_t *chosen) {
  const int64_t n = s->end - s->begin;
  float greatest = 0;
  bool broken = false;
  for (int64_t i = thread(); i < n; i += THREADS) {
    float here = state_of(x, b, s->begin + i) == HIDDEN ? 0 : mass[i];
    if (here - here != 0) {
      broken = true;
      here = 0;
    }
    mass[i] = here;
    greatest = here > greatest ? here : greatest;
  }
  greatest = block_max(greatest);
  int64_t sum = 0, forced = 0, any;
  block_scan(broken, &any);
  if (any)
    return true;
  const row_masses context = {mass, mass_unit(greatest)};
  for (int64_t i = thread(); i < n; i += THREADS) {
    const int64_t block = s->begin + i;
    const int64_t units = mass_units(mass[i], context.unit);
    sum += units;
    if (is_forced(rule, block)) {
      forced += units;
      mass[i] = MINUS_INF; /* not to be chosen again */
    }
  }
  block_scan(sum, &sum);
  block_scan(forced, &forced);
  const int64_t budget = (int64_t)((double)sum * (double)rule->top_p);
  select_items(value_of_mass, cost_of_mass, &context, n, budget - forced, true,
               chosen);
  return false;
}

/* The row's bitmap: blocks that are chosen or always kept, or all visible ones.
 * Hidden blocks are left out later. */
INLINE void write_kept(const args *x, int64_t row, const span *s,
                       const mass_rule *rule, bool all,
                       const uint32_t *chosen) {
  for (int64_t word = warp(); word < x->words; word += WARPS) {
    const int64_t block = word * 32 + lane();
    bool keep = block >= s->begin && block < s->end;
    if (keep && !all)
      keep = get_bit(chosen, block - s->begin) || is_forced(rule, block);
    const uint32_t bits = ballot(keep);
    if (lane() == 0)
      x->kept[row * x->words + word] = bits;
  }
}

/* What a tile of a SALE head keeps in any case: blocks before the one, with one
 * of the first `init` keys, and from the other on, with one of `local`. */
INLINE int64_t sale_until(const args *x, const prefill_head_plan *plan) {
  return ceil_div(most(plan->init, 0), x->block_k);
}
INLINE int64_t sale_from(const args *x, const prefill_head_plan *plan, int b,
                         int64_t tile) {
  const int64_t position = position_of(x, b) + tile * x->block_q;
  return most(
      0, floor_div(position - most((int64_t)plan->local - 1, 0), x->block_k));
}

#endif
