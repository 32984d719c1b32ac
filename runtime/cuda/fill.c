/*===- fill.c - Rows without keys ---------------------------------*- C -*-===*\
|*
|* What a row gives that sees no key, where that is not 0 (enum
|* prefill_masked_row). Part of inputs.c. Such rows are padding, and few: a
|* thread block looks at the log-sum-exps of PREFILL_CUDA_FILL_ROWS rows, and
|* mostly that is all.
|*
\*===----------------------------------------------------------------------===*/
#include "prefill/kernel_abi.h"

enum { THREADS = PREFILL_CUDA_INPUT_THREADS };
/* Memory of the thread block; holds nothing at first. */
#define SHARED static __attribute__((address_space(3), loader_uninitialized))
#define LOG2E 1.4426950408889634f
#define MINUS_INF (-__builtin_inff())

/* 2^x by the unit: 2 ulp. */
static inline float power(float x) { return __nvvm_ex2_approx_ftz_f(x); }

/* The mean of column `column` of all values of a head, in float32, 256 keys at
 * a time, so that rounding stays small. For threads below v_head_dim. */
static inline float mean_value(const prefill_cuda_fill *a, int64_t v,
                               int column) {
  float sum = 0;
  for (int64_t begin = 0; begin < a->keys; begin += 256) {
    const int64_t end = begin + 256 < a->keys ? begin + 256 : a->keys;
    float part = 0;
    for (int64_t j = begin; j < end; ++j)
      part += load(a->v, v + j * a->v_row + column, a->element);
    sum += part;
  }
  return sum / (float)a->keys;
}

/* Column `column` of the row at q if it saw all keys. All threads of the block
 * take part, each with a key's score at a time. */
static inline float unmasked_row(const prefill_cuda_fill *a, int64_t q,
                                 int64_t k, int64_t v, int column) {
  SHARED float weight[THREADS];
  float top = MINUS_INF, sum = 0, result = 0;
  for (int64_t begin = 0; begin < a->keys; begin += THREADS) {
    const int64_t key = begin + column;
    float score = MINUS_INF;
    if (key < a->keys) {
      score = 0;
      for (int c = 0; c < a->head_dim; ++c)
        score += load(a->q, q + c, a->element) *
                 load(a->k, k + key * a->k_row + c, a->element);
      score *= a->scale;
      if (a->softcap > 0)
        score = a->softcap *
                (1 - 2 / (1 + power(score / a->softcap * (2 * LOG2E))));
    }
    __syncthreads(); /* weights are read */
    weight[column] = score;
    __syncthreads();
    const float before = top;
    for (int i = 0; i < THREADS; ++i)
      top = __builtin_fmaxf(top, weight[i]);
    const float factor = power((before - top) * LOG2E);
    __syncthreads(); /* so are scores */
    weight[column] = power((score - top) * LOG2E);
    __syncthreads();
    sum *= factor;
    result *= factor;
    const int64_t left = a->keys - begin;
    for (int i = 0; i < THREADS && i < left; ++i) {
      sum += weight[i];
      if (column < a->v_head_dim)
        result += weight[i] *
                  load(a->v, v + (begin + i) * a->v_row + column, a->element);
    }
  }
  return result / sum;
}

KERNEL prefill_fill_rows(prefill_cuda_fill a) {
  const int column = (int)__nvvm_read_ptx_sreg_tid_x();
  const int64_t h = __nvvm_read_ptx_sreg_ctaid_y(),
                b = __nvvm_read_ptx_sreg_ctaid_z();
  const int64_t begin =
      (int64_t)__nvvm_read_ptx_sreg_ctaid_x() * PREFILL_CUDA_FILL_ROWS;
  const int64_t k = b * a.k_batch + h / a.group * a.k_head,
                v = b * a.v_batch + h / a.group * a.v_head;
  const float *lse = a.lse + b * a.lse_batch + h * a.lse_head;
  float value = __builtin_nanf("");
  bool known = a.masked_row == PREFILL_MASKED_NAN;
  for (int64_t row = begin;
       row < begin + PREFILL_CUDA_FILL_ROWS && row < a.q_len; ++row) {
    if (lse[row] != MINUS_INF)
      continue;
    if (a.masked_row == PREFILL_MASKED_SCORES)
      value = unmasked_row(&a, b * a.q_batch + h * a.q_head + row * a.q_row, k,
                           v, column);
    else if (!known && column < a.v_head_dim)
      value = mean_value(&a, v, column);
    known = true;
    if (column < a.v_head_dim)
      store(a.o, b * a.o_batch + h * a.o_head + row * a.o_row + column,
            a.element, value);
  }
}
