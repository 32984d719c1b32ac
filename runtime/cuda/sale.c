/*===- sale.c - SALE's estimate -----------------------------------*- C -*-===*\
|*
|* runtime/src/estimate_quantized.c: all scores, of bytes. A thread block takes
|* tiles of query rows one after another, last tiles first, since they have most
|* to do; 32 rows of a tile at a time. Its warps share out the blocks of keys.
|*
\*===----------------------------------------------------------------------===*/
#include "mass.h"

/* More than any key's number. */
enum { FAR = 1 << 30 };

/* Rows of a tile under way. In memory of the thread block: what one part of the
 * kernel needs does not fill the registers of another. A lane has the scores of
 * rows lane / 4 + 8 i. */
typedef struct sale_rows {
  const prefill_head_plan *plan;
  row_shares shares;
  byte_keys keys;
  int64_t tile;
  int32_t b, h, keys_end; /* keys of the batch entry */
  int32_t total;          /* of the tile's rows that are looked at */
  int32_t until, from;    /* blocks before and from there on are always kept */
  float largest_scale;
  int32_t unsound;             /* a row whose scores are no numbers */
  int32_t position[BYTE_ROWS]; /* -1: no such row */
  float factor[BYTE_ROWS];     /* of a dot */
  float bound[BYTE_ROWS];      /* by threshold */
  float most[WARPS * BYTE_ROWS], sum[WARPS * BYTE_ROWS]; /* of warps */
} sale_rows;

/* Scores of `count` keys from `key` on that a row does not see become
 * HIDDEN_DOT; near: all but those of the first `init` and a row's `local`. */
INLINE void hide_scores(const args *x, const sale_rows *w,
                        int32_t c[2][KEY_TILES][4], int32_t key, int32_t count,
                        bool near) {
  const int32_t end = key + count < w->keys_end ? key + count : w->keys_end;
  key += (lane() & 3) * 2;
  int there = keys_up_to(end - 1 - key);
  if (x->key_mask)
    for (int n = 0; n < 2 * KEY_TILES; ++n) {
      const int32_t at = key + n / 2 * 8 + n % 2;
      if (at < end && is_hidden(x, w->b, at))
        there &= ~(1 << n);
    }
  const int32_t window = (int32_t)least(x->window_left, FAR);
  const int32_t local = (int32_t)least(w->plan->local, FAR);
  const int32_t init = (int32_t)least(w->plan->init, FAR);
  const int first = near ? keys_up_to(init - 1 - key) : -1;
  const int32_t *position = &w->position[lane() >> 2];
  int sees[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    /* Positions are at least -1. */
    const int32_t above = position[8 * i] - key;
    sees[i] =
        pinned(there & keys_up_to(above) & ~keys_up_to(above - window - 1) &
               (~keys_up_to(near ? above - local : -1) | first));
  }
  hide_others(c, sees);
}

enum pass { NEAR = 0, HITS = 1, MASS = 2 };

/* Of a block's keys that the lane's rows see, or in the pass NEAR of the first
 * `init` and a row's `local` ones: the greatest scores, HIDDEN_MOST where there
 * is none, and but for HITS the sums of exponentials relative to them. */
