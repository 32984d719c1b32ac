/*===- estimate.h - Between the estimators and their driver -------*- C -*-===*\
|*
|* estimate.c decides which heads of a call are sparse, gives each one memory
|* and calls the estimator of its pattern, which fills the head's index:
|*
|*   estimate_relative.c   a-shape, tri-shape, vertical-slash
|*   estimate_sums.c       the attention of the last rows, for vertical-slash
|*   estimate_blocks.c     block-sparse
|*   estimate_strided.c    xattention
|*   estimate_sampled.c    sampled
|*   estimate_flex.c       flexprefill
|*   estimate_quantized.c  sale
|*   estimate_compressed.c infllm-v2
|*   estimate_grid.c       grid
|*   estimate_boundary.c   q-boundary, 2d-boundary
|*
|*   estimate_scores.c     scores of single query rows
|*   estimate_pool.c       scores of mean queries and mean keys
|*   estimate_shares.c     sums of exponentials to shares and masses of blocks
|*   estimate_keep.c       which blocks stay, for those that give them a mass
|*   estimate_guard.c      which blocks stay whatever they are given
|*
|* A new pattern adds a file with a pf_pattern, a line in estimate.c's table and
|* its cost in cost.c. Heads share nothing; everything is float32 and
|* deterministic.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_ESTIMATE_H
#define PREFILL_RUNTIME_ESTIMATE_H

#include "sparse.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What SpargeAttn's guard keeps; NULL: nothing. */
typedef struct pf_guard {
  const uint64_t *keys;  /* bitmap of blocks that every tile visits */
  const uint64_t *tiles; /* of tiles that visit every block */
} pf_guard;

