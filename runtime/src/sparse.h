/*===- sparse.h - From a kernel's plan to indices -----------------*- C -*-===*\
|*
|* estimate*.c score, select.c selects, index.c applies; cost.c says when it is
|* worth while. prefill_plan says what is wanted, per query head.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_SPARSE_H
#define PREFILL_RUNTIME_SPARSE_H

#include "index.h"

#ifdef __cplusplus
extern "C" {
#endif

/* MInference's constants: keys and diagonals that are always kept. */
enum { PF_FORCED_SINKS = 30, PF_FORCED_DIAGONALS = 100 };

/* Decides for every head of the call whether it runs dense, estimates what
 * sparse ones visit, and fills call->index and call->most_columns. Leaves
 * call->index NULL when every head is dense: so it does without a plan, for
 * q_len 1, for kernels that are not plainly causal or have a bias or segments,
 * and where the cost function says so. */
prefill_status pf_build_index(pf_call *call);

/*===-- select.c ---------------------------------------------------------===*/

/* Sets in chosen (n bits, cleared first) the items of greatest value whose
 * costs together stay within budget: in order of falling value, of equal ones
 * the lower index first, up to the first that does not fit. cost NULL: 1 each.
 * -inf and NaN are never chosen. O(n). */
void pf_select(const float *value, const float *cost, int64_t n, double budget,
               uint64_t *chosen);

/*===-- cost.c -----------------------------------------------------------===*/

/* Work in units of one dense block (block_q x block_k scores and their values)
 * of the same kernel. */
typedef struct pf_work {
  int64_t tiles;        /* tiles of query rows that visit anything */
  int64_t blocks;       /* blocks visited */
  int64_t column_tiles; /* tiles of block_k gathered columns */
} pf_work;
double pf_cost_dense(const pf_work *work);
double pf_cost_sparse(const pf_work *work);
/* Of a vertical-slash estimate of `rows` query rows over `keys` keys, and of a
 * block-sparse one of a whole head. */
double pf_cost_estimate_sums(const pf_call *call, int64_t rows, int64_t keys);
double pf_cost_estimate_blocks(const pf_call *call, int64_t keys);
double pf_cost_estimate_strided(const pf_call *call,
                                const prefill_head_plan *plan,
                                const pf_work *dense);
double pf_cost_estimate_sampled(const prefill_head_plan *plan,
                                const pf_work *dense);
double pf_cost_estimate_quantized(const pf_call *call,
                                  const prefill_head_plan *plan,
                                  const pf_work *dense);
double pf_cost_estimate_compressed(const pf_work *dense);
/* What a plan is expected to visit, and the most it can visit, of a head whose
 * dense work is given. */
pf_work pf_predict_work(const pf_call *call, const prefill_head_plan *plan,
                        const pf_work *dense, int64_t keys, bool worst);
/* Of a plan's estimate, whatever its pattern. *bounded says that nothing more
 * is known of what will be kept than pf_predict_work's likely case. */
double pf_cost_estimate(const pf_call *call, const prefill_head_plan *plan,
                        const pf_work *dense, int64_t keys, bool *bounded);
/* Before the estimate: is it worth while? */
bool pf_worth_estimating(const pf_call *call, const prefill_head_plan *plan,
                         const pf_work *dense, int64_t keys);
/* After it. */
bool pf_worth_running(const pf_work *dense, const pf_work *sparse);

#ifdef __cplusplus
}
#endif
#endif