INLINE void score_block(const args *x, const sale_rows *w, const uint8_t *bytes,
                        int32_t block, int pass, float most_of[4],
                        float sum_of[4]) {
  const int32_t begin = block * x->block_k;
  const float scale = w->keys.scale[block];
  const int32_t row = (lane() >> 2) * ROW_PITCH;
  const int32_t at[4] = {row, row + 8 * ROW_PITCH, row + 16 * ROW_PITCH,
                         row + 24 * ROW_PITCH};
  const bool capped = x->softcap > 0 && pass != HITS;
  const bool open = pass != NEAR && !capped && x->block_k % BYTE_KEYS == 0 &&
                    state_of(x, w->b, block) == ALL &&
                    begin + x->block_k <= w->keys_end &&
                    begin + x->block_k - 1 <= w->position[0] &&
                    w->position[w->shares.live - 1] - begin <= x->window_left;
#pragma nounroll
  for (int base = 0; base < x->block_k; base += BYTE_KEYS) {
    int32_t c[2][KEY_TILES][4];
    const int count =
        x->block_k - base < BYTE_KEYS ? x->block_k - base : BYTE_KEYS;
    multiply_rows(c, bytes, at, true,
                  w->keys.bytes + (int64_t)(begin + base) * x->byte_width,
                  x->byte_width, count);
    if (!open)
      hide_scores(x, w, c, begin + base, count, pass == NEAR);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int32_t top = HIDDEN_DOT;
#pragma unroll
      for (int n = 0; n < 2 * KEY_TILES; ++n) {
        const int32_t dot = c[i / 2][n / 2][i % 2 * 2 + n % 2];
        top = dot > top ? dot : top;
      }
      for (int mask = 1; mask < 4; mask *= 2) {
        const int32_t other = shuffle_xor(top, mask);
        top = other > top ? other : top;
      }
      const float factor = w->factor[(lane() >> 2) + 8 * i] * scale;
      float greatest = top == HIDDEN_DOT ? HIDDEN_MOST : (float)top * factor;
      float sum = 0;
      if (capped) {
        /* The cap does not change the order. */
        const float rate = 2 * LOG2E / x->softcap;
        greatest =
            top == HIDDEN_DOT ? HIDDEN_MOST : cap_fast(x, greatest, rate);
#pragma unroll
        for (int n = 0; n < 2 * KEY_TILES; ++n) {
          const int32_t dot = c[i / 2][n / 2][i % 2 * 2 + n % 2];
          const float part = power(
              (cap_fast(x, (float)dot * factor, rate) - greatest) * LOG2E);
          sum += dot == HIDDEN_DOT ? 0 : part;
        }
      } else if (pass != HITS) {
#pragma unroll
        for (int n = 0; n < 2 * KEY_TILES; ++n) {
          const int32_t dot = c[i / 2][n / 2][i % 2 * 2 + n % 2];
          const float part = power((float)(dot - top) * (factor * LOG2E));
          sum += dot == HIDDEN_DOT ? 0 : part;
        }
      }
      for (int mask = 1; mask < 4; mask *= 2)
        sum += shuffle_xor_f(sum, mask);
      if (base == 0) {
        most_of[i] = greatest;
        sum_of[i] = sum;
      } else {
        const float old = most_of[i];
        const float fresh = greatest > old ? greatest : old;
        sum_of[i] = sum_of[i] * power((old - fresh) * LOG2E) +
                    sum * power((greatest - fresh) * LOG2E);
        most_of[i] = fresh;
      }
    }
  }
}

/* Scores of the rows' bytes with blocks of keys, each warp its own: NEAR and
 * MASS leave maxima (and sums) of warps in w, MASS those of blocks in memory,
 * HITS a 1 at the blocks that a row wants. */
INLINE void score_rows(const args *x, sale_rows *w, const uint8_t *bytes,
                       int pass) {
  const int l = lane(), mine = l & 3, group = l >> 2;
  const int until = w->until, from = w->from;
  const int begin = pass == HITS ? until : (int)w->shares.s.begin;
  const int end = pass == HITS ? from : (int)w->shares.s.end;
  /* Of the warp, and row group + 8 mine. */
  float *top = &w->most[warp() * BYTE_ROWS + group + 8 * mine];
  float *part = &w->sum[warp() * BYTE_ROWS + group + 8 * mine];
  *top = HIDDEN_MOST;
  *part = 0;
#pragma nounroll
  for (int block = begin + warp(); block < end; block += WARPS) {
    if (pass == NEAR && block >= until && block < from)
      continue;
    float greatest[4], sum[4];
    score_block(x, w, bytes, block, pass, greatest, sum);
    if (pass == HITS) {
      bool hit = false;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        hit |= w->position[group + 8 * i] >= 0 && greatest[i] > HIDDEN_MOST &&
               !(greatest[i] <= w->bound[group + 8 * i]);
      if (ballot(hit) && l == 0)
        w->shares.mass[block] = 1;
      continue;
    }
    const float here = one_of(greatest, mine), sum_here = one_of(sum, mine);
    const float fresh = here > *top ? here : *top;
    if (pass == NEAR)
      *part = *part * power((*top - fresh) * LOG2E) +
              sum_here * power((here - fresh) * LOG2E);
    else
      w->shares.share[(int64_t)block * BYTE_ROWS + group + 8 * mine] =
          (pair){here, sum_here};
    *top = fresh;
  }
  barrier();
}

