/*===- xattention.c - XAttention's estimate -----------------------*- C -*-===*\
|*
|* runtime/src/estimate_strided.c: T = stride query rows in reverse order are
one
|* strided row, T keys a strided key, which lies in memory as it is multiplied.
|* A thread block takes as many tiles as make up to 32 strided rows, or a tile's
|* strided rows one part after another; fewer where T rows have more than 1,024
|* bytes. Its warps share out the strided keys, 32 at a time, which are some
|* blocks or a part of one.
|*
\*===----------------------------------------------------------------------===*/
#include "mass.h"

/* Strided rows under way, in memory of the thread block. `first` and `total`
 * count from the first row of tile `tile`, keys are strided ones. */
typedef struct strided_rows {
  row_shares shares; /* mass: of that tile; those of others follow */
  byte_keys keys;
  int64_t tile;
  int32_t stride, width, pitch; /* bytes of a row, from one to the next */
  int32_t room;                 /* rows at a time */
  int32_t total;
  int32_t key_count, shift; /* a block has 2^shift keys */
  float largest_scale;
  uint32_t unsound;        /* rows whose scores are no numbers */
  row_range range;         /* keys that a row sees */
  float factor[BYTE_ROWS]; /* of a dot */
  float most[WARPS * BYTE_ROWS], sum[WARPS * BYTE_ROWS]; /* of warps */
} strided_rows;

/* Sets up the item's tiles of a head; false: there are none, or they need no
 * estimate. */
INLINE bool begin_strided(const args *x, strided_rows *w, int item) {
  const int heads = x->batch * x->heads, head = item % heads;
  const int b = head / x->heads, h = head % x->heads;
  const prefill_head_plan *plan = &x->plans[h];
  if (plan->pattern != PREFILL_PATTERN_XATTENTION || !is_sparse(x, b, plan))
    return false;
  const int stride = plan->stride, width = stride * x->byte_width;
  const int pitch = width + ROW_GAP, per_tile = x->block_q / stride;
  const int room = (int)least(BYTE_ROWS, STRIDED_BYTES / pitch);
  const int tiles = room < per_tile ? 1 : room / per_tile;
  const int64_t tile = (x->tiles - 1 - item / heads) * (int64_t)tiles;
  if (tile >= x->tiles)
    return false;
  const byte_keys keys = keys_in_bytes(x, plan, b, h);
  uint32_t largest = 0;
  for (int64_t block = thread(); block < x->blocks; block += THREADS) {
    const uint32_t size = size_of(keys.scale[block]);
    largest = size > largest ? size : largest;
  }
  largest = block_most(largest); /* and all is read of the item before */
  if (thread() == 0) {
    const int64_t row = tile * x->block_q; /* of q */
    const int64_t rows = least((int64_t)tiles * x->block_q, x->q_len - row);
    const int64_t total = ceil_div(rows, stride);
    const int64_t position = position_of(x, b) + row;
    const int64_t count = ceil_div(keys_of(x, b), stride);
    const int64_t seen =
        least(count, (position + total * stride - 1) / stride + 1);
    const int32_t per_block = x->block_k / stride;
    span s = {.end = ceil_div(seen, per_block)};
    s.begin = least(s.end, most(0, position - x->window_left) / x->block_k);
    w->shares = (row_shares){
        .b = b,
        .h = h,
        .per_tile = per_tile,
        .s = s,
        .share = (pair *)x->share + (int64_t)block_x() * x->blocks * BYTE_ROWS,
        .mass = x->block_score + (head * (int64_t)x->tiles + tile) * x->blocks};
    w->keys = keys;
    w->tile = tile;
    w->stride = stride;
    w->width = width;
    w->pitch = pitch;
    w->room = room;
    w->total = (int32_t)total;
    w->key_count = (int32_t)count;
    w->shift = __builtin_ctz((uint32_t)per_block);
    w->largest_scale = bits_to_float(largest);
  }
  return true;
}

