/*===- device.h - What the index kernels share --------------------*- C -*-===*\
|*
|* The kernels of prefill/cuda_index.h in C for clang's nvptx64 target: no CUDA
|* headers, no tensor cores. They are compiled to LLVM bitcode when prefill-opt
|* is built, and to an architecture when a model is (lib/Codegen/CUDA). Integers
|* decide, or floats in a fixed order: results do not depend on which thread
|* comes first.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_CUDA_DEVICE_H
#define PREFILL_RUNTIME_CUDA_DEVICE_H

#include "prefill/cuda_index.h"
#include <stdbool.h>

#define KERNEL __attribute__((nvptx_kernel)) void
#define INLINE static inline __attribute__((always_inline))
/* Memory of the thread block; holds nothing at first. */
#define SHARED static __attribute__((address_space(3), loader_uninitialized))

enum { THREADS = PREFILL_CUDA_INDEX_THREADS, WARPS = THREADS / 32 };
enum { HIDDEN = 0, SOME = 1, ALL = 2 }; /* block_state */
/* MInference's constants: keys and diagonals that are always kept. */
enum { FORCED_SINKS = 30, FORCED_DIAGONALS = 100 };
enum { MAX_BLOCKS = 65535, MAX_DIM = 256 };
/* Memory of a thread block for strided query rows in bytes. */
enum { STRIDED_BYTES = 34 << 10 };
/* A threshold up to this keeps everything (SALE's marker of dense heads). */
#define SALE_LEAST_THRESHOLD 1e-5f

typedef prefill_cuda_index args;

#define MINUS_INF (-__builtin_inff())
/* Score of what a row does not see. */
#define HIDDEN_SCORE (-2e38f)

/*===-- threads ----------------------------------------------------------===*/

/* The number, of which nothing that follows is computed earlier than here: not
 * before the loops of a kernel, whose registers it would fill. */
INLINE int pinned(int number) {
  __asm__ volatile("" : "+r"(number));
  return number;
}
INLINE int thread(void) { return pinned(__nvvm_read_ptx_sreg_tid_x()); }
INLINE int lane(void) { return thread() & 31; }
INLINE int warp(void) { return thread() >> 5; }
INLINE int block_x(void) { return __nvvm_read_ptx_sreg_ctaid_x(); }
INLINE int block_y(void) { return __nvvm_read_ptx_sreg_ctaid_y(); }
INLINE int block_z(void) { return __nvvm_read_ptx_sreg_ctaid_z(); }
INLINE void barrier(void) { __syncthreads(); }

INLINE uint32_t ballot(bool predicate) {
  return __nvvm_vote_ballot_sync(0xffffffffu, predicate);
}
INLINE int shuffle_up(int value, int by) {
  return __nvvm_shfl_sync_up_i32(-1, value, by, 0);
}
INLINE int shuffle_xor(int value, int mask) {
  return __nvvm_shfl_sync_bfly_i32(-1, value, mask, 31);
}
INLINE float shuffle_xor_f(float value, int mask) {
  return __nvvm_shfl_sync_bfly_f32(-1, value, mask, 31);
}
INLINE int64_t shuffle_xor_l(int64_t value, int mask) {
  const uint32_t low = (uint32_t)shuffle_xor((int)value, mask);
  return (int64_t)shuffle_xor((int)(value >> 32), mask) << 32 | low;
}
INLINE int64_t shuffle_up_l(int64_t value, int by) {
  const uint32_t low = (uint32_t)shuffle_up((int)value, by);
  return (int64_t)shuffle_up((int)(value >> 32), by) << 32 | low;
}
INLINE int shuffle(int value, int from) {
  return __nvvm_shfl_sync_idx_i32(-1, value, from, 31);
}
INLINE int64_t shuffle_l(int64_t value, int from) {
  const uint32_t low = (uint32_t)shuffle((int)value, from);
  return (int64_t)shuffle((int)(value >> 32), from) << 32 | low;
}

/* Sum of the values of this lane and those below it. */
INLINE int64_t warp_scan(int64_t value) {
  for (int by = 1; by < 32; by *= 2) {
    const int64_t below = shuffle_up_l(value, by);
    if (lane() >= by)
      value += below;
  }
  return value;
}
INLINE int64_t warp_sum(int64_t value) {
  for (int mask = 16; mask; mask /= 2)
    value += shuffle_xor_l(value, mask);
  return value;
}

/* Sum of the values of the threads below this one; *total: of all. All threads
 * of the block take part. */
INLINE int64_t block_scan(int64_t value, int64_t *total) {
  SHARED int64_t of_warp[WARPS];
  const int64_t inclusive = warp_scan(value);
  barrier(); /* of_warp may still be read by the call before */
  if (lane() == 31)
    of_warp[warp()] = inclusive;
  barrier();
  int64_t before = 0, all = 0;
  for (int w = 0; w < WARPS; ++w) {
    before += w < warp() ? of_warp[w] : 0;
    all += of_warp[w];
  }
  *total = all;
  return before + inclusive - value;
}

