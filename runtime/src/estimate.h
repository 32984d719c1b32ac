/*===- estimate.h - Between the estimators and their driver -------*- C -*-===*\
|*
|* estimate.c decides which heads of a call are sparse, gives each one memory
and
|* calls the estimator of its pattern, which fills the head's index:
|*
|*   estimate_relative.c   a-shape, tri-shape, vertical-slash
|*   estimate_sums.c       the attention of the last rows, for vertical-slash
|*   estimate_blocks.c     block-sparse
|*   estimate_strided.c    xattention
|*
|* A new pattern adds a file with three functions: how much its index may hold,
|* how much scratch it needs, and the estimate. Heads share nothing; everything
|* is float32 and deterministic.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_ESTIMATE_H
#define PREFILL_RUNTIME_ESTIMATE_H

#include "sparse.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One head to estimate, and memory for it. */
typedef struct pf_estimate {
  const pf_call *call;
  int64_t b, h;
  const pf_batch *batch;
  const prefill_head_plan *plan;
  const pf_work *dense; /* of the head */
  pf_grid grid;
  pf_head_index *index; /* to fill */
  void *storage;        /* of the index */
  int64_t columns;      /* that a relative index in storage has room for */

  /* Scratch: bitmaps of t + pf_max_distance + 1 bits, t + bk keys, and the
   * bytes that the estimator asked for. */
  uint64_t *chosen, *distances;
  int32_t *keys;
  char *scratch;
} pf_estimate;

/* Takes count elements of the given size from *at, 64-byte aligned. */
static inline void *pf_take(char **at, int64_t count, int64_t size) {
  void *part = *at;
  *at += pf_round_up(count * size, 64);
  return part;
}
/* Bitmaps. */
static inline bool pf_get_bit(const uint64_t *bits, int64_t i) {
  return bits[i / 64] >> (i % 64) & 1;
}
static inline void pf_set_bit(uint64_t *bits, int64_t i) {
  bits[i / 64] |= (uint64_t)1 << (i % 64);
}
static inline int64_t pf_words(int64_t bits) { return bits / 64 + 1; }

/*===-- estimate_sums.c --------------------------------------------------===*/

/* Column and diagonal sums of the softmax of the last `last` query rows of head
 * h: column[j] for keys j < t, diagonal[delta] for delta in [0, t). Positions
 * of the rows end before *end_position. memory: pf_sums_bytes. */
typedef struct pf_sums {
  float *column;   /* [t] */
  float *diagonal; /* [t] */
  int64_t first_position, end_position;
} pf_sums;
int64_t pf_sums_bytes(const pf_call *call);
pf_sums pf_estimate_sums(const pf_call *call, int64_t b, int64_t h,
                         int64_t last, void *memory);

/*===-- estimate_relative.c ----------------------------------------------===*/

/* A-shape and tri-shape: no columns, no scratch. */
void pf_estimate_static(const pf_estimate *head);

void pf_estimate_vertical_slash(const pf_estimate *head);
/* Columns that a head may keep. */
int64_t pf_vertical_slash_columns(const pf_call *call,
                                  const prefill_head_plan *plan);
/* Bytes of scratch; limit: distances of the longest batch entry. */
int64_t pf_vertical_slash_scratch(const pf_call *call, int64_t limit);

/*===-- estimate_blocks.c ------------------------------------------------===*/

void pf_estimate_block_sparse(const pf_estimate *head);
/* Ids that a head's index may hold. */
int64_t pf_block_sparse_ids(const pf_call *call, const pf_grid *grid,
                            const prefill_head_plan *plan,
                            const pf_work *dense);
int64_t pf_block_sparse_scratch(const pf_call *call);

/*===-- estimate_strided.c -----------------------------------------------===*/

void pf_estimate_xattention(const pf_estimate *head);
/* Ids that a head's index may hold: nothing is known of their number. */
int64_t pf_xattention_ids(const pf_work *dense);
int64_t pf_xattention_scratch(const pf_call *call,
                              const prefill_head_plan *plan);
/* Whether tiles and blocks are made of whole strides. */
bool pf_xattention_fits(const pf_call *call, const prefill_head_plan *plan);

#ifdef __cplusplus
}
#endif
#endif