/* Rows w->shares.first and those after it as bytes, a warp a row; those of q
 * that are not there are zeros. */
INLINE void quantize_strided(const args *x, strided_rows *w, uint8_t *bytes) {
  const int l = lane(), b = w->shares.b, h = w->shares.h;
  const int quads = x->byte_width / 4, total = w->stride * quads;
  const prefill_head_plan *plan = &x->plans[h];
  for (int i = warp(); i < w->shares.live; i += WARPS) {
    const int64_t row =
        w->tile * x->block_q + (int64_t)(w->shares.first + i) * w->stride;
    const int count = (int)least(w->stride, x->q_len - row);
    const uint16_t *q = (const uint16_t *)x->q + b * x->q_batch +
                        h * x->q_head + row * x->q_row;
    uint32_t largest = 0;
#pragma unroll 4
    for (int at = l; at < count * quads; at += 32) {
      const int c = at % quads * 4;
      if (c >= x->head_dim)
        continue;
      float element[4];
      widen_quad(x, q + at / quads * x->q_row, c, element);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const uint32_t size = size_of(element[e]);
        largest = size > largest ? size : largest;
      }
    }
    float scale;
    float inverse =
        step_of(bits_to_float(warp_most(largest)), limit_of(plan), &scale);
    /* Factors are not negative: the sign of the scale goes into the row. */
    inverse = x->scale < 0 ? -inverse : inverse;
    const float factor = scale * __builtin_fabsf(x->scale) / (float)w->stride;
    const bool sound = factor * w->largest_scale < LARGEST_STEP;
    if (l == 0) {
      const int64_t position = position_of(x, b) + row;
      const int64_t low = position - x->window_left - w->stride + 1;
      if (!sound)
        __atomic_fetch_or(&w->unsound, 1u << i, __ATOMIC_RELAXED);
      w->factor[i] = sound ? factor : 0;
      w->range.from[i] = low > 0 ? (int32_t)ceil_div(low, w->stride) : 0;
      w->range.to[i] = (int32_t)((position + w->stride - 1) / w->stride);
    }
#pragma unroll 4
    for (int at = l; at < total; at += 32) {
      const int c = at % quads * 4, t = at / quads;
      uint32_t word = 0;
      if (t < count && c < x->head_dim && inverse != 0) {
        float element[4];
        widen_quad(x, q + t * x->q_row, c, element);
#pragma unroll
        for (int e = 0; e < 4; ++e)
          word |= round_byte(element[e] * inverse) << (8 * e);
      }
      *(uint32_t *)(bytes + i * w->pitch + (w->stride - 1 - t) * x->byte_width +
                    c) = word;
    }
  }
}

/* Is any key of a strided one visible as far as the mask goes? */
INLINE bool any_visible(const args *x, const strided_rows *w, int32_t key) {
  const int b = w->shares.b;
  const uint8_t state = state_of(x, b, key >> w->shift);
  if (state != SOME)
    return state == ALL;
  const int64_t begin = (int64_t)key * w->stride;
  const int64_t end = least(begin + w->stride, keys_of(x, b));
#pragma nounroll
  for (int64_t at = begin; at < end; ++at)
    if (!is_hidden(x, b, at))
      return true;
  return false;
}

/* Products of `count` keys from `key` on that a row does not see become
 * HIDDEN_DOT. */
INLINE void hide_strided(const args *x, const strided_rows *w,
                         int32_t c[2][KEY_TILES][4], int32_t key,
                         int32_t count) {
  const int last = key + count - 1;
  if (!x->key_mask && count == BYTE_KEYS && last < w->key_count &&
      last <= w->range.to[0] && key >= w->range.from[w->shares.live - 1])
    return;
  const int32_t end = last < w->key_count ? last + 1 : w->key_count;
  key += (lane() & 3) * 2;
  int there = keys_up_to(end - 1 - key);
  if (x->key_mask)
#pragma nounroll
    for (int n = 0; n < 2 * KEY_TILES; ++n) {
      const int32_t at = key + n / 2 * 8 + n % 2;
      if (at < end && !any_visible(x, w, at))
        there &= ~(1 << n);
    }
  int sees[4];
  keys_in_range(&w->range, w->shares.live, key, there, sees);
  hide_others(c, sees);
}