/* One head to estimate, and memory for it. */
typedef struct pf_estimate {
  const pf_call *call;
  int64_t b, h;
  const pf_batch *batch;
  const prefill_head_plan *plan;
  const pf_work *dense; /* of the head */
  pf_grid grid;
  pf_guard guard;
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

/*===-- estimate_scores.c ------------------------------------------------===*/

/* Score of a key that a row does not see: below it tile functions take scores
 * for invisible too (kernel_abi.h), and differences of any two are defined. */
#define PF_HIDDEN_SCORE (-2e38f)

/* Up to bq query rows of a head, one lane each. */
typedef struct pf_lanes {
  const pf_call *call;
  const pf_batch *batch;
  int64_t b, h;
  int64_t rows;       /* lanes in use */
  int64_t *position;  /* [rows] key positions, ascending */
  int64_t begin, end; /* keys that any of them may see; begin >= end: none */
  char *q;            /* [rows][d], type of q, rotated */
  bool transpose;     /* fill `transposed`; so it is without a score function */
  float *transposed;  /* [d][bq], scaled; 0 in lanes that are not in use */
  float *row, *rotary;
  void *workspace;
} pf_lanes;
/* Takes memory for the lanes of a head from *at. transpose: wants `transposed`
 * in any case. */
pf_lanes pf_take_lanes(const pf_call *call, int64_t b, int64_t h,
                       bool transpose, char **at);
/* Loads query rows row, row + step, ..., none past the last one of the call,
 * which stands in for those. 0 < rows <= bq. */
void pf_load_lanes(pf_lanes *x, int64_t row, int64_t step, int64_t rows);
/* out[(j - begin) * bq + i]: score of lane i and key j of [begin, end), scaled
 * and capped; PF_HIDDEN_SCORE where the row does not see the key. Lanes that
 * are not in use hold numbers without meaning. The keys lie between x->begin
 * and x->end. */
void pf_score_lanes(const pf_lanes *x, int64_t begin, int64_t end, float *out);

/*===-- estimate_pool.c --------------------------------------------------===*/

/* Means of a head's tiles of query rows and blocks of keys. */
typedef struct pf_pooled {
  const pf_estimate *head;
  int64_t first;            /* tile of lane 0 of q_mean and scores */
  float *k_mean;            /* [blocks][d]; 0 where no key is visible */
  float *q_mean, *scores;   /* [d][lanes], [blocks][lanes] */
  float *row, *most, *mass; /* [blocks] */
  float *mean;              /* [d] */
  char *rotated;
  float *rotary;
} pf_pooled;
pf_pooled pf_take_pooled(const pf_call *call, char **at);
/* Must come first. Keys that the key mask hides do not count. */
void pf_pool_keys(pf_pooled *x, const pf_estimate *head);
/* factor times mean query . mean key for a tile's visible blocks, the same
 * factor for all tiles of a head; PF_HIDDEN_SCORE for hidden blocks. [blocks],
 * to be overwritten; the next call does. */
float *pf_pooled_scores(pf_pooled *x, int64_t tile, float factor);
/* Their softmax, scaled and capped as the model's scores are, not yet divided
 * by its sum; NaN where a score is no number. Hidden blocks may have any. */
float *pf_pooled_mass(pf_pooled *x, int64_t tile);
/* The same of the mean of rows [row, row + rows) for blocks [begin, end). */
const float *pf_pooled_rows(pf_pooled *x, int64_t row, int64_t rows,
                            int64_t begin, int64_t end);

/*===-- estimate_sums.c --------------------------------------------------===*/

/* Column and diagonal sums of the softmax of the last `last` query rows of head
 * h: column[j] for keys j < t, diagonal[delta] for delta in [0, t). Positions
 * of the rows end before *end_position. memory: pf_sums_bytes. */
typedef struct pf_sums {
  float *column;   /* [t] */
  float *diagonal; /* [t] */
  int64_t first_position, end_position;
  bool finite; /* false: a score that a row sees is no number, nor are sums */
} pf_sums;
int64_t pf_sums_bytes(const pf_call *call);
pf_sums pf_estimate_sums(const pf_call *call, int64_t b, int64_t h,
                         int64_t last, void *memory);
/* The same without what goes to keys before `from`. */
pf_sums pf_estimate_sums_from(const pf_call *call, int64_t b, int64_t h,
                              int64_t last, int64_t from, void *memory);
/* For query rows [row, row + rows) of a head, at most bq: the probability of a
 * key that scores x is exp(x - most[i]) * inverse[i]; inverse is 0 for a row
 * that sees nothing. [bq] each. False: a score is no number. memory:
 * pf_sums_bytes. */
bool pf_measure_rows(const pf_call *call, int64_t b, int64_t h, int64_t row,
                     int64_t rows, float *most, float *inverse, void *memory);

/*===-- estimate_values.c ------------------------------------------------===*/

/* Mean values of a head's blocks of keys, and scratch. */
typedef struct pf_values {
  const pf_call *call;
  int64_t lanes;
  float *mean;                     /* [blocks][e] */
  float *across;                   /* [e][blocks], the same */
  float *square;                   /* [blocks], of their lengths */
  float *output, *norm, *products; /* [e][lanes], [lanes], [blocks][lanes] */
} pf_values;
pf_values pf_take_values(const pf_call *call, int64_t lanes, char **at);
/* Keys that are masked do not count. */
void pf_load_values(pf_values *x, int64_t b, int64_t h);
/* shares[block * lanes + i], the share of blocks [first, end) in the attention
 * of row i, times how far the row's output lies from its mean value. */
void pf_weigh_shares(pf_values *x, float *shares, int64_t first, int64_t end);

/*===-- estimate_shares.c ------------------------------------------------===*/

/* Of PF_QUANTIZED_LANES rows whose exponentials were summed block by block:
 * sum[block][lane], relative to the block's maximum most[block][lane], becomes
 * the block's share of the row's softmax over the span; 0 in rows that see
 * nothing. top[lane]: the greatest of the maxima, finite. */
void pf_finish_shares(const pf_call *call, float *sum, const float *most,
                      const float *top, const pf_span *span);
/* mass[block] += the shares of lanes [begin, end). */
void pf_add_shares(float *mass, const float *shares, const pf_span *span,
                   int64_t begin, int64_t end);

/*===-- estimate_keep.c --------------------------------------------------===*/

/* Which blocks of a tile stay, by the mass that an estimator gives them. */
typedef struct pf_keep {
  int64_t first; /* the first blocks that are always kept */
  int64_t near;  /* blocks before the tile's own that are always kept */
  double top_p;  /* kept in order of falling mass, as long as those before hold
                    less than this share of the sum; forced ones count */
  const uint64_t *forced; /* bitmap of more blocks to keep, or NULL */
} pf_keep;

/* Appends the blocks of a tile to the head's block index, and returns the
 * number of ids there are now: `total` before. mass: [blocks], not negative; it
 * is overwritten. A sum that is no finite number says nothing: all is kept.
 * Hidden blocks have no mass, and are never kept. Uses head->chosen. */
int64_t pf_keep_blocks(const pf_estimate *head, const pf_keep *keep,
                       int64_t tile, float *mass, int64_t total);

/* Appends the blocks of a tile whose bits are set in head->chosen, counted from
 * the first that the tile may see, or all of them, less hidden ones, and what
 * the guard keeps. Returns the number of ids there are now. */
int64_t pf_list_chosen(const pf_estimate *head, int64_t tile, bool all,
                       int64_t total);

/*===-- estimate_guard.c -------------------------------------------------===*/

/* The guard of a head with plan->similarity > 0. memory: pf_guard_bytes. */
int64_t pf_guard_bytes(const pf_call *call);
pf_guard pf_guard_of(const pf_call *call, int64_t b, int64_t h,
                     float similarity, char *memory);

/*===-- the patterns -----------------------------------------------------===*/

/* What the driver asks of a pattern; one constant a pattern, in its file. */
typedef struct pf_pattern {
  /* Can it run with this call's shapes? NULL: always. */
  bool (*fits)(const pf_call *call, const prefill_head_plan *plan);
  /* Ids that a head's block index may hold. NULL: the index is a relative one,
   * with room for `columns` (NULL: none). */
  int64_t (*ids)(const pf_call *call, const pf_grid *grid,
                 const prefill_head_plan *plan, const pf_work *dense);
  int64_t (*columns)(const pf_call *call, const prefill_head_plan *plan);
  /* Bytes of an index of its own kind, instead of these. NULL: none. */
  int64_t (*bytes)(const pf_call *call, const prefill_head_plan *plan);
  /* Bytes of scratch; limit: distances of the longest batch entry. NULL: 0. */
  int64_t (*scratch)(const pf_call *call, const prefill_head_plan *plan,
                     int64_t limit);
  /* What heads[0 .. count) (b * hq + h, ascending) share, before any of them is
   * estimated; on the calling thread. NULL: nothing. */
  prefill_status (*prepare)(pf_call *call, const int64_t *heads, int64_t count);
  /* Query heads of a KV head with equal plans share the index of the first. */
  bool per_kv_head;
  void (*estimate)(const pf_estimate *head);
} pf_pattern;

extern const pf_pattern pf_pattern_static;         /* estimate_relative.c */
extern const pf_pattern pf_pattern_vertical_slash; /* estimate_relative.c */
extern const pf_pattern pf_pattern_block_sparse;   /* estimate_blocks.c */
extern const pf_pattern pf_pattern_xattention;     /* estimate_strided.c */
extern const pf_pattern pf_pattern_sampled;        /* estimate_sampled.c */
extern const pf_pattern pf_pattern_flexprefill;    /* estimate_flex.c */
extern const pf_pattern pf_pattern_sale;           /* estimate_quantized.c */
extern const pf_pattern pf_pattern_infllm;         /* estimate_compressed.c */
extern const pf_pattern pf_pattern_grid;           /* estimate_grid.c */
extern const pf_pattern pf_pattern_boundary;       /* estimate_boundary.c */

/* ids of a pattern that may keep everything. */
int64_t pf_all_ids(const pf_call *call, const pf_grid *grid,
                   const prefill_head_plan *plan, const pf_work *dense);

#ifdef __cplusplus
}
#endif
#endif
