/*===- cost.h - What a prefill costs, before it runs --------------*- C -*-===*\
|*
|* The cost model by which the runtime refuses sparse attention that would not
|* pay (src/cost.c) and `prefill-opt cost` predicts. Attention is counted in
|* units: one is the time of one dense block of a kernel, block_q x block_k
|* scores with their softmax and the product with V. A device says how long that
|* takes, and what linear layers and memory cost beside it.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_COST_H
#define PREFILL_COST_H

#include <prefill/kernel_abi.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What one device sustains. Rates of a CPU are those of one thread. */
typedef struct prefill_device {
  const char *name;    /* what -device calls it */
  const char *other;   /* a second name of it, or NULL */
  const char *source;  /* where the numbers are from, one line */
  int32_t measured;    /* nonzero: by this project, on such a device */
  int32_t per_thread;  /* nonzero: rates are those of one thread */
  int32_t block_q, block_k; /* of its attention kernels */
  double linear;       /* FLOP/s of products with weights */
  double attention;    /* FLOP/s of dense blocks of the attention kernel, the
                          hidden half of diagonal blocks counted as work */
  double narrow;       /* the same with head dims of at most 64 */
  double bytes;        /* bytes/s between memory and the processor */
  double cached;       /* the same where an operator's operands and results
                          together take at most `cache` bytes */
  double cache;
} prefill_device;

/* The devices that are known, by number; NULL past the last one. */
PREFILL_API const prefill_device *prefill_device_at(size_t index);

/* One head of a causal attention over `keys` keys; its `rows` query rows are
 * the last ones. window_left < 0: none. causal 0: every row sees every key. */
typedef struct prefill_cost_shape {
  int64_t rows, keys;
  int32_t block_q, block_k;
  int32_t causal;
  int64_t window_left;
} prefill_cost_shape;

/* In units (above). */
typedef struct prefill_cost_units {
  double dense;    /* of the dense head */
  double estimate; /* of the plan's estimate; 0 where it is refused */
  double chosen;   /* of what runs: the dense head, or estimate and visits */
  double visited;  /* blocks that are visited, of `visible` ones */
  double visible;
  int32_t sparse;  /* nonzero: the plan is worth while */
} prefill_cost_units;

/* What a head costs dense, and by `plan` as the runtime would decide with
 * prefill_plan::dense_below. plan NULL: dense. How much patterns keep that
 * decide by shares of mass is what they kept on attention of real models. */
PREFILL_API void prefill_cost_attention(const prefill_cost_shape *shape,
                                        const prefill_head_plan *plan,
                                        int32_t dense_below,
                                        prefill_cost_units *units);

#ifdef __cplusplus
}
#endif
#endif