/* The same of doubles, always added in the same order. */
INLINE double block_scan_double(double value) {
  SHARED double of_thread[THREADS];
  barrier();
  of_thread[thread()] = value;
  barrier();
  double before = 0;
  for (int i = 0; i < thread(); ++i)
    before += of_thread[i];
  return before;
}

/*===-- numbers ----------------------------------------------------------===*/

INLINE int64_t least(int64_t x, int64_t y) { return x < y ? x : y; }
INLINE int64_t most(int64_t x, int64_t y) { return x > y ? x : y; }
INLINE int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }
INLINE int64_t floor_div(int64_t x, int64_t y) {
  const int64_t quotient = x / y;
  return quotient - (x % y != 0 && (x < 0) != (y < 0));
}
INLINE float bits_to_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}
/* Element i of Q or K. */
INLINE float widen(const args *x, const void *row, int64_t i) {
  if (x->dtype == PREFILL_BF16)
    return bits_to_float((uint32_t)((const uint16_t *)row)[i] << 16);
  return (float)((const _Float16 *)row)[i];
}
/* Four of them from element i on, a multiple of four. */
INLINE void widen_quad(const args *x, const void *row, int64_t i,
                       float out[4]) {
  typedef uint16_t quad __attribute__((ext_vector_type(4)));
  const quad bits = *(const quad *)((const uint16_t *)row + i);
  uint16_t element[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int e = 0; e < 4; ++e)
    out[e] = widen(x, element, e);
}
#define LOG2E 1.4426950408889634f
/* 2^x by the unit: 2 ulp. */
INLINE float power(float x) { return __nvvm_ex2_approx_ftz_f(x); }
INLINE float soft_cap(const args *x, float score) {
  if (!(x->softcap > 0))
    return score;
  const float twice = power(score / x->softcap * (2 * LOG2E));
  return x->softcap * (1 - 2 / (1 + twice));
}

/* The same by the unit's reciprocal; rate: 2 log2(e) / softcap. */
INLINE float cap_fast(const args *x, float score, float rate) {
  return x->softcap *
         (1 - 2 * __nvvm_rcp_approx_ftz_f(1 + power(score * rate)));
}

/*===-- bitmaps ----------------------------------------------------------===*/

INLINE bool get_bit(const uint32_t *bits, int64_t i) {
  return bits[i / 32] >> (i % 32) & 1;
}
/* Is a bit of [begin, end) set? */
INLINE bool any_bit(const uint32_t *bits, int64_t begin, int64_t end) {
  if (begin >= end)
    return false;
  const int64_t first = begin / 32, last = (end - 1) / 32;
  for (int64_t word = first; word <= last; ++word) {
    uint32_t part = bits[word];
    if (word == first)
      part &= ~0u << (begin % 32);
    if (word == last)
      part &= ~0u >> (31 - (end - 1) % 32);
    if (part)
      return true;
  }
  return false;
}

/*===-- the problem ------------------------------------------------------===*/

INLINE int64_t keys_of(const args *x, int b) {
  return x->kv_lengths ? x->kv_lengths[b] : x->kv_len;
}
/* Means of keys that there are. */
INLINE int64_t means_of(const args *x, int b) {
  return prefill_cuda_means(keys_of(x, b));
}
INLINE int64_t position_of(const args *x, int b) {
  return x->positions ? x->positions[b] : x->position;
}
INLINE int64_t first_key(const args *x, int b) { return x->facts[4 * b]; }
INLINE int64_t last_key(const args *x, int b) { return x->facts[4 * b + 1]; }
INLINE bool is_hidden(const args *x, int b, int64_t key) {
  return x->key_mask && !x->key_mask[b * x->key_mask_batch + key];
}
INLINE uint8_t state_of(const args *x, int b, int64_t block) {
  return x->key_mask ? x->block_state[(int64_t)b * x->blocks + block] : ALL;
}

/* Blocks that a tile of query rows sees: [begin, end), of which those of
 * [full_begin, full_end) every row sees whole. */
typedef struct span {
  int64_t begin, end, full_begin, full_end;
} span;
INLINE span span_of(const args *x, int b, int64_t tile) {
  const int64_t row = tile * x->block_q;
  const int64_t rows = least(x->block_q, x->q_len - row);
  const int64_t first = position_of(x, b) + row, last = first + rows - 1;
  const int64_t keys = keys_of(x, b);
  const int64_t high = least(keys, last + 1), all_high = least(keys, first + 1);
  const int64_t low = most(0, first - x->window_left);
  const int64_t all_low = most(0, last - x->window_left);
  span s = {0, 0, 0, 0};
  if (high <= low)
    return s;
  s.begin = low / x->block_k;
  s.end = ceil_div(high, x->block_k);
  s.full_begin = ceil_div(all_low, x->block_k);
  s.full_end = all_high > 0 ? all_high / x->block_k : 0;
  return s;
}

