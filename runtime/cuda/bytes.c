/*===- bytes.c - Keys in signed bytes, and mean values ------------*- C -*-===*\
|*
|* runtime/src/quantize.c and the first half of estimate_values.c. The sums of
|* keys are added up block by block here and key by key there: their means
|* differ by roundings.
|*
\*===----------------------------------------------------------------------===*/
#include "bytes.h"

/* Grid: blocks, KV heads, batch. Sums of the visible keys of a block and means
 * of its values. */
KERNEL prefill_index_sum_blocks(args x) {
  const int64_t block = block_x();
  const int head = block_y(), b = block_z(), t = thread();
  const int64_t kv_heads = x.heads / x.group;
  const int64_t line = ((int64_t)b * kv_heads + head) * x.blocks + block;
  const int64_t begin = block * x.block_k;
  const int64_t end = least(begin + x.block_k, keys_of(&x, b));
  const uint16_t *k = (const uint16_t *)x.k + b * x.k_batch + head * x.k_head;
  for (int c = t; x.key_sum && c < x.head_dim; c += THREADS) {
    float sum = 0;
    for (int64_t key = begin; key < end; ++key)
      if (!is_hidden(&x, b, key))
        sum += widen(&x, k + key * x.k_row, c);
    x.key_sum[line * x.head_dim + c] = sum;
  }
  if (!x.value_mean)
    return;
  const uint16_t *v = (const uint16_t *)x.v + b * x.v_batch + head * x.v_head;
  float square = 0;
  for (int c = t; c < x.v_head_dim; c += THREADS) {
    float sum = 0;
    int count = 0;
    for (int64_t key = begin; key < end; ++key)
      if (!is_hidden(&x, b, key)) {
        sum += widen(&x, v + key * x.v_row, c);
        ++count;
      }
    const float mean = count ? sum * (1.0f / (float)count) : 0;
    x.value_mean[line * x.v_head_dim + c] = mean;
    square += mean * mean;
  }
  SHARED float of_warp[WARPS];
  square = warp_sum_f(square);
  if (lane() == 0)
    of_warp[warp()] = square;
  barrier();
  if (t == 0) {
    for (int w = 1; w < WARPS; ++w)
      square += of_warp[w];
    x.value_square[line] = square;
  }
}

/* Grid: KV heads, batch. What all visible keys share takes no bits: their mean,
 * or 0 with a softcap, which is no function of differences of scores. */
KERNEL prefill_index_center_keys(args x) {
  const int head = block_x(), b = block_y(), t = thread();
  const int64_t number = (int64_t)b * (x.heads / x.group) + head;
  int64_t count = 0;
  for (int64_t key = t; key < keys_of(&x, b); key += THREADS)
    count += !is_hidden(&x, b, key);
  block_scan(count, &count);
  const float inverse = count ? 1.0f / (float)count : 0;
  for (int c = t; c < x.head_dim; c += THREADS) {
    const float *sums = x.key_sum + number * x.blocks * x.head_dim + c;
    float sum = 0;
#pragma unroll 8
    for (int64_t block = 0; block < x.blocks; ++block)
      sum += sums[block * x.head_dim];
    x.key_center[number * x.head_dim + c] = x.softcap > 0 ? 0 : sum * inverse;
  }
}

/* Grid: blocks, KV heads, batch. In each form that there is. */
KERNEL prefill_index_quantize_keys(args x) {
  const int64_t block = block_x();
  const int head = block_y(), b = block_z(), t = thread();
  const int64_t number = (int64_t)b * (x.heads / x.group) + head;
  const int64_t begin = block * x.block_k;
  const int64_t end = least(begin + x.block_k, keys_of(&x, b));
  const uint16_t *k = (const uint16_t *)x.k + b * x.k_batch + head * x.k_head;
  const float *center = x.key_center + number * x.head_dim;
  /* Four elements a thread. */
  const int quads = x.byte_width / 4;
  uint32_t largest = 0;
  for (int64_t i = t; i < (int64_t)x.block_k * quads; i += THREADS) {
    const int64_t key = begin + i / quads;
    const int c = (int)(i % quads) * 4;
    if (key >= end || c >= x.head_dim || is_hidden(&x, b, key))
      continue;
    for (int e = 0; e < 4; ++e) {
      const uint32_t size =
          size_of(widen(&x, k + key * x.k_row, c + e) - center[c + e]);
      largest = size > largest ? size : largest;
    }
  }
  largest = block_most(largest);
  for (int form = 0; form < 2; ++form) {
    if (!x.key_bytes[form])
      continue;
    float scale;
    const float inverse =
        step_of(bits_to_float(largest), form ? 7 : 127, &scale);
    const int64_t line = number * x.blocks + block;
    if (t == 0)
      x.key_scale[form][line] = scale;
    uint32_t *out =
        (uint32_t *)(x.key_bytes[form] + line * x.block_k * x.byte_width);
    for (int64_t i = t; i < (int64_t)x.block_k * quads; i += THREADS) {
      const int64_t key = begin + i / quads;
      const int c = (int)(i % quads) * 4;
      uint32_t word = 0;
      if (key < end && c < x.head_dim && inverse != 0 && !is_hidden(&x, b, key))
        for (int e = 0; e < 4; ++e)
          word |=
              round_byte((widen(&x, k + key * x.k_row, c + e) - center[c + e]) *
                         inverse)
              << (8 * e);
      out[i] = word;
    }
  }
}