/* Keys lie in lanes and registers by the bits of their numbers: bit 0 in
 * registers that are merged already, 1 and 2 in lanes, 3 and 4 in `value`.
 * Every element becomes the greatest, or the sum, of its run of keys, of which
 * there are a power of two. */
INLINE void most_of_runs(int32_t value[KEY_TILES], int run) {
  for (int mask = 1; 2 * mask < run && mask < 4; mask *= 2)
#pragma unroll
    for (int n = 0; n < KEY_TILES; ++n) {
      const int32_t other = shuffle_xor(value[n], mask);
      value[n] = other > value[n] ? other : value[n];
    }
#pragma unroll
  for (int mask = 1; mask < KEY_TILES; mask *= 2)
    if (8 * mask < run)
#pragma unroll
      for (int n = 0; n < KEY_TILES; ++n)
        if (!(n & mask)) {
          const int32_t other = value[n + mask];
          value[n] = other > value[n] ? other : value[n];
          value[n + mask] = value[n];
        }
}
INLINE void sum_of_runs(float value[KEY_TILES], int run) {
  for (int mask = 1; 2 * mask < run && mask < 4; mask *= 2)
#pragma unroll
    for (int n = 0; n < KEY_TILES; ++n)
      value[n] += shuffle_xor_f(value[n], mask);
#pragma unroll
  for (int mask = 1; mask < KEY_TILES; mask *= 2)
    if (8 * mask < run)
#pragma unroll
      for (int n = 0; n < KEY_TILES; ++n)
        if (!(n & mask))
          value[n] = value[n + mask] = value[n] + value[n + mask];
}

/* Leaves the shares of the blocks of up to BYTE_KEYS keys from `base` on,
 * before `end`; `more`: of a block whose first keys have left theirs. best: the
 * greatest scores of the lane's rows. */
INLINE void score_strided(const args *x, const strided_rows *w,
                          const uint8_t *rows, int32_t base, int32_t end,
                          bool more, float best[4]) {
  const int l = lane(), live = w->shares.live;
  const int count = end - base < BYTE_KEYS ? end - base : BYTE_KEYS;
  const int run = w->shift < 5 ? 1 << w->shift : BYTE_KEYS;
  int32_t c[2][KEY_TILES][4], at[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = (l >> 2) + 8 * i;
    at[i] = (row < live ? row : live - 1) * w->pitch;
  }
  multiply_rows(c, rows, at, live > 16,
                w->keys.bytes + (int64_t)base * w->width, w->width, count);
  hide_strided(x, w, c, base, count);
  /* Blocks of one key have every other one in the second part. */
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    if (part == 1 && run > 1)
      break;
    const int key = (l & 3) * 2 + part; /* of those of n = 0 */
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = (l >> 2) + 8 * i;
      const float row_factor = row < live ? w->factor[row] : 0;
      int32_t top[KEY_TILES];
      float sum[KEY_TILES], factor[KEY_TILES];
#pragma unroll
      for (int n = 0; n < KEY_TILES; ++n) {
        const int32_t dot = c[i / 2][n][i % 2 * 2 + part];
        const int32_t next = c[i / 2][n][i % 2 * 2 + 1];
        top[n] = run > 1 && next > dot ? next : dot;
        const int32_t block = (base + key + 8 * n) >> w->shift;
        factor[n] =
            row_factor *
            w->keys
                .scale[block < w->shares.s.end ? block : w->shares.s.end - 1];
      }
      most_of_runs(top, run);
#pragma unroll
      for (int n = 0; n < KEY_TILES; ++n) {
        const int32_t dot = c[i / 2][n][i % 2 * 2 + part];
        const int32_t next = c[i / 2][n][i % 2 * 2 + 1];
        const float rate = factor[n] * LOG2E;
        sum[n] = dot == HIDDEN_DOT ? 0 : power((float)(dot - top[n]) * rate);
        if (run > 1 && next != HIDDEN_DOT)
          sum[n] += power((float)(next - top[n]) * rate);
      }
      sum_of_runs(sum, run);
#pragma unroll
      for (int n = 0; n < KEY_TILES; ++n) {
        const float greatest =
            top[n] == HIDDEN_DOT ? HIDDEN_MOST : (float)top[n] * factor[n];
        if ((key + 8 * n) % run == 0 && key + 8 * n < count) {
          pair *to = w->shares.share +
                     (int64_t)((base + key + 8 * n) >> w->shift) * BYTE_ROWS +
                     row;
          pair share = {greatest, sum[n]};
          if (more) {
            const pair old = *to;
            const float fresh = old.x > greatest ? old.x : greatest;
            share =
                (pair){fresh, old.y * power((old.x - fresh) * LOG2E) +
                                  sum[n] * power((greatest - fresh) * LOG2E)};
          }
          *to = share;
          best[i] = greatest > best[i] ? greatest : best[i];
        }
      }
    }
  }
}