/* The block of the last position of a whole tile. */
INLINE int64_t top_block(const args *x, int b, int64_t tile) {
  return floor_div(position_of(x, b) + (tile + 1) * x->block_q - 1, x->block_k);
}
/* The block of a tile's first position: it and those after it stay. */
INLINE int64_t own_block(const args *x, int b, int64_t tile) {
  return floor_div(position_of(x, b) + tile * x->block_q, x->block_k);
}
/* Distance from a tile's top block to the block of its first position. */
INLINE int64_t own_distance(const args *x, int b, int64_t tile) {
  return top_block(x, b, tile) - own_block(x, b, tile);
}
/* One more than the largest distance that any tile can use. */
INLINE int64_t distance_limit(const args *x, int b) {
  return most(top_block(x, b, x->tiles - 1), x->block_q / x->block_k + 1) + 1;
}

/* Do strides divide tiles and blocks, the latter into a power of two, and does
 * one row fit? */
INLINE bool strides_fit(const args *x, const prefill_head_plan *plan) {
  const int stride = plan->stride;
  if (stride <= 0 || x->block_q % stride || x->block_k % stride)
    return false;
  const int per_block = x->block_k / stride;
  return (per_block & (per_block - 1)) == 0 &&
         (int64_t)stride * x->byte_width <= STRIDED_BYTES / 2;
}

/* Is the head sparse, by this plan and this entry's number of keys? What guards
 * similar blocks is not here: such heads are dense. */
INLINE bool is_sparse(const args *x, int b, const prefill_head_plan *plan) {
  if (!x->facts[4 * b + 3] || plan->density >= 1 || plan->similarity > 0)
    return false;
  switch (plan->pattern) {
  case PREFILL_PATTERN_A_SHAPE:
  case PREFILL_PATTERN_TRI_SHAPE:
  case PREFILL_PATTERN_VERTICAL_SLASH:
  case PREFILL_PATTERN_BLOCK_SPARSE:
  case PREFILL_PATTERN_FLEXPREFILL:
    return true;
  case PREFILL_PATTERN_STRIDED:
    return plan->stride > 0;
  case PREFILL_PATTERN_INFLLM_V2:
    return plan->top_k > 0 && x->block_k % PREFILL_CUDA_MEAN_STEP == 0;
  case PREFILL_PATTERN_XATTENTION:
    return plan->top_p > 0 && strides_fit(x, plan);
  case PREFILL_PATTERN_SAMPLED:
    return plan->top_p > 0 && plan->stride > 0 &&
           x->block_q % plan->stride == 0;
  case PREFILL_PATTERN_SALE:
    return (plan->bits == 0 || plan->bits == 4 || plan->bits == 8) &&
           (plan->top_p > 0 || plan->threshold > SALE_LEAST_THRESHOLD);
  default:
    return false;
  }
}
/* Is the pattern one that gives every tile a bitmap of blocks? */
INLINE bool selects_blocks(const prefill_head_plan *plan) {
  return plan->pattern == PREFILL_PATTERN_BLOCK_SPARSE ||
         plan->pattern == PREFILL_PATTERN_XATTENTION ||
         plan->pattern == PREFILL_PATTERN_FLEXPREFILL ||
         plan->pattern == PREFILL_PATTERN_INFLLM_V2 ||
         plan->pattern == PREFILL_PATTERN_SAMPLED ||
         plan->pattern == PREFILL_PATTERN_SALE;
}
/* The blocks up to that of the first visible key, which stay. */
INLINE int64_t first_blocks(const args *x, int b) {
  return first_key(x, b) / x->block_k + 1;
}
/* The query rows whose attention is estimated: [*begin, returned); as bindSums
 * in lib/Codegen/CUDA/LowerSums.cpp. FlexPrefill's are as many as there may be
 * unless the plan says otherwise. */
INLINE int64_t sums_rows(const args *x, int b, int h, int64_t *begin) {
  const int64_t end =
      most(0, least(x->q_len, last_key(x, b) - position_of(x, b)));
  const prefill_head_plan *plan = &x->plans[h];
  int64_t last = least(most(plan->last, 1), PREFILL_CUDA_SUMS_ROWS);
  if (plan->pattern == PREFILL_PATTERN_FLEXPREFILL && plan->last <= 0)
    last = PREFILL_CUDA_SUMS_ROWS;
  *begin = most(0, end - last);
  return end;
}
/* b * KV heads + KV head of a query head. */
INLINE int64_t kv_number(const args *x, int b, int h) {
  return (int64_t)b * (x->heads / x->group) + h / x->group;
}
/* Bitmap of the distances that all tiles of a FlexPrefill head keep. */
INLINE uint32_t *flex_distances(const args *x, int64_t head) {
  return x->distance + head * x->phases * x->distances;
}
/* Items of a share selection before the keys. */
INLINE int64_t share_limit(const args *x, int b) {
  return least(distance_limit(x, b), MAX_BLOCKS);
}

#endif