/* What a score has to exceed: its exponential is more than `threshold` of sum,
 * relative to greatest. Before the softcap. */
INLINE float bound_of(const args *x, float threshold, float greatest,
                      float sum) {
  if (!(greatest > HIDDEN_MOST))
    return MINUS_INF; /* nothing to compare with: all stays */
  const double ln2 = 0.6931471805599453;
  const double bound =
      (double)greatest + ln2 * (double)__nvvm_lg2_approx_ftz_f(threshold * sum);
  const double cap = (double)x->softcap;
  if (!(cap > 0))
    return (float)bound;
  /* score > cap tanh(y / cap): y > cap atanh(score / cap). */
  const double share = bound / cap;
  if (share >= 1)
    return __builtin_inff();
  if (share <= -1)
    return MINUS_INF;
  return (float)(cap / 2 * ln2 *
                 (double)__nvvm_lg2_approx_ftz_f(
                     (float)((1 + share) / (1 - share))));
}

/* Quantises up to BYTE_ROWS of the tile's rows that are looked at, from
 * w->shares.first on: the last of every `stride`. */
INLINE void quantize_rows(const args *x, sale_rows *w, uint8_t *bytes) {
  const prefill_head_plan *plan = w->plan;
  const int64_t stride = most(plan->stride, 1);
  const int64_t begin = w->tile * x->block_q;
  const int64_t end = least(begin + x->block_q, x->q_len);
  const int live = w->shares.live, l = lane();
  for (int i = warp(); i < BYTE_ROWS; i += WARPS) {
    const int64_t row =
        least(begin + (w->shares.first + i + 1) * stride, end) - 1;
    const uint16_t *q = (const uint16_t *)x->q + w->b * x->q_batch +
                        w->h * x->q_head + row * x->q_row;
    float element[2][4];
    uint32_t largest = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int c = (l + j / 4 * 32) * 4 + j % 4;
      const float value = i < live && c < x->head_dim ? widen(x, q, c) : 0;
      const uint32_t size = size_of(value);
      element[j / 4][j % 4] = value;
      largest = size > largest ? size : largest;
    }
    float scale;
    float inverse =
        step_of(bits_to_float(warp_most(largest)), limit_of(plan), &scale);
    /* Factors are not negative: the sign of the scale goes into the row. */
    inverse = x->scale < 0 ? -inverse : inverse;
    const float factor = scale * __builtin_fabsf(x->scale);
    const bool sound = factor * w->largest_scale < LARGEST_STEP;
    if (l == 0) {
      if (i < live && !sound)
        __atomic_fetch_or(&w->unsound, 1, __ATOMIC_RELAXED);
      w->factor[i] = sound ? factor : 0;
      w->position[i] = i < live ? (int32_t)(position_of(x, w->b) + row) : -1;
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int c = (l + 32 * j) * 4;
      uint32_t word = 0;
      if (inverse != 0)
        for (int e = 0; e < 4; ++e)
          word |= round_byte(element[j][e] * inverse) << (8 * e);
      if (c < x->byte_width)
        *(uint32_t *)(bytes + i * ROW_PITCH + c) = word;
    }
  }
}