/* Shares of all blocks and the rows' greatest scores, of warps. */
INLINE void score_all(const args *x, strided_rows *w, const uint8_t *rows) {
  const int32_t begin = (int32_t)w->shares.s.begin << w->shift;
  const int32_t end = (int32_t)w->shares.s.end << w->shift;
  const int32_t unit = w->shift < 5 ? BYTE_KEYS : 1 << w->shift;
  float best[4] = {HIDDEN_MOST, HIDDEN_MOST, HIDDEN_MOST, HIDDEN_MOST};
#pragma nounroll
  for (int32_t at = begin + warp() * unit; at < end; at += WARPS * unit)
#pragma nounroll
    for (int32_t base = at; base < at + unit && base < end; base += BYTE_KEYS)
      score_strided(x, w, rows, base, end, base > at, best);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    for (int mask = 1; mask < 4; mask *= 2) {
      const float other = shuffle_xor_f(best[i], mask);
      best[i] = other > best[i] ? other : best[i];
    }
    if ((lane() & 3) == 0)
      w->most[warp() * BYTE_ROWS + (lane() >> 2) + 8 * i] = best[i];
  }
}

/* Grid: PREFILL_CUDA_BYTE_SLOTS. Masses of the visible blocks of every tile;
 * infinity where scores are no numbers. */
KERNEL prefill_index_xattention(args x) {
  SHARED uint8_t __attribute__((aligned(16))) memory[STRIDED_BYTES];
  SHARED strided_rows w;
  uint8_t *rows = (uint8_t *)memory;
  for (int item = block_x(); item < x.batch * x.heads * x.tiles;
       item += PREFILL_CUDA_BYTE_SLOTS) {
    if (!begin_strided(&x, &w, item))
      continue;
    barrier();
    for (int first = 0; first < w.total; first += w.room) {
      barrier(); /* all is read of the rows before */
      if (thread() == 0) {
        w.shares.first = first;
        w.unsound = 0;
        w.shares.live = w.total - first < w.room ? w.total - first : w.room;
      }
      barrier();
      quantize_strided(&x, &w, rows);
      barrier();
      score_all(&x, &w, rows);
      barrier();
      float greatest = HIDDEN_MOST;
      for (int i = 0; i < WARPS; ++i) {
        const float value = w.most[i * BYTE_ROWS + lane()];
        greatest = value > greatest ? value : greatest;
      }
      const float inverse = weigh_rows(&w.shares, greatest, w.sum);
      add_shares(&x, &w.shares, inverse, w.unsound);
    }
    barrier();
  }
}