/* Sets up a tile of a head; false: it needs no estimate. */
INLINE bool begin_tile(const args *x, sale_rows *w, int item) {
  const int heads = x->batch * x->heads;
  const int64_t tile = x->tiles - 1 - item / heads, head = item % heads;
  const int b = item % heads / x->heads, h = item % x->heads;
  const prefill_head_plan *plan = &x->plans[h];
  if (plan->pattern != PREFILL_PATTERN_SALE || !is_sparse(x, b, plan))
    return false;
  const span s = span_of(x, b, tile);
  float *mass = x->block_score + (head * x->tiles + tile) * x->blocks;
  const byte_keys keys = keys_in_bytes(x, plan, b, h);
  for (int64_t block = s.begin + thread(); block < s.end; block += THREADS)
    mass[block] = 0;
  uint32_t largest = 0;
  for (int64_t block = thread(); block < x->blocks; block += THREADS) {
    const uint32_t size = size_of(keys.scale[block]);
    largest = size > largest ? size : largest;
  }
  largest = block_most(largest); /* and all is read of the tile before */
  if (thread() == 0) {
    w->plan = plan;
    w->shares.b = w->b = b;
    w->shares.h = w->h = h;
    w->shares.s = s;
    w->shares.share =
        (pair *)x->share + (int64_t)block_x() * x->blocks * BYTE_ROWS;
    w->shares.mass = mass;
    w->shares.per_tile = x->block_q;
    w->keys = keys;
    w->tile = tile;
    w->keys_end = (int32_t)keys_of(x, b);
    w->largest_scale = bits_to_float(largest);
    w->unsound = 0;
    const int64_t until = most(s.begin, sale_until(x, plan));
    w->until = (int32_t)until;
    w->from = (int32_t)least(s.end, most(until, sale_from(x, plan, b, tile)));
    const int64_t rows = least(x->block_q, x->q_len - tile * x->block_q);
    w->total = (int32_t)ceil_div(rows, most(plan->stride, 1));
  }
  return true;
}

/* Grid: PREFILL_CUDA_BYTE_SLOTS. Masses of the visible blocks of every tile, or
 * with a threshold 1 where a row wants the block; infinity where scores are no
 * numbers. */
KERNEL prefill_index_sale(args x) {
  SHARED char __attribute__((aligned(16))) memory[MASS_BYTES];
  SHARED sale_rows w;
  uint8_t *bytes = (uint8_t *)memory;
  for (int item = block_x(); item < x.batch * x.heads * x.tiles;
       item += PREFILL_CUDA_BYTE_SLOTS) {
    if (!begin_tile(&x, &w, item))
      continue;
    barrier();
    for (int first = 0; first < w.total; first += BYTE_ROWS) {
      barrier(); /* all is read of the rows before */
      if (thread() == 0) {
        w.shares.first = first;
        w.shares.live =
            w.total - first < BYTE_ROWS ? w.total - first : BYTE_ROWS;
      }
      barrier();
      quantize_rows(&x, &w, bytes);
      barrier();
      if (w.unsound) {
        for (int64_t block = w.shares.s.begin + thread();
             block < w.shares.s.end; block += THREADS)
          w.shares.mass[block] = __builtin_inff();
        break;
      }
      const bool by_mass = w.plan->top_p > 0;
      for (int pass = by_mass ? MASS : NEAR; pass <= (by_mass ? MASS : HITS);
           ++pass) {
        score_rows(&x, &w, bytes, pass);
        if (pass == HITS)
          break;
        float greatest = HIDDEN_MOST, sum = 0;
        for (int i = 0; i < WARPS; ++i) {
          const float value = w.most[i * BYTE_ROWS + lane()];
          greatest = value > greatest ? value : greatest;
        }
        if (pass == NEAR) {
          for (int i = 0; i < WARPS; ++i)
            sum += w.sum[i * BYTE_ROWS + lane()] *
                   power((w.most[i * BYTE_ROWS + lane()] - greatest) * LOG2E);
          if (warp() == 0)
            w.bound[lane()] = bound_of(&x, w.plan->threshold, greatest, sum);
          barrier();
          continue;
        }
        const float inverse = weigh_rows(&w.shares, greatest, w.sum);
        if (w.plan->values)
          add_weighed_shares(&x, &w.shares, inverse, memory);
        else
          add_shares(&x, &w.shares, inverse, 0);
      }
    }
    barrier();
  }
}
